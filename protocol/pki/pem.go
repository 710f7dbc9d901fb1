package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

// EncodeKey returns a private key as PEM (PKCS#8).
func EncodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// EncodeCert returns a certificate as PEM.
func EncodeCert(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// EncodeCSR returns a signing request (DER) as PEM.
func EncodeCSR(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// DecodeKey reads one private key: PKCS#8, or the older forms for EC and RSA
// that OpenSSL writes. Encrypted keys are refused.
func DecodeKey(data []byte) (crypto.Signer, error) {
	block, err := onlyBlock(data, "private key", "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	if block.Headers["DEK-Info"] != "" {
		return nil, errors.New("private key: it is encrypted with a password, which is not supported")
	}
	var key any
	switch block.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("private key: a key of type %T cannot sign", key)
	}
	return signer, nil
}

// DecodeCert reads exactly one certificate.
func DecodeCert(data []byte) (*x509.Certificate, error) {
	block, err := onlyBlock(data, "certificate", "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return cert, nil
}

// DecodeCSR returns the DER of a signing request given as PEM or as DER, as
// people hand over both. The result is for [ParseCSR].
func DecodeCSR(data []byte) ([]byte, error) {
	if len(data) > 0 && data[0] == 0x30 { // an ASN.1 SEQUENCE; PEM begins with a letter or a dash
		return data, nil
	}
	block, err := onlyBlock(data, "signing request", "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
	if err != nil {
		return nil, err
	}
	return block.Bytes, nil
}

// onlyBlock returns the one PEM block of data. Half a file, a second block
// and foreign bytes after the end are errors: a file that is not wholly
// understood is not trusted. "EC PARAMETERS", which OpenSSL puts before a key,
// is skipped.
func onlyBlock(data []byte, what string, types ...string) (*pem.Block, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, fmt.Errorf("%s: the file is empty", what)
	}
	if len(data) > maxEncoded {
		return nil, fmt.Errorf("%s: %d bytes are too many, at most %d are read", what, len(data), maxEncoded)
	}
	block, rest := pem.Decode(data)
	if block != nil && block.Type == "EC PARAMETERS" {
		block, rest = pem.Decode(rest)
	}
	if block == nil {
		return nil, fmt.Errorf("%s: no complete PEM block (-----BEGIN … to -----END) found", what)
	}
	if len(bytes.TrimSpace(rest)) != 0 {
		return nil, fmt.Errorf("%s: there is more in the file than one PEM block", what)
	}
	if slices.Contains(types, block.Type) {
		return block, nil
	}
	if block.Type == "ENCRYPTED PRIVATE KEY" {
		return nil, fmt.Errorf("%s: it is encrypted with a password, which is not supported", what)
	}
	return nil, fmt.Errorf("%s: the PEM block is a %q", what, block.Type)
}
