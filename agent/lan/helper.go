package lan

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/names"
)

//go:embed lan.js
var script []byte

// A module is lan.js with what tells browsers that they have it already.
type module struct{ etag string }

func newModule() *module {
	sum := sha256.Sum256(script)
	return &module{etag: `"` + hex.EncodeToString(sum[:8]) + `"`}
}

// Helper serves what lies below WellKnown on every site of the home. Requests
// must have come through a door.
func (l *LAN) Helper() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		switch name, _ := strings.CutPrefix(r.URL.Path, WellKnown); name {
		case "lan.json":
			l.serveJSON(w, r)
		case "lan.js":
			l.serveModule(w, r)
		case "here":
			l.serveHere(w, r)
		default:
			http.NotFound(w, r)
		}
	})
}

// onlyGet answers all other methods.
func onlyGet(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	w.Header().Set("Allow", "GET, HEAD")
	http.Error(w, "Only GET is served here.", http.StatusMethodNotAllowed)
	return false
}

// serveJSON tells devices where the home network has us. Everybody else could
// learn from it how the network is built.
func (l *LAN) serveJSON(w http.ResponseWriter, r *http.Request) {
	if !onlyGet(w, r) {
		return
	}
	v, ok := door.VisitorFrom(r.Context())
	if !ok || v.Device == nil {
		http.Error(w, "This is told to devices only.", http.StatusForbidden)
		return
	}
	w.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
	writeJSON(w, struct {
		Schema int      `json:"schema"`
		URLs   []string `json:"urls"`
		Name   string   `json:"name"`
		Here   bool     `json:"here"` // this answer came over the home network
	}{1, l.URLs(), l.cfg.Name, l.inside(v)})
}

func (l *LAN) serveModule(w http.ResponseWriter, r *http.Request) {
	if !onlyGet(w, r) {
		return
	}
	h := w.Header()
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-cache") // asked again each time; 304 while it is the same
	h.Set("ETag", l.module.etag)
	if r.Header.Get("If-None-Match") == l.module.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", "text/javascript; charset=utf-8")
	_, _ = w.Write(script)
}

// serveHere tells pages of the home's own hosts that they have reached us, and
// other pages nothing.
func (l *LAN) serveHere(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Vary", "Origin")
	if r.Method != http.MethodOptions && !onlyGet(w, r) {
		return
	}
	origins := r.Header["Origin"]
	if len(origins) > 0 {
		if len(origins) != 1 || !l.allowed(origins[0]) {
			http.Error(w, "This is told to the home's own pages only.", http.StatusForbidden)
			return
		}
		h.Set("Access-Control-Allow-Origin", origins[0])
		h.Set("Access-Control-Allow-Credentials", "true")
	}
	if r.Method == http.MethodOptions {
		h.Set("Allow", "GET, HEAD, OPTIONS")
		h.Set("Access-Control-Allow-Methods", "GET")
		if len(origins) == 1 && r.Header.Get("Access-Control-Request-Private-Network") == "true" {
			h.Set("Access-Control-Allow-Private-Network", "true")
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	v, ok := door.VisitorFrom(r.Context())
	writeJSON(w, struct {
		Here bool `json:"here"`
	}{ok && l.inside(v)})
}

// inside reports whether a visitor came over the home network: his connection
// is one of ours.
func (l *LAN) inside(v door.Visitor) bool {
	return v.Remote.IsValid() && l.guests.has(pair{v.Remote, v.Local})
}

// allowed reports whether an Origin is a page of one of our hosts: https, at
// the public port or at ours, spelled as browsers spell it.
func (l *LAN) allowed(origin string) bool {
	hostport, ok := strings.CutPrefix(origin, "https://")
	if !ok {
		return false
	}
	host, err := names.CanonicalHost(hostport)
	if err != nil {
		return false
	}
	port, ok := strings.CutPrefix(hostport, host)
	if !ok || port != l.cfg.Port && port != portSuffix(l.view.Load().port) {
		return false
	}
	return l.cfg.Ours(host)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the visitor has gone: nobody is left to be told
}
