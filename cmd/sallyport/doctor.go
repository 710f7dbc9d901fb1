package main

import (
	"context"
	"errors"
	"fmt"
	goio "io"
	"net"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/miekg/dns"
	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/cmd/sallyport/button"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/authdns"
)

// publicResolver is asked unless somebody names another: one that keeps no log
// of who asks, and that checks signatures.
const publicResolver = "9.9.9.9:53"

// doctorPatience is how long all questions together may take.
const doctorPatience = 45 * time.Second

func doctorCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "what to set at the registrar, whether the world finds the names, and what filters them at home",
		Description: "On a relay's machine with --dns: the records to set, and a check of the delegation. On an agent's machine:\n" +
			"whether its resolver drops the home's own addresses. It says whom it asks; with --offline it asks nobody.\n" +
			"Exit code 0 when all is well, 1 when something is to be mended, 69 when neither relay nor agent runs here.",
		OnUsageError: onUsageError,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "data", Usage: "state `DIR` of a relay or an agent", EnvVars: []string{"SALLYPORT_DATA"}},
			&cli.StringFlag{Name: "resolver", Usage: "a public resolver at `ADDRESS`, which knows what the world knows", Value: publicResolver},
			&cli.BoolFlag{Name: "offline", Usage: "ask nobody: print only"},
			jsonFlag(),
		},
		Action: func(c *cli.Context) error { return runDoctor(c, io) },
	}
}

// doctorReport is the whole of `doctor --json`; its schema only grows.
type doctorReport struct {
	Schema  int            `json:"schema"`
	Asked   []string       `json:"asked"` // who was asked; empty: nobody
	Relay   *doctorRelay   `json:"relay,omitempty"`
	Agent   *doctorAgent   `json:"agent,omitempty"`
	Filters []doctorFilter `json:"rebinding_filters,omitempty"`
}

type doctorRelay struct {
	Domain   string          `json:"domain"`
	DNS      bool            `json:"dns"`           // it answers the DNS of its domain
	Set      []string        `json:"set,omitempty"` // records for the registrar
	Findings []doctorFinding `json:"findings"`
}

type doctorAgent struct {
	Own      string          `json:"own,omitempty"` // HASH.DOMAIN
	Names    []string        `json:"names"`         // that lead to this machine on the home network
	Findings []doctorFinding `json:"findings"`
}

type doctorFinding struct {
	OK   bool   `json:"ok"`
	What string `json:"what"`
	Fix  string `json:"fix,omitempty"`
}

type doctorFilter struct {
	Where string `json:"where"`
	Line  string `json:"line"`
}

// A doctor looks at names. Its functions ask the world; nobody else does.
type doctor struct {
	resolver string // ADDR:PORT
	offline  bool
	say      goio.Writer // who is going to be asked

	delegation func(ctx context.Context, c authdns.Check) []authdns.Finding
	lookup     func(ctx context.Context, host string) ([]netip.Addr, error) // by the machine's own resolver
	ask        func(ctx context.Context, network, server string, q *dns.Msg) (*dns.Msg, error)
}

