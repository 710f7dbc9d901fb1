package executor

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// bytesConn is a relay that says what it says and reads nothing.
type bytesConn struct {
	net.Conn
	r io.Reader
}

func (c *bytesConn) Read(b []byte) (int, error)       { return c.r.Read(b) }
func (c *bytesConn) Write(b []byte) (int, error)      { return len(b), nil }
func (c *bytesConn) Close() error                     { return nil }
func (c *bytesConn) SetWriteDeadline(time.Time) error { return nil }

// Whatever a relay sends, nothing runs without a key that was trusted.
func FuzzRelay(f *testing.F) {
	w := &world{dir: tempDir(f), broker: &fakeBroker{}, acts: testActions()}
	e, err := w.open()
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { e.Run(ctx) })
	f.Cleanup(func() { cancel(); wg.Wait(); e.Close() })

	frame := func(text string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
	}
	for _, text := range []string{
		`{"t":"challenge","n":1,"device":"bob","action":"garage"}`,
		`{"t":"key","n":2,"device":"bob","key":"AAAA"}`,
		`{"t":"query","n":3,"ids":["aaaaaaaaaaaaaaaaaaaa"]}`,
		`{"t":"command","n":4,"device":"bob","command":{"body":"e30=","key":"` + strings.Repeat("a", 52) + `","signature":"` + strings.Repeat("A", 86) + `=="}}`,
		`{"t":"command","n":4,"command":null}`,
		`{"t":"revoked","device":"bob","ids":["aaaaaaaaaaaaaaaaaaaa"]}`,
		`{"t":"revoked","n":5,"ids":[""],"trust":"trusted"}`,
	} {
		f.Add(frame(text))
		f.Add(append(frame(text), frame(`{"t":"home"}`)...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e.ServeRelay(t.Context(), &bytesConn{r: bytes.NewReader(data)})
		w.broker.mu.Lock()
		defer w.broker.mu.Unlock()
		if len(w.broker.took) > 0 {
			t.Errorf("published %+v", w.broker.took)
		}
	})
}

func FuzzActionTexts(f *testing.F) {
	f.Add("06:00-22:00", "6/m", ".a.b=/x/", "a.b", "anna-*", `{"a":{"b":"x"}}`)
	f.Add("22:00-06:00,12:00-13:00", "3/10m", "/^ON$/", "", "[a-c]*", "ON")
	f.Fuzz(func(t *testing.T, hours, rate, match, path, who, payload string) {
		a := Action{Name: "a", Topic: "t", Hours: hours, Rate: rate, State: "s", StatePath: path, Who: []string{who}, Ack: &Ack{Topic: "s", Match: match}}
		set, faults := compileAll([]Action{a})
		if len(faults) > 0 {
			return
		}
		c := set.list[0]
		c.hours.contain(time.Unix(0, 0))
		c.allows("anna-phone")
		c.ack("").match([]byte(payload))
		if v, ok := liveValue([]byte(payload), c.statePath); ok && len(v) > maxLive {
			t.Errorf("%q is too long", v)
		}
		if c.rate.n < 0 || c.rate.n > maxRate || c.rate.per > maxPer {
			t.Errorf("rate %+v", c.rate)
		}
	})
}

func FuzzPreset(f *testing.F) {
	for name, p := range presets {
		f.Add(name, p.example, "on")
	}
	f.Fuzz(func(t *testing.T, name, target, payload string) {
		a, err := Action{Name: "a", Preset: name, Target: target, Payload: payload}.Resolved()
		if err == nil && mqttbridge.CheckTopic(a.Topic) != nil {
			t.Errorf("%q is no topic", a.Topic)
		}
	})
}

func FuzzLog(f *testing.F) {
	f.Add([]byte(`{"seq":1,"time":"2026-05-01T10:00:00Z","event":"x","prev":"` + firstPrev + `"}` + "\n"))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := verify("log", bytes.NewReader(data))
		if err == nil && c.size+c.torn != int64(len(data)) {
			t.Errorf("%+v of %d bytes", c, len(data))
		}
	})
}

// How long the home takes from the command's arrival until it is published and
// answered, with real files.
func BenchmarkPress(b *testing.B) {
	w := &world{dir: b.TempDir(), broker: &fakeBroker{}, acts: testActions(), phones: make(map[string]*phone)}
	e, err := w.open()
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	bob := w.phone("bob")
	e.keys.offer("bob", bob.spki)
	if err := e.Trust("bob", ""); err != nil {
		b.Fatal(err)
	}
	s := &stream{out: make(chan mqttbridge.Frame, maxQueued), dirty: make(chan struct{}, 1), cancel: func(error) {}}
	e.streams[s] = struct{}{}
	for b.Loop() {
		env := mqttbridge.Envelope{ID: mqttbridge.NewID(), Home: e.id, Action: "garage", Device: "bob", Issued: time.Now(), NotAfter: time.Now(), Challenge: e.challenges.issue("bob", "garage")}
		signed, err := mqttbridge.Sign(env, bob.key)
		if err != nil {
			b.Fatal(err)
		}
		e.handle(s, mqttbridge.Frame{Type: mqttbridge.FrameCommand, Seq: 1, Device: "bob", Command: &signed}, func() {})
		if f := <-s.out; f.Status.State != mqttbridge.Delivered {
			b.Fatalf("%+v", f.Status)
		}
	}
}
