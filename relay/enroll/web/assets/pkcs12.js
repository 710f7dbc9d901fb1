// A key with its certificates as a PKCS#12 file (RFC 7292).

import { bmp, cat, explicit, int, none, octets, oid, seq, set, tlv } from './der.js';
import { sha1, tripleDES } from './legacy.js';

const pkcs = (rest) => oid('1.2.840.113549.1.' + rest);
const rounds = 2048; // what everybody writes; the password is what protects

const random = (n) => crypto.getRandomValues(new Uint8Array(n));
const digest = async (name, data) => new Uint8Array(await crypto.subtle.digest(name, data));

const old = { name: 'SHA-1', id: '1.3.14.3.2.26', salt: 8, hash: sha1 };
const now = { name: 'SHA-256', id: '2.16.840.1.101.3.4.2.1', salt: 16, hash: (data) => digest('SHA-256', data) };

// derive is the key derivation of RFC 7292 appendix B; use is 1 for a key, 2
// for an IV, 3 for a MAC key.
async function derive({ hash }, password, salt, use, length) {
  const fill = (bytes) => Uint8Array.from({ length: 64 * Math.ceil(bytes.length / 64) }, (_, i) => bytes[i % bytes.length]);
  const input = cat(fill(salt), fill(cat(bmp(password), [0, 0])));
  let out = new Uint8Array();
  for (;;) {
    let a = cat(new Uint8Array(64).fill(use), input);
    for (let i = 0; i < rounds; i++) a = await hash(a);
    out = cat(out, a);
    if (out.length >= length) return out.slice(0, length);
    for (let block = 0; block < input.length; block += 64) {
      let carry = 1;
      for (let i = 63; i >= 0; i--) {
        carry += input[block + i] + a[i % a.length];
        input[block + i] = carry;
        carry >>= 8;
      }
    }
  }
}

// Each way to encrypt returns [algorithm, ciphertext].

async function encryptOld(password, plain) {
  const salt = random(8); // macOS refuses 16
  const key = await derive(old, password, salt, 1, 24);
  const iv = await derive(old, password, salt, 2, 8);
  return [seq(pkcs('12.1.3'), seq(octets(salt), int(rounds))), tripleDES(key, iv, plain)];
}

async function encryptNew(password, plain) {
  const [salt, iv, iterations] = [random(16), random(16), 100000];
  const base = await crypto.subtle.importKey('raw', new TextEncoder().encode(password), 'PBKDF2', false, ['deriveKey']);
  const kdf = { name: 'PBKDF2', hash: 'SHA-256', salt, iterations };
  const key = await crypto.subtle.deriveKey(kdf, base, { name: 'AES-CBC', length: 256 }, false, ['encrypt']);
  const hmac = seq(oid('1.2.840.113549.2.9'), none);
  const algorithm = seq(
    pkcs('5.13'),
    seq(seq(pkcs('5.12'), seq(octets(salt), int(iterations), hmac)), seq(oid('2.16.840.1.101.3.4.1.42'), octets(iv))),
  );
  return [algorithm, new Uint8Array(await crypto.subtle.encrypt({ name: 'AES-CBC', iv }, key, plain))];
}

// pkcs12 packs a private key (PKCS#8) and certificates (DER, the key's own
// first). modern: AES-256 and SHA-256, which newer systems take; otherwise
// triple DES and SHA-1, which all take.
export async function pkcs12({ key, certs, name, password, modern }) {
  const hash = modern ? now : old;
  const encrypt = modern ? encryptNew : encryptOld;
  const attributes = set(
    seq(pkcs('9.20'), set(tlv(0x1e, bmp(name)))),
    seq(pkcs('9.21'), set(octets(sha1(certs[0])))), // ties the key to its certificate
  );
  const bags = certs.map((cert, i) =>
    seq(pkcs('12.10.1.3'), explicit(0, seq(pkcs('9.22.1'), explicit(0, octets(cert)))), i ? [] : attributes),
  );
  const data = (bytes) => seq(pkcs('7.1'), explicit(0, octets(bytes)));

  const [certAlgorithm, hiddenCerts] = await encrypt(password, seq(...bags));
  const [keyAlgorithm, hiddenKey] = await encrypt(password, key);
  const safe = seq(
    seq(pkcs('7.6'), explicit(0, seq(int(0), seq(pkcs('7.1'), certAlgorithm, tlv(0x80, hiddenCerts))))),
    data(seq(seq(pkcs('12.10.1.2'), explicit(0, seq(keyAlgorithm, octets(hiddenKey))), attributes))),
  );

  const salt = random(hash.salt);
  const mac = { name: 'HMAC', hash: hash.name };
  const length = hash === now ? 32 : 20;
  const macKey = await crypto.subtle.importKey('raw', await derive(hash, password, salt, 3, length), mac, false, ['sign']);
  const code = new Uint8Array(await crypto.subtle.sign('HMAC', macKey, safe));
  return seq(int(3), data(safe), seq(seq(seq(oid(hash.id), none), octets(code)), octets(salt), int(rounds)));
}

// newPassword returns 100 random bits in letters that nobody takes for each
// other: five groups of four.
export function newPassword() {
  const letters = 'abcdefghijkmnpqrstuvwxyz23456789';
  const text = [...random(20)].map((b) => letters[b % 32]).join('');
  return text.match(/.{4}/g).join('-');
}
