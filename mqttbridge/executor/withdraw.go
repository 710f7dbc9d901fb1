package executor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sallyport/sallyport/mqttbridge"
)

// maxWithdrawn bounds the withdrawn keys that are remembered, to say why they
// are refused and to trust them again. One that is forgotten is as untrusted
// as any other.
const maxWithdrawn = 64

// withdraw takes the trust from all keys of a device, because the relay says
// that it was revoked. That is all that a relay can do here: no word of it ever
// gives trust. revocation is the relay's name for the event, so that the same
// news, told again after its acknowledgement was lost, does not undo that a
// person at home trusted the device in between. was are the keys that lost
// trust. When it cannot be written down it holds all the same, until the next
// start, and the error says so.
func (k *keyring) withdraw(device, revocation string) (was []Key, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if revocation != "" && !k.unsaved && k.heard(device, revocation) {
		return nil, nil
	}
	for id, p := range k.pending {
		if p.Device == device { // nobody confirms by mistake what the relay calls lost
			delete(k.pending, id)
		}
	}
	id := k.deviceKey(device)
	if id == "" && !k.unsaved {
		return nil, nil
	}
	err = k.save(func(s *trustState) {
		if id == "" {
			return
		}
		key := s.trusted[id]
		delete(s.trusted, id)
		was = append(was, key)
		key.Trusted, key.Withdrawn, key.revocation = false, k.now().UTC(), revocation
		s.withdrawn[id] = key
		s.thin()
	}, true)
	if err != nil {
		return was, fmt.Errorf("%s is not trusted now, but that is not on the disk, so it is trusted again after a restart: %w", device, err)
	}
	return was, nil
}

// heard reports whether a revocation was applied before. The caller holds k.mu.
func (k *keyring) heard(device, revocation string) bool {
	for _, m := range []map[string]Key{k.trusted, k.withdrawn} {
		for _, key := range m {
			if key.Device == device && key.revocation == revocation {
				return true
			}
		}
	}
	return false
}

// thin forgets the keys that were withdrawn longest ago.
func (s *trustState) thin() {
	for len(s.withdrawn) > maxWithdrawn {
		oldest := ""
		for id, key := range s.withdrawn {
			if oldest == "" || key.Withdrawn.Before(s.withdrawn[oldest].Withdrawn) {
				oldest = id
			}
		}
		delete(s.withdrawn, oldest)
	}
}

// wasWithdrawn reports whether a key lost its trust by the relay's word.
func (k *keyring) wasWithdrawn(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.withdrawn[id]
	return ok
}

// withdrawnOf lists the withdrawn keys of a device. The caller holds k.mu.
func (k *keyring) withdrawnOf(device string) (list []Key) {
	for _, key := range sortedKeys(k.withdrawn) {
		if key.Device == device {
			list = append(list, key)
		}
	}
	return list
}

// answerRevoked does what follows from the relay's word that it revoked a
// device, and acknowledges it once that is on disk.
func (e *Executor) answerRevoked(ctx context.Context, s *stream, f mqttbridge.Frame) {
	answer := mqttbridge.Frame{Type: mqttbridge.FrameRevoked, Seq: f.Seq, Device: f.Device, IDs: f.IDs}
	revocation := ""
	if len(f.IDs) > 0 && mqttbridge.CheckID(f.IDs[0]) == nil {
		revocation = f.IDs[0]
	}
	if len(f.IDs) > 1 || len(f.Device) > 64 {
		answer.Device, answer.IDs = clean(f.Device, 64), nil
	}
	was, err := e.keys.withdraw(f.Device, revocation)
	if len(was) > 0 {
		e.challenges.void(f.Device) // what is signed and not yet here
	}
	for _, key := range was {
		e.note("key.withdrawn", map[string]any{"device": f.Device, "key": key.ID, "by": "relay", "revocation": revocation})
		e.log.Warn("the relay has revoked a device: its commands do not run any more", "device", f.Device, "key", key.ID, "undo", "sallyport agent trust "+f.Device)
	}
	if err != nil {
		if len(was) > 0 { // the relay repeats it until it is written
			e.log.Error("cannot write down that a device was revoked", "device", f.Device, "err", err)
		}
		answer.Status = e.refusal(f, notRecorded())
	}
	s.reply(ctx, answer)
}

var errWithdrawn = errors.New("the relay has revoked it")

// askForID says that a withdrawn key is trusted again by its id alone, so that
// nobody means the new device and trusts the lost one.
func askForID(device string, keys []Key) error {
	var list strings.Builder
	for _, key := range keys {
		fmt.Fprintf(&list, "\n  %s  %s", key.ID, key.Words)
	}
	return fmt.Errorf("no key of %q waits, and %w\nIf that device is in your hands, name the key whose words it shows:%s\nElse open the command page on the device that has the name now.", device, errWithdrawn, list.String())
}
