//go:build !linux && !darwin

package main

import (
	"errors"
	"os"
)

func hideTyping(*os.File) (show func(), err error) {
	return nil, errors.New("not known how to hide it on this system")
}
