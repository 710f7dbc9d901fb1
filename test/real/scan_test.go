package real

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

// A target is what strangers scan: a relay with everything that it offers, and a
// home behind it.
type target struct {
	*echWorld
	secrets []string // lower-case words that nobody may learn who does not know them
}

func newTarget(t *testing.T, decoy string) *target {
	t.Helper()
	at := freePort(t)
	w := &target{echWorld: &echWorld{world: newWorld(t, "--decoy", decoy, "--dns", at, "--dns-address", "127.0.0.1"), dns: at}}
	app := startHomeApp(t)
	w.home("first", "--expose", echAtRelay+"="+app)
	w.expose("first", echAtHome, app, "--tls", "agent", "--auth", "ask")
	joined := joinName.FindStringSubmatch(w.relay.waitFor("target=join", 5*time.Second))
	if joined == nil {
		t.Fatal("the log does not say under which name the home joined")
	}
	w.secrets = []string{"sally", echAtRelay, echAtHome, joined[1]}
	return w
}

// joinName is the random name under which homes find the relay.
var joinName = regexp.MustCompile(`sni=(\w+) .*target=join`)

// tells reports which secrets a tool has found out. What it was given itself it
// may repeat.
func (w *target) tells(t *testing.T, tool, out string, given ...string) {
	t.Helper()
	text := strings.ToLower(out)
	for _, g := range given {
		text = strings.ReplaceAll(text, strings.ToLower(g), "")
	}
	for _, secret := range w.secrets {
		if strings.Contains(text, secret) {
			t.Errorf("%s finds %q:\n%s", tool, secret, out)
		}
	}
}

// TestScanTools: nmap and testssl find the decoy at the relay's port and nothing
// else, over TCP and UDP, and nothing in the DNS.
func TestScanTools(t *testing.T) {
	slow(t)
	t.Parallel()
	for _, decoy := range []string{"off", "page"} {
		t.Run(decoy, func(t *testing.T) {
			t.Parallel()
			w := newTarget(t, decoy)
			tool := func(t *testing.T, name string, limit time.Duration, args ...string) (out string, whole bool) {
				t.Helper()
				needTools(t, args[0])
				// A tool that needs longer on a busy machine is cut: what it has found counts.
				r := runFor(t, limit+20*time.Second, "", append([]string{"timeout", itoa(int(limit.Seconds()))}, args...)...)
				t.Logf("%s: %v, exit code %d", name, r.took.Round(time.Second), r.code)
				w.tells(t, name, r.stdout+r.stderr)
				return r.stdout, r.code != 124
			}
			t.Run("nmap", func(t *testing.T) {
				t.Parallel()
				_, http, _ := net.SplitHostPort(w.http)
				out, whole := tool(t, "nmap", 60*time.Second, "nmap", "-Pn", "-n", "-sV", "--version-light", "--script", "ssl-cert,ssl-enum-ciphers", "-p", w.port()+","+http, "127.0.0.1")
				if open := w.port() + "/tcp open"; whole && !strings.Contains(strings.Join(strings.Fields(out), " "), open) {
					t.Errorf("want %q:\n%s", open, out)
				}
				if got := strings.Contains(out, "Subject: "); whole && got != (decoy != "off") {
					t.Errorf("nmap sees a certificate: %v\n%s", got, out)
				}
				if whole && decoy == "page" && !strings.Contains(out, "commonName=localhost") {
					t.Errorf("not the decoy's certificate:\n%s", out)
				}
				for _, old := range []string{"SSLv3", "TLSv1.0", "TLSv1.1"} {
					if strings.Contains(out, old) {
						t.Errorf("the decoy speaks %s:\n%s", old, out)
					}
				}
			})
			t.Run("testssl", func(t *testing.T) {
				t.Parallel()
				args := []string{"testssl", "--quiet", "--warnings", "off", "--color", "0", "--nodns", "none", "--openssl-timeout", "5"}
				if decoy == "page" {
					out, _ := tool(t, "testssl", 90*time.Second, append(args, "--server-defaults", w.listen)...)
					if names := lineWith(out, "subjectAltName"); names != "" && !strings.Contains(names, "localhost") {
						t.Errorf("not the decoy's certificate: %s", names)
					}
					return
				}
				if out, _ := tool(t, "testssl", 90*time.Second, append(args, "--protocols", w.listen)...); !strings.Contains(out, "doesn't seem to be a TLS/SSL enabled server") {
					t.Errorf("testssl should find no TLS at all:\n%s", out)
				}
			})
			t.Run("nmap over UDP", func(t *testing.T) {
				t.Parallel()
				needRoot(t)
				_, dnsPort, _ := net.SplitHostPort(w.dns)
				tool(t, "nmap -sU", 60*time.Second, "nmap", "-Pn", "-n", "-sU", "-sV", "--version-intensity", "1", "-p", w.port(), "127.0.0.1")
				out, _ := tool(t, "nmap of the DNS", 60*time.Second, "nmap", "-Pn", "-n", "-sUV", "--version-intensity", "1", "--script", "dns-nsid,dns-recursion,dns-cache-snoop", "-p", dnsPort, "127.0.0.1")
				if strings.Contains(out, "Recursion appears to be enabled") || strings.Contains(out, "bind.version") {
					t.Errorf("the DNS says too much:\n%s", out)
				}
			})
		})
	}
}

