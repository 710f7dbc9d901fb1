package bridge

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// sayAgain is when a warning that was said is said again.
const sayAgain = 10 * time.Minute

// said keeps a loop from saying the same every some seconds.
type said struct {
	mu   sync.Mutex
	text string
	at   time.Time
}

// over says that it went well; the next error is said whatever it is.
func (s *said) over() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = ""
}

func (s *said) worth(text string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if text == s.text && now.Sub(s.at) < sayAgain {
		return false
	}
	s.text, s.at = text, now
	return true
}

// say warns of an error when it is news.
func (b *Bridge) say(s *said, now time.Time, msg string, wait time.Duration, err error) {
	sayTo(b.log, s, now, msg, wait, err)
}

func sayTo(log *slog.Logger, s *said, now time.Time, msg string, wait time.Duration, err error) {
	level := slog.LevelDebug
	if s.worth(err.Error(), now) {
		level = slog.LevelWarn
	}
	log.Log(context.Background(), level, msg, "in", wait.Round(time.Millisecond), "err", err)
}

// A complaint is about single messages, of which there may be very many.
type complaint struct {
	mu   sync.Mutex
	at   time.Time
	more int // since then, not said
}

// complain warns of a message, once in ten seconds.
func (b *Bridge) complain(topic, msg string) {
	c := &b.complained
	now := time.Now()
	c.mu.Lock()
	if now.Sub(c.at) < 10*time.Second {
		c.more++
		c.mu.Unlock()
		return
	}
	more := c.more
	c.at, c.more = now, 0
	c.mu.Unlock()
	if len(topic) > 100 {
		topic = topic[:100]
	}
	b.log.Warn(msg, "topic", topic, "others_before", more)
}
