package admin

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// gather collects what pages show. What cannot be read is named on the page,
// and the rest is shown.
type gather struct{ problems []string }

func fetch[Out any](ctx context.Context, g *gather, what string, do func(context.Context) (Out, error)) (out Out) {
	if do == nil {
		return out
	}
	out, err := do(ctx)
	if err != nil {
		g.problems = append(g.problems, fmt.Sprintf("The %s could not be read: %s.", what, asError(err).Message))
	}
	return out
}

// overview is the first page: what waits, what is wrong, what there is.
func (d *dashboard) overview(w http.ResponseWriter, r *http.Request) {
	var g gather
	ctx, now := r.Context(), d.now()
	st := fetch(ctx, &g, "relay's state", d.api.Status)
	v := overviewView{
		Status: st, Up: strings.TrimSuffix(ago(now, st.Started), " ago"), Requests: d.waiting(ctx, &g),
		Sites: sites(st.Hosts), CanDecide: d.api.Approve != nil,
	}
	if st.ECH != nil {
		v.NextKey = in(now, st.ECH.Next)
	}
	for _, a := range st.Agents {
		if !a.Revoked {
			v.Homes++
			if a.Online {
				v.Online++
			}
		}
	}
	for _, dev := range devicesNow(fetch(ctx, &g, "devices", d.api.Devices), now) {
		if dev.Live {
			v.Devices++
		}
	}
	for _, c := range certsNow(fetch(ctx, &g, "certificates", d.api.Certificates), now) {
		v.Certificates++
		if c.Class == "bad" {
			v.BadCerts++
		}
	}
	v.Log = d.lines(&g, 6)
	d.show(w, r, "overview", "Overview", "overview", v, g.problems...)
}

type overviewView struct {
	Status                 Status
	Up                     string
	NextKey                string // of Encrypted ClientHello, from now
	Requests               []requestView
	CanDecide              bool
	Sites                  []siteView
	Homes, Online, Devices int
	Certificates, BadCerts int
	Log                    []lineView
}

type requestView struct {
	EnrolRequest
	Asked, Left string
	Refused     bool // not to be approved from here
}

func (d *dashboard) waiting(ctx context.Context, g *gather) (views []requestView) {
	now := d.now()
	for _, q := range fetch(ctx, g, "waiting requests", d.api.Requests) {
		views = append(views, requestView{EnrolRequest: q, Asked: ago(now, q.Created), Left: in(now, q.Expires), Refused: d.cfg.Remote && q.Admin})
	}
	return views
}

// A siteView is one service under its address.
type siteView struct {
	HostService
	Host, Home string
	Online     bool
}

func sites(hosts []Host) (views []siteView) {
	for _, h := range hosts {
		for _, s := range h.Services {
			views = append(views, siteView{HostService: s, Host: h.Host, Home: h.Agent, Online: h.Online})
		}
	}
	slices.SortFunc(views, func(a, b siteView) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.URL, b.URL))
	})
	return views
}

func (d *dashboard) devices(w http.ResponseWriter, r *http.Request) {
	var g gather
	ctx := r.Context()
	var v struct {
		Requests    []requestView
		CanDecide   bool
		Links       []linkView
		CanWithdraw bool
		Live        []deviceView
		Gone        []deviceView
	}
	v.Requests, v.CanDecide = d.waiting(ctx, &g), d.api.Approve != nil
	v.Links, v.CanWithdraw = d.links(ctx, &g), d.api.WithdrawInvite != nil
	for _, dev := range devicesNow(fetch(ctx, &g, "devices", d.api.Devices), d.now()) {
		if dev.Live {
			v.Live = append(v.Live, dev)
		} else {
			v.Gone = append(v.Gone, dev)
		}
	}
	d.show(w, r, "devices", "Devices", "devices", v, g.problems...)
}

// A linkView is an invitation that nobody used yet.
type linkView struct {
	WaitingInvite
	Made, Left string
}

func (d *dashboard) links(ctx context.Context, g *gather) (views []linkView) {
	now := d.now()
	for _, i := range fetch(ctx, g, "links that wait", d.api.Invites) {
		views = append(views, linkView{WaitingInvite: i, Made: ago(now, i.Created), Left: in(now, i.Expires)})
	}
	return views
}

func (d *dashboard) device(w http.ResponseWriter, r *http.Request) {
	var g gather
	all := devicesNow(fetch(r.Context(), &g, "devices", d.api.Devices), d.now())
	// A renewed device has several entries; the living and newest comes first.
	at := slices.IndexFunc(all, func(v deviceView) bool { return v.Name == r.PathValue("name") })
	if at < 0 {
		d.fault(w, r, "/devices", &Error{Code: CodeNotFound, Message: "There is no such device."})
		return
	}
	onlyThere := d.cfg.Remote && all[at].Admin && all[at].Live
	d.show(w, r, "device", all[at].Name, "devices", struct {
		Device                     deviceView
		Self, MayChange, OnlyThere bool
	}{
		Device: all[at], Self: d.cfg.Remote && d.actor(r) == all[at].Name,
		MayChange: d.api.ChangeDevice != nil && all[at].Live && !onlyThere, OnlyThere: onlyThere,
	}, g.problems...)
}

// A deviceView is a device with what a person wants to know.
type deviceView struct {
	Device
	Live         bool // may come in now
	State        string
	Seen, End    string
	LastSeenText string
	Where        string
	Guest, Soon  bool
}

