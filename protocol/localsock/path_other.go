//go:build !linux

package localsock

import (
	"fmt"
	"path/filepath"
)

func shorten(dir, name string) (short string, done func(), err error) {
	path := filepath.Join(dir, name)
	if len(path) > maxPath {
		return "", nil, fmt.Errorf("the path %s is longer than the %d bytes that a socket's may have\nUse a shorter --data directory.", path, maxPath)
	}
	return path, func() {}, nil
}
