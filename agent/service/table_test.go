package service

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/protocol"
)

func TestEntryService(t *testing.T) {
	for _, tc := range []struct {
		entry Entry
		proto string
		solo  bool
	}{
		{Entry{Target: "127.0.0.1:80"}, protocol.ProtoHTTP1, false},
		{Entry{Target: "unix:/run/x"}, protocol.ProtoHTTP1, false},
		{Entry{Target: "https://h"}, protocol.ProtoHTTP1, false},
		{Entry{Target: "https://h", HTTP2: true}, protocol.ProtoH2, false},
		{Entry{Target: "h2c://h:1", ProxyProtocol: true}, protocol.ProtoH2, true},
		{Entry{Target: "tcp://h:1"}, protocol.ProtoRaw, false},
		{Entry{Target: "tcp+unix:/run/x"}, protocol.ProtoRaw, false},
		{Entry{Target: "https://h", TLS: protocol.TLSBackend}, protocol.ProtoRaw, false},
		{Entry{Target: "h:8443", TLS: protocol.TLSBackend}, protocol.ProtoRaw, false},
		{Entry{Target: "127.0.0.1:80", TLS: protocol.TLSAgent}, protocol.ProtoHTTP1, false},
		{Entry{Target: "https://h", TLS: protocol.TLSAgent, HTTP2: true}, protocol.ProtoH2, false},
		{Entry{Target: "tcp://h:1", TLS: protocol.TLSAgent}, protocol.ProtoRaw, false},
		{Entry{Target: "udp://h:1", Port: 5000, Auth: protocol.AuthNone}, protocol.ProtoUDP, false},
		{Entry{Target: "tcp://h:1", Port: 5000, Auth: protocol.AuthNone}, protocol.ProtoRaw, false},
		{Entry{Target: "h:22", Port: 5000, Auth: protocol.AuthNone, ProxyProtocol: true}, protocol.ProtoRaw, true},
	} {
		tc.entry.Name = "x"
		got, err := tc.entry.Service()
		if err != nil || got.Proto != tc.proto || got.Solo != tc.solo || got.Name != "x" {
			t.Errorf("%+v: %+v, %v", tc.entry, got, err)
		}
		if got.Port != tc.entry.Port || got.Port != 0 && got.TLS != protocol.TLSNone {
			t.Errorf("%+v: %+v", tc.entry, got)
		}
		if got != got.WithDefaults() || got.Auth == "" {
			t.Errorf("%+v: defaults are not filled in", got)
		}
	}
}

