package world

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// ends makes a TCP connection between two machines.
func ends(w *World) (client, server *Machine, near, far net.Conn) {
	w.T.Helper()
	client, server = w.machine("client"), w.machine("server")
	l, err := server.current.listenTCP(":443")
	if err != nil {
		w.T.Fatal(err)
	}
	near, err = client.current.dialTCP(context.Background(), "tcp", net.JoinHostPort(server.Addr.String(), "443"))
	if err != nil {
		w.T.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		w.T.Fatal(err)
	}
	return client, server, near, far
}

func read(c net.Conn, n int) (string, error) {
	buf := make([]byte, n)
	n, err := io.ReadFull(c, buf)
	return string(buf[:n]), err
}

func TestTCP(t *testing.T) {
	Run(t, func(w *World) {
		_, _, near, far := ends(w)
		start := time.Now()
		io.WriteString(near, "hello")
		if got, err := read(far, 5); got != "hello" || err != nil || time.Since(start) != Latency {
			t.Errorf("%q, %v after %v", got, err, time.Since(start))
		}
		// Half-close: the other direction goes on.
		near.(interface{ CloseWrite() error }).CloseWrite()
		if _, err := far.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("after the end: %v", err)
		}
		w.Sleep(time.Hour)
		io.WriteString(far, "still here")
		far.Close()
		if got, err := io.ReadAll(near); string(got) != "still here" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		w.Sleep(time.Second)
		if len(w.flowsOf(func(*flow) bool { return true })) != 0 {
			t.Error("the flow is still there")
		}
	})
}

func TestTCPReset(t *testing.T) {
	for what, reset := range map[string]func(client, server *Machine, near net.Conn){
		"by its owner":    func(_, _ *Machine, near net.Conn) { near.(interface{ Abort() }).Abort() },
		"on the way":      func(client, _ *Machine, _ net.Conn) { client.Cut() },
		"by a kill":       func(client, _ *Machine, _ net.Conn) { client.current.kill() },
		"by a kill there": func(_, server *Machine, _ net.Conn) { server.current.kill() },
	} {
		t.Run(what, func(t *testing.T) {
			Run(t, func(w *World) {
				client, server, near, far := ends(w)
				io.WriteString(near, "x")
				read(far, 1)
				reset(client, server, near)
				if _, err := far.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("the peer reads %v", err)
				}
			})
		})
	}
}

// Data for somebody who has gone is answered by a reset, and no earlier byte
// of his is lost.
func TestTCPWriteToTheGone(t *testing.T) {
	Run(t, func(w *World) {
		_, _, near, far := ends(w)
		io.WriteString(far, "last words")
		far.Close()
		io.WriteString(near, "are you there?")
		w.Sleep(time.Second)
		if got, err := io.ReadAll(near); string(got) != "last words" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := io.WriteString(near, "?"); err == nil {
			t.Error("nobody says that the peer has gone")
		}
	})
}

func TestTCPFreeze(t *testing.T) {
	Run(t, func(w *World) {
		client, server, near, far := ends(w)
		addr := net.JoinHostPort(server.Addr.String(), "443")
		silent := func(c net.Conn) {
			t.Helper()
			c.SetReadDeadline(time.Now().Add(time.Hour))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("something came through: %v", err)
			}
			c.SetReadDeadline(time.Time{})
		}
		client.Freeze(true)
		io.WriteString(near, "x")
		silent(far)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := client.current.dialTCP(ctx, "tcp", addr); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial: %v", err)
		}
		client.Freeze(false)
		if got, err := read(far, 1); got != "x" || err != nil {
			t.Errorf("after the thaw: %q, %v", got, err)
		}
		server.FreezeOpen()
		io.WriteString(near, "y")
		silent(far)
		if _, err := client.current.dialTCP(context.Background(), "tcp", addr); err != nil {
			t.Errorf("a new connection: %v", err)
		}
		server.current.kill()
		if _, err := client.current.dialTCP(context.Background(), "tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial to nobody: %v", err)
		}
	})
}

func TestUDP(t *testing.T) {
	Run(t, func(w *World) {
		client, server := w.machine("client"), w.machine("server")
		here, err := server.current.listenUDP(":443")
		if err != nil {
			t.Fatal(err)
		}
		there, err := client.current.listenUDP(":0")
		if err != nil {
			t.Fatal(err)
		}
		arrives := func(from net.PacketConn) bool {
			t.Helper()
			if _, err := from.WriteTo([]byte("x"), here.LocalAddr()); err != nil {
				t.Errorf("write: %v", err)
			}
			here.SetReadDeadline(time.Now().Add(time.Second))
			_, _, err := here.ReadFrom(make([]byte, 10))
			return err == nil
		}
		check := func(what string, want bool) {
			t.Helper()
			if arrives(there) != want {
				t.Errorf("%s: arrives: %v", what, !want)
			}
		}
		check("at first", true)
		for what, block := range map[string]func(bool){
			"blocked here": client.BlockUDP, "blocked there": server.BlockUDP, "frozen here": client.Freeze, "frozen there": server.Freeze,
		} {
			block(true)
			check(what, false)
			block(false)
			check(what+" no more", true)
		}
		client.FreezeOpen()
		check("after the router forgot", false)
		fresh, err := client.current.listenUDP(":0")
		if err != nil {
			t.Fatal(err)
		}
		if !arrives(fresh) {
			t.Error("a new socket does not work")
		}
		client.current.kill()
		if arrives(fresh) {
			t.Error("a killed process still sends")
		}
	})
}
