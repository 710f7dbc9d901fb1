package tunneltcp

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unsentLimit is how much the kernel may hold that it has not sent yet. More
// only makes pings and other streams wait behind it.
const unsentLimit = 128 << 10

// TuneTCP asks the kernel for BBR, which keeps a lossy path full where cubic
// and Reno collapse, and for a small queue of unsent bytes, which halves the
// delay of small requests beside a big one. Best effort: BBR may be missing.
func TuneTCP(conn net.Conn) {
	for {
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = inner.NetConn()
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "bbr")
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit)
	})
}
