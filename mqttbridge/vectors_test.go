package mqttbridge

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"flag"
	"math/big"
	"os"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors.json; a changed file there is a changed wire")

// vectors is testdata/vectors.json, which the page's tests read too. Bytes are
// base64.
type vectors struct {
	Comment   string           `json:"comment"`
	Home      vectorKey        `json:"home"`   // the home's command key
	Device    vectorKey        `json:"device"` // a device's signing key
	Words     string           `json:"words"`  // TrustWords of the two
	Envelopes []vectorEnvelope `json:"envelopes"`
	PINs      []vectorPIN      `json:"pins"`
}

type vectorKey struct {
	PKCS8 []byte `json:"pkcs8"`
	SPKI  []byte `json:"spki"`
	ID    string `json:"id"`
}

type vectorEnvelope struct {
	Name      string   `json:"name"`
	Envelope  Envelope `json:"envelope"`
	Body      string   `json:"body"`       // what JSON.stringify makes of envelope with its times as toISOString
	SignInput []byte   `json:"sign_input"` // what is hashed and signed
	Signed    Signed   `json:"signed"`     // one valid signature of many (RFC 6979)
}

type vectorPIN struct {
	PIN       string    `json:"pin"`
	Envelope  Envelope  `json:"envelope"` // with the sealed PIN in it
	Ephemeral vectorKey `json:"ephemeral"`
	Nonce     []byte    `json:"nonce"`
	AAD       []byte    `json:"aad"`
	Secret    []byte    `json:"secret"` // of ECDH
	Key       []byte    `json:"key"`    // of AES
	Sealed    string    `json:"sealed"`
}

// testKey derives a private key from a name. It protects nothing.
func testKey(t testing.TB, name string) *ecdsa.PrivateKey {
	t.Helper()
	sum := sha256.Sum256([]byte(name))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func testECDH(t testing.TB, name string) *ecdh.PrivateKey {
	t.Helper()
	key, err := testKey(t, name).ECDH()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func testSPKI(t testing.TB, name string) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(testKey(t, name).Public())
	if err != nil {
		t.Fatal(err)
	}
	return spki
}

func newVectorKey(t *testing.T, name string) vectorKey {
	t.Helper()
	pkcs8, err := x509.MarshalPKCS8PrivateKey(testKey(t, name))
	if err != nil {
		t.Fatal(err)
	}
	id, err := KeyID(testSPKI(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return vectorKey{PKCS8: pkcs8, SPKI: testSPKI(t, name), ID: id}
}

// testEnvelope has every field but the value and the PIN.
func testEnvelope(t testing.TB) Envelope {
	t.Helper()
	home, err := KeyID(testSPKI(t, "home"))
	if err != nil {
		t.Fatal(err)
	}
	issued := time.Date(2026, 5, 1, 12, 3, 4, 0, time.UTC)
	return Envelope{
		Version: Version, ID: "abcdefghijklmnopqrstuvwxyz", Home: home, Action: "garage", Device: "anna-phone",
		Issued: issued, NotAfter: issued.Add(10 * time.Second), Challenge: "q83vEjRWeJCrze8SNFZ4kA",
	}
}

// signFixed is Sign with the one signature that RFC 6979 gives.
func signFixed(t *testing.T, body []byte, name string) Signed {
	t.Helper()
	hash := signedHash(body)
	der, err := testKey(t, name).Sign(nil, hash[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		t.Fatal(err)
	}
	signature := make([]byte, 64)
	rs.R.FillBytes(signature[:32])
	rs.S.FillBytes(signature[32:])
	id, err := KeyID(testSPKI(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return Signed{Body: body, Key: id, Signature: signature}
}

func makeVectors(t *testing.T) vectors {
	t.Helper()
	v := vectors{
		Comment: "Made by go test ./mqttbridge -run TestVectors -update. Keys are SHA-256 of home, device and ephemeral, and protect nothing.",
		Home:    newVectorKey(t, "home"), Device: newVectorKey(t, "device"),
	}
	var err error
	if v.Words, err = TrustWords(v.Home.SPKI, v.Device.SPKI); err != nil {
		t.Fatal(err)
	}
	nonce := []byte("twelve bytes")
	for _, pin := range []string{"1234", "000000000000"} {
		e := testEnvelope(t)
		ephemeral := testECDH(t, "ephemeral")
		if e.PIN, err = sealPIN(v.Home.SPKI, pin, e, ephemeral, nonce); err != nil {
			t.Fatal(err)
		}
		secret, err := ephemeral.ECDH(testECDH(t, "home").PublicKey())
		if err != nil {
			t.Fatal(err)
		}
		key, err := pinKey(secret, ephemeral.PublicKey(), testECDH(t, "home").PublicKey())
		if err != nil {
			t.Fatal(err)
		}
		v.PINs = append(v.PINs, vectorPIN{
			PIN: pin, Envelope: e, Ephemeral: newVectorKey(t, "ephemeral"), Nonce: nonce, AAD: pinContext(e),
			Secret: secret, Key: key, Sealed: e.PIN,
		})
	}
	plain, value, pin := testEnvelope(t), testEnvelope(t), v.PINs[0].Envelope
	value.Value = `50 % "<&>" \ ü €`
	value.Issued = value.Issued.Add(7 * time.Millisecond)
	for _, c := range []struct {
		name string
		e    Envelope
	}{{"plain", plain}, {"value", value}, {"pin", pin}} {
		body, err := c.e.encode()
		if err != nil {
			t.Fatal(err)
		}
		v.Envelopes = append(v.Envelopes, vectorEnvelope{
			Name: c.name, Envelope: c.e, Body: string(body), SignInput: append([]byte(signaturePurpose), body...), Signed: signFixed(t, body, "device"),
		})
	}
	return v
}

// TestVectors holds the package against testdata/vectors.json, which another
// implementation can be held against too: the page's is.
func TestVectors(t *testing.T) {
	const file = "testdata/vectors.json"
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(makeVectors(t)); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Errorf("%s has changed: what pages make is refused now. Got:\n%s", file, b.Bytes())
	}
	var v vectors
	if err := json.Unmarshal(want, &v); err != nil {
		t.Fatal(err)
	}
	for _, c := range v.Envelopes {
		e, err := c.Signed.Verify(v.Device.SPKI)
		if err != nil || e != c.Envelope || string(c.Signed.Body) != c.Body {
			t.Errorf("%s: %+v, %v", c.Name, e, err)
		}
	}
	for _, c := range v.PINs {
		if pin, err := OpenPIN(testECDH(t, "home"), c.Envelope); err != nil || pin != c.PIN {
			t.Errorf("%q, %v, want %q", pin, err, c.PIN)
		}
	}
}
