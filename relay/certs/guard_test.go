package certs

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// Whoever may register a host decides where its name leads: the probes must
// not become a look into the relay's machine and network.
func TestPreflightDialsNothingPrivate(t *testing.T) {
	inside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var dialled atomic.Int64
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := inside.Accept()
			if err != nil {
				return
			}
			dialled.Add(1)
			conn.Close() // the probe ends after this
		}
	})
	defer accepting.Wait()
	defer inside.Close()
	port := inside.Addr().(*net.TCPAddr).Port
	names := &testDNS{addrs: make(map[string][]netip.Addr)}
	a, err := NewACME(ACMEConfig{Dir: filepath.Join(t.TempDir(), "acme"), CA: testCA, Resolver: names, Port80: port, Port443: port})
	if err != nil {
		t.Fatal(err)
	}
	a.http, a.probe.pause = &http.Client{Transport: new(fakeCA)}, time.Millisecond
	for _, addrs := range [][]string{{"127.0.0.1"}, {"::ffff:127.0.0.1"}, {"127.0.0.1", "127.0.0.1"}} {
		names.set(host, addrs...)
		found := a.preflight(t.Context(), host)
		says(t, addrs[0], found.hint, host+" leads to a private address", "public address")
		if found.hold != nil || found.methods != (methods{}) {
			t.Errorf("%s: nothing was seen, and yet: %+v", addrs, found)
		}
		if found.hint != nil && strings.Contains(found.hint.problem, "127.0.0.1") {
			t.Errorf("the address is told: %q", found.hint.problem)
		}
	}
	if n := dialled.Load(); n > 0 {
		t.Errorf("%d connections into this machine", n)
	}
}

// A CA on loopback opens loopback and nothing more; what can be probed is.
func TestPreflightOfSomePrivate(t *testing.T) {
	_, names, a := inFlight(t, `{}`)
	names.set(host, "127.0.0.1", "10.0.0.1")
	found := a.preflight(t.Context(), host)
	says(t, "half private", found.hint, "leads to a private address", "public address")
	if found.hold != nil || found.methods != (methods{}) {
		t.Errorf("%+v", found)
	}
	names.set(host, "127.0.0.3", "169.254.169.254") // silent here: the private one explains more
	says(t, "silent", a.preflight(t.Context(), host).hint, "leads to a private address", "public address")
}

func TestMayDial(t *testing.T) {
	for _, public := range []string{"1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "169.253.1.1", "223.255.255.255", "::ffff:1.1.1.1", "2606:4700::1111", "2a01:4f8::1"} {
		if a := netip.MustParseAddr(public); !(&prober{}).mayDial(a) || !(&prober{loopback: true}).mayDial(a) {
			t.Errorf("%s is public, and not probed", public)
		}
	}
	for _, hidden := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.0.1", "168.63.129.16", "169.254.169.254",
		"172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
		"224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::10.0.0.1",
		"64:ff9b::a00:1", "64:ff9b:1::a00:1", "100::1", "2001::1", "2001:db8::1", "2002:a00:1::1", "3fff::1", "5f00::1",
		"fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo", "2606:4700::1111%lo", "fec0::1", "ff02::1",
	} {
		a := netip.MustParseAddr(hidden)
		if (&prober{}).mayDial(a) {
			t.Errorf("%s is probed", hidden)
		}
		if (&prober{loopback: true}).mayDial(a) != a.Unmap().IsLoopback() {
			t.Errorf("a CA on loopback changes %s", hidden)
		}
	}
	if (&prober{loopback: true}).mayDial(netip.Addr{}) {
		t.Error("no address at all is probed")
	}
	for ca, want := range map[string]bool{
		"https://localhost:14000/dir": true, "http://127.0.0.1/dir": true, "https://[::1]:1/dir": true,
		"https://ca.test/dir": false, "https://10.0.0.1/dir": false, "https://localhost.ca.test/dir": false, "https://127.0.0.1@ca.test/dir": false,
	} {
		if onLoopback(ca) != want {
			t.Errorf("%s on loopback: %v", ca, !want)
		}
	}
}

