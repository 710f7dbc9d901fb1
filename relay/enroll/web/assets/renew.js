// The renewal page: the old certificate asks for the new one.

import { post, toBase64 } from './api.js';
import { atRisk, install, prepare } from './install.js';
import { newKey } from './key.js';
import { $, busy, fail, idle, show, trouble } from './steps.js';

// renew makes a new key at each try: an answer that got lost costs nothing, the
// old certificate works on.
async function renew() {
  trouble('name-why');
  const key = await newKey($('rsa').checked);
  try {
    const answer = await post('/api/renew', { csr: toBase64(key.csr) });
    atRisk(true);
    await install(key, answer);
  } catch (fault) {
    atRisk(false);
    trouble('name-why', fault);
  }
}

function main() {
  if (!globalThis.crypto?.subtle) {
    return fail('This browser cannot make a key', { message: 'It is too old, or the page was not opened over https', hint: 'Open the link in another browser.' });
  }
  prepare();
  $('name-form').addEventListener('submit', (event) => {
    event.preventDefault();
    if (idle($('make'))) busy($('make'), 'Making the key…', renew);
  });
  $('again').addEventListener('click', () => show('naming'));
  show('naming');
}

main();
