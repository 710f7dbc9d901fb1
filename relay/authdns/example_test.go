package authdns_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/miekg/dns"
	"github.com/sallyport/sallyport/relay/authdns"
)

func Example() {
	const agent = "aaaabbbbccccddddeeeeffffgggghhhhiiiijjjjkkkkllllmmmm"
	homes, txt := authdns.NewHomes("example.org"), authdns.NewTXT(nil)
	server, err := authdns.New(authdns.Config{
		Domain:  "example.org",
		Addrs:   func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("203.0.113.1")} },
		Sources: []authdns.Source{txt, homes},
		Hosts:   func(name string) bool { return name == "ha.example.org" },
	})
	if err != nil {
		panic(err)
	}
	if err := homes.Set(agent, authdns.Home{LAN: []netip.Addr{netip.MustParseAddr("192.168.1.7")}}); err != nil {
		panic(err)
	}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, udp, nil) }()

	for _, name := range []string{"ha.example.org.", "192-168-1-7." + agent + ".example.org."} {
		reply, err := authdns.Ask(ctx, "udp", udp.LocalAddr().String(), new(dns.Msg).SetQuestion(name, dns.TypeA))
		if err != nil {
			panic(err)
		}
		fmt.Println(reply.Answer[0].(*dns.A).A)
	}
	cancel()
	fmt.Println(<-done)
	// Output:
	// 203.0.113.1
	// 192.168.1.7
	// <nil>
}

func ExampleDelegation() {
	for _, line := range authdns.Delegation("home.example.org", nil, []netip.Addr{netip.MustParseAddr("203.0.113.1")}) {
		fmt.Println(line)
	}
	// Output:
	// home.example.org. NS ns1.home.example.org.
	// ns1.home.example.org. A 203.0.113.1
}
