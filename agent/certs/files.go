package certs

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

const (
	maxFile = 1 << 20 // of a PEM file; a long chain is 20 KiB
	// pollEvery is how often the files are looked at. Reading a few kilobytes is
	// cheap and sees what a modification time hides (restored, linked, or copied
	// with the old time).
	pollEvery = 10 * time.Second
	// expirySoon is when to worry: whoever renews does it earlier.
	expirySoon = 10 * 24 * time.Hour
)

// files serves certificates that somebody else renews, and follows their
// changes.
type files struct {
	pairs  []Pair
	now    func() time.Time
	logger *slog.Logger
	set    atomic.Pointer[fileSet] // swapped whole

	mu    sync.Mutex // guards hosts and stuck
	hosts []string
	stuck string // why the files that are there now do not load; empty: they do

	failed [sha256.Size]byte // the contents that were refused last: logged once; of run alone
}

// A fileSet is all pairs as loaded at one moment.
type fileSet struct {
	table    *names.Table[*tls.Certificate]
	sum      [sha256.Size]byte // of the files' contents
	warnings []string
}

func loadFiles(c Config) (*files, error) {
	if len(c.Files) == 0 {
		return nil, errors.New("certificates of the home: no files are named\nname a certificate and its key, in PEM")
	}
	f := &files{pairs: c.Files, now: c.Now, logger: c.Logger}
	set, err := readPairs(f.pairs)
	if err != nil {
		return nil, err
	}
	f.use(set)
	return f, nil
}

func (f *files) get(name string) (*tls.Certificate, error) {
	if cert, ok := f.set.Load().table.Lookup(name); ok {
		return cert, nil
	}
	return nil, fmt.Errorf("no certificate for %q: none of the %d certificate files covers it", name, len(f.pairs))
}

func (f *files) setHosts(hosts []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts = slices.Compact(slices.Sorted(slices.Values(hosts)))
}

// run takes over changed files, all of them or none. A change that does not
// load is logged once and looked at again until it does: renewal tools write
// two files, one after the other.
func (f *files) run(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			f.refresh()
		}
	}
}

func (f *files) refresh() {
	set, err := readPairs(f.pairs)
	f.mu.Lock()
	f.stuck = ""
	if err != nil {
		f.stuck = oneLine(err.Error())
	}
	f.mu.Unlock()
	switch {
	case err == nil:
		f.failed = [sha256.Size]byte{}
		if set.sum != f.set.Load().sum {
			f.use(set)
			f.logger.Info("certificate files reloaded", "files", len(f.pairs))
		}
	default:
		if sum := sha256.Sum256([]byte(err.Error())); sum != f.failed {
			f.failed = sum
			f.logger.Error("certificate files not reloaded, the old ones serve on", "err", err)
		}
	}
}

func (f *files) use(set *fileSet) {
	f.set.Store(set)
	for _, w := range set.warnings {
		f.logger.Warn(w)
	}
}

func (f *files) status() []Status {
	f.mu.Lock()
	hosts, stuck := f.hosts, f.stuck
	f.mu.Unlock()
	table, now := f.set.Load().table, f.now()
	list := make([]Status, 0, len(hosts))
	for _, host := range hosts {
		// What covers any name right below covers the pattern, unless a file is
		// for one of these names alone.
		name := host
		if base, wild := strings.CutPrefix(host, "*."); wild {
			name = "any." + base
		}
		st := Status{Host: host, State: StateFailing}
		cert, ok := table.Lookup(name)
		if ok {
			st.Issuer, st.NotAfter = issuerName(cert.Leaf), cert.Leaf.NotAfter
		}
		switch {
		case !ok:
			st.Problem = "none of the certificate files covers " + host
			st.Fix = "name a file whose certificate has " + host + " as a subjectAltName"
		case now.After(st.NotAfter):
			st.Problem, st.Fix = "the certificate has expired", "renew it: the files are read again by themselves"
		case now.Before(cert.Leaf.NotBefore):
			st.Problem, st.Fix = "the certificate is not valid yet, or the clock is wrong", "see that this machine's clock is right"
		case stuck != "":
			st.Problem, st.Fix = stuck, "mend the files: they are read again by themselves, and the old ones serve on"
		case st.NotAfter.Sub(now) < expirySoon:
			st.Problem, st.Fix = "the certificate expires soon", "renew it: the files are read again by themselves"
		default:
			st.State = StateOK
		}
		list = append(list, st)
	}
	return list
}

// readPairs reads and parses all pairs and reports every one that is wrong.
func readPairs(pairs []Pair) (*fileSet, error) {
	set := new(fileSet)
	sum := sha256.New()
	byPattern := make(map[string]*tls.Certificate)
	var errs []error
	for _, p := range pairs {
		crt, _, crtErr := readFile(p.Cert)
		key, open, keyErr := readFile(p.Key)
		if err := errors.Join(crtErr, keyErr); err != nil {
			errs = append(errs, err)
			continue
		}
		for _, part := range [][]byte{crt, key} {
			_ = binary.Write(sum, binary.BigEndian, int64(len(part)))
			sum.Write(part)
		}
		cert, err := tls.X509KeyPair(crt, key)
		if err != nil {
			errs = append(errs, fmt.Errorf("certificate %s with key %s: %w", p.Cert, p.Key, err))
			continue
		}
		if open {
			set.warnings = append(set.warnings, fmt.Sprintf("every user of this machine can read the key %s; fix: chmod 600", p.Key))
		}
		usable := false
		for _, san := range cert.Leaf.DNSNames {
			pattern, err := names.ValidPattern(san)
			if err != nil {
				set.warnings = append(set.warnings, fmt.Sprintf("certificate %s: a name in it is not used: %v", p.Cert, err))
				continue
			}
			usable = true
			// Of two for the same name the one that lasts longer serves.
			if other, ok := byPattern[pattern]; !ok || other.Leaf.NotAfter.Before(cert.Leaf.NotAfter) {
				byPattern[pattern] = &cert
			}
		}
		if !usable {
			errs = append(errs, fmt.Errorf("certificate %s: it holds no DNS name (subjectAltName) that a browser would match", p.Cert))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	table, err := names.NewTable(byPattern)
	if err != nil {
		return nil, fmt.Errorf("index certificates by name: %w", err)
	}
	set.table = table
	sum.Sum(set.sum[:0])
	return set, nil
}

// readFile also says whether other users can read the file.
func readFile(path string) (data []byte, open bool, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, false, fmt.Errorf("read certificate file: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, false, fmt.Errorf("read certificate file: %w", err)
	}
	if data, err = io.ReadAll(io.LimitReader(file, maxFile+1)); err != nil {
		return nil, false, fmt.Errorf("read certificate file: %w", err)
	}
	if len(data) > maxFile {
		return nil, false, fmt.Errorf("read certificate file %s: it is larger than 1 MiB", path)
	}
	return data, info.Mode().Perm()&0o004 != 0 && runtime.GOOS != "windows", nil
}
