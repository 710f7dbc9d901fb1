package door

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// A holder is a device whose secret came over a connection.
type holder struct {
	secret string // to judge it again while a request of it is still running
	device Device
	seen   time.Time
}

// A stripped says that a request came with a secret. prefix is what was taken
// off its path, "/SECRET/"; empty when the secret came in a header.
type stripped struct{ prefix string }

// putBack makes an answer fit for the address that the visitor sees. in is the
// request without the secret.
func (s *stripped) putBack(h http.Header, in *http.Request) {
	h.Set("Referrer-Policy", "no-referrer") // the address holds the secret
	if s.prefix != "" {
		mapBack(h, s.prefix, rawPath(in.URL), in.Host)
		dropReports(h)
	}
}

// beforePath returns what stood before a request's path when it came, "/" or
// "/SECRET/".
func beforePath(r *http.Request) string {
	if s, ok := r.Context().Value(secretKey).(*stripped); ok && s.prefix != "" {
		return s.prefix
	}
	return "/"
}

// conceal replaces what a request is refused with before its secret was looked
// for: a token site says one thing only.
func (v *visit) conceal(p *page) *page {
	if v.site.Mode == Token && p != &misdirected {
		return &unknownPage
	}
	return p
}

// serveToken serves a request to a token site: with a good secret, or with the
// unknown page.
func (v *visit) serveToken(w http.ResponseWriter, r *http.Request, site *Site) {
	secret, inPath := v.redeem(r)
	if secret == nil {
		unknownPage.write(w, r)
		return
	}
	clean, ok := withoutSecret(r, secret.secret, inPath)
	if !ok || !secret.device.permits(clean) {
		unknownPage.write(w, r)
		return
	}
	prefix := ""
	if inPath {
		prefix = "/" + secret.secret + "/"
		if !strings.HasPrefix(r.URL.Path, prefix) && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			w.Header().Set("Referrer-Policy", "no-referrer")
			redirectInto(w, prefix, r.URL) // relative links need the slash
			return
		}
	}
	visitor := v.visitor
	visitor.Device = &secret.device
	ctx := context.WithValue(clean.Context(), secretKey, &stripped{prefix: prefix})
	w.Header().Set("Referrer-Policy", "no-referrer")
	site.Handler.ServeHTTP(w, clean.WithContext(WithVisitor(ctx, visitor)))
}

// redeem finds a good secret in a request. The first path segment comes before
// the header, which may be meant for home. A request with a good secret is no
// guess, whatever else it holds that looks like one.
func (v *visit) redeem(r *http.Request) (h *holder, inPath bool) {
	segment, _, _ := strings.Cut(strings.TrimPrefix(rawPath(r.URL), "/"), "/")
	bearer := ""
	if scheme, value, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "bearer") {
		bearer = strings.TrimSpace(value)
	}
	g := v.door.guesses
	var wrong []*guess
	for _, secret := range []string{segment, bearer} {
		if !secretShaped(secret) {
			continue
		}
		t := g.begin(v.visitor.Remote.Addr(), v.visitor.Host, secret)
		if t == nil {
			continue
		}
		now := v.door.cfg.Now()
		dev, denial := v.checkToken(secret, now)
		if denial == DeniedUnknown {
			wrong = append(wrong, t)
			continue
		}
		g.right(t, denial == "")
		if denial != "" {
			v.refused(denial, dev.Name)
			return nil, false
		}
		for _, t := range wrong {
			g.right(t, false)
		}
		return v.admit(dev, secret, now), secret == segment
	}
	for _, t := range wrong {
		if g.wrong(t) {
			v.auditGuessing()
		}
	}
	return nil, false
}

func (v *visit) checkToken(secret string, now time.Time) (Device, string) {
	dev, denial := v.door.cfg.CheckToken(v.visitor.Host, secret, now)
	dev.Cert, dev.Chain = nil, nil
	return dev, stricter(dev, denial, now)
}

// admit notes the holder of a good secret. From then on Disconnect finds the
// connection; one more look misses nothing that happened before.
func (v *visit) admit(dev Device, secret string, now time.Time) *holder {
	h := &holder{secret: secret, device: dev, seen: now}
	v.mu.Lock()
	i := slices.IndexFunc(v.holders, func(o *holder) bool { return o.device.ID == dev.ID })
	fresh, tell := i < 0, true
	if fresh {
		v.holders = append(v.holders, h)
	} else {
		old := v.holders[i]
		if tell = now.Sub(old.seen).Abs() >= time.Minute; !tell {
			h.seen = old.seen
		}
		fresh = !old.device.Until.Equal(dev.Until) // the timer is set for the old one
		v.holders[i] = h                           // never changed: requests share it
	}
	v.mu.Unlock()
	if i < 0 {
		v.door.file(v, dev.ID)
		if again, denial := v.checkToken(secret, now); denial != "" || again.ID != dev.ID {
			return nil
		}
	}
	if fresh {
		v.rewatch()
	}
	if tell && v.door.cfg.Seen != nil {
		v.door.cfg.Seen(dev.ID)
	}
	return h
}

