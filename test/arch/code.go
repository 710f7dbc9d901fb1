package arch

import (
	"fmt"
	"go/ast"
	"maps"
	"path"
	"slices"
	"strings"
)

const maxLines = 600

// CheckSize returns the files that are too long.
func CheckSize(files []*File) (faults []string) {
	for _, f := range files {
		if f.Lines > maxLines {
			faults = append(faults, fmt.Sprintf("%s has %d lines: a file is one idea, and %d is the wall; look for the second idea", f.Name, f.Lines, maxLines))
		}
	}
	return faults
}

// CheckComments returns the packages without a package comment, and those that
// have it in two files, where one of them will be out of date.
func CheckComments(files []*File) (faults []string) {
	where := make(map[string][]string)
	for _, f := range files {
		if _, ok := where[f.Dir]; !ok {
			where[f.Dir] = nil
		}
		if f.AST.Doc != nil {
			where[f.Dir] = append(where[f.Dir], path.Base(f.Name))
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(where)) {
		switch in := where[dir]; {
		case len(in) == 0:
			faults = append(faults, fmt.Sprintf("%s has no package comment: it says what the package is, for whom, and how to use it", dir))
		case len(in) > 1:
			faults = append(faults, fmt.Sprintf("%s has package comments in %s: keep one, or they will disagree", dir, strings.Join(in, ", ")))
		}
	}
	return faults
}

// topLevel are the directories that may hold Go code (DESIGN §2).
var topLevel = []string{"agent", "relay", "protocol", "mqttbridge", "cmd", "deploy", "test"}

// vagueNames say nothing about the duty of a package.
var vagueNames = []string{"util", "utils", "common", "pkg", "core", "helpers", "misc", "shared", "lib"}

// CheckPlaces returns packages outside the layout, and those with a name that
// says nothing.
func CheckPlaces(files []*File) (faults []string) {
	seen := make(map[string]bool)
	for _, f := range files {
		if seen[f.Dir] {
			continue
		}
		seen[f.Dir] = true
		parts := strings.Split(f.Dir, "/")
		if !slices.Contains(topLevel, parts[0]) {
			faults = append(faults, fmt.Sprintf("%s holds Go code: the top level is fixed, everything lives under %s", f.Dir, strings.Join(topLevel, ", ")))
		}
		for _, p := range parts {
			if slices.Contains(vagueNames, p) {
				faults = append(faults, fmt.Sprintf("%s: %q is no duty; a package is one duty with a noun's name", f.Dir, p))
			}
		}
	}
	return faults
}

// A callRule forbids a name of a package of the standard library.
type callRule struct {
	pkg, name string
	reason    string
	allowed   func(f *File, stack []ast.Node) bool
}

var callRules = []callRule{
	{"time", "Sleep", "tests use virtual time (testing/synctest) or wait for a channel; a real sleep is slow, and too short on a busy machine", sleepAllowed},
	{"os", "Exit", "os.Exit skips every defer: return an error, main exits", exitAllowed},
	{"log", "Fatal", "log.Fatal is os.Exit: return an error, main exits", exitAllowed},
	{"log", "Fatalf", "log.Fatalf is os.Exit: return an error, main exits", exitAllowed},
	{"log", "Fatalln", "log.Fatalln is os.Exit: return an error, main exits", exitAllowed},
}

// exitAllowed: main, and tests whose child process has to die.
func exitAllowed(f *File, _ []ast.Node) bool {
	return f.Test || f.Name == "cmd/sallyport/main.go"
}

// sleepAllowed: in code that is no test (DESIGN asks for more than a grep
// there), in test/real and test/load, and where time is virtual. That is a
// function literal of a function that calls synctest.Test (the bubble itself,
// or a case of its table); a function that calls synctest.Wait, which panics
// outside a bubble; and a helper that says "virtual" or "bubble" in its
// comment or on the line.
func sleepAllowed(f *File, stack []ast.Node) bool {
	if !f.Test || belowAny(f.Dir, "test/real", "test/load") {
		return true
	}
	var decl *ast.FuncDecl
	literal := false
	for _, n := range stack {
		switch n := n.(type) {
		case *ast.FuncDecl:
			decl = n
		case *ast.FuncLit:
			literal = true
		}
	}
	if decl == nil {
		return false
	}
	return literal && uses(decl, "synctest", "Test") || uses(decl, "synctest", "Wait") ||
		saysVirtual(decl.Doc) || saysVirtual(f.commentAt(stack[len(stack)-1]))
}

func saysVirtual(c *ast.CommentGroup) bool {
	text := strings.ToLower(c.Text())
	return strings.Contains(text, "virtual") || strings.Contains(text, "bubble")
}

// commentAt returns the comment that begins on the line of n.
func (f *File) commentAt(n ast.Node) *ast.CommentGroup {
	for _, c := range f.AST.Comments {
		if f.fset.Position(c.Pos()).Line == f.fset.Position(n.Pos()).Line {
			return c
		}
	}
	return nil
}

func uses(root ast.Node, pkg, name string) (found bool) {
	ast.Inspect(root, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == name {
			x, ok := sel.X.(*ast.Ident)
			found = found || ok && x.Name == pkg
		}
		return !found
	})
	return found
}

