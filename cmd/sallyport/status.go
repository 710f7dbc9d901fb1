package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/agent/state"
	"github.com/sallyport/sallyport/cmd/sallyport/button"
	"github.com/sallyport/sallyport/relay/admin"
)

func statusCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "how the relay or the agent on this machine is",
		Description: "Looks for a running relay and a running agent in the default directories, or for either in --data.\n" +
			"Exit code 69 when neither runs.",
		OnUsageError: onUsageError,
		Flags:        []cli.Flag{&cli.StringFlag{Name: "data", Usage: "state `DIR` of a relay or an agent", EnvVars: []string{"SALLYPORT_DATA"}}, jsonFlag()},
		Action:       func(c *cli.Context) error { return showStatus(c, io) },
	}
}

// statusJSON is the whole of `status --json`; its schema only grows.
type statusJSON struct {
	Schema int             `json:"schema"`
	Relay  *admin.Status   `json:"relay,omitempty"`
	Agent  *control.Status `json:"agent,omitempty"`

	Certificates []admin.PublicCert   `json:"certificates,omitempty"` // of the relay
	Requests     []admin.EnrolRequest `json:"requests,omitempty"`     // that wait for its owner
	Tokens       []admin.Device       `json:"tokens,omitempty"`       // that work now
}

func showStatus(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	relayDir, agentDir := firstOf(c.String("data"), defaultRelayData), firstOf(c.String("data"), defaultAgentData)
	st := statusJSON{Schema: 1}
	var errs []error
	if socketThere(relayDir, admin.SocketName) {
		client := admin.NewClient(relayDir)
		r, err := client.Status(c.Context)
		if err == nil {
			r.Agents, r.Hosts = list(r.Agents), list(r.Hosts)
			st.Relay = &r
			var err1, err2, err3 error
			st.Certificates, err1 = client.Certificates(c.Context)
			st.Requests, err2 = client.Requests(c.Context)
			st.Tokens, err3 = liveTokens(c.Context, client)
			err = errors.Join(err1, err2, err3)
		}
		errs = append(errs, err)
	}
	if socketThere(agentDir, control.SocketName) {
		a, err := agentClient(agentDir).Status(c.Context)
		if err == nil {
			st.Agent = &a
		}
		errs = append(errs, err)
	}
	if st.Relay == nil && st.Agent == nil {
		if err := errors.Join(errs...); err != nil {
			_, hint := classify(err)
			return failed(exitUnreachable, hint, err)
		}
		return failed(exitUnreachable, startHint(relayDir, agentDir),
			fmt.Errorf("neither a relay (%s) nor an agent (%s) runs here", relayDir, agentDir))
	}
	if err := errors.Join(errs...); err != nil { // one of two
		fmt.Fprintf(io.err, "sallyport: %v\n", err)
	}
	if c.Bool("json") {
		return printJSON(io.out, st)
	}
	if st.Relay != nil {
		printRelay(io.out, *st.Relay)
		if len(st.Certificates) > 0 {
			fmt.Fprintln(io.out)
			printCerts(io.out, st.Certificates, time.Now())
		}
		printTokens(io.out, st.Tokens)
		if n := len(st.Requests); n > 0 {
			fmt.Fprintf(io.out, "\n%d waiting for approval: sallyport device list%s\n", n, dataArg(relayDir, defaultRelayData))
		}
		for _, warn := range st.Relay.Warnings {
			fmt.Fprintf(io.out, "\nwarning: %s\n", warn)
		}
	}
	if st.Agent != nil {
		printAgent(io.out, *st.Agent, dataArg(agentDir, defaultAgentData))
	}
	return nil
}

// startHint says how to start what is stopped in the directories.
func startHint(relayDir, agentDir string) string {
	var lines []string
	if _, err := os.Stat(filepath.Join(relayDir, storeName)); err == nil {
		lines = append(lines, "the relay of "+relayDir+" is stopped; start it with: sallyport relay up --data "+quoted(relayDir)+
			" and its other settings, or its unit: systemctl start sallyport-relay")
	}
	if state.Joined(agentDir) {
		lines = append(lines, "the home in "+agentDir+" has joined and is stopped; start it with: sallyport agent up --data "+quoted(agentDir))
	}
	if len(lines) == 0 {
		return "start one, or say with --data where its state is"
	}
	return strings.Join(lines, "\n")
}

// liveTokens are the devices that come in with a secret: a door each, which no
// host of an agent shows.
func liveTokens(ctx context.Context, client *admin.Client) ([]admin.Device, error) {
	all, err := client.Devices(ctx)
	now := time.Now()
	return slices.DeleteFunc(all, func(d admin.Device) bool {
		end := d.Ends()
		return d.TokenHost == "" || d.Revoked || !end.IsZero() && now.After(end)
	}), err
}

