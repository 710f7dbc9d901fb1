package executor

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		match string
		yes   []string
		no    []string
	}{
		{"", []string{"", "x"}, nil},
		{"open", []string{"open"}, []string{"", "Open", "open ", "opening"}},
		{"/open/", []string{"open", "reopened"}, []string{"OPEN", ""}},
		{"/(?i)^open$/", []string{"open", "OPEN"}, []string{"opening"}},
		{"/", []string{"/"}, []string{"", "//"}},
		{".state=ON", []string{`{"state":"ON"}`, `{"x":1,"state":"ON"}`}, []string{`{"state":"OFF"}`, `{"STATE":"ON"}`, "ON", `{"state":["ON"]}`, `{"state":"ON"} x`, `["ON"]`}},
		{".a.1.b=2", []string{`{"a":[0,{"b":2}]}`, `{"a":[0,{"b":"2"}]}`}, []string{`{"a":[0]}`, `{"a":{"1":0}}`, `{"a":[0,{"b":2.0}]}`}},
		{".a.-1=2", nil, []string{`{"a":[2]}`}},
		{".on=true", []string{`{"on":true}`, `{"on":"true"}`}, []string{`{"on":1}`, `{}`}},
		{".result", []string{`{"result":null}`, `{"result":{"was_on":false}}`}, []string{`{"error":{}}`, ``, `null`}},
		{".result=", []string{`{"result":""}`}, []string{`{"result":null}`}},
		{".switch:0.output=true", []string{`{"switch:0":{"output":true}}`}, nil},
		{".s=/^ON|OFF$/", []string{`{"s":"ON"}`}, []string{`{"s":"x"}`}},
	} {
		m, err := parseMatch(test.match)
		if err != nil {
			t.Errorf("%q: %v", test.match, err)
			continue
		}
		for _, p := range test.yes {
			if !m.match([]byte(p)) {
				t.Errorf("%q does not match %q", test.match, p)
			}
		}
		for _, p := range test.no {
			if m.match([]byte(p)) {
				t.Errorf("%q matches %q", test.match, p)
			}
		}
	}
	for _, bad := range []string{"/(/", ".", ".=x", ".a..b=1", ".s=/(/", strings.Repeat("x", maxMatch+1), "." + strings.Repeat("a.", 20) + "b=1"} {
		if _, err := parseMatch(bad); err == nil {
			t.Errorf("%.30q was taken", bad)
		}
	}
}

