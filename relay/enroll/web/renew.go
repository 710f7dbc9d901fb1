package web

import (
	"net/http"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/names"
)

// day is how dates are written for people.
const day = "2 January 2006"

// device returns whose certificate the door let in.
func device(r *http.Request) *door.Device {
	v, _ := door.VisitorFrom(r.Context())
	if v.Device == nil || v.Device.Cert == nil {
		return nil
	}
	return v.Device
}

// selfTest says whom the relay sees.
func (p *Pages) selfTest(w http.ResponseWriter, r *http.Request) {
	d := device(r)
	if d == nil {
		p.Denied(w, r, door.DeniedMissing)
		return
	}
	data := p.page()
	data.Good = true
	data.Title = "Certificate seen: " + d.Name
	data.Text = []string{"It works. This device is known here and can open what the owner allows."}
	if p.cfg.Hosts != nil {
		for _, host := range p.cfg.Hosts(d) {
			data.Hosts = append(data.Hosts, link{"https://" + host + p.cfg.Port + "/", host})
		}
	}
	data.Detail = "The certificate is valid until " + d.Cert.NotAfter.UTC().Format(day) + "."
	if guest := d.Until; !guest.IsZero() && guest.Before(d.Cert.NotAfter) {
		data.Detail = "The owner lets it in until " + guest.UTC().Format(day+", 15:04 UTC") + "."
	}
	if p.cfg.Due(d) {
		data.Text = append(data.Text, "Its certificate ends soon, on "+d.Cert.NotAfter.UTC().Format(day)+". Renew it now, while the old one still works.")
		data.Detail = ""
		data.Links = []link{{"/renew", "Renew the certificate"}}
	}
	p.show(w, r, http.StatusOK, "note", data)
}

// renewPage is the enrolment page without a code: the old certificate is the
// permission.
func (p *Pages) renewPage(w http.ResponseWriter, r *http.Request) {
	d := device(r)
	if d == nil {
		p.Denied(w, r, door.DeniedMissing)
		return
	}
	data := p.page()
	data.Name = d.Name
	data.Detail = d.Cert.NotAfter.UTC().Format(day)
	data.Good = p.cfg.Due(d)
	// The address comes with the link: it leads nowhere but to our own hosts.
	if from, err := names.Canonical(r.URL.Query().Get("from")); err == nil && p.cfg.KnownHost(from) {
		data.Later = "https://" + from + p.cfg.Port + "/"
	}
	p.show(w, r, http.StatusOK, "renew", data)
}

// renew answers POST /api/renew.
func (p *Pages) renew(w http.ResponseWriter, r *http.Request) {
	var in struct {
		CSR []byte `json:"csr"`
	}
	d := device(r)
	if d == nil {
		bad(http.StatusUnauthorized, "no certificate was shown", "Only a device whose certificate still works can renew it.").write(w)
		return
	}
	f := read(w, r, &in)
	if f == nil {
		f = checkCSR(in.CSR)
	}
	if f != nil {
		f.write(w)
		return
	}
	cert, err := p.cfg.Renew(r.Context(), d.Cert, in.CSR)
	if err != nil {
		p.judge(err, "renew a certificate").write(w)
		return
	}
	answer(w, http.StatusCreated, struct {
		Name  string    `json:"name"`
		Cert  []byte    `json:"cert"`
		CA    [][]byte  `json:"ca"`
		Until time.Time `json:"until"`
	}{d.Name, cert.Raw, raw(p.cfg.CA()), cert.NotAfter})
}
