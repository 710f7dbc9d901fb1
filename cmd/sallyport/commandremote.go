package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/cmd/sallyport/button"
	"github.com/sallyport/sallyport/cmd/sallyport/machine"
	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/protocol/names"
)

// A remote is what this machine presses buttons with.
type remote struct {
	io      stdio
	device  *machine.Device // nil: --cert and --key
	client  *button.Client
	key     *button.Key // after openKey
	keyFile string
	host    string // home.example.org
	addr    string // that is dialled for it
	again   string // flags that find this device again, for lines to type
}

// openRemote reads the flags that say who presses and where.
func openRemote(c *cli.Context, io stdio) (*remote, error) {
	d, err := deviceFlag(c)
	if err != nil {
		return nil, err
	}
	r := &remote{io: io, device: d}
	domain, keyFile := c.String("domain"), c.String("key")
	if d != nil {
		_, known, _ := strings.Cut(d.CheckURL(), "://check.")
		domain, keyFile = firstOf(domain, known), d.KeyFile()
	}
	r.again = againFlags(c, d)
	switch {
	case keyFile == "":
		return nil, usageError(commandExample, "command wants a device certificate: --device, or --cert and --key")
	case domain == "":
		return nil, usageError("for example --domain example.org", "command wants the relay's domain in --domain, or a --device that knows it")
	}
	host, port := splitHost(domain)
	if r.host, err = names.Canonical("home." + host); err != nil {
		return nil, usageError("give the relay's domain, such as example.org", "--domain %q: %w", domain, err)
	}
	conf, err := deviceTLS(c, d, r.host)
	if err != nil {
		return nil, err
	}
	r.addr = dialAddress(c, d, r.host, port)
	dialer := net.Dialer{Timeout: c.Duration("timeout")}
	base := "https://" + r.host
	if port != "443" {
		base += ":" + port
	}
	r.client = &button.Client{Base: base, HTTP: &http.Client{Transport: &http.Transport{
		TLSClientConfig: conf, ForceAttemptHTTP2: true, TLSHandshakeTimeout: c.Duration("timeout"),
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, r.addr)
		},
	}}}
	r.keyFile = firstOf(c.String("sign-key"), signKeyFile(keyFile))
	return r, nil
}

// againFlags are the flags that say who presses and where, as they were given.
func againFlags(c *cli.Context, d *machine.Device) string {
	var b strings.Builder
	flags := []string{"cert", "key", "ca", "domain", "relay", "sign-key"}
	if d != nil {
		b.WriteString(" --device " + quoted(d.Dir))
		flags = flags[2:]
	}
	for _, flag := range flags {
		if v := c.String(flag); v != "" {
			b.WriteString(" --" + flag + " " + quoted(v))
		}
	}
	return b.String()
}

// openKey reads this machine's signing key, or makes it.
func (r *remote) openKey() (err error) {
	var made bool
	if r.key, made, err = button.OpenKey(r.keyFile); err != nil {
		return failed(exitFailed, "", err)
	}
	if made {
		fmt.Fprintf(r.io.err, "made a signing key for commands, %s\n", r.keyFile)
	}
	return nil
}

// meet makes sure that a home is the one that it was. Before the first time
// nothing is sent to it: only the words, compared by a person, tell that its key
// is its own and not that of somebody on the way.
func (r *remote) meet(ctx context.Context, home mqttbridge.Home, typed string) error {
	known, err := r.key.Known(r.client.Place(home.Name), home)
	switch {
	case errors.Is(err, button.ErrHomeChanged):
		return failed(exitRefused, "was it set up anew? Then: sallyport command --forget "+quoted(home.Name)+r.again+
			", and compare the words again. If not, somebody stands between: nothing was sent", err)
	case err != nil:
		return failed(exitFailed, "", err)
	case known && typed == "":
		return nil
	}
	words, err := r.key.Words(home)
	if err != nil {
		return failed(exitFailed, "", err)
	}
	if typed != "" && !sameWords(typed, words) {
		return failed(exitRefused, "do not trust the key at home; if you did: sallyport agent untrust "+r.client.Device,
			fmt.Errorf("nothing was sent: the words of %s and this machine are others: %s", home.Name, words))
	}
	if known {
		return nil
	}
	if err := r.offer(ctx, home, words); err != nil { // whether it agrees is seen when it judges the command
		return err
	}
	switch {
	case typed != "":
	case isTerminal(r.io.in):
		if err := confirmWords(ctx, r.io, "are they the same there? type yes: "); err != nil {
			return err
		}
	default:
		return failed(exitRefused, "then type the same command again with --words 'THE WORDS SHOWN THERE'", fmt.Errorf("nothing was pressed: %s is new here", home.Name))
	}
	if err := r.key.Pin(r.client.Place(home.Name), home); err != nil {
		return failed(exitFailed, "", err)
	}
	fmt.Fprintf(r.io.err, "%s is known here by its key now\nundo: sallyport command --forget %s%s\n", home.Name, quoted(home.Name), r.again)
	return nil
}

