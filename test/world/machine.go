package world

import (
	"net"
	"net/netip"
)

// A Machine is a computer with one address. Its switches are what can happen
// between it and the rest of the world.
type Machine struct {
	w    *World
	Name string
	Addr netip.Addr

	// Guarded by World.mu.
	frozen  bool
	noUDP   bool
	stale   uint64 // flows and sockets up to this number pass nothing any more
	current *process
	dials   int
}

func (w *World) machine(name string) *Machine {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.machines++
	n := w.machines
	m := &Machine{w: w, Name: name, Addr: netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)})}
	m.current = &process{m: m}
	return m
}

func (m *Machine) change(f func()) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	f()
	m.w.bump()
}

// BlockUDP makes a firewall drop all UDP of this machine, in both directions,
// also of sessions that are open.
func (m *Machine) BlockUDP(on bool) { m.change(func() { m.noUDP = on }) }

// Freeze makes the way to this machine swallow everything, and nobody is told.
func (m *Machine) Freeze(on bool) { m.change(func() { m.frozen = on }) }

// Dials is how often the machine has tried to open a connection, by TCP or by
// a UDP socket of its own.
func (m *Machine) Dials() int {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.dials
}

// FreezeOpen freezes what is open now, for ever, as a router does that forgot
// its table. What is opened from now on works.
func (m *Machine) FreezeOpen() { m.change(func() { m.stale = m.w.seq }) }

// Cut resets all TCP connections of the machine.
func (m *Machine) Cut() {
	for _, f := range m.w.flowsOf(func(f *flow) bool { return f.client.m == m || f.server.m == m }) {
		f.reset()
	}
}

func (w *World) flowsOf(which func(*flow) bool) []*flow {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*flow
	for f := range w.flows {
		if which(f) {
			list = append(list, f)
		}
	}
	return list
}

// A process holds the sockets of one program on a machine.
type process struct {
	m    *Machine
	dead bool // guarded by World.mu
}

// start begins a new process; the one before must be dead or ended.
func (m *Machine) start() *process {
	p := &process{m: m}
	m.change(func() { m.current = p })
	return p
}

// kill ends the process as kill -9 does: the kernel resets its TCP
// connections, and its UDP falls silent. What the program still does in memory
// reaches nobody.
func (p *process) kill() {
	w := p.m.w
	w.mu.Lock()
	p.dead = true
	var closing []net.Listener
	for addr, l := range w.listeners {
		if l.process == p {
			delete(w.listeners, addr)
			closing = append(closing, l)
		}
	}
	for addr, s := range w.sockets {
		if s.process == p {
			delete(w.sockets, addr)
		}
	}
	w.bump()
	w.mu.Unlock()
	for _, l := range closing {
		l.Close()
	}
	for _, f := range w.flowsOf(func(f *flow) bool { return f.client == p || f.server == p }) {
		f.reset()
	}
}
