package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/relay/store"
)

const (
	tokenTTL    = 15 * time.Minute
	maxTokenTTL = 7 * 24 * time.Hour
	// keepToken is how long after its end a token is remembered, so that an
	// agent that crashed after Redeem may ask again.
	keepToken = 24 * time.Hour
)

// ErrToken is the one answer to a secret that opens nothing: it does not say
// whether the token was wrong, used, replaced or too old.
var ErrToken error = &HintError{
	What: "the token is not valid here: wrong, already used, or older than its time",
	Todo: "make a new one on the relay with: sallyport relay token",
}

// A TokenRequest says what the agent that redeems a token may do.
type TokenRequest struct {
	Hosts   []string      // patterns it may claim; empty: any name, only for the relay's first agent
	Ports   []string      // public ports it may use, "2222" or "51820/udp"
	TTL     time.Duration // 0: 15 minutes; at most 7 days
	Foreign bool          // allow patterns outside the relay's domain
}

// tokenRecord is a token at rest. The secret itself is never stored.
type tokenRecord struct {
	Hosts   []string         `json:"hosts,omitempty"` // empty: unrestricted
	Ports   []string         `json:"ports,omitempty"`
	Created time.Time        `json:"created"`
	Expires time.Time        `json:"expires"`
	UsedBy  protocol.AgentID `json:"used_by,omitempty"`
}

// firstRecord guards unrestricted tokens: exactly one is valid at a time, and
// none after the first agent has joined.
type firstRecord struct {
	Token string           `json:"token,omitempty"` // hash of the valid one
	Agent protocol.AgentID `json:"agent,omitempty"` // who joined first; final
}

// hashSecret makes look-up by hash the comparison: what leaks through timing
// is at most the hash of a guess. The secret has 128 bits or more, so that a
// plain hash is enough.
func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// NewToken makes a secret with which one agent may join. It is shown once; at
// rest is only its hash.
func (r *Registry) NewToken(ctx context.Context, q TokenRequest) (secret string, expires time.Time, err error) {
	now := r.cfg.Now()
	if q.TTL == 0 {
		q.TTL = tokenTTL
	}
	if q.TTL < time.Second || q.TTL > maxTokenTTL {
		return "", time.Time{}, &HintError{"a token lives between one second and 7 days", "choose another --ttl; the default is 15m"}
	}
	rec := tokenRecord{Created: now.UTC(), Expires: now.Add(q.TTL).UTC().Truncate(time.Second)}
	for _, p := range q.Hosts {
		p, err := r.grantable(p, q.Foreign)
		if err != nil {
			return "", time.Time{}, err
		}
		rec.Hosts = append(rec.Hosts, p)
	}
	if rec.Ports, err = grantablePorts(q.Ports); err != nil {
		return "", time.Time{}, err
	}
	if err := r.beginWrite(ctx); err != nil {
		return "", time.Time{}, err
	}
	defer r.endWrite()
	if err := r.forgetTokens(ctx, now); err != nil {
		return "", time.Time{}, err
	}
	secret = rand.Text()
	hash := hashSecret(secret)
	data, err := json.Marshal(rec)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("encode token: %w", err)
	}
	if _, err := r.cfg.Store.Create(ctx, keyTokens+hash, data); err != nil {
		return "", time.Time{}, fmt.Errorf("store token: %w", err)
	}
	if len(rec.Hosts) == 0 {
		if err := r.offerFirst(ctx, hash); err != nil {
			return "", time.Time{}, errors.Join(err, r.cfg.Store.Delete(ctx, keyTokens+hash, 0))
		}
	}
	r.cfg.Audit("token.created", slog.String("token", hash[:12]), slog.Any("hosts", rec.Hosts), slog.Any("ports", rec.Ports), slog.Time("expires", rec.Expires))
	return secret, rec.Expires, nil
}

func (r *Registry) grantable(pattern string, foreign bool) (string, error) {
	p, err := names.ValidPattern(pattern)
	if err != nil {
		return "", &HintError{fmt.Sprintf("host pattern %q: %v", pattern, err), "write a name like ha." + r.cfg.Domain + " or a pattern like '*.alice." + r.cfg.Domain + "'"}
	}
	if !foreign && !names.Below(p, r.cfg.Domain) {
		return "", &HintError{
			fmt.Sprintf("host pattern %q is not below %s", p, r.cfg.Domain),
			"an agent may claim only names below the relay's domain, e.g. --hosts '*.alice." + r.cfg.Domain + "'",
		}
	}
	return p, nil
}

