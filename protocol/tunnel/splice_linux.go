package tunnel

import (
	"net"

	"golang.org/x/sys/unix"
)

// tcpClose is TCP_CLOSE of the kernel's include/net/tcp_states.h.
const tcpClose = 7

// wasReset reports whether the kernel has given the connection up. After a FIN
// from the peer the state is CLOSE_WAIT, not CLOSE, until we have ended our own
// direction too: the caller asks only before that.
func wasReset(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	reset := false
	raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		reset = err == nil && info.State == tcpClose
	})
	return reset
}
