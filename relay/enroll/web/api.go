package web

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/enroll"
)

const (
	maxBody     = 64 << 10         // of a request; an RSA-4096 CSR is 2.4 KiB of base64
	readTimeout = 15 * time.Second // for the body
)

// invitation is the answer of POST /api/code.
type invitation struct {
	Name    string    `json:"name"`
	Approve bool      `json:"approve"`
	Hosts   []string  `json:"hosts"`
	Until   time.Time `json:"until,omitzero"`
	Expires time.Time `json:"expires,omitzero"`
}

// request is the state of an application as its owner's device sees it.
type request struct {
	ID      string       `json:"id"`
	State   enroll.State `json:"state"`
	Name    string       `json:"name"`
	Words   string       `json:"words"`
	Expires time.Time    `json:"expires,omitzero"`
	Cert    []byte       `json:"cert,omitempty"`
	CA      [][]byte     `json:"ca,omitempty"`
}

func (p *Pages) request(q enroll.Request) request {
	out := request{ID: q.ID, State: q.State, Name: q.Name, Words: q.Words}
	switch q.State {
	case enroll.Pending:
		out.Expires = q.Expires
	case enroll.Issued:
		out.Cert, out.CA = q.Cert, raw(p.cfg.CA())
	}
	return out
}

func raw(certs []*x509.Certificate) [][]byte {
	out := make([][]byte, 0, len(certs))
	for _, c := range certs {
		out = append(out, c.Raw)
	}
	return out
}

// A fault is an answer other than the wanted one.
type fault struct {
	status int
	Error  string `json:"error"`
	Hint   string `json:"hint,omitempty"`
	Retry  int    `json:"retry_after,omitempty"` // seconds
}

func bad(status int, text, hint string) *fault {
	return &fault{status: status, Error: text, Hint: hint}
}

func (p *Pages) lookAtCode(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Code string `json:"code"`
	}
	if f := read(w, r, &in); f != nil {
		f.write(w)
		return
	}
	inv, err := p.cfg.Desk.Look(r.Context(), p.cfg.Source(r), in.Code)
	if err != nil {
		p.judge(err, "look at a code").write(w)
		return
	}
	hosts := inv.Hosts
	if hosts == nil {
		hosts = []string{}
	}
	answer(w, http.StatusOK, invitation{Name: inv.Name, Approve: inv.Approve, Hosts: hosts, Until: inv.Until, Expires: inv.Expires})
}

func (p *Pages) apply(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Code   string `json:"code"`
		Name   string `json:"name"`
		CSR    []byte `json:"csr"`
		Ticket string `json:"ticket"`
	}
	f := read(w, r, &in)
	if f == nil && !validTicket(in.Ticket) {
		f = bad(http.StatusBadRequest, "the ticket is missing or too weak", "Use 22 to 128 random letters, digits, hyphens or underscores.")
	}
	if f == nil {
		f = checkCSR(in.CSR)
	}
	if f != nil {
		f.write(w)
		return
	}
	q, err := p.cfg.Desk.Apply(r.Context(), enroll.Application{
		Code: in.Code, Name: in.Name, CSR: in.CSR, Ticket: in.Ticket,
		Source: p.cfg.Source(r), Via: via(r), Agent: r.UserAgent(),
	})
	if err != nil {
		p.judge(err, "take a request").write(w)
		return
	}
	answer(w, http.StatusCreated, p.request(q))
}

func (p *Pages) status(w http.ResponseWriter, r *http.Request) {
	q, f := p.find(r)
	if f != nil {
		f.write(w)
		return
	}
	answer(w, http.StatusOK, p.request(q))
}

