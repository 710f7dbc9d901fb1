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
	groups map[string]*group // by name
	byID   map[string]*entry
	byCert map[[sha256.Size]byte]*entry // by the hash of the whole certificate
}

// A group is one document. An empty one remembers the revision at which its
// key was deleted, so that older news cannot bring it back.
type group struct {
	name     string
	revision uint64
	entries  []*entry // the last one has the name
}

// An entry is one device, ready for Check.
type entry struct {
	Device    // without LastSeen
	notBefore time.Time
	sum       [sha256.Size]byte
	trusted   bool // the certificate is a device certificate of our CA, as recorded
	seen      *seen
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
	return &snapshot{groups: map[string]*group{}, byID: map[string]*entry{}, byCert: map[[sha256.Size]byte]*entry{}}
}

func (s *snapshot) clone() *snapshot {
	return &snapshot{groups: maps.Clone(s.groups), byID: maps.Clone(s.byID), byCert: maps.Clone(s.byCert)}
}

// put replaces a group. Only for snapshots that nobody else sees yet.
func (s *snapshot) put(g *group) {
	if old := s.groups[g.name]; old != nil {
		for _, e := range old.entries {
			delete(s.byID, e.ID)
			delete(s.byCert, e.sum)
		}
	}
	s.groups[g.name] = g
	for _, e := range g.entries {
		s.byID[e.ID] = e
		s.byCert[e.sum] = e
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
		r := &doc.Devices[i]
		e := &entry{
			Device: Device{
				ID:        deviceID(r.cert),
				Name:      name,
				Serial:    r.cert.SerialNumber.Text(16),
				Hosts:     r.Hosts,
				Created:   r.Created,
				NotAfter:  r.cert.NotAfter,
				RevokedAt: r.RevokedAt,
				Revoked:   !r.live(),
				Kind:      r.Kind,
			},
			notBefore: r.cert.NotBefore,
			sum:       sha256.Sum256(r.cert.Raw),
			seen:      &seen{},
		}
		if before := old.byID[e.ID]; before != nil {
			e.seen = before.seen
			if before.Revoked && !e.Revoked {
				e.Revoked, e.RevokedAt = true, before.RevokedAt
			}
			e.trusted = before.trusted && before.sum == e.sum
		}
		if !e.trusted {
			e.trusted = d.trusts(r.cert)
		}
		g.entries = append(g.entries, e)
	}
	return g
}

// trusts reports whether a certificate is a device certificate of our CA. The
// records are not simply believed: the CA may have been replaced since.
func (d *Devices) trusts(cert *x509.Certificate) bool {
	return !cert.IsCA && len(cert.ExtKeyUsage) == 1 && cert.ExtKeyUsage[0] == x509.ExtKeyUsageClientAuth &&
		len(cert.UnknownExtKeyUsage) == 0 && cert.CheckSignatureFrom(d.cfg.CA.Cert()) == nil
}

// apply brings a document (nil: deleted) into the snapshot, unless a newer one
// is there, and then tells OnRevoke who lost rights by it.
func (d *Devices) apply(name string, revision uint64, doc *document) {
	for _, id := range d.replace(name, revision, doc) {
		d.cfg.OnRevoke(id)
	}
}

// replace returns the IDs of devices that were live and are gone, revoked, or
// allowed on other hosts now.
func (d *Devices) replace(name string, revision uint64, doc *document) (lost []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.current.Load()
	var before []*entry
	if g := old.groups[name]; g != nil {
		if revision <= g.revision {
			return nil
		}
		before = g.entries
	}
	snap := old.clone()
	snap.put(d.group(old, name, revision, doc))
	d.current.Store(snap)
	for _, was := range before {
		is := snap.byID[was.ID]
		if !was.Revoked && (is == nil || is.Revoked || is.sum != was.sum || !slices.Equal(is.Hosts, was.Hosts)) {
			lost = append(lost, was.ID)
		}
	}
	return lost
}
