package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/cmd/sallyport/button"
	"github.com/sallyport/sallyport/relay/admin"
)

// printMQTT is the line of `status` about the home broker; nil: there is none.
func printMQTT(out io.Writer, m *control.MQTT) {
	if m == nil {
		return
	}
	word := func(ok bool) string {
		if ok {
			return "connected"
		}
		return "away"
	}
	fmt.Fprintf(out, "home broker %s  %s  relay's hub %s  topic rules %d  in %d  out %d", m.Broker, word(m.BrokerConnected), word(m.Link), m.Rules, m.In, m.Out)
	if m.Queued > 0 {
		fmt.Fprintf(out, "  waiting for the relay %d (%s)", m.Queued, bytesText(uint64(max(0, m.QueuedBytes))))
	}
	if m.Dropped > 0 {
		fmt.Fprintf(out, "  dropped %d", m.Dropped)
	}
	fmt.Fprintln(out)
	for _, side := range []struct{ who, err string }{
		{"home broker", m.Error}, {"relay's hub", m.LinkError}, {"queue for the relay", m.QueueError},
	} {
		if side.err != "" {
			fmt.Fprintf(out, "%s: %s\n", side.who, button.Printable(side.err))
		}
	}
}

// printHub is the line of `status` about MQTT at the relay; nil: it is off.
func printHub(out io.Writer, m *admin.MQTT) {
	if m == nil {
		return
	}
	fmt.Fprintf(out, "MQTT connections %d  bridged homes %s  homes that take commands %d  open commands %d",
		m.Connections, firstOf(strings.Join(m.Homes, ", "), "none"), m.Commanded, m.Open)
	if m.Listen != "" {
		fmt.Fprintf(out, "  also on %s", m.Listen)
	}
	if m.Waiting > 0 {
		fmt.Fprintf(out, "  waiting messages %d (%s)", m.Waiting, bytesText(uint64(max(0, m.Bytes))))
	}
	if m.Dropped > 0 {
		fmt.Fprintf(out, "  dropped %d", m.Dropped)
	}
	fmt.Fprintln(out)
	if m.Untold > 0 {
		fmt.Fprintf(out, "%s still trusted at a home that is away: it is told as soon as it is back\n", devicesAre(m.Untold))
	}
}

func devicesAre(n int) string {
	if n == 1 {
		return "1 revoked device is"
	}
	return fmt.Sprintf("%d revoked devices are", n)
}

// printActions is the table of buttons, and why one cannot be pressed now.
func printActions(out io.Writer, actions []control.Action) {
	if len(actions) == 0 {
		return
	}
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "\nACTION\tASKS\tTOPIC\tSTATE\tLAST")
	for _, a := range actions {
		last := "-"
		if !a.LastAt.IsZero() {
			last = a.LastAt.Local().Format(time.DateTime) + " by " + a.LastBy
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", a.Name, firstOf(a.Confirm, "none"), a.Topic, firstOf(a.State, "-"), last)
	}
	w.Flush()
	for _, a := range actions {
		if a.Problem != "" {
			fmt.Fprintf(out, "\nwarning: %s: %s\n", a.Name, a.Problem)
		}
	}
}
