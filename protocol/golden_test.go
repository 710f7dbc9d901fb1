package protocol_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"testing/iotest"
	"time"

	"github.com/sallyport/sallyport/protocol"
)

var update = flag.Bool("update", false, "rewrite testdata/wire; a changed file there is a changed wire")

// goldenMessages has one line for each message type, every field set.
var goldenMessages = map[string]protocol.Message{
	"hello":   protocol.Hello{Versions: []int{1}, Features: []string{"a"}, Instance: "7XQ2", Software: "sallyport/0.1"},
	"welcome": protocol.Welcome{Version: 1, Features: []string{"a"}, Name: "pi", Domain: "example.org", Time: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), Software: "sallyport/0.1"},
	"register": protocol.Register{Seq: 3, Services: []protocol.Service{
		{Name: "ha", Proto: protocol.ProtoHTTP1},
		{Name: "lamp", Proto: protocol.ProtoH2, Host: "*.example.org", Path: "/lamp/", Auth: protocol.AuthAsk, TLS: protocol.TLSRelay, Solo: true, Port: 5, RemoteUser: true},
	}},
	"registered": protocol.Registered{Seq: 3, Services: []protocol.Registration{
		{Name: "ha", URL: "https://ha.example.org/"}, {Name: "lamp", Error: "host *.example.org is reserved"},
	}},
	"goaway":  protocol.GoAway{Code: protocol.CodeGoingAway, Reason: "restart", ReconnectIn: time.Second, TryFor: time.Minute},
	"ping":    protocol.NewPing(7),
	"pong":    protocol.Pong{Seq: 7, Pad: "."},
	"renew":   protocol.Renew{CSR: []byte{0x30, 0x00}},
	"renewed": protocol.Renewed{Cert: []byte{0x30, 0x01}, Error: "no"},
	"join":    protocol.Join{Secret: "ABCDEFGHIJKLMNOPQRSTUVWXYZ", CSR: []byte{0x30, 0x00}, Name: "pi"},
	"joined":  protocol.Joined{Cert: []byte{0x30, 0x01}, CA: []byte{0x30, 0x02}, Name: "pi", Domain: "example.org", DeviceCA: []byte{0x30, 0x03}, Error: "no"},
	"names":   protocol.Names{Seq: 2, LAN: []netip.Addr{netip.MustParseAddr("192.168.1.7")}, Split: true, Account: "https://ca.test/acct/1", Issuers: []string{"ca.test"}},
	"named":   protocol.Named{Seq: 2, Host: "a.example.org", Public: "203.0.113.7", Error: "no"},
	"settxt":  protocol.SetTXT{Seq: 4, Name: "_acme-challenge.ha.example.org", Values: []string{"abc"}},
	"txtset":  protocol.TXTSet{Seq: 4, Error: "no"},
}

var goldenOpens = map[string]protocol.Open{
	"open-min":     {Service: "a"},
	"open-v4":      {Service: "ha", Client: netip.MustParseAddrPort("203.0.113.7:50000"), Local: netip.MustParseAddrPort("192.0.2.1:443"), SNI: "ha.example.org", Hop: 1},
	"open-packets": {Service: "wg", Client: netip.MustParseAddrPort("203.0.113.7:50000"), Local: netip.MustParseAddrPort("192.0.2.1:51820"), Packets: true},
	"open-v6":      {Service: "ha", Client: netip.MustParseAddrPort("[2001:db8::7]:50000"), Local: netip.MustParseAddrPort("[2001:db8::1]:443"), SNI: "ha.example.org"},
}

var goldenResults = map[string]protocol.Result{
	"result-ok":      {},
	"result-refused": {Code: protocol.CodeUnknownService, Reason: "no service \"ha\" here"},
}

func golden(t *testing.T, name string, frame []byte) {
	t.Helper()
	file := filepath.Join("testdata", "wire", name+".hex")
	got := hex.Dump(frame)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the wire has changed. got:\n%swant:\n%s", got, want)
	}
}

// exactly reads a frame in every unkind way and checks that the reader takes
// this frame, all of it, and not one byte of what follows.
func exactly[T any](t *testing.T, frame []byte, want T, read func(io.Reader) (T, error)) {
	t.Helper()
	tail := []byte("the visitor's")
	r := bytes.NewReader(append(bytes.Clone(frame), tail...))
	for name, in := range map[string]io.Reader{"whole": r, "byte by byte": iotest.OneByteReader(r), "data with EOF": iotest.DataErrReader(bytes.NewReader(frame))} {
		r.Seek(0, io.SeekStart)
		got, err := read(in)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: read %+v, %v; want %+v", name, got, err, want)
		}
		if name != "data with EOF" && r.Len() != len(tail) {
			t.Errorf("%s: %d bytes are left, want the %d that are not the frame's", name, r.Len(), len(tail))
		}
	}
	for n := range frame {
		_, err := read(bytes.NewReader(frame[:n]))
		switch {
		case n == 0 && err != io.EOF:
			t.Errorf("an end before the frame gives %v, want a bare io.EOF", err)
		case n > 0 && !errors.Is(err, io.ErrUnexpectedEOF):
			t.Errorf("an end after %d of %d bytes gives %v, want io.ErrUnexpectedEOF", n, len(frame), err)
		}
	}
}

// oneWrite fails the test when a frame is written in pieces: between two
// writers a piece would end up inside another frame.
type oneWrite struct {
	bytes.Buffer
	calls int
}

func (w *oneWrite) Write(b []byte) (int, error) { w.calls++; return w.Buffer.Write(b) }

func frameOf(t *testing.T, write func(io.Writer) error) []byte {
	t.Helper()
	var w oneWrite
	if err := write(&w); err != nil {
		t.Fatal(err)
	}
	if w.calls != 1 {
		t.Errorf("written with %d calls, want 1", w.calls)
	}
	return w.Bytes()
}

func TestGoldenMessages(t *testing.T) {
	seen := make(map[protocol.MessageType]bool)
	for name, m := range goldenMessages {
		t.Run(name, func(t *testing.T) {
			frame := frameOf(t, func(w io.Writer) error { return protocol.WriteMessage(w, m) })
			golden(t, name, frame)
			exactly(t, frame, m, protocol.ReadMessage)
			seen[m.Type()] = true
		})
	}
	if len(seen) != int(protocol.TypeTXTSet) {
		t.Errorf("%d of %d message types have a golden frame", len(seen), protocol.TypeTXTSet)
	}
}

func TestGoldenOpens(t *testing.T) {
	for name, o := range goldenOpens {
		t.Run(name, func(t *testing.T) {
			frame := frameOf(t, func(w io.Writer) error { return protocol.WriteOpen(w, o) })
			golden(t, name, frame)
			exactly(t, frame, o, protocol.ReadOpen)
		})
	}
}

func TestGoldenResults(t *testing.T) {
	for name, res := range goldenResults {
		t.Run(name, func(t *testing.T) {
			frame := frameOf(t, func(w io.Writer) error { return protocol.WriteResult(w, res) })
			golden(t, name, frame)
			exactly(t, frame, res, protocol.ReadResult)
		})
	}
}
