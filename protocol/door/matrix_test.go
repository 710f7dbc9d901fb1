package door

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// The table of verdicts: what a visitor gets who connects under one name and
// asks for another, in every spelling, over every protocol. There is no other
// verdict, and no cell in which a home is reached that should not be.
const (
	served     = "served" // by the home of that very host
	noTLS      = "no TLS" // the handshake fails
	other      = "421"    // another host than the connection's
	malformed  = "400"    // no host name at all
	denied401  = "401"    // the ask page
	unknown404 = "404"    // a token site without a secret
)

type matrixSite struct {
	pattern, name string // as registered; the name that visitors use
	mode          Mode
}

var matrixSites = []matrixSite{
	{"door.test", "door.test", Require},
	{"*.wild.test", "a.wild.test", Require},
	{"xn--tr-xka.test", "xn--tr-xka.test", Require}, // tür.test
	{"ask.test", "ask.test", Ask},
	{"open.test", "open.test", None},
	{"*.open.test", "b.open.test", None},
	{"tv.test", "tv.test", Token},
}

// spellings of a host in a request, and whether HTTP/1.1 allows them.
func spellings(name string) map[string]bool {
	all := map[string]bool{
		name: true, strings.ToUpper(name): true, name + ".": true, name + ":443": true, name + ".:8443": true, strings.ToUpper(name) + ".": true,
	}
	if name == "xn--tr-xka.test" {
		all["tür.test"] = false
	}
	return all
}

// matrixVisitor is who visits.
type matrixVisitor struct {
	cert   *tls.Certificate
	secret bool
}

// verdict is the table.
func verdict(from matrixSite, v matrixVisitor, same, wellFormed bool) string {
	unseen := from.mode == Token && !v.secret
	switch {
	case from.mode == Require && v.cert == nil:
		return noTLS
	case !wellFormed:
		return malformed
	case !same:
		return other
	case from.mode == Ask && v.cert == nil:
		return denied401
	case unseen:
		return unknown404
	}
	return served
}

func TestHostMatrix(t *testing.T) {
	t.Parallel()
	for _, from := range matrixSites {
		t.Run(from.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			homes := map[string]*atomic.Int32{}
			for _, s := range matrixSites {
				n := &atomic.Int32{}
				homes[s.name] = n
				proxy := w.proxyTo(lively(), nil)
				w.site(s.pattern, s.mode, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					n.Add(1)
					proxy.ServeHTTP(rw, r)
				}))
				if s.mode == Token {
					w.token(s.name, tv, Device{ID: "tv", Name: "tv"})
				}
			}
			cells := 0
			for _, sni := range []string{from.name, strings.ToUpper(from.name)} {
				visitors := []matrixVisitor{{}, {w.phone, true}}
				switch { // what opens other doors opens none here
				case from.mode.asks():
					visitors = append(visitors, matrixVisitor{secret: true})
				case from.mode == Token:
					visitors = append(visitors, matrixVisitor{cert: w.phone})
				}
				for _, visitor := range visitors {
					tickets := map[string]*ticketCache{"h1": {}, "h2": {}, "ws": {}}
					for _, to := range append(matrixSites, matrixSite{name: "nowhere.test"}, matrixSite{name: "c.wild.test"}, matrixSite{name: "wild.test"}) {
						if from.mode == Require && visitor.cert == nil && to != from {
							continue // no host is ever asked for: the handshake fails
						}
						for host, wellFormed := range spellings(to.name) {
							for _, proto := range []string{"h1", "h2", "ws"} {
								cells++
								// net/http takes no U-label in HTTP/1.1; in HTTP/2 it is its A-label.
								want := verdict(from, visitor, to.name == from.name, wellFormed || proto == "h2")
								for _, n := range homes {
									n.Store(0)
								}
								got := w.cell(proto, sni, host, visitor, tickets[proto])
								if got != want {
									t.Errorf("%s: SNI %s asks %s (certificate %v, secret %v): %s, want %s", proto, sni, host, visitor.cert != nil, visitor.secret, got, want)
								}
								for name, n := range homes {
									if reached := n.Load(); reached > 0 && (want != served || name != from.name) || reached == 0 && want == served && name == from.name {
										t.Errorf("%s: SNI %s asks %s: the home of %s was reached %d times", proto, sni, host, name, reached)
									}
								}
							}
						}
					}
				}
			}
			if cells < 400 {
				t.Errorf("only %d cells", cells)
			}
		})
	}
}

