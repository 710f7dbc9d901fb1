package control

import "net/http"

type (
	trustRequest struct {
		Device string `json:"device"`
		ID     string `json:"id"`
	}
	untrustRequest struct {
		Device string `json:"device"`
	}
	pinRequest struct {
		Action string `json:"action"`
		PIN    string `json:"pin"`
	}
)

// handleCommands adds what concerns commands.
func handleCommands(mux *http.ServeMux, a Agent) {
	mux.HandleFunc("GET /v1/keys", func(w http.ResponseWriter, r *http.Request) {
		keys, err := a.Keys(r.Context())
		answer(w, keys, err)
	})
	mux.HandleFunc("POST /v1/trust", func(w http.ResponseWriter, r *http.Request) {
		var q trustRequest
		if readJSON(w, r, &q) {
			answer(w, struct{}{}, a.Trust(r.Context(), q.Device, q.ID))
		}
	})
	mux.HandleFunc("POST /v1/untrust", func(w http.ResponseWriter, r *http.Request) {
		var q untrustRequest
		if readJSON(w, r, &q) {
			answer(w, struct{}{}, a.Untrust(r.Context(), q.Device))
		}
	})
	mux.HandleFunc("POST /v1/pin", func(w http.ResponseWriter, r *http.Request) {
		var q pinRequest
		if readJSON(w, r, &q) {
			answer(w, struct{}{}, a.SetPIN(r.Context(), q.Action, q.PIN))
		}
	})
	mux.HandleFunc("GET /v1/found", func(w http.ResponseWriter, r *http.Request) {
		found, err := a.Found(r.Context())
		answer(w, found, err)
	})
}
