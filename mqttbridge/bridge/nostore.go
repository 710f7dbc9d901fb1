package bridge

import "github.com/eclipse/paho.mqtt.golang/packets"

// noStore is paho's message store, and keeps nothing: a session is never made
// again, so nothing is ever sent from it. The home broker and the durable
// queue are the stores.
type noStore struct{}

func (noStore) Open()                             {}
func (noStore) Put(string, packets.ControlPacket) {}
func (noStore) Get(string) packets.ControlPacket  { return nil }
func (noStore) All() []string                     { return nil }
func (noStore) Del(string)                        {}
func (noStore) Close()                            {}
func (noStore) Reset()                            {}
