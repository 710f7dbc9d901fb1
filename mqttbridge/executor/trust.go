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
	// Withdrawn is when the key lost its trust, because the relay said that the
	// device was revoked; zero: it did not. Trust with its ID trusts it again.
	Withdrawn time.Time
	Seen      time.Time // its last command with a good signature; zero: none since the start
	SPKI      []byte    // DER SubjectPublicKeyInfo

	offered    time.Time // its monotonic reading counts
	revocation string    // the relay's name for what withdrew it last
}

// keyring is the devices' keys. One device has one trusted key, and a key
// belongs to one device: what a relay calls that device later does not count.
type keyring struct {
	dir  folder
	home []byte // the home's key, for the words
	now  func() time.Time

	mu sync.Mutex // guards what follows; held while writing the file, so that an older list never overtakes a newer one
	trustState
	unsaved bool           // less is trusted than the file says
	pending map[string]Key // by id; in memory alone: pages offer their key whenever they are opened
}

// trustState is what is on disk, by id. A key is in one of the two at most.
type trustState struct {
	trusted   map[string]Key
	withdrawn map[string]Key // by the relay's word
}

// trustJSON is the form of trust.json.
type trustJSON struct {
	Version   int             `json:"version"` // 1, or 2 with something that version 1 does not know
	Keys      []trustedKeyOne `json:"keys"`
	Withdrawn []trustedKeyOne `json:"withdrawn,omitempty"` // from version 2
}

type trustedKeyOne struct {
	Device     string    `json:"device"`
	SPKI       []byte    `json:"spki"`
	Since      time.Time `json:"since"`
	Withdrawn  time.Time `json:"withdrawn,omitzero"`   // from version 2
	Revocation string    `json:"revocation,omitempty"` // from version 2
}

func openKeyring(dir folder, home []byte, now func() time.Time) (*keyring, error) {
	k := &keyring{
		dir: dir, home: home, now: now, pending: make(map[string]Key),
		trustState: trustState{trusted: make(map[string]Key), withdrawn: make(map[string]Key)},
	}
	var j trustJSON
	found, err := dir.loadJSON(trustFile, &j)
	if err == nil && found && j.Version != 1 && j.Version != 2 {
		err = fmt.Errorf("%s has version %d, which this program does not know", dir.file(trustFile), j.Version)
	}
	if err == nil {
		err = k.load(j)
	}
	if err != nil {
		return nil, fmt.Errorf("%w\nRestore it from a backup, or remove it and trust the devices again with: sallyport agent trust NAME", err)
	}
	return k, nil
}

func (k *keyring) load(j trustJSON) error {
	for i, one := range slices.Concat(j.Keys, j.Withdrawn) {
		key, err := k.key(one.Device, one.SPKI)
		if err != nil {
			return fmt.Errorf("%s is damaged: %w", k.dir.file(trustFile), err)
		}
		trusted := i < len(j.Keys)
		if k.trusted[key.ID].ID != "" || k.withdrawn[key.ID].ID != "" || trusted && k.deviceKey(one.Device) != "" {
			return fmt.Errorf("%s names %q or its key twice", k.dir.file(trustFile), one.Device)
		}
		key.Trusted, key.Since, key.Withdrawn, key.revocation = trusted, one.Since, one.Withdrawn, one.Revocation
		if trusted {
			k.trusted[key.ID] = key
		} else {
			k.withdrawn[key.ID] = key
		}
	}
	return nil
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
	if have, ok := k.withdrawn[key.ID]; ok && have.Device == device {
		return mqttbridge.TrustPending, false, nil // it is listed already
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

// trust moves a key that waits, or was withdrawn, to the trusted ones. With id ""
// one must wait alone; a withdrawn one has to be named.
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
	lost := k.withdrawnOf(device)
	if again, ok := k.withdrawn[id]; len(waiting) == 0 && ok && again.Device == device {
		waiting = append(waiting, again)
	}
	switch {
	case len(waiting) == 0 && id == "" && len(lost) > 0:
		return Key{}, askForID(device, lost)
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
	key.Trusted, key.Since, key.Withdrawn = true, k.now().UTC(), time.Time{}
	key.revocation = k.withdrawn[key.ID].revocation // told once more, it does not count again
	err := k.save(func(s *trustState) {
		s.trusted[key.ID] = key
		delete(s.withdrawn, key.ID)
	}, false)
	if err != nil {
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

// untrust forgets a device's keys: trusted, waiting and withdrawn ones.
func (k *keyring) untrust(device string) (was Key, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, p := range k.pending {
		if p.Device == device {
			delete(k.pending, id)
			was = p
		}
	}
	lost, id := k.withdrawnOf(device), k.deviceKey(device)
	if len(lost) > 0 {
		was = lost[0]
	}
	if id != "" {
		was = k.trusted[id]
	}
	switch {
	case was.ID == "":
		return was, fmt.Errorf("%q: %w", device, errNoKey)
	case id == "" && len(lost) == 0:
		return was, nil
	}
	err = k.save(func(s *trustState) {
		delete(s.trusted, id)
		for _, key := range lost {
			delete(s.withdrawn, key.ID)
		}
	}, true)
	if err != nil && id != "" {
		return was, fmt.Errorf("the key of %s is removed now, but not from the disk, so it is trusted again after a restart: %w", device, err)
	}
	return was, err
}

// save writes a changed state, and takes it when it is on disk; with must also
// when it is not: the safe side, when less is trusted. The caller holds k.mu.
func (k *keyring) save(change func(*trustState), must bool) error {
	next := trustState{trusted: maps.Clone(k.trusted), withdrawn: maps.Clone(k.withdrawn)}
	change(&next)
	j := trustJSON{Version: 1, Keys: trustList(next.trusted), Withdrawn: trustList(next.withdrawn)}
	if len(j.Withdrawn) > 0 || slices.ContainsFunc(j.Keys, func(one trustedKeyOne) bool { return one.Revocation != "" }) {
		j.Version = 2 // an older program refuses it, in clear words
	}
	err := k.dir.saveJSON(trustFile, j)
	if err == nil || must {
		k.trustState, k.unsaved = next, err != nil
	}
	if err != nil {
		return fmt.Errorf("%w\nFree some disk space, and try again.", err)
	}
	return nil
}

func trustList(m map[string]Key) []trustedKeyOne {
	list := []trustedKeyOne{}
	for _, key := range sortedKeys(m) {
		list = append(list, trustedKeyOne{Device: key.Device, SPKI: key.SPKI, Since: key.Since, Withdrawn: key.Withdrawn, Revocation: key.revocation})
	}
	return list
}

// keys returns all of them: trusted, waiting, withdrawn.
func (k *keyring) keys() []Key {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Concat(sortedKeys(k.trusted), sortedKeys(k.pending), sortedKeys(k.withdrawn))
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
