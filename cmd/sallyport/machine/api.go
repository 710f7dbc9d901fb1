package machine

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	callTimeout = 30 * time.Second
	maxAnswer   = 1 << 20
)

// A Refusal is the relay's answer when it says no.
type Refusal struct {
	Status     int           // of HTTP
	Message    string        // what, in the relay's words
	Advice     string        // what to do, may be empty
	RetryAfter time.Duration // 0: trying again does not help
}

func (r *Refusal) Error() string { return "the relay says: " + r.Message }

// Temporary reports whether the same request may succeed later.
func (r *Refusal) Temporary() bool {
	return r.Status == http.StatusTooManyRequests || r.Status >= 500
}

// ParseRelay reads what a person calls the relay: its domain, a URL of its
// enrolment host, or a whole enrolment link. It returns that host's base URL
// ("https://enroll.example.org:8443") and the link's code, if there is one.
// Errors never repeat the code.
func ParseRelay(s string) (base, code string, err error) {
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	bare, code, _ := strings.Cut(s, "#")
	u, err := url.Parse(bare)
	switch {
	case err != nil:
		return "", "", fmt.Errorf("%q is not a URL", bare)
	case u.Scheme != "https":
		return "", "", fmt.Errorf("%q: a relay is reached by https only", bare)
	case u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Path != "" && u.Path != "/":
		return "", "", fmt.Errorf("%q is not a relay's address, such as https://enroll.example.org", bare)
	}
	host := strings.ToLower(u.Host)
	if !strings.HasPrefix(host, "enroll.") {
		host = "enroll." + host
	}
	return "https://" + host, strings.TrimSpace(code), nil
}

// api speaks JSON to one of the relay's own hosts.
type api struct {
	base string
	http *http.Client
}

func newAPI(base, address string, roots *x509.CertPool, cert *tls.Certificate) *api {
	conf := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if cert != nil {
		// By callback, so that it is shown whatever CA names the relay sends.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	var d net.Dialer
	return &api{base: base, http: &http.Client{
		Timeout: callTimeout,
		Transport: &http.Transport{
			TLSClientConfig: conf, ForceAttemptHTTP2: true, Proxy: http.ProxyFromEnvironment, IdleConnTimeout: time.Minute,
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if address != "" {
					addr = address
				}
				return d.DialContext(ctx, network, addr)
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (a *api) close() { a.http.CloseIdleConnections() }

// do sends in as JSON (nil: a GET) and reads the answer into out. An answer
// that is no success is a *Refusal.
func (a *api) do(ctx context.Context, path, bearer string, in, out any) error {
	method, body := http.MethodGet, io.Reader(nil)
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		method, body = http.MethodPost, bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "sallyport")
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	res, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", a.base, err)
	}
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusCreated {
		return refusal(res, data)
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("%s answers what is no Sallyport relay's: %w", a.base, err)
	}
	return nil
}

func refusal(res *http.Response, data []byte) *Refusal {
	var said struct {
		Error      string  `json:"error"`
		Hint       string  `json:"hint"`
		RetryAfter float64 `json:"retry_after"` // seconds
	}
	_ = json.Unmarshal(data, &said) // a proxy in between may not speak JSON
	r := &Refusal{Status: res.StatusCode, Message: said.Error, Advice: said.Hint, RetryAfter: time.Duration(said.RetryAfter * float64(time.Second))}
	switch {
	case r.Message != "":
	case res.StatusCode == http.StatusUnauthorized: // a page for people stands before the API
		r.Message = "this certificate is not accepted any more: it was revoked, or is another relay's"
		r.Advice = "ask for a new link: sallyport device add NAME on the relay's machine"
	default:
		r.Message = res.Status
	}
	return r
}
