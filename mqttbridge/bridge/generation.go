package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// stateTopic holds, retained, whether the bridge works: "1" while the link to
// the relay is up, "0" otherwise, also by last will.
const stateTopic = "sallyport/bridge/state"

// A generation is two sessions with the home broker that live and die
// together: the source, which the broker remembers, and the target, which it
// does not. Nothing is acknowledged across generations, so that whatever was
// on its way when one ended comes again, from the home broker or from the hub.
type generation struct {
	b              *Bridge
	source, target *session
	intake         *intake
	filters        chan struct{} // receives when the rules changed
	state          chan struct{} // receives when the link came or went
}

// brokerLoop keeps a generation alive until ctx ends.
func (b *Bridge) brokerLoop(ctx context.Context) {
	wait := backoff{rand: b.rand}
	for ctx.Err() == nil {
		began := time.Now()
		up, err := b.generation(ctx)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errSpilled) {
			b.log.Info("fetching from the home broker what there was no room for")
			continue
		}
		d := wait.next(up)
		b.broker.down(b.cfg.Now(), err)
		b.say(&b.brokerSaid, began, "the home broker cannot be used, trying again", d, err)
		pause(ctx, d, nil)
	}
}

// generation makes one and returns how long it was up, and why it ended.
func (b *Bridge) generation(parent context.Context) (up time.Duration, err error) {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	g := &generation{b: b, filters: make(chan struct{}, 1), state: make(chan struct{}, 1)}
	g.target, err = b.dialer.connect(ctx, sessionOptions{id: b.clientID("-in"), clean: true, level: level4, will: true})
	if err != nil {
		return 0, err
	}
	if g.source, g.intake, err = b.connectSource(ctx); err != nil {
		b.wg.Go(g.target.close)
		return 0, err
	}
	began := time.Now()
	gen := b.in.begin()
	part := func(f func(context.Context) error) {
		b.wg.Go(func() { cancel(f(ctx)) })
	}
	part(g.intake.run)
	part(g.keepFilters)
	part(g.keepState)
	g.publishIn(ctx, cancel, gen)
	b.setGeneration(g)
	poke(g.filters) // the rules may have changed since connectSource read them
	select {
	case <-g.source.lost:
		cancel(fmt.Errorf("connection lost: %w", g.source.err))
	case <-g.target.lost:
		cancel(fmt.Errorf("connection lost: %w", g.target.err))
	case <-ctx.Done():
	}
	b.setGeneration(nil)
	b.in.end(gen)
	if parent.Err() != nil {
		g.goodbye()
	}
	// Sessions that are gone already may take some seconds to notice.
	b.wg.Go(g.target.close)
	b.wg.Go(g.source.close)
	return time.Since(began), context.Cause(ctx)
}

// keepFilters follows changes of the rules.
func (g *generation) keepFilters(ctx context.Context) error {
	for {
		select {
		case <-g.filters:
			if err := g.resubscribe(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// keepState publishes whether the link is up.
func (g *generation) keepState(ctx context.Context) error {
	for {
		if err := g.publishState(ctx, g.b.linkIsUp()); err != nil {
			return err
		}
		select {
		case <-g.state:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (g *generation) publishState(ctx context.Context, up bool) error {
	value := "0"
	if up {
		value = "1"
	}
	var token mqtt.Token
	if err := g.target.call(ctx, func() { token = g.target.publish(stateTopic, 1, true, []byte(value)) }); err != nil {
		return err
	}
	return g.target.wait(ctx, token)
}

// goodbye says "0", since a broker does not publish the will of a client that
// leaves with manners.
func (g *generation) goodbye() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := g.publishState(ctx, false); err != nil {
		g.b.log.Debug("cannot say goodbye to the home broker", "err", err)
	}
}
