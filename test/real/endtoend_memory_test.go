package real

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/protocol/pki"
)

// needles are what is looked for, by what it is.
type needles map[string][]byte

// keyNeedles are the forms in which a private key file could lie in a memory or
// on a disk: the number as it is encoded, the number as math/big keeps it, and the
// lines of PEM that hold parts of it.
func keyNeedles(t *testing.T, file string) needles {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	begin := bytes.Index(data, []byte("-----BEGIN PRIVATE KEY-----"))
	end := bytes.Index(data, []byte("-----END PRIVATE KEY-----"))
	if begin < 0 || end < begin {
		t.Fatalf("%s holds no key", file)
	}
	key, err := pki.DecodeKey(data[begin : end+len("-----END PRIVATE KEY-----\n")])
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	scalar, err := key.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(file)
	words := slices.Clone(scalar)
	slices.Reverse(words)
	n := needles{name + ", number": scalar, name + ", words": words, name + ", hex": []byte(hex.EncodeToString(scalar))}
	lines := strings.Split(strings.TrimSpace(string(data[begin:end])), "\n")
	for i, line := range lines[1:min(len(lines), 3)] { // what follows is the public half
		n[fmt.Sprintf("%s, PEM line %d", name, i+1)] = []byte(line)
	}
	return n
}

const scanChunk = 1 << 20

// scanStream returns which needles a stream holds.
func scanStream(r io.Reader, n needles) (found []string, err error) {
	longest := 0
	for _, needle := range n {
		longest = max(longest, len(needle))
	}
	seen := map[string]bool{}
	buf := make([]byte, longest+scanChunk)
	kept := 0
	for {
		got, err := io.ReadFull(r, buf[kept:])
		part := buf[:kept+got]
		for what, needle := range n {
			if !seen[what] && bytes.Contains(part, needle) {
				seen[what] = true
			}
		}
		if err != nil {
			found = slices.Sorted(maps.Keys(seen))
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = nil
			}
			return found, err
		}
		kept = copy(buf, part[len(part)-longest:])
	}
}

// inMemory returns which needles the memory of a running process holds.
func inMemory(t *testing.T, p *process, n needles) []string {
	t.Helper()
	pid := itoa(p.cmd.Process.Pid)
	if exe, err := os.Readlink("/proc/" + pid + "/exe"); err != nil {
		lack(t, "the memory of another process cannot be read: %v", err)
	} else if filepath.Base(exe) != filepath.Base(binary) {
		t.Fatalf("%s is %s, not the program under test", p.name, exe)
	}
	mem, err := os.Open("/proc/" + pid + "/mem")
	if err != nil {
		lack(t, "the memory of another process cannot be read: %v", err)
	}
	defer mem.Close()
	maps, err := os.Open("/proc/" + pid + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	seen := map[string]bool{}
	var total int64
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' {
			continue // what the kernel maps at the top of the address space is nobody's memory
		}
		found, err := scanStream(io.NewSectionReader(mem, from, to-from), n)
		if err != nil {
			continue // [vvar], or a part that was given back meanwhile
		}
		total += to - from
		for _, what := range found {
			seen[what] = true
		}
	}
	if total < 10<<20 {
		t.Fatalf("only %d bytes of %s's memory were read", total, p.name)
	}
	return slices.Sorted(keysOf(seen))
}

func keysOf(m map[string]bool) func(func(string) bool) { return maps.Keys(m) }

// onDisk returns which needles the files below a directory hold.
func onDisk(t *testing.T, dir string, n needles) []string {
	t.Helper()
	seen, files := map[string]bool{}, 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		files++
		found, err := scanStream(f, n)
		for _, what := range found {
			seen[what] = true
		}
		return err
	})
	if err != nil || files == 0 {
		t.Fatalf("%d files of %s were read: %v", files, dir, err)
	}
	return slices.Sorted(keysOf(seen))
}
