package real

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
)

// recorded keeps what goes over a connection: what the relay sees.
type recorded struct {
	net.Conn
	mu      sync.Mutex // guards both
	in, out bytes.Buffer
}

func (r *recorded) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.in.Write(p[:n])
	return n, err
}

func (r *recorded) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.out.Write(p)
	r.mu.Unlock()
	return r.Conn.Write(p)
}

// request sends a request and returns the whole answer.
func request(c net.Conn, host, path, word string) (string, error) {
	_, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nX-Word: %s\r\nConnection: close\r\n\r\n", path, host, word)
	if err != nil {
		return "", err
	}
	answer, err := io.ReadAll(io.LimitReader(c, 1<<20))
	if len(answer) > 0 {
		err = nil
	}
	return string(answer), err
}

// A backend at home that counts who comes.
type guarded struct {
	addr string
	hits atomic.Int32
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.hits.Add(1)
		fmt.Fprintf(w, "the treasure, for %s: %s\n", r.Header.Get("Sallyport-Device"), r.Header.Get("X-Word"))
	}))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	g.addr = srv.Listener.Addr().String()
	return g
}

// TestEndToEndHostileRelay: a relay that was taken over, with all of its keys,
// its policy gone, and false answers to the home, gets no request without a
// device's certificate to a service of the home, and reads nothing of those that
// it carries.
func TestEndToEndHostileRelay(t *testing.T) {
	slow(t)
	t.Parallel()
	w := newWorld(t)
	vault := newGuarded(t)
	w.keep("first", "end_to_end: {certs: internal}\n", "--transport", "tcp")
	w.expose("first", "aaa", startHomeApp(t), "--tls", "agent", "--auth", "none") // before and behind the vault, in the order of the list
	w.expose("first", "vault", vault.addr, "--tls", "agent")
	w.expose("first", "zzz", startHomeApp(t), "--tls", "agent", "--auth", "none")
	own, id := w.ownName("first"), w.indoors("first").ID
	tablet, other := w.homeDevice("first", "tablet"), w.homeDevice("first", "other", "--hosts", "zzz")
	w.roots = w.homeRoots("first")

	type lie struct {
		services []string // are said to be …
		at       string
	}
	var said atomic.Pointer[lie]
	said.Store(new(lie))
	h := w.takeOver(func(svc protocol.Service) protocol.Registration {
		if l := said.Load(); slices.Contains(l.services, svc.Name) {
			return protocol.Registration{Name: svc.Name, URL: "https://" + l.at + "/"}
		}
		return protocol.Registration{}
	}, nil)
	s := h.session(id)

	// visit is one visitor that the relay sends, or is. It returns what came back.
	visit := func(o protocol.Open, sni, hostHeader, word string, certs ...tls.Certificate) (string, *recorded, error) {
		t.Helper()
		st, err := h.open(h.session(id), o)
		if err != nil {
			return "", nil, err
		}
		defer st.Close()
		rec := &recorded{Conn: st}
		// Who attacks does not look at the certificate.
		conf := &tls.Config{ServerName: sni, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if len(certs) == 0 {
				return new(tls.Certificate), nil
			}
			return &certs[0], nil // whatever CA it was asked for
		}
		c := tls.Client(rec, conf)
		if err := c.HandshakeContext(t.Context()); err != nil {
			return "", rec, err
		}
		answer, err := request(c, hostHeader, "/", word)
		return answer, rec, err
	}
	to := func(service, sni string) protocol.Open { return protocol.Open{Service: service, SNI: sni} }
	load := func(d device) tls.Certificate {
		pair, err := tls.LoadX509KeyPair(d.cert, d.key)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}

	// Honest visitors get through a hostile relay, which reads nothing.
	word := secret()
	answer, seen, err := visit(to("vault", host("vault")), host("vault"), host("vault"), word, load(tablet))
	if err != nil || !strings.Contains(answer, "the treasure, for tablet: "+word) || vault.hits.Load() != 1 {
		t.Fatalf("a device through the hostile relay: %q, %v", answer, err)
	}
	for _, what := range []string{word, "treasure", "GET /", "tablet"} {
		if strings.Contains(seen.in.String(), what) || strings.Contains(seen.out.String(), what) {
			t.Errorf("the relay reads %q", what)
		}
	}
	if !strings.Contains(seen.out.String(), host("vault")) || seen.in.Len() < 500 {
		t.Error("nothing was recorded: the hello must be in the clear")
	}

	// Certificates that it makes itself.
	evil, err := pki.NewAuthority("device-ca", nil)
	if err != nil {
		t.Fatal(err)
	}
	forged := map[string]tls.Certificate{
		"the relay's device CA": h.certificate(h.devices, pki.Grant{Profile: pki.Device, Name: "tablet"}),
		"the relay's agent CA":  h.certificate(h.agents, pki.Grant{Profile: pki.Device, Name: "tablet"}),
		"a CA of its own":       h.certificate(evil, pki.Grant{Profile: pki.Device, Name: "tablet"}),
	}
	stolen := load(tablet)
	stolen.PrivateKey = forged["a CA of its own"].PrivateKey
	forged["the tablet's certificate, without its key"] = stolen
	forged["a device for another host"] = load(other)
	attacks := func(when string) {
		t.Helper()
		before := vault.hits.Load()
		for what, cert := range forged {
			for _, sni := range []string{host("vault"), "192-168-1-7." + own} {
				if answer, _, err := visit(to("vault", sni), sni, sni, "", cert); err == nil && strings.Contains(answer, "treasure") {
					t.Errorf("%s: %s at %s: %q", when, what, sni, answer)
				}
			}
		}
		services := []string{"vault", "aaa", "sallyport-home"}
		snis := []string{host("vault"), host("aaa"), host("zzz"), own, "enroll." + own, "check." + own, "10-0-0-1." + own, "x." + domain, ""}
		for _, service := range services {
			for _, sni := range snis {
				for _, header := range []string{host("vault"), sni} {
					if header == "" {
						continue
					}
					// The name in Open is the relay's word; what counts is the hello's.
					answer, _, err := visit(to(service, host("zzz")), sni, header, "")
					if err == nil && strings.Contains(answer, "treasure") {
						t.Errorf("%s: %s for %q, Host %s: %q", when, service, sni, header, answer)
					}
				}
			}
			// Without TLS, and with the service as the backend would like it.
			if st, err := h.open(h.session(id), to(service, host("vault"))); err == nil {
				if answer, _ := request(st, host("vault"), "/", ""); strings.Contains(answer, "treasure") {
					t.Errorf("%s: %s in the clear: %q", when, service, answer)
				}
				st.Close()
			}
			if st, err := h.open(h.session(id), protocol.Open{Service: service, SNI: host("vault"), Packets: true}); err == nil {
				t.Errorf("%s: %s is taken for datagrams", when, service)
				st.Close()
			}
		}
		// What a device said before is said again.
		if st, err := h.open(h.session(id), to("vault", host("vault"))); err == nil {
			_, _ = st.Write(seen.out.Bytes())
			_, _ = io.ReadAll(io.LimitReader(st, 1<<16))
			st.Close()
		}
		if n := vault.hits.Load(); n != before {
			t.Errorf("%s: %d requests came to the vault without a device", when, n-before)
		}
	}
	attacks("true answers")

	// The relay says that services are at one host, or at one of others.
	all := []string{"aaa", "vault", "zzz"}
	for _, l := range []lie{
		{[]string{"aaa", "vault"}, "x." + domain},
		{[]string{"vault", "zzz"}, "x." + domain},
		{[]string{"vault"}, host("zzz")},
		{all, host("aaa")},
		{all, own},
		{[]string{"vault"}, "check." + own},
	} {
		said.Store(&l)
		s.Close(protocol.CodeGoingAway, "again")
		eventually(t, time.Minute, "the home is back", func() bool { s = h.session(id); return s.Err() == nil })
		eventually(t, 10*time.Second, "the home has the relay's word", func() bool {
			return slices.ContainsFunc(w.indoors("first").Services, func(svc control.ServiceStatus) bool {
				return svc.Name == "vault" && svc.URL == "https://"+l.at+"/"
			})
		})
		attacks(fmt.Sprintf("%v are said to be at %s", l.services, l.at))
	}
	if answer, _, err := visit(to("vault", host("vault")), host("vault"), host("vault"), word, load(tablet)); err != nil || !strings.Contains(answer, "the treasure, for tablet") {
		t.Errorf("a device, after all of that: %q, %v", answer, err)
	}
}
