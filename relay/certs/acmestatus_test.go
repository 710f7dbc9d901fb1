package certs

import (
	"slices"
	"testing"
)

// TestHostStatus: the same as in Status, and nothing of hosts that are not named.
func TestHostStatus(t *testing.T) {
	a, err := NewACME(ACMEConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	a.SetHosts([]string{"*.x.relay.test", "ha.relay.test"})
	list := a.Status()
	if len(list) != 2 || list[0].State != StateRefused {
		t.Fatalf("status: %+v", list)
	}
	for _, want := range list {
		if got, ok := a.HostStatus(want.Host); !ok || !slices.Contains(list, got) || got.Host != want.Host {
			t.Errorf("%s: %+v, want %+v", want.Host, got, want)
		}
	}
	if got, ok := a.HostStatus("nobody.relay.test"); ok {
		t.Errorf("a host that nobody named: %+v", got)
	}
}
