package door

import (
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Headers that say who a visitor is, or where he asked. Backends believe them,
// so that nobody but us may send them: they are deleted from every request,
// whether or not we set them, in headers and trailers. Names are compared
// folded, because CGI-like backends cannot tell "-", "_" (GHSA-f59h) and, with
// lighttpd, any other sign apart.
var (
	identityNames = []string{
		"client-cert", "client-cert-chain", // RFC 9440
		"forwarded", "x-forwarded", "x-real-ip", "true-client-ip", "x-cluster-client-ip", "x-proxyuser-ip",
		"cf-connecting-ip", "fastly-client-ip", "x-original-forwarded-for",
		// The path that was judged is the path at home. gunicorn takes the first
		// ones as if they came from its own server.
		"script-name", "path-info", "path-translated", "x-script-name", "x-ingress-path", "x-override-url",
		"x-original-url", "x-original-uri", "x-original-host", "x-original-method", "x-rewrite-url",
		"x-host", "x-arr-clientcert", "auth-user",
		"proxy",          // becomes HTTP_PROXY in CGI
		"http2-settings", // of an h2c upgrade
	}
	identityPrefixes = []string{
		"sallyport-", "x-forwarded-", "x-ssl-", "ssl-client-", "x-client-",
		"remote-", "x-remote-", "x-webauth-", "x-auth-request-", "x-authentik-", "x-amzn-mtls-",
		"x-auth-user", "tailscale-user-", "cf-access-", "x-goog-authenticated-user-", "x-ms-client-principal", "x-pomerium-",
	}
)

// isIdentity reports whether a header or trailer is one that only we may set.
func isIdentity(name string) bool {
	folded := foldName(name)
	return slices.Contains(identityNames, folded) ||
		slices.ContainsFunc(identityPrefixes, func(p string) bool { return strings.HasPrefix(folded, p) })
}

// foldName is a header's name in lower case, with "-" for every sign.
func foldName(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, name)
}

func stripIdentity(h http.Header) {
	for name := range h {
		if isIdentity(name) {
			delete(h, name)
		}
	}
}

// setIdentity says who asks. It runs after stripIdentity and after
// ReverseProxy removed what the visitor's Connection header names.
func setIdentity(h http.Header, v Visitor, host, proto, port, prefix string, remoteUser bool) {
	h.Set("X-Forwarded-Proto", proto)
	h.Set("X-Forwarded-Host", host)
	if port != "" {
		h.Set("X-Forwarded-Port", port)
	}
	if prefix != "" {
		h.Set("X-Forwarded-Prefix", strings.TrimSuffix(prefix, "/"))
	}
	forwarded := "host=" + quoted(host) + ";proto=" + proto
	if ip := v.Remote.Addr().WithZone(""); ip.IsValid() {
		h.Set("X-Forwarded-For", ip.String())
		h.Set("X-Real-IP", ip.String())
		forwarded = "for=" + forwardedNode(ip) + ";" + forwarded
	}
	h.Set("Forwarded", forwarded)
	if v.Device == nil {
		return
	}
	h.Set("Sallyport-Device", headerName(*v.Device))
	if remoteUser {
		h.Set("Remote-User", headerName(*v.Device))
	}
	if v.Device.Cert == nil {
		return
	}
	h.Set("Client-Cert", byteSequence(v.Device.Cert)) // RFC 9440 §2.2
	if len(v.Device.Chain) > 0 {
		chain := make([]string, len(v.Device.Chain))
		for i, c := range v.Device.Chain {
			chain[i] = byteSequence(c)
		}
		h.Set("Client-Cert-Chain", strings.Join(chain, ", ")) // RFC 9440 §2.3
	}
}

// byteSequence is a certificate as a structured field (RFC 8941 §3.3.5).
func byteSequence(c *x509.Certificate) string {
	return ":" + base64.StdEncoding.EncodeToString(c.Raw) + ":"
}

// forwardedNode is an address as RFC 7239 §6 wants it.
func forwardedNode(ip netip.Addr) string {
	if ip.Is6() {
		return `"[` + ip.String() + `]"`
	}
	return ip.String()
}

// quoted is a value for Forwarded: a token as it is, anything else in quotes
// (RFC 7239 §4).
func quoted(s string) string {
	token := func(r rune) bool {
		return r < 0x7f && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !token(r) }) {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// headerName is the device's name if it fits into a header as it is, otherwise
// its ID.
func headerName(d Device) string {
	plain := func(r rune) bool { return r > ' ' && r < 0x7f && !strings.ContainsRune(`",;\`, r) }
	if d.Name != "" && !strings.ContainsFunc(d.Name, func(r rune) bool { return !plain(r) }) {
		return d.Name
	}
	return d.ID
}
