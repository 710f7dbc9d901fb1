package world

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/coder/websocket"

	"github.com/sallyport/sallyport/agent/service"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A Service is an app at home and how it is offered.
type Service struct {
	entry service.Entry // Target is the scheme; the home adds the address
	http  http.Handler
	raw   func(net.Conn)
}

// Web offers the world's web app under a name:
//
//	/             a greeting; the header X-Device tells who the relay says asks
//	/drip?every=D one line every D, for ever
//	/bytes?n=N    N bytes of Pattern
//	/upload       tells how many bytes came
//	/ws           a WebSocket that sends back what it gets
func Web(name string) Service {
	return Service{entry: service.Entry{Name: name, Target: "http://"}, http: webApp(name)}
}

// Echo offers a TCP service that sends back what it gets, ends its side when
// the visitor has ended his, and resets when he was reset.
func Echo(name string) Service {
	return Service{entry: service.Entry{Name: name, Target: "tcp://"}, raw: echo}
}

// EchoUDP offers a service that sends back each datagram, on a public port.
func EchoUDP(name string, port uint16) Service {
	return Service{entry: service.Entry{Name: name, Target: "udp://", Port: port, Auth: protocol.AuthNone}, raw: echo}
}

// Auth sets what is asked of visitors.
func (s Service) Auth(mode string) Service {
	s.entry.Auth = mode
	return s
}

// TLS sets who ends the visitor's TLS.
func (s Service) TLS(mode string) Service {
	s.entry.TLS = mode
	return s
}

// Port sets a public port of its own.
func (s Service) Port(port uint16) Service {
	s.entry.Port = port
	return s
}

// Host sets the wanted public host.
func (s Service) Host(host string) Service {
	s.entry.Host = host
	return s
}

// Pattern is byte number i of every download.
func Pattern(i int64) byte { return byte(i*7 + i>>13) }

func webApp(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Device", r.Header.Get("Sallyport-Device"))
		fmt.Fprintf(w, "this is %s", name)
	})
	mux.HandleFunc("/drip", func(w http.ResponseWriter, r *http.Request) {
		every, err := time.ParseDuration(r.FormValue("every"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		tick := time.NewTicker(every)
		defer tick.Stop()
		for n := 0; ; n++ {
			if _, err := fmt.Fprintf(w, "line %d\n", n); err != nil {
				return
			}
			http.NewResponseController(w).Flush()
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.FormValue("n"), 10, 64)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		io.Copy(w, io.LimitReader(&pattern{}, n))
	})
	mux.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d %v", n, err)
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, data, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if err := c.Write(r.Context(), kind, data); err != nil {
				return
			}
		}
	})
	return mux
}

// pattern is the endless download.
type pattern struct{ at int64 }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = Pattern(p.at + int64(i))
	}
	p.at += int64(len(b))
	return len(b), nil
}

func echo(c net.Conn) {
	if _, err := io.Copy(c, c); err != nil {
		tunnel.Abort(c, protocol.CodeAborted)
		return
	}
	c.(tunnel.Conn).CloseWrite()
	c.Close()
}
