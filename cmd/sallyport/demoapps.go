package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// homeApps are the two things at home that the demo reaches: a small web page
// with a live clock (SSE) and a WebSocket echo, and a TCP echo.
type homeApps struct {
	web, echo net.Listener
	server    *http.Server
	wg        sync.WaitGroup
	quit      context.CancelFunc
}

const homePage = `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Home</title>
<style>:root{color-scheme:light dark}body{font:1.1rem/1.5 system-ui,sans-serif;margin:2rem auto;max-width:34rem;padding:0 1rem}
output{font-variant-numeric:tabular-nums}</style>
<h1>Hello from home</h1>
<p>The clock at home says <output id="clock">…</output>, live over the tunnel.</p>
<p>WebSocket echo: <output id="echo">…</output></p>
<p>The relay says that you are <b>%s</b>.</p>
<script>
new EventSource("clock").onmessage = e => document.getElementById("clock").textContent = e.data
const ws = new WebSocket(location.href.replace(/^http/, "ws").replace(/[^/]*$/, "ws"))
ws.onopen = () => ws.send("the door echoes")
ws.onmessage = e => document.getElementById("echo").textContent = e.data
ws.onclose = () => document.getElementById("echo").textContent = "closed"
</script>
`

// startHomeApps listens on loopback; close ends everything.
func startHomeApps() (*homeApps, error) {
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("home web app: %w", err)
	}
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		web.Close()
		return nil, fmt.Errorf("home echo app: %w", err)
	}
	ctx, quit := context.WithCancel(context.Background())
	a := &homeApps{web: web, echo: echo, quit: quit}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", servePage)
	mux.HandleFunc("GET /clock", serveClock)
	mux.HandleFunc("GET /ws", serveEcho)
	a.server = &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	a.wg.Go(func() { _ = a.server.Serve(web) })
	a.wg.Go(func() { a.serveTCPEcho(ctx) })
	return a, nil
}

func (a *homeApps) close() {
	a.quit()
	a.server.Close()
	a.echo.Close()
	a.wg.Wait()
}

func servePage(w http.ResponseWriter, r *http.Request) {
	who := firstOf(r.Header.Get("Sallyport-Device"), "a visitor without a certificate")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, homePage, who) // device names are [a-z0-9-], checked by the relay
}

func serveClock(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		fmt.Fprintf(w, "data: %s\n\n", time.Now().Format(time.TimeOnly))
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

func serveEcho(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered
	}
	defer c.CloseNow()
	for {
		kind, msg, err := c.Read(r.Context())
		if err != nil || c.Write(r.Context(), kind, msg) != nil {
			return
		}
	}
}

func (a *homeApps) serveTCPEcho(ctx context.Context) {
	for {
		c, err := a.echo.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		a.wg.Go(func() { echoConn(ctx, c) })
	}
}

func echoConn(ctx context.Context, c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	_, _ = io.Copy(c, c)
}
