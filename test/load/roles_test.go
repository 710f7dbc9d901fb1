//go:build linux

package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"runtime/pprof"
	"syscall"

	"github.com/sallyport/sallyport/agent"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay"
	"github.com/sallyport/sallyport/relay/store/boltstore"
)

// The test binary started again with roleEnv set is one of the programs.
const (
	roleEnv    = "SALLYPORT_LOAD_ROLE"
	targetEnv  = "SALLYPORT_LOAD_TARGET"  // splice, detour: where to
	holdEnv    = "SALLYPORT_LOAD_HOLD"    // detour: how long it takes, one way
	dataEnv    = "SALLYPORT_LOAD_DATA"    // relay, agent: state directory; door: certificates
	addressEnv = "SALLYPORT_LOAD_ADDRESS" // relay: what agents dial, if not where it listens
	tokenEnv   = "SALLYPORT_LOAD_TOKEN"   // agent: file
	carrierEnv = "SALLYPORT_LOAD_CARRIER" // agent: quic or tcp
	brokerEnv  = "SALLYPORT_LOAD_BROKER"  // agent: URL of the home broker, if there is one
	profileEnv = "SALLYPORT_LOAD_PROFILE" // relay, agent: directory of CPU profiles, if they are wanted
)

func play(role string) error {
	switch role {
	case "splice":
		return playSplice(os.Getenv(targetEnv))
	case "detour":
		return playDetour(os.Getenv(targetEnv), os.Getenv(holdEnv))
	case "broker":
		return playBroker()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	data := os.Getenv(dataEnv)
	go tidy(ctx, data)
	f, err := openProfile(data, "cpu")
	if err != nil {
		return err
	}
	if f != nil {
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	switch role {
	case "relay":
		return playRelay(ctx, data, logger)
	case "door":
		return playDoor(ctx, data)
	}
	return playAgent(ctx, data, logger)
}

// openProfile returns nil when no profiles are wanted.
func openProfile(data, what string) (*os.File, error) {
	dir := os.Getenv(profileEnv)
	if dir == "" {
		return nil, nil
	}
	name := filepath.Base(filepath.Dir(data)) + "-" + filepath.Base(data) + "." + what // several relays in a run
	return os.Create(filepath.Join(dir, name))
}

// tidy collects garbage at SIGUSR1, and gives the system its memory back. When
// profiles are wanted it leaves one of what is still there.
func tidy(ctx context.Context, data string) {
	usr := make(chan os.Signal, 1)
	signal.Notify(usr, syscall.SIGUSR1)
	for {
		select {
		case <-usr:
			debug.FreeOSMemory()
			for _, what := range []string{"heap", "goroutine"} {
				if f, err := openProfile(data, what); err == nil && f != nil {
					_ = pprof.Lookup(what).WriteTo(f, 1)
					f.Close()
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// playAgent is `agent up`.
func playAgent(ctx context.Context, data string, logger *slog.Logger) error {
	token, err := os.ReadFile(os.Getenv(tokenEnv))
	if err != nil {
		return err
	}
	cfg := agent.Config{
		DataDir: data, Token: string(token), Name: "home", Logger: logger, TransportNames: []string{os.Getenv(carrierEnv)},
	}
	if broker := os.Getenv(brokerEnv); broker != "" {
		if cfg.MQTT, cfg.Actions, err = householdConfig(broker); err != nil {
			return err
		}
	}
	a, err := agent.New(cfg)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// playRelay is `relay up`.
func playRelay(ctx context.Context, data string, logger *slog.Logger) error {
	if err := pki.SecureDir(data); err != nil {
		return err
	}
	kv, err := boltstore.Open(filepath.Join(data, "relay.db"))
	if err != nil {
		return err
	}
	defer kv.Close()
	r, err := relay.New(relay.Config{DataDir: data, Domain: domain, Store: kv, Listen: "127.0.0.1:0", HTTP: "off", Address: os.Getenv(addressEnv), Logger: logger, MQTT: relay.MQTT{CommandsPerHour: 1_000_000}})
	if err != nil {
		return err
	}
	if err := r.Listen(); err != nil {
		return err
	}
	return r.Run(ctx)
}

// playSplice is the floor: accept on descriptor 3, dial, copy both ways.
func playSplice(target string) error {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go splice(c.(*net.TCPConn), target)
	}
}

func splice(a *net.TCPConn, target string) {
	defer a.Close()
	conn, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	b := conn.(*net.TCPConn)
	defer b.Close()
	back := make(chan struct{})
	go func() {
		defer close(back)
		oneWay(a, b)
	}()
	oneWay(b, a)
	<-back
}

func oneWay(dst, src *net.TCPConn) {
	_, err := io.Copy(dst, src) // splice(2)
	if errors.Join(err, dst.CloseWrite()) != nil {
		dst.Close()
		src.Close()
	}
}