// CheckCalls returns uses of names that a rule forbids.
func CheckCalls(files []*File) (faults []string) {
	for _, f := range files {
		local := make(map[string]string) // name in this file → import path
		for i, imp := range f.Imports {
			name := path.Base(imp.Path)
			if spec := f.AST.Imports[i]; spec.Name != nil {
				name = spec.Name.Name
			}
			local[name] = imp.Path
		}
		walk(f.AST, func(n ast.Node, stack []ast.Node) {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return
			}
			x, ok := sel.X.(*ast.Ident)
			if !ok {
				return
			}
			for _, r := range callRules {
				if local[x.Name] == r.pkg && sel.Sel.Name == r.name && !r.allowed(f, stack) {
					faults = append(faults, fmt.Sprintf("%s uses %s.%s: %s", f.At(n), r.pkg, r.name, r.reason))
				}
			}
		})
	}
	return faults
}

// fieldRules forbid keys of composite literals and assignments to fields,
// in code that is no test.
var fieldRules = map[string]string{
	"VerifyPeerCertificate": "it does not run on TLS resumption, so that a revoked device comes back: use VerifyConnection (DESIGN §6.6)",
	"Director":              "ReverseProxy.Director lets a visitor's Connection header remove headers that we set: use Rewrite (DESIGN §6.10)",
}

// CheckFields returns uses of fields that a rule forbids, and init functions.
func CheckFields(files []*File) (faults []string) {
	for _, f := range files {
		if f.Test {
			continue
		}
		walk(f.AST, func(n ast.Node, _ []ast.Node) {
			var names []ast.Expr
			switch n := n.(type) {
			case *ast.KeyValueExpr:
				names = []ast.Expr{n.Key}
			case *ast.AssignStmt:
				for _, lhs := range n.Lhs {
					if sel, ok := lhs.(*ast.SelectorExpr); ok {
						names = append(names, sel.Sel)
					}
				}
			case *ast.FuncDecl:
				if n.Recv == nil && n.Name.Name == "init" {
					faults = append(faults, fmt.Sprintf("%s has an init function: nothing happens by being imported; let New or run do it", f.At(n)))
				}
			}
			for _, e := range names {
				if id, ok := e.(*ast.Ident); ok && fieldRules[id.Name] != "" {
					faults = append(faults, fmt.Sprintf("%s sets %s: %s", f.At(n), id.Name, fieldRules[id.Name]))
				}
			}
		})
	}
	return faults
}

// walk calls visit for every node, with the nodes around it, outermost first.
func walk(root ast.Node, visit func(n ast.Node, stack []ast.Node)) {
	var stack []ast.Node
	ast.Inspect(root, func(n ast.Node) bool {
		if n == nil {
			stack = stack[:len(stack)-1]
			return true
		}
		visit(n, stack)
		stack = append(stack, n)
		return true
	})
}
