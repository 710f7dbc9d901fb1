//go:build !race

package real

// raceEnabled: see race_test.go.
const raceEnabled = false
