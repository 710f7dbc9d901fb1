package mqttbridge

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// The stream "commands", which the agent opens to the relay, carries frames in
// both directions:
//
//	length  4 bytes, big endian; at most MaxFrame, MaxHomeFrame for FrameHome
//	frame   that many bytes, a JSON object, see Frame
//
// Unknown fields are skipped, frames of unknown type are handed out for the
// reader to skip: either end may be the newer one. What must be read strictly,
// the signed envelope, is bytes inside a frame.
const (
	MaxFrame     = 64 << 10
	MaxHomeFrame = 256 << 10
)

// Types of frames.
const (
	FrameHome      = "home"      // agent → relay: Home, first and whenever it changed
	FrameStatus    = "status"    // agent → relay: Status, of one command
	FrameChallenge = "challenge" // relay → agent: Seq, Device, Action. Back: Seq, Challenge, LifeMS; or Seq and Status when refused
	FrameCommand   = "command"   // relay → agent: Seq, Device, Command. Answered with FrameStatus
	FrameQuery     = "query"     // relay → agent: IDs. Answered with a FrameStatus for each
	FrameKey       = "key"       // relay → agent: Seq, Device, Key. Back: Seq, Trust; or Seq and Status when refused
	// FrameRevoked tells that the relay has revoked a device. Relay → agent:
	// Device, IDs (one, random, for each revocation). Back the same, once its
	// keys are trusted no longer and that is on disk; or with Status when it
	// cannot be written down. An agent that does not know it skips it.
	FrameRevoked = "revoked"
)

// A Frame is one message between dispatch and executor. Which fields count
// depends on Type.
type Frame struct {
	Type      string   `json:"t"`
	Seq       uint64   `json:"n,omitempty"`      // the asker's; comes back in the answer
	Device    string   `json:"device,omitempty"` // who asks, as the relay says
	Home      *Home    `json:"home,omitempty"`
	Status    *Status  `json:"status,omitempty"`
	Challenge string   `json:"challenge,omitempty"`
	LifeMS    int64    `json:"life_ms,omitempty"` // of Challenge, milliseconds
	Action    string   `json:"action,omitempty"`
	Command   *Signed  `json:"command,omitempty"`
	IDs       []string `json:"ids,omitempty"` // of commands, or of a revocation
	Key       []byte   `json:"key,omitempty"` // DER SubjectPublicKeyInfo
	Trust     Trust    `json:"trust,omitempty"`
}

// WriteFrame writes one frame with one Write call. A frame that is too large is
// refused before anything is written.
func WriteFrame(w io.Writer, f Frame) error {
	var b bytes.Buffer
	b.Write(make([]byte, 4))
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(f); err != nil {
		return fmt.Errorf("encode frame %q: %w", f.Type, err)
	}
	frame := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	n := len(frame) - 4
	if limit := frameLimit(f.Type); n > limit {
		return fmt.Errorf("frame %q takes %d bytes; at most %d are allowed: %w", f.Type, n, limit, ErrMalformed)
	}
	binary.BigEndian.PutUint32(frame, uint32(n))
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

func frameLimit(typ string) int {
	if typ == FrameHome {
		return MaxHomeFrame
	}
	return MaxFrame
}

// ReadFrame reads one frame and not one byte after it. It returns io.EOF when r
// ends between two frames and wraps io.ErrUnexpectedEOF when it ends inside
// one. After an error that wraps ErrMalformed the reader has lost its place.
// Memory is taken as bytes arrive, never more than twice as much.
func ReadFrame(r io.Reader) (Frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if err == io.EOF {
			return Frame{}, io.EOF
		}
		return Frame{}, fmt.Errorf("read frame: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 2 || n > MaxHomeFrame {
		return Frame{}, fmt.Errorf("a frame of %d bytes; at most %d are allowed: %w", n, MaxHomeFrame, ErrMalformed)
	}
	body, err := readBody(r, int(n))
	if err != nil {
		return Frame{}, fmt.Errorf("read frame: %w", err)
	}
	if body[0] != '{' { // encoding/json takes null for any struct
		return Frame{}, fmt.Errorf("the frame is no JSON object: %w", ErrMalformed)
	}
	var f Frame
	if err := json.Unmarshal(body, &f); err != nil {
		return Frame{}, fmt.Errorf("decode frame: %w: %w", ErrMalformed, err)
	}
	if limit := frameLimit(f.Type); len(body) > limit {
		return Frame{}, fmt.Errorf("frame %q takes %d bytes; at most %d are allowed: %w", clip(f.Type), len(body), limit, ErrMalformed)
	}
	return f, nil
}

// readBody reads n bytes. A peer that announces much and sends nothing makes it
// take little.
func readBody(r io.Reader, n int) ([]byte, error) {
	const first = 4 << 10
	body := make([]byte, 0, min(n, first))
	for len(body) < n {
		if len(body) == cap(body) {
			grown := make([]byte, len(body), min(n, 2*cap(body)))
			copy(grown, body)
			body = grown
		}
		k, err := io.ReadFull(r, body[len(body):cap(body)])
		body = body[:len(body)+k]
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
	}
	return body, nil
}
