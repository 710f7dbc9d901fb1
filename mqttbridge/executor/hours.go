package executor

import (
	"fmt"
	"strings"
	"time"
)

// hours are parts of the day in minutes since midnight, by the clock on the
// wall. None means always.
type hours []span

// A span is [from, to). One that ends before it starts goes over midnight.
type span struct{ from, to int }

const hoursHint = "write hours such as 06:00-22:00, 22:00-06:00, or several with commas"

func parseHours(text string) (hours, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > maxHours {
		return nil, fmt.Errorf("hours have at most %d bytes", maxHours)
	}
	var h hours
	for part := range strings.SplitSeq(text, ",") {
		from, to, ok := strings.Cut(strings.TrimSpace(part), "-")
		a, okA := parseMinute(from)
		b, okB := parseMinute(to)
		if !ok || !okA || !okB || a == 24*60 {
			return nil, fmt.Errorf("%q are no hours; %s", part, hoursHint)
		}
		if a == b {
			return nil, fmt.Errorf("%q is no time at all; %s", part, hoursHint)
		}
		h = append(h, span{a, b})
	}
	return h, nil
}

// parseMinute reads 00:00 to 24:00.
func parseMinute(text string) (int, bool) {
	if len(text) != 5 || text[2] != ':' {
		return 0, false
	}
	n := 0
	for i, most := range [...]byte{'2', '9', ':', '5', '9'} {
		c := text[i]
		if i == 2 {
			continue
		}
		if c < '0' || c > most {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	minute := n/100*60 + n%100
	return minute, minute <= 24*60
}

// contain reports whether t, in its own zone, is in one of the spans. When the
// clock is put back the hour that comes twice counts twice; when it is put
// forward the hour that is left out never comes. That is what people expect of
// "06:00": what the clock on the wall shows.
func (h hours) contain(t time.Time) bool {
	if len(h) == 0 {
		return true
	}
	now := t.Hour()*60 + t.Minute()
	for _, s := range h {
		if s.from < s.to && s.from <= now && now < s.to {
			return true
		}
		if s.from > s.to && (now >= s.from || now < s.to) {
			return true
		}
	}
	return false
}
