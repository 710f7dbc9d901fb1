package executor

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A command is one whose signature was good and that has no final state yet.
type command struct {
	digest [32]byte
	status mqttbridge.Status // guarded by Executor.mu
	from   *stream
	seq    uint64 // of the frame that brought it
}

// handle judges one command and sees it through. It holds one of e.slots until
// the outcome of publishing is known.
func (e *Executor) handle(s *stream, f mqttbridge.Frame, release func()) {
	j := &judgement{e: e, from: s, frame: f}
	v := j.judge()
	switch {
	case v == nil:
		j.run(release)
		return
	case v.known != nil:
		s.send(mqttbridge.Frame{Type: mqttbridge.FrameStatus, Seq: f.Seq, Status: v.known})
		e.noteRefusal("command.repeated", j.attrs(map[string]any{"state": v.known.State}))
	case j.command != nil:
		e.conclude(j, v)
	default:
		// Whoever it is from, it is not the device's word: the relay that
		// brought it gets the answer, and nobody else hears of it.
		status := e.statusOf(j.env.ID, j.env.Action, f.Device)
		status.apply(v, e.now())
		s.send(mqttbridge.Frame{Type: mqttbridge.FrameStatus, Seq: f.Seq, Status: (*mqttbridge.Status)(&status)})
		e.noteNo(j, v)
	}
	release()
}

// admit takes a command whose signature is good into the books, or finds it
// there.
func (j *judgement) admit() *verdict {
	e := j.e
	status := e.statusOf(j.env.ID, j.env.Action, j.env.Device)
	status.State = mqttbridge.Sent // what there is to say until it is judged
	c := &command{digest: j.digest, status: mqttbridge.Status(status), from: j.from, seq: j.frame.Seq}
	if v := e.enter(j.env.ID, c); v != nil {
		return v
	}
	r, found, err := e.seen.get(j.env.ID)
	if err == nil && !found {
		j.command = c
		return nil
	}
	e.mu.Lock()
	delete(e.open, j.env.ID)
	e.mu.Unlock()
	if err != nil {
		e.log.Error("cannot read the list of commands that were seen", "err", err)
		return notRecorded()
	}
	known := e.recorded(j.env.ID, r)
	return again(bytes.Equal(r.Digest, j.digest[:]), &known)
}

// enter puts a command among the open ones, unless its id is known.
func (e *Executor) enter(id string, c *command) *verdict {
	e.mu.Lock()
	defer e.mu.Unlock()
	if was, ok := e.open[id]; ok {
		known := was.status
		return again(was.digest == c.digest, &known)
	}
	if known, ok := e.recent[id]; ok {
		return again(e.digests[id] == c.digest, &known)
	}
	if _, ok := e.barred[id]; ok {
		return &verdict{state: mqttbridge.Expired, reason: "it came after the relay had asked what became of it, too late, and did not run; press again"}
	}
	if len(e.open) >= maxOpen {
		return refuse(mqttbridge.CodeBusy, "too many commands are on their way; wait a moment")
	}
	e.open[id] = c
	return nil
}

// again answers a command whose id is known: its state when it is the same one,
// else it is somebody's mistake or trick.
func again(same bool, known *mqttbridge.Status) *verdict {
	if same {
		return &verdict{known: known}
	}
	return refuse(mqttbridge.CodeDuplicate, "another command had the same id before; press again")
}

