package main

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
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/cmd/sallyport/machine"
	"github.com/sallyport/sallyport/protocol/names"
)

func connectCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:      "connect",
		Usage:     "join stdin and stdout to a TCP service at home",
		ArgsUsage: "HOST[:PORT]",
		Description: "The other half of `agent expose NAME tcp://…`, with this machine's device certificate.\n" +
			"As an ssh ProxyCommand:  ssh -o ProxyCommand='sallyport connect --cert me.crt --key me.key %h' ssh.example.org\n" +
			"With --device DIR of `device enroll` it renews the certificate in passing.\n" +
			"The end of stdin closes only our direction: the whole reply still arrives.",
		OnUsageError: onUsageError,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "relay", Usage: "dial `ADDR` (host:port) instead of looking HOST up"},
			&cli.StringFlag{Name: "ca", Usage: "trust only the roots in this PEM `FILE` (relay with --certs internal: sallyport relay ca)"},
			&cli.StringFlag{Name: "cert", Usage: "device certificate, PEM `FILE`", EnvVars: []string{"SALLYPORT_DEVICE_CERT"}},
			&cli.StringFlag{Name: "key", Usage: "its private key, PEM `FILE`", EnvVars: []string{"SALLYPORT_DEVICE_KEY"}},
			&cli.StringFlag{Name: "device", Usage: "instead of --cert, --key and --ca: `DIR` of device enroll", EnvVars: []string{"SALLYPORT_DEVICE"}},
			&cli.DurationFlag{Name: "timeout", Usage: "dial and handshake take `DURATION` at most", Value: 15 * time.Second},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usageError("for example: sallyport connect ssh.example.org", "connect takes one HOST[:PORT]")
			}
			d, err := deviceFlag(c)
			if err != nil {
				return err
			}
			conn, err := dialHost(c, d)
			if err != nil {
				return err
			}
			defer renewInPassing(c.Context, io.err, d)()
			return joinStdio(c.Context, conn, io)
		},
	}
}

// deviceFlag opens --device; nil when it is not given.
func deviceFlag(c *cli.Context) (*machine.Device, error) {
	dir := c.String("device")
	if dir == "" {
		return nil, nil
	}
	for _, f := range []string{"cert", "key"} {
		if c.String(f) != "" {
			return nil, usageError("give either --device, or --cert and --key", "--device and --%s exclude each other", f)
		}
	}
	d, err := machine.Open(dir)
	if err == nil {
		err = d.Usable(time.Now())
	}
	if err != nil {
		return nil, explainMachine(dir, err)
	}
	return d, nil
}

// renewInPassing renews the device's certificate while the connection runs, if
// it is time. The returned function waits a moment for the end of it. A failure
// is told and has no other effect: the old certificate still works.
func renewInPassing(ctx context.Context, errs io.Writer, d *machine.Device) (wait func()) {
	if d == nil || !d.Due(time.Now()) {
		return func() {}
	}
	renewing, cancel := context.WithTimeout(ctx, 30*time.Second)
	done := make(chan error, 1)
	go func() {
		_, err := d.RenewIfDue(renewing, time.Now())
		done <- err
	}()
	return func() {
		defer cancel()
		patience := time.NewTimer(5 * time.Second)
		defer patience.Stop()
		select {
		case err := <-done:
			if err != nil && !errors.Is(err, machine.ErrBusy) && ctx.Err() == nil {
				fmt.Fprintf(errs, "sallyport: warning: the certificate ends %s and was not renewed: %s\n", moment(d.Cert.NotAfter), printableLines(err.Error()))
			}
		case <-patience.C: // a half-done renewal is begun anew next time
		}
	}
}

// dialHost makes the TLS connection that the flags describe. d may be nil.
func dialHost(c *cli.Context, d *machine.Device) (*tls.Conn, error) {
	host, port := splitHost(strings.TrimSuffix(strings.TrimPrefix(c.Args().First(), "tls://"), "/"))
	name, err := names.Canonical(host)
	if err != nil {
		return nil, usageError("give the service's public name, such as ssh.example.org", "HOST %q: %w", host, err)
	}
	conf, err := deviceTLS(c, d, name)
	if err != nil {
		return nil, err
	}
	addr := dialAddress(c, d, name, port)
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, explainDial(name, addr, err)
	}
	conn := tls.Client(noSilentEnd{raw}, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, explainDial(name, addr, err)
	}
	return conn, nil
}

