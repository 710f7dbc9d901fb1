package ports

import (
	"context"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// Run serves the ports until ctx ends, and returns nil after every visitor is
// gone and every port is closed. It is called once.
func (p *Ports) Run(ctx context.Context) error {
	var serving sync.WaitGroup
	retry := time.NewTicker(retryBind)
	defer retry.Stop()
	for ctx.Err() == nil {
		for _, b := range p.takeFresh() {
			serving.Go(func() { b.serve(ctx) })
		}
		select {
		case <-p.news:
		case <-retry.C:
			p.tryAgain()
		case <-ctx.Done():
		}
	}
	p.stop()
	serving.Wait()
	return nil
}

func (p *Ports) takeFresh() []binding {
	p.mu.Lock()
	defer p.mu.Unlock()
	fresh := p.fresh
	p.fresh = nil
	return fresh
}

// tryAgain opens ports that could not be had before.
func (p *Ports) tryAgain() {
	p.setting.Lock()
	defer p.setting.Unlock()
	p.mu.Lock()
	none := len(p.failed) == 0
	p.mu.Unlock()
	if !none {
		p.apply()
	}
}

// stop makes an end: those that serve end by ctx, with their grace; those that
// never began are closed here.
func (p *Ports) stop() {
	p.setting.Lock()
	defer p.setting.Unlock()
	p.mu.Lock()
	p.over = true
	never := p.fresh
	p.fresh, p.bound = nil, map[Route]binding{}
	p.mu.Unlock()
	for _, b := range never {
		b.unbind(&tunnel.CloseError{Code: protocol.CodeGoingAway, Reason: errStopped.Error()})
	}
}
