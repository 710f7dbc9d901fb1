package hub

import (
	"errors"
	"testing"
)

func TestForgetAgent(t *testing.T) {
	virtual(t, func(w *world) {
		home := w.agent("kitchen", inFilter("set/#", 1))
		home.publish("state", "x", true)
		w.hub.ForgetAgent("id-kitchen")
		<-home.served
		if !errors.Is(home.err, errForgotten) {
			t.Errorf("%v", home.err)
		}
		c := w.connect("anna", 5)
		c.subscribe(filter("home/kitchen/#", 1))
		c.quiet()
		if code := c.publish("home/kitchen/set/x", "1", 1); code != 0 {
			t.Errorf("%#x", code)
		}
		if st := w.hub.Status(); len(st.Agents) != 0 || st.Subscriptions != 1 {
			t.Errorf("%+v", st)
		}
		if q, k := w.store.Queues(), w.store.Keys(""); len(q) != 0 || len(k) != 0 {
			t.Errorf("left behind: %q %q", q, k)
		}
	})
}
