package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
)

// memPipe is one direction of a memory connection: buffered, bounded.
type memPipe struct {
	mu   sync.Mutex
	cond *sync.Cond
	buf  []byte
	end  bool  // the writer is done
	err  error // aborted
}

const memPipeSize = 64 << 10

func newMemPipe() *memPipe {
	p := &memPipe{}
	p.cond = sync.NewCond(&p.mu)
	return p
}

func (p *memPipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.buf) == 0 && !p.end && p.err == nil {
		p.cond.Wait()
	}
	switch {
	case p.err != nil:
		return 0, p.err
	case len(p.buf) == 0:
		return 0, io.EOF
	}
	n := copy(b, p.buf)
	p.buf = p.buf[n:]
	p.cond.Broadcast()
	return n, nil
}

func (p *memPipe) write(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(b) > 0 {
		for len(p.buf) == memPipeSize && p.err == nil && !p.end {
			p.cond.Wait()
		}
		if p.err != nil {
			return n, p.err
		}
		if p.end {
			return n, io.ErrClosedPipe
		}
		k := min(len(b), memPipeSize-len(p.buf))
		p.buf = append(p.buf, b[:k]...)
		b, n = b[k:], n+k
		p.cond.Broadcast()
	}
	return n, nil
}

func (p *memPipe) finish(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.end = true
	} else if p.err == nil && !(p.end && len(p.buf) == 0) {
		p.err = err
	}
	p.cond.Broadcast()
}

// memStream is a Stream in memory, without deadlines.
type memStream struct {
	in, out *memPipe
	closed  atomic.Bool
}

func memPair() (a, b *memStream) {
	x, y := newMemPipe(), newMemPipe()
	return &memStream{in: x, out: y}, &memStream{in: y, out: x}
}

func (m *memStream) Read(b []byte) (int, error)  { return m.in.read(b) }
func (m *memStream) Write(b []byte) (int, error) { return m.out.write(b) }
func (m *memStream) CloseWrite() error           { m.out.finish(nil); return nil }
func (m *memStream) Close() error {
	if !m.closed.Swap(true) {
		m.out.finish(nil)
		m.in.finish(&ResetError{Code: protocol.CodeAborted})
	}
	return nil
}

func (m *memStream) Reset(code protocol.Code) {
	if !m.closed.Swap(true) {
		m.out.finish(&ResetError{Code: code, Remote: true})
		m.in.finish(&ResetError{Code: code, Remote: true})
	}
}
func (m *memStream) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (m *memStream) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (m *memStream) SetDeadline(time.Time) error      { return nil }
func (m *memStream) SetReadDeadline(time.Time) error  { return nil }
func (m *memStream) SetWriteDeadline(time.Time) error { return nil }

var _ Stream = (*memStream)(nil)

// spliced joins two memory pairs and returns the far ends. The channel gets
// the result; its goroutine must have ended when the bubble ends.
func spliced(ctx context.Context, o SpliceOptions) (left, right *memStream, result <-chan SpliceResult) {
	left, a := memPair()
	b, right := memPair()
	c := make(chan SpliceResult, 1)
	go func() { c <- Splice(ctx, a, b, o) }()
	return left, right, c
}

func mustWrite(t *testing.T, w io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatal(err)
	}
}

func mustReadAll(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got, err := io.ReadAll(r)
	if err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q and a clean end", got, err, want)
	}
}

func TestSpliceHalfClose(t *testing.T) {
	for _, forward := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			left, right, result := spliced(t.Context(), SpliceOptions{})
			client, server := left, right
			if !forward {
				client, server = right, left
			}
			mustWrite(t, client, "question")
			client.CloseWrite()
			mustReadAll(t, server, "question")
			time.Sleep(6 * time.Minute) // virtual: the reply may take its time
			mustWrite(t, server, "the whole answer")
			server.CloseWrite()
			mustReadAll(t, client, "the whole answer")
			r := <-result
			if r.Err != nil || r.Code != protocol.CodeOK {
				t.Fatalf("result %+v", r)
			}
			if !forward {
				r.AtoB, r.BtoA = r.BtoA, r.AtoB
			}
			if r.AtoB != 8 || r.BtoA != 16 {
				t.Fatalf("counted %d and %d bytes", r.AtoB, r.BtoA)
			}
		})
	}
}

