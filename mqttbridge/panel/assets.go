package panel

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/protocol/words"
)

//go:embed app icons pages sw.js
var files embed.FS

// A body is an answer that never changes, plain and, where it helps, packed.
type body struct {
	kind  string // Content-Type
	plain []byte
	gzip  []byte // nil: packing does not help
}

func newBody(kind string, plain []byte) (*body, error) {
	b := &body{kind: kind, plain: plain}
	if strings.HasPrefix(kind, "image/png") {
		return b, nil
	}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err == nil {
		_, err = z.Write(plain)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("pack the command page: %w", err)
	}
	b.gzip = packed.Bytes()
	return b, nil
}

func (b *body) write(w http.ResponseWriter, r *http.Request, status int) {
	data := b.plain
	h := w.Header()
	h.Set("Content-Type", b.kind)
	if b.gzip != nil {
		h.Set("Vary", "Accept-Encoding")
		if takesGzip(r) {
			data = b.gzip
			h.Set("Content-Encoding", "gzip")
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(data)
	}
}

// takesGzip is coarse: who says "gzip;q=0" and means it gets plain bytes, and
// so does who says it in a way that is not understood here.
func takesGzip(r *http.Request) bool {
	for part := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		if strings.EqualFold(strings.TrimSpace(part), "gzip") {
			return true
		}
	}
	return false
}

// assets are everything that is the same for all visitors.
type assets struct {
	// version is a hash of all that is served below /app/ and in every such
	// address: modules that import each other by relative names then always are
	// of one version, and may be cached for ever.
	version   string
	versioned map[string]*body // by name
	fixed     map[string]*body // by path: what must stay at one address
	page      *body
	stranger  *body // for visitors without a certificate
}

// shown is what the templates are given.
type shown struct {
	Name    string
	Base    string   // address of the assets, with a slash at its end
	Modules []string // what app.js imports, to be fetched at once
	Enroll  string
}

// lazy are modules that the page loads when it needs them.
var lazy = []string{"words.js", "offline.js"}

func loadAssets(name, enroll string) (*assets, error) {
	plain, err := sources()
	if err != nil {
		return nil, err
	}
	a := &assets{versioned: make(map[string]*body), fixed: make(map[string]*body)}
	a.version = hash(plain)
	show := shown{Name: name, Base: "/app/" + a.version + "/", Enroll: enroll}
	for file := range plain {
		if path.Ext(file) == ".js" && file != "app.js" && !slices.Contains(lazy, file) {
			show.Modules = append(show.Modules, show.Base+file)
		}
	}
	slices.Sort(show.Modules)
	pages, err := template.ParseFS(files, "pages/*.html")
	if err != nil {
		return nil, fmt.Errorf("templates of the command page: %w", err)
	}
	render := func(file string) *body {
		var text bytes.Buffer
		if err == nil {
			err = pages.ExecuteTemplate(&text, file, show)
		}
		return a.body("text/html; charset=utf-8", text.Bytes(), &err)
	}
	a.page, a.stranger, a.versioned["offline.html"] = render("page.html"), render("stranger.html"), render("offline.html")
	for file, text := range plain {
		a.versioned[file] = a.body(kinds[path.Ext(file)], text, &err)
	}
	manifest, e := json.Marshal(newManifest(name))
	worker, e2 := files.ReadFile("sw.js")
	if err = firstOf(err, e, e2); err != nil {
		return nil, fmt.Errorf("command page: %w", err)
	}
	a.fixed["/manifest.webmanifest"] = a.body("application/manifest+json", manifest, &err)
	// The version makes a new worker of it, which then fetches the new offline page.
	a.fixed["/sw.js"] = a.body(kinds[".js"], bytes.ReplaceAll(worker, []byte("VERSION"), []byte(a.version)), &err)
	icons, e := fs.ReadDir(files, "icons")
	err = firstOf(err, e)
	for _, icon := range icons {
		picture, e := files.ReadFile("icons/" + icon.Name())
		err = firstOf(err, e)
		a.fixed["/"+icon.Name()] = a.body(kinds[path.Ext(icon.Name())], picture, &err)
	}
	if err != nil {
		return nil, fmt.Errorf("command page: %w", err)
	}
	return a, nil
}

