package scep

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"net/netip"
	"testing"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/enroll/scep/cms"
)

// stranger is a request whose signature holds, with whatever content.
func stranger(t testing.TB, number int, content []byte) *request {
	signer, err := cms.FromX509(selfSigned(t, someRSA(), 1))
	if err != nil {
		t.Fatal(err)
	}
	return &request{kind: kind(number), transaction: printable("t"), nonce: []byte("n"), signer: signer, content: content}
}

// fuzzServer's desk checks what it is handed.
func fuzzServer(f *testing.F) *Server {
	w := newWorld(f)
	check := func(csr []byte) {
		if _, err := pki.ParseCSR(csr); err != nil {
			f.Errorf("the desk was handed a bad request: %v", err)
		}
	}
	return New(Config{
		RA: w.server.cfg.RA, Key: w.server.cfg.Key, CA: w.ca.Cert(),
		Apply: func(_ context.Context, _ string, csr []byte, _ netip.Addr, _ string) (string, *x509.Certificate, error) {
			check(csr)
			return "pending", nil, nil
		},
		StatusOfKey: func(context.Context, string) (string, *x509.Certificate, error) { return "pending", nil, nil },
		Renew: func(_ context.Context, _ *x509.Certificate, csr []byte) (*x509.Certificate, error) {
			check(csr)
			return nil, errors.New("no")
		},
		Source: func(*http.Request) netip.Addr { return netip.Addr{} },
	})
}

// FuzzMessage: no message of a stranger panics, and each that is read can be
// answered.
func FuzzMessage(f *testing.F) {
	s := fuzzServer(f)
	w := newWorld(f)
	c := newClient(f, w)
	c.plain = csr(f, someRSA(), printable("code-1"))
	f.Add(c.message())
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := parseRequest(body)
		if err != nil {
			return
		}
		rep, _ := s.answer(t.Context(), req, netip.Addr{}, "")
		if _, err := s.seal(req, rep); err != nil {
			t.Errorf("a request that was read cannot be answered: %v", err)
		}
	})
}

// FuzzContent begins behind the signature, which fuzzing never gets right.
func FuzzContent(f *testing.F) {
	s := fuzzServer(f)
	to, err := cms.FromX509(s.cfg.RA)
	if err != nil {
		f.Fatal(err)
	}
	for number, plain := range map[int][]byte{19: csr(f, someRSA(), printable("code-1")), 17: csr(f, someRSA()), 20: issuerAndSubject} {
		sealed, err := cms.Seal(plain, to, cms.AES128)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(number, sealed, plain)
	}
	req := stranger(f, 0, nil)
	f.Fuzz(func(t *testing.T, number int, sealed, plain []byte) {
		req := *req
		req.kind, req.content = kind(number), sealed
		rep, _ := s.answer(t.Context(), &req, netip.Addr{}, "")
		if rep.status == success {
			t.Error("a certificate came out of nowhere")
		}
		// And behind the encryption.
		for _, step := range []func() (reply, error){
			func() (reply, error) { return s.enrol(t.Context(), &req, plain, netip.Addr{}, "") },
			func() (reply, error) { return s.renew(t.Context(), &req, plain) },
			func() (reply, error) { return s.poll(t.Context(), &req, plain) },
		} {
			if rep, _ := step(); rep.status == success {
				t.Error("a certificate came out of nowhere")
			}
		}
	})
}

// FuzzRequest: the inside of an envelope is a stranger's too.
func FuzzRequest(f *testing.F) {
	f.Add(csr(f, someRSA(), printable("code-1")))
	f.Add(csr(f, someRSA()))
	f.Add(issuerAndSubject)
	f.Fuzz(func(t *testing.T, data []byte) {
		code, err := challengeOf(data)
		if err == nil && len(code) > 2*maxChallenge {
			t.Errorf("a challenge of %d bytes", len(code))
		}
	})
}
