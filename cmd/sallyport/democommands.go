package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/cmd/sallyport/button"
	"github.com/sallyport/sallyport/cmd/sallyport/machine"
	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/protocol/pki"
)

// demoHomeName is the agent's, and the first part of its topics at the relay.
const demoHomeName = "demo-home"

// presser is the phone as `sallyport command` would be there.
type presser struct {
	client *button.Client
	key    *button.Key
	home   mqttbridge.Home
}

// meetHome makes the phone's signing key and waits until the home shows its
// button.
func (w *demoWorld) meetHome(ctx context.Context, d *machine.Device) (*presser, error) {
	_, port, _ := net.SplitHostPort(w.addr)
	pair := d.TLS()
	p := &presser{client: &button.Client{
		Base: "https://home." + demoDomain + ":" + port,
		HTTP: w.client(d.Roots(), &pair),
	}}
	var err error
	if p.key, _, err = button.OpenKey(signKeyFile(d.KeyFile())); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		homes, err := p.client.Homes(ctx)
		i := slices.IndexFunc(homes, func(h mqttbridge.Home) bool { return h.Name == demoHomeName && h.Online && h.Broker })
		if err == nil && i >= 0 {
			p.home = homes[i]
			return p, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, errors.Join(errors.New("the home shows no button"), err)
		}
	}
}

// trust plays both people: the one at the phone who reads its words, and the
// one at home who compares them and accepts.
func (w *demoWorld) trust(ctx context.Context, p *presser) (words string, err error) {
	if _, err := p.client.OfferKey(ctx, p.home.Name, p.key.SPKI); err != nil {
		return "", err
	}
	if words, err = p.key.Words(p.home); err != nil {
		return "", err
	}
	c := control.NewClient(w.agentDir())
	keys, err := c.Keys(ctx)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(keys, func(k control.Key) bool { return k.ID == p.key.ID && !k.Trusted })
	if i < 0 {
		return "", errors.New("the key does not wait at home")
	}
	if keys[i].Words != words {
		return "", fmt.Errorf("the home shows %q, the phone %q", keys[i].Words, words)
	}
	return words, errors.Join(
		c.Trust(ctx, keys[i].Device, keys[i].ID), p.key.Pin(p.client.Place(p.home.Name), p.home), c.SetPIN(ctx, "garage", demoPIN),
		pki.WriteFile(filepath.Join(w.dir, "pin"), []byte(demoPIN+"\n"), 0o600),
	)
}

func (p *presser) press(pin string) button.Press {
	return button.Press{Home: p.home, Action: "garage", PIN: pin}
}

// send signs, sends and waits for the end; it fails unless that is as wanted.
func (p *presser) send(ctx context.Context, pin string, state mqttbridge.State, code mqttbridge.Code) (mqttbridge.Signed, mqttbridge.Status, error) {
	s, err := p.client.Sign(ctx, p.key, p.press(pin))
	if err != nil {
		return s, mqttbridge.Status{}, err
	}
	st, err := p.end(ctx, s)
	if err == nil && (st.State != state || st.Code != code) {
		err = fmt.Errorf("%s %s %s, want %s %s", st.State, st.Code, st.Reason, state, code)
	}
	return s, st, err
}

// end sends a signed command and waits for its end.
func (p *presser) end(ctx context.Context, s mqttbridge.Signed) (mqttbridge.Status, error) {
	st, err := p.client.Send(ctx, p.home.Name, s)
	if err != nil {
		return st, err
	}
	return p.client.Follow(ctx, st, func(mqttbridge.Status) {})
}

func stepTrust(ctx context.Context, s *story) (string, error) {
	var err error
	if s.remote, err = s.w.meetHome(ctx, s.device); err != nil {
		return "", err
	}
	if _, _, err := s.remote.send(ctx, demoPIN, mqttbridge.Refused, mqttbridge.CodeUntrusted); err != nil {
		return "", fmt.Errorf("before it is trusted: %w", err)
	}
	words, err := s.w.trust(ctx, s.remote)
	return "both screens show \"" + words + "\" (compared for you here); before that its command was refused", err
}

