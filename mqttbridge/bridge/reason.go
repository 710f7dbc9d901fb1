package bridge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
)

// A Reason is why the home broker cannot be used, in words for people: what
// happened and what to do.
type Reason struct {
	Text string
	Err  error // beneath; nil = none

	early bool // the broker has made no session
}

func (r *Reason) Error() string { return r.Text }
func (r *Reason) Unwrap() error { return r.Err }

// explain words an error of connecting to b; early: no CONNECT was sent.
func explain(b Broker, early bool, err error) error {
	addr, secure, bad := b.address()
	if bad != nil {
		return &Reason{Text: bad.Error(), early: true}
	}
	say := func(format string, args ...any) error {
		return &Reason{Text: fmt.Sprintf(format, args...), Err: err, early: early}
	}
	if r, ok := errors.AsType[*refusal](err); ok {
		early = true
		return say("%s", refusedText(b, addr, r.code))
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return say("the broker's name %s is not found in the DNS (%s): check the host in the broker URL", dns.Name, dns.Err)
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return say("nothing listens at %s: is the broker running, and is the port right?", addr)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return say("%s does not answer in time: is this the broker's address, and does a firewall drop the packets?", addr)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return say("%s cannot be reached: is this machine on the home network?", addr)
	}
	if secure {
		if text := tlsText(b, addr, err); text != "" {
			return say("%s", text)
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		hint := "does the port want TLS (tls://)? Its log says why"
		switch {
		case secure && early:
			hint = "does this port speak TLS? Otherwise write tcp://. Its log says why"
		case secure && b.CertFile == "":
			hint = "it may ask for a client certificate, set cert_file and key_file. Its log says why"
		case secure:
			hint = "it may refuse the client certificate " + b.CertFile + ". Its log says why"
		}
		return say("the broker at %s closed the connection before it answered: %s", addr, hint)
	}
	return say("the broker at %s cannot be used: %v", addr, err)
}

// refusedText words a CONNACK code: those of 3.1.1, and those of MQTT 5 that
// brokers send to older clients too.
func refusedText(b Broker, addr string, code byte) string {
	user := "no user name"
	if b.User != "" {
		user = fmt.Sprintf("user %q", b.User)
	}
	switch code {
	case 1, 0x84:
		return fmt.Sprintf("the broker at %s speaks no MQTT 3.1.1", addr)
	case 2, 0x85:
		return fmt.Sprintf("the broker at %s refuses the client id: set another one", addr)
	case 3, 0x88, 0x89:
		return fmt.Sprintf("the broker at %s is not available now", addr)
	case 4, 0x86:
		return fmt.Sprintf("the broker at %s refuses %s: wrong user name or password; check user and password_file", addr, user)
	case 5, 0x87:
		if b.User == "" {
			return fmt.Sprintf("the broker at %s lets nobody in without a user name: set user and password_file", addr)
		}
		return fmt.Sprintf("the broker at %s does not let %s in: wrong password, or no rights; check user and password_file", addr, user)
	}
	return fmt.Sprintf("the broker at %s refused the connection with code %d", addr, code)
}

// tlsText words an error of TLS; "" = it is none.
func tlsText(b Broker, addr string, err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		if b.CAFile != "" {
			return fmt.Sprintf("the certificate of the broker at %s is not signed by a CA in %s: put the CA's certificate there", addr, b.CAFile)
		}
		return fmt.Sprintf("the certificate of the broker at %s is signed by a CA that this machine does not know: set ca_file to the CA's certificate", addr)
	}
	if name, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Sprintf("the certificate of the broker at %s is for other names (%s), not for %s: use one of them in the URL, or set server_name", addr, names(name.Certificate), name.Host)
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if invalid.Reason == x509.Expired {
			return fmt.Sprintf("the certificate of the broker at %s is expired or not valid yet, by this machine's clock: renew it, or set the clock (%s)", addr, invalid.Detail)
		}
		return fmt.Sprintf("the certificate of the broker at %s is not valid: %v", addr, invalid)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fmt.Sprintf("the broker at %s speaks no TLS on this port: write tcp://, or use its TLS port, often 8883", addr)
	}
	// The other side's alerts have no type that can be asked for.
	if _, alert, found := strings.Cut(err.Error(), "remote error: tls: "); found {
		if b.CertFile == "" {
			return fmt.Sprintf("the broker at %s ended TLS (%s): it may ask for a client certificate, set cert_file and key_file", addr, alert)
		}
		return fmt.Sprintf("the broker at %s refuses our client certificate %s (%s): it must be signed by the CA that the broker trusts, and not be expired", addr, b.CertFile, alert)
	}
	return ""
}

func names(c *x509.Certificate) string {
	if c == nil {
		return "none"
	}
	list := c.DNSNames
	for _, ip := range c.IPAddresses {
		list = append(list, ip.String())
	}
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
