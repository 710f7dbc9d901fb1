package executor

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	maxLine = 16 << 10 // bytes of one line
	maxAttr = 512      // bytes of one text in it
)

// A line of the log is one JSON object. Prev is the SHA-256 of the line before
// it, without its newline, in hex; zeros in the first line.
//
//	{"seq":2,"time":"2026-05-01T10:00:00Z","event":"command.refused","attrs":{"code":"pin-wrong"},"prev":"9f…"}
//
// A line that was changed, inserted or removed breaks the chain at the next
// one. Another last line, or a cut at the end, shows only to somebody who
// keeps the last hash elsewhere.
type line struct {
	Seq   uint64         `json:"seq"`
	Time  time.Time      `json:"time"`
	Event string         `json:"event"`
	Attrs map[string]any `json:"attrs,omitempty"`
	Prev  string         `json:"prev"`
}

var firstPrev = strings.Repeat("0", 2*sha256.Size)

// VerifyLog reads a log of commands and checks its chain. It returns the number
// of lines and the hash of the last one; keep the hash elsewhere, and a later
// look shows whether anything before it was cut away. A last line that a crash
// cut short is no error: nothing ran on it.
func VerifyLog(path string) (lines int, head string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", fmt.Errorf("log of commands: %w", err)
	}
	defer f.Close()
	r, err := verify(path, f)
	return int(r.lines), r.head, err
}

// chain is how far a log goes.
type chain struct {
	lines uint64
	head  string
	size  int64 // bytes of whole lines
	torn  int64 // bytes after them
}

func verify(path string, f io.Reader) (chain, error) {
	c := chain{head: firstPrev}
	in := bufio.NewReaderSize(f, maxLine+1)
	for {
		raw, err := in.ReadSlice('\n')
		if err == io.EOF {
			c.torn = int64(len(raw))
			return c, nil
		}
		broken := func(why string) (chain, error) {
			return c, fmt.Errorf("the log of commands %s is broken at line %d: %s\nSomebody changed the file, or the disk failed: move it aside, keep it, and look into it.", path, c.lines+1, why)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			return broken("longer than any line that is written")
		}
		if err != nil {
			return c, fmt.Errorf("read log of commands: %w", err)
		}
		text := bytes.TrimSuffix(raw, []byte("\n"))
		var l line
		switch err := json.Unmarshal(text, &l); {
		case err != nil:
			return broken("not a JSON object: " + err.Error())
		case l.Seq != c.lines+1:
			return broken(fmt.Sprintf("number %d where %d is due", l.Seq, c.lines+1))
		case l.Prev != c.head:
			return broken("it does not continue the line before it")
		}
		c.lines++
		c.size += int64(len(raw))
		c.head = hashLine(text)
	}
}

func hashLine(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// A logFile is what the log needs of *os.File. Tests let it fail.
type logFile interface {
	io.Writer
	Sync() error
	Truncate(size int64) error
	Close() error
}

// auditLog is an open log. Lines are on disk when the call returns.
type auditLog struct {
	now func() time.Time

	mu   sync.Mutex // guards the fields below; held across the write, whose order is the chain's
	file logFile    // nil when closed
	at   chain
}

// openLog opens or creates the log, checks its chain and goes on with it. A
// torn last line is cut off; torn says how long it was.
func openLog(path string, now func() time.Time) (l *auditLog, torn int64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("log of commands: %w", err)
	}
	at, err := verify(path, f)
	if err == nil {
		err = f.Chmod(0o600)
	}
	if err == nil && at.torn > 0 {
		torn = at.torn
		err = f.Truncate(at.size)
		at.torn = 0
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return &auditLog{now: now, file: f, at: at}, torn, nil
}

// add appends one line. Errors wrap errDisk; the next call begins on a clean
// line.
func (l *auditLog) add(event string, attrs map[string]any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.append(event, attrs); err != nil {
		return fmt.Errorf("%w: log of commands: %w", errDisk, err)
	}
	return nil
}

func (l *auditLog) append(event string, attrs map[string]any) error {
	if l.file == nil {
		return os.ErrClosed
	}
	next := line{Seq: l.at.lines + 1, Time: l.now().UTC(), Event: event, Attrs: attrs, Prev: l.at.head}
	text, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if len(text) >= maxLine {
		return fmt.Errorf("a line of %d bytes", len(text))
	}
	// What a write that failed may have left is not part of the chain.
	if l.at.torn != 0 {
		if err := l.file.Truncate(l.at.size); err != nil {
			return err
		}
		l.at.torn = 0
	}
	n, err := l.file.Write(append(text, '\n'))
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		l.at.torn = max(int64(n), 1)
		return err
	}
	l.at = chain{lines: next.Seq, head: hashLine(text), size: l.at.size + int64(n)}
	return nil
}

// state returns how far the log goes.
func (l *auditLog) state() chain {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at
}

func (l *auditLog) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
