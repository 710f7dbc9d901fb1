package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func keyName(n int) string {
	sum := sha256.Sum256(fmt.Append(nil, n))
	return hex.EncodeToString(sum[:])
}

// someDevices is a list in the order in which it is written.
func someDevices() DeviceList {
	now := day(2027)
	l := DeviceList{Number: 41, Issued: now, Next: now.AddDate(0, 0, 7), Devices: []ListedDevice{
		{Key: strings.Repeat("0a", 32), Name: "anna-phone"},
		{Key: strings.Repeat("1b", 32), Name: "guest <of> ben", Hosts: []string{"ha.example.org", "*.photos.example.org"}, Until: now.Add(time.Hour)},
		{Key: strings.Repeat("2c", 32), Name: "lost", Revoked: true},
	}}
	return l
}

func TestDeviceList(t *testing.T) {
	a := newAuthority(t, day(2027))
	want := someDevices()
	given := someDevices()
	given.Devices[0], given.Devices[2] = given.Devices[2], given.Devices[0]
	given.Issued = given.Issued.Add(time.Millisecond).In(time.FixedZone("here", 3600))
	given.Devices[1].Until = given.Devices[1].Until.Add(time.Microsecond)
	before := given.Devices[0].Key
	signed, err := a.SignDeviceList(given)
	if err != nil {
		t.Fatal(err)
	}
	if given.Devices[0].Key != before {
		t.Error("the caller's list was sorted")
	}
	got, err := OpenDeviceList(a.Cert(), signed)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n got %+v\nwant %+v", err, got, want)
	}
	if _, err := OpenDeviceList(newAuthority(t, day(2027)).Cert(), signed); err == nil {
		t.Error("another CA's list was taken")
	}
	if _, err := OpenDeviceList(nil, signed); err == nil {
		t.Error("nobody's list was taken")
	}
	none, err := a.SignDeviceList(DeviceList{Number: 1, Issued: day(2027), Next: day(2028)})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenDeviceList(a.Cert(), none); err != nil || len(got.Devices) != 0 {
		t.Errorf("an empty list: %+v, %v", got, err)
	}
}

// TestDeviceListOfRSA: an owner's CA may have such a key.
func TestDeviceListOfRSA(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, minRSABits)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := *newAuthority(t, day(2027)).Cert()
	tmpl.SignatureAlgorithm, tmpl.PublicKey = 0, nil
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, &tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := ParseCA(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &Authority{cert: ca, key: key, now: func() time.Time { return day(2027) }}
	signed, err := a.SignDeviceList(someDevices())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDeviceList(ca, signed); err != nil {
		t.Error(err)
	}
	signed[len(signed)-2] ^= 1
	if _, err := OpenDeviceList(ca, signed); err == nil {
		t.Error("a changed list was taken")
	}
}

// TestDeviceListChanged: not one bit of a list can change.
func TestDeviceListChanged(t *testing.T) {
	a := newAuthority(t, day(2027))
	signed, err := a.SignDeviceList(someDevices())
	if err != nil {
		t.Fatal(err)
	}
	for i := range signed {
		changed := bytes.Clone(signed)
		changed[i] ^= 1
		if _, err := OpenDeviceList(a.Cert(), changed); err == nil {
			t.Fatalf("byte %d changed, and taken", i)
		}
	}
	for n := range len(signed) {
		if _, err := OpenDeviceList(a.Cert(), signed[:n]); err == nil {
			t.Fatalf("the first %d bytes were taken", n)
		}
	}
	if _, err := OpenDeviceList(a.Cert(), append(bytes.Clone(signed), '\n')); err == nil {
		t.Error("a list with a tail was taken")
	}
}

// signedBody signs any bytes as if they were a list.
func signedBody(t testing.TB, a *Authority, body []byte) []byte {
	t.Helper()
	sig, err := a.sign(listContext, body)
	if err != nil {
		t.Fatal(err)
	}
	signed := binary.BigEndian.AppendUint16([]byte(listContext), uint16(len(sig)))
	return append(append(signed, sig...), body...)
}

// TestDeviceListIsWrittenOneWay: what two readers could read differently is
// refused though the CA signed it.
func TestDeviceListIsWrittenOneWay(t *testing.T) {
	a := newAuthority(t, day(2027))
	body, err := someDevices().encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDeviceList(a.Cert(), signedBody(t, a, body)); err != nil {
		t.Fatal(err)
	}
	swap := func(old, new string) string {
		if !strings.Contains(string(body), old) {
			t.Fatalf("no %s in %s", old, body)
		}
		return strings.Replace(string(body), old, new, 1)
	}
	for name, body := range map[string]string{
		"nothing":             "",
		"null":                "null",
		"unknown field":       swap(`{"number"`, `{"x":1,"number"`),
		"field twice":         swap(`"name":"lost"`, `"name":"lost","name":"found"`),
		"field in capitals":   swap(`"revoked"`, `"REVOKED"`),
		"white space":         swap(`{"number"`, `{ "number"`),
		"two lists":           string(body) + string(body),
		"null devices":        `{"number":1,"issued":"2027-06-01T12:00:00Z","next":"2027-06-08T12:00:00Z","devices":null}`,
		"other order":         swap("0a0a", "ffff"),
		"key twice":           swap(strings.Repeat("1b", 32), strings.Repeat("0a", 32)),
		"key in capitals":     swap("0a", "0A"),
		"key too short":       swap("0a", ""),
		"no name":             swap("anna-phone", ""),
		"name with a newline": swap("anna-phone", `anna\nphone`),
		"other escapes":       swap(`\u003c`, "<"),
		"host in capitals":    swap("ha.example.org", "HA.example.org"),
		"host is no pattern":  swap("ha.example.org", "h*.example.org"),
		"until in a zone":     swap(`"until":"2027-06-01T13:00:00Z"`, `"until":"2027-06-01T14:00:00+01:00"`),
		"until of never":      swap(`"until":"2027-06-01T13:00:00Z"`, `"until":"0001-01-01T00:00:00Z"`),
		"fraction of seconds": swap(`"issued":"2027-06-01T12:00:00Z"`, `"issued":"2027-06-01T12:00:00.5Z"`),
		"number zero":         swap(`"number":41`, `"number":0`),
		"number too large":    swap(`"number":41`, `"number":9223372036854775808`),
		"number negative":     swap(`"number":41`, `"number":-1`),
		"over at once":        swap(`"next":"2027-06-08`, `"next":"2027-06-01`),
		"before our time":     swap(`"issued":"2027`, `"issued":"1999`),
	} {
		if l, err := OpenDeviceList(a.Cert(), signedBody(t, a, []byte(body))); err == nil {
			t.Errorf("%s: taken as %+v", name, l)
		}
	}
}

