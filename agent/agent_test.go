package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/agent/service"
	"github.com/sallyport/sallyport/agent/uplink"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// home is a backend: it answers every line with the same line, and the end
// with an end.
func home(context.Context, string, string) (net.Conn, error) {
	near, far := tunneltest.MemConn()
	go func() {
		defer far.Close()
		io.Copy(far, far)
	}()
	return near, nil
}

func entry(name string) service.Entry {
	return service.Entry{Name: name, Target: "tcp://127.0.0.1:7", Origin: service.OriginConfig}
}

// world is a relay and the configuration of an agent, in a bubble.
func world(t *testing.T, f func(t *testing.T, r *fakeRelay, cfg Config)) {
	tunneltest.Bubble(t, func(t *testing.T) {
		r := newFakeRelay(t)
		cfg := testConfig(t, r)
		cfg.DialService = home
		cfg.Services = []service.Entry{entry("echo")}
		t.Cleanup(r.wg.Wait)
		f(t, r, cfg)
	})
}

func exchange(t *testing.T, s tunnel.Stream, text string) {
	t.Helper()
	if _, err := io.WriteString(s, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != text {
		t.Fatalf("echo of %q: %q, %v", text, got, err)
	}
}

func TestJoinsRegistersAndServes(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		var told [][]protocol.Registration
		cfg.OnRegistered = func(regs []protocol.Registration) { told = append(told, regs) }
		a := start(t, cfg)
		s := r.next()
		if got := r.lists(); !slices.Equal(got, []string{"echo"}) {
			t.Fatalf("registered %v", got)
		}
		if s.hello.Instance == "" || !slices.Equal(s.hello.Versions, []int{1}) || s.hello.Software != "test" {
			t.Errorf("hello %+v", s.hello)
		}
		st := s.visit(t, "echo")
		exchange(t, st, "hello")
		st.CloseWrite()
		if rest, err := io.ReadAll(st); err != nil || len(rest) > 0 {
			t.Errorf("end: %q, %v", rest, err)
		}
		if len(told) != 1 || told[0][0].URL != "https://echo.example.org/" {
			t.Errorf("OnRegistered got %+v", told)
		}
		status := a.Status()
		if status.State != uplink.StateConnected || status.Link == nil || status.Link.Transport != "tcp" || status.Name != "home" ||
			status.Services[0].URL != "https://echo.example.org/" || status.Services[0].Auth != protocol.AuthRequire {
			t.Errorf("status %+v", status)
		}
		if err := a.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		synctest.Wait()
		if err := s.Err(); err == nil || err.(*tunnel.CloseError).Code != protocol.CodeGoingAway {
			t.Errorf("the relay sees %v", err)
		}
	})
}

func TestServiceThatIsNotOfferedIsRefused(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		start(t, cfg)
		s := r.next()
		st, err := s.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		protocol.WriteOpen(st, protocol.Open{Service: "ssh"})
		if res, err := protocol.ReadResult(st); err != nil || res.Code != protocol.CodeUnknownService {
			t.Errorf("%+v, %v", res, err)
		}
	})
}

func TestSecondStartDoesNotJoinAgain(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		first := r.next().hello.Instance
		a.stop()
		start(t, cfg) // with the token: it is ignored
		if again := r.next().hello.Instance; again == first {
			t.Error("the same instance after a restart")
		}
		if len(r.joins) != 1 {
			t.Errorf("%d joins", len(r.joins))
		}
	})
}

func TestTokenOfAMovedRelay(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		r.next()
		a.stop()
		token := r.token()
		token.Relay = "new.test:8443"
		cfg.Token = token.String()
		a = start(t, cfg)
		r.next()
		a.stop()
		if id := storedIdentity(t, cfg.DataDir); id.Relay != "new.test:8443" || len(r.joins) != 1 {
			t.Errorf("relay %s, %d joins", id.Relay, len(r.joins))
		}
	})
}

