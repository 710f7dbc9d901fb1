package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

const (
	// openLimit is the most that a visitor waits for a stream; the agent's own
	// limit for dialling a service is shorter, so that its answer arrives.
	openLimit = 15 * time.Second
	// patience is how long a session may take to answer while a newer one is
	// there: the visitor must not hang on a path that just froze.
	patience = 4 * time.Second
	// hurry is what is left of it once a session is there that is newer than
	// the one that does not answer: most likely that one died with the agent's
	// process, and nothing has told us yet.
	hurry = time.Second
	// grace is how long a visitor waits for an agent that was here a moment
	// ago, or may come back because the relay has just started.
	grace = 2 * time.Second
)

// A ResultError is the agent's refusal of a stream.
type ResultError struct {
	Code   protocol.Code
	Reason string // from the agent, for the log; never for visitors
}

func (e *ResultError) Error() string {
	if e.Reason == "" {
		return "the agent refused the stream: " + e.Code.String()
	}
	return fmt.Sprintf("the agent refused the stream: %s: %q", e.Code, e.Reason)
}

// An OfflineError says that the agent has no session. errors.Is finds
// ErrOffline in it.
type OfflineError struct {
	Since time.Time // when it was last seen
}

func (e *OfflineError) Error() string {
	return "the agent is offline since " + e.Since.UTC().Format(time.RFC3339)
}

// Is makes every OfflineError match ErrOffline.
func (e *OfflineError) Is(target error) bool { return target == ErrOffline }

// ErrNoAnswer is what OpenStream returns when sessions are there but none of
// them answered in time.
var ErrNoAnswer = errors.New("the agent did not answer in time")

var (
	errEnded   = errors.New("the session ended before the agent answered")
	errStalled = errors.New("the session stalled while another one is there")
)

// OpenStream opens a stream to a service of an agent: it writes o, reads the
// agent's Result, and returns the stream ready for the visitor's bytes. It
// uses the newest session. When a session dies before the Result, or does not
// answer for four seconds while another one is there, or for one second after
// a newer one came, it goes on with the next. It returns within 15 seconds and when ctx ends; a stream that nobody
// gets is reset.
//
// Errors: *ResultError (the agent says no), *OfflineError, ErrNoAnswer,
// ErrUnknownAgent, ErrRevoked, or ctx's cause.
func (r *Registry) OpenStream(ctx context.Context, agent protocol.AgentID, o protocol.Open) (tunnel.Stream, error) {
	if err := protocol.WriteOpen(io.Discard, o); err != nil {
		return nil, err // ours to blame, and no session's
	}
	ctx, cancel := context.WithTimeoutCause(ctx, openLimit, ErrNoAnswer)
	defer cancel()
	var last error // why the latest session failed
	var deadline time.Time
	tried := make(map[*attached]bool)
	for {
		p, err := r.pick(agent, tried)
		if err != nil {
			return nil, err
		}
		if p.best != nil {
			tried[p.best] = true
			st, err := r.try(ctx, agent, p.best, o, tried)
			if st != nil || final(ctx, err) {
				return st, err
			}
			last, deadline = err, time.Time{}
			continue
		}
		if deadline.IsZero() {
			deadline = r.cfg.Now().Add(p.grace)
			if last != nil {
				deadline = r.cfg.Now().Add(grace)
			}
		}
		if err := waitChange(ctx, p.changed, deadline.Sub(r.cfg.Now())); err == nil {
			continue
		} else if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if p.online {
			return nil, fmt.Errorf("%w: %w", ErrNoAnswer, last)
		}
		return nil, &OfflineError{Since: p.since}
	}
}

// final reports whether trying another session is of no use.
func final(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return true
	}
	_, ok := errors.AsType[*ResultError](err)
	return ok
}

var errQuiet = errors.New("nothing changed")

