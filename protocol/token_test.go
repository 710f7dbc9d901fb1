package protocol_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol"
)

var goldenToken = protocol.Token{
	Relay:      "relay.example.org:443",
	ServerName: "k3v9x2m7q4.example",
	CA:         sha256.Sum256([]byte("agent CA")),
	Secret:     "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
	Expires:    time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC),
}

func TestGoldenToken(t *testing.T) {
	golden(t, "token", []byte(goldenToken.String()))
}

func TestTokenRoundTrip(t *testing.T) {
	v4, v6, local, long, forever := goldenToken, goldenToken, goldenToken, goldenToken, goldenToken
	v4.Relay = "203.0.113.7:443"
	v6.Relay = "[2001:db8::1]:8443"
	local.Relay, local.Secret = "localhost:1", rand.Text()
	long.Secret = strings.Repeat("~", 255)
	forever.Expires = time.Time{}
	for _, want := range []protocol.Token{goldenToken, v4, v6, local, long, forever} {
		s := want.String()
		if got, err := protocol.ParseToken(s); err != nil || got != want {
			t.Errorf("%s became %+v, %v", s, got, err)
		}
		wrapped := "  " + s[:20] + "\r\n\t" + s[20:60] + " \u00a0" + s[60:] + "\n"
		if got, err := protocol.ParseToken(wrapped); err != nil || got != want {
			t.Errorf("wrapped by a terminal it became %+v, %v", got, err)
		}
	}
}

func TestParseTokenSaysWhatIsWrong(t *testing.T) {
	s := goldenToken.String()
	for in, want := range map[string]string{
		"":                    "empty",
		" \n":                 "empty",
		"s":                   "cut off",
		"sp1":                 "cut off",
		"sp1-":                "cut off",
		s[:5]:                 "cut off",
		s[:len(s)/2]:          "cut off",
		s[:len(s)-1]:          "cut off",
		s + "A":               "behind its end",
		s + "AAAA":            "behind its end",
		s[1:]:                 "not a join token",
		s[4:]:                 "not a join token",
		"https://relay/":      "not a join token",
		"sp2-" + s[4:]:        "newer relay",
		"sp17-xyz":            "newer relay",
		"sp0-" + s[4:]:        "not a join token",
		"sp1-!" + s[5:]:       "characters that no token has",
		swap(s, 30):           "damaged",
		swap(s, len(s)-3):     "damaged",
		"sp1-AAAA":            "behind its end",
		"sp1-AAEA":            "damaged",
		"sp1-AAA":             "cut off",
		strings.Repeat(s, 99): "far too long",
	} {
		got, err := protocol.ParseToken(in)
		switch {
		case err == nil:
			t.Errorf("%.40q is a token: %+v", in, got)
		case !strings.Contains(err.Error(), want):
			t.Errorf("%.40q gives %q, want it to say %q", in, err, want)
		}
		if err != nil && strings.Contains(err.Error(), goldenToken.Secret) {
			t.Errorf("%.40q: the error repeats the secret: %v", in, err)
		}
	}
}

func swap(s string, i int) string {
	c := "A"
	if s[i] == 'A' {
		c = "B"
	}
	return s[:i] + c + s[i+1:]
}

// Whatever single letter is lost or changed, the token is refused.
func TestParseTokenEveryLetterCounts(t *testing.T) {
	s := goldenToken.String()
	// Bits behind the last byte do not count; they cannot do harm.
	for i := range len(s) - 1 {
		for what, in := range map[string]string{"lost": s[:i] + s[i+1:], "changed": swap(s, i), "cut": s[:i]} {
			if got, err := protocol.ParseToken(in); err == nil {
				t.Errorf("letter %d %s: still a token: %+v", i, what, got)
			}
		}
	}
}

func TestInvalidTokenHasNoText(t *testing.T) {
	for name, change := range map[string]func(*protocol.Token){
		"relay without port":     func(t *protocol.Token) { t.Relay = "relay.example.org" },
		"relay port 0":           func(t *protocol.Token) { t.Relay = "relay.example.org:0" },
		"relay without host":     func(t *protocol.Token) { t.Relay = ":443" },
		"relay host":             func(t *protocol.Token) { t.Relay = "re lay:443" },
		"server name":            func(t *protocol.Token) { t.ServerName = "X.Example" },
		"no server name":         func(t *protocol.Token) { t.ServerName = "" },
		"short secret":           func(t *protocol.Token) { t.Secret = "ABC" },
		"long secret":            func(t *protocol.Token) { t.Secret = strings.Repeat("A", 256) },
		"secret with line break": func(t *protocol.Token) { t.Secret += "\n" },
	} {
		token := goldenToken
		change(&token)
		if token.Validate() == nil {
			t.Errorf("%s: Validate finds nothing", name)
		}
		if s := token.String(); strings.HasPrefix(s, "sp1-") || strings.Contains(s, goldenToken.Secret) {
			t.Errorf("%s: String gives %q", name, s)
		}
	}
}

func TestTokenIsNotLogged(t *testing.T) {
	for name, h := range map[string]func(*bytes.Buffer) slog.Handler{
		"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var b bytes.Buffer
		slog.New(h(&b)).Info("joining", "token", goldenToken)
		if out := b.String(); strings.Contains(out, goldenToken.Secret) || strings.Contains(out, "sp1-") || !strings.Contains(out, "relay.example.org:443") {
			t.Errorf("%s: %s", name, out)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(goldenToken.String())
	f.Add(goldenToken.String()[:40])
	f.Add("sp1-AAA")
	f.Add("sp1-AAAEAAAA")
	f.Add("sp2-AAAA")
	f.Add(" sp1-\n")
	f.Fuzz(func(t *testing.T, in string) {
		token, err := protocol.ParseToken(in)
		if err != nil {
			if token != (protocol.Token{}) {
				t.Fatalf("%q: an error and %+v", in, token)
			}
			return
		}
		if got, err := protocol.ParseToken(token.String()); err != nil || got != token {
			t.Fatalf("%q: %+v became %+v, %v", in, token, got, err)
		}
	})
}

func ExampleParseToken() {
	token, err := protocol.ParseToken(goldenToken.String())
	fmt.Println(token.Relay, err)
	_, err = protocol.ParseToken(goldenToken.String()[:50])
	fmt.Println(err)
	// Output:
	// relay.example.org:443 <nil>
	// join token is cut off at the end; copy the whole of it
}
