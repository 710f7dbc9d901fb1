// Package names holds the one canonicaliser and the one matcher of host names
// in Sallyport. TLS policy, certificate choice, routing, requests and host
// grants all go through it; two places that read a name differently are how
// a visitor gets past a door (DESIGN §6.1).
//
// A name is canonicalised where it enters: [Canonical] for the server name of
// a ClientHello, [CanonicalHost] for the Host of a request, [ValidPattern] for
// what owners and agents write. Everything else takes canonical names and
// compares bytes. An error means: refuse, never fall back.
package names
