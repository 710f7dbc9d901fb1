package protocol_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/names"
)

func TestAgentID(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := protocol.AgentIDOfKey(key.Public())
	if err != nil || !protocol.IsAgentID(string(id)) {
		t.Fatalf("%q, %v: not of the shape that is reserved", id, err)
	}
	if host := string(id) + ".example.org"; !names.IsReserved(host, "example.org") {
		t.Errorf("%s may be claimed", host)
	}
	if len(id.Short()) != 8 || protocol.AgentID("abc").Short() != "abc" {
		t.Errorf("short forms %q, %q", id.Short(), protocol.AgentID("abc").Short())
	}
}

func TestCodeNames(t *testing.T) {
	if got := protocol.CodeOffline.String(); got != "offline" {
		t.Errorf("code 15 is %q", got)
	}
	if got := protocol.Code(16).String(); got != "code-16" {
		t.Errorf("an unknown code is %q", got)
	}
}
