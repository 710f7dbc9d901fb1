// Package machine is a computer that holds a device certificate of its own. It
// enrols with a one-time code, keeps key and certificate as files, and renews
// them in time under the certificate that it has:
//
//	d, err := machine.Enrol(ctx, machine.Enrolment{
//		Dir: "/etc/sallyport/nas", Relay: "https://enroll.example.org", Code: code, Name: "nas",
//	})
//	d, err := machine.Open("/etc/sallyport/nas")
//	if d.Due(time.Now()) { err = d.Renew(ctx) }
//
// The directory holds NAME.key (mode 0600), NAME.crt, ca.crt (the device CA),
// root.crt (what the relay's own certificate is verified with; absent: the
// system's roots) and device.json. Keys are made in it and never leave it. Only
// one process at a time enrols or renews in a directory; any number may read.
package machine

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// Errors by what the caller should do.
var (
	// ErrNotEnrolled: the directory holds no device.
	ErrNotEnrolled = errors.New("no device was enrolled here")
	// ErrEnrolled: the directory holds a device already.
	ErrEnrolled = errors.New("a device was enrolled here already")
	// ErrBusy: another process enrols or renews in the directory.
	ErrBusy = errors.New("another sallyport works on this directory")
	// ErrEnded: the certificate is of no use now. Renewal needs one that is.
	ErrEnded = errors.New("the certificate has ended")
	// ErrDenied: the relay's owner said no, or nothing for too long.
	ErrDenied = errors.New("the relay's owner did not approve")
)

const (
	recordFile = "device.json"
	rootFile   = "root.crt"
	caFile     = "ca.crt"
	nextPrefix = "next." // of key and certificate while they are exchanged
)

// record is device.json. Unknown fields of newer versions are ignored.
type record struct {
	Schema  int      `json:"schema"` // 1
	Name    string   `json:"name"`
	Relay   string   `json:"relay"`             // "https://enroll.example.org:8443"
	Address string   `json:"address,omitempty"` // dialled instead of what DNS says
	RSA     bool     `json:"rsa,omitempty"`     // kind of the next keys, too
	Pending *pending `json:"pending,omitempty"` // the relay has not answered yet
	// LastEnd is the end of a certificate whose renewal brought no later one: a
	// guest's time is not extended, and asking again and again would not help.
	LastEnd time.Time `json:"last_end,omitzero"`
}

// pending is a request that waits for the relay or its owner.
type pending struct {
	ID     string `json:"id,omitempty"` // empty: the relay's receipt was not seen
	Ticket string `json:"ticket"`       // the secret that fetches the answer
}

// A Device is an enrolled directory as it was read.
type Device struct {
	Dir  string
	Name string
	Cert *x509.Certificate
	CA   []byte // PEM, the device CA; nil when the file is gone

	key     crypto.Signer
	record  record
	address string         // see Dial
	roots   *x509.CertPool // nil: the system's
}

// Open reads an enrolled directory. A renewal that was cut off between its two
// files is finished first.
func Open(dir string) (*Device, error) {
	rec, err := readRecord(dir)
	if err != nil {
		return nil, err
	}
	if rec.Pending != nil {
		return nil, fmt.Errorf("%s: the relay has not answered yet: %w", dir, ErrNotEnrolled)
	}
	d := &Device{Dir: dir, Name: rec.Name, record: rec}
	if err := d.load(); err != nil {
		return nil, err
	}
	return d, nil
}

// load reads key, certificates and roots.
func (d *Device) load() (err error) {
	if d.key, d.Cert, err = d.readPair(d.KeyFile(), d.CertFile()); err != nil {
		if d.key, d.Cert, err = d.finishSwap(err); err != nil {
			return fmt.Errorf("device %s in %s: %w", d.Name, d.Dir, err)
		}
	}
	if d.CA, err = os.ReadFile(d.path(caFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	d.roots, err = readRoots(d.Dir)
	return err
}

// TLS is what a client shows to a host that asks for a certificate.
func (d *Device) TLS() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{d.Cert.Raw}, PrivateKey: d.key, Leaf: d.Cert}
}

