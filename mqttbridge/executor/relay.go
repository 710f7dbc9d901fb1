package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	maxQueued    = 512 // frames that a stream has not written
	maxIDs       = 1000
	writeTimeout = 10 * time.Second
	endTimeout   = time.Second
	homeEvery    = time.Second
)

// A stream is one connection to the relay.
type stream struct {
	out    chan mqttbridge.Frame
	dirty  chan struct{} // capacity 1: the home changed
	broker atomic.Bool   // what the relay was told last of the home broker
	cancel context.CancelCauseFunc
}

var (
	errBehind = errors.New("the relay does not read what it is sent")
	errEnded  = errors.New("the executor has ended")
)

// send queues a frame and never blocks: a relay that stops reading holds up
// nobody. It loses the stream, and asks for outcomes on the next one.
func (s *stream) send(f mqttbridge.Frame) {
	select {
	case s.out <- f:
	default:
		s.cancel(errBehind)
	}
}

// reply queues an answer, and waits while the queue is full: whoever asks much
// has to read the answers before he may ask more.
func (s *stream) reply(ctx context.Context, f mqttbridge.Frame) {
	select {
	case s.out <- f:
	case <-ctx.Done():
	}
}

func (s *stream) touch() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// ServeRelay speaks with the relay over one stream "commands" until the stream,
// ctx or Run ends; it waits for Run to begin. It owns c. Several streams may be
// open while an agent moves from one session to the next. It returns nil when
// the relay closed the stream or ctx ended. Commands that came over the stream
// outlive it.
func (e *Executor) ServeRelay(ctx context.Context, c net.Conn) error {
	defer c.Close()
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return errEnded
	}
	e.talks.Add(1) // what it reads may need the files
	e.mu.Unlock()
	defer e.talks.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(e.line, func() { cancel(errEnded) })
	defer stop()
	select {
	case <-e.begun:
	case <-ctx.Done():
		return reason(ctx, nil)
	}
	s := &stream{out: make(chan mqttbridge.Frame, maxQueued), dirty: make(chan struct{}, 1), cancel: cancel}
	e.mu.Lock()
	e.streams[s] = struct{}{}
	e.mu.Unlock()
	var writer sync.WaitGroup
	writer.Go(func() {
		defer c.Close() // wakes the reader
		if err := e.writeFrames(ctx, c, s); err != nil {
			cancel(err)
		}
	})
	err := e.readFrames(ctx, c, s)
	e.mu.Lock()
	delete(e.streams, s)
	e.mu.Unlock()
	why := reason(ctx, err)
	cancel(nil)
	writer.Wait()
	return why
}

// reason says why a stream ended: what ended ctx is the cause of what reader
// and writer saw after it.
func reason(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) || errors.Is(cause, errEnded) {
			return nil
		}
		return cause
	}
	if err == io.EOF {
		return nil
	}
	return err
}

