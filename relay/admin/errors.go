package admin

import (
	"errors"
	"net/http"
)

// Codes of Error. They decide exit codes; never rename one.
const (
	CodeBadRequest  = "bad-request" // the command's words are wrong
	CodeNotFound    = "not-found"   // no such device, agent or host
	CodeConflict    = "conflict"    // it exists already
	CodeRefused     = "refused"     // a rule says no
	CodeUnavailable = "unavailable" // this relay cannot do it now
	CodeInternal    = "internal"    // a fault of the relay; its log says more
	CodeUnreachable = "unreachable" // no relay answers (made by Client)
)

var statusOf = map[string]int{
	CodeBadRequest:  http.StatusBadRequest,
	CodeNotFound:    http.StatusNotFound,
	CodeConflict:    http.StatusConflict,
	CodeRefused:     http.StatusForbidden,
	CodeUnavailable: http.StatusServiceUnavailable,
}

// An Error tells the owner what happened and what to do.
type Error struct {
	Message string `json:"error"`
	Hint    string `json:"hint,omitempty"` // a line of its own
	Code    string `json:"code"`
}

func (e *Error) Error() string { return e.Message }

func (e *Error) status() int {
	if s := statusOf[e.Code]; s != 0 {
		return s
	}
	return http.StatusInternalServerError
}

var errUnavailable = &Error{Code: CodeUnavailable, Message: "this relay does not offer that command"}

// asError makes an Error of any error: those that come with a hint are about
// what the owner asked for, all others are faults.
func asError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		return &Error{Code: CodeRefused, Message: err.Error(), Hint: h.Hint()}
	}
	return &Error{Code: CodeInternal, Message: err.Error(), Hint: "the relay's log may say more"}
}
