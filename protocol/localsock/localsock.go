// Package localsock makes the unix sockets through which a person's commands
// reach a running relay or agent: one file in the state directory, mode 0600
// in a directory of mode 0700, so that who may open it may command.
//
// Paths longer than a socket address are reached through the directory's file
// descriptor on Linux and refused with an explanation elsewhere.
package localsock

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

// maxPath is the shortest limit among the systems that we run on, in bytes
// without the closing zero. Linux allows a few more.
const maxPath = 103

// Listen makes the socket dir/name. It is made beside its place, given its
// mode, and renamed: whoever finds it under its name finds it ready, and one
// that a dead process left is replaced in the same step. The caller makes sure
// that no living one is there. Closing the listener removes it.
func Listen(dir, name string) (net.Listener, error) {
	path, fresh := filepath.Join(dir, name), filepath.Join(dir, name+".new")
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("make the socket %s: %w", path, err)
	}
	short, done, err := shorten(dir, name+".new")
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make the socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // it knows only the name that is gone
	err = os.Chmod(fresh, 0o600)
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		l.Close()
		os.Remove(fresh)
		return nil, fmt.Errorf("make the socket %s: %w", path, err)
	}
	return &listener{UnixListener: l, path: path}, nil
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

// Dial connects to the socket dir/name.
func Dial(ctx context.Context, dir, name string) (net.Conn, error) {
	short, done, err := shorten(dir, name)
	if err != nil {
		return nil, err
	}
	defer done()
	return new(net.Dialer).DialContext(ctx, "unix", short)
}
