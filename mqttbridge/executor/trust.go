package executor

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	maxTrusted       = 256
	maxPending       = 32
	maxDevicePending = 4
	keepPending      = 24 * time.Hour
)

// A Key is what a device signs its commands with.
type Key struct {
	ID      string    // mqttbridge.KeyID
	Device  string    // the name that the relay gives the device
	Trusted bool      // else it waits for Trust
	Words   string    // the device shows the same ones
	Since   time.Time // trusted, or first offered
	Seen    time.Time // its last command with a good signature; zero: none since the start
	SPKI    []byte    // DER SubjectPublicKeyInfo

	offered time.Time // its monotonic reading counts
}

// keyring is the devices' keys. One device has one trusted key, and a key
// belongs to one device: what a relay calls that device later does not count.
type keyring struct {
	dir  folder
	home []byte // the home's key, for the words
	now  func() time.Time

	mu      sync.Mutex     // guards what follows; held while writing the file, so that an older list never overtakes a newer one
	trusted map[string]Key // by id
	pending map[string]Key // by id; in memory alone: pages offer their key whenever they are opened
}

// trustJSON is the form of trust.json.
type trustJSON struct {
	Version int             `json:"version"` // 1
	Keys    []trustedKeyOne `json:"keys"`
}

type trustedKeyOne struct {
	Device string    `json:"device"`
	SPKI   []byte    `json:"spki"`
	Since  time.Time `json:"since"`
}

func openKeyring(dir folder, home []byte, now func() time.Time) (*keyring, error) {
	k := &keyring{dir: dir, home: home, now: now, trusted: make(map[string]Key), pending: make(map[string]Key)}
	var j trustJSON
	found, err := dir.loadJSON(trustFile, &j)
	if err == nil && found && j.Version != 1 {
		err = fmt.Errorf("%s has version %d, which this program does not know", dir.file(trustFile), j.Version)
	}
	for _, one := range j.Keys {
		if err != nil {
			break
		}
		var key Key
		if key, err = k.key(one.Device, one.SPKI); err != nil {
			err = fmt.Errorf("%s is damaged: %w", dir.file(trustFile), err)
		}
		if err == nil && (k.deviceKey(one.Device) != "" || k.trusted[key.ID].ID != "") {
			err = fmt.Errorf("%s names %q or its key twice", dir.file(trustFile), one.Device)
		}
		key.Trusted, key.Since = true, one.Since
		k.trusted[key.ID] = key
	}
	if err != nil {
		return nil, fmt.Errorf("%w\nRestore it from a backup, or remove it and trust the devices again with: sallyport agent trust NAME", err)
	}
	return k, nil
}

// key makes a Key of what somebody offers.
func (k *keyring) key(device string, spki []byte) (Key, error) {
	if !validDevice(device) {
		return Key{}, fmt.Errorf("%q is no name of a device", device)
	}
	id, err := mqttbridge.KeyID(spki)
	if err != nil {
		return Key{}, err
	}
	words, err := mqttbridge.TrustWords(k.home, spki)
	if err != nil {
		return Key{}, err
	}
	return Key{ID: id, Device: device, Words: words, SPKI: slices.Clone(spki), Since: k.now().UTC()}, nil
}

// deviceKey returns the id of a device's trusted key, or "".
func (k *keyring) deviceKey(device string) string {
	for id, key := range k.trusted {
		if key.Device == device {
			return id
		}
	}
	return ""
}

// find returns the trusted key with this id.
func (k *keyring) find(id string) (Key, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, ok := k.trusted[id]
	return key, ok
}

// used notes that a key signed a command.
func (k *keyring) used(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if key, ok := k.trusted[id]; ok {
		key.Seen = k.now().UTC()
		k.trusted[id] = key
	}
}

