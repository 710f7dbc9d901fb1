//go:build !linux

package tunnelquic

import "syscall"

// forceBuffers does not know the sizes here.
func forceBuffers(syscall.RawConn, int) (recv, send int) { return -1, -1 }
