package control

import (
	"fmt"
	"os"
)

// shortenByFD names the directory by an open descriptor of it.
func shortenByFD(dir, _ string) (string, func(), error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), SocketName), func() { d.Close() }, nil
}
