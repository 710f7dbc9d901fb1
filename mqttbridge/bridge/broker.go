package bridge

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
)

// A Broker says where the home broker is and how to come in. Files are read
// again at every connection, so that a renewed certificate or a new password
// needs no restart.
type Broker struct {
	// URL is tcp://HOST[:PORT] or tls://HOST[:PORT]; mqtt:// and mqtts:// mean
	// the same. The port is 1883, or 8883 with TLS.
	URL string
	// User is the user name; "" = none.
	User string
	// PasswordFile holds the password in its first line; "" = none.
	PasswordFile string
	// CAFile holds the certificates (PEM) of the CAs that may sign for the
	// broker; "" = those of the system.
	CAFile string
	// CertFile and KeyFile are this agent's certificate and key (PEM), for
	// brokers that ask for one; both or neither.
	CertFile, KeyFile string
	// ServerName is the name that the broker's certificate must be for; "" =
	// the host of URL.
	ServerName string
	// InsecureSkipVerify takes any certificate: whoever sits in between reads
	// and changes everything, the password too.
	InsecureSkipVerify bool
	// ClientID is the name of the persistent session; "" = sallyport-AGENT. The
	// other connections append -in, -sync and -commands. No other client may
	// use these names.
	ClientID string
}

// Check returns what is wrong with it, all at once, in words for people. It
// reads the files, and connects to nothing.
func (b Broker) Check() []error {
	var faults []error
	_, secure, err := b.address()
	if err != nil {
		faults = append(faults, err)
	}
	if _, err := b.password(); err != nil {
		faults = append(faults, err)
	}
	if len(b.ClientID) > 200 || strings.ContainsFunc(b.ClientID, func(r rune) bool { return r <= ' ' || r > '~' }) {
		faults = append(faults, fmt.Errorf("client id %q: write at most 200 visible ASCII characters", b.ClientID))
	}
	if err == nil && !secure {
		for _, f := range []struct {
			name string
			set  bool
		}{
			{"a CA file", b.CAFile != ""},
			{"a certificate", b.CertFile != "" || b.KeyFile != ""},
			{"a server name", b.ServerName != ""},
		} {
			if f.set {
				faults = append(faults, fmt.Errorf("%s is set, but %s is not TLS: write tls:// or leave it out", f.name, b.URL))
			}
		}
		return faults
	}
	if _, err := b.tls("broker.invalid"); err != nil {
		faults = append(faults, err)
	}
	return faults
}

// address takes the URL apart.
func (b Broker) address() (hostport string, secure bool, err error) {
	if b.URL == "" {
		return "", false, errors.New("no broker URL: write where the broker is, like tcp://127.0.0.1:1883")
	}
	u, err := url.Parse(b.URL)
	if err != nil || u.Host == "" {
		return "", false, errors.New("the broker URL cannot be read: write it like tcp://127.0.0.1:1883 or tls://broker.lan:8883")
	}
	if u.User != nil { // never repeated: it may hold a password
		return "", false, errors.New("the broker URL holds a user name or password: write them as user and password_file")
	}
	port := "1883"
	switch strings.ToLower(u.Scheme) {
	case "tcp", "mqtt":
	case "tls", "mqtts", "ssl":
		port, secure = "8883", true
	default:
		return "", false, fmt.Errorf("broker URL %q: the scheme %q is not known, write tcp:// or tls://", b.URL, u.Scheme)
	}
	if (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
		return "", false, fmt.Errorf("broker URL %q: leave out what follows the port", b.URL)
	}
	if u.Hostname() == "" {
		return "", false, fmt.Errorf("broker URL %q has no host: write it like tcp://127.0.0.1:1883", b.URL)
	}
	port = cmp.Or(u.Port(), port)
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", false, fmt.Errorf("broker URL %q: the port must be 1 to 65535", b.URL)
	}
	return net.JoinHostPort(u.Hostname(), port), secure, nil
}

// password reads the first line of the file.
func (b Broker) password() (string, error) {
	if b.PasswordFile == "" {
		return "", nil
	}
	if b.User == "" {
		return "", errors.New("a password without a user name: MQTT has no such thing, set user too")
	}
	text, err := os.ReadFile(b.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("read the broker's password: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	line = strings.TrimSuffix(line, "\r")
	if line == "" {
		return "", fmt.Errorf("the first line of %s is empty: write the broker's password into it", b.PasswordFile)
	}
	return line, nil
}

// tls makes the client's side of TLS towards host.
func (b Broker) tls(host string) (*tls.Config, error) {
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         cmp.Or(b.ServerName, host),
		InsecureSkipVerify: b.InsecureSkipVerify, //nolint:gosec // asked for by name
	}
	if b.CAFile != "" {
		text, err := os.ReadFile(b.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the broker's CA: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate: it must be PEM, with BEGIN CERTIFICATE", b.CAFile)
		}
	}
	if (b.CertFile == "") != (b.KeyFile == "") {
		return nil, errors.New("a client certificate needs both its file and its key file")
	}
	if b.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(b.CertFile, b.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("load the client certificate for the broker: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}
