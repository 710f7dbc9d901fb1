package real

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// smallDisk mounts a few megabytes of memory on a directory.
func smallDisk(t *testing.T, dir, size string) {
	t.Helper()
	needRoot(t)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		lack(t, "a small disk: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}

// fill takes what is left of a disk; the returned function gives it back.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 4096)
	for {
		if _, err := f.Write(block); err != nil {
			break
		}
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}

// TestFullDisk: with no room left at the relay, or at home, commands and messages
// are refused with the reason; what was acknowledged before and meanwhile
// arrives; and when there is room again everything goes on by itself.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	m := newMosquitto(t)
	w := &world{t: t, dir: shortDir(t), listen: freePort(t), http: freePort(t), agents: map[string]*process{}}
	smallDisk(t, w.relayDir(), "12m")
	smallDisk(t, w.agentDir("kitchen"), "12m")
	w.startRelay()
	w.saveRoots()
	w.mqttHome("kitchen", m, rulesYAML+garageYAML)
	garageDoor(t, m)
	anna := w.device("anna")
	r := w.remote(anna)
	r.awaitHome("kitchen")
	r.trust("kitchen")
	if st := r.press("kitchen", "garage", ""); st.State != mqttbridge.Done {
		t.Fatalf("with room: %+v", st)
	}
	moves := m.sub("cmnd/#")
	for _, dir := range []string{w.relayDir(), w.agentDir("kitchen")} {
		where := filepath.Base(dir)
		free := fill(t, dir)
		before := strings.Count(moves.out.String(), "cmnd/garage open")
		// bbolt has some free pages: a few more may still fit.
		var st mqttbridge.Status
		done := 0
		for range 200 {
			if st = r.press("kitchen", "garage", ""); st.State != mqttbridge.Done {
				break
			}
			done++
		}
		if st.State != mqttbridge.Refused || st.Code != mqttbridge.CodeDisk || st.Reason == "" {
			t.Errorf("%s is full: a command ended as %+v; want refused, disk, with a reason", where, st)
		}
		free()
		eventually(t, 30*time.Second, "commands run again, "+where, func() bool {
			time.Sleep(100 * time.Millisecond) // not a burst of presses
			return r.press("kitchen", "garage", "").State == mqttbridge.Done
		})
		eventually(t, 10*time.Second, "every press that was done moved the door once", func() bool {
			return strings.Count(moves.out.String(), "cmnd/garage open") == before+done+1
		})
	}

	// Messages: those that were acknowledged arrive, in order, once there is room.
	notes := m.sub("notes/#")
	pub := w.hubClient(anna, "anna-pub")
	for _, dir := range []string{w.relayDir(), w.agentDir("kitchen")} {
		where := filepath.Base(dir)
		c := &counter{topic: "home/kitchen/notes/" + where, source: pub}
		free := fill(t, dir)
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			c.publish(t.Context(), 2000)
		}()
		time.Sleep(3 * time.Second) // it may be stuck now; how long is nobody's promise
		free()
		select {
		case <-sent:
		case <-time.After(90 * time.Second):
			n, _ := c.progress()
			t.Fatalf("%s: %d of 2000 notes were acknowledged", where, n)
		}
		notes.waitFor(fmt.Sprintf("notes/%s 1999", where), 60*time.Second)
		out := notes.out.String()
		for i := range 2000 {
			if !strings.Contains(out, fmt.Sprintf("notes/%s %d\n", where, i)) {
				t.Fatalf("%s: note %d was acknowledged and did not come", where, i)
			}
		}
	}
}
