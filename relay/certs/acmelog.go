package certs

import (
	"context"
	"log/slog"

	"go.uber.org/zap/zapcore"
)

// quiet passes everything on at debug level: what matters of an attempt is
// logged once, by whoever made it.
type quiet struct{ slog.Handler }

// Enabled asks for debug level.
func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle lowers the level.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return q.Handler.Handle(ctx, r)
}

// WithAttrs stays quiet.
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

// WithGroup stays quiet.
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }

// zapToSlog is the core of a zap logger that writes to slog, for certmagic,
// which knows no other.
type zapToSlog struct {
	handler slog.Handler
	fields  []zapcore.Field
}

// Enabled asks the handler.
func (z zapToSlog) Enabled(level zapcore.Level) bool {
	return z.handler.Enabled(context.Background(), slogLevel(level))
}

// With adds fields.
func (z zapToSlog) With(fields []zapcore.Field) zapcore.Core {
	return zapToSlog{z.handler, append(z.fields[:len(z.fields):len(z.fields)], fields...)}
}

// Check takes what is enabled.
func (z zapToSlog) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !z.Enabled(e.Level) {
		return ce
	}
	return ce.AddCore(e, z)
}

// Write passes one entry on.
func (z zapToSlog) Write(e zapcore.Entry, fields []zapcore.Field) error {
	record := slog.NewRecord(e.Time, slogLevel(e.Level), e.Message, 0)
	if e.LoggerName != "" {
		record.AddAttrs(slog.String("logger", e.LoggerName))
	}
	enc := zapcore.NewMapObjectEncoder()
	for _, list := range [][]zapcore.Field{z.fields, fields} {
		for _, f := range list {
			f.AddTo(enc)
			record.AddAttrs(slog.Any(f.Key, enc.Fields[f.Key]))
		}
	}
	return z.handler.Handle(context.Background(), record)
}

// Sync has nothing to flush.
func (zapToSlog) Sync() error { return nil }

func slogLevel(l zapcore.Level) slog.Level {
	switch {
	case l <= zapcore.DebugLevel:
		return slog.LevelDebug
	case l == zapcore.InfoLevel:
		return slog.LevelInfo
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelError
}
