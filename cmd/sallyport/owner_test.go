package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/relay/admin"
)

// owner is a person at the relay's machine: a real socket and client, with
// what the relay does behind them made up by the test.
type owner struct {
	t   *testing.T
	dir string
	api admin.API
}

func newOwner(t *testing.T, api admin.API) *owner {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := admin.New(admin.Config{Dir: dir, API: api})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &owner{t: t, dir: dir, api: api}
}

// types runs a command as the owner types it, with --data.
func (o *owner) types(line string, more ...string) (code int, out, errs string) {
	o.t.Helper()
	var stdout, stderr strings.Builder
	args := append([]string{"sallyport"}, strings.Fields(line)...)
	args = append(append(args, more...), "--data", o.dir)
	code = run(o.t.Context(), args, stdio{in: strings.NewReader(""), out: &stdout, err: &stderr})
	return code, stdout.String(), strings.ReplaceAll(stderr.String(), o.dir, "DIR")
}

// must runs a command that succeeds.
func (o *owner) must(line string) (out, errs string) {
	o.t.Helper()
	code, out, errs := o.types(line)
	if code != 0 {
		o.t.Fatalf("%s: exit code %d\n%s%s", line, code, out, errs)
	}
	return strings.ReplaceAll(out, o.dir, "DIR"), errs
}

const secretCode = "SECRETCODESECRETCODESECRET"

func TestInvite(t *testing.T) {
	var got admin.InviteRequest
	o := newOwner(t, admin.API{Invite: func(_ context.Context, q admin.InviteRequest) (admin.Invite, error) {
		got = q
		return admin.Invite{Name: q.Name, Link: "https://enroll.home.test/#" + secretCode, Expires: time.Now().Add(time.Hour), Approve: q.Approve}, nil
	}})
	out, errs := o.must("device add anna-phone --hosts ha,photos --until 2h --ttl 1h --admin --approve")
	if out != "https://enroll.home.test/#"+secretCode+"\n" {
		t.Errorf("the link is not alone on stdout: %q", out)
	}
	if strings.Contains(errs, secretCode) {
		t.Errorf("the code is on stderr, which may be a journal: %s", errs)
	}
	for _, want := range []string{"device approve anna-phone --data DIR\n", "undo: sallyport device revoke anna-phone --data DIR\n", "send it to nobody else"} {
		if !strings.Contains(errs, want) {
			t.Errorf("missing %q in\n%s", want, errs)
		}
	}
	if d := time.Until(got.Until); got.Name != "anna-phone" || strings.Join(got.Hosts, " ") != "ha photos" || got.TTL != 3600 || !got.Admin || !got.Approve || d < 119*time.Minute || d > 2*time.Hour {
		t.Errorf("asked for %+v", got)
	}
	// Who is let in by a name of his own choice is looked at first.
	code, out, errs := o.types("device add", "")
	if code != 0 || got.Name != "" || !got.Approve || !strings.HasSuffix(out, secretCode+"\n") {
		t.Errorf("exit code %d, asked for %+v", code, got)
	}
	for _, want := range []string{"open this on the device, once", "so that it always waits for you; who waits: sallyport device list --data DIR\n", "undo: sallyport device withdraw ID --data DIR "} {
		if !strings.Contains(errs, want) {
			t.Errorf("missing %q in\n%s", want, errs)
		}
	}
	_, errs = o.must("device add tablet")
	if strings.Contains(errs, "approve") || got.TTL != 900 || !got.Until.IsZero() || got.Admin || got.Approve || got.Hosts != nil {
		t.Errorf("asked for %+v, said\n%s", got, errs)
	}
}

