package real

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRelayKilled: kill -9 and a new start; the home is back within 3 s and
// nothing that was agreed is lost.
func TestRelayKilled(t *testing.T) {
	needTools(t, "curl")
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			w := newWorld(t)
			w.home("first", "--transport", transport, "--expose", "ha="+startHomeApp(t))
			w.expose("first", "late", startHomeApp(t))
			phone, lost := w.device("phone"), w.device("lost")
			w.revoke(lost)
			w.get(phone, "ha", "/")

			w.relay.kill()
			w.startRelay()
			took := eventually(t, 10*time.Second, "the home is reached again", func() bool {
				return strings.Contains(w.curl(&phone, w.url("ha", "/")).stdout, "hello from home")
			})
			t.Logf("back after %v", took)
			if took > 3*time.Second && !raceEnabled {
				t.Errorf("back after %v, want 3 s", took)
			}
			w.get(phone, "late", "/")
			if r := w.curl(&lost, "--fail", w.url("ha", "/")); r.code == 0 {
				t.Errorf("the revoked device is back: %s", r)
			}
			if got := w.agentStatus("first").transport(); got != transport {
				t.Errorf("came back over %q", got)
			}
			// Claims are kept: another home cannot have the name.
			w.home("second")
			if r := run(t, "", binary, "agent", "expose", "--data", w.agentDir("second"), "--host", host("ha"), "x", "127.0.0.1:1"); r.code == 0 {
				t.Errorf("the claim is lost: %s", r)
			}
		})
	}
}

// TestAgentKilled: a new process with the same key takes its names over at once.
func TestAgentKilled(t *testing.T) {
	needTools(t, "curl")
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			w := newWorld(t)
			app := startHomeApp(t)
			agent := w.home("first", "--transport", transport, "--expose", "ha="+app)
			w.expose("first", "late", app)
			phone := w.device("phone")
			w.get(phone, "ha", "/")
			agent.kill()
			began := time.Now()
			w.startAgent("first", nil, "--transport", transport, "--expose", "ha="+app) // no token: it has joined
			eventually(t, 10*time.Second, "the home is reached again", func() bool {
				return strings.Contains(w.curl(&phone, "--max-time", "0.3", w.url("ha", "/")).stdout, "hello from home")
			})
			took := time.Since(began)
			t.Logf("taken over after %v", took)
			if took > time.Second && !raceEnabled {
				t.Errorf("took over after %v, want 1 s", took)
			}
			w.get(phone, "late", "/")
		})
	}
}

// TestSignals: SIGTERM ends both cleanly and soon, also with visitors inside.
func TestSignals(t *testing.T) {
	t.Parallel()
	needTools(t, "curl")
	w := newWorld(t)
	agent := w.home("first", "--expose", "ha="+startHomeApp(t))
	phone := w.device("phone")
	visit := start(t, "visit", w.curlArgs(&phone, "-N", w.url("ha", "/clock"))...)
	visit.waitFor("data: 3", 10*time.Second)

	began := time.Now()
	w.relay.signal(syscall.SIGTERM)
	if code := w.relay.wait(12 * time.Second); code != 0 {
		t.Errorf("SIGTERM: the relay exits with %d", code)
	}
	t.Logf("the relay ended after %v", time.Since(began))
	if code := visit.wait(5 * time.Second); code == 0 {
		t.Error("the open visit ended as if it were complete")
	}
	if !agent.running() {
		t.Fatal("the agent ended because the relay is away")
	}
	w.startRelay()
	took := eventually(t, 10*time.Second, "the home is back", func() bool {
		return strings.Contains(w.curl(&phone, w.url("ha", "/")).stdout, "hello from home")
	})
	t.Logf("back after %v", took)
	began = time.Now()
	agent.signal(syscall.SIGINT)
	if code := agent.wait(12 * time.Second); code != 0 {
		t.Errorf("SIGINT: the agent exits with %d", code)
	}
	t.Logf("the agent ended after %v", time.Since(began))
}

// TestReload: SIGHUP takes new certificate files, or none of them.
func TestReload(t *testing.T) {
	t.Parallel()
	needTools(t, "curl", "openssl")
	dir := shortDir(t)
	ca := newTestCA(t, dir)
	cert, key := ca.issue(t, "*."+domain)
	w := newWorld(t, "--certs", "files", "--cert", cert, "--key", key)
	w.roots = ca.file
	w.home("first", "--expose", "ha="+startHomeApp(t))
	phone := w.device("phone")
	w.get(phone, "ha", "/")
	serial := func() string {
		r := run(t, scan(t, w.listen, host("ha")), "openssl", "x509", "-noout", "-serial")
		return strings.TrimSpace(r.stdout)
	}
	if got := serial(); got != "serial=02" {
		t.Fatalf("shows %s, want the first file's", got)
	}
	ca.issue(t, "*."+domain) // the same files, serial 3
	w.relay.signal(syscall.SIGHUP)
	w.relay.waitFor("configuration reloaded", 5*time.Second)
	if got := serial(); got != "serial=03" {
		t.Errorf("after SIGHUP: %s, want serial=03", got)
	}
	good, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cert, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.relay.signal(syscall.SIGHUP)
	w.relay.waitFor("reload failed, everything stays as it was", 5*time.Second)
	if got := serial(); got != "serial=03" {
		t.Errorf("after a failed reload: %s, want serial=03 still", got)
	}
	w.get(phone, "ha", "/")
	if err := os.WriteFile(cert, good, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestAgentReload: SIGHUP takes a new agent.yaml without dropping the tunnel.
func TestAgentReload(t *testing.T) {
	t.Parallel()
	needTools(t, "curl")
	w := newWorld(t)
	app := startHomeApp(t)
	conf := w.file("agent.yaml")
	write := func(text string) {
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("version: 1\nservices:\n  - name: one\n    to: " + app + "\n")
	agent := w.home("first", "--config", conf)
	phone := w.device("phone")
	w.get(phone, "one", "/")
	visit := start(t, "visit", w.curlArgs(&phone, "-N", w.url("one", "/clock"))...)
	visit.waitFor("data: 3", 10*time.Second)

	write("version: 1\nservices:\n  - name: one\n    to: " + app + "\n  - name: two\n    to: " + app + "\n")
	agent.signal(syscall.SIGHUP)
	eventually(t, 5*time.Second, "two is there", func() bool {
		return strings.Contains(w.curl(&phone, w.url("two", "/")).stdout, "hello from home")
	})
	write("version: 1\nservices:\n  - name: one\n    too: " + app + "\n")
	agent.signal(syscall.SIGHUP)
	agent.waitFor("reload failed, everything stays as it was", 5*time.Second)
	w.get(phone, "one", "/")
	w.get(phone, "two", "/")
	if !visit.running() {
		t.Error("an open visit was dropped by a reload")
	}
	if st, _ := w.relayStatus(); len(st.Agents) != 1 || len(st.Agents[0].Sessions) != 1 {
		t.Errorf("sessions %+v, want the one", st.Agents)
	}
}
