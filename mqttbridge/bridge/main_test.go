package bridge

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		runChild(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// eventually waits until cond holds. It looks now and then: what it waits for
// happens in another process.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for !cond() {
		select {
		case <-look.C:
		case <-limit.C:
			t.Fatalf("did not happen within 20 s: %s", what)
		}
	}
}

// during fails when cond holds at any time within d.
func during(t *testing.T, d time.Duration, what string, cond func() bool) {
	t.Helper()
	limit := time.NewTimer(d)
	defer limit.Stop()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		if cond() {
			t.Fatalf("must not happen: %s", what)
		}
		select {
		case <-look.C:
		case <-limit.C:
			return
		}
	}
}

// A testLog goes to the test's output when it fails, and can be searched.
type testLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func newLog(t testing.TB) (*slog.Logger, *testLog) {
	l := &testLog{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.String())
		}
	})
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})), l
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func openStore(t testing.TB, path string) *queue.Store {
	t.Helper()
	s, err := queue.Open(path, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func rules(t testing.TB, lines ...string) []mqttbridge.Rule {
	t.Helper()
	var list []mqttbridge.Rule
	for _, l := range lines {
		r, err := mqttbridge.ParseRule(l)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	return list
}

// A running is a bridge that runs.
type running struct {
	*Bridge
	log    *testLog
	store  *queue.Store
	cancel context.CancelFunc
	done   chan struct{}
}

// stop ends it and waits.
func (r *running) stop() {
	r.cancel()
	<-r.done
}

// start runs a bridge with a store of its own, unless the config has one, and
// quick back-offs. It ends with the test.
func start(t testing.TB, cfg Config) *running {
	t.Helper()
	if cfg.Agent == "" {
		cfg.Agent = "kitchen"
	}
	if cfg.Queue == nil {
		cfg.Queue = openStore(t, filepath.Join(t.TempDir(), "mqtt.db"))
	}
	r := &running{store: cfg.Queue, done: make(chan struct{})}
	cfg.Logger, r.log = newLog(t)
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.rand = func() float64 { return 0.002 }
	b.quiet, b.rest = 100*time.Millisecond, 100*time.Millisecond
	r.Bridge = b
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() {
		defer close(r.done)
		if err := b.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	t.Cleanup(r.stop)
	return r
}

// up waits until both sides are connected.
func (r *running) up(t testing.TB) {
	t.Helper()
	eventually(t, "the bridge is up", func() bool { s := r.Status(); return s.Relay.Connected && s.Broker.Connected })
}

// synced waits until the hub has the snapshot that is due.
func (r *running) syncDone(t testing.TB) {
	t.Helper()
	eventually(t, "the snapshot is done", func() bool {
		l, _ := r.current()
		if l == nil {
			return false
		}
		_, wanted := r.synced.wanted(l.welcome.Epoch)
		return !wanted
	})
}

func numbered(prefix string, n int) []byte { return fmt.Appendf(nil, "%s%d", prefix, n) }
