package mqttbridge_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

func exampleFrames() []mqttbridge.Frame {
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	return []mqttbridge.Frame{
		{Type: mqttbridge.FrameHome, Home: &mqttbridge.Home{
			Name: "pi", ID: "x", Key: []byte{1, 2}, Online: true, Broker: true, Since: at,
			Actions: []mqttbridge.Action{{
				Name: "garage", Label: "Garage <& gate>", Confirm: mqttbridge.ConfirmPIN, Values: []string{"open"}, Ack: true, Life: 10_000,
				State: &mqttbridge.Live{Value: "closed", At: at}, Last: &mqttbridge.Last{By: "anna", At: at, State: mqttbridge.Done},
			}},
		}},
		{Type: mqttbridge.FrameStatus, Seq: 7, Status: &mqttbridge.Status{ID: "y", State: mqttbridge.Refused, Final: true, Code: mqttbridge.CodePINWrong, AttemptsLeft: 4, Created: at, At: at}},
		{Type: mqttbridge.FrameChallenge, Seq: 1 << 63, Device: "anna", Action: "garage", Challenge: "c", LifeMS: 10_000},
		{Type: mqttbridge.FrameCommand, Seq: 3, Device: "anna", Command: &mqttbridge.Signed{Body: []byte("{}"), Key: "k", Signature: []byte{9}}},
		{Type: mqttbridge.FrameQuery, IDs: []string{"a", "b"}},
		{Type: mqttbridge.FrameKey, Seq: 4, Device: "anna", Key: []byte{3}, Trust: mqttbridge.TrustPending},
		{Type: mqttbridge.FrameRevoked, Device: "anna", IDs: []string{"r"}},
		{Type: "of a newer version"},
	}
}

func TestFrames(t *testing.T) {
	var stream bytes.Buffer
	for _, f := range exampleFrames() {
		if err := mqttbridge.WriteFrame(&stream, f); err != nil {
			t.Fatal(err)
		}
	}
	whole := stream.Bytes()
	for name, r := range map[string]io.Reader{
		"whole": bytes.NewReader(whole), "byte by byte": iotest.OneByteReader(bytes.NewReader(whole)), "data with EOF": iotest.DataErrReader(bytes.NewReader(whole)),
	} {
		for _, want := range exampleFrames() {
			got, err := mqttbridge.ReadFrame(r)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%s: %+v, %v, want %+v", name, got, err, want)
			}
		}
		if _, err := mqttbridge.ReadFrame(r); err != io.EOF {
			t.Errorf("%s: at the end %v, want io.EOF itself", name, err)
		}
	}
	first := 4 + int(binary.BigEndian.Uint32(whole))
	for n := 1; n < first; n++ {
		if _, err := mqttbridge.ReadFrame(bytes.NewReader(whole[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
	}
}

func frame(body string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func TestFrameLimits(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty": frame(""), "one byte": frame("{"), "null": frame("null"), "list": frame("[]"), "text": frame(`"a"`), "not JSON": frame("{x}"),
		"trailing": frame("{}{}"), "wrong type": frame(`{"n":"1"}`), "negative": frame(`{"n":-1}`),
		"too long for its type": frame(`{"t":"status","device":"` + strings.Repeat("d", mqttbridge.MaxFrame) + `"}`),
		"type named later":      frame(`{"device":"` + strings.Repeat("d", mqttbridge.MaxFrame) + `","t":"status"}`),
		"too long for all":      {0, 4, 0, 1},
		"longest":               {0xff, 0xff, 0xff, 0xff},
	} {
		if f, err := mqttbridge.ReadFrame(bytes.NewReader(b)); !errors.Is(err, mqttbridge.ErrMalformed) {
			t.Errorf("%s: %+v, %v, want ErrMalformed", name, f.Type, err)
		}
	}
	if f, err := mqttbridge.ReadFrame(bytes.NewReader(frame(`{"t":"home","device":"` + strings.Repeat("d", mqttbridge.MaxFrame) + `"}`))); err != nil || f.Type != mqttbridge.FrameHome {
		t.Errorf("a home may be longer: %v", err)
	}
	long := mqttbridge.Frame{Type: mqttbridge.FrameStatus, Device: strings.Repeat("d", mqttbridge.MaxFrame)}
	var out bytes.Buffer
	if err := mqttbridge.WriteFrame(&out, long); !errors.Is(err, mqttbridge.ErrMalformed) || out.Len() != 0 {
		t.Errorf("%v after %d bytes", err, out.Len())
	}
	long.Type = mqttbridge.FrameHome
	if err := mqttbridge.WriteFrame(&out, long); err != nil {
		t.Error(err)
	}
	if err := mqttbridge.WriteFrame(closedWriter{}, mqttbridge.Frame{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

// TestFrameTakesMemoryAsItComes: a peer that announces the longest frame and
// sends nothing holds a few KiB, on every stream that it opens.
func TestFrameTakesMemoryAsItComes(t *testing.T) {
	head := []byte{0, 4, 0, 0}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const n = 100
	for range n {
		if _, err := mqttbridge.ReadFrame(bytes.NewReader(append(head, '{'))); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / n; each > 16<<10 {
		t.Errorf("%d bytes each", each)
	}
}

func FuzzReadFrame(f *testing.F) {
	for _, fr := range exampleFrames() {
		var b bytes.Buffer
		if err := mqttbridge.WriteFrame(&b, fr); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{0, 4, 0, 0, '{'})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		got, err := mqttbridge.ReadFrame(r)
		if err != nil {
			if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, mqttbridge.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if took := len(b) - r.Len(); took != 4+int(binary.BigEndian.Uint32(b)) {
			t.Fatalf("took %d bytes", took)
		}
		var again bytes.Buffer
		if err := mqttbridge.WriteFrame(&again, got); err != nil {
			return // what is not UTF-8 grows, and may become too long
		}
		reread, err := mqttbridge.ReadFrame(&again)
		if err != nil {
			t.Fatal(err)
		}
		var third bytes.Buffer
		if err := mqttbridge.WriteFrame(&third, reread); err != nil || reread.Type != got.Type || reread.Seq != got.Seq {
			t.Fatalf("%+v became %+v, %v", got, reread, err)
		}
	})
}

type closedWriter struct{}

func (closedWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
