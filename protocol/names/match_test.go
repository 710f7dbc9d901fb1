package names_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/protocol/names"
)

func TestValidPattern(t *testing.T) {
	for in, want := range map[string]string{
		"door.test": "door.test", "DOOR.test.": "door.test", "*.door.test": "*.door.test", "*.DOOR.test.": "*.door.test",
		"*.test": "*.test", "*.bücher.example": "*.xn--bcher-kva.example",
	} {
		if got, err := names.ValidPattern(in); err != nil || got != want {
			t.Errorf("ValidPattern(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "*", "*.", "*..", "*.*.test", "a.*.test", "*a.test", "a*.test", "**.test", "*.127.0.0.1", "*.door.test:443", ".door.test",
		"＊.test", "*.xn--door-.test", "?.test", "[a].test", "*.\x00", "*." + strings.Repeat("a.", 125) + "aa",
	} {
		if got, err := names.ValidPattern(in); err == nil {
			t.Errorf("ValidPattern(%.80q) = %q, want an error", in, got)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"door.test", "door.test", true},
		{"door.test", "xdoor.test", false},
		{"door.test", "a.door.test", false},
		{"*.door.test", "a.door.test", true},
		{"*.door.test", "door.test", false},
		{"*.door.test", "a.b.door.test", false},
		{"*.door.test", "adoor.test", false},
		{"*.door.test", ".door.test", false},
		{"*.door.test", "*.door.test", false},
		{"*.test", "DOOR.test", false},
		{"*.test", "door.test", true},
		{"*.test", "test", false},
		{"*", "door", false},
		{"*.", "door.", false},
		{"", "", false},
		{"", "door.test", false},
		{"door.test", "", false},
	} {
		if got := names.Match(c.pattern, c.name); got != c.want {
			t.Errorf("Match(%q, %q) = %v", c.pattern, c.name, got)
		}
	}
}

// slowMatch says what Match should, label by label.
func slowMatch(pattern, name string) bool {
	p, n := strings.Split(pattern, "."), strings.Split(name, ".")
	if len(p) != len(n) {
		return false
	}
	for i := range p {
		if !(p[i] == n[i] || i == 0 && p[i] == "*") {
			return false
		}
	}
	return true
}

func FuzzMatch(f *testing.F) {
	f.Add("*.door.test", "a.door.test")
	f.Add("*.door.test", "a.b.door.test")
	f.Add("door.test", "DOOR.test.")
	f.Add("*.test", "test")
	f.Add("*.bücher.example", "a.XN--bcher-kva.example")
	f.Fuzz(func(t *testing.T, rawPattern, rawName string) {
		pattern, err := names.ValidPattern(rawPattern)
		if err != nil {
			return
		}
		name, err := names.Canonical(rawName)
		if err != nil {
			return
		}
		want := slowMatch(pattern, name)
		if got := names.Match(pattern, name); got != want {
			t.Errorf("Match(%q, %q) = %v, want %v", pattern, name, got, want)
		}
		table, err := names.NewTable(map[string]int{rawPattern: 1})
		if err != nil {
			t.Fatalf("NewTable refuses %q, which ValidPattern takes: %v", rawPattern, err)
		}
		if _, got := table.Lookup(name); got != want {
			t.Errorf("a table with %q finds %q: %v, want %v", pattern, name, got, want)
		}
	})
}

func TestTable(t *testing.T) {
	table, err := names.NewTable(map[string]string{
		"door.test": "exact", "*.DOOR.test": "wild", "ha.door.test": "inner", "*.test": "top", "Other.Example.": "other",
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"door.test": "exact", "ha.door.test": "inner", "b.door.test": "wild", "x.test": "top", "other.example": "other",
		"a.b.door.test": "", "test": "", "": "", "*.door.test": "", "door.test.": "", "DOOR.test": "",
	} {
		if got, ok := table.Lookup(name); got != want || ok != (want != "") {
			t.Errorf("Lookup(%q) = %q, %v; want %q", name, got, ok, want)
		}
	}
	if table.Len() != 5 {
		t.Errorf("Len = %d, want 5", table.Len())
	}
}

func TestTableRefuses(t *testing.T) {
	_, err := names.NewTable(map[string]int{"door.test": 1, "DOOR.test.": 2, "*.a.test": 3, "*.A.test": 4, "127.0.0.1": 5, "fine.test": 6})
	if err == nil {
		t.Fatal("a table with duplicates and an address was made")
	}
	for _, want := range []string{`"door.test" is there twice`, `"*.a.test" is there twice`, `"127.0.0.1"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %s:\n%v", want, err)
		}
	}
}

func TestEmptyTable(t *testing.T) {
	var none *names.Table[int]
	var zero names.Table[int]
	for _, table := range []*names.Table[int]{none, &zero} {
		if _, ok := table.Lookup("door.test"); ok || table.Len() != 0 {
			t.Error("an empty table found something")
		}
	}
}

func TestReserved(t *testing.T) {
	hash := strings.Repeat("a2", 26)
	const domain = "example.org"
	for _, name := range []string{
		domain, "www.example.org", "enroll.example.org", "check.example.org", "admin.example.org", "mqtt.example.org", "home.example.org",
		"relay.example.org", "*.org", "t-1.example.org", "t-abc.example.org", hash + ".example.org", "*.example.org",
	} {
		if !names.IsReserved(name, domain) {
			t.Errorf("%q is not reserved", name)
		}
	}
	for _, name := range []string{
		"ha.example.org", "www.ha.example.org", "*.ha.example.org", "tx.example.org", "homes.example.org", hash + "a.example.org", hash[1:] + ".example.org",
		"*.com", "*.relay.example.org", "relays.example.org", "www.example.com", "www.notexample.org", strings.Repeat("a1", 26) + ".example.org", "org", "",
	} {
		if names.IsReserved(name, domain) {
			t.Errorf("%q is reserved", name)
		}
	}
	if !names.IsReserved("*.test", "ex.test") {
		t.Error("a foreign wildcard takes the relay's own domain")
	}
}

func TestBelow(t *testing.T) {
	for name, want := range map[string]bool{
		"ha.example.org": true, "a.b.example.org": true, "*.example.org": true, "*.ha.example.org": true,
		"example.org": false, ".example.org": false, "badexample.org": false, "example.org.evil.test": false, "org": false, "": false,
	} {
		if got := names.Below(name, "example.org"); got != want {
			t.Errorf("Below(%q) = %v", name, got)
		}
	}
	if names.Below("a.", "") {
		t.Error("something lies below no domain")
	}
}

func ExampleTable() {
	table, err := names.NewTable(map[string]string{"ha.example.org": "exact", "*.example.org": "wildcard"})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, sni := range []string{"HA.example.org", "tv.example.org", "a.tv.example.org", "example.org"} {
		name, err := names.Canonical(sni)
		if err != nil {
			fmt.Println(err)
			continue
		}
		v, ok := table.Lookup(name)
		fmt.Printf("%s %v %q\n", name, ok, v)
	}
	// Output:
	// ha.example.org true "exact"
	// tv.example.org true "wildcard"
	// a.tv.example.org false ""
	// example.org false ""
}
