package bridge

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
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

// complain warns of a message, once in ten seconds for each c.
func (b *Bridge) complain(c *complaint, topic, msg string) {
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
	b.log.Warn(msg, "topic", harmless(topic, maxTopicSaid), "others_before", more)
}

// Bytes of what is repeated in logs and Status.
const (
	maxTopicSaid = 100
	maxRelaySaid = 200 // of the relay's own words
	maxLinkSaid  = 400 // of an error of the link, with ours around them
)

// harmless makes words of the other side fit for a log and a terminal: without
// what does not show, moves the cursor or turns the direction of writing, and
// of at most so many bytes.
func harmless(s string, most int) string {
	if len(s) > 4*most { // most of what comes is short; the rest need not be looked at whole
		s = s[:4*most]
	}
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ' ' // of joined errors
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most-len("…")], "") + "…"
	}
	return s
}