func TestTokenOfAnotherRelay(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		r.next()
		a.stop()
		cfg.Token = newFakeRelay(t).token().String()
		a = start(t, cfg)
		time.Sleep(time.Second) // virtual
		if err := a.stop(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "--data") {
			t.Errorf("error %v", err)
		}
	})
}

func TestOnlyTheOwnRelayIsTrusted(t *testing.T) {
	for name, spoil := range map[string]func(r, other *fakeRelay){
		"another CA":   func(r, other *fakeRelay) { r.cert = other.cert },
		"another name": func(r, other *fakeRelay) { r.cert = r.named("other.invalid") },
		"a client's certificate": func(r, _ *fakeRelay) {
			key := r.cert.PrivateKey.(*ecdsa.PrivateKey)
			r.cert.Certificate = [][]byte{r.issue(key.Public()).Raw}
		},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
				a := start(t, cfg)
				r.next()
				a.stop()
				spoil(r, newFakeRelay(t))
				a = start(t, cfg)
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if s := a.Status(); s.Link != nil || !strings.Contains(s.Error, "x509") {
					t.Errorf("status %+v", s)
				}
			})
		})
	}
}

func TestNewRefusesBadConfig(t *testing.T) {
	dir := t.TempDir()
	for want, cfg := range map[string]Config{
		"data directory": {},
		"given twice":    {DataDir: dir, Services: []service.Entry{entry("a"), entry("a")}},
		"given twice: b": {DataDir: dir, Services: []service.Entry{entry("b")}, Expose: []service.Entry{entry("b")}},
		"sp1-":           {DataDir: dir, Token: "nonsense"},
		"transport":      {DataDir: dir, TransportNames: []string{"pigeon"}},
		"colour":         {DataDir: dir, Services: []service.Entry{{Name: "a", Target: "colour://x"}}},
	} {
		if _, err := New(cfg); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestRunWithoutTokenSaysWhatToDo(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		cfg.Token = ""
		a := start(t, cfg)
		synctest.Wait()
		if err := a.stop(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "relay token") {
			t.Errorf("error %v", err)
		}
	})
}

func TestNewListWithoutANewSession(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		s := r.next()
		st := s.visit(t, "echo")
		if err := a.SetServices(t.Context(), []service.Entry{entry("echo"), entry("nas")}); err != nil {
			t.Fatal(err)
		}
		if got := r.lists(); !slices.Equal(got, []string{"echo", "nas"}) {
			t.Errorf("registered %v", got)
		}
		exchange(t, st, "still here")
		if len(r.sessions) != 1 {
			t.Errorf("%d sessions", len(r.sessions))
		}
		err := a.SetServices(t.Context(), []service.Entry{entry("echo"), {Name: "bad name", Target: "x"}})
		if !errors.Is(err, ErrConfig) {
			t.Errorf("error %v", err)
		}
		if got := r.lists(); !slices.Equal(got, []string{"echo", "nas"}) {
			t.Errorf("a bad list changed something: %v", got)
		}
	})
}

func TestExpose(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		r.next()
		c := controlled{a.Agent}
		e, err := c.Expose(t.Context(), control.Service{Name: "nas", Target: "tcp://127.0.0.1:9"})
		if err != nil || e.URL != "https://nas.example.org/" {
			t.Fatalf("%+v, %v", e, err)
		}
		if e.Before != nil || e.Replaced != "" {
			t.Errorf("new, but it replaced %q", e.Replaced)
		}
		same := control.Service{Name: "nas", Target: "tcp://127.0.0.1:9"}
		if e, err = c.Expose(t.Context(), same); err != nil || e.Before == nil || *e.Before != same {
			t.Errorf("replaced %+v, %v: without all of it nobody can go back", e.Before, err)
		}
		a.stop()
		a = start(t, cfg)
		r.next()
		if got := r.lists(); !slices.Equal(got, []string{"echo", "nas"}) {
			t.Errorf("after a restart: %v", got)
		}
		c = controlled{a.Agent}
		if err := c.Unexpose(t.Context(), "nas"); err != nil {
			t.Fatal(err)
		}
		if got := r.lists(); !slices.Equal(got, []string{"echo"}) {
			t.Errorf("after unexpose: %v", got)
		}
		if err := c.Unexpose(t.Context(), "nas"); err == nil {
			t.Error("a second unexpose says nothing")
		}
		if err := c.Unexpose(t.Context(), "echo"); err == nil || !strings.Contains(err.Error(), "configuration") {
			t.Errorf("unexpose of a configured service: %v", err)
		}
	})
}