// run records a command that may run, publishes it, and waits for the ack.
func (j *judgement) run(release func()) {
	e, a, id := j.e, j.action, j.env.ID
	if err := e.audit.add("command.accepted", j.attrs(nil)); err != nil {
		e.log.Error("cannot write the log of commands, so nothing runs", "err", err)
		j.stop(notRecorded(), release)
		return
	}
	var pulse *pulseRecord
	if a.Pulse != nil {
		pulse = &pulseRecord{ID: id, Action: a.Name, Device: j.env.Device, Payload: []byte(a.Pulse.Payload), QoS: a.QoS, Due: e.now().Add(a.Pulse.After).UTC()}
	}
	now := e.now().UTC()
	r := record{Action: a.Name, Device: j.env.Device, Digest: j.digest[:], Created: now, At: now}
	switch err := e.seen.begin(id, r, a.Topic, pulse); {
	case errors.Is(err, errSeen): // cannot be: admit looked, and holds the id
		j.stop(refuse(mqttbridge.CodeDuplicate, "a command with this id was seen before"), release)
		return
	case err != nil:
		e.log.Error("cannot record a command, so it does not run", "err", err)
		j.stop(notRecorded(), release)
		return
	}
	j.publish(r, release)
}

// stop ends a command that passed the rules and still does not run.
func (j *judgement) stop(v *verdict, release func()) {
	j.giveBack()
	j.e.conclude(j, v)
	release()
}

// publish comes after the record. Whatever happens from here on, this process
// and all later ones never publish this id again.
func (j *judgement) publish(r record, release func()) {
	e, a := j.e, j.action
	if v := j.still(); v != nil {
		j.unpublished(r, v, release)
		return
	}
	var w *waiter
	if m := a.ack(j.env.Value); m != nil {
		w = e.await(a.Ack.Topic, m)
		defer e.forget(w)
	}
	// The end of the program does not cut this short: an outcome that is known
	// is worth some seconds. The end of the challenge's life does: what the
	// broker did not take by then must not lie in some buffer.
	wait := publishTimeout
	if j.challenge != nil {
		if wait = j.challenge.left(a.Life); wait < minPublish {
			j.unpublished(r, j.tooLate(j.challenge), release)
			return
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.life), wait)
	err := e.broker.Publish(ctx, a.Topic, a.payload(j.env.Value), a.QoS, false)
	cancel()
	if err != nil && e.offline(err) {
		j.unpublished(r, noBroker(), release)
		return
	}
	e.mu.Lock()
	e.accepted++
	e.mu.Unlock()
	if a.Pulse != nil {
		e.pulseAfter(a.Topic, a.Pulse.After, pulseRecord{ID: j.env.ID, Action: a.Name, Device: j.env.Device, Payload: []byte(a.Pulse.Payload), QoS: a.QoS})
	}
	switch {
	case err != nil:
		e.log.Warn("the home broker was lost while a command was on its way", "action", a.Name, "id", j.env.ID, "err", err)
		e.advance(j, r, mqttbridge.Unknown, true, "the home broker was lost while the command was on its way: it may have run; look before you press again")
		release()
	case w == nil:
		e.advance(j, r, mqttbridge.Delivered, true, "")
		release()
	default:
		e.advance(j, r, mqttbridge.Delivered, false, "")
		release()
		j.confirm(r, w)
	}
}

// confirm waits for the ack.
func (j *judgement) confirm(r record, w *waiter) {
	timer := time.NewTimer(j.action.Ack.Timeout)
	defer timer.Stop()
	reason := "the home broker has it, but " + j.action.Label + " did not confirm it in time; look before you press again"
	select {
	case <-w.heard:
		j.e.advance(j, r, mqttbridge.Done, true, "")
		return
	case <-timer.C:
	case <-j.e.life.Done():
		reason = "the home broker has it, but the agent at home ended before " + j.action.Label + " confirmed it; look before you press again"
	}
	j.e.advance(j, r, mqttbridge.Unconfirmed, true, reason)
}

// unpublished ends a command that is recorded and was certainly not published.
func (j *judgement) unpublished(r record, v *verdict, release func()) {
	pulsed := ""
	if j.action.Pulse != nil {
		pulsed = j.action.Topic
	}
	r.State, r.Final, r.Code, r.Reason, r.At = v.finalState(), true, v.code, v.reason, j.e.now().UTC()
	if err := j.e.seen.note(j.env.ID, r, pulsed); err != nil {
		j.e.log.Error("cannot record that a command did not run", "id", j.env.ID, "err", err)
	}
	j.stop(v, release)
}

