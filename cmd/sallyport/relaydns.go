package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/relay"
	"github.com/sallyport/sallyport/relay/authdns"
)

// relayDNS is the dns section of relay.yaml; relay.schema.json describes it.
type relayDNS struct {
	Listen    string      `yaml:"listen"`
	Addresses []string    `yaml:"addresses"`
	NS        []string    `yaml:"ns"`
	Records   []dnsRecord `yaml:"records"`
	Issuers   []string    `yaml:"issuers"`
	ECH       string      `yaml:"ech"`
}

// dnsRecord is one more record of the zone.
type dnsRecord struct {
	Name  string `yaml:"name"`
	Type  string `yaml:"type"`
	Value string `yaml:"value"`
	TTL   string `yaml:"ttl"`
}

// settings merges the section with its flags. It reports what the relay does
// not see any more: text that is no address and no time.
func (d relayDNS) settings(c *cli.Context) (relay.DNS, []relay.Problem) {
	conf := relay.DNS{Listen: setting(c, "dns", d.Listen), NS: d.NS, Issuers: d.Issuers, ECHOff: boolSetting(c, "ech-off", d.ECH == "off")}
	var problems []relay.Problem
	bad := func(key, format string, args ...any) {
		problems = append(problems, relay.Problem{Key: key, Message: fmt.Sprintf(format, args...)})
	}
	for i, text := range sliceSetting(c, "dns-address", d.Addresses) {
		addr, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil {
			bad(fmt.Sprintf("dns.addresses[%d]", i), "%q is not an address such as 203.0.113.7 or 2001:db8::7", text)
			addr = netip.IPv6LinkLocalAllNodes() // keeps its place; the mistake is told
		}
		conf.Addresses = append(conf.Addresses, addr)
	}
	for i, r := range d.Records {
		rec := authdns.Record{Name: r.Name, Type: r.Type, Value: r.Value}
		if r.TTL != "" {
			ttl, err := parseSpan(r.TTL)
			if err != nil || ttl <= 0 {
				bad(fmt.Sprintf("dns.records[%d].ttl", i), "%q is no length of time; write one such as 5m, 1h or 2d", r.TTL)
			}
			rec.TTL = max(ttl, 0)
		}
		conf.Records = append(conf.Records, rec)
	}
	return conf, problems
}

// readPrefixes reads networks; a single address is one of its own.
func readPrefixes(list []string) (prefixes []netip.Prefix, problems []relay.Problem) {
	for i, text := range list {
		text = strings.TrimSpace(text)
		p, err := netip.ParsePrefix(text)
		if addr, aerr := netip.ParseAddr(text); aerr == nil && addr.Zone() == "" {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		key := fmt.Sprintf("proxy_from[%d]", i)
		switch {
		case err != nil:
			problems = append(problems, relay.Problem{Key: key, Message: fmt.Sprintf("%q is not a network such as 10.0.0.0/24, nor an address", text)})
		case p.Bits() == 0:
			problems = append(problems, relay.Problem{Key: key, Message: fmt.Sprintf("%s is everybody, and who may send a PROXY header may claim any address: name the load balancer's", p)})
		default:
			prefixes = append(prefixes, p.Masked())
		}
	}
	return prefixes, problems
}

// sliceSetting is flag or environment, then file.
func sliceSetting(c *cli.Context, flag string, file []string) []string {
	if c.IsSet(flag) {
		return c.StringSlice(flag)
	}
	return file
}
