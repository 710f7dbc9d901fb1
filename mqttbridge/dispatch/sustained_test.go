package dispatch

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A device that presses once a second for hours gets its share and no more,
// hears when it may go on, and neither fills the ledger nor the audit log. What
// others press is not touched.
func TestSustainedRate(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), obedient)
		const hours = 3
		taken, refused := 0, 0
		for range hours * 3600 {
			s, err := w.d.Send(t.Context(), "anna-phone", "kitchen", press("anna-phone", "door"))
			synctest.Wait()
			switch {
			case err == nil:
				taken++
			case s.Code != mqttbridge.CodeRate || !s.Final || !strings.Contains(s.Reason, "wait"):
				t.Fatalf("%+v, %v", s, err)
			default:
				if left := time.Until(s.Until); left <= 0 || left > 7*time.Second {
					t.Fatalf("it may go on in %v", left)
				}
				w.isRefusal(err, mqttbridge.CodeRate)
				refused++
			}
			time.Sleep(time.Second) // virtual
		}
		if most := 600 + hours*600 + 1; taken > most || taken < most-10 {
			t.Errorf("%d commands in %d hours were taken; want about %d", taken, hours, most)
		}
		if n := w.d.Status().Commands; n != taken {
			t.Errorf("%d commands are kept", n)
		}
		s := w.send("ben-phone", press("ben-phone", "door"))
		w.is("ben-phone", s.ID, mqttbridge.Done)

		time.Sleep(time.Minute) // virtual
		audit := w.audits.String()
		if n := strings.Count(audit, "command.refused"); n > hours*360+1 || n < 100 {
			t.Errorf("%d lines about %d refusals", n, refused)
		}
		if got := countRefused(t, audit); got != refused {
			t.Errorf("the audit log counts %d refusals of %d", got, refused)
		}

		// After the wait that it was told, the next press goes through.
		time.Sleep(2 * time.Hour) // virtual
		for {
			s, err := w.d.Send(t.Context(), "anna-phone", "kitchen", press("anna-phone", "door"))
			synctest.Wait()
			if err == nil {
				time.Sleep(100 * time.Millisecond) // virtual
				continue
			}
			if s.Code == mqttbridge.CodeRate {
				time.Sleep(time.Until(s.Until)) // virtual
				w.send("anna-phone", press("anna-phone", "door"))
				break
			}
			t.Fatalf("%+v", s)
		}
	})
}

// A burst of refusals is one line at once and one with the count ten seconds
// later, also when nothing more comes.
func TestRefusalsAreAuditedSeldom(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		for range 100 {
			w.sendRefused("anna-phone", "nowhere", press("anna-phone", "door"), map[bool]mqttbridge.Code{true: mqttbridge.CodeNoAction, false: mqttbridge.CodeBusy}[w.d.tokens("anna-phone") >= 1])
		}
		w.sendRefused("ben-phone", "nowhere", press("ben-phone", "door"), mqttbridge.CodeNoAction) // his own line
		if n := strings.Count(w.audits.String(), "command.refused"); n != 2 {
			t.Errorf("%d lines at once:\n%s", n, w.audits.String())
		}
		time.Sleep(9 * time.Second) // virtual
		if n := strings.Count(w.audits.String(), "command.refused"); n != 2 {
			t.Errorf("%d lines after 9 s", n)
		}
		time.Sleep(10 * time.Minute) // virtual: long enough for the device to be forgotten
		if n := strings.Count(w.audits.String(), "command.refused"); n != 3 {
			t.Errorf("%d lines in the end", n)
		}
		if got := countRefused(t, w.audits.String()); got != 101 {
			t.Errorf("the audit log counts %d refusals of 101", got)
		}
	})
}

// tokens is how many commands a device may send at once.
func (d *Dispatcher) tokens(device string) float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.guest(device).commands.left
}

var leftOut = regexp.MustCompile(`command\.refused.* left_out_before=(\d+)`)

// countRefused adds up the refusals that the log tells of.
func countRefused(t *testing.T, audit string) (n int) {
	for _, m := range leftOut.FindAllStringSubmatch(audit, -1) {
		more, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		n += 1 + more
	}
	return n
}
