package hub

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// A subscription is one filter of one reader.
type subscription struct {
	Filter            string `json:"filter"` // as asked for, with $share/GROUP/
	QoS               byte   `json:"qos,omitempty"`
	NoLocal           bool   `json:"no_local,omitempty"`
	RetainAsPublished bool   `json:"retain_as_published,omitempty"`
	RetainHandling    byte   `json:"retain_handling,omitempty"`
	ID                uint32 `json:"id,omitempty"` // MQTT 5 subscription identifier, 0: none

	// Of a home's rules.
	DropOldest bool          `json:"drop_oldest,omitempty"`
	MaxAge     time.Duration `json:"max_age,omitempty"`
}

// split returns the filter proper and, of a shared subscription, its group.
func (s subscription) split() (filter, group string) { return splitShared(s.Filter) }

// splitShared cuts "$share/GROUP/" off.
func splitShared(filter string) (inner, group string) {
	rest, ok := strings.CutPrefix(filter, "$share/")
	if !ok {
		return filter, ""
	}
	group, inner, _ = strings.Cut(rest, "/")
	return inner, group
}

// A reader is who gets messages: a *session or a *home.
type reader interface {
	// awake says whether a message that is kept nowhere would arrive.
	awake() bool
	// owner is whose it is: a shared subscription is shared among the clients
	// of one device, or any device could take messages out of another's group.
	owner() string
}

// A hit is a reader whose filters match a topic, with what those have in
// common: MQTT lets a server send one message for all of them.
type hit struct {
	reader     reader
	shared     bool
	qos        byte
	asRetained bool // Retain As Published
	localOnly  bool // every filter that matched says No Local
	ids        []uint32
	dropOldest bool
	maxAge     time.Duration
}

// An index finds the readers of a topic. It is not the engine's own, which
// does not match "+/#" with "a" and keeps what nobody may subscribe to.
type index struct {
	mu   sync.RWMutex // guards root and everything below
	root node
	size int
}

type node struct {
	children map[string]*node
	subs     map[reader]subscription
	groups   map[string]*shareGroup
}

// A shareGroup gives each message to one of its members in turn.
type shareGroup struct {
	members []shareMember
	next    int
}

type shareMember struct {
	reader reader
	sub    subscription
}

// add puts a subscription in, or replaces the reader's own with that filter.
func (x *index) add(r reader, s subscription) {
	filter, group := s.split()
	group = groupOf(r, group)
	x.mu.Lock()
	defer x.mu.Unlock()
	n := &x.root
	for level := range strings.SplitSeq(filter, "/") {
		child := n.children[level]
		if child == nil {
			if n.children == nil {
				n.children = make(map[string]*node, 1)
			}
			child = new(node)
			n.children[strings.Clone(level)] = child
		}
		n = child
	}
	if group == "" {
		if n.subs == nil {
			n.subs = make(map[reader]subscription, 1)
		}
		if _, ok := n.subs[r]; !ok {
			x.size++
		}
		n.subs[r] = s
		return
	}
	if n.groups == nil {
		n.groups = make(map[string]*shareGroup, 1)
	}
	g := n.groups[group]
	if g == nil {
		g = new(shareGroup)
		n.groups[group] = g
	}
	if i := g.find(r); i >= 0 {
		g.members[i].sub = s
		return
	}
	x.size++
	g.members = append(g.members, shareMember{r, s})
}

func groupOf(r reader, group string) string {
	if group == "" {
		return ""
	}
	return r.owner() + "\x00" + group
}

func (g *shareGroup) find(r reader) int {
	return slices.IndexFunc(g.members, func(m shareMember) bool { return m.reader == r })
}

// remove takes a subscription out and the branches that nobody needs any more.
func (x *index) remove(r reader, filter string) {
	inner, group := splitShared(filter)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.cut(&x.root, r, strings.Split(inner, "/"), groupOf(r, group))
}

