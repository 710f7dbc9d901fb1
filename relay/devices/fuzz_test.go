package devices

import (
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// FuzzDecodeDocument: whatever is read can be written and read again, and
// never has more than one live device.
func FuzzDecodeDocument(f *testing.F) {
	ca := newCA(f)
	var doc document
	doc.Version = documentVersion
	for i := range 2 {
		cert, err := ca.Issue(newPublic(f), pki.Grant{Profile: pki.Device, Name: "x"})
		if err != nil {
			f.Fatal(err)
		}
		r := record{Cert: cert.Raw, Hosts: []string{"*.example.org"}, Created: today, Kind: KindCertificate}
		if i == 0 {
			r.RevokedAt = today.Add(time.Hour)
		}
		doc.Devices = append(doc.Devices, r)
	}
	good, err := doc.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"v":1,"devices":[{}]}`))
	f.Add([]byte(`{"v":1,"devices":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		doc, err := decodeDocument("x", data)
		if err != nil {
			return
		}
		for i, r := range doc.Devices {
			if r.live() && i != len(doc.Devices)-1 {
				t.Error("two live devices of one name")
			}
		}
		again, err := doc.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeDocument("x", again); err != nil {
			t.Errorf("what was read cannot be read again: %v", err)
		}
	})
}
