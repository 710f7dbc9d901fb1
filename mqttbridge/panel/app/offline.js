// The page that the worker shows where nobody answers.

async function again() {
  try {
    await fetch('/manifest.webmanifest', { cache: 'no-store', credentials: 'omit' });
    // The relay does answer. Should the worker be what cannot show a certificate,
    // the page loads without it; it registers a new one.
    const worker = await navigator.serviceWorker?.getRegistration();
    await worker?.unregister();
  } catch {
    // still offline
  }
  location.reload();
}

document.getElementById('again').addEventListener('click', again);
addEventListener('online', again);
