package executor

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/protocol/pki"
)

// A judgement is one command on its way through the rules.
type judgement struct {
	e     *Executor
	from  *stream
	frame mqttbridge.Frame

	env       mqttbridge.Envelope
	digest    [32]byte // of the signed body
	key       Key
	signed    bool // the signature is good: what env says is the device's own word
	action    *action
	challenge *challenge
	command   *command // from admit on

	undo []func() // gives back what was reserved, when the command does not run
}

// A verdict is a no. Nil is a yes.
type verdict struct {
	state  mqttbridge.State // "" = mqttbridge.Refused
	code   mqttbridge.Code
	reason string
	until  time.Time
	left   int
	// known is what became of the same command when it came first: it is told
	// again, and nothing runs.
	known *mqttbridge.Status
}

func refuse(code mqttbridge.Code, format string, args ...any) *verdict {
	return &verdict{code: code, reason: fmt.Sprintf(format, args...)}
}

// A rule is one thing that must hold before a command runs.
type rule struct {
	name  string
	holds func(j *judgement) *verdict
}

// judgeRules are asked in this order.
var judgeRules = []rule{
	{"frame", (*judgement).sane},             // what cannot be read is not worth a look
	{"signature", (*judgement).signature},    // by a key that the owner trusts; before this nothing in it counts
	{"device", (*judgement).device},          // the key says who it is, not the relay and not the envelope
	{"home", (*judgement).home},              // an envelope for another home is no press here
	{"id", (*judgement).admit},               // the same command again is told its state
	{"action", (*judgement).known},           // it is configured
	{"who", (*judgement).who},                // for this device
	{"value", (*judgement).value},            // with this value
	{"challenge", (*judgement).fresh},        // ours, unused, of this device and action, young; spent from here on, whatever follows
	{"lockout", (*judgement).lockout},        // before the PIN is looked at
	{"hours", (*judgement).hours},            // of the home
	{"rate", (*judgement).rate},              // before the PIN: what may not run now is not worth a guess
	{"pin", (*judgement).pin},                // counted before it is compared
	{"pulse", (*judgement).pulse},            // the press before is over
	{"broker", (*judgement).brokerConnected}, // last: nothing that is refused is recorded as running
}

// judge asks the rules. What was reserved for a command that does not run is
// given back.
func (j *judgement) judge() *verdict {
	for _, r := range j.e.rules {
		if v := r.holds(j); v != nil {
			j.giveBack()
			return v
		}
	}
	return nil
}

func (j *judgement) giveBack() {
	for _, undo := range j.undo {
		undo()
	}
	j.undo = nil
}

func (j *judgement) sane() *verdict {
	if j.frame.Command == nil || !validDevice(j.frame.Device) {
		return refuse(mqttbridge.CodeMalformed, "the relay sent something that is no command")
	}
	env, err := j.frame.Command.Envelope()
	if err != nil {
		return refuse(mqttbridge.CodeMalformed, "the command cannot be read: %v; reload the page, its program may be older than the home's", err)
	}
	j.env = env
	j.digest = sha256.Sum256(j.frame.Command.Body)
	return nil
}

func (j *judgement) signature() *verdict {
	key, ok := j.e.keys.find(j.frame.Command.Key)
	switch {
	case !ok && j.e.keys.wasWithdrawn(j.frame.Command.Key):
		return refuse(mqttbridge.CodeUntrusted, "%s was revoked at the relay, and with that its key lost the trust of the home; to trust it again type there: sallyport agent trust %s", j.frame.Device, j.frame.Device)
	case !ok:
		return refuse(mqttbridge.CodeUntrusted, "%s's key is not trusted at home yet; type there: sallyport agent trust %s", j.frame.Device, j.frame.Device)
	}
	env, err := j.frame.Command.Verify(key.SPKI)
	switch {
	case errors.Is(err, mqttbridge.ErrSignature):
		return refuse(mqttbridge.CodeSignature, "the signature does not fit: somebody changed the command on its way")
	case err != nil:
		return refuse(mqttbridge.CodeMalformed, "the command cannot be read: %v", err)
	}
	j.env, j.key, j.signed = env, key, true
	j.e.keys.used(key.ID)
	return nil
}

func (j *judgement) device() *verdict {
	if j.env.Device != j.key.Device || j.frame.Device != j.key.Device {
		return refuse(mqttbridge.CodeUntrusted, "this key is trusted for another device than the one that asks; if the device has a new name: sallyport agent trust %s", j.frame.Device)
	}
	return nil
}

func (j *judgement) home() *verdict {
	if j.env.Home != j.e.id {
		return refuse(mqttbridge.CodeMalformed, "the command is for another home, or for this one before its key was lost; reload the page")
	}
	return nil
}

func (j *judgement) known() *verdict {
	j.action = j.e.set.Load().byName[j.env.Action]
	if j.action == nil {
		return noAction(j.env.Action)
	}
	return nil
}

func noAction(name string) *verdict {
	return refuse(mqttbridge.CodeNoAction, "there is no action %q at home for this device; reload the page", clean(name, 64))
}

func (j *judgement) who() *verdict {
	if !j.action.allows(j.env.Device) {
		return noAction(j.env.Action)
	}
	return nil
}

func (j *judgement) value() *verdict {
	if _, ok := j.action.Values[j.env.Value]; ok || len(j.action.Values) == 0 && j.env.Value == "" {
		return nil
	}
	return refuse(mqttbridge.CodeMalformed, "%q is no value of %s; reload the page", clean(j.env.Value, 64), j.action.Label)
}

