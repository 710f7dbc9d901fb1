//go:build !linux

package control

import "fmt"

func shortenByFD(_, path string) (string, func(), error) {
	return "", nil, fmt.Errorf("the path of the control socket is too long for this system: %s has %d bytes, at most %d fit\n"+
		"Name a data directory with a shorter path with --data.", path, len(path), maxPath)
}
