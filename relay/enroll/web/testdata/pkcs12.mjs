// Packs a key that it makes with a certificate that the test makes of its
// request: {"csr"} out, {"certs", "name", "password"} in, {"legacy", "modern"} out.
import { createInterface } from 'node:readline';
import { contains, newKey } from './key.js';
import { newPassword, pkcs12 } from './pkcs12.js';

const hex = (bytes) => Buffer.from(bytes).toString('hex');
const say = (object) => process.stdout.write(JSON.stringify(object) + '\n');

const key = await newKey(process.argv[2] === 'rsa');
say({ csr: hex(key.csr), password: newPassword() });
for await (const line of createInterface({ input: process.stdin })) {
  const { certs, name, password } = JSON.parse(line);
  const ders = certs.map((c) => new Uint8Array(Buffer.from(c, 'hex')));
  if (!contains(ders[0], key.spki) || contains(ders[1], key.spki)) throw new Error('contains is wrong');
  const secret = await key.take();
  const twice = await key.take().then(() => true, () => false);
  if (twice) throw new Error('the key can be taken twice');
  const files = {};
  for (const form of ['legacy', 'modern']) files[form] = hex(await pkcs12({ key: secret, certs: ders, name, password, modern: form === 'modern' }));
  say(files);
  break;
}
