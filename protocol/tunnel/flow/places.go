package flow

import "time"

// A peer may have cfg.MaxStreams streams open: a stream takes a place until
// both directions are over and somebody has accepted it. What is unread then
// is the budget's business.

// roomTime is how long a stream beyond the limit waits for a place: that the
// peer ended another one before is known to that one's pump first.
const roomTime = 250 * time.Millisecond

// A place is what a stream of the peer takes.
type place struct {
	over     bool // both directions
	accepted bool
	left     bool
}

// leave says that both directions of a stream are over.
func (s *Session) leave(st *Stream) {
	if !st.theirs {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.place.over = true
	s.free(st)
}

// free gives back a place that is not needed any more. The caller holds mu.
func (s *Session) free(st *Stream) {
	if p := &st.place; p.over && p.accepted && !p.left {
		p.left = true
		s.theirs--
		wake(s.room)
	}
}

// waitRoom waits until one more stream of the peer has a place; false: it
// should not have opened it.
func (s *Session) waitRoom() bool {
	if s.hasRoom() {
		return true
	}
	late := time.NewTimer(roomTime)
	defer late.Stop()
	for {
		select {
		case <-s.room:
		case <-s.done:
		case <-late.C:
			return s.hasRoom()
		}
		if s.hasRoom() {
			return true
		}
	}
}

func (s *Session) hasRoom() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil || s.cfg.MaxStreams <= 0 || s.theirs < s.cfg.MaxStreams
}
