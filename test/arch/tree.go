// Package arch holds the rules of this repository as tests: who may import
// whom, how long a file may be, what code must not call. Each rule carries its
// reason, and the failure says it. Run it with
//
//	go test ./test/arch
//
// The rules are the tables in imports.go and code.go; a new one is a line there.
package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// Module is the module's path.
const Module = "github.com/sallyport/sallyport"

// A File is one parsed Go file.
type File struct {
	Name    string // path from the module's root, with slashes
	Dir     string // directory of it
	Test    bool
	Lines   int
	Imports []Import
	AST     *ast.File
	fset    *token.FileSet
}

// An Import is one import line. Own is the path from the module's root for our
// own packages, otherwise empty.
type Import struct {
	Path, Own string
	Line      int
}

// At returns file:line for a message.
func (f *File) At(n ast.Node) string {
	return fmt.Sprintf("%s:%d", f.Name, f.fset.Position(n.Pos()).Line)
}

// Parse reads one file; name decides its package's place and whether it is a test.
func Parse(name string, src []byte) (*File, error) {
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	f := &File{
		Name: name, Dir: path.Dir(name), Test: strings.HasSuffix(name, "_test.go"),
		Lines: bytes.Count(src, []byte("\n")), AST: tree, fset: fset,
	}
	for _, spec := range tree.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, err
		}
		own, _ := strings.CutPrefix(p, Module+"/")
		if own == p {
			own = ""
		}
		f.Imports = append(f.Imports, Import{Path: p, Own: own, Line: fset.Position(spec.Pos()).Line})
	}
	return f, nil
}

// Tree parses every Go file below root, as the go command would see them:
// hidden directories and testdata are left out.
func Tree(root string) ([]*File, error) {
	var files []*File
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		switch hidden := p != root && (base[0] == '.' || base[0] == '_'); {
		case d.IsDir() && (hidden || base == "testdata" || base == "dist" || base == "node_modules"):
			return filepath.SkipDir
		case d.IsDir() || hidden || !strings.HasSuffix(base, ".go"):
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		f, err := Parse(filepath.ToSlash(rel), src)
		if err != nil {
			return err
		}
		files = append(files, f)
		return nil
	})
	return files, err
}