func TestHours(t *testing.T) {
	at := func(text string) time.Time {
		tt, err := time.Parse("15:04:05", text)
		if err != nil {
			t.Fatal(err)
		}
		return tt
	}
	for _, test := range []struct {
		hours   string
		yes, no []string
	}{
		{"", []string{"00:00:00", "23:59:59"}, nil},
		{"06:00-22:00", []string{"06:00:00", "21:59:59", "12:00:00"}, []string{"05:59:59", "22:00:00", "00:00:00"}},
		{"22:00-06:00", []string{"22:00:00", "23:59:59", "00:00:00", "05:59:59"}, []string{"06:00:00", "21:59:59"}},
		{"00:00-24:00", []string{"00:00:00", "23:59:59"}, nil},
		{"22:00-24:00", []string{"23:59:59"}, []string{"00:00:00"}},
		{"22:00-00:00", []string{"23:59:59"}, []string{"00:00:00"}},
		{"06:00-08:00, 20:00-21:30", []string{"07:00:00", "21:29:00"}, []string{"12:00:00", "21:30:00"}},
	} {
		h, err := parseHours(test.hours)
		if err != nil {
			t.Errorf("%q: %v", test.hours, err)
			continue
		}
		for _, s := range test.yes {
			if !h.contain(at(s)) {
				t.Errorf("%q lacks %s", test.hours, s)
			}
		}
		for _, s := range test.no {
			if h.contain(at(s)) {
				t.Errorf("%q holds %s", test.hours, s)
			}
		}
	}
	for _, bad := range []string{"6:00-22:00", "06:00", "06:00-25:00", "24:00-06:00", "06:60-07:00", "06:00-06:00", "06:00-22:00,", "0600-2200", "-", "29:00-30:00", "06:00–22:00", strings.Repeat("06:00-22:00,", 9)} {
		if _, err := parseHours(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// The clock on the wall counts, also in the nights in which it is changed.
func TestHoursAndDaylightSaving(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var now time.Time
		w.wall = func() time.Time { return now }
		w.acts = []Action{{Name: "night", Topic: "night/set", Payload: "GO", Hours: "02:30-06:00"}, {Name: "always", Topic: "always/set", Payload: "GO"}}
		now = time.Date(2026, 5, 1, 3, 0, 0, 0, berlin)
		w.start()
		defer func() { w.end() }()
		w.trust("bob")
		for _, test := range []struct {
			utc  string
			want bool
		}{
			{"2026-05-01T01:00:00Z", true},  // 03:00 in summer
			{"2026-05-01T04:00:00Z", false}, // 06:00
			{"2026-01-01T01:00:00Z", false}, // 02:00 in winter
			{"2026-01-01T01:30:00Z", true},
			{"2026-03-29T00:59:00Z", false}, // 01:59, then 03:00: 02:30 never comes
			{"2026-03-29T01:00:00Z", true},  // 03:00
			{"2026-10-25T00:15:00Z", false}, // 02:15 in summer time
			{"2026-10-25T00:45:00Z", true},  // 02:45
			{"2026-10-25T01:15:00Z", false}, // 02:15 again, in winter time
			{"2026-10-25T01:45:00Z", true},
			{"1970-01-01T02:00:00Z", false}, // the clock is not set
		} {
			utc, err := time.Parse(time.RFC3339, test.utc)
			if err != nil {
				t.Fatal(err)
			}
			now = utc.In(berlin)
			s := w.press("bob", "night")
			if ran := s.State == mqttbridge.Delivered; ran != test.want || !ran && s.Code != mqttbridge.CodeHours {
				t.Errorf("%s: %+v", test.utc, s)
			}
			wantState(t, w.press("bob", "always"), mqttbridge.Delivered, "")
		}
	})
}

func TestRate(t *testing.T) {
	bubble(t, func(w *world) {
		for range 2 {
			wantState(t, w.press("bob", "bell"), mqttbridge.Delivered, "")
		}
		s := w.press("anna-phone", "bell") // all devices together
		wantState(t, s, mqttbridge.Refused, mqttbridge.CodeRate)
		if d := time.Until(s.Until); d < 50*time.Second || d > time.Minute {
			t.Errorf("until %v from now", d)
		}
		wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")
		time.Sleep(59 * time.Second) // virtual
		wantState(t, w.press("bob", "bell"), mqttbridge.Refused, mqttbridge.CodeRate)
		time.Sleep(time.Second) // virtual
		wantState(t, w.press("bob", "bell"), mqttbridge.Delivered, "")
		w.published("bell/set", "RING", "RING", "RING")

		// What did not run does not count.
		time.Sleep(2 * time.Minute) // virtual
		w.broker.setAway(true)
		for range 5 {
			wantState(t, w.press("bob", "bell"), mqttbridge.Refused, mqttbridge.CodeBroker)
		}
		w.broker.setAway(false)
		w.broker.decide(func(string, string) error { return errOffline })
		for range 5 {
			wantState(t, w.press("bob", "bell"), mqttbridge.Refused, mqttbridge.CodeBroker)
		}
		w.broker.decide(nil)
		// A reload does not reset it.
		wantState(t, w.press("bob", "bell"), mqttbridge.Delivered, "")
		wantState(t, w.press("bob", "bell"), mqttbridge.Delivered, "")
		if err := w.e.SetActions(w.acts); err != nil {
			t.Fatal(err)
		}
		wantState(t, w.press("bob", "bell"), mqttbridge.Refused, mqttbridge.CodeRate)
	})
	for text, want := range map[string]rate{"": {}, "6/m": {6, time.Minute}, "2/s": {2, time.Second}, "20/h": {20, time.Hour}, "5/d": {5, 24 * time.Hour}, "3/10m": {3, 10 * time.Minute}} {
		if got, err := parseRate(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, bad := range []string{"6", "/m", "0/m", "-1/m", "6/", "6/x", "6/1ms", "6/25h", "1001/d", "6/m/m", "six/m", "6/-1m"} {
		if got, err := parseRate(bad); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
}

func TestWho(t *testing.T) {
	a := &action{Action: Action{Who: []string{"anna-*", "bob", "c?rl", "[", "[d-f]ve"}}}
	for device, want := range map[string]bool{
		"anna-phone": true, "anna-": true, "anna": false, "bob": true, "bobby": false, "carl": true, "caarl": false, "eve": true, "gve": false, "[": false, "": false,
	} {
		if a.allows(device) != want {
			t.Errorf("%q: %v", device, !want)
		}
	}
	if !(&action{}).allows("anybody") {
		t.Error("without patterns nobody may")
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"ON": "ON", "a\x00b\x1b[31mc\n": "ab[31mc", "\xff\xfeok": "ok", "21.5 °C": "21.5 °C", "\u202eevil": "evil", strings.Repeat("é", 100): strings.Repeat("é", 32),
	} {
		if got := clean(in, maxLive); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestLiveState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.acts = []Action{
			{Name: "z", Preset: "zigbee2mqtt", Target: "plug", Confirm: mqttbridge.ConfirmNone},
			{Name: "p", Topic: "p/set", Payload: "1", State: "p"},
		}
		w.start()
		defer func() { w.end() }()
		w.broker.say("zigbee2mqtt/plug", `{"state":"ON","linkquality":80}`, true)
		if s := w.relay.action("z").State; s == nil || s.Value != "ON" {
			t.Errorf("%+v", s)
		}
		for _, p := range []string{`{"linkquality":80}`, `{"state":`, "x"} { // not about the state
			w.broker.say("zigbee2mqtt/plug", p, false)
		}
		w.broker.say("p", "on\x07 "+strings.Repeat("long", 40), false)
		w.broker.say("p", strings.Repeat("x", mqttbridge.MaxPayload+1), false)
		if s := w.relay.action("z").State; s == nil || s.Value != "ON" {
			t.Errorf("%+v", s)
		}
		if s := w.relay.action("p").State; s == nil || len(s.Value) != maxLive || !strings.HasPrefix(s.Value, "on long") {
			t.Errorf("%+v", s)
		}
	})
}

// In a bubble wall and monotonic clock are one. That the code goes by the
// latter shows in the times that it keeps.
func TestTimesAreMonotonic(t *testing.T) {
	c := newChallenges()
	dir, err := openFolder(tempDir(t))
	if err != nil {
		t.Fatal(err)
	}
	p, err := openPINs(dir)
	if err != nil {
		t.Fatal(err)
	}
	p.cost = 2
	if err := p.set("", "1234"); err != nil {
		t.Fatal(err)
	}
	for range maxWrong {
		if _, err := p.check("bob", "gate", "0000"); err != nil {
			t.Fatal(err)
		}
	}
	again, err := openPINs(dir)
	if err != nil {
		t.Fatal(err)
	}
	var l limits
	l.take("a", rate{1, time.Minute})
	for what, at := range map[string]time.Time{
		"challenge": c.all[c.issue("bob", "garage")].made, "lock": p.tries["bob"].locked, "lock after a restart": again.tries["bob"].locked, "rate": *l.past["a"][0],
	} {
		if !strings.Contains(at.String(), " m=") {
			t.Errorf("%s: %v has no monotonic reading", what, at)
		}
	}
	if d := asleep(); d < 0 {
		t.Errorf("slept %v", d)
	}
}
