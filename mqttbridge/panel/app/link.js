// The way to the relay: calls, and the stream of events.

export class Fault extends Error {
  constructor(status, answer = {}) {
    super(answer.error || answer.reason || 'The relay gave an answer that this page does not understand');
    this.status = status;
    this.answer = answer;
  }
}

// state is "joining" at first and after the stream broke, "live", "down" once
// nobody answered, and "ended" when this device may not come in any more.
export const link = { state: 'joining' };
let hooks;

function set(state) {
  if (link.state === state || link.state === 'ended') return;
  link.state = state;
  if (state === 'ended') close();
  hooks.link(state);
}

// call asks the API; without a body it is a GET. It throws a Fault, of status 0
// when no answer came.
export async function call(path, body, headers, patience = 5000) {
  const post = body && { method: 'POST', body: JSON.stringify(body), headers: { 'Content-Type': 'application/json', ...headers } };
  let answer, said;
  try {
    answer = await fetch('/api/' + path, { cache: 'no-store', signal: AbortSignal.timeout(patience), ...post });
    said = await answer.json().catch((broken) => { if (broken.name !== 'SyntaxError') throw broken; });
  } catch {
    throw new Fault(0, { error: 'No connection.' });
  }
  // A refusal says why; the door does not.
  if (answer.status === 401 || (answer.status === 403 && !said?.code)) set('ended');
  if (!answer.ok || !said) throw new Fault(answer.status, said);
  return said;
}

let source, heard = 0, wait, timer, turn = 0;

function close() {
  turn++;
  clearTimeout(timer);
  source?.close();
  source = null;
}

function open() {
  close();
  source = new EventSource('/api/events');
  for (const name of ['hello', 'home', 'gone', 'command', 'ping']) {
    source.addEventListener(name, ({ data }) => {
      heard = Date.now();
      if (name === 'ping') return;
      const said = JSON.parse(data);
      if (name === 'hello') {
        wait = 300;
        set('live');
      }
      hooks[name](said);
    });
  }
  source.onerror = again;
}

// again joins after a while: browsers tell streams neither why they ended nor
// whether it makes sense to try, so a call asks first.
function again() {
  if (link.state === 'ended') return;
  close();
  if (link.state === 'live') set('joining');
  timer = setTimeout(join, wait);
  wait = Math.min(2 * wait, 15000);
}

async function join() {
  close();
  const mine = turn;
  try {
    await call('homes');
    if (mine === turn) open();
  } catch {
    if (mine !== turn) return;
    set('down');
    again();
  }
}

function now() {
  wait = 300;
  if (link.state !== 'ended') join();
}

// connect starts the stream. hooks has a function for each event, and link for
// changes of the state.
export function connect(functions) {
  hooks = functions;
  wait = 300;
  open();
  addEventListener('offline', () => {
    close();
    set('down');
  });
  addEventListener('online', now);
  // A phone that wakes up has a stream that looks alive and is not.
  let hidden;
  document.addEventListener('visibilitychange', () => {
    clearTimeout(hidden);
    if (document.hidden) hidden = setTimeout(() => { close(); set('joining'); }, 60000);
    else if (link.state !== 'live' || Date.now() - heard > 20000) now();
  });
  setInterval(() => {
    if (link.state === 'live' && Date.now() - heard > 40000) again();
  }, 5000);
}
