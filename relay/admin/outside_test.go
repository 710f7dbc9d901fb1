package admin

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// Nothing said about a list leaves it as it is; an empty one takes all away.
func TestGrant(t *testing.T) {
	var got []GrantRequest
	s, err := New(Config{Dir: "x", API: API{Grant: func(_ context.Context, q GrantRequest) (Agent, error) {
		got = append(got, q)
		return Agent{Name: q.Agent, Ports: []string{"2222"}}, nil
	}}})
	if err != nil {
		t.Fatal(err)
	}
	c := &Client{http: &http.Client{Transport: served{s.Handler()}}}
	var none []string
	hosts := []string{"*.a.example.org"}
	for _, q := range []GrantRequest{{Agent: "pi"}, {Agent: "pi", Ports: &none}, {Agent: "pi", Ports: &[]string{}}, {Agent: "pi", Hosts: &hosts, Foreign: true}} {
		a, err := c.Grant(t.Context(), q)
		same(t, a, err, Agent{Name: "pi", Ports: []string{"2222"}})
	}
	if len(got) != 4 || got[0].Ports != nil || got[0].Hosts != nil {
		t.Fatalf("got %+v", got)
	}
	for _, q := range got[1:3] {
		if q.Ports == nil || len(*q.Ports) != 0 || q.Hosts != nil {
			t.Errorf("no ports at all became %+v", q)
		}
	}
	if got[3].Hosts == nil || !slices.Equal(*got[3].Hosts, hosts) || !got[3].Foreign || got[3].Ports != nil {
		t.Errorf("got %+v", got[3])
	}
	if _, err := (&Client{http: &http.Client{Transport: served{fakeHandler(t)}}}).Grant(t.Context(), GrantRequest{}); err == nil {
		t.Error("a relay that cannot do it says nothing")
	}
}

// What an agent may is said on the relay's own command line only.
func TestPagesGrantNothing(t *testing.T) {
	if a := pagesAPI(newFakeRelay().api()); a.Grant != nil || a.NewToken != nil || a.RevokeAgent == nil {
		t.Error("web pages could grant hosts and ports, or make join tokens, or not shut a home out")
	}
}

func fakeHandler(t *testing.T) http.Handler {
	s, err := New(Config{Dir: "x"})
	if err != nil {
		t.Fatal(err)
	}
	return s.Handler()
}

// served answers requests without a network.
type served struct{ h http.Handler }

func (s served) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	s.h.ServeHTTP(w, r)
	return w.Result(), nil
}

func TestWhoReads(t *testing.T) {
	for s, want := range map[HostService]string{
		{TLS: "relay"}: ReaderRelay, {}: ReaderRelay, {TLS: "new"}: ReaderRelay, {TLS: "agent"}: ReaderEndToEnd, {TLS: "backend"}: ReaderEndToEnd,
		{TLS: "agent", Reader: ReaderRelay}: ReaderRelay,
	} {
		if got := s.WhoReads(); got != want {
			t.Errorf("%+v: %q", s, got)
		}
	}
}

// The owner sees of each service who can read it, and which ports are open.
func TestPagesTellWhoReads(t *testing.T) {
	h := NewDashboard(newFakeRelay().config())
	for _, path := range []string{"/", "/homes"} {
		body := get1(h, path).Body.String()
		for service, want := range map[string]string{
			"home-assistant": "relay can read", "photos": "end to end", "photos-share": "end to end", "camera": "relay can read",
		} {
			_, row, ok := strings.Cut(body, "<b>"+service+"</b>")
			row, _, _ = strings.Cut(row, "</li>")
			if !ok || strings.Contains(row, "end to end</span>") != (want == "end to end") || !strings.Contains(row, want+"</span>") {
				t.Errorf("%s: %s is not told as %q: %s", path, service, want, row)
			}
		}
	}
	for path, want := range map[string][]string{
		"/":      {"Answers the DNS of home.example.org: 4711 questions", "behind www.home.example.org; the next key comes in 23 hours"},
		"/homes": {"ports 2222, 51820/udp", "<b>git</b>", "port 2222: another program on the relay has this port", "<b>wireguard</b>", "2 open, 8.2 MB"},
	} {
		body := get1(h, path).Body.String()
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("%s does not say %q", path, w)
			}
		}
	}
	bare := newFakeRelay().config()
	bare.API.Status = func(context.Context) (Status, error) { return Status{Domain: "home.example.org"}, nil }
	if body := get1(NewDashboard(bare), "/").Body.String(); strings.Contains(body, "DNS") || strings.Contains(body, "Encrypted") {
		t.Error("DNS and ECH are told of where there are none")
	}
}
