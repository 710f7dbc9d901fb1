package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// version is set by release builds with -ldflags "-X main.version=1.2.3".
var version = "devel"

// softwareVersion is what the two ends tell each other, for people only.
func softwareVersion() string {
	rev := ""
	if bi, ok := debug.ReadBuildInfo(); ok {
		if v := bi.Main.Version; version == "devel" && v != "" && v != "(devel)" {
			return v // go install …@v1.2.3, or built from a clone
		}
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				rev = "+" + s.Value[:12]
			}
		}
	}
	return version + rev
}

func versionCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:         "version",
		Usage:        "print the version",
		OnUsageError: onUsageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			fmt.Fprintf(io.out, "sallyport %s %s %s/%s\n", softwareVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}
