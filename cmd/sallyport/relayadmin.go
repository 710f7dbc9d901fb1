package main

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/relay"
	"github.com/sallyport/sallyport/relay/admin"
)

// relayCerts lists the public certificates, or asks for one again.
func relayCerts(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	client := admin.NewClient(c.String("data"))
	if host := c.String("retry"); host != "" {
		if err := client.RetryCertificate(c.Context, host); err != nil {
			return err
		}
		fmt.Fprintf(io.out, "asking for the certificate of %s now; sallyport relay certs%s shows what comes of it\n", host, dataArg(c.String("data"), defaultRelayData))
		return nil
	}
	found, err := client.Certificates(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(io.out, struct {
			Schema       int                `json:"schema"`
			Certificates []admin.PublicCert `json:"certificates"`
		}{admin.Schema, list(found)})
	}
	if len(found) == 0 {
		st, err := client.Status(c.Context)
		if err != nil {
			return err
		}
		if st.Certs == relay.CertsACME {
			fmt.Fprintln(io.out, "no public certificates yet: one is obtained when a home registers a host")
		} else {
			fmt.Fprintf(io.out, "nothing to obtain: certificates come from --certs %s\n", st.Certs)
		}
		return nil
	}
	printCerts(io.out, found, time.Now())
	printCertProblems(io.out, found)
	return nil
}

func printCerts(out io.Writer, found []admin.PublicCert, now time.Time) {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "HOST\tCERTIFICATE\tDAYS LEFT\tISSUER\tNEXT")
	for _, p := range found {
		next := "-"
		if !p.Next.IsZero() {
			next = moment(p.Next)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", p.Host, p.State, daysLeft(p.NotAfter, now), cmp.Or(p.Issuer, "-"), next)
	}
	w.Flush()
}

// printCertProblems is for where the relay's warnings, which say the same, are
// not shown.
func printCertProblems(out io.Writer, found []admin.PublicCert) {
	for _, p := range found {
		if p.Problem == "" {
			continue
		}
		fmt.Fprintf(out, "\n%s: %s\n", p.Host, p.Problem)
		if p.Fix != "" {
			fmt.Fprintf(out, "  %s\n", sentence(p.Fix))
		}
	}
}

// daysLeft counts whole days; on the last one, hours.
func daysLeft(end, now time.Time) string {
	left := end.Sub(now)
	switch {
	case end.IsZero():
		return "-"
	case left <= 0:
		return "ended"
	case left < 24*time.Hour:
		return fmt.Sprintf("%dh", int(left.Hours()))
	}
	return fmt.Sprint(int(left.Hours() / 24))
}

// relayDashboard says how to open the dashboard. The one-time link is a secret:
// it is alone on stdout, and the rest on stderr.
func relayDashboard(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	d, err := admin.NewClient(c.String("data")).Dashboard(c.Context)
	if err != nil {
		return err
	}
	if d.Login != "" {
		fmt.Fprintln(io.err, "on this machine open, once:")
		fmt.Fprintln(io.out, d.Login)
	}
	const local = "9080"
	if d.Socket != "" && !filepath.IsAbs(d.Socket) { // as the relay was started; ssh begins elsewhere
		if d.Socket, err = filepath.Abs(filepath.Join(c.String("data"), filepath.Base(d.Socket))); err != nil {
			return err
		}
	}
	if d.Socket != "" {
		fmt.Fprintf(io.err, "from another machine:\n  ssh -N -L %s:%s %s\n  then open http://localhost:%s/\n", local, quoted(d.Socket), sshName(), local)
	}
	if _, port, err := net.SplitHostPort(d.Listen); err == nil && d.Login != "" {
		fmt.Fprintf(io.err, "or forward the listener, and open the link there: ssh -N -L %s:%s %s\n", port, d.Listen, sshName())
	}
	return nil
}

// sshName is how this machine may be called from outside.
func sshName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "THIS-MACHINE"
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "root@"
	}
	return user + strings.ToLower(host)
}
