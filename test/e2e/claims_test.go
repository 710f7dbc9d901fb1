package e2e_test

import (
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/test/world"
)

// A host belongs to the home that claimed it first, also while that home is
// away and after the relay was killed.
func TestClaimsAreSticky(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r := w.Relay(domain)
		first := r.Home("first", world.Web("web"))
		p := r.Phone("anna")
		second := r.Home("second", world.Web("other").Host("web.example.org"), world.Web("own"))
		taken := func(when string) {
			t.Helper()
			if got := second.Refusal("other"); !strings.Contains(got, "claimed by another agent") {
				t.Errorf("%s: the second home is told %q", when, got)
			}
			if a := r.Agent("first"); len(a.Hosts) != 1 || a.Hosts[0] != "web.example.org" {
				t.Errorf("%s: the first home has %v", when, a.Hosts)
			}
		}
		taken("while the first is there")
		if reply := visit(w, p, homeURL+"/"); reply.Body != "this is web" {
			t.Errorf("got %q", reply.Body)
		}
		if reply := visit(w, p, "https://own.example.org/"); reply.Body != "this is own" {
			t.Errorf("got %q", reply.Body)
		}
		if log := r.Audit(); !strings.Contains(log, "claim.refused") || !strings.Contains(log, "web.example.org") {
			t.Errorf("the audit log has no word of it:\n%s", log)
		}

		first.Stop()
		second.Stop()
		second.Start()
		second.AwaitOnline(5 * time.Second)
		taken("while the first is away")

		r.Kill()
		r.Start()
		w.Until(10*time.Second, "the second is back", func() bool { return r.Online("second") })
		w.Sleep(time.Second)
		taken("after the relay was killed")
		first.Start()
		first.AwaitOnline(5 * time.Second)
		if reply := visit(w, p, homeURL+"/"); reply.Body != "this is web" {
			t.Errorf("got %q", reply.Body)
		}

		// Released by the owner while its home is away, it is free.
		first.Stop()
		if err := r.Admin("hosts/web.example.org/release", struct{}{}, nil); err != nil {
			t.Fatal(err)
		}
		second.Stop()
		second.Start()
		second.AwaitOnline(5 * time.Second)
		if got := second.Refusal("other"); got != "" {
			t.Errorf("after the release: %s", got)
		}
		if reply := visit(w, p, homeURL+"/"); reply.Body != "this is other" {
			t.Errorf("got %q", reply.Body)
		}
	})
}

// A name that nobody holds any more answers like one that nobody ever held.
func TestReleasedNameIsUnknown(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, h, p := standard(w)
		never := handshake(p, "never.example.org")
		open := openAll(w, p)
		h.Stop()
		released := time.Now()
		if err := r.Admin("hosts/web.example.org/release", struct{}{}, nil); err != nil {
			t.Fatal(err)
		}
		if err := r.Admin("hosts/echo.example.org/release", struct{}{}, nil); err != nil {
			t.Fatal(err)
		}
		allCut(t, open, released, time.Second)
		for _, host := range []string{"web.example.org", "echo.example.org"} {
			if got := handshake(p, host); got != never {
				t.Errorf("%s answers %q, a name that was never claimed %q", host, got, never)
			}
		}
	})
}
