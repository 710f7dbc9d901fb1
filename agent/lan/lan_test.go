package lan

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestConfig(t *testing.T) {
	good := Config{Own: own, Serve: func(context.Context, net.Conn) {}}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Config){
		"no door":          func(c *Config) { c.Serve = nil },
		"no name":          func(c *Config) { c.Own = "" },
		"name with case":   func(c *Config) { c.Own = "A.example.org" },
		"no port":          func(c *Config) { c.Listen = "192.168.1.7" },
		"named port":       func(c *Config) { c.Listen = ":https" },
		"large port":       func(c *Config) { c.Listen = ":65536" },
		"host name":        func(c *Config) { c.Listen = "pi.local:8443" },
		"no room":          func(c *Config) { c.MaxConns = 1 },
		"negative room":    func(c *Config) { c.MaxConns = -1 },
		"name with dot":    func(c *Config) { c.Name = "a.b" },
		"too long a name":  func(c *Config) { c.Name = strings.Repeat("x", 64) },
		"name with spaces": func(c *Config) { c.Name = "my home" },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

// The name in the announcement leads nobody to the domain.
func TestInstanceName(t *testing.T) {
	name := newLAN(t, Config{}).cfg.Name
	if name != instanceName(own) || len(name) != len("sallyport-")+8 || name != strings.ToLower(name) {
		t.Errorf("instance %q", name)
	}
	if strings.Contains(name, own[:6]) || name == instanceName("b"+own[1:]) {
		t.Errorf("instance %q tells of %s", name, own)
	}
}

func TestAddressesChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Pointer[[]netip.Addr]
		set := func(texts ...string) {
			as := addrs(texts...)
			now.Store(&as)
		}
		set("192.168.1.7", "fd00::7")
		told := new(changes)
		listener := newFakeListener()
		l := newLAN(t, Config{
			Addrs: func() []netip.Addr { return *now.Load() }, Changed: told.tell,
			ListenTCP: func(string) (net.Listener, error) { return listener, nil },
		})
		if urls := l.URLs(); len(urls) != 0 || l.URL() != "" {
			t.Errorf("before Run: %v", urls)
		}
		stop := start(t, l)
		synctest.Wait()
		first := addrs("192.168.1.7", "fd00::7")
		told.expect(t, first)
		want := []string{"https://192-168-1-7." + own + ":8443", "https://fd00--7." + own + ":8443"}
		if got := l.URLs(); !slices.Equal(got, want) || l.URL() != want[0] {
			t.Errorf("URLs %v, want %v", got, want)
		}
		time.Sleep(10*poll + time.Second) // virtual
		told.expect(t, first)

		set("192.168.1.8")
		time.Sleep(poll - 2*time.Second) // virtual
		synctest.Wait()
		told.expect(t, first)
		time.Sleep(2 * time.Second) // virtual
		synctest.Wait()
		told.expect(t, first, addrs("192.168.1.8"))
		if got := l.URL(); got != "https://192-168-1-8."+own+":8443" {
			t.Errorf("URL %s", got)
		}

		set()
		time.Sleep(poll) // virtual
		synctest.Wait()
		told.expect(t, first, addrs("192.168.1.8"), nil)
		if s := l.Status(); len(s.URLs) != 0 || s.Problem != "" || s.Announced != "" {
			t.Errorf("without addresses: %+v", s)
		}
		stop()
	})
}

// A relay that knew addresses from before must learn that there are none now.
func TestNoAddressesAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := new(changes)
		listener := newFakeListener()
		l := newLAN(t, Config{
			Addrs: func() []netip.Addr { return nil }, Changed: told.tell,
			ListenTCP: func(string) (net.Listener, error) { return listener, nil },
		})
		stop := start(t, l)
		synctest.Wait()
		told.expect(t, nil)
		stop()
	})
}

func TestPortTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := new(changes)
		free := time.Now().Add(5*poll + time.Second)
		listener := newFakeListener()
		var tries int
		l := newLAN(t, Config{
			Listen: "192.168.1.7:8443", Changed: told.tell, Addrs: func() []netip.Addr { return addrs("10.0.0.7", "192.168.1.7") },
			ListenTCP: func(addr string) (net.Listener, error) {
				if tries++; addr != "192.168.1.7:8443" {
					t.Errorf("listening on %s", addr)
				}
				if time.Now().Before(free) {
					return nil, errors.New("address already in use")
				}
				return listener, nil
			},
		})
		stop := start(t, l)
		time.Sleep(4 * poll) // virtual
		synctest.Wait()
		told.expect(t, nil)
		if s := l.Status(); !strings.Contains(s.Problem, "in use") || len(s.URLs) != 0 {
			t.Errorf("status %+v", s)
		}
		time.Sleep(3 * poll) // virtual
		synctest.Wait()
		told.expect(t, nil, addrs("192.168.1.7"))
		if s := l.Status(); s.Problem != "" || len(s.URLs) != 1 || tries != 7 {
			t.Errorf("after %d tries: %+v", tries, s)
		}
		stop()
		if l.URL() != "" {
			t.Error("a URL after the end")
		}
	})
}

// Run ends while the port cannot be opened.
func TestEndWhilePortTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t, Config{ListenTCP: func(string) (net.Listener, error) { return nil, errors.New("no") }})
		stop := start(t, l)
		synctest.Wait()
		stop()
	})
}

func TestPort443(t *testing.T) {
	l := newLAN(t, Config{Listen: ":443"})
	if got := l.urls(&view{port: 443, addrs: addrs("10.0.0.7")}); got[0] != "https://10-0-0-7."+own {
		t.Errorf("URL %s", got[0])
	}
}

// A listener that ends by itself ends Run, so that it is seen.
func TestListenerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := newFakeListener()
		l := newLAN(t, Config{ListenTCP: func(string) (net.Listener, error) { return listener, nil }})
		done := make(chan error, 1)
		go func() { done <- l.Run(t.Context()) }()
		synctest.Wait()
		listener.Close()
		if err := <-done; err == nil {
			t.Error("Run returned nil")
		}
	})
}
