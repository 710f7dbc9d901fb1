package executor

import (
	"context"
	"fmt"
	"time"
)

const (
	// pulseBound is how long the second half of a press is tried after it was
	// due. Later it would surprise somebody.
	pulseBound = 10 * time.Minute
	pulseRetry = 250 * time.Millisecond
)

// holdPulse reserves a topic for one press at a time: the release of the last
// one must not cut the next one short.
func (e *Executor) holdPulse(topic string) (release func(), ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pulsing[topic] {
		return nil, false
	}
	e.pulsing[topic] = true
	return func() { e.pulseOver(topic) }, true
}

func (e *Executor) pulseOver(topic string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.pulsing, topic)
}

// pulseAfter sends the second half of a press that was just published. The
// topic is held.
func (e *Executor) pulseAfter(topic string, after time.Duration, p pulseRecord) {
	due := time.Now().Add(after)
	// Called by a command, so Run is waiting for that: begin cannot come too
	// late, but for Close without Run, and then the next process does it.
	e.work.Go(func() { e.releasePulse(topic, due, p) })
}

// resumePulses does what an earlier process owes, at once: how long it was away
// only the wall clock could tell, which on a Pi is the last to be believed after
// a start, and a relay that stays on is worse than an "off" too many.
func (e *Executor) resumePulses() {
	owed, err := e.seen.pulses()
	if err != nil {
		e.log.Error("cannot read which pulses an earlier run left open", "err", err)
		return
	}
	for topic, p := range owed {
		if _, ok := e.holdPulse(topic); ok {
			e.begin(func() { e.releasePulse(topic, time.Now(), p) })
		}
	}
}

// releasePulse publishes the second half at its time; when the program ends, at
// once: a shorter press is better than one that never ends. Without a broker it
// tries again as soon as there is one.
func (e *Executor) releasePulse(topic string, due time.Time, p pulseRecord) {
	defer e.pulseOver(topic)
	e.pause(time.Until(due))
	said := false
	for {
		err := e.publishPulse(topic, p)
		if err == nil {
			e.dropPulse(topic)
			e.note("pulse.released", map[string]any{"id": p.ID, "action": p.Action, "late": max(0, time.Since(due)).Round(time.Millisecond).String()})
			if said {
				e.clearAlert(pulseAlert(topic))
			}
			return
		}
		if e.life.Err() != nil {
			return // it stays on disk for the next process
		}
		if time.Since(due) >= pulseBound {
			e.pulseLost(topic, p, "the home broker was away for "+pulseBound.String())
			e.dropPulse(topic)
			return
		}
		if !said {
			said = true
			e.log.Warn("the second half of a press cannot be sent yet; it is tried again as soon as the broker is there", "action", p.Action, "err", err)
			e.raise(pulseAlert(topic), p.Action, p.Device, fmt.Sprintf("%s: the end of the press could not be sent yet, the home broker is away", p.Action))
		}
		e.pause(pulseRetry)
		for !e.broker.Connected() && e.life.Err() == nil && time.Since(due) < pulseBound {
			e.pause(pulseRetry)
		}
	}
}

func (e *Executor) publishPulse(topic string, p pulseRecord) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.life), publishTimeout)
	defer cancel()
	return e.broker.Publish(ctx, topic, p.Payload, p.QoS, false)
}

// pause waits, but not over the end of the program.
func (e *Executor) pause(d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-e.life.Done():
	}
}

func (e *Executor) dropPulse(topic string) {
	if err := e.seen.dropPulse(topic); err != nil {
		e.log.Error("cannot record that a press is over", "topic", topic, "err", err)
	}
}

func (e *Executor) pulseLost(topic string, p pulseRecord, why string) {
	text := fmt.Sprintf("%s: the end of the press was never sent (%s); look, and switch it off by hand", p.Action, why)
	e.note("pulse.lost", map[string]any{"id": p.ID, "action": p.Action, "device": p.Device, "reason": why})
	e.log.Error("the second half of a press was never sent", "action", p.Action, "reason", why)
	e.raise(pulseAlert(topic), p.Action, p.Device, text)
}
