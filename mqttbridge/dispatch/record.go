package dispatch

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	commandPrefix = "commands/"
	homePrefix    = "homes/"
)

// commandRecord is a command in the ledger.
type commandRecord struct {
	Agent  string            `json:"agent"`
	Digest string            `json:"digest"` // SHA-256, hex
	Life   int64             `json:"life_ms"`
	Status mqttbridge.Status `json:"status"`
}

// homeRecord is a home in the ledger.
type homeRecord struct {
	Agent string          `json:"agent"` // its ID
	Home  mqttbridge.Home `json:"home"`
}

// homeKey makes a key of any name that an agent may have.
func homeKey(name string) string { return homePrefix + url.PathEscape(name) }

func encodeCommand(c *command) []byte {
	return encode(commandRecord{Agent: c.agent, Digest: hex.EncodeToString(c.digest[:]), Life: c.life.Milliseconds(), Status: c.status})
}

// encodeHome leaves out what changes from moment to moment: it is not written at
// each change, and an old "open" or "no PIN is set" read back after a kill would
// be shown as if it were so.
func encodeHome(h *home) []byte {
	kept := lasting(h.shot.home)
	kept.Online, kept.Since = h.shot.home.Online, h.shot.home.Since
	return encode(homeRecord{h.agent.ID, kept})
}

func encode(record any) []byte {
	value, err := json.Marshal(record)
	if err != nil {
		panic(err) // a record holds nothing that JSON cannot say: times were checked
	}
	return value
}

func decodeCommand(id string, value []byte) (*command, error) {
	var r commandRecord
	if err := json.Unmarshal(value, &r); err != nil {
		return nil, fmt.Errorf("decode command: %w", err)
	}
	c := &command{agent: r.Agent, life: time.Duration(r.Life) * time.Millisecond, status: r.Status}
	n, err := hex.Decode(c.digest[:], []byte(r.Digest[:min(len(r.Digest), 2*len(c.digest))]))
	if err != nil || n != len(c.digest) || r.Status.ID != id || mqttbridge.CheckID(id) != nil || !knownState(r.Status.State) {
		return nil, errors.New("decode command: it is not what was written")
	}
	return c, nil
}

// decodeHome reads a home, which is away now.
func decodeHome(value []byte, now time.Time) (*home, error) {
	var r homeRecord
	if err := json.Unmarshal(value, &r); err != nil {
		return nil, fmt.Errorf("decode home: %w", err)
	}
	clean, err := cleanHome(r.Home)
	if err != nil {
		return nil, fmt.Errorf("decode home: %w", err)
	}
	if clean.Name, clean.Broker, clean.Since = r.Home.Name, false, cleanTime(r.Home.Since); r.Home.Online {
		clean.Since = now // it went when the relay did
	}
	return &home{agent: Agent{ID: r.Agent, Name: r.Home.Name}, shot: newSnapshot(clean, nil)}, nil
}

// load reads the ledger. What cannot be read is left alone and said.
func (d *Dispatcher) load(ctx context.Context) error {
	homes, err := d.cfg.Ledger.List(ctx, homePrefix)
	if err != nil {
		return fmt.Errorf("read the homes: %w", err)
	}
	for key, value := range homes {
		h, err := decodeHome(value, d.now())
		if err != nil || homeKey(h.agent.Name) != key {
			d.cfg.Logger.Warn("a home is not shown until its agent comes: its record cannot be read", "key", key, "err", err)
			continue
		}
		d.homes[h.agent.Name] = h
	}
	revoked, err := d.cfg.Ledger.List(ctx, revokedPrefix)
	if err != nil {
		return fmt.Errorf("read the revocations: %w", err)
	}
	for key, value := range revoked {
		device, r, err := decodeRevocation(key, value)
		if err != nil {
			d.cfg.Logger.Error("homes may not hear that a device was revoked: the record cannot be read\nType at each home: sallyport agent untrust NAME", "key", key, "err", err)
			continue
		}
		d.revoked[device] = r
	}
	commands, err := d.cfg.Ledger.List(ctx, commandPrefix)
	if err != nil {
		return fmt.Errorf("read the commands: %w", err)
	}
	for key, value := range commands {
		id := strings.TrimPrefix(key, commandPrefix)
		c, err := decodeCommand(id, value)
		if err != nil {
			d.cfg.Logger.Warn("a command is forgotten: its record cannot be read", "command", id, "err", err)
			continue
		}
		d.recover(c)
		d.commands.put(c)
	}
	return nil
}

// recover makes a command of the ledger one in memory. One without an end may
// have been sent just before the relay ended, so it counts as sent: it is not
// sent again, and its home is believed.
func (d *Dispatcher) recover(c *command) {
	if !c.status.Final {
		c.status.State = mqttbridge.Sent
		c.until = d.now().Add(c.life + d.cfg.Limits.Silence)
	}
}
