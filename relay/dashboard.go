package relay

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"sync"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/relay/admin"
)

// newDashboard makes one entrance to the owner's pages. Remote is the one at
// admin.DOMAIN.
func (r *Relay) newDashboard(remote bool) http.Handler {
	c := admin.DashboardConfig{
		API: r.api(), Audit: r.audit.Last, Changes: r.bell.Listen, Record: r.event,
		Hosts: admin.LocalHosts, Now: r.now, Logger: r.log,
	}
	if remote {
		c.Remote, c.Hosts = true, []string{r.ownHost(adminLabel)}
		c.Actor = func(req *http.Request) string {
			if v, ok := door.VisitorFrom(req.Context()); ok && v.Device != nil {
				return v.Device.Name
			}
			return ""
		}
	}
	return admin.NewDashboard(c)
}

// serveDashboard serves the owner's pages on the unix socket in the data
// directory, and on loopback when that is configured.
func (r *Relay) serveDashboard(ctx context.Context) error {
	pages := r.newDashboard(false)
	listen := func() (net.Listener, error) { return admin.ListenDashboard(r.conf.DataDir) }
	if r.conf.ListenDashboard != nil {
		listen = r.conf.ListenDashboard
	}
	l, err := listen()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	serve := func(l net.Listener, pages http.Handler) {
		wg.Go(func() {
			if err := admin.ServeDashboard(ctx, l, pages, r.log); err != nil {
				cancel(err)
			}
		})
	}
	serve(l, pages)
	if r.loopback != nil {
		serve(r.loopback, r.login.Wrap(pages))
	}
	wg.Wait()
	if cause := context.Cause(ctx); cause != context.Canceled {
		return cause
	}
	return nil
}

// dashboardInfo tells the owner how to open the pages. The login link works
// once.
func (r *Relay) dashboardInfo(context.Context) (admin.DashboardInfo, error) {
	d := admin.DashboardInfo{Socket: filepath.Join(r.conf.DataDir, admin.DashboardSocketName)}
	if r.loopback != nil {
		d.Listen = r.loopback.Addr().String()
		d.Login = r.login.Link("http://" + d.Listen)
		r.event("dashboard.link")
	}
	return d, nil
}