func printTokens(out io.Writer, tokens []admin.Device) {
	if len(tokens) == 0 {
		return
	}
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "\nTOKEN\tREACHES\tAT\tUNTIL\tLAST SEEN")
	for _, d := range tokens {
		fmt.Fprintf(w, "%s\t%s%s\t%s\t%s\t%s\n", d.Name, d.Target, d.Path, firstOf(d.URL, d.TokenHost), untilText(d), seenText(d))
	}
	w.Flush()
}

// socketThere is false when there is surely none. In a directory that we may
// not look into there may be one: the client says so.
func socketThere(dir, name string) bool {
	_, err := os.Lstat(filepath.Join(dir, name))
	return err == nil || errors.Is(err, fs.ErrPermission)
}

// list makes JSON's [] of nothing, so that scripts need not know null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func printRelay(out io.Writer, st admin.Status) {
	fmt.Fprintf(out, "relay %s  domain %s  listens on %s  up %s\n", st.Version, st.Domain, strings.Join(st.Listen, ", "), ago(st.Started))
	fmt.Fprintf(out, "certificates %s  decoy %s  visitors %d  devices %d\n", st.Certs, st.Decoy, st.Visitors, st.Devices)
	printHub(out, st.MQTT)
	printNames(out, st.DNS, st.ECH)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	if len(st.Agents) > 0 {
		fmt.Fprintln(w, "\nAGENT\tSTATE\tTRANSPORT\tRTT\tSTREAMS\tIN\tOUT")
	}
	for _, a := range st.Agents {
		transport, rtt := "-", "-"
		if len(a.Sessions) > 0 {
			transport = a.Sessions[0].Transport
			if ms := a.Sessions[0].RTTMillis; ms > 0 {
				rtt = fmt.Sprintf("%.1f ms", ms)
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", a.Name, agentState(a), transport, rtt, a.Streams, bytesText(a.BytesIn), bytesText(a.BytesOut))
	}
	if len(st.Hosts) > 0 {
		fmt.Fprintln(w, "\nURL\tSERVICE\tAGENT\tAUTH\tREADABLE BY")
	}
	for _, h := range st.Hosts {
		if len(h.Services) == 0 {
			fmt.Fprintf(w, "%s\t(withdrawn)\t%s\t-\t-\n", h.Host, h.Agent)
		}
		for _, s := range h.Services {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.URL, s.Name, h.Agent, s.Auth, readerText(s))
		}
	}
	w.Flush()
	printPorts(out, st.Ports)
}

func agentState(a admin.Agent) string {
	switch {
	case a.Revoked:
		return "revoked"
	case a.Online:
		return "online " + ago(a.Since)
	case a.Since.IsZero():
		return "never seen"
	}
	return "offline " + ago(a.Since)
}

func printAgent(out io.Writer, st control.Status, at string) {
	state := st.State
	if !st.Since.IsZero() {
		state += " " + ago(st.Since)
	}
	fmt.Fprintf(out, "agent %s  %s  relay %s\n", firstOf(st.Name, "(not joined yet)"), state, firstOf(st.Relay, "-"))
	if st.Link != nil {
		fmt.Fprintf(out, "link %s to %s  RTT %.1f ms  streams %d  in %s  out %s\n",
			st.Link.Transport, st.Link.Addr, st.Link.RTT, st.Link.Streams, bytesText(st.Link.BytesIn), bytesText(st.Link.BytesOut))
	}
	if !st.CertEnds.IsZero() {
		fmt.Fprintf(out, "certificate until %s (days left: %s), renewed by itself\n", moment(st.CertEnds), daysLeft(st.CertEnds, time.Now()))
	}
	if st.Demoted != "" {
		fmt.Fprintf(out, "%s stalls here and is not used until %s\n", st.Demoted, st.Until.Local().Format(time.TimeOnly+" MST"))
	}
	if st.Error != "" {
		fmt.Fprintf(out, "last error (%s ago): %s\n", ago(st.ErrorAt), button.Printable(st.Error))
	}
	printMQTT(out, st.MQTT)
	printEndToEnd(out, st.EndToEnd, at)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	if len(st.Services) > 0 {
		fmt.Fprintln(w, "\nSERVICE\tTARGET\tAUTH\tURL\tFROM\tREADABLE BY")
	}
	for _, s := range st.Services {
		where := firstOf(s.URL, "(not registered yet)")
		if s.Error != "" {
			where = "refused: " + s.Error
		}
		where = button.Printable(where) // the relay says it
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, s.Target, s.Auth, where, s.Origin, readerOfAgent(s))
	}
	w.Flush()
	printActions(out, st.Actions)
	printHomeCerts(out, st.EndToEnd, time.Now())
	if waits := pendingCA(listOf(st), at); waits != "" {
		fmt.Fprintf(out, "\nwarning: %s\n", waits)
	}
	for _, warn := range st.Warnings {
		fmt.Fprintf(out, "\nwarning: %s\n", printableLines(warn))
	}
	for _, s := range st.Services {
		if s.Warning != "" {
			fmt.Fprintf(out, "\nwarning: %s: %s\n", s.Name, printableLines(s.Warning))
		}
	}
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func bytesText(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	f, i := float64(n), 0
	for f >= 1000 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
