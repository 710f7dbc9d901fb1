package e2e_test

import (
	"io"
	"testing"
	"time"

	"github.com/sallyport/sallyport/test/world"
)

// A WebSocket on which nobody says a word lives for hours.
func TestIdleWebSocket(t *testing.T) {
	world.Run(t, func(w *world.World) {
		_, _, p := standard(w)
		c, err := p.WebSocket(homeURL + "/ws")
		if err != nil {
			t.Fatal(err)
		}
		ask(t, c)
		w.Sleep(6 * time.Hour)
		ask(t, c)
	})
}

// A download has no time limit, however slowly the visitor reads, and arrives
// whole.
func TestSlowDownload(t *testing.T) {
	const size, step = 24 << 20, 32 << 10 // 768 steps of a second
	for _, http2 := range []bool{true, false} {
		name := "HTTP/1.1"
		if http2 {
			name = "HTTP/2"
		}
		t.Run(name, func(t *testing.T) {
			world.Run(t, func(w *world.World) {
				_, _, p := standard(w)
				res, err := p.Open(homeURL+"/bytes?n=25165824", http2)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				start := time.Now()
				buf := make([]byte, step)
				for at := int64(0); at < size; at += step {
					if _, err := io.ReadFull(res.Body, buf); err != nil {
						t.Fatalf("after %v and %d bytes: %v", time.Since(start), at, err)
					}
					for i, b := range buf {
						if b != world.Pattern(at+int64(i)) {
							t.Fatalf("byte %d is wrong", at+int64(i))
						}
					}
					w.Sleep(time.Second)
				}
				if n, err := res.Body.Read(buf); n != 0 || err != io.EOF {
					t.Errorf("after the last byte: %d, %v", n, err)
				}
				if took := time.Since(start); took < 10*time.Minute {
					t.Errorf("it took %v only", took)
				}
			})
		})
	}
}
