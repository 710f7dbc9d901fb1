package bridge

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// childEnv makes the test binary an agent that can be killed. It names a
// directory with the queue; the broker's and the hub's addresses come as
// arguments.
const childEnv = "BRIDGE_TEST_CHILD"

func runChild(dir string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	store, err := queue.Open(filepath.Join(dir, "q.db"), queue.Options{})
	if err != nil {
		fail(err)
	}
	var list []mqttbridge.Rule
	for _, line := range []string{"tele/#", "set/# in"} {
		r, err := mqttbridge.ParseRule(line)
		if err != nil {
			fail(err)
		}
		list = append(list, r)
	}
	b, err := New(Config{
		Agent: "kitchen", Broker: Broker{URL: os.Args[1]}, Rules: list, Queue: store,
		DialRelay: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", os.Args[2])
		},
	})
	if err != nil {
		fail(err)
	}
	b.rand = func() float64 { return 0.002 }
	fail(b.Run(context.Background()))
}

// TestAgentKilled: the agent is killed with SIGKILL again and again. Nothing
// is lost, first occurrences are in order, and the hub, which knows the numbers
// that it has, gets nothing twice but what the home broker sent twice.
func TestAgentKilled(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow", "max_queued_messages 0"), newHub(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go h.serve(c)
		}
	}()
	dir := t.TempDir()
	var child *exec.Cmd
	run := func() {
		child = exec.Command(os.Args[0], m.url(), l.Addr().String())
		child.Env = append(os.Environ(), childEnv+"="+dir)
		child.Stderr = os.Stderr
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
	}
	kill := func() {
		child.Process.Kill()
		child.Wait()
	}
	run()
	t.Cleanup(func() { kill() })
	lamp, sensor := m.join("lamp", "set/#"), m.join("sensor")
	// The broker keeps messages for the agent from its first subscription on.
	eventually(t, "the first message came", func() bool {
		sensor.publish("tele/first", 1, false, []byte("x"))
		return h.count() > 0
	})
	const rounds, n = 5, 60
	for round := range rounds {
		seen := h.count()
		for i := range n {
			h.give(mqttbridge.LinkMessage{Topic: "set/x", Payload: numbered("m", round*n+i), QoS: 1})
			sensor.publish("tele/x", 1, false, numbered("m", round*n+i))
			if i == n/2 {
				eventually(t, "some came", func() bool { return h.count() > seen })
				kill()
				run()
			}
		}
	}
	eventually(t, "all came out", func() bool { return len(firsts(h.on("tele/x"))) == rounds*n })
	eventually(t, "all came in", func() bool { return h.left() == 0 && len(firsts(lamp.on("set/x"))) == rounds*n })
	expectSeries(t, "out", h.on("tele/x"), "m", rounds*n)
	expectSeries(t, "in", lamp.on("set/x"), "m", rounds*n)
	t.Logf("%d messages each way, %d kills: %d came twice at the hub, %d at the lamp",
		rounds*n, rounds, len(h.on("tele/x"))-rounds*n, len(lamp.on("set/x"))-rounds*n)
}
