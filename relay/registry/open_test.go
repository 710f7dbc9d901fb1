package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

var ha = protocol.Open{Service: "ha"}

// timed opens a stream and says how long it took. Virtual time only.
func (f *fixture) timed(ctx context.Context) (tunnel.Stream, time.Duration, error) {
	began := time.Now()
	st, err := f.OpenStream(ctx, id(1), ha)
	return st, time.Since(began), err
}

func TestOpenStream(t *testing.T) {
	for _, c := range []struct {
		what     string
		sessions []func(*fakeSession, net.Conn) // oldest first
		later    func(*fakeSession, net.Conn)   // comes after two seconds
		want     error                          // nil: a stream
		took     time.Duration
	}{
		{what: "one session", sessions: []func(*fakeSession, net.Conn){answers}},
		{what: "refused by the agent", sessions: []func(*fakeSession, net.Conn){answers, refuses}, want: &ResultError{}},
		{what: "never there", want: ErrOffline},
		{what: "comes late", later: answers, want: ErrOffline},
		{what: "newest dies", sessions: []func(*fakeSession, net.Conn){answers, dies}},
		{what: "two die", sessions: []func(*fakeSession, net.Conn){answers, dies, dies}},
		{what: "last one dies, next comes", sessions: []func(*fakeSession, net.Conn){dies}, later: answers, took: time.Second},
		{what: "last one dies", sessions: []func(*fakeSession, net.Conn){dies}, want: ErrOffline, took: grace},
		{what: "stalls alone", sessions: []func(*fakeSession, net.Conn){dead}, want: ErrNoAnswer, took: openLimit},
		{what: "stalls after the open", sessions: []func(*fakeSession, net.Conn){stalls}, want: ErrNoAnswer, took: openLimit},
		{what: "stalls, newer comes", sessions: []func(*fakeSession, net.Conn){dead}, later: answers, took: time.Second + hurry},
		{what: "stalls, newer comes and stalls", sessions: []func(*fakeSession, net.Conn){dead}, later: dead, want: ErrNoAnswer, took: openLimit},
		{what: "stalls, older is there", sessions: []func(*fakeSession, net.Conn){answers, dead}, want: ErrNoAnswer, took: openLimit},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := fresh(t)
				f.join(t, 1)
				settle()
				var all []*fakeSession
				defer func() {
					for _, s := range all {
						s.Close(protocol.CodeOK, "")
					}
				}()
				for _, serve := range c.sessions {
					s := newSession(1, serve)
					all = append(all, s)
					f.attach(t, s, "i1")
				}
				if c.later != nil {
					s := newSession(1, c.later)
					all = append(all, s)
					time.AfterFunc(time.Second, func() { f.attach(t, s, "i1") })
				}
				st, took, err := f.timed(t.Context())
				switch want := c.want.(type) {
				case nil:
					if err != nil {
						t.Fatal(err)
					}
					if buf, err := readSome(st); buf != "hello from ha" {
						t.Errorf("read %q, %v", buf, err)
					}
					st.Close()
				case *ResultError:
					if !errors.As(err, &want) || want.Code != protocol.CodeBackendDown || want.Reason != "connection refused" {
						t.Errorf("got %v", err)
					}
				default:
					if !errors.Is(err, want) {
						t.Errorf("got %v, want %v", err, want)
					}
				}
				if took != c.took {
					t.Errorf("took %v, want %v", took, c.took)
				}
				// Whatever was tried in vain is reset, not leaked.
				synctest.Wait()
				for i, s := range all {
					if s.Err() == nil && s.opened() > 0 && st == nil && c.want != nil && s.resets() != s.opened() {
						if _, refused := c.want.(*ResultError); !refused {
							t.Errorf("session %d: %d streams, %d reset", i, s.opened(), s.resets())
						}
					}
				}
			})
		})
	}
}

func readSome(st net.Conn) (string, error) {
	buf := make([]byte, 64)
	n, err := st.Read(buf)
	return string(buf[:n]), err
}

func TestStalledSessionIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t)
		f.join(t, 1)
		stuck, good := newSession(1, dead), newSession(1, answers)
		f.attach(t, stuck, "i1")
		time.AfterFunc(10*time.Second, func() { f.attach(t, good, "i1") })
		st, took, err := f.timed(t.Context())
		if err != nil || took != 10*time.Second {
			t.Fatalf("took %v, %v", took, err)
		}
		st.Close()
		synctest.Wait()
		if stuck.resets() != 1 || good.resets() != 0 {
			t.Errorf("resets: stuck %d, good %d", stuck.resets(), good.resets())
		}
	})
}

func TestOpenStreamObeysContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t)
		f.join(t, 1)
		s := newSession(1, stalls)
		f.attach(t, s, "i1")
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("the visitor hung up")
		time.AfterFunc(time.Second, func() { cancel(why) })
		_, took, err := f.timed(ctx)
		if !errors.Is(err, why) || took != time.Second {
			t.Errorf("took %v, %v", took, err)
		}
		synctest.Wait()
		if s.resets() != 1 {
			t.Errorf("%d resets, want the stream reset", s.resets())
		}
	})
}

func TestStreamOutlivesItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t)
		f.join(t, 1)
		s := newSession(1, answers)
		f.attach(t, s, "i1")
		ctx, cancel := context.WithCancel(t.Context())
		st, _, err := f.timed(ctx)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		time.Sleep(time.Minute)
		if s.resets() != 0 {
			t.Error("the stream was reset by the end of the context that opened it")
		}
		if got, err := readSome(st); got != "hello from ha" {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func TestOfflineSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t)
		f.join(t, 1)
		s := newSession(1, answers)
		detach := f.attach(t, s, "i1")
		time.Sleep(time.Hour)
		s.Close(protocol.CodeOK, "")
		detach()
		left := time.Now()
		time.Sleep(time.Second)
		_, took, err := f.timed(t.Context())
		var off *OfflineError
		if !errors.As(err, &off) || !off.Since.Equal(left) {
			t.Errorf("got %v, want offline since %v", err, left)
		}
		if took != grace-time.Second {
			t.Errorf("waited %v for an agent that just left", took)
		}
		if _, took, _ := f.timed(t.Context()); took != 0 {
			t.Errorf("waited %v for an agent that is long gone", took)
		}
		if _, err := f.OpenStream(t.Context(), id(5), ha); err != ErrUnknownAgent {
			t.Errorf("unknown agent: %v", err)
		}
		if _, err := f.OpenStream(t.Context(), id(1), protocol.Open{Service: "Not a name"}); err == nil || errors.Is(err, ErrOffline) {
			t.Errorf("malformed open: %v", err)
		}
	})
}

func TestRevokeEndsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t)
		f.join(t, 1)
		f.attach(t, newSession(1, stalls), "i1")
		time.AfterFunc(time.Second, func() { _ = f.Revoke(t.Context(), id(1)) })
		if _, took, err := f.timed(t.Context()); !errors.Is(err, ErrRevoked) || took != time.Second {
			t.Errorf("took %v, %v", took, err)
		}
	})
}

// Sessions come and go while many visitors open streams.
func TestChurn(t *testing.T) {
	f := fresh(t)
	f.join(t, 1)
	keep := newSession(1, answers)
	f.attach(t, keep, "i1")
	ctx, stop := context.WithCancel(t.Context())
	var wg, churn sync.WaitGroup
	churn.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			s := newSession(1, answers)
			detach, err := f.Attach(s, fmt.Sprint("i", i%2))
			if err != nil {
				t.Error(err)
				return
			}
			f.Agents()
			s.Close(protocol.CodeInternal, "")
			detach()
		}
	})
	for range 8 {
		wg.Go(func() {
			for range 50 {
				st, err := f.OpenStream(ctx, id(1), ha)
				if err != nil {
					t.Error(err)
					return
				}
				st.Close()
			}
		})
	}
	wg.Wait()
	stop()
	churn.Wait()
}

// Over a real tunnel session.
func TestOverTunnel(t *testing.T) {
	agent, relay := tunneltest.Pair(t)
	f := fresh(t)
	f.join(t, 1)
	f.attach(t, known{relay}, "i1")
	go func() {
		for {
			st, err := agent.AcceptStream(t.Context())
			if err != nil {
				return
			}
			if o, err := protocol.ReadOpen(st); err != nil || o != ha {
				t.Errorf("open %+v, %v", o, err)
			}
			if err := protocol.WriteResult(st, protocol.Result{}); err != nil {
				t.Error(err)
			}
			if _, err := io.Copy(st, st); err != nil {
				t.Error(err)
			}
			st.CloseWrite()
		}
	}()
	st, err := f.OpenStream(t.Context(), id(1), ha)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := io.WriteString(st, "ping"); err != nil {
		t.Fatal(err)
	}
	if err := st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(st); string(got) != "ping" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// known gives a session the identity that joined.
type known struct{ tunnel.Session }

func (k known) Peer() tunnel.Peer {
	p := k.Session.Peer()
	p.ID = id(1)
	return p
}
