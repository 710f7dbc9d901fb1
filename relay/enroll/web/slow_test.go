package web

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/relay/enroll"
)

// pipes is a listener whose connections are made in memory.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	c, ok := <-p.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.conns) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// dialIn serves h in a bubble and returns a connection to it.
func dialIn(t *testing.T, h http.Handler) net.Conn {
	t.Helper()
	here, there := net.Pipe()
	l := &pipes{conns: make(chan net.Conn, 1)}
	l.conns <- there
	srv := &http.Server{Handler: h}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		here.Close()
		srv.Close()
		<-served
	})
	return here
}

// TestSlowBody: whoever sends a body by the drop is answered in time.
func TestSlowBody(t *testing.T) {
	w := newWorld(t)
	for head, status := range map[string]int{
		"POST /api/code HTTP/1.1\r\nContent-Type: application/json": 400,
		"POST /api/code HTTP/1.1\r\nContent-Type: text/plain":       415,
		"POST /nowhere HTTP/1.1":                                    404,
		"GET / HTTP/1.1":                                            200,
	} {
		synctest.Test(t, func(t *testing.T) {
			c := dialIn(t, w.pages.Enroll())
			start := time.Now()
			io.WriteString(c, head+"\r\nHost: enroll.home.test\r\nContent-Length: 100\r\n\r\n{")
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || resp.StatusCode != status {
				t.Fatalf("%s: %v, %v", head, resp, err)
			}
			if took := time.Since(start); took > readTimeout {
				t.Errorf("%s: answered after %v", head, took)
			}
		})
	}
}

// slowDesk takes longer than a body may.
type slowDesk struct{ *fakeDesk }

func (d slowDesk) Look(ctx context.Context, from netip.Addr, code string) (enroll.Invitation, error) {
	select {
	case <-time.After(2 * readTimeout):
	case <-ctx.Done():
		return enroll.Invitation{}, context.Cause(ctx)
	}
	return d.fakeDesk.Look(ctx, from, code)
}

// TestSlowDesk: the time of a body is not the time of an answer.
func TestSlowDesk(t *testing.T) {
	w := newWorld(t)
	w.pages.cfg.Desk = slowDesk{w.desk}
	w.desk.codes[code] = enroll.Invitation{}
	synctest.Test(t, func(t *testing.T) {
		c := dialIn(t, w.pages.Enroll())
		body := `{"code":"` + code + `"}`
		fmt.Fprintf(c, "POST /api/code HTTP/1.1\r\nHost: enroll.home.test\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v, %v", resp, err)
		}
	})
}

// TestReaderThatStops: a stream that nobody reads any more ends, and does not
// wait for the connection to.
func TestReaderThatStops(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		made := pending(t, w)
		c := dialIn(t, w.pages.Enroll())
		fmt.Fprintf(c, "GET /api/requests/%s/events HTTP/1.1\r\nHost: enroll.home.test\r\nAuthorization: Bearer %s\r\n\r\n", made.ID, ticket)
		synctest.Wait()
		open := func() int {
			w.pages.mu.Lock()
			defer w.pages.mu.Unlock()
			return w.pages.streams[made.ID]
		}
		if open() != 1 {
			t.Fatal("no stream is open")
		}
		time.Sleep(writeTimeout + heartbeat)
		synctest.Wait()
		if open() != 0 {
			t.Error("the stream waits for its reader")
		}
	})
}
