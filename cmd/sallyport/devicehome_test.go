package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/agent"
	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/cmd/sallyport/homeca"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/localsock"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/admin"
)

const homeName = "abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrst.home.test"

// newHomeOwner is a person at the agent's machine: real devices behind a real
// socket, the rest of the agent made up.
func newHomeOwner(t *testing.T) (*owner, agent.Devices) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	h, err := openHomeDevices(agent.HomeDevices{Dir: dir, Own: homeName, Port: ":8443"})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(homeca.Prefix, h.API())
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(control.Status{Domain: "home.test", Services: []control.ServiceStatus{
			{Name: "ha", TLS: protocol.TLSAgent, URL: "https://ha.home.test:8443/"},
			{Name: "nas", TLS: protocol.TLSRelay, URL: "https://nas.home.test:8443/"},
		}})
	})
	l, err := localsock.Listen(dir, control.SocketName)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() {
		srv.Close()
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return &owner{t: t, dir: dir}, h
}

// apply hands a request in as the page does, and returns its words.
func apply(t *testing.T, h agent.Devices, link string) string {
	t.Helper()
	_, code, _ := strings.Cut(link, "#")
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{"code": strings.TrimSpace(code), "csr": csr, "ticket": rand.Text(), "name": "guest"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequest("POST", "https://"+homeName+":8443/api/requests", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	var rec recorder
	h.Site().ServeHTTP(&rec, r)
	var q struct{ State, Words string }
	if err := json.Unmarshal([]byte(rec.body.String()), &q); err != nil || rec.status != http.StatusCreated {
		t.Fatalf("%d %s", rec.status, rec.body.String())
	}
	return q.Words
}

type recorder struct {
	header http.Header
	status int
	body   strings.Builder
}

func (r *recorder) Header() http.Header {
	if r.header == nil {
		r.header = http.Header{}
	}
	return r.header
}
func (r *recorder) WriteHeader(status int)            { r.status = status }
func (r *recorder) Write(p []byte) (n int, err error) { return r.body.Write(p) }

// The whole of a device of the home, as its owner types it.
func TestDeviceAtHome(t *testing.T) {
	o, h := newHomeOwner(t)
	if out, _ := o.must("device list --home"); out != "no devices; add one with: sallyport device add NAME --home --data DIR\n" {
		t.Error(out)
	}
	link, errs := o.must("device add anna --home --hosts ha,nas,gone")
	if !strings.HasPrefix(link, "https://"+homeName+":8443/#") {
		t.Errorf("the link is %q", link)
	}
	for _, want := range []string{
		"then compare the words on its screen and let it in: sallyport device approve anna --home --data DIR\n",
		"undo: sallyport device revoke anna --home --data DIR\n",
		"warning: no service with tls agent is at nas.home.test now; its TLS does not end here",
		"warning: no service with tls agent is at gone.home.test now; it opens nothing",
	} {
		if !strings.Contains(errs, want) {
			t.Errorf("missing %q in\n%s", want, errs)
		}
	}
	if strings.Contains(errs, "at ha.home.test") {
		t.Error(errs)
	}
	words := apply(t, h, link)
	out, _ := o.must("device list --home")
	for _, want := range []string{"  anna, asks for ha,nas,gone\n", "words: " + words + "\n", "sallyport device approve ID --home --data DIR "} {
		if !strings.Contains(out, want) {
			t.Errorf("missing %q in\n%s", want, out)
		}
	}

	// Approving is comparing.
	if code, _, errs := o.types("device approve anna --home"); code != exitUsage || !strings.Contains(errs, "stdin is no terminal") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
	if code, _, errs := o.types("device approve anna --home", "--words", "one two three four five six"); code != exitRefused || !strings.Contains(errs, "somebody stands between") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
	if code, _, errs := o.types("device approve ben --home", "--words", words); code != exitFailed || !strings.Contains(errs, "nobody waits as ben") || !strings.Contains(errs, "device list --home --data DIR") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
	code, out, errs := o.types("device approve anna --home", "--words", strings.ToUpper(words))
	if code != 0 || !strings.Contains(strings.ReplaceAll(out, o.dir, "DIR"), "its words were: "+words+"\nundo: sallyport device revoke anna --home --data DIR\n") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	out, _ = o.must("device set anna --home --hosts ha --until 2h")
	if !strings.Contains(out, "undo: sallyport device set anna --hosts 'ha.home.test,nas.home.test,gone.home.test' --no-until --home --data DIR\n") {
		t.Error(out)
	}
	out, _ = o.must("device revoke anna --home")
	if !strings.Contains(out, "undo: a new certificate, sallyport device add anna --hosts ha.home.test --until ") || !strings.Contains(out, " --home --data DIR\n") || strings.Contains(out, "commands") {
		t.Error(out)
	}
	// Errors of the agent name commands that speak to it.
	if code, _, errs := o.types("device revoke nobody --home"); code != exitFailed || !strings.Contains(errs, "sallyport device list --data DIR --home") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
	o.must("device clock --reset --home")
}

func TestLinksAtHome(t *testing.T) {
	o, h := newHomeOwner(t)
	link, errs := o.must("device add tv --home --no-approve")
	if !strings.Contains(errs, "warning: it opens the home by itself") || strings.Contains(errs, "device approve") {
		t.Error(errs)
	}
	apply(t, h, link)
	if out, _ := o.must("device list --home"); !strings.Contains(out, "tv     ok") {
		t.Error(out)
	}
	o.must("device add void --home")
	out, _ := o.must("device revoke void --home")
	if out != "void does not come in: its link and its request are void\nundo: a new link, sallyport device add void --approve --home --data DIR\n" {
		t.Error(out)
	}
	_, errs = o.must("device add cam --home --approve")
	if strings.Contains(errs, "warning") {
		t.Error(errs)
	}
	out, _ = o.must("device list --home")
	id, _, _ := strings.Cut(strings.Split(out, "\n")[2], " ")
	out, _ = o.must("device withdraw " + id + " --home")
	if !strings.HasSuffix(out, "undo: a new link, sallyport device add cam --approve --home --data DIR\n") {
		t.Error(out)
	}
	// Several of one name are told apart by ID or words.
	var words []string
	for range 2 {
		code, link, errs := o.types("device add --home", "")
		if code != 0 {
			t.Fatal(errs)
		}
		words = append(words, apply(t, h, link))
	}
	if code, _, errs := o.types("device approve guest --home --yes"); code != exitFailed || !strings.Contains(errs, "several requests") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
	if code, out, _ := o.types("device approve guest --home", "--words", words[1]); code != 0 || !strings.Contains(out, words[1]) {
		t.Errorf("exit code %d\n%s", code, out)
	}
	_, errs = o.must("device deny guest --home")
	if errs != "" {
		t.Error(errs)
	}
	o.must("device revoke guest --home")
	_, link, _ = o.types("device add --home", "")
	apply(t, h, link)
	if _, errs = o.must("device approve guest --home --yes"); !strings.Contains(errs, "warning: not compared") {
		t.Error(errs)
	}
}

// Keys that are made at home, or come as a request, need no page.
func TestKeysAtHome(t *testing.T) {
	o, h := newHomeOwner(t)
	dir := t.TempDir()
	_, errs := o.must("device add ipad --home --p12 " + filepath.Join(dir, "ipad.p12"))
	if !strings.Contains(errs, "note: the key was made here and has to travel: carry it by hand") || strings.Contains(errs, "warning") {
		t.Error(errs)
	}
	o.must("device add nas --home --hosts ha --pem " + dir)
	raw, err := os.ReadFile(filepath.Join(dir, "nas.crt"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pki.DecodeCert(raw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: h.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if d, denial := h.Check(cert, "ha.home.test", time.Now()); denial != "" || d.Name != "nas" {
		t.Errorf("%+v %s", d, denial)
	}
	if _, denial := h.Check(cert, "nas.home.test", time.Now()); denial != "not-allowed" {
		t.Error(denial)
	}
}

func TestHomeFlagsThatDoNotFit(t *testing.T) {
	o := newOwner(t, admin.API{}) // no agent is here
	for line, want := range map[string]string{
		"device add x --home --token --hosts a":      "--token does not go with --home",
		"device add x --home --admin":                "--admin does not go with --home",
		"device add x --no-approve":                  "--no-approve goes with --home only",
		"device add x --home --approve --no-approve": "exclude each other",
		"device add x --home --pem . --no-approve":   "--no-approve goes with a link only",
		"device approve x --yes":                     "go with --home only",
		"device approve x --words w":                 "go with --home only",
		"device approve x --words w --yes --home":    "exclude each other",
		"device approve --home":                      "device list --home --data DIR",
		"device set x --home --until 1h --no-until":  "exclude each other",
	} {
		if code, out, errs := o.types(line); code != exitUsage || !strings.Contains(errs, want) || out != "" {
			t.Errorf("%s: exit code %d\n%s%s", line, code, out, errs)
		}
	}
	if code, _, errs := o.types("device add --home --no-approve", ""); code != exitUsage || !strings.Contains(errs, "whoever names himself") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
	if code, _, errs := o.types("device list --home"); code != exitUnreachable || !strings.Contains(errs, "no agent answers at DIR/agent.sock") || !strings.Contains(errs, "sallyport agent up") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
}

// An agent without devices of its own says so.
func TestNoDevicesAtHome(t *testing.T) {
	dir := t.TempDir()
	l, err := localsock.Listen(dir, control.SocketName)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.NotFoundHandler()}
	go srv.Serve(l)
	defer srv.Shutdown(context.Background())
	o := &owner{t: t, dir: dir}
	if code, _, errs := o.types("device list --home"); code != exitUnreachable || !strings.Contains(errs, "keeps no devices of its own") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
}

func TestEnrolsAtHome(t *testing.T) {
	for base, want := range map[string]bool{
		"https://enroll." + homeName:                         true,
		"https://check." + homeName + ":8443":                true,
		"https://enroll.home.test":                           false,
		"https://" + homeName:                                false,
		"https://enroll." + strings.Repeat("a", 51) + ".org": false,
		"": false,
	} {
		if enrolsAtHome(base) != want {
			t.Errorf("%s: %v", base, !want)
		}
	}
}
