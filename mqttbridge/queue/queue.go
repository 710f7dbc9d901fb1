// Package queue keeps messages on disk until somebody else has them: the hub's
// mailboxes and the bridge's way out. Many queues share one bbolt file, and
// callers that append at the same time share one fsync.
//
//	s, err := queue.Open("/var/lib/sallyport/agent/mqtt.db", queue.Options{})
//	defer s.Close()
//	err = s.Create("out", queue.Limits{})
//	_, err = s.Append(ctx, []queue.Item{{Queue: "out", Data: message}}, nil) // on disk when err is nil
//	for {
//		items, err := s.Read("out", after, 64)
//		... // deliver; then s.Ack("out", items[n].Seq)
//		<-s.Changed("out")
//	}
//
// What Append confirmed survives kill -9 and power loss. What Ack was told may
// be told again after a crash: at least once, in order. Sequence numbers rise
// and are never given twice, not even after a queue was removed and made anew.
//
// Memory: nothing is held per message; per queue about 200 bytes. The file
// grows to what the queues hold at once, is used again inside, and is made
// small again when most of it is empty. On a full disk appends are refused;
// delivered messages can still be removed, and make room.
package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// Errors that callers decide by.
var (
	// ErrFull: a queue's limits are reached and nothing in it may make room.
	// Nothing was kept and nothing was dropped.
	ErrFull = errors.New("queue: full")
	// ErrTooLarge: the items could not even fit into the empty queue, or an
	// item or value is over the limits of this package. Trying again is no use.
	ErrTooLarge = errors.New("queue: too large")
	// ErrDisk: the file could not be written; nothing was kept unless the error
	// is ErrUncertain too. It is worth trying again: a full disk gets room.
	ErrDisk = errors.New("queue: cannot write to disk")
	// ErrUncertain: the disk failed in the very last step. What was to be
	// written may be there or not; it comes together with ErrDisk.
	ErrUncertain = errors.New("queue: it may have been kept all the same")
	// ErrNoQueue: there is no queue of that name.
	ErrNoQueue = errors.New("queue: no such queue")
	// ErrClosed: the store is closed; nothing was kept.
	ErrClosed = errors.New("queue: closed")
)

// Limits of everything.
const (
	MaxName  = 1024    // bytes of a queue's name or a key, at least one
	MaxData  = 1 << 20 // bytes of an item
	MaxValue = 1 << 20 // bytes of a key's value

	// Defaults of Limits.
	DefaultMessages = 10_000
	DefaultBytes    = 32 << 20
)

// Options of Open. The zero value is for production.
type Options struct {
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // for what no caller hears of; default: nothing is logged
	NoSync bool             // tests only: no fsync, so that a power cut loses what was confirmed
}

// Limits of one queue. Zero means the default.
type Limits struct {
	Messages int   // default 10,000
	Bytes    int64 // sum of the items' Data, default 32 MiB
}

func (l Limits) filled() Limits {
	if l.Messages <= 0 {
		l.Messages = DefaultMessages
	}
	if l.Bytes <= 0 {
		l.Bytes = DefaultBytes
	}
	return l
}

// An Item is one message in one queue.
type Item struct {
	Queue string
	// Seq is given by the store: from 1, rising within the queue, never given
	// twice. Append fills it in when it succeeds.
	Seq  uint64
	Data []byte    // at most MaxData; not kept by Append after it returned, the caller's own after Read
	At   time.Time // when it came; zero in Append means now
	// Expires is the time from which it is dropped, and counted, instead of
	// read. Zero: never. Read moves it along when the clock was set.
	Expires time.Time
	// Droppable items make room for newer ones when the queue is full, oldest first.
	Droppable bool
}

// Stats of one queue. The counters survive restarts and go with the queue.
type Stats struct {
	Messages    int       // waiting; expired ones count until a reader or a full queue meets them
	Bytes       int64     // of their Data
	Limits      Limits    // as filled with defaults
	Oldest      time.Time // At of the first one waiting; zero when there is none
	Last        uint64    // newest Seq ever given
	DroppedFull uint64    // made room
	DroppedOld  uint64    // expired
	Acked       uint64    // messages removed by Ack
}