func runDoctor(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	resolver, err := resolverAddr(c.String("resolver"))
	if err != nil {
		return err
	}
	relayDir, agentDir := firstOf(c.String("data"), defaultRelayData), firstOf(c.String("data"), defaultAgentData)
	var relayNow *admin.Status
	var agentNow *control.Status
	var errs []error
	if socketThere(relayDir, admin.SocketName) {
		st, err := admin.NewClient(relayDir).Status(c.Context)
		if errs = append(errs, err); err == nil {
			relayNow = &st
		}
	}
	if socketThere(agentDir, control.SocketName) {
		st, err := agentClient(agentDir).Status(c.Context)
		if errs = append(errs, err); err == nil {
			agentNow = &st
		}
	}
	if relayNow == nil && agentNow == nil {
		err := errors.Join(errs...)
		if _, hint := classify(err); err != nil {
			return failed(exitUnreachable, hint, err)
		}
		return failed(exitUnreachable, startHint(relayDir, agentDir), fmt.Errorf("neither a relay (%s) nor an agent (%s) runs here", relayDir, agentDir))
	}
	d := doctor{
		resolver: resolver, offline: c.Bool("offline"), say: io.err,
		delegation: authdns.CheckDelegation, ask: authdns.Ask,
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
	}
	ctx, cancel := context.WithTimeout(c.Context, doctorPatience)
	defer cancel()
	report := d.examine(ctx, relayNow, agentNow)
	if c.Bool("json") {
		err = printJSON(io.out, report)
	} else {
		report.print(io.out, d.offline)
	}
	if n := report.problems(); n > 0 && err == nil {
		return failed(exitFailed, "", fmt.Errorf("to be mended: %d", n))
	}
	return err
}

// resolverAddr adds the port that a person leaves out.
func resolverAddr(text string) (string, error) {
	if addr, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return netip.AddrPortFrom(addr, 53).String(), nil
	}
	if ap, err := netip.ParseAddrPort(text); err == nil {
		return ap.String(), nil
	}
	return "", usageError("for example: --resolver 9.9.9.9", "--resolver: %q is not an address", text)
}

func (r doctorReport) problems() (n int) {
	var all []doctorFinding
	if r.Relay != nil {
		all = append(all, r.Relay.Findings...)
	}
	if r.Agent != nil {
		all = append(all, r.Agent.Findings...)
	}
	for _, f := range all {
		if !f.OK {
			n++
		}
	}
	return n
}

func (r doctorReport) print(out goio.Writer, offline bool) {
	if v := r.Relay; v != nil {
		if !v.DNS {
			fmt.Fprintf(out, "relay of %s: it does not answer the DNS of its domain, and needs not. With --dns :53 it gives homes names, and certificates\n"+
				"for them whose keys stay at home; then this command says what to set at the registrar.\n", v.Domain)
		} else {
			fmt.Fprintf(out, "relay of %s: set at the registrar, or at the DNS provider of the zone above, with no DS record (DNSSEC off):\n", v.Domain)
			for _, line := range v.Set {
				fmt.Fprintln(out, "  "+line)
			}
		}
		printFindings(out, v.Findings)
	}
	if v := r.Agent; v != nil {
		switch {
		case v.Own == "":
			fmt.Fprintln(out, "agent: no service here has --tls agent, so that there are no names of this home to look at")
		case len(v.Names) == 0:
			fmt.Fprintf(out, "agent %s: it serves nothing on the home network now (--lan), so that there is no name that a filter could drop\n", button.Printable(v.Own))
		case offline:
			fmt.Fprintf(out, "agent %s: this machine's resolver must know %s\n", button.Printable(v.Own), button.Printable(strings.Join(v.Names, ", ")))
		default:
			fmt.Fprintf(out, "agent %s\n", button.Printable(v.Own))
		}
		printFindings(out, v.Findings)
	}
	if len(r.Filters) == 0 {
		return
	}
	fmt.Fprintln(out, "\nRouters and resolvers that drop private addresses in answers from the internet (protection against DNS rebinding) need an exception,\n"+
		"or names such as 192-168-1-7.HASH.DOMAIN do not work at home. There write:")
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	for _, f := range r.Filters {
		fmt.Fprintf(w, "  %s\t%s\n", f.Where, button.Printable(f.Line))
	}
	w.Flush()
}

func printFindings(out goio.Writer, list []doctorFinding) {
	for _, f := range list {
		mark := "ok      "
		if !f.OK {
			mark = "MEND    "
		}
		fmt.Fprintln(out, mark+printableLines(f.What))
		for line := range strings.Lines(f.Fix) {
			fmt.Fprintln(out, "        "+printableLines(strings.TrimRight(line, "\n")))
		}
	}
}
