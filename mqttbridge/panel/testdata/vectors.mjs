// Holds the page's cryptography against the vectors of Go (first argument),
// and prints what Go then checks: a command that this key signs and seals.
import { readFileSync } from 'node:fs';
import { deepStrictEqual as same } from 'node:assert';
import { fromBase64, join, keyID, newID, sealPIN, sign, toBase64, trustWords } from './keys.js';
import list from './words.js';

const vectors = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const { subtle } = crypto;
const P256 = { name: 'ECDSA', namedCurve: 'P-256' };
const how = { name: 'ECDSA', hash: 'SHA-256' };
const utf8 = (text) => new TextEncoder().encode(text);
const iso = (time) => new Date(time).toISOString();

for (const key of [vectors.home, vectors.device]) same(await keyID(fromBase64(key.spki)), key.id);
same((await trustWords(fromBase64(vectors.home.spki), fromBase64(vectors.device.spki), list)).join(' '), vectors.words);

const privateKey = await subtle.importKey('pkcs8', fromBase64(vectors.device.pkcs8), P256, false, ['sign']);
const publicKey = await subtle.importKey('spki', fromBase64(vectors.device.spki), P256, false, ['verify']);
const key = { privateKey, id: vectors.device.id };
same(vectors.envelopes.length >= 3, true);
for (const { name, envelope, body, sign_input: input, signed } of vectors.envelopes) {
  const mine = await sign({ ...envelope, issued: iso(envelope.issued), not_after: iso(envelope.not_after) }, key);
  same(new TextDecoder().decode(fromBase64(mine.body)), body, name);
  same(mine.key, signed.key);
  same(toBase64(join(utf8('sallyport command v1\0'), fromBase64(mine.body))), input, name);
  for (const one of [mine, signed]) {
    same(fromBase64(one.signature).length, 64);
    same(await subtle.verify(how, publicKey, fromBase64(one.signature), fromBase64(input)), true, name);
  }
}

const DH = { name: 'ECDH', namedCurve: 'P-256' };
same(vectors.pins.length >= 2, true);
for (const { pin, envelope, ephemeral, nonce, sealed } of vectors.pins) {
  const once = {
    privateKey: await subtle.importKey('pkcs8', fromBase64(ephemeral.pkcs8), DH, false, ['deriveBits']),
    publicKey: await subtle.importKey('spki', fromBase64(ephemeral.spki), DH, true, []),
  };
  same(await sealPIN(fromBase64(vectors.home.spki), pin, envelope, once, fromBase64(nonce)), sealed);
}

const ids = new Set();
for (let i = 0; i < 1000; i++) ids.add(newID());
same(ids.size, 1000);

const envelope = {
  id: newID(), home: vectors.home.id, action: 'garage', value: 'ö "<&>" \\', device: 'anna-phone',
  issued: iso(Date.now()), not_after: iso(Date.now() + 10000), challenge: 'c-1',
};
envelope.pin = await sealPIN(fromBase64(vectors.home.spki), '123456', envelope);
console.log(JSON.stringify(await sign(envelope, key)));
