package relay

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/relay/store/memstore"
)

func TestBadConfigListsEverything(t *testing.T) {
	ps := Config{Domain: "1.2.3.4", Listen: "nonsense", HTTP: "x", Certs: "acme!", Decoy: "http://x", PublicPort: 70000, Address: "a"}.Check()
	keys := map[string]bool{}
	for _, p := range ps {
		keys[p.Key] = true
		if p.Message == "" {
			t.Errorf("%s: no message", p.Key)
		}
	}
	for _, k := range []string{"data", "domain", "listen", "http", "certs", "decoy", "public_port", "address"} {
		if !keys[k] {
			t.Errorf("no problem found with %s", k)
		}
	}
}

func TestBrokenStateRefusesToStart(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"empty device CA": func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "device-ca.crt"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"missing key": func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "device-ca.key")); err != nil {
				t.Fatal(err)
			}
		},
		"broken tunnel.json": func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "tunnel.json"), []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			kv := memstore.New()
			defer kv.Close()
			conf := Config{DataDir: t.TempDir(), Domain: "example.org", Store: kv, Listen: "127.0.0.1:0", HTTP: "off"}
			r, err := New(conf)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			spoil(t, conf.DataDir)
			if _, err := New(conf); err == nil {
				t.Error("started")
			} else {
				t.Log(err)
			}
		})
	}
}

func TestStateFilesArePrivate(t *testing.T) {
	r := startRelay(t, func(c *Config) { c.Decoy = DecoyPage })
	err := filepath.WalkDir(r.conf.DataDir, func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a socket on its way to its name
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		public := strings.HasSuffix(path, ".crt") || d.IsDir()
		if info.Mode().Perm()&0o077 != 0 && !public {
			t.Errorf("%s has mode %v", filepath.Base(path), info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOwnListenerIsNoDecoy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	kv := memstore.New()
	defer kv.Close()
	r, err := New(Config{
		DataDir: t.TempDir(), Domain: "example.org", Store: kv, Listen: addr, HTTP: "off", Decoy: "tcp://" + addr,
		ListenTCP: func(string) (net.Listener, error) { return l, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Listen(); err == nil {
		r.Close()
		t.Error("the relay took itself as decoy")
	}
}

func TestReloadWholeOrNotAtAll(t *testing.T) {
	r := startRelay(t, nil)
	next := r.conf
	next.Decoy, next.Listen = DecoyPage, "127.0.0.1:1"
	before := r.decoy.Load()
	if err := r.Reload(next); err == nil || !strings.Contains(err.Error(), "listen") {
		t.Errorf("a new listen address was accepted: %v", err)
	}
	if r.decoy.Load() != before {
		t.Error("the decoy changed although the reload was refused")
	}
	next.Listen = r.conf.Listen
	if err := r.Reload(next); err != nil {
		t.Errorf("a new decoy was refused: %v", err)
	}
	if r.decoy.Load() == before {
		t.Error("the decoy did not change")
	}
}

func TestJoinIsRateLimited(t *testing.T) {
	l := newLimiter(3, time.Second)
	now := time.Now()
	for i := range 3 {
		if !l.take(now) {
			t.Fatalf("try %d refused", i)
		}
	}
	if l.take(now) {
		t.Error("a fourth try at once was let through")
	}
	if !l.take(now.Add(time.Second)) {
		t.Error("a try one second later was refused")
	}
}

func TestAgentAddress(t *testing.T) {
	for _, tt := range []struct {
		conf  Config
		bound string
		want  string
	}{
		{Config{Domain: "example.org"}, "[::]:443", "relay.example.org:443"},
		{Config{Domain: "example.org"}, "203.0.113.7:8443", "203.0.113.7:8443"},
		{Config{Domain: "x.localhost"}, "[::]:8443", "127.0.0.1:8443"},
		{Config{Domain: "example.org", Address: "vps.example.net:4443"}, "[::]:443", "vps.example.net:4443"},
	} {
		a, err := net.ResolveTCPAddr("tcp", tt.bound)
		if err != nil {
			t.Fatal(err)
		}
		if got := tt.conf.agentAddress(a); got != tt.want {
			t.Errorf("%+v on %s: got %s, want %s", tt.conf, tt.bound, got, tt.want)
		}
	}
}

// The dashboard's plain port is for this machine alone (DESIGN §6.14).
func TestDashboardOnLoopbackOnly(t *testing.T) {
	problem := func(addr string) bool {
		c := Config{DataDir: "x", Domain: "x.test", AdminListen: addr}
		return slices.ContainsFunc(c.Check(), func(p Problem) bool { return p.Key == "admin_listen" })
	}
	for _, addr := range []string{":9080", "0.0.0.0:9080", "[::]:9080", "192.0.2.1:9080", "nonsense"} {
		if !problem(addr) {
			t.Errorf("%q is accepted", addr)
		}
	}
	for _, addr := range []string{"127.0.0.1:9080", "[::1]:9080", "localhost:9080", ""} {
		if problem(addr) {
			t.Errorf("%q is refused", addr)
		}
	}
}
