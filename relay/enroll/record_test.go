package enroll

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sallyport/sallyport/protocol/words"
)

func TestWords(t *testing.T) {
	list := words.List()
	if len(list) != 256 {
		t.Fatalf("%d words", len(list))
	}
	for i, a := range list {
		if len(a) < 3 || len(a) > 8 || strings.Trim(a, "abcdefghijklmnopqrstuvwxyz") != "" {
			t.Errorf("word %q", a)
		}
		for _, b := range list[:i] {
			if distance(a, b) < 2 {
				t.Errorf("%s and %s are taken for each other", a, b)
			}
		}
	}
	id := strings.Repeat("00", 26) + "ff"
	if got, want := Words("0001fe"+"ff0203"+id), strings.Join([]string{list[0], list[1], list[254], list[255], list[2], list[3]}, " "); got != want {
		t.Errorf("Words = %q, want %q", got, want)
	}
	for _, bad := range []string{"", "00", "zz", "000102030405x"} {
		if got := Words(bad); got != "" {
			t.Errorf("Words(%q) = %q", bad, got)
		}
	}
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			last, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, last+cost)
		}
	}
	return row[len(b)]
}

func TestCleanName(t *testing.T) {
	for wish, want := range map[string]string{
		"anna-phone":                   "anna-phone",
		"Anna's  Phone!":               "anna-s-phone",
		"--x--":                        "x",
		"日本":                           "",
		"":                             "",
		"<script>":                     "script",
		strings.Repeat("x", 80):        strings.Repeat("x", 63),
		strings.Repeat("x", 62) + "-y": strings.Repeat("x", 62),
	} {
		if got := cleanName(wish); got != want || got != "" && !validName(got) {
			t.Errorf("cleanName(%q) = %q, want %q", wish, got, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	w := newWorld(f)
	w.apply(f, application(f, w.invite(f, Invitation{Name: "anna", Hosts: []string{"ha"}})), Issued)
	entries, err := w.kv.List(f.Context(), "enroll/")
	if err != nil || len(entries) != 2 {
		f.Fatal(err)
	}
	for _, e := range entries {
		f.Add(e.Key[strings.LastIndexByte(e.Key, '/')+1:], e.Value)
	}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		if c, err := decodeCode(key, value, 1); err == nil {
			if !isHash(c.hash) || c.Name != "" && !validName(c.Name) || !c.Created.Before(c.Expires) {
				t.Errorf("read %+v", c)
			}
			roundTrip(t, c)
		}
		if r, err := decodeRequest(key, value, 1); err == nil {
			v := r.view(today)
			if v.ID != key || !validName(v.Name) || len(strings.Fields(v.Words)) != words.Count || v.State == stateApproved {
				t.Errorf("read %+v", v)
			}
			roundTrip(t, r)
		}
	})
}

func roundTrip(t *testing.T, record any) {
	t.Helper()
	if _, err := json.Marshal(record); err != nil {
		t.Errorf("cannot be written again: %v", err)
	}
}

// FuzzStrangers: what strangers type becomes harmless.
func FuzzStrangers(f *testing.F) {
	f.Add("Anna's phone", "ABCD-EFGH", "Mozilla/5.0")
	f.Add("\x00\xff", "\n", "\x1b[31m")
	f.Fuzz(func(t *testing.T, wish, code, agent string) {
		if n := cleanName(wish); n != "" && !validName(n) {
			t.Errorf("name %q", n)
		}
		if n := normal(code); normal(strings.ToLower(n)) != normal(n) && utf8.ValidString(n) && isASCII(n) {
			t.Errorf("code %q", n)
		}
		if c := clip(agent, 10); utf8.RuneCountInString(c) > 10 || strings.ContainsAny(c, "\x1b\n\r\x00") {
			t.Errorf("agent %q", c)
		}
	})
}

func isASCII(s string) bool {
	return !slices.ContainsFunc([]byte(s), func(b byte) bool { return b >= 0x80 })
}

// TestDecodeRefuses: a record of which one thing is not understood is refused.
func TestDecodeRefuses(t *testing.T) {
	w := newWorld(t)
	r := w.apply(t, application(t, w.invite(t, Invitation{Name: "anna", Hosts: []string{"ha"}})), Issued)
	get := func(prefix string) (key string, value map[string]any) {
		entries, err := w.kv.List(t.Context(), prefix)
		if err != nil || len(entries) != 1 {
			t.Fatal(err)
		}
		if err := json.Unmarshal(entries[0].Value, &value); err != nil {
			t.Fatal(err)
		}
		return strings.TrimPrefix(entries[0].Key, prefix), value
	}
	decode := func(prefix, key string, value map[string]any) error {
		data, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		if prefix == codePrefix {
			_, err = decodeCode(key, data, 1)
		} else {
			_, err = decodeRequest(key, data, 1)
		}
		return err
	}
	for prefix, changes := range map[string]map[string]any{
		codePrefix: {
			"v": 2, "name": "Ä", "hosts": []string{"1.2.3.4"}, "created": time.Time{}, "expires": today.Add(-time.Hour),
			"used_by": map[string]string{"request": "x", "key": r.KeyID},
		},
		requestPrefix: {
			"v": 2, "id": "abcdefgh", "name": "", "state": "granted", "spki": "", "hosts": []string{"HA"}, "created": time.Time{},
			"expires": time.Time{}, "forget": time.Time{}, "cert": nil,
		},
	} {
		key, good := get(prefix)
		if err := decode(prefix, key, good); err != nil {
			t.Fatal(err)
		}
		for field, value := range changes {
			bad := maps.Clone(good)
			bad[field] = value
			if decode(prefix, key, bad) == nil {
				t.Errorf("%s: %s = %v was read", prefix, field, value)
			}
		}
		if decode(prefix, "other", good) == nil {
			t.Errorf("%s: under another key it was read", prefix)
		}
	}
}

func TestOpens(t *testing.T) {
	key, ticket := strings.Repeat("a", 64), strings.Repeat("b", 64)
	c := &code{Created: today, Expires: today.Add(time.Minute), UsedBy: &user{Request: "abcdefgh", KeyID: key, Ticket: ticket}}
	for _, try := range []struct {
		key, ticket string
		want        bool
	}{{key, ticket, true}, {key, "", false}, {key, key, false}, {ticket, ticket, false}, {"", "", false}} {
		if got := c.opens(try.key, try.ticket, today.Add(time.Hour)); got != try.want {
			t.Errorf("opens(%.3s, %.3s) = %v", try.key, try.ticket, got)
		}
	}
}
