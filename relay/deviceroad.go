package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/relay/devices"
)

// listEvery is how often homes get a fresh list of devices though nothing
// changed: they show its age, and one that grows old is a relay that is silent.
const listEvery = 12 * time.Hour

// A signal wakes all who wait for the next change of something.
type signal struct {
	mu sync.Mutex
	ch chan struct{} // closed by the next change
}

func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) ring() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// serveDevices keeps a home's list of devices up to date: at once, on every
// change, and twice a day.
func (r *Relay) serveDevices(ctx context.Context, c net.Conn, id protocol.AgentID) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.Close()
	wg.Go(func() { cancel(awaitEnd(c)) })
	var sent uint64
	for {
		changed := r.devicesChanged.next()
		list, number, err := r.devices.SignedList(ctx, r.scopeOf(id), r.now())
		if err != nil {
			return fmt.Errorf("sign the list of devices: %w", err)
		}
		if number != sent {
			_ = c.SetWriteDeadline(time.Now().Add(controlDeadline))
			if err := protocol.WriteDeviceFrame(c, protocol.DeviceFrame{CA: r.state.deviceCA.Cert().Raw, List: list}); err != nil {
				return err
			}
			sent = number
		}
		select {
		case <-changed:
		case <-time.After(listEvery):
		case <-ctx.Done():
			c.Close()
			return context.Cause(ctx)
		}
	}
}

// scopeOf is what a home may know of the devices: those that may come to it.
func (r *Relay) scopeOf(id protocol.AgentID) devices.Scope {
	own := string(id) + "." + r.conf.Domain
	hosts := []string{own, "*." + own}
	for _, h := range r.registry.Hosts() {
		if h.Agent == id {
			hosts = append(hosts, h.Host)
		}
	}
	return devices.Scope{Name: string(id), Mine: func(p string) bool {
		return slices.ContainsFunc(hosts, func(h string) bool { return p == h || names.Match(p, h) || names.Match(h, p) })
	}}
}

// awaitEnd reads what the home says it has, which nobody asks for yet, until the
// stream ends.
func awaitEnd(c net.Conn) error {
	for {
		if _, err := protocol.ReadDeviceHave(c); err != nil {
			return errors.Join(errors.New("the home ended the stream"), err)
		}
	}
}
