package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// The demo's proxy leads to the relay and nowhere else.
func TestNamesLeadToTheRelayOnly(t *testing.T) {
	relay, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	go func() {
		for {
			c, err := relay.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "relay")
			c.Close()
		}
	}()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		serveNames(ctx, l, relay.Addr().String())
	}()
	for name, want := range map[string]string{"mqtt." + demoDomain: "\x05\x00" + "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00" + "relay", "example.org": "\x05\x00" + "\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00", demoDomain + ".example.org": "\x05\x00" + "\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00"} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write(socksAsk(name)); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		c.Close()
	}
	stop()
	<-ended
}

func socksAsk(name string) []byte {
	ask := append([]byte{5, 1, 0, 5, 1, 0, 3, byte(len(name))}, name...)
	return append(ask, 0x20, 0xfb)
}

func FuzzAskedName(f *testing.F) {
	f.Add(socksAsk("mqtt." + demoDomain))
	f.Add([]byte{5, 255})
	f.Add([]byte{4, 0, 5, 1, 0, 1, 9})
	f.Fuzz(func(t *testing.T, in []byte) {
		name, err := askedName(bufio.NewReader(bytes.NewReader(in)), io.Discard)
		if err == nil && len(name) > 255 {
			t.Errorf("a name of %d bytes", len(name))
		}
	})
}
