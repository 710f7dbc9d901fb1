package bridge

import (
	"bufio"
	"bytes"
	"errors"
	"maps"
	"testing"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/sallyport/sallyport/mqttbridge"
)

// msg is a message as paho hands it over.
type msg struct {
	mqtt.Message
	topic string
	load  []byte
	qos   byte
}

func (m msg) Topic() string   { return m.topic }
func (m msg) Payload() []byte { return m.load }
func (m msg) Qos() byte       { return m.qos }
func (m msg) Retained() bool  { return false }
func (m msg) Duplicate() bool { return false }

// TestIntakeOrder: after the first message that there was no room for, none at
// QoS 1 is taken on this session, though there is room again: it would overtake.
func TestIntakeOrder(t *testing.T) {
	in := newIntake(&Bridge{}, false)
	for i := range intakeMax + 1 {
		in.take(msg{topic: "t", load: numbered("", i), qos: 1})
	}
	total := 0
	for {
		batch, err := in.next(t.Context())
		if errors.Is(err, errSpilled) {
			break
		}
		total += len(batch)
		in.take(msg{topic: "t", load: []byte("late"), qos: 1})
		if total < intakeMax {
			in.take(msg{topic: "t", load: []byte("loose"), qos: 0})
		}
		for _, m := range batch {
			if string(m.Payload()) == "late" {
				t.Fatal("a later message overtakes")
			}
		}
		if total > 10*intakeMax {
			t.Fatal("no end")
		}
	}
	if total <= intakeMax {
		t.Errorf("took %d", total)
	}
	if in.bytes != 0 {
		t.Errorf("counts %d bytes, and has none", in.bytes)
	}
}

// TestSnapshotIsNewest: what was published while a snapshot was taken goes out
// instead of the snapshot's older value.
func TestSnapshotIsNewest(t *testing.T) {
	var wire bytes.Buffer
	l := &link{b: &Bridge{recent: newRecent()}, out: bufio.NewWriter(&wire), wake: make(chan struct{}, 1)}
	l.b.recent.start()
	l.b.recent.note("changed", []byte("2"))
	l.b.recent.note("cleared", nil)
	l.b.recent.note("new", []byte("1"))
	s := &snapshot{named: map[string]struct{}{}, done: make(chan error, 1), list: []mqttbridge.LinkMessage{
		syncMessage("changed", []byte("1")), syncMessage("cleared", []byte("1")), syncMessage("same", []byte("1")),
	}}
	l.snapshot = s
	if more, err := l.sync(); more || err != nil {
		t.Fatal(more, err)
	}
	if err := <-s.done; err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for r := bufio.NewReader(&wire); ; {
		p, err := mqttbridge.ReadLink(r)
		if err != nil {
			t.Fatal(err, got)
		}
		if p.Kind == mqttbridge.LinkSynced {
			break
		}
		got[p.Message.Topic] = string(p.Message.Payload)
	}
	if want := map[string]string{"changed": "2", "same": "1", "new": "1"}; !maps.Equal(got, want) {
		t.Errorf("sent %v, not %v", got, want)
	}
}