// What homes are told has no address, no result of a probe, no word of a CA.
func TestPublicTellsNothing(t *testing.T) {
	now := time.Now()
	a, err := NewACME(ACMEConfig{Dir: filepath.Join(t.TempDir(), "acme"), CA: testCA, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	leaf := keep(t, a.config.Dir, "nas.relay.test", now.Add(-time.Hour), now.Add(time.Hour))
	all := []string{host, "nas.relay.test", "ok.relay.test", "*.relay.test"}
	a.SetHosts(all)
	f := &failure{problem: host + " points to 192.0.2.7, where something else than this relay answers", fix: "point it to this machine (198.51.100.9)"}
	for _, name := range all[:2] {
		a.failed(a.hosts[name], f)
	}
	public := func(name string) string {
		for _, st := range a.Status() {
			if strings.Contains(st.Public, "192.") || strings.Contains(st.Public, "198.") || strings.Contains(st.Public, "answers") || strings.Contains(st.Public, "\n") || st.Public != "" && (st.Problem == "" || st.Fix == "") {
				t.Errorf("%+v", st)
			}
			if st.Host == name {
				return st.Public
			}
		}
		t.Errorf("%s has no status", name)
		return ""
	}
	for name, want := range map[string]string{host: "not there yet", "nas.relay.test": "still serves", "ok.relay.test": "", "*.relay.test": "wildcard"} {
		if got := public(name); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	now = leaf.NotAfter.Add(time.Second)
	if got := public("nas.relay.test"); !strings.Contains(got, "expired") {
		t.Errorf("expired: %q", got)
	}
}

// The owner's impatience does not get around the CA's limit.
func TestRetryWaitsForTheCA(t *testing.T) {
	for name, status := range map[string]int{"rate limit": http.StatusTooManyRequests, "overloaded": http.StatusServiceUnavailable} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "acme")
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				refuse := &http.Response{StatusCode: status, Header: http.Header{"Retry-After": {"7200"}}, Body: io.NopCloser(strings.NewReader("busy"))}
				if status == http.StatusTooManyRequests {
					refuse.Body = io.NopCloser(strings.NewReader(`{"type":"urn:ietf:params:acme:error:rateLimited","status":429,"detail":"slow down"}`))
				}
				ca := &fakeCA{refuse: refuse}
				a, _ := virtual(t, dir, ca, nil, host)
				time.Sleep(time.Hour)
				asked := len(ca.times())
				err := a.Retry(host)
				limit, ok := errors.AsType[*LimitError](err)
				if !ok {
					t.Fatalf("Retry: %v", err)
				}
				if d := limit.Until.Sub(begin); d < 2*time.Hour || d > 2*time.Hour+time.Minute || limit.Host != host {
					t.Errorf("%+v, after %v", limit, d)
				}
				if said := err.Error(); !strings.Contains(said, "\n") || !strings.Contains(said, limit.Until.UTC().Format("2006-01-02 15:04 MST")) {
					t.Errorf("%q", said)
				}
				a.SetHosts(nil) // nor does one that comes and goes
				a.SetHosts([]string{host})
				if err := a.Retry(host); err == nil {
					t.Error("a host that came back is retried")
				}
				synctest.Wait()
				if n := len(ca.times()); n != asked {
					t.Errorf("asked %d times more within the limit", n-asked)
				}
				ca.mu.Lock()
				ca.refuse = nil
				ca.mu.Unlock()
				time.Sleep(90 * time.Minute)
				asked = len(ca.times())
				if err := a.Retry(host); err != nil {
					t.Errorf("after the limit: %v", err)
				}
				synctest.Wait()
				if len(ca.times()) == asked {
					t.Error("after the limit Retry asks nobody")
				}
			})
		})
	}
}

