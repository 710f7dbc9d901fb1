package edge

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

func TestReadHelloOfRealClient(t *testing.T) {
	hello := helloFor(t, "ha.example.org", "h2", "http/1.1")
	if len(hello) < 1400 {
		t.Fatalf("the hello has only %d bytes: no post-quantum share in it?", len(hello))
	}
	tests := map[string]io.Reader{
		"at once":                  bytes.NewReader(hello),
		"one byte a segment":       iotest.OneByteReader(bytes.NewReader(hello)),
		"one byte a record":        bytes.NewReader(rerecord(hello, 1)),
		"100 bytes a record":       bytes.NewReader(rerecord(hello, 100)),
		"records and segments":     iotest.HalfReader(bytes.NewReader(rerecord(hello, 7))),
		"early data behind it":     bytes.NewReader(append(slices.Clone(hello), 23, 3, 3, 0, 1, 'x')),
		"end together with a read": iotest.DataErrReader(bytes.NewReader(hello)),
	}
	for name, r := range tests {
		h, raw, err := readAll(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if h.ServerName != "ha.example.org" || !h.SNIPresent || !slices.Equal(h.ALPN, []string{"h2", "http/1.1"}) {
			t.Errorf("%s: got %+v", name, h)
		}
		if len(raw) < len(hello) {
			t.Errorf("%s: only %d of %d bytes come back", name, len(raw), len(hello))
		}
	}
}

func TestHelloNames(t *testing.T) {
	long := strings.Repeat("a", 60) + "." + strings.Repeat("b.", 120) + "org"
	tests := []struct{ sent, want string }{
		{"HA.Example.ORG", "ha.example.org"},
		{"ha.example.org.", "ha.example.org"},
		{"b2k7", "b2k7"},
		{"192.0.2.1", ""},
		{"[2001:db8::1]", ""},
		{"2001:db8::1", ""},
		{"a..b", ""},
		{"ha.example.org:443", ""},
		{"ha.example.org\x00.evil.org", ""},
		{"h\r\nx=1", ""},
		{long, ""},
	}
	for _, tt := range tests {
		h, _, err := readAll(bytes.NewReader(madeHello(sniExt(tt.sent))))
		if err != nil {
			t.Errorf("%q: %v", tt.sent, err)
			continue
		}
		if h.ServerName != tt.want || !h.SNIPresent {
			t.Errorf("%q: got %+v, want server name %q", tt.sent, h, tt.want)
		}
		if strings.ContainsAny(h.Asked, "\x00\r\n") || len(h.Asked) > 150 {
			t.Errorf("%q: for logs it stays %q", tt.sent, h.Asked)
		}
	}
	for name, hello := range map[string][]byte{
		"no extension":      madeHello(),
		"no server_name":    helloFor(t, ""),
		"other types only":  madeHello(ext{extServerName, []byte{0, 4, 9, 0, 1, 'x'}}),
		"IP as crypto/tls":  helloFor(t, "192.0.2.1"),
		"before extensions": inRecords(append([]byte{1, 0, 0, 41}, append(make([]byte, 35), 0, 2, 0x13, 1, 1, 0)...), 100),
	} {
		h, _, err := readAll(bytes.NewReader(hello))
		if err != nil || h.ServerName != "" {
			t.Errorf("%s: got %+v, %v", name, h, err)
		}
	}
}

func TestReadHelloRefuses(t *testing.T) {
	good := helloFor(t, "ha.example.org")
	alert := []byte{recordAlert, 3, 1, 0, 2, 1, 0}
	half := rerecord(good, 700)
	tests := []struct {
		name string
		sent []byte
		want error
	}{
		{"nothing", nil, io.EOF},
		{"half a header", good[:3], io.ErrUnexpectedEOF},
		{"half a hello", good[:200], io.ErrUnexpectedEOF},
		{"plain HTTP", []byte("GET / HTTP/1.1\r\nHost: ha.example.org\r\n\r\n"), errNotTLS},
		{"SSH", []byte("SSH-2.0-OpenSSH_9.6\r\n"), errNotTLS},
		{"SSLv2", []byte{0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 1, 0x80}, errNotTLS},
		{"SSLv2-like version", append([]byte{recordHandshake, 2, 0}, good[3:]...), errVersion},
		{"alert first", append(slices.Clone(alert), good...), errStray},
		{"alert in between", slices.Concat(half[:705], alert, half[705:]), errStray},
		{"application data in between", slices.Concat(half[:705], []byte{23, 3, 3, 0, 1, 0}, half[705:]), errStray},
		{"empty record", []byte{recordHandshake, 3, 1, 0, 0}, errRecord},
		{"record too long", []byte{recordHandshake, 3, 1, 0x40, 1}, errRecord},
		{"other message", inRecords([]byte{2, 0, 0, 1, 0}, 10), errNotHello},
		{"claims 16 MiB", inRecords([]byte{1, 0xff, 0xff, 0xff}, 10), errTooLong},
		{"SNI twice", madeHello(sniExt("a.org"), sniExt("b.org")), errMalformed},
		{"two names", madeHello(sniExt("a.org", "b.org")), errMalformed},
		{"empty name", madeHello(sniExt("")), errMalformed},
		{"empty name list", madeHello(sniExt()), errMalformed},
		{"bytes after the names", madeHello(ext{extServerName, append(sniExt("a.org").data, 0)}), errMalformed},
		{"ALPN twice", madeHello(sniExt("a.org"), alpnExt("h2"), alpnExt("h2")), errMalformed},
		{"empty ALPN", madeHello(alpnExt()), errMalformed},
		{"empty protocol", madeHello(alpnExt("h2", "")), errMalformed},
		{"100 protocols", madeHello(alpnExt(slices.Repeat([]string{"x"}, 100)...)), errManyALPN},
		{"any extension twice", madeHello(sniExt("a.org"), ext{4711, nil}, ext{4711, nil}), errMalformed},
		{"cut short inside", inRecords([]byte{1, 0, 0, 10, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0}, 100), errMalformed},
	}
	for _, tt := range tests {
		h, _, err := readAll(bytes.NewReader(tt.sent))
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: got %+v, %v; want error %v", tt.name, h, err, tt.want)
		}
	}
}

