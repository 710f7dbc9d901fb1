package registry

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/relay/store"
	"github.com/sallyport/sallyport/relay/store/memstore"
)

func TestSecretIsHashedAtRest(t *testing.T) {
	f := fresh(t)
	secret, expires, err := f.NewToken(t.Context(), TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(secret) < 26 {
		t.Errorf("secret %q has less than 128 bits", secret)
	}
	if d := time.Until(expires); d > 15*time.Minute || d < 14*time.Minute {
		t.Errorf("expires in %v, want 15 minutes", d)
	}
	entries, err := f.kv.List(t.Context(), "")
	if err != nil || len(entries) == 0 {
		t.Fatal(entries, err)
	}
	for _, e := range entries {
		if strings.Contains(e.Key+string(e.Value), secret) {
			t.Errorf("the secret is stored in the clear in %s", e.Key)
		}
	}
	if strings.Contains(strings.Join(f.audit.lines, " "), secret) {
		t.Error("the secret is in the audit log")
	}
}

func TestRedeemOnceUnderRace(t *testing.T) {
	// Two registries on one store, as two relays would be: the store's
	// compare-and-set decides, not a lock of one process.
	kv := memstore.New()
	defer kv.Close()
	a, b := open(t, kv, nil), open(t, kv, nil)
	for round, hosts := range [][]string{nil, {"*.alice.example.org"}} {
		secret, _, err := a.NewToken(t.Context(), TokenRequest{Hosts: hosts})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex // guards won
		won := 0
		for i := range 10 {
			reg := []*fixture{a, b}[i%2]
			wg.Go(func() {
				_, err := reg.Redeem(t.Context(), secret, id(10*round+i), "pi")
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
				} else if !errors.Is(err, ErrToken) {
					t.Errorf("loser got %v", err)
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Errorf("hosts %v: %d agents joined with one secret", hosts, won)
		}
	}
}

// gate holds every reader of a token until all have read it.
type gate struct {
	store.KV
	readers *sync.WaitGroup
}

func (g gate) Get(ctx context.Context, key string) (store.Entry, error) {
	e, err := g.KV.Get(ctx, key)
	if strings.HasPrefix(key, keyTokens) {
		g.readers.Done()
		g.readers.Wait()
	}
	return e, err
}

// Both redeemers have read the token as unused before either writes.
func TestRedeemDecidesByCompareAndSet(t *testing.T) {
	kv := memstore.New()
	defer kv.Close()
	var readers sync.WaitGroup
	readers.Add(2)
	a, b := open(t, gate{kv, &readers}, nil), open(t, gate{kv, &readers}, nil)
	secret, _, err := a.NewToken(t.Context(), TokenRequest{Hosts: []string{"*.alice.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var errs [2]error
	for i, reg := range []*fixture{a, b} {
		wg.Go(func() { _, errs[i] = reg.Redeem(t.Context(), secret, id(i), "pi") })
	}
	wg.Wait()
	if (errs[0] == nil) == (errs[1] == nil) || (errs[0] != nil && errs[0] != ErrToken) || (errs[1] != nil && errs[1] != ErrToken) {
		t.Errorf("two redeemers got %v and %v; exactly one may win", errs[0], errs[1])
	}
	if l, err := kv.List(t.Context(), keyAgents); err != nil || len(l) != 1 {
		t.Errorf("%d agents, %v", len(l), err)
	}
}

func TestRedeemAgainAfterCrash(t *testing.T) {
	f := fresh(t)
	secret, _, err := f.NewToken(t.Context(), TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := f.Redeem(t.Context(), secret, id(1), "Pi im Keller")
	if err != nil {
		t.Fatal(err)
	}
	if first.Name != "pi-im-keller" || first.Hosts != nil {
		t.Errorf("got %+v", first)
	}
	again, err := f.Redeem(t.Context(), secret, id(1), "pi")
	if err != nil || again.Name != first.Name {
		t.Errorf("same key, same secret: %+v, %v", again, err)
	}
	if _, err := f.Redeem(t.Context(), secret, id(2), "pi"); !errors.Is(err, ErrToken) {
		t.Errorf("other key, same secret: %v", err)
	}
	if n := f.audit.count("agent.joined"); n != 1 {
		t.Errorf("%d joins in the audit log", n)
	}

	// The relay died after it used the token, before it stored the agent.
	if err := f.kv.Delete(t.Context(), keyAgents+string(id(1)), 0); err != nil {
		t.Fatal(err)
	}
	restarted := open(t, f.kv, nil)
	if a, err := restarted.Redeem(t.Context(), secret, id(1), "Pi im Keller"); err != nil || a.Name != first.Name {
		t.Errorf("after the relay's crash: %+v, %v", a, err)
	}
}

func TestWrongSecretsLookAlike(t *testing.T) {
	f := fresh(t)
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	f.cfg.Now = func() time.Time { return now }
	f.join(t, 1)
	used, _, _ := f.NewToken(t.Context(), TokenRequest{Hosts: []string{"a.example.org"}})
	if _, err := f.Redeem(t.Context(), used, id(2), ""); err != nil {
		t.Fatal(err)
	}
	late, _, _ := f.NewToken(t.Context(), TokenRequest{Hosts: []string{"b.example.org"}})
	now = now.Add(15*time.Minute + time.Second)
	for what, secret := range map[string]string{"guessed": "nonsense", "empty": "", "used": used, "late": late} {
		if a, err := f.Redeem(t.Context(), secret, id(3), ""); err != ErrToken {
			t.Errorf("%s secret: %+v, %v", what, a, err)
		}
	}
	if _, err := f.Redeem(t.Context(), late, "not-an-id", ""); err == nil {
		t.Error("a malformed agent id was accepted")
	}
	// Long after, the records are gone.
	now = now.Add(48 * time.Hour)
	if _, _, err := f.NewToken(t.Context(), TokenRequest{Hosts: []string{"c.example.org"}}); err != nil {
		t.Fatal(err)
	}
	if l, err := f.kv.List(t.Context(), keyTokens); err != nil || len(l) != 1 {
		t.Errorf("%d tokens left, %v", len(l), err)
	}
}

func TestOnlyTheFirstIsUnrestricted(t *testing.T) {
	f := fresh(t)
	old, _, err := f.NewToken(t.Context(), TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	latest, _, err := f.NewToken(t.Context(), TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Redeem(t.Context(), old, id(1), ""); err != ErrToken {
		t.Errorf("a newer unrestricted token did not void the older: %v", err)
	}
	if _, err := f.Redeem(t.Context(), latest, id(2), ""); err != nil {
		t.Error(err)
	}
	_, _, err = f.NewToken(t.Context(), TokenRequest{})
	var h *HintError
	if !errors.As(err, &h) || !strings.Contains(h.Hint(), "--hosts '*.alice.example.org'") {
		t.Errorf("second unrestricted token: %v, %+v", err, h)
	}

	// A restricted agent that joins first ends the time of unrestricted ones.
	g := fresh(t)
	free, _, _ := g.NewToken(t.Context(), TokenRequest{})
	g.join(t, 1, "*.alice.example.org")
	if _, err := g.Redeem(t.Context(), free, id(2), ""); err != ErrToken {
		t.Errorf("an unrestricted agent joined second: %v", err)
	}
}

func TestTokenPatterns(t *testing.T) {
	f := fresh(t)
	for _, p := range []string{"*.other.net", "example.org", "a.*.example.org", "", "1.2.3.4"} {
		if _, _, err := f.NewToken(t.Context(), TokenRequest{Hosts: []string{p}}); err == nil {
			t.Errorf("pattern %q was granted", p)
		}
	}
	if _, _, err := f.NewToken(t.Context(), TokenRequest{Hosts: []string{"cam.other.net"}, Foreign: true}); err != nil {
		t.Error(err)
	}
	for _, ttl := range []time.Duration{-1, time.Millisecond, 8 * 24 * time.Hour} {
		if _, _, err := f.NewToken(t.Context(), TokenRequest{Hosts: []string{"a.example.org"}, TTL: ttl}); err == nil {
			t.Errorf("ttl %v was accepted", ttl)
		}
	}
}

func TestNamesAreUnique(t *testing.T) {
	f := fresh(t)
	var got []string
	for i, wish := range []string{"Pi", "pi", "PI!", "../../etc", "", strings.Repeat("x", 300), "ünïcode"} {
		var hosts []string
		if i > 0 {
			hosts = []string{"*.h.example.org"}
		}
		secret, _, err := f.NewToken(t.Context(), TokenRequest{Hosts: hosts})
		if err != nil {
			t.Fatal(err)
		}
		a, err := f.Redeem(t.Context(), secret, id(i), wish)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a.Name)
	}
	want := "pi pi-2 pi-3 etc home " + strings.Repeat("x", 40) + " n-code"
	if strings.Join(got, " ") != want {
		t.Errorf("names %q, want %q", got, want)
	}
	if a, ok := f.Find("pi-2"); !ok || a.ID != id(1) {
		t.Errorf("Find: %+v, %v", a, ok)
	}
}

func TestRejoin(t *testing.T) {
	f := fresh(t)
	f.join(t, 1)
	b := f.join(t, 2, "*.old.example.org")
	c := f.join(t, 2, "*.new.example.org")
	if b.Name != c.Name || c.Hosts[0] != "*.new.example.org" {
		t.Errorf("rejoined as %+v", c)
	}
	if err := f.Revoke(t.Context(), id(2)); err != nil {
		t.Fatal(err)
	}
	secret, _, _ := f.NewToken(t.Context(), TokenRequest{Hosts: []string{"*.new.example.org"}})
	if _, err := f.Redeem(t.Context(), secret, id(2), ""); !errors.Is(err, ErrRevoked) {
		t.Errorf("a revoked key joined again: %v", err)
	}
	if _, err := f.Redeem(t.Context(), secret, id(3), ""); err != nil {
		t.Errorf("the revoked key burned the token: %v", err)
	}
}
