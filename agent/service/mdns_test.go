package service

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	addr4 = netip.MustParseAddr("192.168.1.5")
	addr6 = netip.MustParseAddr("fd00::5")
)

// fakeMDNS answers each family after a delay; a negative delay is silence.
func fakeMDNS(after4, after6 time.Duration) (m *MDNS, queries *atomic.Int32) {
	m, queries = NewMDNS(), new(atomic.Int32)
	m.query = func(ctx context.Context, name, network string) (netip.Addr, error) {
		queries.Add(1)
		delay, addr := after4, addr4
		if network == "udp6" {
			delay, addr = after6, addr6
		}
		if delay < 0 {
			<-ctx.Done()
			return netip.Addr{}, errors.New("nobody answered")
		}
		select {
		case <-time.After(delay):
			return addr, nil
		case <-ctx.Done():
			return netip.Addr{}, ctx.Err()
		}
	}
	return m, queries
}

func TestMDNSChoice(t *testing.T) {
	const silent = -1
	for _, tc := range []struct {
		name           string
		after4, after6 time.Duration
		want           netip.Addr
		took           time.Duration
	}{
		{"IPv4 first", time.Millisecond, 5 * time.Millisecond, addr4, time.Millisecond},
		{"IPv6 first, IPv4 soon", 100 * time.Millisecond, time.Millisecond, addr4, 100 * time.Millisecond},
		{"IPv6 first, IPv4 late", time.Second, time.Millisecond, addr6, time.Millisecond + mdnsPrefer4},
		{"IPv6 only", silent, time.Millisecond, addr6, time.Millisecond + mdnsPrefer4},
		{"IPv4 only", time.Second, silent, addr4, time.Second},
		{"nobody", silent, silent, netip.Addr{}, mdnsTimeout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, _ := fakeMDNS(tc.after4, tc.after6)
				start := time.Now()
				got, err := m.LookupLocal(t.Context(), "lamp.local")
				if got != tc.want || (err == nil) != tc.want.IsValid() || time.Since(start) != tc.took {
					t.Errorf("got %v, %v after %v; want %v after %v", got, err, time.Since(start), tc.want, tc.took)
				}
			})
		})
	}
}

func TestMDNSRemembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, queries := fakeMDNS(time.Millisecond, time.Millisecond)
		lookup := func(want int32) {
			t.Helper()
			if _, err := m.LookupLocal(t.Context(), "lamp.local"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if queries.Load() != want {
				t.Errorf("%d questions, want %d", queries.Load(), want)
			}
		}
		for range 10 { // together: one question for each family
			go m.LookupLocal(t.Context(), "lamp.local")
		}
		lookup(2)
		lookup(2)
		time.Sleep(mdnsRemember)
		lookup(4)
		m.Forget("lamp.local")
		lookup(6)
	})
}

// A caller that leaves does not spoil the lookup for the others.
func TestMDNSCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := fakeMDNS(time.Second, -1)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := m.LookupLocal(ctx, "lamp.local"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 100*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if got, err := m.LookupLocal(t.Context(), "lamp.local"); got != addr4 || time.Since(start) != time.Second {
			t.Errorf("%v, %v after %v", got, err, time.Since(start))
		}
	})
}
