package certs

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sync"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"

	"github.com/sallyport/sallyport/protocol/pki"
)

// account is who we are at the CA. Its key is the identity: registering again
// under the same key returns the same account, so nothing else is kept.
type account struct {
	storage   *storage
	ca, email string

	mu   sync.Mutex // one registration at a time; guards have
	have acme.Account
}

func (a *account) get(ctx context.Context, client *acme.Client) (acme.Account, error) {
	a.mu.Lock() // held over the network: whoever waits needs the outcome
	defer a.mu.Unlock()
	if a.have.Status == acme.StatusValid {
		return a.have, nil
	}
	key, err := a.key(ctx)
	if err != nil {
		return acme.Account{}, err
	}
	fresh := acme.Account{TermsOfServiceAgreed: true, PrivateKey: key}
	if a.email != "" {
		fresh.Contact = []string{"mailto:" + a.email}
	}
	account, err := client.NewAccount(ctx, fresh)
	if err != nil {
		return acme.Account{}, fmt.Errorf("register an account: %w", err)
	}
	a.have = account
	return account, nil
}

func (a *account) key(ctx context.Context) (crypto.Signer, error) {
	name := "default"
	if a.email != "" {
		name = a.email
	}
	keys := certmagic.StorageKeys
	at := path.Join("acme", keys.Safe(issuerKey(a.ca)), "users", keys.Safe(name), "account.key")
	switch data, err := a.storage.Load(ctx, at); {
	case err == nil:
		key, err := pki.DecodeKey(data)
		if err != nil {
			return nil, fmt.Errorf("account key %s: %w\nremove the file, and a new account is made", a.storage.Filename(at), err)
		}
		return key, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("account key: %w", err)
	}
	key, err := pki.NewKey()
	if err != nil {
		return nil, fmt.Errorf("make account key: %w", err)
	}
	pem, err := pki.EncodeKey(key)
	if err != nil {
		return nil, fmt.Errorf("make account key: %w", err)
	}
	return key, a.storage.Store(ctx, at, pem)
}

func (a *account) reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.have = acme.Account{}
}

// location is the account's URL, empty until it is registered.
func (a *account) location() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.have.Location
}

// CAA is what the zone's CAA records should name: the CA's names (RFC 8659) and
// our account with it (RFC 8657). Both are empty until the CA was asked for a
// certificate.
func (a *ACME) CAA() (issuers []string, account string) {
	account = a.account.location()
	if ids := a.identities.Load(); ids != nil && account != "" {
		issuers = *ids
	}
	return issuers, account
}