func TestDeviceAddFlagsThatDoNotFit(t *testing.T) {
	o := newOwner(t, admin.API{}) // anything that reaches it fails with 69
	for line, want := range map[string]string{
		"device add x --pem . --csr f":              "not --csr and --pem",
		"device add x --token --p12 f --hosts a":    "not --p12 and --token",
		"device add x --pem . --approve":            "--approve goes with a link only",
		"device add x --csr f --ttl 1h":             "--ttl goes with a link only",
		"device add x --password-file f":            "--password-file goes with --p12 only",
		"device add x --path /a/":                   "--path goes with --token only",
		"device add x --pem . --out f":              "--out goes with --csr and --token only",
		"device add x --token --admin --hosts a":    "--admin does not go with --token",
		"device add x --token":                      "wants the one host",
		"device add x --token --hosts a,b":          "wants the one host",
		"device add x --ttl 0s":                     "too short",
		"device add x --until -1h":                  "in the past",
		"device add x --csr f --out none/x":         "there is no directory none",
		"device add":                                "takes one NAME",
		"device add a b":                            "takes one NAME",
		"device set x":                              "nothing to change",
		"device set x --hosts a --all-hosts":        "exclude each other",
		"device set x --until 1h --no-until":        "exclude each other",
		"device set x --admin --no-admin":           "exclude each other",
		"device set x --until -1h":                  "in the past",
		"device set":                                "takes one NAME",
		"device approve":                            "takes one ID or NAME",
		"device deny a b":                           "takes one ID or NAME",
		"device withdraw":                           "takes one ID",
		"device withdraw a b":                       "takes one ID",
		"device clock":                              "nothing to do without --reset",
		"device clock x --reset":                    "unexpected argument",
		"relay certs x":                             "unexpected argument",
		"relay dashboard x":                         "unexpected argument",
		"device add x --token --hosts a --path":     "wants a value",
		"device add https://enroll.x/#SECRETSECR x": "takes one NAME",
	} {
		code, out, errs := o.types(line)
		if code != exitUsage || !strings.Contains(errs, want) || out != "" || strings.Contains(errs, "SECRETSECR") {
			t.Errorf("%s: exit code %d\n%s%s", line, code, out, errs)
		}
	}
}

func TestTokenDevice(t *testing.T) {
	const secret = "topsecrettopsecrettopsecre"
	var got admin.TokenDeviceRequest
	o := newOwner(t, admin.API{AddTokenDevice: func(_ context.Context, q admin.TokenDeviceRequest) (admin.TokenDevice, error) {
		got = q
		return admin.TokenDevice{Secret: secret, URL: "https://t-abc.home.test/", Device: admin.Device{
			Name: q.Name, Path: q.Path, Target: "photos.home.test", TokenHost: "t-abc.home.test", Until: q.Until,
		}}, nil
	}})
	out, errs := o.must("device add tv --token --hosts photos --path /api/ --until 48h")
	if out != secret+"\n" || strings.Contains(errs, secret) {
		t.Errorf("the secret is not alone on stdout: %q\n%s", out, errs)
	}
	for _, want := range []string{
		"tv reaches photos.home.test/api/ at https://t-abc.home.test/ until ", "'Authorization: Bearer SECRET' https://t-abc.home.test/api/\n",
		"https://t-abc.home.test/SECRET/api/\n", "undo: sallyport device revoke tv --data DIR\n",
	} {
		if !strings.Contains(errs, want) {
			t.Errorf("missing %q in\n%s", want, errs)
		}
	}
	if got.Host != "photos" || got.Path != "/api/" || time.Until(got.Until) < 47*time.Hour {
		t.Errorf("asked for %+v", got)
	}
	file := filepath.Join(t.TempDir(), "secret")
	out, errs = o.must("device add tv --token --hosts photos --out " + file)
	raw, err := os.ReadFile(file)
	if err != nil || string(raw) != secret+"\n" || strings.Contains(out+errs, secret) {
		t.Errorf("%q, %v\n%s%s", raw, err, out, errs)
	}
	if st, _ := os.Stat(file); st.Mode().Perm() != 0o600 {
		t.Errorf("the secret's file has mode %v", st.Mode().Perm())
	}
	if strings.Contains(errs, " until ") || !strings.Contains(errs, "  or in the URL:  https://t-abc.home.test/SECRET/\n") {
		t.Error(errs)
	}
}

func TestTokenThatCannotBeKeptIsRevoked(t *testing.T) {
	var revoked string
	o := newOwner(t, admin.API{
		AddTokenDevice: func(context.Context, admin.TokenDeviceRequest) (admin.TokenDevice, error) {
			return admin.TokenDevice{Secret: "topsecret"}, nil
		},
		RevokeDevice: func(_ context.Context, name string) (admin.Device, error) {
			revoked = name
			return admin.Device{}, nil
		},
	})
	dir := t.TempDir() // a directory is no file
	code, out, errs := o.types("device add tv --token --hosts photos --out " + dir)
	if code != exitFailed || revoked != "tv" || strings.Contains(out+errs, "topsecret") {
		t.Errorf("exit code %d, revoked %q\n%s%s", code, revoked, out, errs)
	}
}

