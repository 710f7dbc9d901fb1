package relay

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	clockEvery  = time.Minute     // between two looks at the clock
	clockJump   = 5 * time.Minute // more than that in between is a jump: NTP slews what is less
	clockRemind = 24 * time.Hour  // how long status tells of one
)

// A clockWatch notices that the wall clock jumped. Certificates of devices and
// agents are judged by it: a jump shuts people out who did nothing, or lets in
// what had ended, and somebody has to say so.
type clockWatch struct {
	now  func() time.Time
	last atomic.Pointer[jump]
}

type jump struct {
	at time.Time // by the monotonic clock of this process
	by time.Duration
}

// run looks until ctx ends.
func (w *clockWatch) run(ctx context.Context, tell func(by time.Duration)) error {
	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	// Round strips the monotonic reading: what is left is the wall's alone.
	wall, began := w.now().Round(0), time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := w.now().Round(0)
		by := now.Sub(wall) - time.Since(began)
		wall, began = now, time.Now()
		if by.Abs() > clockJump {
			w.last.Store(&jump{at: began, by: by.Round(time.Second)})
			tell(by.Round(time.Second))
		}
	}
}

// warning is what status says of a jump, "" when there was none lately.
func (w *clockWatch) warning() string {
	j := w.last.Load()
	if j == nil || time.Since(j.at) > clockRemind {
		return ""
	}
	return fmt.Sprintf("this machine's clock %s %s ago; certificates are judged by it: check it with timedatectl",
		jumpWords(j.by), time.Since(j.at).Round(time.Minute))
}

func jumpWords(by time.Duration) string {
	if by < 0 {
		return fmt.Sprintf("jumped back by %v", -by)
	}
	return fmt.Sprintf("jumped forward by %v", by)
}

// watchClock logs jumps of the clock and leaves them for status.
func (r *Relay) watchClock(ctx context.Context) error {
	return r.clock.run(ctx, func(by time.Duration) {
		r.log.Warn("the clock of this machine jumped: certificates are judged by it", "by", by)
		r.event("clock.jumped", slog.Duration("by", by))
	})
}
