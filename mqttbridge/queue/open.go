package queue

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// lockTimeout is how long Open waits for another process to let go: long
// enough for one that is just ending.
const lockTimeout = time.Second

// Open opens the file, or makes it (0600) in a directory that exists, and
// starts the goroutine that writes to it; Close ends that. All of the file is
// read once, so that damage shows now; a damaged or empty one is refused and
// left as it is. Only one process at a time has it open.
func Open(path string, o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		path: path, opts: o, clock: newClock(o.Now),
		commitTx: (*bbolt.Tx).Commit, waste: wasteSize,
		queues: map[string]*queue{}, dirty: map[string]struct{}{}, hints: map[string]*hint{},
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if err := s.reopen(); err != nil {
		return nil, openError(path, err)
	}
	go s.committer()
	return s, nil
}

// Close writes what was acknowledged, and returns when the file is closed.
// Appends that wait for their turn fail with ErrClosed; the one that is being
// written is finished. Its error is that of the last write: delivered messages
// will be delivered again. A second call does nothing more.
func (s *Store) Close() error {
	s.mu.Lock()
	refused := s.waiting
	s.waiting = nil
	first := !s.closing
	s.closing = true
	for _, q := range s.queues {
		signal(q.changed)
	}
	s.mu.Unlock()
	for _, r := range refused {
		r.end(ErrClosed)
	}
	s.poke()
	<-s.done
	s.dbmu.Lock()
	defer s.dbmu.Unlock()
	if !first {
		return nil
	}
	return errors.Join(s.closed, s.closeDB())
}

// closeDB lets go of the file; dbmu is held.
func (s *Store) closeDB() error {
	db, file := s.db, s.file
	s.db, s.file = nil, nil
	if db == nil {
		return nil
	}
	if s.stuck { // db.Close would wait for ever for the transaction that broke off
		letGo(file)
		return nil
	}
	if err := db.Close(); err != nil {
		return fmt.Errorf("queue: close %s: %w", s.path, err)
	}
	return nil
}

// reopen reads and opens the file and learns what is in it.
func (s *Store) reopen() error {
	fresh, err := exists(s.path)
	if err == nil && fresh {
		err = create(s.path, s.opts.NoSync)
	}
	if err != nil {
		return err
	}
	seen, err := inspect(s.path)
	if err != nil {
		return err
	}
	db, file, err := openDB(s.path, s.opts.NoSync)
	if err != nil {
		return err
	}
	if _, err := guard(func() (struct{}, error) { return struct{}{}, repair(db, seen) }); err != nil {
		letGo(file)
		return err
	}
	os.Remove(s.path + newSuffix) // half of one that was killed
	s.swap(db, file)
	s.learn(seen)
	s.spent = !seen.reserve
	s.shrink()
	return nil
}

// exists says whether the file has to be made. An empty one was cut off.
func exists(path string) (fresh bool, err error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	case err != nil:
		return false, err
	case !info.Mode().IsRegular():
		return false, errors.New("it is no file")
	case info.Size() == 0:
		return false, errEmpty
	}
	return false, nil
}

// openDB opens the file for writing; the caller has inspected it.
func openDB(path string, noSync bool) (*bbolt.DB, *os.File, error) {
	// NoFreelistSync would write less, but then bbolt looks for free pages in a
	// goroutine of its own, and a panic there because of damage takes the process
	// with it. shrink keeps the list short.
	return openBolt(path, &bbolt.Options{NoSync: noSync, NoGrowSync: noSync})
}

func openBolt(path string, o *bbolt.Options) (*bbolt.DB, *os.File, error) {
	var file *os.File
	o.Timeout = lockTimeout
	o.OpenFile = func(name string, flag int, perm os.FileMode) (*os.File, error) {
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
	}
	db, err := guard(func() (*bbolt.DB, error) { return bbolt.Open(path, 0o600, o) })
	if err != nil {
		if errors.Is(err, errDamaged) && file != nil {
			letGo(file)
		}
		return nil, nil, err
	}
	return db, file, nil
}

// create makes the file under another name first, so that a process killed on
// its way leaves no half of one.
func create(path string, noSync bool) error {
	half := path + newSuffix
	if err := os.Remove(half); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, _, err := openDB(half, noSync)
	if err != nil {
		return err
	}
	if err := errors.Join(db.Update(makeBuckets), db.Update(putReserve), db.Close()); err != nil {
		os.Remove(half)
		return err
	}
	return install(half, path, noSync)
}

// install gives a finished file its name, for good.
func install(half, path string, noSync bool) error {
	if err := os.Rename(half, path); err != nil || noSync {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// swap puts db in the place of the one in use.
func (s *Store) swap(db *bbolt.DB, file *os.File) {
	s.dbmu.Lock()
	defer s.dbmu.Unlock()
	if err := s.closeDB(); err != nil {
		s.opts.Logger.Warn("cannot close the old file of the queue", "err", err)
	}
	s.db, s.file, s.stuck = db, file, false
}

func makeBuckets(tx *bbolt.Tx) error {
	for _, name := range [][]byte{queuesBucket, keysBucket} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	return nil
}

// learn brings memory to what is in the file.
func (s *Store) learn(seen survey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.hints)
	for name, f := range seen.queues {
		if q := s.queues[name]; q != nil {
			q.last = f.last
		} else {
			s.queues[name] = newQueue(f.last)
		}
	}
	for name, q := range s.queues {
		if _, ok := seen.queues[name]; !ok { // its removal was the uncertain thing
			delete(s.queues, name)
			delete(s.dirty, name)
			signal(q.changed)
		}
	}
}

var (
	errEmpty = errors.New("the file is empty")
	// errDamaged stands for what bbolt answers to a damaged file with a panic or
	// a memory fault.
	errDamaged = errors.New("the file is damaged")
)

// guard turns these into an error, in this goroutine and for this call only.
func guard[T any](f func() (T, error)) (result T, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errDamaged, r)
		}
	}()
	return f()
}

func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
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
	case errors.Is(err, errVersion):
		return fmt.Errorf("cannot read %s: %w\nRun the version that wrote it, or move it away (mv %s %s.old): messages that wait in it stay there.", path, err, path, path)
	case errors.Is(err, errEmpty), errors.Is(err, errDamaged), errors.Is(err, errRecord),
		errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return fmt.Errorf("cannot read %s: %w\n"+
			"It is cut off, damaged or not sallyport's; nothing was changed. To go on without the messages that wait in it, move it away: mv %s %s.damaged", path, err, path, path)
	}
	return fmt.Errorf("cannot open %s: %w", path, err)
}
