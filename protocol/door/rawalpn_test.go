package door

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"testing"

	"github.com/sallyport/sallyport/protocol/tunnel"
)

// One host, two protocols: who agrees on the site's own one, or offers none,
// meets Raw; HTTP/1.1 meets Handler; everything else is no protocol here. The
// certificate is asked for in each case.
func TestRawBesideHandler(t *testing.T) {
	w := newWorld(t, nil)
	phone := w.devices.device("anna", nil)
	s := w.rawSite("mqtt.example.org", Require, func(_ context.Context, c tunnel.Conn, v Visitor) {
		defer c.Close()
		io.WriteString(c, "raw for "+v.Device.Name)
	})
	s.RawALPN = "mqtt"
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, _ := VisitorFrom(r.Context())
		io.WriteString(w, r.Proto+" for "+v.Device.Name)
	})
	for _, protos := range [][]string{nil, {"mqtt"}, {"mqtt", "http/1.1"}} {
		c, err := w.dial(w.clientTLS("mqtt.example.org", phone, protos...))
		if err != nil {
			t.Fatalf("%q: %v", protos, err)
		}
		if got, err := io.ReadAll(c); string(got) != "raw for anna" {
			t.Errorf("%q: %q, %v", protos, got, err)
		}
	}
	if status, body, err := w.get("mqtt.example.org", "https://mqtt.example.org/", phone, false); status != 200 || body != "HTTP/1.1 for anna" {
		t.Errorf("over HTTP/1.1: %d %q, %v", status, body, err)
	}
	if c, err := w.dial(w.clientTLS("mqtt.example.org", phone, "h2")); err == nil {
		t.Errorf("HTTP/2 was agreed on: %q", c.ConnectionState().NegotiatedProtocol)
	}
	for _, protos := range [][]string{nil, {"mqtt"}, {"http/1.1"}} {
		c, err := w.dial(w.clientTLS("mqtt.example.org", nil, protos...))
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		if err == nil {
			t.Errorf("%q without a certificate: let in", protos)
		}
	}
}

// A site that has both and does not say who gets what serves nobody.
func TestRawAndHandlerNeedALPN(t *testing.T) {
	w := newWorld(t, nil)
	s := w.rawSite("both.example.org", None, func(_ context.Context, c tunnel.Conn, _ Visitor) { c.Close() })
	s.Handler = http.NotFoundHandler()
	if _, err := w.dial(&tls.Config{InsecureSkipVerify: true, ServerName: "both.example.org"}); err == nil {
		t.Error("served")
	}
	raw := w.rawSite("raw.example.org", None, func(_ context.Context, c tunnel.Conn, _ Visitor) { c.Close() })
	raw.RawALPN = "mqtt"
	if _, err := w.dial(&tls.Config{InsecureSkipVerify: true, ServerName: "raw.example.org"}); err == nil {
		t.Error("served without a handler")
	}
}
