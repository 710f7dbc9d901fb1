package relay

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/relay/store/memstore"
)

func openZoned(t *testing.T) *Relay {
	t.Helper()
	kv := memstore.New()
	t.Cleanup(func() { kv.Close() })
	r, err := New(Config{
		DataDir: t.TempDir(), Domain: "example.org", Store: kv, Listen: "127.0.0.1:0", HTTP: "off",
		DNS: DNS{Listen: "127.0.0.1:0", Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.7")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// A home proves to its CA what is its own, and nothing else: with a record for
// another host it could get that host's certificate.
func TestSetTXT(t *testing.T) {
	r := openZoned(t)
	mine, other := protocol.AgentID(strings.Repeat("a", 52)), protocol.AgentID(strings.Repeat("b", 52))
	r.zone.hosts = map[protocol.AgentID][]string{
		mine: {"ha.example.org", "*.lab.example.org", "*.shared.example.org"}, other: {"theirs.example.org"},
	}
	r.zone.owner = map[string]protocol.AgentID{"shared.example.org": other}
	for name, ok := range map[string]bool{
		"_acme-challenge.ha.example.org":                            true,
		"_acme-challenge.lab.example.org":                           true,
		"_acme-challenge." + string(mine) + ".example.org":          true,
		"_acme-challenge." + string(other) + ".example.org":         false,
		"_acme-challenge.x." + string(mine) + ".example.org":        false,
		"_acme-challenge.theirs.example.org":                        false,
		"_acme-challenge.relays-own.example.org":                    false,
		"_acme-challenge.shared.example.org":                        false,
		"_acme-challenge.example.org":                               false,
		"_acme-challenge.ha.example.net":                            false,
		"ha.example.org":                                            false,
		"_dmarc.ha.example.org":                                     false,
		"_acme-challenge._acme-challenge.ha.example.org":            false,
		"_acme-challenge.HA.example.org":                            false,
		"_acme-challenge.ha.example.org.":                           false,
		"_acme-challenge.":                                          false,
		"_acme-challenge.x.lab.example.org":                         false,
		"_ACME-challenge.ha.example.org":                            false,
		"_acme-challenge.*.lab.example.org":                         false,
		"_validation-persist." + string(mine) + ".example.org":      false,
		"_acme-challenge.ha.example.org\x00.theirs.example.org":     false,
		"_acme-challenge." + strings.Repeat("ha.", 200) + "example": false,
	} {
		got := r.zone.setTXT(mine, protocol.SetTXT{Seq: 7, Name: name, Values: []string{"v"}})
		if (got.Error == "") != ok || got.Seq != 7 {
			t.Errorf("%q: %+v, want ok %t", name, got, ok)
		}
		_, known := r.zone.txt.Lookup(strings.ToLower(strings.TrimSuffix(name, ".")), netip.Addr{})
		if known != ok && got.Error != "" && !strings.EqualFold(strings.TrimSuffix(name, "."), "_acme-challenge.ha.example.org") {
			t.Errorf("%q is in the zone: %t", name, known)
		}
	}
}

// Only names of this relay are in its zone; what a scanner may guess looks the
// same whether it is there or not.
func TestServesName(t *testing.T) {
	r := openZoned(t)
	for name, want := range map[string]bool{
		"example.org": true, "relay.example.org": true, "enroll.example.org": true, "www.example.org": true, "guess.example.org": true,
		"a.guess.example.org": false, "_dmarc.example.org": false, "example.net": false,
		strings.Repeat("a", 52) + ".example.org": false,
	} {
		if got := r.servesName(name); got != want {
			t.Errorf("%s: %t, want %t", name, got, want)
		}
	}
	for name, want := range map[string]bool{"enroll.example.org": true, "guess.example.org": true, "mqtt.example.org": false, "a.guess.example.org": false} {
		rec, ok := r.httpsRecord(name)
		if ok != want || want && len(rec.ECH) == 0 {
			t.Errorf("HTTPS record of %s: %+v, %t, want %t", name, rec, ok, want)
		}
	}
}

// A relay without an address that visitors could reach says so at the start.
func TestZoneNeedsAddress(t *testing.T) {
	kv := memstore.New()
	defer kv.Close()
	r, err := New(Config{
		DataDir: t.TempDir(), Domain: "example.org", Store: kv, Listen: "127.0.0.1:0", HTTP: "off", DNS: DNS{Listen: "127.0.0.1:0"},
		LocalAddrs: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("::1")} },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Listen(); err == nil || !strings.Contains(err.Error(), "--dns-address") {
		t.Errorf("got %v", err)
		r.Close()
	}
}