func lineWith(text, word string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			return line
		}
	}
	return ""
}

// TestStrangersAreAlike: whatever name a stranger tries, and whatever protocol it
// asks for, the answer has the same bytes; over UDP there is none but the alert.
func TestStrangersAreAlike(t *testing.T) {
	t.Parallel()
	needTools(t, "openssl")
	w := newTarget(t, "off")
	config := echOf(w.https(echAtRelay))
	if config == nil {
		t.Fatal("no ECH config")
	}
	// A config with a public name that is not ours: the outer hello names it.
	grease := withAnotherKey(t, bytes.Replace(config, []byte(host(echPublic)), []byte("zzz."+domain), 1))
	known := host(echAtRelay)
	names := []string{"", "unknown.test", domain, host("unknown"), host("relay"), host("admin2"), "x." + known, "127.0.0.1.nip.io"}
	protos := [][]string{nil, {"h2", "http/1.1"}, {"sallyport/1"}, {"sallyport-join/1"}, {"mqtt"}, {"acme-tls/1"}, {"dot"}}
	want := []byte{21, 3, 3, 0, 2, 2, 112} // the alert unrecognized_name
	for _, name := range names {
		for _, alpn := range protos {
			for what, ech := range map[string][]byte{"": nil, " with a foreign ECH": grease} {
				if ech != nil && name == "" {
					continue // crypto/tls wants a name then
				}
				if got := answerTo(t, w.listen, &tls.Config{ServerName: name, NextProtos: alpn, EncryptedClientHelloConfigList: ech, InsecureSkipVerify: true}); !bytes.Equal(got, want) {
					t.Errorf("%q, ALPN %q%s: answered %x", name, alpn, what, got)
				}
			}
		}
	}
	t.Run("UDP", func(t *testing.T) {
		for _, name := range append(names, known) {
			for _, alpn := range [][]string{{"h3"}, {"sallyport/1"}, {"sallyport-join/1"}} {
				seen := 0
				_, err := quic.DialAddr(t.Context(), w.listen, &tls.Config{
					ServerName: name, NextProtos: alpn, InsecureSkipVerify: true,
					VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error { seen = len(raw); return nil },
				}, &quic.Config{HandshakeIdleTimeout: 5 * time.Second})
				e, ok := errors.AsType[*quic.TransportError](err)
				if !ok || !e.Remote || e.ErrorCode != 0x100+112 || seen != 0 {
					t.Errorf("QUIC, %q, ALPN %q: %v, %d certificates", name, alpn, err, seen)
				}
				if ok {
					w.tells(t, "QUIC", e.ErrorMessage, name)
				}
			}
		}
	})
	t.Run("ports", func(t *testing.T) {
		needTools(t, "ss")
		needRoot(t) // to see whose sockets they are
		var open []string
		mine := regexp.MustCompile(`\bpid=` + itoa(w.relay.cmd.Process.Pid) + `,`)
		for line := range strings.Lines(mustRun(t, "ss", "-Hlntup")) {
			if f := strings.Fields(line); mine.MatchString(line) && len(f) > 4 {
				open = append(open, f[0]+" "+f[4])
			}
		}
		want := []string{"tcp " + w.listen, "udp " + w.listen, "tcp " + w.http, "tcp " + w.dns, "udp " + w.dns}
		slices.Sort(open)
		slices.Sort(want)
		if !slices.Equal(open, want) {
			t.Errorf("the relay listens at %v, want %v", open, want)
		}
	})
}