// deviceTLS is how --ca, --cert, --key and --device meet a host. d may be nil.
func deviceTLS(c *cli.Context, d *machine.Device, name string) (*tls.Config, error) {
	conf := &tls.Config{ServerName: name, MinVersion: tls.VersionTLS12}
	if f := c.String("ca"); f != "" {
		pem, err := os.ReadFile(f)
		if err != nil {
			return nil, usageError("", "--ca: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usageError("`sallyport relay ca` prints the right one.", "--ca: %s holds no PEM certificate", f)
		}
	}
	if d != nil {
		pair := d.TLS()
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		if conf.RootCAs == nil {
			conf.RootCAs = d.Roots()
		}
	}
	cert, key := c.String("cert"), c.String("key")
	if (cert == "") != (key == "") {
		return nil, usageError("give both", "--cert and --key belong together")
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, usageError("", "device certificate: %w", err)
		}
		// Given by callback so that it is shown whatever CA names the server sends.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return conf, nil
}

// dialAddress is what is dialled for a name: --relay, what the device keeps, or
// the name itself.
func dialAddress(c *cli.Context, d *machine.Device, name, port string) string {
	if r := c.String("relay"); r != "" {
		return net.JoinHostPort(splitHost(r))
	}
	if d != nil && d.Address() != "" {
		return d.Address()
	}
	return net.JoinHostPort(name, port)
}

// noSilentEnd makes an end of TCP that TLS did not announce an error. crypto/tls
// takes it for a clean end, so that a reply cut by a dying relay would look whole.
type noSilentEnd struct{ net.Conn }

var errSilentEnd = errors.New("it ended without a word of TLS")

func (c noSilentEnd) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == io.EOF { // exactly: it is ours to replace
		err = errSilentEnd
	}
	return n, err
}

// splitHost parts HOST[:PORT]; the port of everything public is 443.
func splitHost(s string) (host, port string) {
	if host, port, err := net.SplitHostPort(s); err == nil {
		return host, port
	}
	return strings.Trim(s, "[]"), "443"
}

// isAlert reports whether the other side ended TLS with an alert. crypto/tls
// gives it as an OpError of this name around an unexported type.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

func explainDial(name, addr string, err error) error {
	var unknown x509.UnknownAuthorityError
	var op *net.OpError
	var dns *net.DNSError
	switch {
	case isAlert(err) && strings.Contains(err.Error(), "unrecognized name"): // crypto/tls has no value for it
		return failed(exitRefused, "no home claims this name: `sallyport status` on the relay's machine lists them",
			fmt.Errorf("%s refuses the handshake for %s: %w", addr, name, err))
	case errors.As(err, &dns) && dns.IsNotFound:
		return failed(exitUnreachable, "no DNS entry for it; --relay ADDR names the relay", fmt.Errorf("connect to %s: %w", addr, err))
	case isAlert(err):
		return failed(exitRefused, "is the name right, and does this host want a device certificate (--cert, --key)?",
			fmt.Errorf("%s refuses the handshake for %s: %w", addr, name, err))
	case errors.As(err, &unknown):
		return failed(exitFailed, "for a relay with its own CA: `sallyport relay ca > root.pem` there, then --ca root.pem here",
			fmt.Errorf("%s: %w", addr, err))
	case errors.As(err, &op), errors.Is(err, context.DeadlineExceeded):
		return failed(exitUnreachable, "is the relay running, and is this its address?", fmt.Errorf("connect to %s: %w", addr, err))
	}
	return failed(exitFailed, "", fmt.Errorf("connect to %s: %w", addr, err))
}

// joinStdio copies both ways and returns when the reply has ended. The end of
// stdin half-closes: only the peer decides when all is said.
func joinStdio(ctx context.Context, conn *tls.Conn, std stdio) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	sendErr := make(chan error, 1)
	// Reading stdin cannot be interrupted, so this goroutine may outlive the
	// call; the process ends with it.
	go func() { sendErr <- sendStdin(conn, std.in) }()
	_, err := io.Copy(std.out, conn)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return failed(exitFailed, "", errors.New("interrupted"))
	}
	if isAlert(err) {
		return failed(exitRefused, "this host wants a device certificate that is known and allowed (--cert, --key)",
			fmt.Errorf("the relay ended the connection: %w", err))
	}
	select {
	case serr := <-sendErr:
		if serr != nil {
			err = errors.Join(err, serr)
		}
	default:
	}
	return failed(exitFailed, "the service at home may be down; the agent's log says why", fmt.Errorf("the connection was cut before its end: %w", err))
}

func sendStdin(conn *tls.Conn, in io.Reader) error {
	if _, err := io.Copy(conn, in); err != nil {
		return err
	}
	return conn.CloseWrite()
}
