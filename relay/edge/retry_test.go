package edge

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// serverSays is a ServerHello in records of at most size bytes; retry makes it
// a HelloRetryRequest.
func serverSays(retry bool, size int) []byte {
	random := sha256.Sum256([]byte("HelloRetryRequest"))
	if !retry {
		random[31]++
	}
	msg := append([]byte{typeServerHello, 0, 0, 2 + 32 + 4, 3, 3}, random[:]...)
	return inRecords(append(msg, 0, 0x13, 1, 0), size)
}

var (
	ccs       = []byte{20, 3, 3, 0, 1, 1}
	earlyData = append([]byte{23, 3, 3, 1, 0}, make([]byte, 256)...)
	finished  = append([]byte{23, 3, 3, 0, 60}, make([]byte, 60)...)
)

// watched is a connection whose first hello was opened, and the visitor's end.
// What again returns is its argument in the form of another hello.
func watched(t *testing.T, rest []byte, again func([]byte) ([]byte, error)) (*Conn, net.Conn) {
	here, there := net.Pipe()
	t.Cleanup(func() { here.Close(); there.Close() })
	first := madeHello(sniExt("secret.example.org"))
	return &Conn{
		Conn: here, replay: first, Hello: Hello{ServerName: "secret.example.org", ECH: true},
		retry: &retry{again: again, name: "secret.example.org", in: messageReader{raw: rest}},
	}, there
}

func open(inner []byte) func([]byte) ([]byte, error) {
	return func([]byte) ([]byte, error) { return inner[recordHeader:], nil }
}

