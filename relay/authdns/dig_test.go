package authdns

import (
	"context"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// What another DNS implementation makes of the answers.
func TestDig(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("dig is missing: apt-get install dnsutils")
		}
		t.Skip("dig is missing: apt-get install dnsutils")
	}
	w := newWorld(t)
	if err := w.txt.SetTXT(challenge, []string{strings.Repeat("x", 255), strings.Repeat("y", 255), strings.Repeat("z", 255), "w"}, 0); err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(serve(t, w))
	for _, tc := range []struct {
		args string
		want []string
	}{
		{"A 192-168-1-7." + own, []string{"status: NOERROR", "192.168.1.7", "qr aa;"}},
		{"AAAA fd00--7." + own, []string{"fd00::7"}},
		{"A 192-168-1-8." + own, []string{"status: NOERROR", "ANSWER: 0", "AUTHORITY: 1", "SOA"}},
		{"A nothing.example.org", []string{"status: NXDOMAIN", "SOA"}},
		{"A example.net", []string{"status: REFUSED"}},
		{"+recurse A ha.example.org", []string{"flags: qr aa rd;", "recursion requested but not available"}},
		{"ANY ha.example.org", []string{"HINFO", "RFC8482"}},
		{"AXFR example.org", []string{"Transfer failed"}},
		{"TXT " + challenge, []string{"TCP", "ANSWER: 4", `"w"`}},
		{"+ignore TXT " + challenge, []string{"flags: qr aa tc;", "ANSWER: 0"}},
		{"+tcp CAA " + own, []string{"issue " + issued, "issuewild " + issued}},
		{"TYPE65 ha.example.org", []string{"ANSWER: 1"}},
		{"+edns=1 +noednsnegotiation A ha.example.org", []string{"BADVERS"}},
		{"+notcp +bufsize=512 +dnssec A hA.eXample.org", []string{"hA.eXample.org.\t", "flags: do;"}},
		{"CH TXT version.bind", []string{"status: NOTIMP"}},
		{"+opcode=5 SOA example.org", []string{"status: NOTIMP"}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		args := append([]string{"@" + host, "-p", port, "+tries=1", "+time=5", "+norecurse", "+nocookie"}, strings.Fields(tc.args)...)
		out, err := exec.CommandContext(ctx, dig, args...).CombinedOutput()
		cancel()
		for _, want := range tc.want {
			if !strings.Contains(string(out), want) {
				t.Errorf("dig %s lacks %q (%v):\n%s", tc.args, want, err, out)
			}
		}
		for _, bad := range []string{"WARNING: Message", "malformed", "FORMERR", "mismatch"} {
			if strings.Contains(string(out), bad) {
				t.Errorf("dig %s: %s", tc.args, out)
			}
		}
	}
}
