package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/sallyport/sallyport/protocol/pki"
)

// ErrLocked is the error of Open when another agent runs on the directory.
var ErrLocked = errors.New("another agent runs on this directory")

const (
	keyFile      = "agent.key"
	identityFile = "identity.json"
	servicesFile = "services.json"
	memoryFile   = "memory.json"
	lockFile     = "lock"
)

// maxFile bounds what is read into memory of any file here.
const maxFile = 1 << 20

// A Dir is an agent's data directory, held by one process. Its methods are
// safe for concurrent use.
type Dir struct {
	path string
	log  *slog.Logger
	lock *os.File

	mu     sync.Mutex // guards memory and orders its writes
	memory memory
}

// Open makes the directory when it is missing, checks that it can be written,
// and locks it until Close. A nil logger discards.
func Open(path string, logger *slog.Logger) (*Dir, error) {
	if path == "" {
		return nil, errors.New("no data directory is named\nName one with --data.")
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if err := pki.SecureDir(path); err != nil {
		return nil, err
	}
	lock, err := lockFileAt(filepath.Join(path, lockFile))
	if err != nil {
		if errors.Is(err, ErrLocked) {
			return nil, fmt.Errorf("%s: %w\nStop it first, or give this one a directory of its own with --data.", path, err)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	d := &Dir{path: path, log: logger, lock: lock}
	d.memory = d.loadMemory()
	return d, nil
}

// Close releases the lock. A second call does nothing.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lock == nil {
		return nil
	}
	err := d.lock.Close()
	d.lock = nil
	return err
}

// Path returns the directory's path.
func (d *Dir) Path() string { return d.path }

func (d *Dir) file(name string) string { return filepath.Join(d.path, name) }

// read returns a file's content; a missing file is fs.ErrNotExist.
func (d *Dir) read(name string) ([]byte, error) {
	f, err := os.Open(d.file(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", d.file(name), maxFile)
	}
	data := make([]byte, info.Size())
	n, err := f.ReadAt(data, 0)
	if n == len(data) {
		err = nil
	}
	return data[:n], err
}

func (d *Dir) write(name string, data []byte) error {
	if err := pki.WriteFile(d.file(name), data, 0o600); err != nil {
		return fmt.Errorf("%w\nFree some disk space, or make the directory writable for the user that runs the agent.", err)
	}
	return nil
}

// loadJSON reads name into v. It reports whether the file exists.
func (d *Dir) loadJSON(name string, v any) (bool, error) {
	data, err := d.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(v); err != nil {
		return true, fmt.Errorf("%s is damaged: %w", d.file(name), err)
	}
	if dec.More() {
		return true, fmt.Errorf("%s is damaged: there is more in it than one JSON value", d.file(name))
	}
	return true, nil
}

func (d *Dir) saveJSON(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return d.write(name, append(data, '\n'))
}

// LoadServices decodes the exposed services into v, a pointer to a slice whose
// element type is the caller's. It leaves v alone when there are none.
func (d *Dir) LoadServices(v any) error {
	if _, err := d.loadJSON(servicesFile, v); err != nil {
		return fmt.Errorf("%w\nRepair it, or remove it and expose the services again with: sallyport agent expose NAME TARGET", err)
	}
	return nil
}

// SaveServices replaces the exposed services.
func (d *Dir) SaveServices(v any) error { return d.saveJSON(servicesFile, v) }
