package arch_test

import (
	"strings"
	"testing"

	"github.com/sallyport/sallyport/test/arch"
)

const own = arch.Module + "/"

func parse(t *testing.T, name, src string) *arch.File {
	t.Helper()
	f, err := arch.Parse(name, []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// verdict fails unless check finds a fault exactly when bad says so.
func verdict(t *testing.T, check func([]*arch.File) []string, f *arch.File, bad bool, what string) {
	t.Helper()
	if faults := check([]*arch.File{f}); (len(faults) > 0) != bad {
		t.Errorf("%s: %s: faults %q, want some: %v", f.Name, what, faults, bad)
	}
}

func TestImportRules(t *testing.T) {
	for _, c := range []struct {
		file, imports string
		bad           bool
	}{
		{"protocol/x.go", "net/netip", false},
		{"protocol/x.go", "golang.org/x/net/idna", false},
		{"protocol/x.go", own + "protocol/names", false},
		{"protocol/x.go", "github.com/quic-go/quic-go", true},
		{"protocol/x.go", "golang.org.evil.test/x", true},
		{"protocol/tunnel/tunnelquic/x.go", "github.com/quic-go/quic-go", false},
		{"protocol/tunnel/tunnelquicker/x.go", "github.com/quic-go/quic-go", true},
		{"protocol/tunnel/x_test.go", "go.uber.org/goleak", false},
		{"protocol/x.go", own + "relay/store", true},
		{"protocol/x_test.go", own + "agent", true},
		{"agent/x.go", own + "relay", true},
		{"agent/uplink/x_test.go", own + "relay/edge", true},
		{"relay/edge/x.go", own + "agent/service", true},
		{"relayed/x.go", own + "agent/service", false},
		{"mqttbridge/hub/x.go", own + "relay/store", true},
		{"mqttbridge/hub/x.go", own + "protocol", false},
		{"relay/edge/x.go", own + "relay/registry", true},
		{"relay/edge/x.go", own + "relay/store", false},
		{"relay/edge/x_test.go", own + "relay/store/memstore", false},
		{"relay/store/boltstore/x.go", own + "relay/store", false},
		{"relay/store/x.go", own + "relay/devices", true},
		{"relay/edge/x.go", own + "relay", true},
		{"relay/x.go", own + "relay/edge", false},
		{"agent/lan/x.go", own + "agent/service", false},
		{"agent/uplink/x.go", own + "agent/service", true},
		{"agent/uplink/x.go", own + "agent", true},
		{"agent/x.go", own + "agent/service", false},
		{"cmd/sallyport/x.go", own + "relay/devices", false},
		{"relay/x.go", own + "cmd/sallyport/configfile", true},
		{"relay/x_test.go", own + "test/world", true},
		{"test/e2e/x_test.go", own + "test/world", false},
		{"relay/x.go", "testing", true},
		{"relay/x.go", own + "protocol/tunnel/tunneltest", true},
		{"relay/x_test.go", own + "protocol/tunnel/tunneltest", false},
		{"protocol/tunnel/tunneltest/x.go", "testing", false},
		{"test/world/x.go", "testing", false},
	} {
		f := parse(t, c.file, "package x\nimport _ \""+c.imports+"\"\n")
		verdict(t, arch.CheckImports, f, c.bad, c.imports)
	}
}

func TestCallRules(t *testing.T) {
	const head = "package x\nimport (\"time\"; \"os\"; \"log\"; \"testing/synctest\"; zeit \"time\")\n"
	for _, c := range []struct {
		file, body string
		bad        bool
	}{
		{"relay/x_test.go", `func TestA() { time.Sleep(1) }`, true},
		{"relay/x_test.go", `func TestA() { zeit.Sleep(1) }`, true},
		{"relay/x_test.go", `func TestA() { f := time.Sleep; f(1) }`, true},
		{"relay/x_test.go", `func TestA() { synctest.Test(t, func(t *T) { time.Sleep(1) }) }`, false},
		{"relay/x_test.go", `func TestA() { synctest.Test(t, nil); time.Sleep(1) }`, true},
		{"relay/x_test.go", `func TestA() { f := func() { time.Sleep(1) }; synctest.Test(t, func(t *T) { f() }) }`, false},
		{"relay/x_test.go", `func TestA() { go func() { time.Sleep(1) }() }`, true},
		{"relay/x_test.go", "// wait runs in a synctest bubble.\nfunc wait() { time.Sleep(1) }", false},
		{"relay/x_test.go", "// settle passes virtual time.\nfunc settle() { time.Sleep(1) }", false},
		{"relay/x_test.go", "func settle() {\ntime.Sleep(1) // virtual\n}", false},
		{"relay/x_test.go", "func settle() { // virtual\ntime.Sleep(1)\n}", true},
		{"relay/x_test.go", "// settle waits.\nfunc settle() { time.Sleep(1) }", true},
		{"relay/x_test.go", `func settle() { time.Sleep(1); synctest.Wait() }`, false},
		{"relay/x_test.go", `func TestA(clock C) { clock.Sleep(1) }`, false},
		{"test/real/x_test.go", `func TestA() { time.Sleep(1) }`, false},
		{"test/realm/x_test.go", `func TestA() { time.Sleep(1) }`, true},
		{"test/e2e/x_test.go", `func TestA() { time.Sleep(1) }`, true},
		{"relay/x.go", `func a() { os.Exit(1) }`, true},
		{"relay/x.go", `func a() { log.Fatalf("x") }`, true},
		{"cmd/sallyport/relay.go", `func a() { os.Exit(1) }`, true},
		{"cmd/sallyport/main.go", `func main() { os.Exit(1) }`, false},
	} {
		verdict(t, arch.CheckCalls, parse(t, c.file, head+c.body+"\n"), c.bad, c.body)
	}
}

func TestFieldRules(t *testing.T) {
	for _, c := range []struct {
		file, body string
		bad        bool
	}{
		{"relay/x.go", `var c = tls.Config{VerifyPeerCertificate: f}`, true},
		{"relay/x.go", `func a() { c.VerifyPeerCertificate = f }`, true},
		{"relay/x.go", `var c = tls.Config{VerifyConnection: f}`, false},
		{"relay/x.go", `var p = &httputil.ReverseProxy{Director: f}`, true},
		{"relay/x_test.go", `var p = &httputil.ReverseProxy{Director: f}`, false},
		{"relay/x.go", `func init() {}`, true},
		{"relay/x.go", `func (t T) init() {}`, false},
	} {
		verdict(t, arch.CheckFields, parse(t, c.file, "package x\n"+c.body+"\n"), c.bad, c.body)
	}
}

func TestSizeCommentsPlaces(t *testing.T) {
	verdict(t, arch.CheckSize, parse(t, "relay/x.go", "package x\n"+strings.Repeat("\n", 599)), false, "600 lines")
	verdict(t, arch.CheckSize, parse(t, "relay/x.go", "package x\n"+strings.Repeat("\n", 600)), true, "601 lines")
	verdict(t, arch.CheckComments, parse(t, "relay/x.go", "package x\n"), true, "no comment")
	verdict(t, arch.CheckComments, parse(t, "relay/x.go", "//go:build linux\n\npackage x\n"), true, "a build tag is no comment")
	verdict(t, arch.CheckComments, parse(t, "relay/x.go", "// Package x is.\npackage x\n"), false, "a comment")
	twice := []*arch.File{parse(t, "relay/x.go", "// Package x is.\npackage x\n"), parse(t, "relay/y.go", "// Package x was.\npackage x\n")}
	if len(arch.CheckComments(twice)) == 0 {
		t.Error("two package comments are not found")
	}
	for dir, bad := range map[string]bool{"relay/edge": false, "internal/x": true, "relay/util": true, "x": true, "utilities/x": true, "test/arch": false, ".": true} {
		verdict(t, arch.CheckPlaces, parse(t, dir+"/x.go", "package x\n"), bad, "place")
	}
}
