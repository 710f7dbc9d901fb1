package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/dispatch"
	"github.com/sallyport/sallyport/mqttbridge/hub"
	"github.com/sallyport/sallyport/mqttbridge/panel"
	"github.com/sallyport/sallyport/mqttbridge/queue"
	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/relay/devices"
)

// mailboxFile is in the data directory: messages that wait for homes and
// devices.
const mailboxFile = "mqtt.db"

// checkMQTT says what is wrong with the hub's settings.
func (c Config) checkMQTT(bad func(key, format string, args ...any)) {
	if l := c.MQTT.Listen; l != "" {
		if err := checkAddr(l); err != nil {
			bad("mqtt.listen", "%v", err)
		} else if portOf(l) == portOf(c.listen()) && portOf(l) != 0 {
			bad("mqtt.listen", "port %d is the public port, where the hub answers anyway; leave this out or take 8883", portOf(l))
		}
	}
	if n := c.MQTT.CommandsPerHour; n < 0 || n > 1_000_000 {
		bad("mqtt.commands_per_hour", "%d is not between 1 and 1000000", n)
	}
	for i, g := range c.MQTT.Allow {
		key := fmt.Sprintf("mqtt.allow[%d]", i)
		if _, err := path.Match(g.Device, ""); err != nil || strings.ContainsAny(g.Device, "/[?\\") {
			bad(key+".device", "%q is not a device's name or a pattern such as anna*", g.Device)
		}
		for what, filters := range map[string][]string{"publish": g.Publish, "subscribe": g.Subscribe} {
			for j, f := range filters {
				if err := mqttbridge.CheckFilter(f); err != nil {
					bad(fmt.Sprintf("%s.%s[%d]", key, what, j), "%v", err)
				}
			}
		}
	}
}

// grantsOf returns what a device may do by a list of grants.
func grantsOf(allow []MQTTGrant, device string) (g hub.Grants) {
	if len(allow) == 0 {
		all := []string{"home/+/#"}
		return hub.Grants{Publish: all, Subscribe: all}
	}
	for _, a := range allow {
		if ok, _ := path.Match(a.Device, device); ok || a.Device == "" {
			g.Publish = append(g.Publish, a.Publish...)
			g.Subscribe = append(g.Subscribe, a.Subscribe...)
		}
	}
	return g
}

// bridges are the relay's half of MQTT and commands. A nil one is switched off.
type bridges struct {
	r        *Relay
	queue    *queue.Store
	hub      *hub.Hub
	dispatch *dispatch.Dispatcher
	panel    *panel.Panel
	socket   http.Handler // MQTT in WebSockets
	allow    atomic.Pointer[[]MQTTGrant]
}

func (r *Relay) openBridges() (*bridges, error) {
	if r.conf.MQTT.Off {
		return nil, nil
	}
	b := &bridges{r: r}
	b.allow.Store(&r.conf.MQTT.Allow)
	log := r.log.With("part", "mqtt")
	var err error
	b.queue, err = queue.Open(filepath.Join(r.conf.DataDir, mailboxFile), queue.Options{Now: r.now, Logger: log})
	if err != nil {
		return nil, err
	}
	b.hub, err = hub.New(hub.Config{
		Queue: b.queue, Now: r.now, Logger: log, Audit: r.event,
		Grants: b.grants,
	})
	if err != nil {
		return nil, errors.Join(err, b.queue.Close())
	}
	b.dispatch, err = dispatch.New(context.Background(), dispatch.Config{
		Ledger: ledger{r.conf.Store}, Allowed: r.mayCommand, Revoked: r.revokedDevice, Now: r.now,
		Logger: r.log.With("part", "commands"), Audit: r.event, Limits: dispatch.Limits{PerHour: r.conf.MQTT.CommandsPerHour},
	})
	if err != nil {
		return nil, errors.Join(err, b.queue.Close())
	}
	b.panel, err = panel.New(panel.Config{
		Backend: b.dispatch, Device: visitorName, Enroll: r.ownURL(enrollLabel), Now: r.now, Logger: r.log,
	})
	if err != nil {
		return nil, errors.Join(err, b.queue.Close())
	}
	b.socket = b.hub.WebSocket(func(req *http.Request) (hub.Identity, bool) {
		v, ok := door.VisitorFrom(req.Context())
		if !ok || v.Device == nil {
			return hub.Identity{}, false
		}
		return hub.Identity{Name: v.Device.Name, ID: v.Device.ID, Remote: v.Remote}, true
	})
	return b, nil
}

