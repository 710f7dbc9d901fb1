package door

import (
	"crypto/sha1"
	"encoding/base64"
	"net/http"
	"strings"
)

// isWebSocket reports whether a request asks for a WebSocket the way RFC 6455
// §4.1 says. Nothing else may switch protocols: after 101 nobody judges
// requests any more.
func isWebSocket(r *http.Request) (ok bool, key string) {
	upgrade, keys := r.Header["Upgrade"], r.Header["Sec-Websocket-Key"]
	if r.Method != http.MethodGet || r.ProtoMajor != 1 || !r.ProtoAtLeast(1, 1) || r.ContentLength != 0 ||
		len(upgrade) != 1 || !strings.EqualFold(upgrade[0], "websocket") || len(keys) != 1 || keys[0] == "" {
		return false, ""
	}
	for _, v := range r.Header["Connection"] {
		for token := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return true, keys[0]
			}
		}
	}
	return false, ""
}

// validAccept reports whether a 101 answers the key (RFC 6455 §4.2.2): a
// backend that only echoes headers does not open a tunnel.
func validAccept(res *http.Response, key string) bool {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return strings.EqualFold(res.Header.Get("Upgrade"), "websocket") &&
		res.Header.Get("Sec-Websocket-Accept") == base64.StdEncoding.EncodeToString(sum[:])
}
