package door

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

const (
	guessBurst  = 20               // wrong secrets in a row
	guessEvery  = 10 * time.Second // then one
	mostSources = 4096             // remembered in each of two generations
	mostKnown   = 4096             // likewise
)

// guesses counts the wrong secrets of each source. A source that has used up
// its share is not listened to for a while, except for a secret that was good
// when it came from there before: neighbours behind one address (a cloud's
// webhooks) cannot lock each other out.
type guesses struct {
	key [32]byte // of fingerprints: nothing here helps to find a secret

	mu      sync.Mutex // guards what follows
	sources generations[netip.Prefix, share]
	known   generations[[32]byte, struct{}]
}

// A share is how many wrong tries a source has left.
type share struct {
	used int // at most guessBurst
	at   time.Time
	told bool // the audit log knows that it was used up
}

func newGuesses() *guesses {
	g := &guesses{}
	rand.Read(g.key[:]) // never fails (crypto/rand)
	g.sources.most, g.known.most = mostSources, mostKnown
	return g
}

func (g *guesses) fingerprint(p netip.Prefix, host, secret string) (sum [32]byte) {
	mac := hmac.New(sha256.New, g.key[:])
	mac.Write([]byte(p.String() + "\x00" + host + "\x00" + secret))
	return [32]byte(mac.Sum(nil))
}

// current is what a source has used, after what it got back.
func (g *guesses) current(p netip.Prefix) share {
	s, _ := g.sources.get(p)
	if back := int(time.Since(s.at) / guessEvery); back > 0 {
		s.used, s.at = max(0, s.used-back), s.at.Add(time.Duration(back)*guessEvery)
	}
	if s.used == 0 {
		s = share{at: time.Now()}
	}
	return s
}

// A guess is one secret that a source tries.
type guess struct {
	from        netip.Prefix
	fingerprint [32]byte
	charged     bool // not for what was good before
}

// begin lets a source try a secret; nil: not now. The try counts as wrong
// until right says otherwise: a hundred at once are a hundred.
func (g *guesses) begin(ip netip.Addr, host, secret string) *guess {
	p := source(ip)
	t := &guess{from: p, fingerprint: g.fingerprint(p, host, secret)}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.known.get(t.fingerprint); ok {
		return t
	}
	s := g.current(p)
	if s.used >= guessBurst {
		return nil
	}
	s.used, t.charged = s.used+1, true
	g.sources.put(p, s)
	return t
}

// wrong reports whether that was a source's last try for now, once until it has
// all its tries again.
func (g *guesses) wrong(t *guess) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.known.forget(t.fingerprint) // good once, and no more
	s := g.current(t.from)
	if s.used < guessBurst || s.told {
		return false
	}
	s.told = true
	g.sources.put(t.from, s)
	return true
}

// right gives the try back. good: the secret opens the door, too.
func (g *guesses) right(t *guess, good bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.charged {
		s := g.current(t.from)
		s.used = max(0, s.used-1)
		g.sources.put(t.from, s)
	}
	if good {
		g.known.put(t.fingerprint, struct{}{})
	}
}

func (v *visit) auditGuessing() {
	if v.door.cfg.Audit != nil {
		v.door.cfg.Audit(eventGuessing, slog.String("host", v.visitor.Host), slog.String("remote", v.visitor.Remote.String()))
	}
}

// generations is a map that forgets what was not touched for long: it holds
// between most and 2·most entries once it is full.
type generations[K comparable, V any] struct {
	most     int
	now, old map[K]V
}

func (g *generations[K, V]) get(k K) (V, bool) {
	if v, ok := g.now[k]; ok {
		return v, true
	}
	v, ok := g.old[k]
	if ok {
		g.put(k, v)
	}
	return v, ok
}

func (g *generations[K, V]) forget(k K) {
	delete(g.now, k)
	delete(g.old, k)
}

func (g *generations[K, V]) put(k K, v V) {
	if _, ok := g.now[k]; !ok && len(g.now) >= g.most {
		g.now, g.old = nil, g.now
	}
	if g.now == nil {
		g.now = make(map[K]V)
	}
	g.now[k] = v
}
