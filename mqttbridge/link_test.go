package mqttbridge_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

func ExampleWriteLink() {
	var stream bytes.Buffer
	w := bufio.NewWriter(&stream)
	err := mqttbridge.WriteLink(w, mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: mqttbridge.LinkMessage{
		Seq: 1, Topic: "door", Payload: []byte("open"), QoS: 1, Retain: true, TTL: time.Second,
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	w.Flush() // WriteLink does not
	fmt.Printf("% x\n", stream.Bytes())
	p, err := mqttbridge.ReadLink(bufio.NewReader(&stream))
	fmt.Printf("%s = %s, %v\n", p.Message.Topic, p.Message.Payload, err)
	// Output:
	// 0e 03 25 01 e8 07 04 64 6f 6f 72 6f 70 65 6e
	// door = open, <nil>
}

func publish(m mqttbridge.LinkMessage) mqttbridge.LinkPacket {
	return mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: m}
}

func examplePackets() []mqttbridge.LinkPacket {
	return []mqttbridge.LinkPacket{
		{Kind: mqttbridge.LinkHelloKind, Hello: &mqttbridge.LinkHello{
			Version: mqttbridge.LinkVersion, Stream: "s", Epoch: "e", Out: []string{"#"},
			In: []mqttbridge.LinkFilter{{Filter: "a/#", QoS: 1, DropOldest: true, MaxAge: time.Hour}},
		}},
		{Kind: mqttbridge.LinkWelcomeKind, Welcome: &mqttbridge.LinkWelcome{Version: 1, Agent: "pi", Prefix: "home/pi/", Epoch: "e", Last: 1 << 60, Problem: "p"}},
		publish(mqttbridge.LinkMessage{Topic: "a"}),
		publish(mqttbridge.LinkMessage{Seq: 1<<64 - 1, Topic: "a/b", Payload: []byte("x"), QoS: 1, Retain: true, Sync: true, Dup: true, TTL: 300 * time.Millisecond}),
		publish(mqttbridge.LinkMessage{Seq: 128, Topic: strings.Repeat("ü", mqttbridge.MaxTopic/2), Payload: bytes.Repeat([]byte{0}, mqttbridge.MaxPayload), QoS: 2, TTL: 100 * 365 * 24 * time.Hour}),
		{Kind: mqttbridge.LinkAck, Seq: 1<<64 - 1},
		{Kind: mqttbridge.LinkSynced},
		{Kind: mqttbridge.LinkPing, Seq: 127},
		{Kind: mqttbridge.LinkPong, Seq: 128},
	}
}

func encodeLink(t testing.TB, packets ...mqttbridge.LinkPacket) []byte {
	t.Helper()
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	for _, p := range packets {
		if err := mqttbridge.WriteLink(w, p); err != nil {
			t.Fatal(err)
		}
	}
	w.Flush()
	return b.Bytes()
}

func TestLink(t *testing.T) {
	whole := encodeLink(t, examplePackets()...)
	for name, r := range map[string]*bufio.Reader{
		"whole":        bufio.NewReader(bytes.NewReader(whole)),
		"byte by byte": bufio.NewReader(iotest.OneByteReader(bytes.NewReader(whole))),
		"small buffer": bufio.NewReaderSize(iotest.HalfReader(bytes.NewReader(whole)), 16),
		"large buffer": bufio.NewReaderSize(iotest.DataErrReader(bytes.NewReader(whole)), 1<<20),
	} {
		for _, want := range examplePackets() {
			got, err := mqttbridge.ReadLink(r)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%s: %+v, %v, want %+v", name, got, err, want)
			}
		}
		if _, err := mqttbridge.ReadLink(r); err != io.EOF {
			t.Errorf("%s: at the end %v, want io.EOF itself", name, err)
		}
	}
	for _, p := range examplePackets() {
		b := encodeLink(t, p)
		for n := 1; n < len(b); n += max(1, n/7) {
			if _, err := mqttbridge.ReadLink(bufio.NewReader(bytes.NewReader(b[:n]))); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("kind %d cut after %d bytes: %v", p.Kind, n, err)
			}
		}
	}
}

