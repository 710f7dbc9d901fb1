package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/agent/service"
	"github.com/sallyport/sallyport/agent/state"
	"github.com/sallyport/sallyport/protocol"
)

// answerWait is how long Expose waits for the relay's word.
const answerWait = 10 * time.Second

// An offer is what the agent wants to serve, from configuration and from
// `expose`, and what the relay said to it. Each change has a version, so that
// an answer can be told from one to an older list.
type offer struct {
	table *service.Table
	log   *slog.Logger
	tell  func([]protocol.Registration) // nil = nobody
	// moved is called after the services, or the relay's word on them, have
	// changed. No lock is held. nil = not.
	moved func()

	busy chan struct{} // holds one token: one change at a time, with its I/O and waiting
	dir  *state.Dir    // set before the first change

	mu       sync.Mutex // guards what follows
	config   []service.Entry
	exposed  []control.Service
	entries  []service.Entry    // merged: what the table holds
	services []protocol.Service // the same as the relay sees it
	own      []service.Entry    // what the agent itself offers, for nobody to see
	version  uint64
	changed  chan struct{} // closed by the next change

	answered uint64 // the version that results belong to
	results  map[string]protocol.Registration
	news     chan struct{} // closed by the next answer
}

func newOffer(table *service.Table, log *slog.Logger) *offer {
	return &offer{
		table: table, log: log, busy: make(chan struct{}, 1),
		changed: make(chan struct{}), news: make(chan struct{}), results: map[string]protocol.Registration{},
	}
}

// duplicates returns the names that stand twice in a list.
func duplicates(entries []service.Entry) []string {
	var dup []string
	seen := map[string]bool{}
	for _, e := range entries {
		if seen[e.Name] && !slices.Contains(dup, e.Name) {
			dup = append(dup, e.Name)
		}
		seen[e.Name] = true
	}
	return dup
}

// open takes over the configured services and those that the directory holds,
// to which it adds those of expose.
func (o *offer) open(dir *state.Dir, config, expose []service.Entry) error {
	var stored []control.Service
	if err := dir.LoadServices(&stored); err != nil {
		return class(ErrConfig, err)
	}
	o.dir = dir
	exposed := o.merge(stored, expose)
	if err := o.configure(config, exposed); err != nil {
		return err
	}
	if slices.Equal(stored, exposed) {
		return nil
	}
	if err := dir.SaveServices(exposed); err != nil {
		return class(ErrConfig, err)
	}
	return nil
}

// setConfig replaces the configured services, all or nothing.
func (o *offer) setConfig(ctx context.Context, config []service.Entry) error {
	if dup := duplicates(config); len(dup) > 0 {
		return classf(ErrConfig, "services are given twice: %s", strings.Join(dup, ", "))
	}
	release, err := o.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	return o.configure(config, o.exposedNow())
}

