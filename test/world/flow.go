package world

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// A flow is the way of one TCP connection. It takes bytes, ends and resets from
// one side to the other, Latency later, while the network lets it.
type flow struct {
	w              *World
	client, server *process
	near, far      *tunneltest.Conn // what the way holds of both sides
	seq            uint64
	done           chan struct{} // closed by reset
	once           sync.Once
}

func (f *flow) run() {
	there, back := make(chan struct{}), make(chan struct{})
	f.w.wg.Go(func() { f.carry(f.near, f.far, there, back) })
	f.w.wg.Go(func() { f.carry(f.far, f.near, back, there) })
	f.w.wg.Go(func() {
		<-there
		<-back
		f.w.mu.Lock()
		delete(f.w.flows, f)
		f.w.mu.Unlock()
	})
}

// reset ends both sides at once.
func (f *flow) reset() {
	f.once.Do(func() { close(f.done) })
	f.near.Abort()
	f.far.Abort()
}

// A parcel is on its way.
type parcel struct {
	data []byte
	err  error // the side that sent it ended: io.EOF, or a reset
	due  time.Time
}

// carry moves one direction; done tells that nothing more will arrive.
func (f *flow) carry(src, dst *tunneltest.Conn, done chan<- struct{}, other <-chan struct{}) {
	arrived := sync.OnceFunc(func() { close(done) })
	defer arrived()
	parcels := make(chan parcel, 64)
	f.w.wg.Go(func() { f.collect(src, parcels) })
	for p := range parcels {
		time.Sleep(time.Until(p.due))
		f.pass()
		if p.err == io.EOF {
			dst.CloseWrite()
			return // the last one
		}
		if p.err != nil {
			dst.Abort()
			return
		}
		if _, err := dst.Write(p.data); err != nil {
			arrived()
			f.refuse(src, err, other)
			for range parcels { // until collect has seen it
			}
			return
		}
	}
}

func (f *flow) collect(src *tunneltest.Conn, parcels chan<- parcel) {
	defer close(parcels)
	for {
		buf := make([]byte, 32<<10)
		n, err := src.Read(buf)
		due := time.Now().Add(Latency)
		if n > 0 {
			parcels <- parcel{data: buf[:n], due: due}
		}
		if err != nil {
			parcels <- parcel{err: err, due: due}
			return
		}
	}
}

// refuse tells the sender that the receiver is gone: TCP's answer to data for
// a closed socket. What the receiver had sent before still arrives.
func (f *flow) refuse(src *tunneltest.Conn, err error, other <-chan struct{}) {
	if errors.Is(err, syscall.EPIPE) {
		<-other
		src.Close()
		return
	}
	src.Abort()
}

// pass waits until the network lets the flow through, or its end.
func (f *flow) pass() {
	for {
		f.w.mu.Lock()
		open := f.open()
		changed := f.w.changed
		f.w.mu.Unlock()
		if open {
			return
		}
		select {
		case <-changed:
		case <-f.done:
			return
		}
	}
}

// open reports whether bytes pass. World.mu is held.
func (f *flow) open() bool {
	a, b := f.client.m, f.server.m
	return f.w.closed || !a.frozen && !b.frozen && f.seq > a.stale && f.seq > b.stale
}
