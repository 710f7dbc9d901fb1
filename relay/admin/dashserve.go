package admin

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/sallyport/sallyport/protocol/localsock"
)

// DashboardSocketName is the name of the dashboard's socket inside the data
// directory. A browser reaches it through ssh:
//
//	ssh -L 9080:DATA/dashboard.sock HOST, then http://localhost:9080/
const DashboardSocketName = "dashboard.sock"

// LocalHosts are the Hosts of a dashboard behind the socket or on loopback.
var LocalHosts = []string{"localhost", "127.0.0.1", "::1"}

// ListenDashboard opens the dashboard's socket in the data directory, mode
// 0600: who may open it may run the relay's command line, too. One that a dead
// relay left is replaced; one that answers is an error. Closing removes it.
func ListenDashboard(dir string) (net.Listener, error) {
	if err := checkStale(dir, DashboardSocketName); err != nil {
		return nil, err
	}
	l, err := localsock.Listen(dir, DashboardSocketName)
	if err != nil {
		return nil, fmt.Errorf("dashboard: %w", err)
	}
	return l, nil
}

// ServeDashboard answers on l until ctx ends and closes it. Event streams end
// with ctx; other answers under way get three seconds. A nil logger discards.
func ServeDashboard(ctx context.Context, l net.Listener, pages http.Handler, logger *slog.Logger) error {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	srv := &http.Server{
		Handler:           pages,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      time.Minute, // event streams move theirs
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	if err := serveUntil(ctx, srv, l); err != nil {
		return fmt.Errorf("dashboard at %s: %w", filepath.Base(l.Addr().String()), err)
	}
	return nil
}

// serveUntil serves until ctx ends, then lets answers under way finish.
func serveUntil(ctx context.Context, srv *http.Server, l net.Listener) error {
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if srv.Shutdown(last) != nil {
		srv.Close()
	}
	<-ended
	return nil
}
