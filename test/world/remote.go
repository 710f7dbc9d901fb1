package world

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A Remote is a phone's command page without the page: it speaks the same API
// and signs with a key of its own.
type Remote struct {
	Phone *Phone
	Key   *ecdsa.PrivateKey

	client *http.Client
	base   string
}

// Remote makes the phone's remote control, with a new signing key.
func (p *Phone) Remote() *Remote {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.w.T.Fatal(err)
	}
	return &Remote{Phone: p, Key: key, client: p.Client(true), base: "https://home." + p.relay.Domain}
}

// SPKI is the signing key as it is offered.
func (r *Remote) SPKI() []byte {
	der, err := x509.MarshalPKIXPublicKey(&r.Key.PublicKey)
	if err != nil {
		r.Phone.w.T.Fatal(err)
	}
	return der
}

// call gives up after 20 s. What is no 2xx is an error unless the answer is a
// Status.
func (r *Remote) call(method, path string, in, out any) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return 0, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, r.base+path, body)
	if err != nil {
		return 0, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := r.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return res.StatusCode, err
	}
	err = json.Unmarshal(data, out)
	if st, ok := out.(*mqttbridge.Status); ok && err == nil && st.State != "" {
		return res.StatusCode, nil
	}
	if res.StatusCode/100 != 2 {
		return res.StatusCode, fmt.Errorf("%s %s: status %d: %s", method, path, res.StatusCode, data)
	}
	return res.StatusCode, err
}

// Homes is what the page would show.
func (r *Remote) Homes() ([]mqttbridge.Home, error) {
	var answer struct {
		Homes []mqttbridge.Home `json:"homes"`
	}
	_, err := r.call(http.MethodGet, "/api/homes", nil, &answer)
	return answer.Homes, err
}

// Home returns one home of those.
func (r *Remote) Home(name string) (mqttbridge.Home, error) {
	homes, err := r.Homes()
	for _, h := range homes {
		if h.Name == name {
			return h, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("no home %q for this device among %d", name, len(homes))
	}
	return mqttbridge.Home{}, err
}

// Offer shows a home the signing key.
func (r *Remote) Offer(home string) (mqttbridge.Trust, error) {
	var answer struct {
		Trust mqttbridge.Trust `json:"trust"`
	}
	_, err := r.call(http.MethodPost, "/api/keys", map[string]any{"home": home, "key": r.SPKI()}, &answer)
	return answer.Trust, err
}

// Challenge asks a home for one.
func (r *Remote) Challenge(home, action string) (string, error) {
	var answer struct {
		Challenge string `json:"challenge"`
	}
	_, err := r.call(http.MethodPost, "/api/challenge", map[string]string{"home": home, "action": action}, &answer)
	return answer.Challenge, err
}

// Sign makes a command of a challenge. The PIN may be empty.
func (r *Remote) Sign(home mqttbridge.Home, action, value, challenge, pin string) mqttbridge.Signed {
	now := r.Phone.w.Now()
	e := mqttbridge.Envelope{
		Version: 1, ID: mqttbridge.NewID(), Home: home.ID, Action: action, Value: value, Device: r.Phone.Name,
		Issued: now, NotAfter: now.Add(10 * time.Second), Challenge: challenge,
	}
	var err error
	if pin != "" {
		if e.PIN, err = mqttbridge.SealPIN(home.Key, pin, e); err != nil {
			r.Phone.w.T.Fatal(err)
		}
	}
	s, err := mqttbridge.Sign(e, r.Key)
	if err != nil {
		r.Phone.w.T.Fatal(err)
	}
	return s
}

// Send presses the button. An error means that nobody answered; what has
// become of the command Status tells.
func (r *Remote) Send(home, action string, s mqttbridge.Signed) (st mqttbridge.Status, err error) {
	_, err = r.call(http.MethodPost, "/api/commands/"+action, map[string]any{"home": home, "command": s}, &st)
	return st, err
}

// Status asks what has become of a command.
func (r *Remote) Status(id string) (st mqttbridge.Status, err error) {
	_, err = r.call(http.MethodGet, "/api/commands/"+id, nil, &st)
	return st, err
}

// Press does all of it and waits for the end.
func (r *Remote) Press(home, action, pin string) mqttbridge.Status {
	w := r.Phone.w
	w.T.Helper()
	h, err := r.Home(home)
	if err != nil {
		w.T.Fatal(err)
	}
	challenge, err := r.Challenge(home, action)
	if err != nil {
		w.T.Fatal(err)
	}
	st, err := r.Send(home, action, r.Sign(h, action, "", challenge, pin))
	if err != nil {
		w.T.Fatal(err)
	}
	return r.Await(st)
}

// Await waits until a command has ended.
func (r *Remote) Await(st mqttbridge.Status) mqttbridge.Status {
	w := r.Phone.w
	w.T.Helper()
	if st.Final {
		return st
	}
	w.Until(10*time.Minute, "command "+st.ID+" has ended", func() bool {
		now, err := r.Status(st.ID)
		if err == nil {
			st = now
		}
		return err == nil && now.Final
	})
	return st
}