// offerFirst makes hash the only unrestricted token, which voids an older one.
func (r *Registry) offerFirst(ctx context.Context, hash string) error {
	first, rev, err := r.first(ctx)
	if err != nil {
		return err
	}
	if first.Agent != "" {
		return &HintError{
			"only the first agent of a relay may join without restriction",
			"say which names the next one may claim: --hosts '*.alice." + r.cfg.Domain + "'",
		}
	}
	return r.setFirst(ctx, firstRecord{Token: hash}, rev)
}

func (r *Registry) first(ctx context.Context) (rec firstRecord, rev uint64, err error) {
	e, err := r.cfg.Store.Get(ctx, keyFirst)
	if errors.Is(err, store.ErrNotFound) {
		return rec, 0, nil
	}
	if err == nil {
		err = json.Unmarshal(e.Value, &rec)
	}
	if err != nil {
		return rec, 0, fmt.Errorf("read %s: %w", keyFirst, err)
	}
	return rec, e.Revision, nil
}

func (r *Registry) setFirst(ctx context.Context, rec firstRecord, rev uint64) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode %s: %w", keyFirst, err)
	}
	if rev == 0 {
		_, err = r.cfg.Store.Create(ctx, keyFirst, data)
	} else {
		_, err = r.cfg.Store.Update(ctx, keyFirst, data, rev)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", keyFirst, err)
	}
	return nil
}

// forgetTokens deletes tokens whose time is long over.
func (r *Registry) forgetTokens(ctx context.Context, now time.Time) error {
	var old []string
	err := each(ctx, r.cfg.Store, keyTokens, func(hash string, rec tokenRecord) {
		if now.After(rec.Expires.Add(keepToken)) {
			old = append(old, hash)
		}
	})
	if err != nil {
		return err
	}
	for _, hash := range old {
		if err := r.cfg.Store.Delete(ctx, keyTokens+hash, 0); err != nil {
			return fmt.Errorf("delete old token: %w", err)
		}
	}
	return nil
}

// Redeem admits the key id with a token's secret and returns the agent that
// it is from now on. Of several keys that race for one secret exactly one
// wins. The key that won may ask again with the same secret and gets the same
// answer: it may have crashed before it saved the first. Every secret that
// opens nothing gets ErrToken.
//
// A key that joined earlier and comes with a fresh token keeps its name and
// claims and gets the fresh token's patterns. A revoked key stays out.
func (r *Registry) Redeem(ctx context.Context, secret string, id protocol.AgentID, wish string) (Agent, error) {
	if !protocol.IsAgentID(string(id)) {
		return Agent{}, fmt.Errorf("agent id %q is malformed", id)
	}
	if err := r.beginWrite(ctx); err != nil {
		return Agent{}, err
	}
	defer r.endWrite()
	a, again, err := r.redeem(ctx, secret, id, wish)
	switch {
	case err != nil:
		r.log.Warn("join refused", "agent", id.Short(), "err", err)
	case !again:
		r.log.Info("agent joined", "agent", a.Name, "id", id.Short(), "hosts", a.Hosts)
		r.cfg.Audit("agent.joined", slog.String("agent", a.Name), slog.String("id", string(id)), slog.Any("hosts", a.Hosts))
	}
	return a, err
}

