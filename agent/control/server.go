package control

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// maxBody bounds a request.
const maxBody = 64 << 10

// Serve answers on l until ctx ends, and closes l. It returns after the
// requests in flight ended.
func Serve(ctx context.Context, l net.Listener, a Agent, logger *slog.Logger) error {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	srv := &http.Server{
		Handler:           handler(a),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    8 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go serve(srv, l, ended)
	var err error
	select {
	case err = <-ended: // the listener failed
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if srv.Shutdown(stop) != nil {
		srv.Close()
	}
	if err == nil {
		err = <-ended
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func serve(srv *http.Server, l net.Listener, ended chan<- error) { ended <- srv.Serve(l) }

func handler(a Agent) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/expose", func(w http.ResponseWriter, r *http.Request) {
		var s Service
		if !readJSON(w, r, &s) {
			return
		}
		e, err := a.Expose(r.Context(), s)
		answer(w, e, err)
	})
	mux.HandleFunc("POST /v1/unexpose", func(w http.ResponseWriter, r *http.Request) {
		var s struct {
			Name string `json:"name"`
		}
		if !readJSON(w, r, &s) {
			return
		}
		answer(w, struct{}{}, a.Unexpose(r.Context(), s.Name))
	})
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, a.Status(), nil)
	})
	mux.HandleFunc("POST /v1/confirm-ca", func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			Fingerprint string `json:"fingerprint"`
		}
		if !readJSON(w, r, &q) {
			return
		}
		answer(w, struct{}{}, a.ConfirmCA(r.Context(), q.Fingerprint))
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if h := a.Devices(); h != nil {
			h.ServeHTTP(w, r)
			return
		}
		http.NotFound(w, r)
	})
	handleCommands(mux, a)
	return localOnly(mux)
}

// localOnly refuses what a web page could send should the socket ever be
// proxied to a port (DESIGN §6.14).
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != clientHost && r.Host != "localhost" || r.Header.Get("Origin") != "" {
			answer(w, nil, &Error{KindRefused, "this socket is for the sallyport command line (Host must be localhost)"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

func readJSON(w http.ResponseWriter, r *http.Request, v any) bool {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields() // an option that this agent does not know must not be dropped in silence
	if err := dec.Decode(v); err != nil {
		answer(w, nil, &Error{KindInvalid, "the request cannot be read: " + err.Error()})
		return false
	}
	return true
}

func answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	status := http.StatusOK
	if err != nil {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			e = &Error{KindInternal, err.Error()}
		}
		v = e
		switch e.Kind {
		case KindInvalid:
			status = http.StatusBadRequest
		case KindRefused:
			status = http.StatusForbidden
		default:
			status = http.StatusInternalServerError
		}
	}
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // the client may be gone: nothing to do then
}
