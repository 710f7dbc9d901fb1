//go:build linux

package load

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// road is one way from the visitor to the home.
type road struct {
	peer    string // floor, haproxy, quic, tcp
	service string // raw, http, h2, pass
	addr    string
	tls     *tls.Config // nil: plain
	procs   []*process  // in between
}

func (r *road) String() string { return r.service + "/" + r.peer }

func (r *road) isHTTP() bool { return r.service == "http" || r.service == "h2" }

const opLimit = time.Minute // nothing takes longer

// dial connects, and shakes hands.
func (r *road) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", r.addr)
	if err != nil {
		return nil, err
	}
	if r.tls == nil {
		return c, nil
	}
	tc := tls.Client(c, r.tls)
	if err := tc.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	return tc, nil
}

// visitor has one conversation at a time.
type visitor interface {
	download(n int64) error
	upload(n int64) error
	small() error // a short question and its answer
	close()
}

// visit opens n visitors. Those of h2 share a connection, as a browser's do.
func (r *road) visit(ctx context.Context, n int) (vs []visitor, err error) {
	var shared *http.Client
	for range n {
		switch {
		case !r.isHTTP():
			c, err := r.dial(ctx)
			if err != nil {
				closeAll(vs)
				return nil, err
			}
			vs = append(vs, &rawVisitor{c: c, buf: make([]byte, chunk)})
		case shared == nil || r.service == "http":
			shared = r.client()
			fallthrough
		default:
			vs = append(vs, &httpVisitor{client: shared, base: r.base(), buf: make([]byte, chunk)})
		}
	}
	for _, v := range vs { // connections are made by the first request
		if err := v.small(); err != nil {
			closeAll(vs)
			return nil, fmt.Errorf("%s: %w", r, err)
		}
	}
	return vs, nil
}

func closeAll(vs []visitor) {
	for _, v := range vs {
		v.close()
	}
}

func (r *road) base() string {
	if r.tls == nil {
		return "http://home." + domain + "/"
	}
	return "https://" + r.tls.ServerName + "/"
}

func (r *road) client() *http.Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, r.addr)
		},
		TLSClientConfig: r.tls.Clone(), Protocols: new(http.Protocols),
		DisableCompression: true, WriteBufferSize: chunk, ReadBufferSize: chunk,
	}
	t.Protocols.SetHTTP1(r.service == "http")
	t.Protocols.SetHTTP2(r.service == "h2")
	t.HTTP2 = &http.HTTP2Config{MaxReadFrameSize: 1 << 20}
	return &http.Client{Transport: t, Timeout: opLimit}
}

type rawVisitor struct {
	c   net.Conn
	buf []byte
}

func (v *rawVisitor) ask(op byte, n int64) error {
	v.c.SetDeadline(time.Now().Add(opLimit))
	_, err := v.c.Write(binary.BigEndian.AppendUint64([]byte{op}, uint64(n)))
	return err
}

func (v *rawVisitor) download(n int64) error {
	if err := v.ask('d', n); err != nil {
		return err
	}
	return receive(v.c, v.buf, n)
}

func (v *rawVisitor) upload(n int64) error {
	if err := v.ask('u', n); err != nil {
		return err
	}
	if err := send(v.c, v.buf, n); err != nil {
		return err
	}
	return receive(v.c, v.buf, 1)
}

func (v *rawVisitor) small() error {
	if err := v.ask('e', 32); err != nil {
		return err
	}
	if _, err := v.c.Write(v.buf[:32]); err != nil {
		return err
	}
	return receive(v.c, v.buf, 32)
}

func (v *rawVisitor) close() { v.c.Close() }

type httpVisitor struct {
	client *http.Client
	base   string
	buf    []byte
}

func (v *httpVisitor) do(method string, n, answer int64, body io.Reader) error {
	req, err := http.NewRequest(method, fmt.Sprint(v.base, n), body)
	if err != nil {
		return err
	}
	if body != nil {
		req.ContentLength = n
	}
	res, err := v.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK || res.ContentLength != answer {
		return fmt.Errorf("%s %s: %s, %d bytes", method, req.URL, res.Status, res.ContentLength)
	}
	if err := receive(res.Body, v.buf, answer); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, res.Body) // its end, so that the connection stays
	return err
}

func (v *httpVisitor) download(n int64) error { return v.do(http.MethodGet, n, n, nil) }

func (v *httpVisitor) upload(n int64) error {
	return v.do(http.MethodPost, n, 1, io.LimitReader(zeros{}, n))
}

func (v *httpVisitor) small() error { return v.do(http.MethodGet, 100, 100, nil) }

func (v *httpVisitor) close() { v.client.CloseIdleConnections() }

// zeros is what an upload is made of.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
