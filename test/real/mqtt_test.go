package real

import (
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// TestCommandAtHome is README's session: a broker at home, one action, a device,
// one press. mosquitto_sub at home sees the payload once; a kill of the relay in
// the middle changes nothing about that; revoking the device ends it all.
func TestCommandAtHome(t *testing.T) {
	m := newMosquitto(t)
	w := newWorld(t)
	w.mqttHome("kitchen", m, garageYAML)
	seen := m.sub("cmnd/#")
	garageDoor(t, m)
	phone := w.device("anna-phone")
	r := w.remote(phone)
	r.awaitHome("kitchen")
	if st := r.press("kitchen", "garage", ""); st.State != mqttbridge.Refused || st.Code != mqttbridge.CodeUntrusted {
		t.Errorf("before anybody at home trusts the key: %+v", st)
	}
	r.trust("kitchen")
	if st := r.press("kitchen", "garage", ""); st.State != mqttbridge.Done {
		t.Errorf("the press: %+v", st)
	}
	seen.waitFor("cmnd/garage open", 5*time.Second)

	for i := range 3 {
		h, err := r.home("kitchen")
		if err != nil {
			t.Fatal(err)
		}
		challenge, err := r.challenge("kitchen", "garage")
		if err != nil {
			t.Fatal(err)
		}
		s := r.sign(h, "garage", "", challenge, "")
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = r.send("kitchen", "garage", s)
		}()
		if i > 0 { // 0: at once
			<-sent
		}
		w.relay.kill()
		<-sent
		w.startRelay()
		r.awaitHome("kitchen")
		st, err := r.send("kitchen", "garage", s)
		if err != nil {
			t.Fatal(err)
		}
		st = r.await(st)
		moved := strings.Count(seen.out.String(), "cmnd/garage open\n")
		if ran := st.State == mqttbridge.Done; ran != (moved == 2+i) && st.State != mqttbridge.Unknown {
			t.Errorf("round %d: the door moved %d times: %+v", i, moved, st)
		}
		if moved > 2+i {
			t.Errorf("round %d: the door moved %d times", i, moved)
		}
		for moved < 2+i { // for the count of the next round
			r.press("kitchen", "garage", "")
			moved = strings.Count(seen.out.String(), "cmnd/garage open\n")
		}
	}

	w.revoke(phone)
	if h, err := r.home("kitchen"); err == nil {
		t.Errorf("a revoked device sees %+v", h)
	}
}