func TestDeviceList(t *testing.T) {
	now := time.Now()
	pending := admin.EnrolRequest{
		ID: "AB12CD34", Name: "anna-phone", State: "pending", Via: "browser", Agent: "Mozilla\x1b[2J/5.0", Source: "192.0.2.7",
		Words: "apple bird cat dog elk fox", Created: now.Add(-3 * time.Minute), Hosts: []string{"ha.home.test"}, Admin: true,
	}
	denied := pending
	denied.ID, denied.State = "ZZ", "denied"
	printer := admin.EnrolRequest{
		ID: "PR1NT3R0", Name: "printer", State: "pending", Via: "scep", Source: "192.0.2.8", Words: "yak zoo", KeyID: "2c26b46b68ffc68ff99b453c", Created: now,
	}
	waiting := []admin.EnrolRequest{pending, denied, printer}
	o := newOwner(t, admin.API{
		Requests: func(context.Context) ([]admin.EnrolRequest, error) { return waiting, nil },
		Invites: func(context.Context) ([]admin.WaitingInvite, error) {
			return []admin.WaitingInvite{
				{ID: "q7", Name: "carl", By: "pauls-phone", Hosts: []string{"ha.home.test"}, Created: now.Add(-time.Minute), Expires: now.Add(time.Hour)},
				{ID: "x9", By: "local", Admin: true, Approve: true, Created: now.Add(-time.Hour), Expires: now.Add(time.Hour)},
			}, nil
		},
		Devices: func(context.Context) ([]admin.Device, error) {
			return []admin.Device{
				{Name: "laptop", Admin: true, NotAfter: now.Add(time.Hour), LastSeen: now, DueForRenewal: true},
				{Name: "guest", Hosts: []string{"ha.home.test", "photos.home.test"}, NotAfter: now.AddDate(1, 0, 0), Until: now.Add(-time.Minute)},
				{Name: "old", Revoked: true, NotAfter: now.AddDate(1, 0, 0)},
				{Name: "tv", Kind: "token", TokenHost: "t-abc.home.test", Target: "photos.home.test", Path: "/api/"},
			}, nil
		},
	})
	out, _ := o.must("device list")
	lines := strings.Split(out, "\n")
	for i, want := range []string{
		"WAITS  AB12CD34  anna-phone, asks for ha.home.test and would be an administrator",
		"       words: apple bird cat dog elk fox",
		"       from 192.0.2.7, 3m ago, by browser: Mozilla?[2J/5.0",
		"WAITS  PR1NT3R0  printer, asks for all",
		"       key: 2c26 b46b 68ff c68f",
		"       this device cannot show the words: approve only if you started it yourself just now",
		"       from 192.0.2.8, 0s ago, by scep",
		"       are these the words on its screen? then: sallyport device approve ID --data DIR   otherwise: … deny ID",
		"",
		"links that wait, used by nobody yet; void one: sallyport device withdraw ID --data DIR",
		"ID   FOR          MAY VISIT      COMES IN                MADE BY               UNTIL",
		"q7   carl         ha.home.test   at once                 pauls-phone, 1m ago   20",
		"x9   (any name)   all            if approved, as admin   local, 1h00m ago      20",
		"",
		"NAME     STATE                    MAY VISIT ",
		"laptop   ok, admin, renewal due   all ",
		"guest    expired                  ha.home.test,photos.home.test ",
		"old      revoked                  all ",
		"tv       token                    photos.home.test/api/ by t-abc.home.test   no end",
	} {
		if i >= len(lines) || !strings.HasPrefix(lines[i], want) {
			t.Fatalf("line %d is not %q:\n%s", i+1, want, out)
		}
	}
	if strings.Contains(out, "yak") || strings.Contains(out, "ZZ") || strings.Contains(out, "\x1b") {
		t.Errorf("words that no screen shows, a decided request or a control character:\n%s", out)
	}
	out, _ = o.must("device list --json")
	for _, want := range []string{`"schema": 1`, `"words": "apple bird cat dog elk fox"`, `"token_host": "t-abc.home.test"`, `"by": "pauls-phone"`} {
		if !strings.Contains(out, want) {
			t.Errorf("missing %s in\n%s", want, out)
		}
	}
	waiting = waiting[2:]
	if out, _ = o.must("device list"); strings.Contains(out, "words on its screen") || !strings.Contains(out, "is it yours? then: sallyport device approve ID --data DIR") {
		t.Error(out)
	}
}

