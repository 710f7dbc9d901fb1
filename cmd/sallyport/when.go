package main

import (
	"errors"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// moment writes a time for people, with its zone: relay and home may be in two.
func moment(t time.Time) string { return t.Local().Format(time.DateTime + " MST") }

// untilUsage is the end of --until's line in the help.
const untilUsage = "it is shut out after `WHEN`, such as 2h30m, 2d, 1w or 2026-12-24 (that day's end, here)"

func untilFlagOf(usage, unset string) cli.Flag {
	return &cli.StringFlag{Name: "until", Usage: usage, DefaultText: unset}
}

// readUntil reads --until as a moment to come; zero when it is not given.
func readUntil(c *cli.Context, past string) (time.Time, error) {
	if !c.IsSet("until") {
		return time.Time{}, nil
	}
	text := strings.TrimSpace(c.String("until"))
	now := time.Now()
	end, err := parseUntil(text, now)
	switch {
	case err != nil:
		return end, usageError("write how long from now, such as 2h30m, 2d or 1w, or the last day, such as "+now.AddDate(0, 0, 7).Format(time.DateOnly), "--until: %q %w", text, err)
	case !end.After(now):
		return end, usageError(past, "--until: %s is in the past", text)
	}
	return end, nil
}

// untilForms are the moments that can be written, beside a day. All but the
// first are of the local zone.
var untilForms = []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateTime, "2006-01-02 15:04"}

// parseUntil reads a length of time from now, a day, which is meant with its
// last second, or a moment.
func parseUntil(text string, now time.Time) (time.Time, error) {
	if day, err := time.ParseInLocation(time.DateOnly, text, now.Location()); err == nil {
		return day.AddDate(0, 0, 1).Add(-time.Second), nil
	}
	for _, form := range untilForms {
		if t, err := time.ParseInLocation(form, text, now.Location()); err == nil {
			return t, nil
		}
	}
	d, err := parseSpan(text)
	if err != nil {
		return time.Time{}, err
	}
	return now.Add(d), nil
}

var (
	errNotWhen  = errors.New("is neither a length of time nor a date")
	errTooLong  = errors.New("is longer than a hundred years")
	daysInFront = regexp.MustCompile(`^(\d{1,5})([wd])`)
)

// parseSpan is time.ParseDuration that knows weeks and days, of 24 hours, too.
func parseSpan(text string) (time.Duration, error) {
	const day = 24 * time.Hour
	rest, sign := text, time.Duration(1)
	if strings.HasPrefix(rest, "-") {
		rest, sign = rest[1:], -1
	}
	var sum time.Duration
	for m := daysInFront.FindStringSubmatch(rest); m != nil; m = daysInFront.FindStringSubmatch(rest) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			return 0, errNotWhen
		}
		unit := day
		if m[2] == "w" {
			unit = 7 * day
		}
		if n > int(100*366*day/unit) {
			return 0, errTooLong
		}
		sum, rest = sum+time.Duration(n)*unit, rest[len(m[0]):]
		if sum > 100*366*day {
			return 0, errTooLong
		}
	}
	if rest == "" && sum > 0 {
		return sign * sum, nil
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 {
		return 0, errNotWhen
	}
	if d > 100*366*day {
		return 0, errTooLong
	}
	return sign * (sum + d), nil
}
