package relay

import "github.com/sallyport/sallyport/relay/admin"

// status tells how the hub and the commands are; nil when they are off.
func (b *bridges) status() *admin.MQTT {
	if b == nil {
		return nil
	}
	d, h := b.dispatch.Status(), b.hub.Status()
	m := &admin.MQTT{Connections: h.Connections, Homes: []string{}, Commanded: d.Online, Open: d.Open, Untold: d.Untold}
	if b.r.mqtt != nil {
		m.Listen = b.r.mqtt.Addr().String()
	}
	boxes := h.Mailboxes
	for _, a := range h.Agents {
		if a.Online {
			m.Homes = append(m.Homes, a.Name)
		}
		boxes = append(boxes, a.Mailbox)
	}
	for _, box := range boxes {
		m.Waiting += box.Messages
		m.Bytes += box.Bytes
		m.Dropped += box.DroppedFull + box.DroppedOld
	}
	return m
}
