// The device's key, and the signing request (PKCS#10) that proves it.

import { bits, explicit, int, none, oid, seq } from './der.js';

const ec = {
  make: { name: 'ECDSA', namedCurve: 'P-256' },
  sign: { name: 'ECDSA', hash: 'SHA-256' },
  id: seq(oid('1.2.840.10045.4.3.2')),
  // WebCrypto signs as r‖s, X.509 wants a SEQUENCE of the two.
  pack: (s) => seq(int(s.slice(0, 32)), int(s.slice(32))),
};

const rsa = {
  make: { name: 'RSASSA-PKCS1-v1_5', modulusLength: 2048, publicExponent: Uint8Array.of(1, 0, 1), hash: 'SHA-256' },
  sign: { name: 'RSASSA-PKCS1-v1_5' },
  id: seq(oid('1.2.840.113549.1.1.11'), none),
  pack: (s) => s,
};

// newKey makes a key and its request. The request names nobody: the owner's
// side decides what the certificate says. take() returns the private key
// (PKCS#8) once, and after that nothing here can reach it.
export async function newKey(useRSA) {
  const kind = useRSA ? rsa : ec;
  const pair = await crypto.subtle.generateKey(kind.make, true, ['sign', 'verify']);
  const spki = new Uint8Array(await crypto.subtle.exportKey('spki', pair.publicKey));
  const info = seq(int(0), seq(), spki, explicit(0));
  const signature = new Uint8Array(await crypto.subtle.sign(kind.sign, pair.privateKey, info));
  let secret = pair.privateKey;
  return {
    spki,
    csr: seq(info, kind.id, bits(kind.pack(signature))),
    async take() {
      const key = secret;
      secret = null;
      return new Uint8Array(await crypto.subtle.exportKey('pkcs8', key));
    },
  };
}

// contains reports whether a certificate is for a key.
export function contains(cert, spki) {
  for (let at = 0; at + spki.length <= cert.length; at++) {
    if (spki.every((b, i) => cert[at + i] === b)) return true;
  }
  return false;
}
