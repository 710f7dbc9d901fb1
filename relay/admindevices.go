package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/certs"
	"github.com/sallyport/sallyport/relay/devices"
	"github.com/sallyport/sallyport/relay/enroll"
)

func (r *Relay) addDevice(ctx context.Context, q admin.DeviceRequest) (admin.IssuedDevice, error) {
	pub, err := pki.ParseCSR(q.CSR)
	if err != nil {
		return admin.IssuedDevice{}, &admin.Error{Code: admin.CodeBadRequest, Message: err.Error()}
	}
	d, cert, err := r.devices.Add(ctx, devices.Grant{Name: q.Name, Key: pub, Hosts: q.Hosts, Until: q.Until, Admin: q.Admin})
	if err != nil {
		return admin.IssuedDevice{}, deviceError(err)
	}
	r.deviceAdded(d)
	return admin.IssuedDevice{Device: r.deviceView(d), Cert: cert.Raw, CA: r.state.deviceCA.Cert().Raw}, nil
}

// invite makes a one-time link. What the name and the hosts have wrong is said
// now, to the owner, and not later to the visitor.
func (r *Relay) invite(ctx context.Context, q admin.InviteRequest) (admin.Invite, error) {
	code, expires, err := r.desk.Invite(ctx, enroll.Invitation{
		Name: q.Name, Hosts: q.Hosts, Until: q.Until, Admin: q.Admin, Approve: q.Approve,
		TTL: time.Duration(q.TTL) * time.Second, By: admin.Actor(ctx),
	})
	if err != nil {
		return admin.Invite{}, deviceError(err)
	}
	inv := admin.Invite{Name: q.Name, Link: r.ownURL(enrollLabel) + "/#" + code, Expires: expires, Approve: q.Approve || q.Name == ""}
	if inv.SVG, err = admin.QRSVG(inv.Link); err != nil {
		return admin.Invite{}, fmt.Errorf("QR code: %w", err)
	}
	return inv, nil
}

// listInvites lists the links that nobody has used yet.
func (r *Relay) listInvites(context.Context) ([]admin.WaitingInvite, error) {
	var list []admin.WaitingInvite
	for _, c := range r.desk.Codes() {
		list = append(list, admin.WaitingInvite{
			ID: c.ID, Name: c.Name, By: c.By, Hosts: c.Hosts, Admin: c.Admin, Approve: c.Approve, Until: c.Until, Created: c.Created, Expires: c.Expires,
		})
	}
	return list, nil
}

func (r *Relay) withdrawInvite(ctx context.Context, id string) error {
	if err := r.desk.WithdrawID(ctx, id); err != nil {
		return deviceError(err)
	}
	return nil
}

func (r *Relay) resetClock(ctx context.Context) error {
	if err := r.devices.ResetClock(ctx, r.now()); err != nil {
		return deviceError(err)
	}
	r.event("clock.reset")
	return nil
}

func (r *Relay) addTokenDevice(ctx context.Context, q admin.TokenDeviceRequest) (admin.TokenDevice, error) {
	target, err := r.tokenTarget(q.Host)
	if err != nil {
		return admin.TokenDevice{}, err
	}
	d, secret, err := r.devices.AddToken(ctx, devices.TokenGrant{Name: q.Name, Host: target, Path: q.Path, Until: q.Until})
	if err != nil {
		return admin.TokenDevice{}, deviceError(err)
	}
	r.event("token.added", slog.String("device", d.Name), slog.String("id", d.ID), slog.String("host", d.TokenHost),
		slog.String("target", d.Target), slog.String("path", d.Path), slog.Time("until", d.Until))
	view := r.deviceView(d)
	return admin.TokenDevice{Device: view, Secret: secret, URL: view.URL}, nil
}

// tokenTarget is the canonical host that a token may be made for: one that the
// relay serves over HTTP now.
func (r *Relay) tokenTarget(host string) (string, error) {
	name, err := names.Canonical(host)
	if err == nil {
		if _, ok := r.site(name); !ok && !names.Below(name, r.conf.Domain) {
			name, err = names.Canonical(host + "." + r.conf.Domain)
		}
	}
	if err != nil {
		return "", &admin.Error{Code: admin.CodeBadRequest, Message: fmt.Sprintf("%q is not a host name: %v", host, err)}
	}
	s, ok := r.site(name)
	switch {
	case !ok:
		return "", &admin.Error{
			Code: admin.CodeNotFound, Message: fmt.Sprintf("no home offers a service at %s whose TLS ends at the relay", name),
			Hint: "sallyport status shows the hosts",
		}
	case s.Handler == nil:
		return "", &admin.Error{Code: admin.CodeRefused, Message: fmt.Sprintf("%s is not a web service: a token travels in HTTP", name)}
	}
	return name, nil // that it is not one of our own hosts is for AddToken to say
}

func (r *Relay) isOwn(name string) bool {
	label, ok := strings.CutSuffix(name, "."+r.conf.Domain)
	return ok && slices.Contains([]string{enrollLabel, checkLabel, adminLabel, mqttLabel, homeLabel}, label)
}

func (r *Relay) changeDevice(ctx context.Context, name string, c admin.DeviceChange) (admin.Device, error) {
	d, err := r.devices.Change(ctx, name, devices.Change{Hosts: c.Hosts, Until: c.Until, Admin: c.Admin})
	if err != nil {
		return admin.Device{}, deviceError(err)
	}
	r.event("device.changed", slog.String("device", d.Name), slog.String("id", d.ID), slog.Any("hosts", d.Hosts),
		slog.Time("until", d.Until), slog.Bool("admin", d.Admin))
	return r.deviceView(d), nil
}

func (r *Relay) listDevices(context.Context) ([]admin.Device, error) {
	var list []admin.Device
	for _, d := range r.devices.List() {
		list = append(list, r.deviceView(d))
	}
	return list, nil
}

