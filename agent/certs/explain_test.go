package certs

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/mholt/acmez/v3/acme"
)

func acmeProblem(kind, detail string) error {
	return fmt.Errorf("solving challenge: %w", acme.Problem{Type: acme.ProblemTypeNamespace + kind, Detail: detail, Status: 403})
}

// Every failure says what happened and what to do, in the words of the home.
func TestExplain(t *testing.T) {
	c, err := New(Config{Dir: t.TempDir(), Domain: domain})
	if err != nil {
		t.Fatal(err)
	}
	foreign := sight{hint: &failure{problem: "ha.relay.test cannot be reached from here", fix: "see the records"}}
	for _, x := range []struct {
		err          error
		byDNS        bool
		seen         sight
		problem, fix string
	}{
		{acmeProblem("dns", "NXDOMAIN"), true, sight{}, "does not find our DNS record for ha.relay.test: NXDOMAIN", "delegated"},
		{acmeProblem("unauthorized", "wrong"), false, sight{}, "Let's Encrypt refused: wrong", "point to the relay"},
		{acmeProblem("connection", "timeout"), false, foreign, "cannot be reached from here (Let's Encrypt: timeout)", "see the records"},
		{acmeProblem("caa", "no"), true, sight{}, "CAA record forbids", "another account"},
		{acmeProblem("rateLimited", "slow"), true, sight{}, "rate limit is used up", "wait"},
		{acmeProblem("rejectedIdentifier", "policy"), true, sight{}, "policy", "files of your own"},
		{acmeProblem("invalidContact", "who"), true, sight{}, "who", "e-mail"},
		{acmeProblem("userActionRequired", "terms"), true, sight{}, "terms", "what it asks for"},
		{acmeProblem("serverInternal", "oops"), true, sight{}, "oops", "tried again"},
		{acmeProblem("malformed", "huh"), true, sight{}, "huh", "debug level"},
		{fmt.Errorf("presenting: %w", txtError{errors.New("no session")}), true, sight{}, "the relay has not taken the DNS record", "tried again"},
		{&url.Error{Op: "Post", Err: &net.OpError{Op: "dial", Err: errors.New("refused")}}, true, sight{}, "cannot be reached: dial", "firewall"},
		{&url.Error{Op: "Post", Err: x509.UnknownAuthorityError{}}, true, sight{}, "does not know", "root"},
		{&url.Error{Op: "Post", Err: x509.CertificateInvalidError{Reason: x509.Expired, Cert: new(x509.Certificate)}}, true, sight{}, "this machine's time", "clock"},
		{context.DeadlineExceeded, true, sight{}, "too long", "tried again"},
		{errors.New("odd\x1b[2J\nend"), true, sight{}, "odd[2J end", "debug level"},
	} {
		w := &waiter{now: c.acme.config.Now}
		f := c.acme.explain(x.err, job{name: "ha.relay.test"}, x.byDNS, x.seen, w)
		if !strings.Contains(f.problem, x.problem) || !strings.Contains(f.fix, x.fix) || f.byDNS != x.byDNS || f.held {
			t.Errorf("%v:\n%+v", x.err, f)
		}
	}
	if f := asFailure(errors.New("x")); f.held || f.problem != "x" || f.fix == "" {
		t.Errorf("%+v", f)
	}
	if long := oneLine(strings.Repeat("ä", 1000)); len([]rune(long)) != 301 {
		t.Errorf("%d letters", len([]rune(long)))
	}
}
