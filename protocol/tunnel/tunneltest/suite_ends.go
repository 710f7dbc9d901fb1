package tunneltest

import (
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

func testHalfClose(t *testing.T, a, b tunnel.Session) {
	for _, ends := range [][2]tunnel.Session{{a, b}, {b, a}} {
		x, y := open(t, ends[0], ends[1])
		write(t, x, "question")
		if err := x.CloseWrite(); err != nil {
			t.Error(err)
		}
		readAll(t, y, "question")
		if _, err := x.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after CloseWrite: %v", err)
		}
		write(t, y, "answer")
		if err := y.CloseWrite(); err != nil {
			t.Error(err)
		}
		readAll(t, x, "answer")
		readAll(t, x, "") // the end stays the end
		x.Close()
		y.Close()
	}
}

func testLongReply(t *testing.T, a, b tunnel.Session) {
	x, y := open(t, a, b)
	x.CloseWrite()
	readAll(t, y, "")
	go func() {
		defer y.Close()
		for range 36 {
			time.Sleep(10 * time.Second)
			if _, err := y.Write([]byte("tick")); err != nil {
				t.Errorf("reply: %v", err)
				return
			}
		}
	}()
	start := time.Now()
	readAll(t, x, strings.Repeat("tick", 36))
	if d := time.Since(start); d < 6*time.Minute {
		t.Errorf("the reply took %v", d)
	}
	x.Close()
}

func testEmptyStream(t *testing.T, a, b tunnel.Session) {
	x, err := a.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	x.CloseWrite()
	y, err := b.AcceptStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, y, "")
	y.Close()
	readAll(t, x, "")
	x.Close()
}

func testResetIsNotEnd(t *testing.T, a, b tunnel.Session) {
	for _, ends := range [][2]tunnel.Session{{a, b}, {b, a}} {
		x, y := open(t, ends[0], ends[1])
		write(t, y, "part")
		y.Reset(protocol.CodeBackendDown)
		_, err := io.ReadAll(x)
		wantReset(t, "read", err, protocol.CodeBackendDown, true)
		time.Sleep(time.Second)
		_, err = x.Write([]byte("x"))
		wantReset(t, "write", err, protocol.CodeBackendDown, true)
		_, err = y.Read(make([]byte, 1))
		wantReset(t, "own read", err, protocol.CodeBackendDown, false)
		_, err = y.Write([]byte("x"))
		wantReset(t, "own write", err, protocol.CodeBackendDown, false)
		y.Reset(protocol.CodeIdle) // does nothing
		x.Close()
	}
}

func testResetAfterHalfClose(t *testing.T, a, b tunnel.Session) {
	x, y := open(t, a, b)
	x.CloseWrite()
	readAll(t, y, "")
	write(t, y, "part")
	y.Reset(protocol.CodeAborted)
	_, err := io.ReadAll(x)
	wantReset(t, "read", err, protocol.CodeAborted, true)
	x.Close()

	// The other way round: the one that ended its writing resets.
	x, y = open(t, a, b)
	x.CloseWrite()
	readAll(t, y, "")
	x.Reset(protocol.CodeIdle)
	time.Sleep(time.Second)
	_, err = y.Write([]byte("x"))
	wantReset(t, "write", err, protocol.CodeIdle, true)
	y.Close()
}

func testResetUnreadByWriter(t *testing.T, a, b tunnel.Session) {
	x, y := open(t, a, b)
	fill(t, x)
	x.Reset(protocol.CodeTimeout)
	time.Sleep(time.Second)
	_, err := y.Read(make([]byte, 1))
	wantReset(t, "read", err, protocol.CodeTimeout, true)
	if n := b.Stats().Unread; n != 0 {
		t.Errorf("%d bytes of a reset stream are still kept", n)
	}
	y.Close()
}

func testResetUnreadByReader(t *testing.T, a, b tunnel.Session) {
	x, y := open(t, a, b)
	fill(t, x)
	failed := make(chan error, 1)
	go func() {
		_, err := x.Write([]byte("blocked"))
		failed <- err
	}()
	synctest.Wait()
	y.Reset(protocol.CodeOverload)
	wantReset(t, "blocked write", <-failed, protocol.CodeOverload, true)
	_, err := x.Read(make([]byte, 1))
	wantReset(t, "read", err, protocol.CodeOverload, true)
	x.Close()
}

func testResetUnblocks(t *testing.T, a, b tunnel.Session) {
	x, y := open(t, a, b)
	fill(t, x)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := x.Write([]byte("blocked"))
		wantReset(t, "blocked write", err, protocol.CodeIdle, false)
	})
	wg.Go(func() {
		_, err := x.Read(make([]byte, 1))
		wantReset(t, "blocked read", err, protocol.CodeIdle, false)
	})
	synctest.Wait()
	x.Reset(protocol.CodeIdle)
	wg.Wait()
	y.Close()
}

