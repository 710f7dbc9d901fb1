package real

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// settleBy builds a relay at one end of the street and, at the other, a home
// that reaches it over one transport and may use these public ports. The
// visitors live in the relay's namespace.
func (s *street) settleBy(transport, ports string) *world {
	t := s.t
	t.Helper()
	w := &world{t: t, dir: shortDir(t), listen: relayIP + ":443", http: "off", wrap: wrapIn(s.relay), agents: map[string]*process{}}
	w.startRelay()
	w.saveRoots()
	token := strings.TrimSpace(mustRun(t, binary, "relay", "token", "--data", w.relayDir(), "--ports", ports))
	file := w.file("first.token")
	writeFile(t, file, token)
	w.startAgent("first", wrapIn(s.home), "--transport", transport, "--token-file", file)
	w.waitAgent("first", 30*time.Second, "connected over "+transport, func(st agentStatus) bool { return st.transport() == transport })
	return w
}

// exposePort gives a service a public port and checks what the owner is told.
func (w *world) exposePort(service, target, port string) {
	w.t.Helper()
	out := w.expose("first", service, target, "--port", port, "--auth", "none")
	scheme, _, _ := strings.Cut(target, ":")
	if want := scheme + "://" + domain + ":" + port; !strings.Contains(out, want) || !strings.Contains(out, "open to everybody") {
		w.t.Errorf("want %s and who may come, got %q", want, out)
	}
}

// throughput is what one run of iperf3 measured.
type throughput struct {
	sent, received float64 // Mbit/s
	loss           float64 // percent
	packets        int     // sent
	bytes          int     // received
	jitter         float64 // ms
}

// iperfUDP runs iperf3 over UDP from where the visitors are.
func (s *street) iperfUDP(to string, args ...string) throughput {
	s.t.Helper()
	all := append(wrapIn(s.relay), "iperf3", "--client", to, "--port", "5201", "--udp", "--json")
	r := run(s.t, "", append(all, args...)...)
	var out struct {
		Error string
		End   struct {
			Sum struct {
				Rate    float64 `json:"bits_per_second"`
				Loss    float64 `json:"lost_percent"`
				Jitter  float64 `json:"jitter_ms"`
				Packets int
			}
			Received struct {
				Rate  float64 `json:"bits_per_second"`
				Bytes int
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || r.code != 0 || out.Error != "" {
		s.t.Fatalf("iperf3 %q: %v %s", args, err, r)
	}
	sum := out.End.Sum
	return throughput{sum.Rate / 1e6, out.End.Received.Rate / 1e6, sum.Loss, sum.Packets, out.End.Received.Bytes, sum.Jitter}
}

// TestIperf: iperf3 measures the way home through a udp:// service, over QUIC
// and over the fallback. Its control connection goes through a TCP port of the
// same number. The way back is measured in TestWireGuard.
func TestIperf(t *testing.T) {
	// Not beside other tests: it measures.
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			needTools(t, "iperf3")
			s := newStreet(t)
			w := s.settleBy(transport, "5201,5201/udp")
			server := start(t, "iperf3 at home", append(wrapIn(s.home), "iperf3", "--server", "--bind", "127.0.0.1", "--port", "5201", "--forceflush")...)
			server.waitFor("Server listening", 10*time.Second)
			w.exposePort("control", "tcp://127.0.0.1:5201", "5201")
			w.exposePort("load", "udp://127.0.0.1:5201", "5201")
			for _, size := range []string{"160", "1200", "1448", "8000"} {
				s.iperf(relayIP, "2M", size, 5)
				s.iperf(relayIP, "10M", size, 5)
			}
			s.iperf(relayIP, "300M", "1200", 100)

			// With --reverse the visitor says four bytes and nothing more, as one with
			// a forged address would: it must not be flooded.
			got := s.iperfUDP(relayIP, "--bitrate", "10M", "--length", "1200", "--time", "1", "--reverse")
			t.Logf("a visitor who has not proved its address is sent %d bytes", got.bytes)
			if got.bytes > 4<<10 {
				t.Errorf("a visitor who said four bytes is sent %d", got.bytes)
			}
			if got := w.agentStatus("first").transport(); got != transport {
				t.Errorf("the load moved the home to %q", got)
			}
		})
	}
}

