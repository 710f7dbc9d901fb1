package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/agent"
	"github.com/sallyport/sallyport/cmd/sallyport/configfile"
	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/bridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// agentMQTT is the mqtt section of agent.yaml; agent.schema.json describes it.
type agentMQTT struct {
	Broker             string       `yaml:"broker"`
	User               string       `yaml:"user"`
	PasswordFile       string       `yaml:"password_file"`
	CA                 string       `yaml:"ca"`
	Cert               string       `yaml:"cert"`
	Key                string       `yaml:"key"`
	ServerName         string       `yaml:"server_name"`
	InsecureSkipVerify bool         `yaml:"insecure_skip_verify"`
	ClientID           string       `yaml:"client_id"`
	Queue              queueLimits  `yaml:"queue"`
	Topics             []topicEntry `yaml:"topics"`
}

type queueLimits struct {
	Messages int   `yaml:"messages"`
	Bytes    int64 `yaml:"bytes"`
}

// topicEntry is one rule: a line in Mosquitto's words, alone or with what
// Mosquitto has no words for.
type topicEntry struct {
	Topic  string `yaml:"topic"`
	Drop   string `yaml:"drop"`
	MaxAge string `yaml:"max_age"`
}

// dropOldest is the word for "the oldest messages make room".
const dropOldest = "oldest"

// UnmarshalYAML reads both forms.
func (e *topicEntry) UnmarshalYAML(decode func(any) error) error {
	if decode(&e.Topic) == nil { // a line alone
		return nil
	}
	type entry topicEntry // without this method
	return decode((*entry)(e))
}

func (m agentMQTT) broker() bridge.Broker {
	return bridge.Broker{
		URL: m.Broker, User: m.User, PasswordFile: m.PasswordFile, CAFile: m.CA, CertFile: m.Cert, KeyFile: m.Key,
		ServerName: m.ServerName, InsecureSkipVerify: m.InsecureSkipVerify, ClientID: m.ClientID,
	}
}

func (m agentMQTT) empty() bool {
	return m.broker() == bridge.Broker{} && m.Queue == queueLimits{} && len(m.Topics) == 0
}

// settings is the section as the agent takes it; nil when nothing is said.
// commands are the topics that actions publish to: no rule may lead there.
func (m agentMQTT) settings(file *configfile.File, commands []string) *agent.MQTT {
	if m.empty() {
		return nil
	}
	if m.Broker == "" {
		file.Fault("$.mqtt", "broker is missing: write where the home broker listens, such as broker: tcp://127.0.0.1:1883")
	}
	return &agent.MQTT{
		Broker: m.broker(), Rules: m.rules(file, commands),
		Limits: queue.Limits{Messages: m.Queue.Messages, Bytes: m.Queue.Bytes},
	}
}

// flagMistakes are those of --mqtt, told of it and not of the file.
func flagMistakes(url string) (errs []error) {
	for _, err := range (bridge.Broker{URL: url}).Check() {
		errs = append(errs, fmt.Errorf("--mqtt: %w", err))
	}
	return errs
}

// rules reads the topics and reports what is wrong with each, and between them.
func (m agentMQTT) rules(file *configfile.File, commands []string) []mqttbridge.Rule {
	rules := make([]mqttbridge.Rule, 0, len(m.Topics))
	for i, e := range m.Topics {
		rule, err := mqttbridge.ParseRule(e.Topic)
		if err != nil {
			file.Fault(topicPath(file, i), "%v", err)
			// It keeps its place: messages about the others count rules.
			rule = mqttbridge.Rule{Pattern: fmt.Sprintf("unread/%d", i), Direction: mqttbridge.Out}
		}
		rule.DropOldest = e.Drop == dropOldest
		if e.MaxAge != "" {
			rule.MaxAge = readSpan(file, fmt.Sprintf("$.mqtt.topics[%d].max_age", i), e.MaxAge)
		}
		rules = append(rules, rule)
	}
	for _, f := range mqttbridge.CheckRules(rules, commands) {
		file.Fault(topicPath(file, f.Index), "%s", f.Message)
	}
	return rules
}

// topicPath is where the line of a rule stands.
func topicPath(file *configfile.File, i int) string {
	path := fmt.Sprintf("$.mqtt.topics[%d]", i)
	if file.Has(path + ".topic") {
		return path + ".topic"
	}
	return path
}

// readSpan reads a length of time that is more than nothing; 0 when it is not.
func readSpan(file *configfile.File, path, text string) time.Duration {
	d, err := parseSpan(text)
	if err != nil || d <= 0 {
		file.Fault(path, "%q is no length of time; write one such as 500ms, 30s, 5m or 2d", text)
		return 0
	}
	return d
}

// checkBroker places each mistake at the key without which it would not be there.
func checkBroker(file *configfile.File, m agentMQTT) {
	if m.Broker == "" || file.Faulty("$.mqtt.broker") {
		return
	}
	for _, line := range m.mistakes() {
		at := "$.mqtt.broker"
		if key := "$.mqtt." + m.culprit(line); file.Has(key) {
			at = key
		}
		file.Fault(at, "%s", line)
	}
}

func (m agentMQTT) mistakes() (lines []string) {
	for _, err := range m.broker().Check() {
		lines = append(lines, err.Error())
	}
	return lines
}

// culprit returns the key without which a mistake would not be there, or "".
func (m agentMQTT) culprit(mistake string) string {
	for _, k := range []struct {
		key   string
		clear func(*agentMQTT)
	}{
		{"password_file", func(m *agentMQTT) { m.PasswordFile = "" }},
		{"user", func(m *agentMQTT) { m.User = "" }},
		{"ca", func(m *agentMQTT) { m.CA = "" }},
		{"cert", func(m *agentMQTT) { m.Cert = "" }},
		{"key", func(m *agentMQTT) { m.Key = "" }},
		{"server_name", func(m *agentMQTT) { m.ServerName = "" }},
		{"insecure_skip_verify", func(m *agentMQTT) { m.InsecureSkipVerify = false }},
		{"client_id", func(m *agentMQTT) { m.ClientID = "" }},
	} {
		without := m
		k.clear(&without)
		if !slices.Contains(without.mistakes(), mistake) {
			return k.key
		}
	}
	return ""
}

// fixedMQTT names what a running agent cannot take of a new mqtt section.
func fixedMQTT(old, next *agent.MQTT) (keys []string) {
	switch {
	case (old == nil) != (next == nil):
		return []string{"mqtt"}
	case old == nil:
		return nil
	}
	if old.Broker != next.Broker {
		keys = append(keys, "mqtt."+strings.Join(brokerChanges(old.Broker, next.Broker), ", mqtt."))
	}
	if old.Limits != next.Limits {
		keys = append(keys, "mqtt.queue")
	}
	return keys
}

func brokerChanges(a, b bridge.Broker) (keys []string) {
	for _, f := range []struct {
		key  string
		same bool
	}{
		{"broker", a.URL == b.URL},
		{"user", a.User == b.User},
		{"password_file", a.PasswordFile == b.PasswordFile},
		{"ca", a.CAFile == b.CAFile},
		{"cert", a.CertFile == b.CertFile},
		{"key", a.KeyFile == b.KeyFile},
		{"server_name", a.ServerName == b.ServerName},
		{"insecure_skip_verify", a.InsecureSkipVerify == b.InsecureSkipVerify},
		{"client_id", a.ClientID == b.ClientID},
	} {
		if !f.same {
			keys = append(keys, f.key)
		}
	}
	return keys
}
