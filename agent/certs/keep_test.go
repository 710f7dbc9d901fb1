package certs

import (
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue makes a pair under an authority, as PEM.
func issue(t testing.TB, ca *pki.Authority, from, to time.Time, hosts ...string) (crt, key []byte) {
	t.Helper()
	k, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Issue(k.Public(), pki.Grant{Profile: pki.Server, Name: hosts[0], DNSNames: hosts[1:], NotBefore: from, NotAfter: to})
	if err != nil {
		t.Fatal(err)
	}
	if key, err = pki.EncodeKey(k); err != nil {
		t.Fatal(err)
	}
	return pki.EncodeCert(leaf), key
}

func authority(t testing.TB) *pki.Authority {
	t.Helper()
	ca, err := pki.NewAuthority("server", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// What is broken on disk is neither served nor fatal, and never believed to be
// another name's.
func TestKeptCertificateThatCannotBeUsed(t *testing.T) {
	crt, key := issue(t, authority(t), time.Time{}, time.Now().Add(time.Hour), "ha.relay.test")
	_, other := issue(t, authority(t), time.Time{}, time.Now().Add(time.Hour), "ha.relay.test")
	for name, c := range map[string]struct {
		file []byte
		host string
		ok   bool
	}{
		"good":        {append(slices.Clone(key), crt...), "ha.relay.test", true},
		"half":        {append(slices.Clone(key), crt[:len(crt)/2]...), "ha.relay.test", false},
		"no key":      {crt, "ha.relay.test", false},
		"foreign key": {append(slices.Clone(other), crt...), "ha.relay.test", false},
		"empty":       {nil, "ha.relay.test", false},
		"other name":  {append(slices.Clone(key), crt...), "nas.relay.test", false},
		"wildcard":    {append(slices.Clone(key), crt...), "*.relay.test", false},
	} {
		t.Run(name, func(t *testing.T) {
			log := new(logBuffer)
			config := Config{Dir: t.TempDir(), Domain: domain, SetTXT: newZone().set, ACME: ACME{CA: "https://ca.test/dir"}, Logger: slog.New(slog.NewTextHandler(log, nil))}
			first, err := New(config)
			if err != nil {
				t.Fatal(err)
			}
			write(t, first.acme.keeper.certificateFile(c.host), c.file)
			first.SetHosts([]string{c.host})
			_, err = first.GetCertificate(strings.Replace(c.host, "*", "x", 1))
			if (err == nil) != c.ok {
				t.Errorf("served: %v", err)
			}
			if strings.Contains(log.String(), "kept certificate not used") == c.ok {
				t.Errorf("log: %s", log)
			}
		})
	}
}

// A broken account key is not replaced silently: it is who CAA records name.
func TestBrokenAccountKey(t *testing.T) {
	k, err := openKeeper(filepath.Join(t.TempDir(), "acme"), letsEncrypt)
	if err != nil {
		t.Fatal(err)
	}
	a := &account{keeper: k, logger: slog.New(slog.DiscardHandler)}
	first, err := a.key()
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.key()
	if err != nil || !first.(*ecdsa.PrivateKey).Equal(again) {
		t.Fatalf("another key: %v", err)
	}
	write(t, k.accountKeyFile(), []byte("half a k"))
	if _, err := a.key(); err == nil || !strings.Contains(asFailure(err).fix, "remove the file") {
		t.Errorf("a broken key: %v", err)
	}
	// An account without its key is none.
	if err := k.keepAccount(keptAccount{URI: "https://ca.test/1"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(k.accountKeyFile()); err != nil {
		t.Fatal(err)
	}
	if kept, err := k.account(); kept.URI != "" || err == nil {
		t.Errorf("account %+v, %v", kept, err)
	}
}

// Every CA has its own directory: certificates of one for trials must not
// serve when the real one is asked.
func TestDirectoryOfACA(t *testing.T) {
	dir := t.TempDir()
	seen := make(map[string]string)
	for _, ca := range []string{
		letsEncrypt, "https://acme-staging-v02.api.letsencrypt.org/directory", "https://localhost:14000/dir", "https://localhost:14001/dir",
		"https://CA.test/../../../etc/x", "https://ca.test/a b%2f?x#y",
	} {
		k, err := openKeeper(filepath.Join(dir, "acme"), ca)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Dir(k.dir) != filepath.Join(dir, "acme") || seen[k.dir] != "" {
			t.Errorf("%s is kept in %s, with %s", ca, k.dir, seen[k.dir])
		}
		seen[k.dir] = ca
	}
}

func TestTriesAreBounded(t *testing.T) {
	k, err := openKeeper(filepath.Join(t.TempDir(), "acme"), letsEncrypt)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.keepTries(nil, day); err != nil || fileExists(k.triesFile()) {
		t.Errorf("a file for nothing: %v", err)
	}
	all := map[string]try{"old.test": {Failures: 1, Next: day.Add(-48 * time.Hour)}}
	for i := range 3 * maxEntries {
		all[fmt.Sprintf("h%d.test", i)] = try{Failures: 1, Next: day.Add(time.Duration(i) * time.Second)}
	}
	if err := k.keepTries(all, day); err != nil {
		t.Fatal(err)
	}
	kept, err := k.tries()
	if err != nil || len(kept) != maxEntries || kept[fmt.Sprintf("h%d.test", 3*maxEntries-1)].Failures != 1 {
		t.Errorf("%d are kept: %v", len(kept), err)
	}
	for _, broken := range []string{"{", "null", "[]", ""} {
		write(t, k.triesFile(), []byte(broken))
		if kept, _ := k.tries(); kept == nil {
			t.Errorf("%q: no map", broken)
		}
	}
}

// A clock that was wrong when a failure was written down does not keep us
// waiting for years.
func TestTriesOfAWrongClock(t *testing.T) {
	for _, b := range []try{
		{Failures: 3, Next: day.AddDate(5, 0, 0), Problem: "x"},
		{Failures: 3, Next: day, Limit: day.AddDate(5, 0, 0), Problem: "x"},
		{Failures: -1, Next: day, Problem: "x"},
	} {
		e := &entry{due: day}
		e.remember(b, day)
		if e.failures != 0 || !e.due.Equal(day) || e.problem != "" {
			t.Errorf("%+v is believed: %+v", b, e)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	notPEM := filepath.Join(dir, "x.pem")
	write(t, notPEM, []byte("x"))
	for name, c := range map[string]Config{
		"no directory":      {Domain: domain},
		"no domain":         {Dir: dir},
		"other spelling":    {Dir: dir, Domain: "Relay.test"},
		"no name":           {Dir: dir, Domain: domain, Own: "a_b.relay.test"},
		"unknown mode":      {Dir: dir, Domain: domain, Mode: "magic"},
		"plain HTTP":        {Dir: dir, Domain: domain, ACME: ACME{CA: "http://ca.test/dir"}},
		"no URL":            {Dir: dir, Domain: domain, ACME: ACME{CA: "ca.test"}},
		"no root":           {Dir: dir, Domain: domain, ACME: ACME{RootFile: filepath.Join(dir, "none")}},
		"root is no PEM":    {Dir: dir, Domain: domain, ACME: ACME{RootFile: notPEM}},
		"no files":          {Domain: domain, Mode: ModeFiles},
		"directory is file": {Dir: notPEM, Domain: domain},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, ca := range []string{"http://127.0.0.1:1/dir", "http://[::1]:1/dir", "http://localhost:1/dir", "https://ca.test/dir"} {
		if err := checkDirectoryURL(ca); err != nil {
			t.Error(err)
		}
	}
}

func TestLetsEncryptWantsPublicNames(t *testing.T) {
	c, err := New(Config{Dir: t.TempDir(), Domain: domain})
	if err != nil {
		t.Fatal(err)
	}
	for host, refused := range map[string]bool{"ha.example.org": false, "ha.local": true, "ha": true, "ha.home.arpa": true, "x.internal": true} {
		if problem, _ := c.acme.refuses(host); (problem != "") != refused {
			t.Errorf("%s: %q", host, problem)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "0", "-1", "3600", "1e9", "NaN", "Mon, 01 Mar 2027 12:00:00 GMT", "1h", "9999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if at, ok := retryAfter(s, day); ok && !at.After(day) {
			t.Errorf("%q: wait until %v", s, at)
		}
	})
}

// FuzzKept reads what may be on disk.
func FuzzKept(f *testing.F) {
	crt, key := issue(f, authority(f), time.Time{}, time.Now().Add(time.Hour), "ha.relay.test")
	f.Add(append(key, crt...))
	f.Add([]byte(`{"ha.relay.test":{"failures":3,"next":"2027-03-01T12:00:00Z","problem":"x","fix":"y"}}`))
	f.Add([]byte(`{"uri":"https://ca.test/1","issuers":["ca.test"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if cert, err := parsePair(data, []string{"ha.relay.test"}); err == nil && cert.Leaf.VerifyHostname("ha.relay.test") != nil {
			t.Error("a certificate of another name")
		}
		var tries map[string]try
		if json.Unmarshal(data, &tries) == nil {
			for _, b := range tries {
				e := &entry{due: day}
				e.remember(b, day)
				if e.due.Sub(day) > longestLimit || e.failures < 0 {
					t.Errorf("%+v makes %+v", b, e)
				}
			}
		}
	})
}

// FuzzProblem reads what a CA may say.
func FuzzProblem(f *testing.F) {
	f.Add("rateLimited", "too many, retry after 2027-03-01 16:00:00 UTC", true)
	f.Add("unauthorized", "a\x1b[31m\nb", false)
	c, err := New(Config{Dir: f.TempDir(), Domain: domain})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, kind, detail string, byDNS bool) {
		w := &waiter{now: c.acme.config.Now}
		got := c.acme.explain(acmeProblem(kind, detail), job{name: "ha.relay.test"}, byDNS, sight{}, w)
		if got.problem == "" || got.fix == "" || strings.ContainsAny(got.problem+got.fix, "\n\r\x1b") || len([]rune(got.problem)) > 301 {
			t.Errorf("%q", got)
		}
	})
}
