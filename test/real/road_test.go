package real

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// TestRoad is README's road with two processes.
func TestRoad(t *testing.T) {
	t.Parallel()
	needTools(t, "curl")
	w := newWorld(t)
	w.home("first", "--expose", "ha="+startHomeApp(t))
	phone := w.device("phone")

	t.Run("home page over h2 with the certificate", func(t *testing.T) {
		r := w.curl(&phone, "--http2", "-w", "%{http_version} %{http_code}", w.url("ha", "/"))
		if r.code != 0 || r.stdout != "hello from home\n2 200" {
			t.Fatal(r)
		}
	})
	t.Run("and over HTTP/1.1", func(t *testing.T) {
		r := w.curl(&phone, "--http1.1", "-w", "%{http_version} %{http_code}", w.url("ha", "/"))
		if r.code != 0 || r.stdout != "hello from home\n1.1 200" {
			t.Fatal(r)
		}
	})
	t.Run("no certificate, no handshake", func(t *testing.T) {
		for _, version := range []string{"--http1.1", "--http2"} {
			r := w.curl(nil, version, w.url("ha", "/"))
			if r.code == 0 || r.stdout != "" {
				t.Fatalf("somebody without a certificate gets an answer: %s", r)
			}
			if !strings.Contains(r.stderr, "certificate required") && !strings.Contains(r.stderr, "alert") {
				t.Errorf("want a TLS alert: %s", r)
			}
		}
	})
	t.Run("a certificate of another CA, no handshake", func(t *testing.T) {
		needTools(t, "openssl")
		stranger := selfSigned(t, w.dir, "stranger")
		if r := w.curl(&stranger, w.url("ha", "/")); r.code == 0 || r.stdout != "" {
			t.Fatalf("a self-made certificate is let in: %s", r)
		}
	})
	t.Run("host that is not the TLS name gets 421", func(t *testing.T) {
		for _, other := range []string{host("other"), "ha." + domain + ".evil.test", domain} {
			for _, version := range []string{"--http1.1", "--http2"} {
				r := w.curl(&phone, version, "-o", w.file("421"), "-w", "%{http_code}", "-H", "Host: "+other, w.url("ha", "/"))
				if r.code != 0 || r.stdout != "421" {
					t.Errorf("%s Host %s: want 421: %s", version, other, r)
				}
				body, _ := os.ReadFile(w.file("421"))
				if strings.Contains(string(body), "hello from home") {
					t.Errorf("Host %s: the home answered", other)
				}
			}
		}
	})
	t.Run("TLS 1.2 is refused where a certificate is asked for", func(t *testing.T) {
		if r := w.curl(&phone, "--tls-max", "1.2", w.url("ha", "/")); r.code == 0 {
			t.Fatal(r)
		}
	})
	t.Run("identity headers are the relay's, not the visitor's", func(t *testing.T) {
		r := w.curl(&phone, "--interface", "127.0.0.2", "-H", "Sallyport-Device: admin", "-H", "sallyport_device: admin", "-H", "X-Forwarded-For: 8.8.8.8",
			"-H", "X-Real-IP: 8.8.8.8", "-H", "Remote-User: admin", "-H", "Client-Cert: :AAAA:", w.url("ha", "/seen?q=1"))
		var seen struct {
			Host, URI string
			Header    http.Header
		}
		if err := json.Unmarshal([]byte(r.stdout), &seen); err != nil {
			t.Fatalf("%v: %s", err, r)
		}
		for name, want := range map[string]string{"Sallyport-Device": "phone", "X-Real-Ip": "127.0.0.2", "X-Forwarded-For": "127.0.0.2", "X-Forwarded-Proto": "https", "Remote-User": ""} {
			if got := strings.Join(seen.Header.Values(name), "|"); got != want {
				t.Errorf("%s: the home sees %q, want %q", name, got, want)
			}
		}
		for name, values := range seen.Header {
			for _, v := range values {
				if v == "admin" || strings.Contains(v, "8.8.8.8") || v == ":AAAA:" {
					t.Errorf("%s: %s came through", name, v)
				}
			}
		}
		if want := host("ha") + ":" + w.port(); seen.Host != want || seen.URI != "/seen?q=1" {
			t.Errorf("the home sees host %q, URI %q", seen.Host, seen.URI)
		}
	})
	t.Run("plain HTTP redirects", func(t *testing.T) {
		var answers []string
		for _, name := range []string{host("ha"), "unknown.test"} {
			r := run(t, "", "curl", "-sS", "--noproxy", "*", "--max-time", "20", "-o", os.DevNull, "-w", "%{http_code} %{redirect_url}",
				"-H", "Host: "+name, "http://"+w.http+"/a?b=c")
			if r.code != 0 {
				t.Fatal(r)
			}
			answers = append(answers, strings.ReplaceAll(r.stdout, name, "NAME"))
		}
		if want := "308 https://NAME:" + w.port() + "/a?b=c"; answers[0] != want && answers[0] != strings.Replace(want, "308", "301", 1) {
			t.Errorf("answer %q, want %q", answers[0], want)
		}
		if answers[0] != answers[1] {
			t.Errorf("known and unknown names can be told apart: %q", answers)
		}
	})
	t.Run("expose and unexpose while it runs", func(t *testing.T) {
		out := w.expose("first", "late", "http://"+startHomeApp(t))
		if !strings.Contains(out, w.url("late", "/")) || !strings.Contains(out, "unexpose late") {
			t.Errorf("want the URL and the undo line, got %q", out)
		}
		w.get(phone, "late", "/")
		mustRun(t, binary, "agent", "unexpose", "--data", w.agentDir("first"), "late")
		eventually(t, 5*time.Second, "late is gone", func() bool {
			return !strings.Contains(w.curl(&phone, w.url("late", "/")).stdout, "hello from home")
		})
		w.get(phone, "ha", "/") // the tunnel was not dropped
	})
	t.Run("a host per device", func(t *testing.T) {
		w.expose("first", "nas", startHomeApp(t))
		guest := w.device("guest", "--hosts", host("nas"))
		w.get(guest, "nas", "/")
		if r := w.curl(&guest, "--fail", w.url("ha", "/")); r.code == 0 {
			t.Errorf("a device for nas came in at ha: %s", r)
		}
	})
	t.Run("path routes", func(t *testing.T) {
		w.expose("first", "lamp", "http://"+startHomeApp(t), "--host", host("geek"), "--path", "/livinglamp/")
		if body := w.get(phone, "geek", "/livinglamp/seen?x=%2f"); !strings.Contains(body, `"uri":"/seen?x=%2f"`) {
			t.Errorf("the prefix is not stripped or the query is changed: %s", body)
		}
		for _, trick := range []string{"/", "/livinglamp/../seen", "/livinglamp/%2e%2e/seen", "/livinglamp%2fseen", "/other/"} {
			r := w.curl(&phone, "--path-as-is", "-o", os.DevNull, "-w", "%{http_code}", w.url("geek", trick))
			if r.code != 0 || !strings.HasPrefix(r.stdout, "4") {
				t.Errorf("%s: want a 4xx: %s", trick, r)
			}
		}
	})
	t.Run("a second home cannot take the name", func(t *testing.T) {
		w.home("thief", "--expose", "x="+startHomeApp(t))
		w.get(phone, "x.thief", "/") // a limited home's default names lie within its limit
		r := run(t, "", binary, "agent", "expose", "--data", w.agentDir("thief"), "--host", host("ha"), "stolen", startHomeApp(t))
		if r.code == 0 {
			t.Errorf("a held name is given away: %s", r)
		}
		if body := w.get(phone, "ha", "/"); body != "hello from home\n" {
			t.Errorf("ha answers %q", body)
		}
		w.expose("thief", "own", startHomeApp(t), "--host", "own.thief."+domain)
		w.get(phone, "own.thief", "/")
	})
	t.Run("the second token needs a limit", func(t *testing.T) {
		r := run(t, "", binary, "relay", "token", "--data", w.relayDir())
		if r.code == 0 || !strings.Contains(r.stderr, "--hosts") {
			t.Errorf("want a refusal that says --hosts: %s", r)
		}
	})
	t.Run("status for people", func(t *testing.T) {
		out := mustRun(t, binary, "status", "--data", w.relayDir()) + mustRun(t, binary, "status", "--data", w.agentDir("first"))
		for _, want := range []string{"relay", "agent", host("ha"), "quic"} {
			if !strings.Contains(out, want) {
				t.Errorf("status does not say %q:\n%s", want, out)
			}
		}
	})
}

