package relay

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// features are what this relay has for agents beside carrying visitors.
func (r *Relay) features() []string {
	list := []string{protocol.FeatureDevices, protocol.FeatureTLSAgent, protocol.FeaturePorts}
	if r.bridges != nil {
		list = append(list, protocol.FeatureMQTT, protocol.FeatureCommands)
	}
	if r.zone != nil {
		list = append(list, protocol.FeatureDNS)
	}
	return list
}

// agreed are those that the agent has too.
func (r *Relay) agreed(hello protocol.Hello) (both []string) {
	for _, f := range r.features() {
		if slices.Contains(hello.Features, f) {
			both = append(both, f)
		}
	}
	return both
}

// takeStreams serves the streams that an agent opens (protocol, "Streams of the
// agent") until the session ends, and returns when all have.
func (r *Relay) takeStreams(ctx context.Context, s tunnel.Session, features []string, log *slog.Logger) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		st, err := s.AcceptStream(ctx)
		if err != nil {
			return
		}
		wg.Go(func() { r.takeStream(ctx, s, st, features, log) })
	}
}

func (r *Relay) takeStream(ctx context.Context, s tunnel.Session, st tunnel.Stream, features []string, log *slog.Logger) {
	st.SetDeadline(time.Now().Add(controlDeadline))
	open, err := protocol.ReadOpen(st)
	if err != nil || !slices.Contains(features, open.Service) {
		st.Reset(protocol.CodeProtocol)
		log.Warn("the agent opened a stream that this relay does not serve", "service", open.Service, "err", err)
		return
	}
	if err := protocol.WriteResult(st, protocol.Result{Code: protocol.CodeOK}); err != nil {
		st.Reset(protocol.CodeAborted)
		return
	}
	st.SetDeadline(time.Time{})
	a := s.Peer().ID
	name := r.agentName(a)
	began := time.Now()
	var c net.Conn = st
	switch open.Service {
	case protocol.FeatureMQTT:
		err = r.bridges.serveLink(ctx, c, string(a), name)
	case protocol.FeatureDevices:
		err = r.serveDevices(ctx, c, a)
	case protocol.FeatureCommands:
		err = r.bridges.serveCommands(ctx, c, string(a), name)
	default:
		err = errors.New("this feature has no stream")
	}
	st.Reset(protocol.CodeOK) // nothing, when it has ended
	log.Debug("stream of the agent ended", "service", open.Service, "took", time.Since(began), "err", err)
}
