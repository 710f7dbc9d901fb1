package devices

import (
	"net/url"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// FuzzDecodeDocument: whatever is read can be written and read again, never
// has more than one live device, and no token with a certificate's rights.
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
	f.Add([]byte(strings.Replace(string(good), `"v":2`, `"v":1`, 1)))
	token := &document{Devices: []record{{
		Kind: KindToken, TokenHost: "t-abc.example.org", Secret: make([]byte, 32), Hosts: []string{"tv.example.org"}, Path: "/api/", Created: today,
	}}}
	f.Add(must(token.encode()))
	f.Add([]byte(`{"v":1,"devices":[{}]}`))
	f.Add([]byte(`{"v":1,"devices":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		doc, err := decodeDocument("x", data)
		if err != nil {
			return
		}
		for _, r := range doc.live() {
			if r.chain() != doc.live()[0].chain() {
				t.Error("two live devices of one name")
			}
		}
		for _, r := range doc.Devices {
			if r.Kind == KindToken && (len(r.Hosts) != 1 || r.Admin) {
				t.Errorf("a token that reaches %v, admin %v", r.Hosts, r.Admin)
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

// FuzzTokenPath: what is taken has no reading but one.
func FuzzTokenPath(f *testing.F) {
	for _, p := range []string{"", "/", "/api/", "/a/../b/", "/%2e/", "//", "/a\\b/", "/a;b/"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if checkTokenPath(p) != nil || p == "" {
			return
		}
		u, err := url.Parse("https://x" + p)
		if err != nil || u.Path != p || u.EscapedPath() != p || path.Clean(p)+"/" != p || u.RawQuery != "" || u.Fragment != "" {
			t.Errorf("the path %q can be read in two ways", p)
		}
	})
}

// FuzzCheckToken: no secret but the right one comes in.
func FuzzCheckToken(f *testing.F) {
	d := open(f, config(f))
	dev, secret, err := d.AddToken(f.Context(), TokenGrant{Name: "tv", Host: "photos"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(dev.TokenHost, secret)
	f.Add(dev.TokenHost, "")
	f.Add("", secret)
	f.Add(dev.TokenHost, strings.ToUpper(secret))
	f.Fuzz(func(t *testing.T, host, s string) {
		got, denial := d.CheckToken(host, s, today)
		if right := host == dev.TokenHost && s == secret; right != (denial == Allowed) || right != (got.ID == dev.ID) {
			t.Errorf("CheckToken(%q, %q) = %+v, %q", host, s, got, denial)
		}
	})
}
