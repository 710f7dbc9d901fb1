package hub

import (
	"bytes"
	"reflect"
	"testing"
	"time"
)

func fullDelivery() delivery {
	return delivery{
		m: &message{
			topic: "home/kitchen/set/ü", payload: []byte("on\x00\xff"), qos: 2, retain: true, expires: time.Unix(5, 0),
			sender: sender{device: "anna", id: "key", client: "anna\x00anna-1", agent: "agent", since: 1 << 40},
			props: &props{
				format: 1, hasFormat: true, contentType: "text/plain", responseTopic: "home/x", correlation: []byte{0, 1},
				user: []pair{{"k", "v"}, {"k", ""}},
			},
		},
		qos: 2, retain: true, ids: []uint32{1, 268_435_455},
	}
}

func TestDeliveryCodec(t *testing.T) {
	for _, d := range []delivery{fullDelivery(), {m: &message{topic: "t"}}, {m: &message{topic: "t", qos: 1, payload: bytes.Repeat([]byte("x"), 1<<16)}, qos: 1}} {
		raw := d.encode()
		got, err := decodeDelivery(raw, d.m.expires)
		if err != nil || !reflect.DeepEqual(got, d) {
			t.Errorf("%+v became %+v, %v", d, got, err)
		}
		for n := range min(len(raw)-len(d.m.payload), 200) {
			if _, err := decodeDelivery(raw[:n], time.Time{}); err == nil {
				t.Errorf("the first %d bytes of %d are taken for a message", n, len(raw))
			}
		}
	}
}

func FuzzDelivery(f *testing.F) {
	f.Add(fullDelivery().encode())
	f.Add((delivery{m: &message{topic: "t"}}).encode())
	f.Add([]byte{1, 3, 1, 't'})
	f.Add([]byte{1, 8, 1, 't', 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1})
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := decodeDelivery(raw, time.Time{})
		if err != nil {
			return
		}
		again, err := decodeDelivery(d.encode(), time.Time{})
		if err != nil || !reflect.DeepEqual(d, again) {
			t.Errorf("%+v became %+v, %v", d, again, err)
		}
	})
}