func testClose(t *testing.T, a, b tunnel.Session) {
	x, y := open(t, a, b)
	write(t, x, "unread") // y never reads it
	data := strings.Repeat("written before Close. ", 5000)
	write(t, y, data)
	y.Close()
	if _, err := y.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if _, err := y.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
	readAll(t, x, data)
	time.Sleep(time.Second)
	_, err := x.Write([]byte("refused"))
	wantReset(t, "write to a closed stream", err, protocol.CodeAborted, true)
	x.Close()
}

func testCloseDuringWrite(t *testing.T, a, b tunnel.Session) {
	x, y := open(t, a, b)
	failed := make(chan error, 1)
	go func() {
		_, err := x.Write(make([]byte, 64<<20))
		failed <- err
	}()
	synctest.Wait()
	x.Close()
	if err := <-failed; err == nil {
		t.Error("the write says that all was sent")
	}
	_, err := io.Copy(io.Discard, y)
	wantReset(t, "read", err, protocol.CodeAborted, true)
	y.Close()
}

func testCloseTwice(t *testing.T, a, b tunnel.Session) {
	x, y := open(t, a, b)
	for range 2 {
		x.Close()
		x.CloseWrite()
		y.Close()
	}
	x.Reset(protocol.CodeInternal)
	a.Close(protocol.CodeReplaced, "one")
	a.Close(protocol.CodeRevoked, "two")
	<-b.Done()
	e, ok := errors.AsType[*tunnel.CloseError](b.Err())
	if !ok || e.Code != protocol.CodeReplaced || e.Reason != "one" {
		t.Errorf("got %v", b.Err())
	}
}

func testSessionClose(t *testing.T, a, b tunnel.Session) {
	if a.Err() != nil || b.Err() != nil {
		t.Errorf("errors before the end: %v, %v", a.Err(), b.Err())
	}
	x, y := open(t, a, b)
	write(t, y, "unread")
	failed := make(chan error, 1)
	go func() {
		_, err := b.AcceptStream(t.Context())
		failed <- err
	}()
	reason := strings.Repeat("because ", 100)
	a.Close(protocol.CodeRevoked, reason)
	<-a.Done()
	<-b.Done()
	for _, c := range []struct {
		s      tunnel.Session
		remote bool
	}{{a, false}, {b, true}} {
		e, ok := errors.AsType[*tunnel.CloseError](c.s.Err())
		if !ok || e.Code != protocol.CodeRevoked || e.Reason != reason[:255] || e.Remote != c.remote {
			t.Errorf("got %v, remote %v wanted", c.s.Err(), c.remote)
		}
		if _, err := c.s.OpenStream(t.Context()); err == nil {
			t.Error("OpenStream on an ended session worked")
		}
		if _, err := c.s.AcceptStream(t.Context()); err == nil {
			t.Error("AcceptStream on an ended session worked")
		}
	}
	if _, ok := errors.AsType[*tunnel.CloseError](<-failed); !ok {
		t.Error("the blocked AcceptStream did not say why")
	}
	_, err := x.Read(make([]byte, 10))
	wantReset(t, "near read", err, protocol.CodeRevoked, false)
	_, err = y.Read(make([]byte, 10))
	wantReset(t, "far read", err, protocol.CodeRevoked, true)
	_, err = y.Write([]byte("x"))
	wantReset(t, "far write", err, protocol.CodeRevoked, true)
	x.Close()
	y.Close()
}

func testSessionCloseKeeps(t *testing.T, a, b tunnel.Session) {
	x, y := open(t, a, b)
	write(t, x, "whole")
	x.Close()
	time.Sleep(time.Second)
	a.Close(protocol.CodeGoingAway, "")
	<-b.Done()
	readAll(t, y, "whole")
	y.Close()
}

func testSessionCloseWakes(t *testing.T, a, b tunnel.Session) {
	x, y := open(t, a, b)
	y.CloseWrite()
	readAll(t, x, "")
	failed := make(chan error, 1)
	go func() {
		_, err := y.Read(make([]byte, 1))
		failed <- err
	}()
	synctest.Wait()
	a.Close(protocol.CodeRevoked, "")
	wantReset(t, "blocked read", <-failed, protocol.CodeRevoked, true)
	x.Close()
	y.Close()
}

func testNothingLeft(t *testing.T, a, b tunnel.Session) {
	go echo(b)
	for range 20 {
		roundTrip(t, a, 1000)
	}
	for range 20 {
		x, err := a.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		write(t, x, "x")
		x.Reset(protocol.CodeAborted)
	}
	time.Sleep(10 * time.Second)
	for _, s := range []tunnel.Session{a, b} {
		if st := s.Stats(); st.Streams != 0 || st.Unread != 0 {
			t.Errorf("after all ended: %+v", st)
		}
	}
}