// A Store is one open file. All methods may be called at the same time.
type Store struct {
	path  string
	opts  Options
	clock clock

	// Tests change these.
	commitTx func(*bbolt.Tx) error // tx.Commit
	waste    int64                 // wasteSize

	dbmu  sync.RWMutex // read: db is in use; write: it is being replaced
	db    *bbolt.DB
	file  *os.File // of db, to let go of the lock when db itself cannot
	stuck bool     // a transaction of db can neither be ended nor rolled back

	mu      sync.Mutex // guards the fields below
	queues  map[string]*queue
	waiting []*request // in the order of their calls
	dirty   map[string]struct{}
	closing bool

	wake   chan struct{} // one token: there is work for the committer
	done   chan struct{} // closed when the committer has ended
	closed error         // of Close; read after done

	// The committer's own.
	hints   map[string]*hint
	flushAt time.Time // when acks are written without an append
	failing bool      // acks could not be written; it was said
	suspect error     // what is to be healed before the next commit
	healAt  time.Time // not before

	spent    bool      // the reserve is not there
	refillAt time.Time // not before
	shrinkAt time.Time // not before
}

// A queue is what is known in memory of a queue. Store.mu guards it.
type queue struct {
	last    uint64              // newest Seq that is on disk for certain: nothing newer is read
	ackTo   uint64              // told to Ack
	ackDone uint64              // of that, removed on disk
	expired map[uint64]struct{} // met by Read, not removed on disk yet
	changed chan struct{}
}

// Append puts items into their queues and writes set (a nil value deletes the
// key), all or nothing, and returns when that is on disk. It says how many
// older items were dropped to make room; an append's own items are never
// dropped for one another. Calls are carried out in their order; those that
// wait at the same time share a commit.
//
// When ctx ends while the call waits for its turn, nothing is kept and ctx's
// error is returned. Once its commit has begun Append waits for the outcome,
// so that its answer is always true. Other errors: ErrFull, ErrTooLarge,
// ErrNoQueue, ErrClosed, ErrDisk; only with ErrUncertain anything can have
// been kept.
func (s *Store) Append(ctx context.Context, items []Item, set map[string][]byte) (dropped int, err error) {
	puts := make([]put, len(items))
	for i := range items {
		if puts[i], err = s.encode(&items[i]); err != nil {
			return 0, err
		}
	}
	size := 0
	for key, value := range set {
		if err := checkKey(key, value); err != nil {
			return 0, err
		}
		size += len(key) + len(value)
	}
	if len(items) == 0 && len(set) == 0 {
		return 0, nil
	}
	for i := range puts {
		size += len(puts[i].record)
	}
	r := newRequest(size, func(b *batch) (err error) {
		dropped, err = b.append(puts)
		if err == nil {
			b.set(set)
		}
		return err
	})
	if err := s.do(ctx, r); err != nil {
		return 0, err
	}
	for i := range puts {
		items[i].Seq = puts[i].seq
	}
	return dropped, nil
}

// Set writes one key, or deletes it when value is nil, and returns when that
// is on disk. Errors as of Append.
func (s *Store) Set(key string, value []byte) error {
	if err := checkKey(key, value); err != nil {
		return err
	}
	return s.do(context.Background(), newRequest(len(key)+len(value), func(b *batch) error {
		b.set(map[string][]byte{key: value})
		return nil
	}))
}

// Create makes a queue, or gives one that exists other limits; messages over
// them stay. It returns when that is on disk.
func (s *Store) Create(name string, l Limits) error {
	if err := checkName(name); err != nil {
		return err
	}
	return s.do(context.Background(), newRequest(len(name), func(b *batch) error { return b.create(name, l.filled()) }))
}

// Remove deletes a queue with all that is in it, and returns when that is on
// disk. A queue that does not exist is no error. Readers that wait for Changed
// are woken; their Read says ErrNoQueue.
func (s *Store) Remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return s.do(context.Background(), newRequest(len(name), func(b *batch) error { return b.remove(name) }))
}

func checkName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("%w: a queue's name has 1 to %d bytes, not %d", ErrTooLarge, MaxName, len(name))
	}
	return nil
}

func checkKey(key string, value []byte) error {
	if key == "" || len(key) > MaxName {
		return fmt.Errorf("%w: a key has 1 to %d bytes, not %d", ErrTooLarge, MaxName, len(key))
	}
	if len(value) > MaxValue {
		return fmt.Errorf("%w: the value of %q has %d bytes, at most %d are kept", ErrTooLarge, key, len(value), MaxValue)
	}
	return nil
}
