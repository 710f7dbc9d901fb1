// The command page: homes with their actions, as they are now.

import { $, note, stamp, text, when } from './dom.js';
import { compare, cut, offer, openPad } from './dialogs.js';
import { connect } from './link.js';
import { heard, me, rejoined } from './run.js';
import { Tile } from './tile.js';

const homes = new Map(); // by name

class Home {
  constructor(data) {
    this.element = stamp('t-home');
    this.tiles = new Map();
    this.part('new').lastElementChild.onclick = () => compare(this);
    this.update(data);
  }

  part(name) { return this.element.querySelector('.' + name); }

  update(data) {
    const fresh = data.online && (!this.data?.online || this.data.id !== data.id);
    this.data = data;
    for (const name of this.tiles.keys()) if (!data.actions.some((a) => a.name === name)) this.drop(name);
    let before = null;
    for (const action of data.actions) {
      let tile = this.tiles.get(action.name);
      if (tile) tile.update(data, action);
      else this.tiles.set(action.name, (tile = new Tile(data, action, (...press) => this.ask(...press))));
      // Moved only when it must be: moving takes the focus away.
      const place = before ? before.nextSibling : this.part('tiles').firstChild;
      if (place !== tile.element) this.part('tiles').insertBefore(tile.element, place);
      before = tile.element;
    }
    this.draw();
    if (fresh) offer(this);
  }

  drop(name) {
    this.tiles.get(name).element.remove();
    this.tiles.delete(name);
  }

  // ask reports whether a press needs something else first.
  ask(tile, value) {
    if (this.trust === 'pending') compare(this);
    else if (tile.action.confirm === 'pin') openPad(tile, value);
    else return false;
    return true;
  }

  draw() {
    const { name, online, broker, since, alert } = this.data;
    text(this.element.querySelector('h2'), name);
    this.element.dataset.away = String(!online || !broker);
    text(this.part('where'), !online ? 'offline' + (since ? ' since ' + when(since) : '') : broker ? 'online' : 'no MQTT broker');
    text(this.part('warn'), alert || '');
    const words = {
      pending: name + ' does not know this browser yet.',
      refused: name + ' trusts another browser of this device, or too many wait. To use this one, run there: sallyport agent untrust ' + me.device,
    }[this.trust];
    const box = this.part('new');
    box.hidden = !words;
    text(box.firstElementChild, words || '');
    box.lastElementChild.hidden = this.trust !== 'pending';
    for (const tile of this.tiles.values()) tile.draw();
  }
}

function show(data) {
  const home = homes.get(data.name);
  if (home) return home.update(data);
  homes.set(data.name, new Home(data));
  $('homes').replaceChildren(...[...homes.keys()].sort().map((name) => homes.get(name).element));
}

function gone(name) {
  homes.get(name)?.element.remove();
  homes.delete(name);
}

function empty() {
  if (homes.size) return;
  const words = document.createElement('p');
  words.className = 'quiet';
  words.textContent = 'There is nothing to press for this device yet. Actions are declared at home, in the agent’s configuration.';
  $('homes').replaceChildren(words);
}

// ended takes everything away: this device may not see it any more.
function ended() {
  homes.clear();
  for (const dialog of document.querySelectorAll('dialog[open]')) dialog.close();
  note();
  $('said').textContent = '';
  const title = document.createElement('h2'), words = document.createElement('p'), again = document.createElement('button');
  title.textContent = 'This device may not come in any more';
  words.textContent = 'It was removed, or its certificate has ended. Nothing is shown and nothing can be sent.';
  again.textContent = 'Load the page again';
  again.onclick = () => location.reload();
  $('homes').className = 'alone';
  $('homes').replaceChildren(title, words, again);
}

const states = { joining: 'Connecting…', live: '', down: '', ended: '' };
let version;

connect({
  link(state) {
    text($('link'), states[state]);
    text($('banner'), state === 'down' ? 'No connection. What you press now is not sent, and not kept for later.' : '');
    if (state === 'ended') return ended();
    cut();
    document.body.dataset.link = state;
    for (const home of homes.values()) home.draw();
  },
  hello(said) {
    // The relay serves another page by now. Nobody is in the middle of
    // something: load it.
    if (version && version !== said.version && !document.querySelector('dialog[open], [data-mood=busy]')) return location.reload();
    version ??= said.version;
    me.device = said.device;
    for (const name of homes.keys()) if (!said.homes.some((home) => home.name === name)) gone(name);
    said.homes.forEach(show);
    for (const home of homes.values()) if (home.trust !== 'trusted') offer(home);
    empty();
    rejoined();
  },
  home: show,
  gone({ home }) {
    gone(home);
    empty();
  },
  command(status) {
    heard(status);
    if (status.code === 'untrusted') homes.forEach((home) => { if (home.data.name === status.home) offer(home); });
  },
});

// The worker keeps the page that says "offline".
const policy = globalThis.trustedTypes?.createPolicy('panel', { createScriptURL: (url) => (url === '/sw.js' ? url : '') });
addEventListener('load', () => navigator.serviceWorker?.register(policy ? policy.createScriptURL('/sw.js') : '/sw.js').catch(() => {}));