func waitChange(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	if d <= 0 {
		return errQuiet
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-changed:
		return nil
	case <-t.C:
		return errQuiet
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A choice is what pick found.
type choice struct {
	best    *attached // nil: none that was not tried
	online  bool
	since   time.Time       // last seen
	grace   time.Duration   // how long hope is justified when offline
	changed <-chan struct{} // closed at the next change
}

// pick returns the session that the next stream goes to.
func (r *Registry) pick(id protocol.AgentID, tried map[*attached]bool) (choice, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.agents[id]
	switch {
	case m == nil:
		return choice{}, ErrUnknownAgent
	case m.Revoked:
		return choice{}, ErrRevoked
	}
	c := choice{online: r.online(m), since: m.LastSeen, changed: m.changed, best: m.best(r.cfg.Replicas, tried)}
	c.grace = grace - r.cfg.Now().Sub(later(m.LastSeen, r.started))
	if c.best != nil && len(tried) == 0 {
		m.opened++
	}
	return c, nil
}

// best prefers sessions that no newer one replaced, by turns where replicas
// share; then those on their way out, newest first. Callers hold Registry.mu.
func (m *member) best(replicas int, tried map[*attached]bool) *attached {
	var active, rest []*attached
	for _, a := range slices.Backward(m.sessions) {
		switch {
		case a.ended || tried[a]:
		case a.draining || a.leaving:
			rest = append(rest, a)
		default:
			active = append(active, a)
		}
	}
	switch {
	case len(active) > 1 && replicas > 1:
		return active[m.opened%uint64(len(active))]
	case len(active) > 0:
		return active[0]
	case len(rest) > 0:
		return rest[0]
	}
	return nil
}

// better returns the active session that was not tried yet, nil when there is
// none, and the channel that tells of the next change.
func (r *Registry) better(id protocol.AgentID, tried map[*attached]bool) (*attached, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.agents[id]
	r.reap(m)
	a := m.best(r.cfg.Replicas, tried)
	if a != nil && (a.draining || a.leaving) {
		a = nil
	}
	return a, m.changed
}

// try opens the stream on one session.
func (r *Registry) try(ctx context.Context, id protocol.AgentID, a *attached, o protocol.Open, tried map[*attached]bool) (tunnel.Stream, error) {
	attempt, cancel := context.WithCancel(ctx)
	defer cancel()
	out := make(chan opened)
	go openOn(attempt, a.s, o, out)
	patient := time.NewTimer(patience)
	defer patient.Stop()
	late, hurried, began := false, false, time.Now()
	another, changed := r.better(id, tried)
	for {
		if late && another != nil {
			return nil, errStalled
		}
		if another != nil && another.seq > a.seq && !late && !hurried {
			hurried = true
			patient.Reset(min(hurry, patience-time.Since(began)))
		}
		select {
		case res := <-out:
			return res.stream, res.err
		case <-a.s.Done():
			return nil, errEnded
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-patient.C:
			late = true
		case <-changed:
		}
		another, changed = r.better(id, tried)
	}
}

type opened struct {
	stream tunnel.Stream
	err    error
}

// openOn hands its outcome to out, or, once ctx has ended, to nobody: then it
// resets the stream and ends by itself, as every step of it obeys ctx.
func openOn(ctx context.Context, s tunnel.Session, o protocol.Open, out chan<- opened) {
	st, err := exchange(ctx, s, o)
	select {
	case out <- opened{st, err}:
	case <-ctx.Done():
		if st != nil {
			st.Reset(protocol.CodeAborted)
		}
	}
}

func exchange(ctx context.Context, s tunnel.Session, o protocol.Open) (tunnel.Stream, error) {
	st, err := s.OpenStream(ctx)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { st.Reset(protocol.CodeAborted) })
	var res protocol.Result
	if err = protocol.WriteOpen(st, o); err == nil {
		res, err = protocol.ReadResult(st)
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	switch {
	case err != nil:
		st.Reset(protocol.CodeProtocol)
		return nil, verdict(s, err)
	case res.Code == protocol.CodeGoingAway:
		st.Close()
		return nil, errEnded
	case res.Code != protocol.CodeOK:
		st.Close()
		return nil, &ResultError{Code: res.Code, Reason: res.Reason}
	}
	return st, nil
}

// verdict tells a stream that the agent itself gave up, which no other
// session would change, from a session in trouble.
func verdict(s tunnel.Session, err error) error {
	reset, ok := errors.AsType[*tunnel.ResetError](err)
	switch {
	case !alive(s):
		return fmt.Errorf("%w: %w", errEnded, err)
	case ok && reset.Remote && reset.Code == protocol.CodeOverload:
		return &ResultError{Code: reset.Code, Reason: "the agent reset the stream"}
	case errors.Is(err, protocol.ErrMalformed), errors.Is(err, io.EOF):
		return &ResultError{Code: protocol.CodeProtocol, Reason: err.Error()}
	}
	return fmt.Errorf("%w: %w", errEnded, err)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
