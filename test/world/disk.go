package world

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/sallyport/sallyport/relay/store"
)

// snapshot copies a data directory as it is now: what a process that was
// killed does to its own directory later must not be seen.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "data")
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil || d.IsDir() {
			return joinErr(err, os.MkdirAll(filepath.Join(to, rel), 0o700))
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, info.Mode().Perm())
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func joinErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// A disk is the store as one relay process sees it. After the process was
// killed nothing is written any more.
type disk struct {
	store.KV
	gone atomic.Bool
}

func (d *disk) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	if d.gone.Load() {
		return 0, errGone
	}
	return d.KV.Create(ctx, key, value)
}

func (d *disk) Update(ctx context.Context, key string, value []byte, rev uint64) (uint64, error) {
	if d.gone.Load() {
		return 0, errGone
	}
	return d.KV.Update(ctx, key, value, rev)
}

func (d *disk) Delete(ctx context.Context, key string, rev uint64) error {
	if d.gone.Load() {
		return errGone
	}
	return d.KV.Delete(ctx, key, rev)
}
