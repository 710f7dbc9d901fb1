package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/cmd/sallyport/button"
	"github.com/sallyport/sallyport/cmd/sallyport/configfile"
	"github.com/sallyport/sallyport/mqttbridge"
)

func commandCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:      "command",
		Usage:     "press a button at home from the command line",
		ArgsUsage: "[HOME/]ACTION",
		Description: "With this machine's device certificate, and a signing key of its own that the home must trust first:\n" +
			"the first use says how. --list shows what there is.\n" +
			"Exit codes: 0 done, or delivered where nothing confirms it; 1 refused, unconfirmed, expired or unknown;\n" +
			"69 the home is offline; 77 the home does not trust this machine's key.",
		OnUsageError: onUsageError,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "device", Usage: "`DIR` of device enroll", EnvVars: []string{"SALLYPORT_DEVICE"}},
			&cli.StringFlag{Name: "cert", Usage: "instead of --device: device certificate, PEM `FILE`", EnvVars: []string{"SALLYPORT_DEVICE_CERT"}},
			&cli.StringFlag{Name: "key", Usage: "its private key, PEM `FILE`", EnvVars: []string{"SALLYPORT_DEVICE_KEY"}},
			&cli.StringFlag{Name: "ca", Usage: "trust only the roots in this PEM `FILE` (relay with --certs internal: sallyport relay ca)"},
			&cli.StringFlag{Name: "domain", Usage: "the relay's `DOMAIN`, with a port when it is not 443; --device knows it"},
			&cli.StringFlag{Name: "relay", Usage: "dial `ADDR` (host:port) instead of looking home.DOMAIN up"},
			&cli.StringFlag{Name: "value", Usage: "`VALUE` for an action that offers several"},
			&cli.StringFlag{Name: "pin-file", Usage: "read the PIN from `FILE`, - is stdin; default: asked on the terminal"},
			&cli.StringFlag{Name: "sign-key", Usage: "`FILE` of the signing key, made when it is not there", DefaultText: "beside the device's key, NAME.command.key"},
			&cli.StringFlag{Name: "words", Usage: "the first time, from a script: the `WORDS` that `sallyport agent trust` showed at home"},
			&cli.BoolFlag{Name: "list", Usage: "show the homes and their actions, press nothing"},
			&cli.StringFlag{Name: "forget", Usage: "forget the key of `HOME`, after it was set up anew; press nothing"},
			&cli.DurationFlag{Name: "timeout", Usage: "dial and handshake take `DURATION` at most", Value: 15 * time.Second},
			jsonFlag(),
		},
		Action: func(c *cli.Context) error { return pressButton(c, io) },
	}
}

// commandSchema is the schema of `command --json`, which only grows.
const commandSchema = 1

const commandExample = "for example: sallyport command --device ~/sallyport garage"

// pressButton is `sallyport command`.
func pressButton(c *cli.Context, io stdio) error {
	r, err := openRemote(c, io)
	if err != nil {
		return err
	}
	defer r.client.HTTP.CloseIdleConnections()
	if home := c.String("forget"); home != "" {
		return r.forget(home)
	}
	switch {
	case !c.Bool("list") && c.NArg() != 1:
		return usageError(commandExample+"; --list shows what there is", "command takes one ACTION")
	case c.Bool("list") && c.NArg() > 0:
		return noArgs(c)
	}
	defer renewInPassing(c.Context, io.err, r.device)()
	homes, err := r.client.Homes(c.Context)
	if err != nil {
		return r.explain(err)
	}
	if c.Bool("list") {
		return r.list(homes, c.Bool("json"))
	}
	home, action, err := findAction(homes, c.Args().First())
	if err != nil {
		return err
	}
	p := button.Press{Home: home, Action: action.Name, Value: c.String("value")}
	if err := checkValue(action, p.Value); err != nil {
		return err
	}
	if err := r.openKey(); err != nil {
		return err
	}
	if err := r.meet(c.Context, home, c.String("words")); err != nil {
		return err
	}
	if !home.Online { // before somebody types a PIN for nothing
		return failed(exitUnreachable, "nothing was sent, and nothing will be sent later: a command is never kept for an absent home",
			fmt.Errorf("%s is offline since %s", home.Name, moment(home.Since)))
	}
	if action.Confirm == mqttbridge.ConfirmPIN {
		if p.PIN, err = readPIN(c, io, "PIN of "+action.Name+": "); err != nil {
			return err
		}
	}
	return r.press(c.Context, p, c.Bool("json"))
}

