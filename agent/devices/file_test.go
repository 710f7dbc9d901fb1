package devices

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
)

// TestFile: what cannot be wholly understood is not passed over.
func TestFile(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	dir := t.TempDir()
	b := open(t, Config{Dir: dir})
	ok(t, b.Pin(ca.der()))
	ok(t, b.Update(ca.list()))
	good, err := os.ReadFile(b.path)
	ok(t, err)
	if info, err := os.Stat(b.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for name, data := range map[string][]byte{
		"empty":           nil,
		"cut off":         good[:len(good)-3],
		"two":             append(bytes.Clone(good), good...),
		"unknown field":   bytes.Replace(good, []byte(`{"v"`), []byte(`{"x":1,"v"`), 1),
		"no version":      bytes.Replace(good, []byte(`"v":1`), []byte(`"v":0`), 1),
		"newer":           bytes.Replace(good, []byte(`"v":1`), []byte(`"v":2,"x":1`), 1),
		"no CA":           []byte(`{"v":1,"ca":""}`),
		"another's list":  jsonFile(ca.der(), other.list()),
		"one bit of list": bytes.Replace(good, []byte("c2FsbHlwb3J0"), []byte("d2FsbHlwb3J0"), 1),
		"too long":        bytes.Repeat([]byte(" "), maxFile+1),
	} {
		if bytes.Equal(data, good) {
			t.Fatalf("%s: nothing was changed", name)
		}
		ok(t, os.WriteFile(b.path, data, 0o600))
		if _, err := Open(Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), b.path) || !strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		if name == "newer" {
			if _, err := Open(Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "use the newer one") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	ok(t, os.Remove(b.path))
	ok(t, os.Mkdir(b.path, 0o700))
	if _, err := Open(Config{Dir: dir}); err == nil {
		t.Error("a directory was read as a file")
	}
}

func jsonFile(ca, list []byte) []byte {
	text := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `{"v":1,"ca":%q,"list":%q}`, text(ca), text(list))
}

// TestLongestList goes over the wire and comes back from the disk.
func TestLongestList(t *testing.T) {
	ca := newCA(t)
	devices := make([]pki.ListedDevice, 1500)
	for i := range devices {
		devices[i] = pki.ListedDevice{Key: fmt.Sprintf("%064x", i), Name: fmt.Sprintf("phone-%d", i)}
		for n := range 8 {
			devices[i].Hosts = append(devices[i].Hosts, fmt.Sprintf("h%d%s.x.org", n, strings.Repeat("."+strings.Repeat("x", 57), 4)))
		}
	}
	l := ca.list(devices...)
	if len(l) < 3_000_000 {
		t.Fatalf("it has %d bytes: that is not the longest", len(l))
	}
	word, err := ca.SignSuccessor(newCA(t).Cert())
	ok(t, err)
	var wire bytes.Buffer
	ok(t, protocol.WriteDeviceFrame(&wire, protocol.DeviceFrame{CA: ca.der(), List: l, Succession: word}))
	f, err := protocol.ReadDeviceFrame(&wire)
	ok(t, err)
	dir := t.TempDir()
	ok(t, frame(open(t, Config{Dir: dir}), f))
	if s := open(t, Config{Dir: dir}).Status(); s.Devices != len(devices) {
		t.Errorf("%d devices came back", s.Devices)
	}
}

// FuzzDecode: no file makes a Book that trusts what its CA has not signed.
func FuzzDecode(f *testing.F) {
	ca := newCA(f)
	f.Add(jsonFile(ca.der(), ca.list()))
	f.Add(jsonFile(ca.der(), nil))
	f.Add([]byte(`{"v":1,"ca":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := decode(data)
		if err != nil {
			return
		}
		if p.ca == nil {
			t.Fatal("a file without a CA")
		}
		if len(p.signed) > 0 {
			if _, err := pki.OpenDeviceList(p.ca, p.signed); err != nil {
				t.Error(err)
			}
		}
	})
}
