package admin

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"rsc.io/qr"
)

// quiet is the white margin of a QR code, in modules, that readers need.
const quiet = 4

// QRSVG draws text as a QR code: one SVG element, black on white whatever the
// page's colours, with its margin, without scripts, styles or size. It fails
// when text is too long, from about 2,300 bytes on.
func QRSVG(text string) (string, error) {
	code, err := encodeQR(text)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	side := code.Size + 2*quiet
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="QR code" shape-rendering="crispEdges">`, side, side)
	fmt.Fprintf(&b, `<path fill="#fff" d="M0 0h%dv%dH0z"/><path fill="#000" d="`, side, side)
	for y := range code.Size {
		for x := 0; x < code.Size; x++ {
			run := x
			for run < code.Size && code.Black(run, y) {
				run++
			}
			if run > x {
				fmt.Fprintf(&b, "M%d %dh%dv1h-%dz", x+quiet, y+quiet, run-x, run-x)
				x = run
			}
		}
	}
	b.WriteString(`"/></svg>`)
	return b.String(), nil
}

// QRTerminal draws text as a QR code for a terminal, two modules a character.
// It sets black and white itself, since readers refuse what a dark terminal
// would make of it, so it is not for files or pipes.
func QRTerminal(w io.Writer, text string) error {
	code, err := encodeQR(text)
	if err != nil {
		return err
	}
	const (
		blackOnWhite = "\x1b[38;5;16;48;5;231m" // fixed palette entries: themes change 0 and 15
		reset        = "\x1b[0m"
		margin       = 2 // half the standard's: 4 cost a small terminal too many lines, and readers take 2
	)
	out := bufio.NewWriter(w)
	for y := -margin; y < code.Size+margin; y += 2 {
		out.WriteString(blackOnWhite)
		for x := -margin; x < code.Size+margin; x++ {
			// Black says false outside of the code.
			switch top, bottom := code.Black(x, y), code.Black(x, y+1); {
			case top && bottom:
				out.WriteRune('█')
			case top:
				out.WriteRune('▀')
			case bottom:
				out.WriteRune('▄')
			default:
				out.WriteByte(' ')
			}
		}
		out.WriteString(reset + "\n")
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("draw QR code: %w", err)
	}
	return nil
}

// encodeQR takes the middle level: a link is short, and phones meet it on
// glossy screens.
func encodeQR(text string) (*qr.Code, error) {
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		// Without the text: it may be a secret link.
		return nil, fmt.Errorf("draw QR code: %d bytes do not fit into one", len(text))
	}
	return code, nil
}
