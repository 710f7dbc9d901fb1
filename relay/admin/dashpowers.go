package admin

import (
	"context"
	"slices"
	"time"
)

// maxRemoteTTL is how long a link that was made at admin.DOMAIN may live: who
// had an administrator's phone for a minute shall not come back next week.
const maxRemoteTTL = 24 * time.Hour

var (
	errMarks = &Error{
		Code: CodeRefused, Message: "administrators are not made by web pages",
		Hint: "use the command line at the relay: sallyport device set NAME --admin, or --no-admin",
	}
	errRemoteApprove = &Error{
		Code: CodeRefused, Message: "administrators are not approved from afar",
		Hint: "use the command line at the relay: sallyport device approve ID",
	}
	errRemoteChange = &Error{
		Code: CodeRefused, Message: "an administrator's rights are not changed from afar",
		Hint: "use the command line at the relay: sallyport device set NAME. To shut it out now, revoke it",
	}
	errRemoteTTL = &Error{Code: CodeBadRequest, Message: "A link that is made from afar works for a day at most."}
)

// pagesAPI is what pages may do, whatever a form says.
func pagesAPI(a API) API {
	a.NewToken, a.AddDevice, a.AddTokenDevice, a.Dashboard, a.ResetClock, a.Grant = nil, nil, nil, nil, nil, nil
	if invite := a.Invite; invite != nil {
		a.Invite = func(ctx context.Context, q InviteRequest) (Invite, error) {
			if q.Admin {
				return Invite{}, errMarks
			}
			return invite(ctx, q)
		}
	}
	if change := a.ChangeDevice; change != nil {
		a.ChangeDevice = func(ctx context.Context, name string, c DeviceChange) (Device, error) {
			if c.Admin != nil {
				return Device{}, errMarks
			}
			return change(ctx, name, c)
		}
	}
	return a
}

// remoteAPI is what is left of it at admin.DOMAIN.
func remoteAPI(a API) API {
	if invite := a.Invite; invite != nil {
		a.Invite = func(ctx context.Context, q InviteRequest) (Invite, error) {
			if q.TTL > int64(maxRemoteTTL/time.Second) {
				return Invite{}, errRemoteTTL
			}
			return invite(ctx, q)
		}
	}
	a.ChangeDevice = remoteChange(a.Devices, a.ChangeDevice)
	a.Approve = remoteApprove(a.Requests, a.Approve)
	return a
}

// remoteChange leaves administrators as they are: one whose time is limited
// could lift its own limit, or another's. It refuses what it cannot look at.
func remoteChange(list func(context.Context) ([]Device, error), do func(context.Context, string, DeviceChange) (Device, error)) func(context.Context, string, DeviceChange) (Device, error) {
	if do == nil || list == nil {
		return nil
	}
	return func(ctx context.Context, name string, c DeviceChange) (Device, error) {
		all, err := list(ctx)
		if err != nil {
			return Device{}, err
		}
		known := false
		for _, dev := range all {
			if dev.Name != name || dev.Revoked {
				continue
			}
			// One that ended counts, too: a later end would bring it back.
			if known = true; dev.Admin {
				return Device{}, errRemoteChange
			}
		}
		if !known {
			return Device{}, &Error{Code: CodeNotFound, Message: "There is no such device."}
		}
		return do(ctx, name, c)
	}
}

// remoteApprove refuses what it cannot look at.
func remoteApprove(list func(context.Context) ([]EnrolRequest, error), do func(context.Context, string) (EnrolRequest, error)) func(context.Context, string) (EnrolRequest, error) {
	if do == nil || list == nil {
		return nil
	}
	return func(ctx context.Context, id string) (EnrolRequest, error) {
		waiting, err := list(ctx)
		if err != nil {
			return EnrolRequest{}, err
		}
		at := slices.IndexFunc(waiting, func(q EnrolRequest) bool { return q.ID == id })
		if at < 0 {
			return EnrolRequest{}, errGone
		}
		if waiting[at].Admin {
			return EnrolRequest{}, errRemoteApprove
		}
		return do(ctx, id)
	}
}
