package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// tlsPair is a connection in memory: what `connect` holds, and the far end.
func tlsPair(t *testing.T) (near, far *tls.Conn) {
	t.Helper()
	ca, err := pki.LoadOrCreate(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(key.Public(), pki.Grant{
		Profile: pki.Server, Name: "echo.home.test", DNSNames: []string{"echo.home.test"}, NotAfter: time.Now().Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	a, b := tunneltest.MemConn()
	near = tls.Client(noSilentEnd{a}, &tls.Config{ServerName: "echo.home.test", RootCAs: ca.Pool()})
	far = tls.Server(b, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}})
	done := make(chan error, 1)
	go func() { done <- far.Handshake() }()
	if err := errors.Join(near.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func TestJoinStdioHearsTheReplyAfterItsOwnEnd(t *testing.T) {
	near, far := tlsPair(t)
	go func() {
		heard, _ := io.ReadAll(far) // until the half-close
		far.Write(bytes.Repeat(heard, 1000))
		far.CloseWrite()
	}()
	var out bytes.Buffer
	if err := joinStdio(t.Context(), near, stdio{in: strings.NewReader("knock"), out: &out}); err != nil {
		t.Fatal(err)
	}
	if out.Len() != 5000 {
		t.Errorf("got %d bytes", out.Len())
	}
}

// A server that says all and ends does not wait for our stdin, which a person
// holds open.
func TestJoinStdioEndsWithTheServer(t *testing.T) {
	near, far := tlsPair(t)
	in, hold := io.Pipe()
	defer hold.Close()
	go func() { far.Write([]byte("bye")); far.Close() }()
	var out bytes.Buffer
	if err := joinStdio(t.Context(), near, stdio{in: in, out: &out}); err != nil || out.String() != "bye" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestJoinStdioTellsACutFromAnEnd(t *testing.T) {
	near, far := tlsPair(t)
	go func() { far.Write([]byte("half of")); far.NetConn().Close() }()
	in, hold := io.Pipe()
	defer hold.Close()
	var out bytes.Buffer
	err := joinStdio(t.Context(), near, stdio{in: in, out: &out})
	if err == nil || !strings.Contains(err.Error(), "cut before its end") {
		t.Errorf("got %v", err)
	}
	if _, hint := classify(err); !strings.Contains(hint, "service at home may be down") {
		t.Errorf("hint %q", hint)
	}
}

func TestJoinStdioStops(t *testing.T) {
	near, _ := tlsPair(t)
	in, hold := io.Pipe()
	defer hold.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := joinStdio(ctx, near, stdio{in: in, out: io.Discard}); err == nil || err.Error() != "interrupted" {
		t.Errorf("got %v", err)
	}
}

func TestExplainDial(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
		hint string // a part of it
	}{
		{&net.OpError{Op: "remote error", Err: errors.New("tls: unrecognized name")}, exitRefused, "no home claims"},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: certificate required")}, exitRefused, "--cert"},
		{&net.OpError{Op: "dial", Err: errors.New("connection refused")}, exitUnreachable, "relay running"},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", IsNotFound: true}}, exitUnreachable, "--relay"},
		{context.DeadlineExceeded, exitUnreachable, "relay running"},
		{errors.New("tls: strange"), exitFailed, ""},
	} {
		if code, hint := classify(explainDial("h", "a:1", c.err)); code != c.code || !strings.Contains(hint, c.hint) {
			t.Errorf("%v: exit code %d, want %d; hint %q", c.err, code, c.code, hint)
		}
	}
}

func TestSplitHost(t *testing.T) {
	for in, want := range map[string]string{
		"h.test": "h.test:443", "h.test:8443": "h.test:8443", "[::1]:5": "[::1]:5", "[::1]": "[::1]:443", "::1": "[::1]:443", "127.0.0.1": "127.0.0.1:443",
	} {
		if got := net.JoinHostPort(splitHost(in)); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}
