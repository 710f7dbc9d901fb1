package panel

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	maxBody     = 16 << 10         // of a request; a signed command is at most 4 KiB before base64
	homeTimeout = 10 * time.Second // for what the home answers; a challenge is rarely good for longer
	sendTimeout = 15 * time.Second // for a command to be on disk
)

// inventory is the answer of GET /api/homes and the first event.
type inventory struct {
	Device  string            `json:"device"`
	Version string            `json:"version"` // of the page: one that runs another one loads itself again
	Homes   []mqttbridge.Home `json:"homes"`
}

func (p *Panel) inventory(device string) inventory {
	homes := p.cfg.Backend.Homes(device)
	if homes == nil {
		homes = []mqttbridge.Home{}
	}
	return inventory{Device: device, Version: p.assets.version, Homes: homes}
}

func (p *Panel) homes(w http.ResponseWriter, r *http.Request) {
	answer(w, http.StatusOK, p.inventory(device(r)))
}

func (p *Panel) challenge(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Home   string `json:"home"`
		Action string `json:"action"`
	}
	if f := read(w, r, &in); f != nil {
		f.write(w)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), homeTimeout)
	defer cancel()
	c, err := p.cfg.Backend.Challenge(ctx, device(r), in.Home, in.Action)
	if err != nil {
		p.judge(r, err, "ask for a challenge").write(w)
		return
	}
	answer(w, http.StatusOK, struct {
		Challenge string `json:"challenge"`
		LifeMS    int64  `json:"life_ms"`
	}{c.Value, c.Life.Milliseconds()})
}

func (p *Panel) offerKey(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Home string `json:"home"`
		Key  []byte `json:"key"`
	}
	if f := read(w, r, &in); f != nil {
		f.write(w)
		return
	}
	if _, err := mqttbridge.KeyID(in.Key); err != nil {
		fault{status: http.StatusBadRequest, Error: err.Error(), Code: mqttbridge.CodeMalformed}.write(w)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), homeTimeout)
	defer cancel()
	trust, err := p.cfg.Backend.OfferKey(ctx, device(r), in.Home, in.Key)
	if err != nil {
		p.judge(r, err, "offer a key").write(w)
		return
	}
	answer(w, http.StatusOK, struct {
		Trust mqttbridge.Trust `json:"trust"`
	}{trust})
}

// send takes a command. Once it is read, it goes its way even if the visitor
// hangs up: half-sent would be the one end that nobody can tell.
func (p *Panel) send(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Home    string            `json:"home"`
		Command mqttbridge.Signed `json:"command"`
	}
	if f := read(w, r, &in); f != nil {
		f.write(w)
		return
	}
	st := mqttbridge.Status{Home: in.Home, Action: r.PathValue("action"), Device: device(r), Created: p.cfg.Now()}
	e, err := in.Command.Envelope()
	if err != nil {
		p.refuse(w, st, mqttbridge.CodeMalformed, "The command cannot be read: "+err.Error())
		return
	}
	st.ID = e.ID
	if why := mismatch(r, e); why != "" {
		p.refuse(w, st, mqttbridge.CodeMalformed, why)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), sendTimeout)
	defer cancel()
	got, err := p.cfg.Backend.Send(ctx, st.Device, in.Home, in.Command)
	switch f := (fault{}); {
	case err != nil:
		f = p.judge(r, err, "send a command")
		f.sayWait(w)
		p.refuse(w, st, f.Code, f.Error)
	case got.State == mqttbridge.Refused:
		answer(w, statusOf(got.Code), got)
	default:
		answer(w, http.StatusAccepted, got)
	}
}

// mismatch says where request and envelope contradict each other. The home
// judges again what is signed; this is for whoever builds a client.
func mismatch(r *http.Request, e mqttbridge.Envelope) string {
	switch key := r.Header.Get("Idempotency-Key"); {
	case e.Action != r.PathValue("action"):
		return "The command is signed for another action than the address says."
	case e.Device != device(r):
		return "The command is signed for another device than the certificate is of."
	case key != "" && key != e.ID:
		return "Idempotency-Key must be the id in the command."
	}
	return ""
}

// refuse answers with the end of a command that was not taken.
func (p *Panel) refuse(w http.ResponseWriter, st mqttbridge.Status, code mqttbridge.Code, reason string) {
	st.State, st.Final, st.Code, st.Reason, st.At = mqttbridge.Refused, true, code, reason, p.cfg.Now()
	answer(w, statusOf(code), st)
}

