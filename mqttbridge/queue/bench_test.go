package queue

import (
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"go.etcd.io/bbolt"
)

// BenchmarkAppend is of confirmed messages of 128 bytes: each caller waits for
// its fsync before it comes again, as a QoS 1 sender with a window of one does.
func BenchmarkAppend(b *testing.B) {
	for _, callers := range []int{1, 50} {
		b.Run(strconv.Itoa(callers), func(b *testing.B) {
			s := mustOpen(b, filepath.Join(b.TempDir(), "mqtt.db"), Options{})
			if err := s.Create("q", Limits{Messages: 1 << 30, Bytes: 1 << 40}); err != nil {
				b.Fatal(err)
			}
			data := make([]byte, 128)
			var group sync.WaitGroup
			work := make(chan struct{})
			for range callers {
				group.Go(func() {
					for range work {
						if _, err := s.Append(b.Context(), []Item{{Queue: "q", Data: data}}, nil); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for b.Loop() {
				work <- struct{}{}
			}
			close(work)
			group.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}

// BenchmarkBolt is the yardstick: a bare bbolt transaction with one such value.
func BenchmarkBolt(b *testing.B) {
	db, err := bbolt.Open(filepath.Join(b.TempDir(), "bolt.db"), 0o600, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	data, seq := make([]byte, 128), uint64(0)
	for b.Loop() {
		err := db.Update(func(tx *bbolt.Tx) error {
			bucket, err := tx.CreateBucketIfNotExists(queuesBucket)
			if err != nil {
				return err
			}
			seq++
			return bucket.Put(seqKey(seq), data)
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkDrain is a pump: it reads 64 messages of 128 bytes and acknowledges
// them, from a queue that is full.
func BenchmarkDrain(b *testing.B) {
	s := mustOpen(b, filepath.Join(b.TempDir(), "mqtt.db"), Options{})
	if err := s.Create("q", Limits{Messages: 1 << 30, Bytes: 1 << 40}); err != nil {
		b.Fatal(err)
	}
	fill := func() {
		items := make([]Item, 10_000)
		for i := range items {
			items[i] = Item{Queue: "q", Data: make([]byte, 128)}
		}
		mustAppend(b, s, items...)
	}
	after, total := uint64(0), 0
	for b.Loop() {
		items, err := s.Read("q", after, 64)
		if err != nil {
			b.Fatal(err)
		}
		if len(items) == 0 {
			b.StopTimer()
			fill()
			b.StartTimer()
			continue
		}
		after = items[len(items)-1].Seq
		if err := s.Ack("q", after); err != nil {
			b.Fatal(err)
		}
		total += len(items)
	}
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkDropOldest is an append to a queue of 10,000 that is full.
func BenchmarkDropOldest(b *testing.B) {
	s := fresh(b, "q", Limits{})
	items := make([]Item, DefaultMessages)
	for i := range items {
		items[i] = Item{Queue: "q", Data: make([]byte, 128), Droppable: true}
	}
	mustAppend(b, s, items...)
	one := items[:1]
	for b.Loop() {
		mustAppend(b, s, one...)
	}
}
