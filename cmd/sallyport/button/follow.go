package button

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// Follow calls tell with each change of a command until its end, and returns
// that. It watches the stream of events, and asks where that breaks off.
func (c *Client) Follow(ctx context.Context, st mqttbridge.Status, tell func(mqttbridge.Status)) (mqttbridge.Status, error) {
	see := func(s mqttbridge.Status) bool {
		if s.ID == st.ID && s.State != st.State {
			st = s
			tell(s)
		}
		return st.Final
	}
	tell(st)
	for !st.Final {
		err := c.watch(ctx, func() error { // what happened before the stream began
			now, err := c.Command(ctx, st.ID)
			if err == nil {
				see(now)
			}
			return err
		}, see)
		if ctx.Err() != nil {
			return st, context.Cause(ctx)
		}
		if no, ok := errors.AsType[*Refusal](err); ok && no.HTTP < 500 && no.HTTP != http.StatusTooManyRequests {
			return st, no
		}
		if st.Final {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(sendPause):
		}
	}
	return st, nil
}

// Command asks how far one command has come.
func (c *Client) Command(ctx context.Context, id string) (st mqttbridge.Status, err error) {
	_, err = c.call(ctx, http.MethodGet, "commands/"+url.PathEscape(id), nil, nil, &st)
	return st, err
}

// watch reads events until see is content or the stream ends. begun is called
// as soon as the stream stands.
func (c *Client) watch(ctx context.Context, begun func() error, see func(mqttbridge.Status) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Base+"/api/events", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/event-stream")
	res, err := c.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		raw, _ := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
		return answered(res, raw)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, maxAnswer)
	for event := ""; lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case name == "event":
			event = value
		case name == "data" && event == "hello":
			if err := begun(); err != nil {
				return err
			}
			if see(mqttbridge.Status{}) {
				return nil
			}
		case name == "data" && event == "command":
			var st mqttbridge.Status
			if err := decode([]byte(value), &st); err != nil {
				return err
			}
			if see(st) {
				return nil
			}
		}
	}
	return lines.Err()
}
