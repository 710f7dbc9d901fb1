// Compares what is written by hand with node's own.
import assert from 'node:assert';
import crypto from 'node:crypto';
import { bmp, int, octets, oid, seq, set } from './der.js';
import { newPassword } from './pkcs12.js';
import { sha1, tripleDES } from './legacy.js';

const hex = (bytes) => Buffer.from(bytes).toString('hex');

for (let n = 0; n < 200; n++) {
  const data = crypto.randomBytes(n);
  assert.equal(hex(sha1(data)), crypto.createHash('sha1').update(data).digest('hex'), `sha1 of ${n}`);
  const [key, iv] = [crypto.randomBytes(24), crypto.randomBytes(8)];
  const c = crypto.createCipheriv('des-ede3-cbc', key, iv);
  assert.equal(hex(tripleDES(key, iv, data)), Buffer.concat([c.update(data), c.final()]).toString('hex'), `3des of ${n}`);
}

assert.equal(hex(oid('1.2.840.113549.1.12.1.3')), '060a2a864886f70d010c0103');
assert.equal(hex(oid('2.16.840.1.101.3.4.1.42')), '060960864801650304012a');
for (const [n, want] of [[0, '020100'], [127, '02017f'], [128, '02020080'], [2048, '02020800'], [100000, '020301 86a0'.replace(' ', '')]]) {
  assert.equal(hex(int(n)), want);
}
assert.equal(hex(int(Uint8Array.of(0, 0, 0x80, 1))), '0203008001');
assert.equal(hex(int(Uint8Array.of(0, 0))), '020100');
for (const [n, want] of [[127, '047f'], [128, '048180'], [255, '0481ff'], [256, '04820100'], [70000, '0483011170']]) {
  assert.equal(hex(octets(new Uint8Array(n)).slice(0, want.length / 2)), want);
}
assert.equal(hex(set(int(2), octets(Uint8Array.of(1)), int(1))), '3109' + '020101' + '020102' + '040101');
assert.equal(hex(seq(int(1), int(2))), '3006020101020102');
assert.equal(hex(bmp('aé€')), '006100e920ac');

// 100 bits, in letters that nobody takes for each other.
const seen = new Set();
for (let i = 0; i < 500; i++) {
  const password = newPassword();
  assert.match(password, /^[a-hjkmnp-z2-9i]{4}(-[a-km-np-z2-9]{4}){4}$/);
  assert.ok(!/[lo01]/.test(password));
  seen.add(password);
  for (const letter of password) seen.add(letter);
}
assert.equal(seen.size, 500 + 32 + 1);
