// Command sallyport is both ends of an outbound relay tunnel: the relay on a
// small public server, the agent at home, and the tools around them.
//
// A file per subcommand; wiring.go joins the packages; app.go is the table of
// commands.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args, stdio{in: os.Stdin, out: os.Stdout, err: os.Stderr})
	stop()
	os.Exit(code)
}
