package bridge

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// TestFull: a full queue leaves the messages to the home broker; nothing is
// lost and nothing is out of order when there is room again.
func TestFull(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow", "max_queued_messages 0"), newHub(t)
	h.setDown(true)
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "t/#"), DialRelay: h.dial, Limits: queue.Limits{Messages: 30}})
	eventually(t, "the broker is connected", func() bool { return b.Status().Broker.Connected })
	d := m.join("sensor")
	const n = 300
	for i := range n {
		d.publish("t/x", 1, false, numbered("m", i))
	}
	eventually(t, "it is full", func() bool { return b.Status().Queue.Full })
	if s := b.Status(); s.Queue.Messages != 30 || s.Queue.MaxMessages != 30 || s.Queue.DroppedFull != 0 {
		t.Errorf("status: %+v", s.Queue)
	}
	h.setDown(false)
	eventually(t, "all came", func() bool { return h.count() >= n })
	expectSeries(t, "out", h.on("t/x"), "m", n)
	if s := b.Status(); s.Queue.Full || s.Out.Dropped != 0 {
		t.Errorf("status: %+v", s)
	}
	if strings.Count(b.log.String(), "queue to the relay is full") == 0 {
		t.Error("nobody was told")
	}
}

// TestDropOldest: where a rule says so, the oldest make room, and are counted.
func TestDropOldest(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow", "max_queued_messages 0"), newHub(t)
	h.setDown(true)
	list := rules(t, "t/#")
	list[0].DropOldest = true
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: list, DialRelay: h.dial, Limits: queue.Limits{Messages: 30}})
	eventually(t, "the broker is connected", func() bool { return b.Status().Broker.Connected })
	d := m.join("sensor")
	const n = 300
	for i := range n {
		d.publish("t/x", 1, false, numbered("m", i))
	}
	eventually(t, "the oldest are dropped", func() bool { return b.Status().Queue.DroppedFull == n-30 })
	h.setDown(false)
	eventually(t, "the newest came", func() bool { return h.count() == 30 })
	for i, p := range h.on("t/x") {
		if want := fmt.Sprintf("m%d", n-30+i); p != want {
			t.Fatalf("message %d is %s, not %s", i, p, want)
		}
	}
}

// TestMaxAge: what is older than its rule allows is dropped and counted; the
// hub hears how long the others may live.
func TestMaxAge(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	h.setDown(true)
	list := rules(t, "t/#", "u/#")
	list[0].MaxAge, list[1].MaxAge = time.Millisecond, time.Hour
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: list, DialRelay: h.dial})
	eventually(t, "the broker is connected", func() bool { return b.Status().Broker.Connected })
	d := m.join("sensor")
	d.publish("t/x", 1, false, []byte("old"))
	d.publish("u/x", 1, false, []byte("young"))
	eventually(t, "they came", func() bool { return b.Status().Out.Seen == 2 })
	h.setDown(false)
	eventually(t, "the young one came", func() bool { return len(h.on("u/x")) == 1 })
	eventually(t, "the old one is counted", func() bool { return b.Status().Queue.DroppedOld == 1 })
	h.with(func() {
		if len(h.got) != 1 || h.got[0].TTL <= 59*time.Minute || h.got[0].TTL > time.Hour {
			t.Errorf("came: %+v", h.got)
		}
	})
}

// fullEnv makes this test's child, which has a file system of its own.
const fullEnv = "BRIDGE_TEST_FULL_DISK"

// TestFullDisk: while the disk is full nothing is acknowledged at home, it is
// said once, messages come in still, and all come out when there is room.
func TestFullDisk(t *testing.T) {
	if dir := os.Getenv(fullEnv); dir != "" {
		onFullDisk(t, dir)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("only root may mount")
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFullDisk$", "-test.v")
	cmd.Env = append(os.Environ(), fullEnv+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil && strings.Contains(err.Error(), "not permitted"), strings.Contains(string(out), "cannot mount"):
		t.Skipf("no file system of its own here: %v %s", err, out)
	case strings.Contains(string(out), "SKIP"):
		t.Skipf("%s", out)
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	}
}

func onFullDisk(t *testing.T, dir string) {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal("cannot mount:", err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal("cannot mount:", err)
	}
	m, h := startMosquitto(t, "allow", "max_queued_messages 0"), newHub(t)
	store, err := queue.Open(filepath.Join(dir, "q.db"), queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	lamp := m.join("lamp", "set")
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "t/#", "set in"), DialRelay: h.dial, Queue: store})
	b.up(t)
	b.syncDone(t)
	h.setDown(true)
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			break
		}
	}
	f.Close()
	d := m.join("sensor")
	const n = 60
	big := strings.Repeat("x", 20_000)
	for i := range n {
		d.publish("t/x", 1, false, append(numbered("m", i), big...))
	}
	eventually(t, "the disk is full", func() bool { return b.Status().Queue.Problem != "" })
	h.setDown(false)
	h.give(mqttbridge.LinkMessage{Topic: "set", Payload: []byte("on"), QoS: 1})
	eventually(t, "messages come in still", func() bool { return len(lamp.on("set")) == 1 })
	if h.count() >= n {
		t.Errorf("%d messages fitted on a full disk", h.count())
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all came", func() bool { return h.count() >= n })
	var got []string
	for _, p := range h.on("t/x") {
		got = append(got, strings.TrimRight(p, "x"))
	}
	expectSeries(t, "out", got, "m", n)
	eventually(t, "the problem is over", func() bool { return b.Status().Queue.Problem == "" })
	if c := strings.Count(b.log.String(), "cannot be written: nothing is taken"); c != 1 {
		t.Errorf("said %d times", c)
	}
}
