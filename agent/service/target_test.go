package service

import (
	"strings"
	"testing"
)

func TestParseTarget(t *testing.T) {
	for in, want := range map[string]string{
		"127.0.0.1:8123":             "http://127.0.0.1:8123",
		"localhost:8123":             "http://localhost:8123",
		"homeassistant.local":        "http://homeassistant.local:80",
		"HomeAssistant.Local.:8123":  "http://homeassistant.local:8123",
		"192.168.1.5":                "http://192.168.1.5:80",
		"fd00::5":                    "http://[fd00::5]:80",
		"[fd00::5]":                  "http://[fd00::5]:80",
		"[fd00::5]:8080":             "http://[fd00::5]:8080",
		"[fe80::1%eth0]:8080":        "http://[fe80::1%eth0]:8080",
		"http://127.0.0.1:8123/":     "http://127.0.0.1:8123",
		"https://nas":                "https://nas:443",
		"HTTPS://nas.local:5001":     "https://nas.local:5001",
		"h2c://127.0.0.1:50051":      "h2c://127.0.0.1:50051",
		"tcp://my_pi:22":             "tcp://my_pi:22",
		"udp://127.0.0.1:51820":      "udp://127.0.0.1:51820",
		"UDP://wg.local:51820":       "udp://wg.local:51820",
		"unix:/run/app.sock":         "unix:/run/app.sock",
		"unix:///run/app.sock":       "unix:/run/app.sock",
		"tcp+unix:/run/docker.sock":  "tcp+unix:/run/docker.sock",
		"unix:/run/with space/and@:": "unix:/run/with space/and@:",
	} {
		got, err := ParseTarget(in)
		if err != nil || got.String() != want {
			t.Errorf("ParseTarget(%q) = %q, %v; want %q", in, got, err, want)
			continue
		}
		again, err := ParseTarget(got.String())
		if err != nil || again.String() != want {
			t.Errorf("%q does not survive: %q, %v", got, again, err)
		}
	}
}

func TestParseTargetRefuses(t *testing.T) {
	for in, hint := range map[string]string{
		"":                                  "127.0.0.1:8123",
		"8123":                              "write 127.0.0.1:8123",
		":8123":                             "write 127.0.0.1:8123",
		"http://127.0.0.1:8123/lovelace":    `write "http://127.0.0.1:8123"`,
		"127.0.0.1:8123/lovelace":           `write "127.0.0.1:8123"`,
		"http://h:80?x=1":                   "has a path",
		"http://h:80#x":                     "has a path",
		"http://joe:secret@h:80":            "user name or password",
		"ftp://h":                           "not known",
		"tcp://h":                           "has no port",
		"udp://h":                           "has no port",
		"udp+unix:/x":                       "host",
		"tcp://":                            "has no port",
		"http://":                           "no host",
		"http://h:":                         "has no port",
		"http://h:0":                        "not a number",
		"http://h:65536":                    "not a number",
		"http://h:http":                     "not a number",
		"http://a b:80":                     "neither",
		"http://a..b:80":                    "neither",
		"http://h\x00:80":                   "neither",
		"a:b:c":                             "host:port",
		"unix:run/app.sock":                 "must be absolute",
		"unix:":                             "must be absolute",
		"unix:/" + strings.Repeat("x", 107): "at most 107",
	} {
		got, err := ParseTarget(in)
		if err == nil {
			t.Errorf("ParseTarget(%q) = %q, want an error", in, got)
		} else if !strings.Contains(err.Error(), hint) {
			t.Errorf("ParseTarget(%q): %v; want a hint like %q", in, err, hint)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"127.0.0.1:8123", "https://[fe80::1%eth0]:1/", "unix:/x", "udp://h:1", "tcp+unix:///x", "http://a@b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		target, err := ParseTarget(s)
		if err != nil {
			return
		}
		if again, err := ParseTarget(target.String()); err != nil || again.String() != target.String() {
			t.Errorf("%q parses as %q, that as %q, %v", s, target, again, err)
		}
	})
}
