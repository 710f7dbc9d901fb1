// The enrolment page: code → name → key and request → (owner) → file → test.

import { follow, persist, post, toBase64 } from './api.js';
import { atRisk, install, prepare } from './install.js';
import { newKey } from './key.js';
import { $, busy, copyable, fail, fill, idle, say, show, trouble, when } from './steps.js';
import { apple, example, wrongBrowser } from './system.js';

const { open, profile } = document.body.dataset;

let code = '';
let invitation = null;
let attempt = null; // the key of this page: a code is bound to the first one that it is used with

const clean = (text) => text.toUpperCase().replace(/[^A-Z2-7]/g, '');

// takeCode removes the code from the address bar, and so from the history.
function takeCode() {
  let hash = location.hash.slice(1);
  if (hash) history.replaceState(null, '', location.pathname);
  try {
    hash = decodeURIComponent(hash);
  } catch {
    // not encoded
  }
  return clean(hash);
}

async function start() {
  code = takeCode() || code;
  invitation = null;
  trouble('code-why');
  $('code-form').hidden = Boolean(code);
  $('looking').hidden = !code;
  if (!code && open) return askName({ name: '', approve: true, hosts: [] });
  show('start');
  if (!code) return;
  try {
    const found = await persist(3, () => post('/api/code', { code }));
    askName(found);
  } catch (fault) {
    if (fault.status === 403) code = '';
    else $('code').value = code;
    $('code-form').hidden = false;
    $('looking').hidden = true;
    trouble('code-why', fault);
    $('code').focus();
  }
}

const day = (text) => new Date(text).toLocaleString([], { dateStyle: 'long', timeStyle: 'short' });

function askName(found) {
  invitation = found;
  const offered = Boolean(profile && apple && code && wrongBrowser !== 'safari');
  when('named', found.name);
  when('unnamed', !found.name);
  when('approve', found.approve);
  when('no-code', !code);
  when('profile', offered);
  when('until', found.until);
  fill('name', found.name);
  fill('until', found.until ? day(found.until) : '');
  fill('hosts', found.hosts.length ? found.hosts.join(', ') : 'everything at home');
  $('make').classList.toggle('second', offered || Boolean(wrongBrowser));
  $('make').textContent = offered ? 'Use a certificate file instead' : 'Continue';
  show('naming');
}

// chosenName returns the device's name, or "" after telling what is wrong.
function chosenName() {
  if (invitation.name) return invitation.name;
  const field = $('name');
  field.value = field.value.trim().toLowerCase().replace(/[\s_.]+/g, '-').replace(/[^a-z0-9-]/g, '').replace(/^-+|-+$/g, '').slice(0, 63);
  trouble('name-why', field.value ? null : { message: 'Give the device a name', hint: 'Like ' + example + '.' });
  field.setAttribute('aria-invalid', String(!field.value));
  if (!field.value) field.focus();
  return field.value;
}

// over ends an attempt for good: what comes next begins with a new code and key.
function over(title, fault) {
  code = '';
  attempt = null;
  $('rsa').disabled = false;
  atRisk(false);
  fail(title, fault);
}

async function make() {
  const name = chosenName();
  if (!name) return;
  const rsa = $('rsa').checked;
  if (!attempt || attempt.rsa !== rsa) {
    const random = crypto.getRandomValues(new Uint8Array(32));
    attempt = { rsa, key: await newKey(rsa), ticket: toBase64(random).replace(/\+/g, '-').replace(/[/]/g, '_').replace(/=/g, '') };
  }
  const { key, ticket } = attempt;
  $('rsa').disabled = true;
  try {
    const request = await persist(4, () => post('/api/requests', { code, name, csr: toBase64(key.csr), ticket }));
    await wait(request, ticket, key);
  } catch (fault) {
    if (fault.status === 403) over('This code cannot be used', fault);
    else trouble('name-why', fault);
    say('');
  }
}

async function wait(request, ticket, key) {
  atRisk(true);
  fill('name', request.name);
  let last = request;
  if (request.state === 'pending') {
    $('words').replaceChildren(...request.words.split(/[\s-]+/).map((word) => {
      const item = document.createElement('li');
      item.textContent = word;
      return item;
    }));
    when('approve', invitation.approve);
    when('no-approve', !invitation.approve);
    show('wait');
    const awake = navigator.wakeLock?.request('screen').catch(() => null); // the owner may take a minute
    try {
      last = await follow(request.id, ticket, () => {});
    } catch (fault) {
      return over('The request is gone', fault);
    } finally {
      awake?.then((lock) => lock?.release());
    }
  }
  if (last.state === 'issued') {
    try {
      return await install(key, last);
    } catch (fault) {
      return over('The certificate could not be packed', fault);
    }
  }
  if (last.state === 'denied') over('The owner said no', { message: 'This device gets no certificate', hint: 'If that is a mistake, ask the owner for a new link.' });
  else over('Nobody answered in time', { message: 'The request has ended', hint: 'Ask the owner for a new link.' });
}

function main() {
  if (!globalThis.crypto?.subtle) {
    return fail('This browser cannot make a key', { message: 'It is too old, or the page was not opened over https', hint: 'Open the link in another browser.' });
  }
  prepare();
  $('name').placeholder = example;
  when('wrong', wrongBrowser);
  when('wrong-safari', wrongBrowser === 'safari');
  when('wrong-app', wrongBrowser === 'app');
  copyable($('copy-link'), () => location.origin + '/' + (code && '#' + code));
  $('code-form').addEventListener('submit', (event) => {
    event.preventDefault();
    code = clean($('code').value);
    trouble('code-why', code ? null : { message: 'The code is missing' });
    if (code) start();
  });
  $('name-form').addEventListener('submit', (event) => {
    event.preventDefault();
    if (idle($('make'))) busy($('make'), 'Making the key…', make);
  });
  $('profile-form').addEventListener('submit', (event) => {
    const name = chosenName();
    if (!name) return event.preventDefault();
    $('profile-code').value = code;
    $('profile-name').value = name;
    fill('name', name);
    setTimeout(() => show('profile'), 500); // the form is on its way by then
  });
  $('profile-again').addEventListener('click', () => $('profile-form').submit());
  $('have-code').addEventListener('click', () => {
    $('code-form').hidden = false;
    $('looking').hidden = true;
    show('start');
    $('code').focus();
  });
  $('again').addEventListener('click', () => start());
  // The same link, opened again in this tab, loads no page.
  addEventListener('hashchange', () => {
    if (['start', 'naming', 'failed'].includes(document.body.dataset.now)) start();
    else takeCode();
  });
  start();
}

main();
