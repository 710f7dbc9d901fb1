package real

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const domain = "sally.test"

func itoa(n int) string { return strconv.Itoa(n) }

// world is one relay and the homes and devices that a test adds: processes of
// the real binary, as README starts them.
type world struct {
	t      *testing.T
	dir    string
	listen string   // the relay's address
	http   string   // the redirecting port's
	flags  []string // more flags of relay up
	wrap   []string // put before every relay and visitor command: ip netns exec …
	relay  *process
	agents map[string]*process
	roots  string // PEM file with the internal CA
}

// newWorld starts a relay with these further flags.
func newWorld(t *testing.T, flags ...string) *world {
	t.Helper()
	w := &world{t: t, dir: shortDir(t), listen: freePort(t), http: freePort(t), flags: flags, agents: map[string]*process{}}
	w.startRelay()
	if !slices.Contains(flags, "files") {
		w.saveRoots()
	}
	return w
}

// shortDir is a temporary directory with a short name: unix sockets live in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sp-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (w *world) relayDir() string            { return filepath.Join(w.dir, "relay") }
func (w *world) agentDir(name string) string { return filepath.Join(w.dir, "home-"+name) }
func (w *world) file(name string) string     { return filepath.Join(w.dir, name) }

var listensAt = regexp.MustCompile(`msg="relay listens" addr=(\S+)`)

// startRelay starts the relay, the first time and again on the same ports.
func (w *world) startRelay() {
	w.t.Helper()
	w.relay = start(w.t, "relay", w.relayArgs()...)
	w.relay.waitFor("relay listens", 20*time.Second)
	var out string
	eventually(w.t, 5*time.Second, "the relay logs its address", func() bool {
		out = w.relay.out.String()
		return listensAt.MatchString(out)
	})
	if got := listensAt.FindStringSubmatch(out)[1]; got != w.listen {
		w.t.Errorf("the relay says that it listens on %s, not %s", got, w.listen)
	}
	eventually(w.t, 10*time.Second, "the relay answers its owner", func() bool {
		_, ok := w.relayStatus()
		return ok
	})
}

func (w *world) relayArgs() []string {
	args := append([]string{}, w.wrap...)
	args = append(args, binary, "relay", "up", "--domain", domain, "--data", w.relayDir(), "--listen", w.listen, "--http", w.http, "--log-level", "debug")
	return append(args, w.flags...)
}