// Roots are what the relay's certificate is verified with; nil: the system's.
func (d *Device) Roots() *x509.CertPool { return d.roots }

// Address is what is dialled instead of what DNS says of the relay, or "".
func (d *Device) Address() string {
	if d.address != "" {
		return d.address
	}
	return d.record.Address
}

// Dial sets Address for the next renewal, which keeps it if it succeeds. An
// empty one changes nothing.
func (d *Device) Dial(address string) { d.address = address }

// CheckURL is the base URL of the relay's self-test and renewal host, without
// a slash at the end.
func (d *Device) CheckURL() string {
	return strings.Replace(d.record.Relay, "://enroll.", "://check.", 1)
}

// RootFile is the path of the roots that the relay's hosts are verified with,
// or "" for the system's.
func (d *Device) RootFile() string {
	if d.roots == nil {
		return ""
	}
	return d.path(rootFile)
}

// KeyFile is the path of the private key, PEM.
func (d *Device) KeyFile() string { return d.path(d.Name + ".key") }

// CertFile is the path of the certificate, PEM.
func (d *Device) CertFile() string { return d.path(d.Name + ".crt") }

func (d *Device) path(name string) string { return filepath.Join(d.Dir, name) }

// RenewAt is when two thirds of the certificate's life are over.
func (d *Device) RenewAt() time.Time {
	life := d.Cert.NotAfter.Sub(d.Cert.NotBefore)
	return d.Cert.NotBefore.Add(life / 3 * 2)
}

// Due reports whether it is time to renew, and whether that could bring
// anything: near the end of the device CA, no certificate lasts longer.
func (d *Device) Due(now time.Time) bool {
	return !now.Before(d.RenewAt()) && !d.record.LastEnd.Equal(d.Cert.NotAfter)
}

// Usable says why the certificate cannot be shown now, in words that tell a
// clock that is wrong from a life that is over; nil: it can.
func (d *Device) Usable(now time.Time) error {
	const day = "2006-01-02 15:04 MST"
	switch {
	case now.Before(d.Cert.NotBefore):
		return fmt.Errorf("this machine's clock says %s, but the certificate of %s begins at %s: set the clock",
			now.UTC().Format(day), d.Name, d.Cert.NotBefore.UTC().Format(day))
	case now.After(d.Cert.NotAfter):
		return fmt.Errorf("the certificate of %s ended at %s, and this machine's clock says %s: %w",
			d.Name, d.Cert.NotAfter.UTC().Format(day), now.UTC().Format(day), ErrEnded)
	}
	return nil
}

func readRecord(dir string) (record, error) {
	var rec record
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return rec, fmt.Errorf("%s: %w", dir, ErrNotEnrolled)
	}
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, fmt.Errorf("%s is not readable: %w", filepath.Join(dir, recordFile), err)
	}
	if rec.Schema != 1 {
		return rec, fmt.Errorf("%s has schema %d, this version knows 1", filepath.Join(dir, recordFile), rec.Schema)
	}
	return rec, checkFileName(rec.Name)
}

func writeRecord(dir string, rec record) error {
	data, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	return pki.WriteFile(filepath.Join(dir, recordFile), append(data, '\n'), 0o600)
}

func readRoots(dir string) (*x509.CertPool, error) {
	data, err := os.ReadFile(filepath.Join(dir, rootFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) { // never fall back to the system's roots
		return nil, fmt.Errorf("%s holds no PEM certificate", filepath.Join(dir, rootFile))
	}
	return pool, nil
}

// ownNames would, as names of a device, overwrite files that are named above.
var ownNames = []string{"ca", "root", strings.TrimSuffix(nextPrefix, ".")}

// checkFileName refuses names that would write elsewhere than into the
// directory: a name may come from the relay.
func checkFileName(name string) error {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r)
	}
	if name == "" || len(name) > 100 || name[0] == '.' || name[0] == '-' || strings.ContainsFunc(name, func(r rune) bool { return !plain(r) }) ||
		slices.Contains(ownNames, name) {
		return fmt.Errorf("%q cannot be the name of a device here: use letters, digits and hyphens", name)
	}
	return nil
}
