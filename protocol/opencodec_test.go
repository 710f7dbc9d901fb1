package protocol_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sallyport/sallyport/protocol"
)

func rawOpen(body ...byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(body))), body...)
}

func TestReadOpenIgnoresNewFields(t *testing.T) {
	r := bytes.NewReader(append(rawOpen(1, 0, 1, 'a', 0, 0, 0, 'n', 'e', 'w'), "tail"...))
	o, err := protocol.ReadOpen(r)
	if err != nil || o.Service != "a" || r.Len() != 4 {
		t.Errorf("%+v, %v, %d bytes left; want service a and 4", o, err, r.Len())
	}
}

func TestReadOpenRefuses(t *testing.T) {
	for name, frame := range map[string][]byte{
		"empty":          rawOpen(),
		"too large":      {4, 1},
		"unknown kind":   rawOpen(3, 0, 1, 'a', 0, 0, 0),
		"no service":     rawOpen(1, 0, 0, 0, 0, 0),
		"service name":   rawOpen(1, 0, 3, '.', '.', '/', 0, 0, 0),
		"capital":        rawOpen(1, 0, 1, 'A', 0, 0, 0),
		"cut service":    rawOpen(1, 0, 9, 'a'),
		"address size":   rawOpen(1, 0, 1, 'a', 5, 1, 2, 3, 4, 5, 0, 80, 0, 0),
		"cut address":    rawOpen(1, 0, 1, 'a', 4, 1, 2, 3),
		"cut port":       rawOpen(1, 0, 1, 'a', 4, 1, 2, 3, 4, 0),
		"no server name": rawOpen(1, 0, 1, 'a', 0, 0),
		"SNI capital":    rawOpen(1, 0, 1, 'a', 0, 0, 1, 'A'),
		"SNI address":    rawOpen(1, 0, 1, 'a', 0, 0, 3, '1', '.', '2'),
		"SNI line feed":  rawOpen(1, 0, 1, 'a', 0, 0, 2, 'a', '\n'),
	} {
		if o, err := protocol.ReadOpen(bytes.NewReader(frame)); !errors.Is(err, protocol.ErrMalformed) {
			t.Errorf("%s: %+v, %v; want ErrMalformed", name, o, err)
		}
	}
}

func TestWriteOpenRefuses(t *testing.T) {
	for name, o := range map[string]protocol.Open{
		"no service":   {},
		"long service": {Service: strings.Repeat("a", 64)},
		"address":      {Service: "127.0.0.1:80"},
		"raw SNI":      {Service: "a", SNI: "DOOR.test."},
	} {
		var w bytes.Buffer
		if err := protocol.WriteOpen(&w, o); err == nil || w.Len() > 0 {
			t.Errorf("%s: wrote %d bytes, %v; want an error and nothing", name, w.Len(), err)
		}
	}
}

func TestOpenAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"[::ffff:203.0.113.7]:80": "203.0.113.7:80",
		"[fe80::1%eth0]:80":       "[fe80::1]:80",
		"0.0.0.0:0":               "0.0.0.0:0",
	} {
		var w bytes.Buffer
		if err := protocol.WriteOpen(&w, protocol.Open{Service: "a", Client: netip.MustParseAddrPort(in)}); err != nil {
			t.Fatal(err)
		}
		o, err := protocol.ReadOpen(&w)
		if err != nil || o.Client.String() != want || o.Local.IsValid() {
			t.Errorf("%s arrives as %v, %v; want %s", in, o.Client, err, want)
		}
	}
}

