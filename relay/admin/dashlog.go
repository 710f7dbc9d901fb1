package admin

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// logLines is how much of the audit log its page shows.
const logLines = 200

func (d *dashboard) auditLog(w http.ResponseWriter, r *http.Request) {
	var g gather
	d.show(w, r, "log", "Log", "log", d.lines(&g, logLines), g.problems...)
}

// A lineView is a line of the audit log for people.
type lineView struct {
	When  time.Time
	Ago   string
	What  string
	Pairs []pair
}

type pair struct{ Key, Value string }

func (d *dashboard) lines(g *gather, n int) (views []lineView) {
	if d.cfg.Audit == nil {
		return nil
	}
	lines, err := d.cfg.Audit(n)
	if err != nil {
		g.problems = append(g.problems, "The audit log could not be read: "+err.Error()+".")
	}
	now := d.now()
	for _, l := range lines {
		v := lineView{When: l.Time.UTC(), Ago: ago(now, l.Time), What: sentence(l.Event)}
		if command, ok := l.Attrs["command"].(string); ok && l.Event == commandEvent {
			v.What = sentence(command)
		}
		for _, key := range slices.Sorted(maps.Keys(l.Attrs)) {
			text := valueText(l.Attrs[key])
			if key == "hosts" && (text == "" || text == "none") { // an empty list of patterns is no limit
				text = "all"
			}
			if l.Event == commandEvent && (key == "command" || key == "outcome" && text == "done") || text == "" {
				continue // said already, or nothing to say
			}
			v.Pairs = append(v.Pairs, pair{strings.ReplaceAll(key, "_", " "), text})
		}
		views = append(views, v)
	}
	return views
}

// sentence makes "Device revoked" of "device.revoked".
func sentence(event string) string {
	text := strings.NewReplacer(".", " ", "-", " ", "_", " ").Replace(event)
	if text == "" {
		return "Event"
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

func valueText(v any) string {
	switch v := v.(type) {
	case []any:
		var parts []string
		for _, one := range v {
			parts = append(parts, valueText(one))
		}
		return strings.Join(parts, ", ")
	case map[string]any:
		var parts []string
		for _, key := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, key+" "+valueText(v[key]))
		}
		return strings.Join(parts, ", ")
	case float64:
		return fmt.Sprintf("%.10g", v)
	case string:
		t, err := time.Parse(time.RFC3339Nano, v)
		switch {
		case err == nil && t.IsZero(): // no end, never seen
			return ""
		case err == nil:
			return t.UTC().Format("2 Jan 2006, 15:04 MST")
		case isHash(v):
			return v[:shortHash] + "…"
		}
		return v
	case nil:
		return "none"
	}
	return fmt.Sprint(v)
}

// shortHash is how much of an ID a person needs to tell it from others: as
// much as protocol.AgentID.Short gives.
const shortHash = 8

// isHash reports whether v is a SHA-256 in hexadecimal: an agent's or a
// device's ID, or a key's.
func isHash(v string) bool {
	return len(v) == 64 && strings.Trim(v, "0123456789abcdef") == ""
}

// ago tells a time of the past, "never" for the zero time. What lies ahead by
// a clock's error is "just now".
func ago(now, t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	if d := now.Sub(t); d >= time.Minute {
		return span(d) + " ago"
	}
	return "just now"
}

// in tells a time to come.
func in(now, t time.Time) string {
	if d := t.Sub(now); d > 0 {
		return "in " + span(d)
	}
	return "now"
}

// left tells how long something lasts.
func left(now, t time.Time) string {
	if d := t.Sub(now); d > 0 {
		return span(d) + " left"
	}
	return "ended " + ago(now, t)
}

// span writes a length of time in its largest unit; months and years only
// where the days no longer say much.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	count := func(n int64, unit string) string {
		if n == 1 {
			return "1 " + unit
		}
		return fmt.Sprintf("%d %ss", n, unit)
	}
	switch {
	case d < time.Minute:
		return "a moment"
	case d < time.Hour:
		return count(int64(d/time.Minute), "minute")
	case d < 2*day:
		return count(int64(d/time.Hour), "hour")
	case d < 120*day:
		return count(int64(d/day), "day")
	case d < 2*365*day:
		return count(int64(d/(30*day)), "month")
	}
	return count(int64(d/(365*day)), "year")
}
