package main

import (
	"testing"
	"time"
)

func TestParseUntil(t *testing.T) {
	zone := time.FixedZone("CET", 3600)
	now := time.Date(2026, 12, 20, 18, 30, 0, 0, zone)
	for text, want := range map[string]time.Time{
		"2h": now.Add(2 * time.Hour), "2h30m": now.Add(150 * time.Minute), "2d": now.AddDate(0, 0, 2), "1w": now.AddDate(0, 0, 7),
		"1w2d3h": now.AddDate(0, 0, 9).Add(3 * time.Hour), "-2d": now.AddDate(0, 0, -2), "-1h": now.Add(-time.Hour), "90s": now.Add(90 * time.Second),
		"2026-12-24":                time.Date(2026, 12, 24, 23, 59, 59, 0, zone),
		"2026-12-24T18:00":          time.Date(2026, 12, 24, 18, 0, 0, 0, zone),
		"2026-12-24 18:00":          time.Date(2026, 12, 24, 18, 0, 0, 0, zone),
		"2026-12-24T18:00:05":       time.Date(2026, 12, 24, 18, 0, 5, 0, zone),
		"2026-12-24 18:00:05":       time.Date(2026, 12, 24, 18, 0, 5, 0, zone),
		"2026-12-24T18:00:05Z":      time.Date(2026, 12, 24, 18, 0, 5, 0, time.UTC),
		"2026-12-24T18:00:05+09:00": time.Date(2026, 12, 24, 9, 0, 5, 0, time.UTC),
	} {
		if got, err := parseUntil(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "soon", "2", "d", "2x", "2d3", "24.12.2026", "2026-13-01", "2026-02-30", "3h2d", "2d-1h", "--2d", "99999w", "5300w5300w", "tomorrow", "999999h9999999h"} {
		if got, err := parseUntil(text, now); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

// A day ends when the clock on the wall says so, also where it jumps.
func TestUntilADayWithAnotherLength(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip(err)
	}
	got, err := parseUntil("2026-10-25", time.Date(2026, 10, 20, 0, 0, 0, 0, zone))
	if err != nil || got.Format(time.DateTime+" MST") != "2026-10-25 23:59:59 CET" {
		t.Errorf("%v, %v", got, err)
	}
}

func FuzzParseUntil(f *testing.F) {
	for _, s := range []string{"2d", "1w2d3h", "2026-12-24", "-1h", "2026-12-24T18:00:05Z", "99999w99999w"} {
		f.Add(s)
	}
	now := time.Date(2026, 12, 20, 18, 30, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseUntil(text, now)
		if err == nil && got.Year() > 10000 {
			t.Errorf("%q is %v", text, got)
		}
	})
}
