package queue

import (
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/bbolt"
)

const (
	newSuffix = ".new"

	// A file with less than wasteSize bytes of free pages is left alone; one with
	// more is made anew when they are wasteParts of wasteWhole of it.
	wasteSize  = 16 << 20
	wasteParts = 3
	wasteWhole = 4
	shrinkRest = time.Minute // after one that failed

	renewTx   = 4 << 20 // bytes of a transaction while copying
	healEvery = time.Second
)

// shrink makes a file anew that an outage has made large and that is mostly
// empty by now: bbolt never makes it smaller, and writes the list of its free
// pages with every commit.
func (s *Store) shrink() {
	if time.Now().Before(s.shrinkAt) {
		return
	}
	page := int64(s.db.Info().PageSize)
	free := int64(s.db.Stats().FreePageN) * page
	if free < s.waste {
		return
	}
	size := int64(0) // of what has been in use; the file is longer
	if err := s.db.View(func(tx *bbolt.Tx) error { size = tx.Size(); return nil }); err != nil || free < size/wasteWhole*wasteParts {
		return
	}
	if err := s.renew(); err != nil {
		s.shrinkAt = time.Now().Add(shrinkRest)
		s.opts.Logger.Warn("cannot make the queue's file smaller; it works on as it is", "file", s.path, "err", err)
	}
}

// renew copies what is in use into a new file, flushes that and puts it in the
// place of the old one.
func (s *Store) renew() error {
	half := s.path + newSuffix
	db, file, err := s.copyTo(half)
	if err == nil {
		// The old file is still locked; whoever opens the name now finds the new
		// one, which is locked too.
		err = install(half, s.path, s.opts.NoSync)
	}
	if err != nil {
		if db != nil {
			db.Close()
		}
		os.Remove(half)
		return err
	}
	s.swap(db, file)
	s.shrinkAt = time.Time{}
	return nil
}

func (s *Store) copyTo(half string) (*bbolt.DB, *os.File, error) {
	if err := os.Remove(half); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	db, file, err := openDB(half, true)
	if err != nil {
		return nil, nil, err
	}
	_, err = guard(func() (struct{}, error) { return struct{}{}, bbolt.Compact(db, s.db, renewTx) })
	if err == nil {
		db.NoSync, db.NoGrowSync = s.opts.NoSync, s.opts.NoSync
		if !s.opts.NoSync {
			err = file.Sync()
		}
	}
	return db, file, err
}

// heal makes the store fit for writing after something that must not be built
// upon. After ErrUncertain the kernel may call pages clean that are not on the
// disk, and a second fsync would find nothing to do: all is written anew.
// Otherwise the file is read again as at Open.
func (s *Store) heal() error {
	if s.suspect == nil {
		return nil
	}
	now := time.Now()
	if now.Before(s.healAt) {
		return s.suspect
	}
	s.healAt = now.Add(healEvery)
	var err error
	if errors.Is(s.suspect, ErrUncertain) && s.db != nil && !s.stuck {
		err = s.renew()
	}
	if err == nil {
		err = s.reread()
	}
	if err != nil {
		return fmt.Errorf("%w (since: %w)", err, s.suspect)
	}
	s.opts.Logger.Info("the queue's file can be written again", "file", s.path)
	s.suspect = nil
	return nil
}

// reread closes the file and opens it as if the process had just begun.
func (s *Store) reread() error {
	s.dbmu.Lock()
	err := s.closeDB()
	s.dbmu.Unlock()
	if err != nil {
		return err
	}
	return s.reopen()
}
