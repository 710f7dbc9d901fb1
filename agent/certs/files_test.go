package certs

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// pair writes a pair and names it.
func pair(t *testing.T, dir, name string, crt, key []byte) Pair {
	t.Helper()
	p := Pair{filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")}
	write(t, p.Cert, crt)
	write(t, p.Key, key)
	return p
}

// Files are followed: all that changed or none, and what does not load is said
// once.
func TestFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(day)) // virtual
		dir, log, ca := t.TempDir(), new(logBuffer), authority(t)
		var later atomic.Int64 // what the clock is ahead of the bubble: half a year is many looks at the files
		crt, key := issue(t, ca, time.Time{}, day.AddDate(0, 3, 0), "*.relay.test")
		p := pair(t, dir, "a", crt, key)
		c, err := New(Config{Domain: domain, Mode: ModeFiles, Files: []Pair{p}, Logger: slog.New(slog.NewTextHandler(log, nil)), Now: func() time.Time { return time.Now().Add(time.Duration(later.Load())) }})
		if err != nil {
			t.Fatal(err)
		}
		h := &home{t: t, Certs: c}
		h.SetHosts([]string{"ha.relay.test", "ha.example.org", "*.relay.test", "*.a.relay.test"})
		h.run()
		defer func() { h.stop() }()
		for host, state := range map[string]string{"ha.relay.test": StateOK, "*.relay.test": StateOK, "ha.example.org": StateFailing, "*.a.relay.test": StateFailing} {
			st := h.of(host)
			if st.State != state || (st.Problem == "") != (state == StateOK) || (st.Fix == "") != (state == StateOK) {
				t.Errorf("status %+v", st)
			}
		}
		if _, err := h.GetCertificate("ha.example.org"); err == nil {
			t.Error("a certificate of another name")
		}
		old, err := h.GetCertificate("ha.relay.test")
		if err != nil {
			t.Fatal(err)
		}

		newCrt, newKey := issue(t, ca, time.Time{}, day.AddDate(0, 6, 0), "*.relay.test")
		write(t, p.Cert, newCrt) // and not yet the key
		pass(5 * time.Minute)
		if now, _ := h.GetCertificate("ha.relay.test"); now != old {
			t.Error("half a pair serves")
		}
		if n := strings.Count(log.String(), "not reloaded"); n != 1 {
			t.Errorf("said %d times", n)
		}
		if st := h.of("ha.relay.test"); st.State != StateFailing || !strings.Contains(st.Problem, p.Cert) {
			t.Errorf("status %+v", st)
		}
		write(t, p.Key, newKey)
		pass(time.Minute)
		if now, _ := h.GetCertificate("ha.relay.test"); now == old {
			t.Error("the new pair does not serve")
		}
		if st := h.of("ha.relay.test"); st.State != StateOK || !st.NotAfter.Equal(day.AddDate(0, 6, 0)) {
			t.Errorf("status %+v", st)
		}
		later.Store(int64(time.Until(day.AddDate(0, 6, -5))))
		if st := h.of("ha.relay.test"); !strings.Contains(st.Problem, "soon") {
			t.Errorf("status %+v", st)
		}
		later.Add(int64(6 * 24 * time.Hour))
		if st := h.of("ha.relay.test"); !strings.Contains(st.Problem, "has expired") {
			t.Errorf("status %+v", st)
		}
		if _, err := h.GetCertificate("ha.relay.test"); err != nil {
			t.Error("an expired one tells more than none:", err)
		}
		if err := h.Retry("ha.relay.test"); err != nil || h.Root() != nil {
			t.Errorf("Retry %v, root %v", err, h.Root())
		}
		h.Connected()
	})
}

func TestFilesRefuse(t *testing.T) {
	dir, ca := t.TempDir(), authority(t)
	crt, key := issue(t, ca, time.Time{}, time.Time{}, "ha.relay.test")
	_, other := issue(t, ca, time.Time{}, time.Time{}, "nas.relay.test")
	good := pair(t, dir, "good", crt, key)
	foreign := pair(t, dir, "foreign", crt, other)
	nameless := func() Pair {
		k, err := pki.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := ca.Issue(k.Public(), pki.Grant{Profile: pki.Device, Name: "phone"})
		if err != nil {
			t.Fatal(err)
		}
		pem, err := pki.EncodeKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return pair(t, dir, "nameless", pki.EncodeCert(leaf), pem)
	}()
	large := pair(t, dir, "large", make([]byte, maxFile+1), key)
	for name, bad := range map[string]Pair{"foreign key": foreign, "no name": nameless, "too large": large, "missing": {filepath.Join(dir, "x"), good.Key}} {
		if _, err := New(Config{Domain: domain, Mode: ModeFiles, Files: []Pair{good, bad}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// Every mistake is told at once.
	_, err := New(Config{Domain: domain, Mode: ModeFiles, Files: []Pair{foreign, nameless, {filepath.Join(dir, "x"), good.Key}}})
	for _, word := range []string{foreign.Cert, nameless.Cert, filepath.Join(dir, "x")} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("not told of %s: %v", word, err)
		}
	}
	// A key that everybody can read works, and is pointed out.
	if err := os.Chmod(good.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	log := new(logBuffer)
	if _, err := New(Config{Domain: domain, Mode: ModeFiles, Files: []Pair{good}, Logger: slog.New(slog.NewTextHandler(log, nil))}); err != nil || !strings.Contains(log.String(), "chmod 600") {
		t.Errorf("%v, log %s", err, log)
	}
	// Of two the longer one serves, whatever their order.
	longer, longerKey := issue(t, ca, time.Time{}, time.Now().AddDate(2, 0, 0), "ha.relay.test")
	second := pair(t, dir, "longer", longer, longerKey)
	for _, files := range [][]Pair{{good, second}, {second, good}} {
		c, err := New(Config{Domain: domain, Mode: ModeFiles, Files: files})
		if err != nil {
			t.Fatal(err)
		}
		if cert, err := c.GetCertificate("ha.relay.test"); err != nil || cert.Leaf.NotAfter.Before(time.Now().AddDate(1, 6, 0)) {
			t.Errorf("%v serves: %v", cert.Leaf.NotAfter, err)
		}
	}
}
