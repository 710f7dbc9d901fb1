package edge

import (
	"context"
	"log/slog"
	"strconv"
	"time"
)

// kindHello is the kind of connections that met no target.
const kindHello = "hello"

// logEnd writes the one line of a connection. All text that a visitor can
// choose goes through printable.
func logEnd(logger *slog.Logger, c *Conn, kind string, start time.Time, err error) {
	attrs := []slog.Attr{slog.String("remote", c.RemoteAddr().String())}
	if c.remote != nil {
		attrs = append(attrs, slog.String("proxy", c.Conn.RemoteAddr().String()))
	}
	if kind != kindHello {
		sni := c.Hello.ServerName
		if sni == "" {
			sni = c.Hello.Asked
		}
		in, out := c.Bytes()
		attrs = append(attrs, slog.String("sni", sni), slog.Int64("in", in), slog.Int64("out", out))
		if c.Hello.ECH {
			attrs = append(attrs, slog.Bool("ech", true))
		}
	}
	attrs = append(attrs, slog.String("target", kind), slog.Duration("took", time.Since(start)))
	if err != nil {
		attrs = append(attrs, slog.String("err", printable(err.Error(), 300)))
	}
	logger.LogAttrs(context.Background(), slog.LevelInfo, "connection ended", attrs...)
}

// printable cuts s to max bytes and escapes what a terminal or a log reader
// could take for its own.
func printable(s string, max int) string {
	cut := ""
	if len(s) > max {
		s, cut = s[:max], "…"
	}
	quoted := strconv.QuoteToASCII(s)
	return quoted[1:len(quoted)-1] + cut
}
