package dispatch

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	answerTime  = 10 * time.Second // how long a home may take for an answer
	queryIDs    = 200              // in one frame
	queryMax    = 1000             // ends without certainty that are asked for, newest first
	maxLife     = 60 * time.Second // of a challenge
	pendingMax  = 256              // questions to one home that wait for an answer
	maxWordSize = 64
)

// Challenge asks a home for a challenge for one action of a device. It takes as
// long as the way there and back, at most 10 s or until ctx ends. The error is
// a *Refusal.
func (d *Dispatcher) Challenge(ctx context.Context, device, home, action string) (mqttbridge.Challenge, error) {
	if action == "" {
		return mqttbridge.Challenge{}, refuse(mqttbridge.CodeNoAction, "no action was named")
	}
	f, r := d.ask(ctx, device, home, action, mqttbridge.Frame{Type: mqttbridge.FrameChallenge, Device: device, Action: action})
	if r != nil {
		return mqttbridge.Challenge{}, r
	}
	life := time.Duration(f.LifeMS) * time.Millisecond
	if !isToken(f.Challenge, maxWordSize) || f.LifeMS <= 0 || f.LifeMS > maxLife.Milliseconds() {
		return mqttbridge.Challenge{}, refuse(mqttbridge.CodeInternal, "%s answered with no usable challenge; see its log", home)
	}
	return mqttbridge.Challenge{Value: f.Challenge, Life: life}, nil
}

// OfferKey tells a home the signing key of a device (SPKI of an ECDSA P-256
// key) and returns what it thinks of it. The error is a *Refusal.
func (d *Dispatcher) OfferKey(ctx context.Context, device, home string, spki []byte) (mqttbridge.Trust, error) {
	if _, err := mqttbridge.KeyID(spki); err != nil {
		return "", refuse(mqttbridge.CodeMalformed, "the key cannot be used: %v", err)
	}
	f, r := d.ask(ctx, device, home, "", mqttbridge.Frame{Type: mqttbridge.FrameKey, Device: device, Key: spki})
	if r != nil {
		return "", r
	}
	switch f.Trust {
	case mqttbridge.TrustYes, mqttbridge.TrustPending, mqttbridge.TrustNo:
		return f.Trust, nil
	}
	return "", refuse(mqttbridge.CodeInternal, "%s did not say whether it trusts the key; see its log", home)
}

// ask sends a question to a home and waits for the answer.
func (d *Dispatcher) ask(ctx context.Context, device, name, action string, f mqttbridge.Frame) (mqttbridge.Frame, *Refusal) {
	if !d.cfg.Allowed(device) {
		return mqttbridge.Frame{}, refusalRevoked()
	}
	st, g, r := d.beginAsking(device, name, action)
	if r != nil {
		return mqttbridge.Frame{}, r
	}
	defer d.endAsking(g)
	reply, ok := st.expect(&f)
	if !ok || !st.queue(outgoing{frame: f}) {
		st.forget(f.Seq)
		return mqttbridge.Frame{}, refuse(mqttbridge.CodeBusy, "%s is asked too much at once; try again in a moment", name)
	}
	defer st.forget(f.Seq)
	timer := time.NewTimer(answerTime)
	defer timer.Stop()
	select {
	case got := <-reply:
		if s := got.Status; s != nil {
			return mqttbridge.Frame{}, &Refusal{Code: cleanCode(s.Code), Reason: clip(cleanText(s.Reason), maxReason)}
		}
		return got, nil
	case <-g.ended:
		return mqttbridge.Frame{}, refusalRevoked()
	case <-st.ended:
		return mqttbridge.Frame{}, refusalOffline(name)
	case <-timer.C:
		return mqttbridge.Frame{}, refuse(mqttbridge.CodeOffline, "%s does not answer; try again in a moment", name)
	case <-ctx.Done():
		return mqttbridge.Frame{}, refuse(mqttbridge.CodeOffline, "the request ended before %s answered", name)
	}
}

func (d *Dispatcher) beginAsking(device, name, action string) (*stream, *guest, *Refusal) {
	d.mu.Lock()
	defer d.unlock()
	g := d.guest(device)
	if !g.asks.take(d.now()) || g.asking >= askingMax {
		return nil, nil, refuse(mqttbridge.CodeBusy, "too many questions at once; wait a moment")
	}
	h, _, r := d.find(device, name, action)
	if r != nil {
		return nil, nil, r
	}
	st := h.current()
	if st == nil {
		return nil, nil, refusalOffline(name)
	}
	g.asking++
	return st, g, nil
}

func (d *Dispatcher) endAsking(g *guest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g.asking--
}

// expect numbers a question and returns where its answer comes.
func (st *stream) expect(f *mqttbridge.Frame) (<-chan mqttbridge.Frame, bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.asked) >= pendingMax {
		return nil, false
	}
	st.seq++
	f.Seq = st.seq
	reply := make(chan mqttbridge.Frame, 1)
	st.asked[f.Seq] = question{f.Type, reply}
	return reply, true
}

func (st *stream) nextSeq() uint64 {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.seq++
	return st.seq
}

func (st *stream) forget(seq uint64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	delete(st.asked, seq)
}

// answer passes an answer on. Nobody waits for one that was not asked for.
func (st *stream) answer(f mqttbridge.Frame) {
	st.mu.Lock()
	q, ok := st.asked[f.Seq]
	if ok && q.kind == f.Type {
		delete(st.asked, f.Seq)
	}
	st.mu.Unlock()
	if ok && q.kind == f.Type {
		q.reply <- f // has room for one, and only one comes
	}
}

// A question waits for a frame of its own kind.
type question struct {
	kind  string
	reply chan<- mqttbridge.Frame
}

// askAbout asks a home what became of commands that no stream is at work on:
// those that were on their way when a stream or the relay ended, and those that
// were given up as unknown. It wants d.mu.
func (d *Dispatcher) askAbout(h *home) {
	st := h.current()
	if st == nil {
		return
	}
	var list []*command
	for _, c := range d.commands.unsure {
		if c.agent == h.agent.ID && c.asked != st {
			list = append(list, c)
		}
	}
	for _, c := range d.commands.open {
		if c.agent == h.agent.ID && c.asked != st && c.signed == nil && c.stream == nil {
			list = append(list, c)
		}
	}
	h.unasked = false
	slices.SortFunc(list, func(a, b *command) int { return b.status.Created.Compare(a.status.Created) })
	list = list[:min(len(list), queryMax)]
	for len(list) > 0 {
		n := min(len(list), queryIDs)
		f := mqttbridge.Frame{Type: mqttbridge.FrameQuery}
		for _, c := range list[:n] {
			f.IDs = append(f.IDs, c.status.ID)
		}
		if !st.queue(outgoing{frame: f}) {
			h.unasked = true // the next sweep asks again
			return
		}
		for _, c := range list[:n] {
			c.asked = st
		}
		list = list[n:]
	}
}

// noteKey audits that a home came with another command key than before: the
// owner set it up anew, or somebody took its place. It wants d.mu.
func (d *Dispatcher) noteKey(h *home, offer mqttbridge.Home) {
	if h.shot != nil && h.shot.home.ID != offer.ID {
		d.note("home.key-changed", slog.String("agent", h.agent.Name), slog.String("before", h.shot.home.ID), slog.String("now", offer.ID))
	}
}
