package agent

import (
	"strings"
	"testing"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A relay that says that its domain is another one changes no host here: the
// rights of devices hang on them.
func TestDomainStays(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		r.next()
		hear := func(domain string) string {
			a.welcome(protocol.Welcome{Version: 1, Name: "home", Domain: domain, Time: testNow()}, tunnel.Peer{})
			return strings.Join(a.Warnings(), "\n")
		}
		if said := hear("kids.example.org"); !strings.Contains(said, "kids.example.org") {
			t.Errorf("nobody is told: %q", said)
		}
		if d := a.identity.Load().Domain; d != "example.org" {
			t.Errorf("the domain is %q now", d)
		}
		if said := hear("example.org"); strings.Contains(said, "kids.example.org") {
			t.Errorf("it is not over: %q", said)
		}
	})
}
