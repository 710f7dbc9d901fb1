package real

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
)

// startPlex is an app with TLS of its own; it tells where visitors come from.
// With PROXY protocol it believes the header, and takes no connection without.
func startPlex(t *testing.T, cert, key string, proxied bool) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if proxied {
		l = &proxyproto.Listener{Listener: l, ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) { return proxyproto.REQUIRE, nil }}
	}
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			from, _, _ := net.SplitHostPort(r.RemoteAddr)
			local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
			fmt.Fprintf(w, "plex for %s from %s to %s, certificate headers %d\n", r.Host, from, local, len(r.Header["Client-Cert"]))
		}),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.ServeTLS(l, "", "")
	}()
	t.Cleanup(func() { srv.Close(); <-done })
	return addr
}

// TestEndToEndPassthrough: an app with its own TLS and names in somebody else's
// domain, as Plex has them. Who knows the name is passed through unread; for all
// others there is the decoy, and nothing tells that an app is here.
func TestEndToEndPassthrough(t *testing.T) {
	t.Parallel()
	needTools(t, "openssl", "curl")
	const hash = "0123456789abcdef0123456789abcdef"
	const zone = "." + hash + ".plex.direct"
	w := newWorld(t, "--decoy", "page")
	ca := newTestCA(t, w.dir)
	cert, key := ca.issue(t, "*"+zone)
	plex, proxied := startPlex(t, cert, key, false), startPlex(t, cert, key, true)
	w.home("first", "--expose", "ha="+startHomeApp(t))

	expose := []string{binary, "agent", "expose", "--data", w.agentDir("first"), "plex", plex, "--tls", "backend", "--host", "*" + zone}
	if r := run(t, "", expose...); r.code == 0 || !strings.Contains(r.stderr, "grant") {
		t.Errorf("a foreign domain without a grant: %s", r)
	}
	grant := []string{binary, "relay", "grant", "first", "--data", w.relayDir(), "--hosts", "*" + zone}
	if r := run(t, "", grant...); r.code != 77 || !strings.Contains(r.stderr, "--foreign") {
		t.Errorf("a foreign grant without its word: %s", r)
	}
	out := mustRun(t, append(grant, "--foreign")...)
	if !strings.Contains(out, "*"+zone) || !strings.Contains(out, "undo:") {
		t.Errorf("relay grant says %q", out)
	}
	out = mustRun(t, expose...)
	if !strings.Contains(out, "passed through unread") || !strings.Contains(out, "undo:") {
		t.Errorf("agent expose says %q", out)
	}
	if got := w.reader("first", "plex"); got != "end to end" {
		t.Errorf("who can read: %q", got)
	}
	visit := func(name string, more ...string) result {
		return run(t, "", homeCurl(nil, ca.file, "127.0.0.1", "https://"+name+":"+w.port()+"/", more...)...)
	}
	known := "192-168-1-7" + zone
	if r := visit(known, "-H", "Client-Cert: kept"); !strings.HasPrefix(r.stdout, "plex for "+known+":"+w.port()+" from 127.0.0.1 ") || !strings.HasSuffix(r.stdout, "certificate headers 1\n") {
		t.Errorf("who knows the name: %s", r)
	}
	theirs := shown(t, nil, plex, known)
	for _, sni := range []string{known, "1-2-3-4" + zone, strings.ToUpper(known)} {
		if shown(t, nil, w.listen, sni) != theirs {
			t.Errorf("%s is not passed through", sni)
		}
	}
	// Everybody else meets one and the same decoy.
	decoy := shown(t, nil, w.listen, "www.google.test")
	for _, sni := range []string{
		"plex.direct", "www.plex.direct", hash + ".plex.direct", "a.b" + zone, "192-168-1-7." + strings.Repeat("f", 32) + ".plex.direct",
		"192-168-1-7" + zone + ".test", host("plex"), domain,
	} {
		if got := shown(t, nil, w.listen, sni); got != decoy || got == theirs {
			t.Errorf("%s does not meet the decoy", sni)
		}
	}
	if out := scan(t, w.listen); strings.Contains(out, "plex") || strings.Contains(out, hash) {
		t.Errorf("without a name:\n%s", out)
	}
	// The name is the hello's: a request inside a known host's TLS goes to that host alone.
	phone := w.device("phone")
	if r := w.curl(&phone, "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: "+known, w.url("ha", "/")); r.stdout != "421" {
		t.Errorf("the app's name inside another host's TLS: %s", r)
	}

	// With PROXY protocol the app learns who comes.
	mustRun(t, binary, "agent", "expose", "--data", w.agentDir("first"), "plex", proxied, "--tls", "backend", "--host", "*"+zone, "--proxy-protocol")
	for _, from := range []string{"127.0.0.2", "127.0.0.3", "127.0.0.2"} {
		if r := visit(known, "--interface", from); !strings.Contains(r.stdout, " from "+from+" to "+w.listen+",") {
			t.Errorf("PROXY protocol for %s: %s", from, r)
		}
	}
	// The grant goes, and with it the host.
	mustRun(t, binary, "relay", "grant", "first", "--data", w.relayDir(), "--only", "--hosts", "*."+domain)
	if got := shown(t, nil, w.listen, known); got != decoy {
		t.Error("without the grant the app is still there")
	}
	if r := w.curl(&phone, w.url("ha", "/")); r.stdout != "hello from home\n" {
		t.Errorf("the rest of the home: %s", r)
	}
}
