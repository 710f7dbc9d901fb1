// Talking to the relay. The code and the ticket travel in bodies and in a
// header, never in an address.

export class Fault extends Error {
  constructor(status, { error, hint, retry_after: retry } = {}) {
    super(error || 'The relay gave an answer that this page does not understand');
    this.status = status;
    this.hint = hint || '';
    this.retry = retry || 0; // seconds
  }
}

const offline = () => new Fault(0, { error: 'The relay cannot be reached', hint: 'Look whether this device is online, then try again.' });

async function ask(path, ticket, options) {
  const headers = { ...(options.body && { 'Content-Type': 'application/json' }), ...(ticket && { Authorization: 'Bearer ' + ticket }) };
  let answer;
  try {
    answer = await fetch(path, { cache: 'no-store', ...options, headers });
  } catch {
    throw offline();
  }
  if (!answer.ok) throw new Fault(answer.status, await answer.json().catch(() => ({})));
  return answer;
}

export async function post(path, body) {
  return (await ask(path, '', { method: 'POST', body: JSON.stringify(body) })).json();
}

export const pause = (ms, sooner = []) =>
  new Promise((done) => {
    setTimeout(done, ms);
    for (const [target, event] of sooner) target.addEventListener(event, done, { once: true });
  });

// persist tries again while the relay cannot be reached: asking twice with one
// key and ticket gets one certificate.
export async function persist(times, attempt) {
  for (let wait = 1000; ; wait *= 2) {
    try {
      return await attempt();
    } catch (fault) {
      if (fault.status || --times <= 0) throw fault;
      await pause(wait);
    }
  }
}

// follow calls seen with a request at each change and returns the last one.
// Phones cut streams when the screen goes dark: it asks again, at once when
// somebody looks.
export async function follow(id, ticket, seen) {
  for (let wait = 500; ; wait = Math.min(2 * wait, 15000)) {
    try {
      const answer = await ask(`/api/requests/${encodeURIComponent(id)}/events`, ticket, {});
      for await (const request of events(answer.body.getReader())) {
        wait = 500;
        seen(request);
        if (request.state !== 'pending') return request;
      }
    } catch (fault) {
      if (fault instanceof Fault && fault.status && !fault.retry && fault.status < 500) throw fault;
      if (fault.retry) wait = Math.max(wait, 1000 * fault.retry);
    }
    await pause(wait, [[document, 'visibilitychange'], [window, 'online']]);
  }
}

// events reads server-sent events. Every one of ours is a request.
async function* events(reader) {
  const decoder = new TextDecoder();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + decoder.decode(value, { stream: true })).split('\n\n');
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split('\n').filter((line) => line.startsWith('data: ')).map((line) => line.slice(6));
      if (data.length) yield JSON.parse(data.join('\n'));
    }
  }
}

export const toBase64 = (bytes) => btoa(String.fromCharCode(...bytes));
export const fromBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
