package main

import (
	"errors"
	"path/filepath"
	"strings"

	"github.com/sallyport/sallyport/agent"
	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/agent/state"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/store/boltstore"
)

// storeName is the file in the relay's data directory that holds all of it.
const storeName = "relay.db"

// openRelay picks the store of a single relay: one file in its data directory.
func openRelay(conf relay.Config) (r *relay.Relay, closeStore func(), err error) {
	if err := pki.SecureDir(conf.DataDir); err != nil {
		return nil, nil, startError(err)
	}
	kv, err := boltstore.Open(filepath.Join(conf.DataDir, storeName))
	if err != nil {
		return nil, nil, startError(err)
	}
	conf.Store = kv
	if r, err = relay.New(conf); err != nil {
		return nil, nil, errors.Join(startError(err), kv.Close())
	}
	return r, func() { _ = kv.Close() }, nil
}

// startError marks what keeps a process from starting: starting it again
// unchanged would not help.
func startError(err error) error { return failed(exitUsage, "", err) }

// agentClient speaks to the agent on a directory.
func agentClient(dir string) *control.Client {
	c := control.NewClient(dir)
	c.Joined = state.Joined
	return c
}

// classifyWired finds the exit code and hint of errors of the packages.
func classifyWired(err error) (code int, hint string) {
	var adm *admin.Error
	var ctl *control.Error
	switch {
	case errors.As(err, &adm):
		if strings.Contains(adm.Message, "\n") { // it says already what to do
			return codeOfAdmin(adm), ""
		}
		return codeOfAdmin(adm), adm.Hint
	case errors.As(err, &ctl):
		return codeOfControl(ctl), ""
	case errors.Is(err, control.ErrNotRunning):
		return exitUnreachable, ""
	case errors.Is(err, agent.ErrConfig):
		return exitUsage, ""
	case errors.Is(err, agent.ErrUnreachable):
		return exitUnreachable, ""
	case errors.Is(err, agent.ErrRefused):
		return exitRefused, ""
	}
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		return exitFailed, h.Hint()
	}
	return exitFailed, ""
}

func codeOfAdmin(e *admin.Error) int {
	switch e.Code {
	case admin.CodeBadRequest:
		return exitUsage
	case admin.CodeRefused:
		return exitRefused
	case admin.CodeUnreachable, admin.CodeUnavailable:
		return exitUnreachable
	}
	return exitFailed
}

func codeOfControl(e *control.Error) int {
	switch e.Kind {
	case control.KindInvalid:
		return exitUsage
	case control.KindRefused:
		return exitRefused
	}
	return exitFailed
}