func TestNoDevices(t *testing.T) {
	o := newOwner(t, admin.API{
		Requests: func(context.Context) ([]admin.EnrolRequest, error) { return nil, nil },
		Invites:  func(context.Context) ([]admin.WaitingInvite, error) { return nil, nil },
		Devices:  func(context.Context) ([]admin.Device, error) { return nil, nil },
	})
	if out, _ := o.must("device list"); out != "no devices; add one with: sallyport device add NAME --data DIR\n" {
		t.Error(out)
	}
	if out, _ := o.must("device list --json"); !strings.Contains(out, `"requests": []`) || !strings.Contains(out, `"invites": []`) || !strings.Contains(out, `"devices": []`) {
		t.Error(out)
	}
}

func TestApproveAndDeny(t *testing.T) {
	via, hosts, until := "browser", []string(nil), time.Time{}
	answer := func(_ context.Context, id string) (admin.EnrolRequest, error) {
		if id != "AB12CD34" {
			return admin.EnrolRequest{}, &admin.Error{Code: admin.CodeNotFound, Message: "nobody waits by that name", Hint: "look again"}
		}
		return admin.EnrolRequest{ID: id, Name: "anna-phone", Words: "apple bird", Via: via, KeyID: "2c26b46b", Hosts: hosts, Until: until, Admin: len(hosts) > 0}, nil
	}
	o := newOwner(t, admin.API{Approve: answer, Deny: answer})
	if out, _ := o.must("device approve AB12CD34"); out != "anna-phone may come in (all)\nits words were: apple bird\nundo: sallyport device revoke anna-phone --data DIR\n" {
		t.Error(out)
	}
	via = "est"
	if out, _ := o.must("device approve AB12CD34"); !strings.Contains(out, "\nits key was: 2c26 b46b\n") || strings.Contains(out, "apple") {
		t.Error(out)
	}
	if out, _ := o.must("device deny AB12CD34"); out != "anna-phone is turned away\nundo: a new link, sallyport device add anna-phone --approve --data DIR\n" {
		t.Error(out)
	}
	hosts, until = []string{"ha", "*.home.test"}, time.Date(2100, 1, 2, 3, 4, 5, 6, time.Local)
	want := "undo: a new link, sallyport device add anna-phone --hosts 'ha,*.home.test' --until " + until.Format(time.RFC3339) + " --admin --approve --data DIR\n"
	if out, _ := o.must("device deny AB12CD34"); !strings.HasSuffix(out, want) {
		t.Errorf("%s\nwant %s", out, want)
	}
	until = time.Now().Add(-time.Hour)
	if out, _ := o.must("device deny AB12CD34"); strings.Contains(out, "sallyport") || !strings.Contains(out, "its time was over on 20") {
		t.Error(out)
	}
	if code, _, errs := o.types("device approve nobody"); code != exitFailed || errs != "sallyport: nobody waits by that name\n  Look again\n" {
		t.Errorf("exit code %d, %s", code, errs)
	}
}

func TestWithdrawAndClock(t *testing.T) {
	withdrawn, resets := "", 0
	links := []admin.WaitingInvite{{ID: "x1"}, {ID: "q7", Name: "carl", Hosts: []string{"ha"}, Until: time.Date(2100, 1, 2, 3, 4, 5, 0, time.UTC), Admin: true, Approve: true}}
	o := newOwner(t, admin.API{
		Invites:        func(context.Context) ([]admin.WaitingInvite, error) { return links, nil },
		WithdrawInvite: func(_ context.Context, id string) error { withdrawn = id; return nil },
		ResetClock:     func(context.Context) error { resets++; return nil },
	})
	until := links[1].Until.Local().Format(time.RFC3339)
	if out, _ := o.must("device withdraw q7"); withdrawn != "q7" || out != "link q7 opens nothing any more\nundo: a new link, sallyport device add carl --hosts ha --until "+until+" --admin --approve --data DIR\n" {
		t.Errorf("withdrew %q: %s", withdrawn, out)
	}
	if out, _ := o.must("device withdraw x1"); out != "link x1 opens nothing any more\nundo: a new link, sallyport device add '' --data DIR\n" {
		t.Error(out)
	}
	if o.types("device clock"); resets != 0 {
		t.Error("the clock is reset without being told to")
	}
	if out, _ := o.must("device clock --reset"); resets != 1 || !strings.HasPrefix(out, "devices are judged by this machine's clock again; it says 20") {
		t.Errorf("%d resets: %s", resets, out)
	}
}

