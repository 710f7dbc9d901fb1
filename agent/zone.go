package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport/agent/certs"
	"github.com/sallyport/sallyport/protocol"
)

// txtTimeout is how long the relay may take to put a record into its zone.
const txtTimeout = 10 * time.Second

// A zone is what the agent tells the relay's DNS, and what that said.
type zone struct {
	log *slog.Logger

	mu      sync.Mutex // guards what follows
	names   protocol.Names
	changed chan struct{} // closed by the next change of names
	known   uint64        // the newest names that the relay has answered
	news    chan struct{} // closed by the next answer
	public  netip.Addr    // the home's address, as the relay sees it
	problem string        // what the relay did not take
	seq     uint64        // of the last SetTXT
	waiting map[uint64]chan protocol.TXTSet
}

func (z *zone) init(log *slog.Logger) {
	z.log, z.changed, z.news, z.waiting = log, make(chan struct{}), make(chan struct{}), map[uint64]chan protocol.TXTSet{}
}

// tell changes what the relay should know. The newest session says it.
func (z *zone) tell(change func(*protocol.Names)) {
	z.mu.Lock()
	defer z.mu.Unlock()
	before := z.names
	change(&z.names)
	if slices.Equal(before.LAN, z.names.LAN) && before.Split == z.names.Split && before.Account == z.names.Account &&
		slices.Equal(before.Issuers, z.names.Issuers) {
		return
	}
	z.names.Seq++
	close(z.changed)
	z.changed = make(chan struct{})
}

// next returns what to tell now and what tells of a change.
func (z *zone) next() (protocol.Names, <-chan struct{}) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.names, z.changed
}

// named takes the relay's answer.
func (z *zone) named(m protocol.Named) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if m.Seq != z.names.Seq {
		return // overtaken
	}
	if m.Error != "" && m.Error != z.problem {
		z.log.Warn("the relay's DNS does not take everything", "err", clipped(m.Error))
	}
	z.problem, z.known = clipped(m.Error), m.Seq
	close(z.news)
	z.news = make(chan struct{})
	z.public, _ = netip.ParseAddr(m.Public) // "" is none
}

// told waits until the relay has the names of now: a CA must not find the CAA
// record of another account.
func (z *zone) told(ctx context.Context, over <-chan struct{}) bool {
	for {
		z.mu.Lock()
		known, news := z.known == z.names.Seq, z.news
		z.mu.Unlock()
		if known {
			return true
		}
		select {
		case <-news:
		case <-over:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// clipped bounds a relay's words.
func clipped(s string) string { return s[:min(len(s), 300)] }

// txtSet hands an answer to who waits for it.
func (z *zone) txtSet(m protocol.TXTSet) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if ch, ok := z.waiting[m.Seq]; ok {
		delete(z.waiting, m.Seq)
		ch <- m // buffered, and sent to once
	}
}

func (z *zone) ask() (uint64, chan protocol.TXTSet) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.seq++
	ch := make(chan protocol.TXTSet, 1)
	z.waiting[z.seq] = ch
	return z.seq, ch
}

func (z *zone) forget(seq uint64) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.waiting, seq)
}

// setTXT puts values into the relay's zone and returns when its DNS answers with
// them. certs.ErrNoDNS: this relay has none.
func (a *Agent) setTXT(ctx context.Context, name string, values []string) error {
	ctx, cancel := context.WithTimeout(ctx, txtTimeout)
	defer cancel()
	for {
		news := a.roads.next()
		if s := a.latest.Load(); s != nil && !s.leaving() {
			if !slices.Contains(s.features, protocol.FeatureDNS) {
				return certs.ErrNoDNS
			}
			again, err := s.setTXT(ctx, name, values)
			if !again {
				return err
			}
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("set %s in the relay's DNS: the relay is not reached: %w", name, context.Cause(ctx))
		}
	}
}

// setTXT asks on one session; again says that it ended before the answer.
func (c *session) setTXT(ctx context.Context, name string, values []string) (again bool, err error) {
	if !c.a.zone.told(ctx, c.s.Done()) {
		return c.s.Err() != nil, context.Cause(ctx)
	}
	seq, answer := c.a.zone.ask()
	defer c.a.zone.forget(seq)
	c.send(protocol.SetTXT{Seq: seq, Name: name, Values: values})
	select {
	case m := <-answer:
		if m.Error != "" {
			return false, fmt.Errorf("%w: %s: %s", certs.ErrRefused, name, clipped(m.Error))
		}
		return false, nil
	case <-c.s.Done():
		return true, nil
	case <-ctx.Done():
		return false, fmt.Errorf("set %s in the relay's DNS: %w", name, context.Cause(ctx))
	}
}

// sayNames tells the relay's DNS about the home, on a session that may.
func (c *session) sayNames() <-chan struct{} {
	if !slices.Contains(c.features, protocol.FeatureDNS) {
		return nil
	}
	names, changed := c.a.zone.next()
	if names.Seq > 0 {
		c.send(names)
	}
	return changed
}
