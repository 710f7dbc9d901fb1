// Package real tries the built binary with the tools that people use: curl,
// openssl, nginx, Python, a browser's protocols, and (as root) network
// namespaces with a firewall between the home and the relay.
//
//	go test ./test/real                     # what the tools of this machine allow, the quick part
//	CI=true go test ./test/real             # everything; a missing tool is a failure
//	SALLYPORT_REAL=1 go test ./test/real    # everything; a missing tool is a skip
//	SALLYPORT_LARGE=1                       # 2 GB instead of 200 MB in the memory test
//
// All servers listen on loopback, on ports that the kernel picks, or in
// namespaces that the test makes and removes. Under -race the binary is built
// with the race detector as well, and a report of it fails the test.
package real
