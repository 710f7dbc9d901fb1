package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/bridge"
	"github.com/sallyport/sallyport/mqttbridge/executor"
	"github.com/sallyport/sallyport/mqttbridge/queue"
	"github.com/sallyport/sallyport/protocol"
)

const (
	queueFile   = "mqtt.db"  // in the data directory: messages for the relay
	commandsDir = "commands" // keys, PINs, what ran, the log
)

// checkMQTT says what is wrong with the broker, the rules and the actions.
func (c *Config) checkMQTT() (errs []error) {
	if c.MQTT == nil {
		if len(c.Actions) > 0 {
			errs = append(errs, errors.New("there are actions, but no home broker to carry them out\nName it with mqtt.broker or --mqtt tcp://127.0.0.1:1883."))
		}
		return errs
	}
	errs = append(errs, c.MQTT.Broker.Check()...)
	return append(errs, checkHousehold(c.MQTT.Rules, c.Actions)...)
}

// checkHousehold says what is wrong with rules and actions.
func checkHousehold(rules []mqttbridge.Rule, actions []executor.Action) (errs []error) {
	for _, f := range executor.Check(actions) {
		errs = append(errs, fmt.Errorf("action %d (%s), %s: %s", f.Index+1, actions[f.Index].Name, f.Key, f.Message))
	}
	if len(errs) > 0 {
		return errs // their topics mean nothing
	}
	for _, f := range mqttbridge.CheckRules(rules, executor.Topics(actions)) {
		errs = append(errs, fmt.Errorf("topic rule %q: %s", rules[f.Index].String(), f.Message))
	}
	return errs
}

// A household is the agent's half of MQTT: the bridge, and what judges and runs
// commands.
type household struct {
	broker string
	queue  *queue.Store
	bridge *bridge.Bridge
	client *bridge.Client // the commands' own: no bulk is in their way
	exec   *executor.Executor

	mu sync.Mutex // one change of rules and actions at a time
}

func (a *Agent) openHousehold() (*household, error) {
	id, m := a.identity.Load(), a.cfg.MQTT
	h := &household{broker: m.Broker.URL}
	log := a.log.With("part", "mqtt")
	fail := func(err error) (*household, error) { return nil, errors.Join(err, h.close()) }
	var err error
	if h.queue, err = queue.Open(filepath.Join(a.dir.Path(), queueFile), queue.Options{Now: a.cfg.Now, Logger: log}); err != nil {
		return fail(err)
	}
	h.bridge, err = bridge.New(bridge.Config{
		Agent: id.Name, Broker: m.Broker, Rules: m.Rules, Queue: h.queue, Limits: m.Limits,
		DialRelay:  func(ctx context.Context) (net.Conn, error) { return a.dialRelay(ctx, protocol.FeatureMQTT) },
		DialBroker: a.cfg.DialService, Now: a.cfg.Now, Logger: log,
	})
	if err != nil {
		return fail(err)
	}
	h.client, err = bridge.NewClient(bridge.ClientConfig{
		Agent: id.Name, Broker: m.Broker, DialBroker: a.cfg.DialService, Logger: log.With("for", "commands"),
	})
	if err != nil {
		return fail(err)
	}
	dir := filepath.Join(a.dir.Path(), commandsDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	h.exec, err = executor.New(executor.Config{
		Dir: dir, Actions: a.cfg.Actions, Broker: h.client, Agent: id.Name, Now: a.cfg.Now, Logger: a.log.With("part", "commands"),
		Offline: func(err error) bool { return errors.Is(err, bridge.ErrOffline) },
	})
	if err != nil {
		return fail(err)
	}
	return h, nil
}

func (h *household) close() error {
	var errs []error
	if h.exec != nil {
		errs = append(errs, h.exec.Close())
	}
	if h.queue != nil {
		errs = append(errs, h.queue.Close())
	}
	return errors.Join(errs...)
}

// runHousehold starts everything; stop ends it and waits. The end of ctx alone
// ends the bridge, which leaves nothing undone. It does not end the rest:
// commands on their way come to their end while the agent's session drains.
func (a *Agent) runHousehold(ending context.Context, h *household) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ending))
	var wg sync.WaitGroup
	run := func(ctx context.Context, part string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				a.log.Error("a part of MQTT has ended; restart the agent", "part", part, "err", err)
			}
		})
	}
	run(ending, "bridge", h.bridge.Run)
	run(ctx, "client", h.client.Run)
	run(ctx, "commands", h.exec.Run)
	run(ctx, "road", func(ctx context.Context) error { return a.serveCommands(ctx, h) })
	a.household.Store(h)
	return func() {
		cancel()
		wg.Wait()
		if err := h.close(); err != nil {
			a.log.Warn("closing the state of MQTT", "err", err)
		}
	}
}

// warnSideDoors says once that a service whose TLS ends at the relay may switch
// the same things as the actions: there no signature protects them (DESIGN §9).
func (a *Agent) warnSideDoors() {
	if len(a.cfg.Actions) == 0 {
		return
	}
	var names []string
	for _, s := range a.offer.status() {
		if strings.HasPrefix(s.Target, "http") || strings.HasPrefix(s.Target, "h2c") {
			names = append(names, s.Name)
		}
	}
	if len(names) > 0 {
		a.log.Warn("who owns the relay can use the services whose TLS ends there; if one of them switches what an action does, "+
			"the action's signature protects nothing", "services", names)
	}
}

