package control

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type fakeAgent struct {
	exposed   Service
	unexposed string
	said      string
	err       error
	devices   http.Handler
}

func (f *fakeAgent) Expose(_ context.Context, s Service) (Exposed, error) {
	f.exposed = s
	return Exposed{Name: s.Name, URL: "https://ha.example.org/"}, f.err
}

func (f *fakeAgent) Unexpose(_ context.Context, name string) error {
	f.unexposed = name
	return f.err
}

func (f *fakeAgent) Status() Status {
	return Status{Schema: Schema, State: "connected", Link: &Link{Transport: "quic"}, Services: []ServiceStatus{{Name: "ha"}}}
}

func (f *fakeAgent) Keys(context.Context) ([]Key, error) {
	return []Key{{ID: "k1", Device: "anna", Words: "acorn oak"}}, f.err
}

func (f *fakeAgent) Trust(_ context.Context, device, id string) error {
	f.said = "trust " + device + " " + id
	return f.err
}

func (f *fakeAgent) Untrust(_ context.Context, device string) error {
	f.said = "untrust " + device
	return f.err
}

func (f *fakeAgent) SetPIN(_ context.Context, action, pin string) error {
	f.said = "pin " + action + " " + pin
	return f.err
}

func (f *fakeAgent) Found(context.Context) ([]Suggestion, error) {
	return []Suggestion{{Name: "lamp", YAML: "- name: lamp"}}, f.err
}

func (f *fakeAgent) ConfirmCA(_ context.Context, fingerprint string) error {
	f.said = "confirm " + fingerprint
	return f.err
}

func (f *fakeAgent) Devices() http.Handler { return f.devices }

func start(t *testing.T, dir string, a Agent) {
	t.Helper()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, a, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Lstat(filepath.Join(dir, SocketName)); err == nil {
			t.Error("the socket was left behind")
		}
	})
}

func TestCalls(t *testing.T) {
	dir := t.TempDir()
	a := &fakeAgent{}
	start(t, dir, a)
	info, err := os.Stat(filepath.Join(dir, SocketName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v; want mode 0600", info.Mode(), err)
	}
	c := NewClient(dir)
	want := Service{Name: "ha", Target: "127.0.0.1:8123", Auth: "ask", CAFile: "/x.pem", HTTP2: true}
	e, err := c.Expose(t.Context(), want)
	if err != nil || e.URL != "https://ha.example.org/" || a.exposed != want {
		t.Errorf("expose: %+v, %v; the agent saw %+v", e, err, a.exposed)
	}
	if err := c.Unexpose(t.Context(), "ha"); err != nil || a.unexposed != "ha" {
		t.Errorf("unexpose: %v, %q", err, a.unexposed)
	}
	s, err := c.Status(t.Context())
	if err != nil || s.Schema != 1 || s.Link == nil || s.Link.Transport != "quic" || len(s.Services) != 1 {
		t.Errorf("status: %+v, %v", s, err)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	dir := t.TempDir()
	a := &fakeAgent{err: &Error{Kind: KindRefused, Text: "taken\nuse another name"}}
	start(t, dir, a)
	c := NewClient(dir)
	_, err := c.Expose(t.Context(), Service{Name: "ha"})
	if e, ok := errors.AsType[*Error](err); !ok || e.Kind != KindRefused || e.Text != "taken\nuse another name" {
		t.Errorf("got %#v", err)
	}
	a.err = errors.New("disk full")
	if e, ok := errors.AsType[*Error](c.Unexpose(t.Context(), "x")); !ok || e.Kind != KindInternal {
		t.Errorf("got %#v", e)
	}
}

func TestNotRunning(t *testing.T) {
	dir := t.TempDir()
	if _, err := NewClient(dir).Status(t.Context()); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "agent up") {
		t.Errorf("no socket: %v", err)
	}
	// A socket that a killed agent left behind.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := NewClient(dir).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("stale socket: %v", err)
	}
	start(t, dir, &fakeAgent{}) // it does not keep a new one from starting
	if _, err := NewClient(dir).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("very-long-name/", 12))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(dir)
	if err != nil {
		if strings.Contains(err.Error(), "--data") {
			t.Skip("this system has no way to shorten the path, and says so")
		}
		t.Fatal(err)
	}
	l.Close()
	start(t, dir, &fakeAgent{})
	if _, err := NewClient(dir).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestForeignRequestsAreRefused(t *testing.T) {
	dir := t.TempDir()
	a := &fakeAgent{}
	start(t, dir, a)
	hc := NewClient(dir).http
	const good, unknown = `{"name":"x","target":"127.0.0.1:1"}`, `{"name":"x","target":"127.0.0.1:1","colour":"red"}`
	for _, test := range []struct {
		name, body string
		change     func(*http.Request)
	}{
		{"foreign host", good, func(r *http.Request) { r.Host = "evil.example" }},
		{"web page", good, func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") }},
		{"unknown field", unknown, func(*http.Request) {}},
	} {
		req, err := http.NewRequest("POST", "http://sallyport/v1/expose", strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		test.change(req)
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Errorf("%s: %s", test.name, resp.Status)
		}
	}
	if a.exposed.Name != "" {
		t.Error("a foreign request reached the agent")
	}
}

func TestCommandCalls(t *testing.T) {
	dir := t.TempDir()
	a := &fakeAgent{}
	start(t, dir, a)
	c, ctx := NewClient(dir), t.Context()
	if keys, err := c.Keys(ctx); err != nil || len(keys) != 1 || keys[0].Words != "acorn oak" {
		t.Errorf("Keys: %+v, %v", keys, err)
	}
	if found, err := c.Found(ctx); err != nil || len(found) != 1 || found[0].Name != "lamp" {
		t.Errorf("Found: %+v, %v", found, err)
	}
	for _, call := range []struct {
		want string
		do   func() error
	}{
		{"trust anna k1", func() error { return c.Trust(ctx, "anna", "k1") }},
		{"untrust anna", func() error { return c.Untrust(ctx, "anna") }},
		{"pin garage 1234", func() error { return c.SetPIN(ctx, "garage", "1234") }},
	} {
		if err := call.do(); err != nil || a.said != call.want {
			t.Errorf("%s: said %q, %v", call.want, a.said, err)
		}
	}
	a.err = &Error{Kind: KindRefused, Text: "no such key waits"}
	if err := c.Trust(ctx, "anna", "k2"); err == nil || err.Error() != a.err.Error() {
		t.Errorf("an error on its way: %v", err)
	}
}

// What the socket does not know goes to the devices of the home's own CA, if it
// has one.
func TestDevices(t *testing.T) {
	dir := t.TempDir()
	a := &fakeAgent{}
	start(t, dir, a)
	c := NewClient(dir)
	if err := c.ConfirmCA(t.Context(), "ab12"); err != nil || a.said != "confirm ab12" {
		t.Errorf("%q, %v", a.said, err)
	}
	if err := c.call(t.Context(), http.MethodGet, "home/devices", nil, nil); err == nil {
		t.Error("a home without devices of its own has them")
	}
	a.devices = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.said = r.Method + " " + r.URL.Path
		w.Write([]byte("{}"))
	})
	if err := c.call(t.Context(), http.MethodGet, "home/devices", nil, nil); err != nil || a.said != "GET /v1/home/devices" {
		t.Errorf("%q, %v", a.said, err)
	}
}
