package profile

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"howett.net/plist"

	"github.com/sallyport/sallyport/protocol/pki"
)

func newCA(t testing.TB, name string) *pki.Authority {
	t.Helper()
	ca, err := pki.NewAuthority(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func config(t testing.TB) Config {
	return Config{
		Name: "anna-phone", Organization: "example.org", SCEPURL: "https://enroll.example.org:8443/scep",
		Challenge: "ABCDEFGHIJKLMNOPQRSTUVWXYZ", CA: newCA(t, "device").Cert(),
		WebClips: []WebClip{{Label: "Home", URL: "https://home.example.org/?a=1&b=<2>", Icon: []byte("\x89PNG")}},
	}
}

// A part is what a device reads of a payload.
type part map[string]any

func (p part) dict(t *testing.T, key string) part {
	t.Helper()
	inner, ok := p[key].(map[string]any)
	if !ok {
		t.Fatalf("%s is a %T", key, p[key])
	}
	return inner
}

func read(t *testing.T, xml []byte) (doc part, parts map[string]part) {
	t.Helper()
	format, err := plist.Unmarshal(xml, &doc)
	if err != nil || format != plist.XMLFormat {
		t.Fatalf("format %d: %v", format, err)
	}
	parts = make(map[string]part)
	content, _ := doc["PayloadContent"].([]any)
	for _, c := range content {
		p := part(c.(map[string]any))
		parts[p["PayloadType"].(string)] = p
	}
	return doc, parts
}

func TestBuild(t *testing.T) {
	cfg := config(t)
	xml, err := Build(cfg)
	if err != nil {
		t.Fatal(err)
	}
	doc, parts := read(t, xml)
	for key, want := range map[string]any{
		"PayloadType": "Configuration", "PayloadVersion": uint64(1), "PayloadIdentifier": "org.example.sallyport",
		"PayloadOrganization": "example.org", "PayloadDisplayName": "example.org",
	} {
		if doc[key] != want {
			t.Errorf("%s is %v (%T), want %v", key, doc[key], doc[key], want)
		}
	}
	scep := parts["com.apple.security.scep"].dict(t, "PayloadContent")
	for key, want := range map[string]any{
		"URL": cfg.SCEPURL, "Challenge": cfg.Challenge, "Key Type": "RSA", "Keysize": uint64(2048), "Key Usage": uint64(5),
		"AllowAllAppsAccess": false, "KeyIsExtractable": false,
	} {
		if scep[key] != want {
			t.Errorf("SCEP: %s is %v, want %v", key, scep[key], want)
		}
	}
	if wait := scep["Retries"].(uint64) * scep["RetryDelay"].(uint64); wait < 600 || wait > 3600 {
		t.Errorf("the device waits %d seconds for an approval", wait)
	}
	sum := sha1.Sum(cfg.CA.Raw)
	if got, _ := scep["CAFingerprint"].([]byte); !bytes.Equal(got, sum[:]) {
		t.Errorf("fingerprint %x", got)
	}
	if !bytes.Contains(xml, []byte("CN")) || !bytes.Contains(xml, []byte("anna-phone")) {
		t.Error("the subject is not there")
	}
	if got, _ := parts["com.apple.security.pkcs1"]["PayloadContent"].([]byte); !bytes.Equal(got, cfg.CA.Raw) {
		t.Error("the device CA is not there")
	}
	if parts["com.apple.security.root"] != nil {
		t.Error("the device is asked to trust a CA for websites")
	}
	clip := parts["com.apple.webClip.managed"]
	if clip["URL"] != cfg.WebClips[0].URL || clip["Label"] != "Home" || clip["FullScreen"] != false || clip["IsRemovable"] != true {
		t.Errorf("web clip %v", clip)
	}
}

// TestIdentifiers: every part has a UUID and an identifier of its own; of two
// profiles the identifiers are the same, so that the later replaces the earlier.
func TestIdentifiers(t *testing.T) {
	cfg := config(t)
	ca := newCA(t, "server")
	cfg.Roots = []*x509.Certificate{ca.Cert(), newCA(t, "server").Cert()}
	cfg.WebClips = append(cfg.WebClips, WebClip{Label: "Two", URL: "https://two.example.org/"})
	var ids, uuids [2][]string
	for i := range 2 {
		xml, err := Build(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`<key>Payload(Identifier|UUID)</key>\s*<string>([^<]*)</string>`).FindAllSubmatch(xml, -1) {
			if string(m[1]) == "UUID" {
				uuids[i] = append(uuids[i], string(m[2]))
			} else {
				ids[i] = append(ids[i], string(m[2]))
			}
		}
	}
	const parts = 1 + 2 + 2 + 2
	if len(ids[0]) != parts || strings.Join(ids[0], " ") != strings.Join(ids[1], " ") {
		t.Errorf("identifiers %q and %q", ids[0], ids[1])
	}
	seen := make(map[string]bool)
	for _, id := range append(append(append([]string{}, ids[0]...), uuids[0]...), uuids[1]...) {
		if seen[id] {
			t.Errorf("%s stands there twice", id)
		}
		seen[id] = true
	}
	for _, id := range uuids[0] {
		if !regexp.MustCompile(`^[0-9A-F]{8}-[0-9A-F]{4}-4[0-9A-F]{3}-[89AB][0-9A-F]{3}-[0-9A-F]{12}$`).MatchString(id) {
			t.Errorf("%s is no UUID", id)
		}
	}
}

func TestRoots(t *testing.T) {
	cfg := config(t)
	root := newCA(t, "server").Cert()
	cfg.Roots = []*x509.Certificate{root}
	xml, err := Build(cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, parts := read(t, xml)
	if got, _ := parts["com.apple.security.root"]["PayloadContent"].([]byte); !bytes.Equal(got, root.Raw) {
		t.Error("the root is not there")
	}
}

// TestNamesAreText: a name with XML in it stays a name.
func TestNamesAreText(t *testing.T) {
	cfg := config(t)
	cfg.Name = `</string><key>Challenge</key><string>"&'`
	xml, err := Build(cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, parts := read(t, xml)
	scep := parts["com.apple.security.scep"]
	if scep["PayloadDisplayName"] != "Certificate of "+cfg.Name || scep.dict(t, "PayloadContent")["Challenge"] != cfg.Challenge {
		t.Errorf("%v", scep)
	}
}

func TestWithoutName(t *testing.T) {
	cfg := config(t)
	cfg.Name = ""
	xml, err := Build(cfg)
	if err != nil || !bytes.Contains(xml, []byte("this device")) {
		t.Errorf("%v", err)
	}
}

func TestRefused(t *testing.T) {
	for name, edit := range map[string]func(cfg *Config){
		"no CA":          func(cfg *Config) { cfg.CA = nil },
		"no code":        func(cfg *Config) { cfg.Challenge = "" },
		"no domain":      func(cfg *Config) { cfg.Organization = "" },
		"no address":     func(cfg *Config) { cfg.SCEPURL = "" },
		"SCEP in clear":  func(cfg *Config) { cfg.SCEPURL = "http://enroll.example.org/scep" },
		"clip in clear":  func(cfg *Config) { cfg.WebClips[0].URL = "http://home.example.org/" },
		"clip of script": func(cfg *Config) { cfg.WebClips[0].URL = "javascript:alert(1)" },
		"no signing key": func(cfg *Config) { cfg.Sign = &tls.Certificate{Certificate: [][]byte{cfg.CA.Raw}} },
		"broken chain":   func(cfg *Config) { cfg.Sign = &tls.Certificate{Certificate: [][]byte{{1}}, PrivateKey: newKey()} },
		"no chain":       func(cfg *Config) { cfg.Sign = &tls.Certificate{PrivateKey: newKey()} },
		"another's chain": func(cfg *Config) {
			cfg.Sign = &tls.Certificate{Certificate: [][]byte{cfg.CA.Raw}, PrivateKey: newKey()}
		},
	} {
		cfg := config(t)
		edit(&cfg)
		data, err := Build(cfg)
		if err == nil {
			t.Errorf("%s: built %q", name, data)
		} else if strings.Contains(err.Error(), "ABCDEFG") {
			t.Errorf("%s: the code is in the error: %v", name, err)
		}
	}
}

func newKey() crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

// TestSigned: openssl and another library agree that the profile is signed by
// the host that serves it, and what is in it.
func TestSigned(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("openssl is not installed")
		}
		t.Skip("openssl is not installed")
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"RSA": rsaKey, "ECDSA": newKey()} {
		t.Run(name, func(t *testing.T) {
			ca := newCA(t, "server")
			leaf, err := ca.Issue(key.Public(), pki.Grant{Profile: pki.Server, Name: "enroll.example.org"})
			if err != nil {
				t.Fatal(err)
			}
			cfg := config(t)
			at := time.Now().Add(-time.Minute)
			cfg.Now = func() time.Time { return at }
			cfg.Sign = &tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.Cert().Raw}, PrivateKey: key}
			der, err := Build(cfg)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			roots, file := filepath.Join(dir, "roots.pem"), filepath.Join(dir, "anna.mobileconfig")
			if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Cert().Raw}), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, der, 0o600); err != nil {
				t.Fatal(err)
			}
			var xml []byte
			for _, command := range []string{"smime", "cms"} {
				cmd := exec.CommandContext(t.Context(), openssl, command, "-verify", "-inform", "DER", "-in", file, "-CAfile", roots, "-purpose", "sslserver")
				var words bytes.Buffer
				cmd.Stderr = &words
				if xml, err = cmd.Output(); err != nil {
					t.Fatalf("openssl %s: %v\n%s", command, err, words.Bytes())
				}
			}
			_, parts := read(t, bytes.ReplaceAll(xml, []byte("\r\n"), []byte("\n")))
			if parts["com.apple.security.scep"] == nil {
				t.Error("openssl read something else")
			}
			p7, err := pkcs7.Parse(der)
			if err != nil || p7.Verify() != nil || len(p7.Certificates) != 2 {
				t.Errorf("pkcs7: %v", err)
			}
			var signed time.Time
			if err := p7.UnmarshalSignedAttribute(pkcs7.OIDAttributeSigningTime, &signed); err != nil || signed.Unix() != at.Unix() {
				t.Errorf("signed at %v: %v", signed, err)
			}
			if !p7.Signers[0].DigestAlgorithm.Algorithm.Equal(pkcs7.OIDDigestAlgorithmSHA256) {
				t.Error("the digest is not SHA-256")
			}
			der[len(der)/2] ^= 1
			if err := os.WriteFile(file, der, 0o600); err != nil {
				t.Fatal(err)
			}
			if exec.CommandContext(t.Context(), openssl, "smime", "-verify", "-inform", "DER", "-in", file, "-CAfile", roots, "-purpose", "sslserver").Run() == nil {
				t.Error("a changed profile was verified")
			}
		})
	}
}
