package authdns

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const challenge = "_acme-challenge." + own

func TestTXT(t *testing.T) {
	w := newWorld(t)
	set := func(values ...string) {
		t.Helper()
		if err := w.txt.SetTXT(challenge, values, 0); err != nil {
			t.Fatal(err)
		}
	}
	set("one")
	m := w.ask(t, challenge, dns.TypeTXT)
	check(t, "first", m.Answer, `TXT "one"`)
	if ttl := m.Answer[0].Header().Ttl; ttl > 5 {
		t.Errorf("a CA's resolver keeps an answer for %d s, and with it the last order's", ttl)
	}
	check(t, "another type", w.ask(t, challenge, dns.TypeA).Answer, "")
	set("two", "three")
	check(t, "replaced", w.ask(t, challenge, dns.TypeTXT).Answer, `TXT "two"|TXT "three"`)
	set()
	if m := w.ask(t, challenge, dns.TypeTXT); m.Rcode != dns.RcodeNameError {
		t.Errorf("after it went: %s %v", dns.RcodeToString[m.Rcode], m.Answer)
	}
	set("four")
	w.now = w.now.Add(59 * time.Minute)
	check(t, "before the hour", w.ask(t, challenge, dns.TypeTXT).Answer, `TXT "four"`)
	w.now = w.now.Add(time.Minute)
	if m := w.ask(t, challenge, dns.TypeTXT); m.Rcode != dns.RcodeNameError {
		t.Errorf("after an hour: %s %v", dns.RcodeToString[m.Rcode], m.Answer)
	}
	odd := `a\b\046"c` + "\x00\xff"
	set(odd)
	got := w.ask(t, challenge, dns.TypeTXT).Answer[0].(*dns.TXT)
	if want := `a\\b\\046\"c\000\255`; got.Txt[0] != want && strings.ReplaceAll(got.Txt[0], `\"`, `"`) != strings.ReplaceAll(want, `\"`, `"`) {
		t.Errorf("%q came back as %s", odd, got.Txt[0])
	}
}

func TestTXTBounds(t *testing.T) {
	now := time.Unix(0, 0)
	x := NewTXT(func() time.Time { return now })
	if err := x.SetTXT("a", []string{strings.Repeat("x", 256)}, 0); err == nil {
		t.Error("256 bytes were taken")
	}
	if err := x.SetTXT("a", make([]string, maxTexts+1), 0); err == nil {
		t.Error("too many values were taken")
	}
	for i := range maxTXT {
		if err := x.SetTXT(fmt.Sprintf("a%d.b", i), []string{"x"}, 0); err != nil {
			t.Fatal(err)
		}
		if i > 100 {
			x.texts[fmt.Sprintf("pad%d", i)] = texts{until: now.Add(time.Hour)} // a full loop would take long
			if len(x.texts) >= maxTXT {
				break
			}
		}
	}
	if err := x.SetTXT("one.more", []string{"x"}, 0); err == nil {
		t.Error("one name too many was taken")
	}
	if err := x.SetTXT("one.more", nil, 0); err != nil {
		t.Errorf("taking away what is not there: %v", err)
	}
	now = now.Add(time.Hour)
	if err := x.SetTXT("one.more", []string{"x"}, 0); err != nil {
		t.Errorf("after an hour: %v", err)
	}
	if len(x.texts) != 1 || x.Below("b") || !x.Below("more") {
		t.Errorf("%d names left, below: %v", len(x.texts), x.tree)
	}
}
