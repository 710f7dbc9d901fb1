package machine

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// pollEvery is how often a waiting machine asks whether the owner has decided.
const pollEvery = 2 * time.Second

// An Enrolment says how a machine asks for its certificate. Dir and Relay are
// required.
type Enrolment struct {
	Dir     string // made with mode 0700 if it is missing
	Relay   string // base URL of the enrolment host, see ParseRelay
	Address string // HOST:PORT that is dialled instead; empty: what DNS says
	Code    string // one-time code; empty where the owner takes requests without one
	Name    string // wished; what the code is made out for wins; empty: Hostname
	Root    []byte // PEM, the only roots to trust; nil: the system's
	RSA     bool   // RSA-2048 instead of P-256

	Hostname string // name of last resort
	// Words makes the fingerprint of a key that people compare. The relay's own
	// words must be the same: otherwise it shows its owner another key. Nil: the
	// relay's are believed.
	Words func(keyID string) string
	// Waiting is called once when the owner has to approve. Nil: not told.
	Waiting func(name, words string)

	every time.Duration // seam for tests; 0: pollEvery
}

// Enrol makes a key, hands in the request and waits for the certificate, for
// as long as ctx and the relay allow. What it needs to go on is on disk before
// the relay hears of it: after a crash or an end of ctx, the same call goes on
// with the same key, even when the code was used up meanwhile.
func Enrol(ctx context.Context, e Enrolment) (*Device, error) {
	if err := os.MkdirAll(e.Dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := lock(e.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	rec, err := readRecord(e.Dir)
	switch {
	case errors.Is(err, ErrNotEnrolled):
		rec = record{Schema: 1}
	case err != nil:
		return nil, err
	case rec.Pending == nil:
		return nil, fmt.Errorf("%s holds the device %s: %w", e.Dir, rec.Name, ErrEnrolled)
	case rec.Relay != e.Relay:
		return nil, fmt.Errorf("%s waits for the answer of %s, not of %s: take another directory", e.Dir, rec.Relay, e.Relay)
	}
	roots, err := e.keepRoot()
	if err != nil {
		return nil, err
	}
	a := newAPI(e.Relay, e.Address, roots, nil)
	defer a.close()
	d := &Device{Dir: e.Dir, Name: rec.Name, record: rec, roots: roots}
	if rec.Pending == nil {
		err = d.prepare(ctx, a, e)
	} else {
		err = d.resume(e)
	}
	if err != nil {
		return nil, err
	}
	ans, err := d.submit(ctx, a, e)
	if err == nil {
		ans, err = d.wait(ctx, a, e, ans)
	}
	if err != nil {
		return nil, d.giveUp(err)
	}
	return d, d.keep(ans)
}

// keepRoot writes the roots beside the key, so that renewal needs no flags.
func (e Enrolment) keepRoot() (*x509.CertPool, error) {
	file := filepath.Join(e.Dir, rootFile)
	if e.Root == nil { // not those of an earlier try
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return nil, nil
	}
	if err := pki.WriteFile(file, e.Root, 0o644); err != nil {
		return nil, err
	}
	return readRoots(e.Dir)
}

// prepare finds the name, and puts a new key and ticket on disk.
func (d *Device) prepare(ctx context.Context, a *api, e Enrolment) error {
	d.Name = e.Name
	if e.Code != "" {
		var inv struct {
			Name string `json:"name"`
		}
		if err := a.do(ctx, "/api/code", "", map[string]string{"code": e.Code}, &inv); err != nil {
			return err
		}
		if inv.Name != "" && e.Name != "" && inv.Name != e.Name {
			return fmt.Errorf("the code is made out for %s, not for %s", inv.Name, e.Name)
		}
		if inv.Name != "" {
			d.Name = inv.Name
		}
	}
	if d.Name == "" {
		d.Name = e.Hostname
	}
	if err := checkFileName(d.Name); err != nil {
		return err
	}
	key, err := newKey(e.RSA)
	if err != nil {
		return err
	}
	d.key = key
	d.record = record{Schema: 1, Name: d.Name, Relay: e.Relay, Address: e.Address, RSA: e.RSA, Pending: &pending{Ticket: rand.Text()}}
	if err := writeKey(d.KeyFile(), key); err != nil {
		return err
	}
	return writeRecord(d.Dir, d.record)
}

// resume takes up the key of an earlier call. As long as the relay has given
// no receipt another name may be wished: the code may be bound to the key.
func (d *Device) resume(e Enrolment) (err error) {
	old := d.KeyFile()
	if d.key, err = readKey(old); err != nil {
		return err
	}
	if e.Name == "" || e.Name == d.Name || d.record.Pending.ID != "" {
		return nil
	}
	if err := checkFileName(e.Name); err != nil {
		return err
	}
	d.Name, d.record.Name = e.Name, e.Name
	if err := errors.Join(writeKey(d.KeyFile(), d.key), writeRecord(d.Dir, d.record)); err != nil {
		return err
	}
	return os.Remove(old)
}

// An answer is a request as the relay sees it.
type answer struct {
	ID    string   `json:"id"`
	State string   `json:"state"`
	Name  string   `json:"name"`
	Words string   `json:"words"`
	Cert  []byte   `json:"cert"`
	CA    [][]byte `json:"ca"`
}

// submit hands the request in, unless an earlier call has a receipt.
func (d *Device) submit(ctx context.Context, a *api, e Enrolment) (ans answer, err error) {
	if d.record.Pending.ID != "" {
		return d.ask(ctx, a)
	}
	csr, err := pki.NewCSR(d.key)
	if err != nil {
		return ans, err
	}
	in := struct {
		Code   string `json:"code,omitempty"`
		Name   string `json:"name"`
		CSR    []byte `json:"csr"`
		Ticket string `json:"ticket"`
	}{e.Code, d.Name, csr, d.record.Pending.Ticket}
	if err := a.do(ctx, "/api/requests", "", in, &ans); err != nil {
		return ans, err
	}
	if ans.ID == "" {
		return ans, errors.New("the relay took the request but gave no receipt")
	}
	d.record.Pending.ID = ans.ID
	return ans, writeRecord(d.Dir, d.record)
}

func (d *Device) ask(ctx context.Context, a *api) (ans answer, err error) {
	err = a.do(ctx, "/api/requests/"+d.record.Pending.ID, d.record.Pending.Ticket, nil, &ans)
	return ans, err
}

// wait asks until the request is decided. A network or a relay that is away
// for a while does not end it.
func (d *Device) wait(ctx context.Context, a *api, e Enrolment, ans answer) (answer, error) {
	words, err := d.words(e, ans)
	if err != nil {
		return ans, err
	}
	if ans.State == "pending" && e.Waiting != nil {
		e.Waiting(d.Name, words)
	}
	every := e.every
	if every == 0 {
		every = pollEvery
	}
	t := time.NewTimer(every)
	defer t.Stop()
	for ans.State == "pending" {
		select {
		case <-t.C:
		case <-ctx.Done():
			return ans, ctx.Err()
		}
		next, err := d.ask(ctx, a)
		no, refused := errors.AsType[*Refusal](err)
		pause := every
		switch {
		case err == nil:
			ans = next
		case refused && !no.Temporary():
			return ans, err
		case refused:
			pause = max(every, no.RetryAfter)
		}
		t.Reset(pause)
	}
	if ans.State != "issued" {
		return ans, fmt.Errorf("the request of %s was %s: %w", d.Name, ans.State, ErrDenied)
	}
	return ans, nil
}

// words are the fingerprint of our key: made here, compared with the relay's.
func (d *Device) words(e Enrolment, ans answer) (string, error) {
	if e.Words == nil {
		return ans.Words, nil
	}
	id, err := keyID(d.key.Public())
	if err != nil {
		return "", err
	}
	if ours := e.Words(id); ours != ans.Words {
		return "", fmt.Errorf("the relay shows its owner another key than ours: %q, not %q", ans.Words, ours)
	}
	return ans.Words, nil
}

func keyID(pub crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// giveUp removes key and ticket when the relay has said a last no, so that the
// next try begins anew. After anything else they stay, to go on with.
func (d *Device) giveUp(err error) error {
	no, refused := errors.AsType[*Refusal](err)
	last := errors.Is(err, ErrDenied) || refused && !no.Temporary() && no.Status != http.StatusConflict
	if last {
		for _, f := range []string{d.path(recordFile), d.KeyFile()} {
			if rerr := os.Remove(f); rerr != nil {
				err = errors.Join(err, rerr)
			}
		}
	}
	return err
}

// keep writes the certificate. From then on the directory is enrolled.
func (d *Device) keep(ans answer) error {
	cert, err := checkIssued(ans.Cert, ans.CA, d.key)
	if err != nil {
		return err
	}
	if err := pki.WriteFile(d.CertFile(), pki.EncodeCert(cert), 0o644); err != nil {
		return err
	}
	if err := d.writeCA(ans.CA); err != nil {
		return err
	}
	d.Cert, d.record.Pending = cert, nil
	return writeRecord(d.Dir, d.record)
}

func (d *Device) writeCA(chain [][]byte) error {
	d.CA = nil
	for _, der := range chain {
		d.CA = append(d.CA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	if d.CA == nil {
		return nil
	}
	return pki.WriteFile(d.path(caFile), d.CA, 0o644)
}

// checkIssued makes sure that what the relay sends is for our key and from the
// CA that it sends along: anything else would only fail later, and darkly.
func checkIssued(der []byte, chain [][]byte, key crypto.Signer) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the relay sent no certificate: %w", err)
	}
	if !sameKey(cert, key) {
		return nil, errors.New("the relay sent a certificate for another key")
	}
	for _, der := range chain {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the relay sent a broken CA certificate: %w", err)
		}
		if cert.CheckSignatureFrom(ca) == nil {
			return cert, nil
		}
	}
	return nil, errors.New("the relay sent a certificate that is not from the CA it sent along")
}
