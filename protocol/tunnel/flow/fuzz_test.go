package flow

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// FuzzFrames sends anything on the control stream: limits only rise, CLOSE
// ends the session as it says, and nothing else does but the stream's end.
func FuzzFrames(f *testing.F) {
	frames := func(all ...[]byte) (b []byte) {
		for _, one := range all {
			b = append(b, one...)
		}
		return b
	}
	f.Add([]byte{}, byte(1))
	f.Add(appendFrame(nil, frameCredit, 2, 1<<20), byte(17))
	f.Add(frames(appendFrame(nil, frameCredit, 2, 1<<63), appendFrame(nil, frameCredit, 2, 3), appendFrame(nil, frameCredit, 9, 9)), byte(5))
	f.Add(frames(appendFrame(nil, 77, 1, 1), appendFrame(nil, frameClose, 3, 10), []byte("bye")), byte(18))
	f.Add(appendFrame(nil, frameClose, 1<<40, 1<<40), byte(4))
	f.Add(append(appendFrame(nil, frameClose, 1<<40, 0), make([]byte, 300)...), byte(200))
	f.Fuzz(func(t *testing.T, sent []byte, step byte) {
		if len(sent) > 10_000 {
			t.Skip()
		}
		l := newFakeLink()
		s, control := l.listener(t, Config{})
		l.open()
		st := accept(t, s)
		for rest := sent; len(rest) > 0; { // in pieces, as a transport delivers
			n := min(len(rest), max(int(step), len(sent)/500+1))
			control.arrives(rest[:n])
			rest = rest[n:]
		}
		control.arrives(errors.New("that was all"))
		<-s.Done()

		limit, code, reason, remote := int64(InitialWindow), protocol.CodeProtocol, "control stream ended", false
		for len(sent) >= frameSize {
			stream, value := binary.BigEndian.Uint64(sent[1:]), binary.BigEndian.Uint64(sent[9:])
			typ := sent[0]
			sent = sent[frameSize:]
			if typ == frameCredit && stream == st.id {
				limit = max(limit, int64(min(value, 1<<62)))
			}
			if typ == frameClose {
				if n := int(min(stream, maxReason)); n <= len(sent) {
					code, reason, remote = protocol.Code(value), string(sent[:n]), true
				}
				break
			}
		}
		if st.out.limit != limit {
			t.Errorf("limit %d, want %d", st.out.limit, limit)
		}
		if e, ok := errors.AsType[*tunnel.CloseError](s.Err()); !ok || e.Code != code || e.Reason != reason || e.Remote != remote {
			t.Errorf("ended with %v, want %v %q remote %v", s.Err(), code, reason, remote)
		}
	})
}
