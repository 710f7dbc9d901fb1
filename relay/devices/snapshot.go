package devices

import (
	"crypto/sha256"
	"crypto/x509"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// A snapshot is all records, indexed. It never changes; an update makes a new
// one that shares the groups which stayed.
type snapshot struct {
	groups  map[string]*group // by name
	byID    map[string]*entry
	byCert  map[[sha256.Size]byte]*entry // by the hash of the whole certificate
	byToken map[string]*entry            // by the token's host
}

// A group is one document. An empty one remembers the revision at which its
// key was deleted, so that older news cannot bring it back.
type group struct {
	name     string
	revision uint64
	entries  []*entry // the oldest first; the last one has the name
}

// An entry is one device, ready for Check.
type entry struct {
	Device                    // without LastSeen
	cert    *x509.Certificate // nil: a token
	sum     [sha256.Size]byte // SHA-256 of the whole certificate, or of the token's secret
	chain   string            // the same for all generations of a device
	trusted bool              // the certificate is a device certificate of our CA, as recorded; or a token
	seen    *seen
}

// seen is shared by all snapshots.
type seen struct {
	last  atomic.Int64 // Unix seconds; 0: never
	saved atomic.Int64 // the last that is on disk
}

func (e *entry) device() Device {
	dev := e.Device
	if s := e.seen.last.Load(); s != 0 {
		dev.LastSeen = time.Unix(s, 0).UTC()
	}
	return dev
}

func newSnapshot() *snapshot {
	return &snapshot{groups: map[string]*group{}, byID: map[string]*entry{}, byCert: map[[sha256.Size]byte]*entry{}, byToken: map[string]*entry{}}
}

func (s *snapshot) clone() *snapshot {
	return &snapshot{groups: maps.Clone(s.groups), byID: maps.Clone(s.byID), byCert: maps.Clone(s.byCert), byToken: maps.Clone(s.byToken)}
}

// put replaces a group. Only for snapshots that nobody else sees yet.
func (s *snapshot) put(g *group) {
	if old := s.groups[g.name]; old != nil {
		for _, e := range old.entries {
			delete(s.byID, e.ID)
			if e.cert != nil {
				delete(s.byCert, e.sum)
			} else {
				delete(s.byToken, e.TokenHost)
			}
		}
	}
	s.groups[g.name] = g
	for _, e := range g.entries {
		s.byID[e.ID] = e
		if e.cert != nil {
			s.byCert[e.sum] = e
		} else {
			s.byToken[e.TokenHost] = e
		}
	}
}

// group makes the group of a document; nil stands for a deleted one. What old
// knows of the same devices is kept: when they came last, and that they were
// revoked, which nothing that arrives later takes back.
func (d *Devices) group(old *snapshot, name string, revision uint64, doc *document) *group {
	g := &group{name: name, revision: revision}
	if doc == nil {
		return g
	}
	for i := range doc.Devices {
		e := newEntry(name, &doc.Devices[i])
		d.learnRecorded(e.Created)
		d.learnRecorded(e.RevokedAt)
		if before := old.byID[e.ID]; before != nil {
			e.seen = before.seen
			if before.Revoked && !e.Revoked {
				e.Revoked, e.RevokedAt = true, before.RevokedAt
			}
			e.trusted = before.trusted && before.sum == e.sum
		}
		if !e.trusted {
			e.trusted = e.cert == nil || d.trusts(e.cert)
		}
		for _, older := range g.entries {
			older.Renewed = older.Renewed || older.chain == e.chain && !e.Revoked
		}
		g.entries = append(g.entries, e)
	}
	return g
}

func newEntry(name string, r *record) *entry {
	e := &entry{
		Device: Device{
			ID: r.id(), Name: name, Kind: r.Kind, Hosts: r.Hosts, Admin: r.Admin,
			Created: r.Created, Until: r.Until, RevokedAt: r.RevokedAt, Revoked: !r.live(),
			TokenHost: r.TokenHost, Path: r.Path,
		},
		cert: r.cert, chain: r.chain(), seen: &seen{},
	}
	if r.cert == nil {
		e.Target = r.Hosts[0]
		copy(e.sum[:], r.Secret)
		return e
	}
	e.Serial, e.NotAfter = r.cert.SerialNumber.Text(16), r.cert.NotAfter
	e.sum = sha256.Sum256(r.cert.Raw)
	return e
}

// trusts reports whether a certificate is a device certificate of our CA. The
// records are not simply believed: the CA may have been replaced since.
func (d *Devices) trusts(cert *x509.Certificate) bool {
	return !cert.IsCA && len(cert.ExtKeyUsage) == 1 && cert.ExtKeyUsage[0] == x509.ExtKeyUsageClientAuth &&
		len(cert.UnknownExtKeyUsage) == 0 && cert.CheckSignatureFrom(d.cfg.CA.Cert()) == nil
}

// apply brings a document (nil: deleted) into the snapshot, unless a newer one
// is there, and then tells OnRevoke who lost rights by it, and OnChange.
func (d *Devices) apply(name string, revision uint64, doc *document) {
	if lost, changed := d.replace(name, revision, doc); changed {
		d.tell(lost)
	}
}

// publish is apply for what was written here, and tells of the IDs in lost
// whatever the snapshot knew: the watch in Run may have been quicker with the
// news, and may still be in a callback. The caller wants to know that it is
// over, so: once more.
func (d *Devices) publish(name string, revision uint64, doc *document, lost []string) {
	more, _ := d.replace(name, revision, doc) // others may have written, too, since we heard last
	for _, id := range more {
		if !slices.Contains(lost, id) {
			lost = append(lost, id)
		}
	}
	d.tell(lost)
}

func (d *Devices) tell(lost []string) {
	for _, id := range lost {
		d.cfg.OnRevoke(id)
	}
	d.cfg.OnChange()
}

// replace returns the IDs of devices that were live and are gone, revoked, or
// have fewer rights now, and whether the document was news.
func (d *Devices) replace(name string, revision uint64, doc *document) (lost []string, changed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.current.Load()
	var before []*entry
	if g := old.groups[name]; g != nil {
		if revision <= g.revision {
			return nil, false
		}
		before = g.entries
	}
	snap := old.clone()
	snap.put(d.group(old, name, revision, doc))
	d.current.Store(snap)
	for _, was := range before {
		is := snap.byID[was.ID]
		if !was.Revoked && (is == nil || is.Revoked || is.sum != was.sum || shrunk(was.rights(), is.rights())) {
			lost = append(lost, was.ID)
		}
	}
	return lost, true
}
