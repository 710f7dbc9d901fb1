package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/relay/admin"
)

const hashName = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.home.test"

// What a grant asks of the relay: nothing that is there is lost unless --only
// says so, and names outside the domain have to be meant.
func TestGrantHosts(t *testing.T) {
	claims := []string{"ha.home.test", "a.b.home.test", "*.apps.home.test", hashName, "*." + hashName}
	for what, c := range map[string]struct {
		before  []string // may claim
		add     []string
		only    bool
		foreign bool
		want    []string // nil: no request
		sent    bool     // with foreign
		fails   string
	}{
		"one more":           {before: []string{"a.home.test"}, add: []string{"b.home.test", "B.home.test."}, want: []string{"a.home.test", "b.home.test"}},
		"there already":      {before: []string{"a.home.test"}, add: []string{"a.home.test"}},
		"only":               {before: []string{"a.home.test"}, only: true, add: []string{"b.home.test"}, want: []string{"b.home.test"}},
		"only the same":      {before: []string{"a.home.test", "b.home.test"}, only: true, add: []string{"b.home.test", "a.home.test"}},
		"foreign, unsaid":    {before: []string{"a.home.test"}, add: []string{"x.example.net"}, fails: "not below home.test"},
		"foreign":            {before: []string{"a.home.test"}, foreign: true, add: []string{"x.example.net"}, want: []string{"a.home.test", "x.example.net"}, sent: true},
		"beside foreign":     {before: []string{"x.example.net"}, add: []string{"a.home.test"}, want: []string{"x.example.net", "a.home.test"}, sent: true},
		"one more foreign":   {before: []string{"x.example.net"}, add: []string{"y.example.net"}, fails: "not below home.test"},
		"no name":            {before: []string{"a.home.test"}, add: []string{"a.*.home.test"}, fails: "star elsewhere"},
		"unlimited, inside":  {add: []string{"*.x.home.test"}},
		"unlimited, foreign": {foreign: true, add: []string{"x.example.net"}, want: []string{"*.home.test", "a.b.home.test", "*.apps.home.test", "x.example.net"}, sent: true},
		"unlimited, only":    {only: true, add: []string{"a.home.test"}, want: []string{"a.home.test"}},
	} {
		g := grant{before: admin.Agent{Name: "pi", Allowed: c.before, Hosts: claims}, domain: "home.test", only: c.only, foreign: c.foreign}
		var q admin.GrantRequest
		err := g.addHosts(&q, c.add)
		var got []string
		if q.Hosts != nil {
			got = *q.Hosts
		}
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) || got != nil {
				t.Errorf("%s: %v, %q", what, err, got)
			}
		} else if err != nil || !slices.Equal(got, c.want) || q.Foreign != c.sent {
			t.Errorf("%s: %q foreign %v, %v; want %q", what, got, q.Foreign, err, c.want)
		}
	}
}

func TestGrantPorts(t *testing.T) {
	for what, c := range map[string]struct {
		before, add []string
		only        bool
		want        []string
		fails       bool
	}{
		"one more":      {before: []string{"2222"}, add: []string{"51820/UDP", " 80/tcp"}, want: []string{"2222", "51820/udp", "80"}},
		"there already": {before: []string{"2222"}, add: []string{"2222/tcp"}},
		"only":          {before: []string{"2222"}, only: true, add: []string{"80"}, want: []string{"80"}},
		"none":          {before: []string{"2222"}, only: true, add: []string{"none"}, want: []string{}},
		"none of none":  {only: true, add: []string{"none"}},
		"none and more": {before: []string{"2222"}, only: true, add: []string{"none", "80"}, fails: true},
		"none added":    {before: []string{"2222"}, add: []string{"none"}, fails: true},
	} {
		g := grant{before: admin.Agent{Name: "pi", Ports: c.before}, domain: "home.test", only: c.only}
		var q admin.GrantRequest
		err := g.addPorts(&q, c.add)
		switch {
		case c.fails:
			if err == nil || q.Ports != nil {
				t.Errorf("%s: %v, %v", what, err, q.Ports)
			}
		case err != nil, (q.Ports == nil) != (c.want == nil), c.want != nil && !slices.Equal(*q.Ports, c.want):
			t.Errorf("%s: %v, %v; want %q", what, q.Ports, err, c.want)
		case q.Ports != nil && *q.Ports == nil:
			t.Errorf("%s: no ports at all would mean: as they are", what)
		}
	}
}

func TestGrantTellsHowToUndo(t *testing.T) {
	g := grant{domain: "home.test", before: admin.Agent{Name: "pi", Allowed: []string{"*.home.test", "x.example.net"}, Ports: []string{"2222", "53/udp"}}}
	var b strings.Builder
	g.tell(&b, admin.Agent{Name: "pi", Allowed: []string{"*.home.test"}, Ports: []string{"53/udp", "80"}}, " --data r")
	want := "pi may claim: *.home.test\n  no longer: x.example.net\npi may open: 53/udp, 80\n  no longer: 2222\n" +
		"at home: sallyport agent expose NAME tcp://HOST:PORT --port 80 --auth none\n" +
		"undo: sallyport relay grant pi --only --hosts '*.home.test,x.example.net' --foreign --ports '2222,53/udp' --data r\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}
