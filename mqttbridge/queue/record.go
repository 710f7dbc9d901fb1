package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// The file (version 1). Numbers are big endian, times are nanoseconds since
// 1970 in 8 bytes.
//
//	bucket "queues"        its bbolt sequence is the highest Seq of all queues
//	                       that were removed: a new queue starts above it
//	  bucket NAME          its bbolt sequence is the newest Seq given
//	    Seq (8 bytes)      flags (1), At (8), [Expires (8), stored (8), run (8),
//	                       elapsed (8)] when flagExpires, Data (rest)
//	    "meta"             version (1), then 8 bytes each: limit of messages, limit
//	                       of bytes, messages, bytes, droppable messages, bytes of
//	                       these, messages that can expire, DroppedFull,
//	                       DroppedOld, Acked
//	bucket "keys"
//	  KEY                  value
//	bucket "reserve"       see reserve.go
//	  "zeros"              128 KiB
//
// "meta" sorts behind every Seq, so that it lies in the page that an append
// writes anyway.
var (
	queuesBucket = []byte("queues")
	keysBucket   = []byte("keys")
	metaKey      = []byte("meta")
)

const (
	formatVersion = 1

	flagDroppable = 1 << 0
	flagExpires   = 1 << 1

	seqLen  = 8
	headLen = 1 + 8
	lifeLen = 4 * 8
	metaLen = 1 + 10*8
)

var (
	errRecord  = errors.New("a record cannot be read")
	errVersion = errors.New("the file's format is of another version of sallyport")
)

// A put is an item on its way to the file.
type put struct {
	queue  string
	seq    uint64 // once it is given
	record []byte
	head   head
}

// A head is all of an item but its data.
type head struct {
	at        time.Time
	life      *life // nil: it never expires
	droppable bool
	size      int // bytes of data
}

func (s *Store) encode(it *Item) (put, error) {
	if err := checkName(it.Queue); err != nil {
		return put{}, err
	}
	if len(it.Data) > MaxData {
		return put{}, fmt.Errorf("%w: an item of %d bytes, at most %d are kept", ErrTooLarge, len(it.Data), MaxData)
	}
	h := head{at: it.At, droppable: it.Droppable, size: len(it.Data)}
	m := s.clock.read()
	if h.at.IsZero() || !encodable(h.at) {
		h.at = m.wall
	}
	if !it.Expires.IsZero() && it.Expires.Before(farthest) {
		l := m.begin(it.Expires)
		if l.expires.Before(earliest) {
			l.expires = earliest
		}
		h.life = &l
	}
	return put{queue: it.Queue, record: encodeItem(h, it.Data), head: h}, nil
}

func encodeItem(h head, data []byte) []byte {
	n := headLen + len(data)
	flags := byte(0)
	if h.droppable {
		flags |= flagDroppable
	}
	if h.life != nil {
		flags |= flagExpires
		n += lifeLen
	}
	raw := append(make([]byte, 0, n), flags)
	raw = appendTime(raw, h.at)
	if l := h.life; l != nil {
		raw = appendTime(raw, l.expires)
		raw = appendTime(raw, l.stored)
		raw = binary.BigEndian.AppendUint64(raw, l.run)
		raw = binary.BigEndian.AppendUint64(raw, uint64(l.elapsed))
	}
	return append(raw, data...)
}

// decodeItem returns the data as a part of raw.
func decodeItem(raw []byte) (h head, data []byte, err error) {
	if len(raw) < headLen {
		return head{}, nil, fmt.Errorf("%w: an item of %d bytes", errRecord, len(raw))
	}
	flags := raw[0]
	if flags&^(flagDroppable|flagExpires) != 0 {
		return head{}, nil, fmt.Errorf("%w: an item with flags %#x", errRecord, flags)
	}
	h.droppable = flags&flagDroppable != 0
	h.at = readTime(raw[1:])
	raw = raw[headLen:]
	if flags&flagExpires != 0 {
		if len(raw) < lifeLen {
			return head{}, nil, fmt.Errorf("%w: an item that breaks off", errRecord)
		}
		h.life = &life{
			expires: readTime(raw),
			stored:  readTime(raw[8:]),
			run:     binary.BigEndian.Uint64(raw[16:]),
			elapsed: time.Duration(binary.BigEndian.Uint64(raw[24:])),
		}
		raw = raw[lifeLen:]
	}
	h.size = len(raw)
	return h, raw, nil
}

// farthest is what a time in nanoseconds can hold, and more than anybody waits:
// what expires later never does.
var (
	farthest = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
	earliest = time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC)
)

func encodable(t time.Time) bool { return t.After(earliest) && t.Before(farthest) }

func appendTime(raw []byte, t time.Time) []byte {
	return binary.BigEndian.AppendUint64(raw, uint64(t.UnixNano()))
}

func readTime(raw []byte) time.Time {
	return time.Unix(0, int64(binary.BigEndian.Uint64(raw)))
}

func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

// keySeq returns false for "meta".
func keySeq(key []byte) (uint64, bool) {
	if len(key) != seqLen {
		return 0, false
	}
	return binary.BigEndian.Uint64(key), true
}

// A tally is what a queue holds.
type tally struct {
	messages, bytes           int64
	droppable, droppableBytes int64 // of these, what may make room
	expiring                  int64 // of these, what can expire
}

func (t *tally) add(h head, n int64) {
	size := n * int64(h.size)
	t.messages += n
	t.bytes += size
	if h.droppable {
		t.droppable += n
		t.droppableBytes += size
	}
	if h.life != nil {
		t.expiring += n
	}
}

// A meta is a queue's record of itself.
type meta struct {
	limits Limits
	tally
	droppedFull, droppedOld, acked uint64
}

func (m meta) encode() []byte {
	raw := append(make([]byte, 0, metaLen), formatVersion)
	for _, n := range []uint64{
		uint64(m.limits.Messages), uint64(m.limits.Bytes),
		uint64(m.messages), uint64(m.bytes), uint64(m.droppable), uint64(m.droppableBytes), uint64(m.expiring),
		m.droppedFull, m.droppedOld, m.acked,
	} {
		raw = binary.BigEndian.AppendUint64(raw, n)
	}
	return raw
}

func decodeMeta(raw []byte) (meta, error) {
	if len(raw) > 0 && raw[0] != formatVersion {
		return meta{}, errVersion
	}
	if len(raw) != metaLen {
		return meta{}, fmt.Errorf("%w: a queue's record of %d bytes", errRecord, len(raw))
	}
	n := func(i int) uint64 { return binary.BigEndian.Uint64(raw[1+8*i:]) }
	return meta{
		limits: Limits{Messages: int(n(0)), Bytes: int64(n(1))},
		tally: tally{
			messages: int64(n(2)), bytes: int64(n(3)),
			droppable: int64(n(4)), droppableBytes: int64(n(5)), expiring: int64(n(6)),
		},
		droppedFull: n(7), droppedOld: n(8), acked: n(9),
	}, nil
}