// findAction reads [HOME/]ACTION.
func findAction(homes []mqttbridge.Home, word string) (mqttbridge.Home, mqttbridge.Action, error) {
	wanted, name, named := strings.Cut(word, "/")
	if !named {
		wanted, name = "", word
	}
	type match struct {
		home   mqttbridge.Home
		action mqttbridge.Action
	}
	var found []match
	known := map[string]bool{}
	for _, h := range homes {
		for _, a := range h.Actions {
			known[h.Name+"/"+a.Name], known[a.Name] = true, true
			if a.Name == name && (!named || h.Name == wanted) {
				found = append(found, match{h, a})
			}
		}
	}
	switch len(found) {
	case 1:
		return found[0].home, found[0].action, nil
	case 0:
		hint := "--list shows what this device may press; `actions:` in the home's configuration says who may"
		if s := configfile.Nearest(word, slices.Sorted(maps.Keys(known))); s != "" {
			hint = "Did you mean " + s + "?"
		}
		return mqttbridge.Home{}, mqttbridge.Action{}, failed(exitFailed, hint, fmt.Errorf("no home offers an action %q to this device", word))
	}
	var names []string
	for _, m := range found {
		names = append(names, m.home.Name+"/"+m.action.Name)
	}
	return mqttbridge.Home{}, mqttbridge.Action{}, usageError("write one of: "+strings.Join(names, ", "), "%q is an action of several homes", word)
}

func checkValue(a mqttbridge.Action, value string) error {
	switch {
	case len(a.Values) == 0 && value != "":
		return usageError("leave --value out", "%s takes no value", a.Name)
	case len(a.Values) == 0 || slices.Contains(a.Values, value):
		return nil
	case value == "":
		return usageError("write --value with one of: "+strings.Join(a.Values, ", "), "%s needs a value", a.Name)
	}
	return usageError("write one of: "+strings.Join(a.Values, ", "), "%s has no value %q", a.Name, value)
}

// press sends one command and tells each step of it.
func (r *remote) press(ctx context.Context, p button.Press, asJSON bool) error {
	began := time.Now()
	st, err := r.client.Press(ctx, r.key, p)
	if err != nil && !st.Final {
		return r.explain(err)
	}
	if err == nil {
		said := st.State
		st, err = r.client.Follow(ctx, st, func(now mqttbridge.Status) {
			if !now.Final && !asJSON {
				fmt.Fprintf(r.io.err, "%s\n", now.State)
			}
			said = now.State
		})
		if err != nil {
			return failed(exitFailed, "it may have run: look before pressing again",
				fmt.Errorf("%s: how it ended was not learned after %q: %w", p.Action, said, r.explain(err)))
		}
	}
	if st.Code == mqttbridge.CodeUntrusted {
		return r.introduce(ctx, p.Home)
	}
	if asJSON {
		if err := printJSON(r.io.out, struct {
			Schema int `json:"schema"`
			mqttbridge.Status
		}{commandSchema, st}); err != nil {
			return err
		}
	}
	return r.end(p, st, time.Since(began), asJSON)
}

// end tells how a command ended.
func (r *remote) end(p button.Press, st mqttbridge.Status, took time.Duration, asJSON bool) error {
	switch st.State {
	case mqttbridge.Done:
		if !asJSON {
			fmt.Fprintf(r.io.out, "%s: done, %d ms after the press\n", p.Action, took.Milliseconds())
		}
		return nil
	case mqttbridge.Delivered:
		if !asJSON {
			fmt.Fprintf(r.io.out, "%s: delivered to the home broker, %d ms after the press; nothing there confirms this action\n", p.Action, took.Milliseconds())
		}
		return nil
	}
	code, hint := exitFailed, ""
	switch st.Code {
	case mqttbridge.CodeOffline, mqttbridge.CodeBroker:
		code = exitUnreachable
	case mqttbridge.CodeUntrusted:
		code = exitRefused
	}
	switch st.State {
	case mqttbridge.Unconfirmed:
		hint = "the home broker has it, but what it is for did not answer in time: look"
	case mqttbridge.Unknown:
		hint = "it may have run: look before pressing again"
	}
	why := firstOf(st.Reason, string(st.Code))
	if why != "" {
		why = ": " + why
	}
	return failed(code, hint, fmt.Errorf("%s: %s%s", p.Action, st.State, why))
}

// explain says what a failed call means.
func (r *remote) explain(err error) error {
	if errors.Is(err, button.ErrName) {
		return failed(exitRefused, "nothing was sent; do not trust this relay before you know why it says so", err)
	}
	no, ok := errors.AsType[*button.Refusal](err)
	if !ok {
		return explainDial(r.host, r.addr, err)
	}
	switch no.Code {
	case mqttbridge.CodeOffline, mqttbridge.CodeBroker:
		return failed(exitUnreachable, "nothing was sent, and nothing will be sent later", err)
	case mqttbridge.CodeUntrusted, mqttbridge.CodeRevoked:
		return failed(exitRefused, "", err)
	case "":
		if no.HTTP == 401 || no.HTTP == 403 {
			return failed(exitRefused, "is the device still known (sallyport device list), and may it visit "+r.host+"?", err)
		}
		return failed(exitUnreachable, "is this a relay that takes commands? "+r.client.Base+" in a browser shows the page", err)
	}
	return failed(exitFailed, "", err)
}

// signKeyFile is where the signing key lies unless --sign-key says otherwise.
func signKeyFile(deviceKey string) string {
	ext := filepath.Ext(deviceKey)
	if ext != ".key" && ext != ".pem" {
		ext = ""
	}
	return strings.TrimSuffix(deviceKey, ext) + ".command.key"
}
