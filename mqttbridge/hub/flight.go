package hub

import (
	"errors"

	"github.com/sallyport/sallyport/mqttbridge/queue"
)

const (
	maxWindow = 64 // unacknowledged deliveries of one session
	// What waits in memory for a connected client. QoS 0 is dropped beyond its
	// bounds; of QoS 1 and 2 nothing may be missing, so the client is cut off.
	maxWaiting0     = 512
	maxWaiting0Size = 1 << 20
	maxWaiting      = 10_000
	maxWaitingSize  = 4 << 20

	// Packet ids. Those of a mailbox follow from the number in the queue, so
	// that a redelivery has the same one, also after a restart.
	mailIDs  = 1<<15 - 1 // 1 … 32767
	memoryID = 1 << 15   // 32768 … 65535
)

type flightState byte

const (
	flightSent     flightState = iota
	flightReleased             // QoS 2: PUBREC came, PUBREL went
	flightDone
)

// A flight is a delivery that the client has to acknowledge.
type flight struct {
	seq   uint64 // in the mailbox; 0: only in memory
	pid   uint16
	qos   byte
	state flightState
}

// flights are a session's deliveries. Session.mu guards them.
type flights struct {
	waiting     []delivery // in memory
	waitingLive int        // of these, those that were published just now …
	waitingSize int        // … and their bytes
	lane        bool       // the last one came from the mailbox

	pumping bool
	held    bool         // a SUBACK goes first
	more    bool         // the mailbox may hold more than was read
	batch   []queue.Item // read, not sent yet
	after   uint64       // newest that was read
	acked   uint64       // everything up to it was acknowledged

	order  []*flight          // of the mailbox, unacknowledged and those behind such a one
	byPID  map[uint16]*flight // unacknowledged
	before map[uint64]*flight // of the last connection, not sent on this one yet
	lastID uint16             // of memory
}

// restart prepares for a new connection: everything unacknowledged comes again.
func (f *flights) restart() {
	if f.before == nil {
		f.before = make(map[uint64]*flight, len(f.order))
	}
	for _, fl := range f.order {
		f.before[fl.seq] = fl
	}
	f.order, f.byPID, f.batch = nil, nil, nil
	f.after, f.more = f.acked, true
}

// forgetMemory drops what is kept nowhere.
func (f *flights) forgetMemory() {
	f.waiting, f.waitingLive, f.waitingSize, f.pumping, f.held, f.batch = nil, 0, 0, false, false, nil
	for pid, fl := range f.byPID {
		if fl.seq == 0 {
			delete(f.byPID, pid)
		}
	}
}

// push hands a delivery to the client if it is connected.
func (s *session) push(d delivery) {
	s.mu.Lock()
	c := s.conn
	if c == nil || s.dead {
		s.mu.Unlock()
		return
	}
	var full bool
	switch {
	case d.retained:
		full = len(s.waiting)-s.waitingLive >= maxRetained
	case d.qos == 0:
		full = s.waitingLive >= maxWaiting0 || s.waitingSize >= maxWaiting0Size
	default:
		full = s.waitingLive >= maxWaiting || s.waitingSize >= maxWaitingSize
	}
	if full {
		s.mu.Unlock()
		s.hub.stats.dropped.Add(1)
		if d.qos > 0 || d.retained {
			c.shut(endOverflow)
		}
		return
	}
	s.waiting = append(s.waiting, d)
	if !d.retained {
		s.waitingLive++
		s.waitingSize += weight(d.m)
	}
	s.mu.Unlock()
	s.kick()
}

// pop takes the first delivery in memory; the lock is held.
func (f *flights) pop() delivery {
	d := f.waiting[0]
	f.waiting[0] = delivery{} // the array may live on
	if f.waiting = f.waiting[1:]; len(f.waiting) == 0 {
		f.waiting = nil
	}
	if !d.retained {
		f.waitingLive--
		f.waitingSize -= weight(d.m)
	}
	return d
}

