package real

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// selfSigned makes a certificate that no CA of ours signed.
func selfSigned(t *testing.T, dir, name string) device {
	t.Helper()
	d := device{name, filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")}
	mustRun(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
		"-keyout", d.key, "-out", d.cert, "-subj", "/CN="+name, "-addext", "extendedKeyUsage=clientAuth")
	return d
}

// scan is what a scanner learns from a handshake: openssl's whole output.
func scan(t *testing.T, addr string, sni ...string) string {
	t.Helper()
	args := []string{"openssl", "s_client", "-connect", addr, "-showcerts"}
	if len(sni) == 0 {
		args = append(args, "-noservername")
	} else {
		args = append(args, "-servername", sni[0])
	}
	r := run(t, "", args...)
	return r.stdout + r.stderr
}

// names of the owner that no stranger may see.
func namesOwner(out string) bool {
	// What openssl itself echoes is not what the server said.
	var said []string
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "verify_hostname") && !strings.Contains(line, "Connecting to") {
			said = append(said, line)
		}
	}
	text := strings.ToLower(strings.Join(said, ""))
	return strings.Contains(text, "sally") || strings.Contains(text, "subject=cn = ha")
}

// certNames are the names in the certificate that the relay shows for sni.
func certNames(t *testing.T, w *world, sni string) string {
	t.Helper()
	pem := scan(t, w.listen, sni)
	return run(t, pem, "openssl", "x509", "-noout", "-ext", "subjectAltName").stdout
}

// TestScanner: who does not know a host sees no certificate that names the owner.
func TestScanner(t *testing.T) {
	t.Parallel()
	needTools(t, "openssl", "curl")
	plain := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("another site\n")) }))
	plain.StartTLS()
	defer plain.Close()
	for _, c := range []struct{ name, decoy string }{
		{"alert", "off"}, {"page", "page"}, {"other server", "tcp://" + plain.Listener.Addr().String()},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, "--decoy", c.decoy)
			w.home("first", "--expose", "ha="+startHomeApp(t))
			strangers := map[string][]string{
				"unknown below the domain": {host("unknown")},
				"foreign":                  {"www.google.test"},
				"the domain itself":        {domain},
				"no name":                  nil,
			}
			for what, sni := range strangers {
				out := scan(t, w.listen, sni...)
				if namesOwner(out) {
					t.Errorf("%s: the certificate names the owner:\n%s", what, out)
				}
				got := strings.Contains(out, "BEGIN CERTIFICATE")
				if c.decoy == "off" && (got || !strings.Contains(out, "unrecognized name")) {
					t.Errorf("%s: want the alert unrecognized_name and no certificate:\n%s", what, out)
				}
				if c.decoy != "off" && !got {
					t.Errorf("%s: want the decoy's certificate:\n%s", what, out)
				}
			}
			// Who knows the name gets in, however it is spelled.
			for _, known := range []string{host("ha"), strings.ToUpper(host("ha"))} {
				if names := certNames(t, w, known); !strings.Contains(names, "DNS:"+host("ha")) {
					t.Errorf("%s: want the certificate of %s, got %q", known, host("ha"), names)
				}
			}
			phone := w.device("phone")
			if r := w.curl(&phone, w.url("ha", "/")); r.stdout != "hello from home\n" {
				t.Errorf("behind the decoy the home is gone: %s", r)
			}
			want := map[string]string{"page": "200", "other server": "200"}[c.name]
			if r := w.curl(nil, "-k", "-o", os.DevNull, "-w", "%{http_code}", w.url("unknown", "/")); want != "" && r.stdout != want {
				t.Errorf("a browser at the decoy: want %s: %s", want, r)
			}
			if c.name == "other server" {
				if r := w.curl(nil, "-k", w.url("unknown", "/")); r.stdout != "another site\n" {
					t.Errorf("the decoy is not the other server: %s", r)
				}
			}
			// Not TLS at all, and the tunnel's ALPNs under a name that is not the tunnel's.
			conn, err := net.Dial("tcp", w.listen)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write([]byte("GET / HTTP/1.1\r\nHost: " + host("ha") + "\r\n\r\n"))
			buf := make([]byte, 4096)
			n, _ := conn.Read(buf)
			conn.Close()
			if strings.Contains(strings.ToLower(string(buf[:n])), "sally") {
				t.Errorf("plain HTTP on the TLS port says %q", buf[:n])
			}
			for _, alpn := range []string{"sallyport/1", "sallyport-join/1"} {
				r := run(t, "", "openssl", "s_client", "-connect", w.listen, "-servername", host("unknown"), "-alpn", alpn)
				if out := r.stdout + r.stderr; namesOwner(strings.ReplaceAll(out, alpn, "")) {
					t.Errorf("%s under an unknown name: %s", alpn, out)
				}
			}
		})
	}
}

