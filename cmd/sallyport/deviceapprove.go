package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/relay/admin"
)

// compared returns whom to approve. At home, that is after the owner has said
// that the words are the same, and it is that request and no other of the name.
func (k keeper) compared(c *cli.Context, io stdio) (id string, err error) {
	words, who := c.String("words"), c.Args().First()
	switch {
	case !k.home && (words != "" || c.Bool("yes")):
		return "", usageError("the relay's list has shown the words: sallyport device list"+k.at, "--words and --yes go with --home only")
	case !k.home:
		return who, nil
	case words != "" && c.Bool("yes"):
		return "", usageError("", "--words and --yes exclude each other")
	}
	waiting, err := k.Requests(c.Context)
	if err != nil {
		return "", err
	}
	q, err := chooseRequest(waiting, who, words, k.at)
	if err != nil || words != "" {
		return q.ID, err
	}
	if c.Bool("yes") {
		fmt.Fprintf(io.err, "warning: not compared with what %s shows\n", q.Name)
		return q.ID, nil
	}
	if !isTerminal(io.in) {
		return "", usageError("give the words that the device shows: --words 'WORDS'", "nobody can be asked: stdin is no terminal")
	}
	fmt.Fprintf(io.err, "%s asks for %s, from %s, %s ago, by %s.\n", q.Name, hostsText(q.Hosts), cmp.Or(q.Source, "?"), ago(q.Created), cmp.Or(q.Via, "?"))
	if !q.ShowsWords() {
		fmt.Fprintf(io.err, "It cannot show words. Its key: %s\n\n", cmp.Or(q.Fingerprint(), "?"))
		return q.ID, confirmWords(c.Context, io, "did you start it yourself just now? type yes: ")
	}
	fmt.Fprintf(io.err, "On its screen these words must stand:\n\n%s\n\n", inRows(q.Words))
	return q.ID, confirmWords(c.Context, io, "are they the same there? type yes: ")
}

// chooseRequest finds the request that is meant, by ID, name and words.
func chooseRequest(waiting []admin.EnrolRequest, who, words, at string) (admin.EnrolRequest, error) {
	mine := slices.DeleteFunc(slices.Clone(waiting), func(q admin.EnrolRequest) bool {
		return q.State != "pending" || q.ID != who && q.Name != who
	})
	if len(mine) == 0 {
		return admin.EnrolRequest{}, failed(exitFailed, "`sallyport device list"+at+"` shows who waits", fmt.Errorf("nobody waits as %s", who))
	}
	if words != "" {
		mine = slices.DeleteFunc(mine, func(q admin.EnrolRequest) bool { return !sameWords(words, q.Words) })
		if len(mine) == 0 {
			return admin.EnrolRequest{}, failed(exitRefused, "they must be those on the device itself; if they are, somebody stands between: let nobody in, and deny those that wait",
				fmt.Errorf("no request of %s has these words", who))
		}
	}
	if len(mine) > 1 {
		return admin.EnrolRequest{}, failed(exitFailed, "say which one by its ID: sallyport device list"+at, errors.New("several requests ask for this name"))
	}
	return mine[0], nil
}

// warnHomeHosts tells of hosts that this home does not serve itself now.
func warnHomeHosts(io stdio, st control.Status, hosts []string, at string) {
	for _, h := range hosts {
		p, err := names.ValidPattern(h)
		if err != nil {
			continue // the agent has judged it
		}
		if !strings.Contains(p, ".") {
			p += "." + st.Domain
		}
		why := "it opens nothing until one does; sallyport status" + at + " shows the services"
		found := false
		for _, s := range st.Services {
			u, err := url.Parse(s.URL)
			if err != nil || u.Hostname() == "" {
				continue
			}
			host, err := names.ValidPattern(u.Hostname())
			if err != nil || host != p && !names.Match(p, host) && !names.Match(host, p) {
				continue
			}
			if found = s.TLS == protocol.TLSAgent; found {
				break
			}
			why = "its TLS does not end here, so that devices of the relay come in, and not the home's"
		}
		if !found {
			fmt.Fprintf(io.err, "warning: no service with tls agent is at %s now; %s\n", p, why)
		}
	}
}
