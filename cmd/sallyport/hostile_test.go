package main

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/cmd/sallyport/button"
	"github.com/sallyport/sallyport/mqttbridge"
)

// hostileText clears the screen, goes up a line, goes back, rings, and turns
// the direction of writing.
const hostileText = "a\x1b[2J\u009b1A\rb\a\u202ec"

func actsOnTerminal(s string) bool { return strings.ContainsAny(s, "\x1b\u009b\r\a\u202e") }

// A relay that could move the cursor would hide the words that a person
// compares, and show others.
func TestRelayCannotActOnTheTerminal(t *testing.T) {
	homeKey, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(homeKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	id, err := mqttbridge.KeyID(spki)
	if err != nil {
		t.Fatal(err)
	}
	home := mqttbridge.Home{
		Name: "kitchen", ID: id, Key: spki, Online: true, Alert: hostileText,
		Actions: []mqttbridge.Action{{
			Name: "garage", Label: hostileText, Confirm: hostileText, Values: []string{hostileText}, Problem: hostileText,
			State: &mqttbridge.Live{Value: hostileText}, Last: &mqttbridge.Last{By: hostileText, State: hostileText, At: time.Now()},
		}},
	}
	device, trust := "phone", http.StatusOK
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, code int, v any) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /api/homes", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"device": device, "homes": []mqttbridge.Home{home}})
	})
	mux.HandleFunc("POST /api/keys", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, trust, map[string]any{"trust": "pending", "error": hostileText, "code": hostileText})
	})
	mux.HandleFunc("GET /api/commands/{id}", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, mqttbridge.Status{State: mqttbridge.Refused, Final: true, Code: hostileText, Reason: hostileText})
	})
	server := httptest.NewServer(mux)
	defer server.Close()

	var out strings.Builder
	r := &remote{
		io: stdio{in: strings.NewReader(""), out: &out, err: &out}, host: "home.example.org",
		client: &button.Client{Base: server.URL, HTTP: server.Client()}, keyFile: filepath.Join(t.TempDir(), "phone.command.key"),
	}
	if err := r.openKey(); err != nil {
		t.Fatal(err)
	}
	homes, err := r.client.Homes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, asJSON := range []bool{false, true} {
		if err := r.list(homes, asJSON); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time the relay refuses
		printError(&out, r.meet(t.Context(), homes[0], ""))
		trust = http.StatusConflict
	}
	printError(&out, checkValue(homes[0].Actions[0], ""))
	st, err := r.client.Command(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	printError(&out, r.end(button.Press{Action: "garage"}, st, time.Second, false))
	if said := out.String(); actsOnTerminal(said) || !strings.Contains(said, "kitchen: a?[2J?1A?b??c\n") || !strings.Contains(said, "refused: a?[2J") {
		t.Errorf("%q", said)
	}

	out.Reset()
	home.Name = "kitchen" + hostileText
	_, err = r.client.Homes(t.Context())
	printError(&out, r.explain(err))
	home.Name, device = "kitchen", "phone"+hostileText
	_, err2 := r.client.Homes(t.Context())
	printError(&out, r.explain(err2))
	if err == nil || err2 == nil || actsOnTerminal(out.String()) {
		t.Errorf("%v, %v: %q", err, err2, out.String())
	}
}

// Errors repeat what others said, whichever command it was.
func TestErrorsAreHarmless(t *testing.T) {
	var b strings.Builder
	printError(&b, failed(exitRefused, "do "+hostileText, errors.New("the relay says: "+hostileText+"\nmore\tof it")))
	if want := "sallyport: the relay says: a?[2J?1A?b??c\n  more\tof it\n  Do a?[2J?1A?b??c\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}
