package main

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/cmd/sallyport/machine"
)

func TestRelayAndCode(t *testing.T) {
	const base = "https://enroll.home.test"
	for _, c := range []struct{ relay, text, base, code, fault string }{
		{"", base + "/#ABC", base, "ABC", ""},
		{"home.test", "ABC", base, "ABC", ""},
		{base, base + "/#ABC", base, "ABC", ""},
		{"home.test", "", base, "", ""},
		{"", "ABC", "", "", "no relay is named"},
		{"", "", "", "", "no relay is named"},
		{"other.test", base + "/#ABC", "", "", "the link is of"},
		{"http://home.test", "ABC", "", "", "https only"},
		{"", "http://home.test/#ABC", "", "", "https only"},
	} {
		gotBase, code, err := relayAndCode(c.relay, c.text)
		if c.fault != "" {
			if err == nil || !strings.Contains(err.Error(), c.fault) || strings.Contains(err.Error(), "ABC") {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if err != nil || gotBase != c.base || code != c.code {
			t.Errorf("%+v: %q %q %v", c, gotBase, code, err)
		}
	}
}

func TestEnrollUsage(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"empty": " \n", "two": "a\nb\n", "junk": "junk", "one": "ABC"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	for line, want := range map[string]string{
		"device enroll":                                                                   "wants a directory in --out",
		"device enroll x --out o":                                                         "unexpected argument",
		"device enroll --out o":                                                           "no relay is named",
		"device enroll --out o --code-file none":                                          "--code-file: open none",
		"device enroll --out o --code-file empty":                                         "does not hold one line",
		"device enroll --out o --code-file two":                                           "does not hold one line",
		"device enroll --out o --relay home.test --ca none":                               "--ca: open none",
		"device enroll --out o --relay home.test --ca junk":                               "no PEM certificate",
		"device enroll --out o --relay ftp://home.test":                                   "https only",
		"device enroll --out o --relay https://enroll.home.test/#SECRETS":                 "--relay holds a link with its code",
		"device enroll --out o --relay home.test#SECRETS --code-file two":                 "--relay holds a link",
		"device enroll --out o --relay https://enroll.home.test/#SECRETS --code-file one": "device enroll --code-file - --out o\n",
		"device enroll --out o --relay https://enroll.home.test/# --code-file one":        "--relay holds a link",
		"device renew":                          "takes the DIR",
		"device renew none":                     "no device was enrolled here",
		"device renew none --every 1s":          "too short",
		"connect h.test --device none":          "no device was enrolled here",
		"connect h.test --device none --cert x": "exclude each other",
	} {
		var out, errs strings.Builder
		code := run(t.Context(), append([]string{"sallyport"}, strings.Fields(line)...), stdio{in: strings.NewReader(""), out: &out, err: &errs})
		if code != exitUsage || !strings.Contains(errs.String(), want) || strings.Contains(errs.String(), "SECRETS") {
			t.Errorf("%s: exit code %d\n%s", line, code, errs.String())
		}
	}
	if _, err := os.Stat("o"); err == nil {
		t.Error("a mistake left a directory behind")
	}
}

func TestExplainMachine(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
		hint string // a part of it
	}{
		{&machine.Refusal{Status: 403, Message: "no", Advice: "ask again"}, exitRefused, "ask again"},
		{&machine.Refusal{Status: 429, RetryAfter: 90 * time.Second}, exitUnreachable, "in 1m30s"},
		{&machine.Refusal{Status: 503}, exitUnreachable, "later"},
		{machine.ErrDenied, exitRefused, "new link"},
		{machine.ErrEnded, exitRefused, "anew"},
		{machine.ErrNotEnrolled, exitUsage, "device enroll"},
		{machine.ErrEnrolled, exitUsage, "device renew"},
		{machine.ErrBusy, exitFailed, "wait"},
		{x509.UnknownAuthorityError{}, exitFailed, "--ca"},
		{&net.OpError{Op: "dial", Err: errors.New("refused")}, exitUnreachable, "--address"},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}, exitRefused, "device list"},
		{context.Canceled, exitFailed, "goes on"},
		{errors.New("strange"), exitFailed, ""},
	} {
		if code, hint := classify(explainMachine("d", c.err)); code != c.code || !strings.Contains(hint, c.hint) {
			t.Errorf("%v: exit code %d, want %d; hint %q", c.err, code, c.code, hint)
		}
	}
}

// A network that is away is tried again soon; a relay that says no ends it.
func TestKeepRenewing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var at []time.Duration
		answers := []error{failed(exitUnreachable, "", errors.New("away")), nil, nil, failed(exitRefused, "", errors.New("revoked"))}
		err := keepRenewing(t.Context(), stdio{err: io.Discard}, 12*time.Hour, nil, func() error {
			at = append(at, time.Since(begin))
			err := answers[0]
			answers = answers[1:]
			return err
		})
		if err == nil || err.Error() != "revoked" {
			t.Errorf("got %v", err)
		}
		want := []time.Duration{12 * time.Hour, 12*time.Hour + retryRenewal, 24*time.Hour + retryRenewal, 36*time.Hour + retryRenewal}
		if len(at) != len(want) {
			t.Fatalf("renewed at %v", at)
		}
		for i := range want {
			if at[i] != want[i] {
				t.Errorf("renewed at %v, want %v", at, want)
				break
			}
		}
	})
}

func TestKeepRenewingStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	again := func() error { t.Error("renewed after the end"); return nil }
	if err := keepRenewing(ctx, stdio{err: io.Discard}, time.Hour, errors.New("interrupted"), again); err != nil {
		t.Errorf("got %v", err)
	}
	if err := keepRenewing(ctx, stdio{err: io.Discard}, time.Hour, nil, again); err != nil {
		t.Errorf("got %v", err)
	}
}
