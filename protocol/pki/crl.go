package pki

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// maxRevoked bounds a revocation list. With 100,000 entries it has 4 MB, more
// than most readers take.
const maxRevoked = 100_000

// RevocationList signs a list (DER) of certificates that are not to be
// believed any more, for verifiers that cannot ask the records. number must
// rise from list to list. It refuses a clock that cannot be right and times
// outside the CA's own.
func (a *Authority) RevocationList(revoked []x509.RevocationListEntry, number *big.Int, thisUpdate, nextUpdate time.Time) ([]byte, error) {
	if err := a.checkList(revoked, number, thisUpdate, nextUpdate); err != nil {
		return nil, fmt.Errorf("sign a revocation list: %w", err)
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		RevokedCertificateEntries: revoked,
		Number:                    number,
		ThisUpdate:                thisUpdate.UTC().Truncate(time.Second),
		NextUpdate:                nextUpdate.UTC().Truncate(time.Second),
	}, a.cert, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign a revocation list: %w", err)
	}
	return der, nil
}

func (a *Authority) checkList(revoked []x509.RevocationListEntry, number *big.Int, thisUpdate, nextUpdate time.Time) error {
	switch {
	case number == nil || number.Sign() <= 0 || number.BitLen() > 159: // RFC 5280, 5.2.3: 20 octets
		return errors.New("its number must be positive and have at most 20 bytes")
	case len(revoked) > maxRevoked:
		return fmt.Errorf("%d entries are too many, at most %d are possible", len(revoked), maxRevoked)
	case thisUpdate.Before(a.cert.NotBefore) || thisUpdate.After(a.cert.NotAfter):
		return fmt.Errorf("the CA is not valid at %s", thisUpdate.UTC().Format(time.RFC3339))
	case !nextUpdate.After(thisUpdate):
		return errors.New("it would be out of date when it is made")
	}
	return nil
}
