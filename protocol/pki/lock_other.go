//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package pki

// lockDir does nothing where directories cannot be locked.
func lockDir(string) (unlock func(), err error) { return func() {}, nil }
