package real

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestWebSocket(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.home("first", "--expose", "ha="+startHomeApp(t))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := w.dialWebSocket(ctx, w.device("phone"))
	c.SetReadLimit(1 << 20)
	for _, size := range []int{0, 1, 100, 70_000, 500_000} {
		msg := make([]byte, size)
		_, _ = rand.Read(msg)
		if err := c.Write(ctx, websocket.MessageBinary, msg); err != nil {
			t.Fatal(err)
		}
		_, echo, err := c.Read(ctx)
		if err != nil || string(echo) != string(msg) {
			t.Fatalf("%d bytes out, %d back: %v", size, len(echo), err)
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, "bye"); err != nil {
		t.Errorf("closing handshake: %v", err)
	}
}

// TestSSE: each event arrives when it is sent, not when a buffer is full.
func TestSSE(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.home("first", "--expose", "ha="+startHomeApp(t))
	phone := w.device("phone")
	conf := w.tlsOf(&phone)
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: conf, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, w.listen)
		},
	}}
	resp, err := client.Get(w.url("ha", "/clock"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	began := time.Now()
	for n := 0; n < 10 && lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "data: ") {
			n++
		}
	}
	if took := time.Since(began); took > 3*time.Second || resp.ProtoMajor != 2 {
		t.Errorf("ten events of 50 ms each took %v over %s", took, resp.Proto)
	}
}

// jsonCodec lets the test do without generated code.
type jsonCodec struct{}

func (jsonCodec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (jsonCodec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }
func (jsonCodec) Name() string                       { return "json" }

type word struct{ Text string }

// chat echoes each word in upper case; "fail" ends it with a status, which
// travels in trailers.
func chat(_ any, s grpc.ServerStream) error {
	s.SetTrailer(metadata.Pairs("x-words", "counted"))
	for {
		var in word
		if err := s.RecvMsg(&in); err != nil {
			return nil // the client's half-close
		}
		if in.Text == "fail" {
			return status.Error(codes.FailedPrecondition, "asked to fail")
		}
		if err := s.SendMsg(&word{strings.ToUpper(in.Text)}); err != nil {
			return err
		}
	}
}

var chatService = grpc.ServiceDesc{
	ServiceName: "home.Chat", HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{{StreamName: "Talk", Handler: chat, ServerStreams: true, ClientStreams: true}},
}

// TestGRPC: both directions stream, the status comes in the trailers.
func TestGRPC(t *testing.T) {
	t.Parallel()
	encoding.RegisterCodec(jsonCodec{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	srv.RegisterService(&chatService, nil)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)

	w := newWorld(t)
	w.home("first", "--expose", "chat=h2c://"+l.Addr().String())
	dial := func(d device) *grpc.ClientConn {
		conn, err := grpc.NewClient("passthrough:///"+host("chat")+":"+w.port(),
			grpc.WithTransportCredentials(credentials.NewTLS(w.tlsOf(&d))),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", w.listen)
			}),
			grpc.WithDefaultCallOptions(grpc.CallContentSubtype("json")))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	phone := w.device("phone")
	conn := dial(phone)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	talk := func(words ...string) (metadata.MD, error) {
		s, err := conn.NewStream(ctx, &chatService.Streams[0], "/home.Chat/Talk")
		if err != nil {
			return nil, err
		}
		for _, text := range words {
			if err := s.SendMsg(&word{text}); err != nil {
				return nil, err
			}
			var out word
			if err := s.RecvMsg(&out); err != nil {
				return s.Trailer(), err
			}
			if out.Text != strings.ToUpper(text) {
				t.Errorf("said %q, heard %q", text, out.Text)
			}
		}
		if err := s.CloseSend(); err != nil {
			return nil, err
		}
		err = s.RecvMsg(&word{})
		return s.Trailer(), err
	}
	trailer, err := talk("hello", "home")
	if err == nil || err.Error() != "EOF" || strings.Join(trailer.Get("x-words"), "") != "counted" {
		t.Errorf("a clean end: %v, trailer %v", err, trailer)
	}
	trailer, err = talk("one", "fail")
	if status.Code(err) != codes.FailedPrecondition || strings.Join(trailer.Get("x-words"), "") != "counted" {
		t.Errorf("a status: %v, trailer %v", err, trailer)
	}
	// A revoked device's open call ends with an error.
	s, err := conn.NewStream(ctx, &chatService.Streams[0], "/home.Chat/Talk")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SendMsg(&word{"x"}); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(&word{}); err != nil {
		t.Fatal(err)
	}
	w.revoke(phone)
	if err := s.RecvMsg(&word{}); status.Code(err) != codes.Unavailable && status.Code(err) != codes.Internal {
		t.Errorf("a revoked device's call ends with %v", err)
	}
}
