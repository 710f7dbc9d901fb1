package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// publishWindow is how many messages may be on their way to the home broker.
const publishWindow = 64

// A message that the home broker hangs up on would come again for ever and
// hold up all others. One that was the oldest at suspectAfter ends is tried alone,
// on a connection that was quiet for suspectQuiet; when the broker hangs up on
// it blameMax times just then, it is dropped.
const (
	suspectAfter = 3
	suspectQuiet = 3 * time.Second
	blameMax     = 3
)

type flight struct {
	a     *arrival
	token mqtt.Token // nil: there was nothing to publish
}

// publishIn starts what brings the hub's messages to the home broker. One
// goroutine hands over, as many as the window holds; the other one confirms,
// in order. Nobody waits for the first: paho may hold it for handLimit.
func (g *generation) publishIn(ctx context.Context, cancel context.CancelCauseFunc, gen uint64) {
	flights := make(chan flight, publishWindow)
	g.b.wg.Go(func() {
		defer close(flights)
		for {
			a := g.b.in.next(ctx, gen)
			if a == nil {
				return
			}
			if g.b.in.suspicious(a) {
				if err := g.tryAlone(ctx, gen, a); err != nil {
					cancel(err)
					return
				}
				continue
			}
			f := flight{a: a}
			if g.b.in.wanted(a) {
				f.token = g.hand(a)
			}
			select {
			case flights <- f:
			case <-ctx.Done():
				return
			}
		}
	})
	g.b.wg.Go(func() {
		for f := range flights {
			if f.token != nil {
				if err := g.target.wait(ctx, f.token); err != nil {
					cancel(fmt.Errorf("publish: %w", err))
					return
				}
				g.b.count.inMessages.Add(1)
			}
			g.b.in.confirm(gen, f.a)
		}
	})
}

func (g *generation) hand(a *arrival) mqtt.Token {
	if g.b.rules.Load().comesBack(a.topic) {
		g.b.echo.expect(a.topic, a.load)
	}
	return g.target.publish(a.topic, a.qos, a.retain, a.load)
}

// tryAlone publishes the oldest message with nothing else on the way.
func (g *generation) tryAlone(ctx context.Context, gen uint64, a *arrival) error {
	b := g.b
	select {
	case <-time.After(suspectQuiet):
	case <-g.target.lost:
		return fmt.Errorf("connection lost: %w", g.target.err) // it was not this message
	case <-ctx.Done():
		return ctx.Err()
	}
	if g.b.in.wanted(a) {
		err := g.target.wait(ctx, g.hand(a))
		switch {
		case err == nil:
			b.count.inMessages.Add(1)
		case ctx.Err() != nil && !g.target.over(), errors.Is(err, errSlow):
			return err // somebody else ended it, or the broker is only slow
		case !b.in.blamed(a):
			return fmt.Errorf("publish on %s: %w", harmless(a.topic, maxTopicSaid), err)
		default:
			b.count.inRefused.Add(1)
			b.log.Error("a message from the relay is dropped: the home broker hangs up on it each time", "topic", harmless(a.topic, maxTopicSaid), "bytes", len(a.load), "err", err)
			return fmt.Errorf("publish on %s: %w", harmless(a.topic, maxTopicSaid), err)
		}
	}
	b.in.confirm(gen, a)
	return nil
}

func (s *session) over() bool {
	select {
	case <-s.lost:
		return true
	default:
		return false
	}
}
