// Package protocol is the wire that relay and agent share: its messages, its
// codes, and the readers and writers of its frames. This comment is the
// specification; somebody who reads only this can write the other end.
//
// # Versions
//
//	1  this document
//
// The ALPN name carries the major version of the tunnel ("sallyport/1").
// Inside it, Hello lists every version that the agent speaks and Welcome names
// the one that both use from there on; a relay that has none in common closes
// the session with CodeVersion. Within a version the wire may only grow:
// unknown JSON fields are ignored, unknown message types are skipped, bytes
// after the last known field of an Open are ignored, unknown feature names
// mean nothing, unknown codes are treated like CodeInternal.
//
// All numbers are unsigned and big-endian. All text is UTF-8.
//
// # Connecting
//
// The agent dials the relay, never the other way round, on the port that the
// relay shares with the public (443 by default): QUIC version 1 over UDP, or
// TLS over TCP. TLS is 1.3 in both.
//
//	server name (SNI)  the one of the join token: a name chosen at random by
//	                   the relay, which needs no DNS record
//	ALPN               "sallyport/1"       the tunnel
//	                   "sallyport-join/1"  joining, over TCP only
//
// The dialer offers exactly one of the two. Under any other server name they
// do not exist: the connection is
// treated as a stranger's for an unknown host, on TCP and on UDP alike. Names
// are compared in the canonical form of package names.
//
// The relay's certificate is issued by the agent CA for that server name. The
// agent trusts this CA alone, whose certificate it pinned when it joined.
// On "sallyport/1" the relay asks for a certificate and accepts only one of
// the agent CA with the usage clientAuth, whose key has joined and is not
// revoked. Whether that certificate has expired is not asked: an agent that was
// off for a year comes back and renews. An agent is its key, not its certificate: AgentID is the SHA-256
// of the SubjectPublicKeyInfo in lower-case base32, 52 letters. No 0-RTT.
//
// # Joining
//
// A join token is "sp1-" and the base64url text, without padding, of
//
//	 2  bytes that follow
//	 1  length a             \  relay address, "host:port"
//	 a  text                 /
//	 1  length b             \  server name, canonical
//	 b  text                 /
//	32  SHA-256 of the agent CA's certificate (DER)
//	 1  length c, 16..255    \  secret, printable ASCII, works once
//	 c  text                 /
//	 8  expiry, Unix seconds, 0 for none
//	 4  the first 4 bytes of the SHA-256 of all bytes before
//
// White space inside the text is ignored. A later form will be "sp2-".
//
// The agent makes its key, connects with TLS over TCP and "sallyport-join/1",
// without a client certificate. The relay presents its certificate and that
// of the agent CA behind it. The agent takes the presented certificate whose
// SHA-256 is in the token as its only root, and verifies the chain and the
// server name with it, before it sends anything. Frames go straight over the
// connection, as on a control stream:
//
//	agent → relay  Join    secret, CSR (PKCS#10, DER), a wish for a name
//	relay → agent  Joined  certificate and CA (DER), name, domain; or error
//
// Only the public key of the CSR is used. The agent checks that the CA has the
// token's fingerprint and that the certificate is for its own key, stores
// them, and closes. The relay limits the rate of joins. The first key that
// comes with a secret spends it; the same key may ask again with the same
// secret, since it may have crashed before it stored the answer.
//
// # Control stream
//
// The first stream that the agent opens in a session is the control stream;
// it opens no other, and the relay ends a session over TCP in which it does with
// CodeProtocol; over QUIC it cannot.
// (The flow stream below it, see Transports, is not counted here.) Both ways
// the control stream carries messages:
//
//	4  n: bytes that follow, 1..65536
//	1  type
//	n-1  a JSON object, RFC 8259
//
// Binary fields are base64 in JSON, times RFC 3339, durations nanoseconds. A
// frame that is too large, too small, or not a JSON object of the right
// shape ends the session with CodeProtocol. The fields are those of the types
// in this package.
//
//	type  message     direction      when
//	 1    Hello       agent → relay  first, once, within 10 s of the handshake
//	 2    Welcome     relay → agent  answers Hello; nothing else before it
//	 3    Register    agent → relay  the whole list of services; again on every change
//	 4    Registered  relay → agent  answers every Register, with its seq
//	 5    GoAway      either way     at any time after Welcome
//	 6    Ping        either way     at any time after Welcome
//	 7    Pong        either way     answers Ping, with its seq
//	 8    Renew       agent → relay  a new certificate for the session's key
//	 9    Renewed     relay → agent  answers Renew
//	10    Join        agent → relay  on "sallyport-join/1" only
//	11    Joined      relay → agent  on "sallyport-join/1" only
//	12    Names       agent → relay  with feature dns: what the zone should know of the home
//	13    Named       relay → agent  answers Names, with its seq
//	14    SetTXT      agent → relay  with feature dns: a record for a challenge of ACME
//	15    TXTSet      relay → agent  answers SetTXT, with its seq, once the zone has it
//
// Hello.instance is random for each process. The newest session of a key takes
// all new streams. An older session of the same instance finishes its
// streams; one of another instance, if alive, is told GoAway(CodeReplaced).
// With Hello.alone the agent says that no older session of its instance works
// any more: the relay closes those that it still holds, so that visitors on
// them fail at once and not when the transport notices the dead path.
//
// A service with remote_user wants requests to carry the name of the
// visitor's device in the header Remote-User, beside those that every service
// of proto http1 or h2 gets. A relay from before this field sends none, and
// whatever a visitor sends under that name never reaches the service.
//
// A service says who ends the visitors' TLS: the relay, the service itself
// ("backend"), or the agent. For the last two the relay opens a stream that carries
// TLS unread, and what follows the agent's Result is the visitor's ClientHello. For
// "agent" the agent itself names the host in Register and judges visitors by the
// server name that it finds there: nothing that the relay says of a visitor, a host
// or a right counts. HASH.DOMAIN, with the agent's identity for HASH, and all
// below it are the agent's own. A service with a port has no host and no TLS.
//
// Register replaces what was registered before: a service that is not in it is
// withdrawn, one that stays is not disturbed. The relay answers for each
// service: a URL, or an error that says what to do. A Registered whose seq is
// not the last one sent is out of date and ignored.
//
// GoAway says that the sender is about to end the session. The receiver dials
// anew, not before reconnect_in, and for the time try_for does not let its
// back-off grow; it moves over first and lets old streams finish on the old
// session. The sender closes when they have, or after its limit (10 minutes
// unless the code is CodeRevoked, which waits for nothing).
//
// Ping is at least 64 bytes long with its frame, hence the field pad: a smaller
// QUIC packet cannot provoke a stateless reset (RFC 9000 §10.3), and the death
// of the relay would go unnoticed for half a minute. The agent sends one every
// 1–2 s while data streams are open, more rarely when idle. The receiver
// answers at once, ahead of other work. An answer that takes 5 s counts as
// lost.
//
// The control stream lives as long as the session: its end or reset, by either
// side, ends the session.
//
// # Data streams
//
// The relay opens one stream for each visitor connection (or pooled backend
// connection, for HTTP that it terminates). First it writes an Open:
//
//	2  bytes that follow, at most 1024
//	1  kind: 1 a connection, 2 datagrams
//	1  hop: relays passed before this one, at most 1
//	1  length s, 1..63      \  service, [a-z0-9-]
//	s  text                 /
//	1  length c: 0, 4, 16   \
//	c  IP address            | visitor; port only if c > 0
//	2  port                 /
//	1  length l: 0, 4, 16   \
//	l  IP address            | relay's address that the visitor reached; likewise
//	2  port                 /
//	1  length n, 0..253     \  server name that the visitor asked for, canonical
//	n  text                 /
//	   anything behind is from a newer version and ignored
//
// The agent checks that it offers the service and that hop is at most 1, dials
// the backend, and answers with a Result within 10 s:
//
//	4  code, 0 for success
//	1  length r             \  reason, for the relay's log
//	r  text                 /
//
// After code 0 both directions carry the connection's bytes and nothing else.
// After any other code the agent ends the stream. Bytes of the visitor may
// follow the Open before the Result is there. A relay that has waited
// for 15 s resets the stream with CodeAborted.
//
// The end of one direction (TCP FIN, TLS close_notify) crosses as the clean
// end of that direction, the other goes on. An abort (TCP RST, a broken
// backend, a broken session) crosses as a reset with a code: the receiver
// never takes it for a clean end, and passes it on as an abort.
//
// A stream of kind 2 is one flow of datagrams: one visitor's address and the home,
// for a service of proto udp. After code 0 both directions carry packets, and
// over QUIC DATAGRAM frames carry most of them, see Transports:
//
//	2  length n, 0..65507   \  a packet
//	n  payload              /
//
// A packet is never cut or merged. It may be lost, and overtake another one. Who
// sends does not wait for the path: of what the path does not take, the oldest
// packets are dropped, and those that waited 500 ms. The same goes for who
// receives and is not read. The end of either direction ends the flow, as a
// reset does; an end inside a packet, or a larger length, is answered with a
// reset with CodeProtocol.
//
// # Streams of the agent
//
// Features are named in Hello.features and answered in Welcome.features with
// those that both have:
//
//	mqtt      the relay has a hub: package mqttbridge, LinkPacket
//	commands  the relay takes commands of devices: package mqttbridge, Frame
//	devices   the relay's device CA and its signed list of devices: DeviceFrame
//
// Without a stream, for the messages and services above:
//
//	dns        the relay answers its domain's DNS
//	tls-agent  services whose TLS ends at the agent
//	ports      services with a public port of the relay, TCP and UDP
//
// With one of the first three the agent may open streams of its own, beside the control
// stream. It writes an Open whose service is the feature, with no addresses and
// no server name; the relay answers with a Result within 10 s, and both
// directions then carry what that package's comment describes. The relay knows
// the agent by its session. On a stream for devices both sides send frames: 4
// bytes of length, at most 4 MiB, and a JSON object. The agent believes what the
// CA that it pinned has signed, and no list with a lower number than the last. When a newer session is there, the agent opens new
// streams on it and lets the older ones end.
//
// # Transports
//
// A session is made of streams that either side opens. Each carries ordered
// bytes both ways, a clean end for each direction, and a reset with a code.
// A stream exists for the peer from its first byte at the latest.
//
// Below the streams of this document lies the flow stream. The dialer opens it
// before anything else; it ends with the session. Both ways it carries frames
// of 17 bytes; unknown types are ignored:
//
//	1  type
//	8  stream: the transport's number of it
//	8  value
//
//	type  name    stream                    value
//	 0    HELLO   version of this part: 1   0
//	 1    CREDIT  a stream                  the limit, in bytes since its start
//	 2    CLOSE   length of the reason, at  code; the reason follows the frame.
//	              most 255                  TCP only
//
// HELLO is the first frame both ways. The dialer sends it at once and waits for
// the listener's, which proves that its certificate was accepted (in TLS 1.3
// the dialer's handshake ends before that). A listener that hears none within
// 10 s ends the session.
//
// Credit: on each direction of each stream but the flow stream the sender may
// have sent 255 KiB, and after CREDIT as much as the highest limit says. The
// receiver raises it as its application reads, by windows that grow from
// 255 KiB to 16 MiB while the reader keeps up and the session's budget has
// room. Who oversteps a limit is closed with CodeProtocol. Whoever receives
// takes bytes off the transport as they come, so that no stalled stream fills
// a window that others share. When the memory of all unread bytes of a session
// exceeds the budget, the longest-stalled streams are reset with CodeOverload.
//
// Each side bounds how many streams the other one may have open: the relay
// grants 1, the agent 10000. A stream counts until both its directions have
// ended and the application has accepted it. A relay with a feature grants 9
// instead of 1. QUIC announces the limit, plus one
// for the flow stream. Over TCP the session of who oversteps it is ended with
// CodeProtocol.
//
// QUIC: a stream is a bidirectional QUIC stream with its number; the clean end
// is FIN; a reset is RESET_STREAM with STOP_SENDING; who closes without having
// read to the end sends STOP_SENDING. Code and reason travel as application
// error code and reason phrase, of streams and of CONNECTION_CLOSE.
// Unidirectional streams are not used. Packets start at 1200
// bytes. A keep-alive after 4 s; 9 s of silence end the session.
//
// A DATAGRAM frame (RFC 9221) is a packet of a stream of kind 2:
//
//	1..8  number of the stream, a QUIC varint
//	rest  the packet, to the end of the frame
//
// Both sides announce max_datagram_frame_size. A packet that does not fit into a
// frame of the path's size goes over the stream, as all do when the peer
// announces none; a receiver takes both. Frames may overtake the bytes of
// their stream. Those of a stream that the peer may still open, or whose owner has
// not come to its packets yet, are kept for 2 s: 16 of a stream, 128 and 256 KiB
// of a session. All others, and what has no number, are dropped. While there
// are more datagrams than the path takes, the sender gives waiting streams as much
// of it as the datagrams get, at the latest every few 100 ms.
//
// TCP: yamux version 0 over TLS; the dialer is yamux's client, a stream has
// yamux's number. yamux cannot reset a stream, so that an aborted transfer
// would look like a finished one. What a stream carries, the flow stream too,
// is therefore divided into records:
//
//	1  type
//	3  length n
//	n  payload
//
//	type  name   payload
//	 0    DATA   bytes of the stream
//	 1    END    none: the clean end of this direction
//	 2    RESET  code, 4 bytes: the abort of this direction
//	 3    STOP   code, 4 bytes: the sender of this record reads no further; the
//	             peer answers with RESET unless its direction has ended
//
// After END or RESET only STOP may follow. The yamux FIN comes when END or RESET
// went both ways; a FIN without one before it, or a yamux RST, is an abort. A
// reset of a stream is RESET together with STOP. A receiver reads on after its
// application has stopped, to see END, RESET and STOP. An unknown or misshapen
// record aborts the stream with CodeProtocol. At most 256 streams may wait for
// yamux's ACK. A yamux ping 4 s after the answer to the last one; one
// unanswered for 10 s ends the session. Code and reason of the session's end
// are the CLOSE frame of the flow stream, after which the sender waits up to
// a second for the peer to hang up.
//
// # Limits
//
//	control message           64 KiB with its type byte
//	Open                      1 KiB
//	reason of a Result        255 bytes
//	service name              63 bytes, a DNS label
//	host name                 253 bytes, canonical (package names)
//	path of a service         255 bytes, "/a/b/"
//	hosts of an agent         50
//	hop                       1
//	packet                    65507 bytes
//	packets that wait         128 and 256 KiB in each direction of a flow
//	open streams              10000 from the relay, 1 from the agent, 9 with features
//	memory of unread bytes    64 MiB a session at the relay, 16 MiB at the agent
//	HELLO, Hello, Open        10 s each
//	Result                    10 s at the agent; the relay waits 15 s
//	frozen path               noticed within 15 s
//	Ping                      5 s
//	join secret               used once, minutes to live
//
// # Codes
//
// A Code is 32 bits wide. It travels in Result and GoAway, in resets, and at the end of a session.
//
//	 0  ok               a clean end
//	 1  internal         a fault of the sender
//	 2  protocol         the peer sent what this document does not allow
//	 3  unknown-service  the agent does not offer the service
//	 4  backend-down     nothing answers at the service's address
//	 5  backend-tls      the backend's certificate does not verify
//	 6  refused          policy says no
//	 7  aborted          the other end of the splice broke off
//	 8  going-away       a planned restart
//	 9  replaced         another live instance has the agent's key
//	10  revoked          the agent or the device was revoked
//	11  idle             no byte for longer than the idle limit
//	12  overload         a budget of memory or streams is used up
//	13  timeout          the peer did not answer in time
//	14  version          no version in common
//	15  offline          the agent has no session now
package protocol
