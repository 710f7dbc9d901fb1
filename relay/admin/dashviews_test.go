package admin

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTimesForPeople(t *testing.T) {
	const day = 24 * time.Hour
	for d, want := range map[time.Duration]string{
		0: "a moment", time.Minute: "1 minute", 59*time.Minute + 59*time.Second: "59 minutes", time.Hour: "1 hour",
		47 * time.Hour: "47 hours", 2 * day: "2 days", 119 * day: "119 days", 120 * day: "4 months", 729 * day: "24 months", 730 * day: "2 years",
	} {
		if got := span(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	for got, want := range map[string]string{
		ago(when, time.Time{}): "never", ago(when, when.Add(time.Hour)): "just now", ago(when, when.Add(-time.Hour)): "1 hour ago",
		in(when, when): "now", in(when, when.Add(time.Second)): "in a moment", left(when, when.Add(3*day)): "3 days left",
		left(when, when.Add(-3*day)): "ended 3 days ago",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A line of the log says what a person wants to know, and "none" only where
// nothing is meant.
func TestLogLinesForPeople(t *testing.T) {
	hash := strings.Repeat("0123456789abcdef", 4)
	attrs := map[string]any{
		"device": "anna", "hosts": nil, "until": "0001-01-01T00:00:00Z", "not_after": "2027-05-01T12:00:00Z", "id": hash,
		"code_id": "7kq2mf9x", "ids": []any{hash}, "note": strings.ToUpper(hash), "nothing": nil,
	}
	d := &dashboard{now: func() time.Time { return when }, cfg: DashboardConfig{Audit: func(int) ([]AuditLine, error) {
		return []AuditLine{{Time: when, Event: "device.changed", Attrs: attrs}}, nil
	}}}
	got := map[string]string{}
	for _, p := range d.lines(&gather{}, 1)[0].Pairs {
		got[p.Key] = p.Value
	}
	want := map[string]string{
		"device": "anna", "hosts": "all", "not after": "1 May 2027, 12:00 UTC", "id": "01234567…", "code id": "7kq2mf9x",
		"ids": "01234567…", "note": strings.ToUpper(hash), "nothing": "none",
	}
	if !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	attrs["hosts"] = []any{}
	for _, p := range d.lines(&gather{}, 1)[0].Pairs {
		got[p.Key] = p.Value
	}
	if got["hosts"] != "all" {
		t.Errorf("an empty list of hosts is %q", got["hosts"])
	}
	attrs["hosts"] = []any{"ha", "nas"}
	for _, p := range d.lines(&gather{}, 1)[0].Pairs {
		got[p.Key] = p.Value
	}
	if got["hosts"] != "ha, nas" {
		t.Errorf("hosts are %q", got["hosts"])
	}
}

func TestByteCount(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 9949: "9.9 kB", 9951: "10 kB", 999_499: "999 kB", 999_500: "1.0 MB", 1 << 63: "9.2 EB"} {
		if got := byteCount(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestSoftBreaks(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "ha": "ha", "a.b.c": "a.<wbr>b.<wbr>c", "https://x/": "https:/<wbr>/<wbr>x/", "a. b": "a. b", ".": ".",
		"<b>.&": "&lt;b&gt;.<wbr>&amp;",
	} {
		if got := string(softBreaks(s)); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

func FuzzSoftBreaks(f *testing.F) {
	f.Add("a.b/<script>")
	f.Fuzz(func(t *testing.T, s string) {
		if rest := strings.ReplaceAll(string(softBreaks(s)), "<wbr>", ""); strings.ContainsAny(rest, `<>"'`) {
			t.Errorf("%q became %q", s, rest)
		}
	})
}

func TestSoftwareName(t *testing.T) {
	for agent, want := range map[string]string{
		anna().Agent: "Safari on an iPhone",
		"Mozilla/5.0 (Linux; Android 16; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Mobile Safari/537.36":         "Chrome on Android",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36 Edg/156.0.0.0": "Edge on Windows",
		"Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0":                                                        "Firefox on Linux",
		"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)":                                                                               "a browser on a Mac",
		"strongSwan/6": "strongSwan/6", "": "",
	} {
		if got := softwareName(agent); got != want {
			t.Errorf("%q: %q, want %q", agent, got, want)
		}
	}
}

func TestWorstCertificateFirst(t *testing.T) {
	views := certsNow(newFakeRelay().certs, when)
	var got []string
	for _, v := range append(views, certsNow([]PublicCert{{Host: "new"}, {Host: "over", NotAfter: when}}, when)...) {
		got = append(got, v.Class+" "+v.Host)
	}
	if text := strings.Join(got, ", "); text != "bad cam.cabin.example.org, soon photos.home.example.org, good ha.home.example.org, bad over, soon new" {
		t.Error(text)
	}
}

// A renewed device is shown once as itself: its page is that of the newest
// certificate that still works.
func TestRenewedDevice(t *testing.T) {
	views := devicesNow([]Device{
		{ID: "gone", Name: "x", Revoked: true, Created: when.Add(-3 * time.Hour)},
		{ID: "old", Name: "x", Renewed: true, NotAfter: when.Add(time.Hour), LastSeen: when, Created: when.Add(-2 * time.Hour)},
		{ID: "new", Name: "x", NotAfter: when.Add(time.Hour), Created: when.Add(-time.Hour)},
		{ID: "over", Name: "y", NotAfter: when.Add(time.Hour), Until: when},
	}, when)
	var got []string
	for _, v := range views {
		got = append(got, fmt.Sprint(v.ID, " ", v.Live, " ", v.State))
	}
	if text := strings.Join(got, "; "); text != "new true ; old true older certificate; gone false revoked never; over false ended just now" {
		t.Error(text)
	}
}

func TestAuditLast(t *testing.T) {
	l := opened(t, filepath.Join(t.TempDir(), AuditName))
	if lines, err := l.Last(5); err != nil || len(lines) != 0 {
		t.Errorf("empty: %v, %v", lines, err)
	}
	for i := range 7 {
		l.Event(fmt.Sprintf("event.%d", i+1), slog.Int("n", i+1))
	}
	lines, err := l.Last(3)
	if err != nil || len(lines) != 3 || lines[0].Event != "event.7" || lines[2].Seq != 5 || lines[0].Attrs["n"] != 7.0 || lines[0].Time.IsZero() {
		t.Errorf("%+v, %v", lines, err)
	}
	// More than is read: no half line, the newest are there.
	for range 1200 {
		l.Event("big", slog.String("x", strings.Repeat("x", maxValue)))
	}
	lines, err = l.Last(1 << 20)
	if err != nil || len(lines) < 700 || len(lines) > 1100 || lines[0].Seq != 1207 || lines[len(lines)-1].Seq != 1208-uint64(len(lines)) {
		t.Errorf("%d lines, %v", len(lines), err)
	}
	l.Close()
	if _, err := l.Last(1); err == nil {
		t.Error("a closed log answers")
	}
}

// What may be half a line is none, even where it reads like one.
func TestHalfLine(t *testing.T) {
	tail := []byte("{\"seq\":1}\n{\"seq\":2}\n")
	if half, whole := lastLines(tail, 9, false), lastLines(tail, 9, true); len(half) != 1 || half[0].Seq != 2 || len(whole) != 2 {
		t.Errorf("%v and %v", half, whole)
	}
}

func FuzzLastLines(f *testing.F) {
	f.Add([]byte("{\"seq\":1}\n{\"seq\":2}\n"), 2, true)
	f.Add([]byte("q\":1}\n{\"seq\":2}\n"), 9, false)
	f.Add([]byte("\n\n\x00\n"), 1, false)
	f.Add([]byte(""), 0, false)
	f.Fuzz(func(t *testing.T, tail []byte, n int, whole bool) {
		lines := lastLines(tail, n, whole)
		if len(lines) > max(n, 0) || len(lines) > bytes.Count(tail, []byte("\n"))+1 {
			t.Errorf("%d lines of %q", len(lines), tail)
		}
	})
}
