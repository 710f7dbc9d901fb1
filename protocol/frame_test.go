package protocol_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/protocol"
)

func rawMessage(typ byte, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(1+len(body)))
	return append(append(b, typ), body...)
}

func TestReadMessageSkipsWhatIsNewer(t *testing.T) {
	r := bytes.NewReader(append(rawMessage(200, `anything`), rawMessage(6, `{"seq":9,"pad":".","colour":"blue"}`)...))
	_, err := protocol.ReadMessage(r)
	if unknown, ok := errors.AsType[*protocol.UnknownTypeError](err); !ok || unknown.Type != 200 {
		t.Fatalf("an unknown type gives %v, want *UnknownTypeError{200}", err)
	}
	m, err := protocol.ReadMessage(r)
	if want := (protocol.Ping{Seq: 9, Pad: "."}); err != nil || m != want {
		t.Errorf("after it: %+v, %v; want %+v", m, err, want)
	}
	if _, err := protocol.ReadMessage(r); err != io.EOF {
		t.Errorf("at the end: %v, want io.EOF", err)
	}
}

func TestReadMessageRefuses(t *testing.T) {
	for name, frame := range map[string][]byte{
		"no type":     {0, 0, 0, 0},
		"too large":   binary.BigEndian.AppendUint32(nil, protocol.MaxMessage+1),
		"huge":        {0xff, 0xff, 0xff, 0xff},
		"empty body":  rawMessage(6, ``),
		"null":        rawMessage(6, `null`),
		"array":       rawMessage(6, `[]`),
		"string":      rawMessage(6, `"x"`),
		"cut JSON":    rawMessage(6, `{"seq":`),
		"two objects": rawMessage(6, `{}{}`),
		"wrong kind":  rawMessage(6, `{"seq":"x"}`),
		"negative":    rawMessage(6, `{"seq":-1}`),
		"bad base64":  rawMessage(8, `{"csr":"%%"}`),
	} {
		if m, err := protocol.ReadMessage(bytes.NewReader(frame)); !errors.Is(err, protocol.ErrMalformed) {
			t.Errorf("%s: %+v, %v; want ErrMalformed", name, m, err)
		}
	}
}

// A length alone must not make the reader wait for, or reserve, more than the limit.
func TestReadMessageBoundsBeforeReading(t *testing.T) {
	r := io.MultiReader(bytes.NewReader([]byte{0, 1, 0, 1}), &forbidden{t})
	if _, err := protocol.ReadMessage(r); !errors.Is(err, protocol.ErrMalformed) {
		t.Errorf("a message one byte too large gives %v", err)
	}
}

type forbidden struct{ t *testing.T }

func (f *forbidden) Read([]byte) (int, error) {
	f.t.Error("the body of a frame that is too large was read")
	return 0, io.EOF
}

func TestWriteMessageLimits(t *testing.T) {
	var w bytes.Buffer
	fits := protocol.Ping{Pad: strings.Repeat("x", protocol.MaxMessage-1-len(`{"seq":0,"pad":""}`))}
	if err := protocol.WriteMessage(&w, fits); err != nil || w.Len() != 4+protocol.MaxMessage {
		t.Errorf("the largest message: %d bytes, %v", w.Len(), err)
	}
	if m, err := protocol.ReadMessage(&w); err != nil || m != fits {
		t.Errorf("the largest message cannot be read: %v", err)
	}
	over := protocol.Ping{Pad: fits.Pad + "x"}
	if err := protocol.WriteMessage(&w, over); err == nil || w.Len() != 0 {
		t.Errorf("a message over the limit: wrote %d bytes, %v", w.Len(), err)
	}
	for _, m := range []protocol.Message{nil, (*protocol.Ping)(nil)} {
		if err := protocol.WriteMessage(&w, m); err == nil || w.Len() != 0 {
			t.Errorf("no message (%T): wrote %d bytes, %v", m, w.Len(), err)
		}
	}
}

func TestPingIsLargeEnough(t *testing.T) {
	var w bytes.Buffer
	if err := protocol.WriteMessage(&w, protocol.NewPing(0)); err != nil || w.Len() < 64 {
		t.Errorf("a Ping takes %d bytes (%v); below 64 it cannot provoke a stateless reset", w.Len(), err)
	}
}

func FuzzReadMessage(f *testing.F) {
	for _, m := range goldenMessages {
		var w bytes.Buffer
		if err := protocol.WriteMessage(&w, m); err != nil {
			f.Fatal(err)
		}
		f.Add(w.Bytes())
	}
	f.Add(rawMessage(0, `{}`))
	f.Add(rawMessage(5, `{"code":4294967296}`))
	f.Add(rawMessage(200, ``))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		m, err := protocol.ReadMessage(r)
		used := len(in) - r.Len()
		_, unknown := errors.AsType[*protocol.UnknownTypeError](err)
		if (err == nil || unknown) && used != 4+int(binary.BigEndian.Uint32(in)) {
			t.Fatalf("read %d bytes of %x, %v", used, in, err)
		}
		if used > 4+protocol.MaxMessage {
			t.Fatalf("read %d bytes", used)
		}
		if err != nil {
			return
		}
		// Escapes and base64 may make our own form longer than what came.
		var w bytes.Buffer
		if err := protocol.WriteMessage(&w, m); err != nil {
			return
		}
		again, err := protocol.ReadMessage(&w)
		if err != nil {
			t.Fatalf("%#v cannot be read again: %v", m, err)
		}
		var w2 bytes.Buffer
		if err := protocol.WriteMessage(&w2, again); err != nil || reflect.TypeOf(m) != reflect.TypeOf(again) {
			t.Fatalf("%#v became %#v, %v", m, again, err)
		}
	})
}

func ExampleReadMessage() {
	var control bytes.Buffer // stands for the control stream
	err := protocol.WriteMessage(&control, protocol.Hello{Versions: []int{protocol.Version}, Instance: "7XQ2"})
	if err != nil {
		fmt.Println(err)
		return
	}
	for {
		m, err := protocol.ReadMessage(&control)
		if _, ok := errors.AsType[*protocol.UnknownTypeError](err); ok {
			continue // from a newer peer
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		switch m := m.(type) {
		case protocol.Hello:
			fmt.Println("hello from", m.Instance)
		default:
			fmt.Printf("unexpected %T\n", m)
		}
	}
	// Output:
	// hello from 7XQ2
	// EOF
}
