package web

import (
	"context"
	"crypto/x509"
	"net/http"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/enroll"
	"github.com/sallyport/sallyport/relay/store/memstore"
)

// TestRealDesk: the API and the desk that stands behind it understand each
// other, down to the blocking of those who guess.
func TestRealDesk(t *testing.T) {
	w := newWorld(t)
	desk, err := enroll.New(t.Context(), enroll.Config{
		Store:     memstore.New(),
		CheckName: func(string) error { return nil },
		Issued:    func(context.Context, string) (*x509.Certificate, error) { return nil, nil },
		Issue: func(_ context.Context, g enroll.Grant) (*x509.Certificate, error) {
			return w.ca.Issue(g.Key, pki.Grant{Profile: pki.Device, Name: g.Name})
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.pages.cfg.Desk = desk
	h := w.pages.Enroll()
	text, _, err := desk.Invite(t.Context(), enroll.Invitation{Approve: true})
	if err != nil {
		t.Fatal(err)
	}
	if inv := decode[invitation](t, call(h, "POST", "/api/code", `{"code":"`+strings.ToLower(text)+`"}`)); !inv.Approve || inv.Expires.IsZero() {
		t.Errorf("%+v", inv)
	}
	csr, _ := newCSR(t)
	if rec := call(h, "POST", "/api/requests", application(t, csr, "code", text, "name", "!!!")); rec.Code != 400 {
		t.Errorf("a bad name: %d %s", rec.Code, rec.Body)
	}
	body := application(t, csr, "code", text, "name", "anna-phone")
	made := decode[request](t, call(h, "POST", "/api/requests", body))
	if made.State != enroll.Pending || len(strings.Fields(made.Words)) != 6 {
		t.Fatalf("%+v", made)
	}
	if again := decode[request](t, call(h, "POST", "/api/requests", body)); again.ID != made.ID {
		t.Error("the same application made two requests")
	}
	if _, err := desk.Approve(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	rec := call(h, "GET", "/api/requests/"+made.ID+"/events", "", "Authorization", "Bearer "+ticket)
	if !strings.HasPrefix(rec.Body.String(), "event: state\n") || !strings.Contains(rec.Body.String(), `"state":"issued"`) {
		t.Errorf("events: %s", rec.Body)
	}
	other, _ := newCSR(t)
	if rec := call(h, "POST", "/api/requests", application(t, other, "code", text)); rec.Code != http.StatusForbidden {
		t.Errorf("a used code: %d %s", rec.Code, rec.Body)
	}
	for range 10 {
		rec = call(h, "POST", "/api/code", `{"code":"WRONG"}`)
	}
	if f := decode[fault](t, rec); rec.Code != http.StatusTooManyRequests || f.Retry < 1 || rec.Header().Get("Retry-After") == "" {
		t.Errorf("who guesses: %d %+v", rec.Code, f)
	}
}