// An endless hello takes 64 KiB of memory and no byte more.
func TestReadHelloIsBounded(t *testing.T) {
	endless := map[string]func() io.Reader{
		"large extensions": func() io.Reader {
			return bytes.NewReader(madeHello(sniExt("a.org"), ext{1, make([]byte, 30480)}, ext{2, make([]byte, 35000)}))
		},
		"tiny records": func() io.Reader {
			return bytes.NewReader(rerecord(madeHello(sniExt("a.org"), ext{1, make([]byte, 16000)}), 1))
		},
	}
	for name, r := range endless {
		var raw []byte
		var err error
		within(t, 10*time.Second, func() { _, raw, err = readAll(r()) })
		if !errors.Is(err, errTooLong) || cap(raw) > maxHello {
			t.Errorf("%s: error %v after %d bytes", name, err, cap(raw))
		}
	}
	// The memory follows what came, not what was claimed.
	_, raw, err := readAll(bytes.NewReader([]byte{recordHandshake, 3, 1, 0x40, 0}))
	if err == nil || cap(raw) > 2048 {
		t.Errorf("five bytes cost %d bytes of memory (%v)", cap(raw), err)
	}
}

func TestReadHelloDeadline(t *testing.T) {
	hello := helloFor(t, "ha.example.org")
	for name, visitor := range map[string]func(net.Conn){
		"silent": func(net.Conn) {},
		"half":   func(c net.Conn) { c.Write(hello[:300]) },
		"a byte a second": func(c net.Conn) {
			for i := range hello {
				if _, err := c.Write(hello[i : i+1]); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				here, there := net.Pipe()
				start := time.Now()
				var gone sync.WaitGroup
				gone.Go(func() { visitor(there) })
				_, err := ReadHello(here, 10*time.Second)
				if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 10*time.Second {
					t.Errorf("after %v: %v", time.Since(start), err)
				}
				here.Close()
				there.Close()
				gone.Wait()
			})
		})
	}
}

func TestConnReplays(t *testing.T) {
	here, there := net.Pipe()
	sent := append(helloFor(t, "ha.example.org"), "and the rest"...)
	go func() {
		there.Write(sent[:100])
		there.Write(sent[100:])
		there.Write([]byte(", later"))
		there.Close()
	}()
	c, err := ReadHello(here, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(iotest.OneByteReader(c))
	if want := string(sent) + ", later"; err != nil || string(got) != want {
		t.Errorf("got %d bytes of %d, %v", len(got), len(want), err)
	}
	if in, _ := c.Bytes(); in != int64(len(got)) {
		t.Errorf("counted %d bytes, read %d", in, len(got))
	}
	if c.replay != nil {
		t.Error("the hello stays in memory after it was read")
	}
}

// crypto/tls serves through a Conn as if nobody had looked.
func TestConnUnderTLS(t *testing.T) {
	addr := serve(t, &Server{Router: routed(&Snapshot{Hosts: hosts(t, map[string]Target{"ha.example.org": tlsEcho(t, "ha.example.org")})})})
	mustEcho(t, addr, "HA.example.org")
	// The same in records of one byte, as the tricks around SNI filters do it.
	here := &splitter{Conn: dial(t, addr)}
	conn := tls.Client(here, &tls.Config{ServerName: "ha.example.org", InsecureSkipVerify: true})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
}

// A splitter sends its first write, the hello, in records of one byte.
type splitter struct {
	net.Conn
	begun bool
}

func (s *splitter) Write(p []byte) (int, error) {
	if s.begun {
		return s.Conn.Write(p)
	}
	s.begun = true
	if _, err := s.Conn.Write(rerecord(p, 1)); err != nil {
		return 0, err
	}
	return len(p), nil
}