// advance records a state of a command that was published, and tells it.
func (e *Executor) advance(j *judgement, r record, state mqttbridge.State, final bool, reason string) {
	r.State, r.Final, r.Reason, r.At = state, final, reason, e.now().UTC()
	if err := e.seen.note(j.env.ID, r, ""); err != nil {
		// It ran, and that is what everybody is told. After a restart nobody
		// knows any more: unknown.
		e.log.Error("cannot record what became of a command", "id", j.env.ID, "state", state, "err", err)
	}
	extra := map[string]any{"state": state}
	if reason != "" {
		extra["reason"] = reason
	}
	e.note("command."+string(state), j.attrs(extra))
	e.mu.Lock()
	c := j.command
	c.status.State, c.status.Final, c.status.Reason, c.status.At = state, final, reason, r.At
	status := c.status
	if e.last == nil {
		e.last = make(map[string]mqttbridge.Last)
	}
	e.last[r.Action] = mqttbridge.Last{By: r.Device, At: r.At, State: state}
	if final {
		delete(e.open, j.env.ID)
	}
	e.mu.Unlock()
	e.tell(j.command, status)
	e.changed()
}

// conclude ends a command that did not run, and tells it.
func (e *Executor) conclude(j *judgement, v *verdict) {
	e.mu.Lock()
	c := j.command
	status := statusDraft(c.status)
	status.apply(v, e.now())
	c.status = mqttbridge.Status(status)
	e.remember(j.env.ID, c)
	delete(e.open, j.env.ID)
	e.mu.Unlock()
	e.noteNo(j, v)
	e.tell(c, mqttbridge.Status(status))
}

// remember keeps what became of a command that did not run. The caller holds
// e.mu.
func (e *Executor) remember(id string, c *command) {
	if len(e.order) >= maxRecent {
		delete(e.recent, e.order[0])
		delete(e.digests, e.order[0])
		e.order = e.order[1:]
	}
	e.recent[id], e.digests[id] = c.status, c.digest
	e.order = append(e.order, id)
}

// noteNo counts and logs something that did not run.
func (e *Executor) noteNo(j *judgement, v *verdict) {
	e.mu.Lock()
	e.refused++
	e.mu.Unlock()
	extra := map[string]any{"reason": clean(v.reason, maxAttr)}
	if v.code != "" {
		extra["code"] = v.code
	}
	e.noteRefusal("command."+string(v.finalState()), j.attrs(extra))
}

// attrs are what a line of the log says of a command. Before the signature is
// proven the device is the relay's word.
func (j *judgement) attrs(extra map[string]any) map[string]any {
	m := map[string]any{"device": clean(j.frame.Device, 64)}
	if j.frame.Command != nil {
		m["key"] = clean(j.frame.Command.Key, 64)
	}
	if j.env.ID != "" {
		m["id"], m["action"] = j.env.ID, j.env.Action
		if j.env.Value != "" {
			m["value"] = clean(j.env.Value, 64)
		}
	}
	if j.signed {
		m["signed"] = true
		m["issued"] = j.env.Issued.UTC()
	}
	maps.Copy(m, extra)
	return m
}

// A statusDraft is a Status that is being filled in.
type statusDraft mqttbridge.Status

func (e *Executor) statusOf(id, action, device string) statusDraft {
	now := e.now().UTC()
	return statusDraft{ID: id, Home: e.agent, Action: action, Device: device, Created: now, At: now}
}

func (d *statusDraft) apply(v *verdict, now time.Time) {
	d.State, d.Final, d.Code, d.Reason, d.At = v.finalState(), true, v.code, clean(v.reason, 500), now.UTC()
	d.AttemptsLeft, d.Until = v.left, v.until
}

func (v *verdict) finalState() mqttbridge.State {
	if v.state != "" {
		return v.state
	}
	return mqttbridge.Refused
}
