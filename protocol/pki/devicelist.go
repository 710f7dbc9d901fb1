package pki

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

// A DeviceList says who may come in at a home that does not hold the CA. It
// lists who may, not who may not: a certificate whose key is not in it is
// refused, though the CA has signed it. Lists are numbered, and a home takes
// none with a lower number than the one that it has.
type DeviceList struct {
	Number  uint64         `json:"number"`  // rises with every list of one CA
	Issued  time.Time      `json:"issued"`  // whole seconds
	Next    time.Time      `json:"next"`    // when the next one is there at the latest; this one stays good without it
	Devices []ListedDevice `json:"devices"` // one for each key, in the order of keys
}

// A ListedDevice is one certified key and what its holder may. After a renewal
// one device has several.
type ListedDevice struct {
	Key     string    `json:"key"`               // SHA-256 of its SubjectPublicKeyInfo, lower-case hex
	Name    string    `json:"name"`              // what the owner calls it
	Hosts   []string  `json:"hosts,omitempty"`   // canonical patterns of where it may go; empty: everywhere
	Until   time.Time `json:"until,omitzero"`    // end of its rights, whole seconds; zero: only its certificate ends
	Revoked bool      `json:"revoked,omitempty"` // listed only so that its holder is told why
}

// A signed list is, in this order:
//
//	24 bytes  "sallyport device list 1\n"
//	 2        length of the signature, big endian
//	 n        signature of the first 24 bytes and the list by the CA's key:
//	          ECDSA (ASN.1) or RSA (PKCS #1 v1.5), with SHA-256
//	 rest     the list: JSON, in the one form that encode gives it
//
// What the CA signs in certificates and revocation lists begins with 0x30, so
// that neither can be taken for the other.
const (
	listFamily  = "sallyport device list "
	listContext = listFamily + "1\n"
)

const (
	// maxDeviceList keeps a signed list, with a CA beside it, within
	// protocol.MaxDeviceFrame, where both are in base64.
	maxDeviceList = 3<<20 - 64<<10
	maxListNumber = 1<<63 - 1 // as much as a store of decimal int64 can count
)

// SignDeviceList signs a list. It may be given in any order; times are cut to
// whole seconds. It refuses a list that OpenDeviceList would, and an Issued
// outside the CA's life, where the clock must be wrong.
func (a *Authority) SignDeviceList(l DeviceList) ([]byte, error) {
	body, err := l.encode()
	if err == nil && (l.Issued.Before(a.cert.NotBefore) || l.Issued.After(a.cert.NotAfter)) {
		err = fmt.Errorf("the CA is not valid at %s", l.Issued.UTC().Format(time.RFC3339))
	}
	if err != nil {
		return nil, fmt.Errorf("sign a list of devices: %w", err)
	}
	sig, err := a.sign(listContext, body)
	if err != nil {
		return nil, fmt.Errorf("sign a list of devices: %w", err)
	}
	signed := make([]byte, 0, len(listContext)+2+len(sig)+len(body))
	signed = append(signed, listContext...)
	signed = binary.BigEndian.AppendUint16(signed, uint16(len(sig)))
	signed = append(append(signed, sig...), body...)
	if len(signed) > maxDeviceList {
		return nil, fmt.Errorf("sign a list of devices: %d devices are too many: the list has %d bytes, at most %d are possible", len(l.Devices), len(signed), maxDeviceList)
	}
	return signed, nil
}

// OpenDeviceList checks a list that ca has signed and reads it. It takes
// exactly what SignDeviceList writes: every other spelling of the same list is
// an error, signed or not.
func OpenDeviceList(ca *x509.Certificate, signed []byte) (DeviceList, error) {
	l, err := openDeviceList(ca, signed)
	if err != nil {
		return DeviceList{}, fmt.Errorf("list of devices: %w", err)
	}
	return l, nil
}

func openDeviceList(ca *x509.Certificate, signed []byte) (l DeviceList, err error) {
	if len(signed) > maxDeviceList {
		return l, fmt.Errorf("%d bytes are too many, at most %d are read", len(signed), maxDeviceList)
	}
	rest, ok := bytes.CutPrefix(signed, []byte(listContext))
	switch {
	case !ok && bytes.HasPrefix(signed, []byte(listFamily)):
		return l, errors.New("it has another version than this sallyport knows: use the newer one")
	case !ok || len(rest) < 2:
		return l, errors.New("it is none")
	}
	n := int(binary.BigEndian.Uint16(rest))
	if rest = rest[2:]; len(rest) < n {
		return l, errors.New("it is cut off")
	}
	sig, body := rest[:n], rest[n:]
	if err := verify(ca, sig, listContext, body); err != nil {
		return l, err
	}
	return decodeDeviceList(body)
}

// decodeDeviceList reads what encode writes, and nothing else.
func decodeDeviceList(body []byte) (l DeviceList, err error) {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		return l, fmt.Errorf("it is damaged: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return l, errors.New("it is damaged: there is more than one")
	}
	again, err := l.encode()
	switch {
	case err != nil:
		return l, err
	case !bytes.Equal(again, body): // one that others might read differently
		return l, errors.New("it is not written in the one form that is taken")
	}
	return l, nil
}

// encode checks a list and writes it in its one form.
func (l DeviceList) encode() ([]byte, error) {
	switch l.Issued, l.Next = listTime(l.Issued), listTime(l.Next); {
	case l.Number == 0 || l.Number > maxListNumber:
		return nil, fmt.Errorf("its number %d is not possible", l.Number)
	case l.Issued.Before(Floor()):
		return nil, fmt.Errorf("it was made at %s, which cannot be right", l.Issued.Format(time.RFC3339))
	case !l.Next.After(l.Issued):
		return nil, errors.New("it is out of date when it is made")
	}
	l.Devices = append([]ListedDevice{}, l.Devices...) // never null, and the caller's stays
	slices.SortFunc(l.Devices, func(a, b ListedDevice) int { return cmp.Compare(a.Key, b.Key) })
	for i := range l.Devices {
		d := &l.Devices[i]
		d.Until = listTime(d.Until)
		if err := d.check(); err != nil {
			return nil, fmt.Errorf("device %q: %w", d.Name, err)
		}
		if i > 0 && l.Devices[i-1].Key == d.Key {
			return nil, fmt.Errorf("device %q: its key is listed twice", d.Name)
		}
	}
	return json.Marshal(l)
}

// listTime is a time as lists can say it.
func listTime(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Second)
}

func (d *ListedDevice) check() error {
	if len(d.Key) != 2*sha256.Size || strings.Trim(d.Key, "0123456789abcdef") != "" {
		return errors.New("its key is no SHA-256 in lower-case hex")
	}
	if err := checkCommonName(d.Name); err != nil {
		return err
	}
	for _, p := range d.Hosts {
		if canonical, err := names.ValidPattern(p); err != nil || canonical != p {
			return fmt.Errorf("the host pattern %q is not valid", p)
		}
	}
	return nil
}

// DeviceKey returns the name of a certificate's key in lists.
func DeviceKey(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}
