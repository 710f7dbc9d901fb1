package flow

import (
	"sync"
	"time"
)

// What is kept of datagrams that came before their stream did, or before its
// owner asked for them: QUIC does not order them. No budget counts it.
const (
	earlyCount  = 128 // of a session
	earlyBytes  = 256 << 10
	earlyStream = 16 // of one stream
	earlyTime   = 2 * time.Second
)

// A post is what a session has for datagrams.
type post struct {
	sending gate // one datagram at a time, in the order in which streams come
	turns   turns

	mu    sync.Mutex // guards the fields below, and every Stream.taker; comes before Session.mu
	early []letter   // the oldest first
	bytes int
}

// A letter is a datagram that nobody has taken yet.
type letter struct {
	stream uint64
	data   []byte
	at     time.Time
}

// A taker is whom a stream gives its datagrams.
type taker struct {
	give func(p []byte)
	gone bool // it wants no more
}

// receiveDatagrams starts to receive when the link can.
func (s *Session) receiveDatagrams() {
	if link, ok := s.link.(DatagramLink); ok {
		go s.datagramLoop(link)
	}
}

// datagramLoop hands datagrams out until the link ends. It waits for nobody, as
// the link drops what it cannot hand on.
func (s *Session) datagramLoop(link DatagramLink) {
	for {
		id, p, err := link.ReceiveDatagram()
		if err != nil {
			return // controlLoop says why
		}
		if give := s.takerOf(id, p); give != nil {
			s.bytesIn.Add(uint64(len(p)))
			give(p)
		}
	}
}

// takerOf returns who takes p; nil when it is kept for later, or dropped.
func (s *Session) takerOf(id uint64, p []byte) func([]byte) {
	s.post.mu.Lock()
	defer s.post.mu.Unlock()
	st, expected := s.addressee(id)
	switch {
	case st != nil && st.taker.give != nil:
		return st.taker.give
	case st != nil && !st.taker.gone, expected:
		s.post.keep(letter{stream: id, data: p, at: time.Now()})
	}
	return nil
}

// addressee returns the stream of a number. Without one, expected says whether
// the peer may be about to open it; all others are over.
func (s *Session) addressee(id uint64) (st *Stream, expected bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.streams[id]; st != nil {
		return st, false
	}
	var first uint64 // what the peer's numbers begin with; 0 itself is the control stream
	if s.cfg.Dialer {
		first = 1
	}
	return nil, s.err == nil && id%4 == first && id > s.newest
}

// keep holds a letter back while there is room, for which older ones go. The
// caller holds mu.
func (p *post) keep(l letter) {
	same := 0
	for _, old := range p.early {
		if old.stream == l.stream {
			same++
		}
	}
	if same >= earlyStream || len(l.data) > earlyBytes {
		return
	}
	drop := 0
	for drop < len(p.early) {
		old := p.early[drop]
		if len(p.early)-drop < earlyCount && p.bytes+len(l.data) <= earlyBytes && l.at.Sub(old.at) <= earlyTime {
			break
		}
		p.bytes -= len(old.data)
		drop++
	}
	p.early = append(p.early[:0], p.early[drop:]...)
	p.early = append(p.early, l)
	p.bytes += len(l.data)
}

// take returns what was kept for a stream, and drops it if it is too old. The
// caller holds mu.
func (p *post) take(stream uint64) (mine [][]byte) {
	now := time.Now()
	rest := p.early[:0]
	for _, l := range p.early {
		switch {
		case now.Sub(l.at) <= earlyTime && l.stream != stream:
			rest = append(rest, l)
			continue
		case now.Sub(l.at) <= earlyTime:
			mine = append(mine, l.data)
		}
		p.bytes -= len(l.data)
	}
	clear(p.early[len(rest):])
	if p.early = rest; len(rest) == 0 {
		p.early = nil
	}
	return mine
}

// OnDatagram says whom to give the datagrams of the stream, those that came
// before at once. give is called from one goroutine for all streams of the
// session: it must not block; it may keep what it gets. nil: nobody any more.
// After that a last call may still be under way.
func (st *Stream) OnDatagram(give func(p []byte)) {
	st.s.post.mu.Lock()
	st.taker = taker{give: give, gone: give == nil}
	early := st.s.post.take(st.id)
	st.s.post.mu.Unlock()
	if give == nil {
		return
	}
	for _, p := range early {
		st.s.bytesIn.Add(uint64(len(p)))
		give(p)
	}
}

// SendDatagram sends p beside the stream's bytes, if the link can, and keeps
// none of it. It waits while the path takes no more. False: nothing was sent, as p
// is too large for now or the peer takes none.
func (st *Stream) SendDatagram(p []byte) (sent bool, err error) {
	link, ok := st.s.link.(DatagramLink)
	if !ok {
		return false, nil
	}
	s := st.s
	s.post.sending.lock()
	defer s.post.sending.unlock()
	st.mu.Lock()
	err = st.out.err
	st.mu.Unlock()
	if err != nil {
		return false, err
	}
	sent, err = s.sendDatagram(link, st.id, p)
	if err == nil {
		return sent, nil
	}
	<-s.done // the link broke; controlLoop notices, too, and ends the session
	st.mu.Lock()
	defer st.mu.Unlock()
	return false, st.out.err
}

// sendDatagram sends when it is a datagram's turn. The caller holds the gate.
func (s *Session) sendDatagram(link DatagramLink, id uint64, p []byte) (sent bool, err error) {
	before, start := link.BytesSent(), time.Now()
	s.sending.begin()
	sent, err = link.SendDatagram(id, p)
	if err != nil || !sent {
		s.sending.end(0)
		return false, err
	}
	s.sending.end(len(p))
	s.bytesOut.Add(uint64(len(p)))
	if s.post.turns.over(len(p), start, time.Now()) {
		s.rest(link, before)
	}
	return true, nil
}

// Flush waits until the transport has written what Write took, as far as it says.
// Who drops what is late, and so wants short queues, calls it after Write.
func (st *Stream) Flush() {
	if lane, ok := st.lane.(FlushLane); ok {
		lane.Flush()
	}
}
