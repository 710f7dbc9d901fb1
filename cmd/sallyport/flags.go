package main

import (
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"

	"github.com/urfave/cli/v2"
)

// Default state directories.
const (
	defaultRelayData = "/var/lib/sallyport/relay"
	defaultAgentData = "/var/lib/sallyport/agent"
)

func dataFlag(def string) cli.Flag {
	return &cli.StringFlag{Name: "data", Usage: "state `DIR`, made with mode 0700", Value: def, EnvVars: []string{"SALLYPORT_DATA"}}
}

func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Usage: "YAML configuration `FILE`; flags win over it", EnvVars: []string{"SALLYPORT_CONFIG"}}
}

func logFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "log-format", Usage: "`FORMAT`: text or json", EnvVars: []string{"SALLYPORT_LOG_FORMAT"}},
		&cli.StringFlag{Name: "log-level", Usage: "least `LEVEL` written: debug, info, warn, error", EnvVars: []string{"SALLYPORT_LOG_LEVEL"}},
	}
}

// logSettings is the log section of both configuration files.
type logSettings struct {
	Format string `yaml:"format"`
	Level  string `yaml:"level"`
}

// logger builds the process's logger: flag, then file, then text at info. Its
// level can be changed later by set.
func (l logSettings) logger(c *cli.Context, w io.Writer, level *slog.LevelVar) (*slog.Logger, error) {
	if err := l.set(c, level); err != nil {
		return nil, err
	}
	opts := &slog.HandlerOptions{Level: level}
	switch format := firstOf(c.String("log-format"), l.Format, "text"); format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	default:
		return nil, usageError("use text or json", "--log-format: %q is not a format", format)
	}
}

// set changes the level: flag, then file, then info.
func (l logSettings) set(c *cli.Context, level *slog.LevelVar) error {
	word := firstOf(c.String("log-level"), l.Level, "info")
	if !slices.Contains(valuesOf["log-level"], word) {
		return usageError("use debug, info, warn or error", "--log-level: %q is not a level", word)
	}
	return level.UnmarshalText([]byte(word))
}

// setting is flag or environment, then file, then default.
func setting(c *cli.Context, flag, file string) string {
	if c.IsSet(flag) || file == "" {
		return c.String(flag)
	}
	return file
}

func firstOf(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return ""
}

// collectEarly halves the garbage that a relay or an agent carries: both run
// for months beside other things on small machines, and copying bytes makes
// little garbage, so that collecting it sooner costs next to nothing. GOGC in
// the environment wins.
func collectEarly() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(40)
	}
}
