package door

import (
	"crypto/sha256"
	"encoding/base64"
	"html"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// A page is a small answer of our own: no script, nothing loaded, nothing of
// the inside.
type page struct {
	status      int
	title, text string
	close       bool // end the connection (h2: GOAWAY) after it
}

const pageStyle = `:root{color-scheme:light dark}` +
	`body{margin:0;min-height:100vh;display:grid;place-items:center;font:16px/1.5 system-ui,sans-serif;background:#f6f6f4;color:#222}` +
	`main{max-width:28rem;padding:2rem 1.5rem}h1{font-size:1.35rem;margin:0 0 .6rem}p{margin:0 0 .6rem}small{color:#777}` +
	`@media(prefers-color-scheme:dark){body{background:#161616;color:#e6e6e6}small{color:#999}}`

// pagePolicy lets the page's own style run and nothing else.
var pagePolicy = sync.OnceValue(func() string {
	sum := sha256.Sum256([]byte(pageStyle))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
})

func (p *page) write(w http.ResponseWriter, r *http.Request) {
	var b strings.Builder
	b.WriteString(`<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><title>`)
	b.WriteString(html.EscapeString(p.title))
	b.WriteString(`</title><style>` + pageStyle + `</style><main><h1>`)
	b.WriteString(html.EscapeString(p.title))
	b.WriteString(`</h1>`)
	for line := range strings.Lines(p.text) {
		b.WriteString(`<p>` + html.EscapeString(strings.TrimSpace(line)) + `</p>`)
	}
	b.WriteString(`<p><small>` + strconv.Itoa(p.status) + `</small></p></main></html>` + "\n")

	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	h.Set("Content-Security-Policy", pagePolicy())
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	if p.close {
		h.Set("Connection", "close")
	}
	w.WriteHeader(p.status)
	if r.Method != http.MethodHead {
		w.Write([]byte(b.String()))
	}
}

// unknownPage is all that a token site says without a good secret: the same
// bytes for every reason, nothing that names anybody, and a connection for
// every try.
var unknownPage = page{status: http.StatusNotFound, title: "Nothing here", text: "No service has this address.", close: true}

// deniedPage tells a visitor of an ask site what is wrong and what to do. It
// is 401, not 403: iOS takes 403 for "this certificate is bad".
func deniedPage(denial string) *page {
	p := &page{status: http.StatusUnauthorized, close: true}
	switch denial {
	case DeniedMissing:
		p.title = "This door needs a device certificate"
		p.text = "Your browser showed none.\n" +
			"If this device has one, close the browser completely, open this page again and choose the certificate.\n" +
			"If it has none, ask the owner to add this device."
	case DeniedExpired:
		p.title = "The certificate of this device has expired"
		p.text = "Ask the owner for a new one, install it, then close the browser completely and come back.\n" +
			"If you think that it should still be valid, look at the date and time of this device."
	case DeniedRevoked:
		p.title = "This device was removed"
		p.text = "Its certificate has been revoked.\nIf the device is yours and should come in, ask the owner to add it again."
	case DeniedHost:
		p.title = "This device is not allowed here"
		p.text = "Its certificate is good, but not for this address.\nAsk the owner to allow it."
	default:
		p.title = "This certificate is not known here"
		p.text = "The certificate that your browser showed was not made for this door.\n" +
			"Close the browser completely, open this page again and choose another one, or ask the owner to add this device."
	}
	return p
}
