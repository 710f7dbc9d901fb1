package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// sourceKey is where it is kept what the source session is subscribed to.
const sourceKey = "bridge/source"

// subscribed is what the source session has at the broker.
type subscribed struct {
	Sure  map[string]byte `json:"sure,omitempty"`  // acknowledged, with QoS
	Maybe []string        `json:"maybe,omitempty"` // Sure's and others that were asked for, or are not known to be gone
	// Of is the broker and the client id that this is true of.
	Of string `json:"of"`
	// Open is set on disk while sessions are made: should we die then, there
	// may be a new one, without the subscriptions that are Sure.
	Open bool `json:"open,omitempty"`
}

// connectSource makes the source session and its subscriptions. It comes in
// with the bridge bit, and without where the broker refuses that.
func (b *Bridge) connectSource(ctx context.Context) (*session, *intake, error) {
	b.reload.Lock()
	defer b.reload.Unlock()
	if b.have == nil {
		b.have = b.readSubscribed()
	}
	s, in, err := b.dialSource(ctx)
	if err != nil {
		if r, ok := errors.AsType[*Reason](err); !ok || !r.early {
			b.have.Sure = nil // the broker may have made a session all the same
		}
		return nil, nil, err
	}
	if !s.present {
		if len(b.have.Sure) > 0 {
			b.count.sessionsLost.Add(1)
			b.log.Warn("the home broker has forgotten the bridge's session: messages that came while the bridge was away are lost. Switch its persistence on")
		}
		b.have.Sure, b.have.Maybe = nil, nil
	}
	if err := b.subscribeAll(ctx, s, in); err != nil {
		s.close()
		return nil, nil, err
	}
	return s, in, nil
}

func (b *Bridge) dialSource(ctx context.Context) (*session, *intake, error) {
	level := uint(levelBridge)
	if b.noBridgeBit {
		level = level4
	}
	for {
		in := newIntake(b, level == level4)
		s, err := b.dialer.connect(ctx, sessionOptions{id: b.clientID(""), level: level, before: b.sourceOpens, handler: in.take})
		if err == nil {
			return s, in, nil
		}
		again, ever := withoutBit(err)
		if level == level4 || ctx.Err() != nil || !again {
			return nil, nil, err
		}
		level = level4
		if ever && !b.noBridgeBit {
			b.noBridgeBit = true
			b.log.Info("the home broker does not know the bridge bit: whether new messages are retained is taken from the last snapshot")
		}
	}
}

// withoutBit says whether to come in without the bridge bit after err, and
// whether to leave it away ever after. Brokers say all sorts of things about
// it, or hang up; that may also be one that is stopping, and is believed for
// this time only. A wrong password is not tried twice: some count.
func withoutBit(err error) (again, ever bool) {
	if r, ok := errors.AsType[*refusal](err); ok {
		switch r.code {
		case 4, 5, 0x86, 0x87, 0x8a: // user, password, rights, banned
			return false, false
		case 1, 0x81, 0x82, 0x84: // version, malformed, protocol error
			return true, true
		}
		return true, false
	}
	r, ok := errors.AsType[*Reason](err)
	return ok && !r.early, false
}

// sourceOpens is called before a CONNECT is sent.
func (b *Bridge) sourceOpens() error {
	if b.have.Open {
		return nil
	}
	b.have.Open = true
	err := b.saveSubscribed()
	b.have.Open = err == nil
	return err
}

// subscribeAll makes the subscriptions what the rules want. What the broker
// remembers is not subscribed to again: it would send all retained messages
// again. b.reload is held.
func (b *Bridge) subscribeAll(ctx context.Context, s *session, in *intake) error {
	rules := b.rules.Load()
	want := rules.filters
	b.applied = rules
	var drop, add []string
	for _, f := range b.have.Maybe {
		if _, ok := want[f]; !ok {
			drop = append(drop, f)
		}
	}
	for _, f := range slices.Sorted(maps.Keys(want)) {
		if qos, ok := b.have.Sure[f]; !ok || qos != want[f] {
			add = append(add, f)
		}
	}
	if len(drop)+len(add) == 0 && !b.have.Open {
		b.setRefused(nil)
		return nil
	}
	if len(drop)+len(add) > 0 { // on disk before anything changes at the broker
		b.have.Maybe, b.have.Open = slices.Concat(drop, slices.Sorted(maps.Keys(want))), true
		if err := b.saveSubscribed(); err != nil {
			return err
		}
	}
	if b.have.Sure == nil {
		b.have.Sure = map[string]byte{}
	}
	for _, f := range drop {
		delete(b.have.Sure, f)
		if err := s.unsubscribe(ctx, f); err != nil {
			return err
		}
	}
	refused := map[string]string{}
	for _, f := range add {
		delete(b.have.Sure, f)
		in.expectReplays()
		err := s.subscribe(ctx, f, want[f])
		switch {
		case errors.Is(err, errRefusedFilter):
			refused[f] = errRefusedFilter.Error()
			b.log.Warn("the home broker refuses a subscription: its access rules must let the bridge read the topic", "filter", f)
		case err != nil:
			return err
		default:
			b.have.Sure[f] = want[f]
		}
		in.expectReplays()
	}
	b.have.Maybe, b.have.Open = slices.Sorted(maps.Keys(b.have.Sure)), false
	b.setRefused(refused)
	return b.saveSubscribed()
}

// resubscribe follows changes of the rules.
func (g *generation) resubscribe(ctx context.Context) error {
	g.b.reload.Lock()
	defer g.b.reload.Unlock()
	if g.b.applied == g.b.rules.Load() {
		return nil
	}
	return g.b.subscribeAll(ctx, g.source, g.intake)
}

// readSubscribed reads what an earlier process left.
func (b *Bridge) readSubscribed() *subscribed {
	s := &subscribed{}
	of := b.cfg.Broker.URL + " " + b.clientID("")
	text, _ := b.cfg.Queue.Get(sourceKey)
	if err := json.Unmarshal(text, s); err != nil || s.Of != of {
		return &subscribed{Of: of}
	}
	if s.Open {
		s.Sure = nil
	}
	return s
}

func (b *Bridge) saveSubscribed() error {
	text, err := json.Marshal(b.have)
	if err == nil {
		err = b.cfg.Queue.Set(sourceKey, text)
	}
	if err != nil {
		return fmt.Errorf("remember the subscriptions: %w", err)
	}
	return nil
}
