package agent

import (
	"context"
	"fmt"
	"slices"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/agent/service"
)

// entryOf returns an exposed service as the table takes it.
func entryOf(s control.Service) service.Entry {
	return service.Entry{
		Name: s.Name, Target: s.Target, Host: s.Host, Path: s.Path, Auth: s.Auth, TLS: s.TLS, Port: s.Port,
		InsecureSkipVerify: s.InsecureSkipVerify, ServerName: s.ServerName, CAFile: s.CAFile,
		ClientCert: s.ClientCert, ClientKey: s.ClientKey, HTTP2: s.HTTP2, ProxyProtocol: s.ProxyProtocol, RemoteUser: s.RemoteUser,
		Origin: service.OriginExposed,
	}
}

// exposedOf is the inverse of entryOf.
func exposedOf(e service.Entry) control.Service {
	return control.Service{
		Name: e.Name, Target: e.Target, Host: e.Host, Path: e.Path, Auth: e.Auth, TLS: e.TLS, Port: e.Port,
		InsecureSkipVerify: e.InsecureSkipVerify, ServerName: e.ServerName, CAFile: e.CAFile,
		ClientCert: e.ClientCert, ClientKey: e.ClientKey, HTTP2: e.HTTP2, ProxyProtocol: e.ProxyProtocol, RemoteUser: e.RemoteUser,
	}
}

// merge puts the services of a command line in front of the stored ones: where
// both cannot be offered, the newer word holds.
func (o *offer) merge(stored []control.Service, expose []service.Entry) []control.Service {
	merged := make([]control.Service, 0, len(stored)+len(expose))
	for _, e := range expose {
		s := exposedOf(e)
		if i := slices.IndexFunc(stored, named(s.Name)); i >= 0 && stored[i] != s {
			o.log.Info("an exposed service is replaced", "service", s.Name, "target", s.Target, "before", stored[i].Target)
		}
		merged = append(merged, s)
	}
	for _, s := range stored {
		if !slices.ContainsFunc(merged, named(s.Name)) {
			merged = append(merged, s)
		}
	}
	return merged
}

func invalid(format string, args ...any) error {
	return &control.Error{Kind: control.KindInvalid, Text: fmt.Sprintf(format, args...)}
}

// expose adds or replaces an exposed service. What the table does not take and
// what the relay refuses is not kept; without the relay's word it is.
func (o *offer) expose(ctx context.Context, s control.Service) (control.Exposed, error) {
	release, err := o.acquire(ctx)
	if err != nil {
		return control.Exposed{}, err
	}
	defer release()
	o.mu.Lock()
	config, before, entries := o.config, o.exposed, o.entries
	o.mu.Unlock()
	if slices.ContainsFunc(config, func(e service.Entry) bool { return e.Name == s.Name }) {
		return control.Exposed{}, invalid("service %q is in the agent's configuration\nChange it there, or choose another name.", s.Name)
	}
	after := append(slices.DeleteFunc(slices.Clone(before), named(s.Name)), s)
	next := append(slices.DeleteFunc(slices.Clone(entries), func(e service.Entry) bool { return e.Name == s.Name }), entryOf(s))
	if err := o.apply(config, after, next); err != nil {
		return control.Exposed{}, invalid("%v", err)
	}
	if err := o.dir.SaveServices(after); err != nil {
		return control.Exposed{}, o.undo(config, before, entries, err)
	}
	version, _, _ := o.list()
	r, ok := o.wait(ctx, version, s.Name)
	if ok && r.Error != "" {
		refused := &control.Error{Kind: control.KindRefused, Text: "the relay refuses it: " + r.Error}
		err := o.undo(config, before, entries, refused)
		if e := o.dir.SaveServices(before); e != nil {
			return control.Exposed{}, e
		}
		return control.Exposed{}, err
	}
	e := control.Exposed{Name: s.Name, URL: r.URL, Warning: r.Warning}
	if i := slices.IndexFunc(before, named(s.Name)); i >= 0 {
		old := before[i]
		e.Replaced, e.Before = old.Target, &old
	}
	return e, nil
}

// undo goes back to an older list after why happened.
func (o *offer) undo(config []service.Entry, exposed []control.Service, entries []service.Entry, why error) error {
	if err := o.apply(config, exposed, entries); err != nil {
		return fmt.Errorf("%w; and the former services could not be restored: %w", why, err)
	}
	return why
}

func (o *offer) unexpose(ctx context.Context, name string) error {
	release, err := o.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	o.mu.Lock()
	config, before := o.config, o.exposed
	o.mu.Unlock()
	if !slices.ContainsFunc(before, named(name)) {
		if slices.ContainsFunc(config, func(e service.Entry) bool { return e.Name == name }) {
			return invalid("service %q is in the agent's configuration\nRemove it there.", name)
		}
		return invalid("no exposed service is named %q\nSee them with: sallyport status", name)
	}
	after := slices.DeleteFunc(slices.Clone(before), named(name))
	if err := o.dir.SaveServices(after); err != nil {
		return err
	}
	return o.configure(config, after)
}

func named(name string) func(control.Service) bool {
	return func(s control.Service) bool { return s.Name == name }
}
