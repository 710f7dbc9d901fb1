package devices

import (
	"context"
	"crypto/x509"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/relay/store"
	"github.com/sallyport/sallyport/relay/store/boltstore"
)

// failing is a store whose writes fail.
type failing struct{ store.KV }

var errDisk = errors.New("no space left on device")

func (failing) Update(context.Context, string, []byte, uint64) (uint64, error) { return 0, errDisk }

// dying is a store that takes the claim of a key and then nothing more.
type dying struct{ store.KV }

func (s dying) Create(ctx context.Context, key string, v []byte) (uint64, error) {
	if strings.HasPrefix(key, keyPrefix) {
		return s.KV.Create(ctx, key, v)
	}
	return 0, errDisk
}

func (dying) Delete(context.Context, string, uint64) error { return errDisk }

func TestRevoke(t *testing.T) {
	cfg := config(t)
	var told revocations
	var d *Devices
	var cert *x509.Certificate
	cfg.OnRevoke = func(id string) {
		told.add(id)
		// By now it is true in memory and in the store.
		check(t, d, cert, "ha.example.org", today, DeniedRevoked)
		check(t, open(t, Config{Store: cfg.Store, CA: cfg.CA, Now: clock}), cert, "ha.example.org", today, DeniedRevoked)
	}
	d = open(t, cfg)
	dev, leaf := add(t, d, "anna-phone")
	cert = leaf
	_, other := add(t, d, "ben-phone")

	got, err := d.Revoke(t.Context(), "anna-phone")
	if err != nil || !got.Revoked || !got.RevokedAt.Equal(today) || got.ID != dev.ID {
		t.Fatalf("Revoke = %+v, %v", got, err)
	}
	if told.count(dev.ID) != 1 {
		t.Errorf("OnRevoke was called %d times", told.count(dev.ID))
	}
	check(t, d, other, "ha.example.org", today, Allowed)
	check(t, d, cert, "ha.example.org", today.AddDate(5, 0, 0), DeniedRevoked) // more than expired
	if _, err := d.Revoke(t.Context(), "anna-phone"); err != nil || told.count(dev.ID) != 2 {
		t.Errorf("revoking again: %v, OnRevoke %d times", err, told.count(dev.ID))
	}
	for _, name := range []string{"nobody", "../x", ""} {
		if _, err := d.Revoke(t.Context(), name); !errors.Is(err, ErrUnknown) {
			t.Errorf("Revoke(%q): %v, want ErrUnknown", name, err)
		}
	}
}

// TestRevokeOnFullDisk: what could not be written is not reported as revoked.
func TestRevokeOnFullDisk(t *testing.T) {
	cfg := config(t)
	var told revocations
	cfg.OnRevoke = told.add
	cfg.Store = failing{cfg.Store}
	d := open(t, cfg)
	dev, _ := add(t, d, "anna-phone")
	if _, err := d.Revoke(t.Context(), "anna-phone"); !errors.Is(err, errDisk) {
		t.Errorf("Revoke: %v, want the disk's error", err)
	}
	if told.count(dev.ID) != 0 {
		t.Error("OnRevoke was told of a revocation that a restart would forget")
	}
}

// TestRestart: devices and revocations survive, on the real store.
func TestRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "relay.db")
	cfg := config(t)
	var certs []*x509.Certificate
	for round := range 2 {
		kv, err := boltstore.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Store = kv
		d := open(t, cfg)
		if round == 0 {
			_, anna := add(t, d, "anna-phone")
			_, ben := add(t, d, "ben-phone", "ha.example.org")
			if _, err := d.Revoke(t.Context(), "anna-phone"); err != nil {
				t.Fatal(err)
			}
			certs = []*x509.Certificate{anna, ben}
		}
		check(t, d, certs[0], "ha.example.org", today, DeniedRevoked)
		check(t, d, certs[1], "ha.example.org", today, Allowed)
		check(t, d, certs[1], "door.example.org", today, DeniedHost)
		kv.Close()
	}
}

func TestNewRefusesDamagedRecords(t *testing.T) {
	good := config(t)
	d := open(t, good)
	add(t, d, "anna-phone")
	add(t, d, "ben-phone")
	ben := strings.TrimSuffix(strings.SplitN(string(must(good.Store.Get(t.Context(), docPrefix+"ben-phone")).Value), "[", 2)[1], "]}")
	e, err := good.Store.Get(t.Context(), docPrefix+"anna-phone")
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"empty":         "",
		"cut":           string(e.Value[:len(e.Value)/2]),
		"newer":         strings.Replace(string(e.Value), `"v":2`, `"v":3,"x":1`, 1),
		"no version":    strings.Replace(string(e.Value), `"v":2`, `"v":0`, 1),
		"unknown field": strings.Replace(string(e.Value), `"kind"`, `"only_on_sundays":true,"kind"`, 1),
		"more after it": string(e.Value) + "{}",
		"no devices":    `{"v":2,"devices":[]}`,
		"no cert":       `{"v":2,"devices":[{"kind":"certificate"}]}`,
		"unknown kind":  strings.Replace(string(e.Value), KindCertificate, "password", 1),
		"broken host":   strings.Replace(string(e.Value), `"kind"`, `"hosts":["*"],"kind"`, 1),
		"two live ones": strings.Replace(string(e.Value), `"devices":[`, `"devices":[`+ben+`,`, 1),
		"one twice":     strings.Replace(string(e.Value), `"devices":[`, `"devices":[`+strings.TrimSuffix(strings.SplitN(string(e.Value), "[", 2)[1], "]}")+`,`, 1),
	} {
		cfg := config(t)
		if _, err := cfg.Store.Create(t.Context(), docPrefix+"anna-phone", []byte(data)); err != nil {
			t.Fatal(err)
		}
		if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "anna-phone") || !strings.Contains(err.Error(), "backup") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(t.Context(), Config{}); err == nil {
		t.Error("New without store and CA succeeded")
	}
}
