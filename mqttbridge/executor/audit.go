package executor

import (
	"sync"
	"time"
)

// A budget bounds how many lines about refusals are written: whoever can reach
// the relay's end of the stream can cause one with each frame. What is left out
// is counted and said in the next line. What a trusted device signed has a
// budget of its own: no flood of anything else hides that it tried.
type budget struct {
	mu     sync.Mutex // guards the fields
	tokens float64
	at     time.Time
	hidden uint64
}

const (
	budgetBurst = 200
	budgetEvery = time.Minute // for one more line
)

// take asks for one line; hidden is how many were left out since the last one.
func (b *budget) take() (hidden uint64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.at.IsZero() {
		b.tokens = budgetBurst
	} else {
		b.tokens = min(budgetBurst, b.tokens+float64(now.Sub(b.at))/float64(budgetEvery))
	}
	b.at = now
	if b.tokens < 1 {
		b.hidden++
		return 0, false
	}
	b.tokens--
	hidden, b.hidden = b.hidden, 0
	return hidden, true
}

// note writes a line that nothing depends on.
func (e *Executor) note(event string, attrs map[string]any) {
	if err := e.audit.add(event, attrs); err != nil {
		e.log.Error("cannot write the log of commands", "event", event, "attrs", attrs, "err", err)
	}
}

// repeated is the event of a command that came before. It is signed, but the
// relay can send it as often as it likes.
const repeated = "command.repeated"

// noteRefusal writes a line about something that did not run.
func (e *Executor) noteRefusal(event string, attrs map[string]any) {
	b := &e.strangers
	if attrs["signed"] == true && event != repeated {
		b = &e.devices
	}
	hidden, ok := b.take()
	if !ok {
		return
	}
	if hidden > 0 {
		attrs["left_out"] = hidden
	}
	e.note(event, attrs)
}
