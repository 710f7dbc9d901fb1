package uplink

import (
	"errors"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

func (m *manager) noteError(err error) {
	ce, ok := errors.AsType[*tunnel.CloseError](err)
	revoked := ok && ce.Remote && ce.Code == protocol.CodeRevoked
	m.u.setStatus(func(s *Status) {
		s.LastError, s.ErrorAt = err.Error(), m.u.cfg.Wall()
		s.Revoked = s.Revoked || revoked // a network that is away since then does not undo it
	})
}

func (m *manager) setState(state string) {
	m.u.setStatus(func(s *Status) {
		if s.State != state {
			s.State, s.Since = state, m.u.cfg.Wall()
		}
		s.Transport, s.Addr, s.NextTry = "", "", time.Time{}
	})
}

func (m *manager) waiting() {
	m.setState(StateWaiting)
	m.u.setStatus(func(s *Status) { s.NextTry = m.u.cfg.Wall().Add(time.Until(m.nextDial)) })
}

func (m *manager) countDraining() {
	n := 0
	for l := range m.links {
		if l.retired {
			n++
		}
	}
	m.u.setStatus(func(s *Status) { s.Draining = n })
}
