package relay

import (
	"log/slog"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
)

// How many refusals the audit log takes: strangers, who are anybody with a
// certificate of their own making, get a small allowance, so that they can
// neither fill the disk nor drown what matters, the devices that we know.
const (
	strangersBurst = 20
	strangersEvery = 10 * time.Minute
	knownBurst     = 200
	knownEvery     = 30 * time.Second
)

// denials thins out audit lines about those who were refused. What was left
// out is counted into the next line.
type denials struct {
	strangers, known *limiter

	mu      sync.Mutex // guards skipped
	skipped map[bool]int
}

func newDenials() *denials {
	return &denials{
		strangers: newLimiter(strangersBurst, strangersEvery), known: newLimiter(knownBurst, knownEvery),
		skipped: map[bool]int{},
	}
}

// take reports whether a line may be written, and how many of its kind were
// left out since the last one.
func (d *denials) take(stranger bool, now time.Time) (skipped int, ok bool) {
	l := d.known
	if stranger {
		l = d.strangers
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !l.take(now) {
		d.skipped[stranger]++
		return 0, false
	}
	skipped = d.skipped[stranger]
	delete(d.skipped, stranger)
	return skipped, true
}

// denied writes to the audit log who was refused.
func (r *Relay) denied(name string, attrs ...slog.Attr) {
	stranger := false
	for _, a := range attrs {
		stranger = stranger || a.Key == "reason" && a.Value.String() == door.DeniedUnknown
	}
	skipped, ok := r.denials.take(stranger, r.now())
	if !ok {
		return
	}
	if skipped > 0 {
		attrs = append(attrs, slog.Int("left_out_before", skipped))
	}
	r.event(name, attrs...)
}
