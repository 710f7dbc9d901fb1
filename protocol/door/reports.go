package door

import (
	"net/http"
	"slices"
	"strings"
)

// reporters ask browsers to tell somebody about a page or a whole host. NEL is
// kept under its canonical name. The last is of old browsers: "1; report=URL".
var reporters = []string{"Report-To", "Nel", "Reporting-Endpoints", "X-Xss-Protection"}

// policies are headers that may ask for reports besides other things. Devices
// that hold secrets may have browsers that know the old names only.
var policies = []string{
	"Content-Security-Policy", "Content-Security-Policy-Report-Only",
	"X-Content-Security-Policy", "X-Content-Security-Policy-Report-Only", "X-Webkit-Csp", "X-Webkit-Csp-Report-Only",
}

// dropReports takes out of an answer whatever makes a browser send the page's
// address, which holds the secret, to somebody else.
func dropReports(h http.Header) {
	for _, name := range reporters {
		h.Del(name)
	}
	for _, name := range policies {
		values := slices.Clone(h[name])
		for i, v := range values {
			values[i] = withoutReports(v)
		}
		if values = slices.DeleteFunc(values, func(v string) bool { return v == "" }); len(values) > 0 {
			h[name] = values
		} else {
			delete(h, name)
		}
	}
}

// withoutReports takes report-uri and report-to out of a list of policies. All
// other bytes stay as they are.
func withoutReports(list string) string {
	reports := func(directive string) bool {
		return strings.HasPrefix(strings.ToLower(strings.TrimLeft(directive, " \t\n\f\r")), "report-")
	}
	var kept []string
	for policy := range strings.SplitSeq(list, ",") {
		directives := strings.Split(policy, ";")
		n := len(directives)
		directives = slices.DeleteFunc(directives, reports)
		left := strings.Join(directives, ";")
		if len(directives) < n && strings.Trim(left, " \t\n\f\r;") == "" {
			continue // asked for reports only
		}
		kept = append(kept, left)
	}
	return strings.Join(kept, ",")
}
