// A press: from the finger to the last word about it. Nothing is ever kept to
// be sent later; what did not go out at once does not go out.

import { buzz, note, say, when } from './dom.js';
import { newID, ownKey, sealPIN, sign, fromBase64 } from './keys.js';
import { call, link } from './link.js';

const patience = 5000; // ms from the press until it is on its way
const courses = ['sending', 'lost', 'accepted', 'sent', 'delivered', 'done', 'unconfirmed', 'refused', 'expired', 'unknown'];
const words = {
  sending: 'Sending…', lost: 'Connection lost, asking…', accepted: 'Accepted…', sent: 'On its way…', done: 'Done',
  unconfirmed: 'No confirmation', refused: 'Refused', expired: 'Too late, not run', unknown: 'Nobody knows',
};
const details = {
  refused: 'It did not run.',
  unconfirmed: 'It was delivered, but nothing said that it happened. Have a look.',
  expired: 'It came too late and did not run.',
  unknown: 'It may have run. Have a look before you press again.',
};

export const key = ownKey().catch(() => { throw new Error('This browser cannot keep a key. Is it a private window?'); });
key.catch(() => {}); // told at the first press

export const me = { device: '' };
const runs = new Map(); // by id, while somebody may still have news of it

// wordsOf is what a tile says. Without the stream nothing tells how a command
// that is on its way goes on: it is asked for once the relay is back.
export const wordsOf = ({ state, final }) => (state === 'delivered' ? (final ? 'Delivered' : 'Delivered, waiting…')
  : words[link.state === 'live' || final || state === 'sending' ? state : 'lost']);

// moodOf is how a tile looks.
export function moodOf(run) {
  if (!run) return 'idle';
  if (!run.final) return 'busy';
  return { done: 'good', delivered: 'good', refused: 'bad', expired: 'bad' }[run.state] || 'warn';
}

// warm gets a challenge before it is needed: while the finger is still down.
export function warm(tile) {
  if (tile.ticket && Date.now() < tile.ticket.good) return tile.ticket;
  const asked = Date.now();
  const ticket = { good: asked + patience };
  ticket.challenge = call('challenge', { home: tile.home.name, action: tile.action.name }).then((said) => {
    ticket.good = asked + said.life_ms * 0.6;
    ticket.dead = asked + said.life_ms;
    return said.challenge;
  });
  ticket.challenge.catch(() => { if (tile.ticket === ticket) tile.ticket = null; });
  return (tile.ticket = ticket);
}

// obstacle says why a press cannot work now, or nothing.
export function obstacle({ home, action }) {
  if (link.state === 'down') return 'No connection.';
  if (!home.online) return home.name + ' is offline' + (home.since ? ' since ' + when(home.since) : '') + '.';
  if (!home.broker) return 'The MQTT broker at ' + home.name + ' cannot be reached.';
  return action.problem;
}

// again reports a second tap of one press, or a press while one is on its way.
export function again({ run }, value) {
  return run && (run.state === 'sending' || (run.value === value &&
    (Date.now() - run.pressed < 800 || (!run.final && run.state !== 'delivered'))));
}

// press sends a command. follow is called at every change of it.
export async function press(tile, value, pin, follow) {
  const { home, action } = tile;
  const run = { tile, value, follow, state: '', pressed: Date.now() };
  tile.run = run;
  note();
  const why = obstacle(tile);
  if (why) return refuse(run, unsent(why));
  move(run, { state: 'sending' });
  buzz(12);
  let command;
  try {
    const ticket = warm(tile);
    const [challenge, signer] = await Promise.all([ticket.challenge, key]);
    tile.ticket = null; // it is good for one
    const now = Date.now();
    if (now - run.pressed > patience) throw new Error('The connection is too slow.');
    const envelope = {
      id: newID(), home: home.id, action: action.name, value, device: me.device,
      issued: new Date(now).toISOString(), not_after: new Date(ticket.dead).toISOString(), challenge,
    };
    if (pin) envelope.pin = await sealPIN(fromBase64(home.key), pin, envelope);
    command = await sign(envelope, signer);
    run.id = envelope.id;
    run.dead = ticket.dead;
  } catch (fault) {
    return refuse(run, unsent(fault.message));
  }
  runs.set(run.id, run);
  try {
    move(run, await call('commands/' + encodeURIComponent(action.name), { home: home.name, command }, { 'Idempotency-Key': run.id }));
  } catch ({ answer }) {
    if (answer.state) move(run, answer);
    else if (answer.code) refuse(run, answer.error);
    else {
      move(run, { state: 'lost' });
      ask(run);
    }
  }
}

// move takes news of a command. Those that come late are old.
function move(run, news) {
  if (run.final ? run.state !== 'unknown' || !news.final : courses.indexOf(news.state) < courses.indexOf(run.state)) return;
  Object.assign(run, { state: news.state, final: !!news.final, code: news.code, reason: news.reason, left: news.attempts_left });
  if (run.final && run.state !== 'unknown') runs.delete(run.id);
  if (run.final) finish(run);
  run.tile.draw();
  run.follow?.(run);
}

const unsent = (why) => (/othing was sent/.test(why) ? why : why.replace(/\.?$/, '. Nothing was sent.'));
const refuse = (run, reason) => move(run, { state: 'refused', final: true, reason });

function finish(run) {
  const { label } = run.tile.action;
  const good = moodOf(run) === 'good';
  buzz(...(good ? [20, 60, 20] : [120]));
  const why = run.reason || details[run.state];
  if (!good) note(label + ': ' + why[0].toUpperCase() + why.slice(1));
  else say(label + ': ' + wordsOf(run));
  run.ended = Date.now();
}

// heard takes the news of the stream.
export function heard(status) {
  const run = runs.get(status.id);
  if (run) move(run, status);
}

// ask finds out what became of a command that nobody answered for. One that the
// relay does not know when its challenge has died never got there.
async function ask(run) {
  if (!runs.has(run.id) || link.state === 'ended') return;
  try {
    return move(run, await call('commands/' + run.id));
  } catch (fault) {
    if (fault.status === 404 && Date.now() > run.dead) {
      if (run.state === 'lost') return refuse(run, 'It did not reach the relay. Nothing ran.');
      return move(run, { state: 'unknown', final: true });
    }
  }
  setTimeout(ask, 2000, run);
}

// rejoined catches up with what was said while nobody listened.
export function rejoined() {
  for (const run of runs.values()) if (run.state !== 'lost') ask(run);
}
