package tunnelquic

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// forceBuffers returns the sizes of a socket's buffers after it tried, as
// quic-go does, to go over the system's limit with CAP_NET_ADMIN. Negative:
// not known.
func forceBuffers(raw syscall.RawConn, want int) (recv, send int) {
	recv, send = -1, -1
	raw.Control(func(fd uintptr) {
		recv = forceBuffer(int(fd), unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, want)
		send = forceBuffer(int(fd), unix.SO_SNDBUF, unix.SO_SNDBUFFORCE, want)
	})
	return recv, send
}

func forceBuffer(fd, opt, force, want int) int {
	if n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, opt); err == nil && n >= want {
		return n
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, want)
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, opt)
	if err != nil {
		return -1
	}
	return n
}
