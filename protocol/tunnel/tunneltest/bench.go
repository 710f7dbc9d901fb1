package tunneltest

import (
	"io"
	"testing"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// Benchmark measures one stream from a to b, 1 MiB an operation.
func Benchmark(tb *testing.B, a, b tunnel.Session) {
	const size = 1 << 20
	x, err := a.OpenStream(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	buf := make([]byte, 32<<10)
	if _, err := x.Write(buf[:1]); err != nil {
		tb.Fatal(err)
	}
	y, err := b.AcceptStream(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(io.Discard, struct{ io.Reader }{y})
	}()
	tb.SetBytes(size)
	tb.ReportAllocs()
	for tb.Loop() {
		for range size / len(buf) {
			if _, err := x.Write(buf); err != nil {
				tb.Fatal(err)
			}
		}
	}
	x.CloseWrite()
	<-done
	x.Reset(protocol.CodeOK)
	y.Reset(protocol.CodeOK)
}
