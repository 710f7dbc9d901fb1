package certs

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

// A Pair names the PEM files of a certificate (the leaf first, then its chain)
// and of its key.
type Pair struct {
	Cert, Key string
}

// pollEvery is how often Run looks at the files. Reading a few kilobytes is
// cheap and sees what a modification time hides (restored, linked, or copied
// with the old time).
const pollEvery = 10 * time.Second

// Files serves certificates from files and follows their changes.
type Files struct {
	pairs  []Pair
	logger *slog.Logger
	now    atomic.Pointer[fileSet] // swapped whole

	reload sync.Mutex        // one reload at a time; guards failed
	failed [sha256.Size]byte // the contents that were refused last: logged once
}

// LoadFiles reads all pairs and reports every one that is wrong. logger (nil:
// none) hears of reloads and of certificates that have expired or soon will.
func LoadFiles(pairs []Pair, logger *slog.Logger) (*Files, error) {
	if len(pairs) == 0 {
		return nil, errors.New("certs: no certificate files are named (--cert FILE --key FILE)")
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	f := &Files{pairs: pairs, logger: logger}
	read, err := readAll(pairs)
	if err != nil {
		return nil, err
	}
	set, err := parseAll(read)
	if err != nil {
		return nil, err
	}
	f.use(set)
	return f, nil
}

// GetCertificate picks by the names in the certificates, an exact one before a
// wildcard. It never falls back to a certificate that does not cover name.
func (f *Files) GetCertificate(name string) (*tls.Certificate, error) {
	cert, ok := f.now.Load().table.Lookup(name)
	if !ok {
		return nil, fmt.Errorf("no certificate for %q: none of the %d certificate files covers it", name, len(f.pairs))
	}
	return cert, nil
}

// Reload reads all files again. Either all of them serve from now on, or
// everything stays as it was and the error says why.
func (f *Files) Reload() error {
	_, err := f.refresh(true)
	return err
}

// Run reloads whenever a file has changed, until ctx ends. A change that does
// not load is logged once and looked at again until it does: renewal tools
// write two files, one after the other.
func (f *Files) Run(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	warn := time.NewTicker(24 * time.Hour)
	defer warn.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-warn.C:
			f.warn(f.now.Load())
		case <-tick.C:
			if changed, err := f.refresh(false); err != nil {
				f.logger.Error("certificate files not reloaded, the old ones serve on", "err", err)
			} else if changed {
				f.logger.Info("certificate files reloaded", "certificates", len(f.now.Load().certs))
			}
		}
	}
}

// refresh loads what is on disk when it differs from what serves. Unless loud,
// it says nothing of contents that it has refused before.
func (f *Files) refresh(loud bool) (changed bool, err error) {
	f.reload.Lock()
	defer f.reload.Unlock()
	read, err := readAll(f.pairs)
	sum := sumOf(read, err)
	if err == nil {
		if sum == f.now.Load().sum {
			f.failed = [sha256.Size]byte{}
			return false, nil
		}
		var set *fileSet
		if set, err = parseAll(read); err == nil {
			f.failed = [sha256.Size]byte{}
			f.use(set)
			return true, nil
		}
	}
	if !loud && sum == f.failed {
		return false, nil
	}
	f.failed = sum
	return false, err
}

// use makes set the one that serves.
func (f *Files) use(set *fileSet) {
	f.now.Store(set)
	f.warn(set)
}

// expirySoon is when to worry: whoever renews does it earlier.
const expirySoon = 10 * 24 * time.Hour

// warn says what will trouble visitors. An expired certificate still serves:
// a browser's warning tells the owner more than a dead port.
func (f *Files) warn(set *fileSet) {
	now := time.Now()
	for i, cert := range set.certs {
		log := f.logger.With("file", f.pairs[i].Cert)
		switch leaf := cert.Leaf; {
		case now.After(leaf.NotAfter):
			log.Error("certificate has expired", "expired", leaf.NotAfter)
		case now.Before(leaf.NotBefore):
			log.Warn("certificate is not valid yet, or the clock is wrong", "valid_from", leaf.NotBefore)
		case leaf.NotAfter.Sub(now) < expirySoon:
			log.Warn("certificate expires soon", "expires", leaf.NotAfter)
		}
	}
	for _, w := range set.warnings {
		f.logger.Warn(w)
	}
}

// A fileSet is all pairs as loaded at one moment.
type fileSet struct {
	certs    []*tls.Certificate // in the order of the pairs
	table    *names.Table[*tls.Certificate]
	sum      [sha256.Size]byte // of the files' contents
	warnings []string
}