// offer takes a key that the relay passed on; added says that it is new.
func (k *keyring) offer(device string, spki []byte) (t mqttbridge.Trust, added bool, err error) {
	key, err := k.key(device, spki)
	if err != nil {
		return mqttbridge.TrustNo, false, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if have, ok := k.trusted[key.ID]; ok {
		if have.Device == device {
			return mqttbridge.TrustYes, false, nil
		}
		return mqttbridge.TrustNo, false, nil
	}
	if k.deviceKey(device) != "" {
		return mqttbridge.TrustNo, false, nil // a trusted name is not up for grabs
	}
	for id, p := range k.pending {
		if time.Since(p.offered) > keepPending {
			delete(k.pending, id)
		}
	}
	key.offered = time.Now()
	if have, ok := k.pending[key.ID]; ok {
		if have.Device == device {
			have.offered = key.offered
			k.pending[key.ID] = have
			return mqttbridge.TrustPending, false, nil
		}
		return mqttbridge.TrustNo, false, nil
	}
	same := 0
	for _, p := range k.pending {
		if p.Device == device {
			same++
		}
	}
	if same >= maxDevicePending || len(k.pending) >= maxPending {
		return mqttbridge.TrustNo, false, nil
	}
	k.pending[key.ID] = key
	return mqttbridge.TrustPending, true, nil
}

// trust moves a key that waits to the trusted ones. With id "" the device must
// have one alone.
func (k *keyring) trust(device, id string) (Key, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if have := k.deviceKey(device); have != "" {
		if id == "" || id == have {
			return k.trusted[have], nil
		}
		return Key{}, fmt.Errorf("%s has another key that is trusted\nIf the device lost that one, for example because its browser was cleared: sallyport agent untrust %s, then open the page there again", device, device)
	}
	var waiting []Key
	for _, key := range k.pending {
		if key.Device == device && (id == "" || key.ID == id) {
			waiting = append(waiting, key)
		}
	}
	switch {
	case len(waiting) == 0 && id == "":
		return Key{}, fmt.Errorf("no key of %q waits\nOpen the command page on that device first.", device)
	case len(waiting) == 0:
		return Key{}, fmt.Errorf("no key %s of %q waits\nOpen the command page on that device first.", clean(id, 64), device)
	case len(waiting) > 1:
		var list strings.Builder
		for _, key := range waiting {
			fmt.Fprintf(&list, "\n  %s  %s", key.ID, key.Words)
		}
		return Key{}, fmt.Errorf("%d keys wait under the name %s; somebody may want to pass for that device\nName the key whose words the device shows:%s", len(waiting), device, list.String())
	case len(k.trusted) >= maxTrusted:
		return Key{}, fmt.Errorf("%d keys are trusted already\nRemove one first: sallyport agent untrust NAME", maxTrusted)
	}
	key := waiting[0]
	key.Trusted, key.Since = true, k.now().UTC()
	if err := k.save(func(keys map[string]Key) { keys[key.ID] = key }); err != nil {
		return Key{}, err
	}
	for other, p := range k.pending {
		if p.Device == device {
			delete(k.pending, other)
		}
	}
	return key, nil
}

var errNoKey = errors.New("no key of it is trusted or waits")

// untrust forgets a device's keys, trusted and waiting.
func (k *keyring) untrust(device string) (was Key, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	found := false
	for id, p := range k.pending {
		if p.Device == device {
			delete(k.pending, id)
			found, was = true, p
		}
	}
	id := k.deviceKey(device)
	if id == "" {
		if !found {
			return was, fmt.Errorf("%q: %w", device, errNoKey)
		}
		return was, nil
	}
	was = k.trusted[id]
	if err := k.save(func(keys map[string]Key) { delete(keys, id) }); err != nil {
		delete(k.trusted, id) // the safe side
		return was, fmt.Errorf("the key of %s is removed now, but not from the disk, so it is trusted again after a restart: %w", device, err)
	}
	return was, nil
}

// save writes a changed list, and takes it when it is on disk.
func (k *keyring) save(change func(map[string]Key)) error {
	next := make(map[string]Key, len(k.trusted)+1)
	maps.Copy(next, k.trusted)
	change(next)
	j := trustJSON{Version: 1, Keys: []trustedKeyOne{}}
	for _, key := range sortedKeys(next) {
		j.Keys = append(j.Keys, trustedKeyOne{Device: key.Device, SPKI: key.SPKI, Since: key.Since})
	}
	if err := k.dir.saveJSON(trustFile, j); err != nil {
		return fmt.Errorf("%w\nFree some disk space, and try again.", err)
	}
	k.trusted = next
	return nil
}

// keys returns all of them, trusted ones first.
func (k *keyring) keys() []Key {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append(sortedKeys(k.trusted), sortedKeys(k.pending)...)
}

func sortedKeys(m map[string]Key) []Key {
	list := make([]Key, 0, len(m))
	for _, key := range m {
		key.SPKI = slices.Clone(key.SPKI)
		list = append(list, key)
	}
	slices.SortFunc(list, func(a, b Key) int {
		if c := strings.Compare(a.Device, b.Device); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}
