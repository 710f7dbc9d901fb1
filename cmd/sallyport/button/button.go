// Package button presses buttons at home from a program: the same signed
// commands that the page at home.DOMAIN sends, with a signing key of the
// machine's own in a file.
//
//	k, made, err := button.OpenKey("laptop/laptop.command.key")
//	c := &button.Client{Base: "https://home.example.org", HTTP: client} // shows the device certificate
//	homes, err := c.Homes(ctx)
//	known, err := k.Known(c.Place(home.Name), home)   // refuses a home whose key changed
//	trust, err := c.OfferKey(ctx, home.Name, k.SPKI)  // once; then a person compares k.Words here and at home
//	err = k.Pin(c.Place(home.Name), home)             // and only then
//	st, err := c.Press(ctx, k, button.Press{Home: home, Action: "garage", PIN: pin})
//	st, err = c.Follow(ctx, st, func(s mqttbridge.Status) { … })
//
// The relay carries the command and cannot make or change one. That the key of
// the home is the home's own is known only after a person compared the words.
// So that it cannot hide them and show others, no text of its answers acts on a
// terminal.
package button

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	sendTries = 4 // of the same signed bytes, which run once at most
	sendPause = 500 * time.Millisecond
)

// A Client speaks to the command page's API as one device.
type Client struct {
	Base string       // "https://home.example.org:8443", no slash at the end
	HTTP *http.Client // shows the device certificate; Timeout 0, contexts decide
	// Device is the name that the relay knows this machine by; Homes sets it.
	Device string
}

// Place is what a home is called in the file of known homes: "home.example.org/kitchen".
func (c *Client) Place(home string) string {
	host := strings.TrimPrefix(c.Base, "https://")
	if u, err := url.Parse(c.Base); err == nil {
		host = u.Hostname() // the port may change, the relay is the same
	}
	return host + "/" + home
}

// Homes returns what this device may press, and where. Their texts are
// harmless to print. ErrName refuses an answer with names that are not.
func (c *Client) Homes(ctx context.Context) ([]mqttbridge.Home, error) {
	var in struct {
		Device string            `json:"device"`
		Homes  []mqttbridge.Home `json:"homes"`
	}
	if _, err := c.call(ctx, http.MethodGet, "homes", nil, nil, &in); err != nil {
		return nil, err
	}
	if err := checkNames(in.Device, in.Homes); err != nil {
		return nil, err
	}
	c.Device = in.Device
	return in.Homes, nil
}

// OfferKey tells a home of this machine's signing key.
func (c *Client) OfferKey(ctx context.Context, home string, spki []byte) (mqttbridge.Trust, error) {
	var out struct {
		Trust mqttbridge.Trust `json:"trust"`
	}
	_, err := c.call(ctx, http.MethodPost, "keys", map[string]any{"home": home, "key": spki}, nil, &out)
	return out.Trust, err
}

// A Press is one command as it is meant.
type Press struct {
	Home   mqttbridge.Home // whose key was pinned
	Action string
	Value  string
	PIN    string // "" for actions that ask for none
}

// Sign asks the home for a challenge and signs a command with it.
func (c *Client) Sign(ctx context.Context, k *Key, p Press) (mqttbridge.Signed, error) {
	var ch struct {
		Challenge string `json:"challenge"`
		LifeMS    int64  `json:"life_ms"`
	}
	if _, err := c.call(ctx, http.MethodPost, "challenge", map[string]any{"home": p.Home.Name, "action": p.Action}, nil, &ch); err != nil {
		return mqttbridge.Signed{}, err
	}
	return c.SignWith(k, p, mqttbridge.Challenge{Value: ch.Challenge, Life: time.Duration(ch.LifeMS) * time.Millisecond})
}

// SignWith is Sign with a challenge that is there already.
func (c *Client) SignWith(k *Key, p Press, ch mqttbridge.Challenge) (mqttbridge.Signed, error) {
	now := time.Now()
	e := mqttbridge.Envelope{
		Version: 1, ID: mqttbridge.NewID(), Home: p.Home.ID, Action: p.Action, Value: p.Value, Device: c.Device,
		Issued: now.UTC(), NotAfter: now.Add(ch.Life).UTC(), Challenge: ch.Value,
	}
	if p.PIN != "" {
		sealed, err := mqttbridge.SealPIN(p.Home.Key, p.PIN, e)
		if err != nil {
			return mqttbridge.Signed{}, fmt.Errorf("seal the PIN: %w", err)
		}
		e.PIN = sealed
	}
	return mqttbridge.Sign(e, k.key)
}

// Press signs one command and sends it.
func (c *Client) Press(ctx context.Context, k *Key, p Press) (mqttbridge.Status, error) {
	s, err := c.Sign(ctx, k, p)
	if err != nil {
		return mqttbridge.Status{}, err
	}
	return c.Send(ctx, p.Home.Name, s)
}

// Send sends a signed command. When the answer is lost, the same bytes are sent
// again: the home runs them once at most. If it stays unknown whether the relay
// has it, Status is Unknown and the error says why. A refused command is no
// error.
func (c *Client) Send(ctx context.Context, home string, s mqttbridge.Signed) (st mqttbridge.Status, err error) {
	e, err := s.Envelope()
	if err != nil {
		return st, err
	}
	header := http.Header{"Idempotency-Key": {e.ID}}
	body := map[string]any{"home": home, "command": s}
	for try := 1; ; try++ {
		var raw json.RawMessage
		if _, err = c.call(ctx, http.MethodPost, "commands/"+url.PathEscape(e.Action), body, header, &raw); err == nil {
			return st, decode(raw, &st)
		}
		if no, ok := errors.AsType[*Refusal](err); ok && (no.HTTP < 500 || no.Code != "") {
			return st, no // of the command page: whoever stands before it may fail for a moment
		}
		if ended, ok := errors.AsType[*refused](err); ok {
			return ended.status, nil
		}
		select {
		case <-ctx.Done():
			try = sendTries
		case <-time.After(sendPause):
		}
		if try == sendTries {
			return mqttbridge.Status{
				ID: e.ID, Home: home, Action: e.Action, Device: e.Device, State: mqttbridge.Unknown, Final: true,
				Reason: "whether the relay took it could not be learned", Created: e.Issued, At: time.Now(),
			}, err
		}
	}
}
