package protocol

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// MaxDeviceFrame bounds a DeviceFrame: a list of some 20,000 devices.
const MaxDeviceFrame = 4 << 20

// A DeviceFrame is what goes over a stream of FeatureDevices, both ways, each
// with a length of 4 bytes in front. The agent says first what it has; the relay
// sends a frame at once and on every change, within a second of a revocation.
type DeviceFrame struct {
	// Have is the number of the newest list that the agent keeps; from the agent
	// only, after every list that it took.
	Have uint64 `json:"have,omitempty"`
	// CA is the relay's device CA, DER.
	CA []byte `json:"ca,omitempty"`
	// Succession is the old CA's signature that CA follows it (package pki); empty
	// when CA is the only one that there ever was.
	Succession []byte `json:"succession,omitempty"`
	// List is the signed list of devices (package pki).
	List []byte `json:"list,omitempty"`
}

// WriteDeviceFrame writes a frame with one Write call.
func WriteDeviceFrame(w io.Writer, f DeviceFrame) error {
	body, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode device frame: %w", err)
	}
	if len(body) > MaxDeviceFrame {
		return fmt.Errorf("device frame of %d bytes; at most %d are allowed", len(body), MaxDeviceFrame)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	if _, err := w.Write(append(frame, body...)); err != nil {
		return fmt.Errorf("write device frame: %w", err)
	}
	return nil
}

// ReadDeviceFrame reads a frame and not one byte after it. Memory grows with what
// arrived. It returns io.EOF when r ends between two frames, and an error that
// wraps ErrMalformed for bytes that are no frame.
func ReadDeviceFrame(r io.Reader) (DeviceFrame, error) { return readDeviceFrame(r, MaxDeviceFrame) }

// ReadDeviceHave is ReadDeviceFrame for the relay: an agent sends a number and
// nothing else, in a frame of at most 4 KiB.
func ReadDeviceHave(r io.Reader) (have uint64, err error) {
	f, err := readDeviceFrame(r, 4<<10)
	return f.Have, err
}

func readDeviceFrame(r io.Reader, most uint32) (DeviceFrame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return DeviceFrame{}, readError("device frame", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > most {
		return DeviceFrame{}, fmt.Errorf("device frame of %d bytes, at most %d are allowed: %w", n, most, ErrMalformed)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(body) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return DeviceFrame{}, readError("device frame", err)
	}
	var f DeviceFrame
	if len(body) == 0 || body[0] != '{' {
		return DeviceFrame{}, fmt.Errorf("device frame: %w: not a JSON object", ErrMalformed)
	}
	if err := json.Unmarshal(body, &f); err != nil {
		return DeviceFrame{}, fmt.Errorf("device frame: %w: %w", ErrMalformed, err)
	}
	return f, nil
}