var kinds = map[string]string{
	".js":  "text/javascript; charset=utf-8",
	".css": "text/css; charset=utf-8",
	".svg": "image/svg+xml",
	".png": "image/png",
}

// body packs one file, unless an earlier one failed.
func (a *assets) body(kind string, plain []byte, err *error) *body {
	if *err != nil {
		return nil
	}
	var b *body
	b, *err = newBody(kind, plain)
	return b
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// sources are the scripts and styles by name. The words to compare are made of
// the one list that the command line uses, too.
func sources() (map[string][]byte, error) {
	found, err := fs.ReadDir(files, "app")
	if err != nil {
		return nil, fmt.Errorf("scripts of the command page: %w", err)
	}
	plain := make(map[string][]byte)
	for _, e := range found {
		text, err := files.ReadFile("app/" + e.Name())
		if err != nil {
			return nil, fmt.Errorf("scripts of the command page: %w", err)
		}
		plain[e.Name()] = lean(e.Name(), text)
	}
	plain["words.js"] = []byte("export default '" + strings.Join(words.List(), " ") + "'.split(' ');\n")
	return plain, nil
}

// lean leaves out what browsers do not need: indentation, comments, and in
// styles the space around punctuation, too. Our scripts hold no text of several
// lines or with " // " in it, our styles no text at all (tests see to it).
func lean(name string, text []byte) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if path.Ext(name) == ".js" {
			line, _, _ = bytes.Cut(line, []byte(" // "))
		}
		if len(line) > 0 && !bytes.HasPrefix(line, []byte("//")) {
			b.Write(line)
			b.WriteByte('\n')
		}
	}
	if path.Ext(name) == ".css" {
		return around.ReplaceAll(b.Bytes(), []byte("$1$2"))
	}
	return b.Bytes()
}

var around = regexp.MustCompile(`\s*([{};,])\s*|(:)\s+`)

// hash covers templates and worker too: whatever changes makes a new version.
func hash(plain map[string][]byte) string {
	sum := sha256.New()
	names := make([]string, 0, len(plain))
	for name := range plain {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(sum, "%s %d\n%s", name, len(plain[name]), plain[name])
	}
	for _, name := range []string{"pages/page.html", "pages/offline.html", "sw.js"} {
		text, _ := files.ReadFile(name) // embedded; a missing one fails elsewhere
		fmt.Fprintf(sum, "%s %d\n%s", name, len(text), text)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

func (a *assets) serveVersioned(w http.ResponseWriter, r *http.Request) {
	b, ok := a.versioned[r.PathValue("name")]
	if !ok || r.PathValue("version") != a.version {
		http.Error(w, "no such file: load the page again", http.StatusNotFound)
		return
	}
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	b.write(w, r, http.StatusOK)
}

func (a *assets) serveFixed(w http.ResponseWriter, r *http.Request) {
	b := a.fixed[r.URL.Path]
	if b == nil { // the mux cleans paths, and only these are registered
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Cache-Control", "public, max-age=86400")
	if r.URL.Path == "/sw.js" || r.URL.Path == "/manifest.webmanifest" {
		w.Header().Set("Cache-Control", "no-cache")
	}
	b.write(w, r, http.StatusOK)
}

// manifest makes the page installable. It says the same to everybody.
type manifest struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	StartURL   string `json:"start_url"`
	Scope      string `json:"scope"`
	Display    string `json:"display"`
	Background string `json:"background_color"`
	Theme      string `json:"theme_color"`
	Icons      []icon `json:"icons"`
}

type icon struct {
	Source  string `json:"src"`
	Sizes   string `json:"sizes"`
	Type    string `json:"type"`
	Purpose string `json:"purpose,omitempty"`
}

func newManifest(name string) manifest {
	return manifest{
		ID: "/", Name: name, StartURL: "/", Scope: "/", Display: "standalone", Background: "#f5f4ef", Theme: "#f5f4ef",
		Icons: []icon{
			{"/icon-192.png", "192x192", "image/png", ""},
			{"/icon-512.png", "512x512", "image/png", ""},
			{"/icon-maskable-512.png", "512x512", "image/png", "maskable"},
			{"/icon.svg", "any", "image/svg+xml", ""},
		},
	}
}
