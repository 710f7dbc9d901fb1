package relay

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestClockJumpIsTold(t *testing.T) {
	for _, by := range []time.Duration{-40 * 24 * time.Hour, 3 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			var offset atomic.Int64
			w := clockWatch{now: func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }}
			ctx, cancel := context.WithCancel(t.Context())
			told := make(chan time.Duration, 10)
			ended := make(chan error, 1)
			go func() { ended <- w.run(ctx, func(by time.Duration) { told <- by }) }()

			time.Sleep(time.Hour) // virtual
			offset.Store(int64(time.Minute))
			time.Sleep(time.Hour) // virtual
			if len(told) > 0 || w.warning() != "" {
				t.Fatal("an ordinary hour, or a small correction, was called a jump")
			}
			offset.Store(int64(by))
			time.Sleep(time.Hour) // virtual
			if len(told) != 1 || (<-told-by).Abs() > 2*time.Minute {
				t.Fatalf("the jump by %v was not told once, as it was", by)
			}
			if w.warning() == "" || strings.Contains(w.warning(), "back") != (by < 0) {
				t.Fatalf("status says %q", w.warning())
			}
			time.Sleep(2 * clockRemind) // virtual
			if w.warning() != "" {
				t.Fatal("status never stops telling")
			}
			cancel()
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
		})
	}
}
