package homeca

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/cmd/sallyport/machine"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/enroll"
)

// The whole way of a device, through TLS that ends at home: link, page's API,
// words, approval, visit, self-test, renewal, fewer rights, the end.
func TestEnrolVisitRevoke(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	inv, err := w.owner.Invite(ctx, admin.InviteRequest{Name: "anna", Hosts: []string{"ha"}, Approve: true})
	if err != nil {
		t.Fatal(err)
	}
	base, code, _ := strings.Cut(inv.Link, "#")
	if base != w.at(own, "/") || len(code) != 26 || !inv.Approve || inv.SVG == "" {
		t.Fatalf("invited to %+v", inv)
	}
	stranger := w.visitor(nil)
	if status, page := w.get(stranger, base); status != 200 || !strings.Contains(page, "enroll.js") || !strings.Contains(page, "<title>Add this device to "+domain+"</title>") {
		t.Errorf("the page: %d\n%.300s", status, page)
	}
	if links, err := w.owner.Invites(ctx); err != nil || len(links) != 1 || links[0].Name != "anna" || !links[0].Approve || links[0].By != "local" {
		t.Errorf("links that wait: %+v, %v", links, err)
	}

	// Hosts without a certificate have nothing but the page, or nothing.
	if status, _ := w.get(stranger, w.at("ha."+domain, "/")); status != 0 {
		t.Errorf("a require host answers a stranger: %d", status)
	}
	if status, page := w.get(stranger, w.at("nas."+domain, "/")); status != 401 || !strings.Contains(page, "https://enroll."+own+w.port+"/") {
		t.Errorf("an ask host answers a stranger: %d\n%s", status, page)
	}

	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	ticket := rand.Text()
	var q request
	if status := w.post(stranger, base+"api/requests", map[string]any{"code": code, "csr": csr, "ticket": ticket}, &q); status != 201 || q.State != "pending" || q.Cert != nil {
		t.Fatalf("handed in: %d %+v", status, q)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(spki)
	words := enroll.Words(hex.EncodeToString(sum[:]))
	waiting, err := w.owner.Requests(ctx)
	if err != nil || len(waiting) != 1 || waiting[0].Words != words || q.Words != words || waiting[0].Name != "anna" {
		t.Fatalf("waits: %+v, %v; the words are %q", waiting, err, words)
	}
	if warn := w.home.Warnings(); len(warn) != 1 || !strings.Contains(warn[0], "sallyport device list --home") {
		t.Errorf("warnings %q", warn)
	}
	if got, err := w.owner.Approve(ctx, waiting[0].ID); err != nil || got.State != "issued" {
		t.Fatalf("approved: %+v, %v", got, err)
	}
	if q = w.ask(q.ID, ticket); q.State != "issued" || len(q.CA) != 1 || !bytes.Equal(q.CA[0], w.home.CA().Raw) {
		t.Fatalf("after the approval: %+v", q)
	}
	cert := q.certificate(t, key)
	anna := w.visitor(cert)
	if status, body := w.get(anna, w.at("ha."+domain, "/")); status != 200 || body != "hello anna" {
		t.Errorf("a visit: %d %s", status, body)
	}
	if status, body := w.get(anna, w.at("nas."+domain, "/")); status != 401 || !strings.Contains(body, "may not open this page") {
		t.Errorf("where it may not: %d\n%s", status, body)
	}
	status, page := w.get(anna, w.at("check."+own, "/"))
	if status != 200 || !strings.Contains(page, "Certificate seen: anna") || !strings.Contains(page, "https://ha."+domain+w.port+"/") || strings.Contains(page, "https://nas.") {
		t.Errorf("the self-test: %d\n%s", status, page)
	}

	// Renewed, both certificates work; other rights hold at once for both.
	next, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if csr, err = pki.NewCSR(next); err != nil {
		t.Fatal(err)
	}
	var renewed request
	if status := w.post(anna, w.at("check."+own, "/api/renew"), map[string]any{"csr": csr}, &renewed); status != 201 {
		t.Fatalf("renewed: %d", status)
	}
	anna2 := w.visitor(renewed.certificate(t, next))
	if _, err := w.owner.ChangeDevice(ctx, "anna", admin.DeviceChange{Hosts: &[]string{"nas." + domain}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*http.Client{anna, anna2} {
		if status, _ := w.get(c, w.at("ha."+domain, "/")); status == 200 {
			t.Error("rights that were taken hold on")
		}
		if status, body := w.get(c, w.at("nas."+domain, "/")); status != 200 || body != "hello anna" {
			t.Errorf("with new rights: %d %s", status, body)
		}
	}
	if d, err := w.owner.RevokeDevice(ctx, "anna"); err != nil || !d.Revoked {
		t.Fatalf("revoked: %+v, %v", d, err)
	}
	for _, c := range []*http.Client{anna, anna2} {
		if status, body := w.get(c, w.at("nas."+domain, "/")); status != 401 || !strings.Contains(body, "was removed") {
			t.Errorf("after the end: %d\n%.200s", status, body)
		}
	}
	w.mu.Lock()
	lost := slices.Clone(w.lost)
	w.mu.Unlock()
	for _, d := range w.home.devices.List() {
		if !slices.Contains(lost, d.ID) {
			t.Errorf("nobody was told that %s lost its rights", d.ID)
		}
	}
	if log := w.log.String(); strings.Contains(log, code) || strings.Contains(log, ticket) || !strings.Contains(log, "device.revoked") {
		t.Errorf("the log:\n%s", log)
	}
}

// ask returns a request as its applicant sees it.
func (w *world) ask(id, ticket string) (q request) {
	w.t.Helper()
	r, err := http.NewRequest("GET", w.at(own, "/api/requests/"+id), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+ticket)
	res, err := w.visitor(nil).Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	decode(w.t, data, &q)
	return q
}

// A computer enrols with the link of a home as with a relay's, and renews.
func TestMachine(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	inv, err := w.owner.Invite(ctx, admin.InviteRequest{Name: "nas", Approve: true})
	if err != nil {
		t.Fatal(err)
	}
	base, code, err := machine.ParseRelay(inv.Link)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 1)
	type result struct {
		d   *machine.Device
		err error
	}
	done := make(chan result, 1)
	go func() {
		d, err := machine.Enrol(ctx, machine.Enrolment{
			Dir: t.TempDir(), Relay: base, Address: w.addr, Code: code, Root: w.root(), Words: enroll.Words,
			Waiting: func(_, words string) { asked <- words },
		})
		done <- result{d, err}
	}()
	var words string
	select {
	case words = <-asked:
	case r := <-done:
		t.Fatalf("it did not wait: %v", r.err)
	}
	q, err := w.owner.Requests(ctx)
	if err != nil || len(q) != 1 || q[0].Words != words || q[0].Via != "cli" {
		t.Fatalf("waits: %+v, %v", q, err)
	}
	if _, err := w.owner.Approve(ctx, "nas"); err != nil {
		t.Fatal(err)
	}
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	before := r.d.Cert
	cert := r.d.TLS()
	if status, body := w.get(w.visitor(&cert), w.at("ha."+domain, "/")); status != 200 || body != "hello nas" {
		t.Errorf("a visit: %d %s", status, body)
	}
	if err := r.d.Renew(ctx); err != nil {
		t.Fatal(err)
	}
	if cert = r.d.TLS(); r.d.Cert.Equal(before) {
		t.Error("not renewed")
	}
	if status, _ := w.get(w.visitor(&cert), w.at("ha."+domain, "/")); status != 200 {
		t.Errorf("with the next certificate: %d", status)
	}
}

// Without approval whoever opens the link first comes in; but not when the
// owner did not name the device.
func TestApproval(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	for _, c := range []struct {
		invite admin.InviteRequest
		state  string
	}{
		{admin.InviteRequest{Name: "quick"}, "issued"},
		{admin.InviteRequest{Name: "slow", Approve: true}, "pending"},
		{admin.InviteRequest{}, "pending"},
	} {
		inv, err := w.owner.Invite(ctx, c.invite)
		if err != nil {
			t.Fatal(err)
		}
		_, code, _ := strings.Cut(inv.Link, "#")
		_, csr := newCSR(t)
		var q request
		in := map[string]any{"code": code, "csr": csr, "ticket": rand.Text(), "name": "wished"}
		if status := w.post(w.visitor(nil), w.at(own, "/api/requests"), in, &q); status != 201 || q.State != c.state {
			t.Errorf("%+v: %d %+v", c.invite, status, q)
		}
		// The link works once.
		_, csr = newCSR(t)
		in["csr"], in["ticket"] = csr, rand.Text()
		if status := w.post(w.visitor(nil), w.at(own, "/api/requests"), in, &q); status != 403 {
			t.Errorf("the link of %+v works twice: %d", c.invite, status)
		}
	}
	// Nobody comes in without a code.
	_, csr := newCSR(t)
	var q request
	if status := w.post(w.visitor(nil), w.at(own, "/api/requests"), map[string]any{"csr": csr, "ticket": rand.Text(), "name": "x"}, &q); status != 403 {
		t.Errorf("without a code: %d", status)
	}
}

// What another CA signed is unknown here, and be it the relay's, with the name
// and the key of a device.
func TestOtherCA(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	key, csr := newCSR(t)
	if _, err := w.owner.AddDevice(ctx, admin.DeviceRequest{Name: "anna", CSR: csr}); err != nil {
		t.Fatal(err)
	}
	relay, err := pki.NewAuthority("device-ca", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, ca := range map[string]*pki.Authority{"of the relay's CA": relay, "signed and not recorded": w.home.ca} {
		leaf, err := ca.Issue(key.Public(), pki.Grant{Profile: pki.Device, Name: "anna", NotAfter: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		cert := request{Cert: leaf.Raw}.certificate(t, key)
		if status, _ := w.get(w.visitor(cert), w.at("ha."+domain, "/")); status != 0 {
			t.Errorf("%s: %d", name, status)
		}
		if status, _ := w.get(w.visitor(cert), w.at("nas."+domain, "/")); status != 401 {
			t.Errorf("%s: %d", name, status)
		}
		if status, _ := w.get(w.visitor(cert), w.at("check."+own, "/")); status != 401 {
			t.Errorf("%s at the self-test: %d", name, status)
		}
	}
}

// Apple's way: a profile that leads to SCEP at home, whose key is made when it
// is asked for.
func TestProfileAndSCEP(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	if _, err := os.Stat(filepath.Join(w.dir, "scep.key")); err == nil {
		t.Error("an RSA key is made for nobody")
	}
	inv, err := w.owner.Invite(ctx, admin.InviteRequest{Name: "ipad", Approve: true})
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(inv.Link, "#")
	res, err := w.visitor(nil).PostForm(w.at(own, "/profile"), url.Values{"code": {code}})
	if err != nil {
		t.Fatal(err)
	}
	file, err := io.ReadAll(res.Body)
	res.Body.Close()
	for _, want := range []string{w.at(own, "/scep"), w.at("check."+own, "/"), code, "ipad"} {
		if err != nil || !bytes.Contains(file, []byte(want)) {
			t.Errorf("the profile lacks %q: %v", want, err)
		}
	}
	if bytes.HasPrefix(file, []byte("<?xml")) {
		t.Error("the profile is not signed")
	}
	status, body := w.get(w.visitor(nil), w.at(own, "/scep?operation=GetCACert"))
	if status != 200 || !strings.Contains(body, string(w.home.CA().RawSubjectPublicKeyInfo)) {
		t.Errorf("SCEP: %d, %d bytes", status, len(body))
	}
	if st, err := os.Stat(filepath.Join(w.dir, "scep.key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the key of SCEP: %v", err)
	}
	if status, body := w.get(w.visitor(nil), w.at("enroll."+own, "/.well-known/est/cacerts")); status != 200 || body == "" {
		t.Errorf("EST: %d", status)
	}
}

// What was said before a restart holds after it.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	open := func() *Home {
		h, err := Open(Config{Dir: dir, Own: own})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	h := open()
	ca := h.CA()
	ctx := context.Background()
	var certs []*x509.Certificate
	for _, name := range []string{"anna", "ben"} {
		_, csr := newCSR(t)
		issued, err := h.addDevice(ctx, admin.DeviceRequest{Name: name, CSR: csr, Hosts: []string{"ha"}})
		if err != nil || issued.Device.Hosts[0] != "ha."+domain {
			t.Fatalf("%+v, %v", issued.Device, err)
		}
		cert, err := x509.ParseCertificate(issued.Cert)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, cert)
	}
	if _, err := h.revokeDevice(ctx, "ben"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir, Own: own}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = open()
	defer h.Close()
	if !h.CA().Equal(ca) {
		t.Error("another CA")
	}
	for _, c := range []struct {
		cert *x509.Certificate
		host string
		want string
	}{
		{certs[0], "ha." + domain, ""},
		{certs[0], "nas." + domain, "not-allowed"},
		{certs[0], "ha." + own, "not-allowed"},
		{certs[0], "check." + own, ""},
		{certs[0], "check." + domain, "not-allowed"},
		{certs[0], "", "not-allowed"},
		{certs[1], "ha." + domain, "revoked"},
		{certs[1], "check." + own, "revoked"},
		{ca, "check." + own, "unknown"},
		{nil, "check." + own, "unknown"},
	} {
		d, denial := h.Check(c.cert, c.host, time.Now())
		if denial != c.want || denial == "" && d.Name != "anna" {
			t.Errorf("%s: %q for %+v, want %q", c.host, denial, d.Name, c.want)
		}
	}
	for _, name := range []string{"device-ca.key", "devices.db"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A broken CA or store is said, and nothing is made in its place.
func TestBrokenState(t *testing.T) {
	for _, file := range []string{"device-ca.key", "devices.db"} {
		dir := t.TempDir()
		h, err := Open(Config{Dir: dir, Own: own})
		if err != nil {
			t.Fatal(err)
		}
		h.Close()
		if err := os.WriteFile(filepath.Join(dir, file), []byte("broken"), 0o600); err != nil {
			t.Fatal(err)
		}
		if h, err := Open(Config{Dir: dir, Own: own}); err == nil {
			h.Close()
			t.Errorf("%s is broken, and nobody minds", file)
		}
		if data, _ := os.ReadFile(filepath.Join(dir, file)); string(data) != "broken" {
			t.Errorf("%s was replaced", file)
		}
	}
	for _, own := range []string{"", "host", "UPPER.test", "*.x.test"} {
		if _, err := Open(Config{Dir: t.TempDir(), Own: own}); err == nil {
			t.Errorf("own name %q", own)
		}
	}
	if _, err := Open(Config{Own: own}); err == nil {
		t.Error("without a directory")
	}
}
