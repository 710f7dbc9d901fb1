package hub

import (
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/mqttbridge/queue"
)

const (
	// maxSessionBytes bounds a session's mailbox below that of a home: a device
	// may have several, and fill them itself.
	maxSessionBytes = 8 << 20

	deviceQueues = "device/" // queues of sessions: device/NAME/CLIENT, escaped
	recordPrefix = "hub/"    // a queue's record: hub/ and the queue's name
)

// A session is what a client id has here. A clean one lives as long as its
// connection; a persistent one has a mailbox, and a record under its name, and
// lives on without a connection.
type session struct {
	hub     *Hub
	device  string
	client  string // client id
	mailbox string // its queue; "" for a clean session

	buried chan struct{} // closed when it was discarded and nothing of it is left

	mu       sync.Mutex // guards everything below, also what flight.go declares
	deviceID string
	subs     []subscription   // no filter twice
	conn     *conn            // nil while the client is away
	ready    bool             // CONNACK was written: deliveries may go out
	keep     time.Duration    // lives on that long without a connection
	goneAt   time.Time        // since when there is none; zero with one
	dead     bool             // was discarded
	inbound  []packets.Packet // publications of QoS 2 that the client has not released yet; while it is away
	flights
}

// record is a session on disk.
type record struct {
	DeviceID string         `json:"device_id"`
	Keep     int64          `json:"keep_s"`
	Gone     time.Time      `json:"gone,omitzero"`
	Subs     []subscription `json:"subs"`
}

// sessionKey names a session. Client ids are the device's own: two devices
// never meet in one.
func sessionKey(device, client string) string { return device + "\x00" + client }

func mailboxName(device, client string) string {
	return deviceQueues + url.PathEscape(device) + "/" + url.PathEscape(client)
}

func parseMailbox(queue string) (device, client string, ok bool) {
	rest, ok := strings.CutPrefix(queue, deviceQueues)
	d, c, found := strings.Cut(rest, "/")
	device, err1 := url.PathUnescape(d)
	client, err2 := url.PathUnescape(c)
	return device, client, ok && found && err1 == nil && err2 == nil
}

func (s *session) key() string { return sessionKey(s.device, s.client) }

func (s *session) owner() string { return s.device }

func (s *session) awake() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn != nil && s.ready
}

// attach gives a connection its session: the one that waits for it, or a new
// one. The connection has the client id (claim).
func (h *Hub) attach(c *conn, client string, fresh bool, keep time.Duration) error {
	for {
		old := h.sessionOf(c.key)
		if old == nil {
			break
		}
		// Rights may have shrunk while the client was away: it learns that it
		// has to subscribe anew.
		if !fresh && !old.over(h.cfg.Now()) && old.entitled() && old.resume(c, keep) {
			h.takeWill(c.key) // the client is back in time
			c.session, c.present = old, true
			if err := old.save(); err != nil {
				// A full disk must not keep a client from emptying its mailbox.
				c.logger().Warn("cannot note that a client is back: after a crash its session may end too early", "err", err)
			}
			return nil
		}
		h.discard(old)
	}
	// A will that waits for the end of the session before is due now.
	if w := h.takeWill(c.key); w != nil {
		h.publishWill(c.id, w)
	}
	s := newSession(h, c.id.Name, client)
	s.deviceID, s.conn, s.keep = c.id.ID, c, keep
	if keep > 0 {
		if err := h.makeRoom(c.id.Name); err != nil {
			return err
		}
		s.mailbox = mailboxName(s.device, s.client)
		limits := h.cfg.Limits.Mailbox
		limits.Bytes = min(limits.Bytes, maxSessionBytes)
		if err := h.cfg.Queue.Create(s.mailbox, limits); err != nil {
			return err
		}
		if err := s.save(); err != nil {
			return err
		}
	}
	h.mu.Lock()
	h.sessions[c.key] = s
	h.mu.Unlock()
	c.session = s
	return nil
}

func newSession(h *Hub, device, client string) *session {
	return &session{hub: h, device: device, client: client, buried: make(chan struct{})}
}

// resume takes a connection; false: the session was discarded meanwhile.
func (s *session) resume(c *conn, keep time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return false
	}
	s.conn, s.ready, s.keep, s.goneAt, s.deviceID = c, false, keep, time.Time{}, c.id.ID
	s.restart()
	for _, pk := range s.inbound {
		c.cl.State.Inflight.Set(pk)
	}
	s.inbound = nil
	return true
}

func (h *Hub) sessionOf(key string) *session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[key]
}

// makeRoom discards the session of a device that was away for longest when
// there are too many.
func (h *Hub) makeRoom(device string) error {
	h.mu.Lock()
	var mine []*session
	for _, s := range h.sessions {
		if s.device == device && s.mailbox != "" {
			mine = append(mine, s)
		}
	}
	h.mu.Unlock()
	if len(mine) < h.cfg.Limits.Sessions {
		return nil
	}
	var oldest *session
	var since time.Time
	for _, s := range mine {
		s.mu.Lock()
		if s.conn == nil && (oldest == nil || s.goneAt.Before(since)) {
			oldest, since = s, s.goneAt
		}
		s.mu.Unlock()
	}
	if oldest == nil {
		return errors.New("the device has as many sessions as it may have, and none of them is away; let a client ask for a clean session")
	}
	h.log.Info("session discarded: its device began another one", "device", device, "client", oldest.client)
	h.discard(oldest)
	return nil
}

