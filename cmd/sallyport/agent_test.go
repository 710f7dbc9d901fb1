package main

import (
	"strings"
	"testing"

	"github.com/sallyport/sallyport/agent/control"
)

func TestOfferPrinterSaysEachThingOnce(t *testing.T) {
	var out strings.Builder
	p := &offerPrinter{out: &out, data: " --data a"}
	fine := control.ServiceStatus{Name: "web", Target: "127.0.0.1:1", Auth: "require", URL: "https://web.test/"}
	warned := fine
	warned.Warning = "no certificate for it"
	for _, list := range [][]control.ServiceStatus{nil, nil, {fine}, {fine}, {warned}, {warned}, {{Name: "waits"}}} {
		p.print(control.Status{Services: list})
	}
	actions := []control.Action{{Name: "a"}, {Name: "b"}}
	p.print(control.Status{Actions: actions})
	p.print(control.Status{Actions: actions, Domain: "home.test"})
	p.print(control.Status{Actions: actions, Domain: "home.test"})
	p.print(control.Status{Actions: actions[:1], Domain: "home.test"})
	want := `offers nothing yet: sallyport agent expose NAME TARGET --data a
https://web.test/   require   →  127.0.0.1:1
https://web.test/   require   →  127.0.0.1:1
  warning: no certificate for it
offers 2 actions: https://home.home.test/
offers 1 action: https://home.home.test/
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}
