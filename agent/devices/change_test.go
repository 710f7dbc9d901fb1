package devices

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/pki"
)

// TestUpdate: a list is in force, on disk, and told of, in this order.
func TestUpdate(t *testing.T) {
	ca := newCA(t)
	var c calls
	cfg := c.config(t.TempDir())
	var b *Book
	told := cfg.Lost
	anna, annaListed := ca.device("anna-phone")
	ben, benListed := ca.device("ben-phone")
	cfg.Lost = func(ids ...string) {
		told(ids...)
		judged(t, b, anna, host, door.DeniedRevoked)
		judged(t, open(t, Config{Dir: cfg.Dir}), anna, host, door.DeniedRevoked) // as after a crash now
		ok(t, b.Pin(ca.der()))                                                   // no lock is held
	}
	b = open(t, cfg)
	if err := b.Update(ca.list(annaListed)); !errors.Is(err, ErrNoCA) {
		t.Errorf("a list before any CA: %v", err)
	}
	ok(t, b.Pin(ca.der()))
	c.told(t, 1)
	ok(t, b.Update(ca.list(annaListed, benListed)))
	c.told(t, 0)
	judged(t, b, anna, host, "")
	annaListed.Revoked = true
	ok(t, b.Update(ca.list(annaListed, benListed)))
	c.told(t, 0, annaListed)
	judged(t, b, ben, host, "")
	again := open(t, cfg)
	judged(t, again, ben, host, "")
	if again.Number() != 3 || again.Status().Number != 3 {
		t.Errorf("a restart knows list %d", again.Number())
	}
}

// TestLost says who is told of between two lists.
func TestLost(t *testing.T) {
	ca := newCA(t)
	_, d := ca.device("anna-phone")
	with := func(change func(*pki.ListedDevice)) []pki.ListedDevice {
		d := d
		change(&d)
		return []pki.ListedDevice{d}
	}
	hosts := func(h ...string) []pki.ListedDevice { return with(func(d *pki.ListedDevice) { d.Hosts = h }) }
	until := func(n int) []pki.ListedDevice {
		return with(func(d *pki.ListedDevice) { d.Until = today.Add(time.Duration(n) * time.Hour) })
	}
	same := with(func(*pki.ListedDevice) {})
	revoked := with(func(d *pki.ListedDevice) { d.Revoked = true })
	for name, c := range map[string]struct {
		was, is []pki.ListedDevice
		lost    bool
	}{
		"nothing":          {same, same, false},
		"not listed":       {same, nil, true},
		"revoked":          {same, revoked, true},
		"still revoked":    {revoked, revoked, false},
		"was revoked":      {revoked, nil, false},
		"new":              {nil, same, false},
		"renamed":          {same, with(func(d *pki.ListedDevice) { d.Name = "x" }), false},
		"an end":           {same, until(1), true},
		"an earlier end":   {until(2), until(1), true},
		"a later end":      {until(1), until(2), false},
		"no end any more":  {until(1), same, false},
		"fewer hosts":      {hosts("a.b", "c.d"), hosts("a.b"), true},
		"more hosts":       {hosts("a.b"), hosts("c.d", "a.b"), false},
		"not everywhere":   {same, hosts("a.b"), true},
		"everywhere":       {hosts("a.b"), same, false},
		"a host of many":   {hosts("*.b"), hosts("a.b"), true},
		"many for one":     {hosts("a.b"), hosts("*.b"), false},
		"the same many":    {hosts("*.b"), hosts("*.b", "a.c"), false},
		"many but not one": {hosts("a.b.c"), hosts("*.c"), true},
	} {
		t.Run(name, func(t *testing.T) {
			ca := &relayCA{Authority: ca.Authority, t: t}
			var told calls
			b := open(t, told.config(t.TempDir()))
			ok(t, b.Pin(ca.der()))
			ok(t, b.Update(ca.list(c.was...)))
			ok(t, b.Update(ca.list(c.is...)))
			var want []pki.ListedDevice
			if c.lost {
				want = append(want, d)
			}
			told.told(t, 1, want...)
		})
	}
}

