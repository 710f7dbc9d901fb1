package protocol

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/sallyport/sallyport/protocol/names"
)

const (
	tokenPrefix  = "sp1-"
	tokenSum     = 4  // bytes of checksum: against bad copies, not against attackers
	minSecret    = 16 // rand.Text gives 26
	maxTokenText = 4096
)

// A Token is what an agent needs to join a relay: where it is, how to know it,
// and a secret that works once.
type Token struct {
	Relay      string    // host:port
	ServerName string    // the SNI under which both ALPNs answer; canonical
	CA         [32]byte  // SHA-256 of the agent CA's certificate, DER
	Secret     string    // rand.Text; single use
	Expires    time.Time // to the second; for people: the relay decides by its own clock
}

// Validate reports the first thing that is wrong with a token's fields.
func (t Token) Validate() error {
	host, port, err := net.SplitHostPort(t.Relay)
	if err != nil || len(t.Relay) > 255 {
		return fmt.Errorf("relay address %q is not host:port", shorten(t.Relay))
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("relay address %q has no valid port", t.Relay)
	}
	if _, err := netip.ParseAddr(host); err != nil {
		if _, err := names.Canonical(host); err != nil {
			return fmt.Errorf("relay address: %w", err)
		}
	}
	if name, err := names.Canonical(t.ServerName); err != nil || name != t.ServerName {
		return fmt.Errorf("server name %q is not canonical", shorten(t.ServerName))
	}
	if n := len(t.Secret); n < minSecret || n > 255 || strings.ContainsFunc(t.Secret, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("secret is not 16 to 255 printable ASCII characters")
	}
	return nil
}

// String returns the token as its owner copies it, with the secret: "sp1-" and
// base64url. Log the Token itself, which redacts. A token that Validate
// refuses has no such form; the text says so and does not parse.
func (t Token) String() string {
	if err := t.Validate(); err != nil {
		return "invalid token: " + err.Error()
	}
	b := appendString([]byte{0, 0}, t.Relay)
	b = appendString(b, t.ServerName)
	b = append(b, t.CA[:]...)
	b = appendString(b, t.Secret)
	var expires int64
	if !t.Expires.IsZero() {
		expires = t.Expires.Unix()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(expires))
	binary.BigEndian.PutUint16(b, uint16(len(b)-2+tokenSum))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, tokenChecksum(b)...))
}

// LogValue leaves the secret out.
func (t Token) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("relay", t.Relay),
		slog.String("server_name", t.ServerName),
		slog.String("ca", hex.EncodeToString(t.CA[:8])),
		slog.Time("expires", t.Expires),
	)
}

// ParseToken reads what String wrote. White space anywhere is ignored, since
// terminals and mails wrap long lines. The error says what to do and never
// repeats the token. It does not look at the clock: a Pi's may be years
// behind, and the relay judges the expiry anyway.
func ParseToken(s string) (Token, error) {
	if len(s) > maxTokenText {
		return Token{}, errors.New("join token is far too long; copy it again, alone")
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, s)
	text, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok {
		return Token{}, wrongPrefix(s)
	}
	// Four letters are three bytes; a cut token may end inside such a group.
	whole := text
	if len(whole)%4 == 1 {
		whole = whole[:len(whole)-1]
	}
	b, err := base64.RawURLEncoding.DecodeString(whole)
	if err != nil {
		return Token{}, errors.New("join token holds characters that no token has, or is damaged; copy it again")
	}
	want := 2
	if len(b) >= 2 {
		want += int(binary.BigEndian.Uint16(b))
	}
	switch letters := base64.RawURLEncoding.EncodedLen(want); {
	case len(b) <= 2 || len(text) < letters:
		return Token{}, errors.New("join token is cut off at the end; copy the whole of it")
	case len(text) > letters:
		return Token{}, errors.New("join token has something behind its end; copy the token alone")
	case want < 2+tokenSum:
		return Token{}, errors.New("join token is damaged; copy it again")
	}
	body, sum := b[:len(b)-tokenSum], b[len(b)-tokenSum:]
	if string(sum) != string(tokenChecksum(body)) {
		return Token{}, errors.New("join token is damaged: a character is wrong or missing; copy it again")
	}
	t, err := parseTokenBody(body[2:])
	if err != nil {
		return Token{}, fmt.Errorf("join token: %w; ask the relay for a new one", err)
	}
	return t, nil
}

func parseTokenBody(b []byte) (Token, error) {
	p := &parser{b: b}
	t := Token{Relay: p.string(), ServerName: p.string()}
	copy(t.CA[:], p.take(len(t.CA)))
	t.Secret = p.string()
	if f := p.take(8); f != nil {
		if sec := int64(binary.BigEndian.Uint64(f)); sec != 0 {
			t.Expires = time.Unix(sec, 0).UTC()
		}
	}
	switch {
	case p.err != nil:
		return Token{}, p.err
	case len(p.b) > 0:
		return Token{}, errors.New("holds more than a token does")
	}
	if err := t.Validate(); err != nil {
		return Token{}, err
	}
	return t, nil
}

// wrongPrefix tells the likely reasons why s does not start like a token.
func wrongPrefix(s string) error {
	rest, ok := strings.CutPrefix(s, "sp")
	digits, _, dash := strings.Cut(rest, "-")
	n, err := strconv.ParseUint(digits, 10, 16)
	switch {
	case s == "":
		return errors.New("join token is empty")
	case ok && dash && err == nil && n > 1:
		return fmt.Errorf("join token is of version %d, made by a newer relay; update sallyport here", n)
	case strings.HasPrefix(tokenPrefix, s):
		return errors.New("join token is cut off at the end; copy the whole of it")
	}
	return errors.New("this is not a join token, or its beginning is missing: a token starts with \"sp1-\"")
}

func tokenChecksum(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:tokenSum]
}