// TestLinkWire holds the bytes: both ends are not updated on one day.
func TestLinkWire(t *testing.T) {
	for _, c := range []struct {
		packet mqttbridge.LinkPacket
		want   string
	}{
		{mqttbridge.LinkPacket{Kind: mqttbridge.LinkHelloKind, Hello: &mqttbridge.LinkHello{Version: 1, Stream: "s", In: []mqttbridge.LinkFilter{{Filter: "a", QoS: 1, MaxAge: 1}}, Out: []string{"b"}, Epoch: "e"}}, "\x57\x01" + `{"v":1,"stream":"s","in":[{"filter":"a","qos":1,"max_age":1}],"out":["b"],"epoch":"e"}`},
		{mqttbridge.LinkPacket{Kind: mqttbridge.LinkWelcomeKind, Welcome: &mqttbridge.LinkWelcome{Version: 1, Agent: "pi", Prefix: "home/pi/", Epoch: "e", Last: 5}}, "\x3e\x02" + `{"v":1,"agent":"pi","prefix":"home/pi/","epoch":"e","last":5}`},
		{publish(mqttbridge.LinkMessage{Topic: "a"}), "\x05\x03\x00\x00\x01a"},
		{publish(mqttbridge.LinkMessage{Seq: 300, Topic: "a", Payload: []byte("p"), QoS: 1, Retain: true, Sync: true, Dup: true, TTL: 1}), "\x08\x03\x3d\xac\x02\x01\x01ap"},
		{mqttbridge.LinkPacket{Kind: mqttbridge.LinkAck, Seq: 300}, "\x03\x04\xac\x02"},
		{mqttbridge.LinkPacket{Kind: mqttbridge.LinkSynced}, "\x02\x05\x00"},
		{mqttbridge.LinkPacket{Kind: mqttbridge.LinkPing, Seq: 1}, "\x02\x06\x01"},
		{mqttbridge.LinkPacket{Kind: mqttbridge.LinkPong, Seq: 1}, "\x02\x07\x01"},
	} {
		if got := encodeLink(t, c.packet); string(got) != c.want {
			t.Errorf("kind %d: the wire has changed:\n%s", c.packet.Kind, hex.Dump(got))
		}
	}
}

func TestReadLinkRefuses(t *testing.T) {
	long := func(kind byte, n int) []byte {
		return append(binary.AppendUvarint(nil, uint64(n)), kind)
	}
	for name, b := range map[string][]byte{
		"empty":                     {0},
		"no fields":                 {1, 4},
		"kind 0":                    {2, 0, 0},
		"kind 8":                    {2, 8, 0},
		"ack with a tail":           {3, 4, 1, 0},
		"ack, not shortest":         {3, 4, 0x81, 0},
		"ack too long":              {12, 4},
		"ack over 64 bits":          {11, 4, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2},
		"length, not shortest":      {0x85, 0, 3, 0, 0, 1, 'a'},
		"length over 64 bits":       bytes.Repeat([]byte{0xff}, 11),
		"longest length":            binary.AppendUvarint(nil, 1<<63),
		"hello too long":            long(1, 260<<10+1),
		"message too long":          long(3, 66<<10+100),
		"QoS 3":                     {5, 3, 3, 0, 1, 'a'},
		"unknown flag":              {5, 3, 0x40, 0, 1, 'a'},
		"no topic":                  {4, 3, 0, 0, 0},
		"topic ends later":          {5, 3, 0, 0, 2, 'a', 'b'},
		"topic over all":            {5, 3, 0, 0, 0xff, 1, 'a'},
		"fields over the end":       {3, 3, 0, 0x80, 1, 1, 'a'},
		"topic + ":                  {5, 3, 0, 0, 1, '+'},
		"topic $":                   {6, 3, 0, 0, 2, '$', 'a'},
		"topic NUL":                 {5, 3, 0, 0, 1, 0},
		"topic not UTF-8":           {5, 3, 0, 0, 1, 0xff},
		"life 0":                    {6, 3, 0x20, 0, 0, 1, 'a'},
		"life over all time":        {15, 3, 0x20, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1, 'a'},
		"hello null":                append([]byte{5, 1}, "null"...),
		"hello list":                append([]byte{3, 1}, "[]"...),
		"hello not JSON":            append([]byte{3, 1}, "{x"...),
		"welcome with a wrong type": append([]byte{8, 2}, `{"v":""}`[:7]...),
		"payload too long":          append(append(binary.AppendUvarint(nil, 5+mqttbridge.MaxPayload+1), 3, 0, 0, 1, 'a'), make([]byte, mqttbridge.MaxPayload+1)...),
		"topic too long":            append(append(binary.AppendUvarint(nil, 5+mqttbridge.MaxTopic+1), 3, 0, 0, 0x81, 8), bytes.Repeat([]byte{'a'}, mqttbridge.MaxTopic+1)...),
	} {
		if p, err := mqttbridge.ReadLink(bufio.NewReader(bytes.NewReader(b))); !errors.Is(err, mqttbridge.ErrMalformed) {
			t.Errorf("%s: %+v, %v, want ErrMalformed", name, p, err)
		} else if !reflect.DeepEqual(p, mqttbridge.LinkPacket{}) {
			t.Errorf("%s: something is handed out: %+v", name, p)
		}
	}
}

