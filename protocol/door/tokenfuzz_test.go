package door

import (
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"
)

// reads returns how readers of a path may see it: as it is and decoded up to
// twice, with backslashes for slashes and without path parameters.
func reads(raw string) (all []string) {
	for range 3 {
		normal := strings.ReplaceAll(raw, "\\", "/")
		var segments []string
		for s := range strings.SplitSeq(normal, "/") {
			name, _, _ := strings.Cut(s, ";")
			segments = append(segments, name)
		}
		all = append(all, path.Clean(strings.Join(segments, "/"))+"/")
		decoded, err := url.PathUnescape(raw)
		if err != nil {
			break
		}
		raw = decoded
	}
	return all
}

// Whatever a visitor with a good secret sends: home gets neither the secret
// nor a path outside his.
func FuzzRequestWithSecret(f *testing.F) {
	for _, s := range []string{"/", "/api/", "/api/x?y", "/api/../x", "/api/%2e%2e/x", "//api/", "/api//x", "/%61pi/", "/api/..;/x", "/api/%252e%252e/x", `/api/..\x`, "", "/" + tv + "/api/"} {
		f.Add(s, "https://tv.test/"+tv+"/api/y", "/"+tv)
	}
	f.Fuzz(func(t *testing.T, rest, destination, referer string) {
		target := "/" + tv + rest
		u, err := url.ParseRequestURI(target)
		if err != nil || u.Host != "" || u.Opaque != "" {
			return
		}
		r := &http.Request{Method: "MOVE", URL: u, RequestURI: target, Host: "tv.test", Header: http.Header{
			"Destination": {destination}, "Referer": {referer}, "Authorization": {"Bearer " + tv, "Bearer other"},
		}}
		if segment, _, _ := strings.Cut(strings.TrimPrefix(rawPath(u), "/"), "/"); segment != tv {
			return // not this secret
		}
		clean, ok := withoutSecret(r, tv, true)
		if !ok {
			return
		}
		for name, values := range clean.Header {
			for _, v := range values {
				if strings.Contains(strings.ToLower(v), strings.ToLower(tv)) {
					t.Fatalf("home gets %s: %q", name, v)
				}
			}
		}
		if clean.Header.Get("Authorization") != "Bearer other" || r.Header.Get("Referer") != referer || r.URL != u {
			t.Fatal("the visitor's request was changed, or a header of home's was lost")
		}
		raw := rawPath(clean.URL)
		if "/"+tv+raw != rawPath(u) && (rest != "" && rest[0] == '/') || !strings.HasPrefix(raw, "/") || strings.HasPrefix(raw, "//") {
			t.Fatalf("%q became %q", target, raw)
		}
		before, _, _ := strings.Cut(clean.RequestURI, "?")
		if before != raw {
			t.Fatalf("RequestURI %q, path %q", clean.RequestURI, raw)
		}
		if !(&Device{Path: "/api/"}).permits(clean) {
			return
		}
		paths := []string{raw}
		if d := clean.Header.Get("Destination"); d != "" {
			to, err := url.Parse(d)
			if err != nil || to.Host != "" && !strings.EqualFold(strings.TrimSuffix(strings.Split(to.Host, ":")[0], "."), "tv.test") {
				t.Fatalf("moves to %q", d)
			}
			paths = append(paths, rawPath(to))
		}
		for _, p := range paths {
			for _, seen := range reads(p) {
				if !strings.HasPrefix(seen, "/api/") {
					t.Fatalf("%q: a reader sees %q", p, seen)
				}
			}
		}
	})
}
