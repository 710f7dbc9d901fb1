package main

import (
	"fmt"
	goio "io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/relay/admin"
)

// noneWord stands for an empty list on a command line.
const noneWord = "none"

func grantCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:      "grant",
		Usage:     "let an agent claim more names, or use more public ports",
		ArgsUsage: "AGENT",
		Description: "What is named is added to what it may already. With --only the lists are all of it from now on,\n" +
			"and what the agent has beyond them ends at once.\n" +
			"A public port is open to everybody: nobody is asked for a certificate there.",
		OnUsageError: onUsageError,
		Flags: []cli.Flag{
			dataFlag(defaultRelayData),
			&cli.StringSliceFlag{Name: "hosts", Usage: "`PATTERN` of names it may claim, such as '*.alice.example.org'; repeat or separate by commas"},
			&cli.StringSliceFlag{Name: "ports", Usage: "public `PORTS` that its services may have for themselves, such as 2222 or 51820/udp; repeat or separate by commas; with --only, none takes all away"},
			&cli.BoolFlag{Name: "foreign", Usage: "allow patterns outside the relay's domain"},
			&cli.BoolFlag{Name: "only", Usage: "nothing but what is named: for the lists that are given"},
		},
		Action: func(c *cli.Context) error { return relayGrant(c, io) },
	}
}

func relayGrant(c *cli.Context, io stdio) error {
	at := dataArg(c.String("data"), defaultRelayData)
	if c.NArg() != 1 {
		return usageError("for example: sallyport relay grant attic --ports 2222"+at, "relay grant takes one AGENT")
	}
	if !c.IsSet("hosts") && !c.IsSet("ports") {
		return usageError("for example: --hosts '*.alice.example.org', or --ports 2222,51820/udp", "relay grant wants --hosts or --ports")
	}
	client := admin.NewClient(c.String("data"))
	st, err := client.Status(c.Context)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(st.Agents, func(a admin.Agent) bool { return a.Name == c.Args().First() || a.ID == c.Args().First() })
	if i < 0 {
		return failed(exitFailed, "sallyport status"+at+" shows the names", fmt.Errorf("there is no agent %q", shown(c.Args().First())))
	}
	g := grant{before: st.Agents[i], domain: st.Domain, only: c.Bool("only"), foreign: c.Bool("foreign")}
	q := admin.GrantRequest{Agent: g.before.ID}
	if c.IsSet("hosts") {
		if err := g.addHosts(&q, c.StringSlice("hosts")); err != nil {
			return err
		}
	}
	if c.IsSet("ports") {
		if err := g.addPorts(&q, c.StringSlice("ports")); err != nil {
			return err
		}
	}
	if q.Hosts == nil && q.Ports == nil {
		fmt.Fprintf(io.out, "nothing changed: %s may do that already\n", g.before.Name)
		return nil
	}
	after, err := client.Grant(c.Context, q)
	if err != nil {
		return err
	}
	g.tell(io.out, after, at)
	return nil
}

// A grant is what an agent may until now, and how that is to change.
type grant struct {
	before        admin.Agent
	domain        string // the relay's
	only, foreign bool
}

// unlimited: the first home of a relay may claim every name below the domain.
func (g grant) unlimited() bool { return len(g.before.Allowed) == 0 }

