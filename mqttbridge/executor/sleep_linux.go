package executor

import (
	"time"

	"golang.org/x/sys/unix"
)

// asleep returns how long this machine was suspended since it was started: the
// monotonic clock, which Go's timers use, stands still meanwhile, the boot-time
// clock does not. Neither is ever set.
func asleep() time.Duration {
	var mono, boot unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil {
		return 0
	}
	return time.Duration(boot.Nano() - mono.Nano())
}
