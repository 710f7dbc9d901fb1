package dispatch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// readAll does what the agent says until the stream ends.
func (d *Dispatcher) readAll(ctx context.Context, st *stream) error {
	r := bufio.NewReader(st.counted)
	st.conn.SetReadDeadline(time.Now().Add(firstFrame))
	for first := true; ; first = false {
		if !first {
			if _, err := r.Peek(1); err != nil { // between frames an agent may be silent for days
				return endOf(err)
			}
			st.conn.SetReadDeadline(time.Now().Add(frameTime))
		}
		f, err := mqttbridge.ReadFrame(r)
		if err != nil {
			return endOf(err)
		}
		if first && f.Type != mqttbridge.FrameHome {
			return fmt.Errorf("the first frame is %q, not what the home offers", clip(f.Type, 40))
		}
		if err := d.handle(st, f); err != nil {
			return err
		}
		st.conn.SetReadDeadline(time.Time{})
		if err := st.pay(ctx, f.Type); err != nil {
			return nil // whoever ended the stream said why
		}
	}
}

// endOf makes a clean end nil.
func endOf(err error) error {
	if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// handle does what a frame says. An error ends the stream.
func (d *Dispatcher) handle(st *stream, f mqttbridge.Frame) error {
	switch f.Type {
	case mqttbridge.FrameHome:
		if f.Home == nil {
			return errors.New("a home frame without a home")
		}
		offer, err := cleanHome(*f.Home)
		if err != nil {
			return fmt.Errorf("what the home offers is not in order: %w", err)
		}
		d.offer(st, offer)
	case mqttbridge.FrameStatus:
		if f.Status == nil {
			return errors.New("a status frame without a status")
		}
		if !d.heard(st, f.Seq, *f.Status) {
			if st.strays++; st.strays == 1 {
				d.cfg.Logger.Warn("ignoring an agent's word about commands that it was not sent, or against what it said before; said once a stream",
					"agent", st.agent.Name, "command", clip(f.Status.ID, 64))
			}
		}
	case mqttbridge.FrameChallenge, mqttbridge.FrameKey:
		st.answer(f)
	case mqttbridge.FrameRevoked:
		d.acknowledged(st, f)
	}
	return nil // frames of other types are for newer relays
}

// offer takes over what a home says of itself.
func (d *Dispatcher) offer(st *stream, offer mqttbridge.Home) {
	var displaced []*stream
	d.mu.Lock()
	defer func() {
		d.unlock()
		for _, o := range displaced {
			o.end(errRenamed)
		}
	}()
	if !d.live[st] || isClosed(st.ended) {
		return
	}
	h := d.homes[st.agent.Name]
	if h == nil || h.agent.ID != st.agent.ID {
		if h != nil {
			displaced = h.streams
		}
		h = &home{agent: st.agent}
		d.homes[st.agent.Name] = h
	}
	was := h.current()
	if !slices.Contains(h.streams, st) {
		h.streams = append(h.streams, st)
		slices.SortFunc(h.streams, func(a, b *stream) int { return int(int64(a.number) - int64(b.number)) })
	}
	if h.current() != st {
		return // an older stream's view of the home
	}
	offer.Name, offer.Online, offer.Since = st.agent.Name, true, d.now()
	if was != nil && h.shot.home.Online {
		offer.Since = h.shot.home.Since
	}
	if was == nil {
		actions := len(offer.Actions)
		d.said = append(d.said, func() { d.cfg.Logger.Info("home is here", "agent", st.agent.Name, "actions", actions) })
	}
	d.noteKey(h, offer)
	d.show(h, offer)
	if was != st {
		d.tellRevoked(h) // before anything of a device that came anew under an old name
		d.askAbout(h)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// pay waits until the agent may send more.
func (st *stream) pay(ctx context.Context, kind string) error {
	tokens := 1 + st.counted.n/frameCost
	if kind == mqttbridge.FrameHome {
		tokens += homeCost
	}
	st.counted.n = 0
	now := time.Now()
	st.cost.fill(now)
	st.cost.left -= float64(tokens)
	if st.cost.left >= 0 {
		return nil
	}
	wait := time.NewTimer(time.Duration(-st.cost.left * float64(st.cost.every)))
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-st.ended:
		return net.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
