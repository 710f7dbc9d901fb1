package protocol

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
)

// MaxMessage is the largest control message: the type byte and its JSON,
// without the length in front.
const MaxMessage = 64 << 10

// ErrMalformed is wrapped by the errors of every decoder here when the bytes
// cannot be what the wire allows, as opposed to a failing connection. The
// reader has lost its place: close with CodeProtocol.
var ErrMalformed = errors.New("malformed frame")

// An UnknownTypeError tells of a whole control message of a type that this
// version does not know. It has been consumed; reading may go on.
type UnknownTypeError struct{ Type MessageType }

func (e *UnknownTypeError) Error() string {
	return fmt.Sprintf("control message of unknown type %d", e.Type)
}

// decoders has one line for each message type.
var decoders = map[MessageType]func([]byte) (Message, error){
	TypeHello:      decode[Hello],
	TypeWelcome:    decode[Welcome],
	TypeRegister:   decode[Register],
	TypeRegistered: decode[Registered],
	TypeGoAway:     decode[GoAway],
	TypePing:       decode[Ping],
	TypePong:       decode[Pong],
	TypeRenew:      decode[Renew],
	TypeRenewed:    decode[Renewed],
	TypeJoin:       decode[Join],
	TypeJoined:     decode[Joined],
	TypeNames:      decode[Names],
	TypeNamed:      decode[Named],
	TypeSetTXT:     decode[SetTXT],
	TypeTXTSet:     decode[TXTSet],
}

// WriteMessage writes one control message with one Write call. A message that
// is too large is refused before anything is written.
func WriteMessage(w io.Writer, m Message) error {
	if v := reflect.ValueOf(m); !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return errors.New("write control message: there is none")
	}
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode control message of type %d: %w", m.Type(), err)
	}
	n := 1 + len(body)
	if n > MaxMessage {
		return fmt.Errorf("control message of type %d takes %d bytes; at most %d are allowed", m.Type(), n, MaxMessage)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+n), uint32(n))
	frame = append(frame, byte(m.Type()))
	frame = append(frame, body...)
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("write control message: %w", err)
	}
	return nil
}

// ReadMessage reads one control message, as a value (Hello, not *Hello), and
// not one byte after it. It returns io.EOF when r ends between two messages,
// io.ErrUnexpectedEOF when it ends inside one, and *UnknownTypeError for a
// message that can be skipped.
func ReadMessage(r io.Reader) (Message, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, readError("control message", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > MaxMessage {
		return nil, fmt.Errorf("control message of %d bytes, at most %d are allowed: %w", n, MaxMessage, ErrMalformed)
	}
	frame := make([]byte, n)
	if err := readRest(r, frame); err != nil {
		return nil, readError("control message", err)
	}
	typ := MessageType(frame[0])
	dec, ok := decoders[typ]
	if !ok {
		return nil, &UnknownTypeError{Type: typ}
	}
	m, err := dec(frame[1:])
	if err != nil {
		return nil, fmt.Errorf("control message of type %d: %w: %w", typ, ErrMalformed, err)
	}
	return m, nil
}

func decode[M Message](body []byte) (Message, error) {
	// encoding/json takes null for any struct; a message is always an object.
	if len(body) == 0 || body[0] != '{' {
		return nil, errors.New("not a JSON object")
	}
	var m M
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, err
	}
	return m, nil
}

// readRest fills b, which is inside a frame: an end here is never a clean one.
func readRest(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readError leaves a clean io.EOF bare, since callers compare it.
func readError(what string, err error) error {
	if err == io.EOF {
		return io.EOF
	}
	return fmt.Errorf("read %s: %w", what, err)
}