func (s *session) discarded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dead
}

// over says whether nobody may come back to the session any more.
func (s *session) over(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isOver(now)
}

// isOver is over with the lock held.
func (s *session) isOver(now time.Time) bool {
	return s.conn == nil && !now.Before(s.goneAt.Add(s.keep))
}

// detach takes the connection away from its session and returns how long that
// lives on.
func (s *session) detach(c *conn, keep time.Duration) time.Duration {
	s.mu.Lock()
	s.conn, s.ready, s.goneAt = nil, false, s.hub.cfg.Now()
	s.mu.Unlock()
	c.pumps.Wait()
	// A device that was revoked while it connected leaves nothing behind.
	welcome := s.hub.stillWelcome(sender{device: c.id.Name, id: c.id.ID, since: c.era})
	s.mu.Lock()
	s.forgetMemory()
	if s.mailbox == "" || s.dead || !welcome {
		keep = 0
	}
	s.keep = keep
	dead := s.dead
	if keep > 0 {
		s.inbound = c.inboundFlights()
	}
	s.mu.Unlock()
	switch {
	case dead:
	case keep <= 0:
		s.hub.discard(s)
	default:
		if err := s.save(); err != nil {
			s.hub.log.Warn("cannot note when a client left: after a restart its session lives longer than it should", "device", s.device, "client", s.client, "err", err)
		}
	}
	return keep
}

// save writes the record.
func (s *session) save() error {
	if s.mailbox == "" {
		return nil
	}
	s.mu.Lock()
	if s.dead {
		s.mu.Unlock()
		return nil
	}
	r := record{DeviceID: s.deviceID, Keep: int64(s.keep / time.Second), Gone: s.goneAt, Subs: slices.Clone(s.subs)}
	s.mu.Unlock()
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return s.hub.cfg.Queue.Set(recordPrefix+s.mailbox, b)
}

// list returns the subscriptions.
func (s *session) list() []subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.subs)
}

// find returns where a filter is in subs, -1 when it is not; the lock is held.
func (s *session) find(filter string) int {
	return slices.IndexFunc(s.subs, func(sub subscription) bool { return sub.Filter == filter })
}

// entitled says whether all its subscriptions are allowed now.
func (s *session) entitled() bool {
	return !slices.ContainsFunc(s.list(), func(sub subscription) bool { return !s.hub.maySubscribe(s.device, sub.Filter) })
}

// discard ends a session for good and returns when nothing of it is left. Its
// connection, if there is one, is the caller's.
func (h *Hub) discard(s *session) {
	if !s.kill(func() bool { return true }) {
		<-s.buried
		return
	}
	h.bury(s)
}

// kill marks a session as dead if it is alive and cond, with the lock held,
// says so.
func (s *session) kill(cond func() bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead || !cond() {
		return false
	}
	s.dead = true
	return true
}

func (h *Hub) bury(s *session) {
	defer close(s.buried)
	for _, sub := range s.list() {
		h.index.remove(s, sub.Filter)
	}
	if s.mailbox != "" {
		// The record first: a queue without one is removed at the next start.
		err := h.cfg.Queue.Set(recordPrefix+s.mailbox, nil)
		if err == nil {
			err = h.cfg.Queue.Remove(s.mailbox)
		}
		if err != nil && !errors.Is(err, queue.ErrClosed) {
			h.log.Warn("cannot remove a session that ended", "device", s.device, "client", s.client, "err", err)
		}
	}
	// Last: whoever looks the session up waits for all of this.
	h.mu.Lock()
	if h.sessions[s.key()] == s {
		delete(h.sessions, s.key())
	}
	h.mu.Unlock()
}

// restoreSessions reads what an earlier process left.
func (h *Hub) restoreSessions() error {
	now := h.cfg.Now()
	for _, name := range h.cfg.Queue.Queues() {
		if !strings.HasPrefix(name, deviceQueues) {
			continue
		}
		device, client, ok := parseMailbox(name)
		raw, found := h.cfg.Queue.Get(recordPrefix + name)
		var r record
		if !ok || !found || json.Unmarshal(raw, &r) != nil {
			// A crash came between the two halves of making or removing it.
			if err := h.cfg.Queue.Remove(name); err != nil {
				return err
			}
			continue
		}
		s := newSession(h, device, client)
		s.mailbox, s.deviceID, s.keep, s.goneAt = name, r.DeviceID, time.Duration(r.Keep)*time.Second, r.Gone
		if s.goneAt.IsZero() || s.goneAt.After(now) {
			s.goneAt = now // it was connected when the process died, or the clock was set back
		}
		for _, sub := range r.Subs {
			s.subs = append(s.subs, sub)
			h.index.add(s, sub)
		}
		h.sessions[s.key()] = s
	}
	return nil
}
