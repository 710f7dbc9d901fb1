package real

import (
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
)

// leafOf reads a device's certificate.
func leafOf(t *testing.T, d device) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(d.cert, d.key)
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

// TestEndToEndRelaysDevices: a home that lets the relay's devices in learns of a
// revocation at once, goes on with what it has while the relay is away, and takes
// from a relay that was taken over neither another CA nor an older list.
func TestEndToEndRelaysDevices(t *testing.T) {
	slow(t)
	needTools(t, "curl")
	w := newWorld(t)
	lan := freePort(t)
	w.keep("first", "end_to_end: {certs: internal, device_ca: relay, lan: {listen: \""+lan+"\"}}\n", "--transport", "tcp")
	w.expose("first", "vault", startHomeApp(t), "--tls", "agent")
	roots := w.homeRoots("first")
	if got := w.reader("first", "vault"); got != "end to end, but the relay can issue devices" {
		t.Errorf("who can read: %q", got)
	}
	phone, guest := w.device("phone"), w.device("guest")
	url, lanURL := w.url("vault", "/"), "https://"+host("vault")+":"+lan[strings.LastIndex(lan, ":")+1:]+"/"
	comesIn := func(d device, url string) bool {
		return run(t, "", homeCurl(&d, roots, "127.0.0.1", url)...).stdout == "hello from home\n"
	}
	for _, d := range []device{phone, guest} {
		eventually(t, 5*time.Second, d.name+" comes in", func() bool { return comesIn(d, url) })
	}
	visit := start(t, "the guest's visit", homeCurl(&guest, roots, "127.0.0.1", w.url("vault", "/clock"), "-N", "--max-time", "100")...)
	visit.waitFor("data: 3", 10*time.Second)
	atHome := start(t, "the guest's visit at home", homeCurl(&guest, roots, "127.0.0.1", lanURL+"clock", "-N", "--max-time", "100")...)
	atHome.waitFor("data: 3", 10*time.Second)
	w.revoke(guest)
	revoked := time.Now() // the command has returned
	for _, v := range []*process{visit, atHome} {
		if code := v.wait(5 * time.Second); code == 0 {
			t.Errorf("%s ended as if it were complete", v.name)
		}
	}
	if took := time.Since(revoked); took > time.Second {
		t.Errorf("the guest's visits ended %v after the revocation", took)
	}
	kept := w.indoors("first").EndToEnd.List
	if kept == nil || kept.Number == 0 || kept.Devices == 0 || kept.Stale || kept.Problem != "" {
		t.Fatalf("the list that the home keeps: %+v", kept)
	}

	evil, err := pki.NewAuthority("device-ca", nil)
	if err != nil {
		t.Fatal(err)
	}
	deviceCA, err := pki.Open(w.relayDir(), "device-ca", nil)
	if err != nil {
		t.Fatal(err)
	}
	listed := func(certs ...*x509.Certificate) (list []pki.ListedDevice) {
		for _, c := range certs {
			list = append(list, pki.ListedDevice{Key: pki.DeviceKey(c), Name: "x"})
		}
		return list
	}
	sign := func(ca *pki.Authority, number uint64, certs ...*x509.Certificate) []byte {
		now := time.Now().Truncate(time.Second)
		signed, err := ca.SignDeviceList(pki.DeviceList{Number: number, Issued: now, Next: now.Add(time.Hour), Devices: listed(certs...)})
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	evilKey, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	evilLeaf, err := evil.Issue(evilKey.Public(), pki.Grant{Profile: pki.Device, Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := pki.EncodeKey(evilKey)
	if err != nil {
		t.Fatal(err)
	}
	mallory := device{"mallory", filepath.Join(w.dir, "mallory.crt"), filepath.Join(w.dir, "mallory.key")}
	writeFile(t, mallory.cert, string(pki.EncodeCert(evilLeaf)))
	writeFile(t, mallory.key, string(keyPEM))
	h := w.takeOver(nil, func() []protocol.DeviceFrame {
		everybody := []*x509.Certificate{leafOf(t, phone), leafOf(t, guest), evilLeaf}
		real := deviceCA.Cert().Raw
		return []protocol.DeviceFrame{
			{CA: real, List: sign(deviceCA, kept.Number-1, everybody...)},                                 // older
			{CA: real, List: sign(deviceCA, kept.Number, everybody...)},                                   // the same number, another list
			{CA: evil.Cert().Raw, List: sign(evil, kept.Number+100, everybody...)},                        // another CA
			{CA: evil.Cert().Raw, List: sign(evil, kept.Number+100, everybody...), Succession: []byte{0}}, // that nobody signed
			{List: sign(evil, kept.Number+100, everybody...)},
		}
	})
	// Until it comes, and all the time, the home goes on with what it has.
	for _, d := range []device{guest, mallory} {
		if comesIn(d, lanURL) {
			t.Errorf("%s comes in while the relay is away", d.name)
		}
	}
	if !comesIn(phone, lanURL) {
		t.Error("the phone stays outside while the relay is away")
	}
	h.session(w.indoors("first").ID)
	eventually(t, 20*time.Second, "the home has heard of the other CA", func() bool {
		l := w.indoors("first").EndToEnd.List
		return l != nil && l.Problem != "" && l.Pending == fingerprint(evil.Cert().Raw)
	})
	for range 3 { // a refused frame takes a second
		for _, d := range []device{guest, mallory} {
			if comesIn(d, lanURL) {
				t.Errorf("%s comes in by the word of a relay that was taken over", d.name)
			}
		}
		if !comesIn(phone, lanURL) {
			t.Error("the phone stays outside")
		}
	}
	l := w.indoors("first").EndToEnd.List
	if l.Number != kept.Number || l.CA != kept.CA {
		t.Errorf("the home keeps %+v, and kept %+v", l, kept)
	}
	text := mustRun(t, binary, "status", "--data", w.agentDir("first"))
	if !strings.Contains(text, "relay's list of devices") {
		t.Errorf("status does not tell of it:\n%s", text)
	}
}
