package agent

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/agent/state"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

func options(r *fakeRelay) JoinOptions {
	return JoinOptions{Name: "pi", Now: testNow, DialContext: r.dial, Resolve: resolve}
}

func openDir(t *testing.T) *state.Dir {
	t.Helper()
	d, err := state.Open(t.TempDir()+"/agent", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d := newFakeRelay(t), openDir(t)
		id, err := Join(t.Context(), d, r.token(), options(r))
		if err != nil {
			t.Fatal(err)
		}
		stored, err := d.Identity()
		if err != nil {
			t.Fatal(err)
		}
		if !stored.Cert.Equal(id.Cert) || stored.Name != "home" || stored.Domain != "example.org" || stored.Relay != "relay.test:443" {
			t.Errorf("stored %+v", stored)
		}
		if r.joins[0].Name != "pi" {
			t.Errorf("asked for the name %q", r.joins[0].Name)
		}
	})
}

func TestJoinAfterALostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d := newFakeRelay(t), openDir(t)
		r.dropJoin = true // redeemed, but the answer never arrives
		if _, err := Join(t.Context(), d, r.token(), options(r)); err != nil {
			t.Fatal(err)
		}
		if len(r.joins) != 2 {
			t.Errorf("%d requests", len(r.joins))
		}
	})
}

func TestJoinAfterACrashBetweenAnswerAndSave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d := newFakeRelay(t), openDir(t)
		r.dropJoin = true
		o := options(r)
		ctx, crash := context.WithCancel(t.Context())
		o.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if len(r.joins) > 0 {
				crash()
				return nil, errDown
			}
			return r.dial(ctx, network, addr)
		}
		if _, err := Join(ctx, d, r.token(), o); !errors.Is(err, ErrUnreachable) {
			t.Fatalf("interrupted join: %v", err)
		}
		d.Close()
		again, err := state.Open(d.Path(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if _, err := Join(t.Context(), again, r.token(), options(r)); err != nil {
			t.Fatalf("the redeemed token is lost: %v", err)
		}
	})
}

func TestJoinWaitsForTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d := newFakeRelay(t), openDir(t)
		r.down = errDown
		time.AfterFunc(10*time.Minute, func() { r.set(func() { r.down = nil }) })
		if _, err := Join(t.Context(), d, r.token(), options(r)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestJoinGivesUpWhenTheTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d := newFakeRelay(t), openDir(t)
		r.down = errDown
		begin := time.Now()
		_, err := Join(t.Context(), d, r.token(), options(r))
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "expired") || !strings.Contains(err.Error(), "relay token") {
			t.Errorf("error %v", err)
		}
		if took := time.Since(begin); took < 15*time.Minute || took > 16*time.Minute {
			t.Errorf("gave up after %v", took)
		}
	})
}

func TestJoinRefusals(t *testing.T) {
	other := func(r *fakeRelay) *fakeRelay { return newFakeRelay(r.t) }
	for _, test := range []struct {
		name  string
		want  string
		setUp func(r *fakeRelay, token *protocol.Token, o *JoinOptions)
	}{
		{"wrong secret", "no such token", func(_ *fakeRelay, token *protocol.Token, _ *JoinOptions) { token.Secret = strings.Repeat("x", 26) }},
		{"another server", "not the relay that made this token", func(r *fakeRelay, _ *protocol.Token, o *JoinOptions) {
			o.DialContext = other(r).dial
		}},
		{"the CA's certificate without its signature", "no valid certificate", func(r *fakeRelay, _ *protocol.Token, o *JoinOptions) {
			// An attacker can show the CA, which is public, but not a leaf that it signed.
			evil := other(r)
			evil.cert.Certificate[1] = r.ca.Cert().Raw
			o.DialContext = evil.dial
		}},
		{"another name", "no valid certificate", func(r *fakeRelay, token *protocol.Token, _ *JoinOptions) { token.ServerName = "other.invalid" }},
		{"alert", "does not know this token", func(r *fakeRelay, _ *protocol.Token, o *JoinOptions) {
			o.DialContext = func(context.Context, string, string) (net.Conn, error) {
				near, far := tunneltest.MemConn()
				go func() {
					defer far.Close()
					far.Read(make([]byte, 4096))
					far.Write([]byte{21, 3, 3, 0, 2, 2, 112}) // fatal, unrecognized_name
					far.Read(make([]byte, 4096))
				}()
				return near, nil
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, d := newFakeRelay(t), openDir(t)
				token, o := r.token(), options(r)
				test.setUp(r, &token, &o)
				begin := time.Now()
				_, err := Join(t.Context(), d, token, o)
				if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), test.want) {
					t.Errorf("error %v, want %q", err, test.want)
				}
				if strings.Contains(err.Error(), token.Secret) {
					t.Error("the error tells the secret")
				}
				if time.Since(begin) > time.Second {
					t.Error("tried again although it is of no use")
				}
				if _, err := d.Identity(); !errors.Is(err, state.ErrNotJoined) {
					t.Errorf("something was stored: %v", err)
				}
				if test.name != "wrong secret" && len(r.joins) > 0 {
					t.Error("the secret was sent to a server that is not trusted")
				}
			})
		})
	}
}

// A board that starts in 1970 joins, too.
func TestJoinWithoutAClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d := newFakeRelay(t), openDir(t)
		o := options(r)
		o.Now = func() time.Time { return time.Unix(100, 0) }
		if _, err := Join(t.Context(), d, r.token(), o); err != nil {
			t.Fatal(err)
		}
	})
}

func TestJoinRefusesACertificateForAnotherKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d := newFakeRelay(t), openDir(t)
		r.wrongKey = true
		if _, err := Join(t.Context(), d, r.token(), options(r)); !errors.Is(err, ErrRefused) {
			t.Errorf("error %v", err)
		}
		if _, err := d.Identity(); !errors.Is(err, state.ErrNotJoined) {
			t.Errorf("something was stored: %v", err)
		}
	})
}
