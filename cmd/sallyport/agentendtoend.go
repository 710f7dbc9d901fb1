package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/agent"
	"github.com/sallyport/sallyport/agent/certs"
	"github.com/sallyport/sallyport/agent/lan"
	"github.com/sallyport/sallyport/cmd/sallyport/configfile"
	"github.com/sallyport/sallyport/protocol"
)

// endToEnd is the end_to_end section of agent.yaml: how services with tls:
// agent are served. agent.schema.json describes it.
type endToEnd struct {
	DeviceCA     string      `yaml:"device_ca"`
	Certs        string      `yaml:"certs"`
	Certificates []certPair  `yaml:"certificates"`
	ACME         acmeSection `yaml:"acme"`
	LAN          lanSection  `yaml:"lan"`
}

// lanSection is the door on the home network. That it is there opens the door.
type lanSection struct {
	Listen   string `yaml:"listen"`
	Service  string `yaml:"service"`
	Announce bool   `yaml:"announce"`
	Split    bool   `yaml:"split"`
	Open     bool   `yaml:"open"`
}

const (
	lanPath = "$.end_to_end.lan"
	lanOn   = "on"  // --lan: on the default address
	lanOff  = "off" // --lan: not, whatever the file says
)

// takeEndToEnd merges the section with its flags. Mistakes of the file are
// noted in it, those of flags returned.
func (conf *agentConfig) takeEndToEnd(c *cli.Context, file *configfile.File, af agentFile) (errs []error) {
	e := af.EndToEnd
	if file != nil {
		e.check(file, af.Services)
	}
	conf.EndToEnd = &agent.EndToEnd{
		Certs: agent.Certs{
			Mode: e.Certs,
			ACME: certs.ACME{CA: e.ACME.CA, RootFile: e.ACME.Root, Email: e.ACME.Email},
		},
		DeviceCA:    setting(c, "device-ca", e.DeviceCA),
		OpenDevices: openHomeDevices,
	}
	for _, p := range e.Certificates {
		conf.EndToEnd.Certs.Files = append(conf.EndToEnd.Certs.Files, certs.Pair(p))
	}
	if c.IsSet("device-ca") && conf.EndToEnd.DeviceCA != agent.DeviceCAHome && conf.EndToEnd.DeviceCA != agent.DeviceCARelay {
		errs = append(errs, fmt.Errorf("--device-ca: %q is not %s or %s", conf.EndToEnd.DeviceCA, agent.DeviceCAHome, agent.DeviceCARelay))
	}
	l := e.LAN
	wanted := file != nil && file.Has(lanPath)
	switch word := c.String("lan"); word {
	case "":
	case lanOn:
		wanted = true
	case lanOff:
		wanted = false
	default:
		wanted, l.Listen = true, word
		if err := checkListen(word); err != nil {
			errs = append(errs, fmt.Errorf("--lan: %w; or write %s for %s, or %s", err, lanOn, lan.DefaultListen, lanOff))
		}
	}
	if wanted {
		conf.EndToEnd.LAN = &agent.LAN{Listen: l.Listen, Service: l.Service, Announce: l.Announce, Split: l.Split, Open: l.Open}
	}
	return errs
}

// check judges what a schema cannot, with the place of each mistake.
func (e endToEnd) check(file *configfile.File, services []serviceEntry) {
	const at = "$.end_to_end"
	if e.Certs == certs.ModeFiles && len(e.Certificates) == 0 {
		file.Fault(at+".certs", "certs is files, but no pair is given: write certificates: [{cert: FILE, key: FILE}] too")
	}
	if e.Certs != certs.ModeFiles && len(e.Certificates) > 0 {
		file.Fault(at+".certificates", "certificate files are given, but certs is %s: write certs: files", firstOf(e.Certs, "not files"))
	}
	if e.ACME != (acmeSection{}) && e.Certs != "" && e.Certs != certs.ModeACME {
		file.Fault(at+".acme", "certs is %s: the acme settings would not be used; write certs: acme", e.Certs)
	}
	if u, err := url.Parse(e.ACME.CA); e.ACME.CA != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
		file.Fault(at+".acme.ca", "%q is not the https:// URL of an ACME directory", e.ACME.CA)
	}
	if e.LAN.Listen != "" {
		if err := checkListen(e.LAN.Listen); err != nil {
			file.Fault(lanPath+".listen", "%v", err)
		}
	}
	if name := e.LAN.Service; name != "" {
		for _, s := range services {
			if s.Name == name && s.TLS != protocol.TLSAgent {
				file.Fault(lanPath+".service", "%q has no tls: agent, and only those services are served on the home network", name)
			}
		} // one that is not there may be exposed later
	}
}

// checkListen judges an address of this machine to listen on.
func checkListen(text string) error {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return fmt.Errorf("%q is not an address such as :8443 or 192.168.1.7:8443", text)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q has no valid port", text)
	}
	if _, err := netip.ParseAddr(host); host != "" && err != nil {
		return fmt.Errorf("%q: listen on an IP address of this machine, not on a name", text)
	}
	return nil
}

// fixedEndToEnd names what a running agent cannot take of a new section: its
// doors are open and its keys in use.
func fixedEndToEnd(old, next *agent.EndToEnd) (keys []string) {
	for _, f := range []struct {
		key      string
		was, new any
	}{
		{"end_to_end.device_ca", old.DeviceCA, next.DeviceCA},
		{"end_to_end.certs", old.Certs.Mode, next.Certs.Mode},
		{"end_to_end.certificates", old.Certs.Files, next.Certs.Files},
		{"end_to_end.acme", old.Certs.ACME, next.Certs.ACME},
		{"end_to_end.lan", old.LAN, next.LAN},
	} {
		if !reflect.DeepEqual(f.was, f.new) {
			keys = append(keys, f.key)
		}
	}
	return keys
}

// errNoPort is what is wrong with a number that is no port.
var errNoPort = errors.New("a port is a number from 1 to 65535")

// portArg reads the --port of a service; 0: it has none.
func portArg(c *cli.Context) (uint16, error) {
	n := c.Int("port")
	if c.IsSet("port") && (n < 1 || n > 65535) {
		return 0, usageError("", "--port: %d: %w", n, errNoPort)
	}
	return uint16(n), nil
}
