package authdns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// A Record is one record of the configuration.
type Record struct {
	// Name is relative to the zone ("mail"), absolute ("mail.example.org"), or "@"
	// for the zone itself. A "*" in front stands for names that do not exist.
	Name string
	// Type is A, AAAA, CNAME, TXT, MX, SRV, CAA or NS.
	Type string
	// Value is as in a zone file: "10 mail.example.org" for MX, `0 issue "ca.example"`
	// for CAA, the bare text for TXT. A name in it is absolute if it has a dot, else
	// it is relative to the zone.
	Value string
	// TTL is how long resolvers may keep it. 0: 1 h. At most 7 days.
	TTL time.Duration
}

const maxTTL = 7 * 24 * time.Hour

// static holds the records of the configuration. It does not change.
type static struct {
	domain string
	names  map[string][]dns.RR
	tree   tree
	cuts   []string // names that were handed to other servers
	wild   bool     // there is a wildcard
}

func newStatic(domain string, ns []string, records []Record) (*static, error) {
	z := &static{domain: domain, names: map[string][]dns.RR{}, tree: tree{}}
	for _, name := range ns {
		if inZone(name, domain) {
			z.tree.add(name, 1)
		}
	}
	var faults []error
	for i, r := range records {
		if err := z.add(r); err != nil {
			faults = append(faults, fmt.Errorf("DNS record %d (%s %s): %w", i+1, r.Name, r.Type, err))
		}
	}
	for name, rrs := range z.names {
		if err := z.consistent(name, rrs, ns); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return z, nil
}

func (z *static) add(r Record) error {
	name, err := z.owner(r.Name)
	if err != nil {
		return err
	}
	if r.TTL < 0 || r.TTL > maxTTL {
		return fmt.Errorf("its TTL %v is not between 0 and 7 days", r.TTL)
	}
	ttl := uint32(zoneTTL)
	if r.TTL > 0 {
		ttl = seconds(r.TTL)
	}
	rrtype := strings.ToUpper(r.Type)
	rr, err := z.parse(rrtype, r.Value)
	if err != nil {
		return err
	}
	*rr.Header() = header(name+".", dns.StringToType[rrtype], ttl)
	buf := make([]byte, dns.MaxMsgSize)
	if _, err := dns.PackRR(rr, buf, 0, nil, false); err != nil {
		return fmt.Errorf("its value does not fit a record: %w", err)
	}
	for _, other := range z.names[name] {
		if dns.IsDuplicate(rr, other) {
			return errors.New("it is there twice")
		}
	}
	if len(z.names[name]) == 0 {
		z.tree.add(name, 1)
	}
	z.names[name] = append(z.names[name], rr)
	z.wild = z.wild || strings.HasPrefix(name, "*.")
	if rrtype == "NS" && !slices.Contains(z.cuts, name) {
		z.cuts = append(z.cuts, name)
	}
	return nil
}

// consistent refuses what no name can have at once (RFC 1034 §3.6.2, §4.2.1).
func (z *static) consistent(name string, rrs []dns.RR, ns []string) error {
	for _, rr := range rrs {
		switch rr.Header().Rrtype {
		case dns.TypeCNAME:
			if len(rrs) > 1 || name == z.domain || slices.Contains(ns, name) {
				return fmt.Errorf("DNS record %s CNAME: a name with an alias can have nothing else, and the zone and its name servers have records by themselves", name)
			}
		case dns.TypeNS:
			if name == z.domain || strings.HasPrefix(name, "*.") {
				return fmt.Errorf("DNS record %s NS: only a name below the zone can be handed to other servers; the zone's own are set by their own option", name)
			}
		}
	}
	return nil
}

// owner is the canonical name of a record.
func (z *static) owner(name string) (string, error) {
	full, err := z.absolute(name, func(n string) bool { return !inZone(n, z.domain) })
	if err != nil {
		return "", err
	}
	if !inZone(full, z.domain) {
		return "", fmt.Errorf("it is not in the zone %s", z.domain)
	}
	if strings.Contains(strings.TrimPrefix(full, "*."), "*") {
		return "", errors.New(`"*" stands for a whole label, the first`)
	}
	return full, nil
}

// absolute makes a full name; relative judges those without a dot at the end.
func (z *static) absolute(name string, relative func(string) bool) (string, error) {
	full, dot := strings.CutSuffix(strings.ToLower(name), ".")
	switch {
	case full == "@" && !dot:
		return z.domain, nil
	case full == "":
		return "", errors.New("a name is empty")
	case strings.Trim(full, "abcdefghijklmnopqrstuvwxyz0123456789-_.*") != "":
		return "", fmt.Errorf("the name %q has characters that DNS names of hosts and services lack", name)
	case !dot && relative(full):
		full += "." + z.domain
	}
	if _, ok := dns.IsDomainName(full); !ok || len(full) > 253 {
		return "", fmt.Errorf("the name %q is too long, or has an empty or overlong label", name)
	}
	return full, nil
}

// target is a name in a value, with its final dot.
func (z *static) target(name string) (string, error) {
	full, err := z.absolute(name, func(n string) bool { return !strings.Contains(n, ".") })
	if err == nil && strings.Contains(full, "*") {
		err = fmt.Errorf("the name %q has a wildcard, which points nowhere", name)
	}
	return full + ".", err
}

// parse reads a value.
func (z *static) parse(rrtype, value string) (dns.RR, error) {
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, errors.New("its value has a line break or another control character")
	}
	fields := strings.Fields(value)
	switch want := map[string]int{"A": 1, "AAAA": 1, "CNAME": 1, "NS": 1, "MX": 2, "SRV": 4}[rrtype]; {
	case want == 0 && rrtype != "TXT" && rrtype != "CAA":
		return nil, fmt.Errorf("its type %q is not one of A, AAAA, CNAME, TXT, MX, SRV, CAA, NS", rrtype)
	case want > 0 && len(fields) != want:
		return nil, fmt.Errorf("its value %q has %d parts; a record of this type has %d", value, len(fields), want)
	case value == "":
		return nil, errors.New("its value is empty")
	}
	switch rrtype {
	case "A", "AAAA":
		addr, err := netip.ParseAddr(value)
		if err != nil || addr.Is4() != (rrtype == "A") || addr.Zone() != "" || addr.Is4In6() {
			return nil, fmt.Errorf("its value %q is no address of this type", value)
		}
		return addressRecord("", 0, addr), nil
	case "TXT":
		return textRecord(value)
	case "CAA":
		return caaRecord(value)
	}
	name, err := z.target(fields[len(fields)-1])
	if err != nil {
		return nil, err
	}
	numbers := make([]uint16, len(fields)-1)
	for i, f := range fields[:len(fields)-1] {
		n, err := strconv.ParseUint(f, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q in its value is not a number up to 65535", f)
		}
		numbers[i] = uint16(n)
	}
	switch rrtype {
	case "CNAME":
		return &dns.CNAME{Target: name}, nil
	case "NS":
		return &dns.NS{Ns: name}, nil
	case "MX":
		return &dns.MX{Preference: numbers[0], Mx: name}, nil
	default:
		return &dns.SRV{Priority: numbers[0], Weight: numbers[1], Port: numbers[2], Target: name}, nil
	}
}

