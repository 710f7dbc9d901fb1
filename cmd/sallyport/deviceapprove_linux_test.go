package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal returns the two ends of a terminal: what a person types on, and
// what a program reads.
func terminal(t *testing.T) (keys, in *os.File) {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { keys.Close() })
	n, err1 := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPTN)
	err2 := unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0)
	in, err3 := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err1 != nil || err2 != nil || err3 != nil {
		t.Skipf("no terminals here: %v, %v, %v", err1, err2, err3)
	}
	t.Cleanup(func() { in.Close() })
	return keys, in
}

// At home a person is asked, and only a whole yes lets somebody in.
func TestApproveAsks(t *testing.T) {
	o, h := newHomeOwner(t)
	link, _ := o.must("device add anna --home")
	words := apply(t, h, link)
	for _, typed := range []string{"", "no", "y", "yes but", "yes"} {
		keys, in := terminal(t)
		if _, err := keys.WriteString(typed + "\n"); err != nil {
			t.Fatal(err)
		}
		var out, errs strings.Builder
		code := run(t.Context(), []string{"sallyport", "device", "approve", "anna", "--home", "--data", o.dir}, stdio{in: in, out: &out, err: &errs})
		said := strings.Join(strings.Fields(errs.String()), " ")
		if !strings.Contains(said, "these words must stand: "+words) || !strings.Contains(said, "anna asks for all, from ") {
			t.Errorf("asked\n%s", errs.String())
		}
		want := exitRefused
		if typed == "yes" {
			want = 0
		}
		if code != want || (code == 0) != strings.Contains(out.String(), "anna may come in") {
			t.Errorf("%q: exit code %d\n%s%s", typed, code, out.String(), errs.String())
		}
	}
}
