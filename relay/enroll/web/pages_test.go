package web

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"html"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/relay/enroll"
)

// says reports what a page shows, as a person reads it.
func says(rec interface{ String() string }) string { return html.UnescapeString(rec.String()) }

func TestSelfTest(t *testing.T) {
	w := newWorld(t)
	w.device = w.newDevice("anna-phone", 365*24*hour)
	rec := call(w.check(), "GET", "/", "")
	end := w.device.Cert.NotAfter.UTC().Format(day)
	if got := says(rec.Body); rec.Code != 200 || !strings.Contains(got, "<h1>Certificate seen: anna-phone</h1>") || !strings.Contains(got, end) || strings.Contains(got, "/renew") {
		t.Errorf("%d %s", rec.Code, got)
	}
	w.device.Until = w.device.Cert.NotAfter.Add(-time.Hour)
	if got := says(call(w.check(), "GET", "/", "").Body); !strings.Contains(got, "lets it in until "+w.device.Until.UTC().Format(day+", 15:04 UTC")) {
		t.Errorf("a guest is told: %s", got)
	}
	w.device.Until = time.Time{}
	w.pages.cfg.Now = func() time.Time { return w.device.Cert.NotAfter.AddDate(0, 0, -29) }
	if got := says(call(w.check(), "GET", "/", "").Body); !strings.Contains(got, `href="/renew"`) || !strings.Contains(got, "ends soon, on "+end) {
		t.Errorf("29 days before the end: %s", got)
	}
	w.pages.cfg.Hosts = func(*door.Device) []string { return []string{"ha.home.test"} }
	if got := says(call(w.check(), "GET", "/", "").Body); !strings.Contains(got, `href="https://ha.home.test`+w.pages.cfg.Port+`/"`) {
		t.Errorf("where the device may go: %s", got)
	}
	w.device = nil
	if rec := call(w.check(), "GET", "/", ""); rec.Code != 401 || strings.Contains(says(rec.Body), "seen:") {
		t.Errorf("nobody: %d", rec.Code)
	}
}

// TestDue: the last 30 days, or the last quarter of a shorter life.
func TestDue(t *testing.T) {
	w := newWorld(t)
	now := time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC)
	w.pages.cfg.Now = func() time.Time { return now }
	for _, c := range []struct {
		life, left int // days
		due        bool
	}{
		{365, 31, false},
		{365, 29, true},
		{90, 23, false},
		{90, 22, true},
		{1, 1, false},
		{365, -1, true},
	} {
		end := now.AddDate(0, 0, c.left)
		d := &door.Device{Cert: &x509.Certificate{NotBefore: end.AddDate(0, 0, -c.life), NotAfter: end}}
		if got := w.pages.nearItsEnd(d); got != c.due {
			t.Errorf("%+v: %v", c, got)
		}
	}
	if w.pages.nearItsEnd(nil) || w.pages.nearItsEnd(&door.Device{}) {
		t.Error("a device without a certificate is due")
	}
}

func TestRenewPage(t *testing.T) {
	w := newWorld(t)
	w.device = w.newDevice("anna-phone", 10*24*hour)
	for from, link := range map[string]string{
		"":                             "",
		"?from=photos.home.test":       `href="https://photos.home.test:8443/"`,
		"?from=PHOTOS.home.test.":      `href="https://photos.home.test:8443/"`,
		"?from=evil.test":              "",
		"?from=https://evil.test/":     "",
		"?from=photos.home.test/x":     "",
		"?from=evil.test%23photos":     "",
		"?from=//evil.test":            "",
		"?from=javascript:alert(1)":    "",
		"?from=photos.home.test@evil":  "",
		"?from=x%22onclick=%22alert()": "",
	} {
		rec := call(w.check(), "GET", "/renew"+from, "")
		got := rec.Body.String()
		if rec.Code != 200 || strings.Contains(got, ">Later<") != (link != "") || !strings.Contains(got, link) || strings.Contains(got, "evil") {
			t.Errorf("%s: %d %s", from, rec.Code, got)
		}
	}
	w.device = nil
	if rec := call(w.check(), "GET", "/renew", ""); rec.Code != 401 {
		t.Errorf("nobody: %d", rec.Code)
	}
}

func TestRenew(t *testing.T) {
	w := newWorld(t)
	csr, key := newCSR(t)
	body := application(t, csr)
	if rec := call(w.check(), "POST", "/api/renew", body); rec.Code != 401 {
		t.Errorf("nobody renewed: %d %s", rec.Code, rec.Body)
	}
	w.device = w.newDevice("anna-phone", 10*24*hour)
	rec := call(w.check(), "POST", "/api/renew", body)
	got := decode[struct {
		Name  string
		Cert  []byte
		CA    [][]byte
		Until time.Time
	}](t, rec)
	cert, err := x509.ParseCertificate(got.Cert)
	if rec.Code != 201 || err != nil || !key.PublicKey.Equal(cert.PublicKey) || got.Name != "anna-phone" ||
		len(got.CA) != 1 || !bytes.Equal(got.CA[0], w.ca.Cert().Raw) || !got.Until.Equal(cert.NotAfter) {
		t.Errorf("%d %+v %v", rec.Code, got, err)
	}
	forged := bytes.Clone(csr)
	forged[len(forged)-1] ^= 1
	if rec := call(w.check(), "POST", "/api/renew", application(t, forged)); rec.Code != 400 {
		t.Errorf("forged: %d %s", rec.Code, rec.Body)
	}
}