// devicesNow sorts living devices first, then who was seen last.
func devicesNow(list []Device, now time.Time) []deviceView {
	var views []deviceView
	for _, dev := range list {
		end := dev.Ends()
		v := deviceView{
			Device: dev, Seen: "never used", LastSeenText: ago(now, dev.LastSeen), Where: "all hosts", End: "no end",
			Guest: !dev.Until.IsZero(), Soon: dev.DueForRenewal,
		}
		switch {
		case dev.Revoked:
			v.State = "revoked " + ago(now, dev.RevokedAt)
		case !end.IsZero() && !now.Before(end):
			v.State = "ended " + ago(now, end)
		default:
			v.Live = true
			if dev.Renewed {
				v.State = "older certificate"
			}
		}
		if !dev.LastSeen.IsZero() {
			v.Seen = "seen " + ago(now, dev.LastSeen)
		}
		if !end.IsZero() {
			v.End = "ends " + in(now, end)
		}
		switch {
		case dev.Target != "":
			v.Where = dev.Target + dev.Path
		case len(dev.Hosts) > 0:
			v.Where = strings.Join(dev.Hosts, ", ")
		}
		views = append(views, v)
	}
	slices.SortStableFunc(views, func(a, b deviceView) int {
		return cmp.Or(trueFirst(a.Live, b.Live), trueFirst(!a.Renewed, !b.Renewed), b.LastSeen.Compare(a.LastSeen), b.Created.Compare(a.Created), strings.Compare(a.Name, b.Name))
	})
	return views
}

func trueFirst(a, b bool) int {
	switch {
	case a && !b:
		return -1
	case b && !a:
		return 1
	}
	return 0
}

func (d *dashboard) invite(w http.ResponseWriter, r *http.Request) {
	if d.api.Invite == nil {
		d.fault(w, r, "/devices", errUnavailable)
		return
	}
	var g gather
	d.show(w, r, "invite", "Invite a device", "devices", fetch(r.Context(), &g, "hosts", d.api.Hosts), g.problems...)
}

func (d *dashboard) homes(w http.ResponseWriter, r *http.Request) {
	type homeView struct {
		Agent
		State, Joined string
		Sites         []siteView
		Open          []Port // public ports that its services use
		Path          string // of its best session
	}
	var g gather
	ctx, now := r.Context(), d.now()
	hosts := fetch(ctx, &g, "hosts", d.api.Hosts)
	ports := fetch(ctx, &g, "public ports", d.api.Status).Ports
	var live, gone []homeView
	for _, a := range fetch(ctx, &g, "agents", d.api.Agents) {
		v := homeView{Agent: a, State: "offline", Joined: ago(now, a.Joined)}
		if a.Online {
			v.State = "online"
		}
		if !a.Since.IsZero() {
			v.State += " for " + strings.TrimSuffix(ago(now, a.Since), " ago")
		}
		if len(a.Sessions) > 0 {
			s := a.Sessions[0]
			v.Path = s.Transport
			if s.RTTMillis > 0 {
				v.Path += fmt.Sprintf(", %.0f ms", s.RTTMillis)
			}
		}
		v.Sites = sites(slices.DeleteFunc(slices.Clone(hosts), func(h Host) bool { return h.Agent != a.Name }))
		v.Open = slices.DeleteFunc(slices.Clone(ports), func(p Port) bool { return p.Agent != a.Name })
		if a.Revoked {
			v.State = "revoked " + ago(now, a.RevokedAt)
			gone = append(gone, v)
		} else {
			live = append(live, v)
		}
	}
	d.show(w, r, "homes", "Homes", "homes", struct {
		Live, Gone []homeView
		Hosts      []Host
	}{live, gone, hosts}, g.problems...)
}

func (d *dashboard) certificates(w http.ResponseWriter, r *http.Request) {
	var g gather
	d.show(w, r, "certificates", "Certificates", "certificates",
		certsNow(fetch(r.Context(), &g, "certificates", d.api.Certificates), d.now()), g.problems...)
}

// A certView is a certificate with how worrying it is.
type certView struct {
	PublicCert
	Class string // "good", "soon" or "bad"
	Left  string
	Next  string
}

// certsNow sorts the worst first. Renewal begins with a third of its life
// left; a week before the end it should long have happened.
func certsNow(list []PublicCert, now time.Time) (views []certView) {
	const soon = 7 * 24 * time.Hour
	for _, c := range list {
		v := certView{PublicCert: c, Class: "good"}
		has := !c.NotAfter.IsZero()
		switch {
		case c.Problem != "", has && !now.Before(c.NotAfter):
			v.Class = "bad"
		case !has, c.NotAfter.Sub(now) < soon:
			v.Class = "soon"
		}
		if has {
			v.Left = left(now, c.NotAfter)
		}
		if !c.Next.IsZero() {
			v.Next = in(now, c.Next)
		}
		views = append(views, v)
	}
	rank := map[string]int{"bad": 0, "soon": 1, "good": 2}
	slices.SortStableFunc(views, func(a, b certView) int {
		return cmp.Or(cmp.Compare(rank[a.Class], rank[b.Class]), a.NotAfter.Compare(b.NotAfter), strings.Compare(a.Host, b.Host))
	})
	return views
}