func (o *offer) acquire(ctx context.Context) (release func(), err error) {
	select {
	case o.busy <- struct{}{}:
		return func() { <-o.busy }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// configure applies the lists. An exposed service that no longer fits beside
// the configured ones is left out with a line, but stays exposed: the
// configuration must not fail because of it.
func (o *offer) configure(config []service.Entry, exposed []control.Service) error {
	entries := slices.Clone(config)
	if err := tryEntries(entries); err != nil {
		return class(ErrConfig, err)
	}
	for _, s := range exposed {
		if slices.ContainsFunc(config, func(e service.Entry) bool { return e.Name == s.Name }) {
			o.log.Warn("a configured service hides an exposed one of the same name", "service", s.Name, "undo", "sallyport agent unexpose "+s.Name)
			continue
		}
		if err := tryEntries(append(slices.Clip(entries), entryOf(s))); err != nil {
			o.log.Warn("an exposed service cannot be offered", "service", s.Name, "err", err, "undo", "sallyport agent unexpose "+s.Name)
			continue
		}
		entries = append(entries, entryOf(s))
	}
	return o.apply(config, exposed, entries)
}

// tryEntries checks a list without touching the table in use.
func tryEntries(entries []service.Entry) error {
	return service.NewTable(nil, noResolver{}).Set(entries)
}

type noResolver struct{}

func (noResolver) LookupLocal(context.Context, string) (netip.Addr, error) {
	return netip.Addr{}, fmt.Errorf("not looked up")
}

// apply puts a list into use, or changes nothing.
func (o *offer) apply(config []service.Entry, exposed []control.Service, entries []service.Entry) error {
	o.mu.Lock()
	own := o.own
	o.mu.Unlock()
	if err := o.table.Set(slices.Concat(entries, own)); err != nil {
		return class(ErrConfig, err)
	}
	defer o.tellMoved()
	services := o.table.Services()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.config, o.exposed, o.entries, o.services = config, exposed, entries, services
	o.version++
	close(o.changed)
	o.changed = make(chan struct{})
	return nil
}

func (o *offer) exposedNow() []control.Service {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.exposed)
}

// list returns what to register now, and a channel that tells of the next
// change.
func (o *offer) list() (version uint64, services []protocol.Service, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.version, o.services, o.changed
}

// answer takes the relay's word on one version of the list.
func (o *offer) answer(version uint64, regs []protocol.Registration) {
	o.mu.Lock()
	if version < o.answered {
		o.mu.Unlock()
		return
	}
	old := o.results
	changed := o.answered == 0 || len(regs) != len(old)
	o.answered, o.results = version, make(map[string]protocol.Registration, len(regs))
	var fresh []protocol.Registration
	for _, r := range regs {
		o.results[r.Name] = r
		if old[r.Name] != r {
			changed = true
			fresh = append(fresh, r)
		}
	}
	close(o.news)
	o.news = make(chan struct{})
	o.mu.Unlock()
	for _, r := range fresh {
		if r.Error != "" {
			o.log.Warn("the relay refuses a service", "service", r.Name, "err", r.Error)
		} else {
			o.log.Info("service published", "service", r.Name, "url", r.URL)
		}
		if r.Warning != "" {
			o.log.Warn("the relay warns of a service", "service", r.Name, "warning", r.Warning)
		}
	}
	o.tellMoved()
	if changed && o.tell != nil {
		o.tell(slices.Clone(regs))
	}
}

func (o *offer) tellMoved() {
	if o.moved != nil {
		o.moved()
	}
}

// setOwn offers what the agent itself has for visitors, beside the services.
func (o *offer) setOwn(ctx context.Context, own []service.Entry) error {
	release, err := o.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	o.mu.Lock()
	o.own = own
	config, exposed, entries := o.config, o.exposed, o.entries
	o.mu.Unlock()
	return o.apply(config, exposed, entries)
}

// places lists where services with TLS "agent" are published. Their hosts are the
// owner's word: what the relay answers chooses no rules here.
func (o *offer) places(domain string) (list []place, wanted bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.services {
		if s.TLS != protocol.TLSAgent || slices.ContainsFunc(o.own, func(e service.Entry) bool { return e.Name == s.Name }) {
			continue
		}
		wanted = true // also what the relay refuses: it is no judge of what is served at home
		list = append(list, place{host: withHost(s, domain).Host, path: s.Path, service: s})
	}
	return list, wanted
}

// withHost names the host of a service whose TLS ends here: the relay is not
// asked to choose one.
func withHost(s protocol.Service, domain string) protocol.Service {
	if s.TLS == protocol.TLSAgent && s.Host == "" {
		s.Host = s.Name + "." + domain
	}
	return s
}

// wait returns the relay's word on a service in a version of the list.
func (o *offer) wait(ctx context.Context, version uint64, name string) (protocol.Registration, bool) {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	for {
		o.mu.Lock()
		answered, r, news := o.answered >= version, o.results[name], o.news
		o.mu.Unlock()
		if answered {
			return r, r.Name != ""
		}
		select {
		case <-news:
		case <-ctx.Done():
			return protocol.Registration{}, false
		}
	}
}

// status lists the services with the relay's word on each.
func (o *offer) status() []control.ServiceStatus {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make([]control.ServiceStatus, 0, len(o.entries))
	for _, e := range o.entries {
		r := o.results[e.Name]
		s := control.ServiceStatus{Name: e.Name, Target: e.Target, Origin: e.Origin, URL: r.URL, Error: r.Error, Warning: r.Warning}
		if i := slices.IndexFunc(o.services, func(p protocol.Service) bool { return p.Name == e.Name }); i >= 0 {
			s.Auth, s.TLS = o.services[i].Auth, o.services[i].TLS
		}
		out = append(out, s)
	}
	return out
}
