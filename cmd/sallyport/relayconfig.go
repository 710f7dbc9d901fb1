package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/cmd/sallyport/configfile"
	"github.com/sallyport/sallyport/relay"
	"github.com/sallyport/sallyport/relay/certs"
)

// relayFile is relay.yaml; relay.schema.json describes each key.
type relayFile struct {
	Version      int         `yaml:"version"`
	Domain       string      `yaml:"domain"`
	Listen       string      `yaml:"listen"`
	HTTP         string      `yaml:"http"`
	Address      string      `yaml:"address"`
	Data         string      `yaml:"data"`
	Certs        string      `yaml:"certs"`
	Certificates []certPair  `yaml:"certificates"`
	ACME         acmeSection `yaml:"acme"`
	Decoy        string      `yaml:"decoy"`
	PublicPort   int         `yaml:"public_port"`
	Replicas     int         `yaml:"replicas"`
	AdminHost    bool        `yaml:"admin_host"`
	AdminListen  string      `yaml:"admin_listen"`
	OpenEnrol    bool        `yaml:"open_enrolment"`
	MQTT         relayMQTT   `yaml:"mqtt"`
	DNS          relayDNS    `yaml:"dns"`
	ProxyFrom    []string    `yaml:"proxy_from"`
	Log          logSettings `yaml:"log"`
}

// acmeSection is where certificates come from with certs: acme.
type acmeSection struct {
	CA    string `yaml:"ca"`
	Root  string `yaml:"root"`
	Email string `yaml:"email"`
}

// relayMQTT is who may speak MQTT where.
type relayMQTT struct {
	Off     bool        `yaml:"off"`
	Listen  string      `yaml:"listen"`
	Allow   []mqttGrant `yaml:"allow"`
	PerHour int         `yaml:"commands_per_hour"`
}

type mqttGrant struct {
	Device    string   `yaml:"device"`
	Publish   []string `yaml:"publish"`
	Subscribe []string `yaml:"subscribe"`
}

type certPair struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// loadRelay merges flags, environment, file and defaults, and reports every
// mistake of all of them at once.
func loadRelay(c *cli.Context) (relay.Config, logSettings, error) {
	var rf relayFile
	var file *configfile.File
	if name := c.String("config"); name != "" {
		var err error
		if file, err = configfile.Load(name, configfile.RelaySchema, &rf); err != nil && !file.Decoded() {
			return relay.Config{}, rf.Log, configError(err)
		}
	}
	conf := relay.Config{
		DataDir:    setting(c, "data", rf.Data),
		Domain:     setting(c, "domain", rf.Domain),
		Listen:     setting(c, "listen", rf.Listen),
		HTTP:       setting(c, "http", rf.HTTP),
		Address:    setting(c, "address", rf.Address),
		Certs:      setting(c, "certs", rf.Certs),
		Decoy:      setting(c, "decoy", rf.Decoy),
		PublicPort: intSetting(c, "public-port", rf.PublicPort),
		Replicas:   intSetting(c, "replicas", rf.Replicas),
		Software:   softwareVersion(),

		AdminHost:     boolSetting(c, "admin-host", rf.AdminHost),
		AdminListen:   setting(c, "admin-listen", rf.AdminListen),
		OpenEnrolment: boolSetting(c, "open-enrolment", rf.OpenEnrol),
		ACME: relay.ACME{
			CA: setting(c, "acme-ca", rf.ACME.CA), RootFile: setting(c, "acme-root", rf.ACME.Root), Email: setting(c, "acme-email", rf.ACME.Email),
		},
	}
	conf.MQTT = relay.MQTT{Off: boolSetting(c, "mqtt-off", rf.MQTT.Off), Listen: setting(c, "mqtt-listen", rf.MQTT.Listen), CommandsPerHour: intSetting(c, "mqtt-commands-per-hour", rf.MQTT.PerHour)}
	for _, g := range rf.MQTT.Allow {
		conf.MQTT.Allow = append(conf.MQTT.Allow, relay.MQTTGrant(g))
	}
	for _, p := range rf.Certificates {
		conf.CertFiles = append(conf.CertFiles, certs.Pair{Cert: p.Cert, Key: p.Key})
	}
	if c.String("cert") != "" || c.String("key") != "" {
		conf.CertFiles = []certs.Pair{{Cert: c.String("cert"), Key: c.String("key")}}
	}
	var problems []relay.Problem
	conf.DNS, problems = rf.DNS.settings(c)
	from, wrong := readPrefixes(sliceSetting(c, "proxy-from", rf.ProxyFrom))
	conf.ProxyFrom = from
	return conf, rf.Log, settingsError(c, file, slices.Concat(problems, wrong, conf.Check()))
}

// settingsError places problems in the file when they come from there.
func settingsError(c *cli.Context, file *configfile.File, problems []relay.Problem) error {
	var loose []error
	for _, p := range problems {
		if file != nil && !c.IsSet(flagOf(p.Key)) {
			if strings.HasSuffix(p.Key, "]") && file.Faulty("$."+p.Key) {
				continue // an element that does not fit the schema would be told twice
			}
			file.Fault("$."+p.Key, "%s", p.Message)
			continue
		}
		loose = append(loose, fmt.Errorf("--%s: %s", flagOf(p.Key), p.Message))
	}
	if file != nil {
		loose = append(loose, file.Err())
	}
	if err := errors.Join(loose...); err != nil {
		return configError(err)
	}
	return nil
}

// flagOf is the flag that sets a key of the file, or an element of it.
func flagOf(key string) string {
	if list, _, ok := strings.Cut(key, "["); ok {
		key = list
	}
	switch key {
	case "certificates":
		return "cert"
	case "acme": // the section as a whole: it does not go with certs
		return "certs"
	case "mqtt": // likewise: what is off needs no address
		return "mqtt-off"
	case "dns", "dns.addresses": // what the section as a whole lacks is what the addresses are for
		return "dns-address"
	case "dns.listen":
		return "dns"
	case "dns.ech":
		return "ech-off"
	}
	return strings.NewReplacer("_", "-", ".", "-").Replace(key)
}

func boolSetting(c *cli.Context, flag string, file bool) bool {
	if c.IsSet(flag) {
		return c.Bool(flag)
	}
	return file
}

func intSetting(c *cli.Context, flag string, file int) int {
	if c.IsSet(flag) || file == 0 {
		return c.Int(flag)
	}
	return file
}

// configError marks an error as one of configuration: exit code 2. Several
// mistakes get a line that counts them.
func configError(err error) error {
	n := 0
	var count func(error)
	count = func(err error) {
		if many, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range many.Unwrap() {
				count(e)
			}
		} else if faults, ok := err.(*configfile.Faults); ok {
			n += len(faults.Faults)
		} else {
			n++
		}
	}
	count(err)
	if n > 1 {
		err = fmt.Errorf("%d mistakes in the configuration:\n%w", n, err)
	}
	if _, ok := errors.AsType[*configfile.Faults](err); ok {
		return failed(exitUsage, "mend what is listed; `sallyport validate FILE` checks again", err)
	}
	return failed(exitUsage, "", err)
}
