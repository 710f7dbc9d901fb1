package world

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/sallyport/sallyport/relay"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/store"
	"github.com/sallyport/sallyport/relay/store/memstore"
)

// stopLimit is the virtual time in which a process ends that was told to.
const stopLimit = 2 * time.Minute

// A Relay is a relay and its machine. All names below its domain lead to it.
type Relay struct {
	*Machine
	Domain string
	Config func(*relay.Config) // changes what the next Start uses; nil: nothing

	kv     store.KV
	dir    string
	homes  int
	run    *relayRun
	client *http.Client
}

// relayRun is one process.
type relayRun struct {
	process *process
	disk    *disk
	admin   *listener
	pages   *listener // of the dashboard
	cancel  context.CancelFunc
	ended   chan error
}

// Relay starts a relay with the internal CA.
func (w *World) Relay(domain string) *Relay {
	w.T.Helper()
	r := &Relay{Machine: w.machine("relay"), Domain: domain, kv: memstore.New(), dir: filepath.Join(w.T.TempDir(), "relay")}
	w.mu.Lock()
	w.names[domain] = r.Addr
	w.mu.Unlock()
	r.client = &http.Client{Transport: &http.Transport{DialContext: r.dialAdmin, DisableKeepAlives: true}}
	w.atEnd(func() {
		r.Stop()
		r.kv.Close()
	})
	r.Start()
	return r
}

// Start runs the relay on its state.
func (r *Relay) Start() {
	w := r.w
	w.T.Helper()
	p := r.start()
	run := &relayRun{
		process: p, disk: &disk{KV: r.kv}, ended: make(chan error, 1),
		admin: newListener(&net.UnixAddr{Name: "relay.sock", Net: "unix"}),
		pages: newListener(&net.UnixAddr{Name: "dashboard.sock", Net: "unix"}),
	}
	conf := relay.Config{
		DataDir: r.dir, Domain: r.Domain, Store: run.disk, HTTP: "off", Software: "world",
		Logger: w.log.With("at", r.Name), Now: w.Now, ListenTCP: p.listenTCP, ListenUDP: p.listenUDP,
		ListenPortTCP:   func(port uint16) (net.Listener, error) { return p.listenTCP(fmt.Sprint(":", port)) },
		ListenPortUDP:   func(port uint16) (net.PacketConn, error) { return p.listenUDP(fmt.Sprint(":", port)) },
		ListenAdmin:     func() (net.Listener, error) { return run.admin, nil },
		ListenDashboard: func() (net.Listener, error) { return run.pages, nil },
		MQTT:            relay.MQTT{CommandsPerHour: 1_000_000}, // tests press faster than people
	}
	if r.Config != nil {
		r.Config(&conf)
	}
	rl, err := relay.New(conf)
	if err != nil {
		w.T.Fatal(err)
	}
	if err := rl.Listen(); err != nil {
		w.T.Fatal(err)
	}
	var ctx context.Context
	ctx, run.cancel = context.WithCancel(context.Background())
	go func() { run.ended <- rl.Run(ctx) }()
	r.run = run
}

// Stop ends the relay as a service manager does: it may say goodbye.
func (r *Relay) Stop() {
	if r.run == nil {
		return
	}
	r.run.cancel()
	r.w.awaitEnd(r.Name, r.run.ended)
	r.run = nil
}

// Kill ends the relay without a goodbye.
func (r *Relay) Kill() {
	run := r.run
	r.run = nil
	run.process.kill()
	run.disk.gone.Store(true)
	r.dir = snapshot(r.w.T, r.dir)
	run.cancel() // what it does from here on reaches nobody
	r.w.atEnd(func() { r.w.awaitEnd(r.Name+" (killed)", run.ended) })
}

// awaitEnd waits for a Run.
func (w *World) awaitEnd(who string, ended <-chan error) {
	w.T.Helper()
	select {
	case err := <-ended:
		if err != nil {
			w.T.Errorf("%s ended: %v", who, err)
		}
	case <-time.After(stopLimit):
		w.T.Errorf("%s does not end", who)
	}
}

// dialAdmin connects to the owner's socket.
func (r *Relay) dialAdmin(context.Context, string, string) (net.Conn, error) {
	near, far := memConn()
	return near, r.run.admin.offer(far)
}

// Admin gives a command as the command line does; in is nil for a GET.
func (r *Relay) Admin(path string, in, out any) error {
	method, body := http.MethodGet, io.Reader(nil)
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		method, body = http.MethodPost, bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, "http://sallyport/v1/"+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, res.Status, data)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(data, out)
}

// command is Admin that must succeed.
func (r *Relay) command(path string, in, out any) {
	r.w.T.Helper()
	if err := r.Admin(path, in, out); err != nil {
		r.w.T.Fatal(err)
	}
}

// Status is the relay's picture of itself.
func (r *Relay) Status() (s admin.Status) {
	r.w.T.Helper()
	r.command("status", nil, &s)
	return s
}

// Agent is what the relay knows of one home.
func (r *Relay) Agent(name string) admin.Agent {
	r.w.T.Helper()
	for _, a := range r.Status().Agents {
		if a.Name == name {
			return a
		}
	}
	r.w.T.Fatalf("the relay knows no agent %q", name)
	return admin.Agent{}
}

// Online reports whether the relay has a session with a home.
func (r *Relay) Online(name string) bool {
	r.w.T.Helper()
	return r.Agent(name).Online
}

// Token makes a join token.
func (r *Relay) Token(hosts ...string) string {
	r.w.T.Helper()
	var t admin.Token
	r.command("tokens", admin.TokenRequest{Hosts: hosts}, &t)
	return t.Token
}

// Grant lets a home use public ports, "2222" or "51820/udp".
func (r *Relay) Grant(agent string, ports ...string) {
	r.w.T.Helper()
	r.command("grants", admin.GrantRequest{Agent: agent, Ports: new(append([]string{}, ports...))}, nil)
}

// Revoke shuts a device out.
func (r *Relay) Revoke(device string) {
	r.w.T.Helper()
	r.command("devices/"+device+"/revoke", struct{}{}, nil)
}

// Audit returns the audit log so far.
func (r *Relay) Audit() string {
	r.w.T.Helper()
	data, err := os.ReadFile(filepath.Join(r.dir, "audit.log"))
	if err != nil {
		r.w.T.Fatal(err)
	}
	return string(data)
}

// roots returns the CA that phones trust.
func (r *Relay) roots() *x509.CertPool {
	r.w.T.Helper()
	var ca admin.CA
	r.command("ca", nil, &ca)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(ca.Server)) {
		r.w.T.Fatal("the relay's root is not PEM")
	}
	return pool
}

// Dir is the relay's data directory; it changes with Kill.
func (r *Relay) Dir() string { return r.dir }
