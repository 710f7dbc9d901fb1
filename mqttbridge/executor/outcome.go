package executor

import (
	"fmt"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// recorded is the status that follows from a record of an id that is not open
// in this process.
func (e *Executor) recorded(id string, r record) mqttbridge.Status {
	r = closeRecord(r)
	return mqttbridge.Status{
		ID: id, Home: e.agent, Action: r.Action, Device: r.Device, State: r.State, Final: true,
		Code: r.Code, Reason: r.Reason, Created: r.Created, At: r.At,
	}
}

// closeRecord gives a record of a process that is no more its final state.
func closeRecord(r record) record {
	if r.Final {
		return r
	}
	r.Final = true
	if r.State == mqttbridge.Delivered {
		r.State = mqttbridge.Unconfirmed
		r.Reason = "the home broker has it, but the agent at home ended before it was confirmed; look before you press again"
		return r
	}
	r.State = mqttbridge.Unknown
	r.Reason = "the agent at home ended while the command was on its way: it may or may not have run; look before you press again"
	return r
}

// closeOld ends what an earlier process left open. That it cannot be written is
// no reason not to start: recorded says the same.
func (e *Executor) closeOld() error {
	ids, err := e.seen.unfinished()
	if err != nil {
		return fmt.Errorf("read the commands that were left open: %w", err)
	}
	for _, id := range ids {
		r, found, err := e.seen.get(id)
		if err != nil || !found {
			e.log.Error("cannot read a command that was left open", "id", id, "err", err)
			continue
		}
		r = closeRecord(r)
		if err := e.seen.note(id, r, ""); err != nil {
			e.log.Error("cannot record what became of a command of an earlier run", "id", id, "err", err)
			continue
		}
		if e.last != nil {
			e.last[r.Action] = mqttbridge.Last{By: r.Device, At: r.At, State: r.State}
		}
		e.note("command."+string(r.State), map[string]any{"id": id, "action": r.Action, "device": r.Device, "reason": r.Reason})
	}
	return nil
}

// outcome answers what became of an id. An id that nobody here has heard of is
// barred before the answer is given, so that "it never ran" stays true when the
// command comes after all, on another stream for example.
func (e *Executor) outcome(id string) mqttbridge.Status {
	e.mu.Lock()
	if c, ok := e.open[id]; ok {
		defer e.mu.Unlock()
		return c.status
	}
	if s, ok := e.recent[id]; ok {
		defer e.mu.Unlock()
		return s
	}
	e.bar(id)
	e.mu.Unlock()
	r, found, err := e.seen.get(id)
	switch {
	case err != nil:
		e.log.Error("cannot read the list of commands that were seen", "err", err)
		s := mqttbridge.Status(e.statusOf(id, "", ""))
		s.State, s.Final, s.Reason = mqttbridge.Unknown, true, "the list of commands at home cannot be read; look before you press again"
		return s
	case found:
		e.mu.Lock()
		delete(e.barred, id)
		e.mu.Unlock()
		return e.recorded(id, r)
	}
	s := mqttbridge.Status(e.statusOf(id, "", ""))
	s.State, s.Final, s.Reason = mqttbridge.Expired, true, "it never came to the home, and will not run; press again"
	return s
}

// bar keeps an id from running. The caller holds e.mu.
func (e *Executor) bar(id string) {
	if _, ok := e.barred[id]; !ok && len(e.barred) >= maxBarred {
		// Somebody asks for very many. Without challenges nothing that is barred
		// can run, so these are forgotten together; whoever presses a button
		// right now presses again.
		e.challenges.void("")
		clear(e.barred)
	}
	e.barred[id] = time.Now()
}

// forgetOld drops what is over: ids that were barred so long ago that every
// challenge of that time is dead, and old alerts.
func (e *Executor) forgetOld() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, at := range e.barred {
		if time.Since(at) > keepBarred {
			delete(e.barred, id)
		}
	}
	for key, a := range e.alerts {
		if time.Since(a.at) > keepAlert {
			delete(e.alerts, key)
			e.changedLocked()
		}
	}
}
