//go:build linux

package load

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/agent"
)

// BenchmarkIdleVisitor opens connections that then rest, through programs that
// were started for this: memory of all processes between, per connection. For
// Go programs that includes what the handshakes left to the garbage collector.
func BenchmarkIdleVisitor(b *testing.B) {
	for _, peer := range everyPeer {
		for _, service := range []string{"raw", "http", "pass"} {
			if hasRoad(peer, service) {
				b.Run(service+"/"+peer, func(b *testing.B) { idleVisitor(b, service, peer) })
			}
		}
	}
}

func hasRoad(peer, service string) bool {
	return service != "pass" || peer == "quic" || peer == "tcp"
}

// restTime is how long processes have to settle before memory is read.
const restTime = 300 * time.Millisecond

func idleVisitor(b *testing.B, service, peer string) {
	n := size(500, 128)
	for b.Loop() {
		p, err := theLab.startPeers(peer)
		if err != nil {
			b.Fatal(err)
		}
		r := p.road(service, peer)
		if r == nil {
			p.stop()
			b.Skip("no such program here")
		}
		vs, err := r.visit(b.Context(), 8) // code and first buffers
		closeAll(vs)
		if err != nil {
			b.Fatal(err)
		}
		time.Sleep(restTime)
		before := memory(b, r)
		vs, err = r.visit(b.Context(), n)
		if err != nil {
			b.Fatal(err)
		}
		time.Sleep(restTime)
		kib := float64(memory(b, r)-before) / 1024 / float64(n)
		closeAll(vs)
		p.stop()
		b.ReportMetric(kib, "KiB/conn")
		theLab.table.add("Memory: KiB per idle visitor, all processes", "RSS", r, kib, "", 0)
	}
	b.ReportMetric(0, "ns/op")
}

func memory(b *testing.B, r *road) int64 {
	b.Helper()
	n, err := total(r.procs, (*process).rss)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// BenchmarkIdleAgent connects agents that offer nothing: memory of the relay
// per agent. The agents run in the process of the load.
func BenchmarkIdleAgent(b *testing.B) {
	for _, carrier := range []string{"quic", "tcp"} {
		b.Run(carrier, func(b *testing.B) { idleAgent(b, carrier) })
	}
}

func idleAgent(b *testing.B, carrier string) {
	const n = 16 // more would wait for the relay's limit on joins
	for b.Loop() {
		dir, err := os.MkdirTemp(theLab.dir, "agents-")
		if err != nil {
			b.Fatal(err)
		}
		s, err := theLab.startRelay(dir)
		if err != nil {
			b.Fatal(err)
		}
		stop := joinAgents(b, s, carrier, 2) // code and first buffers
		time.Sleep(restTime)
		r := &road{peer: carrier, service: "agent", procs: []*process{s.relay}}
		before := memory(b, r)
		stopRest := joinAgents(b, s, carrier, n)
		time.Sleep(restTime)
		kib := float64(memory(b, r)-before) / 1024 / float64(n)
		stopRest()
		stop()
		s.relay.stop()
		b.ReportMetric(kib, "KiB/agent")
		theLab.table.add("Memory: KiB of the relay per idle agent", "RSS", r, kib, "", 0)
		theLab.table.add("Memory: KiB of a relay without visitors", "RSS", r, float64(before)/1024, "", 0)
	}
	b.ReportMetric(0, "ns/op")
}

// joinAgents returns when n more agents are connected.
func joinAgents(b *testing.B, s *sallyport, carrier string, n int) (stop func()) {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	stop = func() { cancel(); running.Wait() }
	first := s.agents
	for range n {
		name := fmt.Sprintf("a%d", s.agents)
		token, err := s.token(ctx, "*."+name+"."+domain)
		if err == nil {
			err = runAgent(ctx, &running, filepath.Join(s.dir, name), token, carrier)
		}
		if err != nil {
			stop()
			b.Fatal(err)
		}
	}
	err := until("all agents connect", func(ctx context.Context) error {
		st, err := s.admin.Status(ctx)
		if err != nil {
			return err
		}
		online := 0
		for _, a := range st.Agents {
			if a.Online {
				online++
			}
		}
		if online < first+n {
			return fmt.Errorf("%d of %d are online", online, first+n)
		}
		return nil
	})
	if err != nil {
		stop()
		logs, _ := filepath.Glob(filepath.Join(s.dir, "*.log"))
		for _, name := range logs {
			text, _ := os.ReadFile(name)
			b.Logf("%s: %s", filepath.Base(name), text)
		}
		b.Fatal(err)
	}
	return stop
}

func runAgent(ctx context.Context, running *sync.WaitGroup, data, token, carrier string) error {
	log, err := os.Create(data + ".log")
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Config{
		DataDir: data, Token: token, TransportNames: []string{carrier}, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		log.Close()
		return err
	}
	running.Go(func() {
		defer log.Close()
		if err := a.Run(ctx); err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, "an idle agent ended:", err) // and the relay's status misses it
		}
	})
	return nil
}