func stepPress(ctx context.Context, s *story) (string, error) {
	_, wrong, err := s.remote.send(ctx, "0000", mqttbridge.Refused, mqttbridge.CodePINWrong)
	if err != nil {
		return "", fmt.Errorf("with a wrong PIN: %w", err)
	}
	began := time.Now()
	if s.pressed, _, err = s.remote.send(ctx, demoPIN, mqttbridge.Done, ""); err != nil {
		return "", err
	}
	took := time.Since(began)
	if err := s.moved(1, "open"); err != nil {
		return "", err
	}
	return fmt.Sprintf("a wrong PIN is refused (tries left: %d), the right one moves it: closed, opening, open, %d ms after the press", wrong.AttemptsLeft, took.Milliseconds()), nil
}

// moved checks how often the door was told to move, and where it is.
func (s *story) moved(times int, state string) error {
	if is, n := s.w.home.seen(); n != times || is != state {
		return fmt.Errorf("the door is %s after %d moves, want %s after %d", is, n, state, times)
	}
	return nil
}

func stepReplay(ctx context.Context, s *story) (string, error) {
	again, err := s.remote.end(ctx, s.pressed)
	if err != nil {
		return "", err
	}
	e, err := s.pressed.Envelope()
	if err != nil {
		return "", err
	}
	if again.ID != e.ID {
		return "", fmt.Errorf("the same bytes became the command %s", again.ID)
	}
	fresh, err := s.remote.client.SignWith(s.remote.key, s.remote.press(demoPIN), mqttbridge.Challenge{Value: e.Challenge, Life: time.Minute})
	if err != nil {
		return "", err
	}
	st, err := s.remote.end(ctx, fresh)
	if err != nil {
		return "", err
	}
	if st.State != mqttbridge.Refused || st.Code != mqttbridge.CodeChallenge {
		return "", fmt.Errorf("with the used challenge: %s %s", st.State, st.Code)
	}
	return fmt.Sprintf("the same envelope finds its own end (%s) and its challenge is used up (%s): the door did not move", again.State, st.State), s.moved(1, "open")
}

// stepLate is a relay that holds a command back: it is signed in time, and
// arrives when its challenge is too old.
func stepLate(ctx context.Context, s *story) (string, error) {
	signed, err := s.remote.client.Sign(ctx, s.remote.key, s.remote.press(demoPIN))
	if err != nil {
		return "", err
	}
	held := demoLife + 200*time.Millisecond
	select {
	case <-time.After(held):
	case <-ctx.Done():
		return "", ctx.Err()
	}
	st, err := s.remote.end(ctx, signed)
	if err != nil {
		return "", err
	}
	if st.State != mqttbridge.Expired && st.State != mqttbridge.Refused {
		return "", fmt.Errorf("it ended as %s", st.State)
	}
	return fmt.Sprintf("%s after %v: the door did not move", st.State, held), s.moved(1, "open")
}

// stepNote speaks MQTT to the relay's hub with the device certificate.
func stepNote(ctx context.Context, s *story) (string, error) {
	conf := &tls.Config{RootCAs: s.roots, ServerName: "mqtt." + demoDomain, Certificates: []tls.Certificate{s.phone}}
	opts := paho.NewClientOptions().AddBroker("tls://" + s.w.addr).SetClientID("phone-demo").SetAutoReconnect(false).
		SetConnectTimeout(10 * time.Second).
		SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) {
			return (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", s.w.addr)
		})
	c := paho.NewClient(opts)
	defer c.Disconnect(0)
	heard := make(chan string, 8)
	began := time.Now()
	for _, do := range []func() paho.Token{
		c.Connect,
		func() paho.Token {
			return c.Subscribe("home/"+demoHomeName+"/"+board, 1, func(_ paho.Client, m paho.Message) { heard <- string(m.Payload()) })
		},
		func() paho.Token { return c.Publish("home/"+demoHomeName+"/"+notes+"phone", 1, false, "buy milk") },
	} {
		t := do()
		select {
		case <-t.Done():
		case <-ctx.Done():
			return "", ctx.Err()
		}
		if err := t.Error(); err != nil {
			return "", err
		}
	}
	for {
		select {
		case note := <-heard:
			if note == "buy milk" {
				return fmt.Sprintf("the board at home shows it, seen from here %d ms later", time.Since(began).Milliseconds()), nil
			}
		case <-ctx.Done():
			return "", fmt.Errorf("the board did not show it: %w", ctx.Err())
		}
	}
}
