package button_test

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/cmd/sallyport/button"
	"github.com/sallyport/sallyport/mqttbridge"
)

// fakeRelay answers as the command page does, for one home.
type fakeRelay struct {
	*httptest.Server
	key    *ecdh.PrivateKey // of the home
	home   mqttbridge.Home
	device string // who asks

	mu       sync.Mutex // guards what follows
	bodies   []string   // of commands
	last     mqttbridge.Signed
	fail     int // so many commands are taken, but their answers are lost
	status   mqttbridge.Status
	changed  chan struct{} // closed at each change of status
	offered  []byte
	refusal  int // status of the next calls; 0: none
	refusing string
}

func startRelay(t *testing.T) (*fakeRelay, *button.Client, *button.Key) {
	t.Helper()
	r := &fakeRelay{device: "phone", changed: make(chan struct{})}
	var err error
	if r.key, err = ecdh.P256().GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(r.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	id, err := mqttbridge.KeyID(spki)
	if err != nil {
		t.Fatal(err)
	}
	r.home = mqttbridge.Home{Name: "kitchen", ID: id, Key: spki, Online: true, Broker: true, Actions: []mqttbridge.Action{{Name: "garage"}}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/homes", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, map[string]any{"device": r.device, "homes": []mqttbridge.Home{r.home}})
	})
	mux.HandleFunc("POST /api/challenge", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, map[string]any{"challenge": "CHALLENGE", "life_ms": 5000})
	})
	mux.HandleFunc("POST /api/keys", func(w http.ResponseWriter, req *http.Request) {
		var in struct{ Key []byte }
		_ = json.NewDecoder(req.Body).Decode(&in)
		r.mu.Lock()
		r.offered = in.Key
		r.mu.Unlock()
		reply(w, 200, map[string]any{"trust": "pending"})
	})
	mux.HandleFunc("POST /api/commands/{action}", r.command)
	mux.HandleFunc("GET /api/commands/{id}", func(w http.ResponseWriter, _ *http.Request) {
		st, _ := r.now()
		reply(w, 200, st)
	})
	mux.HandleFunc("GET /api/events", r.events)
	r.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		code, body := r.refusal, r.refusing
		r.mu.Unlock()
		if code != 0 {
			w.WriteHeader(code)
			fmt.Fprint(w, body)
			return
		}
		mux.ServeHTTP(w, req)
	}))
	t.Cleanup(r.Close)
	key, made, err := button.OpenKey(filepath.Join(t.TempDir(), "phone.command.key"))
	if err != nil || !made {
		t.Fatalf("made %v, %v", made, err)
	}
	return r, &button.Client{Base: r.URL, HTTP: r.Client()}, key
}

func reply(w http.ResponseWriter, code int, v any) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

func (r *fakeRelay) now() (mqttbridge.Status, chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status, r.changed
}

func (r *fakeRelay) become(state mqttbridge.State, final bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.State, r.status.Final = state, final
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *fakeRelay) command(w http.ResponseWriter, req *http.Request) {
	var in struct {
		Home    string
		Command mqttbridge.Signed
	}
	if err := json.NewDecoder(req.Body).Decode(&in); err != nil {
		reply(w, 400, map[string]any{"error": "unreadable"})
		return
	}
	e, err := in.Command.Envelope()
	r.mu.Lock()
	r.bodies, r.last = append(r.bodies, string(in.Command.Body)), in.Command
	lost := r.fail > 0
	r.fail--
	refuse := r.status.State == mqttbridge.Refused
	if !refuse {
		r.status = mqttbridge.Status{ID: e.ID, State: mqttbridge.Accepted}
	}
	st := r.status
	r.mu.Unlock()
	switch {
	case err != nil || req.Header.Get("Idempotency-Key") != e.ID || in.Home != "kitchen":
		reply(w, 400, map[string]any{"error": "contradiction"})
	case lost:
		panic(http.ErrAbortHandler)
	case refuse:
		st.ID = e.ID
		reply(w, 403, st)
	default:
		reply(w, 202, st)
	}
}

