package service

import (
	"testing"

	"github.com/sallyport/sallyport/protocol"
)

// Visitors of public ports are bounded apart: what they fill is not what the
// others need.
func TestMostUnproven(t *testing.T) {
	l := listen(t)
	at := "tcp://" + l.Addr().String()
	h := newHome(t,
		Entry{Name: "ssh", Target: at, Port: 2222, Auth: protocol.AuthNone},
		Entry{Name: "git", Target: at, Port: 2223, Auth: protocol.AuthNone},
		Entry{Name: "wg", Target: "udp://127.0.0.1:9", Port: 51820, Auth: protocol.AuthNone},
		Entry{Name: "pve", Target: at, TLS: protocol.TLSBackend},
		Entry{Name: "ha", Target: at},
	)
	h.MostUnproven = 2
	ask := func(service string) protocol.Code {
		t.Helper()
		_, r, _ := h.open(t, t.Context(), protocol.Open{Service: service, Packets: service == "wg"})
		return r.Code
	}
	for _, c := range []struct {
		service string
		want    protocol.Code
	}{
		{"ssh", protocol.CodeOK},
		{"git", protocol.CodeOK},
		{"ssh", protocol.CodeOverload}, // the third of all ports
		{"wg", protocol.CodeOK},        // flows are counted apart
		{"wg", protocol.CodeOK},
		{"wg", protocol.CodeOverload},
		{"pve", protocol.CodeOK},
		{"pve", protocol.CodeOK},
		{"pve", protocol.CodeOverload},
		{"ha", protocol.CodeOK}, // whoever was asked for a certificate has room
		{"ha", protocol.CodeOK},
		{"ha", protocol.CodeOK},
	} {
		if got := ask(c.service); got != c.want {
			t.Errorf("%s: %v, want %v", c.service, got, c.want)
		}
	}
}
