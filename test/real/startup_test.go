package real

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// relayRefuses starts a relay that must not start; returns what it says.
func relayRefuses(t *testing.T, wantCode int, args ...string) string {
	t.Helper()
	r := runFor(t, 20*time.Second, "", append([]string{binary, "relay", "up"}, args...)...)
	if r.code != wantCode {
		t.Errorf("%q: want exit code %d: %s", args, wantCode, r)
	}
	if strings.Contains(r.stderr, "panic") || strings.Contains(r.stderr, "goroutine ") {
		t.Errorf("%q: %s", args, r)
	}
	return r.stderr
}

func mustSay(t *testing.T, said string, want ...string) {
	t.Helper()
	for _, s := range want {
		if !strings.Contains(said, s) {
			t.Errorf("it does not say %q:\n%s", s, said)
		}
	}
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	conf := filepath.Join(dir, "relay.yaml")
	if err := os.WriteFile(conf, []byte(`version: 1
domian: example.org
listen: "443"
certs: magic
data: `+dir+`/relay
decoy: udp://x
log:
  level: loud
`), 0o600); err != nil {
		t.Fatal(err)
	}
	said := relayRefuses(t, 2, "--config", conf)
	mustSay(t, said, "relay.yaml:2", "domian", "did you mean", "domain", "certs", "level")
	r := run(t, "", binary, "validate", conf)
	if r.code != 2 {
		t.Errorf("validate: want exit code 2: %s", r)
	}
	mustSay(t, r.stderr+r.stdout, "relay.yaml:2", "domian", "certs")
	if _, err := os.Stat(filepath.Join(dir, "relay")); err == nil {
		t.Error("a refused configuration made a data directory")
	}
	// What a schema cannot judge: all of it at once as well.
	said = relayRefuses(t, 2, "--domain", "exa mple", "--listen", "nonsense", "--decoy", "udp://x", "--certs", "magic", "--data", filepath.Join(dir, "relay"))
	mustSay(t, said, "--domain", "--listen", "--decoy", "--certs")
	relayRefuses(t, 2, "--no-such-flag")
	relayRefuses(t, 2, "--data", filepath.Join(dir, "relay"), "--listen", "127.0.0.1:0") // no domain

	agent := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(agent, []byte("version: 1\nservices:\n  - name: HA!\n    to: ftp://x\n  - name: a\n    to: 127.0.0.1:1\n    auht: none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r = run(t, "", binary, "agent", "up", "--config", agent, "--data", filepath.Join(dir, "agent"))
	if r.code != 2 {
		t.Errorf("agent: want exit code 2: %s", r)
	}
	mustSay(t, r.stderr, "auht", "agent.yaml:7")
}

// upArgs are the flags of a relay that would start.
func upArgs(data string, more ...string) []string {
	return append([]string{"--domain", domain, "--listen", "127.0.0.1:0", "--http", "off", "--data", data}, more...)
}

func TestBrokenState(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.relay.stop()
	for _, file := range []string{"device-ca.crt", "agent-ca.key", "public-ca.crt", "tunnel.json", "relay.db"} {
		for how, mangle := range map[string]func(old []byte) []byte{
			"broken": func([]byte) []byte { return []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n") },
			"empty":  func([]byte) []byte { return nil },
			"cut":    func(old []byte) []byte { return old[:len(old)/2] },
		} {
			if file == "relay.db" && how != "broken" {
				continue // bbolt's own affair: an empty file is a new store, a cut one is noticed on use
			}
			t.Run(how+" "+file, func(t *testing.T) {
				path := filepath.Join(w.relayDir(), file)
				old, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, mangle(old), 0o600); err != nil {
					t.Fatal(err)
				}
				said := relayRefuses(t, 2, upArgs(w.relayDir())...)
				mustSay(t, said, file)
				if err := os.WriteFile(path, old, 0o600); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
	t.Run("half of a CA", func(t *testing.T) {
		path := filepath.Join(w.relayDir(), "device-ca.key")
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		mustSay(t, relayRefuses(t, 2, upArgs(w.relayDir())...), "device-ca.key")
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
	})
	w.startRelay() // whole again
}

func TestUnwritableData(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	t.Run("a file in the way", func(t *testing.T) {
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		mustSay(t, relayRefuses(t, 2, upArgs(path)...), path)
		mustSay(t, relayRefuses(t, 2, upArgs(filepath.Join(path, "below"))...), path)
	})
	t.Run("no right to write", func(t *testing.T) {
		locked := filepath.Join(dir, "locked")
		if err := os.Mkdir(locked, 0o555); err != nil {
			t.Fatal(err)
		}
		args := append([]string{binary, "relay", "up"}, upArgs(filepath.Join(locked, "relay"))...)
		if os.Geteuid() == 0 {
			needTools(t, "setpriv")
			// Everybody may look into both directories, nobody may write.
			for _, d := range []string{dir, filepath.Dir(binary)} {
				if err := os.Chmod(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			args = append([]string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}, args...)
		}
		r := runFor(t, 20*time.Second, "", args...)
		if r.code != 2 {
			t.Errorf("want exit code 2: %s", r)
		}
		mustSay(t, r.stderr, locked, "permission denied", "--data")
	})
	t.Run("two relays on one directory", func(t *testing.T) {
		w := newWorld(t)
		said := relayRefuses(t, 2, upArgs(w.relayDir())...)
		mustSay(t, said, w.relayDir())
	})
}

// TestOwnDecoy: a decoy that is the relay itself would be a loop.
func TestOwnDecoy(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	addr := freePort(t)
	_, port, _ := strings.Cut(addr, ":")
	for _, decoy := range []string{addr, "localhost:" + port, "0.0.0.0:" + port} {
		r := runFor(t, 20*time.Second, "", binary, "relay", "up", "--domain", domain, "--listen", addr, "--http", "off",
			"--data", filepath.Join(dir, "relay"), "--decoy", "tcp://"+decoy)
		if r.code == 0 || r.code == -1 {
			t.Errorf("--decoy tcp://%s is accepted: %s", decoy, r)
		}
		mustSay(t, r.stderr, "decoy")
	}
}

// TestPortTaken: the message names the port and what holds with it.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	said := relayRefuses(t, 1, "--domain", domain, "--listen", w.listen, "--http", "off", "--data", w.file("other"))
	mustSay(t, said, w.port(), "address already in use")
}

func TestTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := w.file("h")
	for _, bad := range []string{"sp1-AAAA", "hello", "sp9-" + strings.Repeat("A", 100)} {
		r := runFor(t, 20*time.Second, bad+"\n", binary, "agent", "up", "--data", dir, "-")
		if r.code != 2 {
			t.Errorf("token %q: want exit code 2: %s", bad, r)
		}
	}
	token := strings.TrimSpace(mustRun(t, binary, "relay", "token", "--data", w.relayDir()))
	cut := token[:len(token)-5]
	if r := runFor(t, 20*time.Second, "", binary, "agent", "up", "--data", dir, cut); r.code != 2 {
		t.Errorf("a token cut in copying: want exit code 2: %s", r)
	}
	w.startAgent("one", nil, token)
	w.waitAgent("one", 20*time.Second, "connected", agentStatus.ready)
	// Single use.
	r := runFor(t, 30*time.Second, "", binary, "agent", "up", "--data", w.file("two"), token)
	if r.code != 77 {
		t.Errorf("a used token: want exit code 77: %s", r)
	}
	if strings.Contains(w.relay.out.String()+w.agents["one"].out.String()+r.stderr, token) {
		t.Error("a token is in the logs")
	}
	// No state, no token.
	if r := runFor(t, 20*time.Second, "", binary, "agent", "up", "--data", w.file("three")); r.code != 2 {
		t.Errorf("neither state nor token: want exit code 2: %s", r)
	}
	// Expired.
	short := strings.TrimSpace(mustRun(t, binary, "relay", "token", "--data", w.relayDir(), "--hosts", "*.x."+domain, "--ttl", "1s"))
	time.Sleep(1100 * time.Millisecond)
	if r := runFor(t, 30*time.Second, "", binary, "agent", "up", "--data", w.file("four"), short); r.code != 77 || !strings.Contains(r.stderr, "sallyport relay token") {
		t.Errorf("an expired token: %s", r)
	}
}

func TestFileModes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.home("first")
	w.device("phone")
	for _, dir := range []string{w.relayDir(), w.agentDir("first")} {
		err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			st, err := e.Info()
			if err != nil {
				return err
			}
			if perm := st.Mode().Perm(); perm&0o077 != 0 && !strings.HasSuffix(path, ".crt") {
				t.Errorf("%s has mode %o", path, perm)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}