// textRecord reads a bare text, or strings in quotes as a zone file has them.
func textRecord(value string) (dns.RR, error) {
	if !strings.HasPrefix(value, `"`) {
		return &dns.TXT{Txt: txtStrings(value)}, nil
	}
	rr, err := dns.NewRR(". TXT " + value)
	if err != nil || rr == nil {
		return nil, fmt.Errorf("its value %s is not a row of strings in quotes", value)
	}
	return rr, nil
}

func caaRecord(value string) (dns.RR, error) {
	rr, err := dns.NewRR(". CAA " + value)
	if err != nil || rr == nil {
		return nil, fmt.Errorf(`its value %s is not like: 0 issue "letsencrypt.org"`, value)
	}
	return rr, nil
}

// at returns the records of a name. They are shared: copy before writing.
func (z *static) at(name string) []dns.RR { return z.names[name] }

// below reports whether there are names below a name.
func (z *static) below(name string) bool { return z.tree[name] > 0 }

// cut returns the name at or above a name that was handed to other servers.
func (z *static) cut(name string) (found string, ok bool) {
	for _, c := range z.cuts {
		// By labels: one with a dot inside ends like a cut too.
		if dns.IsSubDomain(c, name) && (!ok || len(c) < len(found)) {
			found, ok = c, true
		}
	}
	return found, ok
}

// A tree counts the names below each name.
type tree map[string]int

// add counts a name n times, or takes it away with n < 0.
func (t tree) add(name string, n int) {
	for p := parentOf(name); p != ""; p = parentOf(p) {
		if t[p] += n; t[p] <= 0 {
			delete(t, p)
		}
	}
}

// CheckRecord says what is wrong with one record of a zone, in words for people.
func CheckRecord(r Record, domain string) error {
	ns := []string{"ns1." + domain}
	z, err := newStatic(domain, ns, nil)
	if err != nil {
		return err
	}
	if err := z.add(r); err != nil {
		return err
	}
	for name, rrs := range z.names {
		if err := z.consistent(name, rrs, ns); err != nil {
			return err
		}
	}
	return nil
}