// iperf measures one rate for a second. A machine that is busy elsewhere lets
// packets wait until they are too old: the best of three counts.
func (s *street) iperf(to, rate, size string, maxLoss float64, more ...string) {
	s.t.Helper()
	for try := range 3 {
		got := s.iperfUDP(to, append([]string{"--bitrate", rate, "--length", size, "--time", "1"}, more...)...)
		s.t.Logf("%5sbit/s, packets of %4s %s: %6.1f Mbit/s sent, %6.1f received, %5d packets, %.2f %% lost, jitter %.2f ms",
			rate, size, strings.Join(more, " "), got.sent, got.received, got.packets, got.loss, got.jitter)
		// iperf3 counts as lost what is missing between packets: nothing after the last.
		if got.loss <= maxLoss && got.received >= got.sent*(1-maxLoss/100)*0.9 && got.bytes > 0 {
			return
		}
		if try == 2 {
			s.t.Errorf("%sbit/s, packets of %s %s: %.2f %% lost, %.1f of %.1f Mbit/s arrive", rate, size, strings.Join(more, " "), got.loss, got.received, got.sent)
		}
	}
}

// TestPortGrant: public ports open when the relay's owner has granted them, and
// close with the grant; what is refused says what to do.
func TestPortGrant(t *testing.T) {
	t.Parallel()
	needTools(t, "ss")
	s := newStreet(t)
	w, _ := s.settle()
	listening := func() string {
		t.Helper()
		return mustRun(t, append(wrapIn(s.relay), "ss", "-Hlntu", "sport", "=", ":2222")...)
	}
	grant := func(args ...string) string {
		t.Helper()
		return mustRun(t, append([]string{binary, "relay", "grant", "--data", w.relayDir()}, args...)...)
	}
	for service, target := range map[string]string{"app": "tcp://127.0.0.1:8123", "game": "udp://127.0.0.1:8123"} {
		r := run(t, "", binary, "agent", "expose", "--data", w.agentDir("first"), service, target, "--port", "2222", "--auth", "none")
		if r.code == 0 || !strings.Contains(r.stderr, "sallyport relay grant first --ports 2222") {
			t.Errorf("%s: want a refusal that says how to grant the port: %s", service, r)
		}
	}
	if open := listening(); open != "" {
		t.Errorf("a port that nobody granted is open: %s", open)
	}
	for _, auth := range []string{"", "require", "ask"} {
		args := []string{binary, "agent", "expose", "--data", w.agentDir("first"), "app", "tcp://127.0.0.1:8123", "--port", "2222"}
		if auth != "" {
			args = append(args, "--auth", auth)
		}
		if r := run(t, "", args...); r.code == 0 || !strings.Contains(r.stderr, "none") {
			t.Errorf("auth %q: want to be told that everybody may come: %s", auth, r)
		}
	}
	grant("first", "--ports", "2222,2222/udp")
	w.exposePort("app", "tcp://127.0.0.1:8123", "2222")
	w.exposePort("game", "udp://127.0.0.1:8123", "2222")
	if r := run(t, "", append(wrapIn(s.relay), "curl", "-sS", "--max-time", "10", "http://"+relayIP+":2222/")...); r.stdout != "hello from home\n" {
		t.Errorf("through the port: %s", r)
	}
	if open := listening(); !strings.Contains(open, "tcp") || !strings.Contains(open, "udp") {
		t.Errorf("both ports should be open: %q", open)
	} else if strings.Count(open, relayIP+":2222") != 2 {
		t.Errorf("the relay was told to listen on %s, and its ports are open on other addresses: %q", relayIP, open)
	}
	grant("first", "--only", "--ports", "2222/udp")
	if open := listening(); strings.Contains(open, "tcp") || !strings.Contains(open, "udp") {
		t.Errorf("the UDP port alone should be open: %q", open)
	}
	grant("first", "--only", "--ports", "none")
	if open := listening(); open != "" {
		t.Errorf("open though the grant was taken back: %q", open)
	}
}