func TestLargestOpen(t *testing.T) {
	addr := netip.MustParseAddrPort("[2001:db8::7]:50000")
	o := protocol.Open{Service: strings.Repeat("a", 63), Client: addr, Local: addr, SNI: strings.Repeat("a.", 126) + "a", Hop: 255}
	var w bytes.Buffer
	if err := protocol.WriteOpen(&w, o); err != nil || w.Len() != 2+358 {
		t.Fatalf("the largest open takes %d bytes, %v", w.Len(), err)
	}
	if got, err := protocol.ReadOpen(&w); err != nil || got != o {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestResultReason(t *testing.T) {
	var w bytes.Buffer
	if err := protocol.WriteResult(&w, protocol.Result{Code: 99, Reason: strings.Repeat("ü", 200)}); err != nil {
		t.Fatal(err)
	}
	res, err := protocol.ReadResult(&w)
	if err != nil || res.Code != 99 || len(res.Reason) != 254 || !utf8.ValidString(res.Reason) {
		t.Errorf("a long reason arrives as %d bytes, code %v, %v; want 254 whole letters", len(res.Reason), res.Code, err)
	}
	if _, err := protocol.ReadResult(strings.NewReader("\x00\x00\x00\x01\x01\xff")); !errors.Is(err, protocol.ErrMalformed) {
		t.Errorf("a reason that is not UTF-8 gives %v, want ErrMalformed", err)
	}
	w.Reset()
	if err := protocol.WriteResult(&w, protocol.Result{Code: 1, Reason: "\xff\xfe"}); err != nil {
		t.Fatal(err)
	}
	if _, err := protocol.ReadResult(&w); err != nil {
		t.Errorf("what WriteResult wrote is refused: %v", err)
	}
}

func FuzzReadOpen(f *testing.F) {
	for _, o := range goldenOpens {
		var w bytes.Buffer
		if err := protocol.WriteOpen(&w, o); err != nil {
			f.Fatal(err)
		}
		f.Add(w.Bytes())
	}
	f.Add(rawOpen(1, 0, 1, 'a', 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4, 0, 80, 0, 0))
	f.Add(rawOpen(1, 0, 1, 'a', 4, 1, 2, 3))
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		o, err := protocol.ReadOpen(r)
		if err != nil {
			return
		}
		if used := len(in) - r.Len(); used != 2+int(binary.BigEndian.Uint16(in)) {
			t.Fatalf("read %d bytes of %x", used, in)
		}
		again(t, o, protocol.WriteOpen, protocol.ReadOpen)
	})
}

func FuzzReadResult(f *testing.F) {
	for _, res := range goldenResults {
		var w bytes.Buffer
		if err := protocol.WriteResult(&w, res); err != nil {
			f.Fatal(err)
		}
		f.Add(w.Bytes())
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0, 0, 1, 2, 0xc3, 0xbc, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		res, err := protocol.ReadResult(r)
		if err != nil {
			return
		}
		if used := len(in) - r.Len(); used != 5+int(in[4]) {
			t.Fatalf("read %d bytes of %x", used, in)
		}
		again(t, res, protocol.WriteResult, protocol.ReadResult)
	})
}

// again writes v and reads the same back.
func again[T comparable](t *testing.T, v T, write func(io.Writer, T) error, read func(io.Reader) (T, error)) {
	t.Helper()
	var w bytes.Buffer
	if err := write(&w, v); err != nil {
		t.Fatalf("%+v cannot be written: %v", v, err)
	}
	if got, err := read(&w); err != nil || got != v {
		t.Fatalf("%+v became %+v, %v", v, got, err)
	}
}

func ExampleWriteOpen() {
	var stream bytes.Buffer // stands for one direction of a tunnel.Stream
	err := protocol.WriteOpen(&stream, protocol.Open{Service: "ha", Client: netip.MustParseAddrPort("203.0.113.7:50000"), SNI: "ha.example.org"})
	if err != nil {
		fmt.Println(err)
		return
	}
	stream.WriteString("GET / HTTP/1.1\r\n")

	o, err := protocol.ReadOpen(&stream)
	fmt.Println(o.Service, "for", o.Client, err)
	fmt.Printf("%q\n", stream.String())
	// Output:
	// ha for 203.0.113.7:50000 <nil>
	// "GET / HTTP/1.1\r\n"
}
