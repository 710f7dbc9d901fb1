package bridge

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

func TestRecord(t *testing.T) {
	for _, m := range []mqttbridge.LinkMessage{
		{Topic: "a", Payload: []byte{}},
		{Topic: "a/b", Payload: []byte("x"), QoS: 1, Retain: true},
		{Topic: "ü/ /", Payload: make([]byte, mqttbridge.MaxPayload), QoS: 1},
	} {
		got, err := decodeRecord(encodeRecord(m))
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%v: %v, %v", m.Topic, got, err)
		}
	}
	good := encodeRecord(mqttbridge.LinkMessage{Topic: "a", Payload: []byte("x")})
	for name, b := range map[string][]byte{
		"nothing": nil, "another version": append([]byte{2}, good[1:]...), "unknown flag": append([]byte{1, 8}, good[2:]...),
		"topic cut off": {1, 0, 9, 'a'}, "wildcard": {1, 0, 1, '#'}, "too long": append([]byte{1, 0, 1, 'a'}, make([]byte, mqttbridge.MaxPayload+1)...),
	} {
		if m, err := decodeRecord(b); err == nil {
			t.Errorf("%s: %v", name, m)
		}
	}
}

// FuzzRecord: what decodes is valid, and encodes to the same bytes in its
// shortest form.
func FuzzRecord(f *testing.F) {
	f.Add(encodeRecord(mqttbridge.LinkMessage{Topic: "a/b", Payload: []byte("x"), QoS: 1, Retain: true}))
	f.Add([]byte{1, 0, 0x81, 0, 'a'})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decodeRecord(data)
		if err != nil {
			return
		}
		again, err := decodeRecord(encodeRecord(m))
		if err != nil || again.Topic != m.Topic || !bytes.Equal(again.Payload, m.Payload) || again.QoS != m.QoS || again.Retain != m.Retain {
			t.Fatalf("%v, then %v, %v", m, again, err)
		}
	})
}

// TestEchoes: as many are taken as were expected, not more, and not for ever.
func TestEchoes(t *testing.T) {
	e := newEchoes()
	now := time.Now()
	e.now = func() time.Time { return now }
	e.expect("t", []byte("x"))
	e.expect("t", []byte("x"))
	e.expect("t", []byte("y"))
	if e.take("t", []byte("z")) || e.take("u", []byte("x")) || e.take("tx", nil) {
		t.Error("takes what nobody expects")
	}
	for i := range 3 {
		if e.take("t", []byte("x")) != (i < 2) {
			t.Error("does not take just two")
		}
	}
	now = now.Add(echoLife + 1)
	if e.take("t", []byte("y")) {
		t.Error("takes one that is too old")
	}
	for i := range 2 * echoMax {
		e.expect("t", numbered("", i))
	}
	if len(e.until) > echoMax || len(e.order) > echoMax {
		t.Errorf("remembers %d", len(e.order))
	}
	if e.take("t", numbered("", 0)) || !e.take("t", numbered("", 2*echoMax-1)) {
		t.Error("forgets the newest first")
	}
}
