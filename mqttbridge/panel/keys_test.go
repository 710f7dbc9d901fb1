package panel

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// scripts puts our modules, as browsers get them, and a test's into a directory
// in which node takes them for modules.
func scripts(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	plain, err := sources()
	if err == nil {
		err = os.CopyFS(dir, os.DirFS("testdata"))
	}
	plain["package.json"] = []byte(`{"type":"module"}`)
	for name, text := range plain {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func node(t *testing.T, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool(t, "node"), args...)
	var faults bytes.Buffer
	cmd.Stderr = &faults
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("node: %v\n%s", err, faults.String())
	}
	return out
}

// TestVectors: page and Go agree on every byte, and open each other's.
func TestVectors(t *testing.T) {
	path, err := filepath.Abs("../testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Home, Device struct {
			PKCS8, SPKI []byte
			ID          string
		}
	}
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	out := node(t, filepath.Join(scripts(t), "vectors.mjs"), path)
	var s mqttbridge.Signed
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	e, err := s.Verify(vectors.Device.SPKI)
	if err != nil || s.Key != vectors.Device.ID || e.Home != vectors.Home.ID || e.Value != `ö "<&>" \` || e.NotAfter.Sub(e.Issued).Round(time.Second) != 10*time.Second {
		t.Fatalf("%v %+v", err, e)
	}
	pin, err := mqttbridge.OpenPIN(homeKey(t, vectors.Home.PKCS8), e)
	if err != nil || pin != "123456" {
		t.Errorf("PIN %q, %v", pin, err)
	}
	e.Action = "gate"
	if _, err := mqttbridge.OpenPIN(homeKey(t, vectors.Home.PKCS8), e); err == nil {
		t.Error("the PIN of one action opens another")
	}
}

func homeKey(t *testing.T, pkcs8 []byte) *ecdh.PrivateKey {
	t.Helper()
	any, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		t.Fatal(err)
	}
	signing, ok := any.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("a %T", any)
	}
	key, err := signing.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestScriptsParse: what is left of our scripts after lean is still a module.
func TestScriptsParse(t *testing.T) {
	dir := scripts(t)
	found, err := filepath.Glob(filepath.Join(dir, "*.js"))
	if err != nil || len(found) < 8 {
		t.Fatal(found, err)
	}
	for _, file := range found {
		node(t, "--check", file)
	}
	w := newWorld(t)
	worker := filepath.Join(dir, "sw.js")
	if err := os.WriteFile(worker, w.panel.assets.fixed["/sw.js"].plain, 0o600); err != nil {
		t.Fatal(err)
	}
	node(t, "--check", worker)
}
