package door

import (
	"crypto/x509"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

// mirror answers with the headers and trailers that reached home.
func mirror(got chan<- *http.Request) http.Handler {
	return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		got <- r
	})
}

var spoofs = []string{
	"Client-Cert", "client_cert", "CLIENT-CERT-CHAIN", "X-Forwarded-Client-Cert", "X_Forwarded_Client_Cert",
	"X-SSL-Client-Cert", "X-Ssl-Verify", "x_ssl_client_s_dn", "X-Forwarded-Tls-Client-Cert", "X-Forwarded-Tls-Client-Cert-Info",
	"Sallyport-Device", "Sallyport_Device", "Sallyport-Anything", "X-Forwarded-For", "X_Forwarded_For", "X-Forwarded-Host",
	"X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-User", "X-Forwarded-Prefix", "Forwarded", "X-Real-IP", "X_Real_IP",
	"True-Client-IP", "True_Client_Ip", "Remote-User", "Remote_Groups", "remote_user", "REMOTE-USER", "Remote_User", "Client_Cert_Chain", "client-cert_chain", "X-Remote-User", "X_Remote_User",
	"X-WebAuth-User", "X_WEBAUTH_USER", "X-Original-URL", "X-Rewrite-URL", "Proxy",
	"X-Forwarded", "x_forwarded", "X-Client-Id", "X-Client-IP", "X_Client_Cert", "X-Proxyuser-Ip", "X-Original-Method",
	"SCRIPT_NAME", "script-name", "PATH_INFO", "Path-Info", "PATH_TRANSLATED", "path-translated",
	"X-Script-Name", "X_SCRIPT_NAME", "X-Ingress-Path", "X_Ingress_Path", "X-Override-URL", "x_override_url",
	"Tailscale-User-Login", "tailscale_user_name", "Cf-Access-Authenticated-User-Email", "cf_access_jwt_assertion",
	"X-Goog-Authenticated-User-Email", "x_goog_authenticated_user_id", "X-MS-Client-Principal", "X_MS_CLIENT_PRINCIPAL_NAME",
	"X-Pomerium-Claim-Email", "x_pomerium_jwt_assertion", "X-Auth-User", "X-Auth-Username", "x_auth_user_id", "Auth-User", "AUTH_USER",
	"Script.Name", "remote.user", "X-Forwarded~For", "Sallyport!Device",
}

// honest headers look like those above and are the visitor's own.
var honest = []string{
	"Script", "Path", "X-Ingress", "X-Override", "X-Auth-Token", "X-Auth-Key", "Author", "X-Goog-Api-Key", "X-Ms-Date", "Tailscale-Foo", "Cf-Ray",
}

func TestSpoofedHeaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	got := make(chan *http.Request, 1)
	w.site("pub.test", None, w.proxyTo(mirror(got), nil))
	w.site("door.test", Require, w.proxyTo(mirror(got), func(b *Backend) { b.ExternalPort, b.RemoteUser = "8443", true }))
	w.site("plain.test", Ask, w.proxyTo(mirror(got), nil))
	w.site("tv.test", Token, w.proxyTo(mirror(got), func(b *Backend) { b.RemoteUser = true }))
	w.token("tv.test", tv, Device{ID: "tv", Name: "tv"})
	cert := ":" + base64.StdEncoding.EncodeToString(w.phone.Leaf.Raw) + ":"
	chain := ":" + base64.StdEncoding.EncodeToString(w.devices.cert.Raw) + ":"

	for _, host := range []string{"pub.test", "door.test", "plain.test", "tv.test"} {
		for _, kind := range []string{"header", "connection", "trailer", "h2", "h2 trailer"} {
			c := w.client(host, w.phone, strings.HasPrefix(kind, "h2"))
			for _, name := range spoofs {
				req, _ := http.NewRequest("POST", "https://"+host+"/", nil)
				switch kind {
				case "header", "h2":
					req.Header[name] = []string{"spoofed"}
				case "connection":
					req.Header[name] = []string{"spoofed"}
					req.Header.Set("Connection", name+", Client-Cert, Client-Cert-Chain, Remote-User, Sallyport-Device, X-Forwarded-For, X-Real-Ip, Forwarded")
				default:
					req.Body, req.ContentLength = io.NopCloser(strings.NewReader("x")), -1
					req.Trailer = http.Header{name: {"spoofed"}, "X-Sum": {"fine"}}
				}
				if host == "tv.test" {
					req.Header.Set("Authorization", "Bearer "+tv)
				}
				for _, h := range honest {
					req.Header.Set(h, "mine")
				}
				res, err := c.Do(req)
				ok(t, err)
				res.Body.Close()
				r := <-got
				for _, h := range []http.Header{r.Header, r.Trailer} {
					for k, v := range h {
						if strings.Contains(strings.Join(v, ""), "spoofed") {
							t.Errorf("%s, %s: home got %s: %q", host, kind, k, v)
						}
					}
				}
				for _, h := range honest {
					if r.Header.Get(h) != "mine" {
						t.Errorf("%s, %s: home did not get the honest %s", host, kind, h)
					}
				}
				want := map[string]string{
					"X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": host,
					"Forwarded": "for=127.0.0.1;host=" + host + ";proto=https", "Client-Cert": "", "Client-Cert-Chain": "", "Sallyport-Device": "", "Remote-User": "", "X-Forwarded-Port": "", "Authorization": "",
				}
				switch host {
				case "door.test":
					want["Client-Cert"], want["Client-Cert-Chain"], want["Sallyport-Device"], want["Remote-User"], want["X-Forwarded-Port"] = cert, chain, "phone", "phone", "8443"
				case "plain.test":
					want["Client-Cert"], want["Client-Cert-Chain"], want["Sallyport-Device"] = cert, chain, "phone"
				case "tv.test":
					want["Sallyport-Device"], want["Remote-User"] = "tv", "tv"
				}
				for k, v := range want {
					if have := strings.Join(r.Header.Values(k), "|"); have != v {
						t.Errorf("%s, %s %s: home got %s: %q, want %q", host, kind, name, k, have, v)
					}
				}
				if strings.HasSuffix(kind, "trailer") && r.Trailer.Get("X-Sum") != "fine" {
					t.Errorf("%s: an honest trailer was lost: %v", kind, r.Trailer)
				}
				if r.Host != host {
					t.Errorf("Host %q", r.Host)
				}
			}
		}
	}
}

func TestForwardedForIPv6(t *testing.T) {
	h := http.Header{}
	setIdentity(h, Visitor{Remote: netip.MustParseAddrPort("[2001:db8::1%eth0]:1234")}, "ha.test:8443", "https", "", "/lamp/", false)
	for k, want := range map[string]string{
		"Remote-User": "", "Client-Cert": "", "Client-Cert-Chain": "",
		"Forwarded": `for="[2001:db8::1]";host="ha.test:8443";proto=https`, "X-Forwarded-For": "2001:db8::1", "X-Forwarded-Prefix": "/lamp",
	} {
		if got := h.Get(k); got != want {
			t.Errorf("%s: %s, want %s", k, got, want)
		}
	}
	if got := addrPort(&net.TCPAddr{IP: net.ParseIP("::ffff:192.0.2.1"), Port: 5}); got.String() != "192.0.2.1:5" {
		t.Error("mapped address:", got)
	}
}

func TestDeviceNameInHeader(t *testing.T) {
	for name, want := range map[string]string{"phone": "phone", "": "id", "a\r\nX: y": "id", "ä": "id", "a b": "id", `a"b`: "id"} {
		if got := headerName(Device{ID: "id", Name: name}); got != want {
			t.Errorf("%q: %q", name, got)
		}
	}
}

