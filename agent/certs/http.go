package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// A waiter notes the Retry-After of refusals, which acmez does not tell.
type waiter struct {
	base  http.RoundTripper // nil: the default one
	now   func() time.Time
	until atomic.Pointer[time.Time]
}

// RoundTrip asks base.
func (w *waiter) RoundTrip(r *http.Request) (*http.Response, error) {
	base := w.base
	if base == nil {
		base = http.DefaultTransport
	}
	resp, err := base.RoundTrip(r)
	if err == nil && (resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable) {
		if at, ok := retryAfter(resp.Header.Get("Retry-After"), w.now()); ok {
			w.until.Store(&at)
		}
	}
	return resp, err
}

// retryAfter reads seconds or a date (RFC 9110 §10.2.3).
func retryAfter(value string, now time.Time) (time.Time, bool) {
	if d, err := time.ParseDuration(value + "s"); err == nil && d > 0 {
		return now.Add(d), true
	}
	at, err := http.ParseTime(value)
	return at, err == nil && at.After(now)
}

// asked is how long the CA asked us to wait; zero: it did not.
func (w *waiter) asked() time.Time {
	if at := w.until.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// newHTTPClient returns the client for the CA. now is the agent's own time,
// which is right before the machine's clock is.
func newHTTPClient(file string, now func() time.Time) (*http.Client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, Time: now}
	if file != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool() // a machine without any
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("root of the ACME server: %w", err)
		}
		if !pool.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("root of the ACME server: %s holds no certificate (PEM)", file)
		}
		config.RootCAs = pool
	}
	return &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: 15 * time.Second, ResponseHeaderTimeout: 30 * time.Second, IdleConnTimeout: 30 * time.Second,
		},
	}, nil
}
