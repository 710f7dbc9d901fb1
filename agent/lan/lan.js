// Finds this home on the home network: await lan() is the URL to go to, such as
// "https://192-168-1-7.HASH.example.org:8443", or null. Unasked it tries only
// what needs no permission; lan({ask: true}), from a click, may ask the person.
const here = "/.well-known/sallyport/";
let known = null, until = 0, asked = null, quiet = null;

// "granted", "denied", "prompt", or "" from browsers that do not tell.
async function permission() {
  for (const name of ["local-network", "local-network-access"]) {
    try {
      return (await navigator.permissions.query({ name })).state;
    } catch {}
  }
  return "";
}

async function reach(base, ms) {
  const r = await fetch(base + here + "here", {
    targetAddressSpace: "local", mode: "cors", credentials: "include",
    cache: "no-store", signal: AbortSignal.timeout(ms),
  });
  if (!r.ok || !(await r.json()).here) throw new Error(base);
  return base;
}

async function find(ask) {
  const r = await fetch(here + "lan.json", { cache: "no-store", signal: AbortSignal.timeout(9000) });
  if (!r.ok) return null;
  const found = await r.json();
  if (found.here) return location.origin;
  if (!found.urls.length) return null;
  const state = await permission();
  if (state === "denied" || (state === "prompt" && !ask)) return null;
  return Promise.any(found.urls.map((u) => reach(u, ask ? 60000 : 1500)));
}

async function remember(ask) {
  let base = null;
  try {
    base = await find(ask);
  } catch {}
  known = base;
  until = Date.now() + 300000;
  return base;
}

export async function lan({ ask = false } = {}) {
  if (Date.now() < until && (known || !ask)) return known;
  if (ask) return (asked ??= remember(true).finally(() => (asked = null)));
  return (quiet ??= remember(false).finally(() => (quiet = null)));
}
