// Package certs gives the agent certificates whose keys are made at home and
// never leave it: the relay passes such connections on and cannot read them.
// There are three ways to get them: ACME (Let's Encrypt or another CA), files
// that somebody else renews, and a CA of the home's own.
//
//	c, err := certs.New(certs.Config{
//		Dir: dir, Domain: "example.org", Own: hash + ".example.org",
//		SetTXT: setTXT,   // through the control stream
//		Account: account, // told to the relay, for CAA
//	})
//	c.SetHosts([]string{"ha.example.org"}) // what is kept serves from here on
//	go c.Run(ctx)                          // obtains and renews
//	c.Connected()                          // whenever a relay is there again
//
// A TLS server asks it at every handshake. The CA's own handshakes, for the
// challenge tls-alpn-01, come with the one ALPN protocol acme-tls/1, and a
// server must agree to that protocol or the CA refuses the answer:
//
//	func config(hello *tls.ClientHelloInfo) (*tls.Config, error) {
//		if cert, ok := c.Challenge(hello); ok {
//			return &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{certs.ALPN}}, nil
//		}
//		…
//	}
//
// With ACME there is one certificate for the agent's own name and all names
// right below it (HASH.DOMAIN, *.HASH.DOMAIN), which say nothing of the home in
// the public logs of certificates, and one for each further host. DNS-01 is
// answered by the relay's DNS: the relay learns a digest and publishes it. That
// digest is good for our account's orders alone, and the CAA records that name
// the account (Config.Account) keep everybody else from ordering, as long as
// the relay is honest: whoever answers for a zone can always get a certificate
// in its names. What a relay cannot do is read what comes under this one.
package certs
