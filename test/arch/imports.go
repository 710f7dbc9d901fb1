package arch

import (
	"fmt"
	"slices"
	"strings"
)

// below reports whether dir is root or lies below it.
func below(dir, root string) bool { return dir == root || strings.HasPrefix(dir, root+"/") }

func belowAny(dir string, roots ...string) bool {
	return slices.ContainsFunc(roots, func(r string) bool { return below(dir, r) })
}

// leaf returns "relay/edge" for relay/edge and all below it, "" for relay
// itself and for what is not in tree.
func leaf(dir, tree string) string {
	rest, ok := strings.CutPrefix(dir, tree+"/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	return tree + "/" + name
}

// An importRule judges one import of one file. Forbidden returns the reason
// why from must not import it, or nothing.
type importRule struct {
	name      string
	forbidden func(from *File, imp Import) (reason string)
}

var importRules = []importRule{
	{"protocol needs little", func(from *File, imp Import) string {
		if from.Test || !below(from.Dir, "protocol") || belowAny(from.Dir, "protocol/tunnel/tunnelquic", "protocol/tunnel/tunneltcp") {
			return ""
		}
		if imp.Own != "" || !strings.Contains(strings.Split(imp.Path, "/")[0], ".") || strings.HasPrefix(imp.Path, "golang.org/x/") {
			return ""
		}
		return "protocol uses the standard library and golang.org/x only, so that whoever audits the wire and the door reads no third party's code; only tunnelquic and tunneltcp may"
	}},
	{"protocol is the ground", func(from *File, imp Import) string {
		if !below(from.Dir, "protocol") || imp.Own == "" || below(imp.Own, "protocol") {
			return ""
		}
		return "protocol is what both ends share and knows neither of them"
	}},
	{"agent and relay are strangers", func(from *File, imp Import) string {
		if below(from.Dir, "agent") && below(imp.Own, "relay") || below(from.Dir, "relay") && below(imp.Own, "agent") {
			return "agent and relay meet on the wire only; what both need belongs to protocol, a test of both to test/"
		}
		return ""
	}},
	{"mqttbridge is handed its connections", func(from *File, imp Import) string {
		if below(from.Dir, "mqttbridge") && belowAny(imp.Own, "agent", "relay") {
			return "mqttbridge is handed its connections, its ledger and its queue; it declares what it needs"
		}
		return ""
	}},
	{"leaves do not know each other", leavesApart},
	{"leaves do not know their root", func(from *File, imp Import) string {
		for _, tree := range []string{"agent", "relay"} {
			if leaf(from.Dir, tree) != "" && imp.Own == tree {
				return "only the root of " + tree + " sees its leaves, not they it"
			}
		}
		return ""
	}},
	{"nobody needs the programs or the tests", func(from *File, imp Import) string {
		if below(imp.Own, "cmd") && !below(from.Dir, "cmd") {
			return "cmd parses and wires; what somebody else could use belongs to another package"
		}
		if below(imp.Own, "test") && !below(from.Dir, "test") {
			return "test/ stands above everything; a helper that a package needs belongs beside it (like tunneltest)"
		}
		return ""
	}},
	{"tests stay in tests", func(from *File, imp Import) string {
		helper := strings.HasSuffix(from.Dir, "test") || below(from.Dir, "test")
		if from.Test || helper {
			return ""
		}
		if imp.Path == "testing" || strings.HasPrefix(imp.Path, "testing/") || imp.Own != "" && strings.HasSuffix(imp.Own, "test") {
			return "the release binary carries no test code (and no flags of package testing)"
		}
		return ""
	}},
}

// leavesAllowed are the exceptions that DESIGN §2 names.
var leavesAllowed = []struct{ from, to, reason string }{
	{"relay", "relay/store", "every leaf may keep state in the one store"},
	{"agent/lan", "agent/service", "the LAN serves the same table of services"},
}

func leavesApart(from *File, imp Import) string {
	for _, tree := range []string{"agent", "relay"} {
		a, b := leaf(from.Dir, tree), leaf(imp.Own, tree)
		if a == "" || b == "" || a == b {
			continue
		}
		allowed := slices.ContainsFunc(leavesAllowed, func(e struct{ from, to, reason string }) bool {
			return below(a, e.from) && b == e.to
		})
		if !allowed {
			return fmt.Sprintf("leaves of %s never import each other: %s asks for a func field or a 1–2-method interface that it declares itself, and %s/*.go fills it", tree, a, tree)
		}
	}
	return ""
}

// CheckImports returns every import that a rule forbids.
func CheckImports(files []*File) (faults []string) {
	for _, f := range files {
		for _, imp := range f.Imports {
			for _, r := range importRules {
				if reason := r.forbidden(f, imp); reason != "" {
					faults = append(faults, fmt.Sprintf("%s:%d imports %s: %s (%s)", f.Name, imp.Line, imp.Path, reason, r.name))
				}
			}
		}
	}
	return faults
}
