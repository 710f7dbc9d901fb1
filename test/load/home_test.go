//go:build linux

package load

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"github.com/sallyport/sallyport/protocol/pki"
)

const domain = "load.test"

// home is what stands behind every road, in the process of the load: a raw
// service (bare, and with TLS of its own), and an HTTP service. Its CA signs
// what is neither the relay's nor a device's.
//
// The raw protocol is requests of nine bytes: a letter and a count. d: send so
// many bytes; u: take so many and answer with one; e: send back so many.
type home struct {
	raw, tls, http string // addresses
	ca             *pki.Authority
	server         tls.Certificate // *.load.test
	device         tls.Certificate // for roads whose TLS is not the relay's
}

const rawRequest = 9

// chunk is what the load reads and writes at once.
const chunk = 128 << 10

func (l *lab) openHome() (*home, error) {
	ca, err := pki.NewAuthority("load", nil)
	if err != nil {
		return nil, err
	}
	h := &home{ca: ca}
	var errs [2]error
	h.server, errs[0] = h.issue(pki.Grant{Profile: pki.Server, Name: "home." + domain, DNSNames: []string{"*." + domain, "*.quic." + domain, "*.tcp." + domain}})
	h.device, errs[1] = h.issue(pki.Grant{Profile: pki.Device, Name: "load"})
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	var listeners [3]net.Listener
	for i, addr := range []*string{&h.raw, &h.tls, &h.http} {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
		*addr = listeners[i].Addr().String()
	}
	// They end with the process.
	go serveRaw(listeners[0])
	go serveRaw(tls.NewListener(listeners[1], &tls.Config{Certificates: []tls.Certificate{h.server}}))
	go http.Serve(listeners[2], http.HandlerFunc(serveHTTP))
	return h, nil
}

func (h *home) issue(g pki.Grant) (tls.Certificate, error) {
	key, err := pki.NewKey()
	if err != nil {
		return tls.Certificate{}, err
	}
	cert, err := h.ca.Issue(key.Public(), g)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// writePEM leaves what HAProxy needs in dir.
func (h *home) writePEM(dir string) error {
	key, err := pki.EncodeKey(h.server.PrivateKey)
	if err != nil {
		return err
	}
	pem := append(pki.EncodeCert(h.server.Leaf), key...)
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "server.pem"), pem, 0o600),
		os.WriteFile(filepath.Join(dir, "ca.pem"), pki.EncodeCert(h.ca.Cert()), 0o600),
	)
}

func serveRaw(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go answerRaw(c)
	}
}

func answerRaw(c net.Conn) {
	defer c.Close()
	var head [rawRequest]byte
	var buf []byte // idle connections hold none
	for {
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		n := int64(binary.BigEndian.Uint64(head[1:]))
		if want := min(n, chunk); int64(len(buf)) < want {
			buf = make([]byte, want)
		}
		var err error
		switch head[0] {
		case 'd':
			err = send(c, buf, n)
		case 'u':
			if err = receive(c, buf, n); err == nil {
				_, err = c.Write(buf[:1])
			}
		case 'e':
			if _, err = io.ReadFull(c, buf[:n]); err == nil {
				_, err = c.Write(buf[:n])
			}
		}
		if err != nil {
			return
		}
	}
}

func send(w io.Writer, buf []byte, n int64) error {
	for n > 0 {
		m, err := w.Write(buf[:min(n, int64(len(buf)))])
		if err != nil {
			return err
		}
		n -= int64(m)
	}
	return nil
}

func receive(r io.Reader, buf []byte, n int64) error {
	for n > 0 {
		m, err := r.Read(buf[:min(n, int64(len(buf)))])
		if n -= int64(m); err != nil && n > 0 {
			return err
		}
	}
	return nil
}

// serveHTTP: GET /N sends N bytes, POST takes what comes.
func serveHTTP(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.URL.Path[1:], 10, 64)
	if err != nil {
		http.Error(w, "GET /N", http.StatusBadRequest)
		return
	}
	buf := make([]byte, min(max(n, 1), chunk))
	if r.Method == http.MethodPost {
		if receive(r.Body, buf, n) != nil {
			panic(http.ErrAbortHandler)
		}
		n = 1
	}
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	_ = send(w, buf, n) // the visitor sees it
}