// A token is a door of its own: status shows those that are open.
func TestStatusShowsTokens(t *testing.T) {
	now := time.Now()
	tv := admin.Device{Name: "tv", Kind: "token", TokenHost: "t-abc.home.test", URL: "https://t-abc.home.test/", Target: "photos.home.test", Path: "/api/"}
	ended, gone := tv, tv
	ended.Name, ended.Until = "ended", now.Add(-time.Minute)
	gone.Name, gone.Revoked = "gone", true
	o := newOwner(t, admin.API{
		Status:       func(context.Context) (admin.Status, error) { return admin.Status{Domain: "home.test"}, nil },
		Certificates: func(context.Context) ([]admin.PublicCert, error) { return nil, nil },
		Requests:     func(context.Context) ([]admin.EnrolRequest, error) { return nil, nil },
		Devices: func(context.Context) ([]admin.Device, error) {
			return []admin.Device{{Name: "laptop", NotAfter: now.Add(time.Hour)}, ended, tv, gone}, nil
		},
	})
	out, errs := o.must("status")
	if !strings.Contains(out, "\nTOKEN   REACHES                 AT                         UNTIL    LAST SEEN\n"+
		"tv      photos.home.test/api/   https://t-abc.home.test/   no end   never\n") || strings.Contains(out, "laptop") || errs != "" {
		t.Errorf("%s%s", out, errs)
	}
	out, _ = o.must("status --json")
	if !strings.Contains(out, `"tokens": [`) || !strings.Contains(out, `"token_host": "t-abc.home.test"`) || strings.Contains(out, "ended") || strings.Contains(out, "gone") {
		t.Error(out)
	}
}

func TestDeviceSet(t *testing.T) {
	device := admin.Device{ID: "1", Name: "anna", Hosts: []string{"ha.home.test"}, NotAfter: time.Now().AddDate(1, 0, 0), Admin: true}
	var got admin.DeviceChange
	o := newOwner(t, admin.API{
		Devices: func(context.Context) ([]admin.Device, error) {
			return []admin.Device{{ID: "0", Name: "x"}, device}, nil
		},
		ChangeDevice: func(_ context.Context, name string, c admin.DeviceChange) (admin.Device, error) {
			got = c
			d := device
			if c.Hosts != nil {
				d.Hosts = *c.Hosts
			}
			if c.Admin != nil {
				d.Admin = *c.Admin
			}
			if c.Until != nil {
				d.Until = *c.Until
			}
			return d, nil
		},
	})
	out, _ := o.must("device set anna --hosts photos,nas")
	if !strings.HasPrefix(out, "anna may visit photos,nas, until ") || !strings.Contains(out, ", and is an administrator; this holds already\n") ||
		!strings.HasSuffix(out, "undo: sallyport device set anna --hosts ha.home.test --data DIR\n") {
		t.Error(out)
	}
	if got.Until != nil || got.Admin != nil || len(*got.Hosts) != 2 {
		t.Errorf("asked for %+v", got)
	}
	out, _ = o.must("device set anna --all-hosts --no-admin --until 2h")
	if got.Hosts == nil || len(*got.Hosts) != 0 || *got.Admin || time.Until(*got.Until) < 119*time.Minute {
		t.Errorf("asked for %+v", got)
	}
	if !strings.HasSuffix(out, "undo: sallyport device set anna --hosts ha.home.test --no-until --admin --data DIR\n") {
		t.Error(out)
	}
	device.Hosts, device.Admin, device.Until = nil, false, time.Now().Add(time.Hour)
	out, _ = o.must("device set anna --hosts ha --no-until --admin")
	if got.Until == nil || !got.Until.IsZero() || !*got.Admin {
		t.Errorf("asked for %+v", got)
	}
	if !strings.Contains(out, "undo: sallyport device set anna --all-hosts --until "+device.Until.Format(time.RFC3339)+" --no-admin --data DIR\n") {
		t.Error(out)
	}
	// A guest's certificate ends with his time: without --until it ends then, too.
	device.Until = device.NotAfter
	out, _ = o.must("device set anna --no-until --no-admin")
	if !strings.Contains(out, ", and is no administrator; this") || !strings.Contains(out, "\nits end is as it was: its certificate ends then\n") ||
		!strings.Contains(out, "undo: sallyport device set anna --until "+device.Until.Format(time.RFC3339)+" --data DIR\n") {
		t.Error(out)
	}
	device.Until = time.Time{}
	if out, _ = o.must("device set anna --no-until"); !strings.HasSuffix(out, "\nits end is as it was: its certificate ends then\nnothing changed: it was so already\n") {
		t.Error(out)
	}
	out, _ = o.must("device set anna --until 2100-12-24")
	if want := time.Date(2100, 12, 24, 23, 59, 59, 0, time.Local); !got.Until.Equal(want) {
		t.Errorf("asked for %v, want %v: %s", got.Until, want, out)
	}
	if code, _, errs := o.types("device set anna --until soon"); code != exitUsage || !strings.Contains(errs, `--until: "soon" is neither`) || !strings.Contains(errs, "2h30m, 2d or 1w") {
		t.Errorf("exit code %d, %s", code, errs)
	}
}

