package real

import (
	"crypto/rand"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// keptHome builds a relay at one end of the street and a home that keeps its
// keys at the other. Visitors live in the relay's namespace or in the home's.
func (s *street) keptHome(relayFlags []string, yaml string, agentFlags ...string) *world {
	s.t.Helper()
	return s.keptHomeIn(wrapIn(s.home), relayFlags, yaml, agentFlags...)
}

// keptHomeIn is keptHome with something more before the agent's command.
func (s *street) keptHomeIn(wrap, relayFlags []string, yaml string, agentFlags ...string) *world {
	t := s.t
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	app := exec.Command("ip", "netns", "exec", s.home, exe)
	app.Env = append(os.Environ(), helperEnv+"=127.0.0.1:8123")
	startCmd(t, "home app", nil, app).waitFor("home app listens", 10*time.Second)
	w := &world{t: t, dir: shortDir(t), listen: relayIP + ":443", http: "off", flags: relayFlags, wrap: wrapIn(s.relay), agents: map[string]*process{}}
	w.startRelay()
	w.saveRoots()
	writeFile(t, w.file("first.yaml"), yaml)
	token := strings.TrimSpace(mustRun(t, binary, "relay", "token", "--data", w.relayDir()))
	w.startAgent("first", wrap, append(append([]string{"--config", w.file("first.yaml")}, agentFlags...), token)...)
	w.waitAgent("first", 30*time.Second, "connected", agentStatus.ready)
	return w
}

// capture records everything that the relay's machine sends and receives, until
// the function that it returns, which gives the file.
func (s *street) capture(w *world) func() string {
	s.t.Helper()
	needTools(s.t, "tcpdump")
	file := w.file("relay.pcap")
	p := start(s.t, "tcpdump", append(wrapIn(s.relay), "tcpdump", "-i", "any", "-U", "--immediate-mode", "-s", "0", "-B", "65536", "-Z", "root", "-w", file)...)
	p.waitFor("listening on", 10*time.Second)
	return func() string {
		s.t.Helper()
		p.signal(syscall.SIGINT)
		p.wait(10 * time.Second)
		if out := p.out.String(); !strings.Contains(out, "\n0 packets dropped by kernel") {
			s.t.Errorf("the capture is not whole:\n%s", out)
		}
		return file
	}
}

func secret() string { return "secret-" + rand.Text() }

// TestEndToEndCapture: whoever listens on the relay's cables, or looks into the
// relay's memory while a visitor is there, reads nothing of a service whose TLS
// ends at home. Of one whose TLS ends at the relay the memory tells.
func TestEndToEndCapture(t *testing.T) {
	needTools(t, "tcpdump", "tshark", "dig", "curl")
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			s := newStreet(t)
			t.Parallel()
			w := s.keptHome([]string{"--dns", relayIP + ":53", "--dns-address", relayIP}, "end_to_end: {certs: internal}\n", "--transport", transport)
			w.expose("first", "vault", "127.0.0.1:8123", "--tls", "agent")
			w.expose("first", "open", "127.0.0.1:8123")
			if got := w.agentStatus("first").transport(); got != transport {
				t.Fatalf("connected over %q", got)
			}
			roots := w.homeRoots("first")
			tablet, phone := w.homeDevice("first", "tablet"), w.device("phone")
			end := s.capture(w)
			marker, ours, theirs := "control-"+strings.ToLower(rand.Text()), secret(), secret()
			run(t, "", append(wrapIn(s.relay), "dig", "+tries=1", "+time=2", "@"+relayIP, marker+".invalid")...)
			stay := func(what, word, rootFile string, d device, name string) *process {
				args := append(wrapIn(s.relay), homeCurl(&d, rootFile, relayIP, "https://"+host(name)+"/seen", "-H", "X-Word: "+word)...)
				r := run(t, "", args...)
				if r.code != 0 || !strings.Contains(r.stdout, word) {
					t.Fatalf("%s: %s", what, r)
				}
				args = append(wrapIn(s.relay), homeCurl(&d, rootFile, relayIP, "https://"+host(name)+"/clock", "-N", "-H", "X-Word: "+word)...)
				p := start(t, what, args...)
				p.waitFor("data: 3", 10*time.Second)
				return p
			}
			visits := []*process{
				stay("visit of the vault", ours, roots, tablet, "vault"),
				stay("visit of the open service", theirs, w.roots, phone, "open"),
			}
			look := needles{"the vault's word": []byte(ours), "the open service's word": []byte(theirs)}
			if got := inMemory(t, w.relay, look); !slices.Equal(got, []string{"the open service's word"}) {
				t.Errorf("the relay's memory holds %q: what it may read, and nothing else, was expected", got)
			}
			if got := inMemory(t, w.agents["first"], look); !slices.Contains(got, "the vault's word") {
				t.Errorf("the home's memory holds %q", got)
			}
			if got := onDisk(t, w.relayDir(), look); len(got) > 0 {
				t.Errorf("the relay's disk holds %q", got)
			}
			for _, p := range visits {
				if !p.running() {
					t.Errorf("%s ended early", p.name)
				}
				p.stop()
			}

			file := end()
			look["the question"] = []byte(marker)
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if got, err := scanStream(f, look); err != nil || !slices.Equal(got, []string{"the question"}) {
				t.Errorf("the capture holds %q (%v): only what was asked in the clear was expected", got, err)
			}
			// Both legs were seen: hellos of visitors, and the tunnel to the home's router.
			shark := func(filter string, fields ...string) string {
				args := []string{"tshark", "-r", file, "-Y", filter, "-T", "fields"}
				for _, f := range fields {
					args = append(args, "-e", f)
				}
				return mustRun(t, args...)
			}
			names := shark("tls.handshake.type == 1", "tls.handshake.extensions_server_name")
			if !strings.Contains(names, host("vault")) || !strings.Contains(names, host("open")) {
				t.Errorf("the hellos that the capture holds are for %q", names)
			}
			leg := map[string]string{"quic": "udp.port == 443", "tcp": "tcp.port == 443"}[transport]
			if n := strings.Count(shark(leg+" && ip.addr == 10.91.1.2", "frame.number"), "\n"); n < 20 {
				t.Errorf("%d packets between relay and home", n)
			}
			if got := shark("http", "http.request.full_uri"); got != "" {
				t.Errorf("HTTP in the clear: %s", got)
			}
		})
	}
}
