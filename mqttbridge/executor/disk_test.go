package executor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

var errFull = errors.New("no space left on device")

// brokenFile is a log whose disk is full, or fails at fsync.
type brokenFile struct {
	logFile
	write, sync func() error
}

func (f *brokenFile) Write(b []byte) (int, error) {
	if f.write == nil {
		return f.logFile.Write(b)
	}
	if err := f.write(); err != nil {
		n, _ := f.logFile.Write(b[:len(b)/2]) // as much as there was room for
		return n, err
	}
	return f.logFile.Write(b)
}

func (f *brokenFile) Sync() error {
	if f.sync != nil {
		if err := f.sync(); err != nil {
			return err
		}
	}
	return f.logFile.Sync()
}

func TestLogCannotBeWritten(t *testing.T) {
	for _, how := range []string{"write", "sync"} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(w *world) {
				once(w)
				f := &brokenFile{logFile: w.e.audit.file}
				fail := func() error { return errFull }
				if how == "write" {
					f.write = fail
				} else {
					f.sync = fail
				}
				w.e.audit.file = f
				s := w.press("bob", "garage")
				wantState(t, s, mqttbridge.Refused, mqttbridge.CodeDisk)
				w.published(garage, "ON")
				if _, found, _ := w.e.seen.get(s.ID); found {
					t.Error("a command that cannot be logged was recorded as running")
				}
				f.write, f.sync = nil, nil
				wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")
				w.published(garage, "ON", "ON")
				if lines, head, err := VerifyLog(filepath.Join(w.dir, logName)); err != nil || uint64(lines) != w.e.Status().Lines || head != w.e.Status().Head {
					t.Errorf("log: %d lines, %s, %v", lines, head, err)
				}
			})
		})
	}
}

// The log fails between "accepted" and the outcome: it ran, and that is said.
func TestLogFailsAfterwards(t *testing.T) {
	bubble(t, func(w *world) {
		f := &brokenFile{logFile: w.e.audit.file}
		w.e.audit.file = f
		w.broker.decide(func(string, string) error {
			f.write = func() error { return errFull }
			return nil
		})
		wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")
		w.broker.decide(nil)
		wantState(t, w.press("bob", "garage"), mqttbridge.Refused, mqttbridge.CodeDisk)
		w.published(garage, "ON")
	})
}

func TestSeenSetCannotBeWritten(t *testing.T) {
	bubble(t, func(w *world) {
		real := w.e.seen.update
		w.e.seen.update = func(func(tx) error) error { return errFull }
		s := w.press("bob", "garage")
		wantState(t, s, mqttbridge.Refused, mqttbridge.CodeDisk)
		wantState(t, w.press("bob", "buzzer"), mqttbridge.Refused, mqttbridge.CodeDisk)
		w.published(garage)
		w.published("buzzer/set")
		w.e.seen.update = real
		wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")
		wantState(t, w.press("bob", "buzzer"), mqttbridge.Delivered, "")
		w.published(garage, "ON")

		// Only the outcome cannot be written: it is told, and after a restart
		// nobody knows.
		w.broker.decide(func(string, string) error {
			w.e.seen.update = func(func(tx) error) error { return errFull }
			return nil
		})
		s = w.press("bob", "garage")
		wantState(t, s, mqttbridge.Delivered, "")
		w.broker.decide(nil)
		w.restart()
		wantState(t, w.relay.query(s.ID), mqttbridge.Unknown, "")
		w.published(garage, "ON", "ON")
	})
}

func TestSeenSetCannotBeRead(t *testing.T) {
	bubble(t, func(w *world) {
		w.e.seen.close()
		wantState(t, w.press("bob", "garage"), mqttbridge.Refused, mqttbridge.CodeDisk)
		wantState(t, w.relay.query(mqttbridge.NewID()), mqttbridge.Unknown, "")
		w.published(garage)
	})
}

