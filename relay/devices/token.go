package devices

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

// A TokenGrant is what the owner gives a visitor that can hold no certificate.
// Name and Host are required.
type TokenGrant struct {
	Name  string    // as in Grant
	Host  string    // the one host that it reaches, exact; a bare label is one below the domain
	Path  string    // what it reaches there, "/api/"; empty or "/": all
	Until time.Time // zero: until it is revoked
}

const (
	tokenLabelLen = 16 // base32: 80 bits, so that hosts of tokens never meet. They are no secret: DNS and certificate logs know them
	secretLen     = 26 // base32: 130 bits
)

// AddToken records a token under a name that no live device has and returns
// its secret, which is kept nowhere: letters and digits, fit for a header and
// for a path segment.
//
// Of the secret the store holds the SHA-256. A slow hash would protect nothing
// more: nobody tries 2^130 secrets, however quick one trial is. And CheckToken
// is asked at every request.
func (d *Devices) AddToken(ctx context.Context, g TokenGrant) (dev Device, secret string, err error) {
	dev, secret, err = d.addToken(ctx, g)
	if err != nil {
		return Device{}, "", fmt.Errorf("add token %q: %w", g.Name, err)
	}
	return dev, secret, nil
}

func (d *Devices) addToken(ctx context.Context, g TokenGrant) (Device, string, error) {
	if d.cfg.Domain == "" {
		return Device{}, "", errors.New("without a domain there is no host for it")
	}
	if err := d.CheckName(g.Name); err != nil {
		return Device{}, "", err
	}
	target, err := d.pattern(g.Host)
	if err != nil {
		return Device{}, "", err
	}
	if err := d.checkTarget(target); err != nil {
		return Device{}, "", err
	}
	path := g.Path
	if path == "/" {
		path = ""
	}
	if err := checkTokenPath(path); err != nil {
		return Device{}, "", err
	}
	now, until := d.now(), wholeSeconds(g.Until)
	if !until.IsZero() && !until.After(now) {
		return Device{}, "", fmt.Errorf("%s is in the past", until.Format(time.RFC3339))
	}
	secret := newSecret(secretLen)
	sum := sha256.Sum256([]byte(secret))
	r := record{
		Kind: KindToken, TokenHost: "t-" + newSecret(tokenLabelLen) + "." + d.cfg.Domain, Secret: sum[:],
		Hosts: []string{target}, Path: path, Until: until, Created: wholeSeconds(now),
	}
	doc, rev, err := d.rewrite(ctx, g.Name, func(doc *document) error { return d.appendFirst(g.Name, doc, r) })
	if err != nil {
		return Device{}, "", err
	}
	d.publish(g.Name, rev, doc, nil)
	dev, ok := d.ByID(r.id())
	if !ok { // deleted again by somebody else in between
		return Device{}, "", ErrUnknown
	}
	return dev, secret, nil
}

// newSecret returns n random letters and digits (base32, 5 bits each; 26 at
// most). They are lower-case: they go into host names and are typed on
// television sets.
func newSecret(n int) string { return strings.ToLower(rand.Text())[:n] }

// checkTarget says why a token must not lead to a host: what the relay itself
// stands behind, and other tokens' hosts, are for nobody without a certificate.
func (d *Devices) checkTarget(host string) error {
	if strings.HasPrefix(host, "*") {
		return fmt.Errorf("a token reaches one host, not %s: name the host", host)
	}
	if names.IsReserved(host, d.cfg.Domain) {
		return fmt.Errorf("%s belongs to the relay itself: a token reaches only services of a home", host)
	}
	return nil
}

const maxTokenPath = 256

// checkTokenPath takes what every reader of a path understands alike: no dot
// segments, no empty ones, nothing that would be encoded. It begins and ends
// with a slash, so that "/api/" does not let "/api-private" through.
func checkTokenPath(path string) error {
	if path == "" {
		return nil
	}
	if len(path) > maxTokenPath {
		return fmt.Errorf("the path has %d bytes, at most %d are possible", len(path), maxTokenPath)
	}
	if len(path) < 3 || path[0] != '/' || path[len(path)-1] != '/' {
		return fmt.Errorf("the path %q must begin and end with one slash, as in /api/", path)
	}
	for segment := range strings.SplitSeq(path[1:len(path)-1], "/") {
		if strings.Trim(segment, ".") == "" || strings.Trim(segment, pathLetters) != "" {
			return fmt.Errorf("the path %q has a part that could be read in two ways: use letters, digits, and -._~", path)
		}
	}
	return nil
}

const pathLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"

// CheckToken says whether a secret may come in at a token's host (canonical)
// now. It is asked at every request: one look into a map and one hash, no I/O,
// no lock, and the same work for wrong secrets and wrong hosts. Only who
// brings the right secret learns what became of the token; everything else is
// DeniedUnknown, without a device.
func (d *Devices) CheckToken(host, secret string, now time.Time) (Device, Denial) {
	e := d.current.Load().byToken[host]
	var want [sha256.Size]byte // of an unknown host: no secret has this hash
	if e != nil {
		want = e.sum
	}
	if len(secret) > secretLen {
		secret = "" // too long to be one: not hashed, whatever its length
	}
	sum := sha256.Sum256([]byte(secret))
	if subtle.ConstantTimeCompare(sum[:], want[:]) != 1 || e == nil {
		return Device{}, DeniedUnknown
	}
	if denial := d.judge(e, now); denial != Allowed {
		return e.device(), denial
	}
	return e.device(), Allowed
}

// Tokens returns the tokens that may be used now, by name.
func (d *Devices) Tokens() []Device {
	var list []Device
	now := d.cfg.Now()
	for _, e := range d.current.Load().byToken {
		if d.judge(e, now) == Allowed {
			list = append(list, e.device())
		}
	}
	slices.SortFunc(list, func(a, b Device) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
	})
	return list
}
