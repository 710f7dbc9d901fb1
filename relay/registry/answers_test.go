package registry

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

func hosts(f *fixture) string {
	var all []string
	for _, r := range f.Routes() {
		all = append(all, r.Host)
	}
	return strings.Join(all, " ")
}

// What an agent says on a session that it has left behind comes too late.
func TestLateRegisterChangesNothing(t *testing.T) {
	const later = "b.example.org c.example.org"
	lists := map[string][]protocol.Service{
		"old": {service("a", ""), service("b", ""), service("www", "")},
		"new": {service("b", ""), service("c", ""), service("www", "")},
	}
	for _, instance := range []string{"i1", "i2"} {
		f := fresh(t)
		f.join(t, 1)
		old, latest := newSession(1, answers), newSession(1, answers)
		f.attach(t, old, "i1")
		f.Register(t.Context(), old, lists["old"])
		detach := f.attach(t, latest, instance)
		f.Register(t.Context(), latest, lists["new"])
		changed := f.changed
		got := f.Register(t.Context(), old, lists["old"])
		if hosts(f) != later || f.changed != changed || hosts(open(t, f.kv, nil)) != later {
			t.Errorf("%s: the old list came back: %s, stored %s", instance, hosts(f), hosts(open(t, f.kv, nil)))
		}
		want := []string{"a taken over", "b https://b.example.org/", "www reserved"}
		for i, g := range got {
			name, part, _ := strings.Cut(want[i], " ")
			if g.Name != name || !strings.Contains(g.URL+g.Error, part) || len(got) != len(want) {
				t.Errorf("%s: answer %d: %+v, want %s", instance, i, g, want[i])
			}
		}
		// Without a newer one the old session speaks for the agent again.
		latest.Close(protocol.CodeInternal, "lost")
		if f.Register(t.Context(), old, lists["old"]); hosts(f) != "a.example.org b.example.org" {
			t.Errorf("%s: after the newest session died: %s", instance, hosts(f))
		}
		detach()
		old.Close(protocol.CodeInternal, "lost")
		f.Register(t.Context(), old, nil)
		f.Register(t.Context(), newSession(1, answers), nil)
		if hosts(f) != "a.example.org b.example.org" {
			t.Errorf("%s: a dead session, or one that is not attached, changed the list: %s", instance, hosts(f))
		}
	}
}

func TestReplicasBothRegister(t *testing.T) {
	f := fresh(t)
	f.cfg.Replicas = 2
	f.join(t, 1)
	one, two := newSession(1, answers), newSession(1, answers)
	f.attach(t, one, "i1")
	f.attach(t, two, "i2")
	for name, s := range map[string]tunnel.Session{"a": one, "b": two} {
		if got := f.Register(t.Context(), s, []protocol.Service{service(name, "")}); got[0].Error != "" {
			t.Errorf("%+v", got)
		}
	}
}

func TestServicesAreCapped(t *testing.T) {
	f := fresh(t)
	f.join(t, 1)
	var list []protocol.Service
	for i := range maxServices + 2 {
		list = append(list, protocol.Service{Name: fmt.Sprint("s", i), Proto: "http1", Host: "g.example.org", Path: fmt.Sprintf("/%d/", i)})
	}
	got := f.register(t, 1, list)
	if len(got) != len(list) || got[maxServices-1].Error != "" || !strings.Contains(got[maxServices].Error, fmt.Sprint("at most ", maxServices)) {
		t.Errorf("%d answers; around the limit: %+v", len(got), got[min(len(got), maxServices-1):])
	}
	if n := len(f.Routes()); n != maxServices {
		t.Errorf("%d routes, want %d", n, maxServices)
	}
}

// A Registered that is too long would end the session, again and again.
func TestAnswersFitIntoOneMessage(t *testing.T) {
	long := strings.Repeat("x", 60)
	many := func(n int, s func(i int) protocol.Service) (list []protocol.Service) {
		for i := range n {
			list = append(list, s(i))
		}
		return list
	}
	granted := make([]string, 50)
	for i := range granted {
		granted[i] = fmt.Sprintf("%s.%s.h%d.test", long, long, i)
	}
	for _, c := range []struct {
		what  string
		hosts []string
		list  []protocol.Service
		all   bool   // every service has an answer
		tell  string // part of the first one
	}{
		{"invalid", nil, many(900, func(i int) protocol.Service { return service(fmt.Sprintf("Bad_%d", i), "") }), true, "service"},
		{"not granted", granted, many(60, func(i int) protocol.Service { return service(fmt.Sprintf("s%d", i), "a.example.org") }), true, "not among the names"},
		{"all sorts of long", nil, many(400, func(i int) protocol.Service { return service(fmt.Sprintf("%s%d", long[:55], i), "other.net") }), true, "other.net is not below example.org"},
		{"quotes", nil, many(600, func(i int) protocol.Service { return service(strings.Repeat("<", 70), "") }), false, ""},
	} {
		f := fresh(t)
		f.join(t, 1, c.hosts...)
		got := f.register(t, 1, c.list)
		if err := protocol.WriteMessage(io.Discard, protocol.Registered{Seq: 1 << 63, Services: got}); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		if (len(got) == len(c.list)) != c.all {
			t.Errorf("%s: %d answers to %d services", c.what, len(got), len(c.list))
		}
		for _, g := range got {
			if g.Error == "" || g.URL != "" {
				t.Errorf("%s: %+v", c.what, g)
			}
		}
		if len(got) > 0 && !strings.Contains(got[0].Error, c.tell) {
			t.Errorf("%s: the first refusal is %q", c.what, got[0].Error)
		}
	}
	// Also what is refused as a whole.
	f := fresh(t)
	got := f.register(t, 7, many(2000, func(i int) protocol.Service { return service(fmt.Sprint("s", i), "") }))
	if err := protocol.WriteMessage(io.Discard, protocol.Registered{Services: got}); err != nil || len(got) == 0 {
		t.Errorf("unknown agent: %d answers, %v", len(got), err)
	}
}

func TestElide(t *testing.T) {
	const advice = "a-long-name.example.org lies under a wildcard that is claimed by another agent: choose another name"
	if got := elide(advice, 60); len(got) > 60 || !strings.HasPrefix(got, "a-long-name.example") || !strings.HasSuffix(got, "choose another name") {
		t.Errorf("%q", got)
	}
	if elide(advice, len(advice)) != advice {
		t.Error("what fits was shortened")
	}
	for _, s := range []string{strings.Repeat("ä", 50), strings.Repeat("😀", 50), strings.Repeat("\xff", 50)} {
		if got := elide(s, 30); len(got) > 30 || !utf8.ValidString(got) {
			t.Errorf("%q", got)
		}
	}
}
