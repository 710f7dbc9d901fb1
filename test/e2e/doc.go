// Package e2e holds the tests of the whole road in virtual time: real relays
// and agents in the internet of package world, and what happens to them there.
// They say what a person would notice: whether a visit succeeds, how long that
// took, how an open connection ended, who was refused.
//
// Measured times are logged; `go test -v ./test/e2e | grep _test.go` shows them.
package e2e
