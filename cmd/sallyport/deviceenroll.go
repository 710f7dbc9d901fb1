package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	goio "io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/cmd/sallyport/machine"
	"github.com/sallyport/sallyport/relay/enroll"
)

// deviceEnroll makes this machine a device.
func deviceEnroll(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	const example = "for example: sallyport device enroll --code-file - --out ~/sallyport"
	if c.String("out") == "" {
		return usageError(example, "device enroll wants a directory in --out")
	}
	if strings.Contains(c.String("relay"), "#") {
		return usageError("everybody on this machine can read its command lines; paste the link instead, and ask for a new one if others were there: "+
			"sallyport device enroll --code-file - --out "+quoted(c.String("out")), "--relay holds a link with its code")
	}
	e := machine.Enrolment{
		Dir: c.String("out"), Address: c.String("address"), Name: c.String("name"), RSA: c.Bool("rsa"), Hostname: shortHostname(),
		Words: enroll.Words,
	}
	text, err := readCode(c.Context, c.String("code-file"), io)
	if err != nil {
		return err
	}
	if e.Relay, e.Code, err = relayAndCode(c.String("relay"), text); err != nil {
		return usageError(example, "%w", err)
	}
	owner, flag := "the relay", ""
	if enrolsAtHome(e.Relay) {
		owner, flag = "the agent", " --home"
	}
	e.Waiting = func(name, words string) {
		fmt.Fprintf(io.err, "%s waits for %s's owner: sallyport device approve %s%s\nthere these words must be shown:\n\n  %s\n\n", name, owner, name, flag, words)
	}
	if f := c.String("ca"); f != "" {
		if e.Root, err = os.ReadFile(f); err != nil {
			return usageError("", "--ca: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(e.Root) {
			return usageError("`sallyport relay ca` prints the right one.", "--ca: %s holds no PEM certificate", f)
		}
	}
	d, err := machine.Enrol(c.Context, e)
	if err != nil {
		return explainMachine(e.Dir, err)
	}
	fmt.Fprintf(io.out, "wrote %s and %s\n", d.KeyFile(), d.CertFile())
	if root := d.RootFile(); root != "" {
		fmt.Fprintf(io.out, "%s is the root that the relay's hosts are verified with\n", root)
	}
	fmt.Fprint(io.out, tryIt(d))
	fmt.Fprintf(io.out, "valid until %s; renew in time with: sallyport device renew %s\nundo, on %s's machine: sallyport device revoke %s%s\n",
		moment(d.Cert.NotAfter), quoted(d.Dir), owner, d.Name, flag)
	return nil
}

// tryIt shows how the new certificate is used: with curl at the relay's
// self-test, and by connect for what is not the web.
func tryIt(d *machine.Device) string {
	line := "curl --cert " + quoted(d.CertFile()) + " --key " + quoted(d.KeyFile())
	if root := d.RootFile(); root != "" {
		line += " --cacert " + quoted(root)
	}
	if d.Address() != "" {
		line += " --connect-to ::" + d.Address()
	}
	_, domain, _ := strings.Cut(d.CheckURL(), "://check.")
	if enrolsAtHome(d.CheckURL()) { // its services are beside its own name, not below
		_, domain, _ = strings.Cut(domain, ".")
	}
	host, port := splitHost(domain)
	if host = "HOST." + host; port != "443" {
		host += ":" + port
	}
	return fmt.Sprintf("try it:   %s %s/\nfor tcp:  sallyport connect --device %s %s\n", line, d.CheckURL(), quoted(d.Dir), host)
}

// shortHostname is the first label of this machine's name, if that can be the
// name of a device.
func shortHostname() string {
	name, _ := os.Hostname() // none is fine: then --name must be given
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	return name
}

// readCode reads --code-file; "" when there is none.
func readCode(ctx context.Context, file string, io stdio) (string, error) {
	const maxCode = 4096
	in := io.in
	switch {
	case file == "":
		return "", nil
	case file == "-" && isTerminal(in):
		text, err := promptLine(ctx, io, "link or code: ", maxCode)
		if err == nil && text == "" {
			err = usageError("paste what `sallyport device add NAME` printed on the relay's machine", "no link or code was given")
		}
		return text, err
	case file == "-":
	default:
		f, err := os.Open(file)
		if err != nil {
			return "", usageError("", "--code-file: %w", err)
		}
		defer f.Close()
		in = f
	}
	raw, err := goio.ReadAll(goio.LimitReader(in, maxCode))
	if err != nil {
		return "", failed(exitFailed, "", fmt.Errorf("read the code: %w", err))
	}
	text := strings.TrimSpace(string(raw))
	if text == "" || strings.ContainsAny(text, "\n\r") {
		return "", usageError("put the code or the link alone into it", "--code-file %s: it does not hold one line", file)
	}
	return text, nil
}

// promptLine asks on a terminal and returns one line, without blanks around.
// Reading a terminal cannot be interrupted, so its goroutine may outlive the
// call; the process ends with it.
func promptLine(ctx context.Context, io stdio, prompt string, most int64) (string, error) {
	type read struct {
		line string
		err  error
	}
	fmt.Fprint(io.err, prompt)
	done := make(chan read, 1)
	go func() {
		line, err := bufio.NewReader(goio.LimitReader(io.in, most)).ReadString('\n')
		done <- read{line, err}
	}()
	select {
	case r := <-done:
		if r.err != nil && !errors.Is(r.err, goio.EOF) {
			return "", failed(exitFailed, "", fmt.Errorf("read the terminal: %w", r.err))
		}
		return strings.TrimSpace(r.line), nil
	case <-ctx.Done():
		fmt.Fprintln(io.err)
		return "", failed(exitFailed, "", errors.New("interrupted"))
	}
}

// relayAndCode joins --relay and what --code-file holds: a code, or a link.
func relayAndCode(relay, text string) (base, code string, err error) {
	if strings.Contains(text, "#") {
		if base, code, err = machine.ParseRelay(text); err != nil {
			return "", "", err
		}
		text = code
	}
	if relay != "" {
		named, _, err := machine.ParseRelay(relay) // without a code, see deviceEnroll
		if err != nil {
			return "", "", fmt.Errorf("--relay: %w", err)
		}
		if base != "" && base != named {
			return "", "", fmt.Errorf("the link is of %s, but --relay says %s", base, named)
		}
		base = named
	}
	if base == "" {
		return "", "", errors.New("no relay is named: give the whole link, or --relay URL")
	}
	return base, text, nil
}

// deviceRenew renews once, or stays and looks again and again.
func deviceRenew(c *cli.Context, io stdio) error {
	if c.NArg() != 1 {
		return usageError("for example: sallyport device renew ~/sallyport", "device renew takes the DIR of `device enroll`")
	}
	every := c.Duration("every")
	if c.IsSet("every") && every < time.Minute {
		return usageError("write a duration such as --every 12h", "--every: %v is too short", every)
	}
	dir := c.Args().First()
	renew := func(force bool) error {
		return renewOnce(c.Context, io.out, dir, c.String("address"), force, time.Now())
	}
	err := renew(c.Bool("force"))
	if every == 0 {
		return err
	}
	return keepRenewing(c.Context, io, every, err, func() error { return renew(false) })
}

// renewOnce renews if it is due or forced, and says what it did. address is
// dialled instead of what DNS says, or what enrolment kept; "" is neither.
func renewOnce(ctx context.Context, out goio.Writer, dir, address string, force bool, now time.Time) error {
	d, err := machine.Open(dir)
	if err != nil {
		return explainMachine(dir, err)
	}
	d.Dial(address)
	did := force
	if force {
		err = d.Renew(ctx)
	} else {
		did, err = d.RenewIfDue(ctx, now)
	}
	if err != nil {
		return explainMachine(dir, fmt.Errorf("renew %s: %w", d.Name, err))
	}
	if err := d.Usable(now); err != nil {
		return explainMachine(dir, err)
	}
	end := moment(d.Cert.NotAfter)
	switch {
	case did:
		fmt.Fprintf(out, "%s is renewed, valid until %s\n", d.Name, end)
	case now.After(d.RenewAt()):
		fmt.Fprintf(out, "%s is valid until %s; the relay has none for it that lasts longer\n", d.Name, end)
	default:
		fmt.Fprintf(out, "%s is valid until %s; renewal is not due before %s\n", d.Name, end, moment(d.RenewAt()))
	}
	return nil
}

// retryRenewal is how soon a renewal that failed is tried again: a third of a
// certificate's life leaves room for many tries.
const retryRenewal = 10 * time.Minute

// keepRenewing stays until ctx ends or nothing can be renewed any more. What
// may pass, such as a network that is away, is told and tried again.
func keepRenewing(ctx context.Context, io stdio, every time.Duration, first error, renew func() error) error {
	err := first
	for {
		pause := every
		if err != nil {
			switch code, _ := classify(err); {
			case ctx.Err() != nil:
				return nil
			case code == exitUsage || code == exitRefused:
				return err
			}
			printError(io.err, err)
			pause = min(every, retryRenewal)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		err = renew()
	}
}

// explainMachine adds exit code and hint to an error of package machine.
func explainMachine(dir string, err error) error {
	var unknown x509.UnknownAuthorityError
	var op *net.OpError
	no, refused := errors.AsType[*machine.Refusal](err)
	switch {
	case errors.Is(err, context.Canceled):
		return failed(exitFailed, "the same command goes on where this one stopped", errors.New("interrupted"))
	case refused && no.Temporary():
		return failed(exitUnreachable, firstOf(no.Advice, retryHint(no.RetryAfter)), err)
	case refused:
		return failed(exitRefused, no.Advice, err)
	case errors.Is(err, machine.ErrDenied):
		return failed(exitRefused, "ask for a new link", err)
	case errors.Is(err, machine.ErrEnded):
		return failed(exitRefused, "enrol it anew with a new link, into a new directory: sallyport device add NAME on the relay's machine", err)
	case errors.Is(err, machine.ErrNotEnrolled):
		return failed(exitUsage, "enrol it first: sallyport device enroll --code-file - --out "+quoted(dir), err)
	case errors.Is(err, machine.ErrEnrolled):
		return failed(exitUsage, "renew it with: sallyport device renew "+quoted(dir)+"   or take another directory", err)
	case errors.Is(err, machine.ErrBusy):
		return failed(exitFailed, "wait for it, or stop it", fmt.Errorf("%s: %w", dir, err))
	case errors.As(err, &unknown):
		return failed(exitFailed, "for a relay with its own CA: `sallyport relay ca > root.pem` there, then --ca root.pem here", err)
	case isAlert(err):
		return failed(exitRefused, "is this the relay's domain, and is the device still known there (sallyport device list)?", err)
	case errors.As(err, &op), errors.Is(err, context.DeadlineExceeded):
		return failed(exitUnreachable, "is the relay running, and is this its address? --address HOST:PORT names another", err)
	}
	return failed(exitFailed, "", err)
}

func retryHint(after time.Duration) string {
	if after <= 0 {
		return "try again later"
	}
	return "try again in " + after.Round(time.Second).String()
}