func (p *Panel) command(w http.ResponseWriter, r *http.Request) {
	st, ok := p.cfg.Backend.Command(device(r), r.PathValue("id"))
	if !ok {
		fault{status: http.StatusNotFound, Error: "no such command of this device", Code: "no-command"}.write(w)
		return
	}
	answer(w, http.StatusOK, st)
}

// A fault is an answer other than the wanted one.
type fault struct {
	status int
	Error  string          `json:"error"`
	Code   mqttbridge.Code `json:"code,omitempty"`
	wait   time.Duration   // until trying again can help; 0: nobody knows
}

func (f fault) write(w http.ResponseWriter) {
	f.sayWait(w)
	answer(w, f.status, f)
}

// statusOf is the HTTP status of a refusal.
func statusOf(code mqttbridge.Code) int {
	switch code {
	case mqttbridge.CodeMalformed:
		return http.StatusBadRequest
	case mqttbridge.CodeNoAction:
		return http.StatusNotFound
	case mqttbridge.CodeUntrusted, mqttbridge.CodeSignature, mqttbridge.CodePINNeeded, mqttbridge.CodePINWrong,
		mqttbridge.CodeHours, mqttbridge.CodeRevoked:
		return http.StatusForbidden
	case mqttbridge.CodeLocked:
		return http.StatusLocked
	case mqttbridge.CodeRate, mqttbridge.CodeBusy:
		return http.StatusTooManyRequests
	case mqttbridge.CodeOffline, mqttbridge.CodeBroker, mqttbridge.CodeDisk:
		return http.StatusServiceUnavailable
	case mqttbridge.CodeInternal:
		return http.StatusInternalServerError
	}
	return http.StatusConflict // challenge, duplicate, and what later versions say
}

// sayWait sets Retry-After (RFC 9110 §10.2.3).
func (f fault) sayWait(w http.ResponseWriter) {
	if f.wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(f.wait.Seconds())+1))
	}
}

// judge makes an answer of an error of the backend. What is nobody's mistake
// but ours is logged and not told.
func (p *Panel) judge(r *http.Request, err error, doing string) fault {
	if no, ok := errors.AsType[*mqttbridge.Refusal](err); ok {
		return fault{status: statusOf(no.Code), Error: no.Reason, Code: no.Code, wait: no.Until.Sub(p.cfg.Now())}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fault{status: http.StatusServiceUnavailable, Error: "The home did not answer in time.", Code: mqttbridge.CodeOffline}
	}
	if r.Context().Err() == nil { // who hung up reads no answer
		p.log.Error("command page: call failed", "doing", doing, "device", device(r), "err", err)
	}
	return fault{status: http.StatusInternalServerError, Error: "The relay could not do this. Its log has the reason.", Code: mqttbridge.CodeInternal}
}

// read decodes a JSON body.
func read(w http.ResponseWriter, r *http.Request, into any) *fault {
	// A form of another site can send text/plain, but not this.
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return &fault{status: http.StatusUnsupportedMediaType, Error: "the body must be application/json", Code: mqttbridge.CodeMalformed}
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return &fault{status: http.StatusRequestEntityTooLarge, Error: "the body is too large", Code: mqttbridge.CodeMalformed}
	}
	if err != nil {
		return &fault{status: http.StatusBadRequest, Error: "the body did not arrive", Code: mqttbridge.CodeMalformed}
	}
	if err := json.Unmarshal(data, into); err != nil {
		return &fault{status: http.StatusBadRequest, Error: "the body is not the JSON that is expected here", Code: mqttbridge.CodeMalformed}
	}
	return nil
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

func noSuchCall(w http.ResponseWriter, _ *http.Request) {
	fault{status: http.StatusNotFound, Error: "there is no such call", Code: "no-call"}.write(w)
}

func noSuchPage(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "There is nothing here. The command page is at /.", http.StatusNotFound)
}

func (p *Panel) page(w http.ResponseWriter, r *http.Request) {
	p.assets.page.write(w, r, http.StatusOK)
}

// stranger answers a visitor without a certificate. The status is 401, not 403:
// iOS takes 403 for "this certificate is bad".
func (p *Panel) stranger(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Connection", "close") // the next handshake may show a certificate
	p.assets.stranger.write(w, r, http.StatusUnauthorized)
}