// TestRollback: no older list counts, though it was good once, also after a
// restart.
func TestRollback(t *testing.T) {
	ca := newCA(t)
	var c calls
	cfg := c.config(t.TempDir())
	b := open(t, cfg)
	ok(t, b.Pin(ca.der()))
	anna, listed := ca.device("anna-phone")
	old := ca.list(listed)
	ok(t, b.Update(old))
	last := ca.list()
	ok(t, b.Update(last))
	c.told(t, 1, listed)
	for range 2 {
		if err := b.Update(old); !errors.Is(err, ErrRollback) {
			t.Errorf("an older list: %v", err)
		}
		judged(t, b, anna, host, door.DeniedUnknown)
		if err := b.Update(ca.numbered(2, listed)); !errors.Is(err, ErrRollback) {
			t.Errorf("another list of the same number: %v", err)
		}
		judged(t, b, anna, host, door.DeniedUnknown)
		if s := b.Status(); !strings.Contains(s.Problem, "number 2 was another one") || s.Pending == nil || s.Pending.Number != 1 || s.Pending.CA != s.CA {
			t.Errorf("the status is %+v", s)
		}
		ok(t, b.Update(last))
		ok(t, b.Update(ca.numbered(2))) // signed once more
		if s := b.Status(); s.Problem != "" || s.Number != 2 {
			t.Errorf("the status is %+v", s)
		}
		b = open(t, cfg)
	}
	ok(t, b.Update(ca.numbered(9, listed)))
	judged(t, b, anna, host, "")
	c.told(t, 0)
}

// TestConfirmOlderList: after the relay was restored from a backup a person lets
// its older list pass; lists go on from there.
func TestConfirmOlderList(t *testing.T) {
	ca := newCA(t)
	var c calls
	b := open(t, c.config(t.TempDir()))
	ok(t, b.Pin(ca.der()))
	_, listed := ca.device("anna-phone")
	ok(t, b.Update(ca.numbered(900, listed)))
	ok(t, b.Confirm(fingerprint(ca.Cert()))) // nothing was refused
	if n := b.Number(); n != 900 {
		t.Fatalf("list %d", n)
	}
	if err := b.Update(ca.numbered(7)); !errors.Is(err, ErrRollback) || !strings.Contains(err.Error(), fingerprint(ca.Cert())) {
		t.Fatalf("an older list: %v", err)
	}
	ok(t, b.Confirm(fingerprint(ca.Cert())))
	c.told(t, 1, listed)
	if s := b.Status(); s.Number != 7 || s.Pending != nil || s.Problem != "" {
		t.Errorf("the status is %+v", s)
	}
	ok(t, b.Update(ca.numbered(8)))
	if err := b.Update(ca.numbered(6)); !errors.Is(err, ErrRollback) {
		t.Errorf("once more: %v", err)
	}
	ok(t, b.Update(ca.numbered(9))) // it came right by itself
	ok(t, b.Confirm(fingerprint(ca.Cert())))
	if n := b.Number(); n != 9 {
		t.Errorf("list %d", n)
	}
}

