package admin

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// entrance is a dashboard of a relay, near or far.
func entrance(f *fakeRelay, remote bool) http.Handler {
	cfg := f.config()
	cfg.Remote = remote
	if remote {
		cfg.Actor = func(*http.Request) string { return "pauls-phone" }
	}
	return NewDashboard(cfg)
}

// No page marks administrators, near or far: the command line does.
func TestPagesMakeNoAdministrators(t *testing.T) {
	asks := []struct {
		path string
		form url.Values
	}{
		{"/invite", url.Values{"name": {"mallory"}, "ttl": {"15m"}, "admin": {"1"}}},
		{"/devices/anna-tablet/change", url.Values{"admin": {"1"}}},
		{"/devices/anna-tablet/change", url.Values{"admin": {"1"}, "hosts": {"ha"}}},
		{"/devices/anna-tablet/change", url.Values{"admin": {"0"}}},
		{"/devices/pauls-phone/change", url.Values{"admin": {""}}},
	}
	for _, remote := range []bool{true, false} {
		for _, q := range asks {
			f := newFakeRelay()
			w := post1(entrance(f, remote), q.path, q.form)
			if w.Code != 403 || !strings.Contains(w.Body.String(), "sallyport device set NAME") || len(f.called()) != 0 {
				t.Errorf("remote %v, %s %v: %d, the relay heard %q", remote, q.path, q.form, w.Code, f.called())
			}
		}
		f := newFakeRelay()
		h := entrance(f, remote)
		for _, path := range append(slices.Clone(pagePaths), "/devices/pauls-phone") {
			if body := get1(h, path).Body.String(); strings.Contains(body, `name="admin"`) || strings.Contains(body, "was-admin") {
				t.Errorf("remote %v, %s offers it", remote, path)
			}
		}
	}
}

// What an invitation at the relay marked may be approved there, on the pages,
// too; not from afar.
func TestApproveAnAdministrator(t *testing.T) {
	for _, remote := range []bool{true, false} {
		f := newFakeRelay()
		f.requests[0].Admin = true
		h := entrance(f, remote)
		if offered := strings.Contains(get1(h, "/").Body.String(), `value="9f86d081884c7d65"`); offered == remote {
			t.Errorf("remote %v: offered %v", remote, offered)
		}
		w := post1(h, "/requests/7kq2mf9x/approve", url.Values{"key": {"9f86d081884c7d65"}})
		if refused := w.Code == 403 && len(f.called()) == 0; refused != remote {
			t.Errorf("remote %v: %d, the relay heard %q", remote, w.Code, f.called())
		}
	}
}

// An administrator for a day does not become one for ever by himself, nor a
// reader of more hosts; but anybody can be shut out.
func TestRemoteLeavesAdministratorsAsTheyAre(t *testing.T) {
	day := func(f *fakeRelay, until time.Time) {
		f.devices[0].Until = until
		f.devices = append(f.devices,
			Device{ID: "h1", Name: "half", Admin: true, NotAfter: when.Add(time.Hour)},
			Device{ID: "h2", Name: "half", NotAfter: when.AddDate(1, 0, 0)},
			Device{ID: "n1", Name: "anew", Admin: true, Revoked: true, NotAfter: when.AddDate(1, 0, 0)},
			Device{ID: "n2", Name: "anew", NotAfter: when.AddDate(1, 0, 0)})
	}
	forms := []url.Values{{"until": {"none"}}, {"until": {"168h"}}, {"hosts": {""}}, {"hosts": {"ha"}, "until": {"keep"}}, {}}
	for _, form := range forms {
		for _, until := range []time.Time{{}, when.Add(time.Hour), when.Add(-time.Hour)} {
			for name, want := range map[string]int{"pauls-phone": 403, "half": 403, "anna-tablet": 303, "anew": 303, "nobody": 404, "Pauls-Phone": 404} {
				f := newFakeRelay()
				day(f, until)
				w := post1(entrance(f, true), "/devices/"+name+"/change", form)
				if w.Code != want || len(f.changes) != map[bool]int{true: 1}[want == 303] {
					t.Errorf("%s %v: %d, changed %+v", name, form, w.Code, f.changes)
				}
			}
			f := newFakeRelay()
			day(f, until)
			if w := post1(entrance(f, false), "/devices/pauls-phone/change", form); w.Code != 303 || len(f.changes) != 1 {
				t.Errorf("at the relay %v: %d", form, w.Code)
			}
		}
	}
	f := newFakeRelay()
	if w := post1(entrance(f, true), "/devices/pauls-phone/revoke", url.Values{}); w.Code != 303 || len(f.called()) != 1 {
		t.Errorf("revoke: %d, the relay heard %q", w.Code, f.called())
	}
	for path, want := range map[string]bool{"/devices/pauls-phone": false, "/devices/anna-tablet": true} {
		body := get1(entrance(newFakeRelay(), true), path).Body.String()
		if strings.Contains(body, "/change\"") != want || strings.Contains(body, "changed at the relay only") == want || !strings.Contains(body, "/revoke\"") {
			t.Errorf("%s from afar: %s", path, body)
		}
	}
	if body := get1(entrance(newFakeRelay(), false), "/devices/pauls-phone").Body.String(); !strings.Contains(body, "/change\"") {
		t.Error("at the relay an administrator cannot be changed")
	}
}

