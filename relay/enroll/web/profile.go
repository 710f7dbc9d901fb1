package web

import (
	"encoding/pem"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// profile gives an Apple device the file with which it fetches its own
// certificate. It is a form's POST and not a link: the code must be in no
// address. The answer is a page for a person when it is not the file.
func (p *Pages) profile(w http.ResponseWriter, r *http.Request) {
	if p.cfg.Profile == nil {
		p.notFound(w, r)
		return
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		p.sorry(w, r, bad(http.StatusUnsupportedMediaType, "This is not the form of the enrolment page.", ""))
		return
	}
	data, f := readAll(w, r)
	if f != nil {
		p.sorry(w, r, f)
		return
	}
	// Not r.ParseForm alone: it would mix the address's query in.
	form, err := url.ParseQuery(string(data))
	if err != nil || form.Get("code") == "" {
		p.sorry(w, r, bad(http.StatusBadRequest, "The form holds no code.", "Open the link once more that the owner gave you."))
		return
	}
	r.Form, r.PostForm = form, form
	file, err := p.cfg.Profile(form.Get("code"), r)
	if err != nil {
		p.sorry(w, r, p.judge(err, "make a profile"))
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/x-apple-aspen-config")
	h.Set("Content-Disposition", `attachment; filename="`+p.cfg.Domain+`.mobileconfig"`)
	h.Set("Content-Length", strconv.Itoa(len(file)))
	_, _ = w.Write(file)
}

// sorry shows a fault to a person.
func (p *Pages) sorry(w http.ResponseWriter, r *http.Request, f *fault) {
	if f.Retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(f.Retry))
	}
	data := p.page()
	data.Title = "This did not work"
	data.Text = []string{sentence(f.Error)}
	if f.Hint != "" {
		data.Text = append(data.Text, f.Hint)
	}
	p.show(w, r, f.status, "note", data)
}

// sentence makes one of an error's text.
func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.TrimSuffix(strings.ToUpper(s[:1])+s[1:], ".") + "."
}

// root serves the roots of a relay that no public CA vouches for, as PEM.
func (p *Pages) root(w http.ResponseWriter, r *http.Request) {
	roots := p.cfg.Roots()
	if len(roots) == 0 {
		p.notFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/x-x509-ca-cert")
	h.Set("Content-Disposition", `attachment; filename="`+p.cfg.Domain+`-root.crt"`)
	for _, c := range roots {
		_ = pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
}
