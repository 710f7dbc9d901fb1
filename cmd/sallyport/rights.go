package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/relay/admin"
)

// rights are what a device may, as flags of `device add` say it. A line that
// brings something back repeats all of them: pasted, it must never give more
// than there was.
type rights struct {
	hosts   []string
	until   time.Time
	admin   bool
	approve bool
	token   bool
	path    string
}

func rightsOf(d admin.Device) rights {
	r := rights{hosts: d.Hosts, until: d.Until, admin: d.Admin}
	if d.TokenHost != "" {
		r.hosts, r.token, r.path = []string{d.Target}, true, d.Path
	}
	return r
}

func rightsOfLink(l admin.WaitingInvite) rights {
	return rights{hosts: l.Hosts, until: l.Until, admin: l.Admin, approve: l.Approve}
}

// rightsOfRequest are with approval: the owner did not give it yet.
func rightsOfRequest(q admin.EnrolRequest) rights {
	return rights{hosts: q.Hosts, until: q.Until, admin: q.Admin, approve: true}
}

// again is the line that adds name once more, with the same rights; "" where
// they are over.
func (r rights) again(name, at string, now time.Time) string {
	if !r.until.IsZero() && !r.until.After(now) {
		return ""
	}
	var b strings.Builder
	b.WriteString("sallyport device add " + quotedWord(name))
	if r.token {
		b.WriteString(" --token")
	}
	if len(r.hosts) > 0 {
		b.WriteString(" --hosts " + quoted(strings.Join(r.hosts, ",")))
	}
	if r.path != "" {
		b.WriteString(" --path " + quoted(r.path))
	}
	if !r.until.IsZero() {
		b.WriteString(" --until " + untilArg(r.until))
	}
	if r.admin {
		b.WriteString(" --admin")
	}
	if r.approve {
		b.WriteString(" --approve")
	}
	return b.String() + at
}

// quotedWord is quoted for what may be empty.
func quotedWord(s string) string {
	if s == "" {
		return "''"
	}
	return quoted(s)
}

// untilArg is a moment as --until takes it. How long from now would be longer
// by the time that passes until somebody pastes it.
func untilArg(t time.Time) string { return t.Local().Truncate(time.Second).Format(time.RFC3339) }

// undoAgain prints the line that undoes, which makes what again names.
func undoAgain(out io.Writer, what string, r rights, name, at string) {
	if line := r.again(name, at, time.Now()); line != "" {
		fmt.Fprintf(out, "undo: %s, %s\n", what, line)
		return
	}
	fmt.Fprintf(out, "its time was over on %s, so that there is nothing to undo\n", moment(r.until))
}

// onTheWay are the rights of a link or request of a name that is no device
// yet. What the relay does not tell counts as not given.
func onTheWay(ctx context.Context, client *admin.Client, name string) (rights, bool) {
	requests, _ := client.Requests(ctx) // without them the caller knows less, and says so
	for _, q := range requests {
		if q.Name == name && q.State == "pending" {
			return rightsOfRequest(q), true
		}
	}
	links, _ := client.Invites(ctx)
	for _, l := range links {
		if l.Name == name {
			return rightsOfLink(l), true
		}
	}
	return rights{}, false
}

// warnHosts tells of hosts that no home offers now: most are slips of the pen,
// but a home may come later. It never fails: what is asked for is done already.
func warnHosts(c *cli.Context, io stdio, client *admin.Client, hosts []string) {
	if len(hosts) == 0 {
		return
	}
	st, err := client.Status(c.Context)
	if err != nil {
		return
	}
	for _, h := range hosts {
		p, err := names.ValidPattern(h)
		if err != nil {
			continue // the relay has judged it
		}
		if !strings.Contains(p, ".") {
			p += "." + st.Domain
		}
		if slices.ContainsFunc(st.Hosts, func(held admin.Host) bool {
			return len(held.Services) > 0 && (held.Host == p || names.Match(p, held.Host) || names.Match(held.Host, p))
		}) || st.MQTT != nil && (p == "mqtt."+st.Domain || p == "home."+st.Domain) { // the relay's own
			continue
		}
		why := "it opens nothing until one does; sallyport status" + dataArg(c.String("data"), defaultRelayData) + " shows the hosts"
		if !names.Below(p, st.Domain) {
			why = "it is not below " + st.Domain + ": is it spelled right?"
		}
		fmt.Fprintf(io.err, "warning: no home offers %s now; %s\n", p, why)
	}
}
