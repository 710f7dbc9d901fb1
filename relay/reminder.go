package relay

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
)

// reminderEvery is how often a device is led to the renewal page. The page
// leads back: nobody is kept out as long as the old certificate works.
const reminderEvery = 24 * time.Hour

// maxReminded bounds the reminder's memory; past it everybody may be reminded
// once more.
const maxReminded = 10_000

// A reminder leads devices whose certificate nears its end to the page that
// renews it: once a day, and only where a person looks at a page. What
// programs fetch is never redirected.
type reminder struct {
	now  func() time.Time
	page string                    // URL of the renewal page
	due  func(d *door.Device) bool // by the owner's records

	mu   sync.Mutex           // guards last
	last map[string]time.Time // by device ID
}

// wrap puts the reminder before the handler of a host that asks for
// certificates.
func (m *reminder) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if v, ok := door.VisitorFrom(req.Context()); ok && v.Device != nil && opensPage(req) && m.due(v.Device) && m.take(v.Device.ID) {
			// The page sits on another host: the visitor comes back by its link,
			// and only to the host, never to a path that may hold a secret.
			w.Header().Set("Cache-Control", "no-store")
			w.Header().Set("Referrer-Policy", "no-referrer")
			http.Redirect(w, req, m.page+"?from="+url.QueryEscape(v.Host), http.StatusFound)
			return
		}
		next.ServeHTTP(w, req)
	})
}

// opensPage reports whether a browser opens a page in a tab: a GET that says
// so itself, which scripts, frames, apps and prefetching do not.
func opensPage(req *http.Request) bool {
	h := req.Header
	return req.Method == http.MethodGet && h.Get("Sec-Fetch-Mode") == "navigate" && h.Get("Sec-Fetch-Dest") == "document" &&
		h.Get("Sec-Purpose") == "" && strings.Contains(h.Get("Accept"), "text/html")
}

// take reports whether it is time to remind a device, and notes that it was.
func (m *reminder) take(id string) bool {
	now := m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if at, ok := m.last[id]; ok && now.Sub(at) < reminderEvery && !now.Before(at) {
		return false
	}
	if m.last == nil || len(m.last) >= maxReminded {
		m.last = map[string]time.Time{}
	}
	m.last[id] = now
	return true
}
