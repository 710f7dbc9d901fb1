// Package load measures Sallyport against its peers, as processes on
// loopback in the same run:
//
//	floor     a TCP proxy in Go that does nothing but splice (one hop, no TLS)
//	haproxy   HAProxy that terminates TLS with client certificates (one hop)
//	quic, tcp a relay and an agent of the built binary, over either transport (two hops)
//
// on four roads: raw (TLS ended by the relay, TCP behind), http and h2 (an
// HTTP service, visited by HTTP/1.1 and HTTP/2), pass (TLS passed through to
// the service unread).
//
// For MQTT the peer is mosquitto on the VPS, for devices with certificates, and
// mosquitto's own bridge at home. What stands at home is a mosquitto for all of
// them. Slow lines are processes that hold everything for a while (detour).
//
//	go test -run '^$' -bench . -count 3 ./test/load            # about twenty minutes; the table at the end holds medians
//	go test -run '^$' -bench . -benchtime 1x ./test/load       # a look, about a minute
//	go test -run '^$' -bench 'Bulk/down/8/raw' ./test/load     # a part
//	go test -run '^$' -bench 'Bridge|Command|IdleMQTT|Stalled' -count 3 ./test/load # MQTT and commands
//
// CPU time is that of the processes between visitor and home, from their CPU
// clocks; Gbit/s and rates share the machine with the load itself, so costs
// are what to compare. These are benchmarks: no number fails. A missing
// HAProxy or mosquitto leaves its rows out (another broker stands at home
// then), with CI=true it is a failure.
//
// SALLYPORT_LOAD_PROFILE=DIR runs relay and agents from the test binary and
// leaves their CPU profiles in DIR, and what is in memory while connections
// idle; choose one benchmark with -bench.
//
// Linux only: the clocks and /proc are.
package load
