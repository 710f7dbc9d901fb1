package devices

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/sallyport/sallyport/protocol/pki"
)

const (
	fileName    = "relay-devices.json"
	fileVersion = 1
	maxFile     = 8 << 20 // the largest list is 3 MB, a third more in base64
)

// A file is what is on disk. The number of the list is in the list.
type file struct {
	Version int    `json:"v"`
	CA      []byte `json:"ca"`             // DER
	List    []byte `json:"list,omitempty"` // as the relay signed it
}

// save makes a page durable before anybody relies on it.
func (b *Book) save(p *page) error {
	data, err := json.Marshal(file{fileVersion, p.ca.Raw, p.signed})
	if err == nil {
		err = pki.WriteFile(b.path, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("%w\nFree some disk space, or make the directory writable for the user that runs the agent.", err)
	}
	p.saved = true
	return nil
}

func load(path string) (*page, error) {
	data, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &page{}, nil
	}
	if err == nil {
		var p *page
		if p, err = decode(data); err == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("%s, which keeps the relay's device CA and its last list, cannot be used: %w\n"+
		"Restore it from a backup. Or move it away: then whatever CA the relay shows next is believed.", path, err)
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("it is not a regular file of at most %d bytes", maxFile)
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// decode reads a file, and the list in it only when the CA in it signed it.
func decode(data []byte) (*page, error) {
	var f file
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	err := dec.Decode(&f)
	if f.Version > fileVersion { // before its new fields are called damage
		return nil, fmt.Errorf("it has version %d, this sallyport reads up to %d: use the newer one", f.Version, fileVersion)
	}
	if err == nil {
		if _, end := dec.Token(); end != io.EOF {
			err = errors.New("there is more than one value in it")
		}
	}
	if err == nil && f.Version < 1 {
		err = fmt.Errorf("its version is %d", f.Version)
	}
	if err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	ca, err := pki.ParseCA(f.CA)
	if err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	p := &page{ca: ca}
	if len(f.List) > 0 {
		if p, err = newPage(ca, f.List); err != nil {
			return nil, fmt.Errorf("it is damaged: %w", err)
		}
	}
	p.saved = true
	return p, nil
}
