//go:build race

package panel

const raceEnabled = true
