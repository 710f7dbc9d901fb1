package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notify tells a systemd that waits for it how the process is; without one it
// does nothing.
func notify(lines ...string) {
	_, _ = daemon.SdNotify(false, strings.Join(lines, "\n"))
}

func notifyReady(status string)    { notify(daemon.SdNotifyReady, "STATUS="+status) }
func notifyStopping(status string) { notify(daemon.SdNotifyStopping, "STATUS="+status) }

// reloading runs reload at each SIGHUP until the returned function is called.
// Whatever comes of it, the process goes on, and says which.
func reloading(ctx context.Context, log *slog.Logger, status string, reload func() error) (stop func()) {
	return onHangup(ctx, func() {
		notify(daemon.SdNotifyReloading, daemon.SdNotifyMonotonicUsec())
		if err := reload(); err != nil {
			log.Error("reload failed, everything stays as it was", "err", err)
			notifyReady(status + "; the last reload failed, see the log")
			return
		}
		log.Info("configuration reloaded")
		notifyReady(status)
	})
}

// onHangup calls f at each SIGHUP until the returned function is called.
func onHangup(ctx context.Context, f func()) (stop func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-ch:
				f()
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		signal.Stop(ch)
		cancel()
		<-ended
	}
}
