package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/executor"
	"github.com/sallyport/sallyport/test/world"
)

// commandsInCI is how many commands the test of faults sends with CI=true;
// elsewhere it sends fewer, for the sake of time.
const (
	commandsInCI    = 10_000
	commandsInHurry = 300
	faultyLife      = 10 * time.Second
	slots           = 50 // values of an action: tells which command a door obeyed
)

// A pressed command is one that was sent, and what became of it.
type pressed struct {
	id, door string
	slot     int
	signed   mqttbridge.Signed
	asked    time.Time // when the challenge came, at the latest
	answered bool
	redated  bool // the phone signed another one with the same challenge
	moves    []time.Time
	end      mqttbridge.Status // once it is final; set by its phone
}

// A trial keeps the books: what was pressed, and what the doors did.
type trial struct {
	*house
	rnd *rand.Rand

	mu      sync.Mutex
	all     []*pressed
	current map[string]*pressed // door and slot → the newest command for it
	strange []string
	phones  map[string]*world.Phone
}

// TestCommandsUnderFaults presses buttons while processes are killed, the line is
// cut, UDP is lost, packets freeze and thaw, the Pi's clock jumps, and whoever
// sits in between sends every command again, late, edited and re-dated. The
// doors at home are the judge: none moves twice for one command, none late,
// none for a command that nobody pressed, and each command ends.
func TestCommandsUnderFaults(t *testing.T) {
	n := commandsInHurry
	if os.Getenv("CI") == "true" && !raceEnabled {
		n = commandsInCI
	}
	seed := rand.Uint64()
	t.Logf("seed %d, %d commands", seed, n)
	world.Run(t, func(w *world.World) {
		tr := newTrial(w, rand.New(rand.NewPCG(seed, seed)))
		var wg sync.WaitGroup
		stop := make(chan struct{})
		wg.Go(func() { tr.faults(stop) })
		var presses sync.WaitGroup
		for i, r := range tr.remotes() {
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			presses.Go(func() { tr.press(r, rnd, i, n/3+1) })
		}
		presses.Wait()
		close(stop)
		wg.Wait()
		tr.settle()
		tr.judge()
	})
}

func newTrial(w *world.World, rnd *rand.Rand) *trial {
	values := map[string]string{}
	for i := range slots {
		values[fmt.Sprint("v", i)] = fmt.Sprint("v", i)
	}
	var actions []executor.Action
	doors := []string{"garage", "gate", "door", "barn", "shed"}
	for _, d := range doors {
		a := executor.Action{
			Name: d, Label: d, Topic: "cmnd/" + d, Values: values, Confirm: mqttbridge.ConfirmNone, Life: faultyLife,
			Ack: &executor.Ack{Topic: "stat/" + d, Match: "/.*/", Timeout: 2 * time.Second},
		}
		actions = append(actions, a)
	}
	tr := &trial{house: newHouse(w, actions...), rnd: rnd, phones: map[string]*world.Phone{}, current: map[string]*pressed{}}
	for _, d := range doors {
		tr.broker.Watch("cmnd/"+d, func(m world.Message) { tr.moved(d, m) })
		if d != "garage" { // newHouse did
			door(tr.broker, d)
		}
	}
	return tr
}

// remotes are three phones whose keys are trusted.
func (tr *trial) remotes() []*world.Remote {
	list := []*world.Remote{tr.remote}
	tr.phones["anna"] = tr.remote.Phone
	for _, name := range []string{"ben", "cleo"} {
		r := tr.relay.Phone(name).Remote()
		tr.phones[name] = r.Phone
		tr.trust(r)
		list = append(list, r)
	}
	return list
}

// moved notes what a door did.
func (tr *trial) moved(door string, m world.Message) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	p := tr.current[door+" "+m.Payload]
	if p == nil || m.Retained {
		tr.strange = append(tr.strange, fmt.Sprintf("%s was told %q (retained %v), which nobody pressed", door, m.Payload, m.Retained))
		return
	}
	p.moves = append(p.moves, m.At)
}

// press is one phone: it presses n buttons, one after the other, and now and
// then sends an old command again.
func (tr *trial) press(r *world.Remote, rnd *rand.Rand, phone, n int) {
	doors := []string{"garage", "gate", "door", "barn", "shed"}
	var mine []*pressed
	var home mqttbridge.Home
	for i := range n {
		d, slot := doors[rnd.IntN(len(doors))], phone+3*(i%(slots/3))
		if home.ID == "" || i%100 == 0 {
			if h, err := r.Home("kitchen"); err == nil {
				home = h
			}
		}
		challenge, err := r.Challenge("kitchen", d)
		if err != nil {
			time.Sleep(time.Duration(rnd.IntN(3000)) * time.Millisecond) // virtual
			continue
		}
		p := &pressed{door: d, slot: slot, asked: time.Now()}
		value := fmt.Sprint("v", slot)
		p.signed = r.Sign(home, d, value, challenge, "")
		e, _ := p.signed.Envelope()
		p.id = e.ID
		tr.mu.Lock()
		tr.all, tr.current[d+" "+value] = append(tr.all, p), p
		tr.mu.Unlock()
		mine = append(mine, p)
		if rnd.IntN(10) == 0 {
			time.Sleep(time.Duration(rnd.IntN(20)) * time.Second) // virtual: some envelopes come late
		}
		st, err := r.Send("kitchen", d, p.signed)
		p.answered = err == nil
		if err == nil && st.Final {
			p.end = st // refused at once: nothing of it is kept over a restart
		}
		for range rnd.IntN(3) {
			tr.annoy(r, rnd, mine[rnd.IntN(len(mine))])
		}
		if err == nil && rnd.IntN(2) == 0 {
			for range 40 {
				if st.Final {
					break
				}
				time.Sleep(100 * time.Millisecond) // virtual
				if now, err := r.Status(p.id); err == nil {
					st = now
				}
			}
		}
		// A value is not used again before its command can only be over.
		if i%(slots/3) == slots/3-1 {
			time.Sleep(2 * faultyLife) // virtual
			collect(r, mine)
		}
	}
}

