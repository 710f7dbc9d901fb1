package service

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/sallyport/sallyport/protocol"
)

// A DialError is why a backend was not reached, in two voices: Err and Fix are
// for the owner's log at home; Code and Reason go to the relay, or into a page,
// and hold no address, path or name of the home.
type DialError struct {
	Err    error
	Fix    string // what to do; may be empty
	Code   protocol.Code
	Reason string
}

// Error is Err's.
func (e *DialError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *DialError) Unwrap() error { return e.Err }

// refusal is a DialError for what the table itself says no to.
func refusal(code protocol.Code, reason string) *DialError {
	return &DialError{Err: errors.New(reason), Code: code, Reason: reason}
}

// explain finds out what a person can do about err.
func (b *backend) explain(ctx context.Context, err error) *DialError {
	if _, ok := errors.AsType[*handshakeError](err); ok && ctx.Err() == nil {
		return b.explainTLS(err)
	}
	d := &DialError{Err: err, Code: protocol.CodeBackendDown, Reason: "not reachable"}
	if _, ok := errors.AsType[*lookupError](err); ok {
		d.Reason = "name not found"
		d.Fix = "is the device on, and does it have this name? Multicast DNS works on the home network itself only; in a container it needs host networking. A fixed address always works"
		return d
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		d.Reason = "name not found"
		d.Fix = "check the target's host name, or write its address"
		return d
	}
	switch timeout, _ := errors.AsType[net.Error](err); {
	case errors.Is(err, syscall.ECONNREFUSED):
		d.Reason = "connection refused"
		d.Fix = "is the service running, and is this its port?"
	case errors.Is(err, fs.ErrNotExist):
		d.Reason = "not running"
		d.Fix = "the socket does not exist: is the service running?"
	case errors.Is(err, fs.ErrPermission):
		d.Reason = "not reachable"
		d.Fix = "let the agent's user open the socket, for instance by its group"
	case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded), timeout != nil && timeout.Timeout():
		d.Reason = "no answer in time"
		d.Fix = "is the device on, and is there a firewall between it and the agent?"
	}
	return d
}

func (b *backend) explainTLS(err error) *DialError {
	d := &DialError{Err: err, Code: protocol.CodeBackendTLS, Reason: "TLS handshake failed"}
	unverified, verification := errors.AsType[*tls.CertificateVerificationError](err)
	if verification {
		d.Reason = "certificate not accepted"
		d.Fix = "put the backend's certificate, or its CA's, into a file for ca (--ca)"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		d.Reason = "the backend does not speak TLS"
		plain := b.target
		plain.Scheme = SchemeHTTP
		d.Fix = fmt.Sprintf("write the target as %s", plain)
		return d
	}
	if errors.Is(err, errNoHTTP2) {
		d.Reason = "the backend does not speak HTTP/2"
		d.Fix = "leave http2 out"
		return d
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		if b.entry.CAFile != "" {
			d.Fix = fmt.Sprintf("the certificate is not from a CA in %s: put the backend's certificate, or its CA's, there", b.entry.CAFile)
		} else {
			d.Fix = "the certificate is self-made or from a private CA: put it, or its CA's, into a file and name that as ca (--ca); or accept any certificate with insecure_skip_verify"
		}
	} else if wrong, ok := errors.AsType[x509.HostnameError](err); ok {
		d.Fix = "the certificate names no host: put the certificate itself into a file for ca (--ca)"
		if names := wrong.Certificate.DNSNames; len(names) > 0 {
			d.Fix = fmt.Sprintf("the certificate is for %s: write that name as server_name, or put the certificate itself into a file for ca (--ca)", strings.Join(names, ", "))
		}
	} else if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		leaf := unverified.UnverifiedCertificates[0]
		d.Fix = fmt.Sprintf("the certificate is valid from %s to %s: is this machine's clock right? Otherwise renew it, or put the certificate itself into a file for ca (--ca)",
			leaf.NotBefore.Format("2006-01-02"), leaf.NotAfter.Format("2006-01-02"))
	}
	return d
}
