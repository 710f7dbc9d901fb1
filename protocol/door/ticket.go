package door

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/tls"
	"sync"
	"time"
)

// ticketKeyLife is how long one key seals new tickets. The key before it still
// opens old ones for the same time.
const ticketKeyLife = 24 * time.Hour

// tickets seals TLS session tickets. crypto/tls would take a ticket of one
// host at another (its keys are shared by all configurations that
// GetConfigForClient returns), so that a session of a host resumes where its
// certificate was never judged (CVE-2025-23419, CVE-2025-68121). Here host,
// policy and mode are authenticated with the ticket.
type tickets struct {
	mu       sync.Mutex // guards what follows
	now, old cipher.AEAD
	since    time.Time
}

func newTickets() *tickets { return &tickets{now: newTicketKey(), since: time.Now()} }

func newTicketKey() cipher.AEAD {
	key := make([]byte, 32)
	rand.Read(key) // never fails (crypto/rand)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("door: AES-256: " + err.Error()) // only a wrong key length could be the reason
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("door: AES-GCM: " + err.Error())
	}
	return aead
}

// rotate makes every ticket worthless that was given out so far.
func (t *tickets) rotate() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now, t.old, t.since = newTicketKey(), nil, time.Now()
}

func (t *tickets) keys() (now, old cipher.AEAD) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.since) > ticketKeyLife {
		t.now, t.old, t.since = newTicketKey(), t.now, time.Now()
	}
	return t.now, t.old
}

func (t *tickets) seal(ss *tls.SessionState, binding string) ([]byte, error) {
	state, err := ss.Bytes()
	if err != nil {
		return nil, err
	}
	now, _ := t.keys()
	return now.Seal(nil, nil, state, []byte(binding)), nil
}

// open returns nil for a ticket that is not ours, not of this host and policy,
// or too old: the visitor then makes a full handshake.
func (t *tickets) open(ticket []byte, binding string) *tls.SessionState {
	now, old := t.keys()
	for _, key := range []cipher.AEAD{now, old} {
		if key == nil {
			continue
		}
		state, err := key.Open(nil, nil, ticket, []byte(binding))
		if err != nil {
			continue
		}
		if ss, err := tls.ParseSessionState(state); err == nil {
			return ss
		}
	}
	return nil
}

// useless returns a ticket that nothing opens, for sessions that must not be
// resumed: WrapSession cannot decline.
func (t *tickets) useless() []byte {
	b := make([]byte, 32)
	rand.Read(b)
	return b
}
