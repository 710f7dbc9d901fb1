package relay

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/certs"
)

// publicCerts is where the certificates of terminated hosts come from.
type publicCerts struct {
	certs.Source
	files *certs.Files                          // with CertsFiles
	acme  *certs.ACME                           // with CertsACME
	hosts atomic.Pointer[names.Table[struct{}]] // terminated hosts: what the internal CA vouches for
}

func newPublicCerts(conf Config, st *state, event func(string, ...slog.Attr)) (*publicCerts, error) {
	p := &publicCerts{}
	switch conf.certs() {
	case CertsFiles:
		files, err := certs.LoadFiles(conf.CertFiles, conf.logger())
		if err != nil {
			return nil, err
		}
		p.Source, p.files = files, files
		return p, nil
	case CertsACME:
		acme, err := certs.NewACME(certs.ACMEConfig{
			Dir: filepath.Join(conf.DataDir, "acme"), CA: conf.ACME.CA, RootFile: conf.ACME.RootFile, Email: conf.ACME.Email,
			Port80: conf.probeHTTP(), Port443: conf.probeHTTPS(),
			Now: conf.now(), Logger: conf.logger(), Events: event,
		})
		if err != nil {
			return nil, fmt.Errorf("certificates by ACME: %w", err)
		}
		p.Source, p.acme = acme, acme
		return p, nil
	}
	internal, err := certs.NewInternal(certs.InternalConfig{
		Issue: func(pub crypto.PublicKey, name string, from, to time.Time) (*x509.Certificate, error) {
			return st.publicCA.Issue(pub, pki.Grant{
				Profile: pki.Server, Name: name, NotBefore: from, NotAfter: to,
			})
		},
		Allow: p.allowed,
		Chain: []*x509.Certificate{st.publicCA.Cert()},
		Now:   conf.now(), Logger: conf.logger(),
	})
	if err != nil {
		return nil, fmt.Errorf("internal certificates: %w", err)
	}
	p.Source = internal
	return p, nil
}

// allowed vouches for names that a terminated host covers.
func (p *publicCerts) allowed(name string) bool {
	t := p.hosts.Load()
	if t == nil {
		return false
	}
	_, ok := t.Lookup(name)
	return ok
}

// serve takes the terminated hosts, as patterns: certificates are there for
// these and for no other name.
func (p *publicCerts) serve(hosts map[string]struct{}) error {
	table, err := names.NewTable(hosts)
	if err != nil {
		return err
	}
	p.hosts.Store(table)
	if p.acme != nil {
		p.acme.SetHosts(slices.Sorted(maps.Keys(hosts)))
	}
	return nil
}

// run watches certificate files, or obtains and renews, until ctx ends.
func (p *publicCerts) run(ctx context.Context) error {
	switch {
	case p.files != nil:
		return p.files.Run(ctx)
	case p.acme != nil:
		return p.acme.Run(ctx)
	}
	<-ctx.Done()
	return nil
}

// reload reads certificate files again, all or none.
func (p *publicCerts) reload() error {
	if p.files == nil {
		return nil
	}
	return p.files.Reload()
}

// lacks says what keeps visitors of a host pattern from connecting: that no
// certificate covers it. "" when one does, or will in a moment. An internal CA
// makes what is asked for. The home is told less than the owner: what probes
// found out about this machine's network is none of its business.
func (p *publicCerts) lacks(host string) (home, owner string) {
	rest, wild := strings.CutPrefix(host, "*.")
	switch {
	case p.files != nil:
		name := host
		if wild {
			name = "any." + rest
		}
		if _, err := p.files.GetCertificate(name); err != nil {
			lack := fmt.Sprintf("none of the relay's certificate files covers %s: visitors cannot connect until one does", host)
			return lack, lack
		}
	case p.acme != nil:
		if st, ok := p.acme.HostStatus(host); ok && st.Problem != "" {
			return host + ": " + st.Public, fmt.Sprintf("%s: %s; %s", host, st.Problem, st.Fix)
		}
	}
	return "", ""
}

// list says how the certificate of each host stands.
func (p *publicCerts) list(hosts iter.Seq[string]) []admin.PublicCert {
	var list []admin.PublicCert
	if p.acme != nil {
		for _, st := range p.acme.Status() {
			list = append(list, admin.PublicCert{
				Host: st.Host, State: st.State, Issuer: st.Issuer, Problem: st.Problem, Fix: st.Fix,
				NotAfter: st.NotAfter, Next: st.Next,
			})
		}
		return list
	}
	for _, host := range slices.Sorted(hosts) {
		c := admin.PublicCert{Host: host, State: "ok"}
		cert, err := p.GetCertificate(strings.Replace(host, "*.", "any.", 1))
		switch {
		case err != nil:
			c.State, c.Problem, c.Fix = "missing", "no certificate file covers it", "add a pair under certificates, or use certs: acme"
		case cert.Leaf != nil:
			c.Issuer, c.NotAfter = cert.Leaf.Issuer.String(), cert.Leaf.NotAfter
		}
		list = append(list, c)
	}
	return list
}

// warnUncovered adds a warning to accepted services without a certificate.
func (r *Relay) warnUncovered(services []protocol.Service, regs []protocol.Registration) {
	for i, g := range regs {
		if g.Error != "" || i >= len(services) || services[i].TLS == protocol.TLSBackend {
			continue
		}
		u, err := url.Parse(g.URL)
		if err != nil {
			continue
		}
		if home, owner := r.public.lacks(u.Hostname()); home != "" {
			regs[i].Warning = home
			r.log.Warn("a host has no certificate", "host", u.Hostname(), "service", g.Name, "err", owner)
		}
	}
}
