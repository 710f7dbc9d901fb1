package flow

import "sync"

// chunkSizes are the sizes of buffers that received bytes are kept in. Small
// first: ten thousand streams with one unread byte each must stay cheap.
var chunkSizes = [...]int{512, 2 << 10, 8 << 10, 32 << 10}

var chunkPools [len(chunkSizes)]sync.Pool

type chunk struct {
	data  []byte
	r, w  int // unread is data[r:w]
	class int
	next  *chunk
}

func newChunk(class int) *chunk {
	if c, ok := chunkPools[class].Get().(*chunk); ok {
		return c
	}
	return &chunk{data: make([]byte, chunkSizes[class]), class: class}
}

func (c *chunk) free() {
	c.r, c.w, c.next = 0, 0, nil
	chunkPools[c.class].Put(c)
}

// A buffer is a queue of bytes: one goroutine fills it through space and
// filled, another one reads. The caller locks; only the copying into what
// space returned happens without the lock.
type buffer struct {
	head, tail *chunk
	len        int
	held       int  // the memory of all chunks: never less than len
	class      int  // of the next chunk
	filling    bool // space was called, filled was not
}

// space returns room for the next bytes.
func (b *buffer) space() []byte {
	b.filling = true
	if b.tail == nil || b.tail.w == len(b.tail.data) {
		c := newChunk(b.class)
		b.held += len(c.data)
		if b.tail == nil {
			b.head = c
		} else {
			b.tail.next = c
		}
		b.tail = c
	}
	return b.tail.data[b.tail.w:]
}

// filled says that n bytes were put into what space returned.
func (b *buffer) filled(n int) {
	b.filling = false
	b.tail.w += n
	b.len += n
	switch c := b.tail; {
	case c.w == len(c.data):
		b.class = min(b.class+1, len(chunkSizes)-1)
	case n < len(c.data)/8:
		b.class = max(b.class-1, 0)
	}
	b.trim()
}

// read takes bytes out.
func (b *buffer) read(p []byte) (n int) {
	for n < len(p) && b.len > 0 {
		c := b.head
		m := copy(p[n:], c.data[c.r:c.w])
		c.r += m
		b.len -= m
		n += m
		b.trim()
	}
	return n
}

// drop takes everything out and returns how much it was.
func (b *buffer) drop() int {
	n := b.len
	b.len = 0
	for c := b.head; c != nil; c = c.next {
		c.r = c.w
	}
	b.trim()
	return n
}

// trim frees the chunks at the head that are read, except the one being filled.
func (b *buffer) trim() {
	for c := b.head; c != nil && c.r == c.w && (c != b.tail || !b.filling); c = b.head {
		b.head = c.next
		if c == b.tail {
			b.tail = nil
		}
		b.held -= len(c.data)
		c.free()
	}
}
