package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/cmd/sallyport/machine"
	"github.com/sallyport/sallyport/mqttbridge"
)

// A step is one line of the story: what happens, and the check that it did.
type step struct {
	title string
	play  func(ctx context.Context, s *story) (seen string, err error)
}

// story carries what one step leaves for the next.
type story struct {
	w       *demoWorld
	device  *machine.Device // the phone
	phone   tls.Certificate
	roots   *x509.CertPool
	remote  *presser          // the phone's buttons
	pressed mqttbridge.Signed // the command that opened the door
}

// playStory is `demo --once`, as a newcomer would see it.
func playStory(ctx context.Context, out io.Writer, w *demoWorld) error {
	s := &story{w: w}
	steps := []step{
		{"the relay is up", stepRelay},
		{"the home joins with a token and dials out", stepJoin},
		{"the home exposes a web page and a TCP echo", stepExpose},
		{"a phone enrols with a one-time link", stepDevice},
		{"it visits the page", stepVisit},
		{"it talks to the TCP echo and hears the whole reply", stepEcho},
		{"the phone's key for commands is compared at home and trusted", stepTrust},
		{"it opens the garage door", stepPress},
		{"the command is sent a second time", stepReplay},
		{"a command is held back on its way", stepLate},
		{"the phone leaves a note over MQTT", stepNote},
		{"a TV that cannot hold a certificate visits with a secret", stepToken},
		{"a visitor without a certificate is refused in the handshake", stepStranger},
		{"a request for another host than its TLS connection gets 421", stepMisdirected},
		{"a scanner asks for an unknown name and sees no certificate", stepScanner},
		{"UDP is blocked: visits go on over TCP", stepBlocked},
		{"the phone is revoked while its WebSocket is open", stepRevoke},
	}
	for i, st := range steps {
		began := time.Now()
		stepCtx, cancel := context.WithTimeout(ctx, time.Minute)
		seen, err := st.play(stepCtx, s)
		cancel()
		if err != nil {
			fmt.Fprintf(out, "%2d FAILED %s: %v\n", i+1, st.title, err)
			return failed(exitFailed, "sallyport demo --once --log-level debug shows what happened", fmt.Errorf("step %d did not hold", i+1))
		}
		fmt.Fprintf(out, "%2d ok  %s: %s (%d ms)\n", i+1, st.title, seen, time.Since(began).Milliseconds())
	}
	fmt.Fprintf(out, "all %d steps held\n", len(steps))
	return nil
}

func stepRelay(ctx context.Context, s *story) (string, error) {
	if err := s.w.waitAdmin(ctx); err != nil {
		return "", err
	}
	var err error
	s.roots, err = s.w.roots(ctx)
	return "one port, TCP and UDP, " + s.w.addr, err
}

func stepJoin(ctx context.Context, s *story) (string, error) {
	if err := s.w.startAgent(ctx); err != nil {
		return "", err
	}
	st, err := control.NewClient(s.w.agentDir()).Status(ctx)
	if err != nil {
		return "", err
	}
	if st.Link == nil || st.Link.Transport != "quic" {
		return "", fmt.Errorf("connected, but not over QUIC: %+v", st.Link)
	}
	return "connected over " + st.Link.Transport + ", no port open at home", nil
}

func stepExpose(ctx context.Context, s *story) (string, error) {
	urls, err := s.w.expose(ctx)
	return strings.Join(urls, " "), err
}

// client is an HTTP client that dials the relay whatever the name.
func (w *demoWorld) client(roots *x509.CertPool, cert *tls.Certificate) *http.Client {
	conf := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: conf, ForceAttemptHTTP2: true, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, w.addr)
		},
	}}
}

func (s *story) url(host string) string {
	_, port, _ := net.SplitHostPort(s.w.addr)
	return "https://" + host + "." + demoDomain + ":" + port + "/"
}

// visit gets the page with the phone's certificate and checks who it says we are.
func (s *story) visit(ctx context.Context) (string, error) {
	status, body, err := s.get(ctx, s.url("web"), &s.phone)
	switch {
	case err != nil:
		return "", err
	case status != http.StatusOK:
		return "", fmt.Errorf("status %d", status)
	case !strings.Contains(body, "<b>phone</b>"):
		return "", errors.New("the home does not know who visits")
	}
	return "the home greets \"phone\"", nil
}

func stepVisit(ctx context.Context, s *story) (string, error) { return s.visit(ctx) }

