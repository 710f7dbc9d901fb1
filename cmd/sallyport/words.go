package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// sameWords compares words that a person copied: case, blanks and what stands
// between do not matter.
func sameWords(a, b string) bool {
	fields := func(s string) []string {
		return strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return r < 'a' || r > 'z' })
	}
	return strings.Join(fields(a), " ") == strings.Join(fields(b), " ")
}

// inRows sets words out for comparing: four in a row, below each other, with
// blanks in front.
func inRows(words string) string {
	var rows []string
	for row := range slices.Chunk(strings.Fields(words), 4) {
		rows = append(rows, "  "+strings.Join(row, " "))
	}
	return strings.Join(rows, "\n")
}

// confirmWords asks on the terminal; only a whole yes counts.
func confirmWords(ctx context.Context, io stdio, prompt string) error {
	answer, err := promptLine(ctx, io, prompt, 64)
	if err != nil {
		return err
	}
	if !strings.EqualFold(answer, "yes") {
		fmt.Fprintln(io.err)
		return failed(exitRefused, "if the words differ, somebody stands between: do not go on", errors.New("nothing was changed"))
	}
	return nil
}
