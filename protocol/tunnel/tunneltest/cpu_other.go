//go:build !unix

package tunneltest

import "time"

// cpuTime is the processor time that this process has used; 0 when not known.
func cpuTime() time.Duration { return 0 }
