//go:build !linux

package tunneltcp

import "net"

// TuneTCP does nothing here.
func TuneTCP(net.Conn) {}
