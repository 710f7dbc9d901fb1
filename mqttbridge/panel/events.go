package panel

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	pingEvery    = 15 * time.Second // keeps middleboxes awake and tells the page that the stream lives
	streamLife   = 30 * time.Minute // then the page asks again: a stream that nobody reads does not stay for ever
	writeTimeout = 30 * time.Second // for a visitor that does not read; above pingEvery, since HTTP/2 ends a stream at its deadline even when nothing waits to be written
)

// events streams what changes to one page.
func (p *Panel) events(w http.ResponseWriter, r *http.Request) {
	name := device(r)
	ctx, cancel := context.WithTimeout(r.Context(), streamLife)
	defer cancel()
	// Watched before the inventory is taken: no change falls in between.
	changes := p.cfg.Backend.Watch(ctx, name)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // proxies before us
	s := stream{w: w, control: http.NewResponseController(w)}
	if s.send("hello", p.inventory(name)) != nil {
		return
	}
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for {
		var err error
		select {
		case ev, more := <-changes:
			if !more {
				return // the device was removed, or the relay stops: the next call says which
			}
			err = s.tell(ev)
		case <-ping.C:
			if now, ok := p.cfg.Device(r); !ok || now != name {
				return
			}
			err = s.write("event: ping\ndata:\n\n")
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func (s stream) tell(ev mqttbridge.Event) error {
	switch {
	case ev.Home != nil:
		return s.send("home", ev.Home)
	case ev.Status != nil:
		return s.send("command", ev.Status)
	case ev.HomeGone != "":
		return s.send("gone", map[string]string{"home": ev.HomeGone})
	}
	return nil
}

// send writes one event. JSON has no line breaks: one data line is enough.
func (s stream) send(event string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.write("event: " + event + "\ndata: " + string(data) + "\n\n")
}

func (s stream) write(text string) error {
	_ = s.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has one
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.control.Flush()
}