// cell makes one request on a connection of its own, and returns the verdict.
// Connections after the first resume its session, which costs half as much.
func (w *world) cell(proto, sni, host string, v matrixVisitor, tickets *ticketCache) string {
	path, fields, headers := "/", []hpack.HeaderField(nil), ""
	if v.secret {
		fields = append(fields, hpack.HeaderField{Name: "authorization", Value: "Bearer " + tv})
		headers = "Authorization: Bearer " + tv + "\r\n"
	}
	alpn, want := "http/1.1", 200
	if proto == "h2" {
		alpn = "h2"
	}
	if proto == "ws" {
		path, want, headers = "/ws", 101, headers+wsHeaders
	}
	near, far := tunneltest.MemConn()
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() { w.door.ServeConn(context.Background(), far) })
	conn := tls.Client(near, w.matrixTLS(sni, v.cert, alpn, tickets))
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	err := conn.Handshake()
	if err != nil {
		return noTLS
	}
	status := 0
	if proto == "h2" {
		status, err = h2Once(conn, host, fields)
	} else {
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", path, host, headers)
		var res *http.Response
		if res, err = http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
			status = res.StatusCode
		}
	}
	switch {
	case status == want:
		return served
	case status != 0:
		return fmt.Sprint(status)
	case strings.Contains(fmt.Sprint(err), "certificate required"):
		return noTLS // in TLS 1.3 the client hears of it when it reads
	}
	return fmt.Sprintf("nothing (%v)", err)
}

func (w *world) matrixTLS(sni string, cert *tls.Certificate, alpn string, tickets *ticketCache) *tls.Config {
	c := w.clientTLS(sni, cert, alpn)
	c.InsecureSkipVerify = true                       // the Go client takes no upper case
	c.CurvePreferences = []tls.CurveID{tls.CurveP256} // cheaper than the hybrid one
	c.ClientSessionCache = tickets
	return c
}

// Server names that crypto/tls does not send: openssl does. Nothing but a name
// of ours, in a spelling that TLS allows, may be answered.
func TestServerNamesOfOtherClients(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("openssl is missing")
		}
		t.Skip("no openssl here")
	}
	w := newWorld(t, nil)
	w.site("open.test", None, w.proxyTo(hello, nil))
	w.site("*.open.test", None, w.proxyTo(hello, nil))
	w.site("xn--tr-xka.test", None, w.proxyTo(hello, nil))
	for sni, want := range map[string]bool{
		"open.test": true, "OPEN.test": true, "a.open.test": true, "A.OPEN.TEST": true, "xn--tr-xka.test": true, "XN--TR-XKA.TEST": true,
		"open.test.": false, "a.open.test.": false, "open.test:443": false, "tür.test": true, "TÜR.test": true, "*.open.test": false, "a.b.open.test": false,
		".open.test": false, "open..test": false, "open.test ": false, " open.test": false, "open.test/": false, "ｏpen.test": false, "open。test": false, "oPeN.tesT": true,
	} {
		host, _, _ := strings.Cut(strings.TrimSpace(sni), ":")
		if strings.Contains(sni, "Ü") || strings.Contains(sni, "ü") {
			host = "xn--tr-xka.test"
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		cmd := exec.CommandContext(ctx, "openssl", "s_client", "-quiet", "-connect", w.addr, "-servername", sni)
		cmd.Stdin = strings.NewReader("GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n")
		out, err := cmd.Output()
		cancel()
		if got := strings.Contains(string(out), "home"); got != want {
			t.Errorf("SNI %q: served %v, want %v: %.80q %v", sni, got, want, out, err)
		}
	}
}
