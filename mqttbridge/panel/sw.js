// The worker keeps a page that says "offline", and nothing else: no answer, no
// state, no name. Whatever has to do with this device goes past it.
const shell = 'shell-VERSION';
const base = '/app/VERSION/';
const parts = [base + 'offline.html', base + 'offline.js', base + 'style.css', '/icon.svg'];

addEventListener('install', (event) => {
  event.waitUntil(caches.open(shell).then((cache) => cache.addAll(parts)).then(() => skipWaiting()));
});

addEventListener('activate', (event) => {
  event.waitUntil((async () => {
    for (const name of await caches.keys()) if (name !== shell) await caches.delete(name);
    // With preload the browser itself fetches pages, and knows how to ask for a
    // certificate; a worker's own fetch may not.
    await registration.navigationPreload?.enable();
    await clients.claim();
  })());
});

addEventListener('fetch', (event) => {
  const { request } = event;
  const { pathname } = new URL(request.url);
  if (request.mode === 'navigate') event.respondWith(navigate(event));
  else if (parts.includes(pathname)) event.respondWith(caches.match(pathname).then((kept) => kept || fetch(request)));
});

// Only where nobody answers the kept page stands in. A refusal (no certificate,
// removed) is an answer.
async function navigate(event) {
  try {
    return (await event.preloadResponse) || (await fetch(event.request));
  } catch {
    return (await caches.match(parts[0])) || Response.error();
  }
}
