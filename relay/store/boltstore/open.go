package boltstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/sallyport/sallyport/relay/store"
)

// lockTimeout is how long Open waits for another process to let go: long
// enough for one that is just ending.
const lockTimeout = time.Second

// Open opens the file, or makes it (0600) in a directory that exists. It reads
// all of it once, so that damage shows now and not at a visitor. An empty file
// counts as damaged: to start anew there, as bbolt would, is to forget whose
// every name is.
func Open(path string) (store.KV, error) {
	db, err := open(path)
	if err != nil {
		return nil, openError(path, err)
	}
	return &Store{db: db}, nil
}

func open(path string) (*bbolt.DB, error) {
	fresh := false
	var file *os.File
	db, err := guard(func() (*bbolt.DB, error) {
		return bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout: lockTimeout,
			OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
				before, err := os.Stat(name)
				if fresh = errors.Is(err, fs.ErrNotExist); err == nil && before.Size() == 0 && before.Mode().IsRegular() {
					return nil, errEmpty
				}
				f, err := os.OpenFile(name, flag, perm)
				if err != nil {
					return nil, err
				}
				info, err := f.Stat()
				if err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
					err = f.Chmod(0o600)
				}
				if err != nil {
					f.Close()
					return nil, err
				}
				file = f
				return f, nil
			},
		})
	})
	if err != nil {
		if file != nil {
			file.Close() // and with it the lock, which a panic leaves behind
		}
		return nil, err
	}
	_, err = guard(func() (*bbolt.DB, error) { return db, prepare(db) })
	if err == nil && fresh && runtime.GOOS != "windows" {
		err = syncDir(filepath.Dir(path)) // bbolt flushes the file, not its name
	}
	if err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

// prepare makes the bucket when it is missing, and reads every record.
func prepare(db *bbolt.DB) error {
	found := false
	err := db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketName)
		if found = b != nil; !found {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			if _, _, err := decode(v); err != nil {
				return fmt.Errorf("key %q: %w", k, err)
			}
			return nil
		})
	})
	if err != nil || found {
		return err
	}
	return db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucket(bucketName)
		return err
	})
}

var errEmpty = errors.New("the file is empty")

// errDamaged stands for what bbolt answers to a damaged file with a panic or a
// memory fault.
var errDamaged = errors.New("the file is damaged")

// guard turns these into an error, in this goroutine and for this call only.
func guard(f func() (*bbolt.DB, error)) (db *bbolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errDamaged, r)
		}
	}()
	return f()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// openError says what is wrong with the file and what to do.
func openError(path string, err error) error {
	dir := filepath.Dir(path)
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("another process uses %s: %w\n"+
			"Stop the other sallyport, or give this one a directory of its own with --data.", path, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("cannot open %s: the directory %s does not exist: %w\n"+
			"Make it (mkdir -m 700 -p %s), or name another place with --data.", path, dir, err, dir)
	case errors.Is(err, fs.ErrPermission), isReadOnly(err):
		return fmt.Errorf("cannot open %s for writing: %w\n"+
			"Give %s to the user that runs sallyport (chown -R), or name another place with --data.", path, err, dir)
	case isFull(err):
		return fmt.Errorf("cannot open %s: %w\nFree some disk space, then try again.", path, err)
	case errors.Is(err, errEmpty):
		return fmt.Errorf("cannot use %s: %w\n"+
			"It was cut off, or the very first start here was. Restore it from a backup; to start as a new relay, without agents and names, remove it (rm %s).", path, err, path)
	case errors.Is(err, errDamaged), errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return fmt.Errorf("cannot read %s: %w\n"+
			"It is damaged or not sallyport's. Restore it from a backup; nothing was changed.", path, err)
	}
	return fmt.Errorf("cannot open %s: %w", path, err)
}
