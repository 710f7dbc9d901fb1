package door

import (
	"time"

	"github.com/sallyport/sallyport/protocol"
)

// lookAgain is the longest time between two looks at the rights of a
// connection: a timer does not notice that the clock was set, and a long
// download no change that nobody called Recheck for.
const lookAgain = time.Minute

// unixNano is a time that an atomic can hold; 0 is the zero time.
func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// ends returns when the first right that this connection uses ends, zero if
// none does, and whether it uses any.
func (v *visit) ends() (first time.Time, uses bool) {
	earlier := func(t time.Time) {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if v.visitor.Device != nil {
		earlier(v.leaf.NotAfter)
		if n := v.until.Load(); n != 0 {
			earlier(time.Unix(0, n))
		}
	}
	held := v.held()
	for _, h := range held {
		earlier(h.device.Until)
	}
	return first, v.visitor.Device != nil || len(held) > 0
}

// rewatch sets the timer that ends the connection with its rights.
func (v *visit) rewatch() {
	end, uses := v.ends()
	if !uses {
		return
	}
	wait := lookAgain
	if !end.IsZero() {
		wait = min(max(end.Sub(v.door.cfg.Now()), 0), lookAgain)
	}
	wait += time.Millisecond
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.ended:
	case v.watch == nil:
		v.watch = time.AfterFunc(wait, v.look)
	default:
		v.watch.Reset(wait)
	}
}

// look ends the connection unless its rights were prolonged.
func (v *visit) look() {
	if !v.stands() {
		v.abort(protocol.CodeRevoked)
		return
	}
	v.rewatch()
}

func (v *visit) unwatch() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ended = true
	if v.watch != nil {
		v.watch.Stop()
	}
}
