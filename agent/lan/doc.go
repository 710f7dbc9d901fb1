// Package lan serves the sites of the home straight on the home network, so
// that nothing leaves the house and everything works while the relay, or the
// line to it, is away. Door, certificates and rules are the same as for
// visitors that come through the relay.
//
//	l, err := lan.New(lan.Config{
//		Own:     hash + ".example.org",
//		Serve:   door.ServeConn,
//		Changed: tellRelay, // its DNS names our addresses
//		Ours:    isOurSite,
//	})
//	go l.Run(ctx)
//	l.URLs() // https://192-168-1-7.HASH.example.org:8443, …
//
// A browser gets here in one of three ways: by such a URL, whose name the
// relay's DNS answers with the address that it spells; by the usual name, where
// the home's DNS or the relay's gives the home network's address and Listen is
// the public port; or by a page of the public site, which finds the URL with
// lan.js. Some routers drop private addresses from DNS answers ("rebind
// protection"): then the first and the third way need an exception there.
//
// Only private and link-local addresses may connect, unless Open is set. That
// is no substitute for the door behind it, only less to be seen by strangers.
//
// # A page that looks for the home network
//
// Helper serves three paths below [WellKnown] on every site:
//
//	lan.json  for devices: our URLs here, and whether the page is here already
//	lan.js    the module that tries them
//	here      what it asks there (CORS, for pages of the home's own hosts)
//
// A page of the home uses it so:
//
//	import {lan} from "/.well-known/sallyport/lan.js";
//	const base = await lan();                        // when loaded: asks nobody
//	button.onclick = () => lan({ask: true}).then(…); // may ask the person
//	if (base) location = base + location.pathname;
//
// Browsers ask people before a public page may reach the home network. In
// Chrome and Edge this began with version 142 (October 2025), for WebSockets
// with 147; the permission is "local-network-access", since 145 split into
// "local-network" and "loopback-network". Firefox does it step by step since
// 151, WebKit is building it. The question comes at the first fetch and holds
// that fetch until it is answered: a page that fetched when it is loaded would
// startle its reader and then run into its own time limit. So lan() tries only
// when the permission is there, or when the browser knows of none; with ask it
// waits a minute, which is also enough to choose a certificate, as the LAN
// address is a host of its own. Call it so from a click. In a frame the
// embedding page must pass the permission on (allow="local-network"); workers
// cannot ask.
//
// The fetch says targetAddressSpace "local", as otherwise browsers learn too
// late what they are about to do. It is a GET without headers of its own, since
// a preflight carries no client certificate and would fail at sites that
// require one. For the same reason an app should go to the address rather than
// fetch from it: about that no browser asks so far.
//
// An older plan of Chrome's, Private Network Access, asked the server instead
// of the person. No browser insists on it; its one header is answered, since it
// costs nothing.
//
// # Multicast DNS
//
// With Announce the home network is told of a service _sallyport._tcp, so that
// apps that know HASH.DOMAIN find address and port without DNS. It must not name
// the owner: the instance is a digest of HASH.DOMAIN (HASH itself would lead to
// the domain through the public logs of certificates), and the host is not the
// machine's own name.
package lan
