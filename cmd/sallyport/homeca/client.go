package homeca

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
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/sallyport/sallyport/relay/admin"
)

const (
	apiHost   = "sallyport" // the only one that the socket answers
	maxAnswer = 16 << 20
	maxText   = 1000 // of an answer in plain words
)

// A Client speaks to API on the socket of the agent that runs on this machine.
// All its errors are *admin.Error.
type Client struct {
	where string
	http  *http.Client
}

// NewClient returns a client that dials for each command; where is the
// socket's path, for words.
func NewClient(where string, dial func(ctx context.Context) (net.Conn, error)) *Client {
	return &Client{where: where, http: &http.Client{
		Timeout: 2 * time.Minute, // an RSA key may be made before a certificate is
		Transport: &http.Transport{
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
			DisableKeepAlives: true, // a command is one request
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// CA returns the home's device CA.
func (c *Client) CA(ctx context.Context) (admin.CA, error) {
	return call[admin.CA](ctx, c, http.MethodGet, "ca", nil)
}

// AddDevice issues a device certificate.
func (c *Client) AddDevice(ctx context.Context, q admin.DeviceRequest) (admin.IssuedDevice, error) {
	return call[admin.IssuedDevice](ctx, c, http.MethodPost, "devices", q)
}

// Devices lists all devices of the home, revoked ones included.
func (c *Client) Devices(ctx context.Context) ([]admin.Device, error) {
	l, err := call[lists](ctx, c, http.MethodGet, "devices", nil)
	return l.Devices, err
}

// RevokeDevice shuts a device out and cuts its connections.
func (c *Client) RevokeDevice(ctx context.Context, name string) (admin.Device, error) {
	return call[admin.Device](ctx, c, http.MethodPost, "devices/"+url.PathEscape(name)+"/revoke", nothing)
}

// ChangeDevice changes a device's rights, at once for its live connections.
func (c *Client) ChangeDevice(ctx context.Context, name string, d admin.DeviceChange) (admin.Device, error) {
	return call[admin.Device](ctx, c, http.MethodPost, "devices/"+url.PathEscape(name)+"/change", d)
}

// Invite makes a one-time enrolment link.
func (c *Client) Invite(ctx context.Context, q admin.InviteRequest) (admin.Invite, error) {
	return call[admin.Invite](ctx, c, http.MethodPost, "invites", q)
}

// Invites lists the links that nobody used yet.
func (c *Client) Invites(ctx context.Context) ([]admin.WaitingInvite, error) {
	l, err := call[lists](ctx, c, http.MethodGet, "invites", nil)
	return l.Invites, err
}

// WithdrawInvite makes a link open nothing any more, by its ID.
func (c *Client) WithdrawInvite(ctx context.Context, id string) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "invites/"+url.PathEscape(id)+"/withdraw", nothing)
	return err
}

// Requests lists the devices that wait for the owner.
func (c *Client) Requests(ctx context.Context) ([]admin.EnrolRequest, error) {
	l, err := call[lists](ctx, c, http.MethodGet, "requests", nil)
	return l.Requests, err
}

// Approve lets a waiting device in, by its request's ID or its name.
func (c *Client) Approve(ctx context.Context, idOrName string) (admin.EnrolRequest, error) {
	return call[admin.EnrolRequest](ctx, c, http.MethodPost, "requests/"+url.PathEscape(idOrName)+"/approve", nothing)
}

// Deny turns a waiting device away, by its request's ID or its name.
func (c *Client) Deny(ctx context.Context, idOrName string) (admin.EnrolRequest, error) {
	return call[admin.EnrolRequest](ctx, c, http.MethodPost, "requests/"+url.PathEscape(idOrName)+"/deny", nothing)
}

// ResetClock forgets the moments that the home knows from a time when this
// machine's clock was ahead.
func (c *Client) ResetClock(ctx context.Context) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "clock/reset", nothing)
	return err
}

// lists are the answers that hold one.
type lists struct {
	Devices  []admin.Device        `json:"devices"`
	Invites  []admin.WaitingInvite `json:"invites"`
	Requests []admin.EnrolRequest  `json:"requests"`
}

var nothing = struct{}{}

func call[Out any](ctx context.Context, c *Client, method, path string, in any) (out Out, err error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return out, &admin.Error{Code: admin.CodeBadRequest, Message: "encode the command: " + err.Error()}
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+apiHost+Prefix+path, body)
	if err != nil {
		return out, &admin.Error{Code: admin.CodeBadRequest, Message: err.Error()}
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return out, c.unreachable(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return out, c.unreachable(err)
	}
	if res.StatusCode != http.StatusOK {
		return out, refusal(res, data)
	}
	if err := json.Unmarshal(data, &out); err != nil {
		return out, &admin.Error{
			Code: admin.CodeInternal, Message: "the agent's answer makes no sense: " + err.Error(), Hint: "agent and command line may be of different versions",
		}
	}
	return out, nil
}

// refusal is what the agent says when it says no. One that keeps no devices
// does not know these paths.
func refusal(res *http.Response, data []byte) *admin.Error {
	e := new(admin.Error)
	if json.Unmarshal(data, e) == nil && e.Message != "" && e.Code != "" {
		e.Message, e.Hint = ofHome(e.Message), ofHome(e.Hint)
		return e
	}
	if res.StatusCode == http.StatusNotFound {
		return &admin.Error{
			Code: admin.CodeUnavailable, Message: "this agent keeps no devices of its own",
			Hint: "a home does so when it has joined a relay and device_ca is not relay; devices of the relay: the same without --home, on the relay's machine",
		}
	}
	if text := strings.TrimSpace(string(data)); res.StatusCode == http.StatusServiceUnavailable && text != "" && len(text) < maxText {
		return &admin.Error{Code: admin.CodeUnavailable, Message: text}
	}
	return &admin.Error{Code: admin.CodeInternal, Message: "the agent answered " + res.Status}
}

// ownersCommand is what errors name that are made for relays, too.
var ownersCommand = regexp.MustCompile(`sallyport device (add|list|approve|deny|set|revoke|withdraw|clock)\b`)

// ofHome makes the commands that a text names the home's.
func ofHome(text string) string { return ownersCommand.ReplaceAllString(text, "$0 --home") }

// unreachable explains why there was no answer.
func (c *Client) unreachable(err error) *admin.Error {
	e := &admin.Error{Code: admin.CodeUnreachable, Message: fmt.Sprintf("no agent answers at %s", c.where)}
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, fs.ErrPermission):
		e.Message = "no permission to speak to the agent at " + c.where
		e.Hint = "run the command as the agent's user, e.g. with sudo"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), isNet && timeout.Timeout():
		e.Message = fmt.Sprintf("the agent at %s did not answer in time", c.where)
		e.Hint = "look at its log"
	default:
		e.Hint = "start it with: sallyport agent up, or say with --data where its state is"
	}
	return e
}
