package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sallyport/sallyport/protocol/localsock"
)

// listen opens the socket in dir unless a relay already answers there.
func listen(dir string) (net.Listener, error) {
	if err := checkStale(dir, SocketName); err != nil {
		return nil, err
	}
	l, err := localsock.Listen(dir, SocketName)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	return l, nil
}

// checkStale makes sure that nobody answers at the socket's name, and that
// what is there is a socket at all.
func checkStale(dir, name string) error {
	real := filepath.Join(dir, name)
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
	conn, err := localsock.Dial(ctx, dir, name)
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
	return localsock.Dial(ctx, dir, SocketName)
}
