//go:build race

package e2e_test

// raceEnabled: the binary is built with the race detector too. It then needs
// several times the memory and time, so that limits of both are not checked.
const raceEnabled = true
