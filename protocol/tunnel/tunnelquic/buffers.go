package tunnelquic

import (
	"log/slog"
	"net"
	"os"
	"runtime"
)

// socketBuffer is what quic-go wants for a fast path.
const socketBuffer = 7 << 20

// raiseBuffers asks for large socket buffers and says in one line what to do
// when the kernel refuses. quic-go would say it too, on the standard logger;
// the variable is its documented way to be silent.
func raiseBuffers(pc net.PacketConn, log *slog.Logger) {
	conn, ok := pc.(*net.UDPConn)
	if !ok {
		return
	}
	conn.SetReadBuffer(socketBuffer)
	conn.SetWriteBuffer(socketBuffer)
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	recv, send := forceBuffers(raw, socketBuffer)
	if recv < 0 || recv >= socketBuffer && send >= socketBuffer {
		return
	}
	os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	if runtime.GOOS == "linux" {
		log.Warn("the kernel refused large UDP buffers; QUIC works, but slower on fast lines",
			"receive", recv, "send", send,
			"fix", "sysctl -w net.core.rmem_max=7500000 net.core.wmem_max=7500000")
		return
	}
	log.Warn("the kernel refused large UDP buffers; QUIC works, but slower on fast lines", "receive", recv, "send", send)
}
