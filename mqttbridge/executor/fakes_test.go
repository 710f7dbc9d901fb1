package executor

import (
	"net"

	bolt "go.etcd.io/bbolt"
)

type nopConn struct{ net.Conn }

func (nopConn) Close() error { return nil }

// tx is what a change of the seen-set gets.
type tx = *bolt.Tx
