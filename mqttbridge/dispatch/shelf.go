package dispatch

import "github.com/sallyport/sallyport/mqttbridge"

// A shelf holds the commands in memory, found in the ways that are asked for
// often. Dispatcher.mu guards it.
type shelf struct {
	byID     map[string]*command
	byDevice map[string]map[string]*command // by ID again
	open     map[string]*command            // without an end
	unsure   map[string]*command            // ended as unknown, and the home may know more
}

func newShelf() shelf {
	return shelf{
		byID: map[string]*command{}, byDevice: map[string]map[string]*command{},
		open: map[string]*command{}, unsure: map[string]*command{},
	}
}

// put takes a command in, or to its place after its state changed.
func (s *shelf) put(c *command) {
	id, device := c.status.ID, c.status.Device
	s.byID[id] = c
	if s.byDevice[device] == nil {
		s.byDevice[device] = map[string]*command{}
	}
	s.byDevice[device][id] = c
	file(s.open, c, !c.status.Final)
	file(s.unsure, c, c.status.State == mqttbridge.Unknown && !c.settled)
}

func file(in map[string]*command, c *command, belongs bool) {
	if belongs {
		in[c.status.ID] = c
	} else {
		delete(in, c.status.ID)
	}
}

// drop forgets a command.
func (s *shelf) drop(c *command) {
	id, device := c.status.ID, c.status.Device
	delete(s.byID, id)
	delete(s.open, id)
	delete(s.unsure, id)
	delete(s.byDevice[device], id)
	if len(s.byDevice[device]) == 0 {
		delete(s.byDevice, device)
	}
}

// openOf counts the commands of a device without an end.
func (s *shelf) openOf(device string) (n int) {
	for _, c := range s.open {
		if c.status.Device == device {
			n++
		}
	}
	return n
}
