package e2e_test

import (
	"testing"
	"time"

	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/test/world"
)

// Links that wait are seen, and end with their device's name or by their ID;
// a name is not needed for either.
func TestLinksThatWait(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, _, _ := standard(w)
		waiting := func() []admin.WaitingInvite {
			t.Helper()
			var l struct{ Invites []admin.WaitingInvite }
			if err := r.Admin("invites", nil, &l); err != nil {
				t.Fatal(err)
			}
			return l.Invites
		}
		invite := func(name string) (inv admin.Invite) {
			t.Helper()
			if err := r.Admin("invites", admin.InviteRequest{Name: name}, &inv); err != nil {
				t.Fatal(err)
			}
			return inv
		}
		invite("berta")
		if inv := invite(""); !inv.Approve {
			t.Error("a link without a name needs no approval: its visitor could take any name")
		}
		got := waiting()
		if len(got) != 2 || got[0].By == "" {
			t.Fatalf("the links that wait: %+v", got)
		}
		for _, l := range got {
			if l.Name != "" {
				continue
			}
			if err := r.Admin("invites/"+l.ID+"/withdraw", struct{}{}, nil); err != nil {
				t.Error(err)
			}
		}
		if err := r.Admin("devices/berta/revoke", struct{}{}, nil); err != nil {
			t.Errorf("revoking a name that only has a link: %v", err)
		}
		if left := waiting(); len(left) != 0 {
			t.Errorf("links wait that were withdrawn: %+v", left)
		}
		invite("carl")
		w.Sleep(16 * time.Minute)
		if left := waiting(); len(left) != 0 {
			t.Errorf("links wait after their time: %+v", left)
		}
	})
}
