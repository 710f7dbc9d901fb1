package main

import (
	"context"
	"errors"
	"fmt"
	goio "io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
)

// maxSecret bounds what is typed or read as a PIN.
const maxSecret = 256

// readPIN takes a PIN from --pin-file or asks for it on the terminal.
func readPIN(c *cli.Context, io stdio, prompt string) (string, error) {
	if file := c.String("pin-file"); file != "" {
		return pinOf(file, io)
	}
	if !isTerminal(io.in) {
		return "", usageError("give --pin-file FILE, or --pin-file - and the PIN on stdin", "a PIN is needed, and nobody can be asked: stdin is no terminal")
	}
	pin, err := promptHidden(c.Context, io, prompt)
	if err != nil {
		return "", err
	}
	return pin, checkPIN(pin)
}

// pinOf reads a file that holds a PIN alone; - is stdin.
func pinOf(file string, io stdio) (string, error) {
	in := io.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", usageError("", "--pin-file: %w", err)
		}
		defer f.Close()
		in = f
	}
	raw, err := goio.ReadAll(goio.LimitReader(in, maxSecret))
	if err != nil {
		return "", failed(exitFailed, "", fmt.Errorf("read the PIN: %w", err))
	}
	pin := strings.TrimSpace(string(raw))
	return pin, checkPIN(pin)
}

func checkPIN(pin string) error {
	if len(pin) < 4 || len(pin) > 12 || strings.Trim(pin, "0123456789") != "" {
		return usageError("", "a PIN has 4 to 12 digits") // what was typed is not repeated
	}
	return nil
}

// promptHidden is promptLine without showing what is typed.
func promptHidden(ctx context.Context, io stdio, prompt string) (string, error) {
	f, ok := io.in.(*os.File)
	if !ok {
		return "", errors.New("stdin is no terminal")
	}
	show, err := hideTyping(f)
	if err != nil {
		return "", usageError("give --pin-file FILE instead", "what is typed would be shown: %w", err)
	}
	defer show()
	line, err := promptLine(ctx, io, prompt, maxSecret)
	fmt.Fprintln(io.err) // the person's own line end was not shown either
	return line, err
}
