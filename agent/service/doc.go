// Package service is the agent's table of what the home offers: names on one
// side, backends at home on the other. The relay asks for a name; only this
// table knows the address, and only what stands in it is ever dialled.
//
//	table := service.NewTable(logger, nil)
//	err := table.Set([]service.Entry{
//		{Name: "ha", Target: "127.0.0.1:8123"},
//		{Name: "nas", Target: "https://nas.local:5001", CAFile: "/etc/sallyport/nas.pem"},
//	})
//	…
//	go table.ServeStream(ctx, stream) // for each stream that the relay opens
//
// # Targets
//
//	127.0.0.1:8123          HTTP, the default
//	http://lamp.local       HTTP; port 80
//	https://nas.local:5001  HTTP over TLS, verified (Entry says how)
//	h2c://127.0.0.1:50051   HTTP/2 without TLS, for gRPC
//	tcp://127.0.0.1:22      bytes; the port is needed
//	udp://127.0.0.1:51820   datagrams; the port is needed, and a Port of the relay
//	unix:/run/app.sock      HTTP over a unix socket
//	tcp+unix:/run/app.sock  bytes over a unix socket
//
// Host names ending in .local are asked for on the home network by multicast
// DNS; all others are the system resolver's.
//
// # Services whose TLS ends at home
//
// A service with TLS "agent" is never dialled for a stream of the relay: the
// visitor has proved nothing yet. The stream goes to Table.EndToEnd, which is the
// home's own door; once a visitor is through, that dials by DialBackend.
//
// # Datagrams
//
// A udp service has a stream for each visitor's address, which carries datagrams
// (package packets), and a socket at home for each stream, so that the backend
// can tell visitors apart by their ports. Nobody can see whether a UDP target is
// there: the relay is told OK, and what comes back of refusals is counted.
package service
