package devices

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/sallyport/sallyport/protocol"
)

const (
	answerTimeout = 10 * time.Second
	// Every list that is taken is written to the disk, and every refused one to
	// the log: the relay does not set the pace.
	paceTaken   = 100 * time.Millisecond
	paceRefused = time.Second
)

// Serve is the home's end of a stream of FeatureDevices: it says which list is
// here, takes what the relay sends, and says so. It returns when the stream or
// ctx ends, and closes the stream. What is refused ends nothing: the status
// shows it. A list that cannot be written down does (ErrUnsaved), so that the
// next stream brings it again.
//
// Where no CA is pinned, the first that comes is: the relay had shown it at the
// join if both had been newer.
func (b *Book) Serve(ctx context.Context, c net.Conn) error {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	err := b.serve(ctx, c)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("the stream about devices: %w", err)
}

func (b *Book) serve(ctx context.Context, c net.Conn) error {
	if err := b.answer(c); err != nil {
		return err
	}
	for {
		f, err := protocol.ReadDeviceFrame(c)
		if err != nil {
			return err
		}
		pace := paceTaken
		switch err := b.heard(func() (told, error) { return b.take(f) }); {
		case errors.Is(err, ErrUnsaved):
			return err
		case err != nil:
			pace = paceRefused
		default:
			if err := b.answer(c); err != nil {
				return err
			}
		}
		select {
		case <-time.After(pace):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// answer says which list is here.
func (b *Book) answer(c net.Conn) error {
	_ = c.SetWriteDeadline(time.Now().Add(answerTimeout)) // a stream that takes none has ended
	return protocol.WriteDeviceFrame(c, protocol.DeviceFrame{Have: b.Number()})
}
