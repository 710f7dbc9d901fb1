package certs

import (
	"crypto"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// A keeper keeps what one CA has given us:
//
//	account.key   who we are there
//	account.json  keptAccount
//	tries.json    failures, by certificate
//	certs/HOST.pem, certs/_.HOST.pem   key and chain in one file, so that both change at once
//
// Another CA has another directory: certificates of a CA for trials must not
// serve once the real one is asked.
type keeper struct{ dir string }

// openKeeper makes the directories, or says what is wrong with them.
func openKeeper(dir, ca string) (keeper, error) {
	u, err := url.Parse(ca)
	if err != nil {
		return keeper{}, err
	}
	// A URL may hold any character, a directory's name only some.
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, strings.ToLower(strings.Trim(u.Host+u.Path, "/.")))
	k := keeper{filepath.Join(dir, name)}
	for _, d := range []string{filepath.Dir(dir), dir, k.dir, filepath.Join(k.dir, "certs")} {
		if err := pki.SecureDir(d); err != nil {
			return keeper{}, fmt.Errorf("certificates of the home: %w", err)
		}
	}
	return k, nil
}

func (k keeper) accountKeyFile() string { return filepath.Join(k.dir, "account.key") }
func (k keeper) accountFile() string    { return filepath.Join(k.dir, "account.json") }
func (k keeper) triesFile() string      { return filepath.Join(k.dir, "tries.json") }

// certificateFile: canonical names have no "_", so that no two are alike.
func (k keeper) certificateFile(name string) string {
	if base, ok := strings.CutPrefix(name, "*."); ok {
		name = "_." + base
	}
	return filepath.Join(k.dir, "certs", name+".pem")
}

// accountKey returns nil when there is none. A broken one is an error: with a
// new account the CAA records of the old one would stay in the way.
func (k keeper) accountKey() (crypto.Signer, error) {
	data, err := os.ReadFile(k.accountKeyFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("account key: %w", err)
	}
	key, err := pki.DecodeKey(data)
	if err != nil {
		return nil, &failure{held: true, problem: oneLine(fmt.Sprintf("account key %s: %v", k.accountKeyFile(), err)), fix: "remove the file, and a new account is made"}
	}
	return key, nil
}

func (k keeper) keepAccountKey(key crypto.PrivateKey) error {
	pem, err := pki.EncodeKey(key)
	if err != nil {
		return err
	}
	return k.write(k.accountKeyFile(), pem)
}

func (k keeper) account() (kept keptAccount, err error) {
	err = readJSON(k.accountFile(), &kept)
	if err == nil && kept.URI != "" && !fileExists(k.accountKeyFile()) {
		return keptAccount{}, fmt.Errorf("%s is gone: a new account is made", k.accountKeyFile())
	}
	return kept, err
}

func (k keeper) keepAccount(a keptAccount) error { return k.writeJSON(k.accountFile(), a) }

func (k keeper) tries() (map[string]try, error) {
	all := make(map[string]try)
	err := readJSON(k.triesFile(), &all)
	if all == nil { // "null"
		all = make(map[string]try)
	}
	return all, err
}

// keepTries writes the most recent failures. Those that nothing waits for any
// more are worth keeping while the back-off of the next one depends on them.
func (k keeper) keepTries(all map[string]try, now time.Time) error {
	maps.DeleteFunc(all, func(_ string, t try) bool { return now.Sub(t.Next) > 24*time.Hour })
	if len(all) > maxEntries {
		newest := slices.SortedFunc(maps.Keys(all), func(a, b string) int { return all[b].Next.Compare(all[a].Next) })
		for _, name := range newest[maxEntries:] {
			delete(all, name)
		}
	}
	if len(all) == 0 && !fileExists(k.triesFile()) {
		return nil
	}
	return k.writeJSON(k.triesFile(), all)
}

// certificate reads the pair for name; nil when there is none.
func (k keeper) certificate(name string, sans []string) (*tls.Certificate, error) {
	path := k.certificateFile(name)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		var cert *tls.Certificate
		if cert, err = parsePair(data, sans); err == nil {
			return cert, nil
		}
	}
	return nil, fmt.Errorf("read %s: %w", path, err)
}

// parsePair reads key and chain, and refuses what does not cover all of sans.
func parsePair(data []byte, sans []string) (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, err
	}
	for _, san := range sans {
		if !slices.Contains(cert.Leaf.DNSNames, san) {
			return nil, fmt.Errorf("the certificate is for %s, and not for %s", strings.Join(cert.Leaf.DNSNames, ", "), san)
		}
	}
	return &cert, nil
}

func (k keeper) keepCertificate(name string, file []byte) error {
	return k.write(k.certificateFile(name), file)
}

func (k keeper) writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("keep %s: %w", path, err)
	}
	return k.write(path, append(data, '\n'))
}

// write keeps a file; a disk that does not take it costs no order.
func (k keeper) write(path string, data []byte) error {
	if err := pki.WriteFile(path, data, 0o600); err != nil {
		return &failure{held: true, problem: oneLine(err.Error()), fix: "see whether the disk is full or broken"}
	}
	return nil
}

// readJSON leaves v alone when there is no file.
func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

func fileExists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
