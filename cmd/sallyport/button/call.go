package button

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	maxAnswer   = 4 << 20
	callTimeout = 20 * time.Second
)

// A Refusal is the relay's answer when it says no before a command exists.
type Refusal struct {
	HTTP   int
	Code   mqttbridge.Code // empty: not from the command page
	Reason string
}

func (r *Refusal) Error() string { return r.Reason }

// refused is the answer to a command that was not taken.
type refused struct{ status mqttbridge.Status }

func (r *refused) Error() string { return r.status.Reason }

// call sends in as JSON (nil: no body) and reads the answer into out.
func (c *Client) call(ctx context.Context, method, path string, in any, header http.Header, out any) (int, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return 0, err
		}
		body = bytes.NewReader(data)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.Base+"/api/"+path, body)
	if err != nil {
		return 0, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	res, err := c.HTTP.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return res.StatusCode, err
	}
	if res.StatusCode/100 != 2 {
		return res.StatusCode, answered(res, raw)
	}
	return res.StatusCode, decode(raw, out)
}

// answered makes an error of an answer that is no success.
func answered(res *http.Response, raw []byte) error {
	var said struct {
		Error string          `json:"error"`
		Code  mqttbridge.Code `json:"code"`
		mqttbridge.Status
	}
	_ = json.Unmarshal(raw, &said) // a page for people may stand before the API
	harmless(reflect.ValueOf(&said))
	if said.State == mqttbridge.Refused {
		st := said.Status
		st.Code = said.Code // the outer one takes the word in JSON
		return &refused{st}
	}
	no := &Refusal{HTTP: res.StatusCode, Code: said.Code, Reason: said.Error}
	if no.Reason == "" {
		no.Reason = "the relay answered " + short(Printable(res.Status))
	}
	return no
}

// decode reads an answer; its texts are harmless then.
func decode(raw []byte, out any) error {
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("the answer is not one of a command page: %w", err)
	}
	harmless(reflect.ValueOf(out))
	return nil
}
