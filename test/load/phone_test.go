//go:build linux

package load

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/mqttbridge"
)

// pressed is how long after the press …
type pressed struct{ published, done time.Duration }

// button is a phone with its door.
type button interface {
	// press waits until it is done. challengeFirst counts the time of asking
	// for a challenge; otherwise it was asked for before the press, as the page
	// does when a finger comes down.
	press(ctx context.Context, challengeFirst bool) (pressed, error)
}

// phone is a command page without the page: it speaks the same API and listens
// to the same events.
type phone struct {
	name   string
	door   string
	key    *ecdsa.PrivateKey
	home   mqttbridge.Home
	client *http.Client // without a limit of time: events go on
	things *things
	next   time.Time // the relay takes ten commands a second from a device

	mu    sync.Mutex // guards ended
	ended map[string]chan mqttbridge.Status
}

// newPhone makes a device that is trusted at home and watches its events.
func (x *crossing) newPhone(ctx context.Context, name string, t *things, door string) (*phone, error) {
	conf, err := x.config(ctx, name, "home")
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, x.hub)
	}}
	p := &phone{name: name, door: door, key: key, client: &http.Client{Transport: tr}, things: t, ended: make(map[string]chan mqttbridge.Status)}
	if err := p.beTrusted(ctx, x.agent); err != nil {
		return nil, fmt.Errorf("phone %s: %w", name, err)
	}
	return p, p.watch()
}

// beTrusted offers the key and accepts it at home.
func (p *phone) beTrusted(ctx context.Context, agent *control.Client) error {
	err := until("the home takes commands", func(ctx context.Context) error {
		var answer struct {
			Homes []mqttbridge.Home `json:"homes"`
		}
		if err := p.call(ctx, http.MethodGet, "/api/homes", nil, &answer); err != nil {
			return err
		}
		for _, h := range answer.Homes {
			if p.home = h; h.Online && h.Broker {
				return nil
			}
		}
		return fmt.Errorf("%+v", answer.Homes)
	})
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(&p.key.PublicKey)
	if err != nil {
		return err
	}
	if err := p.call(ctx, http.MethodPost, "/api/keys", map[string]any{"home": p.home.Name, "key": der}, nil); err != nil {
		return err
	}
	id, err := mqttbridge.KeyID(der)
	if err != nil {
		return err
	}
	return agent.Trust(ctx, p.name, id)
}

func (p *phone) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://home."+domain+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return err
	case res.StatusCode/100 != 2:
		return fmt.Errorf("%s: %s: %s", path, res.Status, data)
	case out == nil:
		return nil
	}
	return json.Unmarshal(data, out)
}

// watch reads events to the end of the run.
func (p *phone) watch() error {
	res, err := p.client.Get("https://home." + domain + "/api/events")
	if err != nil {
		return err
	}
	go func() {
		defer res.Body.Close()
		lines, event := bufio.NewReader(res.Body), ""
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			if name, ok := strings.CutPrefix(line, "event: "); ok {
				event = strings.TrimSpace(name)
			}
			if data, ok := strings.CutPrefix(line, "data: "); ok && event == "command" {
				p.heard([]byte(data))
			}
		}
	}()
	return nil
}

