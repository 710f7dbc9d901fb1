package tunneltest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// TestSession runs the conformance suite. Every case runs in a synctest
// bubble of its own, in which it calls pair once for both ends of a fresh
// session; pair registers with t.Cleanup whatever has to end with it. A case
// fails when a goroutine is left behind, because then its bubble does.
func TestSession(t *testing.T, pair func(t *testing.T) (a, b tunnel.Session)) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, a, b tunnel.Session)
	}{
		// How streams and sessions end.
		{"half-close", testHalfClose},
		{"half-close, then six minutes of reply", testLongReply},
		{"empty stream", testEmptyStream},
		{"reset is not an end", testResetIsNotEnd},
		{"reset after half-close", testResetAfterHalfClose},
		{"reset of an unread stream by its writer", testResetUnreadByWriter},
		{"reset of an unread stream by its reader", testResetUnreadByReader},
		{"reset unblocks its own side", testResetUnblocks},
		{"close delivers and refuses", testClose},
		{"close during a write is no clean end", testCloseDuringWrite},
		{"close twice", testCloseTwice},
		{"session close tells code and reason", testSessionClose},
		{"session close keeps what had ended", testSessionCloseKeeps},
		{"session close wakes a half-closed stream", testSessionCloseWakes},
		{"nothing is left", testNothingLeft},

		// How bytes flow.
		{"a thousand streams", testThousandStreams},
		{"large transfer", testLargeTransfer},
		{"a stalled reader stalls nobody else", testStalledReader},
		{"fifty stalled streams", testFiftyStalled},
		{"windows grow", testWindowGrows},

		// How calls end in time.
		{"read deadline", testReadDeadline},
		{"write deadline", testWriteDeadline},
		{"open and accept heed their context", testContexts},
		{"stats", testStats},
	} {
		t.Run(c.name, func(t *testing.T) {
			Bubble(t, func(t *testing.T) {
				a, b := pair(t)
				c.run(t, a, b)
			})
		})
	}
}

// open returns both ends of a stream that a opened, one byte already read.
func open(t *testing.T, a, b tunnel.Session) (sa, sb tunnel.Stream) {
	t.Helper()
	sa, err := a.OpenStream(t.Context())
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	if _, err := sa.Write([]byte{'!'}); err != nil {
		t.Fatalf("first write: %v", err)
	}
	sb, err = b.AcceptStream(t.Context())
	if err != nil {
		t.Fatalf("accept: %v", err)
	}
	if _, err := io.ReadFull(sb, make([]byte, 1)); err != nil {
		t.Fatalf("first read: %v", err)
	}
	return sa, sb
}

// wantReset checks an error of a stream that was reset.
func wantReset(t *testing.T, what string, err error, code protocol.Code, remote bool) {
	t.Helper()
	e, ok := errors.AsType[*tunnel.ResetError](err)
	if !ok || e.Code != code || e.Remote != remote {
		t.Errorf("%s: got %v, want a reset with code %v, remote %v", what, err, code, remote)
	}
}

// readAll reads until the clean end.
func readAll(t *testing.T, s tunnel.Stream, want string) {
	t.Helper()
	if got, err := io.ReadAll(s); err != nil || string(got) != want {
		t.Errorf("read %q, %v; want %q and a clean end", got, err, want)
	}
}

func write(t *testing.T, s tunnel.Stream, what string) {
	t.Helper()
	if n, err := io.WriteString(s, what); err != nil || n != len(what) {
		t.Errorf("write of %q: %d, %v", what, n, err)
	}
}

// fill writes until the peer's window is full, and returns how much that was.
func fill(t *testing.T, s tunnel.Stream) (total int) {
	t.Helper()
	s.SetWriteDeadline(time.Now().Add(30 * time.Second))
	defer s.SetWriteDeadline(time.Time{})
	buf := make([]byte, 64<<10)
	for {
		n, err := s.Write(buf)
		total += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return total
		}
		if err != nil {
			t.Fatalf("fill: %v after %d bytes", err, total)
		}
	}
}

// echo serves the streams that s accepts until the session ends.
func echo(s tunnel.Session) {
	for {
		st, err := s.AcceptStream(context.Background())
		if err != nil {
			return
		}
		go func() {
			defer st.Close()
			if _, err := io.Copy(st, st); err == nil {
				st.CloseWrite()
			}
		}()
	}
}

// roundTrip sends random bytes on a new stream and wants them back.
func roundTrip(t *testing.T, s tunnel.Session, size int) {
	t.Helper()
	st, err := s.OpenStream(t.Context())
	if err != nil {
		t.Errorf("open: %v", err)
		return
	}
	defer st.Close()
	exchange(t, st, size)
}

// exchange is roundTrip on a stream that is there.
func exchange(t *testing.T, st tunnel.Stream, size int) {
	t.Helper()
	sent := randomBytes(size)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := st.Write(sent); err != nil {
			t.Errorf("write: %v", err)
		}
		if err := st.CloseWrite(); err != nil {
			t.Errorf("close write: %v", err)
		}
	})
	got, err := io.ReadAll(st)
	wg.Wait()
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("echo of %d bytes: %d bytes came back, equal %v, error %v", size, len(got), bytes.Equal(got, sent), err)
	}
}

func randomBytes(n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(n)})
	b := make([]byte, n)
	r.Read(b)
	return b
}
