//go:build linux

package load

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/admin"
)

// sallyport is a relay and what its owner made with it.
type sallyport struct {
	lab    *lab
	dir    string
	admin  *admin.Client
	relay  *process
	addr   string
	roots  *x509.CertPool
	device tls.Certificate
	agents int
}

func profiling() bool { return os.Getenv(profileEnv) != "" }

// startRelay starts a relay in dir and makes a device.
func (l *lab) startRelay(dir string) (*sallyport, error) { return l.startRelayAt(dir, "", profiling()) }

// startRelayAt is for agents that dial another address than the relay's, if one
// is given. The relay of the test binary can be told to tidy up.
func (l *lab) startRelayAt(dir, address string, fromTest bool) (*sallyport, error) {
	data := filepath.Join(dir, "relay")
	s := &sallyport{lab: l, dir: dir, admin: admin.NewClient(data)}
	var err error
	if fromTest {
		s.relay, err = l.startSelf("relay", "relay", nil, dataEnv+"="+data, addressEnv+"="+address)
	} else {
		args := []string{"relay", "up", "--data", data, "--domain", domain, "--listen", "127.0.0.1:0", "--http", "off"}
		if address != "" {
			args = append(args, "--address", address)
		}
		s.relay, err = l.startBinary("relay", args...)
	}
	if err != nil {
		return nil, err
	}
	err = until("the relay answers", func(ctx context.Context) error {
		st, err := s.admin.Status(ctx)
		if err == nil {
			s.addr = st.Listen[0]
		}
		return err
	})
	if err == nil {
		err = s.addDevice(context.Background())
	}
	if err != nil {
		s.relay.stop()
		return nil, fmt.Errorf("%w\n%s", err, s.relay.said())
	}
	return s, nil
}

func (l *lab) startBinary(name string, args ...string) (*process, error) {
	exe, err := l.binary()
	if err != nil {
		return nil, err
	}
	return l.start(name, nil, nil, append([]string{exe}, args...)...)
}

// newDevice is `device add`.
func (s *sallyport) newDevice(ctx context.Context, name string) (tls.Certificate, error) {
	key, err := pki.NewKey()
	if err != nil {
		return tls.Certificate{}, err
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	issued, err := s.admin.AddDevice(ctx, admin.DeviceRequest{Name: name, CSR: csr})
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{issued.Cert}, PrivateKey: key}, nil
}

// addDevice is `device add` and `relay ca`.
func (s *sallyport) addDevice(ctx context.Context) error {
	var err error
	if s.device, err = s.newDevice(ctx, "load"); err != nil {
		return err
	}
	ca, err := s.admin.CA(ctx)
	if err != nil {
		return err
	}
	s.roots = x509.NewCertPool()
	if !s.roots.AppendCertsFromPEM([]byte(ca.Server)) {
		return errors.New("the relay's root is not PEM")
	}
	return nil
}

// token makes a join token. Each names its hosts: an unrestricted one is void
// as soon as another agent joins, and these join all at once.
func (s *sallyport) token(ctx context.Context, hosts string) (string, error) {
	s.agents++
	t, err := s.admin.NewToken(ctx, admin.TokenRequest{Hosts: []string{hosts}})
	return t.Token, err
}

// startAgent starts an agent over one transport, offers everything, and adds
// its roads.
func (s *sallyport) startAgent(p *peers, h *home, carrier string) error {
	ctx := context.Background()
	token, err := s.token(ctx, "*."+carrier+"."+domain)
	if err != nil {
		return err
	}
	data := filepath.Join(s.dir, "agent-"+carrier)
	file := data + ".token"
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		return err
	}
	var proc *process
	if profiling() {
		proc, err = s.lab.startSelf("agent", "agent", nil, dataEnv+"="+data, tokenEnv+"="+file, carrierEnv+"="+carrier)
	} else {
		proc, err = s.lab.startBinary("agent", "agent", "up", "--data", data, "--token-file", file, "--transport", carrier)
	}
	if err != nil {
		return err
	}
	p.procs = append(p.procs, proc)
	if err := s.offer(p, h, carrier, proc, control.NewClient(data)); err != nil {
		return fmt.Errorf("agent over %s: %w\n%s", carrier, err, proc.said())
	}
	return nil
}

func (s *sallyport) offer(p *peers, h *home, carrier string, proc *process, agent *control.Client) error {
	err := until("the agent connects", func(ctx context.Context) error {
		st, err := agent.Status(ctx)
		if err == nil && (st.Link == nil || st.Link.Transport != carrier) {
			err = fmt.Errorf("the agent is %s; last error: %s", st.State, st.Error)
		}
		return err
	})
	if err != nil {
		return err
	}
	add := func(service, target, mode string, roads ...string) error {
		host := service + "." + carrier + "." + domain
		if _, err := agent.Expose(context.Background(), control.Service{Name: service, Target: target, Host: host, TLS: mode}); err != nil {
			return fmt.Errorf("expose %s: %w", service, err)
		}
		client := &tls.Config{ServerName: host, RootCAs: s.roots, Certificates: []tls.Certificate{s.device}}
		if mode == protocol.TLSBackend {
			client = h.visitorTLS(host)
		}
		for _, name := range roads {
			p.roads = append(p.roads, &road{peer: carrier, service: name, addr: s.addr, tls: client, procs: []*process{s.relay, proc}})
		}
		return nil
	}
	return errors.Join(
		add("raw", "tcp://"+h.raw, protocol.TLSRelay, "raw"),
		add("web", "http://"+h.http, protocol.TLSRelay, "http", "h2"),
		add("pass", "tcp://"+h.tls, protocol.TLSBackend, "pass"),
	)
}
