package ech

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// Config is what Keys need.
type Config struct {
	// Dir is where the keys are kept, mode 0700; made when missing. Required.
	Dir string
	// PublicName is the server name that everybody sees: canonical, at least
	// two labels. TLS for it ends at the relay under a valid certificate.
	// Required.
	PublicName string
	// Rotate is how long a key is published. Default 24 h.
	Rotate time.Duration
	// Keep is how long a key still opens hellos after another one took its
	// place: longer than any cache keeps the HTTPS record. Default 7 days.
	Keep time.Duration
	// Changed is called after another key was published. May be nil.
	Changed func()
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
	// Logger. Nil: silence.
	Logger *slog.Logger
}

const (
	fileName = "keys.json"
	maxKeys  = 64               // of a file that grows by a clock that jumps
	lookEach = 10 * time.Minute // the clock may jump, and a machine may sleep
)

// Keys are the relay's keys for Encrypted ClientHello. Methods may be called
// concurrently.
type Keys struct {
	cfg   Config
	file  string
	decoy []byte // private key of nobody, see RetryKeys

	mu  sync.Mutex // one rotation at a time
	now atomic.Pointer[moment]
}

// A moment is all keys at one time. It is never changed.
type moment struct {
	opener  Opener
	list    []byte
	retry   []tls.EncryptedClientHelloKey
	current *key
}

// NewKeys reads the keys from disk and makes the first one. It starts nothing:
// see Run.
func NewKeys(cfg Config) (*Keys, error) {
	if cfg.Dir == "" {
		return nil, errors.New("ech: no directory for the keys")
	}
	if err := checkPublicName(cfg.PublicName); err != nil {
		return nil, err
	}
	cfg.Rotate = cmp.Or(cfg.Rotate, 24*time.Hour)
	cfg.Keep = cmp.Or(cfg.Keep, 7*24*time.Hour)
	if cfg.Rotate < time.Minute || cfg.Keep < cfg.Rotate {
		return nil, fmt.Errorf("ech: keys change every %s and are kept for %s: at least a minute, and no shorter than that", cfg.Rotate, cfg.Keep)
	}
	clock := cfg.Now
	if clock == nil {
		clock = time.Now
	}
	cfg.Now = func() time.Time { return clock().Round(0) } // the wall's time: a monotonic clock may stop while a machine sleeps
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := pki.SecureDir(cfg.Dir); err != nil {
		return nil, err
	}
	decoy, err := kem().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("make ECH key: %w", err)
	}
	k := &Keys{cfg: cfg, file: filepath.Join(cfg.Dir, fileName)}
	if k.decoy, err = decoy.Bytes(); err != nil {
		return nil, fmt.Errorf("make ECH key: %w", err)
	}
	keys, err := load(k.file)
	if err != nil {
		return nil, err
	}
	if len(keys) > 0 {
		k.now.Store(k.momentOf(keys))
	}
	if _, err := k.rotate(); err != nil {
		return nil, err
	}
	return k, nil
}

// Run makes a new key whenever the published one is old enough, until ctx ends.
func (k *Keys) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(lookEach, max(k.left(), time.Second))):
		}
		changed, err := k.rotate()
		if err != nil {
			// The old key goes on; nothing that is not on disk is published.
			k.cfg.Logger.Error("ECH key not changed", "err", err, "retry_in", lookEach)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(lookEach):
			}
			continue
		}
		if changed {
			k.cfg.Logger.Info("ECH key changed", "public_name", k.cfg.PublicName, "kept", len(k.now.Load().opener.keys))
			if k.cfg.Changed != nil {
				k.cfg.Changed()
			}
		}
	}
}

// left is how long the published key still has.
func (k *Keys) left() time.Duration {
	return k.cfg.Rotate - k.cfg.Now().Sub(k.now.Load().current.made)
}

// due reports whether the published key is to be replaced. One from the future
// was made under a wrong clock and would stay for too long.
func (k *Keys) due(current *key, now time.Time) bool {
	age := now.Sub(current.made)
	return age >= k.cfg.Rotate || age < -k.cfg.Rotate || current.public != k.cfg.PublicName
}

// rotate replaces the published key when it is due, and forgets the ones whose
// time is over. What it publishes is on disk before.
func (k *Keys) rotate() (changed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.cfg.Now()
	var keys []*key
	if m := k.now.Load(); m != nil {
		keys = m.opener.keys
	}
	if len(keys) > 0 && !k.due(keys[0], now) {
		return false, nil
	}
	next, err := makeKey(k.cfg.PublicName, now, keys)
	if err != nil {
		return false, err
	}
	kept := []*key{next}
	for i, old := range keys {
		successor := next
		if i > 0 {
			successor = keys[i-1]
		}
		if now.Sub(successor.made) < k.cfg.Keep && len(kept) < maxKeys {
			kept = append(kept, old)
		}
	}
	if err := save(k.file, kept); err != nil {
		return false, err
	}
	k.now.Store(k.momentOf(kept))
	return true, nil
}

func (k *Keys) momentOf(keys []*key) *moment {
	current := keys[0]
	return &moment{
		opener:  Opener{keys},
		current: current,
		list:    configList(current.config),
		retry:   []tls.EncryptedClientHelloKey{{Config: current.config, PrivateKey: k.decoy, SendAsRetry: true}},
	}
}

// ConfigList is what the HTTPS records of the hosts carry as "ech": the config
// of the published key. The caller must not change it.
func (k *Keys) ConfigList() []byte { return k.now.Load().list }

// RetryKeys are for the tls.Config of the public name: they make crypto/tls
// hand out the published config, and never open a hello, because their private
// key is nobody's. What arrives at the public name was opened before, or is
// not to be.
func (k *Keys) RetryKeys() []tls.EncryptedClientHelloKey { return k.now.Load().retry }

// Opener returns the keys of this moment.
func (k *Keys) Opener() *Opener { return &k.now.Load().opener }

// Open opens a hello as Opener.Open does, in the form that the edge asks for:
// inner is a handshake message, nil when outer is the hello that counts; again
// opens the one that follows a HelloRetryRequest. Errors have TLSAlert.
func (k *Keys) Open(name string, outer []byte) (inner []byte, again func(outer []byte) (inner []byte, err error), err error) {
	in, err := k.Opener().Open(name, outer)
	if in == nil || err != nil {
		return nil, nil, err
	}
	return in.Message, in.Again, nil
}

// A Status is what there is to say about the keys.
type Status struct {
	PublicName string
	Made, Next time.Time // of the published key: since when, until when
	Kept       int       // keys that still open hellos, the published one included
}

// Status says how the keys are.
func (k *Keys) Status() Status {
	m := k.now.Load()
	return Status{PublicName: m.current.public, Made: m.current.made, Next: m.current.made.Add(k.cfg.Rotate), Kept: len(m.opener.keys)}
}
