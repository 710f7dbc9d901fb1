package admin

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// command adds one button. It runs do under the actor's name, writes it down,
// and shows the page back; "" means the page of the device itself.
func (d *dashboard) command(mux *http.ServeMux, path, command, back string, do func(ctx context.Context, name string, form url.Values) error) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		name, to := r.PathValue("name"), back
		if to == "" {
			to = "/devices/" + url.PathEscape(name)
		}
		err := readForm(r)
		if err == nil {
			err = do(WithActor(r.Context(), d.actor(r)), name, r.PostForm)
			d.record(r, command, name, err)
		}
		if err != nil {
			d.fault(w, r, to, err)
			return
		}
		// Said is a word of a fixed list: a link must not put words into our mouth.
		http.Redirect(w, r, to+"?said="+command, http.StatusSeeOther)
	})
}

// said are the words after a command.
var said = map[string]string{
	"approve":           "Approved. The device is getting its certificate.",
	"deny":              "Turned away. The device was told.",
	"revoke-device":     "Revoked. It is shut out and its connections are closed.",
	"withdraw-invite":   "Withdrawn. That link opens nothing any more.",
	"change-device":     "Saved. It holds for open connections, too.",
	"revoke-agent":      "Revoked. That home is shut out and its hosts are free.",
	"release-host":      "Released. Any agent that is allowed to may claim the host now.",
	"retry-certificate": "Asked again. This takes some seconds.",
}

func (d *dashboard) approve(ctx context.Context, id string, form url.Values) error {
	if d.api.Approve == nil || d.api.Requests == nil {
		return errUnavailable
	}
	// The owner compared words: let in the key that had these, not whatever
	// now goes by the same ID.
	waiting, err := d.api.Requests(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(waiting, func(q EnrolRequest) bool { return q.ID == id && q.KeyID == form.Get("key") }) {
		return errGone
	}
	_, err = d.api.Approve(ctx, id)
	return err
}

func (d *dashboard) deny(ctx context.Context, id string, _ url.Values) error {
	return ignoring(d.api.Deny)(ctx, id)
}

func (d *dashboard) revokeDevice(ctx context.Context, name string, _ url.Values) error {
	return ignoring(d.api.RevokeDevice)(ctx, name)
}

func (d *dashboard) withdrawInvite(ctx context.Context, id string, _ url.Values) error {
	if d.api.WithdrawInvite == nil {
		return errUnavailable
	}
	return d.api.WithdrawInvite(ctx, id)
}

func (d *dashboard) revokeAgent(ctx context.Context, name string, _ url.Values) error {
	return ignoring(d.api.RevokeAgent)(ctx, name)
}

func (d *dashboard) releaseHost(ctx context.Context, host string, _ url.Values) error {
	if d.api.ReleaseHost == nil {
		return errUnavailable
	}
	return d.api.ReleaseHost(ctx, host)
}

func (d *dashboard) retryCertificate(ctx context.Context, host string, _ url.Values) error {
	if d.api.RetryCertificate == nil {
		return errUnavailable
	}
	return d.api.RetryCertificate(ctx, host)
}

func ignoring[Out any](do func(context.Context, string) (Out, error)) func(context.Context, string) error {
	return func(ctx context.Context, name string) error {
		if do == nil {
			return errUnavailable
		}
		_, err := do(ctx, name)
		return err
	}
}

// changeDevice changes only what the form holds: a page that an older relay
// made must not take rights away by silence.
func (d *dashboard) changeDevice(ctx context.Context, name string, form url.Values) error {
	if d.api.ChangeDevice == nil {
		return errUnavailable
	}
	var c DeviceChange
	if form.Has("hosts") {
		hosts := splitHosts(form.Get("hosts"))
		c.Hosts = &hosts
	}
	if choice := form.Get("until"); choice != "" && choice != "keep" {
		until, err := d.end(choice)
		if err != nil {
			return err
		}
		c.Until = &until
	}
	// No page asks that, and it is refused: nothing is dropped in silence.
	if form.Has("admin") {
		on := form.Get("admin") == "1"
		c.Admin = &on
	}
	_, err := d.api.ChangeDevice(ctx, name, c)
	return err
}

func (d *dashboard) makeInvite(w http.ResponseWriter, r *http.Request) {
	inv, err := d.newInvite(r)
	if err != nil {
		d.fault(w, r, "/invite", err)
		return
	}
	svg, err := QRSVG(inv.Link)
	if err != nil {
		d.log.Error("dashboard: no QR code", "err", err)
	}
	// Shown here and now, without a redirect: the link is a secret, and where
	// else could it wait?
	d.show(w, r, "invited", "Invitation", "devices", inviteView{Invite: inv, QR: trustedSVG(svg)})
}

func (d *dashboard) newInvite(r *http.Request) (Invite, error) {
	if d.api.Invite == nil {
		return Invite{}, errUnavailable
	}
	if err := readForm(r); err != nil {
		return Invite{}, err
	}
	form := r.PostForm
	ttl, err := time.ParseDuration(form.Get("ttl"))
	if err != nil || ttl <= 0 {
		return Invite{}, &Error{Code: CodeBadRequest, Message: "Say how long the link works."}
	}
	until, err := d.end(form.Get("until"))
	if err != nil {
		return Invite{}, err
	}
	q := InviteRequest{
		Name: strings.TrimSpace(form.Get("name")), Hosts: splitHosts(form.Get("hosts")), Until: until,
		TTL: int64(ttl.Seconds()), Admin: form.Has("admin"), Approve: form.Get("approve") == "1",
	}
	if q.Name == "" { // whoever opens it chooses the name: somebody has to look at that
		q.Approve = true
	}
	inv, err := d.api.Invite(WithActor(r.Context(), d.actor(r)), q)
	d.record(r, "invite", q.Name, err)
	return inv, err
}

// end turns a choice of the page into a time: "" and "none" are zero.
func (d *dashboard) end(choice string) (time.Time, error) {
	if choice == "" || choice == "none" {
		return time.Time{}, nil
	}
	after, err := time.ParseDuration(choice)
	if err != nil || after <= 0 || after > 10*365*24*time.Hour {
		return time.Time{}, &Error{Code: CodeBadRequest, Message: "Say how long the device may come in."}
	}
	return d.now().Add(after).Truncate(time.Second), nil
}

// splitHosts takes what people type between host names.
func splitHosts(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ';' || r == ' ' || r == '\n' || r == '\r' || r == '\t' })
}
