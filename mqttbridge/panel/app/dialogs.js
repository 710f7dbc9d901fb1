// The two dialogs: the PIN pad, and the words with which two screens are
// compared.

import { $, buzz, note, say } from './dom.js';
import { fromBase64, toBase64, trustWords } from './keys.js';
import { call, link } from './link.js';
import { key, me, press, warm } from './run.js';

// Digits live here only, and not for long.
const pad = $('pad');
const idle = 30000; // ms until digits are wiped
let digits = '', tile, value, wiping, warming, busy;

function show(words) {
  $('dots').replaceChildren(...Array.from(digits, () => document.createElement('i')));
  $('dots').setAttribute('aria-label', digits.length + ' digits');
  if (words !== undefined) $('pad-say').textContent = words;
}

function wipe(words) {
  digits = '';
  clearTimeout(wiping);
  clearInterval(warming);
  show(words);
}

// awake keeps a challenge ready while somebody types, and no longer.
function awake() {
  clearTimeout(wiping);
  clearInterval(warming);
  wiping = setTimeout(wipe, idle, 'Cleared: nothing was typed for 30 seconds.');
  const ready = () => warm(tile).challenge.catch(() => {});
  ready();
  warming = setInterval(ready, 1000);
}

export function openPad(forTile, forValue) {
  tile = forTile;
  value = forValue;
  $('pad-title').textContent = 'PIN for ' + tile.action.label;
  wipe('');
  pad.showModal();
  awake();
}

function type(what) {
  if (busy) return;
  if (what === 'back') digits = digits.slice(0, -1);
  else if (what === 'ok') return send();
  else if (digits.length < 12) digits += what;
  awake();
  show('');
}

function send() {
  if (digits.length < 4) return show('A PIN has at least four digits.');
  const pin = digits;
  wipe('Checking…');
  busy = true;
  pad.classList.add('busy');
  press(tile, value, pin, follow);
}

// follow closes the pad once the PIN is known to be right, or it does not
// matter any more. A pad that was closed or opened again meanwhile is not
// about this press.
function follow(run) {
  if (!busy || run !== tile.run || ['sending', 'accepted', 'sent'].includes(run.state)) return;
  busy = false;
  pad.classList.remove('busy');
  if (run.code !== 'pin-wrong') return pad.close();
  note(); // the pad says it
  const left = run.left || 0;
  show('Wrong PIN. ' + (left ? left + (left > 1 ? ' tries' : ' try') + ' left.' : 'No try is left.'));
  pad.classList.remove('wrong');
  requestAnimationFrame(() => pad.classList.add('wrong'));
  buzz(60, 60, 60);
  awake();
}

// cut closes a pad that waits for an answer which the broken stream cannot
// bring, and any pad where nothing can be sent: it would cover the banner that
// says so. Typing goes on while the stream only starts anew.
export function cut() {
  if (link.state !== 'live' && (busy || link.state === 'down')) pad.close();
}

pad.addEventListener('click', ({ target }) => {
  if (target === pad || target.value === 'cancel') pad.close();
  else if (target.localName === 'button') type(target.value || target.textContent);
});
pad.addEventListener('keydown', (event) => {
  if (/^\d$/.test(event.key)) type(event.key);
  else if (event.key === 'Backspace') type('back');
  else if (event.key === 'Enter' && event.target.localName !== 'button') type('ok');
  else return;
  event.preventDefault();
});
pad.addEventListener('close', () => {
  busy = false;
  pad.classList.remove('busy', 'wrong');
  wipe('');
});
document.addEventListener('visibilitychange', () => { if (document.hidden) pad.close(); });

const trust = $('trust');
let shown; // the home whose words are, or were

// offer shows the home our key and hears what it thinks of it. home.draw is
// called when that changed.
export async function offer(home) {
  clearTimeout(home.timer);
  if (!home.data.online || link.state !== 'live' || home.offering) return;
  const before = home.trust;
  home.offering = true;
  try {
    home.trust = (await call('keys', { home: home.data.name, key: toBase64((await key).spki) })).trust;
  } catch {
    // The next press says why.
  }
  home.offering = false;
  if (home.trust === 'pending') {
    home.timer = setTimeout(offer, trust.open ? 2000 : 10000, home);
    if (before !== 'pending' && !document.querySelector('dialog[open]')) compare(home);
  } else if (home.trust === 'trusted' && before && before !== 'trusted') {
    buzz(20, 60, 20);
    say(home.data.name + ' trusts this browser now');
  }
  if (shown === home && home.trust !== 'pending') trust.close();
  home.draw();
}

// compare shows the words.
export async function compare(home) {
  shown = home;
  $('trust-title').textContent = 'New to ' + home.data.name;
  $('trust-line').textContent = 'sallyport agent trust ' + me.device;
  const { default: list } = await import('./words.js').catch(() => ({}));
  if (!list) return note('Load the page again: the words did not come.');
  const words = await trustWords(fromBase64(home.data.key), (await key).spki, list);
  $('words').replaceChildren(...words.map((word) => {
    const item = document.createElement('li');
    item.textContent = word;
    return item;
  }));
  if (home.trust !== 'pending' || shown !== home) return; // meanwhile
  if (!trust.open) trust.showModal();
  offer(home);
}

trust.addEventListener('click', ({ target }) => { if (target === trust || target.localName === 'button') trust.close(); });
