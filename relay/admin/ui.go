package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"
)

//go:embed ui
var uiFiles embed.FS

// assetPath is where style, script and icon are, under names that hold their
// hash: so they may be kept for ever, and a new relay has new ones.
const assetPath = "/assets/{file}"

var assetTypes = map[string]string{
	"dashboard.css": "text/css; charset=utf-8",
	"dashboard.js":  "text/javascript; charset=utf-8",
	"login.js":      "text/javascript; charset=utf-8",
	"icon.svg":      "image/svg+xml",
}

// assetName is the public name of an embedded file.
func assetName(file string) string {
	sum := sha256.Sum256(uiFile(file))
	return hex.EncodeToString(sum[:6]) + "." + file
}

func uiFile(name string) []byte {
	data, err := uiFiles.ReadFile(path.Join("ui", name))
	if err != nil {
		panic("admin: not embedded: " + name) // a fault of the build; the tests load all
	}
	return data
}

func serveAsset(w http.ResponseWriter, r *http.Request) {
	_, file, _ := strings.Cut(r.PathValue("file"), ".")
	if assetTypes[file] == "" || r.PathValue("file") != assetName(file) {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", assetTypes[file])
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	w.Write(uiFile(file))
}

// An inviteView is a new invitation with its picture.
type inviteView struct {
	Invite
	QR template.HTML
}

// trustedSVG passes an image of QRSVG into a page as it is.
func trustedSVG(svg string) template.HTML {
	return template.HTML(svg) // QRSVG makes it of numbers alone
}

var pageFuncs = template.FuncMap{
	"asset":    func(file string) string { return "/assets/" + assetName(file) },
	"seg":      url.PathEscape,
	"join":     func(l []string) string { return strings.Join(l, ", ") },
	"words":    strings.Fields,
	"bytes":    byteCount,
	"tab":      tabOf,
	"soft":     softBreaks,
	"software": softwareName,
}

// pages are the templates by name: each in the common layout, but for login.
var pages = parsePages("overview", "devices", "device", "invite", "invited", "homes", "certificates", "log", "fault", "login")

func parsePages(names ...string) map[string]*template.Template {
	all := make(map[string]*template.Template, len(names))
	for _, name := range names {
		all[name] = template.Must(template.New(name).Funcs(pageFuncs).ParseFS(uiFiles, "ui/layout.html", "ui/parts.html", "ui/"+name+".html"))
	}
	return all
}

// A page is what the layout shows around each page.
type page struct {
	Title, Tab string
	Domain     string
	Who        string // who looks at it
	Remote     bool
	Logout     bool
	Said       string // what was just done
	Pending    int    // requests that wait
	CanInvite  bool
	Problems   []string // what could not be read
	Now        time.Time
	View       any
}

// softBreaks lets a long host name or path break after its dots and slashes,
// where people read it; copied text stays whole.
func softBreaks(s string) template.HTML {
	var b strings.Builder
	for len(s) > 0 {
		n := strings.IndexAny(s, "./") + 1
		if n == 0 || n == len(s) {
			n = len(s)
		}
		b.WriteString(template.HTMLEscapeString(s[:n]))
		if s = s[n:]; s != "" && s[0] != ' ' {
			b.WriteString("<wbr>")
		}
	}
	return template.HTML(b.String())
}

// tabOf describes one entry of the navigation to its template.
func tabOf(p page, key, at, label string) any {
	tab := struct {
		Key, Path, Label string
		Current          bool
		Waiting          int
	}{key, at, label, p.Tab == key, 0}
	if key == "overview" {
		tab.Waiting = p.Pending
	}
	return tab
}

// show answers with a page.
func (d *dashboard) show(w http.ResponseWriter, r *http.Request, name, title, tab string, view any, problems ...string) {
	d.showStatus(w, r, http.StatusOK, name, title, tab, view, problems...)
}

func (d *dashboard) showStatus(w http.ResponseWriter, r *http.Request, status int, name, title, tab string, view any, problems ...string) {
	p := page{
		Title: title, Tab: tab, Who: d.actor(r), Remote: d.cfg.Remote, Logout: hasLogout(r.Context()),
		Said: said[r.URL.Query().Get("said")], CanInvite: d.api.Invite != nil, Problems: problems, Now: d.now(), View: view,
	}
	// A page without these is still worth showing.
	if d.api.Status != nil {
		if st, err := d.api.Status(r.Context()); err == nil {
			p.Domain = st.Domain
		}
	}
	if d.api.Requests != nil {
		if waiting, err := d.api.Requests(r.Context()); err == nil {
			p.Pending = len(waiting)
		}
	}
	var body bytes.Buffer
	if err := pages[name].ExecuteTemplate(&body, "layout", p); err != nil {
		d.log.Error("dashboard: cannot make a page", "page", name, "err", err)
		http.Error(w, "This page could not be made; the relay's log says why.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	w.Write(body.Bytes())
}

// fault shows an error and the way back.
func (d *dashboard) fault(w http.ResponseWriter, r *http.Request, back string, err error) {
	e := asError(err)
	d.showStatus(w, r, e.status(), "fault", "That did not work", "", struct {
		*Error
		Back string
	}{e, back})
}

// showLogin answers with the page that takes a code.
func showLogin(w http.ResponseWriter, status int, wrong bool) {
	var body bytes.Buffer
	if err := pages["login"].ExecuteTemplate(&body, "login", wrong); err != nil {
		http.Error(w, "This page could not be made.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	w.Write(body.Bytes())
}

type logoutKey struct{}

func withLogout(ctx context.Context) context.Context {
	return context.WithValue(ctx, logoutKey{}, true)
}

func hasLogout(ctx context.Context) bool {
	is, _ := ctx.Value(logoutKey{}).(bool)
	return is
}

// byteCount writes a number of bytes as people read it.
func byteCount(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1000, 0
	for v >= 999.5 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	if v < 9.95 {
		return fmt.Sprintf("%.1f %cB", v, units[i])
	}
	return fmt.Sprintf("%.0f %cB", v, units[i])
}