func (r *fakeRelay) events(w http.ResponseWriter, req *http.Request) {
	flush := http.NewResponseController(w)
	fmt.Fprint(w, "event: hello\ndata: {}\n\n")
	_ = flush.Flush()
	last, changed := r.now()
	for {
		select {
		case <-changed:
		case <-req.Context().Done():
			return
		}
		st, next := r.now()
		changed = next
		if st.State == last.State {
			continue
		}
		last = st
		raw, _ := json.Marshal(st)
		fmt.Fprintf(w, "event: ping\ndata:\n\nevent: command\ndata: %s\n\n", raw)
		_ = flush.Flush()
	}
}

func press(t *testing.T, c *button.Client) button.Press {
	t.Helper()
	homes, err := c.Homes(t.Context())
	if err != nil || len(homes) != 1 {
		t.Fatalf("%v, %v", homes, err)
	}
	return button.Press{Home: homes[0], Action: "garage"}
}

func TestPressAndFollow(t *testing.T) {
	r, c, key := startRelay(t)
	p := press(t, c)
	p.PIN = "1234"
	st, err := c.Press(t.Context(), key, p)
	if err != nil || st.State != mqttbridge.Accepted {
		t.Fatalf("%+v, %v", st, err)
	}
	if c.Device != "phone" {
		t.Errorf("device %q", c.Device)
	}
	// What was sent is signed by the key, for this home, with the PIN sealed.
	e, err := r.last.Verify(key.SPKI)
	if err != nil || e.Home != r.home.ID || e.Device != "phone" || e.Challenge != "CHALLENGE" || strings.Contains(r.bodies[0], "1234") {
		t.Errorf("%+v, %v", e, err)
	}
	if pin, err := mqttbridge.OpenPIN(r.key, e); err != nil || pin != "1234" {
		t.Errorf("PIN %q, %v", pin, err)
	}
	if life := e.NotAfter.Sub(e.Issued); life != 5*time.Second {
		t.Errorf("life %v", life)
	}
	var seen []mqttbridge.State
	st, err = c.Follow(t.Context(), st, func(now mqttbridge.Status) {
		seen = append(seen, now.State)
		switch now.State {
		case mqttbridge.Accepted:
			go r.become(mqttbridge.Delivered, false)
		case mqttbridge.Delivered:
			go r.become(mqttbridge.Done, true)
		}
	})
	if err != nil || st.State != mqttbridge.Done {
		t.Errorf("%+v, %v", st, err)
	}
	if want := []mqttbridge.State{mqttbridge.Accepted, mqttbridge.Delivered, mqttbridge.Done}; !slices.Equal(seen, want) {
		t.Errorf("seen %v", seen)
	}
}

