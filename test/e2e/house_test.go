package e2e_test

import (
	"slices"
	"sync"

	"github.com/sallyport/sallyport/test/world"
)

// messages collects what a broker saw.
type messages struct {
	mu   sync.Mutex
	list []world.Message
}

func (m *messages) add(msg world.Message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = append(m.list, msg)
}

func (m *messages) all() []world.Message {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.list)
}
