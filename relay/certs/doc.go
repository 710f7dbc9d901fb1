// Package certs gives the relay its public certificates: ACME obtains them
// from Let's Encrypt or another ACME server and renews them, Internal issues
// them from a CA of the relay's own, Files reads pairs that somebody else
// renews, and RandomCert is what strangers get to see. All sources answer from
// memory and never wait for a network.
//
//	acme, err := certs.NewACME(certs.ACMEConfig{Dir: dir, Logger: logger})
//	acme.SetHosts([]string{"ha.example.org"}) // again whenever they change
//	go acme.Run(ctx)
//	// The edge sends it acme-tls/1 (ChallengeCert), port 80 asks HTTPChallenge
//	// before it redirects, and doors ask GetCertificate.
//
// certmagic makes keys, orders and files. Its own ACME issuer, retries and
// maintenance are not used: to answer challenges they open listeners, and what
// they do can be neither seen nor waited for. acmez speaks the protocol
// instead, and ACME.Run keeps the times.
package certs

import "crypto/tls"

// A Source finds the certificate for a host. name is canonical (see
// protocol/names); an error means that the host has none, and never comes with
// a certificate of some other host.
type Source interface {
	GetCertificate(name string) (*tls.Certificate, error)
}
