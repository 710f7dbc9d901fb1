package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// acmeIssuer is certmagic's Issuer over acmez, made for one attempt. certmagic's
// own (ACMEIssuer) cannot be used: to answer challenges it opens listeners, or
// takes whatever holds the port for its own. Here both challenges are answered
// by the relay's listeners, and by nothing else.
type acmeIssuer struct {
	acme     *ACME
	methods  methods
	replaces *x509.Certificate // the one that this renewal is for; nil: none
	waiter   *waiter
}

// methods are the challenges worth trying; none set means all that are served.
type methods struct{ http, tls bool }

// IssuerKey names the CA in the storage.
func (i *acmeIssuer) IssuerKey() string { return issuerKey(i.acme.config.CA) }

// issuerKey is the same key that certmagic.ACMEIssuer has.
func issuerKey(ca string) string {
	u, err := url.Parse(ca)
	if err != nil {
		return ca
	}
	return strings.TrimSuffix(u.Host+"-"+strings.Trim(strings.ReplaceAll(u.Path, "/", "-"), "-"), "-")
}

// Issue runs one order. It blocks until the CA has decided.
func (i *acmeIssuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	client := i.acme.client(i.waiter)
	if i.methods == (methods{}) {
		i.methods = methods{http: i.acme.config.Port80 > 0, tls: true}
	}
	if i.methods.http {
		client.ChallengeSolvers[acme.ChallengeTypeHTTP01] = httpSolver{i.acme.answers}
	}
	if i.methods.tls {
		client.ChallengeSolvers[acme.ChallengeTypeTLSALPN01] = tlsSolver{i.acme.answers}
	}
	chain, err := i.order(ctx, client, csr)
	var problem acme.Problem
	if errors.As(err, &problem) && problem.Type == acme.ProblemTypeAccountDoesNotExist {
		i.acme.account.reset() // the CA forgot us: a test server that was reinstalled
		chain, err = i.order(ctx, client, csr)
	}
	if err != nil {
		return nil, err
	}
	return &certmagic.IssuedCertificate{Certificate: chain.ChainPEM, Metadata: chain}, nil
}

func (i *acmeIssuer) order(ctx context.Context, client *acmez.Client, csr *x509.CertificateRequest) (acme.Certificate, error) {
	account, err := i.acme.account.get(ctx, client.Client)
	if err != nil {
		return acme.Certificate{}, err
	}
	params, err := acmez.OrderParametersFromCSR(account, csr)
	if err != nil {
		return acme.Certificate{}, err
	}
	if dir, err := client.GetDirectory(ctx); err == nil && dir.RenewalInfo != "" {
		params.Replaces = i.replaces
	}
	chains, err := client.ObtainCertificate(ctx, params)
	if err != nil {
		return acme.Certificate{}, err
	}
	if len(chains) == 0 {
		return acme.Certificate{}, errors.New("the ACME server sent no certificate")
	}
	return chains[0], nil // the CA's own first choice
}

// client returns a client for one attempt. w (may be nil) notes how long the
// CA asks us to wait.
func (a *ACME) client(w *waiter) *acmez.Client {
	hc := *a.http
	if w != nil {
		w.base = a.http.Transport
		hc.Transport = w
	}
	return &acmez.Client{
		Client: &acme.Client{
			Directory: a.config.CA, HTTPClient: &hc, UserAgent: "sallyport",
			PollTimeout: 2 * time.Minute, Logger: slog.New(quiet{a.config.Logger.Handler()}),
		},
		ChallengeSolvers: make(map[string]acmez.Solver),
	}
}

// A waiter notes the Retry-After of refusals, which acmez does not tell.
type waiter struct {
	base  http.RoundTripper
	until atomic.Pointer[time.Time]
}

// RoundTrip asks base.
func (w *waiter) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := w.base.RoundTrip(r)
	if err == nil && (resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable) {
		if d, err := time.ParseDuration(resp.Header.Get("Retry-After") + "s"); err == nil && d > 0 {
			at := time.Now().Add(d)
			w.until.Store(&at)
		} else if at, err := http.ParseTime(resp.Header.Get("Retry-After")); err == nil {
			w.until.Store(&at)
		}
	}
	return resp, err
}

// newHTTPClient returns the client for the CA.
func newHTTPClient(roots []*x509.Certificate, file string) (*http.Client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(roots) > 0 || file != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool() // a machine without any
		}
		for _, root := range roots {
			pool.AddCert(root)
		}
		if file != "" {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("root of the ACME server: %w", err)
			}
			if !pool.AppendCertsFromPEM(data) {
				return nil, fmt.Errorf("root of the ACME server: %s holds no certificate (PEM)", file)
			}
		}
		config.RootCAs = pool
	}
	return &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: 15 * time.Second, ResponseHeaderTimeout: 30 * time.Second, IdleConnTimeout: 30 * time.Second,
		},
	}, nil
}

// checkDirectoryURL refuses plain HTTP to other machines: a certificate says
// no more than the way to its issuer can be trusted.
func checkDirectoryURL(ca string) error {
	u, err := url.Parse(ca)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("the ACME server %q is not a URL\nname its directory: https://acme-v02.api.letsencrypt.org/directory", ca)
	}
	if u.Scheme == "http" && !onLoopback(ca) {
		return fmt.Errorf("the ACME server %s is reached without TLS\nuse its https URL", ca)
	}
	return nil
}
