//go:build !linux

package admin

import (
	"fmt"
	"path/filepath"
)

// shorten refuses what does not fit into a socket address: only Linux has a
// way around.
func shorten(dir, name string) (short string, done func(), err error) {
	path := filepath.Join(dir, name)
	if len(path) > maxSocketPath {
		return "", nil, &Error{
			Code:    CodeBadRequest,
			Message: fmt.Sprintf("the path %s is too long for a socket: %d bytes, at most %d", path, len(path), maxSocketPath),
			Hint:    "use a --data directory with a shorter path",
		}
	}
	return path, func() {}, nil
}