// held returns whose secrets came over this connection.
func (v *visit) held() []*holder {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.holders)
}

// holdersStand reports whether all of them still have the rights with which
// their requests began.
func (v *visit) holdersStand() bool {
	now := v.door.cfg.Now()
	changed := false
	for _, h := range v.held() {
		dev, denial := v.checkToken(h.secret, now)
		if denial != "" || dev.ID != h.device.ID || dev.Path != h.device.Path {
			return false
		}
		if !dev.Until.Equal(h.device.Until) {
			changed = true
			v.replace(h, dev)
		}
	}
	if changed {
		v.rewatch()
	}
	return true
}

// replace notes that a holder's device has changed.
func (v *visit) replace(old *holder, dev Device) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if i := slices.Index(v.holders, old); i >= 0 {
		v.holders[i] = &holder{secret: old.secret, device: dev, seen: old.seen}
	}
}

// who names the devices of a connection for the log.
func (v *visit) who() string {
	if v.site.Mode != Token {
		return v.device.Name
	}
	var all []string
	for _, h := range v.held() {
		all = append(all, h.device.Name)
	}
	return strings.Join(all, " ")
}

const minSecret, maxSecret = 16, 128

// secretShaped reports whether a string may be a secret at all. Nothing else is
// looked up or counted: the favicon and the style sheets of a page that knows
// nothing of its prefix are no guesses.
func secretShaped(s string) bool {
	if len(s) < minSecret || len(s) > maxSecret {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// permits reports whether a device may ask for this, judged like NewPaths
// does. Destination is the second path of WebDAV's COPY and MOVE.
func (d *Device) permits(r *http.Request) bool {
	if d.Path == "" {
		return true
	}
	below := func(u *url.URL) bool {
		raw := rawPath(u)
		return plainPath(u.Path, raw) && strings.HasPrefix(raw, d.Path)
	}
	for _, to := range r.Header["Destination"] {
		u, err := url.Parse(to)
		if err != nil || u.Opaque != "" || u.User != nil || u.Host != "" && !sameHost(u, r.Host) || !below(u) {
			return false
		}
	}
	return below(r.URL)
}

// withoutSecret returns the request as home may see it. What the visitor wrote
// into the query or the body is his own and goes as it is.
func withoutSecret(r *http.Request, secret string, inPath bool) (*http.Request, bool) {
	clean := r.WithContext(r.Context()) // shallow: net/http fills its trailers
	clean.Header = r.Header.Clone()
	hide(clean.Header, secret)
	if !inPath {
		return clean, true
	}
	prefix, decoded, raw := "/"+secret+"/", r.URL.Path, rawPath(r.URL)
	if raw == prefix[:len(prefix)-1] {
		decoded, raw = prefix, prefix
	}
	rest, refusal := stripPrefix(decoded, raw, prefix)
	if refusal != nil {
		return nil, false
	}
	u := *r.URL
	u.Path, u.RawPath = decoded[len(prefix)-1:], rest
	clean.URL = &u
	clean.RequestURI = rest
	if u.ForceQuery || u.RawQuery != "" {
		clean.RequestURI += "?" + u.RawQuery
	}
	return clean, true
}

// hide takes a secret out of headers: off addresses (Destination, Referer), and
// where it stands otherwise (Authorization) with the whole value.
func hide(h http.Header, secret string) {
	needle := strings.ToLower(secret)
	holds := func(v string) bool { return strings.Contains(strings.ToLower(v), needle) }
	for name, values := range h {
		if !slices.ContainsFunc(values, holds) {
			continue
		}
		kept := values[:0]
		for _, v := range values {
			if v = strings.ReplaceAll(v, "/"+secret+"/", "/"); !holds(v) {
				kept = append(kept, v)
			}
		}
		if h[name] = kept; len(kept) == 0 {
			delete(h, name)
		}
	}
}

// source is what guesses are counted by: an IPv4 address, or the /64 that an
// IPv6 visitor can choose freely from.
func source(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits) // zero for an unknown address: those share one
	return p
}
