package e2e_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/sallyport/sallyport/test/world"
)

// openAll opens one connection of each kind that a visitor can have, makes
// sure that each works, and watches how it ends.
func openAll(w *world.World, p *world.Phone) []*world.Watch {
	w.T.Helper()
	return []*world.Watch{openRaw(w, p), openDrip(w, p, false), openDrip(w, p, true), openSocket(w, p)}
}

// openDrip begins a download that gets a line a second.
func openDrip(w *world.World, p *world.Phone, http2 bool) *world.Watch {
	w.T.Helper()
	res, err := p.Open(homeURL+"/drip?every=1s", http2)
	if err != nil {
		w.T.Fatal(err)
	}
	what := "download over HTTP/1.1"
	if http2 {
		what = "download over HTTP/2"
	}
	if res.StatusCode != 200 || (res.ProtoMajor == 2) != http2 {
		w.T.Fatalf("%s: %s %s", what, res.Proto, res.Status)
	}
	h := w.Watch(what, res.Body)
	w.Until(time.Second, what+" begins", func() bool { return h.Bytes() > 0 })
	return h
}

// openRaw opens a connection to the echo and sends a line a second.
func openRaw(w *world.World, p *world.Phone) *world.Watch {
	w.T.Helper()
	c, err := p.Dial("echo.example.org")
	if err != nil {
		w.T.Fatal(err)
	}
	h := w.Watch("raw connection", c)
	w.Go(func() {
		for h.Ended() == nil {
			if _, err := io.WriteString(c, "a line\n"); err != nil {
				return
			}
			w.Sleep(time.Second)
		}
	})
	w.Until(time.Second, "the echo answers", func() bool { return h.Bytes() > 0 })
	return h
}

// openSocket opens a WebSocket, asks one thing, and is silent from then on.
func openSocket(w *world.World, p *world.Phone) *world.Watch {
	w.T.Helper()
	c, err := p.WebSocket(homeURL + "/ws")
	if err != nil {
		w.T.Fatal(err)
	}
	ask(w.T, c)
	return w.Watch("idle WebSocket", socketReader{c})
}

// ask sends a message and reads it back.
func ask(t *testing.T, c *websocket.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.Write(ctx, websocket.MessageText, []byte("ping?")); err != nil {
		t.Fatal(err)
	}
	if _, got, err := c.Read(ctx); err != nil || string(got) != "ping?" {
		t.Fatalf("the WebSocket answers %q, %v", got, err)
	}
}

// A socketReader reads the payload of messages. The clean end of a WebSocket
// is a Close frame; an end of the bytes below without one is none.
type socketReader struct{ c *websocket.Conn }

func (r socketReader) Read(b []byte) (int, error) {
	_, data, err := r.c.Read(context.Background())
	switch {
	case err != nil && websocket.CloseStatus(err) >= 0:
		err = io.EOF
	case errors.Is(err, io.EOF):
		err = errNoCloseFrame
	}
	return copy(b, data), err
}

var errNoCloseFrame = errors.New("the WebSocket ended without a Close frame")

// allCut checks that every connection was told of its end.
func allCut(t *testing.T, all []*world.Watch, since time.Time, limit time.Duration) {
	t.Helper()
	for _, h := range all {
		if err := h.Cut(since, limit); err != nil {
			t.Error(err)
		} else {
			t.Logf("%s: cut after %v: %v", h.What, h.After(since), h.Ended())
		}
	}
}

// allLive checks that every connection is still there.
func allLive(t *testing.T, all []*world.Watch) {
	t.Helper()
	for _, h := range all {
		if err := h.Ended(); err != nil {
			t.Errorf("%s: ended: %v", h.What, err)
		}
	}
}
