package scep

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/relay/enroll/scep/cms"
)

// endless is a body without end.
type endless struct{ read int }

func (e *endless) Read(p []byte) (int, error) {
	e.read += len(p)
	if e.read > 16<<20 {
		return 0, io.ErrUnexpectedEOF
	}
	return len(p), nil
}

func TestBodyIsBoundedInSize(t *testing.T) {
	w := newWorld(t)
	body := new(endless)
	rec := httptest.NewRecorder()
	w.server.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/scep?operation=PKIOperation", body))
	if rec.Code != http.StatusBadRequest || body.read > 4*cms.MaxBytes {
		t.Errorf("status %d after %d bytes", rec.Code, body.read)
	}
}

// TestBodyIsBoundedInTime, with virtual time: a sender that stalls is cut off,
// and one that was quick does not lose its time for the answer.
func TestBodyIsBoundedInTime(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		cfg := w.server.cfg
		cfg.Source = func(*http.Request) netip.Addr { return netip.Addr{} }
		ours, theirs := net.Pipe()
		srv := &http.Server{Handler: New(cfg)}
		ln := &pipeListener{conn: ours, closed: make(chan struct{})}
		done := make(chan struct{})
		go func() {
			defer close(done)
			srv.Serve(ln)
		}()
		started := time.Now()
		io.WriteString(theirs, "POST /scep?operation=PKIOperation HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
		resp, err := http.ReadResponse(bufio.NewReader(theirs), nil)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(started); resp.StatusCode != http.StatusBadRequest || took != readTime {
			t.Errorf("%s after %v", resp.Status, took)
		}
		theirs.Close()
		srv.Close()
		<-done
	})
}

// A pipeListener hands out one connection.
type pipeListener struct {
	conn   net.Conn
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	if conn := l.conn; conn != nil {
		l.conn = nil
		return conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *pipeListener) Close() error   { close(l.closed); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// TestSlowAnswerIsNotCut, with virtual time: the limit is for reading only.
func TestSlowAnswerIsNotCut(t *testing.T) {
	w := newWorld(t)
	c := newClient(t, w)
	c.plain = csr(t, someRSA())
	body := c.message()
	synctest.Test(t, func(t *testing.T) {
		cfg := w.server.cfg
		cfg.Apply = func(ctx context.Context, _ string, _ []byte, _ netip.Addr, _ string) (string, *x509.Certificate, error) {
			select {
			case <-time.After(3 * readTime):
				return "pending", nil, nil
			case <-ctx.Done():
				return "", nil, ctx.Err()
			}
		}
		cfg.Source = func(*http.Request) netip.Addr { return netip.Addr{} }
		ours, theirs := net.Pipe()
		srv := &http.Server{Handler: New(cfg)}
		ln := &pipeListener{conn: ours, closed: make(chan struct{})}
		done := make(chan struct{})
		go func() {
			defer close(done)
			srv.Serve(ln)
		}()
		fmt.Fprintf(theirs, "POST /scep?operation=PKIOperation HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		resp, err := http.ReadResponse(bufio.NewReader(theirs), nil)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := cms.Verify(data)
		if err != nil {
			t.Fatalf("%s, %q: %v", resp.Status, data, err)
		}
		if _, got, _ := signed.Attribute(oidStatus); string(got) != "3" {
			t.Errorf("status %q", got)
		}
		theirs.Close()
		srv.Close()
		<-done
	})
}

// TestWorkIsBounded: with all hands busy the next message waits, and whoever
// hangs up does not cost anything any more.
func TestWorkIsBounded(t *testing.T) {
	w := newWorld(t)
	w.codes["code-1"] = "queue"
	c := newClient(t, w)
	c.plain = csr(t, someRSA(), printable("code-1"))
	body := c.message()
	synctest.Test(t, func(t *testing.T) {
		cfg := w.server.cfg
		cfg.Source = func(*http.Request) netip.Addr { return netip.Addr{} }
		s := New(cfg)
		for range maxAtOnce {
			s.busy <- struct{}{}
		}
		post := func(ctx context.Context, done chan<- int) {
			rec := httptest.NewRecorder()
			s.ServeHTTP(rec, httptest.NewRequestWithContext(ctx, http.MethodPost, "/scep?operation=PKIOperation", bytes.NewReader(body)))
			done <- rec.Body.Len()
		}
		ctx, hangUp := context.WithCancel(t.Context())
		gone, served := make(chan int), make(chan int)
		go post(ctx, gone)
		synctest.Wait()
		hangUp()
		if n := <-gone; n != 0 || w.applications() != 0 {
			t.Errorf("who hung up was answered by %d bytes", n)
		}
		go post(t.Context(), served)
		synctest.Wait()
		if n := w.applications(); n != 0 {
			t.Errorf("%d messages were worked on with no hand free", n)
		}
		<-s.busy
		if n := <-served; n == 0 || w.applications() != 1 {
			t.Errorf("with a free hand: %d bytes, %d applications", n, w.applications())
		}
		if len(s.busy) != maxAtOnce-1 {
			t.Errorf("%d hands are busy, want %d", len(s.busy), maxAtOnce-1)
		}
	})
}
