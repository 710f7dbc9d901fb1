package devices

import (
	"context"
	"crypto/x509"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/relay/store"
	"github.com/sallyport/sallyport/relay/store/memstore"
)

// start runs d until the returned function is called.
func start(t *testing.T, d *Devices) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
	return func() { cancel(); wg.Wait() }
}

// TestOtherInstance: what one instance adds and revokes, another on the same
// store knows at once, and tells its OnRevoke.
func TestOtherInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(t)
		var told revocations
		a := open(t, cfg)
		cfg.OnRevoke = told.add
		b := open(t, cfg)
		_, early := add(t, a, "early") // between New and Run
		defer start(t, b)()
		check(t, b, early, "ha.example.org", today, Allowed)

		dev, cert := add(t, a, "anna-phone")
		synctest.Wait()
		check(t, b, cert, "ha.example.org", today, Allowed)
		if _, err := a.Revoke(t.Context(), "anna-phone"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		check(t, b, cert, "ha.example.org", today, DeniedRevoked)
		if told.count(dev.ID) != 1 {
			t.Errorf("the other instance was told %d times", told.count(dev.ID))
		}
		// The name's next owner is told too, and does not bring the old one back.
		_, next := add(t, a, "anna-phone")
		synctest.Wait()
		check(t, b, next, "ha.example.org", today, Allowed)
		check(t, b, cert, "ha.example.org", today, DeniedRevoked)
		if len(told.ids) != 1 {
			t.Errorf("OnRevoke was told of %v", told.ids)
		}
	})
}

// TestHostileChanges: rights that shrink cut the device; a record that cannot
// be read or is gone shuts it out; nothing un-revokes.
func TestHostileChanges(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, kv store.KV, e store.Entry)
		want   Denial
	}{
		{"fewer hosts", func(t *testing.T, kv store.KV, e store.Entry) {
			put(t, kv, e, strings.Replace(string(e.Value), `"created"`, `"hosts":["tv.example.org"],"created"`, 1))
		}, DeniedHost},
		{"damaged", func(t *testing.T, kv store.KV, e store.Entry) { put(t, kv, e, "{") }, DeniedUnknown},
		{"deleted", func(t *testing.T, kv store.KV, e store.Entry) {
			if err := kv.Delete(t.Context(), e.Key, e.Revision); err != nil {
				t.Fatal(err)
			}
		}, DeniedUnknown},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := config(t)
				var told revocations
				cfg.OnRevoke = told.add
				d := open(t, cfg)
				defer start(t, d)()
				dev, cert := add(t, d, "anna-phone")
				test.change(t, cfg.Store, entryOf(t, cfg.Store))
				synctest.Wait()
				check(t, d, cert, "ha.example.org", today, test.want)
				if told.count(dev.ID) == 0 {
					t.Error("OnRevoke was not told")
				}
			})
		})
	}
	t.Run("un-revoked", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			cfg := config(t)
			d := open(t, cfg)
			defer start(t, d)()
			_, cert := add(t, d, "anna-phone")
			before := entryOf(t, cfg.Store)
			if _, err := d.Revoke(t.Context(), "anna-phone"); err != nil {
				t.Fatal(err)
			}
			put(t, cfg.Store, entryOf(t, cfg.Store), string(before.Value))
			synctest.Wait()
			check(t, d, cert, "ha.example.org", today, DeniedRevoked)
		})
	})
}

