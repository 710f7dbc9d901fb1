package localsock

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// shorten returns a name for dir/name that fits into a socket address. A long
// directory is reached through a descriptor that done closes.
func shorten(dir, name string) (short string, done func(), err error) {
	path := filepath.Join(dir, name)
	if len(path) <= maxPath {
		return path, func() {}, nil
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open directory: %w", &os.PathError{Op: "open", Path: dir, Err: err})
	}
	return filepath.Join("/proc/self/fd", strconv.Itoa(fd), name), func() { unix.Close(fd) }, nil
}