// hold stops deliveries, and lets them go on.
func (s *session) hold(on bool) {
	s.mu.Lock()
	s.held = on
	s.mu.Unlock()
	s.kick()
}

// mailed says that the mailbox has got something.
func (s *session) mailed() {
	s.mu.Lock()
	s.more = true
	s.mu.Unlock()
	s.kick()
}

// kick starts the pump if there is a client and none runs. Without anything to
// do it ends at once, so that idle connections have no goroutine for it.
func (s *session) kick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil || !s.ready || s.held || s.pumping {
		return
	}
	s.pumping = true
	c := s.conn
	c.pumps.Go(func() { s.pump(c) })
}

// A sending is what goes to the client next.
type sending struct {
	d       delivery
	fl      *flight // nil for QoS 0
	release bool    // it is there already: its PUBREL only
}

// pump sends until there is nothing to send, or the window is full.
func (s *session) pump(c *conn) {
	for c.waitRoom() {
		out, ok := s.next(c)
		if !ok {
			return
		}
		var err error
		if out.release {
			err = c.writeAck(pubrel, out.fl.pid, 0)
		} else {
			err = c.writePublish(out.d, out.fl)
		}
		switch {
		case errors.Is(err, errPacketTooLarge): // for this client: it counts as delivered
			s.hub.stats.dropped.Add(1)
			if out.fl != nil {
				s.land(out.fl)
			}
		case err != nil:
			// What was not acknowledged comes again on the next connection.
			c.shut(ending{reason: "the connection broke"})
		default:
			s.hub.stats.delivered.Add(1)
		}
	}
	s.mu.Lock()
	s.pumping = false
	s.mu.Unlock()
}

// next returns what is to be sent. Without anything the pump has to end.
func (s *session) next(c *conn) (sending, bool) {
	for {
		s.mu.Lock()
		room := len(s.byPID) < c.window && len(s.order) < maxWindow
		fromMemory := len(s.waiting) > 0 && (s.waiting[0].qos == 0 || room)
		fromMailbox := room && len(s.batch) > 0
		if fromMailbox {
			// Numbers can be far apart: what expired or made room is missing.
			_, taken := s.byPID[mailPID(s.batch[0].Seq)]
			fromMailbox = !taken
		}
		switch {
		case s.conn != c, s.held:
			s.pumping = false
			s.mu.Unlock()
			return sending{}, false
		case fromMemory && (s.lane || !fromMailbox):
			s.lane = false
			d := s.pop()
			s.mu.Unlock()
			switch {
			case !s.deliverable(d.m):
			case d.qos == 0:
				return sending{d: d}, true
			default:
				return sending{d: d, fl: s.takeOff(0, d.qos)}, true
			}
		case fromMailbox:
			s.lane = true
			it := s.batch[0]
			s.batch = s.batch[1:]
			before := s.before[it.Seq]
			delete(s.before, it.Seq)
			s.mu.Unlock()
			if out, ok := s.mail(it, before); ok {
				return out, true
			}
		case room && s.more && s.mailbox != "" && len(s.batch) == 0:
			s.more = false
			after := s.after
			s.mu.Unlock()
			if err := s.load(after); err != nil {
				c.shut(ending{code: 0x83, reason: "its mailbox cannot be read"})
			}
		default:
			s.pumping = false
			s.mu.Unlock()
			return sending{}, false
		}
	}
}

