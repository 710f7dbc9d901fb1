package homeca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/devices"
	"github.com/sallyport/sallyport/relay/enroll"
)

// Prefix is where the agent's socket serves API: what package admin has at
// /v1/devices is at /v1/home/devices there.
const Prefix = "/v1/home/"

// API serves the owner's commands about devices, on a socket that only the
// owner can open: the paths, bodies and errors of package admin, below Prefix.
// What is the relay's alone (tokens, administrators, everything about agents
// and hosts) is refused.
func (h *Home) API() http.Handler { return h.api }

func (h *Home) makeAPI() (http.Handler, error) {
	s, err := admin.New(admin.Config{Dir: h.cfg.Dir, Logger: h.log, API: admin.API{
		CA:           h.roots,
		AddDevice:    h.addDevice,
		Devices:      h.listDevices,
		RevokeDevice: h.revokeDevice,
		ChangeDevice: h.changeDevice,
		ResetClock:   h.resetClock,

		Invite:         h.invite,
		Invites:        h.listInvites,
		WithdrawInvite: h.withdrawInvite,
		Requests:       h.listRequests,
		Approve:        h.approve,
		Deny:           h.deny,
		AddTokenDevice: func(context.Context, admin.TokenDeviceRequest) (admin.TokenDevice, error) {
			return admin.TokenDevice{}, errToken
		},
	}})
	if err != nil {
		return nil, err
	}
	return belowPrefix(s.Handler()), nil
}

// belowPrefix moves what next has at /v1/ to Prefix.
func belowPrefix(next http.Handler) http.Handler {
	move := func(path string) string { return "/v1/" + strings.TrimPrefix(path, Prefix) }
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, Prefix) {
			http.NotFound(w, r)
			return
		}
		moved := r.Clone(r.Context())
		moved.URL.Path = move(r.URL.Path)
		if r.URL.RawPath != "" { // a name with an escaped slash stays one
			moved.URL.RawPath = move(r.URL.RawPath)
		}
		next.ServeHTTP(w, moved)
	})
}

var (
	errAdmin = &admin.Error{
		Code: admin.CodeBadRequest, Message: "a device of the home is no administrator: the dashboard is the relay's",
		Hint: "on the relay's machine: sallyport device add NAME --admin",
	}
	errToken = &admin.Error{
		Code: admin.CodeRefused, Message: "a home makes no tokens: their hosts are the relay's",
		Hint: "for a service whose TLS ends at the relay, on the relay's machine: sallyport device add NAME --token",
	}
)

func (h *Home) roots(context.Context) (admin.CA, error) {
	return admin.CA{Device: string(pki.EncodeCert(h.ca.Cert()))}, nil
}

func (h *Home) addDevice(ctx context.Context, q admin.DeviceRequest) (admin.IssuedDevice, error) {
	if q.Admin {
		return admin.IssuedDevice{}, errAdmin
	}
	pub, err := pki.ParseCSR(q.CSR)
	if err != nil {
		return admin.IssuedDevice{}, &admin.Error{Code: admin.CodeBadRequest, Message: err.Error()}
	}
	d, cert, err := h.devices.Add(ctx, devices.Grant{Name: q.Name, Key: pub, Hosts: q.Hosts, Until: q.Until})
	if err != nil {
		return admin.IssuedDevice{}, ownersError(err)
	}
	h.added(d)
	return admin.IssuedDevice{Device: h.view(d), Cert: cert.Raw, CA: h.ca.Cert().Raw}, nil
}

