package dispatch

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	revokedPrefix = "revoked/"
	// tellAgain is when a home that could not write it down is told once more.
	tellAgain = time.Minute
	// tellingMax bounds what one stream was told and did not answer: commands
	// need room in its queue, and an older agent never answers.
	tellingMax = 16
)

// A revocation is the news that a device was revoked, kept until every home
// that was known at that moment has it. Dispatcher.mu guards it.
type revocation struct {
	id    string // tells it from an earlier one of the same device
	at    time.Time
	homes map[string]telling // by agent's ID: those that do not have it yet
}

// A telling is how far one home is with a revocation.
type telling struct {
	stream *stream   // that it was sent on last; nil: none yet
	again  time.Time // when to send it there once more; zero: never
}

// revocationRecord is a revocation in the ledger, at "revoked/DEVICE".
type revocationRecord struct {
	Device string    `json:"device"`
	ID     string    `json:"id"`
	At     time.Time `json:"at"`
	Agents []string  `json:"agents"` // IDs
}

func revokedKey(device string) string { return revokedPrefix + url.PathEscape(device) }

// spread tells all homes that a device was revoked: at once where there is a
// stream, else when they come. It wants d.mu.
func (d *Dispatcher) spread(device string) {
	r := &revocation{id: mqttbridge.NewID(), at: d.now(), homes: map[string]telling{}}
	for _, h := range d.homes {
		r.homes[h.agent.ID] = telling{}
	}
	for st := range d.live { // also those that did not say yet what they offer
		r.homes[st.agent.ID] = telling{}
	}
	if len(r.homes) == 0 {
		return
	}
	d.revoked[device] = r
	d.writer.revocation(device)
	for _, h := range d.homes {
		d.tellRevoked(h)
	}
}

// tellRevoked sends a home what it does not have yet. It wants d.mu.
func (d *Dispatcher) tellRevoked(h *home) {
	h.untold = false
	st := h.current()
	if st == nil {
		return
	}
	waiting, now := 0, d.now()
	for _, r := range d.revoked {
		if t, ok := r.homes[h.agent.ID]; ok && t.stream == st {
			waiting++
		}
	}
	for _, device := range slices.Sorted(maps.Keys(d.revoked)) {
		r := d.revoked[device]
		t, ok := r.homes[h.agent.ID]
		switch {
		case !ok || t.stream == st && t.again.IsZero():
			continue
		case t.stream == st && now.Before(t.again), t.stream != st && waiting >= tellingMax,
			!st.queue(outgoing{frame: mqttbridge.Frame{Type: mqttbridge.FrameRevoked, Device: device, IDs: []string{r.id}}}):
			h.untold = true // the next sweep tries again
			continue
		}
		if t.stream != st {
			waiting++
		}
		r.homes[h.agent.ID] = telling{stream: st}
	}
}

// acknowledged notes that a home has, or could not keep, what it was told. It
// speaks for itself alone.
func (d *Dispatcher) acknowledged(st *stream, f mqttbridge.Frame) {
	d.mu.Lock()
	defer d.unlock()
	r := d.revoked[f.Device]
	if r == nil || len(f.IDs) != 1 || f.IDs[0] != r.id {
		return
	}
	t, ok := r.homes[st.agent.ID]
	if !ok || t.stream == nil {
		return
	}
	h := d.homes[st.agent.Name]
	if s := f.Status; s != nil {
		t.again = d.now().Add(tellAgain)
		r.homes[st.agent.ID] = t
		if h != nil {
			h.untold = true
		}
		reason := clip(cleanText(s.Reason), maxReason)
		d.said = append(d.said, func() {
			d.cfg.Logger.Warn("a home cannot write down that a device was revoked; it is told again", "agent", st.agent.Name, "device", f.Device, "reason", reason)
		})
		return
	}
	d.note("home.device-revoked", slog.String("agent", st.agent.Name), slog.String("device", f.Device))
	d.drop(f.Device, st.agent.ID)
	if h != nil {
		d.tellRevoked(h) // there is room for the next one
	}
}

// drop takes a home off the list of those that must hear of a revocation. It
// wants d.mu.
func (d *Dispatcher) drop(device, agent string) {
	r := d.revoked[device]
	if _, ok := r.homes[agent]; !ok {
		return
	}
	delete(r.homes, agent)
	if len(r.homes) == 0 {
		delete(d.revoked, device)
	}
	d.writer.revocation(device)
}

// revocationValue is what the ledger shall hold of a revocation.
func (d *Dispatcher) revocationValue(device string) (deed, []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.revoked[device]
	if r == nil {
		return remove, nil
	}
	return put, encode(revocationRecord{Device: device, ID: r.id, At: r.at, Agents: slices.Sorted(maps.Keys(r.homes))})
}

func decodeRevocation(key string, value []byte) (device string, r *revocation, err error) {
	var record revocationRecord
	if err := json.Unmarshal(value, &record); err != nil {
		return "", nil, fmt.Errorf("decode revocation: %w", err)
	}
	if record.Device == "" || revokedKey(record.Device) != key || mqttbridge.CheckID(record.ID) != nil || len(record.Agents) == 0 {
		return "", nil, errors.New("decode revocation: it is not what was written")
	}
	r = &revocation{id: record.ID, at: cleanTime(record.At), homes: map[string]telling{}}
	for _, id := range record.Agents {
		r.homes[id] = telling{}
	}
	return record.Device, r, nil
}