func TestDenied(t *testing.T) {
	for _, open := range []bool{false, true} {
		w := newWorld(t, func(c *Config) { c.Open = open })
		titles := map[string]bool{}
		for _, denial := range []string{door.DeniedMissing, door.DeniedUnknown, door.DeniedExpired, door.DeniedRevoked, door.DeniedHost} {
			rec := call(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.pages.Denied(rw, r, denial) }), "GET", "/any/page", "")
			got := says(rec.Body)
			_, title, _ := strings.Cut(got, "<h1>")
			title, _, _ = strings.Cut(title, "</h1>")
			titles[title] = true
			h := rec.Header()
			if rec.Code != 401 || h.Get("Cache-Control") != "no-store" || h.Get("Connection") != "close" ||
				!strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'; style-src 'sha256-") || strings.Contains(h.Get("Content-Security-Policy"), "script-src") {
				t.Errorf("%s: %d %v", denial, rec.Code, h)
			}
			wants := `href="https://enroll.home.test:8443/"`
			if denial == door.DeniedHost {
				wants = `href="https://check.home.test:8443/"`
			}
			if !strings.Contains(got, wants) || strings.Contains(got, "<script") || strings.Contains(got, "/assets/") {
				t.Errorf("%s: %s", denial, got)
			}
			if asks := strings.Contains(got, "Ask to be let in"); asks != (open && denial != door.DeniedHost) {
				t.Errorf("%s, open %v: offers to ask: %v", denial, open, asks)
			}
		}
		if len(titles) != 5 {
			t.Errorf("five denials have %d titles: %v", len(titles), titles)
		}
	}
}

func TestProfile(t *testing.T) {
	const form = "application/x-www-form-urlencoded"
	if rec := call(newWorld(t).pages.Enroll(), "POST", "/profile", "code="+code, "Content-Type", form); rec.Code != 404 {
		t.Errorf("not offered: %d", rec.Code)
	}
	var name string
	w := newWorld(t, func(c *Config) {
		c.Profile = func(given string, r *http.Request) ([]byte, error) {
			name = r.PostFormValue("name")
			if given != code {
				return nil, enroll.ErrCode
			}
			return []byte("<plist/>"), nil
		}
	})
	h := w.pages.Enroll()
	rec := call(h, "POST", "/profile", "code="+code+"&name=anna-phone", "Content-Type", form, "Origin", "null")
	if rec.Code != 200 || rec.Body.String() != "<plist/>" || rec.Header().Get("Content-Type") != "application/x-apple-aspen-config" || name != "anna-phone" {
		t.Errorf("%d %v %q", rec.Code, rec.Header(), name)
	}
	if got := rec.Header().Get("Content-Disposition"); got != `attachment; filename="home.test.mobileconfig"` {
		t.Error(got)
	}
	for _, c := range []struct {
		target, body, kind string
		status             int
		says               string
	}{
		{"/profile", "code=WRONG", form, 403, "The code is not valid"},
		{"/profile?code=" + code, "", form, 400, "no code"},
		{"/profile?code=" + code, "name=x", form, 400, "no code"},
		{"/profile", `{"code":"` + code + `"}`, "application/json", 415, "not the form"},
		{"/profile", "code=" + strings.Repeat("A", maxBody), form, 413, "too large"},
		{"/profile", "code=%zz", form, 400, "no code"},
	} {
		rec := call(h, "POST", c.target, c.body, "Content-Type", c.kind)
		if rec.Code != c.status || !strings.Contains(says(rec.Body), c.says) || !strings.HasPrefix(rec.Header().Get("Content-Type"), "text/html") {
			t.Errorf("%s %.40s: %d %s", c.target, c.body, rec.Code, rec.Body)
		}
	}
	// What went wrong inside stays inside.
	w.pages.cfg.Profile = func(string, *http.Request) ([]byte, error) { return nil, errors.New("no key in /var/lib") }
	if rec := call(h, "POST", "/profile", "code="+code, "Content-Type", form); rec.Code != 500 || strings.Contains(rec.Body.String(), "/var/lib") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

func TestRoot(t *testing.T) {
	if rec := call(newWorld(t).pages.Enroll(), "GET", "/root.crt", ""); rec.Code != 404 {
		t.Errorf("no root: %d", rec.Code)
	}
	w := newWorld(t)
	w.pages.cfg.Roots = func() []*x509.Certificate { return []*x509.Certificate{w.ca.Cert()} }
	rec := call(w.pages.Enroll(), "GET", "/root.crt", "")
	block, rest := pem.Decode(rec.Body.Bytes())
	if rec.Code != 200 || block == nil || len(rest) != 0 || !bytes.Equal(block.Bytes, w.ca.Cert().Raw) {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

func TestNamesAreEscaped(t *testing.T) {
	w := newWorld(t)
	w.device = w.newDevice("anna", 10*24*hour)
	w.device.Name = `<script>alert(1)</script>"onload="x`
	for _, target := range []string{"/", "/renew"} {
		if got := call(w.check(), "GET", target, "").Body.String(); strings.Contains(got, "<script>") || strings.Contains(got, `"onload`) {
			t.Errorf("%s: %s", target, got)
		}
	}
}
