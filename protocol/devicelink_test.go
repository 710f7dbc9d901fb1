package protocol_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"testing"

	"github.com/sallyport/sallyport/protocol"
)

func TestDeviceFrame(t *testing.T) {
	var b bytes.Buffer
	want := protocol.DeviceFrame{Have: 7, CA: []byte{1}, Succession: []byte{2}, List: bytes.Repeat([]byte{3}, 100_000)}
	if err := protocol.WriteDeviceFrame(&b, want); err != nil {
		t.Fatal(err)
	}
	b.WriteString("rest")
	got, err := protocol.ReadDeviceFrame(&b)
	if err != nil || !reflect.DeepEqual(got, want) || b.String() != "rest" {
		t.Fatalf("%v, %d bytes of list, rest %q", err, len(got.List), b.String())
	}
	if err := protocol.WriteDeviceFrame(io.Discard, protocol.DeviceFrame{List: make([]byte, protocol.MaxDeviceFrame)}); err == nil {
		t.Error("a frame that no reader takes was written")
	}
}

func TestDeviceFrameRefuses(t *testing.T) {
	frame := func(body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	for name, in := range map[string][]byte{
		"too long": {0xff, 0xff, 0xff, 0xff, '{', '}'}, "empty": frame(""), "null": frame("null"), "array": frame("[]"), "wrong type": frame(`{"have":"x"}`),
	} {
		if _, err := protocol.ReadDeviceFrame(bytes.NewReader(in)); !errors.Is(err, protocol.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := protocol.ReadDeviceFrame(bytes.NewReader(frame(`{"have":1}`)[:6])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut frame: %v", err)
	}
	if _, err := protocol.ReadDeviceFrame(bytes.NewReader(nil)); err != io.EOF {
		t.Errorf("between frames: %v", err)
	}
}

func FuzzReadDeviceFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0, 0, 0, 10, '{', '"', 'h', 'a', 'v', 'e', '"', ':', '1', '}'})
	f.Fuzz(func(t *testing.T, in []byte) {
		frame, err := protocol.ReadDeviceFrame(bytes.NewReader(in))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := protocol.WriteDeviceFrame(&b, frame); err != nil {
			t.Fatal(err)
		}
		again, err := protocol.ReadDeviceFrame(&b)
		if err != nil || again.Have != frame.Have || !bytes.Equal(again.List, frame.List) {
			t.Fatalf("%v: %+v became %+v", err, frame, again)
		}
	})
}
