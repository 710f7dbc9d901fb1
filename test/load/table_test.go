//go:build linux

package load

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
)

// table collects what the benchmarks measured, for the end of the run.
type table struct {
	mu    sync.Mutex // guards cells
	cells []*cell
}

// key is the place of a number. Cells of a section share their unit.
type key struct{ section, column, service, peer string }

// cell holds the costs of one place, one for every -count, and a second figure
// beside them.
type cell struct {
	key
	costs, seconds []float64
	second         string // verb for the second figure; "" = none
}

func (t *table) add(section, column string, r *road, cost float64, second string, value float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key{section, column, r.service, r.peer}
	i := slices.IndexFunc(t.cells, func(c *cell) bool { return c.key == k })
	if i < 0 {
		i = len(t.cells)
		t.cells = append(t.cells, &cell{key: k, second: second})
	}
	t.cells[i].costs = append(t.cells[i].costs, cost)
	t.cells[i].seconds = append(t.cells[i].seconds, value)
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// cost returns the median of the first of the services that the peer has.
func (t *table) cost(k key, services ...string) float64 {
	for _, s := range services {
		k.service = s
		for _, c := range t.cells {
			if c.key == k {
				return median(c.costs)
			}
		}
	}
	return 0
}

// baseline returns what a cell is compared with: the same service through
// another peer, or the nearest that the peer has.
func (t *table) baseline(k key, peer string) float64 {
	k.peer = peer
	nearest := map[string]string{"pass": "raw", "h2": "http", "challenge first": "topic", "prefetched": "topic"}[k.service]
	return t.cost(k, k.service, nearest)
}

// print writes a section per benchmark: a row per road, a column per load.
func (t *table) print(w io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var sections []string
	for _, c := range t.cells {
		if !slices.Contains(sections, c.section) {
			sections = append(sections, c.section)
		}
	}
	for _, s := range sections {
		t.printSection(w, s)
	}
}

func (t *table) printSection(w io.Writer, section string) {
	var columns, rows []string
	at := map[[2]string]*cell{}
	for _, c := range t.cells {
		if c.section != section {
			continue
		}
		row := c.service + "\t" + c.peer
		at[[2]string{row, c.column}] = c
		if !slices.Contains(columns, c.column) {
			columns = append(columns, c.column)
		}
		if !slices.Contains(rows, row) {
			rows = append(rows, row)
		}
	}
	bases := t.bases(section)
	fmt.Fprintf(w, "\n%s", section)
	if len(bases) > 0 {
		fmt.Fprintf(w, "; [× %s]", strings.Join(bases, ", × "))
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\t\t%s\n", strings.Join(columns, "\t"))
	for _, row := range rows {
		fmt.Fprint(tw, row)
		for _, column := range columns {
			fmt.Fprint(tw, "\t")
			if c := at[[2]string{row, column}]; c != nil {
				fmt.Fprint(tw, t.text(c, bases))
			}
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
}

// bases are the peers of a section that the others are compared with.
func (t *table) bases(section string) (found []string) {
	for _, base := range []string{"floor", "haproxy", "mosquitto", "quiet", "door alone"} {
		if slices.ContainsFunc(t.cells, func(c *cell) bool { return c.section == section && c.peer == base }) {
			found = append(found, base)
		}
	}
	return found
}

func (t *table) text(c *cell, bases []string) string {
	cost := median(c.costs)
	s := fmt.Sprintf("%.3g", cost)
	if cost >= 1000 {
		s = fmt.Sprintf("%.0f", cost)
	}
	if c.second != "" {
		s += fmt.Sprintf(" "+c.second, median(c.seconds))
	}
	var ratios []string
	for _, base := range bases {
		ratios = append(ratios, ratio(cost, t.baseline(c.key, base)))
	}
	if len(ratios) > 0 {
		s += " [" + strings.Join(ratios, ", ") + "]"
	}
	return s
}

func ratio(cost, base float64) string {
	if base <= 0 {
		return "–"
	}
	return fmt.Sprintf("%.2g", cost/base)
}

func TestTable(t *testing.T) {
	tab := &table{}
	for _, cost := range []float64{0.3, 0.5, 0.1} {
		tab.add("bulk", "1", &road{service: "raw", peer: "floor"}, cost, "(%.1f)", 10*cost)
	}
	tab.add("bulk", "1", &road{service: "raw", peer: "haproxy"}, 0.6, "(%.1f)", 5)
	tab.add("bulk", "1", &road{service: "pass", peer: "quic"}, 3, "(%.1f)", 2)
	tab.add("bulk", "8", &road{service: "pass", peer: "quic"}, 4321, "(%.1f)", 2)
	var b strings.Builder
	tab.print(&b)
	for _, want := range []string{"0.3 (3.0) [1, 0.5]", "0.6 (5.0) [2, 1]", "3 (2.0) [10, 5]", "4321 (2.0) [–, –]"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
}
