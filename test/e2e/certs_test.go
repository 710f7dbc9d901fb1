package e2e_test

import (
	"testing"
	"time"

	"github.com/sallyport/sallyport/test/world"
)

const day = 24 * time.Hour

// The agent renews when two thirds of its certificate's 90 days are over, and
// nothing of what is open notices.
func TestAgentCertificateIsRenewed(t *testing.T) {
	world.Run(t, func(w *world.World) {
		_, h, p := standard(w)
		first := h.Status().CertEnds
		// What the relay's clock says the agent hears when a session begins.
		w.Jump(60*day - time.Hour)
		h.Stop()
		h.Start()
		h.AwaitOnline(time.Minute)
		before := h.Status()
		raw := openRaw(w, p)
		w.Sleep(30 * time.Minute)
		if ends := h.Status().CertEnds; !ends.Equal(first) {
			t.Errorf("renewed before the sixtieth day: %v", ends)
		}
		took := w.Until(3*time.Hour, "the certificate is renewed", func() bool { return h.Status().CertEnds.After(first) })
		after := h.Status()
		t.Logf("renewed %v after half an hour before the sixtieth day, until %v later", took, after.CertEnds.Sub(first))
		if left := after.CertEnds.Sub(w.Now()); left < 89*day {
			t.Errorf("the new certificate lasts %v", left)
		}
		if !after.Since.Equal(before.Since) {
			t.Error("the session was made anew")
		}
		allLive(t, []*world.Watch{raw})

		// The next session uses it.
		w.Jump(60 * day) // the first one has expired
		h.Cut()
		h.Stop()
		h.Start()
		h.AwaitOnline(5 * time.Second)
		visit(w, p, homeURL+"/")
	})
}

// A known key may come with an expired certificate, and renews it first.
func TestAgentWasAway(t *testing.T) {
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			world.Run(t, func(w *world.World) {
				r := w.Relay(domain)
				h := r.NewHome("kitchen", world.Web("web"))
				h.Transports = []string{transport}
				h.Start()
				h.AwaitOnline(5 * time.Second)
				p := r.Phone("anna")
				h.Stop()
				w.Jump(120 * day)
				w.Sleep(time.Minute)
				h.Start()
				if ends := h.Status().CertEnds; ends.After(w.Now()) {
					t.Fatalf("the certificate is good until %v", ends)
				}
				t.Logf("back after %v", h.AwaitOnline(5*time.Second))
				visit(w, p, homeURL+"/")
				w.Until(time.Second, "the certificate is renewed", func() bool { return h.Status().CertEnds.After(w.Now().Add(89 * day)) })
			})
		})
	}
}

// A revoked key may not, however new its certificate is.
func TestRevokedAgent(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, h, p := standard(w)
		open := openAll(w, p)
		revoked := time.Now()
		if err := r.Admin("agents/kitchen/revoke", struct{}{}, nil); err != nil {
			t.Fatal(err)
		}
		allCut(t, open, revoked, time.Second)
		w.Sleep(time.Second)
		w.Always(10*time.Minute, "the agent is away", func() bool { return !r.Online("kitchen") && h.Transport() == "" })
		h.Stop()
		h.Start()
		w.Always(time.Minute, "the agent is away", func() bool { return !r.Online("kitchen") && h.Transport() == "" })
		if p.Visits(homeURL + "/") {
			t.Error("a visit of a revoked home's name succeeds")
		}
	})
}

// A Raspberry Pi without a clock starts in 1970.
func TestAgentWithoutClock(t *testing.T) {
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			world.Run(t, func(w *world.World) {
				r := w.Relay(domain)
				h := r.NewHome("kitchen", world.Web("web"))
				h.Transports = []string{transport}
				boot := func() {
					at := time.Now()
					h.Clock = func() time.Time { return time.Unix(0, 0).Add(time.Since(at)) }
					h.Start()
				}
				boot()
				t.Logf("joined and published after %v", h.AwaitOnline(5*time.Second))
				p := r.Phone("anna")
				visit(w, p, homeURL+"/")
				h.Stop()

				// It was off for so long that the relay has a newer certificate,
				// and its own has expired.
				w.Jump(300 * day)
				w.Sleep(time.Minute)
				boot()
				t.Logf("back after 300 days within %v", h.AwaitOnline(5*time.Second))
				w.Until(time.Second, "the certificate is renewed", func() bool { return h.Status().CertEnds.After(w.Now().Add(89 * day)) })
				h.Kill()
				boot()
				t.Logf("back after a power failure within %v", h.AwaitOnline(5*time.Second))
			})
		})
	}
}
