package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/sallyport/sallyport/mqttbridge"
)

// hostile are words that would act on a terminal, and too many of them.
var hostile = "\x1b]0;owned\x07\nlevel=ERROR\u202e\x9b2J\xff" + strings.Repeat("é", 5000)

func TestHarmless(t *testing.T) {
	for _, c := range []struct {
		in   string
		most int
		want string
	}{
		{"the agent 'kitchen' is revoked; ask Zoë", 100, "the agent 'kitchen' is revoked; ask Zoë"},
		{"a\nb", 100, "a b"},
		{"\x1b[2Ja\x00b\u202ec\x9b", 100, "[2Jabc"},
		{strings.Repeat("é", 20), 17, "ééééééé…"},
		{strings.Repeat("\x00", 200), 100, ""},
	} {
		if got := harmless(c.in, c.most); got != c.want {
			t.Errorf("%q: %q, not %q", c.in, got, c.want)
		}
	}
	if got := harmless(hostile, 200); len(got) > 200 || !utf8.ValidString(got) {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}

// TestRelayCannotActOnTheTerminal: what the relay says reaches the log and
// Status short and without control characters, whichever way it comes.
func TestRelayCannotActOnTheTerminal(t *testing.T) {
	for name, c := range map[string]struct {
		greet func(*mqttbridge.LinkWelcome)
		dial  error
		most  int
	}{
		"problem": {greet: func(w *mqttbridge.LinkWelcome) { w.Problem = hostile }, most: maxRelaySaid + 40},
		"prefix":  {greet: func(w *mqttbridge.LinkWelcome) { w.Prefix = hostile }, most: maxRelaySaid},
		"stream":  {dial: fmt.Errorf("the relay refuses the stream for mqtt: %s", hostile), most: maxLinkSaid},
		"only control characters": {
			greet: func(w *mqttbridge.LinkWelcome) { w.Problem = "\x1b\x07" }, most: maxRelaySaid,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHub(t)
				h.greeting = c.greet
				b := virtual(t, &fakeBroker{t: t}, h, "t/#")
				if c.dial != nil {
					b.stop()
					b = start(t, Config{
						Broker: Broker{URL: "tcp://home"}, Rules: rules(t, "t/#"), DialBroker: (&fakeBroker{t: t}).dial,
						Queue:     openStore(t, filepath.Join(t.TempDir(), "q.db")),
						DialRelay: func(context.Context) (net.Conn, error) { return nil, c.dial },
					})
				}
				time.Sleep(5 * time.Second) // virtual
				synctest.Wait()
				relay := b.Status().Relay
				if name == "prefix" {
					l, _ := b.current()
					if l == nil {
						t.Fatal("no link")
					}
					relay.LastError = l.welcome.Prefix
				} else if relay.Connected {
					t.Error("a link that the relay refused is used")
				}
				said := relay.LastError
				if said == "" || len(said) > c.most || !utf8.ValidString(said) || said != harmless(said, 1000) {
					t.Errorf("status says, in %d bytes: %q", len(said), said)
				}
				for line := range strings.Lines(b.log.String()) {
					if len(line) > 1000 || strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\x1b\x07\u202e") || strings.Contains(line, `\x1b`) {
						t.Errorf("logged, in %d bytes: %.300q", len(line), line)
					}
				}
			})
		})
	}
}

// movedConn ends as one that leads over an older session.
type movedConn struct {
	net.Conn
	moved atomic.Bool
}

func (c *movedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && c.moved.Load() {
		err = fmt.Errorf("road: %w", ErrMoved)
	}
	return n, err
}

// TestMoved: an end on this side is no warning and no error; one on the other
// side is.
func TestMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		var last atomic.Pointer[movedConn]
		b := start(t, Config{
			Broker: Broker{URL: "tcp://home"}, Rules: rules(t, "t/#"), DialBroker: (&fakeBroker{t: t}).dial,
			Queue: openStore(t, filepath.Join(t.TempDir(), "q.db")),
			DialRelay: func(ctx context.Context) (net.Conn, error) {
				c, err := h.dial(ctx)
				if err != nil {
					return nil, err
				}
				m := &movedConn{Conn: c}
				last.Store(m)
				return m, nil
			},
		})
		time.Sleep(5 * time.Second) // virtual
		synctest.Wait()
		end := func(moved bool) (warned bool, lastError string) {
			c := last.Load()
			c.moved.Store(moved)
			c.Close()
			time.Sleep(5 * time.Second) // virtual
			synctest.Wait()
			if !b.Status().Relay.Connected || last.Load() == c {
				t.Fatal("no new link")
			}
			return strings.Contains(b.log.String(), "level=WARN"), b.Status().Relay.LastError
		}
		if warned, e := end(true); warned || e != "" {
			t.Errorf("ended on this side: warned %v, error %q", warned, e)
		}
		if warned, e := end(false); !warned || e == "" {
			t.Errorf("ended on the other side: warned %v, error %q", warned, e)
		}
	})
}

// TestCrowded: what is dropped at QoS 0 because the home broker is slow is
// counted, and said once for many.
func TestCrowded(t *testing.T) {
	b, log := idleBridge(t)
	b.in.begin()
	const n = inboxMax + 44
	for range n {
		if !b.in.add(&link{}, mqttbridge.LinkMessage{Topic: "set/\u202ex", Payload: []byte("1")}) {
			t.Fatal("the link is ended for messages at QoS 0")
		}
	}
	if got := b.Status().In.Dropped; got != n-inboxMax {
		t.Errorf("%d counted as dropped, not %d", got, n-inboxMax)
	}
	if got := strings.Count(log.String(), "at QoS 0 are dropped"); got != 1 {
		t.Errorf("said %d times", got)
	}
	if strings.Contains(log.String(), "202e") {
		t.Error("the topic turns the direction of writing")
	}
	// What no rule lets in is refused, not dropped too.
	b.in.add(&link{}, mqttbridge.LinkMessage{Topic: "other", Payload: []byte("1")})
	if s := b.Status().In; s.Refused != 1 || s.Dropped != n-inboxMax {
		t.Errorf("%+v", s)
	}
	// That the broker is away is known: nobody needs a line for each.
	b2, log2 := idleBridge(t)
	for range n {
		b2.in.add(&link{}, mqttbridge.LinkMessage{Topic: "set/x"})
	}
	if got := b2.Status().In.Dropped; got != n || log2.String() != "" {
		t.Errorf("%d dropped, said: %s", got, log2)
	}
}

// idleBridge is one that does not run.
func idleBridge(t *testing.T) (*Bridge, *testLog) {
	logger, log := newLog(t)
	b, err := New(Config{
		Agent: "kitchen", Broker: Broker{URL: "tcp://home"}, Rules: rules(t, "set/# in 0"), Logger: logger,
		Queue:     openStore(t, filepath.Join(t.TempDir(), "q.db")),
		DialRelay: func(context.Context) (net.Conn, error) { return nil, errors.New("none") },
	})
	if err != nil {
		t.Fatal(err)
	}
	return b, log
}
