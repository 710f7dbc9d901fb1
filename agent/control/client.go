package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"
)

// ErrNotRunning is the error of a Client when no agent runs on the directory.
var ErrNotRunning = errors.New("no agent is running")

const clientHost = "sallyport"

// A Client speaks to the agent that runs on a data directory.
type Client struct {
	// Joined tells whether the agent of a directory needs no token any more;
	// for the hint when it does not run. nil: it needs none.
	Joined func(dir string) bool

	dir  string
	http *http.Client
}

// NewClient returns a client for the agent that runs on dir. It connects with
// each call.
func NewClient(dir string) *Client {
	return &Client{dir: dir, http: &http.Client{
		Timeout: 30 * time.Second, // Expose waits up to 10 s for the relay
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dial(ctx, dir)
			},
		},
	}}
}

// Expose asks the agent to offer a service.
func (c *Client) Expose(ctx context.Context, s Service) (Exposed, error) {
	var e Exposed
	return e, c.call(ctx, http.MethodPost, "expose", s, &e)
}

// Unexpose asks the agent to drop an exposed service.
func (c *Client) Unexpose(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "unexpose", map[string]string{"name": name}, nil)
}

// Status asks the agent how it is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, http.MethodGet, "status", nil, &s)
}

// ConfirmCA takes a device CA, or a list, that was refused; see Agent.
func (c *Client) ConfirmCA(ctx context.Context, fingerprint string) error {
	return c.call(ctx, http.MethodPost, "confirm-ca", map[string]string{"fingerprint": fingerprint}, nil)
}

// Keys lists the signing keys of devices.
func (c *Client) Keys(ctx context.Context) ([]Key, error) {
	var keys []Key
	return keys, c.call(ctx, http.MethodGet, "keys", nil, &keys)
}

// Trust lets a device's commands run, if the key that waits is still id.
func (c *Client) Trust(ctx context.Context, device, id string) error {
	return c.call(ctx, http.MethodPost, "trust", trustRequest{device, id}, nil)
}

// Untrust takes the trust in a device's key back.
func (c *Client) Untrust(ctx context.Context, device string) error {
	return c.call(ctx, http.MethodPost, "untrust", untrustRequest{device}, nil)
}

// SetPIN sets or, when empty, removes a PIN; see Agent.
func (c *Client) SetPIN(ctx context.Context, action, pin string) error {
	return c.call(ctx, http.MethodPost, "pin", pinRequest{action, pin}, nil)
}

// Found lists what could become actions.
func (c *Client) Found(ctx context.Context) ([]Suggestion, error) {
	var found []Suggestion
	return found, c.call(ctx, http.MethodGet, "found", nil, &found)
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+clientHost+"/v1/"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		e := &Error{}
		if json.Unmarshal(data, e) != nil || e.Text == "" {
			return &Error{KindInternal, fmt.Sprintf("the agent answered %s", resp.Status)}
		}
		return e
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("the agent's answer cannot be read: %w\nIs it of another version?", err)
	}
	return nil
}

func (c *Client) unreachable(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the agent on %s belongs to another user: %w\nRun this as that user, for example with sudo.", c.dir, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		if c.Joined != nil && !c.Joined(c.dir) {
			return fmt.Errorf("%w on %s\nStart it with: sallyport agent up TOKEN --data %s (a token comes from: sallyport relay token, for a second home with --hosts)", ErrNotRunning, c.dir, c.dir)
		}
		return fmt.Errorf("%w on %s\nStart it with: sallyport agent up --data %s", ErrNotRunning, c.dir, c.dir)
	}
	return fmt.Errorf("ask the agent on %s: %w", c.dir, err)
}