// addHosts puts the patterns into the request, unless nothing is new.
func (g grant) addHosts(q *admin.GrantRequest, list []string) error {
	var hosts []string
	if !g.only {
		hosts = slices.Clone(g.before.Allowed)
	}
	news := false
	for _, p := range list {
		p, err := names.ValidPattern(strings.TrimSpace(p))
		if err != nil {
			return usageError("write a name such as ha."+g.domain+", or a pattern such as '*.alice."+g.domain+"'", "--hosts: %w", err)
		}
		inside := names.Below(p, g.domain)
		switch known := slices.Contains(g.before.Allowed, p); {
		case !inside && !known && !g.foreign: // one that it has already was allowed then
			return failed(exitRefused, "if that is meant, add --foreign: its owner must let it lead to this relay", fmt.Errorf("%s is not below %s", p, g.domain))
		case inside && g.unlimited() && !g.only:
			continue // it may claim all of these
		}
		if !slices.Contains(hosts, p) {
			hosts, news = append(hosts, p), true
		}
	}
	if g.only {
		news = g.unlimited() || !sameSet(hosts, g.before.Allowed)
	}
	if !news {
		return nil
	}
	if g.unlimited() && !g.only {
		hosts = append(g.spelledOut(), hosts...)
	}
	q.Hosts = &hosts
	for _, p := range hosts {
		q.Foreign = q.Foreign || !names.Below(p, g.domain)
	}
	return nil
}

// spelledOut says as patterns what an agent without limits may claim: who has
// a list may claim nothing that is not in it. Names of more labels are listed
// if it holds them, and can be granted later.
func (g grant) spelledOut() []string {
	list := []string{"*." + g.domain}
	for _, h := range g.before.Hosts {
		if names.AgentOf(h, g.domain) == "" && !names.Match(list[0], h) && !slices.Contains(list, h) {
			list = append(list, h)
		}
	}
	return list
}

// addPorts puts the ports into the request, unless nothing is new.
func (g grant) addPorts(q *admin.GrantRequest, list []string) error {
	ports := []string{}
	if !g.only {
		ports = append(ports, g.before.Ports...)
	}
	for _, p := range list {
		switch p = strings.TrimSuffix(strings.ToLower(strings.TrimSpace(p)), "/tcp"); {
		case p == noneWord && g.only && len(list) == 1:
		case p == noneWord:
			return usageError("to take all ports away: --only --ports none", "--ports none stands alone, and with --only")
		case !slices.Contains(ports, p):
			ports = append(ports, p) // the relay judges it
		}
	}
	if !sameSet(ports, g.before.Ports) {
		q.Ports = &ports
	}
	return nil
}

func sameSet(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

// tell prints what changed, how to use it, and how to undo it.
func (g grant) tell(out goio.Writer, after admin.Agent, at string) {
	var undo strings.Builder
	for _, l := range []struct {
		flag, verb string
		was, is    []string
		empty      string // what an empty list means
	}{
		{"hosts", "may claim", g.before.Allowed, after.Allowed, "every name below " + g.domain},
		{"ports", "may open", g.before.Ports, after.Ports, "no port"},
	} {
		if sameSet(l.was, l.is) {
			continue
		}
		fmt.Fprintf(out, "%s %s: %s\n", after.Name, l.verb, firstOf(strings.Join(l.is, ", "), l.empty))
		if gone := without(l.was, l.is); len(gone) > 0 {
			fmt.Fprintf(out, "  no longer: %s\n", strings.Join(gone, ", "))
		}
		was := strings.Join(l.was, ",")
		if was == "" && l.flag == "hosts" {
			fmt.Fprintf(out, "  until now it could claim every name below %s; no later grant makes it so again\n", g.domain)
			was = strings.Join(g.spelledOut(), ",")
		}
		undo.WriteString(" --" + l.flag + " " + quoted(firstOf(was, noneWord)))
		if l.flag == "hosts" && slices.ContainsFunc(l.was, func(p string) bool { return !names.Below(p, g.domain) }) {
			undo.WriteString(" --foreign")
		}
	}
	for _, p := range without(after.Ports, g.before.Ports) {
		number, udp := strings.CutSuffix(p, "/udp")
		target := "tcp://HOST:PORT"
		if udp {
			target = "udp://HOST:PORT"
		}
		fmt.Fprintf(out, "at home: sallyport agent expose NAME %s --port %s --auth none\n", target, number)
	}
	if undo.Len() > 0 {
		fmt.Fprintf(out, "undo: sallyport relay grant %s --only%s%s\n", quoted(after.Name), undo.String(), at)
	}
}

// without returns what of a is not in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}
