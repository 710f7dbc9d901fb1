package cms

import (
	"errors"
	"fmt"
)

// Apple's and Microsoft's clients write BER as it streams out: indefinite
// lengths, octet strings in pieces. normalize turns that into DER, so that
// everything behind it reads one form.

// maxDepth bounds the nesting. A signed message has eight levels, a
// certificate in it six more.
const maxDepth = 32

var errBER = errors.New("its encoding is broken or cut off")

// normalize returns the one element that in holds with definite, shortest
// lengths and octet strings in one piece. Its cost is bounded by maxDepth
// times the size.
func normalize(in []byte) ([]byte, error) {
	out, rest, err := appendElement(make([]byte, 0, len(in)), in, 0)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("%d bytes follow its end", len(rest))
	}
	return out, nil
}

const (
	bitConstructed     = 0x20
	tagOctets          = 0x04
	tagOctetsInPieces  = tagOctets | bitConstructed
	tagNumberFollows   = 0x1f // more bytes of tag follow: nothing here has such
	lengthIsIndefinite = 0x80
)

// appendElement appends the first element of in to out.
func appendElement(out, in []byte, depth int) (_, rest []byte, err error) {
	if depth > maxDepth {
		return nil, nil, fmt.Errorf("it is nested more than %d levels deep", maxDepth)
	}
	if len(in) < 2 || in[0]&tagNumberFollows == tagNumberFollows || in[0] == 0 {
		return nil, nil, errBER
	}
	tag := in[0]
	constructed := tag&bitConstructed != 0
	if in[1] == lengthIsIndefinite {
		if !constructed {
			return nil, nil, errBER
		}
		return appendPieces(out, tag, in[2:], true, depth)
	}
	size, in, err := readLength(in[1:])
	if err != nil {
		return nil, nil, err
	}
	if !constructed {
		return append(appendHeader(out, tag, size), in[:size]...), in[size:], nil
	}
	out, _, err = appendPieces(out, tag, in[:size], false, depth)
	return out, in[size:], err
}

// appendPieces appends a constructed element whose pieces stand in in: up to
// its end, or to the end-of-contents mark.
func appendPieces(out []byte, tag byte, in []byte, untilMark bool, depth int) (_, rest []byte, err error) {
	var inner []byte
	join := tag == tagOctetsInPieces
	for {
		if untilMark && len(in) >= 2 && in[0] == 0 && in[1] == 0 {
			in = in[2:]
			break
		}
		if !untilMark && len(in) == 0 {
			break
		}
		before := len(inner)
		if inner, in, err = appendElement(inner, in, depth+1); err != nil {
			return nil, nil, err
		}
		if join {
			if inner[before] != tagOctets {
				return nil, nil, errBER
			}
			inner = append(inner[:before], contentOf(inner[before:])...)
		}
	}
	if join {
		tag = tagOctets
	}
	return append(appendHeader(out, tag, len(inner)), inner...), in, nil
}

// readLength reads a definite length and makes sure that so much is there.
func readLength(in []byte) (size int, rest []byte, err error) {
	size, in = int(in[0]), in[1:]
	if size > 0x80 {
		count := size & 0x7f
		if count > 4 || len(in) < count {
			return 0, nil, errBER
		}
		size = 0
		for _, b := range in[:count] {
			if size > MaxBytes { // before it could overflow
				return 0, nil, errBER
			}
			size = size<<8 | int(b)
		}
		in = in[count:]
	}
	if size > len(in) {
		return 0, nil, errBER
	}
	return size, in, nil
}

func appendHeader(out []byte, tag byte, size int) []byte {
	switch {
	case size < 0x80:
		return append(out, tag, byte(size))
	case size < 0x100:
		return append(out, tag, 0x81, byte(size))
	case size < 0x10000:
		return append(out, tag, 0x82, byte(size>>8), byte(size))
	default:
		return append(out, tag, 0x83, byte(size>>16), byte(size>>8), byte(size))
	}
}

// contentOf returns what an element written by appendHeader holds.
func contentOf(element []byte) []byte {
	if element[1] < 0x80 {
		return element[2:]
	}
	return element[2+int(element[1]&0x7f):]
}