func TestExposeOfTheCommandLineStays(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		plain := cfg
		cfg.Expose = []service.Entry{{Name: "nas", Target: "tcp://127.0.0.1:9"}}
		a := start(t, cfg)
		r.next()
		a.stop()
		a = start(t, plain)
		r.next()
		nas := func() control.ServiceStatus {
			list := a.Status().Services
			i := slices.IndexFunc(list, func(s control.ServiceStatus) bool { return s.Name == "nas" })
			if i < 0 {
				t.Fatalf("not offered: %+v", list)
			}
			return list[i]
		}
		if s := nas(); s.Origin != service.OriginExposed || s.URL == "" || s.Target != "tcp://127.0.0.1:9" {
			t.Errorf("after a plain restart: %+v", s)
		}
		a.stop()
		cfg.Expose[0].Target = "tcp://127.0.0.1:10"
		a = start(t, cfg)
		r.next()
		if s := nas(); s.Target != "tcp://127.0.0.1:10" {
			t.Errorf("not replaced: %+v", s)
		}
		if err := (controlled{a.Agent}).Unexpose(t.Context(), "nas"); err != nil {
			t.Fatal(err)
		}
		a.stop()
		a = start(t, plain)
		r.next()
		if got := r.lists(); !slices.Equal(got, []string{"echo"}) {
			t.Errorf("after unexpose: %v", got)
		}
	})
}

func TestEmptyOfferIsTold(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		told := 0
		cfg.Services = nil
		cfg.OnRegistered = func(regs []protocol.Registration) { told += 1 + 10*len(regs) }
		start(t, cfg)
		r.next()
		if synctest.Wait(); told != 1 {
			t.Errorf("told %d", told)
		}
	})
}

func TestWarningOfTheRelay(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		r.warning = "no certificate for it"
		a := start(t, cfg)
		r.next()
		c := controlled{a.Agent}
		for _, replaced := range []string{"", "tcp://127.0.0.1:9"} {
			e, err := c.Expose(t.Context(), control.Service{Name: "nas", Target: "tcp://127.0.0.1:9"})
			if err != nil || e.Warning != r.warning || e.Replaced != replaced {
				t.Errorf("%+v, %v", e, err)
			}
		}
		for _, s := range a.Status().Services {
			if s.Warning != r.warning || s.URL == "" {
				t.Errorf("status %+v", s)
			}
		}
	})
}

func TestExposeRefusedIsNotKept(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		r.refuse["www"] = "the name is reserved"
		a := start(t, cfg)
		r.next()
		_, err := controlled{a.Agent}.Expose(t.Context(), control.Service{Name: "www", Target: "tcp://127.0.0.1:9"})
		if e, ok := errors.AsType[*control.Error](err); !ok || e.Kind != control.KindRefused || !strings.Contains(e.Text, "reserved") {
			t.Errorf("error %v", err)
		}
		if got := r.lists(); !slices.Equal(got, []string{"echo"}) {
			t.Errorf("still registered: %v", got)
		}
		for _, bad := range []control.Service{{Name: "x", Target: "colour://"}, {Name: "echo", Target: "127.0.0.1:1"}, {}} {
			_, err := controlled{a.Agent}.Expose(t.Context(), bad)
			if e, ok := errors.AsType[*control.Error](err); !ok || e.Kind != control.KindInvalid {
				t.Errorf("%+v: %v", bad, err)
			}
		}
		var kept []control.Service
		if err := a.dir.LoadServices(&kept); err != nil || len(kept) != 0 {
			t.Errorf("kept %+v, %v", kept, err)
		}
	})
}