func entryOf(t *testing.T, kv store.KV) store.Entry {
	t.Helper()
	e, err := kv.Get(t.Context(), docPrefix+"anna-phone")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func put(t *testing.T, kv store.KV, e store.Entry, value string) {
	t.Helper()
	if _, err := kv.Update(t.Context(), e.Key, []byte(value), e.Revision); err != nil {
		t.Fatal(err)
	}
}

// TestStaleNews: an event that was overtaken does not take the snapshot back.
func TestStaleNews(t *testing.T) {
	cfg := config(t)
	d := open(t, cfg)
	_, first := add(t, d, "anna-phone")
	stale := entryOf(t, cfg.Store)
	if _, err := d.Revoke(t.Context(), "anna-phone"); err != nil {
		t.Fatal(err)
	}
	_, second := add(t, d, "anna-phone")
	d.learn(store.Event{Entry: stale})
	check(t, d, first, "ha.example.org", today, DeniedRevoked)
	check(t, d, second, "ha.example.org", today, Allowed)
}

// counting counts writes of "last seen".
type counting struct {
	store.KV
	mu     sync.Mutex
	writes int
}

func (c *counting) count(key string) {
	if strings.HasPrefix(key, seenPrefix) {
		c.mu.Lock()
		c.writes++
		c.mu.Unlock()
	}
}

func (c *counting) total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writes
}

func (c *counting) Create(ctx context.Context, key string, v []byte) (uint64, error) {
	c.count(key)
	return c.KV.Create(ctx, key, v)
}

func (c *counting) Update(ctx context.Context, key string, v []byte, rev uint64) (uint64, error) {
	c.count(key)
	return c.KV.Update(ctx, key, v, rev)
}

// TestSeen: ten thousand visits in five minutes cost five writes, are visible
// at once, reach other instances, and survive a restart.
func TestSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		now := func() time.Time { return today.Add(time.Since(began)) }
		kv := &counting{KV: memstore.New()}
		cfg := config(t)
		cfg.Store, cfg.Now = kv, now
		d, other := open(t, cfg), open(t, cfg)
		stop := start(t, d)
		stopOther := start(t, other)
		dev, _ := add(t, d, "anna-phone")
		add(t, d, "idle")
		d.Seen("no such device")
		for range 10_000 {
			time.Sleep(30 * time.Millisecond) // virtual
			d.Seen(dev.ID)
		}
		want := now().Truncate(time.Second)
		if got, _ := d.Get("anna-phone"); !got.LastSeen.Equal(want) {
			t.Errorf("last seen %v, want %v", got.LastSeen, want)
		}
		if n := kv.total(); n < 4 || n > 5 {
			t.Errorf("%d writes in 5 minutes, want one a minute", n)
		}
		time.Sleep(2 * time.Minute)
		quiet := kv.total()
		time.Sleep(time.Hour)
		if n := kv.total(); n != quiet {
			t.Errorf("%d writes while nobody came", n-quiet)
		}
		if got, _ := other.Get("anna-phone"); !got.LastSeen.Equal(want) {
			t.Errorf("the other instance says %v, want %v", got.LastSeen, want)
		}
		d.Seen(dev.ID)
		last := now().Truncate(time.Second)
		stop() // writes down what is left
		stopOther()
		if got, _ := open(t, cfg).Get("anna-phone"); !got.LastSeen.Equal(last) {
			t.Errorf("after a restart last seen is %v, want %v", got.LastSeen, last)
		}
		if got, _ := d.Get("idle"); !got.LastSeen.IsZero() {
			t.Errorf("a device that never came was seen %v", got.LastSeen)
		}
	})
}

// TestRunEndsWithTheStore: a store that stops telling is an error, not silence.
func TestRunEndsWithTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(t)
		d := open(t, cfg)
		done := make(chan error)
		go func() { done <- d.Run(t.Context()) }()
		synctest.Wait()
		cfg.Store.Close()
		if err := <-done; err == nil {
			t.Error("Run returned nil after the store was closed")
		}
	})
}

// TestCheckWhileChanging is for the race detector.
func TestCheckWhileChanging(t *testing.T) {
	d := open(t, config(t))
	dev, cert := add(t, d, "anna-phone")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					check(t, d, cert, "ha.example.org", today, Allowed)
					d.Seen(dev.ID)
					d.List()
				}
			}
		})
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		add(t, d, name)
		if _, err := d.Revoke(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
}

func BenchmarkCheck(b *testing.B) {
	d := open(b, config(b))
	var leaf *x509.Certificate
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		_, leaf = add(b, d, name, "*.example.org")
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, denial := d.Check(leaf, "ha.example.org", today); denial != Allowed {
			b.Fatal(denial)
		}
	}
}
