package queue

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"

	"go.etcd.io/bbolt"
)

// A survey is what reading the whole file has shown.
type survey struct {
	queues  map[string]found
	reserve bool // it is there
}

type found struct {
	last  uint64
	meta  meta
	tally tally // as counted; meta's should be the same
}

// inspect reads every page that is in use, before anything is written. bbolt's
// own check would find more, but it runs in a goroutine of its own, and a
// memory fault there takes the process with it.
func inspect(path string) (survey, error) {
	db, _, err := openBolt(path, &bbolt.Options{ReadOnly: true, PreLoadFreelist: true, NoStatistics: true})
	if err != nil {
		return survey{}, err
	}
	defer db.Close()
	return guard(func() (survey, error) {
		seen := survey{queues: map[string]found{}}
		return seen, db.View(func(tx *bbolt.Tx) error {
			if err := checkSizes(tx); err != nil {
				return err
			}
			return seen.walk(tx)
		})
	})
}

// checkSizes finds pages that claim to reach beyond the end: bbolt believes
// them, and would count free pages until memory is full.
func checkSizes(tx *bbolt.Tx) error {
	for id := 0; ; id++ {
		p, err := tx.Page(id)
		if err != nil || p == nil {
			return err
		}
		switch p.Type {
		case "leaf", "branch", "freelist":
			id += p.OverflowCount
		default:
			continue // a free page's head says nothing
		}
		if last, err := tx.Page(id); err != nil || last == nil {
			return fmt.Errorf("%w: page %d is too long", errDamaged, p.ID)
		}
	}
}

// walk refuses whatever it does not know.
func (v *survey) walk(tx *bbolt.Tx) error {
	return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		switch {
		case b == nil:
			return fmt.Errorf("%w: a value among the buckets", errRecord)
		case bytes.Equal(name, keysBucket):
			return b.ForEach(func(k, value []byte) error {
				if value == nil {
					return fmt.Errorf("%w: a bucket among the keys", errRecord)
				}
				return check(b, k, value)
			})
		case bytes.Equal(name, reserveBucket):
			v.reserve = true
			return nil
		case bytes.Equal(name, queuesBucket):
			return b.ForEach(func(k, value []byte) error {
				if value != nil {
					return fmt.Errorf("%w: a value among the queues", errRecord)
				}
				f, err := v.walkQueue(b.Bucket(k))
				if err != nil {
					return fmt.Errorf("queue %q: %w", k, err)
				}
				v.queues[string(k)] = f
				return nil
			})
		}
		return fmt.Errorf("%w: a bucket %q", errRecord, name)
	})
}

func (v *survey) walkQueue(b *bbolt.Bucket) (f found, err error) {
	f.last = b.Sequence()
	newest := uint64(0)
	err = b.ForEach(func(k, value []byte) error {
		if err := check(b, k, value); err != nil {
			return err
		}
		seq, ok := keySeq(k)
		switch {
		case bytes.Equal(k, metaKey):
			f.meta, err = decodeMeta(value)
			return err
		case !ok:
			return fmt.Errorf("%w: a key %q", errRecord, k)
		case seq <= newest, seq > f.last:
			return fmt.Errorf("%w: message %d after %d of %d", errRecord, seq, newest, f.last)
		}
		h, _, err := decodeItem(value)
		if err != nil {
			return fmt.Errorf("message %d: %w", seq, err)
		}
		f.tally.add(h, 1)
		newest = seq
		return nil
	})
	if err == nil && f.meta.limits == (Limits{}) {
		err = fmt.Errorf("%w: no %q", errRecord, metaKey)
	}
	return f, err
}

// check looks a record up that was met on the way, so that pages which are out
// of order show, and reads from every page of its value, so that a file that
// was cut does.
func check(b *bbolt.Bucket, key, value []byte) error {
	if found := b.Get(key); found == nil || len(found) != len(value) {
		return fmt.Errorf("%w: %q is not where it belongs", errDamaged, key)
	}
	sum := byte(0)
	for i := 0; i < len(value); i += 512 {
		sum ^= value[i]
	}
	if len(value) > 0 {
		sum ^= value[len(value)-1]
	}
	runtime.KeepAlive(sum)
	return nil
}

// repair writes what a queue says of itself anew where it is not what is there.
func repair(db *bbolt.DB, seen survey) error {
	err := db.Update(func(tx *bbolt.Tx) error {
		changed := tx.Bucket(queuesBucket) == nil || tx.Bucket(keysBucket) == nil
		if err := makeBuckets(tx); err != nil {
			return err
		}
		for name, f := range seen.queues {
			b := tx.Bucket(queuesBucket).Bucket([]byte(name))
			if f.meta.tally == f.tally {
				continue
			}
			changed = true
			f.meta.tally = f.tally
			if err := b.Put(metaKey, f.meta.encode()); err != nil {
				return err
			}
		}
		if !changed {
			return errNothing
		}
		return nil
	})
	if errors.Is(err, errNothing) {
		return nil
	}
	return err
}

// errNothing rolls a transaction back that has nothing to write: a commit
// would cost an fsync.
var errNothing = errors.New("nothing to write")
