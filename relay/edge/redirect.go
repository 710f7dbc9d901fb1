package edge

import (
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

// Redirect sends every request of port 80 to https on the same host. It does
// not know which hosts exist, so that nobody can find out by asking. httpsPort
// is the public port; "" and "443" stay unsaid.
func Redirect(httpsPort string) http.Handler {
	suffix := ""
	if httpsPort != "" && httpsPort != "443" {
		suffix = ":" + httpsPort
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, err := names.CanonicalHost(r.Host)
		uri := r.URL.RequestURI()
		if err != nil || !strings.HasPrefix(uri, "/") || r.Method == http.MethodConnect {
			w.Header().Set("Connection", "close")
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		status := http.StatusMovedPermanently
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			status = http.StatusPermanentRedirect // keeps the method
			w.Header().Set("Connection", "close") // and leaves the body unread
		}
		// Ports and hosts move; a browser that remembers would not notice.
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Location", "https://"+host+suffix+uri)
		w.WriteHeader(status)
	})
}

// maxHTTPConns bounds the connections of a plain HTTP server.
const maxHTTPConns = 1000

// NewHTTPServer returns a server for port 80 that gives nobody much time or
// memory. Its own complaints go to logger (nil: nowhere) at debug level.
func NewHTTPServer(h http.Handler, logger *slog.Logger) *http.Server {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	plain := new(http.Protocols)
	plain.SetHTTP1(true)
	var open atomic.Int64
	return &http.Server{
		Handler:                      h,
		Protocols:                    plain,
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  10 * time.Second,
		WriteTimeout:                 10 * time.Second,
		IdleTimeout:                  15 * time.Second,
		MaxHeaderBytes:               16 << 10,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		ConnState: func(conn net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				if open.Add(1) > maxHTTPConns {
					_ = conn.Close()
				}
			case http.StateClosed, http.StateHijacked:
				open.Add(-1)
			}
		},
	}
}
