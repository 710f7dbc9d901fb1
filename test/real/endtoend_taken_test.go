package real

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltcp"
)

// A hostileRelay sits at the relay's address with all of the relay's keys, and
// says and asks what it likes.
type hostileRelay struct {
	t          *testing.T
	agents     *pki.Authority
	devices    *pki.Authority
	serverName string
	// word answers one service of a Register; nil: as an honest relay does.
	word func(protocol.Service) protocol.Registration
	// frames are sent on every stream about devices.
	frames func() []protocol.DeviceFrame

	mu       sync.Mutex // guards sessions
	sessions map[protocol.AgentID]tunnel.Session
}

// takeOver stops the relay and puts a hostile one in its place.
func (w *world) takeOver(word func(protocol.Service) protocol.Registration, frames func() []protocol.DeviceFrame) *hostileRelay {
	t := w.t
	t.Helper()
	w.relay.stop()
	h := &hostileRelay{t: t, word: word, frames: frames, sessions: map[protocol.AgentID]tunnel.Session{}}
	var err1, err2, err3 error
	h.agents, err1 = pki.Open(w.relayDir(), "agent-ca", nil)
	h.devices, err2 = pki.Open(w.relayDir(), "device-ca", nil)
	var secrets struct {
		ServerName string `json:"server_name"`
	}
	raw, err3 := os.ReadFile(filepath.Join(w.relayDir(), "tunnel.json"))
	if err := errors.Join(err1, err2, err3, json.Unmarshal(raw, &secrets)); err != nil {
		t.Fatal(err)
	}
	h.serverName = secrets.ServerName
	cert := h.certificate(h.agents, pki.Grant{Profile: pki.Server, Name: h.serverName})
	cert.Certificate = append(cert.Certificate, h.agents.Cert().Raw)
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{protocol.ALPN}, ClientAuth: tls.RequireAnyClientCert}
	l, err := net.Listen("tcp", w.listen)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { h.serve(ctx, c, conf, &wg) })
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		wg.Wait()
	})
	return h
}

// certificate is a new key with a certificate.
func (h *hostileRelay) certificate(ca *pki.Authority, g pki.Grant) tls.Certificate {
	h.t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		h.t.Fatal(err)
	}
	leaf, err := ca.Issue(key.Public(), g)
	if err != nil {
		h.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// serve is the relay's half of one session.
func (h *hostileRelay) serve(ctx context.Context, c net.Conn, conf *tls.Config, wg *sync.WaitGroup) {
	s, err := tunneltcp.Server(ctx, c, conf, tunneltcp.Config{})
	if err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { s.Close(protocol.CodeOK, "") })()
	id := s.Peer().ID
	ctl, err := s.AcceptStream(ctx)
	if err != nil {
		return
	}
	wg.Go(func() {
		for {
			st, err := s.AcceptStream(ctx)
			if err != nil {
				return
			}
			wg.Go(func() { h.aboutDevices(st) })
		}
	})
	for {
		m, err := protocol.ReadMessage(ctl)
		if err != nil {
			return
		}
		var reply protocol.Message
		switch m := m.(type) {
		case protocol.Hello:
			reply = protocol.Welcome{
				Version: protocol.Version, Domain: domain, Time: time.Now(),
				Features: []string{protocol.FeatureTLSAgent, protocol.FeatureDevices},
			}
		case protocol.Ping:
			reply = protocol.Pong(m)
		case protocol.Register:
			a := protocol.Registered{Seq: m.Seq}
			for _, svc := range m.Services {
				r := protocol.Registration{Name: svc.Name, URL: "https://" + svc.Host + "/"}
				if svc.Host == "" {
					r.URL = "https://" + host(svc.Name) + "/"
				}
				if h.word != nil {
					if said := h.word(svc); said.Name != "" {
						r = said
					}
				}
				a.Services = append(a.Services, r)
			}
			reply = a
		default:
			continue
		}
		if err := protocol.WriteMessage(ctl, reply); err != nil {
			return
		}
		if m.Type() == protocol.TypeRegister {
			h.mu.Lock()
			h.sessions[id] = s
			h.mu.Unlock()
		}
	}
}

func (h *hostileRelay) aboutDevices(st tunnel.Stream) {
	defer st.Close()
	o, err := protocol.ReadOpen(st)
	if err != nil || o.Service != protocol.FeatureDevices || h.frames == nil {
		_ = protocol.WriteResult(st, protocol.Result{Code: protocol.CodeUnknownService})
		return
	}
	if err := protocol.WriteResult(st, protocol.Result{}); err != nil {
		return
	}
	for _, f := range h.frames() {
		if err := protocol.WriteDeviceFrame(st, f); err != nil {
			return
		}
	}
	for {
		if _, err := protocol.ReadDeviceFrame(st); err != nil {
			return
		}
	}
}

// session waits for an agent's session.
func (h *hostileRelay) session(id string) tunnel.Session {
	h.t.Helper()
	var s tunnel.Session
	eventually(h.t, time.Minute, "the home has come to the hostile relay", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		s = h.sessions[protocol.AgentID(id)]
		return s != nil && s.Err() == nil
	})
	return s
}

// open asks the agent for a service, as for a visitor.
func (h *hostileRelay) open(s tunnel.Session, o protocol.Open) (tunnel.Stream, error) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 10*time.Second)
	defer cancel()
	st, err := s.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	o.Client, o.Local = netip.MustParseAddrPort("203.0.113.9:4711"), netip.MustParseAddrPort("203.0.113.1:443")
	_ = st.SetDeadline(time.Now().Add(20 * time.Second))
	if err := protocol.WriteOpen(st, o); err != nil {
		return nil, err
	}
	res, err := protocol.ReadResult(st)
	if err == nil && res.Code != protocol.CodeOK {
		err = fmt.Errorf("refused: %s %s", res.Code, res.Reason)
	}
	if err != nil {
		st.Reset(protocol.CodeAborted)
		return nil, err
	}
	return st, nil
}
