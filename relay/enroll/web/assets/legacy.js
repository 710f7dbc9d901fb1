// Triple DES and SHA-1, which WebCrypto does not do (DES) or only does in a
// promise per block (SHA-1). Phones refuse PKCS#12 files in anything newer.
// They protect nothing here that a 100-bit password does not.

const initial = [58, 60, 62, 64, 57, 59, 61, 63].flatMap((n) => [0, 8, 16, 24, 32, 40, 48, 56].map((d) => n - d));
const final = initial.map((_, i) => initial.indexOf(i + 1) + 1);
const expansion = [...Array(48).keys()].map((i) => ((4 * Math.floor(i / 6) + (i % 6) + 31) % 32) + 1);
const mixing = [
  16, 7, 20, 21, 29, 12, 28, 17, 1, 15, 23, 26, 5, 18, 31, 10, 2, 8, 24, 14, 32, 27, 3, 9, 19, 13, 30, 6, 22, 11, 4, 25,
];
const choice1 = [
  57, 49, 41, 33, 25, 17, 9, 1, 58, 50, 42, 34, 26, 18, 10, 2, 59, 51, 43, 35, 27, 19, 11, 3, 60, 52, 44, 36, 63, 55, 47,
  39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22, 14, 6, 61, 53, 45, 37, 29, 21, 13, 5, 28, 20, 12, 4,
];
const choice2 = [
  14, 17, 11, 24, 1, 5, 3, 28, 15, 6, 21, 10, 23, 19, 12, 4, 26, 8, 16, 7, 27, 20, 13, 2, 41, 52, 31, 37, 47, 55, 30, 40,
  51, 45, 33, 48, 44, 49, 39, 56, 34, 53, 46, 42, 50, 36, 29, 32,
];
const boxes = [
  'e4d12fb83a6c59070f74e2d1a6cb953841e8d62bfc973a50fc8249175b3ea06d',
  'f18e6b34972dc05a3d47f28ec01a69b50e7ba4d158c6932fd8a13f42b67c05e9',
  'a09e63f51dc7b428d709346a285ecbf1d6498f30b12c5ae71ad069874fe3b52c',
  '7de3069a1285bc4fd8b56f03472c1ae9a690cb7df13e52843f06a1d8945bc72e',
  '2c417ab6853fd0e9eb2c47d150fa3986421bad78f9c5630eb8c71e2d6f09a453',
  'c1af92680d34e75baf427c9561de0b389ef528c3704a1db6432c95fabe17608d',
  '4b2ef08d3c975a61d0b7491ae35c2f8614bdc37eaf6805926bd814a7950fe23c',
  'd2846fb1a93e50c71fd8a374c56b0e927b419ce206adf35821e74a8dfc90356b',
].map((box) => [...box].map((digit) => parseInt(digit, 16)));

const pick = (from, table) => table.map((n) => from[n - 1]);
const toBits = (bytes) => [...bytes].flatMap((b) => [7, 6, 5, 4, 3, 2, 1, 0].map((i) => (b >> i) & 1));

function schedule(key) {
  let half = pick(toBits(key), choice1);
  const turn = (h, n) => [...h.slice(n), ...h.slice(0, n)];
  return [...'1122222212222221'].map((n) => {
    half = [...turn(half.slice(0, 28), +n), ...turn(half.slice(28), +n)];
    return pick(half, choice2);
  });
}

function round(right, key) {
  const x = pick(right, expansion).map((b, i) => b ^ key[i]);
  const out = boxes.flatMap((box, i) => {
    const b = x.slice(6 * i, 6 * i + 6);
    const v = box[32 * b[0] + 16 * b[5] + 8 * b[1] + 4 * b[2] + 2 * b[3] + b[4]];
    return [v >> 3, (v >> 2) & 1, (v >> 1) & 1, v & 1];
  });
  return pick(out, mixing);
}

function des(block, keys) {
  const x = pick(block, initial);
  let [left, right] = [x.slice(0, 32), x.slice(32)];
  for (const key of keys) {
    const mixed = round(right, key);
    [left, right] = [right, left.map((b, i) => b ^ mixed[i])];
  }
  return pick([...right, ...left], final);
}

// tripleDES encrypts in CBC mode with PKCS#5 padding; key is 24 bytes, iv 8.
export function tripleDES(key, iv, plain) {
  const [k1, k2, k3] = [0, 8, 16].map((at) => schedule(key.slice(at, at + 8)));
  k2.reverse(); // the middle one decrypts
  const pad = 8 - (plain.length % 8);
  const out = new Uint8Array(plain.length + pad).fill(pad);
  out.set(plain);
  let last = toBits(iv);
  for (let at = 0; at < out.length; at += 8) {
    const mixed = toBits(out.slice(at, at + 8)).map((b, i) => b ^ last[i]);
    last = des(des(des(mixed, k1), k2), k3);
    for (let i = 0; i < 8; i++) out[at + i] = last.slice(8 * i, 8 * i + 8).reduce((n, b) => 2 * n + b, 0);
  }
  return out;
}

export function sha1(message) {
  const padded = new Uint8Array((((message.length + 8) >> 6) + 1) << 6);
  padded.set(message);
  padded[message.length] = 128;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 4, message.length * 8);
  const h = [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0];
  const w = new Int32Array(80);
  const roll = (x, n) => (x << n) | (x >>> (32 - n));
  for (let at = 0; at < padded.length; at += 64) {
    let [a, b, c, d, e] = h;
    for (let i = 0; i < 80; i++) {
      w[i] = i < 16 ? view.getInt32(at + 4 * i) : roll(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
      const part = Math.floor(i / 20);
      const f = part === 0 ? (b & c) | (~b & d) : part === 2 ? (b & c) | (b & d) | (c & d) : b ^ c ^ d;
      const k = [0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6][part];
      [a, b, c, d, e] = [(roll(a, 5) + f + e + k + w[i]) | 0, a, roll(b, 30), c, d];
    }
    [a, b, c, d, e].forEach((x, i) => (h[i] = (h[i] + x) | 0));
  }
  const out = new DataView(new ArrayBuffer(20));
  h.forEach((x, i) => out.setInt32(4 * i, x));
  return new Uint8Array(out.buffer);
}
