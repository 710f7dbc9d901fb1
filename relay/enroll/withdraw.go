package enroll

import (
	"context"
	"fmt"
	"log/slog"
)

// Withdraw makes the codes that wait for a name open nothing; the empty name
// stands for the codes whose visitor names the device. None is ErrUnknown.
//
// Withdrawn is also what a crash left: a code that was bound to a key and whose
// request was never written. Its applicant could still come back with it.
func (d *Desk) Withdraw(ctx context.Context, name string) error {
	n, err := d.withdrawAll(ctx, func(c *code) bool { return c.Name == name })
	if err == nil && n == 0 {
		err = fmt.Errorf("%w: no code waits for it", ErrUnknown)
	}
	if err != nil {
		return fmt.Errorf("withdraw the code of %s: %w", orUnnamed(name), err)
	}
	return nil
}

// WithdrawID is Withdraw for the one code with an ID of CodeInfo.
func (d *Desk) WithdrawID(ctx context.Context, id string) error {
	n, err := d.withdrawAll(ctx, func(c *code) bool { return c.id() == id })
	if err == nil && n == 0 {
		err = fmt.Errorf("%w: no such code waits", ErrUnknown)
	}
	if err != nil {
		return fmt.Errorf("withdraw code %q: %w", id, err)
	}
	return nil
}

// WithdrawBy is Withdraw for all codes that an actor (Invitation.By) made, and
// returns how many. None is no error. The empty actor made none: nobody knows
// who made those.
func (d *Desk) WithdrawBy(ctx context.Context, actor string) (n int, err error) {
	actor = clip(actor, maxBy)
	if actor == "" {
		return 0, nil
	}
	n, err = d.withdrawAll(ctx, func(c *code) bool { return c.By == actor })
	if err != nil {
		return n, fmt.Errorf("withdraw the codes of %q: %w", actor, err)
	}
	return n, nil
}

func (d *Desk) withdrawAll(ctx context.Context, which func(*code) bool) (n int, err error) {
	if err := d.begin(ctx); err != nil {
		return 0, err
	}
	defer d.end()
	return d.withdraw(ctx, which)
}

// withdraw wants the token of writers.
func (d *Desk) withdraw(ctx context.Context, which func(*code) bool) (n int, err error) {
	defer func() {
		if n > 0 {
			d.cfg.Changed()
		}
	}()
	now := d.cfg.Now()
	for _, c := range d.allCodes() {
		if !which(c) || c.UsedBy == nil && !c.alive(now) {
			continue
		}
		if c.UsedBy != nil {
			if stranded, err := d.stranded(ctx, c); err != nil {
				return n, err
			} else if !stranded {
				continue
			}
		}
		done, err := d.drop(ctx, codePrefix+c.hash, c.revision)
		if err != nil {
			return n, err
		}
		if done {
			n++
			d.cfg.Audit("enrol.withdrawn", slog.String("device", c.Name), slog.String("code_id", c.id()), slog.String("by", c.By))
		}
	}
	return n, nil
}

// stranded reports whether a used code has no request. The store is asked:
// another relay may have written it.
func (d *Desk) stranded(ctx context.Context, c *code) (bool, error) {
	if d.request(c.UsedBy.Request) != nil {
		return false, nil
	}
	if err := d.reread(ctx, c.UsedBy.Request); err != nil {
		return false, err
	}
	return d.request(c.UsedBy.Request) == nil, nil
}
