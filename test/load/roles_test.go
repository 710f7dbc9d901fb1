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
	targetEnv  = "SALLYPORT_LOAD_TARGET"  // splice: where to
	dataEnv    = "SALLYPORT_LOAD_DATA"    // relay, agent: state directory
	tokenEnv   = "SALLYPORT_LOAD_TOKEN"   // agent: file
	carrierEnv = "SALLYPORT_LOAD_CARRIER" // agent: quic or tcp
	profileEnv = "SALLYPORT_LOAD_PROFILE" // relay, agent: directory of CPU profiles
)

func play(role string) error {
	if role == "splice" {
		return playSplice(os.Getenv(targetEnv))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	data := os.Getenv(dataEnv)
	f, err := os.Create(filepath.Join(os.Getenv(profileEnv), filepath.Base(data)+".pprof"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if role == "relay" {
		return playRelay(ctx, data, logger)
	}
	token, err := os.ReadFile(os.Getenv(tokenEnv))
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Config{
		DataDir: data, Token: string(token), Name: "home", Logger: logger, TransportNames: []string{os.Getenv(carrierEnv)},
	})
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
	r, err := relay.New(relay.Config{DataDir: data, Domain: domain, Store: kv, Listen: "127.0.0.1:0", HTTP: "off", Logger: logger})
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
