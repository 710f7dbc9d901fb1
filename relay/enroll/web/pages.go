package web

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"time"
)

// policy is the CSP of every page that runs our scripts: what is not from this
// host does not load, and no string becomes markup or script.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'"

// harden sets what every answer says. Handlers loosen what they must.
func harden(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != http.NoBody {
			// For what handlers do not read, too: net/http waits for the rest of a
			// body before it answers. Not every writer has deadlines; those of a
			// door's h1 and h2 have.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readTimeout))
		}
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Robots-Tag", "noindex, nofollow")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// page is what the templates are given.
type page struct {
	Domain    string
	Assets    string   // address of the assets, with a slash at its end
	Modules   []string // addresses of what the page's script imports, to be fetched at once
	EnrollURL string
	CheckURL  string
	Open      bool
	Profile   bool
	Roots     bool

	Style template.CSS // the whole style, for pages that load nothing

	// Of a note: the self-test, the denied page, a plain message.
	Title  string
	Good   bool     // something went well
	Text   []string // one paragraph each
	Steps  []string // what to do, in order
	Links  []link
	Hosts  []link // where this device may go
	Detail string // small print

	// Of the renewal page.
	Name  string
	Later string // URL to go back to, or ""
}

// A link is a way on from a note; the first one is shown as a button.
type link struct{ URL, Label string }

func (p *Pages) page() page {
	return page{
		Domain: cmp.Or(p.cfg.Shown, p.cfg.Domain), Assets: p.assets.base(), Modules: p.assets.modules(), EnrollURL: p.url("enroll"), CheckURL: p.url("check"),
		Open: p.cfg.Open, Profile: p.cfg.Profile != nil, Roots: len(p.cfg.Roots()) > 0,
	}
}

// templates are parsed once per Pages: html/template cannot share one set
// between those that run and those that are changed.
func parsePages() (*template.Template, error) {
	t, err := template.ParseFS(files, "pages/*.html")
	if err != nil {
		return nil, fmt.Errorf("templates of the pages: %w", err)
	}
	return t, nil
}

// prepare renders what is the same for everybody.
func (p *Pages) prepare() error {
	var err error
	if p.templates, err = parsePages(); err != nil {
		return err
	}
	css := p.assets.byName["style.css"].plain
	p.style = template.CSS(css) // our own file
	sum := sha256.Sum256(css)
	p.alonePolicy = "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; img-src data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
	html, err := p.render("enroll", p.page())
	if err != nil {
		return err
	}
	b, err := newBody("text/html; charset=utf-8", html)
	p.enrollBody = b
	return err
}

func (p *Pages) render(name string, data page) ([]byte, error) {
	var b bytes.Buffer
	if err := p.templates.ExecuteTemplate(&b, name, data); err != nil {
		return nil, fmt.Errorf("page %s: %w", name, err)
	}
	return b.Bytes(), nil
}

// show renders a page for one visitor.
func (p *Pages) show(w http.ResponseWriter, r *http.Request, status int, name string, data page) {
	html, err := p.render(name, data)
	if err != nil {
		p.log.Error("page not shown", "err", err)
		http.Error(w, "this page is broken", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(html)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(html)
	}
}

func (p *Pages) enrollPage(w http.ResponseWriter, r *http.Request) { p.enrollBody.write(w, r) }

func (p *Pages) notFound(w http.ResponseWriter, r *http.Request) {
	data := p.page()
	data.Title = "There is nothing here"
	data.Text = []string{"Look at the address again, or open the link once more that the owner gave you."}
	p.show(w, r, http.StatusNotFound, "note", data)
}
