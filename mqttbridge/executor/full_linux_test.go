package executor

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A real disk that is full: everything is refused with the reason, nothing
// runs, and it recovers when there is room.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=600k"); err != nil {
		t.Skip("cannot mount a small disk here:", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.dir = filepath.Join(dir, "commands")
		w.start()
		defer func() { w.end() }()
		w.trust("bob")
		w.e.SetPIN("", "1234")
		want := []string{"ON"}
		wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")

		ballast := filepath.Join(dir, "ballast")
		fill(t, ballast)
		// What the files have in reserve is used up first; every press is
		// either recorded or refused.
		for {
			s := w.press("bob", "garage")
			if s.State == mqttbridge.Delivered {
				want = append(want, "ON")
				continue
			}
			wantState(t, s, mqttbridge.Refused, mqttbridge.CodeDisk)
			break
		}
		for range 3 {
			wantState(t, w.press("bob", "garage"), mqttbridge.Refused, mqttbridge.CodeDisk)
			wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Refused, mqttbridge.CodeDisk)
		}
		w.published(gate)
		if err := w.e.SetPIN("gate", "5555"); err == nil {
			t.Error("a PIN was set on a full disk")
		}
		if err := w.e.Untrust("bob"); err == nil {
			t.Error("a key was removed on a full disk, and nobody was told that it comes back")
		}
		env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
		wantState(t, w.relay.final(w.command("bob", w.sign(w.phone("bob"), env))), mqttbridge.Refused, mqttbridge.CodeUntrusted)
		w.restart() // also starts
		wantState(t, w.press("bob", "garage"), mqttbridge.Refused, mqttbridge.CodeDisk)

		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")
		wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Delivered, "")
		w.published(garage, append(want, "ON")...)
		w.published(gate, "ON")
		if _, _, err := VerifyLog(filepath.Join(w.dir, logName)); err != nil {
			t.Error(err)
		}
	})
}

// fill writes until there is no room for a single byte more.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{64 << 10, 4 << 10, 512, 1} {
		for {
			if _, err := f.Write(make([]byte, size)); err != nil {
				break
			}
		}
	}
}
