package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
)

// maxPath is the longest socket path that every system takes: sun_path has 104
// bytes on BSD, 108 on Linux, with a closing zero.
const maxPath = 103

// Listen makes the socket in dir. The caller holds the directory's lock, so a
// socket that is there is left over and is removed. Closing the listener
// removes it too.
func Listen(dir string) (net.Listener, error) {
	path := filepath.Join(dir, SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the old control socket: %w", err)
	}
	short, done, err := shorten(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make the control socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // short may not lead there any more: listener.Close does it
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		os.Remove(path)
		return nil, fmt.Errorf("make the control socket %s private: %w", path, err)
	}
	return &listener{Listener: l, path: path}, nil
}

type listener struct {
	net.Listener
	path string
	once sync.Once
	err  error
}

func (l *listener) Close() error {
	l.once.Do(func() {
		os.Remove(l.path)
		l.err = l.Listener.Close()
	})
	return l.err
}

func dial(ctx context.Context, dir string) (net.Conn, error) {
	short, done, err := shorten(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	return d.DialContext(ctx, "unix", short)
}

// shorten returns a path of the socket in dir that fits into a socket address.
// done releases what keeps it valid.
func shorten(dir string) (path string, done func(), err error) {
	path = filepath.Join(dir, SocketName)
	if len(path) <= maxPath {
		return path, func() {}, nil
	}
	return shortenByFD(dir, path)
}
