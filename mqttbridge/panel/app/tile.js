// One action: what it shows, and how it is pressed.

import { note, say, stamp, text, when } from './dom.js';
import { again, moodOf, obstacle, press, warm, wordsOf } from './run.js';

const signs = [
  [/garage/, 'M3.5 20V9.5L12 5l8.5 4.5V20M7 20v-8h10v8M7 16h10'],
  [/gate/, 'M3.5 20V6m17 14V6M3.5 9c5 0 8.5-2 8.5-2s3.5 2 8.5 2M3.5 16.5h17M7.5 18.5V8.5M12 18.5V7m4.5 11.5V8.5'],
  [/lock/, 'M6 11h12v9H6zM9 11V7.5a3 3 0 0 1 6 0V11M12 15v1.5'],
  [/door/, 'M6.5 20V4h11v16M4 20h16M14.2 12.2v.1'],
  [/light|lamp|bulb/, 'M9.5 18h5M10.5 21h3M12 3a6 6 0 0 0-3.5 10.9c.6.5 1 1.2 1 2.1h5c0-.9.4-1.6 1-2.1A6 6 0 0 0 12 3z'],
  [/blind|shutter|cover|curtain|roll/, 'M4 4h16M6 4v12h12V4M6 8h12M6 12h12M12 16v4'],
  [/bell|ring/, 'M12 4a5 5 0 0 0-5 5c0 5-2 6-2 7.5h14C19 15 17 14 17 9a5 5 0 0 0-5-5zM10.5 20h3'],
  [/heat|therm|boiler|warm/, 'M12 3.5a2 2 0 0 0-2 2v8.3a4 4 0 1 0 4 0V5.5a2 2 0 0 0-2-2zM12 9v7'],
  [/water|sprink|irrig|pump/, 'M12 4s6 6 6 10a6 6 0 0 1-12 0c0-4 6-10 6-10z'],
];
const power = 'M12 4v8M7.5 7.2a7 7 0 1 0 9 0';
const check = 'M6 12.5l4 4 8-9';
const cross = 'M8 8l8 8M16 8l-8 8';
const hows = { hold: 'Hold', pin: 'PIN' };
const helps = { hold: 'Hold for one second', pin: 'Asks for a PIN' };

// calm is how values look that devices shout.
const calm = (value) => (/^[A-Z_]{2,}$/.test(value) ? value[0] + value.slice(1).toLowerCase().replace(/_/g, ' ') : value);

export class Tile {
  // ask is given the tile and value of a press that needs more than a press.
  constructor(home, action, ask) {
    this.ask = ask;
    this.element = stamp('t-tile');
    this.face = this.element.firstElementChild;
    this.update(home, action);
  }

  part(name) { return this.element.querySelector('.' + name); }

  update(home, action) {
    const values = action.values || [];
    const shape = JSON.stringify([values, action.confirm]);
    action.label ||= action.name;
    Object.assign(this, { home, action });
    if (shape !== this.shape) this.build(values);
    this.shape = shape;
    text(this.part('label'), action.label);
    this.part('values').ariaLabel = action.label;
    text(this.part('how'), hows[action.confirm] || '');
    this.face.setAttribute('aria-description', values.length ? '' : helps[action.confirm] || '');
    const { icon = '' } = action;
    const picture = /[^\x20-\x7e]/.test(icon);
    text(this.part('icon').lastElementChild, picture ? icon : '');
    this.sign = picture ? '' : (signs.find(([name]) => name.test((icon || action.label + action.name).toLowerCase())) || [0, power])[1];
    this.draw();
  }

  // build makes the buttons: the whole tile is one, or each value has its own.
  build(values) {
    if ((this.face.localName === 'button') === !!values.length) {
      const face = document.createElement(values.length ? 'div' : 'button');
      face.className = 'face';
      face.append(...this.face.childNodes);
      this.face.replaceWith(face);
      this.face = face;
    }
    this.element.classList.toggle('wide', values.length > 1);
    this.buttons = values.length ? values.map((value) => {
      const button = document.createElement('button');
      button.textContent = calm(value);
      button.setAttribute('aria-description', helps[this.action.confirm] || '');
      this.bind(button, value);
      return button;
    }) : [this.face];
    this.part('values').replaceChildren(...(values.length ? this.buttons : []));
    if (!values.length) this.bind(this.face);
  }

  bind(button, value) {
    const hold = () => this.action.confirm === 'hold';
    let timer, armed, touched = 0, held;
    const let_go = () => {
      clearTimeout(timer);
      this.element.classList.remove('holding');
    };
    button.onpointerdown = (event) => {
      if (event.button || again(this, value)) return;
      touched = Date.now();
      held = false;
      if (!obstacle(this) && this.action.confirm !== 'pin') warm(this);
      if (!hold()) return;
      this.element.classList.add('holding');
      timer = setTimeout(() => {
        let_go();
        held = true;
        this.go(value);
      }, 1000);
    };
    button.onpointerup = button.onpointercancel = button.onpointerleave = let_go;
    button.oncontextmenu = (event) => event.preventDefault(); // of a long touch
    button.onclick = () => {
      if (!hold()) return this.go(value);
      if (held) return void (held = false);
      // A finger that was too short is told so. Keyboards and screen readers
      // cannot hold: they press twice.
      if (Date.now() - touched < 1500) return this.hint('Hold for one second');
      clearTimeout(armed);
      if (this.armed === button) {
        this.armed = null;
        return this.go(value);
      }
      this.armed = button;
      warm(this);
      this.hint('Press again to confirm');
      armed = setTimeout(() => { this.armed = null; }, 5000);
    };
  }

  hint(words) {
    this.hinted = words;
    this.draw();
    say(this.action.label + ': ' + words);
    clearTimeout(this.hinting);
    this.hinting = setTimeout(() => {
      this.hinted = '';
      this.draw();
    }, 5000);
  }

  go(value) {
    this.hinted = '';
    if (this.action.confirm !== 'pin' && again(this, value)) return;
    if (!obstacle(this) && this.ask(this, value)) return note();
    press(this, value);
  }

  draw() {
    const { action, run } = this;
    clearTimeout(this.fading);
    const left = run?.final ? run.ended + (moodOf(run) === 'good' ? 10000 : 30000) - Date.now() : 0;
    const shown = left < 0 ? null : run;
    if (left > 0) this.fading = setTimeout(() => this.draw(), left + 9);
    const mood = moodOf(shown);
    this.element.dataset.mood = mood;
    this.part('sign').setAttribute('d', { good: check, bad: cross }[mood] || this.sign);
    text(this.part('live'), action.state ? calm(action.state.value) : '');
    const { last } = action;
    text(this.part('last'), this.hinted || (shown ? wordsOf(shown) : action.problem || (last ? 'Last ' + when(last.at) + ' by ' + last.by + (last.state === 'done' || last.state === 'delivered' ? '' : ', ' + last.state)
        : action.hours || '')));
    for (const button of this.buttons) button.setAttribute('aria-disabled', String(!!obstacle(this)));
  }
}
