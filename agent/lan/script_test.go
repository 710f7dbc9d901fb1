package lan

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestScript runs lan.js against browsers that testdata/lan_test.mjs makes up.
func TestScript(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("node is not there (apt install nodejs)")
		}
		t.Skip("node is not there")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, node, "testdata/lan_test.mjs", "lan.js").CombinedOutput(); err != nil {
		t.Errorf("node: %v\n%s", err, out)
	}
}