// load reads the next part of the mailbox.
func (s *session) load(after uint64) error {
	items, err := s.hub.cfg.Queue.Read(s.mailbox, after, maxWindow)
	if err != nil {
		if !errors.Is(err, queue.ErrNoQueue) && !errors.Is(err, queue.ErrClosed) {
			s.hub.log.Error("cannot read a mailbox", "device", s.device, "client", s.client, "err", err)
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(items) > 0 {
		s.batch, s.more = items, true
		s.after = items[len(items)-1].Seq
	}
	return nil
}

// mail decides about one stored delivery, which is before if the last
// connection saw it.
func (s *session) mail(it queue.Item, before *flight) (sending, bool) {
	d, err := decodeDelivery(it.Data, it.Expires)
	switch {
	case before != nil && before.state == flightReleased:
		s.mu.Lock()
		s.register(before)
		s.mu.Unlock()
		return sending{fl: before, release: true}, true
	case before != nil && before.state == flightDone:
	case err != nil:
		s.hub.log.Error("a stored message is damaged and dropped", "device", s.device, "client", s.client, "seq", it.Seq)
	case s.deliverable(d.m):
		d.again = before != nil
		return sending{d: d, fl: s.takeOff(it.Seq, d.qos)}, true
	}
	s.mu.Lock()
	s.order = append(s.order, &flight{seq: it.Seq, state: flightDone})
	s.advance()
	s.mu.Unlock()
	return sending{}, false
}

// deliverable asks again what was asked at the subscription: the reader's
// rights, and the sender's existence.
func (s *session) deliverable(m *message) bool {
	ok := !m.expired(s.hub.cfg.Now()) && s.hub.mayRead(s.device, m.topic) && s.hub.stillWelcome(m.sender)
	if !ok {
		s.hub.stats.dropped.Add(1)
	}
	return ok
}

func mailPID(seq uint64) uint16 { return uint16(1 + (seq-1)%mailIDs) }

// takeOff registers a delivery that has to be acknowledged.
func (s *session) takeOff(seq uint64, qos byte) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	fl := &flight{seq: seq, qos: qos}
	if seq > 0 {
		fl.pid = mailPID(seq)
	} else {
		for taken := true; taken; _, taken = s.byPID[s.lastID] { // ends: the window is far smaller
			s.lastID = max(s.lastID+1, memoryID)
		}
		fl.pid = s.lastID
	}
	s.register(fl)
	return fl
}

func (f *flights) register(fl *flight) {
	if f.byPID == nil {
		f.byPID = make(map[uint16]*flight)
	}
	f.byPID[fl.pid] = fl
	if fl.seq > 0 {
		f.order = append(f.order, fl)
	}
}

// land notes that a delivery is the client's.
func (s *session) land(fl *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fl.state = flightDone
	if s.byPID[fl.pid] == fl {
		delete(s.byPID, fl.pid)
	}
	s.advance()
}

// advance removes from the mailbox what is acknowledged without a gap; the lock
// is held.
func (s *session) advance() {
	n := 0
	for n < len(s.order) && s.order[n].state == flightDone {
		n++
	}
	if n == 0 {
		return
	}
	s.acked = s.order[n-1].seq
	s.order = append(s.order[:0], s.order[n:]...)
	if err := s.hub.cfg.Queue.Ack(s.mailbox, s.acked); err != nil && !errors.Is(err, queue.ErrNoQueue) && !errors.Is(err, queue.ErrClosed) {
		s.hub.log.Error("cannot remove delivered messages", "device", s.device, "client", s.client, "err", err)
	}
}

// acknowledged takes a PUBACK, PUBREC or PUBCOMP of the client; false: it is
// about nothing that is under way.
func (s *session) acknowledged(c *conn, kind byte, pid uint16, refused bool) (known bool) {
	s.mu.Lock()
	fl := s.byPID[pid]
	release, unknown := false, false
	switch {
	case kind == pubrec && fl != nil && fl.qos == 2 && !refused:
		fl.state, release = flightReleased, true
	case kind == pubrec && (fl == nil || fl.qos != 2):
		release, unknown, fl = true, true, nil
	case fl == nil, kind == puback && fl.qos != 1, kind == pubcomp && fl.state != flightReleased:
		fl = nil // of an earlier connection, or of nothing
	}
	s.mu.Unlock()
	if release {
		code := byte(0)
		if unknown {
			code = 0x92
		}
		_ = c.writeAck(pubrel, pid, code) // a broken connection ends by itself
		return !unknown
	}
	if fl == nil {
		return false
	}
	s.land(fl)
	s.kick()
	return true
}
