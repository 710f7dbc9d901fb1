package control

import (
	"context"
	"net"

	"github.com/sallyport/sallyport/protocol/localsock"
)

// Listen makes the socket in dir. The caller holds the directory's lock, so a
// socket that is there is left over and is replaced. Closing the listener
// removes it.
func Listen(dir string) (net.Listener, error) { return localsock.Listen(dir, SocketName) }

func dial(ctx context.Context, dir string) (net.Conn, error) {
	return localsock.Dial(ctx, dir, SocketName)
}
