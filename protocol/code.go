package protocol

import "strconv"

// A Code says why a stream or a session ended, in a number that travels:
// in Result, in GoAway, as a QUIC application error code and in the end
// records of the TCP transport. Numbers are never reused.
type Code uint32

const (
	CodeOK             Code = 0  // a clean end
	CodeInternal       Code = 1  // a fault on our side; the log there says more
	CodeProtocol       Code = 2  // the peer sent what the wire does not allow
	CodeUnknownService Code = 3  // the agent does not offer this service (any more)
	CodeBackendDown    Code = 4  // nothing answers at the service's address
	CodeBackendTLS     Code = 5  // the backend answers, but its TLS does not verify
	CodeRefused        Code = 6  // policy says no
	CodeAborted        Code = 7  // the other end of the splice was reset; never a clean end
	CodeGoingAway      Code = 8  // a planned restart; see GoAway
	CodeReplaced       Code = 9  // a newer session of the same agent key took over
	CodeRevoked        Code = 10 // the agent or the device was revoked
	CodeIdle           Code = 11 // no byte for longer than the idle limit
	CodeOverload       Code = 12 // a budget (memory, streams) was used up
	CodeTimeout        Code = 13 // the peer did not answer in time
	CodeVersion        Code = 14 // no protocol version in common
	CodeOffline        Code = 15 // the agent has no session now
)

var codeNames = [...]string{
	"ok", "internal", "protocol", "unknown-service", "backend-down", "backend-tls", "refused", "aborted",
	"going-away", "replaced", "revoked", "idle", "overload", "timeout", "version", "offline",
}

// String returns the code's name as the logs spell it, or "code-N" for one
// that this version does not know.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return "code-" + strconv.FormatUint(uint64(c), 10)
}
