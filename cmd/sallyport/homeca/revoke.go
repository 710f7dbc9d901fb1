package homeca

import (
	"context"
	"errors"
	"log/slog"

	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/devices"
	"github.com/sallyport/sallyport/relay/enroll"
)

// revokeDevice shuts out what has a name, or is on its way to it: an unused
// link opens nothing any more and a request that waits is denied.
func (h *Home) revokeDevice(ctx context.Context, name string) (admin.Device, error) {
	d, err := h.revoke(ctx, name) // first: the desk may take its time
	known := !errors.Is(err, devices.ErrUnknown)
	if err != nil && known {
		return admin.Device{}, ownersError(err)
	}
	stopped, failed := h.stopEnrolment(ctx, name)
	// A request that was just being issued has become a device meanwhile.
	if now, ok := h.devices.Get(name); ok && !now.Revoked {
		if d, err = h.revoke(ctx, name); err != nil {
			return admin.Device{}, ownersError(errors.Join(err, failed))
		}
		known = true
	}
	switch {
	case failed != nil:
		return admin.Device{}, ownersError(failed)
	case known:
		return h.view(d), nil
	case stopped:
		return admin.Device{Name: name, Revoked: true, RevokedAt: h.cfg.Now()}, nil
	}
	return admin.Device{}, ownersError(err)
}

func (h *Home) revoke(ctx context.Context, name string) (devices.Device, error) {
	d, err := h.devices.Revoke(ctx, name)
	if err == nil {
		h.event("device.revoked", slog.String("device", d.Name), slog.String("id", d.ID))
	}
	return d, err
}

// stopEnrolment reports whether there was something to stop.
func (h *Home) stopEnrolment(ctx context.Context, name string) (stopped bool, err error) {
	if err := h.desk.Withdraw(ctx, name); err == nil {
		stopped = true
	} else if !errors.Is(err, enroll.ErrUnknown) {
		return stopped, err
	}
	for _, q := range h.desk.Pending() {
		if q.Name != name {
			continue
		}
		// What cannot be denied any more has been decided: revokeDevice looks.
		if _, err := h.desk.Deny(ctx, q.ID); err == nil {
			stopped = true
		}
	}
	return stopped, nil
}
