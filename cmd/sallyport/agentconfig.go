package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/agent"
	"github.com/sallyport/sallyport/agent/service"
	"github.com/sallyport/sallyport/cmd/sallyport/configfile"
	"github.com/sallyport/sallyport/mqttbridge/executor"
)

// agentFile is agent.yaml; agent.schema.json describes each key.
type agentFile struct {
	Version   int            `yaml:"version"`
	Data      string         `yaml:"data"`
	TokenFile string         `yaml:"token_file"`
	Name      string         `yaml:"name"`
	Transport []string       `yaml:"transport"`
	Services  []serviceEntry `yaml:"services"`
	MQTT      agentMQTT      `yaml:"mqtt"`
	Actions   []actionEntry  `yaml:"actions"`
	EndToEnd  endToEnd       `yaml:"end_to_end"`
	Log       logSettings    `yaml:"log"`
}

// serviceEntry is one service of agent.yaml; agent.schema.json describes it.
type serviceEntry struct {
	Name               string `yaml:"name"`
	To                 string `yaml:"to"`
	Host               string `yaml:"host"`
	Path               string `yaml:"path"`
	Auth               string `yaml:"auth"`
	TLS                string `yaml:"tls"`
	Port               int    `yaml:"port"`
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify"`
	ServerName         string `yaml:"server_name"`
	CA                 string `yaml:"ca"`
	Cert               string `yaml:"cert"`
	Key                string `yaml:"key"`
	HTTP2              bool   `yaml:"http2"`
	ProxyProtocol      bool   `yaml:"proxy_protocol"`
	RemoteUser         bool   `yaml:"remote_user"`
}

func (e serviceEntry) entry() service.Entry {
	return service.Entry{
		Name: e.Name, Target: e.To, Host: e.Host, Path: e.Path, Auth: e.Auth, TLS: e.TLS,
		Port:               uint16(min(max(e.Port, 0), 65535)), // the schema has told of what is no port
		InsecureSkipVerify: e.InsecureSkipVerify, ServerName: e.ServerName, CAFile: e.CA,
		ClientCert: e.Cert, ClientKey: e.Key, HTTP2: e.HTTP2, ProxyProtocol: e.ProxyProtocol, RemoteUser: e.RemoteUser,
		Origin: service.OriginConfig,
	}
}

// agentConfig is agent.Config and where its token comes from.
type agentConfig struct {
	agent.Config
	tokenFile string
}

// loadAgent merges flags, environment, file and defaults, and reports every
// mistake of all of them at once.
func loadAgent(c *cli.Context) (agentConfig, logSettings, error) {
	var af agentFile
	var file *configfile.File
	if name := c.String("config"); name != "" {
		var err error
		if file, err = configfile.Load(name, configfile.AgentSchema, &af); err != nil && !file.Decoded() {
			return agentConfig{}, af.Log, configError(err)
		}
		checkServices(file, af.Services)
	}
	conf := agentConfig{
		Config: agent.Config{
			DataDir: setting(c, "data", af.Data), Name: setting(c, "name", af.Name),
			TransportNames: af.Transport, Software: softwareVersion(),
		},
		tokenFile: setting(c, "token-file", af.TokenFile),
	}
	if c.IsSet("transport") {
		conf.TransportNames = c.StringSlice("transport")
	}
	for _, s := range af.Services {
		conf.Services = append(conf.Services, s.entry())
	}
	errs := conf.takeMQTT(c, file, af)
	errs = append(errs, conf.takeEndToEnd(c, file, af)...)
	if file != nil {
		errs = append(errs, file.Err())
	}
	for _, e := range c.StringSlice("expose") {
		name, target, ok := strings.Cut(e, "=")
		if !ok {
			errs = append(errs, fmt.Errorf("--expose %q: write NAME=TARGET, such as ha=127.0.0.1:8123", e))
			continue
		}
		entry := service.Entry{Name: name, Target: target}
		if _, err := entry.Service(); err != nil {
			errs = append(errs, exposeError(e, name, err))
		}
		conf.expose(entry)
	}
	if err := errors.Join(errs...); err != nil {
		return conf, af.Log, configError(err)
	}
	return conf, af.Log, nil
}

// takeMQTT reads what is said of the home broker and of actions. Mistakes of
// the file are noted in it, those of flags returned.
func (conf *agentConfig) takeMQTT(c *cli.Context, file *configfile.File, af agentFile) (errs []error) {
	m := af.MQTT
	if c.IsSet("mqtt") { // wins over the file's broker; the rest of the section holds
		m.Broker = c.String("mqtt")
		errs = flagMistakes(m.Broker)
	}
	conf.Actions = readActions(file, af.Actions)
	conf.MQTT = m.settings(file, executor.Topics(conf.Actions))
	if conf.MQTT == nil && len(conf.Actions) > 0 {
		file.Fault("$.actions", "actions are published at the home broker, and none is named: write mqtt: {broker: tcp://127.0.0.1:1883} too")
	}
	if file != nil && len(errs) == 0 {
		checkBroker(file, m)
	}
	return errs
}

