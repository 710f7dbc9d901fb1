package est

import (
	"context"
	"errors"
	"net/http"

	"github.com/sallyport/sallyport/relay/enroll"
)

// A refusal is an error that strangers may hear of, and what they hear. Errors
// themselves are for the owner's log: they name devices, files and addresses.
type refusal struct {
	is     error
	status int
	text   string
}

// refusals are asked in this order: a name that is taken is also a form error.
var refusals = []refusal{
	{enroll.ErrCode, http.StatusUnauthorized, "the code is wrong, used or expired: ask the owner for a new one"},
	{enroll.ErrBlocked, http.StatusTooManyRequests, "too many wrong tries from this address, try again later"},
	{enroll.ErrNameTaken, http.StatusConflict, "the name belongs to another device: ask for another one, or ask the owner"},
	{enroll.ErrKeyUsed, http.StatusConflict, "this key was certified before: make a new key and request"},
	{enroll.ErrNotAllowed, http.StatusForbidden, "this certificate cannot be renewed: enrol anew with a code from the owner"},
	{enroll.ErrForm, http.StatusBadRequest, "the request is not in order: it needs a key of its own, and a device name of letters, digits and hyphens as common name"},
	{enroll.ErrFull, http.StatusServiceUnavailable, "too many requests wait for the owner, try again later"},
	{context.Canceled, http.StatusServiceUnavailable, "the relay could not answer in time, try again"},
	{context.DeadlineExceeded, http.StatusServiceUnavailable, "the relay could not answer in time, try again"},
}

// refuse answers an error of Apply or Renew.
func (s *server) refuse(w http.ResponseWriter, err error) {
	for _, r := range refusals {
		if !errors.Is(err, r.is) {
			continue
		}
		s.cfg.Logger.Debug("est request refused", "err", err)
		switch r.status {
		case http.StatusUnauthorized:
			w.Header().Set("WWW-Authenticate", challenge)
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			wait := retryAfter
			if b, ok := errors.AsType[*enroll.BlockedError](err); ok {
				wait = b.RetryAfter()
			}
			w.Header().Set("Retry-After", seconds(wait))
		}
		http.Error(w, r.text, r.status)
		return
	}
	s.fail(w, err)
}

// fail answers an error that is nobody's business but the owner's.
func (s *server) fail(w http.ResponseWriter, err error) {
	s.cfg.Logger.Error("est answer failed", "err", err)
	http.Error(w, "the relay could not answer, its log says why", http.StatusInternalServerError)
}
