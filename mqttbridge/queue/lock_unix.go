//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package queue

import (
	"os"
	"syscall"
)

// letGo closes a file that bbolt has locked, mapped and then given up with a
// panic: the mapping that is left would keep the lock, a closed file or not.
func letGo(f *os.File) {
	_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
	f.Close()
}
