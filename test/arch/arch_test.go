package arch_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/test/arch"
)

func TestRepository(t *testing.T) {
	root := filepath.Join("..", "..")
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil || !strings.HasPrefix(string(mod), "module "+arch.Module+"\n") {
		t.Fatalf("%s is not the root of %s: %v", root, arch.Module, err)
	}
	files, err := arch.Tree(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found %d Go files: the rules would hold for nothing", len(files))
	}
	for _, rule := range []struct {
		name  string
		check func([]*arch.File) []string
	}{
		{"imports", arch.CheckImports},
		{"size", arch.CheckSize},
		{"comments", arch.CheckComments},
		{"places", arch.CheckPlaces},
		{"calls", arch.CheckCalls},
		{"fields", arch.CheckFields},
	} {
		t.Run(rule.name, func(t *testing.T) {
			for _, fault := range rule.check(files) {
				t.Error(fault)
			}
		})
	}
}
