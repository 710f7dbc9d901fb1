// Package ech opens Encrypted ClientHellos (RFC 9849) for the relay: neither
// the network of the visitor nor the one of the relay sees which host is
// visited, only the public name, which is the same for all of them.
//
// It is the client-facing server of "split mode". The relay publishes a config
// in the HTTPS records of its hosts, opens what was encrypted to it, and hands
// on the hello that was inside; whoever ends the TLS of that host, the relay
// or a home, answers it like any other and confirms by itself that it did.
//
//	keys, err := ech.NewKeys(ech.Config{Dir: dir, PublicName: "example.org"})
//	go keys.Run(ctx)                           // makes a new key every day
//	record.ECH = keys.ConfigList()             // for DNS
//	server := &edge.Server{ECH: keys, …}       // opens
//	config.GetEncryptedClientHelloKeys = …     // keys.RetryKeys(), for the public name
//
// A visitor whose config is too old is sent to the public name, where TLS ends
// at the relay under a valid certificate and hands out the config of today:
// the client comes again with that one. Nothing of this hides a host from the
// resolver that the visitor asks: DNS has to be encrypted too (DoH, DoT).
package ech
