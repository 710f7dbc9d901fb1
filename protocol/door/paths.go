package door

import (
	"cmp"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// NewPaths serves several handlers under one host, each below its prefix
// ("/x/"; "/" takes the rest). The longest prefix wins. "/x" is redirected to
// "/x/". Handlers get requests unchanged: a Proxy strips its own Prefix.
//
// Paths that another reader could understand differently (dot segments,
// encoded slashes, backslashes) are refused with 400, whatever the prefix: the
// path that chose the handler is the path that the handler forwards.
func NewPaths(routes map[string]http.Handler) http.Handler {
	p := &paths{routes: maps.Clone(routes)}
	p.prefixes = slices.SortedFunc(maps.Keys(routes), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) // longest first
	})
	return p
}

type paths struct {
	prefixes []string // longest first
	routes   map[string]http.Handler
}

func (p *paths) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw := rawPath(r.URL)
	if !plainPath(r.URL.Path, raw) {
		badRequest("The address is ambiguous.").write(w, r)
		return
	}
	for _, prefix := range p.prefixes {
		if !strings.HasPrefix(r.URL.Path+"/", prefix) {
			continue
		}
		if !strings.HasPrefix(raw+"/", prefix) {
			badRequest("The address is ambiguous.").write(w, r) // "/%78/" for "/x/"
			return
		}
		if len(raw) < len(prefix) {
			redirectInto(w, beforePath(r)+prefix[1:], r.URL)
			return
		}
		p.routes[prefix].ServeHTTP(w, r)
		return
	}
	noSuchPage().write(w, r)
}

func noSuchPage() *page {
	return &page{status: http.StatusNotFound, title: "Nothing here", text: "No service has this address."}
}

// redirectInto adds the slash that relative links need. Temporarily: a browser
// would remember a permanent one after the route has gone.
func redirectInto(w http.ResponseWriter, prefix string, u *url.URL) {
	target := prefix
	if u.RawQuery != "" || u.ForceQuery {
		target += "?" + u.RawQuery
	}
	w.Header().Set("Location", target)
	w.WriteHeader(http.StatusTemporaryRedirect)
}

// rawPath returns the path as it came, byte for byte: RawPath where Go would
// escape differently.
func rawPath(u *url.URL) string {
	if u.RawPath != "" {
		if decoded, err := url.PathUnescape(u.RawPath); err == nil && decoded == u.Path {
			return u.RawPath
		}
	}
	return u.EscapedPath()
}

// stripPrefix returns the raw path below prefix, with its leading slash.
func stripPrefix(decoded, raw, prefix string) (string, *page) {
	switch {
	case !plainPath(decoded, raw):
		return "", badRequest("The address is ambiguous.")
	case !strings.HasPrefix(raw, prefix):
		return "", noSuchPage()
	}
	rest := raw[len(prefix)-1:]
	if strings.HasPrefix(rest, "//") {
		return "", badRequest("The address is ambiguous.") // "//host/" is another host to many
	}
	return rest, nil
}

// plainPath reports whether every reader finds the same segments in a path. It
// is strict: home devices have plain paths.
func plainPath(decoded, raw string) bool {
	if !strings.HasPrefix(raw, "/") || strings.HasPrefix(raw, "//") || !utf8.ValidString(decoded) {
		return false
	}
	if strings.ContainsFunc(decoded, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) {
		return false
	}
	if strings.Count(decoded, "/") != strings.Count(raw, "/") {
		return false // %2f
	}
	// A reader that decodes twice must not find more either.
	lower := strings.ToLower(decoded)
	for _, trick := range []string{"%2e", "%2f", "%5c", "%00"} {
		if strings.Contains(lower, trick) {
			return false
		}
	}
	if strings.Contains(strings.ToLower(raw), "%2e") {
		return false
	}
	for segment := range strings.SplitSeq(decoded, "/") {
		name, _, _ := strings.Cut(segment, ";") // "..;x" is ".." to servlet containers
		if name == "." || name == ".." {
			return false
		}
	}
	return true
}