func TestRefusedReplacementBringsTheFormerServiceBack(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		r.next()
		c := controlled{a.Agent}
		if _, err := c.Expose(t.Context(), control.Service{Name: "nas", Target: "tcp://127.0.0.1:9"}); err != nil {
			t.Fatal(err)
		}
		r.set(func() { r.refuse["nas"] = "no" })
		if _, err := c.Expose(t.Context(), control.Service{Name: "nas", Target: "tcp://127.0.0.1:10", Host: "x.example.org"}); err == nil {
			t.Fatal("not refused")
		}
		i := slices.IndexFunc(a.Status().Services, func(s control.ServiceStatus) bool { return s.Name == "nas" })
		if i < 0 || a.Status().Services[i].Target != "tcp://127.0.0.1:9" {
			t.Errorf("services %+v", a.Status().Services)
		}
	})
}

func TestExposeWhileTheRelayIsAway(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		s := r.next()
		r.set(func() { r.down = errDown })
		s.Close(protocol.CodeInternal, "")
		begin := time.Now()
		e, err := controlled{a.Agent}.Expose(t.Context(), control.Service{Name: "nas", Target: "tcp://127.0.0.1:9"})
		if err != nil || e.URL != "" || time.Since(begin) != answerWait {
			t.Errorf("%+v, %v after %v", e, err, time.Since(begin))
		}
		r.set(func() { r.down = nil })
		r.next()
		if got := r.lists(); !slices.Equal(got, []string{"echo", "nas"}) {
			t.Errorf("registered %v", got)
		}
	})
}

func TestConfiguredServiceHidesAnExposedOne(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		r.next()
		if _, err := (controlled{a.Agent}).Expose(t.Context(), control.Service{Name: "nas", Target: "tcp://127.0.0.1:9"}); err != nil {
			t.Fatal(err)
		}
		a.stop()
		cfg.Services = append(cfg.Services, entry("nas"))
		a = start(t, cfg)
		r.next()
		for _, s := range a.Status().Services {
			if s.Origin != service.OriginConfig {
				t.Errorf("service %+v", s)
			}
		}
		if got := r.lists(); !slices.Equal(got, []string{"echo", "nas"}) {
			t.Errorf("registered %v", got)
		}
	})
}

func TestControlSocket(t *testing.T) {
	r := newFakeRelay(t)
	r.down = errDown
	cfg := testConfig(t, r)
	cfg.ListenControl = nil
	a := start(t, cfg)
	c := control.NewClient(cfg.DataDir)
	var s control.Status
	for deadline := time.Now().Add(10 * time.Second); ; {
		var err error
		if s, err = c.Status(t.Context()); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if s.State != "joining" || s.Relay != "relay.test:443" {
		t.Errorf("status %+v", s)
	}
	if err := a.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if left, _ := os.ReadDir(cfg.DataDir); slices.ContainsFunc(left, func(e os.DirEntry) bool { return e.Name() == control.SocketName }) {
		t.Error("the socket is left")
	}
}

func TestCorruptDirectoryIsAConfigError(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		r.next()
		a.stop()
		if err := os.WriteFile(cfg.DataDir+"/identity.json", bytes.Repeat([]byte("x"), 100), 0o600); err != nil {
			t.Fatal(err)
		}
		a = start(t, cfg)
		synctest.Wait()
		if err := a.stop(); !errors.Is(err, ErrConfig) {
			t.Errorf("error %v", err)
		}
	})
}
