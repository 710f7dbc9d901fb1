package homeca

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"sync"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/relay/enroll"
	"github.com/sallyport/sallyport/relay/enroll/est"
	"github.com/sallyport/sallyport/relay/enroll/profile"
	"github.com/sallyport/sallyport/relay/enroll/scep"
	"github.com/sallyport/sallyport/relay/enroll/web"
)

// estPath is where EST clients look (RFC 7030).
const estPath = "/.well-known/est/"

// makeSites builds what stands at the home's own hosts. Requests without a code
// are not taken: who does not know the owner has no business at his home.
func (h *Home) makeSites() (err error) {
	h.pages, err = web.New(web.Config{
		Domain: h.cfg.Own, Shown: h.domain, Port: h.cfg.Port, Desk: h.desk, CA: h.chain, Roots: h.cfg.Roots, Renew: h.renew, Profile: h.profile,
		Source: visitorAddr, KnownHost: h.knownHost, Due: h.dueForRenewal, Hosts: h.hostsOf, Now: h.cfg.Now, Logger: h.log,
	})
	if err != nil {
		return err
	}
	machines := est.New(est.Config{
		CA: h.chain, Apply: h.applyEST, Renew: h.renew, Peer: peerCert, Source: visitorAddr, Logger: h.log,
	})
	mux := http.NewServeMux()
	mux.Handle("/", h.pages.Enroll())
	mux.Handle(estPath, machines)
	mux.HandleFunc("/scep", h.scep())
	h.site = mux
	mux = http.NewServeMux()
	mux.Handle("/", h.pages.Check())
	mux.Handle(estPath, machines)
	h.selfTest = mux
	return nil
}

// Site serves the pages of enrolment, SCEP and EST at HASH.DOMAIN and at
// enroll.HASH.DOMAIN, which ask for no certificate (door.None).
func (h *Home) Site() http.Handler { return h.site }

// SelfTest serves a device's self-test and renewal at check.HASH.DOMAIN, which
// asks for a certificate (door.Ask).
func (h *Home) SelfTest() http.Handler { return h.selfTest }

// Denied answers a visitor of an ask host who may not come in.
func (h *Home) Denied(w http.ResponseWriter, r *http.Request, denial string) {
	h.pages.Denied(w, r, denial)
}

// scep serves SCEP. The key of its go-between is made with the first request:
// most homes need none, and RSA keys take a small machine seconds.
func (h *Home) scep() http.HandlerFunc {
	open := sync.OnceValues(func() (http.Handler, error) {
		ra, key, err := scep.LoadRA(h.cfg.Dir, h.ca, h.cfg.Now)
		if err != nil {
			return nil, err
		}
		return scep.New(scep.Config{
			RA: ra, Key: key, CA: h.ca.Cert(), Apply: h.applySCEP, StatusOfKey: h.statusOfKey, Renew: h.renew,
			Allow: h.desk.Admit, Failed: h.desk.Failed, Source: visitorAddr, Logger: h.log, Now: h.cfg.Now,
		}), nil
	})
	return func(w http.ResponseWriter, r *http.Request) {
		s, err := open()
		if err != nil {
			h.log.Error("SCEP is out of order until the agent is started again", "err", err)
			http.Error(w, "SCEP is out of order", http.StatusServiceUnavailable)
			return
		}
		s.ServeHTTP(w, r)
	}
}

// chain is what a device is given beside its certificate.
func (h *Home) chain() []*x509.Certificate { return []*x509.Certificate{h.ca.Cert()} }

// visitorAddr is where a request comes from: by the relay's word, when it came
// through the relay.
func visitorAddr(r *http.Request) netip.Addr {
	v, _ := door.VisitorFrom(r.Context())
	return v.Remote.Addr()
}

// peerCert is the certificate of a device that the door let in, nil otherwise.
func peerCert(r *http.Request) *x509.Certificate {
	if v, ok := door.VisitorFrom(r.Context()); ok && v.Device != nil {
		return v.Device.Cert
	}
	return nil
}

// knownHost reports whether a page may link to a host: only to those that are
// served here.
func (h *Home) knownHost(host string) bool {
	name, err := names.Canonical(host)
	return err == nil && slices.Contains(h.cfg.Hosts(), name)
}

// hostsOf lists the hosts that a device may open now.
func (h *Home) hostsOf(d *door.Device) []string {
	return slices.DeleteFunc(slices.Sorted(slices.Values(h.cfg.Hosts())), func(host string) bool {
		if name, err := names.Canonical(host); err != nil || name != host {
			return true // a wildcard has no page of its own
		}
		_, denial := h.Check(d.Cert, host, h.cfg.Now())
		return denial != ""
	})
}

func (h *Home) dueForRenewal(d *door.Device) bool {
	dev, ok := h.devices.ByID(d.ID)
	return ok && h.devices.DueForRenewal(dev, h.cfg.Now())
}

// profile is the .mobileconfig with which an Apple device fetches its own
// certificate by SCEP. The code is checked, not used up: SCEP does that.
func (h *Home) profile(code string, r *http.Request) ([]byte, error) {
	inv, err := h.desk.Look(r.Context(), visitorAddr(r), code)
	if err != nil {
		return nil, err
	}
	name := inv.Name
	if name == "" {
		// The request will carry the name that the visitor chose. That it is taken
		// is better said before it installs.
		name = r.PostFormValue("name")
		if err := h.checkName(name); errors.Is(err, enroll.ErrNameTaken) {
			return nil, err
		}
	}
	conf := profile.Config{
		Name: name, Organization: h.domain, Challenge: code,
		SCEPURL: h.url("") + "/scep", CA: h.ca.Cert(), Roots: h.cfg.Roots(),
		WebClips: []profile.WebClip{{Label: h.domain, URL: h.url(CheckLabel) + "/"}},
		// The relay's own profile for the same domain stays beside this one.
		Identifier: "home." + h.cfg.Own + ".sallyport",
		Now:        h.cfg.Now,
	}
	// A profile without a signature still installs; it only looks worse.
	if h.cfg.Certificate != nil {
		if cert, err := h.cfg.Certificate(h.cfg.Own); err == nil {
			conf.Sign = cert
		}
	}
	data, err := profile.Build(conf)
	if err != nil {
		return nil, fmt.Errorf("profile of a device: %w", err)
	}
	return data, nil
}

// url is the address of one of the home's hosts, without a path; the empty
// label is the home's own name.
func (h *Home) url(label string) string {
	if label != "" {
		label += "."
	}
	return "https://" + label + h.cfg.Own + h.cfg.Port
}
