// Package certs gives the relay its public certificates: Internal issues them
// from a CA of the relay's own, Files reads pairs that somebody else renews,
// and RandomCert is what strangers get to see. Both sources answer from memory
// and never wait for a network.
package certs

import "crypto/tls"

// A Source finds the certificate for a host. name is canonical (see
// protocol/names); an error means that the host has none, and never comes with
// a certificate of some other host.
type Source interface {
	GetCertificate(name string) (*tls.Certificate, error)
}