func TestUpgradesOtherThanWebSocketAreStripped(t *testing.T) {
	w := newWorld(t, nil)
	got := make(chan *http.Request, 1)
	w.site("pub.test", None, w.proxyTo(mirror(got), nil))
	for _, upgrade := range []string{"h2c", "websocket, h2c", "TLS/1.0", "foo"} {
		answer := w.raw("pub.test", nil, "GET / HTTP/1.1\r\nHost: pub.test\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: "+upgrade+
			"\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		if statusOf(answer) != 200 {
			t.Fatalf("%s: %q", upgrade, answer)
		}
		r := <-got
		for _, k := range []string{"Upgrade", "Connection", "Http2-Settings"} {
			if v := r.Header.Get(k); v != "" {
				t.Errorf("%s: home got %s: %s", upgrade, k, v)
			}
		}
	}
	// A POST or a WebSocket without key is no WebSocket either.
	for _, request := range []string{
		"POST / HTTP/1.1\r\nHost: pub.test\r\nContent-Length: 1\r\n" + wsHeaders + "\r\nx",
		"GET / HTTP/1.1\r\nHost: pub.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
	} {
		c, err := w.dial(w.clientTLS("pub.test", nil, "http/1.1"))
		ok(t, err)
		io.WriteString(c, request)
		if r := <-got; r.Header.Get("Upgrade") != "" {
			t.Errorf("home got an upgrade: %q", request)
		}
		c.Close()
	}
}

func TestBackendCannotSwitchProtocols(t *testing.T) {
	w := newWorld(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	defer l.Close()
	answers := make(chan string, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 4096)
			c.Read(buf)
			io.WriteString(c, <-answers)
			c.Close()
		}
	}()
	w.site("pub.test", None, w.proxyAddr(l.Addr().String(), nil))
	for _, row := range []struct{ request, answer string }{
		{"GET / HTTP/1.1\r\nHost: pub.test\r\nConnection: close\r\n\r\n", "HTTP/1.1 101 Switching\r\n\r\nTUNNEL"},
		{"GET / HTTP/1.1\r\nHost: pub.test\r\nConnection: close\r\n\r\n", "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nTUNNEL"},
		{"GET / HTTP/1.1\r\nHost: pub.test\r\nConnection: close\r\n" + wsHeaders + "\r\n", "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: bad\r\n\r\nTUNNEL"},
	} {
		answers <- row.answer
		if got := w.raw("pub.test", nil, row.request); statusOf(got) != 502 || strings.Contains(got, "TUNNEL") {
			t.Errorf("%q → %q", row.answer, got)
		}
	}
	// 1xx are bounded.
	answers <- strings.Repeat("HTTP/1.1 103 Early\r\n\r\n", 1000) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	if got := w.raw("pub.test", nil, "GET / HTTP/1.1\r\nHost: pub.test\r\nConnection: close\r\n\r\n"); strings.Count(got, " 103 ") > maxInformational || strings.Contains(got, " 200 ") {
		t.Errorf("%d informational answers", strings.Count(got, " 103 "))
	}
}

// The chain is a list of byte sequences in the order of TLS, without the
// visitor's own certificate (RFC 9440 §2.3).
func TestClientCertChain(t *testing.T) {
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	phone := a.device("phone", nil)
	h := http.Header{}
	setIdentity(h, Visitor{Device: &Device{ID: "id", Cert: phone.Leaf, Chain: []*x509.Certificate{a.cert, b.cert}}}, "ha.test", "https", "", "", true)
	list := strings.Split(h.Get("Client-Cert-Chain"), ", ")
	if len(list) != 2 || h.Get("Remote-User") != "id" {
		t.Fatal(h)
	}
	for i, want := range []*x509.Certificate{a.cert, b.cert} {
		der, err := base64.StdEncoding.DecodeString(strings.Trim(list[i], ":"))
		if err != nil || len(list[i]) < 2 || list[i][0] != ':' || !want.Equal(mustParse(t, der)) {
			t.Errorf("certificate %d: %v", i, err)
		}
	}
}

func mustParse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	ok(t, err)
	return c
}
