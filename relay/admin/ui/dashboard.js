// Keeps the page up to date and adds what HTML alone cannot do. Without this
// script everything works, after a reload.

const live = document.getElementById("live");
const announce = document.getElementById("announce");
const title = document.title;
let waiting = Number(announce.dataset.waiting);

function state(kind, text) {
  live.hidden = false;
  live.className = "live " + kind;
  if (live.textContent !== text) live.textContent = text;
}

function count(n) {
  document.title = n > 0 ? `(${n}) ${title}` : title;
  if (n > waiting) announce.textContent = n === 1 ? "A device wants to come in." : `${n} devices want to come in.`;
  waiting = n;
}

// swap puts fresh parts in the place of old ones and keeps what the person
// opened or holds in focus.
function swap(fresh) {
  for (const old of document.querySelectorAll("[data-part]")) {
    const part = fresh.getElementById(old.id);
    if (!part || old.isEqualNode(part)) continue;
    const focus = document.activeElement;
    const inside = old.contains(focus) && focus !== document.body;
    if (inside && focus.matches("input, select, textarea")) continue;
    const open = [...old.querySelectorAll("details[open]")].map((d) => d.id);
    const path = inside ? focus.id || focus.getAttribute("href") : "";
    const before = old.querySelectorAll("button").length;
    const shown = document.adoptNode(part);
    old.replaceWith(shown);
    for (const id of open) {
      const d = document.getElementById(id);
      if (d) d.open = true;
    }
    if (path) {
      const again = document.getElementById(path) || [...shown.querySelectorAll("a")].find((a) => a.getAttribute("href") === path);
      if (again) again.focus({ preventScroll: true });
    }
    // Buttons have moved under the finger: take no press for a moment.
    if (before !== shown.querySelectorAll("button").length) {
      document.body.classList.add("moving");
      setTimeout(() => document.body.classList.remove("moving"), 600);
    }
  }
  count(Number(fresh.getElementById("announce").dataset.waiting));
}

let busy = false;
let again = false;

// refresh fetches this page anew. XMLHttpRequest can parse it as a document
// that runs no scripts; fetch would need markup from strings.
function refresh() {
  if (!document.querySelector("main [data-part]:not(#problems)")) return; // a form: nothing to renew
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  const x = new XMLHttpRequest();
  x.open("GET", location.pathname);
  x.responseType = "document";
  x.timeout = 20000;
  x.onloadend = () => {
    busy = false;
    const page = x.response;
    if (x.status === 200 && page && page.getElementById("announce")) swap(page);
    else if (x.status === 401 || x.status === 403 || x.status === 200) state("bad", "signed out");
    if (again) {
      again = false;
      refresh();
    }
  };
  x.send();
}

const events = new EventSource("/events");
events.onopen = () => {
  state("good", "live");
  refresh(); // what happened while there was no stream
};
events.onerror = () => state("bad", events.readyState === EventSource.CLOSED ? "not live: reload" : "connecting");
events.addEventListener("change", refresh);
events.addEventListener("tick", refresh);
addEventListener("pagehide", () => events.close());
addEventListener("pageshow", (e) => {
  if (e.persisted) location.reload();
});

count(waiting);
if (location.search) history.replaceState(null, "", location.pathname);

for (const b of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue;
  b.hidden = false;
  b.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(b.dataset.copy).value);
    b.textContent = "Copied";
    announce.textContent = "The link was copied.";
  });
}
for (const b of document.querySelectorAll("[data-share]")) {
  if (!navigator.share) continue;
  b.hidden = false;
  b.addEventListener("click", () => {
    navigator.share({ title: "Sallyport", url: document.getElementById(b.dataset.share).value }).catch(() => {});
  });
}
const link = document.getElementById("link");
if (link) link.addEventListener("focus", () => link.select());