func (r *Registry) redeem(ctx context.Context, secret string, id protocol.AgentID, wish string) (a Agent, again bool, err error) {
	known, isKnown := r.Lookup(id)
	hash := hashSecret(secret)
	e, err := r.cfg.Store.Get(ctx, keyTokens+hash)
	if errors.Is(err, store.ErrNotFound) {
		return Agent{}, false, ErrToken
	}
	var rec tokenRecord
	if err == nil {
		err = json.Unmarshal(e.Value, &rec)
	}
	if err != nil {
		return Agent{}, false, fmt.Errorf("read token: %w", err)
	}
	now := r.cfg.Now()
	switch {
	case isKnown && known.Revoked:
		return Agent{}, false, ErrRevoked
	case rec.UsedBy == id && isKnown:
		return known, true, nil
	case rec.UsedBy == id: // a crash came between the steps below: go on
	case rec.UsedBy != "" || now.After(rec.Expires):
		return Agent{}, false, ErrToken
	default:
		rec.UsedBy = id
		data, err := json.Marshal(rec)
		if err != nil {
			return Agent{}, false, fmt.Errorf("encode token: %w", err)
		}
		_, err = r.cfg.Store.Update(ctx, e.Key, data, e.Revision)
		if errors.Is(err, store.ErrConflict) {
			return Agent{}, false, ErrToken // somebody was faster
		}
		if err != nil {
			return Agent{}, false, fmt.Errorf("use token: %w", err)
		}
	}
	if len(rec.Hosts) == 0 {
		if err := r.takeFirst(ctx, hash, id); err != nil {
			return Agent{}, false, err
		}
	} else if err := r.closeFirst(ctx, id); err != nil {
		return Agent{}, false, err
	}
	if isKnown {
		known.Hosts = rec.Hosts
		if len(rec.Ports) > 0 {
			known.Ports = rec.Ports
		}
		a = known
	} else {
		name, err := r.takeName(ctx, id, wish)
		if err != nil {
			return Agent{}, false, err
		}
		a = Agent{ID: id, Name: name, Hosts: rec.Hosts, Ports: rec.Ports, Joined: now.UTC(), LastSeen: now}
	}
	if err := r.put(ctx, keyAgents+string(id), a.record()); err != nil {
		return Agent{}, false, fmt.Errorf("store agent: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.agents[id]; m != nil {
		m.Hosts, m.Ports = a.Hosts, a.Ports
	} else {
		r.agents[id] = newMember(id, a.record())
	}
	return a, false, nil
}

// takeFirst lets id be the unrestricted first agent, unless a newer
// unrestricted token replaced hash or somebody joined before.
func (r *Registry) takeFirst(ctx context.Context, hash string, id protocol.AgentID) error {
	first, rev, err := r.first(ctx)
	switch {
	case err != nil:
		return err
	case first.Agent == id:
		return nil
	case first.Agent != "" || first.Token != hash:
		return ErrToken
	}
	err = r.setFirst(ctx, firstRecord{Agent: id}, rev)
	if errors.Is(err, store.ErrConflict) {
		return ErrToken
	}
	return err
}

// closeFirst ends the time of unrestricted tokens when an agent joins with a
// restricted one.
func (r *Registry) closeFirst(ctx context.Context, id protocol.AgentID) error {
	first, rev, err := r.first(ctx)
	if err != nil || first.Agent != "" {
		return err
	}
	err = r.setFirst(ctx, firstRecord{Agent: id}, rev)
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) {
		return nil // another agent closed it
	}
	return err
}

// takeName reserves a name like the wished one.
func (r *Registry) takeName(ctx context.Context, id protocol.AgentID, wish string) (string, error) {
	base := agentName(wish)
	mine, err := json.Marshal(id)
	if err != nil {
		return "", fmt.Errorf("encode agent id: %w", err)
	}
	for i := 1; ; i++ {
		name := base
		if i > 1 {
			name += "-" + strconv.Itoa(i)
		}
		_, err := r.cfg.Store.Create(ctx, keyNames+name, mine)
		if errors.Is(err, store.ErrExists) {
			e, err := r.cfg.Store.Get(ctx, keyNames+name)
			if err == nil && slices.Equal(e.Value, mine) {
				return name, nil // reserved before a crash
			}
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return "", fmt.Errorf("read agent name: %w", err)
			}
			continue
		}
		if err != nil {
			return "", fmt.Errorf("store agent name: %w", err)
		}
		return name, nil
	}
}

// agentName makes a short label of whatever the agent wished.
func agentName(wish string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(wish) {
		switch {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9':
			b.WriteRune(c)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() >= 40 {
			break
		}
	}
	if name := strings.Trim(b.String(), "-"); name != "" {
		return name
	}
	return "home"
}
