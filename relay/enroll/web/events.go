package web

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/sallyport/sallyport/relay/enroll"
)

const (
	heartbeat    = 20 * time.Second // keeps middleboxes from cutting a silent stream
	streamLife   = 30 * time.Minute // then the page asks again: a stream that nobody reads does not stay for ever
	writeTimeout = 30 * time.Second
	maxStreams   = 4 // of one request: a page and its reconnects
)

// events streams the states of a request until the last one.
func (p *Pages) events(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	// Asked for before the state is: no change falls in between.
	changed := p.cfg.Desk.Changed(id)
	q, f := p.find(r)
	if f == nil && !p.openStream(id) {
		f = bad(http.StatusTooManyRequests, "this request is watched too often already", "Close the other pages that show it.")
		f.Retry = 5
	}
	if f != nil {
		f.write(w)
		return
	}
	defer p.closeStream(id)
	s := stream{w: w, control: http.NewResponseController(w)}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // proxies before us
	end := time.NewTimer(streamLife)
	defer end.Stop()
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		if s.send(p.request(q)) != nil || q.State != enroll.Pending {
			return
		}
		for waiting := true; waiting; {
			select {
			case <-changed:
				waiting = false
			case <-beat.C:
				if s.write(": waiting\n\n") != nil {
					return
				}
			case <-end.C:
				return
			case <-r.Context().Done():
				return
			}
		}
		changed = p.cfg.Desk.Changed(id)
		if q, f = p.find(r); f != nil {
			return // gone meanwhile: the next call says so
		}
	}
}

type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func (s stream) send(q request) error {
	data, err := json.Marshal(q)
	if err != nil {
		return err
	}
	return s.write(fmt.Sprintf("event: state\ndata: %s\n\n", data))
}

func (s stream) write(text string) error {
	_ = s.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has one
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.control.Flush()
}

func (p *Pages) openStream(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.streams[id] >= maxStreams {
		return false
	}
	p.streams[id]++
	return true
}

func (p *Pages) closeStream(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.streams[id]--; p.streams[id] <= 0 {
		delete(p.streams, id)
	}
}