// answerTo returns what the relay answers to a ClientHello before it closes.
func answerTo(t *testing.T, addr string, conf *tls.Config) []byte {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(clientHello(t, conf)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("%q: %v", conf.ServerName, err)
	}
	return got
}

// clientHello is the first flight of crypto/tls.
func clientHello(t *testing.T, conf *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		_ = tls.Client(a, conf).Handshake()
		a.Close()
	}()
	_ = b.SetDeadline(time.Now().Add(5 * time.Second))
	hello := make([]byte, 64<<10)
	n, err := b.Read(hello)
	if err != nil {
		t.Fatalf("no hello: %v", err)
	}
	return hello[:n]
}

// TestScanDNS: the DNS port says nothing of itself, nothing of other zones, and
// of a name that exists what it says of one that does not.
func TestScanDNS(t *testing.T) {
	t.Parallel()
	needTools(t, "dig")
	w := newTarget(t, "off")
	at := netip.MustParseAddrPort(w.dns)
	dig := func(args ...string) string {
		t.Helper()
		all := []string{"dig", "@" + at.Addr().String(), "-p", itoa(int(at.Port())), "+norecurse", "+tries=1", "+time=5", "+nostats", "+nocookie"}
		r := run(t, "", append(all, args...)...)
		return r.stdout + r.stderr
	}
	for _, ask := range [][]string{
		{"CH", "TXT", "version.bind"},
		{"CH", "TXT", "version.server"},
		{"CH", "TXT", "hostname.bind"},
		{"CH", "TXT", "id.server"},
		{"CH", "TXT", "authors.bind"},
		{"IN", "TXT", "version.bind"},
		{"+nsid", "NS", "."},
		{"SOA", "."},
		{"NS", "test"}, // the parent
		{"A", "example.org"},
		{"+recurse", "A", "example.org"},
		{"-x", "127.0.0.1"},
		{"ANY", "."},
		{"AXFR", "."},
		{"AXFR", "test"},
	} {
		out := dig(ask...)
		w.tells(t, "dig "+strings.Join(ask, " "), out)
		if strings.Contains(out, "ANSWER SECTION") || strings.Contains(out, "AUTHORITY SECTION") || strings.Contains(out, "NSID") {
			t.Errorf("dig %s: %s", ask, out)
		}
	}
	if out := dig("AXFR", domain); strings.Contains(out, echAtRelay) || !strings.Contains(out, "Transfer failed") {
		t.Errorf("the whole zone: %s", out)
	}
	// Who knows the domain cannot find its hosts.
	for _, kind := range []string{"A", "AAAA", "HTTPS", "TXT", "CAA", "MX", "ANY"} {
		for _, prefix := range []string{"", "_" + w.port() + "._https."} {
			unknown := anonymous(dig(kind, prefix+host("unknown")), "unknown")
			for _, name := range []string{echAtRelay, echAtHome} {
				if known := anonymous(dig(kind, prefix+host(name)), name); known != unknown {
					t.Errorf("%s of %s%s can be told from a name that does not exist:\n%s\n%s", kind, prefix, name, known, unknown)
				}
			}
		}
	}
}

var queryID = regexp.MustCompile(`id: \d+`)

// anonymous is dig's output without what differs between any two questions.
func anonymous(out, name string) string {
	out = strings.ReplaceAll(queryID.ReplaceAllString(out, "id"), name, "NAME")
	var lines []string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "; <<>>") || strings.Contains(line, "MSG SIZE") {
			continue
		}
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}
