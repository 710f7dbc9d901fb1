package web

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/relay/enroll"
)

const ticket = "tttttttttttttttttttttt"

func decode[T any](t *testing.T, rec *httptest.ResponseRecorder) (v T) {
	t.Helper()
	if kind := rec.Header().Get("Content-Type"); kind != "application/json" {
		t.Errorf("Content-Type %q", kind)
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &v); err != nil {
		t.Fatalf("%v: %s", err, rec.Body)
	}
	return v
}

// application is the body of POST /api/requests.
func application(t *testing.T, csr []byte, more ...string) string {
	t.Helper()
	m := map[string]string{"code": code, "csr": base64.StdEncoding.EncodeToString(csr), "ticket": ticket}
	for i := 0; i+1 < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	body, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestLook(t *testing.T) {
	w := newWorld(t)
	until := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	w.desk.codes[code] = enroll.Invitation{Name: "anna-phone", Approve: true, Until: until, Expires: until.Add(-time.Hour)}
	for range 3 { // looking uses nothing up
		rec := call(w.pages.Enroll(), "POST", "/api/code", `{"code":"`+code+`","new_field":1}`)
		if got := strings.TrimSpace(rec.Body.String()); rec.Code != 200 ||
			got != `{"name":"anna-phone","approve":true,"hosts":[],"until":"2027-01-02T03:04:05Z","expires":"2027-01-02T02:04:05Z"}` {
			t.Fatalf("%d %s", rec.Code, got)
		}
	}
	w.desk.codes[code] = enroll.Invitation{Hosts: []string{"photos.home.test"}}
	rec := call(w.pages.Enroll(), "POST", "/api/code", `{"code":"`+code+`"}`)
	if got := strings.TrimSpace(rec.Body.String()); got != `{"name":"","approve":false,"hosts":["photos.home.test"]}` {
		t.Error(got)
	}
}

func TestApplyAndStatus(t *testing.T) {
	w := newWorld(t)
	h := w.pages.Enroll()
	w.desk.codes[code] = enroll.Invitation{Approve: true}
	csr, key := newCSR(t)
	body := application(t, csr, "name", "anna-phone")
	rec := call(h, "POST", "/api/requests", body, "User-Agent", "Mozilla/5.0 (X)")
	made := decode[request](t, rec)
	if rec.Code != 201 || made.State != enroll.Pending || made.Name != "anna-phone" || len(strings.Fields(made.Words)) != 6 ||
		made.ID == "" || made.Expires.IsZero() || made.Cert != nil || made.CA != nil {
		t.Fatalf("%d %+v", rec.Code, made)
	}
	if a := w.desk.last; a.Source != source || a.Via != enroll.ViaBrowser || a.Agent != "Mozilla/5.0 (X)" || !bytes.Equal(a.CSR, csr) {
		t.Errorf("the desk got %+v", a)
	}
	// An answer that got lost: the same again is the same request.
	again := decode[request](t, call(h, "POST", "/api/requests", body, "User-Agent", "sallyport/1.0"))
	if again.ID != made.ID || w.desk.last.Via != enroll.ViaCLI {
		t.Errorf("the same application made %q and %q, by %q", made.ID, again.ID, w.desk.last.Via)
	}

	path := "/api/requests/" + made.ID
	for name, header := range map[string]string{
		"no ticket": "", "another scheme": "Basic " + ticket, "a short ticket": "Bearer t", "no scheme": ticket, "an empty ticket": "Bearer ",
	} {
		if rec := call(h, "GET", path, "", "Authorization", header); rec.Code != 401 {
			t.Errorf("%s: %d", name, rec.Code)
		}
	}
	if rec := call(h, "GET", path, "", "Authorization", "Bearer "+strings.Repeat("x", 22)); rec.Code != 404 {
		t.Errorf("another ticket: %d %s", rec.Code, rec.Body)
	}
	if rec := call(h, "GET", path+"?ticket="+ticket, ""); rec.Code != 401 {
		t.Errorf("a ticket in the address: %d", rec.Code)
	}
	w.desk.decide(t, true)
	got := decode[request](t, call(h, "GET", path, "", "Authorization", "bearer "+ticket))
	cert, err := x509.ParseCertificate(got.Cert)
	if err != nil || got.State != enroll.Issued || !key.PublicKey.Equal(cert.PublicKey) || !got.Expires.IsZero() {
		t.Fatalf("%+v, %v", got, err)
	}
	if len(got.CA) != 1 || !bytes.Equal(got.CA[0], w.ca.Cert().Raw) {
		t.Error("no CA beside the certificate")
	}
}

// TestApplyRefuses: what is not in order never reaches the desk, where it
// could use a code up.
func TestApplyRefuses(t *testing.T) {
	w := newWorld(t)
	w.desk.codes[code] = enroll.Invitation{Name: "anna-phone"}
	csr, _ := newCSR(t)
	forged := bytes.Clone(csr)
	forged[len(forged)-1] ^= 1
	good := application(t, csr)
	for name, c := range map[string]struct {
		body, kind string
		status     int
	}{
		"no ticket":            {application(t, csr, "ticket", ""), "application/json", 400},
		"a short ticket":       {application(t, csr, "ticket", strings.Repeat("x", 21)), "application/json", 400},
		"a long ticket":        {application(t, csr, "ticket", strings.Repeat("x", 129)), "application/json", 400},
		"a ticket of two":      {application(t, csr, "ticket", strings.Repeat("x\r\n", 9)), "application/json", 400},
		"no request":           {application(t, csr, "csr", ""), "application/json", 400},
		"no base64":            {application(t, csr, "csr", "%%%"), "application/json", 400},
		"a forged request":     {application(t, forged), "application/json", 400},
		"no JSON":              {good[1:], "application/json", 400},
		"two values":           {good + "{}", "application/json", 400},
		"a list":               {"[" + good + "]", "application/json", 400},
		"too large":            {`{"name":"` + strings.Repeat("x", maxBody) + `"}`, "application/json", 413},
		"the type of a form":   {good, "text/plain", 415},
		"the type of an image": {good, "application/json-patch+json", 415},
		"no type":              {good, "", 415},
	} {
		rec := call(w.pages.Enroll(), "POST", "/api/requests", c.body, "Content-Type", c.kind)
		if f := decode[fault](t, rec); rec.Code != c.status || f.Error == "" {
			t.Errorf("%s: %d %+v", name, rec.Code, f)
		}
	}
	if len(w.desk.codes) != 1 || len(w.desk.requests) != 0 {
		t.Error("the code was used up")
	}
}

// TestOtherSites: a page of another site can make a visitor's browser send
// requests here, but none that is answered.
func TestOtherSites(t *testing.T) {
	w := newWorld(t)
	w.device = w.newDevice("anna-phone", hour)
	csr, _ := newCSR(t)
	for _, header := range [][]string{
		{"Sec-Fetch-Site", "cross-site"},
		{"Sec-Fetch-Site", "same-site"}, // photos.home.test is no friend
		{"Origin", "https://evil.test"},
		{"Origin", "null"},
	} {
		for target, h := range map[string]http.Handler{
			"/api/code": w.pages.Enroll(), "/api/requests": w.pages.Enroll(), "/api/renew": w.check(),
		} {
			if rec := call(h, "POST", target, application(t, csr), header...); rec.Code != 403 {
				t.Errorf("%s with %v: %d", target, header, rec.Code)
			}
		}
	}
	if w.desk.looked != 0 || w.desk.last.Code != "" {
		t.Error("another site reached the desk")
	}
	if rec := call(w.check(), "POST", "/api/renew", application(t, csr), "Sec-Fetch-Site", "same-origin", "Origin", "null"); rec.Code != 201 {
		t.Errorf("our own page: %d %s", rec.Code, rec.Body)
	}
}

type retryLater struct{ error }

func (retryLater) RetryAfter() time.Duration { return 90*time.Second + 1 }

func TestFaults(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		err    error
		status int
		want   fault
		header string
	}{
		{enroll.ErrCode, 403, fault{Error: "the code is not valid: wrong, already used, or older than its time", Hint: "Ask the owner for a new link: sallyport device add NAME"}, ""},
		{&enroll.BlockedError{After: 90 * time.Second}, 429, fault{Error: "too many wrong tries from this address", Hint: "Try again in 1m30s.", Retry: 90}, "90"},
		{errors.Join(enroll.ErrBlocked, retryLater{errors.New("x")}), 429, fault{Error: "too many wrong tries from this address", Hint: "x", Retry: 91}, "91"},
		{enroll.ErrUnknown, 404, fault{Error: "no such request"}, ""},
		{enroll.ErrNameTaken, 409, fault{Error: "the name belongs to another device"}, ""},
		{enroll.ErrForm, 400, fault{Error: "the application is not in order"}, ""},
		{errors.Join(enroll.ErrNameTaken, enroll.ErrForm), 409, fault{Error: "the name belongs to another device", Hint: "the application is not in order"}, ""},
		{enroll.ErrFull, 503, fault{Error: "too many requests wait for the owner", Hint: "Ask the owner for a link, or try again tomorrow.", Retry: 3600}, "3600"},
		{errors.New("bolt: /var/lib/sallyport/db is gone"), 500, fault{Error: "the relay could not do this", Hint: "Try again in a minute. If it stays like this, tell the owner: the relay's log has the reason."}, ""},
	} {
		w.desk.failNext(c.err)
		rec := call(w.pages.Enroll(), "POST", "/api/code", `{"code":"`+code+`"}`)
		if got := decode[fault](t, rec); rec.Code != c.status || got != c.want || rec.Header().Get("Retry-After") != c.header {
			t.Errorf("%v: %d %+v %q", c.err, rec.Code, got, rec.Header().Get("Retry-After"))
		}
	}
	if log := w.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "bolt:") {
		t.Errorf("log: %s", log)
	}
}