func TestSignDeviceListRefuses(t *testing.T) {
	a := newAuthority(t, day(2027))
	for name, change := range map[string]func(*DeviceList){
		"no number":         func(l *DeviceList) { l.Number = 0 },
		"before the CA":     func(l *DeviceList) { l.Issued = day(2026) },
		"after the CA":      func(l *DeviceList) { l.Issued, l.Next = day(2038), day(2039) },
		"over at once":      func(l *DeviceList) { l.Next = l.Issued },
		"no dates":          func(l *DeviceList) { l.Issued, l.Next = time.Time{}, time.Time{} },
		"key twice":         func(l *DeviceList) { l.Devices[1].Key = l.Devices[0].Key },
		"no key":            func(l *DeviceList) { l.Devices[1].Key = "" },
		"host with capital": func(l *DeviceList) { l.Devices[1].Hosts[0] = "Ha.example.org" },
		"year 10000":        func(l *DeviceList) { l.Devices[1].Until = day(10000) },
		"too long": func(l *DeviceList) {
			for n := range 40_000 {
				l.Devices = append(l.Devices, ListedDevice{Key: keyName(n), Name: "x"})
			}
		},
	} {
		l := someDevices()
		change(&l)
		if _, err := a.SignDeviceList(l); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	if _, err := OpenDeviceList(a.Cert(), make([]byte, maxDeviceList+1)); err == nil {
		t.Error("a list that is too long was read")
	}
	newer := signedBody(t, a, nil)
	copy(newer[len(listFamily):], "2")
	if _, err := OpenDeviceList(a.Cert(), newer); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a list of another version: %v", err)
	}
}

// TestDeviceListIsNothingElse: no signature that the CA makes for another
// purpose makes a list.
func TestDeviceListIsNothingElse(t *testing.T) {
	a := newAuthority(t, day(2027))
	next := newAuthority(t, day(2027)).Cert()
	body, _ := someDevices().encode()
	sig, err := a.SignSuccessor(next)
	if err != nil {
		t.Fatal(err)
	}
	forged := binary.BigEndian.AppendUint16([]byte(listContext), uint16(len(sig)))
	if _, err := OpenDeviceList(a.Cert(), append(append(forged, sig...), body...)); err == nil {
		t.Error("the signature of a successor signed a list")
	}
	raw, err := a.sign("", body) // without its context
	if err != nil {
		t.Fatal(err)
	}
	forged = binary.BigEndian.AppendUint16([]byte(listContext), uint16(len(raw)))
	if _, err := OpenDeviceList(a.Cert(), append(append(forged, raw...), body...)); err == nil {
		t.Error("a signature without context signed a list")
	}
	for _, context := range []string{listContext, successorContext} {
		if context[0] == 0x30 {
			t.Errorf("%q begins like a certificate", context)
		}
	}
	if strings.HasPrefix(listContext, successorContext) || strings.HasPrefix(successorContext, listContext) {
		t.Error("one context begins the other")
	}
	if len(listContext) != 24 {
		t.Errorf("the context has %d bytes, the comment says 24", len(listContext))
	}
}

func TestDeviceKey(t *testing.T) {
	a := newAuthority(t, day(2027))
	cert, err := a.Issue(newPublic(t), Grant{Profile: Device, Name: "anna-phone"})
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(cert.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(spki); DeviceKey(cert) != hex.EncodeToString(sum[:]) {
		t.Error("the key's name is not the hash of the key")
	}
}

// FuzzOpenDeviceList: nothing that the CA did not sign is taken, and of what it
// may have signed nothing that is not written again to the same bytes.
func FuzzOpenDeviceList(f *testing.F) {
	a, err := NewAuthority("device", func() time.Time { return day(2027) })
	if err != nil {
		f.Fatal(err)
	}
	body, err := someDevices().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte(`{"number":1,"issued":"2027-06-01T12:00:00Z","next":"2027-06-08T12:00:00Z","devices":[]}`))
	f.Add([]byte(listContext + "\xff\xff{}"))
	f.Add([]byte(listContext + "\x00\x00{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := OpenDeviceList(a.Cert(), data); err == nil {
			t.Error("a list was taken that the CA has not signed")
		}
		l, err := decodeDeviceList(data)
		if err != nil {
			return
		}
		if again, err := l.encode(); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%v: %s became %s", err, data, again)
		}
	})
}
