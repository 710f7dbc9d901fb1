package relay

import (
	"testing"
	"time"
)

func TestStrangersDoNotDrownDevices(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	d := newDenials()
	written := 0
	for range 10_000 {
		if _, ok := d.take(true, now); ok {
			written++
		}
	}
	if written != strangersBurst {
		t.Errorf("%d lines about strangers, want %d", written, strangersBurst)
	}
	if _, ok := d.take(false, now); !ok {
		t.Error("no line left for a device that we know")
	}
	skipped, ok := d.take(true, now.Add(strangersEvery))
	if !ok || skipped != 10_000-strangersBurst {
		t.Errorf("what was left out is not counted: %d, %v", skipped, ok)
	}
	for range 10_000 {
		d.take(false, now)
	}
	if _, ok := d.take(false, now); ok {
		t.Error("known devices may fill the disk")
	}
}
