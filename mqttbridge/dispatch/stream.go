package dispatch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	firstFrame  = 10 * time.Second // until the agent has said what it offers
	frameTime   = 30 * time.Second // from the first byte of a frame to its last
	writeTime   = 10 * time.Second // for each frame; a home that does not read is no home
	queueLength = 64               // frames that wait to be written
	streamsMax  = 4                // of one agent; a move needs two

	// What an agent may send: a frame costs one, one more for each 2 KiB, and
	// one that changes its home what it costs to tell all pages. Over that its
	// stream is read more slowly, which delays nobody else.
	frameCost  = 2 << 10
	homeCost   = 100
	frameBurst = 4000
	frameEvery = 500 * time.Microsecond
)

// Reasons why a stream ends.
var (
	errRemoved  = errors.New("the agent was removed from the relay")
	errReplaced = errors.New("the agent opened too many streams: the oldest ends")
	errRenamed  = errors.New("another agent took over the name")
)

// A stream is one connection of an agent. Several of one agent may be open
// while it moves to another session; the newest that said what it offers gets
// the commands, all may say how they ended.
type stream struct {
	conn   net.Conn
	agent  Agent
	number uint64        // newer streams have higher ones
	out    chan outgoing // written by writeAll alone
	ended  chan struct{} // closed by end
	end    func(reason error)
	cause  error // why it ended; read after ended is closed

	mu    sync.Mutex // guards asked and seq
	asked map[uint64]question
	seq   uint64

	// Of the reader alone.
	strays  int // statuses that the agent had no business to send
	cost    limiter
	counted *countingReader
}

// An outgoing is a frame, or a command whose frame is made when its turn comes.
type outgoing struct {
	frame   mqttbridge.Frame
	command *command
}

// ServeAgent speaks on the stream "commands" of an agent until it ends, and
// closes it. It returns nil when the agent ended it between two frames or ctx
// ended, otherwise why. The stream takes over from older ones of the same agent
// once it has said what it offers; they stay open for what they were asked.
func (d *Dispatcher) ServeAgent(ctx context.Context, c net.Conn, a Agent) error {
	defer c.Close()
	if a.ID == "" || !printable(a.Name, 64) || a.Name == "" {
		return fmt.Errorf("serve agent %q: it has no ID, or no name of 1 to 64 printable bytes", a.Name)
	}
	st := newStream(c, a)
	defer st.end(nil)
	stop := context.AfterFunc(ctx, func() { st.end(nil) })
	defer stop()
	d.join(st)
	var wg sync.WaitGroup
	wg.Go(func() { d.writeAll(st) })
	err := d.readAll(ctx, st)
	st.end(err)
	wg.Wait()
	d.leave(st)
	if err = st.cause; err != nil {
		return fmt.Errorf("commands of agent %q: %w", a.Name, err)
	}
	return nil
}

func newStream(c net.Conn, a Agent) *stream {
	st := &stream{
		conn: c, agent: a, out: make(chan outgoing, queueLength), ended: make(chan struct{}),
		asked: map[uint64]question{}, cost: newLimiter(frameBurst, frameEvery), counted: &countingReader{r: c},
	}
	var once sync.Once
	st.end = func(reason error) {
		once.Do(func() {
			st.cause = reason
			close(st.ended)
			c.Close()
		})
	}
	return st
}

// queue reports whether there was room.
func (st *stream) queue(o outgoing) bool {
	select {
	case st.out <- o:
		return true
	default:
		return false
	}
}

// join makes a stream known that has said nothing yet. The oldest makes room.
func (d *Dispatcher) join(st *stream) {
	var oldest *stream
	d.mu.Lock()
	d.streams++
	st.number = d.streams
	d.live[st] = true
	count := 0
	for o := range d.live {
		if o.agent.ID == st.agent.ID {
			count++
			if oldest == nil || o.number < oldest.number {
				oldest = o
			}
		}
	}
	d.mu.Unlock()
	if count > streamsMax {
		oldest.end(errReplaced)
	}
}

// leave takes a stream away after its goroutines ended. What was not sent
// never is; what was is asked for on another stream, if there is one.
func (d *Dispatcher) leave(st *stream) {
	d.mu.Lock()
	defer d.unlock()
	delete(d.live, st)
	h := d.homes[st.agent.Name]
	if h != nil && slices.Contains(h.streams, st) {
		h.streams = slices.DeleteFunc(h.streams, func(o *stream) bool { return o == st })
		if h.current() == nil {
			d.away(h)
			d.said = append(d.said, func() { d.cfg.Logger.Info("home is away", "agent", st.agent.Name) })
		}
	}
	for _, c := range d.commands.open {
		if c.stream != st {
			continue
		}
		c.stream = nil
		if c.signed != nil {
			d.turnDown(c, refusalOffline(c.status.Home))
		}
	}
	if h != nil {
		d.tellRevoked(h)
		d.askAbout(h)
	}
}

func (d *Dispatcher) writeAll(st *stream) {
	for {
		select {
		case <-st.ended:
			return
		case o := <-st.out:
			if isClosed(st.ended) { // both were ready: what was not begun is not sent
				return
			}
			f := o.frame
			if c := o.command; c != nil {
				f.Type, f.Seq, f.Device = mqttbridge.FrameCommand, st.nextSeq(), c.status.Device
				if f.Command = d.handOver(c, f.Seq); f.Command == nil {
					continue
				}
			}
			st.conn.SetWriteDeadline(time.Now().Add(writeTime))
			if err := mqttbridge.WriteFrame(st.conn, f); err != nil {
				st.end(err)
				return
			}
		}
	}
}
