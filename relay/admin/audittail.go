package admin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"
)

// maxTail bounds what Last reads, in bytes, whatever number of lines is asked.
const maxTail = 1 << 20

// An AuditLine is one event of the audit log.
type AuditLine struct {
	Seq   uint64
	Time  time.Time
	Event string
	Attrs map[string]any
}

// Last returns up to n of the newest lines, newest first. It looks at the last
// mebibyte only. It does not check the chain: Verify does.
func (l *Log) Last(n int) ([]AuditLine, error) {
	l.mu.Lock()
	size, open := l.rep.Size, l.file != nil
	l.mu.Unlock()
	if !open {
		return nil, fmt.Errorf("audit log: %w", os.ErrClosed)
	}
	// A file of our own: reading must not hold up whoever writes, and what lies
	// below size never changes.
	f, err := os.Open(l.path)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	defer f.Close()
	tail := make([]byte, min(size, maxTail))
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	return lastLines(tail, n, size == int64(len(tail))), nil
}

// lastLines parses the last n lines of tail, newest first. Whole says that tail
// begins with a line; else its first piece may be half of one.
func lastLines(tail []byte, n int, whole bool) []AuditLine {
	raw := bytes.Split(bytes.TrimSuffix(tail, []byte("\n")), []byte("\n"))
	if !whole {
		raw = raw[1:]
	}
	var lines []AuditLine
	for _, text := range slices.Backward(raw) {
		if len(lines) >= n {
			break
		}
		var in line
		if json.Unmarshal(text, &in) != nil {
			continue // somebody edited the file: Verify's matter, not the reader's
		}
		lines = append(lines, AuditLine{Seq: in.Seq, Time: in.Time, Event: in.Event, Attrs: in.Attrs})
	}
	return lines
}
