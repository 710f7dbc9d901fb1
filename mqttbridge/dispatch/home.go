package dispatch

import (
	"maps"
	"path"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A home is one agent with what it offers. Its fields are guarded by
// Dispatcher.mu.
type home struct {
	agent   Agent
	streams []*stream // ready ones, oldest first: commands go to the last
	shot    *snapshot
	unasked bool      // there was no room to ask what became of commands
	untold  bool      // nor to tell which devices were revoked
	saved   time.Time // when it was last written to the ledger
}

// current returns the stream that commands go to; nil: the home is away.
func (h *home) current() *stream {
	if len(h.streams) == 0 {
		return nil
	}
	return h.streams[len(h.streams)-1]
}

// A snapshot is what a home looked like at one moment; it is never changed. It
// holds the views of the devices: those that may use the same actions share
// one, so that a thousand watchers of one home cost little.
type snapshot struct {
	home    mqttbridge.Home
	limited bool // some action is not for everybody

	mu    sync.Mutex                  // guards views
	views map[uint64]*mqttbridge.Home // by the set of actions, a bit each
	old   map[uint64]*mqttbridge.Home // of the snapshot before
}

func newSnapshot(h mqttbridge.Home, before *snapshot) *snapshot {
	s := &snapshot{home: h, views: map[uint64]*mqttbridge.Home{}}
	for _, a := range h.Actions {
		s.limited = s.limited || len(a.Who) > 0
	}
	if before != nil {
		before.mu.Lock()
		s.old = maps.Clone(before.views)
		before.mu.Unlock()
	}
	return s
}

// view returns the home as a device may see it; nil: it offers it nothing. A
// view that does not differ from the one before is the same pointer.
func (s *snapshot) view(device string) *mqttbridge.Home {
	mask := s.mask(device)
	if mask == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.views[mask]; v != nil {
		return v
	}
	v := s.home
	v.Actions = make([]mqttbridge.Action, 0, len(s.home.Actions))
	for i, a := range s.home.Actions {
		if mask&(1<<i) != 0 {
			a.Who = nil // names of other devices are nobody's business
			v.Actions = append(v.Actions, a)
		}
	}
	p := &v
	if old := s.old[mask]; old != nil && reflect.DeepEqual(old, p) {
		p = old
	}
	s.views[mask] = p
	return p
}

// mask returns the actions that a device may use, a bit each.
func (s *snapshot) mask(device string) (mask uint64) {
	if !s.limited {
		return 1<<len(s.home.Actions) - 1
	}
	for i, a := range s.home.Actions {
		if mayUse(a, device) {
			mask |= 1 << i
		}
	}
	return mask
}

// action returns an action that a device may use.
func (s *snapshot) action(device, name string) (mqttbridge.Action, bool) {
	i := slices.IndexFunc(s.home.Actions, func(a mqttbridge.Action) bool { return a.Name == name })
	if i < 0 || !mayUse(s.home.Actions[i], device) {
		return mqttbridge.Action{}, false
	}
	return s.home.Actions[i], true
}

// mayUse decides whom an action is shown to. The agent decides again, so that
// a relay that lies wins nothing.
func mayUse(a mqttbridge.Action, device string) bool {
	return len(a.Who) == 0 || slices.ContainsFunc(a.Who, func(pattern string) bool {
		ok, err := path.Match(pattern, device)
		return ok && err == nil
	})
}

// lasting returns the part of a home that is worth writing down when it
// changes: not what its lamps show now.
func lasting(h mqttbridge.Home) mqttbridge.Home {
	h.Online, h.Broker, h.Since, h.Alert = false, false, time.Time{}, ""
	h.Actions = slices.Clone(h.Actions)
	for i := range h.Actions {
		h.Actions[i].State, h.Actions[i].Last, h.Actions[i].Problem = nil, nil, ""
	}
	return h
}

// show replaces what a home looks like and tells the watchers. It wants d.mu.
func (d *Dispatcher) show(h *home, now mqttbridge.Home) {
	if h.shot != nil && reflect.DeepEqual(h.shot.home, now) {
		return
	}
	if h.shot == nil || !now.Online || !reflect.DeepEqual(lasting(h.shot.home), lasting(now)) {
		d.writer.home(h.agent.Name)
	}
	h.shot = newSnapshot(now, h.shot)
	d.tellHome(h.agent.Name)
}

// away marks a home as not connected. It wants d.mu.
func (d *Dispatcher) away(h *home) {
	now := h.shot.home
	now.Online, now.Broker, now.Since = false, false, d.now()
	d.show(h, now)
}

// Homes returns the homes that offer something to a device, in order of name,
// also those that are away. Their slices are shared: do not change them.
func (d *Dispatcher) Homes(device string) []mqttbridge.Home {
	if !d.cfg.Allowed(device) {
		return nil
	}
	d.mu.Lock()
	var shots []*snapshot
	for _, name := range slices.Sorted(maps.Keys(d.homes)) {
		if h := d.homes[name]; h.shot != nil {
			shots = append(shots, h.shot)
		}
	}
	d.unlock()
	var list []mqttbridge.Home
	for _, s := range shots {
		if v := s.view(device); v != nil {
			list = append(list, *v)
		}
	}
	return list
}

// shotOf returns what a home looks like; nil: there is none of that name.
func (d *Dispatcher) shotOf(name string) *snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h := d.homes[name]; h != nil {
		return h.shot
	}
	return nil
}

// ForgetAgent removes the homes of an agent that is no longer known. Its
// streams end; commands that were on their way to it end as unknown.
func (d *Dispatcher) ForgetAgent(id string) {
	var ended []*stream
	d.mu.Lock()
	for st := range d.live {
		if st.agent.ID == id {
			ended = append(ended, st)
		}
	}
	for name, h := range d.homes {
		if h.agent.ID == id {
			d.dropHome(name, h)
		}
	}
	for _, device := range slices.Collect(maps.Keys(d.revoked)) {
		d.drop(device, id)
	}
	for _, c := range d.commands.open {
		switch {
		case c.agent != id || c.recorded != nil: // what is not recorded yet will find no home
		case c.signed != nil:
			d.turnDown(c, refusalOffline(c.status.Home))
		default:
			d.giveUp(c, "the home was removed from the relay while the command was on its way; look whether it happened")
		}
	}
	d.unlock()
	for _, st := range ended {
		st.end(errRemoved)
	}
}

// dropHome forgets one home. It wants d.mu.
func (d *Dispatcher) dropHome(name string, h *home) {
	h.streams = nil
	delete(d.homes, name)
	d.writer.home(name)
	d.tellHome(name)
}
