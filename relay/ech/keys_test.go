package ech

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// opens reports whether keys open what a client with this config sends.
func opens(t *testing.T, keys *Keys, list []byte) bool {
	t.Helper()
	msg := clientHello(t, &tls.Config{ServerName: "secret.example.org", EncryptedClientHelloConfigList: list})
	inner, _, err := keys.Open(public, msg)
	if err != nil {
		t.Fatal(err)
	}
	return inner != nil
}

// Every day another key is published; the ones before are good for a week more.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes atomic.Int32
		keys, err := NewKeys(Config{Dir: t.TempDir(), PublicName: public, Changed: func() { changes.Add(1) }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if err := keys.Run(ctx); err != nil {
				t.Error(err)
			}
		}()
		first := keys.ConfigList()
		time.Sleep(23 * time.Hour)
		if !bytes.Equal(keys.ConfigList(), first) {
			t.Error("the key changed within the day")
		}
		time.Sleep(2 * time.Hour)
		if bytes.Equal(keys.ConfigList(), first) || changes.Load() != 1 {
			t.Errorf("after a day the key is the same, %d changes", changes.Load())
		}
		if !opens(t, keys, first) || !opens(t, keys, keys.ConfigList()) {
			t.Error("a hello is not opened: the old key or the new one is missing")
		}
		time.Sleep(6*24*time.Hour + 22*time.Hour) // 23 h before a week after its successor, and one rotation more
		if !opens(t, keys, first) {
			t.Error("the first key is gone within the week")
		}
		time.Sleep(25 * time.Hour)
		if opens(t, keys, first) {
			t.Error("the first key is still there after a week")
		}
		if n := keys.Status().Kept; n < 7 || n > 9 {
			t.Errorf("%d keys are kept", n)
		}
		cancel()
		<-ended
	})
}

func TestKeysSurviveRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ech")
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	open := func(name string) *Keys {
		t.Helper()
		k, err := NewKeys(Config{Dir: dir, PublicName: name, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	first := open(public)
	if again := open(public); !bytes.Equal(again.ConfigList(), first.ConfigList()) || !opens(t, again, first.ConfigList()) {
		t.Error("a restart changes the key")
	}
	info, err := os.Stat(filepath.Join(dir, fileName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the keys' file: %v, %v", info.Mode(), err)
	}
	// Long away: what was published last is still in caches.
	now = now.Add(30 * 24 * time.Hour)
	later := open(public)
	if bytes.Equal(later.ConfigList(), first.ConfigList()) || !opens(t, later, first.ConfigList()) {
		t.Error("after a month off the key is not replaced, or the last one is forgotten")
	}
	// Another public name takes effect at once, and the old one is still known.
	renamed := open("other.example.org")
	if !bytes.Contains(renamed.ConfigList(), []byte("other.example.org")) || !opens(t, renamed, later.ConfigList()) {
		t.Error("the public name did not change, or its old visitors are lost")
	}
	msg := clientHello(t, &tls.Config{ServerName: "secret.example.org", EncryptedClientHelloConfigList: later.ConfigList()})
	if inner, _, err := renamed.Open("other.example.org", msg); inner != nil || err != nil {
		t.Errorf("a config of one public name is opened under another: %v", err)
	}
	// A clock that was wrong does not keep its key for years.
	now = now.Add(-365 * 24 * time.Hour)
	if back := open("other.example.org"); bytes.Equal(back.ConfigList(), renamed.ConfigList()) {
		t.Error("a key from the future stays")
	}
}

func TestDamagedKeys(t *testing.T) {
	dir := t.TempDir()
	if _, err := NewKeys(Config{Dir: dir, PublicName: public}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, fileName)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var s stored
	if err := json.Unmarshal(good, &s); err != nil {
		t.Fatal(err)
	}
	private := bytes.Clone(s.Keys[0].Private)
	private[3] ^= 1
	s.Keys[0].Private = private
	mixed, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for what, data := range map[string][]byte{
		"empty": {}, "cut": good[:len(good)/2], "no keys": []byte(`{"schema":1,"keys":[]}`),
		"newer": bytes.Replace(good, []byte(`"schema": 1`), []byte(`"schema": 2`), 1), "twice": append(bytes.Clone(good), good...), "another's private key": mixed,
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := NewKeys(Config{Dir: dir, PublicName: public})
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "Remove the file") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// What cannot be kept is not published: after a restart nobody could open it.
func TestUnwritable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ech")
	now := time.Now()
	keys, err := NewKeys(Config{Dir: dir, PublicName: public, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	before := keys.ConfigList()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	now = now.Add(48 * time.Hour)
	if changed, err := keys.rotate(); err == nil || changed {
		t.Errorf("changed %v, %v", changed, err)
	}
	if !bytes.Equal(keys.ConfigList(), before) || !opens(t, keys, before) {
		t.Error("the old key does not go on")
	}
}

func TestConfigRefused(t *testing.T) {
	for what, c := range map[string]Config{
		"no directory":     {PublicName: public},
		"no name":          {Dir: t.TempDir()},
		"one label":        {Dir: t.TempDir(), PublicName: "localhost"},
		"not canonical":    {Dir: t.TempDir(), PublicName: "Example.org."},
		"an address":       {Dir: t.TempDir(), PublicName: "192.0.2.1"},
		"kept too shortly": {Dir: t.TempDir(), PublicName: public, Rotate: time.Hour, Keep: time.Minute},
		"changed too fast": {Dir: t.TempDir(), PublicName: public, Rotate: time.Second},
	} {
		if _, err := NewKeys(c); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

func TestIDsDiffer(t *testing.T) {
	var keys []*key
	seen := map[byte]bool{}
	for range maxKeys {
		k, err := makeKey(public, time.Now(), keys)
		if err != nil {
			t.Fatal(err)
		}
		if seen[k.id] {
			t.Fatalf("id %d is given twice", k.id)
		}
		seen[k.id] = true
		keys = append(keys, k)
	}
}
