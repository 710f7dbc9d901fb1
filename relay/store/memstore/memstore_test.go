package memstore_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/sallyport/sallyport/relay/store"
	"github.com/sallyport/sallyport/relay/store/memstore"
	"github.com/sallyport/sallyport/relay/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKV(t *testing.T) {
	storetest.TestKV(t, func(*testing.T) store.KV { return memstore.New() })
}