// TestNothingSecretIsLogged, and nothing that was sent is sent back.
func TestNothingSecretIsLogged(t *testing.T) {
	w := newWorld(t)
	csr, _ := newCSR(t)
	secret := "SECRET" + code
	for _, c := range [][2]string{
		{"/api/code", `{"code":"` + secret + `"}`},
		{"/api/code", `{"code":` + secret + `}`},
		{"/api/code", `{"` + secret + `":"x","code":7}`},
		{"/api/requests", application(t, csr, "code", secret)},
		{"/api/requests", application(t, csr, "ticket", secret+"!")},
		{"/api/requests", application(t, []byte(secret))},
	} {
		w.desk.failNext(errors.New("something inside"))
		if rec := call(w.pages.Enroll(), "POST", c[0], c[1]); strings.Contains(rec.Body.String(), secret) {
			t.Errorf("%s answers %s", c[0], rec.Body)
		}
	}
	if strings.Contains(w.log.String(), secret) {
		t.Errorf("log: %s", w.log.String())
	}
}

func FuzzRequests(f *testing.F) {
	f.Add([]byte(`{"code":"A","csr":"AAAA","ticket":"tttttttttttttttttttttt"}`), "application/json; charset=utf-8")
	f.Add([]byte(`{"csr":null}`), "application/json")
	f.Add([]byte("code=a"), "application/x-www-form-urlencoded")
	f.Fuzz(func(t *testing.T, body []byte, kind string) {
		w := newWorld(t, func(c *Config) {
			c.Profile = func(string, *http.Request) ([]byte, error) { return []byte("profile"), nil }
		})
		w.device = nil
		for _, target := range []string{"/api/code", "/api/requests", "/profile"} {
			rec := call(w.pages.Enroll(), "POST", target, string(body), "Content-Type", kind)
			if rec.Code == 201 || rec.Code >= 500 {
				t.Errorf("%s: %d", target, rec.Code)
			}
		}
	})
}
