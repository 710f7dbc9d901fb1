package hub

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// A relay that is killed loses nothing that it acknowledged: towards a home,
// towards a persistent session, and from a home (D1).
func TestKill(t *testing.T) {
	if path := os.Getenv("HUB_CHILD"); path != "" {
		serveChild(t, path)
		return
	}
	path := filepath.Join(t.TempDir(), "mqtt.db")
	const rounds, senders = 3, 4
	var sent [senders]int // newest of each sender
	var confirmed [senders]atomic.Int64
	homeGot := make(map[string]int) // sender → newest in order
	sessionGot := make(map[string]int)
	stateGot, stateSent := 0, uint64(0)
	var stateAcked atomic.Uint64

	collect := func(got map[string]int, who, payload string) {
		from, number, _ := strings.Cut(payload, ":")
		n, err := strconv.Atoi(number)
		if err != nil {
			t.Fatalf("%s got %q", who, payload)
		}
		switch {
		case n <= got[from]: // again
		case n == got[from]+1:
			got[from] = n
		default:
			t.Fatalf("%s: sender %s: %d came after %d: lost", who, from, n, got[from])
		}
	}
	for round := range rounds {
		child := startChild(t, path)
		if round == 0 {
			child.agent(t, false).conn.Close()
			s := child.device(t, "keeper", persistent)
			s.subscribe(filter("home/kitchen/#", 1))
			s.conn.Close()
		}
		var wg sync.WaitGroup
		for i := range senders {
			c := child.device(t, fmt.Sprint("sender", i))
			from := sent[i]
			wg.Go(func() {
				for n := from + 1; ; n++ {
					sent[i] = n
					if c.publish("home/kitchen/set/x", fmt.Sprintf("%d:%d", i, n), 1) != 0 {
						return
					}
					confirmed[i].Store(int64(n))
				}
			})
		}
		home := child.agent(t, true)
		stateSent = home.welcome.Last
		for stateAcked.Load() < 300*uint64(round+1) || confirmed[0].Load() < 100*int64(round+1) {
			for stateSent >= stateAcked.Load()+linkWindow {
				p, ok := home.next()
				if !ok {
					t.Fatal("the link ended")
				}
				if p.Kind == mqttbridge.LinkAck {
					stateAcked.Store(p.Seq)
				}
			}
			stateSent++
			home.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: mqttbridge.LinkMessage{
				Seq: stateSent, Topic: "state", Payload: fmt.Appendf(nil, "home:%d", stateSent), QoS: 1,
			}})
		}
		child.kill()
		wg.Wait()
		for p := range home.inbox { // until the end
			if p.Kind == mqttbridge.LinkAck {
				stateAcked.Store(p.Seq)
			}
		}

		child = startChild(t, path)
		home = child.agent(t, false)
		if last := home.welcome.Last; last < stateAcked.Load() {
			t.Errorf("round %d: the hub knows of number %d and acknowledged %d", round, last, stateAcked.Load())
		}
		for i := range senders {
			// An unacknowledged one may be there or not; the sender goes on behind it.
			for key := fmt.Sprint(i); homeGot[key] < int(confirmed[i].Load()); {
				p, ok := home.next()
				if !ok {
					t.Fatalf("round %d: sender %d: %d of %d acknowledged messages reached the home", round, i, homeGot[key], confirmed[i].Load())
				}
				if p.Kind == mqttbridge.LinkPublish {
					collect(homeGot, "the home", string(p.Message.Payload))
				}
			}
		}
		s := child.device(t, "keeper", persistent)
		for done := false; !done; {
			done = stateGot >= int(stateAcked.Load())
			for i := range senders {
				done = done && sessionGot[fmt.Sprint(i)] >= int(confirmed[i].Load())
			}
			if done {
				break
			}
			pk, ok := s.next()
			switch {
			case !ok:
				t.Fatalf("round %d: the session got %d of %d of the home's messages, %v of the senders'", round, stateGot, stateAcked.Load(), sessionGot)
			case pk.TopicName == "home/kitchen/set/x":
				collect(sessionGot, "the session", string(pk.Payload))
			case pk.TopicName == "home/kitchen/state":
				got := map[string]int{"home": stateGot}
				collect(got, "the session", string(pk.Payload))
				stateGot = got["home"]
			}
		}
		// What was not acknowledged and is not there was never sent, for the count.
		for i := range senders {
			sent[i] = max(homeGot[fmt.Sprint(i)], sessionGot[fmt.Sprint(i)], int(confirmed[i].Load()))
			homeGot[fmt.Sprint(i)], sessionGot[fmt.Sprint(i)] = sent[i], sent[i]
		}
		s.conn.Close()
		home.conn.Close()
		child.kill()
	}
	t.Logf("acknowledged: %d by the home's link, %d, %d, %d, %d of the senders", stateAcked.Load(), confirmed[0].Load(), confirmed[1].Load(), confirmed[2].Load(), confirmed[3].Load())
}

// A child is a hub in a process of its own. A connection says in its first line
// who it is.
type child struct {
	cmd  *exec.Cmd
	addr string
	once sync.Once
}

func startChild(t *testing.T, path string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKill$", "-test.v=false")
	cmd.Env = append(os.Environ(), "HUB_CHILD="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd}
	t.Cleanup(c.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the child says nothing: %v", err)
	}
	c.addr = strings.TrimSpace(line)
	return c
}

func (c *child) kill() {
	c.once.Do(func() {
		c.cmd.Process.Kill()
		c.cmd.Wait()
	})
}

func (c *child) dial(t *testing.T, who string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", c.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintln(conn, who)
	return conn
}

func (c *child) device(t *testing.T, name string, opts ...connectOption) *client {
	t.Helper()
	cl := newClient(t, c.dial(t, "device "+name), 5)
	if ack := cl.hello(name, opts...); ack.ReasonCode != 0 {
		t.Fatalf("CONNACK %#x", ack.ReasonCode)
	}
	return cl
}

func (c *child) agent(t *testing.T, hold bool) *agentEnd {
	t.Helper()
	conn := c.dial(t, "agent kitchen")
	e := &agentEnd{w: &world{t: t}, conn: conn, inbox: make(chan *mqttbridge.LinkPacket, 1<<15), bw: bufio.NewWriter(conn), hold: hold}
	e.hello(inFilter("set/#", 1))
	p, ok := e.next()
	if !ok || p.Welcome == nil || p.Welcome.Problem != "" {
		t.Fatalf("no welcome: %+v", p)
	}
	e.welcome = *p.Welcome
	return e
}

func serveChild(t *testing.T, path string) {
	store, err := queue.Open(path, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(Config{Queue: store, Limits: Limits{Rate: 1e6, Burst: 1e6}})
	if err != nil {
		t.Fatal(err)
	}
	go h.Run(context.Background())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// The parent kills it. If the parent dies first, this ends it.
	time.AfterFunc(time.Minute, func() { os.Exit(1) })
	fmt.Println(l.Addr())
	for {
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			var who []byte
			for b := make([]byte, 1); ; {
				if _, err := conn.Read(b); err != nil || b[0] == '\n' {
					break
				}
				who = append(who, b[0])
			}
			kind, name, _ := strings.Cut(string(who), " ")
			if kind == "agent" {
				h.ServeAgent(context.Background(), conn, Agent{ID: "id-" + name, Name: name})
				return
			}
			h.ServeConn(context.Background(), conn, Identity{Name: name, ID: "key-" + name, Remote: netip.AddrPort{}})
		}()
	}
}