// revokeDevice shuts out what has a name, or is on its way to it: an unused
// link opens nothing any more and a request that waits is denied.
func (r *Relay) revokeDevice(ctx context.Context, name string) (admin.Device, error) {
	d, err := r.devices.Revoke(ctx, name) // first: the desk may take its time
	known := !errors.Is(err, devices.ErrUnknown)
	if err != nil && known {
		return admin.Device{}, deviceError(err)
	}
	if known {
		r.event("device.revoked", slog.String("device", d.Name), slog.String("id", d.ID))
	}
	stopped, failed := r.stopEnrolment(ctx, name)
	// A request that was just being issued has become a device meanwhile.
	if now, ok := r.devices.Get(name); ok && !now.Revoked {
		if d, err = r.devices.Revoke(ctx, name); err != nil {
			return admin.Device{}, deviceError(errors.Join(err, failed))
		}
		known = true
		r.event("device.revoked", slog.String("device", d.Name), slog.String("id", d.ID))
	}
	switch {
	case failed != nil:
		return admin.Device{}, deviceError(failed)
	case known:
		return r.deviceView(d), nil
	case stopped:
		return admin.Device{Name: name, Revoked: true, RevokedAt: r.now()}, nil
	}
	return admin.Device{}, deviceError(err)
}

// stopEnrolment reports whether there was something to stop. What a device
// invited as an administrator goes with it, too.
func (r *Relay) stopEnrolment(ctx context.Context, name string) (stopped bool, err error) {
	if _, err := r.desk.WithdrawBy(ctx, name); err != nil {
		return false, err
	}
	if err := r.desk.Withdraw(ctx, name); err == nil {
		stopped = true
	} else if !errors.Is(err, enroll.ErrUnknown) {
		return stopped, err
	}
	for _, q := range r.desk.Pending() {
		if q.Name != name {
			continue
		}
		// What cannot be denied any more has been decided: revokeDevice looks.
		if _, err := r.desk.Deny(ctx, q.ID); err == nil {
			stopped = true
		}
	}
	return stopped, nil
}

func (r *Relay) deviceView(d devices.Device) admin.Device {
	v := admin.Device{
		ID: d.ID, Name: d.Name, Serial: d.Serial, Hosts: d.Hosts, Kind: d.Kind, Admin: d.Admin, Created: d.Created,
		NotAfter: d.NotAfter, Until: d.Until, LastSeen: d.LastSeen, Revoked: d.Revoked, RevokedAt: d.RevokedAt,
		Renewed: d.Renewed, DueForRenewal: r.devices.DueForRenewal(d, r.now()),
		Path: d.Path, TokenHost: d.TokenHost, Target: d.Target,
	}
	if d.TokenHost != "" {
		v.URL = "https://" + d.TokenHost + r.portSuffix() + "/"
	}
	return v
}

func (r *Relay) dueForRenewal(d *door.Device) bool {
	dev, ok := r.devices.ByID(d.ID)
	return ok && r.devices.DueForRenewal(dev, r.now())
}

// listRequests lists who waits for the owner.
func (r *Relay) listRequests(context.Context) ([]admin.EnrolRequest, error) {
	var list []admin.EnrolRequest
	for _, q := range r.desk.Pending() {
		list = append(list, requestView(q))
	}
	return list, nil
}

func (r *Relay) approve(ctx context.Context, idOrName string) (admin.EnrolRequest, error) {
	q, err := r.desk.Approve(ctx, idOrName)
	if err != nil {
		return admin.EnrolRequest{}, deviceError(err)
	}
	return requestView(q), nil
}

func (r *Relay) deny(ctx context.Context, idOrName string) (admin.EnrolRequest, error) {
	q, err := r.desk.Deny(ctx, idOrName)
	if err != nil {
		return admin.EnrolRequest{}, deviceError(err)
	}
	return requestView(q), nil
}

func requestView(q enroll.Request) admin.EnrolRequest {
	return admin.EnrolRequest{
		ID: q.ID, Name: q.Name, State: string(q.State), Via: q.Via, Agent: q.Agent, Source: q.Source.String(),
		Words: q.Words, KeyID: q.KeyID, Hosts: q.Hosts, Admin: q.Admin, Until: q.Until, Created: q.Created, Expires: q.Expires,
	}
}

// deviceError gives the errors of devices and desk their code.
func deviceError(err error) error {
	code := admin.CodeBadRequest
	switch {
	case errors.Is(err, devices.ErrUnknown), errors.Is(err, enroll.ErrUnknown):
		code = admin.CodeNotFound
	case errors.Is(err, devices.ErrNameTaken), errors.Is(err, devices.ErrKeyUsed), errors.Is(err, enroll.ErrNameTaken):
		code = admin.CodeConflict
	case errors.Is(err, enroll.ErrFull):
		code = admin.CodeUnavailable
	}
	return &admin.Error{Code: code, Message: err.Error()}
}

// certificates lists the public certificates, with what keeps them away.
func (r *Relay) certificates(context.Context) ([]admin.PublicCert, error) {
	return r.public.list(r.terminated()), nil
}

func (r *Relay) retryCertificate(_ context.Context, host string) error {
	if r.public.acme == nil {
		return &admin.Error{Code: admin.CodeRefused, Message: "this relay gets no certificates by ACME", Hint: "certs is " + r.conf.certs()}
	}
	err := r.public.acme.Retry(host)
	if _, limited := errors.AsType[*certs.LimitError](err); limited {
		return &admin.Error{Code: admin.CodeUnavailable, Message: err.Error()}
	}
	if err != nil {
		return &admin.Error{Code: admin.CodeNotFound, Message: err.Error()}
	}
	return nil
}
