package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// WriteFile writes a file so that after a crash either the old or the new
// content is there, whole: a temporary file in the same directory, fsync,
// rename, fsync of the directory. The permissions are exactly perm.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // 0600 from the start
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	err = fill(f, data, perm)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(dir)
}

func fill(f *os.File, data []byte, perm os.FileMode) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	if runtime.GOOS == "windows" { // directories cannot be flushed there
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("flush directory %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("flush directory %s: %w", dir, err)
	}
	return nil
}

// markerName is a file in every directory that SecureDir owns. Without it a
// mistyped path ("--data /etc" as root) would take the machine's directory
// away from everybody else.
const markerName = ".sallyport"

const markerText = "This directory belongs to sallyport, which keeps it private (mode 0700).\n"

// SecureDir makes sure that path is a directory that only its owner can enter
// and that files can be made in it. It creates what is missing, and repairs
// the permissions of a directory that is empty or was secured before. Of any
// other directory that others can enter it refuses to take hold.
func SecureDir(path string) error {
	info, err := os.Stat(path) // follows links: systemd's state directories may be one
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return fmt.Errorf("cannot create the directory %s: %w\n%s", path, err, dirHint)
		}
		info, err = os.Stat(path)
	}
	if err != nil {
		return fmt.Errorf("cannot use the directory %s: %w\n%s", path, err, dirHint)
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is a file, a directory is needed\nMove it away or name another place with --data.", path)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o700 {
		if err := tighten(path, info); err != nil {
			return err
		}
	}
	return tryWrite(path)
}

const dirHint = "Make a directory that this user can write to, or name another place with --data."

func tighten(path string, info fs.FileInfo) error {
	ours, err := oursOrEmpty(path)
	if err != nil {
		return fmt.Errorf("cannot look into the directory %s: %w\n%s", path, err, dirHint)
	}
	if !ours || info.Mode()&fs.ModeSticky != 0 {
		// Another first start may have closed and filled it since info.
		if now, err := os.Stat(path); err == nil && now.Mode().Perm()&0o077 == 0 {
			return nil
		}
		return fmt.Errorf("%s is open to other users (mode %#o) and holds files that are not sallyport's\n"+
			"Name a directory of its own with --data. If this one is right: chmod 700 %s", path, info.Mode().Perm(), path)
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return fmt.Errorf("%s is open to other users and cannot be closed: %w\nRun as its owner, or: sudo chmod 700 %s", path, err, path)
	}
	return nil
}

func oursOrEmpty(path string) (bool, error) {
	if _, err := os.Lstat(filepath.Join(path, markerName)); err == nil {
		return true, nil
	}
	entries, err := os.ReadDir(path)
	return len(entries) == 0, err
}

// tryWrite finds out now, and not at the first write that matters, whether
// files can be made here. The file that it makes is the marker.
func tryWrite(path string) error {
	if err := WriteFile(filepath.Join(path, markerName), []byte(markerText), 0o600); err != nil {
		return fmt.Errorf("the directory %s is not writable: %w\n"+
			"Give it to the user that runs sallyport (chown), free some disk space, or name another place with --data.", path, err)
	}
	return nil
}
