package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// One call into the kernel moves at most kernelChunk bytes and waits at most
// kernelWait for the next ones: in between nobody can count what moved, and
// the idle limit needs to know.
const (
	kernelChunk = 256 << 10
	kernelWait  = time.Second
)

// copyInKernel moves bulk from one TCP connection to another without bringing
// the bytes into this process, where the system can (splice(2) on Linux). It
// returns nil when the bulk pauses, io.EOF when src has ended.
func (s *splicing) copyInKernel(h *half, dst, src *net.TCPConn) error {
	defer src.SetReadDeadline(time.Time{})
	for {
		src.SetReadDeadline(time.Now().Add(kernelWait))
		chunk := io.LimitedReader{R: src, N: kernelChunk}
		n, err := dst.ReadFrom(&chunk)
		s.delivered(h, n)
		switch {
		// The deadline strikes only while waiting for src with nothing in
		// flight (internal/poll.Splice), so no byte is lost. dst has none.
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return err
		case n < kernelChunk:
			return io.EOF
		}
	}
}
