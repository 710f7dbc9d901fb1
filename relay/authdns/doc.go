// Package authdns is the authoritative DNS server of the relay's zone, for an
// owner who delegates the relay's domain to the relay itself. It gives what no
// registrar's panel can: names that follow the hosts that agents claim, names
// with an address inside (192-168-1-7.HASH.DOMAIN) for the way over the home
// network, answers to ACME's DNS-01 from homes that keep their keys, CAA records
// that let nobody but the right account have a certificate, and the HTTPS
// records that carry Encrypted ClientHello.
//
//	homes, txt := authdns.NewHomes(domain), authdns.NewTXT(nil)
//	server, err := authdns.New(authdns.Config{
//		Domain: domain, Addrs: publicAddrs, Sources: []authdns.Source{txt, homes},
//		Hosts: router.Serves, Below: router.ServesBelow,
//	})
//	…
//	err = server.Serve(ctx, udp, tcp) // both on :53
//
// What a name has is put together in this order:
//
//  1. records of the configuration: they replace what follows, type by type;
//     a CNAME replaces everything, an NS hands the name and all below it away
//  2. the first Source that knows the name
//  3. Config.Hosts: the relay's own addresses, and its HTTPS record
//  4. wildcards of the configuration, for names that nothing else knows
//
// # What strangers can do with it
//
// Everybody on the internet may ask, from any address that they care to write
// on a UDP packet. So: no recursion, no transfer, other zones are refused; ANY
// gets one small record (RFC 8482); an answer by UDP is at most eight times its
// question, and 1,232 bytes, else it is empty with the TC bit and the asker comes
// back by TCP, where nobody lies about an address; networks that ask too fast get
// that same small answer every second time, and nothing otherwise. Packets that
// are no questions get no answer at all, so that two servers cannot be set
// talking to each other.
//
// Names with an address inside answer with addresses that this very agent has
// registered, and with nothing else. So the zone cannot be used to turn a browser
// against somebody's network (DNS rebinding), nor to give other people's
// addresses a name that has a certificate.
//
// The zone is not signed (DNSSEC): a DS record at the registrar makes it
// unreachable for half of the world. CheckDelegation finds that.
package authdns