func visitorName(req *http.Request) (string, bool) {
	v, ok := door.VisitorFrom(req.Context())
	if !ok || v.Device == nil {
		return "", false
	}
	return v.Device.Name, true
}

// grants is the hub's question at every check.
func (b *bridges) grants(device string) hub.Grants {
	if !b.r.comesIn(device, mqttLabel) {
		return hub.Grants{}
	}
	return grantsOf(*b.allow.Load(), device)
}

// run serves until ctx ends.
func (b *bridges) run(ctx context.Context) error {
	if b == nil {
		<-ctx.Done()
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, f := range []func(context.Context) error{b.hub.Run, b.dispatch.Run} {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func (b *bridges) close() error {
	if b == nil {
		return nil
	}
	return b.queue.Close()
}

func (b *bridges) serveLink(ctx context.Context, c net.Conn, id, name string) error {
	return b.hub.ServeAgent(ctx, c, hub.Agent{ID: id, Name: name})
}

func (b *bridges) serveCommands(ctx context.Context, c net.Conn, id, name string) error {
	return b.dispatch.ServeAgent(ctx, c, dispatch.Agent{ID: id, Name: name})
}

// sites adds the hub's host and that of the command page.
func (b *bridges) sites(sites map[string]*door.Site) {
	if b == nil {
		return
	}
	r := b.r
	sites[r.ownHost(mqttLabel)] = &door.Site{
		Mode: door.Require, RawALPN: "mqtt", Raw: b.serveMQTT, Handler: http.HandlerFunc(b.serveSocket),
	}
	sites[r.ownHost(homeLabel)] = &door.Site{Mode: door.Ask, Handler: r.reminder.wrap(b.panel), Denied: b.deniedAtHome}
}

// serveMQTT takes MQTT in TLS.
func (b *bridges) serveMQTT(ctx context.Context, c tunnel.Conn, v door.Visitor) {
	if v.Device == nil { // never at a require host
		c.Close()
		return
	}
	b.hub.ServeConn(ctx, c, hub.Identity{Name: v.Device.Name, ID: v.Device.ID, Remote: v.Remote})
}

// serveSocket takes MQTT in WebSockets, at one path.
func (b *bridges) serveSocket(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path != "/mqtt" {
		http.NotFound(w, req)
		return
	}
	b.socket.ServeHTTP(w, req)
}

// deniedAtHome serves what an installed page needs before any certificate is
// asked for, and to everything else the page that says what is missing.
func (b *bridges) deniedAtHome(w http.ResponseWriter, req *http.Request, denial string) {
	if !b.panel.Shell(w, req) {
		b.r.deniedPage(w, req, denial)
	}
}

// deviceLost runs when a device has lost rights. Its connections are cut
// already.
func (b *bridges) deviceLost(d devices.Device) {
	if b == nil {
		return
	}
	b.dispatch.EndDevice(d.Name) // first: it waits for no disk
	if b.r.revokedDevice(d.Name) {
		b.hub.Forget(d.Name)
	}
}

// revokedDevice reports whether a name stands for no device any more: one that
// only lost some rights, or an old certificate, keeps its trust at home.
func (r *Relay) revokedDevice(name string) bool {
	d, ok := r.devices.Get(name)
	return !ok || d.Revoked
}

func (b *bridges) agentRevoked(id string) {
	if b == nil {
		return
	}
	b.hub.ForgetAgent(id)
	b.dispatch.ForgetAgent(id)
}

func (b *bridges) setGrants(allow []MQTTGrant) {
	if b == nil {
		return
	}
	b.allow.Store(&allow)
	b.hub.Recheck()
}

// mayCommand reports whether a device may use the command page now.
func (r *Relay) mayCommand(name string) bool { return r.comesIn(name, homeLabel) }

// comesIn reports whether a device may come in at one of our own hosts now.
func (r *Relay) comesIn(name, label string) bool {
	d, ok := r.devices.Get(name)
	if !ok {
		return false
	}
	leaf, ok := r.devices.Certificate(d.ID)
	if !ok {
		return false
	}
	_, denial := r.checkDevice(leaf, r.ownHost(label), r.now())
	return denial == ""
}
