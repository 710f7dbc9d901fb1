package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/mqttbridge/bridge"
	"github.com/sallyport/sallyport/protocol"
)

// features are what this agent has beside services.
var features = []string{
	protocol.FeatureMQTT, protocol.FeatureCommands, protocol.FeatureDevices,
	protocol.FeatureDNS, protocol.FeatureTLSAgent, protocol.FeaturePorts,
}

// roads tell who waits for a session that one has come or gone.
type roads struct {
	mu   sync.Mutex // guards news
	news chan struct{}
}

func (r *roads) init() { r.news = make(chan struct{}) }

// next returns a channel that is closed by the next change.
func (r *roads) next() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.news
}

func (r *roads) changed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.news)
	r.news = make(chan struct{})
}

// errNoFeature is the end of a road that the relay does not have.
var errNoFeature = errors.New("the relay is older and cannot do this; upgrade it")

// openRoad opens a stream to the relay's half of a feature, on the newest
// session; it waits until there is one. The caller closes the connection, which
// also ends with its session; moved is closed when a newer session has taken
// over.
func (a *Agent) openRoad(ctx context.Context, feature string) (c net.Conn, moved <-chan struct{}, err error) {
	for {
		news := a.roads.next()
		if s := a.latest.Load(); s != nil && !s.leaving() {
			if !slices.Contains(s.features, feature) {
				err = errNoFeature
			} else if c, err := s.openRoad(ctx, feature); err == nil {
				return c, s.link.Draining(), nil
			} else if s.s.Err() == nil {
				return nil, nil, err
			}
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, nil, errors.Join(ctx.Err(), err)
		}
	}
}

// leaving reports whether a session drains: nothing new begins on it.
func (c *session) leaving() bool {
	select {
	case <-c.link.Draining():
		return true
	default:
		return false
	}
}

// roadTimeout is how long the relay may take to answer an Open.
const roadTimeout = 10 * time.Second

func (c *session) openRoad(ctx context.Context, feature string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, roadTimeout)
	defer cancel()
	st, err := c.s.OpenStream(ctx)
	if err != nil {
		return nil, fmt.Errorf("open a stream for %s: %w", feature, err)
	}
	stop := context.AfterFunc(ctx, func() { st.SetDeadline(time.Unix(1, 0)) })
	err = protocol.WriteOpen(st, protocol.Open{Service: feature})
	var res protocol.Result
	if err == nil {
		res, err = protocol.ReadResult(st)
	}
	switch {
	case !stop() && err == nil:
		err = ctx.Err()
	case err == nil && res.Code != protocol.CodeOK:
		err = fmt.Errorf("the relay refuses the stream for %s: %s", feature, res.Reason)
	}
	if err != nil {
		st.Reset(protocol.CodeAborted)
		return nil, err
	}
	return st, nil
}

// dialRelay is openRoad for those who hold one connection at a time: it is
// closed when a newer session has taken over, so that they dial again.
func (a *Agent) dialRelay(ctx context.Context, feature string) (net.Conn, error) {
	c, moved, err := a.openRoad(ctx, feature)
	if err != nil {
		return nil, err
	}
	r := &road{Conn: c, closed: make(chan struct{})}
	go r.follow(moved)
	return r, nil
}

// A road is a connection that ends when it leads over an old session: with
// bridge.ErrMoved, so that nobody is warned of that.
type road struct {
	net.Conn
	moved  atomic.Bool
	once   sync.Once
	closed chan struct{}
}

func (r *road) follow(moved <-chan struct{}) {
	select {
	case <-moved:
		r.moved.Store(true)
		r.Close()
	case <-r.closed:
	}
}

// Read implements net.Conn.
func (r *road) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	return n, r.why(err)
}

// Write implements net.Conn.
func (r *road) Write(p []byte) (int, error) {
	n, err := r.Conn.Write(p)
	return n, r.why(err)
}

func (r *road) why(err error) error {
	if err != nil && r.moved.Load() {
		return bridge.ErrMoved
	}
	return err
}

// Close implements net.Conn.
func (r *road) Close() error {
	defer r.once.Do(func() { close(r.closed) })
	return r.Conn.Close()
}
