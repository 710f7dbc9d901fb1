package web

import (
	"net/http"

	"github.com/sallyport/sallyport/protocol/door"
)

// Denied answers a visitor of an ask host who may not come in: which of the
// door's denials it is, and what to do. It loads nothing, because every
// address of such a host leads here. The status is 401, not 403: iOS takes 403
// for "this certificate is bad".
func (p *Pages) Denied(w http.ResponseWriter, r *http.Request, denial string) {
	data := p.page()
	data.Style = p.style
	enrol := link{data.EnrollURL, "I have a code"}
	if p.cfg.Open {
		enrol.Label = "Ask to be let in"
	}
	again := "Close the browser completely, open this page again and choose the certificate."
	switch denial {
	case door.DeniedMissing:
		data.Title = "This door opens with a certificate"
		data.Text = []string{"Your browser showed none."}
		data.Steps = []string{
			"Has this device a certificate? " + again,
			"Is it new here? " + p.howToEnrol(),
		}
		data.Links = []link{enrol}
		data.Detail = "On iPhone and iPad only Safari can show a certificate."
	case door.DeniedExpired:
		data.Title = "The certificate of this device has expired"
		data.Text = []string{"It worked once, and its time is over. Nothing is lost: the owner can give a guest more time, and any other device needs a new one."}
		data.Steps = []string{
			p.howToEnrol(),
			"Did you renew it already? Close the browser completely, open this page again and choose the newer one.",
			"Should it still be valid? Look at the date and time of this device.",
		}
		data.Links = []link{enrol}
	case door.DeniedRevoked:
		data.Title = "This device was removed"
		data.Text = []string{"The owner took its certificate back.", "Is it yours, and should it come in? " + p.howToEnrol()}
		data.Links = []link{enrol}
	case door.DeniedHost:
		data.Title = "This device may not open this page"
		data.Text = []string{"Its certificate is good, but not for this address.", "Ask the owner to allow it; then load the page again."}
		data.Links = []link{{data.CheckURL, "What this device is known as"}}
	default:
		data.Title = "This certificate is not known here"
		data.Text = []string{"Your browser showed a certificate that was made for another door."}
		data.Steps = []string{
			"Has this device another one? " + again,
			"Is it new here? " + p.howToEnrol(),
		}
		data.Links = []link{enrol}
	}
	h := w.Header()
	h.Set("Content-Security-Policy", p.alonePolicy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Robots-Tag", "noindex, nofollow")
	h.Set("Cache-Control", "no-store")
	h.Set("Connection", "close") // the next handshake may show a better certificate
	p.show(w, r, http.StatusUnauthorized, "note", data)
}

func (p *Pages) howToEnrol() string {
	if p.cfg.Open {
		return "Ask to be let in here, or ask the owner for a link."
	}
	return "Ask the owner for a link; it works once."
}