func (e *Executor) writeFrames(ctx context.Context, c net.Conn, s *stream) error {
	write := func(f mqttbridge.Frame) error {
		if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		return mqttbridge.WriteFrame(c, f)
	}
	// The home comes first, and then at most once a second: state topics may
	// chatter, and every change goes to every page.
	sendHome := func() error {
		home := e.Home()
		s.broker.Store(home.Broker)
		return write(mqttbridge.Frame{Type: mqttbridge.FrameHome, Home: &home})
	}
	if err := sendHome(); err != nil {
		return err
	}
	var dirty chan struct{}
	throttle := time.NewTimer(homeEvery)
	defer throttle.Stop()
	for {
		var err error
		select {
		case <-dirty:
			err = sendHome()
			dirty = nil
			throttle.Reset(homeEvery)
		case <-throttle.C:
			dirty = s.dirty
		case f := <-s.out:
			err = write(f)
		case <-ctx.Done():
			if context.Cause(ctx) == errEnded {
				return lastWords(c, s)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// lastWords writes what is queued when the program ends.
func lastWords(c net.Conn, s *stream) error {
	if err := c.SetWriteDeadline(time.Now().Add(endTimeout)); err != nil {
		return err
	}
	for {
		select {
		case f := <-s.out:
			if err := mqttbridge.WriteFrame(c, f); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

func (e *Executor) readFrames(ctx context.Context, c net.Conn, s *stream) error {
	for {
		f, err := mqttbridge.ReadFrame(c)
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch f.Type {
		case mqttbridge.FrameChallenge:
			e.answerChallenge(ctx, s, f)
		case mqttbridge.FrameCommand:
			e.takeCommand(s, f)
		case mqttbridge.FrameQuery:
			if len(f.IDs) > maxIDs {
				return fmt.Errorf("the relay asks for %d commands at once; at most %d are allowed", len(f.IDs), maxIDs)
			}
			e.answerQuery(ctx, s, f)
		case mqttbridge.FrameKey:
			e.answerKey(ctx, s, f)
		case mqttbridge.FrameRevoked:
			e.answerRevoked(ctx, s, f)
		}
	}
}

func (e *Executor) answerChallenge(ctx context.Context, s *stream, f mqttbridge.Frame) {
	answer := mqttbridge.Frame{Type: mqttbridge.FrameChallenge, Seq: f.Seq, Action: f.Action}
	a := e.set.Load().byName[f.Action]
	switch {
	case !validDevice(f.Device):
		answer.Status = e.refusal(f, refuse(mqttbridge.CodeMalformed, "the relay names no device"))
	case a == nil || !a.allows(f.Device):
		answer.Status = e.refusal(f, noAction(f.Action))
	default:
		answer.Challenge = e.challenges.issue(f.Device, f.Action)
		answer.LifeMS = a.Life.Milliseconds()
	}
	s.reply(ctx, answer)
}

func (e *Executor) answerKey(ctx context.Context, s *stream, f mqttbridge.Frame) {
	answer := mqttbridge.Frame{Type: mqttbridge.FrameKey, Seq: f.Seq}
	trust, added, err := e.keys.offer(f.Device, f.Key)
	if err != nil {
		answer.Status = e.refusal(f, refuse(mqttbridge.CodeMalformed, "the key cannot be used: %v", err))
	}
	answer.Trust = trust
	s.reply(ctx, answer)
	if added {
		e.noteRefusal("key.offered", map[string]any{"device": f.Device})
		e.log.Info("a device waits to be trusted: compare the words on both screens", "device", f.Device, "command", "sallyport agent trust "+f.Device)
	}
}

// refusal is the answer to what is no command.
func (e *Executor) refusal(f mqttbridge.Frame, v *verdict) *mqttbridge.Status {
	d := e.statusOf("", clean(f.Action, 64), clean(f.Device, 64))
	d.apply(v, e.now())
	s := mqttbridge.Status(d)
	return &s
}

func (e *Executor) answerQuery(ctx context.Context, s *stream, f mqttbridge.Frame) {
	for _, id := range f.IDs {
		if mqttbridge.CheckID(id) != nil {
			continue
		}
		status := e.outcome(id)
		s.reply(ctx, mqttbridge.Frame{Type: mqttbridge.FrameStatus, Seq: f.Seq, Status: &status})
	}
}

// takeCommand hands a command to a goroutine of its own, unless too many are at
// work.
func (e *Executor) takeCommand(s *stream, f mqttbridge.Frame) {
	release := sync.OnceFunc(func() { <-e.slots })
	busy := func(why string) {
		answer := mqttbridge.Frame{Type: mqttbridge.FrameStatus, Seq: f.Seq}
		answer.Status = e.refusal(f, refuse(mqttbridge.CodeBusy, "%s", why))
		if f.Command != nil {
			env, _ := f.Command.Envelope() // as far as it can be read
			answer.Status.ID, answer.Status.Action = env.ID, env.Action
		}
		s.send(answer)
	}
	select {
	case e.slots <- struct{}{}:
	default:
		busy("too many commands are on their way; wait a moment")
		return
	}
	if !e.begin(func() { e.handle(s, f, release) }) {
		release()
		busy("the agent at home is about to end; press again when it is back")
	}
}

// tell sends a status to every relay's stream: the one that the command came
// over may be gone by now.
func (e *Executor) tell(c *command, status mqttbridge.Status) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for s := range e.streams {
		f := mqttbridge.Frame{Type: mqttbridge.FrameStatus, Status: &status}
		if s == c.from {
			f.Seq = c.seq
		}
		s.send(f) // does not block
	}
}

// tellBroker tells the relays that have it wrong whether the home broker is
// connected.
func (e *Executor) tellBroker() {
	now := e.broker.Connected()
	e.mu.Lock()
	defer e.mu.Unlock()
	for s := range e.streams {
		if s.broker.Load() != now {
			s.touch()
		}
	}
}

// changed makes every stream send the home anew.
func (e *Executor) changed() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.changedLocked()
}

func (e *Executor) changedLocked() {
	for s := range e.streams {
		s.touch()
	}
}
