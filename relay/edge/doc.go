// Package edge is what the internet meets first: it accepts connections,
// reads the TLS ClientHello without answering it, and hands the connection to
// the Target that the server name and the ALPN choose.
//
//	router := edge.NewRouter()
//	router.Swap(&edge.Snapshot{Hosts: table, Default: edge.Refuse{}})
//	server := &edge.Server{Router: router, Logger: logger}
//	err := server.Serve(ctx, listener)
//
// Nothing here terminates TLS for a home. ACME challenges go to whoever ends the
// TLS of their host: the home, or the snapshot's ACME target. Whoever is not sent to a claimed
// host or to the tunnel meets the snapshot's Default: an alert, another server,
// or a page that says nothing. Every connection is a stranger's, and may have
// to make room, until its target calls [Conn.Settled].
//
// With [ECH] a hello may come encrypted inside another one, whose server name
// is always the same. It is opened here and routed by the name inside; the
// target reads what was inside as if it had been sent so, and answers it. The
// relay can do no more with it than with any other hello. Behind a load
// balancer, [Server].ProxyFrom says whose word about the visitor's address counts.
package edge