// find returns the request in the path, if the ticket in the header is its own.
func (p *Pages) find(r *http.Request) (enroll.Request, *fault) {
	scheme, ticket, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || !validTicket(ticket) {
		return enroll.Request{}, bad(http.StatusUnauthorized, "the request's ticket is missing", "Send it as: Authorization: Bearer TICKET")
	}
	q, err := p.cfg.Desk.Status(r.Context(), p.cfg.Source(r), r.PathValue("id"), ticket)
	if err != nil {
		return enroll.Request{}, p.judge(err, "look at a request")
	}
	return q, nil
}

// checkCSR spends no code on a request that cannot be certified.
func checkCSR(der []byte) *fault {
	if _, err := pki.ParseCSR(der); err != nil {
		text, hint, _ := strings.Cut(err.Error(), "\n")
		return bad(http.StatusBadRequest, text, hint)
	}
	return nil
}

// validTicket keeps guessable tickets out, and characters that a header or a
// log would mangle.
func validTicket(s string) bool {
	return len(s) >= 22 && len(s) <= 128 &&
		strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

// via tells our own command line from browsers, for the owner's list.
func via(r *http.Request) string {
	if strings.HasPrefix(r.UserAgent(), "sallyport") {
		return enroll.ViaCLI
	}
	return enroll.ViaBrowser
}

// read decodes a JSON body.
func read(w http.ResponseWriter, r *http.Request, into any) *fault {
	// A form of another site can send text/plain, but not this.
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return bad(http.StatusUnsupportedMediaType, "the body must be application/json", "")
	}
	data, f := readAll(w, r)
	if f != nil {
		return f
	}
	if err := json.Unmarshal(data, into); err != nil {
		// Not the decoder's words: they may quote the body, which holds a code.
		return bad(http.StatusBadRequest, "the body is not the JSON that is expected here", "")
	}
	return nil
}

// readAll reads a body within bounds of size; harden bounds the time.
func readAll(w http.ResponseWriter, r *http.Request) ([]byte, *fault) {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, bad(http.StatusRequestEntityTooLarge, "the body is too large", "")
	}
	if err != nil {
		return nil, bad(http.StatusBadRequest, "the body did not arrive", "Try again.")
	}
	return data, nil
}

// judge makes an answer of an error of the desk. What is nobody's mistake but
// ours is logged and not told.
func (p *Pages) judge(err error, doing string) *fault {
	text, hint, _ := strings.Cut(err.Error(), "\n")
	f := bad(http.StatusInternalServerError, text, hint)
	if wait := (interface{ RetryAfter() time.Duration })(nil); errors.As(err, &wait) {
		f.Retry = max(1, int((wait.RetryAfter()+time.Second-1)/time.Second))
	}
	switch {
	case errors.Is(err, enroll.ErrBlocked):
		f.status, f.Retry = http.StatusTooManyRequests, max(1, f.Retry)
	case errors.Is(err, enroll.ErrCode):
		f.status = http.StatusForbidden
	case errors.Is(err, enroll.ErrUnknown):
		f.status = http.StatusNotFound
	case errors.Is(err, enroll.ErrNameTaken):
		f.status = http.StatusConflict
	case errors.Is(err, enroll.ErrForm): // after ErrNameTaken, which may be one
		f.status = http.StatusBadRequest
	case errors.Is(err, enroll.ErrFull):
		f.status, f.Retry = http.StatusServiceUnavailable, max(3600, f.Retry)
	default:
		if !errors.Is(err, context.Canceled) { // who hung up reads no answer
			p.log.Error("enrolment failed", "doing", doing, "err", err)
		}
		f.Error, f.Hint = "the relay could not do this", "Try again in a minute. If it stays like this, tell the owner: the relay's log has the reason."
	}
	return f
}

func (f *fault) write(w http.ResponseWriter) {
	if f.Retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(f.Retry))
	}
	answer(w, f.status, f)
}

func answer(w http.ResponseWriter, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "this answer is broken", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(data)+1))
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n'))
}

func notFoundAPI(w http.ResponseWriter, r *http.Request) {
	bad(http.StatusNotFound, "there is no such call", "").write(w)
}
