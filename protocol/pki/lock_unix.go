//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package pki

import (
	"fmt"
	"os"
	"syscall"
)

// lockDir keeps other processes out of the directory's CA files until unlock
// is called. The lock is on the directory itself and dies with the process.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock directory %s: %w", dir, err)
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		d.Close()
		return nil, fmt.Errorf("lock directory %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}
