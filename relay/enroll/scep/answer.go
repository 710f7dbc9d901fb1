package scep

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/enroll/scep/cms"
)

// What failures say to people. They tell no more than the number does: which
// of the reasons it was stands in the relay's log.
const (
	textAlgorithm = "Algorithm not accepted. Use an RSA key of at least 2048 bits, SHA-256, and AES or triple DES."
	textMessage   = "The message cannot be opened or read. Fetch the certificates of this server again."
	textRefused   = "The code is wrong, used or expired, or the request was denied. Ask the owner for a new code."
	textRenewal   = "This certificate cannot be renewed. Enrol anew with a code from the owner."
	textUnknown   = "Nothing waits for this key. Enrol anew with a code from the owner."
	textKind      = "This kind of message is not supported."
)

// States as Apply and StatusOfKey name them.
const (
	stateIssued  = "issued"
	statePending = "pending"
)

// answer does what a request asks. The error is for the log; the reply stands
// in any case, but for errors that know how long to wait.
func (s *Server) answer(ctx context.Context, req *request, source netip.Addr, agent string) (reply, error) {
	switch req.kind {
	case pkcsReq, renewalReq, certPoll:
	default:
		return failed(badRequest, textKind), errors.New("unknown kind of message")
	}
	if _, ok := req.signer.Key.(*rsa.PublicKey); !ok {
		return failed(badAlg, textAlgorithm), fmt.Errorf("nothing can be encrypted to a key of type %T", req.signer.Key)
	}
	env, err := cms.ParseEnvelope(req.content)
	if errors.Is(err, cms.ErrAlgorithm) {
		return failed(badAlg, textAlgorithm), err
	}
	if err != nil {
		return failed(badMessageCheck, textMessage), err
	}
	plain, err := env.Open(s.cfg.Key)
	if err != nil {
		return failed(badMessageCheck, textMessage), err
	}
	var rep reply
	switch req.kind {
	case pkcsReq:
		rep, err = s.enrol(ctx, req, plain, source, agent)
	case renewalReq:
		rep, err = s.renew(ctx, req, plain)
	case certPoll:
		rep, err = s.poll(ctx, req, plain)
	}
	rep.cipher = env.Cipher
	return rep, err
}

// enrol answers a PKCSReq. Who signed it holds the key that is to be certified:
// otherwise somebody could have another's request certified, and read the answer.
func (s *Server) enrol(ctx context.Context, req *request, csr []byte, source netip.Addr, agent string) (reply, error) {
	pub, err := pki.ParseCSR(csr)
	if err != nil {
		return failed(badMessageCheck, textMessage), err
	}
	if !equalKeys(pub, req.signer.Key) {
		return failed(badMessageCheck, textMessage), errors.New("the message is not signed by the key of its request")
	}
	challenge, err := challengeOf(csr)
	if err != nil {
		return failed(badMessageCheck, textMessage), err
	}
	state, cert, err := s.cfg.Apply(ctx, challenge, csr, source, agent)
	if err != nil {
		return failed(badRequest, textRefused), err
	}
	return standing(state, cert, pub)
}

// poll answers a CertPoll. Its content names issuer and subject, which say
// nothing here: the signature names the key, and by that requests are known.
func (s *Server) poll(ctx context.Context, req *request, plain []byte) (reply, error) {
	in := cryptobyte.String(plain)
	var names cryptobyte.String
	if !in.ReadASN1(&names, casn1.SEQUENCE) || !in.Empty() ||
		!names.SkipASN1(casn1.SEQUENCE) || !names.SkipASN1(casn1.SEQUENCE) || !names.Empty() {
		return failed(badMessageCheck, textMessage), errors.New("it does not name an issuer and a subject")
	}
	id, err := keyID(req.signer.Key)
	if err != nil {
		return failed(badMessageCheck, textMessage), err
	}
	state, cert, err := s.cfg.StatusOfKey(ctx, id)
	if err != nil {
		return failed(badRequest, textRefused), err
	}
	if state == "" {
		return failed(badCertID, textUnknown), errors.New("nothing waits for this key")
	}
	return standing(state, cert, req.signer.Key)
}

// standing says how a request stands.
func standing(state string, cert *x509.Certificate, key crypto.PublicKey) (reply, error) {
	switch {
	case state == statePending:
		return reply{status: pending}, nil
	case state == stateIssued && cert != nil && equalKeys(cert.PublicKey, key):
		return reply{status: success, cert: cert}, nil
	}
	return failed(badRequest, textRefused), fmt.Errorf("the request is %q", state)
}

// renew answers a RenewalReq, which is signed with the old certificate.
func (s *Server) renew(ctx context.Context, req *request, csr []byte) (reply, error) {
	if _, err := pki.ParseCSR(csr); err != nil {
		return failed(badMessageCheck, textMessage), err
	}
	old, err := x509.ParseCertificate(req.signer.Raw)
	if err != nil {
		return failed(badCertID, textRenewal), fmt.Errorf("the old certificate: %w", err)
	}
	// The message brings the certificate along: anybody can write one with the
	// name and the number of another's.
	if err := old.CheckSignatureFrom(s.cfg.CA); err != nil {
		return failed(badCertID, textRenewal), fmt.Errorf("the old certificate is not of this CA: %w", err)
	}
	if now := s.cfg.Now(); now.Before(old.NotBefore) || now.After(old.NotAfter) {
		return failed(badCertID, textRenewal), fmt.Errorf("the old certificate is not valid now, it ends %s", old.NotAfter)
	}
	cert, err := s.cfg.Renew(ctx, old, csr)
	if err != nil {
		return failed(badRequest, textRenewal), err
	}
	return reply{status: success, cert: cert}, nil
}

func equalKeys(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// keyID is how records name a key: the hex SHA-256 of its SubjectPublicKeyInfo.
func keyID(pub crypto.PublicKey) (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:]), nil
}
