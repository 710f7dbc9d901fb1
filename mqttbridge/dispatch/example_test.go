package dispatch_test

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/dispatch"
)

// A phone presses a button: it gets a challenge from the home, signs it, and
// sees how far the command comes.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	d, err := dispatch.New(ctx, dispatch.Config{Ledger: &ledger{values: map[string][]byte{}}})
	if err != nil {
		fmt.Println(err)
		return
	}
	wg.Go(func() { d.Run(ctx) })

	// The relay accepted a stream of the agent "kitchen".
	agentEnd, relayEnd := net.Pipe()
	wg.Go(func() { d.ServeAgent(ctx, relayEnd, dispatch.Agent{ID: "key-of-kitchen", Name: "kitchen"}) })
	wg.Go(func() { atHome(agentEnd) })

	// A page looks on.
	events := d.Watch(ctx, "anna-phone")
	home := (<-events).Home
	fmt.Printf("%s offers %q\n", home.Name, home.Actions[0].Label)

	challenge, err := d.Challenge(ctx, "anna-phone", home.Name, "door")
	if err != nil {
		fmt.Println(err)
		return
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		fmt.Println(err)
		return
	}
	signed, err := mqttbridge.Sign(mqttbridge.Envelope{
		ID: mqttbridge.NewID(), Home: home.ID, Action: "door", Device: "anna-phone",
		Issued: time.Now(), NotAfter: time.Now().Add(challenge.Life), Challenge: challenge.Value,
	}, key)
	if err != nil {
		fmt.Println(err)
		return
	}
	status, err := d.Send(ctx, "anna-phone", home.Name, signed)
	if err != nil {
		fmt.Println(err) // a *dispatch.Refusal: nothing was sent
		return
	}
	fmt.Println("the command is", status.State)
	for ev := range events {
		if ev.Status != nil && ev.Status.ID == status.ID && ev.Status.Final {
			fmt.Println("the command is", ev.Status.State)
			return
		}
	}
	// Output:
	// kitchen offers "Garage door"
	// the command is accepted
	// the command is done
}

// atHome stands for the agent: mqttbridge/executor.
func atHome(c net.Conn) {
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return
	}
	spki, err := x509.MarshalPKIXPublicKey(key.PublicKey())
	if err != nil {
		return
	}
	id, err := mqttbridge.KeyID(spki)
	if err != nil {
		return
	}
	say := mqttbridge.Frame{Type: mqttbridge.FrameHome, Home: &mqttbridge.Home{
		ID: id, Key: spki, Broker: true,
		Actions: []mqttbridge.Action{{Name: "door", Label: "Garage door", Confirm: mqttbridge.ConfirmHold, Ack: true, Life: 10_000}},
	}}
	for mqttbridge.WriteFrame(c, say) == nil {
		f, err := mqttbridge.ReadFrame(c)
		if err != nil {
			return
		}
		switch f.Type {
		case mqttbridge.FrameChallenge:
			say = mqttbridge.Frame{Type: f.Type, Seq: f.Seq, Challenge: strings.ToLower(rand.Text()), LifeMS: 10_000}
		case mqttbridge.FrameCommand:
			e, err := f.Command.Envelope()
			if err != nil {
				return
			}
			say = mqttbridge.Frame{Type: mqttbridge.FrameStatus, Seq: f.Seq, Status: &mqttbridge.Status{ID: e.ID, State: mqttbridge.Done}}
		}
	}
}

// ledger stands for the relay's store.
type ledger struct {
	mu     sync.Mutex // guards values
	values map[string][]byte
}

func (l *ledger) Put(_ context.Context, key string, value []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.values[key] = value
	return nil
}

func (l *ledger) Get(_ context.Context, key string) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.values[key], nil
}

func (l *ledger) Create(_ context.Context, key string, value []byte) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.values[key] != nil {
		return false, nil
	}
	l.values[key] = value
	return true, nil
}

func (l *ledger) Delete(_ context.Context, key string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.values, key)
	return nil
}

func (l *ledger) List(_ context.Context, prefix string) (map[string][]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := map[string][]byte{}
	for key, value := range l.values {
		if strings.HasPrefix(key, prefix) {
			list[key] = value
		}
	}
	return list, nil
}
