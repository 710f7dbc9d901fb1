package real

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// tlsOf is the Go client's side of a device; nil is somebody without one.
func (w *world) tlsOf(d *device) *tls.Config {
	w.t.Helper()
	var pairs []tls.Certificate
	if d != nil {
		pair, err := tls.LoadX509KeyPair(d.cert, d.key)
		if err != nil {
			w.t.Fatal(err)
		}
		pairs = append(pairs, pair)
	}
	pem, err := os.ReadFile(w.roots)
	if err != nil {
		w.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: pool, Certificates: pairs}
}

// TestRevoke: what a revoked device has open ends within a second, and does
// not end as if it were complete.
func TestRevoke(t *testing.T) {
	needTools(t, "curl")
	w := newWorld(t)
	w.home("first", "--expose", "ha="+startHomeApp(t), "--expose", "echo=tcp://"+startEcho(t))
	phone, tablet := w.device("phone"), w.device("tablet")

	cut := map[string]*process{
		"SSE over h2":       start(t, "SSE over h2", w.curlArgs(&phone, "-N", "--http2", w.url("ha", "/clock"))...),
		"SSE over HTTP/1.1": start(t, "SSE over HTTP/1.1", w.curlArgs(&phone, "-N", "--http1.1", w.url("ha", "/clock"))...),
	}
	stays := start(t, "the other device", w.curlArgs(&tablet, "-N", w.url("ha", "/clock"))...)
	for _, p := range cut {
		p.waitFor("data: 3", 10*time.Second)
	}
	stays.waitFor("data: 3", 10*time.Second)

	// A raw connection: its stdin stays open.
	hold, keep, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	defer keep.Close()
	raw := commandWith(hold, binary, "connect", "--relay", w.listen, "--ca", w.roots, "--cert", phone.cert, "--key", phone.key, host("echo"))
	cut["raw"] = startCmd(t, "connect", nil, raw)
	if _, err := keep.WriteString("half a"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the raw connection is at home", func() bool { return w.agentStatus("first").Link.Streams >= 4 })

	// A WebSocket.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ws := w.dialWebSocket(ctx, phone)
	closed := make(chan error, 1)
	go func() {
		_, _, err := ws.Read(ctx)
		closed <- err
	}()

	limit := time.Second
	if raceEnabled {
		limit = 10 * time.Second
	}
	w.revoke(phone)
	began := time.Now()
	select {
	case <-closed:
	case <-time.After(limit):
		t.Errorf("the WebSocket is open %v after", limit)
	}
	for what, p := range cut {
		select {
		case <-p.done:
			if p.cmd.ProcessState.ExitCode() == 0 {
				t.Errorf("%s ended as if it were complete: %s", what, tail(p.out.String(), 500))
			}
		case <-time.After(max(0, limit-time.Since(began))):
			t.Errorf("%s is open %v after", what, limit)
		}
	}
	t.Logf("all was cut %v after the command ended", time.Since(began))
	if r := w.curl(&phone, "--fail", w.url("ha", "/")); r.code == 0 {
		t.Errorf("it comes in again: %s", r)
	}
	if !stays.running() {
		t.Error("the other device was cut, too")
	}
	w.get(tablet, "ha", "/")
}

func (w *world) dialWebSocket(ctx context.Context, d device) *websocket.Conn {
	w.t.Helper()
	conf := w.tlsOf(&d)
	conf.ServerName = host("ha")
	conf.NextProtos = []string{"http/1.1"}
	c, _, err := websocket.Dial(ctx, "wss://"+w.listen+"/ws", &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: &http.Transport{TLSClientConfig: conf}}, Host: host("ha") + ":" + w.port(),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.CloseNow() })
	return c
}