func (x *index) cut(n *node, r reader, levels []string, group string) (empty bool) {
	if len(levels) > 0 {
		child := n.children[levels[0]]
		if child == nil {
			return false
		}
		if x.cut(child, r, levels[1:], group) {
			delete(n.children, levels[0])
		}
	} else if group == "" {
		if _, ok := n.subs[r]; ok {
			delete(n.subs, r)
			x.size--
		}
	} else if g := n.groups[group]; g != nil {
		if i := g.find(r); i >= 0 {
			g.members = slices.Delete(g.members, i, i+1)
			x.size--
		}
		if len(g.members) == 0 {
			delete(n.groups, group)
		}
	}
	return len(n.children)+len(n.subs)+len(n.groups) == 0
}

// match returns the readers of a topic, each once for its own subscriptions
// and once for those that it shares.
func (x *index) match(topic string) []hit {
	var f finding
	x.mu.RLock()
	x.walk(&f, &x.root, topic, true, true)
	for i := range f.groups {
		f.groups[i].turn = f.groups[i].g.next
	}
	x.mu.RUnlock()
	if len(f.groups) > 0 {
		x.share(&f)
	}
	return f.hits
}

// finding is what match has found so far.
type finding struct {
	hits   []hit
	at     map[reader]int // in hits; only when there are many
	groups []foundGroup
}

type foundGroup struct {
	g       *shareGroup
	turn    int
	members []shareMember
}

func (x *index) walk(f *finding, n *node, rest string, more, first bool) {
	if !more {
		f.take(n)
		if wild := n.children["#"]; wild != nil { // "a/#" matches "a"
			f.take(wild)
		}
		return
	}
	level, rest, more := strings.Cut(rest, "/")
	if child := n.children[level]; child != nil {
		x.walk(f, child, rest, more, false)
	}
	if first && strings.HasPrefix(level, "$") {
		return
	}
	if child := n.children["+"]; child != nil {
		x.walk(f, child, rest, more, false)
	}
	if wild := n.children["#"]; wild != nil {
		f.take(wild)
	}
}

func (f *finding) take(n *node) {
	for r, s := range n.subs {
		f.add(r, s, false)
	}
	for _, g := range n.groups {
		f.groups = append(f.groups, foundGroup{g: g, members: slices.Clone(g.members)})
	}
}

// share gives the message to one member of each group, in turn, to one that is
// there if any is.
func (x *index) share(f *finding) {
	for _, fg := range f.groups {
		n := len(fg.members)
		for i := range n {
			k := (fg.turn + i) % n
			if m := fg.members[k]; m.reader.awake() {
				f.add(m.reader, m.sub, true)
				x.mu.Lock()
				fg.g.next = k + 1
				x.mu.Unlock()
				break
			}
		}
	}
}

const manyHits = 16

func (f *finding) add(r reader, s subscription, shared bool) {
	i := -1
	if f.at != nil {
		if k, ok := f.at[r]; ok {
			i = k
		}
	} else {
		i = slices.IndexFunc(f.hits, func(h hit) bool { return h.reader == r && !h.shared })
	}
	if shared || i < 0 {
		h := hit{reader: r, shared: shared, qos: s.QoS, asRetained: s.RetainAsPublished, localOnly: s.NoLocal, dropOldest: s.DropOldest, maxAge: s.MaxAge}
		if s.ID != 0 {
			h.ids = []uint32{s.ID}
		}
		f.hits = append(f.hits, h)
		if shared {
			return
		}
		if f.at == nil && len(f.hits) > manyHits {
			f.at = make(map[reader]int, 4*manyHits)
			for k, h := range f.hits {
				f.at[h.reader] = k
			}
		} else if f.at != nil {
			f.at[r] = len(f.hits) - 1
		}
		return
	}
	h := &f.hits[i]
	h.qos = max(h.qos, s.QoS)
	h.asRetained = h.asRetained || s.RetainAsPublished
	h.localOnly = h.localOnly && s.NoLocal
	h.dropOldest = h.dropOldest && s.DropOldest
	if h.maxAge != 0 {
		if s.MaxAge == 0 {
			h.maxAge = 0
		}
		h.maxAge = max(h.maxAge, s.MaxAge)
	}
	if s.ID != 0 && !slices.Contains(h.ids, s.ID) {
		h.ids = append(h.ids, s.ID)
	}
}

// count returns how many subscriptions there are.
func (x *index) count() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.size
}