// An administrator without a dashboard to open, and hosts that nobody offers,
// are told, and done all the same.
func TestRightsThatOpenNothing(t *testing.T) {
	certs := []admin.PublicCert{{Host: "enroll.home.test"}, {Host: "admin.home.test"}}
	o := newOwner(t, admin.API{
		Status: func(context.Context) (admin.Status, error) {
			return admin.Status{Domain: "home.test", Hosts: []admin.Host{
				{Host: "ha.home.test", Services: []admin.HostService{{Name: "ha"}}},
				{Host: "*.cam.home.test", Services: []admin.HostService{{Name: "cam"}}},
				{Host: "gone.home.test"},
			}, MQTT: &admin.MQTT{}}, nil
		},
		Certificates: func(context.Context) ([]admin.PublicCert, error) { return certs, nil },
		Devices:      func(context.Context) ([]admin.Device, error) { return nil, nil },
		ChangeDevice: func(_ context.Context, name string, c admin.DeviceChange) (admin.Device, error) {
			return admin.Device{ID: "1", Name: name, Admin: c.Admin != nil && *c.Admin}, nil
		},
		Invites: func(context.Context) ([]admin.WaitingInvite, error) {
			return []admin.WaitingInvite{{ID: "1", Name: "anna"}}, nil
		},
		Invite: func(_ context.Context, q admin.InviteRequest) (admin.Invite, error) {
			return admin.Invite{Name: q.Name, Link: "https://enroll.home.test/#x"}, nil
		},
	})
	for hosts, want := range map[string]string{
		"ha": "", "ha.home.test": "", "mqtt,home": "", "cam": "offers cam.home.test now", "a.cam.home.test": "", "*.home.test": "", "gone": "no home offers gone.home.test now; it opens nothing until one does; sallyport status --data DIR shows",
		"ha,photo": "offers photo.home.test now", "*.cam.home.test": "", "ha.home.tst": "offers ha.home.tst now; it is not below home.test: is it spelled right?",
	} {
		for _, line := range []string{"device add x --hosts ", "device set x --hosts "} {
			_, errs := o.must(line + hosts)
			if n := strings.Count(errs, "warning: "); !strings.Contains(errs, want) || n != min(len(want), 1) {
				t.Errorf("%s%s: want %q\n%s", line, hosts, want, errs)
			}
		}
	}
	if _, errs := o.must("device set x --admin"); strings.Contains(errs, "warning") {
		t.Error(errs)
	}
	certs = certs[:1]
	if _, errs := o.must("device set x --admin"); !strings.Contains(errs, "warning: there is no dashboard at admin.home.test now") {
		t.Error(errs)
	}
	if _, errs := o.must("device set x --no-admin"); strings.Contains(errs, "warning") {
		t.Error(errs)
	}
	if _, errs := o.must("device add anna"); !strings.Contains(errs, "the earlier link for anna is void\n") {
		t.Error(errs)
	}
	if _, errs := o.must("device add carl"); strings.Contains(errs, "void") {
		t.Error(errs)
	}
}

