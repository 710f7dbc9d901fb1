package door

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/sallyport/sallyport/protocol/names"
)

// mapBack puts the prefix back into what the backend, who does not know it,
// says about its own addresses. asked is the path that the backend was asked
// for, host the visitor's.
func mapBack(h http.Header, prefix, asked, host string) {
	for _, name := range []string{"Location", "Content-Location"} {
		for i, v := range h[name] {
			h[name][i] = mapURL(v, prefix, asked, host)
		}
	}
	for i, v := range h["Refresh"] {
		h["Refresh"][i] = mapRefresh(v, prefix, asked, host)
	}
	for i, v := range h["Set-Cookie"] {
		h["Set-Cookie"][i] = mapCookie(v, prefix)
	}
}

// mapURL maps a reference that means the backend itself; others stay as they
// are, byte for byte.
func mapURL(ref, prefix, asked, host string) string {
	u, err := url.Parse(ref)
	if err != nil {
		return ref
	}
	switch {
	case u.Opaque != "" || u.User != nil:
		return ref
	case u.Host != "":
		if !sameHost(u, host) {
			return ref
		}
		// "http://host/x": backends rarely know that TLS is in front of them. Path
		// alone is always right.
		_, rest, _ := strings.Cut(ref, "//")
		rest = rest[min(len(rest), strings.IndexAny(rest+"/", "/?#")):]
		if !strings.HasPrefix(rest, "/") {
			rest = "/" + rest
		}
		return addPrefix(rest, prefix)
	case u.Scheme != "":
		return ref
	case strings.HasPrefix(ref, "/"):
		return addPrefix(ref, prefix)
	case strings.Contains(u.Path, ".."):
		// Could climb above the prefix: resolve as the backend meant it.
		base, err := url.Parse("http://home" + asked)
		if err != nil {
			return ref
		}
		to := base.ResolveReference(u)
		to.Scheme, to.Host = "", ""
		return addPrefix(to.String(), prefix)
	}
	return ref
}

// addPrefix leaves alone what already has it: some backends are told their
// prefix (X-Forwarded-Prefix).
func addPrefix(path, prefix string) string {
	path = withoutDots(path)
	bare := prefix[:len(prefix)-1]
	if rest, ok := strings.CutPrefix(path, bare); ok && (rest == "" || strings.ContainsRune("/?#", rune(rest[0]))) {
		return path
	}
	return bare + path
}

// withoutDots resolves the dot segments of an absolute path as browsers do
// (URL standard: "%2e" is a dot, a backslash a slash): behind the prefix,
// "/../x" would climb above it. A path without any stays as it is.
func withoutDots(ref string) string {
	end := strings.IndexAny(ref+"?", "?#")
	segments := strings.Split(strings.ReplaceAll(ref[:end], `\`, "/"), "/")
	kept, dots := make([]string, 0, len(segments)), false
	for i, segment := range segments {
		dot := strings.ReplaceAll(strings.ToLower(segment), "%2e", ".")
		if dot != "." && dot != ".." {
			kept = append(kept, segment)
			continue
		}
		dots = true
		if dot == ".." && len(kept) > 1 {
			kept = kept[:len(kept)-1]
		}
		if i == len(segments)-1 {
			kept = append(kept, "")
		}
	}
	if !dots {
		return ref
	}
	return strings.Join(kept, "/") + ref[end:]
}

func sameHost(u *url.URL, host string) bool {
	if u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https" {
		return false
	}
	a, errA := names.CanonicalHost(u.Host)
	b, errB := names.CanonicalHost(host)
	return errA == nil && errB == nil && a == b
}

// mapRefresh maps the address in "5; url=/x". Browsers (HTML standard, "shared
// declarative refresh steps") ask neither for the "url=" nor for the semicolon.
func mapRefresh(v, prefix, asked, host string) string {
	v = strings.TrimLeft(v, " \t")
	seconds := v[:len(v)-len(strings.TrimLeft(v, "0123456789."))]
	rest := v[len(seconds):]
	if seconds == "" || rest == "" || !strings.ContainsRune(";, \t", rune(rest[0])) {
		return v
	}
	rest = strings.TrimLeft(rest, " \t")
	if rest != "" && (rest[0] == ';' || rest[0] == ',') {
		rest = strings.TrimLeft(rest[1:], " \t")
	}
	if len(rest) > 3 && strings.EqualFold(rest[:3], "url") {
		if value, ok := strings.CutPrefix(strings.TrimLeft(rest[3:], " \t"), "="); ok {
			rest = strings.TrimLeft(value, " \t")
		}
	}
	quote := ""
	if rest != "" && (rest[0] == '\'' || rest[0] == '"') {
		quote = rest[:1]
		rest, _, _ = strings.Cut(rest[1:], quote)
	}
	rest = strings.TrimRight(rest, " \t")
	if to := mapURL(rest, prefix, asked, host); to != rest {
		return seconds + "; url=" + quote + to + quote
	}
	return v
}

// mapCookie maps the Path of a cookie. Without Path, browsers use the address
// that they see, which is right already. "__Host-" cookies must keep "/".
func mapCookie(v, prefix string) string {
	if len(v) >= 7 && strings.EqualFold(v[:7], "__Host-") {
		return v
	}
	parts := strings.Split(v, ";")
	for i, part := range parts[1:] {
		name, value, _ := strings.Cut(part, "=")
		value = strings.TrimSpace(value)
		if strings.EqualFold(strings.TrimSpace(name), "path") && strings.HasPrefix(value, "/") {
			parts[i+1] = name + "=" + addPrefix(value, prefix)
		}
	}
	return strings.Join(parts, ";")
}