// TestBundles: openssl reads what device add writes, and its requests are signed.
func TestBundles(t *testing.T) {
	t.Parallel()
	needTools(t, "openssl", "curl")
	w := newWorld(t)
	w.home("first", "--expose", "ha="+startHomeApp(t))
	t.Run("p12", func(t *testing.T) {
		file := w.file("anna.p12")
		password := mustRun(t, binary, "device", "add", "--data", w.relayDir(), "anna-phone", "--p12", file)
		if strings.Count(password, "\n") != 1 || strings.ContainsAny(strings.TrimSuffix(password, "\n"), " \n") {
			t.Fatalf("want the password alone on stdout, got %q", password)
		}
		if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want 0600", file, st.Mode(), err)
		}
		pem := w.file("anna.pem")
		mustRun(t, "openssl", "pkcs12", "-legacy", "-in", file, "-nodes", "-passin", "pass:"+strings.TrimSpace(password), "-out", pem)
		anna := device{"anna-phone", pem, pem}
		w.get(anna, "ha", "/")
		if r := run(t, "", "openssl", "pkcs12", "-legacy", "-in", file, "-nodes", "-passin", "pass:wrong"); r.code == 0 {
			t.Error("any password opens the file")
		}
	})
	t.Run("p12 with a password file", func(t *testing.T) {
		file, pw := w.file("bob.p12"), w.file("bob.pw")
		if out := mustRun(t, binary, "device", "add", "--data", w.relayDir(), "--p12", file, "--password-file", pw, "bob"); out != "" {
			t.Errorf("stdout %q", out)
		}
		if st, err := os.Stat(pw); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want 0600", pw, st.Mode(), err)
		}
		mustRun(t, "openssl", "pkcs12", "-legacy", "-in", file, "-nodes", "-passin", "file:"+pw, "-out", w.file("bob.pem"))
		w.get(device{"bob", w.file("bob.pem"), w.file("bob.pem")}, "ha", "/")
	})
	t.Run("csr", func(t *testing.T) {
		d := device{"tablet", w.file("tablet.crt"), w.file("tablet.key")}
		// What the request asks for is ignored: the subject and the rights are the relay's.
		mustRun(t, "openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", d.key, "-out", w.file("tablet.csr"),
			"-subj", "/CN=admin/O=Owner", "-addext", "basicConstraints=CA:TRUE", "-addext", "subjectAltName=DNS:"+host("ha"))
		mustRun(t, binary, "device", "add", "--data", w.relayDir(), "tablet", "--csr", w.file("tablet.csr"), "--out", d.cert)
		text := mustRun(t, "openssl", "x509", "-in", d.cert, "-noout", "-text")
		for _, bad := range []string{"admin", "Owner", "CA:TRUE", host("ha")} {
			if strings.Contains(text, bad) {
				t.Errorf("the certificate takes %q from the request:\n%s", bad, text)
			}
		}
		if !strings.Contains(text, "tablet") || !strings.Contains(text, "TLS Web Client Authentication") {
			t.Errorf("not a device's certificate:\n%s", text)
		}
		w.get(d, "ha", "/")
	})
	t.Run("csr that is no good", func(t *testing.T) {
		weak := w.file("weak.csr")
		mustRun(t, "openssl", "req", "-new", "-newkey", "rsa:1024", "-nodes", "-keyout", w.file("weak.key"), "-out", weak, "-subj", "/CN=x")
		junk := w.file("junk.csr")
		if err := os.WriteFile(junk, []byte("not PEM"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{weak, junk, w.file("absent.csr")} {
			if r := run(t, "", binary, "device", "add", "--data", w.relayDir(), "bad", "--csr", f, "--out", w.file("bad.crt")); r.code == 0 {
				t.Errorf("%s is signed: %s", f, r)
			}
		}
	})
	t.Run("names are unique", func(t *testing.T) {
		if r := run(t, "", binary, "device", "add", "--data", w.relayDir(), "tablet", "--pem", w.dir); r.code == 0 {
			t.Error("a second live device of the same name")
		}
	})
	list := mustRun(t, binary, "device", "list", "--data", w.relayDir())
	for _, want := range []string{"anna-phone", "bob", "tablet"} {
		if !strings.Contains(list, want) {
			t.Errorf("device list lacks %s:\n%s", want, list)
		}
	}
}
