package bridge

import (
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
)

// TestSubscribeWhileRetainedCome: Mochi refuses a subscription whose packet id
// is one of a message of its own that is not acknowledged, though these are
// numbers of two kinds. What is retained below the first filter must not cost
// the second one.
func TestSubscribeWhileRetainedCome(t *testing.T) {
	t.Parallel()
	server := mochi.New(&mochi.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	if err := server.AddHook(new(everybody), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	l, err := net.Listen("tcp", "127.0.0.1:0") // a pipe has no buffer: Mochi would wait for itself
	if err != nil {
		t.Fatal(err)
	}
	if err := server.AddListener(listeners.NewNet("home", l)); err != nil {
		t.Fatal(err)
	}
	if err := server.Serve(); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := server.Publish(fmt.Sprintf("ha/switch/s%d/config", i), []byte("{}"), true, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Publish("ha/switch/0x00158d/switch/config", []byte("{}"), true, 1); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		c, stop := runClient(t, ClientConfig{Broker: Broker{URL: "tcp://" + l.Addr().String(), ClientID: fmt.Sprint("c", i)}})
		var mu sync.Mutex
		got := map[string]bool{}
		for _, f := range []string{"ha/+/+/config", "ha/+/+/+/config"} {
			c.Subscribe(f, func(topic string, _ []byte, _ bool) {
				mu.Lock()
				defer mu.Unlock()
				got[topic] = true
			})
		}
		eventually(t, "all that is retained", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(got) == 51
		})
		stop()
	}
}
