package authdns

import (
	"fmt"
	"strings"

	"github.com/sallyport/sallyport/protocol/names"
)

// methods are the ways by which an agent proves its names (RFC 8657 §4). Not
// http-01: whoever answers for the relay's addresses on port 80 would be enough.
const methods = "dns-01,tls-alpn-01"

// caa are the records of a host that let the agent's account have certificates,
// and nobody else: not even the relay's own. Names below the host may belong to
// others: wild says that they are the agent's.
func (home *Home) caa(wild bool) []CAA {
	list := home.issue("issue")
	switch {
	case len(list) == 0:
		return nil
	case wild:
		return append(list, home.issue("issuewild")...)
	}
	return append(list, CAA{Tag: "issuewild", Value: ";"})
}

func (home *Home) issue(tag string) []CAA {
	if home.Account == "" {
		return nil
	}
	var list []CAA
	for _, issuer := range home.Issuers {
		list = append(list, CAA{Tag: tag, Value: fmt.Sprintf("%s; accounturi=%s; validationmethods=%s", issuer, home.Account, methods)})
	}
	return list
}

// WildCAA returns the records about *.NAME, which CAs look for at NAME, when that
// wildcard is some agent's and NAME is not the same agent's.
func (h *Homes) WildCAA(name string) []CAA {
	h.mu.RLock()
	defer h.mu.RUnlock()
	agent, ok := h.hosts["*."+name]
	if !ok {
		return nil
	}
	if owner, ok := h.hosts[name]; ok && owner == agent {
		return nil
	}
	home := h.homes[agent]
	return home.issue("issuewild")
}

// caaIssuers checks what an agent wants in its CAA records: nothing in it may
// end a parameter and begin another (RFC 8657 §3: visible ASCII without ";").
func caaIssuers(account string, issuers []string) ([]string, error) {
	strange := func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ';' || r == '"' || r == '\\' }
	if len(account) > 255 || strings.ContainsFunc(account, strange) || !strings.HasPrefix(account, "https://") {
		return nil, fmt.Errorf("the ACME account %q is not an https URI of at most 255 characters, so there are no CAA records", account)
	}
	if len(issuers) == 0 || len(issuers) > maxIssuers {
		return nil, fmt.Errorf("%d names of the CA for CAA records: 1 to %d are needed, so there are none", len(issuers), maxIssuers)
	}
	var clean []string
	for _, issuer := range issuers {
		name, err := names.Canonical(issuer)
		if err != nil {
			return nil, fmt.Errorf("name of the CA for CAA records: %w", err)
		}
		clean = append(clean, name)
	}
	return clean, nil
}
