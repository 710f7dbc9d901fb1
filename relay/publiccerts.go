package relay

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/certs"
)

// publicCerts is where the certificates of terminated hosts come from.
type publicCerts struct {
	certs.Source
	files *certs.Files                          // nil with an internal CA
	hosts atomic.Pointer[names.Table[struct{}]] // terminated hosts: what the internal CA vouches for
}

func newPublicCerts(conf Config, st *state) (*publicCerts, error) {
	p := &publicCerts{}
	if conf.certs() == CertsFiles {
		files, err := certs.LoadFiles(conf.CertFiles, conf.logger())
		if err != nil {
			return nil, err
		}
		p.Source, p.files = files, files
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

// run watches certificate files until ctx ends.
func (p *publicCerts) run(ctx context.Context) error {
	if p.files == nil {
		<-ctx.Done()
		return nil
	}
	return p.files.Run(ctx)
}

// reload reads certificate files again, all or none.
func (p *publicCerts) reload() error {
	if p.files == nil {
		return nil
	}
	return p.files.Reload()
}

// covers reports whether a certificate is there for a host pattern. An
// internal CA makes what is asked for.
func (p *publicCerts) covers(host string) bool {
	if p.files == nil {
		return true
	}
	name := host
	if rest, ok := strings.CutPrefix(host, "*."); ok {
		name = "any." + rest
	}
	_, err := p.files.GetCertificate(name)
	return err == nil
}

// uncovered is what the owner of such a host should hear.
func uncovered(host string) string {
	return fmt.Sprintf("none of the relay's certificate files covers %s: visitors cannot connect until one does", host)
}

// warnUncovered adds a warning to accepted services without a certificate.
func (r *Relay) warnUncovered(services []protocol.Service, regs []protocol.Registration) {
	for i, g := range regs {
		if g.Error != "" || i >= len(services) || services[i].TLS == protocol.TLSBackend {
			continue
		}
		u, err := url.Parse(g.URL)
		if err == nil && !r.public.covers(u.Hostname()) {
			regs[i].Warning = uncovered(u.Hostname())
			r.log.Warn("a host has no certificate", "host", u.Hostname(), "service", g.Name)
		}
	}
}