func (p *phone) heard(data []byte) {
	var st mqttbridge.Status
	if json.Unmarshal(data, &st) != nil || !st.Final {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.ended[st.ID]; c != nil {
		c <- st
		delete(p.ended, st.ID)
	}
}

func (p *phone) challenge(ctx context.Context) (string, error) {
	var answer struct {
		Challenge string `json:"challenge"`
	}
	err := p.call(ctx, http.MethodPost, "/api/challenge", map[string]string{"home": p.home.Name, "action": "door"}, &answer)
	return answer.Challenge, err
}

const commandsEvery = 110 * time.Millisecond

func (p *phone) press(ctx context.Context, challengeFirst bool) (t pressed, err error) {
	time.Sleep(time.Until(p.next))
	p.next = time.Now().Add(commandsEvery)
	var challenge string
	if !challengeFirst {
		if challenge, err = p.challenge(ctx); err != nil {
			return t, err
		}
	}
	moved := p.things.expect(p.door)
	start := time.Now()
	if challengeFirst {
		if challenge, err = p.challenge(ctx); err != nil {
			return t, err
		}
	}
	e := mqttbridge.Envelope{
		Version: 1, ID: mqttbridge.NewID(), Home: p.home.ID, Action: "door", Value: p.door, Device: p.name,
		Issued: start, NotAfter: start.Add(10 * time.Second), Challenge: challenge,
	}
	signed, err := mqttbridge.Sign(e, p.key)
	if err != nil {
		return t, err
	}
	end := make(chan mqttbridge.Status, 1)
	p.mu.Lock()
	p.ended[e.ID] = end
	p.mu.Unlock()
	if err := p.call(ctx, http.MethodPost, "/api/commands/door", map[string]any{"home": p.home.Name, "command": signed}, nil); err != nil {
		return t, err
	}
	select {
	case st := <-end:
		t.done = time.Since(start)
		if st.State != mqttbridge.Done {
			return t, fmt.Errorf("the command ended as %+v", st)
		}
		t.published = (<-moved).Sub(start)
		return t, nil
	case <-time.After(opLimit):
		return t, errors.New("the command did not end")
	}
}

// things are what stands at home: doors that say that they moved.
type things struct {
	client *mqttClient
	mu     sync.Mutex // guards moved
	moved  map[string]chan time.Time
}

func (x *crossing) newThings() (*things, error) {
	c, err := x.atHome("doors", false)
	if err != nil {
		return nil, err
	}
	if err := c.subscribe("cmnd/door", 1); err != nil {
		c.close()
		return nil, err
	}
	t := &things{client: c, moved: make(map[string]chan time.Time)}
	go c.receive(func(_ string, payload []byte) {
		now := time.Now()
		_ = c.publish("stat/door", payload, 1)
		t.mu.Lock()
		defer t.mu.Unlock()
		if m := t.moved[string(payload)]; m != nil {
			m <- now
			delete(t.moved, string(payload))
		}
	})
	return t, nil
}

// expect returns when a door moves next.
func (t *things) expect(door string) <-chan time.Time {
	m := make(chan time.Time, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.moved[door] = m
	return m
}

// plainPhone does the same with nothing but topics: no signature, no challenge,
// no record of what ran.
type plainPhone struct {
	client *mqttClient
	door   string
	things *things
	done   chan struct{}
}

func (x *crossing) newPlainPhone(ctx context.Context, name string, t *things, door string) (*plainPhone, error) {
	c, err := x.atHub(ctx, "", name, "", false)
	if err != nil {
		return nil, err
	}
	if err := c.subscribe(prefix+"stat/door", 1); err != nil {
		c.close()
		return nil, err
	}
	p := &plainPhone{client: c, door: door, things: t, done: make(chan struct{}, 1)}
	go c.receive(func(_ string, payload []byte) {
		if string(payload) == door {
			p.done <- struct{}{}
		}
	})
	return p, nil
}

func (p *plainPhone) press(context.Context, bool) (t pressed, err error) {
	moved := p.things.expect(p.door)
	start := time.Now()
	if err := p.client.publish(prefix+"cmnd/door", []byte(p.door), 1); err != nil {
		return t, err
	}
	select {
	case <-p.done:
		t.done = time.Since(start)
		t.published = (<-moved).Sub(start)
		return t, nil
	case <-time.After(opLimit):
		return t, errors.New("nothing came back")
	}
}

// pressable returns n phones that were pressed before. They stay: their pages
// are open to the end of the run.
func (x *crossing) pressable(ctx context.Context, n int) ([]button, error) {
	if len(x.buttons) >= n {
		return x.buttons[:n], nil
	}
	t, err := x.newThings()
	if err != nil {
		return nil, err
	}
	buttons := make([]button, n)
	err = together(n, func(i int) (err error) {
		name, door := fmt.Sprintf("phone%d", i), doorName(i)
		if x.relay == nil {
			buttons[i], err = x.newPlainPhone(ctx, name, t, door)
		} else {
			buttons[i], err = x.newPhone(ctx, name, t, door)
		}
		if err == nil {
			_, err = buttons[i].press(ctx, true)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, x.said())
	}
	x.buttons = buttons
	return buttons, nil
}
