package main

import (
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// systemd must hear that a reload began, when, and how it went.
func TestReloadIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetReadDeadline(time.Now().Add(patience))
	t.Setenv("NOTIFY_SOCKET", path)
	hear := func() string {
		t.Helper()
		b := make([]byte, 1024)
		n, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	results := make(chan error, 1)
	stop := reloading(t.Context(), slog.New(slog.DiscardHandler), "serves", func() error { return <-results })
	defer stop()
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, "READY=1\nSTATUS=serves"},
		{errors.New("wrong"), "READY=1\nSTATUS=serves; the last reload failed, see the log"},
	} {
		results <- c.err
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if got := hear(); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
			t.Errorf("got %q", got)
		}
		if got := hear(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	notifyStopping("ends")
	if got := hear(); got != "STOPPING=1\nSTATUS=ends" {
		t.Errorf("got %q", got)
	}
}