// An answer that is lost is asked for again with the same bytes: the home
// knows the id.
func TestLostAnswers(t *testing.T) {
	r, c, key := startRelay(t)
	p := press(t, c)
	r.fail = 2
	st, err := c.Press(t.Context(), key, p)
	if err != nil || st.State != mqttbridge.Accepted {
		t.Fatalf("%+v, %v", st, err)
	}
	if len(r.bodies) != 3 || r.bodies[0] != r.bodies[1] || r.bodies[1] != r.bodies[2] {
		t.Errorf("sent %q", r.bodies)
	}
	r.fail = 100
	st, err = c.Press(t.Context(), key, p)
	if err == nil || st.State != mqttbridge.Unknown || !st.Final {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestRefusals(t *testing.T) {
	r, c, key := startRelay(t)
	p := press(t, c)
	r.status = mqttbridge.Status{State: mqttbridge.Refused, Final: true, Code: mqttbridge.CodePINWrong, Reason: "wrong", AttemptsLeft: 4}
	st, err := c.Press(t.Context(), key, p)
	if err != nil || st.Code != mqttbridge.CodePINWrong || st.AttemptsLeft != 4 || st.Reason != "wrong" {
		t.Errorf("%+v, %v", st, err)
	}
	for _, test := range []struct {
		status int
		body   string
		code   mqttbridge.Code
		reason string
	}{
		{503, `{"error":"the home is offline","code":"offline"}`, mqttbridge.CodeOffline, "the home is offline"},
		{401, `<html>`, "", "the relay answered 401 Unauthorized"},
	} {
		r.mu.Lock()
		r.refusal, r.refusing = test.status, test.body
		r.mu.Unlock()
		_, err := c.Press(t.Context(), key, p)
		if no, ok := errors.AsType[*button.Refusal](err); !ok || no.Code != test.code || no.Reason != test.reason || no.HTTP != test.status {
			t.Errorf("%d: %v", test.status, err)
		}
		if _, err := c.OfferKey(t.Context(), "kitchen", key.SPKI); err == nil {
			t.Error("the key was offered")
		}
	}
}

// A stream of events that breaks off is no end.
func TestFollowAsksWhenTheStreamBreaks(t *testing.T) {
	r, c, key := startRelay(t)
	st, err := c.Press(t.Context(), key, press(t, c))
	if err != nil {
		t.Fatal(err)
	}
	st, err = c.Follow(t.Context(), st, func(now mqttbridge.Status) {
		if now.State == mqttbridge.Accepted {
			r.become(mqttbridge.Done, true) // before the stream stands: only asking tells
			r.CloseClientConnections()
		}
	})
	if err != nil || st.State != mqttbridge.Done {
		t.Errorf("%+v, %v", st, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Follow(ctx, mqttbridge.Status{ID: "x"}, func(mqttbridge.Status) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestKeyFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "laptop.command.key")
	k, made, err := button.OpenKey(file)
	if err != nil || !made {
		t.Fatalf("made %v, %v", made, err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	again, made, err := button.OpenKey(file)
	if err != nil || made || again.ID != k.ID {
		t.Errorf("made %v, %v, %v", made, again, err)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, _, err := button.OpenKey(file); err == nil || !strings.Contains(err.Error(), "agent untrust") {
		t.Errorf("readable by others: %v", err)
	}
	if err := os.WriteFile(file, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := button.OpenKey(file); err == nil { // never replaced: it is trusted somewhere
		t.Error("took a file without a key")
	}
}

// A relay that shows another key for a home gets no command, and no PIN.
func TestHomesArePinned(t *testing.T) {
	r, c, k := startRelay(t)
	place := c.Place("kitchen")
	if known, err := k.Known(place, r.home); known || err != nil {
		t.Errorf("known %v, %v", known, err)
	}
	if err := k.Pin(place, r.home); err != nil {
		t.Fatal(err)
	}
	if known, err := k.Known(place, r.home); !known || err != nil {
		t.Errorf("known %v, %v", known, err)
	}
	other, _, _ := startRelay(t)
	if _, err := k.Known(place, other.home); !errors.Is(err, button.ErrHomeChanged) {
		t.Errorf("another key: %v", err)
	}
	swapped := r.home
	swapped.Key = other.home.Key // the id alone is no proof
	if known, err := k.Known(place, swapped); known || err == nil {
		t.Errorf("another key under the old id: %v, %v", known, err)
	}
	if known, err := k.Known("relay/elsewhere", swapped); known || err == nil {
		t.Errorf("a new home with the id of another: %v, %v", known, err)
	}
	if err := k.Pin("relay/elsewhere", swapped); err == nil {
		t.Error("pinned a home with the id of another")
	}
	if was, err := k.Forget(place); !was || err != nil {
		t.Errorf("forget: %v, %v", was, err)
	}
	if was, err := k.Forget(place); was || err != nil {
		t.Errorf("forget twice: %v, %v", was, err)
	}
	// A file that cannot be read is not begun anew.
	for _, broken := range []string{"{", `{"schema":2}`, `{"schema":1,"homes":{"a":{"id":"x"}}}`} {
		if err := os.WriteFile(k.HomesFile(), []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		if known, err := k.Known(place, r.home); known || err == nil {
			t.Errorf("%s: %v, %v", broken, known, err)
		}
		if err := k.Pin(place, r.home); err == nil {
			t.Errorf("%s was overwritten", broken)
		}
	}
}

func TestWordsAreOfBothKeys(t *testing.T) {
	r, _, k := startRelay(t)
	other, _, k2 := startRelay(t)
	words, err := k.Words(r.home)
	if err != nil || len(strings.Fields(words)) < 6 {
		t.Fatalf("%q, %v", words, err)
	}
	for name, w := range map[string]func() (string, error){
		"home": func() (string, error) { return k.Words(other.home) }, "device": func() (string, error) { return k2.Words(r.home) },
	} {
		if got, err := w(); err != nil || got == words {
			t.Errorf("another %s: %q, %v", name, got, err)
		}
	}
}