// The order of things in handshakes that are fine: s is what the server sends,
// v the visitor. Only the second hello is replaced.
func TestRetry(t *testing.T) {
	first := madeHello(sniExt("secret.example.org"))
	second := madeHello(sniExt(publicName), ext{extECH, make([]byte, 300)})
	inner := madeHello(sniExt("secret.example.org"), ext{1000, []byte("the second")})
	inside := slices.Clone(inner)
	inside[2] = 3 // the version of later records
	type step struct {
		from byte
		data []byte
	}
	tests := map[string]struct {
		rest  []byte // came with the first hello
		steps []step
		want  []byte
	}{
		"no retry":            {nil, []step{{'s', serverSays(false, 9999)}, {'v', ccs}, {'v', finished}}, slices.Concat(ccs, finished)},
		"retry":               {nil, []step{{'s', serverSays(true, 9999)}, {'v', second}, {'v', finished}}, slices.Concat(inside, finished)},
		"retry with CCS":      {nil, []step{{'s', slices.Concat(serverSays(true, 9999), ccs)}, {'v', slices.Concat(ccs, second, finished)}}, slices.Concat(ccs, inside, finished)},
		"early data":          {slices.Concat(ccs, earlyData[:7]), []step{{'v', earlyData[7:]}, {'s', serverSays(true, 9999)}, {'v', earlyData}, {'v', second}}, slices.Concat(ccs, earlyData, earlyData, inside)},
		"byte by byte":        {nil, []step{{'S', serverSays(true, 9999)}, {'V', slices.Concat(ccs, second, finished)}}, slices.Concat(ccs, inside, finished)},
		"many records":        {nil, []step{{'s', serverSays(true, 5)}, {'v', rerecord(second, 10)}, {'v', finished}}, slices.Concat(inside, finished)},
		"alert":               {nil, []step{{'s', alertRecord(40)}, {'v', alertRecord(90)}}, alertRecord(90)},
		"server of old":       {nil, []step{{'s', []byte{22, 3, 3, 0, 4, 1, 0, 0, 0}}, {'v', second}}, second},
		"hello after the end": {nil, []step{{'s', serverSays(false, 5)}, {'v', second}}, second},
		"a third hello":       {nil, []step{{'s', serverSays(true, 9999)}, {'v', second}, {'s', serverSays(false, 9999)}, {'v', second}}, slices.Concat(inside, second)},
		"end in a header":     {nil, []step{{'v', []byte{23, 3}}}, []byte{23, 3}},
	}
	for what, tt := range tests {
		c, visitor := watched(t, tt.rest, open(inner))
		got := make(chan []byte)
		go func() {
			b, err := io.ReadAll(c)
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
			got <- b
		}()
		go io.Copy(io.Discard, visitor) // it reads what the server says
		for _, s := range tt.steps {
			to := io.Writer(visitor)
			if s.from == 's' || s.from == 'S' {
				to = c
			}
			size := len(s.data)
			if s.from < 'a' {
				size = 1
			}
			for part := range slices.Chunk(s.data, size) {
				if _, err := to.Write(part); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
		}
		visitor.Close()
		if b := <-got; !bytes.Equal(b, slices.Concat(first, tt.want)) {
			t.Errorf("%s: the target got\n%x, want\n%x", what, b, slices.Concat(first, tt.want))
		}
	}
}

// What a visitor could try with its second hello ends the connection: the
// target never sees it, and the visitor is told.
func TestRetryIllegal(t *testing.T) {
	second := madeHello(sniExt(publicName))
	good := madeHello(sniExt("secret.example.org"))
	tests := map[string]struct {
		hrr   bool
		send  []byte
		again func([]byte) ([]byte, error)
		alert uint8
	}{
		"unasked":         {false, second, open(good), alertUnexpectedMessage},
		"another server":  {true, second, open(madeHello(sniExt("other.example.org"))), alertIllegalParameter},
		"no server":       {true, second, open(madeHello()), alertIllegalParameter},
		"malformed":       {true, second, open(good[:len(good)-1]), alertIllegalParameter},
		"not opened":      {true, second, func([]byte) ([]byte, error) { return nil, alertError{} }, 109},
		"no hello":        {true, []byte{22, 3, 3, 0, 4, 20, 0, 0, 0}, open(good), alertUnexpectedMessage},
		"two messages":    {true, inRecords(append(slices.Clone(second[recordHeader:]), 20, 0, 0, 0), maxRecord), open(good), alertUnexpectedMessage},
		"empty record":    {true, []byte{22, 3, 3, 0, 0}, open(good), alertUnexpectedMessage},
		"too long":        {true, []byte{22, 3, 3, 0, 4, 1, 1, 0, 0}, open(good), alertUnexpectedMessage},
		"stray in hello":  {true, slices.Concat(rerecord(second, 10)[:15], ccs), open(good), alertUnexpectedMessage},
		"ends in a hello": {true, second[:20], open(good), 0},
	}
	for what, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			c, visitor := watched(t, nil, tt.again)
			heard := make(chan []byte)
			go func() {
				b, _ := io.ReadAll(visitor)
				heard <- b
			}()
			var said []byte
			if tt.hrr {
				said = serverSays(true, maxRecord)
				c.Write(said)
			}
			go func() {
				visitor.Write(tt.send)
				if tt.alert == 0 {
					visitor.Close()
				}
			}()
			if _, err := io.ReadFull(c, make([]byte, len(c.replay))); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 1)
			n, err := c.Read(b)
			if n != 0 || err == nil || err == io.EOF {
				t.Errorf("%s: the target got %d bytes, %v", what, n, err)
			}
			if _, again := c.Read(b); tt.alert != 0 && again != err {
				t.Errorf("%s: the error does not stay: %v", what, again)
			}
			c.Close()
			if tt.alert != 0 {
				said = append(said, alertRecord(tt.alert)...)
				if c.failed() == nil {
					t.Errorf("%s: the log will say nothing", what)
				}
			}
			if b := <-heard; !bytes.Equal(b, said) {
				t.Errorf("%s: the visitor heard %x, want %x", what, b, said)
			}
		})
	}
}

