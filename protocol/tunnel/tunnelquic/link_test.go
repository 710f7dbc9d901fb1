package tunnelquic

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/sallyport/sallyport/protocol"
)

// TestCause: the streams of a connection fail a moment before the connection
// says why.
func TestCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, end := context.WithCancelCause(t.Context())
		time.AfterFunc(50*time.Millisecond, func() {
			end(&quic.ApplicationError{ErrorCode: quic.ApplicationErrorCode(protocol.CodeRevoked), ErrorMessage: "why", Remote: true})
		})
		if e := causeOf(conn); e == nil || e.Code != protocol.CodeRevoked || e.Reason != "why" || !e.Remote {
			t.Errorf("got %v", e)
		}
		if e := causeOf(t.Context()); e != nil {
			t.Errorf("a connection that goes on: %v", e)
		}
	})
}
