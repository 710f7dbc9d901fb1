package mqttbridge

import "time"

// An Event is one change that a page shows. Exactly one field is set. What it
// points to is shared among readers: do not change it.
type Event struct {
	// Home is one home as it is now, with the actions that the device may use.
	Home *Home
	// Status is how far one command of the device has come.
	Status *Status
	// HomeGone is the name of a home that the device sees no longer: it was
	// removed, or offers nothing to this device any more.
	HomeGone string
}

// A Refusal is the error with which the relay's half of commands says no. Code
// is for programs, Reason for people: what happened and what to do.
type Refusal struct {
	Code   Code
	Reason string
	Until  time.Time // when CodeRate ends; zero: not known
}

// Error returns the reason.
func (r *Refusal) Error() string { return r.Reason }
