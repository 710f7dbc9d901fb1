package admin

import (
	"encoding/xml"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"rsc.io/qr"
)

const testLink = "https://enroll.home.example.org/#B5CQ7PC6Z44DPXJ3GRQSAJEDWD"

// matrix is the truth: what the library says is black.
func matrix(t *testing.T, text string) *qr.Code {
	t.Helper()
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

func TestQRSVG(t *testing.T) {
	svg, err := QRSVG(testLink)
	if err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal([]byte(svg), new(struct{})); err != nil || strings.Contains(svg, "style") || strings.Contains(svg, "enroll") {
		t.Errorf("%v in %s", err, svg)
	}
	code := matrix(t, testLink)
	black := map[[2]int]bool{}
	for _, m := range regexp.MustCompile(`M(\d+) (\d+)h(\d+)v1h-(\d+)z`).FindAllStringSubmatch(svg, -1) {
		var x, y, w, back int
		fmt.Sscan(m[1]+" "+m[2]+" "+m[3]+" "+m[4], &x, &y, &w, &back)
		if w != back {
			t.Fatalf("a run does not close: %s", m[0])
		}
		for i := range w {
			black[[2]int{x + i, y}] = true
		}
	}
	for y := range code.Size + 2*quiet {
		for x := range code.Size + 2*quiet {
			if black[[2]int{x, y}] != code.Black(x-quiet, y-quiet) {
				t.Fatalf("module %d,%d is wrong", x, y)
			}
		}
	}
}

func TestQRTerminal(t *testing.T) {
	var b strings.Builder
	if err := QRTerminal(&b, testLink); err != nil {
		t.Fatal(err)
	}
	code := matrix(t, testLink)
	rows := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if want := (code.Size + 2*2 + 1) / 2; len(rows) != want {
		t.Fatalf("%d rows, want %d", len(rows), want)
	}
	for i, row := range rows {
		row, ok := strings.CutPrefix(row, "\x1b[38;5;16;48;5;231m")
		row, done := strings.CutSuffix(row, "\x1b[0m")
		cells := []rune(row)
		if !ok || !done || len(cells) != code.Size+4 {
			t.Fatalf("row %d: %q", i, rows[i])
		}
		for j, cell := range cells {
			top, bottom := code.Black(j-2, 2*i-2), code.Black(j-2, 2*i-1)
			want := map[[2]bool]rune{{false, false}: ' ', {true, false}: '▀', {false, true}: '▄', {true, true}: '█'}[[2]bool{top, bottom}]
			if cell != want {
				t.Fatalf("row %d, cell %d: %q, want %q", i, j, cell, want)
			}
		}
	}
}

func TestQRTooLong(t *testing.T) {
	secret := strings.Repeat("SECRET", 1000)
	_, err := QRSVG(secret)
	if err == nil || strings.Contains(err.Error(), "SECRET") {
		t.Errorf("%.200v", err)
	}
	if err := QRTerminal(failing{}, testLink); err == nil {
		t.Error("a broken terminal is no error")
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, fmt.Errorf("broken") }
