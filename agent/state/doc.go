// Package state is what an agent keeps on disk: its key and certificate, where
// its relay is, the services that were added by `agent expose`, and what it
// remembers from one run to the next.
//
//	dir, err := state.Open("/var/lib/sallyport/agent")
//	if err != nil { … }           // says what to do
//	defer dir.Close()
//	id, err := dir.Identity()     // state.ErrNotJoined before the first join
//
// The directory has mode 0700, its files 0600. Every write replaces a whole
// file (temporary file, fsync, rename, fsync of the directory), so that a
// power cut leaves the old content or the new one.
//
//	agent.key      the private key, made before the join and never sent anywhere
//	identity.json  certificate, agent CA, relay, names: its presence means "joined"
//	services.json  exposed services
//	memory.json    the transport that worked, the latest time that a relay vouched for
//	lock           held by the running agent
//	agent.sock     the control socket (package control)
package state
