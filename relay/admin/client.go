package admin

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
	"path/filepath"
)

// A Client speaks to the relay that runs on this machine. All its errors are
// *Error.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a client for the relay of a data directory. It connects
// with the first command.
func NewClient(dir string) *Client {
	return &Client{
		path: filepath.Join(dir, SocketName),
		http: &http.Client{
			Transport: &http.Transport{
				DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, dir) },
				DisableKeepAlives: true, // a command is one request
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Status tells how the relay is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// NewToken makes a join token.
func (c *Client) NewToken(ctx context.Context, q TokenRequest) (Token, error) {
	return call[Token](ctx, c, http.MethodPost, "/v1/tokens", q)
}

// CA returns the relay's roots.
func (c *Client) CA(ctx context.Context) (CA, error) {
	return call[CA](ctx, c, http.MethodGet, "/v1/ca", nil)
}

// AddDevice issues a device certificate.
func (c *Client) AddDevice(ctx context.Context, q DeviceRequest) (IssuedDevice, error) {
	return call[IssuedDevice](ctx, c, http.MethodPost, "/v1/devices", q)
}

// Devices lists all devices, revoked ones included.
func (c *Client) Devices(ctx context.Context) ([]Device, error) {
	l, err := call[deviceList](ctx, c, http.MethodGet, "/v1/devices", nil)
	return l.Devices, err
}

// RevokeDevice shuts a device out and cuts its connections.
func (c *Client) RevokeDevice(ctx context.Context, name string) (Device, error) {
	return call[Device](ctx, c, http.MethodPost, "/v1/devices/"+url.PathEscape(name)+"/revoke", struct{}{})
}

// Agents lists all agents, revoked ones included.
func (c *Client) Agents(ctx context.Context) ([]Agent, error) {
	l, err := call[agentList](ctx, c, http.MethodGet, "/v1/agents", nil)
	return l.Agents, err
}

// RevokeAgent shuts an agent out and frees its hosts.
func (c *Client) RevokeAgent(ctx context.Context, name string) (Agent, error) {
	return call[Agent](ctx, c, http.MethodPost, "/v1/agents/"+url.PathEscape(name)+"/revoke", struct{}{})
}

// Hosts lists all claimed hosts.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) {
	l, err := call[hostList](ctx, c, http.MethodGet, "/v1/hosts", nil)
	return l.Hosts, err
}

// ReleaseHost frees a claimed host for other agents.
func (c *Client) ReleaseHost(ctx context.Context, host string) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/v1/hosts/"+url.PathEscape(host)+"/release", struct{}{})
	return err
}

// Reload reads the relay's config file and certificates again.
func (c *Client) Reload(ctx context.Context) (Reloaded, error) {
	return call[Reloaded](ctx, c, http.MethodPost, "/v1/reload", struct{}{})
}

// Invite makes a one-time enrolment link.
func (c *Client) Invite(ctx context.Context, q InviteRequest) (Invite, error) {
	return call[Invite](ctx, c, http.MethodPost, "/v1/invites", q)
}

// AddTokenDevice makes a secret for a visitor that cannot hold a certificate.
func (c *Client) AddTokenDevice(ctx context.Context, q TokenDeviceRequest) (TokenDevice, error) {
	return call[TokenDevice](ctx, c, http.MethodPost, "/v1/token-devices", q)
}

// ChangeDevice changes a device's rights, at once for its live connections.
func (c *Client) ChangeDevice(ctx context.Context, name string, d DeviceChange) (Device, error) {
	return call[Device](ctx, c, http.MethodPost, "/v1/devices/"+url.PathEscape(name)+"/change", d)
}

// Requests lists the devices that wait for the owner.
func (c *Client) Requests(ctx context.Context) ([]EnrolRequest, error) {
	l, err := call[requestList](ctx, c, http.MethodGet, "/v1/requests", nil)
	return l.Requests, err
}

// Approve lets a waiting device in, by its request's ID or its name.
func (c *Client) Approve(ctx context.Context, idOrName string) (EnrolRequest, error) {
	return call[EnrolRequest](ctx, c, http.MethodPost, "/v1/requests/"+url.PathEscape(idOrName)+"/approve", struct{}{})
}

// Deny turns a waiting device away, by its request's ID or its name.
func (c *Client) Deny(ctx context.Context, idOrName string) (EnrolRequest, error) {
	return call[EnrolRequest](ctx, c, http.MethodPost, "/v1/requests/"+url.PathEscape(idOrName)+"/deny", struct{}{})
}

// Invites lists the links that nobody used yet.
func (c *Client) Invites(ctx context.Context) ([]WaitingInvite, error) {
	l, err := call[inviteList](ctx, c, http.MethodGet, "/v1/invites", nil)
	return l.Invites, err
}

// WithdrawInvite makes a link open nothing any more, by its ID.
func (c *Client) WithdrawInvite(ctx context.Context, id string) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/v1/invites/"+url.PathEscape(id)+"/withdraw", struct{}{})
	return err
}

// ResetClock forgets the moments that the relay knows from a time when this
// machine's clock was ahead.
func (c *Client) ResetClock(ctx context.Context) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/v1/clock/reset", struct{}{})
	return err
}

// Certificates lists how the hosts' public certificates stand.
func (c *Client) Certificates(ctx context.Context) ([]PublicCert, error) {
	l, err := call[certList](ctx, c, http.MethodGet, "/v1/certificates", nil)
	return l.Certificates, err
}

// RetryCertificate asks for a host's public certificate now instead of at the
// next turn.
func (c *Client) RetryCertificate(ctx context.Context, host string) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/v1/certificates/"+url.PathEscape(host)+"/retry", struct{}{})
	return err
}

// Dashboard makes a one-time login link and says where the dashboard is.
func (c *Client) Dashboard(ctx context.Context) (DashboardInfo, error) {
	return call[DashboardInfo](ctx, c, http.MethodPost, "/v1/dashboard", struct{}{})
}

func call[Out any](ctx context.Context, c *Client, method, path string, in any) (out Out, err error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return out, &Error{Code: CodeBadRequest, Message: "encode the command: " + err.Error()}
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, body)
	if err != nil {
		return out, &Error{Code: CodeBadRequest, Message: err.Error()}
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
		e := new(Error)
		if json.Unmarshal(data, e) != nil || e.Message == "" {
			e = &Error{Code: CodeInternal, Message: "the relay answered " + res.Status}
		}
		return out, e
	}
	if err := json.Unmarshal(data, &out); err != nil {
		return out, &Error{Code: CodeInternal, Message: "the relay's answer makes no sense: " + err.Error(), Hint: "relay and command line may be of different versions"}
	}
	return out, nil
}

// unreachable explains why there was no answer.
func (c *Client) unreachable(err error) *Error {
	e := &Error{Code: CodeUnreachable, Message: fmt.Sprintf("no relay answers at %s", c.path)}
	ours, isOurs := errors.AsType[*Error](err)
	switch {
	case isOurs:
		return ours
	case errors.Is(err, fs.ErrPermission):
		e.Message = "no permission to speak to the relay at " + c.path
		e.Hint = "run the command as the relay's user, e.g. with sudo"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		e.Message = fmt.Sprintf("the relay at %s did not answer in time", c.path)
		e.Hint = "look at its log"
	default:
		e.Hint = "start it with: sallyport relay up --domain DOMAIN, or say with --data where its state is"
	}
	return e
}
