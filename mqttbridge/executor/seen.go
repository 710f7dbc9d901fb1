package executor

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/sallyport/sallyport/mqttbridge"
)

// maxSeen is how many ids are kept, the newest ones. By number, not by age: no
// clock can empty the list. It is there for answers and as the last wall
// against a second run; the first is that no challenge is taken twice or
// survives a restart.
const maxSeen = 20_000

var (
	bucketSeen  = []byte("seen")  // id → record
	bucketOrder = []byte("order") // sequence number, 8 bytes big endian → id
	bucketOpen  = []byte("open")  // ids without a final state
	bucketLast  = []byte("last")  // action's name → mqttbridge.Last
	bucketPulse = []byte("pulse") // topic → pulseRecord
)

// running is the state of a record from before its command is published until
// the outcome is known. One that an earlier process left so is
// mqttbridge.Unknown.
const running mqttbridge.State = "running"

// A record is what is kept of a command.
type record struct {
	Action  string           `json:"action"`
	Device  string           `json:"device"`
	Digest  []byte           `json:"digest"` // SHA-256 of the signed body
	State   mqttbridge.State `json:"state"`
	Final   bool             `json:"final,omitempty"`
	Code    mqttbridge.Code  `json:"code,omitempty"`
	Reason  string           `json:"reason,omitempty"`
	Created time.Time        `json:"created"`
	At      time.Time        `json:"at"`
}

// A pulseRecord is the second half of a press that is still to come.
type pulseRecord struct {
	ID      string    `json:"id"`
	Action  string    `json:"action"`
	Device  string    `json:"device"`
	Payload []byte    `json:"payload"`
	QoS     byte      `json:"qos"`
	Due     time.Time `json:"due"` // wall clock; only a later process goes by it
}

// errSeen says that an id was seen before.
var errSeen = errors.New("the id was seen before")

// seenSet is the file of ids. Every change is on disk when the call returns.
type seenSet struct {
	db *bolt.DB
	// update is db.Update; tests let it fail.
	update func(func(*bolt.Tx) error) error
}

func openSeen(path string) (s *seenSet, err error) {
	defer func() {
		// bbolt panics on some kinds of damage.
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
		if err != nil {
			s, err = nil, fmt.Errorf("open %s: %w\nIf another agent uses it, stop that one. If it is damaged, move it away: no command runs twice for that, but what became of the old ones is lost.", path, err)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, err
	}
	s = &seenSet{db: db, update: db.Update}
	err = db.View(func(tx *bolt.Tx) error {
		if tx.Bucket(bucketPulse) == nil {
			return errors.New("new")
		}
		return nil
	})
	if err == nil {
		return s, nil // a full disk is no reason not to start
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketSeen, bucketOrder, bucketOpen, bucketLast, bucketPulse} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		db.Close()
	}
	return s, err
}

func (s *seenSet) close() error { return s.db.Close() }

// write runs one change; errors wrap errDisk, but for errSeen.
func (s *seenSet) write(change func(*bolt.Tx) error) error {
	err := s.update(change)
	if err == nil || errors.Is(err, errSeen) {
		return err
	}
	return fmt.Errorf("%w: %w", errDisk, err)
}

func put(tx *bolt.Tx, bucket []byte, key string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return tx.Bucket(bucket).Put([]byte(key), data)
}

// begin records an id before its command is published, with the pulse that is
// to follow on a topic. errSeen: nothing was recorded, and nothing may run.
func (s *seenSet) begin(id string, r record, topic string, pulse *pulseRecord) error {
	r.State = running
	return s.write(func(tx *bolt.Tx) error {
		if tx.Bucket(bucketSeen).Get([]byte(id)) != nil {
			return errSeen
		}
		order := tx.Bucket(bucketOrder)
		n, err := order.NextSequence()
		if err != nil {
			return err
		}
		if err := order.Put(binary.BigEndian.AppendUint64(nil, n), []byte(id)); err != nil {
			return err
		}
		if err := put(tx, bucketSeen, id, r); err != nil {
			return err
		}
		if err := tx.Bucket(bucketOpen).Put([]byte(id), []byte{1}); err != nil {
			return err
		}
		if pulse != nil {
			if err := put(tx, bucketPulse, topic, pulse); err != nil {
				return err
			}
		}
		return forgetOldest(tx, n)
	})
}

func forgetOldest(tx *bolt.Tx, newest uint64) error {
	if newest <= maxSeen {
		return nil
	}
	cursor := tx.Bucket(bucketOrder).Cursor()
	for key, id := cursor.First(); key != nil && binary.BigEndian.Uint64(key) <= newest-maxSeen; key, id = cursor.First() {
		if err := tx.Bucket(bucketSeen).Delete(id); err != nil {
			return err
		}
		if err := tx.Bucket(bucketOpen).Delete(id); err != nil {
			return err
		}
		if err := cursor.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// note records how far a command has come. Of those that may have run it
// becomes the action's last. dropPulse is the topic of a pulse that is not to
// come: nothing ran.
func (s *seenSet) note(id string, r record, dropPulse string) error {
	return s.write(func(tx *bolt.Tx) error {
		if err := put(tx, bucketSeen, id, r); err != nil {
			return err
		}
		if r.Final {
			if err := tx.Bucket(bucketOpen).Delete([]byte(id)); err != nil {
				return err
			}
		}
		if dropPulse != "" {
			if err := tx.Bucket(bucketPulse).Delete([]byte(dropPulse)); err != nil {
				return err
			}
		}
		if !mayHaveRun(r.State) {
			return nil
		}
		return put(tx, bucketLast, r.Action, mqttbridge.Last{By: r.Device, At: r.At, State: r.State})
	})
}

func mayHaveRun(s mqttbridge.State) bool {
	switch s {
	case mqttbridge.Delivered, mqttbridge.Done, mqttbridge.Unconfirmed, mqttbridge.Unknown:
		return true
	}
	return false
}

// get returns what is recorded of an id.
func (s *seenSet) get(id string) (r record, found bool, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		data := tx.Bucket(bucketSeen).Get([]byte(id))
		if data == nil {
			return nil
		}
		found = true
		return json.Unmarshal(data, &r)
	})
	return r, found, err
}

// unfinished returns the ids that an earlier process left without a final
// state.
func (s *seenSet) unfinished() (ids []string, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketOpen).ForEach(func(id, _ []byte) error {
			ids = append(ids, string(id))
			return nil
		})
	})
	return ids, err
}

// last returns who ran each action last.
func (s *seenSet) last() (map[string]mqttbridge.Last, error) {
	return loadAll[mqttbridge.Last](s, bucketLast)
}

// pulses returns the second halves that are still to come, by topic.
func (s *seenSet) pulses() (map[string]pulseRecord, error) {
	return loadAll[pulseRecord](s, bucketPulse)
}

func (s *seenSet) dropPulse(topic string) error {
	return s.write(func(tx *bolt.Tx) error { return tx.Bucket(bucketPulse).Delete([]byte(topic)) })
}

func loadAll[T any](s *seenSet, bucket []byte) (map[string]T, error) {
	all := make(map[string]T)
	err := s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(key, data []byte) error {
			var v T
			if err := json.Unmarshal(data, &v); err != nil {
				return err
			}
			all[string(key)] = v
			return nil
		})
	})
	return all, err
}
