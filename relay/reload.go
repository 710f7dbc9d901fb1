package relay

import (
	"fmt"
	"strings"

	"github.com/sallyport/sallyport/protocol/names"
)

// Reload takes a new configuration while the relay runs. What it can change is
// the certificates' contents, the decoy and who may use the hub; what needs new sockets or another
// state directory is refused with a list, and then nothing changes at all.
func (r *Relay) Reload(conf Config) error {
	if d, err := names.Canonical(conf.Domain); err == nil {
		conf.Domain = d
	}
	var fixed []string
	for _, f := range []struct{ key, old, new string }{
		{"data", r.conf.DataDir, conf.DataDir},
		{"domain", r.conf.Domain, conf.Domain},
		{"listen", r.conf.listen(), conf.listen()},
		{"http", r.conf.http(), conf.http()},
		{"address", r.conf.Address, conf.Address},
		{"certs", r.conf.certs(), conf.certs()},
		{"certificates", fmt.Sprint(r.conf.CertFiles), fmt.Sprint(conf.CertFiles)},
		{"public_port", fmt.Sprint(r.conf.PublicPort), fmt.Sprint(conf.PublicPort)},
		{"acme", fmt.Sprint(r.conf.ACME), fmt.Sprint(conf.ACME)},
		{"admin_host", fmt.Sprint(r.conf.AdminHost), fmt.Sprint(conf.AdminHost)},
		{"admin_listen", r.conf.AdminListen, conf.AdminListen},
		{"open_enrolment", fmt.Sprint(r.conf.OpenEnrolment), fmt.Sprint(conf.OpenEnrolment)},
		{"dns", fmt.Sprint(r.conf.DNS), fmt.Sprint(conf.DNS)},
		{"proxy_from", fmt.Sprint(r.conf.ProxyFrom), fmt.Sprint(conf.ProxyFrom)},
		{"mqtt.off", fmt.Sprint(r.conf.MQTT.Off), fmt.Sprint(conf.MQTT.Off)},
		{"mqtt.listen", r.conf.MQTT.Listen, conf.MQTT.Listen},
		{"mqtt.commands_per_hour", fmt.Sprint(r.conf.MQTT.CommandsPerHour), fmt.Sprint(conf.MQTT.CommandsPerHour)},
		{"replicas", fmt.Sprint(r.conf.Replicas), fmt.Sprint(conf.Replicas)},
	} {
		if f.old != f.new {
			fixed = append(fixed, f.key)
		}
	}
	if len(fixed) > 0 {
		return fmt.Errorf("nothing reloaded: %s cannot change while the relay runs; restart it", strings.Join(fixed, ", "))
	}
	conf.Store = r.conf.Store
	if err := conf.err(); err != nil {
		return fmt.Errorf("nothing reloaded: %w", err)
	}
	decoy, err := r.makeDecoy(conf.decoy())
	if err != nil {
		return fmt.Errorf("nothing reloaded: %w", err)
	}
	if err := r.public.reload(); err != nil {
		return fmt.Errorf("nothing reloaded: %w", err)
	}
	r.decoy.Store(decoy)
	r.bridges.setGrants(conf.MQTT.Allow)
	r.routesChanged()
	r.event("configuration.reloaded")
	return nil
}
