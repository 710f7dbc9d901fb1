package main

import (
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/cmd/sallyport/button"
	"github.com/sallyport/sallyport/mqttbridge"
)

func codeOf(err error) int {
	if err == nil {
		return 0
	}
	code, _ := classify(err)
	return code
}

func TestEndsOfCommandsHaveTheirExitCodes(t *testing.T) {
	for _, c := range []struct {
		st   mqttbridge.Status
		code int
		says string
	}{
		{mqttbridge.Status{State: mqttbridge.Done}, 0, "done"},
		{mqttbridge.Status{State: mqttbridge.Delivered}, 0, "delivered"},
		{mqttbridge.Status{State: mqttbridge.Refused, Code: mqttbridge.CodeHours, Reason: "at night only"}, exitFailed, "at night only"},
		{mqttbridge.Status{State: mqttbridge.Unconfirmed}, exitFailed, "unconfirmed"},
		{mqttbridge.Status{State: mqttbridge.Expired}, exitFailed, "expired"},
		{mqttbridge.Status{State: mqttbridge.Unknown}, exitFailed, "unknown"},
		{mqttbridge.Status{State: mqttbridge.Refused, Code: mqttbridge.CodeOffline}, exitUnreachable, "offline"},
		{mqttbridge.Status{State: mqttbridge.Refused, Code: mqttbridge.CodeBroker}, exitUnreachable, "broker"},
		{mqttbridge.Status{State: mqttbridge.Refused, Code: mqttbridge.CodeUntrusted}, exitRefused, "untrusted"},
	} {
		var out strings.Builder
		r := &remote{io: stdio{out: &out}}
		err := r.end(button.Press{Action: "garage"}, c.st, time.Second, false)
		said := out.String()
		if err != nil {
			said = err.Error()
		}
		if codeOf(err) != c.code || !strings.Contains(said, c.says) || !strings.Contains(said, "garage: ") {
			t.Errorf("%+v: exit code %d, %q", c.st, codeOf(err), said)
		}
	}
}

func TestFindAction(t *testing.T) {
	homes := []mqttbridge.Home{
		{Name: "kitchen", Actions: []mqttbridge.Action{{Name: "light"}, {Name: "garage"}}},
		{Name: "cabin", Actions: []mqttbridge.Action{{Name: "light"}}},
	}
	for word, want := range map[string]string{"garage": "kitchen/garage", "cabin/light": "cabin/light", "kitchen/light": "kitchen/light"} {
		if h, a, err := findAction(homes, word); err != nil || h.Name+"/"+a.Name != want {
			t.Errorf("%s: %s/%s, %v", word, h.Name, a.Name, err)
		}
	}
	for word, code := range map[string]int{"light": exitUsage, "cabin/garage": exitFailed, "": exitFailed} {
		if _, _, err := findAction(homes, word); codeOf(err) != code {
			t.Errorf("%q: exit code %d, %v", word, codeOf(err), err)
		}
	}
}

func TestChooseKey(t *testing.T) {
	one, two := control.Key{ID: "1", Device: "anna", Words: "acorn almond"}, control.Key{ID: "2", Device: "anna", Words: "amber anchor"}
	ben := control.Key{ID: "3", Device: "ben", Trusted: true, Words: "apple apron"}
	for _, c := range []struct {
		keys        []control.Key
		name, words string
		want        string
		code        int
	}{
		{[]control.Key{one, ben}, "anna", "", "1", 0},
		{[]control.Key{one, two, ben}, "anna", "", "", exitFailed}, // never by chance
		{[]control.Key{one, two, ben}, "anna", " Amber-ANCHOR\n", "2", 0},
		{[]control.Key{one, two, ben}, "anna", "apple apron", "", exitRefused}, // another device's
		{[]control.Key{one, two, ben}, "anna", "amber", "", exitRefused},
		{[]control.Key{one, two, ben}, "ben", "", "3", 0},
		{[]control.Key{one}, "ben", "", "", exitFailed},
	} {
		k, err := chooseKey(c.keys, c.name, c.words, "")
		if k.ID != c.want || codeOf(err) != c.code {
			t.Errorf("%s %q of %d keys: %q, exit code %d, %v", c.name, c.words, len(c.keys), k.ID, codeOf(err), err)
		}
	}
}

func TestSignKeyFile(t *testing.T) {
	for key, want := range map[string]string{
		"laptop/laptop.key": "laptop/laptop.command.key", "me.pem": "me.command.key", "keys/me": "keys/me.command.key", "a.b/me.x": "a.b/me.x.command.key",
	} {
		if got := signKeyFile(key); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
}

// A PIN that is refused is not repeated: messages end in journals.
func TestPINsAreChecked(t *testing.T) {
	for pin, good := range map[string]bool{"1234": true, "123456789012": true, "123": false, "1234567890123": false, "12a4": false, "": false, "١٢٣٤": false} {
		err := checkPIN(pin)
		if (err == nil) != good || err != nil && pin != "" && strings.Contains(err.Error(), pin) {
			t.Errorf("%q: %v", pin, err)
		}
	}
}

// What a home says cannot act on the terminal of somebody who reads the log.
func TestLogLinesAreHarmless(t *testing.T) {
	var b strings.Builder
	printLogLine(&b, []byte(`{"time":"2026-05-01T10:00:00Z","event":"command.refused","attrs":{"device":"anna","reason":"\u001b[2J no"},"prev":"00"}`))
	printLogLine(&b, []byte("\x1b[2J not JSON\n"))
	if got := b.String(); strings.ContainsRune(got, '\x1b') || !strings.Contains(got, "command.refused") || !strings.Contains(got, "device=anna") {
		t.Errorf("%q", got)
	}
}
