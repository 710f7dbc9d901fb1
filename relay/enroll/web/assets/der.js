// DER, as much of it as a signing request and a PKCS#12 file need.

export function cat(...parts) {
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) {
    out.set(p, at);
    at += p.length;
  }
  return out;
}

// bigEndian writes a number without leading zeros.
function bigEndian(n) {
  const out = [];
  for (; n > 0; n = Math.floor(n / 256)) out.unshift(n % 256);
  return out;
}

export function tlv(tag, ...parts) {
  const body = cat(...parts);
  const size = bigEndian(body.length);
  const length = body.length < 128 ? [body.length] : [128 + size.length, ...size];
  return cat([tag], length, body);
}

export const seq = (...parts) => tlv(0x30, ...parts);
export const octets = (bytes) => tlv(0x04, bytes);
export const bits = (bytes) => tlv(0x03, [0], bytes);
export const explicit = (n, ...parts) => tlv(0xa0 + n, ...parts);
export const none = tlv(0x05);

// set is a SET OF: its members are in the order of their bytes.
export function set(...parts) {
  const before = (a, b) => {
    for (let i = 0; i < Math.min(a.length, b.length); i++) if (a[i] !== b[i]) return a[i] - b[i];
    return a.length - b.length;
  };
  return tlv(0x31, ...parts.sort(before));
}

// int takes a number, or the bytes of an unsigned one.
export function int(value) {
  let bytes = typeof value === 'number' ? bigEndian(value) : [...value];
  while (bytes.length > 1 && bytes[0] === 0) bytes = bytes.slice(1);
  if (!bytes.length || bytes[0] > 127) bytes.unshift(0);
  return tlv(0x02, bytes);
}

export function oid(dotted) {
  const [a, b, ...rest] = dotted.split('.').map(Number);
  const bytes = [40 * a + b];
  for (let n of rest) {
    const groups = [n % 128];
    while ((n = Math.floor(n / 128)) > 0) groups.unshift(128 + (n % 128));
    bytes.push(...groups);
  }
  return tlv(0x06, bytes);
}

// bmp writes the two-byte letters of PKCS#12 (UTF-16, big endian).
export function bmp(text) {
  return Uint8Array.from([...Array(text.length).keys()].flatMap((i) => [text.charCodeAt(i) >> 8, text.charCodeAt(i) & 255]));
}
