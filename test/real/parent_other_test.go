//go:build !linux

package real

import "syscall"

func dieWithParent() *syscall.SysProcAttr { return nil }
