package tunnel

import (
	"io"
	"net"
	"sync"
)

// copy moves bytes until src ends; nil then.
//
// A connection that waits for its next byte holds only a small buffer; the big
// ones are shared by those whose bytes flow.
func (s *splicing) copy(h *half) error {
	small := make([]byte, smallBuffer)
	for {
		n, err := s.move(h, small)
		if n == len(small) && err == nil {
			err = s.copyBurst(h)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

const (
	smallBuffer = 2 << 10
	bigBuffer   = 32 << 10
)

var bigBuffers = sync.Pool{New: func() any { return new([bigBuffer]byte) }}

// copyBurst moves bytes for as long as they come in bulk; io.EOF when src ended.
func (s *splicing) copyBurst(h *half) error {
	if src, ok := h.src.(*net.TCPConn); ok {
		if dst, ok := h.dst.(*net.TCPConn); ok {
			return s.copyInKernel(h, dst, src)
		}
	}
	buf := bigBuffers.Get().(*[bigBuffer]byte)
	defer bigBuffers.Put(buf)
	for {
		n, err := s.move(h, buf[:])
		if err != nil || n < smallBuffer {
			return err
		}
	}
}

// move does one Read and the Write of what it brought. io.EOF means that src
// has ended and everything is written.
func (s *splicing) move(h *half, buf []byte) (int, error) {
	n, rerr := h.src.Read(buf)
	if n > 0 {
		w, werr := h.dst.Write(buf[:n])
		s.delivered(h, int64(w))
		if werr != nil {
			return n, werr
		}
	}
	return n, rerr
}
