package button_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/cmd/sallyport/button"
	"github.com/sallyport/sallyport/mqttbridge"
)

// hostile moves the cursor, goes back to the line's begin, rings, begins a line
// of its own, and turns the direction of writing.
const hostile = "a\x1b[2J\u009b1A\rb\a\n\u202ec\x7f\u2028"

// actsOnTerminal finds what is in hostile and must not be shown.
func actsOnTerminal(t *testing.T, v any) bool {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{`\u001b`, `\r`, `\u0007`, `\n`, `\u2028`, "\u009b", "\u202e", "\x7f"} {
		if strings.Contains(string(raw), bad) {
			return true
		}
	}
	return false
}

func TestNamesFromTheRelayAreTokens(t *testing.T) {
	r, c, _ := startRelay(t)
	good := r.home
	for name, fine := range map[string]bool{
		"kitchen": true, "Kitchen_2.a-b": true, strings.Repeat("k", 64): true,
		"": false, strings.Repeat("k", 65): false, "kit chen": false, "kit/chen": false, "küche": false, "--yes": false,
		"k\x1b[2J": false, "k\r": false, "k\a": false, "k\n": false, "k\u202e": false, "k\u009b": false, "k?": false,
	} {
		r.home = good
		r.home.Name = name
		homes, err := c.Homes(t.Context())
		if (err == nil) != fine || !fine && (homes != nil || actsOnTerminal(t, err.Error())) {
			t.Errorf("home %q: %v, %v", name, homes, err)
		}
		r.home = good
		r.device = name
		_, err = c.Homes(t.Context())
		if (err == nil) != fine || !fine && (c.Device == name && name != "" || actsOnTerminal(t, err.Error())) {
			t.Errorf("device %q: %v", name, err)
		}
		r.device = "phone"
	}
	r.home.Actions = []mqttbridge.Action{{Name: "garage\x1b[2J"}}
	if _, err := c.Homes(t.Context()); err == nil || actsOnTerminal(t, err.Error()) {
		t.Errorf("action: %v", err)
	}
}

// Whatever a relay or a home says is harmless before anybody prints it.
func TestTextsFromTheRelayAreHarmless(t *testing.T) {
	r, c, key := startRelay(t)
	r.home.Alert = hostile
	r.home.Actions = []mqttbridge.Action{{
		Name: "garage", Label: "Tür 🚪 " + hostile, Icon: hostile, Confirm: hostile, Values: []string{hostile}, Hours: hostile, Who: []string{hostile},
		State: &mqttbridge.Live{Value: hostile}, Last: &mqttbridge.Last{By: hostile, State: hostile}, Problem: hostile,
	}}
	p := press(t, c)
	if actsOnTerminal(t, p.Home) {
		t.Errorf("%+v", p.Home)
	}
	if label := p.Home.Actions[0].Label; !strings.HasPrefix(label, "Tür 🚪 a?[2J?1A?b") {
		t.Errorf("label %q", label)
	}
	if id, err := mqttbridge.KeyID(p.Home.Key); err != nil || id != r.home.ID {
		t.Errorf("the key is another now: %v", err)
	}
	r.home.Alert = strings.Repeat("é", 5000)
	if alert := press(t, c).Home.Alert; len(alert) > 1000 || !strings.HasSuffix(alert, "é…") {
		t.Errorf("alert of %d bytes", len(alert))
	}

	bad := mqttbridge.Status{State: mqttbridge.Refused, Final: true, Code: hostile, Reason: hostile, Home: hostile, Action: hostile, Device: hostile}
	r.status = bad
	st, err := c.Press(t.Context(), key, p)
	if err != nil || actsOnTerminal(t, st) {
		t.Errorf("refused: %+v, %v", st, err)
	}
	bad.ID, bad.State, bad.Final = "x", hostile, false
	r.status = bad
	if st, err = c.Command(t.Context(), "x"); err != nil || actsOnTerminal(t, st) {
		t.Errorf("asked: %+v, %v", st, err)
	}
	r.status = mqttbridge.Status{ID: "x", State: mqttbridge.Accepted, Reason: hostile}
	_, err = c.Follow(t.Context(), mqttbridge.Status{ID: "x"}, func(now mqttbridge.Status) {
		if actsOnTerminal(t, now) {
			t.Errorf("followed: %+v", now)
		}
		if now.State == mqttbridge.Accepted {
			go r.become(mqttbridge.Done, true)
		}
	})
	if err != nil {
		t.Error(err)
	}

	said, _ := json.Marshal(map[string]string{"error": hostile, "code": hostile})
	r.mu.Lock()
	r.refusal, r.refusing = http.StatusConflict, string(said)
	r.mu.Unlock()
	_, err = c.Homes(t.Context())
	if no, ok := errors.AsType[*button.Refusal](err); !ok || actsOnTerminal(t, no) {
		t.Errorf("%q", err)
	}
}

// The words beside the number of an HTTP/1 answer are the relay's own, too.
func TestStatusLinesAreHarmless(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = conn.Write([]byte("HTTP/1.1 409 no\x1b[2J\u202e\r\nContent-Length: 0\r\n\r\n"))
	}))
	defer s.Close()
	c := &button.Client{Base: s.URL, HTTP: s.Client()}
	if _, err := c.Homes(t.Context()); err == nil || actsOnTerminal(t, err.Error()) || !strings.Contains(err.Error(), "409 no?[2J") {
		t.Errorf("%q", err)
	}
}
