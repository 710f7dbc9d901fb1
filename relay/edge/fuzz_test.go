package edge

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"testing"

	"github.com/sallyport/sallyport/protocol/names"
)

// FuzzReadHello compares with crypto/tls: what it accepts must give the same
// name and protocols here, or be refused for one of the stated reasons.
func FuzzReadHello(f *testing.F) {
	hello := helloFor(f, "ha.example.org", "h2", "http/1.1")
	f.Add(hello)
	f.Add(rerecord(hello, 1))
	f.Add(rerecord(hello, 300))
	f.Add(append(slices.Clone(hello), 23, 3, 3, 0, 1, 0))
	f.Add(append([]byte{recordAlert, 3, 1, 0, 2, 1, 0}, hello...))
	f.Add(realHello(f, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}))
	f.Add(madeHello(sniExt("HA.example.org"), alpnExt("acme-tls/1")))
	f.Add(madeHello(sniExt("192.0.2.1")))
	f.Add(madeHello(sniExt("a.org."), alpnExt("x")))
	f.Add(madeHello(sniExt("a.org"), sniExt("b.org")))
	f.Add(madeHello(ext{extServerName, []byte{0, 9, 1, 0, 1, 'x', 0, 0, 2, 'a', 'b'}}))
	f.Add(madeHello())
	f.Add([]byte("GET / HTTP/1.0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		h, raw, err := readAll(bytes.NewReader(sent))
		if len(raw) > maxHello || !bytes.HasPrefix(sent, raw) {
			t.Fatalf("read %d bytes that are not the first ones sent", len(raw))
		}
		name, alpn, ok := stdHello(sent)
		if !ok {
			return
		}
		if err != nil {
			if errors.Is(err, errTooLong) || errors.Is(err, errStray) || errors.Is(err, errVersion) || errors.Is(err, errManyALPN) {
				return
			}
			t.Fatalf("crypto/tls accepts (name %q, ALPN %q), here: %v", name, alpn, err)
		}
		want, err := names.Canonical(name)
		if err != nil {
			want = ""
		}
		if h.ServerName != want || !slices.Equal(h.ALPN, alpn) {
			t.Fatalf("crypto/tls reads name %q, ALPN %q; here %+v", name, alpn, h)
		}
	})
}

// stdHello asks crypto/tls.
func stdHello(sent []byte) (name string, alpn []string, ok bool) {
	server := tls.Server(&readOnly{r: bytes.NewReader(sent)}, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			name, alpn, ok = h.ServerName, h.SupportedProtos, true
			return nil, errors.New("seen enough")
		},
	})
	_ = server.Handshake()
	return name, alpn, ok
}

// A readOnly conn swallows what is written.
type readOnly struct {
	net.Conn
	r io.Reader
}

func (c *readOnly) Read(p []byte) (int, error)  { return c.r.Read(p) }
func (c *readOnly) Write(p []byte) (int, error) { return len(p), nil }
func (c *readOnly) Close() error                { return nil }
