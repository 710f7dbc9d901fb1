package certs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// A CAA is one record of type CAA (RFC 8659).
type CAA struct {
	Critical   bool
	Tag, Value string
}

// Resolver is what the preflight asks. *net.Resolver has the first method.
type Resolver interface {
	// LookupNetIP returns the addresses of host; network is "ip".
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	// LookupCAA returns the CAA records of exactly this name (aliases are
	// followed, parents are not asked); none is no error.
	LookupCAA(ctx context.Context, name string) ([]CAA, error)
}

// checkCAA finds the records that decide on host (RFC 8659 §3), and says why a
// CA with these identities may not certify it. nil: it may. held is set when
// that is certain.
func checkCAA(ctx context.Context, r Resolver, host string, identities []string, account string) *failure {
	if len(identities) == 0 {
		return nil // the CA does not say how it is called
	}
	for name := host; name != ""; name = parentOf(name) {
		records, err := r.LookupCAA(ctx, name)
		if err != nil {
			return &failure{
				problem: oneLine(fmt.Sprintf("the CAA records of %s cannot be looked up, and a CA refuses a host when it cannot: %v", name, err)),
				fix:     "see that the name servers of the zone answer questions for type CAA",
			}
		}
		if len(records) > 0 {
			return judgeCAA(name, records, identities, account)
		}
	}
	return nil
}

func judgeCAA(name string, records []CAA, identities []string, account string) *failure {
	var allowed []string
	asked := false
	for _, rec := range records {
		switch tag := strings.ToLower(rec.Tag); tag {
		case "issue":
			asked = true
			domain, params := parseIssue(rec.Value)
			if slices.Contains(identities, domain) {
				why := paramsForbid(params, account)
				if why == "" {
					return nil
				}
				domain += " (" + why + ")"
			}
			if domain != "" {
				allowed = append(allowed, domain)
			}
		case "issuewild", "iodef", "issuemail", "issuevmc", "contactemail", "contactphone":
		default:
			if rec.Critical {
				asked = true // whoever does not know it must not issue
			}
		}
	}
	if !asked {
		return nil
	}
	only := "nobody"
	if len(allowed) > 0 {
		only = "only " + strings.Join(allowed, ", ")
	}
	return &failure{
		held: true, problem: oneLine(fmt.Sprintf("the CAA records of %s let %s issue certificates, and the relay's CA is %s", name, only, identities[0])),
		fix: fmt.Sprintf(`add the DNS record: %s CAA 0 issue "%s"`, name, identities[0]),
	}
}

// parseIssue splits "ca.example; a=b; c=d" (RFC 8659 §4.2).
func parseIssue(value string) (domain string, params map[string]string) {
	domain, rest, _ := strings.Cut(value, ";")
	params = make(map[string]string)
	for part := range strings.SplitSeq(rest, ";") {
		if tag, val, ok := strings.Cut(part, "="); ok {
			params[strings.ToLower(strings.TrimSpace(tag))] = strings.TrimSpace(val)
		}
	}
	return strings.ToLower(strings.Trim(strings.TrimSpace(domain), ".")), params
}

// paramsForbid judges the parameters of RFC 8657.
func paramsForbid(params map[string]string, account string) string {
	if list, ok := params["validationmethods"]; ok {
		methods := strings.Split(strings.ReplaceAll(list, " ", ""), ",")
		if !slices.Contains(methods, "http-01") && !slices.Contains(methods, "tls-alpn-01") {
			return "for the challenge " + list + " only, which the relay does not speak"
		}
	}
	if uri, ok := params["accounturi"]; ok && account != "" && uri != account {
		return "for the account " + uri + " only, and the relay's is " + account
	}
	return ""
}

// systemResolver asks what everything on this machine asks.
type systemResolver struct{}

// LookupNetIP asks Go's resolver.
func (systemResolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, network, host)
}

// resolvConf is where the system's name servers stand. Without it nothing is
// known of CAA records, which is no problem: the CA looks for itself.
const resolvConf = "/etc/resolv.conf"

// LookupCAA asks the system's name servers; Go's resolver does not know CAA.
func (systemResolver) LookupCAA(ctx context.Context, name string) ([]CAA, error) {
	conf, err := dns.ClientConfigFromFile(resolvConf)
	if err != nil {
		if _, err := os.Stat(resolvConf); err != nil {
			return nil, nil
		}
		return nil, fmt.Errorf("read %s: %w", resolvConf, err)
	}
	servers := make([]string, len(conf.Servers))
	for i, s := range conf.Servers {
		servers[i] = net.JoinHostPort(s, conf.Port)
	}
	return askCAA(ctx, servers, name)
}

// askCAA asks servers in turn until one gives a clear answer.
func askCAA(ctx context.Context, servers []string, name string) ([]CAA, error) {
	ask := new(dns.Msg)
	ask.SetQuestion(dns.Fqdn(name), dns.TypeCAA)
	ask.SetEdns0(1232, false)
	err := fmt.Errorf("no name server is named in %s", resolvConf)
	for _, server := range servers {
		for _, network := range []string{"udp", "tcp"} {
			client := dns.Client{Net: network, Timeout: 5 * time.Second}
			var reply *dns.Msg
			if reply, _, err = client.ExchangeContext(ctx, ask, server); err != nil {
				if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
					break // it would keep silent by TCP too
				}
				continue
			}
			if reply.Truncated && network == "udp" {
				continue
			}
			if reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError {
				err = fmt.Errorf("the name server %s answers %s", server, dns.RcodeToString[reply.Rcode])
				break
			}
			var records []CAA
			for _, rr := range reply.Answer {
				if c, ok := rr.(*dns.CAA); ok {
					records = append(records, CAA{Critical: c.Flag&0x80 != 0, Tag: c.Tag, Value: c.Value})
				}
			}
			return records, nil
		}
	}
	return nil, err
}
