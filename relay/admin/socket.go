package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// maxSocketPath is the shortest limit among the systems that we run on,
// without the NUL at the end. Linux allows a few more.
const maxSocketPath = 103

// listen opens the socket in dir. It is made under a name of its own, given
// its mode, and renamed: whoever finds it under its real name finds it ready,
// and a stale one is replaced in the same step.
func listen(dir string) (net.Listener, error) {
	real, fresh := filepath.Join(dir, SocketName), filepath.Join(dir, SocketName+".new")
	if err := checkStale(dir, real); err != nil {
		return nil, err
	}
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	short, done, err := shorten(dir, SocketName+".new")
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", real, err)
	}
	l.SetUnlinkOnClose(false) // it knows only the name that is gone
	err = os.Chmod(fresh, 0o600)
	if err == nil {
		err = os.Rename(fresh, real)
	}
	if err != nil {
		l.Close()
		os.Remove(fresh)
		return nil, fmt.Errorf("admin socket %s: %w", real, err)
	}
	return &listener{UnixListener: l, path: real}, nil
}

// listener removes its socket when it closes.
type listener struct {
	*net.UnixListener
	path string
	once sync.Once
}

func (l *listener) Close() error {
	l.once.Do(func() { os.Remove(l.path) })
	return l.UnixListener.Close()
}

// checkStale makes sure that nobody answers at the socket's name, and that
// what is there is a socket at all.
func checkStale(dir, real string) error {
	info, err := os.Lstat(real)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return &Error{Code: CodeConflict, Message: real + " is there but is not a socket", Hint: "move it away"}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := dial(ctx, dir)
	if err == nil {
		conn.Close()
		return &Error{Code: CodeConflict, Message: "another relay runs with this data directory: it answers at " + real, Hint: "stop it first, or use another --data directory"}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &Error{Code: CodeConflict, Message: "somebody holds " + real + " without answering", Hint: "stop the old relay first"}
	}
	return nil
}

func dial(ctx context.Context, dir string) (net.Conn, error) {
	short, done, err := shorten(dir, SocketName)
	if err != nil {
		return nil, err
	}
	defer done()
	return new(net.Dialer).DialContext(ctx, "unix", short)
}