func (w *world) saveRoots() {
	w.t.Helper()
	w.roots = w.file("ca.pem")
	pem := mustRun(w.t, binary, "relay", "ca", "--data", w.relayDir())
	if err := os.WriteFile(w.roots, []byte(pem), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// port of the relay.
func (w *world) port() string {
	_, port, _ := net.SplitHostPort(w.listen)
	return port
}

// host is NAME's full name.
func host(name string) string { return name + "." + domain }

// url of a path below NAME's host.
func (w *world) url(name, path string) string {
	return "https://" + net.JoinHostPort(host(name), w.port()) + path
}

// home joins an agent and waits until its services are registered. Flags are
// further flags of agent up, such as --expose ha=127.0.0.1:8123.
func (w *world) home(name string, flags ...string) *process {
	w.t.Helper()
	args := []string{}
	if len(w.agents) > 0 {
		args = append(args, "--hosts", "*."+name+"."+domain)
	}
	r := run(w.t, "", append([]string{binary, "relay", "token", "--data", w.relayDir()}, args...)...)
	token := strings.TrimSuffix(r.stdout, "\n")
	if r.code != 0 || token == "" || strings.ContainsAny(token, " \n") {
		w.t.Fatalf("relay token: want the token alone on stdout: %s", r)
	}
	file := w.file(name + ".token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.startAgent(name, nil, append([]string{"--token-file", file}, flags...)...)
	w.waitAgent(name, 20*time.Second, "connected", func(s agentStatus) bool { return s.ready() })
	return w.agents[name]
}

// startAgent starts the agent and does not wait for it.
func (w *world) startAgent(name string, wrap []string, flags ...string) {
	w.t.Helper()
	args := append([]string{}, wrap...)
	args = append(args, binary, "agent", "up", "--data", w.agentDir(name), "--name", name, "--log-level", "debug")
	w.agents[name] = start(w.t, "agent "+name, append(args, flags...)...)
}

// agentStatus is what the tests need of `status --json`.
type agentStatus struct {
	State string `json:"state"`
	Link  *struct {
		Transport string `json:"transport"`
		Streams   int    `json:"streams"`
	} `json:"link"`
	Demoted  string `json:"demoted"`
	Services []struct {
		Name, URL, Error string
	} `json:"services"`
}

// ready: connected, and the relay has answered for every service.
func (s agentStatus) ready() bool {
	if s.State != "connected" || s.Link == nil {
		return false
	}
	for _, svc := range s.Services {
		if svc.URL == "" && svc.Error == "" {
			return false
		}
	}
	return true
}

func (s agentStatus) transport() string {
	if s.State != "connected" || s.Link == nil {
		return ""
	}
	return s.Link.Transport
}

type relayStatus struct {
	Agents []struct {
		Name     string `json:"name"`
		Online   bool   `json:"online"`
		Sessions []struct {
			Transport string `json:"transport"`
		} `json:"sessions"`
	} `json:"agents"`
}

// status runs `sallyport status --json`.
func (w *world) status(dir string) (st struct {
	Schema int          `json:"schema"`
	Relay  *relayStatus `json:"relay"`
	Agent  *agentStatus `json:"agent"`
}, ok bool,
) {
	w.t.Helper()
	r := run(w.t, "", binary, "status", "--json", "--data", dir)
	if r.code != 0 {
		return st, false
	}
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil || st.Schema != 1 {
		w.t.Fatalf("status --json: schema %d, %v\n%s", st.Schema, err, r.stdout)
	}
	return st, true
}

func (w *world) relayStatus() (relayStatus, bool) {
	w.t.Helper()
	st, ok := w.status(w.relayDir())
	if !ok || st.Relay == nil {
		return relayStatus{}, false
	}
	return *st.Relay, true
}

func (w *world) agentStatus(name string) agentStatus {
	w.t.Helper()
	st, ok := w.status(w.agentDir(name))
	if !ok || st.Agent == nil {
		return agentStatus{}
	}
	return *st.Agent
}

// waitAgent waits until the agent's status is as wanted; returns how long it took.
func (w *world) waitAgent(name string, limit time.Duration, what string, good func(agentStatus) bool) time.Duration {
	w.t.Helper()
	return eventually(w.t, limit, "agent "+name+" "+what, func() bool {
		if !w.agents[name].running() {
			w.t.Fatalf("agent %s ended: %v", name, w.agents[name].err)
		}
		return good(w.agentStatus(name))
	})
}

// expose offers one more service over the agent's socket; returns its output.
func (w *world) expose(agent, service, target string, flags ...string) string {
	w.t.Helper()
	args := append([]string{binary, "agent", "expose", "--data", w.agentDir(agent)}, flags...)
	return mustRun(w.t, append(args, service, target)...)
}

// device is a client certificate on disk.
type device struct{ name, cert, key string }

// device issues one with --pem.
func (w *world) device(name string, flags ...string) device {
	w.t.Helper()
	dir := w.file("devices")
	mustRun(w.t, append([]string{binary, "device", "add", "--data", w.relayDir(), "--pem", dir, name}, flags...)...)
	return device{name, filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")}
}

func (w *world) revoke(d device) {
	w.t.Helper()
	mustRun(w.t, binary, "device", "revoke", "--data", w.relayDir(), d.name)
}

// curlArgs is a curl that knows where every name lives and trusts the relay.
func (w *world) curlArgs(d *device, args ...string) []string {
	all := append([]string{}, w.wrap...)
	all = append(all, "curl", "-sS", "--max-time", "50", "--noproxy", "*", "--cacert", w.roots, "--connect-to", "::"+w.listen)
	if d != nil {
		all = append(all, "--cert", d.cert, "--key", d.key)
	}
	return append(all, args...)
}

// curl visits and returns what came; the exit code may be anything.
func (w *world) curl(d *device, args ...string) result {
	w.t.Helper()
	return run(w.t, "", w.curlArgs(d, args...)...)
}

// get visits with a certificate and must get a 200; returns the body.
func (w *world) get(d device, name, path string) string {
	w.t.Helper()
	r := w.curl(&d, "--fail", w.url(name, path))
	if r.code != 0 {
		w.t.Fatalf("GET %s: %s", w.url(name, path), r)
	}
	return r.stdout
}