// invite makes a one-time link. What the name and the hosts have wrong is said
// now, to the owner, and not later to the visitor.
func (h *Home) invite(ctx context.Context, q admin.InviteRequest) (admin.Invite, error) {
	if q.Admin {
		return admin.Invite{}, errAdmin
	}
	code, expires, err := h.desk.Invite(ctx, enroll.Invitation{
		Name: q.Name, Hosts: q.Hosts, Until: q.Until, Approve: q.Approve,
		TTL: time.Duration(q.TTL) * time.Second, By: admin.Actor(ctx),
	})
	if err != nil {
		return admin.Invite{}, ownersError(err)
	}
	inv := admin.Invite{Name: q.Name, Link: h.url("") + "/#" + code, Expires: expires, Approve: q.Approve || q.Name == ""}
	if inv.SVG, err = admin.QRSVG(inv.Link); err != nil {
		return admin.Invite{}, fmt.Errorf("QR code: %w", err)
	}
	return inv, nil
}

func (h *Home) listInvites(context.Context) ([]admin.WaitingInvite, error) {
	var list []admin.WaitingInvite
	for _, c := range h.desk.Codes() {
		list = append(list, admin.WaitingInvite{
			ID: c.ID, Name: c.Name, By: c.By, Hosts: c.Hosts, Approve: c.Approve, Until: c.Until, Created: c.Created, Expires: c.Expires,
		})
	}
	return list, nil
}

func (h *Home) withdrawInvite(ctx context.Context, id string) error {
	if err := h.desk.WithdrawID(ctx, id); err != nil {
		return ownersError(err)
	}
	return nil
}

func (h *Home) resetClock(ctx context.Context) error {
	if err := h.devices.ResetClock(ctx, h.cfg.Now()); err != nil {
		return ownersError(err)
	}
	h.event("clock.reset")
	return nil
}

func (h *Home) changeDevice(ctx context.Context, name string, c admin.DeviceChange) (admin.Device, error) {
	if c.Admin != nil && *c.Admin {
		return admin.Device{}, errAdmin
	}
	d, err := h.devices.Change(ctx, name, devices.Change{Hosts: c.Hosts, Until: c.Until})
	if err != nil {
		return admin.Device{}, ownersError(err)
	}
	h.event("device.changed", slog.String("device", d.Name), slog.String("id", d.ID), slog.Any("hosts", d.Hosts), slog.Time("until", d.Until))
	return h.view(d), nil
}

func (h *Home) listDevices(context.Context) ([]admin.Device, error) {
	var list []admin.Device
	for _, d := range h.devices.List() {
		list = append(list, h.view(d))
	}
	return list, nil
}

func (h *Home) view(d devices.Device) admin.Device {
	return admin.Device{
		ID: d.ID, Name: d.Name, Serial: d.Serial, Hosts: d.Hosts, Kind: d.Kind, Created: d.Created,
		NotAfter: d.NotAfter, Until: d.Until, LastSeen: d.LastSeen, Revoked: d.Revoked, RevokedAt: d.RevokedAt,
		Renewed: d.Renewed, DueForRenewal: h.devices.DueForRenewal(d, h.cfg.Now()),
	}
}

func (h *Home) listRequests(context.Context) ([]admin.EnrolRequest, error) {
	var list []admin.EnrolRequest
	for _, q := range h.desk.Pending() {
		list = append(list, requestView(q))
	}
	return list, nil
}

func (h *Home) approve(ctx context.Context, idOrName string) (admin.EnrolRequest, error) {
	q, err := h.desk.Approve(ctx, idOrName)
	if err != nil {
		return admin.EnrolRequest{}, ownersError(err)
	}
	return requestView(q), nil
}

func (h *Home) deny(ctx context.Context, idOrName string) (admin.EnrolRequest, error) {
	q, err := h.desk.Deny(ctx, idOrName)
	if err != nil {
		return admin.EnrolRequest{}, ownersError(err)
	}
	return requestView(q), nil
}

func requestView(q enroll.Request) admin.EnrolRequest {
	return admin.EnrolRequest{
		ID: q.ID, Name: q.Name, State: string(q.State), Via: q.Via, Agent: q.Agent, Source: q.Source.String(),
		Words: q.Words, KeyID: q.KeyID, Hosts: q.Hosts, Until: q.Until, Created: q.Created, Expires: q.Expires,
	}
}

// ownersError gives the errors of devices and desk their code.
func ownersError(err error) error {
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