// TestWriteLinkRefuses: a message that the other end would end the link for is
// refused, and the link goes on.
func TestWriteLinkRefuses(t *testing.T) {
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	for name, p := range map[string]mqttbridge.LinkPacket{
		"nothing":         {},
		"kind 8":          {Kind: 8},
		"no hello":        {Kind: mqttbridge.LinkHelloKind},
		"no welcome":      {Kind: mqttbridge.LinkWelcomeKind},
		"no topic":        publish(mqttbridge.LinkMessage{}),
		"topic too long":  publish(mqttbridge.LinkMessage{Topic: strings.Repeat("a", mqttbridge.MaxTopic+1)}),
		"a filter":        publish(mqttbridge.LinkMessage{Topic: "a/#"}),
		"payload":         publish(mqttbridge.LinkMessage{Topic: "a", Payload: make([]byte, mqttbridge.MaxPayload+1)}),
		"QoS":             publish(mqttbridge.LinkMessage{Topic: "a", QoS: 3}),
		"life has ended":  publish(mqttbridge.LinkMessage{Topic: "a", TTL: -1}),
		"life has no end": publish(mqttbridge.LinkMessage{Topic: "a", TTL: 1<<63 - 1}),
		"hello too long":  {Kind: mqttbridge.LinkHelloKind, Hello: &mqttbridge.LinkHello{Epoch: strings.Repeat("e", 260<<10)}},
	} {
		if err := mqttbridge.WriteLink(w, p); !errors.Is(err, mqttbridge.ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
	if w.Buffered() != 0 || b.Len() != 0 {
		t.Fatalf("%d bytes were written", w.Buffered()+b.Len())
	}
	broken := bufio.NewWriterSize(closedWriter{}, 16)
	if err := mqttbridge.WriteLink(broken, publish(mqttbridge.LinkMessage{Topic: strings.Repeat("a", 100)})); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

// TestLinkAllocations: the link carries bulk; a message costs its topic and its
// payload, and writing one nothing.
func TestLinkAllocations(t *testing.T) {
	p := publish(mqttbridge.LinkMessage{Seq: 5, Topic: "zigbee2mqtt/lamp", Payload: make([]byte, 200), QoS: 1})
	w := bufio.NewWriter(io.Discard)
	if n := testing.AllocsPerRun(100, func() {
		if err := mqttbridge.WriteLink(w, p); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("writing takes %v allocations", n)
	}
	encoded := encodeLink(t, p)
	source := bytes.NewReader(encoded)
	r := bufio.NewReader(source)
	if n := testing.AllocsPerRun(100, func() {
		source.Reset(encoded)
		if _, err := mqttbridge.ReadLink(r); err != nil {
			t.Fatal(err)
		}
	}); n > 2 {
		t.Errorf("reading takes %v allocations", n)
	}
}

func FuzzReadLink(f *testing.F) {
	for _, p := range examplePackets() {
		f.Add(encodeLink(f, p))
	}
	f.Add([]byte{5, 3, 0, 0, 0xff, 1, 'a'})
	f.Add([]byte{6, 3, 0x20, 0, 0, 1, 'a'})
	f.Fuzz(func(t *testing.T, b []byte) {
		source := bytes.NewReader(b)
		r := bufio.NewReader(source)
		p, err := mqttbridge.ReadLink(r)
		if err != nil {
			if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, mqttbridge.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		n, head := binary.Uvarint(b)
		if took := len(b) - source.Len() - r.Buffered(); took != int(n)+head {
			t.Fatalf("took %d bytes of %d", took, int(n)+head)
		}
		var again bytes.Buffer
		w := bufio.NewWriter(&again)
		if err := mqttbridge.WriteLink(w, p); err != nil {
			if p.Hello != nil || p.Welcome != nil {
				return // what is not UTF-8 grows
			}
			t.Fatalf("%+v was read and cannot be written: %v", p, err)
		}
		w.Flush()
		if p.Hello == nil && p.Welcome == nil && !bytes.Equal(again.Bytes(), b[:int(n)+head]) {
			t.Fatalf("%x is read and written as %x", b[:int(n)+head], again.Bytes())
		}
		if _, err := mqttbridge.ReadLink(bufio.NewReader(&again)); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkLinkWrite(b *testing.B) {
	p := publish(mqttbridge.LinkMessage{Seq: 1 << 20, Topic: "zigbee2mqtt/living/lamp", Payload: make([]byte, 128), QoS: 1})
	w := bufio.NewWriterSize(io.Discard, 32<<10)
	b.ReportAllocs()
	for b.Loop() {
		if err := mqttbridge.WriteLink(w, p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLinkRead(b *testing.B) {
	encoded := encodeLink(b, publish(mqttbridge.LinkMessage{Seq: 1 << 20, Topic: "zigbee2mqtt/living/lamp", Payload: make([]byte, 128), QoS: 1}))
	r := bufio.NewReaderSize(&repeater{b: encoded}, 32<<10)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := mqttbridge.ReadLink(r); err != nil {
			b.Fatal(err)
		}
	}
}

// A repeater reads the same bytes over and over.
type repeater struct {
	b  []byte
	at int
}

func (r *repeater) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		k := copy(p[n:], r.b[r.at:])
		n, r.at = n+k, (r.at+k)%len(r.b)
	}
	return n, nil
}
