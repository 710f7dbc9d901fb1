package admin

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

// AuditName is the audit log's usual name inside the data directory.
const AuditName = "audit.log"

const (
	maxLine  = 64 << 10 // bytes of one line; Verify refuses longer ones
	maxValue = 1 << 10  // bytes of one string in a line
)

// A line of the audit log is one JSON object. Prev is the SHA-256 of the line
// before it, without its newline, in hex; zeros in the first line.
//
//	{"seq":2,"time":"2026-05-01T10:00:00Z","event":"device.revoked","attrs":{"device":"anna-phone"},"prev":"9f…"}
//
// So a line that was changed, inserted or removed breaks the chain at the
// next one. What the chain alone cannot show is another last line, a cut at the
// end, or a file that was written anew: keep the last hash (Report.Head)
// elsewhere for that.
type line struct {
	Seq   uint64         `json:"seq"`
	Time  time.Time      `json:"time"`
	Event string         `json:"event"`
	Attrs map[string]any `json:"attrs,omitempty"`
	Prev  string         `json:"prev"`
}

var firstPrev = strings.Repeat("0", 2*sha256.Size)

// A ChainError says where an audit log stops being what was written.
type ChainError struct {
	Path string
	Line uint64 // from 1
	Why  string
}

func (e *ChainError) Error() string {
	return fmt.Sprintf("audit log %s is broken at line %d: %s", e.Path, e.Line, e.Why)
}

// Hint says what to do.
func (e *ChainError) Hint() string {
	return "somebody changed the file, or the disk failed: move it aside, keep it, and look into it"
}

// A Report is what Verify found.
type Report struct {
	Lines uint64
	Head  string // hash of the last line
	Size  int64  // bytes of whole lines
	Torn  int64  // bytes after them: a line that a crash cut short
}

// Verify reads an audit log and checks its chain. A torn last line is no
// error: it was never confirmed to anybody.
func Verify(path string) (Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return Report{}, fmt.Errorf("audit log: %w", err)
	}
	defer f.Close()
	return verify(path, f)
}

func verify(path string, f io.Reader) (Report, error) {
	rep := Report{Head: firstPrev}
	in := bufio.NewReaderSize(f, maxLine+1)
	for {
		raw, err := in.ReadSlice('\n')
		if err == io.EOF {
			rep.Torn = int64(len(raw))
			return rep, nil
		}
		broken := func(why string) (Report, error) {
			return rep, &ChainError{Path: path, Line: rep.Lines + 1, Why: why}
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			return broken("longer than any line that is written")
		}
		if err != nil {
			return rep, fmt.Errorf("read audit log: %w", err)
		}
		text := bytes.TrimSuffix(raw, []byte("\n"))
		var l line
		switch err := json.Unmarshal(text, &l); {
		case err != nil:
			return broken("not a JSON object: " + err.Error())
		case l.Seq != rep.Lines+1:
			return broken(fmt.Sprintf("number %d where %d is due", l.Seq, rep.Lines+1))
		case l.Prev != rep.Head:
			return broken("it does not continue the line before it")
		}
		rep.Lines++
		rep.Size += int64(len(raw))
		rep.Head = hashLine(text)
	}
}

func hashLine(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// A Log is an open audit log. Every Event is on disk when the call returns.
type Log struct {
	path string
	log  *slog.Logger
	now  func() time.Time

	mu   sync.Mutex // guards the fields below; held across the write, whose order is the chain's
	file *os.File   // nil when closed
	rep  Report
}

// OpenLog opens or creates the audit log at path, mode 0600, checks its chain
// and goes on with it. A torn last line is cut off, and an event says so. A
// broken chain is a *ChainError: nothing is appended to evidence. Logger may
// be nil; it also gets what cannot be written. Only one process may have the
// log open: the relay's store lock sees to that.
func OpenLog(path string, logger *slog.Logger) (*Log, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	l := &Log{path: path, log: logger, now: time.Now, file: f}
	if err := l.begin(); err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

func (l *Log) begin() error {
	if err := l.file.Chmod(0o600); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	var err error
	if l.rep, err = verify(l.path, l.file); err != nil {
		return err
	}
	if l.rep.Torn == 0 {
		return nil
	}
	torn := l.rep.Torn
	if err := l.file.Truncate(l.rep.Size); err != nil {
		return fmt.Errorf("audit log: cut the torn last line: %w", err)
	}
	l.rep.Torn = 0
	l.log.Warn("the audit log ended in the middle of a line, as after a crash; the piece was cut off", "path", l.path, "bytes", torn)
	l.Event("audit.torn", slog.Int64("bytes", torn))
	return nil
}

// Event appends one line and syncs it to disk. It cannot fail the caller: what
// cannot be written goes to the logger as an error, and the next event tries
// again on a clean line.
func (l *Log) Event(name string, attrs ...slog.Attr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.append(name, attrs); err != nil {
		l.log.Error("cannot write the audit log", "path", l.path, "event", name, "attrs", attrs, "err", err)
	}
}

func (l *Log) append(name string, attrs []slog.Attr) error {
	if l.file == nil {
		return os.ErrClosed
	}
	next := line{Seq: l.rep.Lines + 1, Time: l.now().UTC(), Event: clip(name), Attrs: plain(attrs), Prev: l.rep.Head}
	text, err := json.Marshal(next)
	if err == nil && len(text) >= maxLine {
		next.Attrs = map[string]any{"cut": "too long for one line"}
		text, err = json.Marshal(next)
	}
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	// What an earlier write or sync that failed may have left is not part of
	// the chain.
	if l.rep.Torn != 0 {
		if err := l.file.Truncate(l.rep.Size); err != nil {
			return err
		}
		l.rep.Torn = 0
	}
	n, err := l.file.Write(append(text, '\n'))
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		l.rep.Torn = int64(n)
		return err
	}
	l.rep.Lines, l.rep.Size, l.rep.Head = next.Seq, l.rep.Size+int64(n), hashLine(text)
	return nil
}

// Head returns the number of lines and the hash of the last one. Whoever keeps
// a copy elsewhere can prove later that nothing before it was cut away.
func (l *Log) Head() (lines uint64, hash string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rep.Lines, l.rep.Head
}

// Close closes the file. The second call does nothing.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// plain makes JSON values of attributes; strings from peers are bounded.
func plain(attrs []slog.Attr) map[string]any {
	m := make(map[string]any, len(attrs))
	for _, a := range attrs {
		v := a.Value.Resolve()
		switch x := v.Any().(type) {
		case []slog.Attr:
			m[a.Key] = plain(x)
		case string:
			m[a.Key] = clip(x)
		case error:
			m[a.Key] = clip(x.Error())
		case time.Duration:
			m[a.Key] = x.String()
		case time.Time:
			m[a.Key] = x.UTC()
		case bool, int64, uint64, []string, nil:
			m[a.Key] = x
		default:
			m[a.Key] = clip(fmt.Sprint(x))
		}
	}
	return m
}

func clip(s string) string {
	if len(s) <= maxValue {
		return s
	}
	return strings.ToValidUTF8(s[:maxValue], "") + "…"
}
