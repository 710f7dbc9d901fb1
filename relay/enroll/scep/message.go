package scep

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strconv"

	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/sallyport/sallyport/relay/enroll/scep/cms"
)

// The attributes that make a signed message one of SCEP (RFC 8894 §3.2.1).
var (
	oidMessageType    = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 2}
	oidStatus         = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 3}
	oidFailInfo       = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 4}
	oidSenderNonce    = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 5}
	oidRecipientNonce = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 6}
	oidTransaction    = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 7}
	oidFailText       = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 24, 1}
)

type kind int

const (
	certRep    kind = 3
	renewalReq kind = 17
	pkcsReq    kind = 19
	certPoll   kind = 20
)

// String is for the log.
func (k kind) String() string {
	switch k {
	case renewalReq:
		return "RenewalReq"
	case pkcsReq:
		return "PKCSReq"
	case certPoll:
		return "CertPoll"
	}
	return strconv.Itoa(int(k))
}

const (
	nonceSize      = 16
	maxTransaction = 256
	maxNonce       = 64
)

// A request is a message whose signature holds.
type request struct {
	kind        kind
	transaction []byte // one whole string element, DER: it goes back as it came
	nonce       []byte // of the sender, inside
	signer      cms.Certificate
	content     []byte // the sealed envelope
}

func parseRequest(body []byte) (*request, error) {
	signed, err := cms.Verify(body)
	if err != nil {
		return nil, err
	}
	r := &request{signer: signed.Signer, content: signed.Content}
	kindText, err := text(signed, oidMessageType, "messageType", 2)
	if err != nil {
		return nil, err
	}
	number, err := strconv.Atoi(string(kindText.Bytes))
	if err != nil {
		return nil, fmt.Errorf("messageType %q is not a number", kindText.Bytes)
	}
	r.kind = kind(number)
	id, err := text(signed, oidTransaction, "transactionID", maxTransaction)
	if err != nil {
		return nil, err
	}
	if r.transaction, err = asn1.Marshal(id); err != nil {
		return nil, err
	}
	// RFC 8894 wants 16 bytes. The nonce protects the sender, so its length is
	// the sender's business.
	tag, nonce, ok := signed.Attribute(oidSenderNonce)
	if !ok || tag != casn1.OCTET_STRING || len(nonce) == 0 || len(nonce) > maxNonce {
		return nil, errors.New("senderNonce is missing or not a string of 16 bytes")
	}
	r.nonce = nonce
	if len(r.content) == 0 {
		return nil, errors.New("the message carries no envelope")
	}
	return r, nil
}

// text returns an attribute of printable ASCII of up to limit bytes.
func text(signed *cms.Signed, oid asn1.ObjectIdentifier, name string, limit int) (asn1.RawValue, error) {
	tag, value, ok := signed.Attribute(oid)
	if !ok || len(value) == 0 || len(value) > limit || !isText(tag) || !isASCII(value) {
		return asn1.RawValue{}, fmt.Errorf("%s is missing or not a short printable string", name)
	}
	return asn1.RawValue{Tag: int(tag), Bytes: value}, nil
}

func isText(tag casn1.Tag) bool {
	return tag == casn1.PrintableString || tag == casn1.UTF8String || tag == casn1.IA5String
}

func isASCII(value []byte) bool {
	for _, b := range value {
		if b < 0x20 || b > 0x7e {
			return false
		}
	}
	return true
}

type status int

const (
	success status = 0
	failure status = 2
	pending status = 3
)

type failInfo int

const (
	badAlg          failInfo = 0
	badMessageCheck failInfo = 1
	badRequest      failInfo = 2
	badCertID       failInfo = 4
)

// A reply is what a CertRep says.
type reply struct {
	status status
	info   failInfo          // of a failure
	text   string            // of a failure, for people; says nothing that the info does not
	cert   *x509.Certificate // of a success
	cipher cms.Cipher        // of a success: what the client itself used
}

// dishonest reports whether no honest client is answered like this: its message
// did not open, or it does not hold what it names.
func (r reply) dishonest() bool {
	return r.status == failure && (r.info == badMessageCheck || r.info == badCertID)
}

func failed(info failInfo, text string) reply { return reply{status: failure, info: info, text: text} }

// seal makes the CertRep (DER): signed, and on success with the certificate
// encrypted to whoever asked.
func (s *Server) seal(req *request, rep reply) ([]byte, error) {
	var sealed []byte
	if rep.status == success {
		certs, err := cms.CertsOnly(rep.cert)
		if err != nil {
			return nil, err
		}
		if sealed, err = cms.Seal(certs, req.signer, rep.cipher); err != nil {
			return nil, err
		}
	}
	nonce := make([]byte, nonceSize)
	rand.Read(nonce) // never fails
	attributes := attributeList{{OID: oidTransaction, Value: req.transaction}}
	attributes.add(oidMessageType, casn1.PrintableString, []byte(strconv.Itoa(int(certRep))))
	attributes.add(oidStatus, casn1.PrintableString, []byte(strconv.Itoa(int(rep.status))))
	attributes.add(oidSenderNonce, casn1.OCTET_STRING, nonce)
	attributes.add(oidRecipientNonce, casn1.OCTET_STRING, req.nonce)
	if rep.status == failure {
		attributes.add(oidFailInfo, casn1.PrintableString, []byte(strconv.Itoa(int(rep.info))))
		attributes.add(oidFailText, casn1.UTF8String, []byte(rep.text))
	}
	return cms.Sign(cms.Message{
		Content:    sealed, // nil unless success: RFC 8894 wants it left out then
		Key:        s.cfg.Key,
		Certs:      []*x509.Certificate{s.cfg.RA},
		Attributes: attributes,
	})
}

type attributeList []cms.Attribute

func (l *attributeList) add(oid asn1.ObjectIdentifier, tag casn1.Tag, value []byte) {
	der, err := asn1.Marshal(asn1.RawValue{Tag: int(tag), Bytes: value})
	if err != nil {
		panic(err) // of a tag and bytes: cannot happen
	}
	*l = append(*l, cms.Attribute{OID: oid, Value: der})
}
