package admin

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

// hinted is an error as the relay's parts make them.
type hinted struct{}

func (hinted) Error() string { return "only the first agent is unrestricted" }
func (hinted) Hint() string  { return "say --hosts" }

var when = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func testAPI() API {
	return API{
		Status: func(context.Context) (Status, error) {
			return Status{Version: "v1", Domain: "example.org", Started: when, Listen: []string{":443"}}, nil
		},
		NewToken: func(_ context.Context, q TokenRequest) (Token, error) {
			if len(q.Hosts) == 0 {
				return Token{}, hinted{}
			}
			return Token{Token: "sp1-x", Expires: when.Add(time.Duration(q.TTL) * time.Second), Hosts: q.Hosts}, nil
		},
		CA: func(context.Context) (CA, error) { return CA{Server: "PEM"}, nil },
		AddDevice: func(_ context.Context, q DeviceRequest) (IssuedDevice, error) {
			return IssuedDevice{Device: Device{Name: q.Name, NotAfter: q.Until}, Cert: q.CSR, CA: []byte("ca")}, nil
		},
		Devices: func(context.Context) ([]Device, error) { return nil, nil },
		RevokeDevice: func(_ context.Context, name string) (Device, error) {
			return Device{}, &Error{Code: CodeNotFound, Message: "no device " + name, Hint: "see: sallyport device list"}
		},
		Agents: func(context.Context) ([]Agent, error) { return []Agent{{Name: "pi"}}, nil },
		RevokeAgent: func(_ context.Context, name string) (Agent, error) {
			return Agent{Name: name, Revoked: true, RevokedAt: when}, nil
		},
		Hosts: func(context.Context) ([]Host, error) { return []Host{{Host: "*.x.example.org", Agent: "pi"}}, nil },
		ReleaseHost: func(_ context.Context, host string) error {
			if host != "*.x.example.org" {
				return errors.New("wrong host " + host)
			}
			return nil
		},
	}
}

// serve runs a relay's admin socket in dir until the test ends.
func serve(t *testing.T, dir string) *Client {
	t.Helper()
	s, err := New(Config{Dir: dir, API: testAPI()})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(filepath.Join(dir, SocketName)); !os.IsNotExist(err) {
			t.Errorf("the socket was left behind: %v", err)
		}
	})
	return NewClient(dir)
}

func same[T any](t *testing.T, got T, err error, want T) {
	t.Helper()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func wantError(t *testing.T, err error, want Error) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != want.Code || !strings.Contains(e.Message, want.Message) || !strings.Contains(e.Hint, want.Hint) {
		t.Errorf("got %#v, want %#v", err, want)
	}
}

