package door

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/sallyport/sallyport/protocol"
)

func (d *Door) enter(v *visit) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing {
		return false
	}
	d.visits[v] = struct{}{}
	return true
}

// index files a visit under its device, after the handshake. From then on
// Disconnect and Recheck see it.
func (d *Door) index(v *visit) {
	v.settled.Store(true)
	if v.device.ID != "" {
		d.file(v, v.device.ID)
	}
}

// file puts a visit under a device. It may stand under several: requests with
// different secrets can share a connection.
func (d *Door) file(v *visit, deviceID string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	set := d.byDevice[deviceID]
	if set == nil {
		set = make(map[*visit]struct{})
		d.byDevice[deviceID] = set
	}
	set[v] = struct{}{}
}

func (d *Door) leave(v *visit) {
	ids := []string{v.device.ID}
	for _, h := range v.held() {
		ids = append(ids, h.device.ID)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.visits, v)
	for _, id := range ids {
		set := d.byDevice[id]
		delete(set, v)
		if len(set) == 0 {
			delete(d.byDevice, id)
		}
	}
	d.noteEmpty()
}

// close takes no new connections from now on and returns those that live.
func (d *Door) close() []*visit {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closing = true
	d.noteEmpty()
	return slices.Collect(maps.Keys(d.visits))
}

// noteEmpty closes drained when nothing is left and nothing can come. d.mu is
// held.
func (d *Door) noteEmpty() {
	if !d.closing || len(d.visits) > 0 {
		return
	}
	select {
	case <-d.drained:
	default:
		close(d.drained)
	}
}

// Disconnect cuts every live connection of a device (HTTP/1.1, HTTP/2,
// WebSocket, raw) at once and returns how many there were. Call it after
// Check denies the device. Session tickets given out before are void.
func (d *Door) Disconnect(deviceID string) int {
	d.tickets.rotate()
	d.mu.Lock()
	cut := slices.Collect(maps.Keys(d.byDevice[deviceID]))
	d.mu.Unlock()
	for _, v := range cut {
		v.abort(protocol.CodeRevoked)
	}
	return len(cut)
}

// Recheck cuts the connections whose site is gone or has another policy, and
// those whose device lost its rights. Call it after routes, policies or rights
// changed. Session tickets given out before are void.
func (d *Door) Recheck() {
	d.tickets.rotate()
	for _, v := range d.served() {
		if !v.stands() {
			v.abort(protocol.CodeRevoked)
		}
	}
}

// served returns the visits whose handshake is done. Those in handshake look
// again themselves when it is.
func (d *Door) served() []*visit {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []*visit
	for v := range d.visits {
		if v.settled.Load() {
			all = append(all, v)
		}
	}
	return all
}

// Shutdown takes no new connections, lets requests finish, and returns when
// all connections have ended or ctx has; those that are left then (WebSockets,
// raw ones) are cut.
func (d *Door) Shutdown(ctx context.Context) error {
	d.close()
	// First tell, then wait, then close: net/http drops a request that arrives
	// on a fresh connection after Shutdown began (golang/go#75591).
	d.server.SetKeepAlivesEnabled(false)
	select {
	case <-time.After(d.cfg.Linger):
	case <-ctx.Done():
	case <-d.drained:
	}
	d.server.Shutdown(ctx)
	select {
	case <-d.drained:
	case <-ctx.Done():
	}
	return d.Close()
}

// Close cuts all connections and waits until they have ended.
func (d *Door) Close() error {
	for _, v := range d.close() {
		v.abort(protocol.CodeGoingAway)
	}
	d.server.Close()
	<-d.drained
	return nil
}

// Audit events.
const (
	eventRefused = "device.refused"
	// eventGuessing: a source has used up its wrong secrets at token sites.
	eventGuessing = "token.guessing"
)

// refused tells the audit log of a device that may not come in, once per
// connection.
func (v *visit) refused(denial, device string) {
	if v.door.cfg.Audit == nil || denial == DeniedMissing || v.audited.Swap(true) {
		return
	}
	v.door.cfg.Audit(eventRefused,
		slog.String("host", v.visitor.Host), slog.String("reason", denial),
		slog.String("device", device), slog.String("remote", v.visitor.Remote.String()))
}
