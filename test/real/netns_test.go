package real

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// street is three network namespaces in a row: the relay's, a NAT router's,
// and the home's. The router masquerades and holds the firewall.
type street struct {
	t                *testing.T
	relay, nat, home string
}

// streets numbers the namespaces of this process.
var streets atomic.Int32

const (
	relayIP = "10.91.1.1"
	homeIP  = "10.91.2.2"
)

func newStreet(t *testing.T) *street {
	t.Helper()
	slow(t)
	needRoot(t)
	needTools(t, "ip", "nft", "curl")
	id := fmt.Sprintf("sp%d-%d", os.Getpid(), streets.Add(1))
	s := &street{t: t, relay: id + "-r", nat: id + "-n", home: id + "-h"}
	for _, ns := range []string{s.relay, s.nat, s.home} {
		if r := run(t, "", "ip", "netns", "add", ns); r.code != 0 {
			lack(t, "no network namespaces here: %s", r)
		}
		t.Cleanup(func() { run(t, "", "ip", "netns", "del", ns) })
		s.in(ns, "ip", "link", "set", "lo", "up")
	}
	s.cable(s.relay, relayIP, s.nat, "10.91.1.2", "wan")
	s.cable(s.home, homeIP, s.nat, "10.91.2.1", "lan")
	s.in(s.home, "ip", "route", "add", "default", "via", "10.91.2.1")
	s.in(s.nat, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
	s.nft("add table ip nat", "add chain ip nat post { type nat hook postrouting priority 100 ; }",
		"add rule ip nat post oifname wan masquerade",
		"add table ip wall", "add chain ip wall forward { type filter hook forward priority 0 ; }")
	return s
}

// cable joins two namespaces; the router's end gets the name.
func (s *street) cable(a, aIP, b, bIP, name string) {
	s.t.Helper()
	mustRun(s.t, "ip", "-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", b)
	mustRun(s.t, "ip", "-n", a, "addr", "add", aIP+"/24", "dev", "eth0")
	mustRun(s.t, "ip", "-n", b, "addr", "add", bIP+"/24", "dev", name)
	mustRun(s.t, "ip", "-n", a, "link", "set", "eth0", "up")
	mustRun(s.t, "ip", "-n", b, "link", "set", name, "up")
}

func (s *street) in(ns string, args ...string) {
	s.t.Helper()
	mustRun(s.t, append(wrapIn(ns), args...)...)
}

func wrapIn(ns string) []string { return []string{"ip", "netns", "exec", ns} }

func (s *street) nft(rules ...string) {
	s.t.Helper()
	for _, rule := range rules {
		s.in(s.nat, "nft", rule)
	}
}

// drop lets the router lose what matches, such as "meta l4proto udp", in both
// directions and without a word; "" loses everything.
func (s *street) drop(match string) {
	s.t.Helper()
	s.nft(strings.TrimSpace("add rule ip wall forward "+match) + " drop")
}

func (s *street) dropNothing() {
	s.t.Helper()
	s.nft("flush chain ip wall forward")
}

// settle builds a relay at one end and a home with an app at the other. The
// visitors live in the relay's namespace: their way is not what is cut.
func (s *street) settle() (*world, device) {
	t := s.t
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	app := exec.Command("ip", "netns", "exec", s.home, exe)
	app.Env = append(os.Environ(), helperEnv+"=127.0.0.1:8123")
	startCmd(t, "home app", nil, app).waitFor("home app listens", 10*time.Second)

	w := &world{t: t, dir: shortDir(t), listen: relayIP + ":443", http: "off", wrap: wrapIn(s.relay), agents: map[string]*process{}}
	w.startRelay()
	w.saveRoots()
	token := strings.TrimSpace(mustRun(t, binary, "relay", "token", "--data", w.relayDir()))
	w.startAgent("first", wrapIn(s.home), "--expose", "ha=127.0.0.1:8123", token)
	w.waitAgent("first", 30*time.Second, "connected", agentStatus.ready)
	return w, w.device("phone")
}

// visits tries new visits, one after the other, until one succeeds.
func (w *world) visits(d device, limit time.Duration) time.Duration {
	w.t.Helper()
	return eventually(w.t, limit, "a new visit succeeds", func() bool {
		return w.curl(&d, "--max-time", "2", w.url("ha", "/")).stdout == "hello from home\n"
	})
}

// TestUDPBlocked: behind a NAT that has never let UDP through, the home comes
// over TCP.
func TestUDPBlocked(t *testing.T) {
	s := newStreet(t)
	t.Parallel()
	s.drop("meta l4proto udp")
	w, phone := s.settle()
	if got := w.agentStatus("first").transport(); got != "tcp" {
		t.Errorf("connected over %q", got)
	}
	w.get(phone, "ha", "/")
	if st, _ := w.relayStatus(); len(st.Agents) != 1 || len(st.Agents[0].Sessions) != 1 || st.Agents[0].Sessions[0].Transport != "tcp" {
		t.Errorf("the relay says %+v", st.Agents)
	}
	// It answers from the router's address: nothing at home is open.
	r := run(t, "", append(wrapIn(s.relay), "curl", "-sS", "--max-time", "2", "http://"+homeIP+":8123/")...)
	if r.code == 0 {
		t.Error("the home is reached without the tunnel")
	}
}

// TestUDPDroppedMidway: a firewall begins to lose UDP while a download runs.
// New visits succeed over TCP within 15 s; the download ends as an abort; when
// UDP passes again, the home moves back to QUIC and TCP visits go on.
func TestUDPDroppedMidway(t *testing.T) {
	s := newStreet(t)
	t.Parallel()
	w, phone := s.settle()
	if got := w.agentStatus("first").transport(); got != "quic" {
		t.Fatalf("connected over %q", got)
	}
	downloads := map[string]*process{}
	for _, version := range []string{"--http1.1", "--http2"} {
		p := start(t, "download "+version, w.curlArgs(&phone, version, "-N", "--max-time", "100", "-o", w.file("drip"+version), w.url("ha", "/drip"))...)
		downloads[version] = p
	}
	eventually(t, 10*time.Second, "the downloads flow", func() bool {
		for version := range downloads {
			if st, err := os.Stat(w.file("drip" + version)); err != nil || st.Size() < 3000 {
				return false
			}
		}
		return true
	})

	s.drop("meta l4proto udp")
	dropped := time.Now()
	w.visits(phone, 30*time.Second)
	took := time.Since(dropped)
	t.Logf("a new visit succeeded %v after UDP was dropped", took)
	if took > 15*time.Second {
		t.Errorf("a new visit succeeded after %v, want 15 s", took)
	}
	if got := w.agentStatus("first").transport(); got != "tcp" {
		t.Errorf("connected over %q", got)
	}
	for version, p := range downloads {
		if code := p.wait(30 * time.Second); code == 0 {
			t.Errorf("%s: a broken download ended as if it were complete", version)
		}
		t.Logf("%s: the download ended with exit code %d, %v after UDP was dropped", version, p.cmd.ProcessState.ExitCode(), time.Since(dropped))
	}

	s.dropNothing()
	allowed := time.Now()
	stays := start(t, "visit over TCP", w.curlArgs(&phone, "-N", "--max-time", "150", w.url("ha", "/clock"))...)
	stays.waitFor("data: 3", 10*time.Second)
	w.waitAgent("first", 100*time.Second, "back on QUIC", func(st agentStatus) bool { return st.transport() == "quic" })
	t.Logf("back on QUIC %v after UDP was allowed", time.Since(allowed))
	w.get(phone, "ha", "/")
	if !stays.running() {
		t.Error("the move up dropped a visit")
	}
}

// TestFrozen: the path swallows everything. Both ends notice within 15 s, and
// the home is back soon after the path is.
func TestFrozen(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			s := newStreet(t)
			t.Parallel()
			if transport == "tcp" {
				s.drop("meta l4proto udp")
			}
			w, phone := s.settle()
			if got := w.agentStatus("first").transport(); got != transport {
				t.Fatalf("connected over %q", got)
			}
			visit := start(t, "visit", w.curlArgs(&phone, "-N", "--max-time", "100", w.url("ha", "/clock"))...)
			visit.waitFor("data: 3", 10*time.Second)

			s.drop("")
			frozen := time.Now()
			noticed := map[string]func() bool{
				"the agent": func() bool { return w.agentStatus("first").State != "connected" },
				"the relay": func() bool {
					st, ok := w.relayStatus()
					return ok && len(st.Agents) == 1 && !st.Agents[0].Online
				},
				"the visitor": func() bool { return !visit.running() },
			}
			eventually(t, 40*time.Second, "all notice", func() bool {
				for who, sees := range noticed {
					if sees() {
						took := time.Since(frozen)
						t.Logf("%s noticed after %v", who, took)
						if took > 15*time.Second {
							t.Errorf("%s noticed after %v, want 15 s", who, took)
						}
						delete(noticed, who)
					}
				}
				return len(noticed) == 0
			})
			if code := visit.wait(time.Second); code == 0 {
				t.Error("the frozen visit ended as if it were complete")
			}
			r := w.curl(&phone, "--max-time", "5", w.url("ha", "/"))
			if !strings.Contains(r.stdout, "offline since") {
				t.Errorf("want the page that says so: %s", r)
			}
			s.dropNothing()
			t.Logf("back %v after the path was", w.visits(phone, 60*time.Second))
		})
	}
}