// collect notes how commands have ended: the relay remembers 10,000, and this
// trial sends more. What it could not ask for, as the relay was away, it asks for
// the next time.
func collect(r *world.Remote, list []*pressed) {
	for _, p := range list {
		if p.end.Final && p.end.State != mqttbridge.Unknown { // that may still be corrected
			continue
		}
		if st, err := r.Status(p.id); err == nil && st.Final {
			p.end = st
		}
	}
}

// annoy sends an old command again: as it was, edited, or with another date.
func (tr *trial) annoy(r *world.Remote, rnd *rand.Rand, p *pressed) {
	s := p.signed
	switch rnd.IntN(3) {
	case 0:
	case 1:
		s.Body = append([]byte(nil), s.Body...)
		s.Body[rnd.IntN(len(s.Body))] ^= 1 << rnd.IntN(7)
	case 2:
		e, err := s.Envelope()
		if err != nil {
			return
		}
		e.ID, e.Issued, e.NotAfter = mqttbridge.NewID(), time.Now(), time.Now().Add(time.Hour)
		if again, err := mqttbridge.Sign(e, r.Key); err == nil {
			s, p.redated = again, true // the phone's own key, but the challenge is spent, if the first one came to the home
		}
	}
	_, _ = r.Send("kitchen", p.door, s)
}

// faults breaks something every few seconds until stop is closed, and leaves
// all whole.
func (tr *trial) faults(stop <-chan struct{}) {
	offset := time.Duration(0)
	for {
		select {
		case <-stop:
			tr.home.Freeze(false)
			tr.home.BlockUDP(false)
			return
		case <-time.After(time.Duration(5+tr.rnd.IntN(60)) * time.Second):
		}
		switch tr.rnd.IntN(8) {
		case 0:
			tr.relay.Kill()
			tr.pause(3)
			tr.relay.Start()
		case 1:
			offset += time.Duration(tr.rnd.IntN(7200)-3600) * time.Second
			tr.home.Kill()
			tr.pause(3)
			jump := offset
			tr.home.Clock = func() time.Time { return tr.Now().Add(jump) }
			tr.home.Start()
		case 2:
			tr.broker.Kill()
			tr.pause(5)
			tr.broker.Start()
		case 3:
			tr.home.BlockUDP(true)
			tr.pause(30)
			tr.home.BlockUDP(false)
		case 4:
			tr.home.Freeze(true)
			tr.pause(30)
			tr.home.Freeze(false)
		case 5:
			tr.home.FreezeOpen()
		case 6:
			tr.home.Cut()
		case 7:
			tr.relay.Stop()
			tr.relay.Start()
		}
	}
}

// pause lets a fault last up to so many seconds.
func (tr *trial) pause(seconds int) {
	time.Sleep(time.Duration(tr.rnd.IntN(seconds*1000)) * time.Millisecond) // virtual
}

// settle waits until all is whole and every command has ended.
func (tr *trial) settle() {
	tr.awaitHome()
	tr.Sleep(3 * time.Minute)
}

// judge compares the books with what the relay says.
func (tr *trial) judge() {
	t := tr.T
	for _, s := range tr.strange {
		t.Error(s)
	}
	remotes := map[string]*world.Remote{}
	count := map[mqttbridge.State]int{}
	for _, p := range tr.all {
		e, _ := p.signed.Envelope()
		if remotes[e.Device] == nil {
			remotes[e.Device] = tr.remoteOf(e.Device)
		}
		st, err := p.end, error(nil)
		if !st.Final || st.State == mqttbridge.Unknown {
			st, err = remotes[e.Device].Status(p.id)
		}
		if err != nil && p.end.Final { // forgotten meanwhile
			st, err = p.end, nil
		}
		if err != nil {
			if p.answered {
				t.Errorf("%s was answered and is unknown now: %v", p.id, err)
			}
			st.State = "never came"
		} else if !st.Final {
			t.Errorf("%s never ended: %+v", p.id, st)
		}
		count[st.State]++
		if len(p.moves) > 1 {
			t.Errorf("%s moved the door %d times: %v", p.id, len(p.moves), p.moves)
		}
		for _, at := range p.moves {
			if late := at.Sub(p.asked); late > faultyLife+time.Second {
				t.Errorf("%s moved the door %v after its challenge was made", p.id, late)
			}
		}
		moved := len(p.moves) == 1
		switch st.State {
		case mqttbridge.Done, mqttbridge.Delivered, mqttbridge.Unconfirmed:
			if !moved {
				t.Errorf("%s is %s, and the door did not move", p.id, st.State)
			}
		case mqttbridge.Refused, mqttbridge.Expired, "never came":
			if moved && !p.redated {
				t.Errorf("%s is %s (%s), and the door moved", p.id, st.State, st.Code)
			}
		}
	}
	t.Logf("%d commands: %v", len(tr.all), count)
	if ran := count[mqttbridge.Done]; ran < len(tr.all)/2 {
		t.Errorf("of %d commands only %d were done: the faults are not what is tested here", len(tr.all), ran)
	}
}

// remoteOf makes another remote of the same phone, which may ask but not sign.
func (tr *trial) remoteOf(device string) *world.Remote { return tr.phones[device].Remote() }
