package agent

import (
	"context"
	"net/http"

	"github.com/sallyport/sallyport/agent/control"
)

// ConfirmCA lets a person at home take what the pinned CA does not vouch for.
func (c controlled) ConfirmCA(_ context.Context, fingerprint string) error {
	in, err := c.a.indoors()
	switch {
	case err != nil:
		return refusal(err)
	case in.guest == nil:
		return &control.Error{Kind: control.KindRefused, Text: "the devices of this home are its own: the relay's CA lets nobody in here"}
	}
	return refusal(in.guest.Confirm(fingerprint))
}

// Devices serves the owner's commands about devices of the home's own CA.
func (c controlled) Devices() http.Handler {
	if e := c.a.cfg.EndToEnd; e.OpenDevices == nil || e.DeviceCA == DeviceCARelay {
		return nil
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in, err := c.a.indoors()
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		in.home.API().ServeHTTP(w, r)
	})
}
