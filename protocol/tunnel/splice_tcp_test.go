package tunnel

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol"
)

func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	deadline := time.Now().Add(20 * time.Second)
	c.SetDeadline(deadline)
	s.SetDeadline(deadline)
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func spliceTCP(t *testing.T, o SpliceOptions) (left, right *net.TCPConn, result <-chan SpliceResult) {
	left, a := tcpPair(t)
	b, right := tcpPair(t)
	c := make(chan SpliceResult, 1)
	go func() { c <- Splice(context.Background(), a, b, o) }()
	return left, right, c
}

func TestSpliceTCPBulkAndHalfClose(t *testing.T) {
	left, right, result := spliceTCP(t, SpliceOptions{Idle: time.Minute})
	const size = 32<<20 + 12345
	sent, got := sha256.New(), sha256.New()
	written := make(chan struct{})
	go func() {
		io.Copy(io.MultiWriter(sent, left), io.LimitReader(rand.Reader, size))
		close(written)
		left.CloseWrite()
	}()
	n, err := io.Copy(got, right)
	<-written
	if err != nil || n != size || string(sent.Sum(nil)) != string(got.Sum(nil)) {
		t.Fatalf("got %d of %d bytes, %v", n, size, err)
	}
	mustWrite(t, right, "thanks")
	right.CloseWrite()
	mustReadAll(t, left, "thanks")
	if r := <-result; r.Err != nil || r.AtoB != size || r.BtoA != 6 {
		t.Fatalf("result %+v", r)
	}
}

func TestSpliceTCPReset(t *testing.T) {
	left, right, result := spliceTCP(t, SpliceOptions{})
	mustWrite(t, left, "half")
	if _, err := io.ReadFull(right, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	Abort(left, protocol.CodeAborted)
	if _, err := right.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the other end read %v, want a RST", err)
	}
	if r := <-result; r.Err == nil || r.Code != protocol.CodeAborted {
		t.Fatalf("result %+v", r)
	}
}

// The kernel tells one caller of a reset. When it is our Write, the Read beside
// it gets 0 and would pass for an end.
func TestSpliceResetNoticedByWrite(t *testing.T) {
	for range 100 {
		left, a := memPair() // a TCP connection would play the same trick on this test
		b, right := tcpPair(t)
		result := make(chan SpliceResult, 1)
		go func() { result <- Splice(context.Background(), a, b, SpliceOptions{}) }()
		go func() { // keeps the splice writing to right
			b := make([]byte, 4<<10)
			for {
				if _, err := left.Write(b); err != nil {
					return
				}
			}
		}()
		io.ReadFull(right, make([]byte, 64<<10))
		right.SetLinger(0)
		right.Close()
		if _, err := io.ReadAll(left); err == nil {
			t.Fatal("a reset arrived as a clean end")
		}
		if r := <-result; r.Err == nil {
			t.Fatalf("result %+v", r)
		}
	}
}

func TestWasReset(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("known on Linux only")
	}
	// Our Write takes the error away, so that Read gets a plain end.
	a, b := tcpPair(t)
	b.SetLinger(0)
	b.Close()
	for {
		if _, err := a.Write([]byte("x")); err != nil {
			break
		}
		runtime.Gosched()
	}
	if _, err := a.Read(make([]byte, 1)); err != io.EOF {
		t.Logf("this kernel reports the reset twice: %v", err)
	}
	if !wasReset(a) {
		t.Error("a reset was not noticed")
	}
	// A peer's FIN is none.
	a, b = tcpPair(t)
	b.CloseWrite()
	mustReadAll(t, a, "")
	if wasReset(a) {
		t.Error("a clean end was taken for a reset")
	}
}

// A tls.Conn is aborted below TLS: no close_notify, no clean end.
func TestSpliceTLSAbort(t *testing.T) {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"x"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	server := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	for _, clean := range []bool{true, false} {
		visitor, near := tcpPair(t)
		b, backend := tcpPair(t)
		a := tls.Server(near, server)
		client := tls.Client(visitor, &tls.Config{InsecureSkipVerify: true})
		result := make(chan SpliceResult, 1)
		go func() {
			if err := a.Handshake(); err != nil {
				t.Error(err)
			}
			result <- Splice(context.Background(), a, b, SpliceOptions{})
		}()
		mustWrite(t, client, "question")
		io.ReadFull(backend, make([]byte, 8))
		mustWrite(t, backend, "answer")
		io.ReadFull(client, make([]byte, 6))
		if clean {
			client.CloseWrite()
			mustReadAll(t, backend, "")
			backend.Close()
			mustReadAll(t, client, "")
		} else {
			Abort(backend, protocol.CodeAborted)
			if _, err := client.Read(make([]byte, 1)); err == io.EOF {
				t.Fatal("an abort arrived as a clean end of TLS")
			}
		}
		if r := <-result; (r.Err == nil) != clean {
			t.Errorf("clean %v: result %+v", clean, r)
		}
	}
}