func TestSetReportsEverything(t *testing.T) {
	table := NewTable(nil, nil)
	good := []Entry{{Name: "keep", Target: "127.0.0.1:1"}}
	if err := table.Set(good); err != nil {
		t.Fatal(err)
	}
	changed := table.Changed()
	err := table.Set([]Entry{
		{Name: "keep", Target: "127.0.0.1:2"},
		{Name: "Bad_Name", Target: "127.0.0.1:1"},
		{Name: "pathy", Target: "http://127.0.0.1:1/x"},
		{Name: "auth", Target: "127.0.0.1:1", Auth: "maybe"},
		{Name: "plain", Target: "http://h", CAFile: "/x"},
		{Name: "twice-insecure", Target: "https://h", CAFile: "/x", InsecureSkipVerify: true},
		{Name: "halfkey", Target: "https://h", ClientCert: "/x"},
		{Name: "nofile", Target: "https://h", CAFile: "/nonexistent/ca.pem"},
		{Name: "passhttp", Target: "http://h", TLS: protocol.TLSBackend},
		{Name: "passca", Target: "https://h", TLS: protocol.TLSBackend, CAFile: "/x"},
		{Name: "dup", Target: "127.0.0.1:1", Origin: OriginConfig},
		{Name: "dup", Target: "127.0.0.1:2", Origin: OriginExposed},
		{Name: "one", Target: "127.0.0.1:1", Host: "h.example.org"},
		{Name: "two", Target: "127.0.0.1:1", Host: "H.example.org."},
		{Name: "portless", Target: "udp://h:1", Auth: protocol.AuthNone},
		{Name: "silent", Target: "udp://h:1", Port: 1},
		{Name: "webport", Target: "https://h:1", Port: 1, Auth: protocol.AuthNone},
		{Name: "proxyudp", Target: "udp://h:1", Port: 2, Auth: protocol.AuthNone, ProxyProtocol: true},
		{Name: "udp-a", Target: "udp://h:1", Port: 7, Auth: protocol.AuthNone},
		{Name: "udp-b", Target: "udp://h:2", Port: 7, Auth: protocol.AuthNone},
		{Name: "tcp-a", Target: "tcp://h:2", Port: 7, Auth: protocol.AuthNone},
	})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`service "Bad_Name"`,
		`service "pathy"`, "has a path",
		`service "auth"`, "maybe",
		`service "plain"`, "need an https target",
		`service "twice-insecure"`, "drop insecure_skip_verify",
		`service "halfkey"`, "go together",
		`service "nofile"`, "/nonexistent/ca.pem",
		`service "passhttp"`, "expect none",
		`service "passca"`, "leave them out",
		`service "dup"`, "(config)", "(exposed)",
		`services "one" and "two" both want h.example.org`,
		`service "portless"`, "udp needs a public port",
		`service "silent"`, "say so with auth none",
		`service "webport"`, "use a tcp:// or udp:// target",
		`service "proxyudp"`, "begins a connection, and udp has none",
		`services "udp-a" and "udp-b" both want UDP port 7`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %s:\n%v", want, err)
		}
	}
	for _, good := range []string{`"keep"`, `"tcp-a"`} {
		if strings.Contains(err.Error(), good) {
			t.Errorf("a good service is blamed:\n%v", err)
		}
	}
	// All or nothing.
	if got := table.Services(); len(got) != 1 || got[0].Name != "keep" {
		t.Errorf("the table changed: %v", got)
	}
	if table.current.Load().backends["keep"].target.Port != 1 {
		t.Error("a target changed")
	}
	select {
	case <-changed:
		t.Error("a change was announced")
	default:
	}
}

// The whole list travels in one message.
func TestSetRefusesWhatDoesNotTravel(t *testing.T) {
	table := NewTable(nil, nil)
	var entries []Entry
	for i := range 512 {
		entries = append(entries, Entry{Name: fmt.Sprint("s", i), Target: "127.0.0.1:1"})
	}
	if err := table.Set(entries); err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		entries[i].Host = "h.example.org"
		entries[i].Path = fmt.Sprintf("/%s/%d/", strings.Repeat("x", 200), i)
	}
	if err := table.Set(entries); err == nil || !strings.Contains(err.Error(), "too long to tell the relay") {
		t.Errorf("got %v", err)
	}
	if got := table.Services(); len(got) != 512 || got[0].Host != "" {
		t.Error("the table changed")
	}
}

func TestChanged(t *testing.T) {
	table := NewTable(nil, nil)
	set := func(entries ...Entry) (announced bool) {
		t.Helper()
		c := table.Changed()
		if err := table.Set(entries); err != nil {
			t.Fatal(err)
		}
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	if !set(Entry{Name: "b", Target: "h:1"}, Entry{Name: "a", Target: "h:2"}) {
		t.Error("the first services were not announced")
	}
	names := []string{}
	for _, s := range table.Services() {
		names = append(names, s.Name)
	}
	if !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("services %v", names)
	}
	if set(Entry{Name: "a", Target: "h:22"}, Entry{Name: "b", Target: "h:1"}) {
		t.Error("a target that the relay never learns was announced")
	}
	if !set(Entry{Name: "a", Target: "tcp://h:22"}, Entry{Name: "b", Target: "h:1"}) {
		t.Error("another protocol was not announced")
	}
	if !set() {
		t.Error("the removal was not announced")
	}
}
