package dispatch

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sallyport/sallyport/mqttbridge"
)

// Whatever an agent offers: what is shown of it is bounded, and is the same
// after it was on disk.
func FuzzOffer(f *testing.F) {
	for _, h := range []mqttbridge.Home{aHome(), aHome(forAnna("safe"), mqttbridge.Action{
		Name: "lamp", Label: "Lämp \u202e", Confirm: mqttbridge.ConfirmNone, Values: []string{"on", "off"}, Hours: "06:00-22:00",
		State: &mqttbridge.Live{Value: "on", At: time.Unix(1e9, 0)}, Last: &mqttbridge.Last{By: "anna", State: mqttbridge.Done},
	}), {}} {
		seed, err := json.Marshal(h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	f.Add([]byte(`{"actions":[{"last":{"at":"9999-12-31T23:59:59-23:59"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var h mqttbridge.Home
		if json.Unmarshal(data, &h) != nil {
			return
		}
		h.Key, h.ID = homeKey1().spki, homeKey1().id // no fuzzer finds a key
		clean, err := cleanHome(h)
		if err != nil {
			return
		}
		if len(clean.Actions) > maxActions || len(clean.Alert) > maxProblem {
			t.Fatalf("too much: %d actions, alert of %d bytes", len(clean.Actions), len(clean.Alert))
		}
		for _, a := range clean.Actions {
			for _, text := range append([]string{a.Name, a.Label, a.Icon, a.Hours, a.Problem}, a.Values...) {
				if !printable(text, maxReason) {
					t.Fatalf("shown: %q", text)
				}
			}
			if a.Life < shortLife.Milliseconds() || a.Life > maxLife.Milliseconds() {
				t.Fatalf("life %d", a.Life)
			}
		}
		clean.Name = "kitchen"
		h1 := &home{agent: kitchen, shot: newSnapshot(clean, nil)}
		h2, err := decodeHome(encodeHome(h1), time.Now())
		if err != nil || h2.agent != kitchen {
			t.Fatalf("after the ledger: %v, %+v", err, h2)
		}
		h1.shot.home.Broker = h2.shot.home.Broker
		if again := encodeHome(h2); string(again) != string(encodeHome(h1)) {
			t.Fatalf("written as\n%s\nread as\n%s", encodeHome(h1), again)
		}
		for _, device := range []string{"anna-phone", "ben-phone", ""} {
			if v := h1.shot.view(device); v != nil && len(v.Actions) == 0 {
				t.Fatalf("%s sees a home without actions", device)
			}
		}
	})
}

// Whatever an agent says about a command: it is one of the states that are its
// own to say, at a time between the press and now.
func FuzzWord(f *testing.F) {
	f.Add([]byte(`{"id":"x","state":"refused","code":"pin-wrong","attempts_left":3,"reason":"no","at":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte(`{"state":"delivered","final":true,"until":"0001-01-01T00:00:00Z","at":"9999-12-31T23:59:59-23:59"}`))
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	created := now.Add(-time.Minute)
	f.Fuzz(func(t *testing.T, data []byte) {
		var s mqttbridge.Status
		if json.Unmarshal(data, &s) != nil {
			return
		}
		clean, ok := cleanStatus(s, created, now)
		if !ok {
			return
		}
		if clean.State == mqttbridge.Accepted || clean.State == mqttbridge.Sent || !knownState(clean.State) || !clean.Final && clean.State != mqttbridge.Delivered {
			t.Fatalf("state %q, final %v", clean.State, clean.Final)
		}
		if clean.At.Before(created) || clean.At.After(now) || !printable(clean.Reason, maxReason) || (clean.Code != "") != (clean.State == mqttbridge.Refused) {
			t.Fatalf("%+v", clean)
		}
		clean.ID = "id-of-a-command-1"
		c := &command{status: clean, agent: "x"}
		again, err := decodeCommand(clean.ID, encodeCommand(c))
		if err != nil || !reflect.DeepEqual(encodeCommand(again), encodeCommand(c)) {
			t.Fatalf("after the ledger: %v, %+v", err, again)
		}
	})
}

// Records are read at every start: no disk can make that fail.
func FuzzRecords(f *testing.F) {
	c := &command{status: mqttbridge.Status{ID: "id-of-a-command-1", State: mqttbridge.Done, Final: true}, agent: "x"}
	f.Add(encodeCommand(c))
	f.Add(encodeHome(&home{agent: kitchen, shot: newSnapshot(aHome(), nil)}))
	f.Add([]byte(`{"digest":"00"}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := decodeCommand("id-of-a-command-1", data); err == nil && c.status.ID != "id-of-a-command-1" {
			t.Fatalf("read as %+v", c.status)
		}
		if h, err := decodeHome(data, time.Now()); err == nil && h.shot.home.Online {
			t.Fatal("a home of the ledger is not here")
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add("plain", 3)
	f.Add("ä😀\x00\xff\u202e", 2)
	f.Fuzz(func(t *testing.T, s string, n int) {
		n = min(max(n, 0), 1000)
		got := clip(cleanText(s), n)
		if len(got) > n || !utf8.ValidString(got) || strings.ContainsAny(got, "\x00\r\n\x1b\u202e\u2066") {
			t.Fatalf("%q", got)
		}
	})
}
