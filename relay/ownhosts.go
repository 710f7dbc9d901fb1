package relay

import (
	"crypto/x509"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/relay/devices"
)

// ownSites are the hosts that the relay itself stands behind. No agent can
// claim them (names.IsReserved).
func (r *Relay) ownSites() map[string]*door.Site {
	sites := map[string]*door.Site{
		r.ownHost(enrollLabel): {Mode: door.None, Handler: r.enrolment.enroll},
		r.ownHost(checkLabel):  {Mode: door.Ask, Handler: r.enrolment.check, Denied: r.deniedAtCheck},
	}
	if r.conf.AdminHost {
		sites[r.ownHost(adminLabel)] = &door.Site{Mode: door.Require, Handler: r.newDashboard(true)}
	}
	r.bridges.sites(sites)
	for host, s := range sites {
		s.Host, s.Certificate = host, r.public.GetCertificate
		s.Policy = strings.Join([]string{host, string(s.Mode), "relay"}, " ")
	}
	return sites
}

// tokenSites are the hosts of token devices. Each leads to what its target
// serves now; a target that is not routed, or not by HTTP, has none.
func (r *Relay) tokenSites(sites map[string]*door.Site, find func(host string) (*door.Site, bool)) {
	for _, d := range r.devices.Tokens() {
		target, ok := find(d.Target)
		if !ok || target.Handler == nil {
			continue
		}
		sites[d.TokenHost] = &door.Site{
			Host: d.TokenHost, Mode: door.Token, Certificate: r.public.GetCertificate,
			Policy: strings.Join([]string{d.TokenHost, string(door.Token), d.ID, target.Policy}, " "), Handler: target.Handler,
		}
	}
}

// deniedAtCheck lets EST clients without a certificate reach what they may do
// without one; everybody else gets the page.
func (r *Relay) deniedAtCheck(w http.ResponseWriter, req *http.Request, denial string) {
	if denial == door.DeniedMissing && strings.HasPrefix(req.URL.Path, "/.well-known/est/") {
		r.enrolment.est.ServeHTTP(w, req)
		return
	}
	r.enrolment.pages.Denied(w, req, denial)
}

// checkDevice is the door's question, at the handshake and at each request.
// Two hosts have rules of their own: every device may see its self-test, and
// only devices marked admin the dashboard.
func (r *Relay) checkDevice(leaf *x509.Certificate, host string, now time.Time) (door.Device, string) {
	d, denial := r.devices.Check(leaf, host, now)
	switch own := denial == devices.Allowed || denial == devices.DeniedHost; {
	case own && host == r.ownHost(checkLabel):
		denial = devices.Allowed
	case own && host == r.ownHost(adminLabel):
		denial = devices.DeniedHost
		if d.Admin {
			denial = devices.Allowed
		}
	}
	return doorDevice(d, leaf), string(denial) // with a denial the name is for the log
}

// hostsOf lists the web pages at home that a device may open now.
func (r *Relay) hostsOf(d *door.Device) []string {
	var hosts []string
	for _, host := range slices.Sorted(r.terminated()) {
		s, ok := r.site(host) // a wildcard has no page of its own
		if !ok || s.Handler == nil || s.Mode == door.Token || r.isOwn(host) {
			continue
		}
		if _, denial := r.checkDevice(d.Cert, host, r.now()); denial == "" {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// checkToken is the door's question at hosts of tokens.
func (r *Relay) checkToken(host, secret string, now time.Time) (door.Device, string) {
	d, denial := r.devices.CheckToken(host, secret, now)
	return doorDevice(d, nil), string(denial) // with a denial the name is for the audit log
}

func doorDevice(d devices.Device, leaf *x509.Certificate) door.Device {
	return door.Device{ID: d.ID, Name: d.Name, Cert: leaf, Until: d.Until, Path: d.Path, Admin: d.Admin}
}

// deniedPage is what a visitor of an ask host sees who may not come in.
func (r *Relay) deniedPage(w http.ResponseWriter, req *http.Request, denial string) {
	r.enrolment.pages.Denied(w, req, denial)
}