// Who cannot be looked at is not changed.
func TestRemoteChangeWithoutAList(t *testing.T) {
	for what, list := range map[string]func(context.Context) ([]Device, error){
		"broken": func(context.Context) ([]Device, error) { return nil, errors.New("disk on fire") },
		"none":   nil,
	} {
		f := newFakeRelay()
		cfg := f.config()
		cfg.Remote, cfg.API.Devices = true, list
		if w := post1(NewDashboard(cfg), "/devices/anna-tablet/change", url.Values{"until": {"none"}}); w.Code < 500 || len(f.called()) != 0 {
			t.Errorf("%s: %d, the relay heard %q", what, w.Code, f.called())
		}
	}
}

func TestRemoteLinksAreShort(t *testing.T) {
	for ttl, want := range map[string]int{"15m": 200, "24h": 200, "24h1s": 400, "168h": 400, "2000000h": 400} {
		f := newFakeRelay()
		if w := post1(entrance(f, true), "/invite", url.Values{"name": {"x"}, "ttl": {ttl}}); w.Code != want || len(f.invites) != map[int]int{200: 1}[want] {
			t.Errorf("%s: %d, %+v", ttl, w.Code, f.invites)
		}
	}
	f := newFakeRelay()
	if w := post1(entrance(f, false), "/invite", url.Values{"name": {"x"}, "ttl": {"168h"}}); w.Code != 200 || f.invites[0].TTL != 7*24*3600 {
		t.Errorf("at the relay: %d", w.Code)
	}
	if called := f.called(); called[0] != "invite x by dashboard" {
		t.Errorf("the relay heard %q", called)
	}
}

// A link that somebody made, and nobody used yet, is seen by the owner.
func TestLinksThatWait(t *testing.T) {
	f := newFakeRelay()
	h := entrance(f, true)
	body := get1(h, "/devices").Body.String()
	for _, want := range []string{"carl-phone", "by pauls-phone", "named by whoever opens it", "made 3 minutes ago", "ends in 12 minutes", "/invites/q7m2/withdraw", "x9b4", "you approve"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not show %q", want)
		}
	}
	if w := post1(h, "/invites/q7m2/withdraw", url.Values{}); w.Code != 303 || f.called()[0] != "withdraw q7m2 by pauls-phone" {
		t.Errorf("%d, the relay heard %q", w.Code, f.called())
	}
	if strings.Contains(get1(h, "/devices").Body.String(), "carl-phone") {
		t.Error("a withdrawn link is shown")
	}
	f.links = nil
	if strings.Contains(get1(h, "/devices").Body.String(), "Links that wait</h2>") {
		t.Error("there is a title without links")
	}
}

// Who cannot show the words is told by its key, and the page says what that
// means.
func TestWordsOnlyWhereTheyAreShown(t *testing.T) {
	for via, shown := range map[string]bool{"browser": true, "cli": true, "scep": false, "est": false, "": false, "new": false} {
		f := newFakeRelay()
		q := printer()
		q.Via = via
		f.requests = []EnrolRequest{q}
		for _, path := range []string{"/", "/devices"} {
			body := get1(entrance(f, false), path).Body.String()
			if strings.Contains(body, "tulip") != shown || strings.Contains(body, "the same words") != shown {
				t.Errorf("%s by %q: words shown %v", path, via, !shown)
			}
			if strings.Contains(body, "cannot show the words") == shown || strings.Contains(body, "2c26 b46b 68ff c68f<") == shown {
				t.Errorf("%s by %q: key and warning shown %v", path, via, shown)
			}
		}
	}
	for id, want := range map[string]string{"": "", "ab": "ab", "abcd": "abcd", "abcde": "abcd e"} {
		if got := (EnrolRequest{KeyID: id}).Fingerprint(); got != want {
			t.Errorf("%q: %q", id, got)
		}
	}
}