func stepEcho(ctx context.Context, s *story) (string, error) {
	d := &tls.Dialer{Config: &tls.Config{RootCAs: s.roots, ServerName: "echo." + demoDomain, Certificates: []tls.Certificate{s.phone}}}
	c, err := d.DialContext(ctx, "tcp", s.w.addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	sent := strings.Repeat("open the door ", 20_000)
	sendErr := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, sent)
		sendErr <- errors.Join(err, c.(*tls.Conn).CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-sendErr); err != nil {
		return "", err
	}
	if string(got) != sent {
		return "", fmt.Errorf("sent %d bytes, got %d back", len(sent), len(got))
	}
	return fmt.Sprintf("%d bytes there and back after our half-close", len(got)), nil
}

func stepStranger(ctx context.Context, s *story) (string, error) {
	conf := &tls.Config{RootCAs: s.roots, ServerName: "web." + demoDomain, MinVersion: tls.VersionTLS12}
	c, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", s.w.addr)
	if err == nil {
		// In TLS 1.3 the client is done before the relay has looked for its
		// certificate: the refusal is the first thing to be read.
		defer c.Close()
		if deadline, ok := ctx.Deadline(); ok {
			_ = c.SetReadDeadline(deadline)
		}
		_, err = c.Read(make([]byte, 1))
	}
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || !isAlert(err) {
		return "", fmt.Errorf("not refused by a TLS alert: %w", err)
	}
	return op.Error(), nil
}

func stepMisdirected(ctx context.Context, s *story) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url("web"), nil)
	if err != nil {
		return "", err
	}
	req.Host = "echo." + demoDomain
	res, err := s.w.client(s.roots, &s.phone).Do(req)
	if err != nil {
		return "", err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusMisdirectedRequest {
		return "", fmt.Errorf("status %s", res.Status)
	}
	return res.Status, nil
}

func stepScanner(ctx context.Context, s *story) (string, error) {
	for _, name := range []string{"nas." + demoDomain, demoDomain, ""} {
		seen := 0
		conf := &tls.Config{ServerName: name, InsecureSkipVerify: true, VerifyConnection: func(cs tls.ConnectionState) error {
			seen = len(cs.PeerCertificates)
			return nil
		}}
		c, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", s.w.addr)
		if err == nil {
			c.Close()
		}
		if seen > 0 || !isAlert(err) {
			return "", fmt.Errorf("name %q: %d certificates seen, error %w", name, seen, err)
		}
	}
	return "TLS alert, three names tried", nil
}

// stepBlocked drops every UDP packet of the home mid-way.
func stepBlocked(ctx context.Context, s *story) (string, error) {
	s.w.udp.block(true)
	defer s.w.udp.block(false)
	began := time.Now()
	for {
		try, cancel := context.WithTimeout(ctx, 15*time.Second)
		_, err := s.visit(try)
		cancel()
		if err == nil {
			break
		}
		if time.Since(began) > 15*time.Second {
			return "", fmt.Errorf("no visit within 15 s: %w", err)
		}
	}
	took := time.Since(began).Round(100 * time.Millisecond)
	if err := s.w.waitAgent(ctx, func(st control.Status) bool { return st.Link != nil && st.Link.Transport == "tcp" }); err != nil {
		return "", err
	}
	return fmt.Sprintf("the first new visit succeeded after %v, the home is on TCP now", took), nil
}

func stepRevoke(ctx context.Context, s *story) (string, error) {
	url := "wss" + strings.TrimPrefix(s.url("web"), "https") + "ws"
	ws, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: s.w.client(s.roots, &s.phone)})
	if err != nil {
		return "", err
	}
	defer ws.CloseNow()
	if err := ws.Write(ctx, websocket.MessageText, []byte("knock")); err != nil {
		return "", err
	}
	if _, msg, err := ws.Read(ctx); err != nil || string(msg) != "knock" {
		return "", fmt.Errorf("echo %q: %w", msg, err)
	}
	began := time.Now()
	if _, err := s.w.admin.RevokeDevice(ctx, "phone"); err != nil {
		return "", err
	}
	read, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, _, err := ws.Read(read); err == nil || read.Err() != nil {
		return "", errors.New("the WebSocket is still open")
	}
	cut := time.Since(began)
	if cut > time.Second {
		return "", fmt.Errorf("cut only after %v", cut)
	}
	if _, err := s.visit(ctx); err == nil {
		return "", errors.New("the revoked phone came in again")
	}
	return fmt.Sprintf("cut after %d ms, and it does not come in again", cut.Milliseconds()), nil
}
