package door

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// Browsers send reports with the address of the document: with a secret in the
// path, they would send that, too.
func TestNoReportsFromBehindASecret(t *testing.T) {
	t.Parallel()
	const collector = "https://collector.example/r"
	loud := func(h http.Header) {
		h.Set("Report-To", `{"group":"g","max_age":9,"endpoints":[{"url":"`+collector+`"}]}`)
		h.Set("NEL", `{"report_to":"g","max_age":9,"success_fraction":1}`)
		h.Set("Reporting-Endpoints", `g="`+collector+`"`)
		h.Set("X-XSS-Protection", "1; mode=block; report="+collector)
		for _, name := range []string{"Content-Security-Policy", "Content-Security-Policy-Report-Only", "X-WebKit-CSP"} {
			h[http.CanonicalHeaderKey(name)] = []string{
				"default-src 'self'; report-uri " + collector + "; script-src 'report-sample'",
				"Report-URI " + collector, "img-src *, \treport-to g;REPORT-TO\tg ; font-src *",
			}
		}
	}
	pages := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		loud(rw.Header())
		if r.URL.Path == "/early" {
			rw.WriteHeader(http.StatusEarlyHints)
		}
		io.WriteString(rw, "home")
	})
	w := tokenWorld(t, pages, nil)
	w.site("pub.test", None, w.proxyTo(pages, nil))
	for _, path := range []string{"/", "/early"} {
		answer := w.raw("tv.test", nil, get("/"+tv+path))
		folded := strings.ToLower(answer)
		if !strings.HasSuffix(answer, "home") || strings.Contains(folded, " 103 ") != (path == "/early") {
			t.Errorf("%s: %q", path, answer)
		}
		for _, word := range []string{"collector", "report-to", "report-uri", "\nnel:", "reporting-endpoints", "xss", "report=", "/r"} {
			if strings.Contains(folded, word) {
				t.Errorf("%s: %s is left: %s", path, word, answer)
			}
		}
	}
	// The rest of a policy holds, and other ways in get everything.
	res, err := w.client("tv.test", nil, true).Get("https://tv.test/" + tv + "/")
	ok(t, err)
	res.Body.Close()
	for _, name := range []string{"Content-Security-Policy", "Content-Security-Policy-Report-Only"} {
		if got := strings.Join(res.Header.Values(name), "|"); got != "default-src 'self'; script-src 'report-sample'|img-src *, font-src *" {
			t.Errorf("%s: %q", name, got)
		}
	}
	want := http.Header{}
	loud(want)
	for host, secret := range map[string]string{"pub.test": "", "tv.test": "Bearer " + tv} {
		req, _ := http.NewRequest("GET", "https://"+host+"/", nil)
		req.Header.Set("Authorization", secret)
		res, err := w.client(host, nil, true).Do(req)
		ok(t, err)
		res.Body.Close()
		for name, values := range want {
			if got := res.Header[name]; strings.Join(got, "|") != strings.Join(values, "|") {
				t.Errorf("%s: %s is %q", host, name, got)
			}
		}
	}
}

func TestWithoutReports(t *testing.T) {
	for policy, want := range map[string]string{
		"":                                    "",
		"default-src 'self'":                  "default-src 'self'",
		" default-src  'self' ;; img-src *;,": " default-src  'self' ;; img-src *;,", // nothing to take out: as it is
		"report-uri":                          "",
		"report-uri /x;":                      "",
		"\fREPORT-URI\f/x, report-to y":       "",
		"a b; report-to y, c d":               "a b, c d",
		"report-to y; a report-uri b":         " a report-uri b",
		"xreport-uri /x":                      "xreport-uri /x",
	} {
		if got := withoutReports(policy); got != want {
			t.Errorf("%q: %q, want %q", policy, got, want)
		}
	}
}
