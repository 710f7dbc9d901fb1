package executor

import (
	"context"
	"net"
	"time"

	bolt "go.etcd.io/bbolt"
)

type nopConn struct{ net.Conn }

func (nopConn) Close() error { return nil }

// hangingBroker never answers, and notes how long somebody would wait.
type hangingBroker struct {
	*fakeBroker
	left *time.Duration
}

func (b *hangingBroker) Publish(ctx context.Context, topic string, payload []byte, qos byte, retain bool) error {
	end, _ := ctx.Deadline()
	*b.left = time.Until(end)
	<-ctx.Done()
	return errUncertain
}

// tx is what a change of the seen-set gets.
type tx = *bolt.Tx
