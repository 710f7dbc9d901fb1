// Each case is a browser with its answers; lan.js is loaded afresh for each.
import assert from "node:assert";
import { readFileSync } from "node:fs";

const source = readFileSync(process.argv[2], "utf8");
const A = "https://192-168-1-7.h.example.org:8443", B = "https://fd00--7.h.example.org:8443";
let loads = 0, now = 1e12, limits = [];
Date.now = () => now;

// limits holds what AbortSignal.timeout was asked for; fire() ends one.
AbortSignal.timeout = (ms) => {
  const c = new AbortController();
  limits.push({ ms, fire: () => c.abort(new DOMException("late", "TimeoutError")) });
  return c.signal;
};

const json = (body, status = 200) => new Response(JSON.stringify(body), { status });
const hang = (o) => new Promise((_, no) => o.signal.addEventListener("abort", () => no(o.signal.reason)));

// browser makes the world of a page and returns lan and what it fetched.
async function browser({ site = { urls: [A, B], here: false }, states = {}, at = {} }) {
  const fetched = [];
  limits = [];
  Object.defineProperty(globalThis, "navigator", {
    configurable: true,
    value: {
      permissions: {
        async query({ name }) {
          if (!(name in states)) throw new TypeError(name);
          return { state: states[name] };
        },
      },
    },
  });
  globalThis.location = { origin: "https://ha.example.org" };
  globalThis.fetch = async (url, o) => {
    fetched.push({ url, ...o });
    if (url === "/.well-known/sallyport/lan.json") return typeof site === "function" ? site() : json(site);
    const base = url.replace("/.well-known/sallyport/here", "");
    assert.notEqual(base, url);
    if (!(base in at)) throw new TypeError("no route");
    return at[base](o);
  };
  const { lan } = await import("data:text/javascript," + encodeURIComponent(source) + "//" + ++loads);
  return { lan, fetched, tried: () => fetched.filter((f) => f.url.startsWith("https:")) };
}

const yes = () => json({ here: true });
const cases = {
  async "finds the address that answers"() {
    const b = await browser({ at: { [B]: yes } });
    assert.equal(await b.lan(), B);
    for (const f of b.tried()) {
      assert.equal(f.targetAddressSpace, "local");
      assert.equal(f.mode, "cors");
      assert.equal(f.credentials, "include");
      assert.equal(f.method, undefined); // GET, and
      assert.equal(f.headers, undefined); // no preflight: that would come without the certificate
    }
    assert.deepEqual(limits.map((l) => l.ms), [9000, 1500, 1500]);
  },
  async "does not wait for the others"() {
    const b = await browser({ at: { [A]: hang, [B]: yes } });
    assert.equal(await b.lan(), B);
  },
  async "is null away from home"() {
    const b = await browser({ at: { [A]: hang } });
    const p = b.lan();
    for (let i = 0; i < 20; i++) await null;
    limits.filter((l) => l.ms === 1500).forEach((l) => l.fire());
    assert.equal(await p, null);
  },
  async "believes only who says that he is here"() {
    const b = await browser({ at: { [A]: () => json({ here: false }), [B]: () => json({ here: true }, 403) } });
    assert.equal(await b.lan(), null);
  },
  async "a page that is there stays there"() {
    const b = await browser({ site: { urls: [A], here: true } });
    assert.equal(await b.lan(), "https://ha.example.org");
    assert.equal(b.tried().length, 0);
  },
  async "asks nobody when loaded"() {
    for (const name of ["local-network", "local-network-access"]) {
      const b = await browser({ states: { [name]: "prompt" }, at: { [A]: yes } });
      assert.equal(await b.lan(), null);
      assert.equal(b.tried().length, 0);
    }
  },
  async "asks from a click, and waits for the answer"() {
    const b = await browser({ states: { "local-network": "prompt" }, at: { [A]: yes } });
    assert.equal(await b.lan(), null);
    assert.equal(await b.lan({ ask: true }), A); // what is remembered does not stand in the way
    assert.deepEqual(limits.map((l) => l.ms), [9000, 9000, 60000, 60000]);
    assert.equal(await b.lan(), A);
    assert.equal(await b.lan({ ask: true }), A);
    assert.equal(b.tried().length, 2);
  },
  async "tries when it may"() {
    const b = await browser({ states: { "local-network": "granted", "local-network-access": "denied" }, at: { [A]: yes } });
    assert.equal(await b.lan(), A);
  },
  async "takes no for an answer"() {
    const b = await browser({ states: { "local-network": "denied" }, at: { [A]: yes } });
    assert.equal(await b.lan({ ask: true }), null);
    assert.equal(b.tried().length, 0);
  },
  async "works without a Permissions API"() {
    const b = await browser({ at: { [A]: yes } });
    Object.defineProperty(globalThis, "navigator", { configurable: true, value: {} });
    assert.equal(await b.lan(), A);
  },
  async "remembers for five minutes"() {
    const b = await browser({ at: { [A]: yes } });
    await b.lan();
    const n = b.fetched.length;
    now += 299000;
    assert.equal(await b.lan(), A);
    assert.equal(b.fetched.length, n);
    now += 2000;
    assert.equal(await b.lan(), A);
    assert.equal(b.fetched.length, 2 * n);
  },
  async "remembers failures, too"() {
    const b = await browser({ at: {} });
    await b.lan();
    const n = b.fetched.length;
    assert.equal(await b.lan(), null);
    assert.equal(b.fetched.length, n);
  },
  async "looks once for many callers"() {
    const b = await browser({ at: { [A]: yes } });
    assert.deepEqual(await Promise.all([b.lan(), b.lan(), b.lan()]), [A, A, A]);
    assert.equal(b.fetched.length, 3);
  },
  async "never throws"() {
    for (const site of [
      () => json({}, 403), () => new Response("<p>"), () => json(null), () => json({}), () => json({ urls: [] }),
      () => Promise.reject(new TypeError("offline")),
    ]) {
      const b = await browser({ site });
      assert.equal(await b.lan(), null);
    }
  },
};

for (const [name, run] of Object.entries(cases)) {
  try {
    await run();
  } catch (e) {
    console.error(name + ": " + e.stack);
    process.exitCode = 1;
  }
}
