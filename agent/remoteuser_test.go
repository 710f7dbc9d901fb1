package agent

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/agent/service"
	"github.com/sallyport/sallyport/protocol"
)

// remoteUser returns what the relay was told last about a service.
func (r *fakeRelay) remoteUser(t *testing.T, name string) bool {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.registers[len(r.registers)-1].Services {
		if s.Name == name {
			return s.RemoteUser
		}
	}
	t.Fatalf("%s is not registered", name)
	return false
}

func TestRemoteUserReachesTheRelay(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		cfg.Services = []service.Entry{
			{Name: "grafana", Target: "http://127.0.0.1:3000", RemoteUser: true},
			{Name: "plain", Target: "http://127.0.0.1:80"},
		}
		a := start(t, cfg)
		r.next()
		c := controlled{a.Agent}
		if _, err := c.Expose(t.Context(), control.Service{Name: "cloud", Target: "http://127.0.0.1:81", RemoteUser: true}); err != nil {
			t.Fatal(err)
		}
		for restart := range 2 { // an exposed one survives it
			for name, want := range map[string]bool{"grafana": true, "plain": false, "cloud": true} {
				if got := r.remoteUser(t, name); got != want {
					t.Errorf("restart %d: %s: %v", restart, name, got)
				}
			}
			a.stop()
			a = start(t, cfg)
			r.next()
		}
		c = controlled{a.Agent}
		for _, s := range []control.Service{
			{Name: "ssh", Target: "tcp://127.0.0.1:22", RemoteUser: true},
			{Name: "open", Target: "http://127.0.0.1:82", Auth: protocol.AuthNone, RemoteUser: true},
		} {
			_, err := c.Expose(t.Context(), s)
			if e, ok := errors.AsType[*control.Error](err); !ok || e.Kind != control.KindInvalid || !strings.Contains(e.Text, "remote_user") {
				t.Errorf("%s: %v", s.Name, err)
			}
		}
	})
}