// Many new hosts do not spend what the CA gives; renewals are not counted.
func TestBudget(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "acme")
	if err := pki.SecureDir(dir); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		begin, ca := time.Now(), new(fakeCA)
		keep(t, dir, "old.relay.test", begin.Add(-80*day), begin.Add(10*day))
		hosts := []string{"*.relay.test"}
		for i := range 5 {
			hosts = append(hosts, "h"+strconv.Itoa(i)+".relay.test")
		}
		a, _ := virtual(t, dir, ca, func(c *ACMEConfig) { c.NewPerDay = 3 }, hosts...)
		time.Sleep(time.Second)
		waiting := func() (list []string) {
			for _, st := range a.Status() {
				if strings.Contains(st.Problem, "new names") {
					list = append(list, st.Host)
					if st.State != StateFailing || !strings.Contains(st.Fix, st.Next.UTC().Format("2006-01-02 15:04 MST")) || strings.Contains(st.Problem+st.Fix, "\n") {
						t.Errorf("%+v", st)
					}
					if in := st.Next.Sub(begin); in < day || in > day+time.Minute {
						t.Errorf("%s is tried after %v", st.Host, in)
					}
				}
			}
			return list
		}
		late := waiting()
		if n := len(ca.times()); n != 3 || len(late) != 2 {
			t.Fatalf("asked %d times, %q wait", n, late)
		}
		if limit, ok := errors.AsType[*LimitError](a.Retry(late[0])); !ok || limit.Until.Before(begin.Add(day)) {
			t.Errorf("Retry of a host that waits: %v", limit)
		}
		// One that comes back is the same one; one more waits too.
		a.SetHosts(nil)
		a.SetHosts(append(hosts, "old.relay.test", "more.relay.test"))
		time.Sleep(adviceTime + time.Second)
		if n := len(ca.times()); n != 4 || len(waiting()) != 3 {
			t.Errorf("asked %d times with a renewal, %q wait", n, waiting())
		}
		time.Sleep(12 * time.Hour)
		if n := len(ca.times()); n < 10 {
			t.Errorf("asked %d times: what failed is tried again at no cost", n)
		}
		a.SetHosts(append(late, "more.relay.test"))
		time.Sleep(12*time.Hour + time.Minute)
		for _, st := range a.Status() {
			if !strings.Contains(st.Problem, "not today") {
				t.Errorf("a day later: %+v", st)
			}
		}
	})
}

// A restart gives no new budget, and a broken file keeps nobody from starting.
func TestBudgetIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "acme")
	now := time.Now()
	open := func(limit int) *budget {
		t.Helper()
		a, err := NewACME(ACMEConfig{Dir: dir, CA: testCA, NewPerDay: limit, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		return a.budget
	}
	refused := func(b *budget, name string) bool {
		t.Helper()
		full := b.full(name, now)
		until, err := b.take(name, now)
		if err != nil || full.IsZero() != until.IsZero() {
			t.Errorf("%s: %v, %v, %v", name, full, until, err)
		}
		return !until.IsZero()
	}
	b := open(2)
	if refused(b, "a.test") || refused(b, "b.test") || refused(b, "a.test") || !refused(b, "c.test") {
		t.Errorf("%v", b.spent)
	}
	private(t, dir)
	if b = open(2); !refused(b, "c.test") || refused(b, "b.test") {
		t.Errorf("after a restart: %v", b.spent)
	}
	if refused(open(-1), "c.test") {
		t.Error("no limit, and refused")
	}
	now = now.Add(-time.Hour) // a clock that was wrong locks nobody out
	if refused(open(2), "c.test") {
		t.Error("names of the future count")
	}
	now = now.Add(3 * day)
	if b = open(2); refused(b, "d.test") || len(b.spent) != 1 {
		t.Errorf("days later: %v", b.spent)
	}
	path := filepath.Join(dir, budgetFile)
	for _, broken := range []string{"", "{", `{"x":1}`, "[]", "null"} {
		write(t, path, []byte(broken))
		if refused(open(2), "e.test") {
			t.Errorf("%q", broken)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	b = open(1)
	if until, err := b.take("f.test", now); err == nil || !until.IsZero() {
		t.Errorf("cannot be written: %v, %v", until, err)
	}
	if b.full("g.test", now).IsZero() {
		t.Error("what could not be written is not counted")
	}
	if open(0).limit != 100 {
		t.Error("the default is another")
	}
}

// Churn does not make the relay forget whom the CA refused.
func TestRetiredWaitsAreKept(t *testing.T) {
	a, err := NewACME(ACMEConfig{Dir: filepath.Join(t.TempDir(), "acme"), CA: testCA})
	if err != nil {
		t.Fatal(err)
	}
	a.SetHosts([]string{host, "busy.relay.test"})
	a.hosts["busy.relay.test"].busy = true
	a.failed(a.hosts[host], &failure{problem: "p", fix: "f", until: time.Now().Add(time.Hour)})
	had := a.hosts[host]
	for i := range 3 * maxRetired {
		a.SetHosts([]string{"h" + strconv.Itoa(i) + ".relay.test"})
	}
	if len(a.retired) > maxRetired {
		t.Errorf("%d hosts are remembered", len(a.retired))
	}
	if a.retired[host] != had || a.retired["busy.relay.test"] == nil {
		t.Error("a host that has to wait was forgotten")
	}
}