// What is typed to bring something back gives what there was, and no more.
func TestRightsAgain(t *testing.T) {
	now := time.Now()
	end := now.Add(time.Hour).Truncate(time.Second)
	for want, r := range map[string]rights{
		"sallyport device add x --data d": {},
		"sallyport device add x --token --hosts a.b --path /api/ --until " + end.Local().Format(time.RFC3339) + " --data d": rightsOf(admin.Device{
			TokenHost: "t", Target: "a.b", Path: "/api/", Until: end,
		}),
		"sallyport device add x --hosts 'a,b' --admin --data d":   rightsOf(admin.Device{Hosts: []string{"a", "b"}, Admin: true, NotAfter: end}),
		"sallyport device add x --hosts a --approve --data d":     rightsOfLink(admin.WaitingInvite{Hosts: []string{"a"}, Approve: true}),
		"sallyport device add x --hosts '*.a' --approve --data d": rightsOfRequest(admin.EnrolRequest{Hosts: []string{"*.a"}}),
		"": {until: now},
	} {
		if got := r.again("x", " --data d", now); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestRelayCerts(t *testing.T) {
	retried, source := "", "acme"
	now := time.Now()
	certs := []admin.PublicCert{
		{Host: "ha.home.test", State: "valid", Issuer: "Pebble", NotAfter: now.Add(60*24*time.Hour + time.Minute), Next: now},
		{Host: "nas.home.test", State: "failing", Problem: "A of nas.home.test is 192.0.2.1, not this relay", Fix: "point it here"},
	}
	api := admin.API{
		Certificates:     func(context.Context) ([]admin.PublicCert, error) { return certs, nil },
		RetryCertificate: func(_ context.Context, host string) error { retried = host; return nil },
		Requests: func(context.Context) ([]admin.EnrolRequest, error) {
			return []admin.EnrolRequest{{ID: "1", State: "pending"}}, nil
		},
		Status: func(context.Context) (admin.Status, error) {
			return admin.Status{Domain: "home.test", Certs: source, Warnings: []string{"the clock went back"}}, nil
		},
	}
	o := newOwner(t, api)
	out, _ := o.must("relay certs")
	for _, want := range []string{"ha.home.test    valid         60          Pebble", "nas.home.test   failing       -           -", "\nnas.home.test: A of nas.home.test is 192.0.2.1, not this relay\n  Point it here\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("missing %q in\n%s", want, out)
		}
	}
	if out, _ := o.must("relay certs --json"); !strings.Contains(out, `"certificates": [`) {
		t.Error(out)
	}
	out, _ = o.must("status")
	for _, want := range []string{"ha.home.test    valid         60", "\n1 waiting for approval: sallyport device list --data DIR\n", "\nwarning: the clock went back\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("missing %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "Point it here") {
		t.Errorf("a problem is told twice, as the relay warns of it:\n%s", out)
	}
	if out, _ := o.must("status --json"); !strings.Contains(out, `"certificates": [`) || !strings.Contains(out, `"requests": [`) {
		t.Error(out)
	}
	if o.must("relay certs --retry nas.home.test"); retried != "nas.home.test" {
		t.Errorf("retried %q", retried)
	}
	certs = nil
	if out, _ := o.must("relay certs"); !strings.Contains(out, "when a home registers a host") {
		t.Error(out)
	}
	source = "internal"
	if out, _ := o.must("relay certs"); out != "nothing to obtain: certificates come from --certs internal\n" {
		t.Error(out)
	}
}

func TestDaysLeft(t *testing.T) {
	now := time.Now()
	for left, want := range map[time.Duration]string{-time.Second: "ended", 90 * time.Minute: "1h", 47 * time.Hour: "1", 90 * 24 * time.Hour: "90"} {
		if got := daysLeft(now.Add(left), now); got != want {
			t.Errorf("%v: %s, want %s", left, got, want)
		}
	}
	if got := daysLeft(time.Time{}, now); got != "-" {
		t.Error(got)
	}
}

func TestRelayDashboard(t *testing.T) {
	info := admin.DashboardInfo{Socket: "/var/lib/sally port/dashboard.sock"}
	o := newOwner(t, admin.API{Dashboard: func(context.Context) (admin.DashboardInfo, error) { return info, nil }})
	out, errs := o.must("relay dashboard")
	if out != "" || !strings.Contains(errs, "ssh -N -L 9080:'/var/lib/sally port/dashboard.sock' ") || !strings.Contains(errs, "http://localhost:9080/") {
		t.Errorf("%q\n%s", out, errs)
	}
	info.Listen, info.Login = "127.0.0.1:9081", "http://127.0.0.1:9081/login#ONCE"
	out, errs = o.must("relay dashboard")
	if out != info.Login+"\n" || strings.Contains(errs, "ONCE") || !strings.Contains(errs, "-L 9081:127.0.0.1:9081 ") {
		t.Errorf("%q\n%s", out, errs)
	}
}
