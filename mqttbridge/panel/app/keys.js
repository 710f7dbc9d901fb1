// What this browser signs and seals. The signing key is made here, cannot be
// taken out, and stays in IndexedDB.

const subtle = crypto.subtle;
const P256 = { name: 'ECDSA', namedCurve: 'P-256' };
const DH = { name: 'ECDH', namedCurve: 'P-256' };
const utf8 = (text) => new TextEncoder().encode(text);
const sha256 = async (bytes) => new Uint8Array(await subtle.digest('SHA-256', bytes));

export function join(...parts) {
  const all = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  parts.reduce((at, p) => (all.set(p, at), at + p.length), 0);
  return all;
}

export const toBase64 = (bytes) => btoa(String.fromCharCode(...bytes));
export const fromBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const toBase64URL = (bytes) => toBase64(bytes).replace(/\+/g, '-').replace(/\//g, '_').replace(/=/g, '');

function toBase32(bytes) {
  let text = '', bits = 0, n = 0;
  for (const byte of bytes) {
    bits = (bits << 8) | byte;
    for (n += 8; n >= 5; n -= 5) text += 'abcdefghijklmnopqrstuvwxyz234567'[(bits >> (n - 5)) & 31];
    bits &= 31;
  }
  return n ? text + 'abcdefghijklmnopqrstuvwxyz234567'[(bits << (5 - n)) & 31] : text;
}

export const keyID = async (spki) => toBase32(await sha256(spki));

// made returns a key with what others need to know of it.
async function made({ privateKey, publicKey }) {
  const spki = new Uint8Array(await subtle.exportKey('spki', publicKey));
  return { privateKey, spki, id: await keyID(spki) };
}

const done = (request) => new Promise((ok, fail) => {
  request.onsuccess = () => ok(request.result);
  request.onerror = (event) => { event.preventDefault(); fail(request.error); };
});

// ownKey returns the key of this browser; the first time it makes one.
export async function ownKey() {
  const opening = indexedDB.open('sallyport', 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore('keys');
  const db = await done(opening);
  const keys = (mode) => db.transaction('keys', mode).objectStore('keys');
  let pair = await done(keys('readonly').get('sign'));
  if (!pair) {
    const { privateKey, publicKey } = await subtle.generateKey(P256, false, ['sign']);
    // Another tab may have been faster: then its key is the one.
    await done(keys('readwrite').add({ privateKey, publicKey }, 'sign')).catch(() => {});
    pair = await done(keys('readonly').get('sign'));
    navigator.storage?.persist?.().catch(() => {});
  }
  db.close();
  return made(pair);
}

export const newID = () => toBase64URL(crypto.getRandomValues(new Uint8Array(16)));

// sign makes a Signed of an envelope; what is signed has its fields in this
// order.
export async function sign({ id, home, action, value, device, issued, not_after, challenge, pin }, key) {
  const body = utf8(JSON.stringify({ v: 1, id, home, action, value, device, issued, not_after, challenge, pin }));
  const signature = await subtle.sign({ name: 'ECDSA', hash: 'SHA-256' }, key.privateKey, join(utf8('sallyport command v1\0'), body));
  return { body: toBase64(body), key: key.id, signature: toBase64(new Uint8Array(signature)) };
}

// sealPIN encrypts a PIN to the home's key (SPKI), bound to this one envelope.
// Tests give once and nonce; nobody else does.
export async function sealPIN(homeKey, pin, envelope, once, nonce = crypto.getRandomValues(new Uint8Array(12))) {
  const home = await subtle.importKey('spki', homeKey, DH, true, []);
  once ??= await subtle.generateKey(DH, false, ['deriveBits']);
  const points = await Promise.all([once.publicKey, home].map(async (k) => new Uint8Array(await subtle.exportKey('raw', k))));
  const shared = await subtle.deriveBits({ name: 'ECDH', public: home }, once.privateKey, 256);
  const secret = await subtle.importKey('raw', shared, 'HKDF', false, ['deriveKey']);
  const key = await subtle.deriveKey(
    { name: 'HKDF', hash: 'SHA-256', salt: join(...points), info: utf8('sallyport pin v1') },
    secret, { name: 'AES-GCM', length: 256 }, false, ['encrypt']);
  const padded = join(utf8(pin), new Uint8Array(16 - pin.length)); // its length is nobody's business
  const { id, challenge, device, action } = envelope;
  const sealed = await subtle.encrypt({ name: 'AES-GCM', iv: nonce, additionalData: utf8([id, challenge, device, action].join('\0')) }, key, padded);
  return toBase64URL(join(points[0], nonce, new Uint8Array(sealed)));
}

// trustWords spells both keys for people who compare two screens.
export async function trustWords(homeKey, deviceKey, list) {
  const sum = await sha256(join(utf8('sallyport trust v1\0'), await sha256(homeKey), await sha256(deviceKey)));
  return Array.from(sum.subarray(0, 12), (byte) => list[byte]);
}