func TestSpliceCarriesResetCode(t *testing.T) {
	for _, forward := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			left, right, result := spliced(t.Context(), SpliceOptions{})
			if !forward {
				left, right = right, left
			}
			mustWrite(t, left, "half a messa")
			synctest.Wait()
			left.Reset(protocol.CodeOverload)
			_, err := io.ReadAll(right)
			if e, ok := errors.AsType[*ResetError](err); !ok || e.Code != protocol.CodeOverload {
				t.Fatalf("the other end read %v, want a reset with the same code", err)
			}
			if r := <-result; r.Err == nil || r.Code != protocol.CodeOverload {
				t.Fatalf("result %+v", r)
			}
		})
	}
}

// A reset after a clean half-close must not leave the other end with two clean ends.
func TestSpliceResetAfterHalfClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left, right, result := spliced(t.Context(), SpliceOptions{})
		left.CloseWrite()
		mustReadAll(t, right, "")
		right.Reset(protocol.CodeAborted)
		if _, err := io.ReadAll(left); err == nil {
			t.Fatal("an abort arrived as a clean end")
		}
		if r := <-result; r.Err == nil {
			t.Fatalf("result %+v", r)
		}
	})
}

func TestSpliceContext(t *testing.T) {
	for _, tc := range []struct {
		name  string
		cause error
		want  protocol.Code
	}{
		{"plain", nil, protocol.CodeAborted},
		{"cause with a code", &CloseError{Code: protocol.CodeRevoked}, protocol.CodeRevoked},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				left, right, result := spliced(ctx, SpliceOptions{})
				go left.Write(make([]byte, 10*memPipeSize)) // nobody reads: also a blocked Write must end
				synctest.Wait()
				cancel(tc.cause)
				r := <-result
				if r.Err == nil || r.Code != tc.want {
					t.Fatalf("result %+v", r)
				}
				for _, end := range []*memStream{left, right} {
					if _, err := io.ReadAll(end); err == nil {
						t.Fatal("an end saw a clean end")
					}
				}
			})
		})
	}
}

func TestSpliceIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		left, right, result := spliced(t.Context(), SpliceOptions{Idle: time.Minute})
		for i := range 5 { // one byte in one direction keeps both alive
			time.Sleep(50 * time.Second)
			from, to := left, right
			if i%2 == 1 {
				from, to = right, left
			}
			mustWrite(t, from, ".")
			if _, err := to.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		r := <-result
		if took := time.Since(start); took != 5*50*time.Second+time.Minute {
			t.Errorf("ended after %v", took)
		}
		if r.Code != protocol.CodeIdle {
			t.Errorf("result %+v", r)
		}
		if _, err := right.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("the end of an idle splice looks like %v", err)
		}
	})
}

// A peer that stops reading is idle as well, however much we hold for it.
func TestSpliceIdleWhileBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left, _, result := spliced(t.Context(), SpliceOptions{Idle: time.Minute})
		go left.Write(make([]byte, 10*memPipeSize))
		if r := <-result; r.Code != protocol.CodeIdle {
			t.Errorf("result %+v", r)
		}
	})
}

func TestSpliceCountsWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up, down atomic.Int64
		left, right, result := spliced(t.Context(), SpliceOptions{OnBytes: func(ab, ba int64) {
			up.Add(ab)
			down.Add(ba)
		}})
		payload := bytes.Repeat([]byte("0123456789"), 100_000)
		go left.Write(payload)
		got := make([]byte, len(payload))
		if _, err := io.ReadFull(right, got); err != nil || !bytes.Equal(got, payload) {
			t.Fatal("payload damaged", err)
		}
		mustWrite(t, right, "ok")
		synctest.Wait()
		if up.Load() != int64(len(payload)) || down.Load() != 2 {
			t.Errorf("counted %d and %d while running", up.Load(), down.Load())
		}
		left.CloseWrite()
		right.CloseWrite()
		if r := <-result; r.Err != nil || r.AtoB != int64(len(payload)) {
			t.Errorf("result %+v", r)
		}
	})
}

func TestAbortOfUnknownConnCloses(t *testing.T) {
	a, b := net.Pipe()
	Abort(a, protocol.CodeAborted)
	b.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := b.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
}
