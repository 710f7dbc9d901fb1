package dispatch

import (
	"context"
	"log/slog"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// ledgerTime is how long the ledger may take for a command. A challenge is
// hardly good for longer, and somebody stands before the door.
const ledgerTime = 5 * time.Second

// Send writes a command into the ledger and hands it to its home, which is the
// agent's name. It returns once the command is on disk and queued for the
// home; how it goes on is told by Watch and Command.
//
// It is idempotent by the id in the envelope: the same signed bytes again
// return the command's status, other bytes under the same id are refused as
// mqttbridge.CodeDuplicate. The error is a *Refusal when nothing was sent, and
// then the status says the same. A command that could not be sent after it was
// taken over (the home went at that moment) has no error but the state refused.
// A refused id stays refused.
//
// When ctx ends, the command goes on.
func (d *Dispatcher) Send(ctx context.Context, device, home string, s mqttbridge.Signed) (mqttbridge.Status, error) {
	e, err := s.Envelope()
	if err == nil {
		err = mqttbridge.CheckID(e.ID)
	}
	if err != nil {
		return d.refused(mqttbridge.Envelope{}, device, home, refuse(mqttbridge.CodeMalformed, "the command cannot be read: %v", err))
	}
	if len(home) > maxName { // no agent's; it would be kept with the refusal
		return d.refused(e, device, "", refuse(mqttbridge.CodeNoAction, "there is no such home"))
	}
	if e.Device != device {
		return d.refused(e, device, home, refuse(mqttbridge.CodeMalformed, "the command was signed for another device; reload the page and press again"))
	}
	c := &command{
		status: mqttbridge.Status{
			ID: e.ID, Home: home, Action: e.Action, Device: device,
			State: mqttbridge.Accepted, Created: d.now(), At: d.now(),
		},
		digest: digestOf(home, s), signed: &s, recorded: make(chan struct{}),
	}
	if !d.cfg.Allowed(device) {
		return d.refused(e, device, home, refusalRevoked())
	}
	if first, r := d.reserve(c, e); r != nil {
		return d.refused(e, device, home, r)
	} else if first != c {
		return d.again(ctx, first)
	}
	adopted, r := d.record(ctx, c)
	d.mu.Lock()
	defer d.unlock()
	close(c.recorded)
	switch {
	case r != nil:
		c.denied = r
		d.commands.drop(c)
		if r.Code != mqttbridge.CodeDuplicate {
			d.remember(c, r)
		}
		return refusedStatus(c.status, r), r
	case adopted != nil:
		*c = *adopted
		d.commands.put(c)
		if h := d.homes[c.status.Home]; h != nil {
			h.unasked = true
		}
		return c.status, nil
	}
	c.recorded = nil
	d.note("command.accepted", slog.String("device", device), slog.String("home", home), slog.String("action", e.Action),
		slog.String("command", e.ID), slog.String("key", s.Key), slog.Time("issued", e.Issued), slog.Time("not_after", e.NotAfter))
	d.dispatch(c)
	return c.status, nil
}

// dispatch queues a recorded command for its home, or ends it. It wants d.mu.
func (d *Dispatcher) dispatch(c *command) {
	h := d.homes[c.status.Home]
	switch {
	case c.revoked:
		d.turnDown(c, refusalRevoked())
		return
	case h == nil || h.agent.ID != c.agent || h.current() == nil:
		d.turnDown(c, refusalOffline(c.status.Home))
		return
	}
	st := h.current()
	if !st.queue(outgoing{command: c}) {
		d.turnDown(c, refuse(mqttbridge.CodeBusy, "%s takes no more commands now, so this one was not sent; try again in a moment", c.status.Home))
		return
	}
	c.stream = st
	d.tellStatus(c.status)
}

// reserve decides whether a command may be recorded, and takes its id. It
// returns the command that has the id already when that is the same one.
func (d *Dispatcher) reserve(c *command, e mqttbridge.Envelope) (*command, *Refusal) {
	d.mu.Lock()
	defer d.unlock()
	g := d.guest(c.status.Device)
	duplicate := refuse(mqttbridge.CodeDuplicate, "a command with this id was seen before; press again")
	if have := d.commands.byID[e.ID]; have != nil {
		if have.digest != c.digest { // the device is in it, too
			return nil, duplicate
		}
		return have, nil
	}
	if m := g.memo(e.ID, d.now()); m != nil {
		if m.digest != c.digest {
			return nil, duplicate
		}
		return nil, &Refusal{Code: m.status.Code, Reason: m.status.Reason}
	}
	if r := d.permit(g); r != nil {
		d.noteRefused(g, refusedStatus(c.status, r))
		return nil, r
	}
	r := d.place(c, e)
	if r == nil && d.commands.openOf(c.status.Device) >= d.cfg.Limits.Open {
		r = refuse(mqttbridge.CodeBusy, "%d commands of this device wait for their end; wait for them", d.cfg.Limits.Open)
	}
	if r != nil {
		d.remember(c, r)
		return nil, r
	}
	d.commands.put(c)
	return c, nil
}

// place finds the home and the action of a command. It wants d.mu.
func (d *Dispatcher) place(c *command, e mqttbridge.Envelope) *Refusal {
	h, action, r := d.find(c.status.Device, c.status.Home, e.Action)
	switch {
	case r != nil:
		return r
	case h.shot.home.ID != e.Home:
		return refuse(mqttbridge.CodeMalformed, "the command was signed for another home than %s; reload the page and press again", c.status.Home)
	case h.current() == nil:
		return refusalOffline(c.status.Home)
	}
	c.agent = h.agent.ID
	c.life = time.Duration(action.Life) * time.Millisecond
	c.until = d.now().Add(c.life + d.cfg.Limits.Silence)
	return nil
}

// find returns a home and an action, if a device may use it. It wants d.mu.
func (d *Dispatcher) find(device, name, action string) (*home, mqttbridge.Action, *Refusal) {
	h := d.homes[name]
	if h == nil || h.shot == nil || h.shot.mask(device) == 0 {
		return nil, mqttbridge.Action{}, refuse(mqttbridge.CodeNoAction, "there is no such home, or nothing for this device in it")
	}
	if action == "" {
		return h, mqttbridge.Action{}, nil
	}
	a, ok := h.shot.action(device, action)
	if !ok {
		return nil, mqttbridge.Action{}, refuse(mqttbridge.CodeNoAction, "%s has no such action, or not for this device", name)
	}
	return h, a, nil
}

// again answers a command that came before. It waits until that one is
// recorded.
func (d *Dispatcher) again(ctx context.Context, c *command) (mqttbridge.Status, error) {
	d.mu.Lock()
	recorded, status := c.recorded, c.status
	d.mu.Unlock()
	if recorded != nil {
		select {
		case <-recorded:
		case <-ctx.Done():
			r := refuse(mqttbridge.CodeBusy, "the request ended before the command was recorded; ask for its state")
			return refusedStatus(status, r), r
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.denied != nil {
		return refusedStatus(c.status, c.denied), c.denied
	}
	return c.status, nil
}

// record creates the command in the ledger. It returns the command that the
// ledger has already, when it is the same one.
func (d *Dispatcher) record(ctx context.Context, c *command) (adopted *command, r *Refusal) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ledgerTime)
	defer cancel()
	key := commandPrefix + c.status.ID
	created, err := d.cfg.Ledger.Create(ctx, key, encodeCommand(c))
	if err == nil && created {
		d.writer.well(d.cfg.Logger)
		return nil, nil
	}
	var value []byte
	if err == nil {
		value, err = d.cfg.Ledger.Get(ctx, key)
	}
	if err != nil {
		d.writer.unwell(d.cfg.Logger, err)
		return nil, refuse(mqttbridge.CodeDisk, "the relay cannot write the command down, so it was not sent; its disk may be full")
	}
	have, err := decodeCommand(c.status.ID, value)
	if err != nil || have.digest != c.digest {
		return nil, refuse(mqttbridge.CodeDuplicate, "a command with this id was seen before; press again")
	}
	d.recover(have)
	return have, nil
}

// refused is the answer to a command that nothing is kept of.
func (d *Dispatcher) refused(e mqttbridge.Envelope, device, home string, r *Refusal) (mqttbridge.Status, error) {
	now := d.now()
	s := mqttbridge.Status{ID: e.ID, Home: home, Action: e.Action, Device: device, Created: now, At: now}
	return refusedStatus(s, r), r
}

func refusedStatus(s mqttbridge.Status, r *Refusal) mqttbridge.Status {
	s.State, s.Final, s.Code, s.Reason, s.Until = mqttbridge.Refused, true, r.Code, r.Reason, r.Until
	return s
}