func (j *judgement) fresh() *verdict {
	answer, c := j.e.challenges.take(j.env.Challenge, j.env.Device, j.env.Action, j.action.Life)
	switch answer {
	case fresh:
		j.challenge = c
		return nil
	case stale:
		return j.tooLate(c)
	case used:
		return refuse(mqttbridge.CodeChallenge, "a command with this challenge came before, so this one may be a replay; press again")
	}
	return refuse(mqttbridge.CodeChallenge, "the home does not know the command's challenge: it was restarted, or somebody mixed something up; press again")
}

func (j *judgement) tooLate(c *challenge) *verdict {
	return &verdict{state: mqttbridge.Expired, reason: fmt.Sprintf("it came too late, %v after it was asked for (at most %v), and did not run; press again",
		time.Since(c.made).Round(100*time.Millisecond), j.action.Life)}
}

func (j *judgement) lockout() *verdict {
	if j.action.Confirm != mqttbridge.ConfirmPIN {
		return nil
	}
	if left := j.e.pins.left(j.env.Device); left > 0 {
		return j.locked(left)
	}
	return nil
}

func (j *judgement) locked(left time.Duration) *verdict {
	v := refuse(mqttbridge.CodeLocked, "too many wrong PINs: this device has to wait %v; at home it is unlocked with: sallyport agent trust %s", duration(left), j.env.Device)
	v.until = j.e.now().Add(left).UTC()
	return v
}

func (j *judgement) hours() *verdict {
	if len(j.action.hours) == 0 {
		return nil
	}
	now := j.e.now()
	if now.Before(pki.Floor()) {
		return refuse(mqttbridge.CodeHours, "%s has hours, and the clock at home is not set", j.action.Label)
	}
	if !j.action.hours.contain(now) {
		return refuse(mqttbridge.CodeHours, "%s works at %s only, and at home it is %s", j.action.Label, j.action.Hours, now.Format("15:04"))
	}
	return nil
}

func (j *judgement) rate() *verdict {
	wait, undo := j.e.limits.take(j.action.Name, j.action.rate)
	if undo == nil {
		v := refuse(mqttbridge.CodeRate, "%s was pressed too often (at most %s); wait %v", j.action.Label, j.action.Rate, duration(wait))
		v.until = j.e.now().Add(wait).UTC()
		return v
	}
	j.undo = append(j.undo, undo)
	return nil
}

func (j *judgement) pin() *verdict {
	if j.action.Confirm != mqttbridge.ConfirmPIN {
		return nil
	}
	if _, ok := j.e.pins.slot(j.action.Name); !ok {
		return refuse(mqttbridge.CodePINNeeded, "no PIN is set at home, so nobody can use %s; set one there with: sallyport agent pin %s", j.action.Label, j.action.Name)
	}
	if j.env.PIN == "" {
		return refuse(mqttbridge.CodePINNeeded, "%s asks for a PIN", j.action.Label)
	}
	pin, err := mqttbridge.OpenPIN(j.e.key, j.env)
	if err != nil {
		return refuse(mqttbridge.CodeMalformed, "the PIN cannot be read: %v; reload the page", err)
	}
	result, err := j.e.pins.check(j.env.Device, j.action.Name, pin)
	switch {
	case err != nil:
		j.e.log.Error("cannot check a PIN", "err", err)
		return notRecorded()
	case result.newly:
		j.e.lockedOut(j.env.Device, j.action.Label, result.locked)
		return j.locked(result.locked)
	case result.locked > 0:
		return j.locked(result.locked)
	case !result.ok:
		v := refuse(mqttbridge.CodePINWrong, "wrong PIN; %d more tries before the device is locked", result.left)
		v.left = result.left
		return v
	}
	j.e.clearAlert(lockAlert(j.env.Device))
	return nil
}

func (j *judgement) pulse() *verdict {
	if j.action.Pulse == nil {
		return nil
	}
	release, ok := j.e.holdPulse(j.action.Topic)
	if !ok {
		return refuse(mqttbridge.CodeBusy, "the press before is not over yet; wait a moment")
	}
	j.undo = append(j.undo, release)
	return nil
}

func (j *judgement) brokerConnected() *verdict {
	if !j.e.broker.Connected() {
		return noBroker()
	}
	return nil
}

func noBroker() *verdict {
	return refuse(mqttbridge.CodeBroker, "the home is there, but its MQTT broker is not connected; nothing ran")
}

func notRecorded() *verdict {
	return refuse(mqttbridge.CodeDisk, "it could not be recorded at home, so it did not run; free disk space there")
}

// still is asked once more right before publishing, after disk and PIN took
// their time: what was true when the command came may be no longer.
func (j *judgement) still() *verdict {
	key, ok := j.e.keys.find(j.key.ID)
	switch {
	case j.challenge != nil && !j.e.challenges.young(j.challenge, j.action.Life):
		return j.tooLate(j.challenge)
	case !ok || key.Device != j.env.Device:
		return refuse(mqttbridge.CodeRevoked, "the device's key lost the trust of the home before the command could run")
	case j.e.set.Load().byName[j.env.Action] != j.action:
		return refuse(mqttbridge.CodeNoAction, "%s was changed at home before the command could run; reload the page", j.action.Label)
	}
	return nil
}

// duration says a time as people do: "15 minutes", "40 seconds".
func duration(d time.Duration) string {
	for _, unit := range []struct {
		of   time.Duration
		name string
	}{{time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if d > 2*unit.of || unit.of == time.Second {
			n := int((d + unit.of - 1) / unit.of)
			if n == 1 {
				return "1 " + unit.name
			}
			return fmt.Sprint(n, " ", unit.name, "s")
		}
	}
	return ""
}