// A target's deadline strikes in the middle of the second hello; the next Read
// goes on there.
func TestRetryDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := madeHello(sniExt("secret.example.org"))
		c, visitor := watched(t, nil, open(inner))
		c.replay = nil
		go io.Copy(io.Discard, visitor)
		c.Write(serverSays(true, maxRecord))
		b := make([]byte, 4096)
		second := slices.Concat(ccs, rerecord(madeHello(sniExt(publicName)), 20))
		go func() {
			for part := range slices.Chunk(second, 3) {
				visitor.Write(part)
				time.Sleep(time.Second)
			}
			visitor.Close()
		}()
		var got []byte
		struck := 0
		for {
			c.SetReadDeadline(time.Now().Add(700 * time.Millisecond))
			n, err := c.Read(b)
			got = append(got, b[:n]...)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				struck++
				continue
			}
			if err != nil {
				break
			}
		}
		inner[2] = 3
		if want := slices.Concat(ccs, inner); !bytes.Equal(got, want) || struck < 10 {
			t.Errorf("after %d deadlines: got\n%x, want\n%x", struck, got, want)
		}
	})
}

// Once both hellos have passed nothing is kept.
func TestRetryForgets(t *testing.T) {
	c, visitor := watched(t, nil, open(madeHello(sniExt("secret.example.org"))))
	go io.Copy(io.Discard, visitor)
	c.Write(serverSays(false, maxRecord))
	go visitor.Write(append(slices.Clone(finished), make([]byte, 10000)...))
	if _, err := io.ReadFull(c, make([]byte, len(c.replay)+len(finished)+10000)); err != nil {
		t.Fatal(err)
	}
	if !c.retry.passed || c.retry.in.raw != nil || c.retry.server.msg != nil || c.replay != nil {
		t.Errorf("what is left: %+v", c.retry)
	}
}

// FuzzRetry sends anything from both ends in any order: what reaches the target
// before a HelloRetryRequest holds no handshake record, and nothing is lost or
// added but for the hello that is opened.
func FuzzRetry(f *testing.F) {
	second := madeHello(sniExt(publicName), ext{extECH, make([]byte, 30)})
	f.Add(serverSays(true, 9999), slices.Concat(ccs, second, finished), uint8(3), uint8(7))
	f.Add(serverSays(true, 3), slices.Concat(rerecord(second, 9), finished), uint8(1), uint8(1))
	f.Add(serverSays(false, 9999), slices.Concat(ccs, finished), uint8(200), uint8(200))
	f.Add(alertRecord(40), alertRecord(40), uint8(9), uint8(2))
	f.Fuzz(func(t *testing.T, server, visitor []byte, serverSize, visitorSize uint8) {
		opened := madeHello(sniExt("secret.example.org"))
		calls := 0
		c := &Conn{Conn: &script{in: visitor, size: int(visitorSize) + 1}, retry: &retry{name: "secret.example.org", again: func(msg []byte) ([]byte, error) {
			calls++
			if len(msg) < messageHeader || msg[0] != typeClientHello {
				t.Fatalf("asked to open %x", msg)
			}
			return opened[recordHeader:], nil
		}}}
		for part := range slices.Chunk(server, int(serverSize)+1) {
			c.Write(part)
		}
		got, err := io.ReadAll(c)
		if calls > 1 {
			t.Fatalf("opened %d hellos", calls)
		}
		if calls == 0 && err == nil && !bytes.Equal(got, visitor) {
			t.Fatalf("came %x, went %x", visitor, got)
		}
		if calls == 0 && !bytes.HasPrefix(visitor, got) {
			t.Fatalf("came %x, went %x", visitor, got)
		}
		if c.retry.phase.Load() == phaseFirst && err == nil {
			for rest := got; len(rest) >= recordHeader; rest = rest[min(len(rest), recordHeader+int(rest[3])<<8+int(rest[4])):] {
				if rest[0] == recordHandshake {
					t.Fatalf("a hello that nobody asked for went on: %x", got)
				}
			}
		}
	})
}

// A script is a visitor that sends in pieces and hears nothing.
type script struct {
	net.Conn
	in   []byte
	size int
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.in[:min(s.size, len(s.in))])
	s.in = s.in[n:]
	return n, nil
}
func (s *script) Write(p []byte) (int, error)      { return len(p), nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }
