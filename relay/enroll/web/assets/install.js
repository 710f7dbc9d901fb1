// From a certificate to the visitor's disk: the last steps of enrolment and of
// renewal.

import { fromBase64 } from './api.js';
import { contains } from './key.js';
import { newPassword, pkcs12 } from './pkcs12.js';
import { $, copyable, fill, say, show, when } from './steps.js';
import { system } from './system.js';

let unsaved = false;

// atRisk tells that leaving the page would lose the key.
export function atRisk(yes) {
  unsaved = yes;
}

addEventListener('beforeunload', (event) => {
  if (unsaved) event.returnValue = true; // older browsers know nothing else
});

function stepsFor(chosen) {
  for (const at of document.querySelectorAll('[data-os]')) at.hidden = !at.dataset.os.split(' ').includes(chosen);
}

// prepare connects what every page has: systems, test, buttons.
export function prepare() {
  for (const choose of document.querySelectorAll('select.system')) {
    choose.value = system;
    choose.addEventListener('change', () => stepsFor(choose.value));
  }
  stepsFor(system);
  $('rsa').checked = system === 'ios'; // nobody has seen an iPhone take a P-256 key from a file
  copyable($('copy-password'), () => $('password').textContent);
  for (const next of document.querySelectorAll('.to-test')) {
    next.addEventListener('click', () => {
      atRisk(false);
      show('test');
    });
  }
}

// install packs the key with its certificate and offers the file. Both forms
// are made at once, so that the key itself can be forgotten here.
export async function install(key, { name, cert, ca }) {
  const certs = [cert, ...ca].map(fromBase64);
  if (!contains(certs[0], key.spki)) throw new Error('The certificate is for another key');
  const password = newPassword();
  const secret = await key.take();
  const files = {};
  for (const form of ['legacy', 'modern']) {
    const bytes = await pkcs12({ key: secret, certs, name, password, modern: form === 'modern' });
    files[form] = URL.createObjectURL(new Blob([bytes], { type: 'application/x-pkcs12' }));
  }
  secret.fill(0);

  fill('name', name);
  fill('file', name + '.p12');
  $('password').textContent = password;
  const link = $('download');
  link.download = name + '.p12';
  const choose = () => (link.href = files[document.querySelector('input[name=form]:checked').value]);
  for (const form of document.querySelectorAll('input[name=form]')) form.addEventListener('change', choose);
  choose();
  link.addEventListener('click', () => {
    atRisk(false);
    when('saved', true);
    link.classList.add('done');
    say('The file was saved. Now install it.');
  });
  show('install');
}
