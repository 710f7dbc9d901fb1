package admin

import "context"

type actorKey struct{}

// WithActor returns a context that says who commands, for the audit log: a
// device's name, or "dashboard".
func WithActor(ctx context.Context, who string) context.Context {
	return context.WithValue(ctx, actorKey{}, who)
}

// Actor returns who commands. Without WithActor it is "local": somebody with
// access to the relay's socket.
func Actor(ctx context.Context) string {
	if who, ok := ctx.Value(actorKey{}).(string); ok && who != "" {
		return who
	}
	return "local"
}
