package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/cmd/sallyport/button"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/relay/admin"
)

// readerText says who can read what visitors of a relay's service say.
func readerText(s admin.HostService) string {
	switch {
	case s.WhoReads() == admin.ReaderRelay:
		return "the relay"
	case s.TLS == protocol.TLSBackend:
		return "nobody between: end to end (passed through)"
	}
	return "nobody between: end to end"
}

// printNames is what `status` says of the relay's DNS and of Encrypted
// ClientHello; nil: there is none.
func printNames(out io.Writer, d *admin.DNS, e *admin.ECH) {
	if d != nil {
		fmt.Fprintf(out, "DNS of %s  on %s  %s at %s  serial %d  questions %d  refused %d",
			d.Zone, firstOf(d.Listen, "-"), firstOf(strings.Join(d.NS, ", "), "-"), firstOf(strings.Join(d.Addresses, ", "), "-"), d.Serial, d.Questions, d.Refused)
		if d.Limited > 0 {
			fmt.Fprintf(out, "  over the limit %d", d.Limited)
		}
		fmt.Fprintln(out)
	}
	if e != nil {
		fmt.Fprintf(out, "encrypted hellos behind %s  key of %s ago  next %s\n", e.PublicName, ago(e.Made), moment(e.Next))
	}
}

// printPorts is the table of public ports.
func printPorts(out io.Writer, ports []admin.Port) {
	if len(ports) == 0 {
		return
	}
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "\nPORT\tSERVICE\tAGENT\tSTATE\tNOW\tBYTES\tREADABLE BY")
	for _, p := range ports {
		state := "open to everybody"
		if p.Error != "" {
			state = "closed"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\tthe relay, unless the service encrypts\n", p.Port, p.Service, p.Agent, state, p.Open, bytesText(p.Bytes))
	}
	w.Flush()
	for _, p := range ports {
		if p.Error != "" {
			fmt.Fprintf(out, "\nwarning: port %s of %s: %s\n", p.Port, p.Service, p.Error)
		}
	}
}

// readerOfAgent says who can read what visitors of a home's service say.
func readerOfAgent(s control.ServiceStatus) string {
	reader := button.Printable(s.Reader)
	if who, rest, ok := strings.Cut(reader, ","); who == admin.ReaderRelay {
		if reader = "the relay"; ok {
			reader += "," + rest
		}
	}
	return firstOf(reader, "-")
}

// printEndToEnd is what `status` says of the doors that are at home; nil: there
// are none. Names and problems come from outside.
func printEndToEnd(out io.Writer, e *control.EndToEnd, at string) {
	if e == nil {
		return
	}
	whose := "the home's own: sallyport device list --home" + at
	if e.DeviceCA == "relay" {
		whose = "the relay's, which can issue more"
	}
	fmt.Fprintf(out, "end to end as %s  devices %s\n", button.Printable(e.Own), whose)
	if l := e.List; l != nil {
		state := ""
		if l.Stale {
			state = "  overdue"
		}
		if l.Number == 0 {
			fmt.Fprintln(out, "list of devices: none yet, nobody comes in")
		} else {
			fmt.Fprintf(out, "list of devices %d  %s old%s  may come in %d\n", l.Number, ago(l.Issued), state, l.Devices)
		}
	}
	if len(e.LAN) > 0 {
		fmt.Fprintf(out, "on the home network: %s\n", button.Printable(strings.Join(e.LAN, "  ")))
	}
}

// printHomeCerts is the table of certificates that the home holds, with what is
// wrong with them.
func printHomeCerts(out io.Writer, e *control.EndToEnd, now time.Time) {
	if e == nil || len(e.Certificates) == 0 {
		return
	}
	list := make([]admin.PublicCert, 0, len(e.Certificates))
	for _, c := range e.Certificates {
		list = append(list, admin.PublicCert{
			Host: button.Printable(c.Host), State: c.State, Issuer: button.Printable(c.Issuer), NotAfter: c.NotAfter, Next: c.Next,
			Problem: button.Printable(c.Problem), Fix: button.Printable(c.Fix),
		})
	}
	fmt.Fprintln(out)
	printCerts(out, list, now)
	printCertProblems(out, slices.DeleteFunc(list, func(c admin.PublicCert) bool { return c.State == "off" }))
}
