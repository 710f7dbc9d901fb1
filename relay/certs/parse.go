package certs

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/sallyport/sallyport/protocol/names"
)

// maxFile bounds a PEM file; a long chain is 20 KiB.
const maxFile = 1 << 20

// contents are the bytes of one pair's files.
type contents struct {
	Pair
	cert, key []byte
	open      bool // everybody on this machine can read the key
}

// readAll reads all files and reports every one that cannot be read.
func readAll(pairs []Pair) ([]contents, error) {
	var all []contents
	var errs []error
	for _, p := range pairs {
		c := contents{Pair: p}
		var certErr, keyErr error
		c.cert, _, certErr = readFile(p.Cert)
		c.key, c.open, keyErr = readFile(p.Key)
		if err := errors.Join(certErr, keyErr); err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, c)
	}
	return all, errors.Join(errs...)
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

// sumOf tells contents apart, and the failures to read them too.
func sumOf(all []contents, err error) (sum [sha256.Size]byte) {
	h := sha256.New()
	part := func(b []byte) {
		_ = binary.Write(h, binary.BigEndian, int64(len(b)))
		h.Write(b)
	}
	for _, c := range all {
		part(c.cert)
		part(c.key)
	}
	if err != nil {
		part([]byte(err.Error()))
	}
	h.Sum(sum[:0])
	return sum
}

// parseAll parses all pairs and reports every one that is wrong.
func parseAll(read []contents) (*fileSet, error) {
	set := &fileSet{sum: sumOf(read, nil)}
	byPattern := make(map[string]*tls.Certificate)
	var errs []error
	for _, c := range read {
		cert, err := tls.X509KeyPair(c.cert, c.key)
		if err != nil {
			errs = append(errs, fmt.Errorf("certificate %s with key %s: %w", c.Cert, c.Key, err))
			continue
		}
		if c.open {
			set.warnings = append(set.warnings, fmt.Sprintf("every user of this machine can read the key %s; fix: chmod 600", c.Key))
		}
		usable := false
		for _, san := range cert.Leaf.DNSNames {
			pattern, err := names.ValidPattern(san)
			if err != nil {
				set.warnings = append(set.warnings, fmt.Sprintf("certificate %s: a name in it is not used: %v", c.Cert, err))
				continue
			}
			usable = true
			// Of two for the same name the one that lasts longer serves.
			if other, ok := byPattern[pattern]; !ok || other.Leaf.NotAfter.Before(cert.Leaf.NotAfter) {
				byPattern[pattern] = &cert
			}
		}
		if !usable {
			errs = append(errs, fmt.Errorf("certificate %s: it holds no DNS name (subjectAltName) that a browser would match", c.Cert))
			continue
		}
		set.certs = append(set.certs, &cert)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	table, err := names.NewTable(byPattern)
	if err != nil {
		return nil, fmt.Errorf("index certificates by name: %w", err)
	}
	set.table = table
	return set, nil
}
