package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// namesForMQTT returns what mosquitto_pub needs to find the relay by its name:
// nothing where the system resolves names below localhost, as many do, and a
// proxy of the demo's own elsewhere. The name has to be right: it says in the
// TLS handshake who is meant.
func (w *demoWorld) namesForMQTT(ctx context.Context) (flags string, err error) {
	look, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if _, err := net.DefaultResolver.LookupHost(look, "mqtt."+demoDomain); err == nil {
		return "", nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("proxy for MQTT: %w", err)
	}
	w.wg.Go(func() { serveNames(ctx, l, w.addr) })
	return " --proxy socks5h://" + l.Addr().String(), nil
}

// serveNames is a SOCKS5 proxy (RFC 1928) that leads names below the demo's
// domain to the relay, and nothing anywhere else. It ends with ctx.
func serveNames(ctx context.Context, l net.Listener, relay string) {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		wg.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			_ = leadToRelay(ctx, c, relay)
		})
	}
}

// leadToRelay serves one connection of the proxy.
func leadToRelay(ctx context.Context, c net.Conn, relay string) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	r := bufio.NewReader(c)
	name, err := askedName(r, c)
	if err != nil {
		return err
	}
	const good, refused = 0, 2 // of the answer
	answer := []byte{5, good, 0, 1, 0, 0, 0, 0, 0, 0}
	if !strings.HasSuffix(name, "."+demoDomain) {
		answer[1] = refused
		_, err := c.Write(answer)
		return err
	}
	up, err := (&net.Dialer{}).DialContext(ctx, "tcp", relay)
	if err != nil {
		return err
	}
	defer up.Close()
	if _, err := c.Write(answer); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	var back sync.WaitGroup
	defer back.Wait()
	back.Go(func() {
		_, _ = io.Copy(c, up)
		c.Close()
	})
	_, err = io.Copy(up, r)
	up.Close()
	return err
}

// askedName reads a client's greeting and the host that it wants.
func askedName(r *bufio.Reader, w io.Writer) (string, error) {
	head := make([]byte, 2)
	if _, err := io.ReadFull(r, head); err != nil {
		return "", err
	}
	if _, err := r.Discard(int(head[1])); err != nil { // ways to log in; none is needed
		return "", err
	}
	if _, err := w.Write([]byte{5, 0}); err != nil {
		return "", err
	}
	ask := make([]byte, 5) // version, command, 0, kind of address, its length
	if _, err := io.ReadFull(r, ask); err != nil {
		return "", err
	}
	if head[0] != 5 || ask[0] != 5 || ask[1] != 1 || ask[3] != 3 {
		return "", errors.New("not a SOCKS5 connect by name")
	}
	name := make([]byte, ask[4])
	if _, err := io.ReadFull(r, name); err != nil {
		return "", err
	}
	var port uint16
	return string(name), binary.Read(r, binary.BigEndian, &port)
}