// serveCommands keeps a stream for commands open to the relay. When a newer
// session takes over, it opens the next one first: what is on its way on the
// old one still ends there.
func (a *Agent) serveCommands(ctx context.Context, h *household) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for ctx.Err() == nil {
		c, moved, err := a.openRoad(ctx, protocol.FeatureCommands)
		if err != nil {
			if ctx.Err() == nil {
				a.log.Warn("no stream for commands", "err", err)
			}
			rest(ctx)
			continue
		}
		ended := make(chan struct{})
		wg.Go(func() {
			defer close(ended)
			if err := h.exec.ServeRelay(ctx, c); err != nil && ctx.Err() == nil {
				a.log.Debug("the stream for commands ended", "err", err)
			}
		})
		select {
		case <-moved:
		case <-ended:
			rest(ctx)
		case <-ctx.Done():
		}
	}
	return nil
}

// rest waits up to a second, so that what fails at once does not spin.
func rest(ctx context.Context) {
	select {
	case <-time.After(rand.N(time.Second)):
	case <-ctx.Done():
	}
}

// SetMQTT replaces the topic rules and the actions, all or nothing. Sessions and
// connections stay. An agent that was started without MQTT cannot.
func (a *Agent) SetMQTT(rules []mqttbridge.Rule, actions []executor.Action) error {
	if errs := checkHousehold(rules, actions); len(errs) > 0 {
		return class(ErrConfig, errors.Join(errs...))
	}
	h := a.household.Load()
	if h == nil {
		if a.cfg.MQTT != nil || len(rules)+len(actions) > 0 {
			return classf(ErrConfig, "MQTT does not run yet in this agent: restart it")
		}
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.bridge.SetRules(rules); err != nil {
		return class(ErrConfig, err)
	}
	if err := h.exec.SetActions(actions); err != nil {
		return class(ErrConfig, err)
	}
	return nil
}

var errNoMQTT = &control.Error{
	Kind: control.KindRefused,
	Text: "this agent has no home broker, so it takes no commands\nName it with --mqtt tcp://127.0.0.1:1883, or mqtt.broker in agent.yaml.",
}

// commands returns what judges commands.
func (c controlled) commands() (*executor.Executor, error) {
	h := c.a.household.Load()
	if h == nil {
		return nil, errNoMQTT
	}
	return h.exec, nil
}

// refusal words an error of the executor as one that the person can mend.
func refusal(err error) error {
	if err == nil {
		return nil
	}
	return &control.Error{Kind: control.KindRefused, Text: err.Error()}
}

func (c controlled) Keys(context.Context) ([]control.Key, error) {
	e, err := c.commands()
	if err != nil {
		return nil, err
	}
	keys := []control.Key{}
	for _, k := range e.Keys() {
		keys = append(keys, control.Key{ID: k.ID, Device: k.Device, Trusted: k.Trusted, Words: k.Words, Since: k.Since, Seen: k.Seen, Withdrawn: k.Withdrawn})
	}
	return keys, nil
}

func (c controlled) Trust(_ context.Context, device, id string) error {
	e, err := c.commands()
	if err != nil {
		return err
	}
	return refusal(e.Trust(device, id))
}

func (c controlled) Untrust(_ context.Context, device string) error {
	e, err := c.commands()
	if err != nil {
		return err
	}
	return refusal(e.Untrust(device))
}

func (c controlled) SetPIN(_ context.Context, action, pin string) error {
	e, err := c.commands()
	if err != nil {
		return err
	}
	return refusal(e.SetPIN(action, pin))
}

func (c controlled) Found(context.Context) ([]control.Suggestion, error) {
	e, err := c.commands()
	if err != nil {
		return nil, err
	}
	found := []control.Suggestion{}
	for _, s := range e.Found() {
		found = append(found, control.Suggestion{Name: s.Name, Label: s.Label, YAML: s.YAML})
	}
	return found, nil
}

// status adds what is known of MQTT and the actions. A nil household has
// nothing to say.
func (h *household) status(s *control.Status) {
	if h == nil {
		return
	}
	b, e := h.bridge.Status(), h.exec.Status()
	s.MQTT = mqttStatus(h.broker, b)
	for _, x := range e.Actions {
		s.Actions = append(s.Actions, control.Action{
			Name: x.Name, Label: x.Label, Topic: x.Topic, Confirm: x.Confirm, Problem: x.Problem,
			State: x.State, LastBy: x.LastBy, LastAt: x.LastAt,
		})
	}
	for _, r := range b.Refused {
		s.Warnings = append(s.Warnings, fmt.Sprintf("the home broker did not grant the subscription to %s: %s", r.Filter, r.Reason))
	}
	if e.Alert != "" {
		s.Warnings = append(s.Warnings, e.Alert)
	}
}

// mqttStatus tells of each side by itself: either may be away, or both.
func mqttStatus(broker string, b bridge.Status) *control.MQTT {
	m := &control.MQTT{
		Broker: broker, BrokerConnected: b.Broker.Connected, Link: b.Relay.Connected, Rules: b.Rules,
		Queued: b.Queue.Messages, QueuedBytes: b.Queue.Bytes, In: b.In.Messages, Out: b.Out.Messages,
		Dropped:    b.In.Dropped + b.In.Expired + b.Out.Dropped + b.Out.Expired + b.Queue.DroppedFull + b.Queue.DroppedOld,
		QueueError: b.Queue.Problem,
	}
	if !b.Broker.Connected {
		m.Error = b.Broker.LastError
	}
	if !b.Relay.Connected {
		m.LinkError = b.Relay.LastError
	}
	return m
}