// TestOtherCA: nothing that another CA says counts before a person at home
// confirmed it, also after a restart.
func TestOtherCA(t *testing.T) {
	ca, other, third := newCA(t), newCA(t), newCA(t)
	var c calls
	cfg := c.config(t.TempDir())
	b := open(t, cfg)
	ok(t, b.Pin(ca.der()))
	anna, annaListed := ca.device("anna-phone")
	eve, eveListed := other.device("eve-phone")
	ok(t, b.Update(ca.list(annaListed)))
	c.told(t, 1)
	byOther := protocol.DeviceFrame{CA: other.der(), List: other.numbered(99, eveListed)}
	for range 2 {
		if err := b.Update(byOther.List); err == nil || errors.Is(err, ErrRollback) {
			t.Errorf("another CA's list: %v", err)
		}
		if err := b.Pin(other.der()); !errors.Is(err, ErrOtherCA) || !strings.Contains(err.Error(), fingerprint(other.Cert())) {
			t.Errorf("another CA: %v", err)
		}
		if err := frame(b, byOther); !errors.Is(err, ErrOtherCA) {
			t.Errorf("another CA and its list: %v", err)
		}
		if err := frame(b, protocol.DeviceFrame{CA: ca.der(), List: byOther.List}); err == nil {
			t.Error("another CA's list under the pinned CA")
		}
		judged(t, b, anna, host, "")
		judged(t, b, eve, host, door.DeniedUnknown)
		if !b.Pool().Equal(ca.Pool()) {
			t.Fatal("another CA is trusted")
		}
		if s := b.Status(); s.Pending == nil || s.Pending.CA != fingerprint(other.Cert()) || s.Pending.Number != 99 || !s.Pending.Since.Equal(today) {
			t.Errorf("the status is %+v", s)
		}
		b = open(t, cfg)
	}
	c.told(t, 0)
	if err := b.Confirm(fingerprint(other.Cert())); err == nil {
		t.Error("a CA was confirmed that nobody has shown since the start")
	}
	_ = frame(b, byOther)
	for _, bad := range []string{"", "00", fingerprint(third.Cert()), fingerprint(other.Cert())[:62], fingerprint(other.Cert()) + "00"} {
		err := b.Confirm(bad)
		if err == nil {
			t.Errorf("%q was confirmed", bad)
		} else if long := len(bad) == 64; long == strings.Contains(err.Error(), "64 hexadecimal digits") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if s := b.Status(); !strings.Contains(s.Problem, "not the device CA") {
		t.Errorf("a mistyped fingerprint is the relay's problem: %q", s.Problem)
	}
	spelled := strings.ToUpper(fingerprint(other.Cert()))
	ok(t, b.Confirm(" "+spelled[:32]+" "+spelled[32:34]+":"+spelled[34:]))
	c.told(t, 1, annaListed)
	judged(t, b, eve, host, "")
	judged(t, b, anna, host, door.DeniedUnknown)
	b = open(t, cfg)
	judged(t, b, eve, host, "")
	if !b.Pool().Equal(other.Pool()) || b.Number() != 99 {
		t.Errorf("after a restart: list %d", b.Number())
	}
	if err := b.Pin(ca.der()); !errors.Is(err, ErrOtherCA) {
		t.Errorf("the CA that was pinned before: %v", err)
	}
}

// TestConfirmCAWithoutList: nobody comes in until its list is there.
func TestConfirmCAWithoutList(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	var c calls
	b := open(t, c.config(t.TempDir()))
	ok(t, b.Pin(ca.der()))
	anna, annaListed := ca.device("anna-phone")
	ok(t, b.Update(ca.list(annaListed)))
	_ = b.Pin(other.der())
	ok(t, b.Confirm(fingerprint(other.Cert())))
	c.told(t, 2, annaListed)
	judged(t, b, anna, host, door.DeniedUnknown)
	ok(t, b.Update(other.list(annaListed)))
	judged(t, b, anna, host, "") // its key, which the new CA may have certified
}

// TestSuccession: the pinned CA's word is enough, and nobody else's.
func TestSuccession(t *testing.T) {
	old, next, other := newCA(t), newCA(t), newCA(t)
	var c calls
	cfg := c.config(t.TempDir())
	b := open(t, cfg)
	ok(t, b.Pin(old.der()))
	anna, annaListed := old.device("anna-phone")
	ben, benListed := next.device("ben-phone")
	ok(t, b.Update(old.numbered(50, annaListed)))
	c.told(t, 1)
	word, err := old.SignSuccessor(next.Cert())
	ok(t, err)
	byOther, err := other.SignSuccessor(next.Cert())
	ok(t, err)
	list := next.numbered(1, benListed)
	for name, f := range map[string]protocol.DeviceFrame{
		"no word":              {CA: next.der(), List: list},
		"another's word":       {CA: next.der(), List: list, Succession: byOther},
		"for another":          {CA: other.der(), List: other.numbered(51), Succession: word},
		"the old CA's list":    {CA: next.der(), List: old.numbered(51), Succession: word},
		"no list":              {CA: next.der(), Succession: word},
		"no CA":                {CA: anna.Raw, List: list, Succession: word},
		"the list alone":       {List: list, Succession: word},
		"under the pinned one": {CA: old.der(), List: list, Succession: word},
	} {
		if frame(b, f) == nil {
			t.Errorf("%s: taken", name)
		}
		judged(t, b, anna, host, "")
	}
	c.told(t, 0)
	ok(t, frame(b, protocol.DeviceFrame{CA: next.der(), List: list, Succession: word}))
	c.told(t, 1, annaListed)
	for range 2 {
		judged(t, b, anna, host, door.DeniedUnknown)
		judged(t, b, ben, host, "")
		if s := b.Status(); s.CA != fingerprint(next.Cert()) || s.Number != 1 || s.Pending != nil {
			t.Errorf("the status is %+v", s)
		}
		if frame(b, protocol.DeviceFrame{CA: old.der(), List: old.numbered(52, annaListed), Succession: word}) == nil {
			t.Error("the old CA is back")
		}
		b = open(t, cfg)
	}
	ok(t, frame(b, protocol.DeviceFrame{CA: next.der(), List: next.numbered(2, benListed), Succession: word})) // the normal case from now on
	c.told(t, 0)
}

// frame is what Serve does with one.
func frame(b *Book, f protocol.DeviceFrame) error {
	return b.heard(func() (told, error) { return b.take(f) })
}

func TestTakeNothing(t *testing.T) {
	b := open(t, Config{Dir: t.TempDir()})
	ok(t, frame(b, protocol.DeviceFrame{}))
	ok(t, frame(b, protocol.DeviceFrame{Have: 7}))
	if b.Pin(nil) != nil || b.Pool() != nil {
		t.Error("an older relay, which shows no CA, is a problem")
	}
	if b.Pin([]byte{0x30, 0}) == nil || b.Pool() != nil {
		t.Error("something that is no CA was pinned")
	}
	ca := newCA(t)
	cert, _ := ca.device("anna-phone")
	if b.Pin(cert.Raw) == nil || b.Pool() != nil {
		t.Error("a device was pinned as a CA")
	}
}

// TestFullDisk: a revocation counts though it cannot be written, and is written
// when it can.
func TestFullDisk(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	var c calls
	cfg := c.config(t.TempDir() + "/book")
	b := open(t, cfg)
	ok(t, b.Pin(ca.der()))
	c.told(t, 1)
	anna, listed := ca.device("anna-phone")
	first := ca.list(listed)
	ok(t, b.Update(first))
	kept, err := os.ReadFile(b.path)
	ok(t, err)
	ok(t, os.RemoveAll(cfg.Dir)) // nothing can be written there

	last := ca.list()
	for range 2 {
		if err := b.Update(last); !errors.Is(err, ErrUnsaved) {
			t.Errorf("a list that is not on disk: %v", err)
		}
		judged(t, b, anna, host, door.DeniedUnknown)
	}
	c.told(t, 0, listed)
	if s := b.Status(); s.Saved || s.Number != 2 || !strings.Contains(s.Problem, "not on disk") || b.Number() != 0 {
		t.Errorf("the status is %+v, and list %d is said to be kept", s, b.Number())
	}
	if err := b.Update(first); !errors.Is(err, ErrRollback) {
		t.Errorf("an older list than the one that is in force: %v", err)
	}
	_ = b.Pin(other.der())
	if b.Confirm(fingerprint(other.Cert())) == nil || !b.Pool().Equal(ca.Pool()) {
		t.Error("another CA is trusted until the next restart")
	}
	if fresh := open(t, Config{Dir: t.TempDir()}); os.RemoveAll(fresh.cfg.Dir) != nil || fresh.Pin(ca.der()) == nil || fresh.Pool() != nil {
		t.Error("a CA is pinned until the next restart")
	}

	ok(t, os.MkdirAll(cfg.Dir, 0o700))
	ok(t, os.WriteFile(b.path, kept, 0o600))
	ok(t, b.Update(last))
	c.told(t, 0)
	if s := b.Status(); !s.Saved || b.Number() != 2 {
		t.Errorf("the status is %+v", s)
	}
	judged(t, open(t, cfg), anna, host, door.DeniedUnknown)
}

// TestManyAtOnce: streams of two sessions, and visitors.
func TestManyAtOnce(t *testing.T) {
	ca := newCA(t)
	var c calls
	b := open(t, c.config(t.TempDir()))
	ok(t, b.Pin(ca.der()))
	cert, listed := ca.device("anna-phone")
	var lists [][]byte
	for range 20 {
		lists = append(lists, ca.list(listed))
	}
	lists = append(lists, ca.list())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, l := range lists {
				if err := b.Update(l); err != nil && !errors.Is(err, ErrRollback) {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 1000 {
				b.Check(cert, host, today)
				b.Status()
				b.Pool()
			}
		})
	}
	wg.Wait()
	judged(t, b, cert, host, door.DeniedUnknown)
	c.told(t, 1, listed)
}