// A process that ends between the record and the outcome leaves "unknown", and
// no later one publishes the command again.
func TestCrash(t *testing.T) {
	for _, test := range []struct {
		name   string
		action string
		where  string // "record", "publish" or "ack": what the process was at
		ran    bool
		want   mqttbridge.State
	}{
		{"before the record", "garage", "record", false, mqttbridge.Expired},
		{"before publishing", "garage", "publish", false, mqttbridge.Unknown},
		{"after publishing", "garage", "published", true, mqttbridge.Unknown},
		{"while the ack is due", "blind", "ack", true, mqttbridge.Unconfirmed},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				gone := make(chan struct{}) // when the test lets the dead process go
				die := func() error {
					w.crash()
					<-gone
					return errUncertain
				}
				if test.where == "record" {
					real := w.e.seen.update
					w.e.seen.update = func(f func(tx) error) error {
						die()
						return real(f)
					}
				}
				topic := map[string]string{"garage": garage, "blind": "blind/set"}[test.action]
				dead, deadBroker := w.e, w.broker
				w.broker.decide(func(got, payload string) error {
					switch test.where {
					case "publish":
						return errors.Join(errOffline, die()) // the fake does not note it
					case "published":
						w.broker.mu.Lock()
						w.broker.took = append(w.broker.took, message{got, payload, false, time.Now()})
						w.broker.mu.Unlock()
						return errors.Join(errOffline, die())
					}
					return nil
				})
				env := w.envelope("bob", test.action, w.challenge("bob", test.action))
				s := w.sign(w.phone("bob"), env)
				w.command("bob", s)
				synctest.Wait()
				if test.where == "ack" {
					w.crash()
				}
				old, stop := w.relay, w.stop
				w.broker.decide(nil)
				w.start()
				w.trust("bob") // his key is known, and nothing changes by it

				want := []string(nil)
				if test.ran {
					want = []string{map[string]string{"garage": "ON", "blind": "OPEN"}[test.action]}
				}
				wantState(t, w.relay.query(env.ID), test.want, "")
				again := w.relay.final(w.command("bob", s))
				if again.State != test.want {
					t.Errorf("the same bytes after the crash: %+v, want %s", again, test.want)
				}
				env2 := w.envelope("bob", test.action, w.challenge("bob", test.action))
				env2.ID = env.ID
				if got := w.relay.final(w.command("bob", w.sign(w.phone("bob"), env2))); got.State == mqttbridge.Delivered || got.State == mqttbridge.Done {
					t.Errorf("the same id with a new challenge ran: %+v", got)
				}
				w.published(topic, want...)
				if test.want == mqttbridge.Unknown {
					if last := w.relay.action(test.action).Last; last == nil || last.State != mqttbridge.Unknown {
						t.Errorf("last %+v", last)
					}
				}
				w.restart()
				wantState(t, w.relay.query(env.ID), map[bool]mqttbridge.State{true: mqttbridge.Expired, false: test.want}[test.where == "record"], "")

				_, _ = dead, deadBroker
				close(gone)
				stop()
				old.close()
				w.published(topic, want...)
			})
		})
	}
}

func TestFilesOfTheExecutor(t *testing.T) {
	bubble(t, func(w *world) {
		once(w)
		w.e.SetPIN("", "1234")
		w.end()
		info, err := os.Stat(w.dir)
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("directory: %v, %v", info.Mode(), err)
		}
		for _, name := range []string{keyFile, trustFile, pinsFile, seenFile, logName} {
			info, err := os.Stat(filepath.Join(w.dir, name))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", name, info, err)
			}
		}
		id := w.e.id
		damaged := func(name, content string, words ...string) {
			t.Helper()
			path := filepath.Join(w.dir, name)
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if content == "" {
				os.Remove(path)
			} else {
				os.WriteFile(path, []byte(content), 0o600)
			}
			e, err := w.open()
			if err == nil {
				e.Close()
				t.Errorf("%s: %.20q was taken", name, content)
			} else {
				for _, word := range append(words, name) {
					if !strings.Contains(err.Error(), word) {
						t.Errorf("%s: %q does not say %q", name, err, word)
					}
				}
			}
			os.WriteFile(path, good, 0o600)
		}
		damaged(keyFile, "x", "backup")
		damaged(keyFile, "", "backup") // trust.json is there: another key would be another home
		for _, text := range []string{"x", "{}", `{"version":3}`, `{"version":1,"keys":[]} x`, `{"version":1,"locks":{}}`, `{"version":1,"keys":[{"device":"bob","spki":"AA=="}]}`, `{"version":2,"withdrawn":[{"device":"bob","spki":"AA=="}]}`} {
			damaged(trustFile, text, "agent trust")
		}
		for _, text := range []string{"x", "{}", `{"version":1,"pins":{"":{"n":1048576,"r":8,"p":1}}}`} {
			damaged(pinsFile, text, "agent pin")
		}
		damaged(seenFile, strings.Repeat("x", 40_000), "move it away")
		damaged(logName, "{\"seq\":2}\n", "broken at line 1")
		w.start()
		if w.e.id != id {
			t.Error("the home has another key now")
		}
		wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")
	})
}

func TestTornLog(t *testing.T) {
	bubble(t, func(w *world) {
		once(w)
		w.end()
		path := filepath.Join(w.dir, logName)
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteString(`{"seq":5,"ti`)
		f.Close()
		w.start()
		wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")
		if _, _, err := VerifyLog(path); err != nil {
			t.Error(err)
		}
		data, _ := os.ReadFile(path)
		if !strings.Contains(string(data), `"log.torn"`) {
			t.Error("the log does not say that it was cut")
		}
	})
}

// Every byte of the log counts, but for those of the last line.
func TestLogShowsEdits(t *testing.T) {
	bubble(t, func(w *world) {
		once(w)
		once(w)
		w.end()
		path := filepath.Join(w.dir, logName)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines, head, err := VerifyLog(path)
		if err != nil || lines < 6 || len(head) != 64 {
			t.Fatalf("%d lines, %q, %v", lines, head, err)
		}
		copied := filepath.Join(w.dir, "copy.log")
		for i := range data {
			edited := append([]byte(nil), data...)
			edited[i] ^= 1
			os.WriteFile(copied, edited, 0o600)
			n, h, err := VerifyLog(copied)
			if err == nil && n == lines && h == head {
				t.Fatalf("byte %d can be changed unseen", i)
			}
		}
		w.start()
	})
}
