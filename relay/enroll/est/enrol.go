package est

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/enroll"
)

const (
	// maxBody is the longest request that is read: base64 of twice the largest
	// RSA request, with line breaks.
	maxBody    = 32 << 10
	retryAfter = time.Minute
	challenge  = `Basic realm="one-time code", charset="UTF-8"`
)

func (s *server) enrol(w http.ResponseWriter, r *http.Request) {
	_, code, ok := r.BasicAuth()
	if !ok || code == "" { // an empty code would ask for the owner's approval: not by mistake
		w.Header().Set("WWW-Authenticate", challenge)
		http.Error(w, "a one-time code is needed: send it as the password of Basic authentication, with any user name", http.StatusUnauthorized)
		return
	}
	csr, ok := request(w, r)
	if !ok {
		return
	}
	state, cert, wait, err := s.cfg.Apply(r.Context(), code, csr, s.cfg.Source(r), r.UserAgent())
	switch {
	case err != nil:
		s.refuse(w, err)
	case state == string(enroll.Issued) && cert != nil:
		s.reply(w, cert)
	case state == string(enroll.Pending):
		if wait <= 0 {
			wait = retryAfter
		}
		w.Header().Set("Retry-After", seconds(wait))
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusAccepted)
		io.WriteString(w, "the request waits for the owner: sallyport device list\n")
	default:
		http.Error(w, "the request was not granted: "+state, http.StatusForbidden)
	}
}

func (s *server) reenrol(w http.ResponseWriter, r *http.Request) {
	peer := s.cfg.Peer(r)
	if peer == nil {
		http.Error(w, "renewal needs a connection under the client certificate that is to be renewed", http.StatusForbidden)
		return
	}
	der, ok := request(w, r)
	if !ok {
		return
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = sameNames(csr, peer)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	cert, err := s.cfg.Renew(r.Context(), peer, der)
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.reply(w, cert)
}

// request reads a signing request and checks its signature; otherwise it
// answers.
func request(w http.ResponseWriter, r *http.Request) (der []byte, ok bool) {
	// Demanded strictly: no form of a web page can send this type.
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/pkcs10" {
		http.Error(w, "send a PKCS#10 request as application/pkcs10, in base64", http.StatusUnsupportedMediaType)
		return nil, false
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		status := http.StatusBadRequest
		if _, tooLong := errors.AsType[*http.MaxBytesError](err); tooLong {
			status = http.StatusRequestEntityTooLarge
		}
		http.Error(w, "the signing request could not be read to its end", status)
		return nil, false
	}
	der, err = decode(body)
	if err == nil {
		_, err = pki.ParseCSR(der)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return nil, false
	}
	return der, true
}

// decode reads base64 with or without line breaks; older clients make them.
func decode(body []byte) ([]byte, error) {
	der, err := base64.StdEncoding.AppendDecode(nil, bytes.Join(bytes.Fields(body), nil))
	if err != nil {
		return nil, fmt.Errorf("the signing request is not in base64: %w", err)
	}
	return der, nil
}

// sameNames reports how a request to renew differs from the certificate in
// subject or alternative names (RFC 7030 §4.2.2). It compares what they say,
// not the types of string in which they say it.
func sameNames(csr *x509.CertificateRequest, peer *x509.Certificate) error {
	asked, err := subject(csr.RawSubject)
	if err != nil {
		return err
	}
	held, err := subject(peer.RawSubject)
	if err != nil {
		return err
	}
	if !slices.Equal(asked, held) {
		return fmt.Errorf("the request's subject %q is not the certificate's, %q", csr.Subject, peer.Subject)
	}
	if !bytes.Equal(altNames(csr.Extensions), altNames(peer.Extensions)) {
		return errors.New("the request's alternative names are not the certificate's")
	}
	return nil
}

// subject returns the attributes of a distinguished name in order, and a comma
// after each step.
func subject(raw []byte) (list []string, err error) {
	var seq pkix.RDNSequence
	if rest, err := asn1.Unmarshal(raw, &seq); err != nil || len(rest) > 0 {
		return nil, errors.New("the subject cannot be read")
	}
	for _, set := range seq {
		for _, a := range set {
			list = append(list, fmt.Sprintf("%v=%v", a.Type, a.Value))
		}
		list = append(list, ",")
	}
	return list, nil
}

func altNames(extensions []pkix.Extension) []byte {
	for _, e := range extensions {
		if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
			return e.Value
		}
	}
	return nil
}

func seconds(d time.Duration) string {
	return strconv.Itoa(max(1, int((d+time.Second-1)/time.Second)))
}
