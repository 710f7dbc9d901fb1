package tunneltest_test

import (
	"testing"

	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

func TestPair(t *testing.T) {
	tunneltest.TestSession(t, func(t *testing.T) (a, b tunnel.Session) { return tunneltest.Pair(t) })
}
