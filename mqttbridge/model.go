package mqttbridge

import "time"

// A State is how far a command has come.
type State string

// States in the order of a good course. After a final one nothing changes but
// Unknown, which a home that comes back may still correct.
const (
	Accepted    State = "accepted"    // the relay has it on disk
	Sent        State = "sent"        // it is on its way to the home
	Delivered   State = "delivered"   // the home broker took it; final when the action has no ack
	Done        State = "done"        // the state topic said that it happened; final
	Unconfirmed State = "unconfirmed" // delivered, and the ack did not come in time; final
	Refused     State = "refused"     // it did not run, see Code and Reason; final
	Expired     State = "expired"     // it came too late and did not run; final
	Unknown     State = "unknown"     // it may or may not have run: look, do not press again blindly; final
)

// A Code says why a command was refused, for programs; Status.Reason says it to
// people.
type Code string

// Codes of refused commands.
const (
	CodeOffline   Code = "offline"    // the home is not connected
	CodeBroker    Code = "broker"     // the home broker is not connected
	CodeNoAction  Code = "no-action"  // there is no such action, or not for this device
	CodeUntrusted Code = "untrusted"  // the signing key is not trusted at home yet: sallyport agent trust NAME
	CodeSignature Code = "signature"  // the signature does not fit
	CodeChallenge Code = "challenge"  // not one of ours, or used before: a replay
	CodeDuplicate Code = "duplicate"  // a command with this id was seen before
	CodePINNeeded Code = "pin-needed" // none came, or none is set at home
	CodePINWrong  Code = "pin-wrong"  // Status.AttemptsLeft says how many tries are left
	CodeLocked    Code = "locked"     // too many wrong PINs, see Status.Until
	CodeHours     Code = "hours"      // outside the hours of the action
	CodeRate      Code = "rate"       // more often than the action allows, see Status.Until
	CodeMalformed Code = "malformed"  // it cannot be read, or contradicts itself
	CodeDisk      Code = "disk"       // it could not be recorded, so it did not run
	CodeBusy      Code = "busy"       // too many commands at once
	CodeRevoked   Code = "revoked"    // the device was revoked before it could run
	CodeInternal  Code = "internal"   // see the log
)

// A Status is what is known of one command.
type Status struct {
	ID     string `json:"id"`
	Home   string `json:"home"`   // the agent's name
	Action string `json:"action"` // its name in the agent's configuration
	Device string `json:"device"` // who asked
	State  State  `json:"state"`
	Final  bool   `json:"final"`
	Code   Code   `json:"code,omitempty"`   // of refused ones
	Reason string `json:"reason,omitempty"` // to people: what happened and what to do
	// AttemptsLeft is how many PINs may still be tried; only with CodePINWrong.
	AttemptsLeft int       `json:"attempts_left,omitempty"`
	Until        time.Time `json:"until,omitzero"` // when CodeLocked or CodeRate ends
	Created      time.Time `json:"created"`
	At           time.Time `json:"at"` // of State
}

// How an action asks whether it is meant.
const (
	ConfirmNone = "none"
	ConfirmHold = "hold" // the button is held for a second
	ConfirmPIN  = "pin"  // a PIN that the agent checks
)

// An Action is what a page needs to show a button. The agent's configuration
// holds the rest (executor.Action).
type Action struct {
	Name    string   `json:"name"` // letters, digits, "-" and "_", at most 64
	Label   string   `json:"label"`
	Icon    string   `json:"icon,omitempty"`
	Confirm string   `json:"confirm"`           // ConfirmNone, ConfirmHold or ConfirmPIN
	Values  []string `json:"values,omitempty"`  // what Envelope.Value may be; none: it must be empty
	Ack     bool     `json:"ack"`               // whether Done can be reached
	Life    int64    `json:"life_ms"`           // a challenge is good for that long, milliseconds
	Hours   string   `json:"hours,omitempty"`   // "06:00-22:00", the home's time
	Who     []string `json:"who,omitempty"`     // device name patterns; none: every trusted device. The relay shows the action to these only; the agent decides again
	State   *Live    `json:"state,omitempty"`   // of its state topic
	Last    *Last    `json:"last,omitempty"`    // when it ran last
	Problem string   `json:"problem,omitempty"` // why it cannot run now ("no PIN is set at home")
}

// Live is the newest value of a state topic.
type Live struct {
	Value string    `json:"value"` // printable, at most 64 bytes
	At    time.Time `json:"at"`
}

// Last says who ran an action last.
type Last struct {
	By    string    `json:"by"` // device name
	At    time.Time `json:"at"`
	State State     `json:"state"`
}

// A Home is one agent with its actions.
type Home struct {
	Name    string    `json:"name"`            // the agent's name at the relay
	ID      string    `json:"id"`              // KeyID of Key
	Key     []byte    `json:"key"`             // the home's command key, SPKI of an ECDH P-256 key: PINs are sealed to it
	Online  bool      `json:"online"`          // a session with the relay
	Broker  bool      `json:"broker"`          // the home broker is connected
	Since   time.Time `json:"since,omitzero"`  // of Online or its opposite
	Alert   string    `json:"alert,omitempty"` // something that the owner must see, such as a lockout
	Actions []Action  `json:"actions"`
}

// Trust is what a home thinks of a device's signing key.
type Trust string

// Values of Trust.
const (
	TrustYes     Trust = "trusted"
	TrustPending Trust = "pending" // waits for `sallyport agent trust NAME`
	TrustNo      Trust = "refused" // too many wait, or the name belongs to another key that is trusted
)

// A Challenge is single use and lives in the agent's memory alone.
type Challenge struct {
	Value string        // opaque, at most 64 characters
	Life  time.Duration // from when the agent made it
}