// TestConnect: the whole reply comes after the client's half-close.
func TestConnect(t *testing.T) {
	t.Parallel()
	needTools(t, "curl")
	w := newWorld(t)
	w.home("first", "--expose", "echo=tcp://"+startEcho(t))
	laptop := w.device("laptop")
	connect := func(stdin string, args ...string) result {
		return run(t, stdin, append([]string{binary, "connect", "--relay", w.listen, "--ca", w.roots}, args...)...)
	}
	cert := []string{"--cert", laptop.cert, "--key", laptop.key}
	for _, in := range []string{"x", "", strings.Repeat("long story ", 500_000)} {
		r := connect(in, append(cert, host("echo"))...)
		if r.code != 0 || r.stdout != strings.ToUpper(in) {
			t.Errorf("%d bytes sent, %d came back, %s", len(in), len(r.stdout), tail(r.String(), 400))
		}
	}
	if r := connect("x", host("echo")); r.code != 77 || r.stdout != "" || !strings.Contains(r.stderr, "--cert") {
		t.Errorf("without a certificate: want exit code 77 and what to do: %s", r)
	}
	if r := connect("x", append(cert, host("nowhere"))...); r.code != 77 {
		t.Errorf("unknown name: want exit code 77: %s", r)
	}
	w.relay.stop()
	if r := connect("x", append(cert, host("echo"))...); r.code != 69 {
		t.Errorf("no relay: want exit code 69: %s", r)
	}
}
