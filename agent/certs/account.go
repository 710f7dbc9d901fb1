package certs

import (
	"context"
	"crypto"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/mholt/acmez/v3/acme"

	"github.com/sallyport/sallyport/protocol/pki"
)

// maxIssuers is how many names of a CA the relay takes.
const maxIssuers = 4

// account is who we are at the CA. Its key is the identity: registering again
// under the same key returns the same account.
type account struct {
	keeper keeper
	email  string
	tell   func(uri string, issuers []string)
	logger *slog.Logger

	registering sync.Mutex // one registration at a time; held over the network, as whoever waits needs the outcome
	mu          sync.Mutex // guards below
	kept        keptAccount
	told        bool // of kept
}

// keptAccount is what is on disk beside the key.
type keptAccount struct {
	URI     string   `json:"uri"`
	Issuers []string `json:"issuers,omitempty"`
	Email   string   `json:"email,omitempty"`
}

// load takes over what is known from before.
func (a *account) load() {
	kept, err := a.keeper.account()
	if err != nil { // it is registered again, under the same key
		a.logger.Warn("kept ACME account not used", "err", err)
	}
	a.kept = kept
}

// announce tells of an account that is known and was not told of yet.
func (a *account) announce() {
	a.mu.Lock()
	kept, told := a.kept, a.told
	a.told = a.told || kept.URI != ""
	a.mu.Unlock()
	if !told && kept.URI != "" {
		a.tell(kept.URI, slices.Clone(kept.Issuers))
	}
}

// get returns the account, a new one if need be. When it returns, the account
// has been told of: a CAA record that names another one would forbid the order
// that comes next.
func (a *account) get(ctx context.Context, client *acme.Client, dir acme.Directory) (acme.Account, error) {
	a.registering.Lock()
	defer a.registering.Unlock()
	key, err := a.key()
	if err != nil {
		return acme.Account{}, err
	}
	a.mu.Lock()
	kept := a.kept
	a.mu.Unlock()
	account := acme.Account{Status: acme.StatusValid, Location: kept.URI, PrivateKey: key}
	now := keptAccount{URI: kept.URI, Email: a.email}
	if dir.Meta != nil {
		now.Issuers = slices.Clone(dir.Meta.CAAIdentities[:min(len(dir.Meta.CAAIdentities), maxIssuers)])
	}
	switch {
	case kept.URI == "":
		if account, err = client.NewAccount(ctx, acme.Account{TermsOfServiceAgreed: true, PrivateKey: key, Contact: contact(a.email)}); err != nil {
			return acme.Account{}, fmt.Errorf("register an account: %w", err)
		}
		now.URI = account.Location
	case kept.Email != a.email:
		account.Contact = contact(a.email)
		if account, err = client.UpdateAccount(ctx, account); err != nil {
			return acme.Account{}, fmt.Errorf("change the address of the account: %w", err)
		}
		account.Location = kept.URI
	}
	if now.URI != kept.URI || now.Email != kept.Email || !slices.Equal(now.Issuers, kept.Issuers) {
		if err := a.keeper.keepAccount(now); err != nil {
			return acme.Account{}, err
		}
		a.mu.Lock()
		a.told = a.told && now.URI == kept.URI && slices.Equal(now.Issuers, kept.Issuers)
		a.kept = now
		a.mu.Unlock()
	}
	a.announce()
	return account, nil
}

func contact(email string) []string {
	if email == "" {
		return nil
	}
	return []string{"mailto:" + email}
}

// key returns the account's key, made once.
func (a *account) key() (crypto.Signer, error) {
	key, err := a.keeper.accountKey()
	if key != nil || err != nil {
		return key, err
	}
	made, err := pki.NewKey()
	if err != nil {
		return nil, fmt.Errorf("make account key: %w", err)
	}
	return made, a.keeper.keepAccountKey(made)
}

// forget makes the next get register again.
func (a *account) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kept.URI = ""
}
