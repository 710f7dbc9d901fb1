package service

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// overTunnel opens a stream of a real session in memory, which the table
// serves; home is the backend's end of the connection that it dials.
func overTunnel(t *testing.T) (relay tunnel.Stream, home <-chan *tunneltest.Conn) {
	t.Helper()
	agentEnd, relayEnd := tunneltest.Pair(t)
	backends := make(chan *tunneltest.Conn, 1)
	table := NewTable(nil, fakeResolver{})
	table.Dial = func(context.Context, string, string) (net.Conn, error) {
		near, far := tunneltest.MemConn()
		backends <- far.(*tunneltest.Conn)
		return near, nil
	}
	if err := table.Set([]Entry{{Name: "x", Target: "tcp://lamp:1"}}); err != nil {
		t.Fatal(err)
	}
	relay, err := relayEnd.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if s, err := agentEnd.AcceptStream(t.Context()); err == nil {
			table.ServeStream(t.Context(), s)
		}
	}()
	return relay, backends
}

// begin sends Open and expects CodeOK.
func begin(t *testing.T, relay tunnel.Stream) {
	t.Helper()
	if err := protocol.WriteOpen(relay, visitorOpen); err != nil {
		t.Fatal(err)
	}
	if r, err := protocol.ReadResult(relay); err != nil || r.Code != protocol.CodeOK {
		t.Fatal(r, err)
	}
}

func TestTunnelHalfClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		relay, homes := overTunnel(t)
		begin(t, relay)
		home := <-homes
		io.WriteString(relay, "question")
		relay.CloseWrite()
		if b, err := io.ReadAll(home); err != nil || string(b) != "question" {
			t.Fatalf("%q, %v", b, err)
		}
		time.Sleep(6 * time.Minute)
		io.WriteString(home, "answer")
		home.Close()
		if b, err := io.ReadAll(relay); err != nil || string(b) != "answer" {
			t.Fatalf("%q, %v", b, err)
		}
		relay.Close()
	})
}

func TestTunnelAbort(t *testing.T) {
	for _, byBackend := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			relay, homes := overTunnel(t)
			begin(t, relay)
			home := <-homes
			if byBackend {
				home.Abort()
				_, err := io.ReadAll(relay)
				if e, ok := errors.AsType[*tunnel.ResetError](err); !ok || e.Code != protocol.CodeAborted {
					t.Errorf("the relay read %v, want a reset", err)
				}
			} else {
				relay.Reset(protocol.CodeRevoked)
				if _, err := io.ReadAll(home); err == nil {
					t.Error("the backend saw a clean end")
				}
			}
		})
	}
}

func TestTunnelSlowOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		relay, _ := overTunnel(t)
		start := time.Now()
		relay.Write([]byte{0}) // half a length, then silence
		_, err := io.ReadAll(relay)
		if e, ok := errors.AsType[*tunnel.ResetError](err); !ok || e.Code != protocol.CodeTimeout || time.Since(start) != openTimeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}
