package hub

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

type fakeReader struct {
	name  string
	sleep bool
}

func (r *fakeReader) awake() bool   { return !r.sleep }
func (r *fakeReader) owner() string { return "" }

// The index finds what Match finds, for random filters and topics, and is
// empty when everything was removed.
func TestIndexIsMatch(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	levels := []string{"a", "b", "", "+", "$x", "ü"}
	word := func(wild bool) string {
		var parts []string
		for range 1 + rnd.IntN(4) {
			l := levels[rnd.IntN(len(levels))]
			if l == "+" && !wild {
				l = "a"
			}
			parts = append(parts, l)
		}
		if wild && rnd.IntN(3) == 0 {
			parts = append(parts, "#")
		}
		return strings.Join(parts, "/")
	}
	for range 200 {
		var x index
		subs := map[*fakeReader][]string{}
		for i := range 1 + rnd.IntN(40) { // few and many hits
			r := &fakeReader{name: fmt.Sprint(i)}
			for range 1 + rnd.IntN(3) {
				f := word(true)
				if mqttbridge.CheckFilter(f) != nil {
					continue
				}
				subs[r] = append(subs[r], f)
				x.add(r, subscription{Filter: f, QoS: 1})
			}
		}
		for range 50 {
			topic := word(false)
			if topic == "" {
				continue
			}
			var want, got []string
			for r, fs := range subs {
				if matchAny(fs, topic) {
					want = append(want, r.name)
				}
			}
			for _, h := range x.match(topic) {
				got = append(got, h.reader.(*fakeReader).name)
			}
			slices.Sort(want)
			slices.Sort(got)
			if !slices.Equal(want, got) {
				t.Fatalf("topic %q: found %v, want %v; filters %v", topic, got, want, subs)
			}
		}
		for r, fs := range subs {
			for _, f := range fs {
				x.remove(r, f)
			}
			x.remove(r, "never/there")
		}
		if x.count() != 0 || len(x.root.children) != 0 {
			t.Fatalf("%d subscriptions and %d branches are left", x.count(), len(x.root.children))
		}
	}
}

// A reader whose filters overlap gets one message, with the best of each.
func TestIndexMerges(t *testing.T) {
	var x index
	r := &fakeReader{}
	x.add(r, subscription{Filter: "a/#", QoS: 0, ID: 1, NoLocal: true, MaxAge: time.Minute, DropOldest: true})
	x.add(r, subscription{Filter: "a/+", QoS: 2, ID: 2, RetainAsPublished: true, MaxAge: time.Hour})
	x.add(r, subscription{Filter: "+/b", QoS: 1, ID: 2, NoLocal: true, MaxAge: time.Second})
	x.add(r, subscription{Filter: "a/#", QoS: 1, ID: 1, NoLocal: true, MaxAge: time.Minute, DropOldest: true}) // again
	hits := x.match("a/b")
	slices.Sort(hits[0].ids)
	h := hits[0]
	if len(hits) != 1 || h.qos != 2 || !h.asRetained || h.localOnly || h.dropOldest || h.maxAge != time.Hour || !slices.Equal(h.ids, []uint32{1, 2}) {
		t.Errorf("%+v", hits)
	}
	if x.count() != 3 {
		t.Errorf("%d subscriptions", x.count())
	}
	x.add(r, subscription{Filter: "a/b", MaxAge: 0})
	if h := x.match("a/b")[0]; h.maxAge != 0 {
		t.Errorf("the rule without an age is not heard: %v", h.maxAge)
	}
}

func BenchmarkMatch(b *testing.B) {
	var x index
	for i := range 5000 {
		r := &fakeReader{}
		x.add(r, subscription{Filter: fmt.Sprintf("home/h%d/#", i%500), QoS: 1})
		x.add(r, subscription{Filter: "home/+/bridge/state", QoS: 1})
	}
	for b.Loop() {
		x.match("home/h7/state/lamp")
	}
}
