// Package ports gives services at home public ports of the relay, TCP or UDP,
// for what no web browser speaks: WireGuard, a game server, DNS, SSH.
//
//	p, err := ports.New(ports.Config{Open: registry.OpenStream, Logger: log})
//	go p.Run(ctx)
//	failed := p.Set([]ports.Route{{Agent: id, Service: "wg", Port: 51820, UDP: true}})
//
// Nobody is asked for a certificate here: whoever knows the port reaches the
// service. Which agent may have which port is decided before a Route is made.
//
// # UDP
//
// Each address of a visitor, with the address of ours that it reached, is a flow:
// one stream home that carries its packets. Answers leave from the address that
// was reached, where the system can say which that was (Linux, macOS, the BSDs; a
// socket that is bound to one address needs no telling). A visitor that roams just
// gets another flow. Nothing is ever sent to an address that did not send first,
// and a flow ends when its visitor is silent for Limits.UDPIdle, however much home
// sends: the other way round, one packet with a forged source would aim a stream
// at its victim for as long as home likes (RFC 4787 calls it inbound refresh, and
// says why not).
//
// The source of a packet is easily forged. So a flow counts as a stranger until
// its visitor has sent again after an answer; strangers are forgotten after 30
// seconds, and are the first to go when there are too many. A stranger is sent no
// more in all than three times what it sent, or 4 KiB if that is more; answers
// beyond are dropped and counted. New flows are limited per second, by source and
// by port, since each of them costs the home a stream. When home refuses one, or
// is away, packets of that address are dropped for a few seconds.
//
// A flow that is settled is no proof of an address. Who forges a source sees no
// answers but can guess when they come, and send a second packet then; only the
// service's own protocol could ask for what nobody can guess (WireGuard, QUIC and
// DTLS do). So a service that answers strangers at length, again and again, is a
// gun for others, with this package before it as without. And settled flows have
// no right to stay: when a port or a source is full, the one that has been silent
// longest goes for a newcomer, until strangers have a quarter of the places. Its
// visitor gets a new flow with the next packet. TCP proves addresses by itself:
// connections that home has taken stay.
package ports
