package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
)

//go:embed assets pages
var files embed.FS

// A body is an answer that never changes, plain and packed.
type body struct {
	kind  string // Content-Type
	plain []byte
	gzip  []byte
}

func newBody(kind string, plain []byte) (*body, error) {
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err == nil {
		_, err = z.Write(plain)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("pack a page: %w", err)
	}
	return &body{kind: kind, plain: plain, gzip: packed.Bytes()}, nil
}

func (b *body) write(w http.ResponseWriter, r *http.Request) {
	data := b.plain
	h := w.Header()
	h.Set("Content-Type", b.kind)
	h.Set("Vary", "Accept-Encoding")
	if takesGzip(r) {
		data = b.gzip
		h.Set("Content-Encoding", "gzip")
	}
	h.Set("Content-Length", strconv.Itoa(len(data)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(data)
	}
}

// takesGzip is coarse: who says "gzip;q=0" and means it gets plain bytes, and
// so does who says it in a way that is not understood here.
func takesGzip(r *http.Request) bool {
	for part := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		if coding := strings.TrimSpace(part); strings.EqualFold(coding, "gzip") {
			return true
		}
	}
	return false
}

// assets are the scripts and styles. The version is a hash of them all, and in
// every address: modules that import each other by relative names then always
// are of one version, and may be cached for ever.
type assets struct {
	version string
	byName  map[string]*body
}

func loadAssets() (*assets, error) {
	found, err := fs.ReadDir(files, "assets") // sorted
	if err != nil {
		return nil, fmt.Errorf("scripts and styles of the pages: %w", err)
	}
	a := &assets{byName: make(map[string]*body)}
	sum := sha256.New()
	for _, e := range found {
		plain, err := files.ReadFile("assets/" + e.Name())
		if err != nil {
			return nil, fmt.Errorf("scripts and styles of the pages: %w", err)
		}
		fmt.Fprintf(sum, "%s %d\n%s", e.Name(), len(plain), plain)
		kind := "text/javascript; charset=utf-8"
		if path.Ext(e.Name()) == ".css" {
			kind = "text/css; charset=utf-8"
		}
		if a.byName[e.Name()], err = newBody(kind, plain); err != nil {
			return nil, err
		}
	}
	a.version = hex.EncodeToString(sum.Sum(nil)[:8])
	return a, nil
}

// base is the address of the assets, with a slash at its end.
func (a *assets) base() string { return "/assets/" + a.version + "/" }

// entries are the scripts that pages load themselves; all others are imported.
var entries = []string{"enroll.js", "renew.js"}

// modules returns the addresses of the scripts that others import.
func (a *assets) modules() []string {
	var urls []string
	for _, name := range slices.Sorted(maps.Keys(a.byName)) {
		if path.Ext(name) == ".js" && !slices.Contains(entries, name) {
			urls = append(urls, a.base()+name)
		}
	}
	return urls
}

func (a *assets) serve(w http.ResponseWriter, r *http.Request) {
	b, ok := a.byName[r.PathValue("name")]
	if !ok || r.PathValue("version") != a.version {
		http.Error(w, "no such file: load the page again", http.StatusNotFound)
		return
	}
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	b.write(w, r)
}
