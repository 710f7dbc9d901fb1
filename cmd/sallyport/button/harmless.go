package button

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	maxName = 64
	maxText = 512 // bytes of one text in an answer; the longest that a relay sends is a reason of 500
)

// Printable makes a text that came from outside harmless on a terminal: each
// character that does not show, that moves the cursor, or that turns the
// direction of writing becomes "?". The joiner stays, which emoji are made with.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == '\u200d' {
			return r
		}
		return '?'
	}, s)
}

// harmless makes every text in an answer printable and short. It goes through
// all that there is, so that a field which comes later is not forgotten. Keys
// are bytes, and stay.
func harmless(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			harmless(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() { // a time has none
				harmless(v.Field(i))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			harmless(v.Index(i))
		}
	case reflect.String:
		v.SetString(short(Printable(v.String())))
	}
}

// short cuts a text between two characters: a long one would push away what
// stands above it.
func short(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// checkNames refuses names that stand in lines to type, and in the file of
// known homes: no honest relay has others.
func checkNames(device string, homes []mqttbridge.Home) error {
	if !isToken(device) {
		return badName("this device", device)
	}
	for _, h := range homes {
		if !isToken(h.Name) {
			return badName("a home", h.Name)
		}
		for _, a := range h.Actions {
			if !isToken(a.Name) {
				return badName("an action of "+h.Name, a.Name)
			}
		}
	}
	return nil
}

// ErrName is in the error of Homes for a name that could be misread.
var ErrName = errors.New("a name has 1 to 64 letters, digits, \"-\", \"_\" and \".\", and no \"-\" in front")

func badName(whose, name string) error {
	return fmt.Errorf("the relay calls %s %q: %w", whose, Printable(name), ErrName)
}

// isToken reports whether s is 1 to 64 letters, digits, "-", "_" and ".", and
// could not be taken for a flag.
func isToken(s string) bool {
	return s != "" && len(s) <= maxName && s[0] != '-' && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.", r)
	})
}