// offer tells a home of this machine's key, and a person what is to be done there.
func (r *remote) offer(ctx context.Context, home mqttbridge.Home, words string) error {
	trust, err := r.client.OfferKey(ctx, home.Name, r.key.SPKI)
	if err != nil {
		return r.explain(err)
	}
	if trust == mqttbridge.TrustNo {
		return failed(exitRefused, "at "+home.Name+" look with: sallyport agent trust",
			fmt.Errorf("%s does not take this machine's key: too many wait there, or %s is the name of another key that is trusted", home.Name, r.client.Device))
	}
	fmt.Fprintf(r.io.err, "%s has to trust this machine's signing key once. Type there:\n\n  sallyport agent trust %s\n\n"+
		"Both must show these words:\n\n%s\n\n", home.Name, r.client.Device, inRows(words))
	return nil
}

// introduce is for a home that is known here, but does not trust this key.
func (r *remote) introduce(ctx context.Context, home mqttbridge.Home) error {
	words, err := r.key.Words(home)
	if err != nil {
		return failed(exitFailed, "", err)
	}
	if err := r.offer(ctx, home, words); err != nil {
		return err
	}
	return failed(exitRefused, "then type the same command again", fmt.Errorf("nothing was pressed: %s does not trust this machine's key yet", home.Name))
}

// forget drops the key of a home.
func (r *remote) forget(home string) error {
	if err := r.openKey(); err != nil {
		return err
	}
	was, err := r.key.Forget(r.client.Place(home))
	switch {
	case err != nil:
		return failed(exitFailed, "", err)
	case !was:
		return failed(exitFailed, "the known ones are in "+r.key.HomesFile(), fmt.Errorf("no home %s is known here", home))
	}
	fmt.Fprintf(r.io.out, "%s is forgotten here; undo: the next command shows the words again, compare them\n", home)
	return nil
}

// list shows what this device may press.
func (r *remote) list(homes []mqttbridge.Home, asJSON bool) error {
	if asJSON {
		return printJSON(r.io.out, struct {
			Schema int               `json:"schema"`
			Homes  []mqttbridge.Home `json:"homes"`
		}{commandSchema, list(homes)})
	}
	if len(homes) == 0 {
		fmt.Fprintln(r.io.out, "no home offers this device an action; they are declared under actions: in the home's configuration")
		return nil
	}
	w := tabwriter.NewWriter(r.io.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "ACTION\tLABEL\tASKS\tVALUES\tSTATE\tLAST")
	for _, h := range homes {
		for _, a := range h.Actions {
			fmt.Fprintf(w, "%s/%s\t%s\t%s\t%s\t%s\t%s\n", h.Name, a.Name, a.Label, a.Confirm, firstOf(strings.Join(a.Values, ","), "-"), liveText(a.State), lastText(a.Last))
		}
	}
	w.Flush()
	for _, h := range homes {
		switch {
		case !h.Online:
			fmt.Fprintf(r.io.out, "%s is offline since %s\n", h.Name, moment(h.Since))
		case !h.Broker:
			fmt.Fprintf(r.io.out, "%s: its broker is not connected\n", h.Name)
		}
		if h.Alert != "" {
			fmt.Fprintf(r.io.out, "%s: %s\n", h.Name, h.Alert)
		}
		for _, a := range h.Actions {
			if a.Problem != "" {
				fmt.Fprintf(r.io.out, "%s/%s: %s\n", h.Name, a.Name, a.Problem)
			}
		}
	}
	return nil
}

func liveText(l *mqttbridge.Live) string {
	if l == nil {
		return "-"
	}
	return l.Value
}

func lastText(l *mqttbridge.Last) string {
	if l == nil {
		return "-"
	}
	return fmt.Sprintf("%s by %s, %s", l.State, l.By, l.At.Local().Format(time.DateTime))
}