func TestClientAndServer(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	c := serve(t, dir)
	info, err := os.Stat(filepath.Join(dir, SocketName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", info.Mode(), err)
	}

	st, err := c.Status(ctx)
	same(t, st, err, Status{Version: "v1", Domain: "example.org", Started: when, Listen: []string{":443"}})
	tok, err := c.NewToken(ctx, TokenRequest{Hosts: []string{"*.a.example.org"}, TTL: 60})
	same(t, tok, err, Token{Token: "sp1-x", Expires: when.Add(time.Minute), Hosts: []string{"*.a.example.org"}})
	_, err = c.NewToken(ctx, TokenRequest{})
	wantError(t, err, Error{Code: CodeRefused, Message: "only the first", Hint: "--hosts"})
	ca, err := c.CA(ctx)
	same(t, ca, err, CA{Server: "PEM"})
	dev, err := c.AddDevice(ctx, DeviceRequest{Name: "anna", CSR: []byte{1, 2}, Until: when})
	same(t, dev, err, IssuedDevice{Device: Device{Name: "anna", NotAfter: when}, Cert: []byte{1, 2}, CA: []byte("ca")})
	devs, err := c.Devices(ctx)
	same(t, devs, err, []Device{})
	_, err = c.RevokeDevice(ctx, "../agents/pi")
	wantError(t, err, Error{Code: CodeNotFound, Message: "no device ../agents/pi", Hint: "device list"})
	agents, err := c.Agents(ctx)
	same(t, agents, err, []Agent{{Name: "pi"}})
	agent, err := c.RevokeAgent(ctx, "pi")
	same(t, agent, err, Agent{Name: "pi", Revoked: true, RevokedAt: when})
	hosts, err := c.Hosts(ctx)
	same(t, hosts, err, []Host{{Host: "*.x.example.org", Agent: "pi"}})
	if err := c.ReleaseHost(ctx, "*.x.example.org"); err != nil {
		t.Error(err)
	}
	wantError(t, c.ReleaseHost(ctx, "other"), Error{Code: CodeInternal, Message: "wrong host other"})
	_, err = c.Reload(ctx)
	wantError(t, err, Error{Code: CodeUnavailable})
	_, err = c.AddDevice(ctx, DeviceRequest{Name: strings.Repeat("x", maxBody)})
	wantError(t, err, Error{Code: CodeBadRequest, Message: "too large"})
}

func TestEveryAnswerHasASchema(t *testing.T) {
	s, err := New(Config{Dir: "x", API: testAPI()})
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []struct{ method, path, want string }{
		{"GET", "/v1/status", `{"schema":1,"version":"v1",`},
		{"GET", "/v1/devices", `{"schema":1,"devices":[]}`},
		{"POST", "/v1/hosts/*.x.example.org/release", `{"schema":1}`},
	} {
		r := httptest.NewRequest(q.method, "http://sallyport"+q.path, strings.NewReader("{}"))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if w.Code != 200 || !strings.HasPrefix(w.Body.String(), q.want) {
			t.Errorf("%s: %d %s", q.path, w.Code, w.Body)
		}
	}
}

func TestGuard(t *testing.T) {
	called := false
	api := testAPI()
	api.NewToken = func(context.Context, TokenRequest) (Token, error) { called = true; return Token{}, nil }
	s, err := New(Config{Dir: "x", API: api})
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		edit func(*http.Request)
		body string
		code int
	}{
		"good":               {body: `{}`, code: 200},
		"rebound host":       {edit: func(r *http.Request) { r.Host = "evil.example" }, body: `{}`, code: 403},
		"host with port":     {edit: func(r *http.Request) { r.Host = "localhost:8080" }, body: `{}`, code: 403},
		"from a page":        {edit: func(r *http.Request) { r.Header.Set("Origin", "http://sallyport") }, body: `{}`, code: 403},
		"from any page":      {edit: func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") }, body: `{}`, code: 403},
		"form":               {edit: func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, body: `{}`, code: 400},
		"misspelt field":     {body: `{"host":["x"]}`, code: 400},
		"two values":         {body: `{}{}`, code: 400},
		"no body":            {body: ``, code: 400},
		"huge body":          {body: `{"hosts":["` + strings.Repeat("x", maxBody) + `"]}`, code: 400},
		"other method":       {edit: func(r *http.Request) { r.Method = "PUT" }, body: `{}`, code: 404},
		"unknown path":       {edit: func(r *http.Request) { r.URL.Path = "/v2/tokens" }, body: `{}`, code: 404},
		"reading a command":  {edit: func(r *http.Request) { r.Method = "GET" }, code: 404},
		"path with dot-dots": {edit: func(r *http.Request) { r.URL.Path = "/v1/x/../tokens" }, body: `{}`, code: 307},
	} {
		t.Run(what, func(t *testing.T) {
			called = false
			r := httptest.NewRequest("POST", "http://sallyport/v1/tokens", strings.NewReader(c.body))
			r.Header.Set("Content-Type", "application/json")
			if c.edit != nil {
				c.edit(r)
			}
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, r)
			if w.Code != c.code || called != (c.code == 200) {
				t.Errorf("%d %s; called: %v", w.Code, w.Body, called)
			}
		})
	}
}

func TestSocketNames(t *testing.T) {
	t.Run("nobody there", func(t *testing.T) {
		_, err := NewClient(t.TempDir()).Status(t.Context())
		wantError(t, err, Error{Code: CodeUnreachable, Message: "no relay answers at", Hint: "relay up"})
	})
	t.Run("long path", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 60))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if runtime.GOOS != "linux" {
			t.Skip("only Linux has a way around the limit; see localsock")
		}
		if st, err := serve(t, dir).Status(t.Context()); err != nil || st.Domain != "example.org" {
			t.Errorf("%+v, %v", st, err)
		}
	})
	t.Run("stale", func(t *testing.T) {
		dir := t.TempDir()
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, SocketName), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close() // as kill -9 leaves it
		if _, err := serve(t, dir).Status(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("taken", func(t *testing.T) {
		dir := t.TempDir()
		c := serve(t, dir)
		second, err := New(Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, second.Run(t.Context()), Error{Code: CodeConflict, Message: "another relay"})
		if _, err := c.Status(t.Context()); err != nil {
			t.Errorf("the first relay lost its socket: %v", err)
		}
	})
	t.Run("not a socket", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, SocketName)
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := New(Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, s.Run(t.Context()), Error{Code: CodeConflict, Message: "not a socket"})
		if data, err := os.ReadFile(path); string(data) != "precious" {
			t.Errorf("the file was harmed: %q, %v", data, err)
		}
	})
	t.Run("hanging relay", func(t *testing.T) {
		dir := t.TempDir()
		l, err := net.Listen("unix", filepath.Join(dir, SocketName))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // accepts nobody
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err = NewClient(dir).Status(ctx)
		wantError(t, err, Error{Code: CodeUnreachable, Message: "did not answer in time"})
	})
	t.Run("something else answers", func(t *testing.T) {
		dir := t.TempDir()
		l, err := net.Listen("unix", filepath.Join(dir, SocketName))
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") })}
		go srv.Serve(l)
		defer srv.Close()
		_, err = NewClient(dir).Status(t.Context())
		wantError(t, err, Error{Code: CodeInternal, Message: "makes no sense"})
	})
}
