package edge

import (
	"context"
	"io"
	"time"
)

// TLS alerts (RFC 8446 §6) that are written as a plain record, before TLS
// starts: no certificate was shown.
const (
	alertInternalError    = 80
	alertUnrecognizedName = 112
)

// Bounds of the wait after an alert.
const (
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// Refuse answers with the fatal alert unrecognized_name and closes. The answer
// has the same bytes for every visitor.
type Refuse struct{}

// HandleConn sends the alert.
func (Refuse) HandleConn(_ context.Context, c *Conn) { refuse(c, alertUnrecognizedName) }

// Kind is "refuse".
func (Refuse) Kind() string { return "refuse" }

// refuse writes a fatal alert and closes c once the visitor had the time to
// read it: closing a socket that has unread bytes sends RST, and RST makes the
// visitor's kernel drop the alert.
func refuse(c *Conn, alert byte) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(lingerTime))
	if _, err := c.Write(alertRecord(alert)); err != nil {
		c.Fail(err)
		return
	}
	if c.CloseWrite() != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c, lingerBytes)
}

// alertRecord is a fatal alert as it stands before any encryption.
func alertRecord(alert uint8) []byte { return []byte{recordAlert, 3, 3, 0, 2, 2, alert} }
