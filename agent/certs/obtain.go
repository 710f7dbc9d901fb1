package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"github.com/sallyport/sallyport/protocol/pki"
)

// A job is one attempt to get one certificate.
type job struct {
	name  string
	sans  []string
	old   *x509.Certificate // the one that is renewed; nil: none
	again bool              // every other attempt after a failure
	byDNS bool              // the last failure was one of dns-01
}

// obtained is a new certificate.
type obtained struct {
	cert    *tls.Certificate
	unkept  []byte // what could not be written; problem says why
	problem string
}

// ready says why it is too early to ask.
func (o *orders) ready() error {
	if now := o.config.Now(); now.Before(pki.Floor()) {
		return &failure{
			held: true, problem: "this machine's clock says " + now.UTC().Format(clockFormat) + ", which cannot be right",
			fix: "set the clock (timedatectl set-ntp true); it is right by itself once the relay is reached",
		}
	}
	return nil
}

// txtTime bounds what the relay may take to publish a record.
const txtTime = 20 * time.Second

// choose picks the challenge. It asks the relay, at no cost, whether it will
// take our records: that also says whether the relay is there, without which
// neither challenge can be answered.
func (o *orders) choose(ctx context.Context, j job) (byDNS bool, err error) {
	base, wild := strings.CutPrefix(j.name, "*.")
	needsDNS := wild || len(j.sans) > 1
	inZone := strings.HasSuffix(base, "."+o.config.Domain)
	if o.book == nil {
		return false, nil // refuses has turned the wildcards away
	}
	ask := base
	if !inZone && !wild {
		if o.config.Own == "" {
			return false, nil
		}
		ask = o.config.Own
	}
	ctx, cancel := context.WithTimeout(ctx, txtTime)
	defer cancel()
	err = o.book.publish(ctx, ask)
	switch {
	case errors.Is(err, ErrNoDNS) && needsDNS:
		f := &failure{held: true, off: true}
		f.problem, f.fix = noWildcard(j.sans[len(j.sans)-1])
		return false, f
	case errors.Is(err, ErrNoDNS), errors.Is(err, ErrRefused) && !needsDNS:
		return false, nil
	case err != nil:
		return false, &failure{
			held: true, problem: oneLine("the relay has not taken the DNS record for " + ask + ": " + err.Error()),
			fix: "nothing to do while the relay is away: it is tried again once it is there; otherwise see that the relay has accepted the host (sallyport status)",
		}
	}
	if needsDNS {
		return true, nil
	}
	// The zone of the relay may not have been delegated to it yet: after dns-01
	// has failed, the other challenge has its turn, and so on.
	return inZone && (!j.again || !j.byDNS), nil
}

// obtain runs one order with a new key. It blocks until the CA has decided.
func (o *orders) obtain(ctx context.Context, j job, byDNS bool, seen sight) (*obtained, error) {
	w := &waiter{now: o.config.Now}
	client := o.client(w)
	if byDNS {
		client.ChallengeSolvers[acme.ChallengeTypeDNS01] = dnsSolver{o.book}
	} else {
		client.ChallengeSolvers[acme.ChallengeTypeTLSALPN01] = tlsSolver{o.answers}
	}
	key, err := pki.NewKey()
	if err != nil {
		return nil, &failure{held: true, problem: oneLine(err.Error()), fix: "see this machine's log: it has no random numbers"}
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	csr, err := acmez.NewCSR(key, j.sans)
	if err != nil {
		return nil, fmt.Errorf("make a signing request for %s: %w", j.name, err)
	}
	chain, err := o.order(ctx, client, csr, j)
	if problem, ok := errors.AsType[acme.Problem](err); ok && problem.Type == acme.ProblemTypeAccountDoesNotExist {
		o.account.forget() // the CA was installed anew, or has removed us
		chain, err = o.order(ctx, client, csr, j)
	}
	if err != nil {
		return nil, o.explain(err, j, byDNS, seen, w)
	}
	file := append(slices.Clone(keyPEM), chain...)
	cert, err := parsePair(file, j.sans)
	if err != nil {
		return nil, &failure{problem: oneLine(caName(o.config.ACME.CA) + " sent something that is not our certificate: " + err.Error()), fix: "the log at debug level has every step; another CA: see the settings of ACME"}
	}
	got := &obtained{cert: cert}
	if err := o.keeper.keepCertificate(j.name, file); err != nil {
		got.unkept, got.problem = file, oneLine("the certificate serves, but cannot be kept: "+err.Error())
	}
	return got, nil
}

func (o *orders) order(ctx context.Context, client *acmez.Client, csr *x509.CertificateRequest, j job) ([]byte, error) {
	dir, err := client.GetDirectory(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the directory of the ACME server: %w", err)
	}
	if dir.Meta != nil && dir.Meta.ExternalAccountRequired {
		return nil, &failure{
			problem: o.config.ACME.CA + " wants an account that was made with it before (external account binding)",
			fix:     "choose a CA that gives accounts to everybody",
		}
	}
	account, err := o.account.get(ctx, client.Client, dir)
	if err != nil {
		return nil, err
	}
	params, err := acmez.OrderParametersFromCSR(account, csr)
	if err != nil {
		return nil, err
	}
	if dir.RenewalInfo != "" && !j.again {
		params.Replaces = j.old
	}
	chains, err := client.ObtainCertificate(ctx, params)
	if err != nil {
		return nil, err
	}
	if len(chains) == 0 {
		return nil, errors.New("the ACME server sent no certificate")
	}
	return chains[0].ChainPEM, nil // the CA's own first choice
}

// client returns a client for one attempt. w (may be nil) notes how long the
// CA asks us to wait.
func (o *orders) client(w *waiter) *acmez.Client {
	hc := *o.http
	if w != nil {
		w.base = hc.Transport
		hc.Transport = w
	}
	return &acmez.Client{
		Client: &acme.Client{
			Directory: o.config.ACME.CA, HTTPClient: &hc, UserAgent: "sallyport",
			PollTimeout: 2 * time.Minute, Logger: slog.New(quiet{o.config.Logger.Handler()}),
		},
		ChallengeSolvers: make(map[string]acmez.Solver),
	}
}

// quiet passes everything on at debug level: what matters of an attempt is
// logged once, by whoever made it.
type quiet struct{ slog.Handler }

// Enabled asks for debug level.
func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle lowers the level.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return q.Handler.Handle(ctx, r)
}

// WithAttrs stays quiet.
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

// WithGroup stays quiet.
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