// sameRun reports what a running agent cannot take from a new configuration.
func sameRun(old, next agentConfig) error {
	var fixed []string
	for _, f := range []struct {
		key  string
		same bool
	}{
		{"data", old.DataDir == next.DataDir},
		{"name", old.Name == next.Name},
		{"transport", slices.Equal(old.TransportNames, next.TransportNames)},
	} {
		if !f.same {
			fixed = append(fixed, f.key)
		}
	}
	fixed = append(fixed, fixedMQTT(old.MQTT, next.MQTT)...)
	fixed = append(fixed, fixedEndToEnd(old.EndToEnd, next.EndToEnd)...)
	if len(fixed) > 0 {
		return fmt.Errorf("%s cannot change while the agent runs: restart it", strings.Join(fixed, ", "))
	}
	return nil
}

// expose takes an --expose. It wins over a service of the file for this run;
// one that the file does not have is exposed for good, as by `agent expose`.
func (conf *agentConfig) expose(e service.Entry) {
	for i, s := range conf.Services {
		if s.Name == e.Name && s.Origin == service.OriginConfig {
			e.Origin = service.OriginFlag
			conf.Services[i] = e
			return
		}
	}
	e.Origin = service.OriginExposed
	conf.Expose = append(conf.Expose, e)
}

// keepFlags lets a flag that won over the file at the start hold for the whole
// run, also when the file's service is gone.
func (conf *agentConfig) keepFlags(start agentConfig) {
	for _, e := range conf.Expose {
		if !slices.ContainsFunc(start.Expose, func(s service.Entry) bool { return s.Name == e.Name }) {
			e.Origin = service.OriginFlag
			conf.Services = append(conf.Services, e)
		}
	}
}

func exposeError(arg, name string, err error) error {
	if strings.Contains(name, ".") {
		return fmt.Errorf("--expose %q: %w\nUse `sallyport agent expose NAME TARGET --host HOST` for another host.", arg, err)
	}
	return fmt.Errorf("--expose %q: %w", arg, err)
}

// checkServices judges what a schema cannot, with the place of each mistake.
func checkServices(file *configfile.File, list []serviceEntry) {
	first := map[string]int{}
	for i, s := range list {
		path := fmt.Sprintf("$.services[%d]", i)
		if j, ok := first[s.Name]; ok {
			file.Fault(path+".name", "%q is also the name of services[%d]; give each its own", s.Name, j)
		} else {
			first[s.Name] = i
		}
		if file.Faulty(path) { // what does not fit the schema would be told twice
			continue
		}
		for _, line := range s.mistakes() {
			at := path
			if key := path + "." + s.culprit(line); file.Has(key) {
				at = key
			}
			file.Fault(at, "%s", line)
		}
	}
}

func (e serviceEntry) mistakes() []string {
	_, err := e.entry().Service()
	if err == nil {
		return nil
	}
	lines := strings.Split(err.Error(), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, fmt.Sprintf("service %q: ", e.Name))
	}
	return lines
}

// culprit returns the key without which a mistake would not be there, or "".
func (e serviceEntry) culprit(mistake string) string {
	for _, k := range []struct {
		key   string
		clear func(*serviceEntry)
	}{
		{"auth", func(e *serviceEntry) { e.Auth = "" }},
		{"host", func(e *serviceEntry) { e.Host = "" }},
		{"path", func(e *serviceEntry) { e.Path = "" }},
		{"insecure_skip_verify", func(e *serviceEntry) { e.InsecureSkipVerify = false }},
		{"server_name", func(e *serviceEntry) { e.ServerName = "" }},
		{"ca", func(e *serviceEntry) { e.CA = "" }},
		{"cert", func(e *serviceEntry) { e.Cert = "" }},
		{"key", func(e *serviceEntry) { e.Key = "" }},
		{"http2", func(e *serviceEntry) { e.HTTP2 = false }},
		{"remote_user", func(e *serviceEntry) { e.RemoteUser = false }},
		{"port", func(e *serviceEntry) { e.Port = 0 }},
		{"tls", func(e *serviceEntry) { e.TLS = "" }},
		{"to", func(e *serviceEntry) { e.To = "" }},
		{"name", func(e *serviceEntry) { e.Name = "" }},
	} {
		without := e
		k.clear(&without)
		if !slices.Contains(without.mistakes(), mistake) {
			return k.key
		}
	}
	return ""
}
