package relay

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
)

func TestReminder(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	due := true
	m := &reminder{now: func() time.Time { return now }, page: "https://check.example.org/renew", due: func(*door.Device) bool { return due }}
	h := m.wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "home") }))
	ask := func(device string, change func(*http.Request)) *http.Response {
		req := httptest.NewRequest(http.MethodGet, "https://ha.example.org/secret-path?token=1", nil)
		req.Header.Set("Accept", "text/html,application/xhtml+xml")
		req.Header.Set("Sec-Fetch-Mode", "navigate")
		req.Header.Set("Sec-Fetch-Dest", "document")
		v := door.Visitor{Host: "ha.example.org"}
		if device != "" {
			v.Device = &door.Device{ID: device, Name: device}
		}
		req = req.WithContext(door.WithVisitor(req.Context(), v))
		if change != nil {
			change(req)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		return w.Result()
	}
	led := func(res *http.Response) bool { return res.StatusCode == http.StatusFound }

	for name, change := range map[string]func(*http.Request){
		"a script":          func(r *http.Request) { r.Header.Set("Sec-Fetch-Mode", "cors") },
		"a frame":           func(r *http.Request) { r.Header.Set("Sec-Fetch-Dest", "iframe") },
		"an app":            func(r *http.Request) { r.Header.Del("Sec-Fetch-Mode") },
		"a form":            func(r *http.Request) { r.Method = http.MethodPost },
		"a look in advance": func(r *http.Request) { r.Header.Set("Sec-Purpose", "prefetch") },
		"an image":          func(r *http.Request) { r.Header.Set("Accept", "image/*") },
	} {
		if led(ask("anna", change)) {
			t.Errorf("%s was led away", name)
		}
	}
	if led(ask("", nil)) {
		t.Error("a visitor without a device was led away")
	}
	due = false
	if led(ask("anna", nil)) {
		t.Error("a device whose certificate is fresh was led away")
	}
	due = true
	res := ask("anna", nil)
	if !led(res) || res.Header.Get("Location") != "https://check.example.org/renew?from=ha.example.org" {
		t.Fatalf("not led to the renewal page, or with more than the host: %d %q", res.StatusCode, res.Header.Get("Location"))
	}
	if led(ask("anna", nil)) {
		t.Error("led away twice on one day: the visitor would never get home")
	}
	if !led(ask("berta", nil)) {
		t.Error("another device was not reminded")
	}
	now = now.Add(25 * time.Hour)
	if !led(ask("anna", nil)) {
		t.Error("not reminded on the next day")
	}
}
