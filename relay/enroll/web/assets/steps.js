// One step is shown at a time. The page is written in HTML; scripts choose
// what of it is seen and fill in text, never markup.

export const $ = (id) => document.getElementById(id);

export function say(text) {
  $('live').textContent = text;
}

export function fill(name, text) {
  for (const at of document.querySelectorAll(`[data-fill="${name}"]`)) at.textContent = text;
}

export function when(name, yes) {
  for (const at of document.querySelectorAll(`[data-when="${name}"]`)) at.hidden = !yes;
}

// show brings one step forward and tells screen readers by moving the focus.
export function show(id) {
  const now = $(id);
  for (const step of document.querySelectorAll('[data-step]')) step.hidden = step !== now;
  const at = Number(now.dataset.step);
  $('progress').hidden = !at;
  for (const mark of $('progress').children) {
    mark.classList.toggle('done', mark.dataset.at < at);
    if (Number(mark.dataset.at) === at) mark.setAttribute('aria-current', 'step');
    else mark.removeAttribute('aria-current');
  }
  say('');
  scrollTo(0, 0);
  now.querySelector('h1').focus({ preventScroll: true });
  document.body.dataset.now = id;
}

const sentence = (text) => text && text[0].toUpperCase() + text.slice(1).replace(/[.]?$/, '.');

// trouble shows what went wrong in place, inside the step.
export function trouble(id, fault) {
  const box = $(id);
  box.hidden = !fault;
  if (!fault) return;
  const wait = fault.retry ? `Wait ${fault.retry < 120 ? fault.retry + ' seconds' : Math.ceil(fault.retry / 60) + ' minutes'}.` : '';
  box.replaceChildren(...[sentence(fault.message), fault.hint || wait].filter(Boolean).map((text, i) => {
    const part = document.createElement(i ? 'span' : 'strong');
    part.textContent = text;
    return part;
  }));
}

export function fail(title, fault) {
  fill('failure', title);
  show('failed');
  trouble('failed-why', fault);
}

// busy keeps a button from being pressed twice, and says that it was pressed.
export async function busy(button, text, work) {
  const was = button.textContent;
  button.setAttribute('aria-disabled', 'true');
  button.textContent = text;
  say(text);
  try {
    return await work();
  } finally {
    button.removeAttribute('aria-disabled');
    button.textContent = was;
  }
}

export const idle = (button) => button.getAttribute('aria-disabled') !== 'true';

// copyable makes a button copy the text of another element.
export function copyable(button, text) {
  button.addEventListener('click', async () => {
    const was = button.textContent;
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = 'Copied';
      say('Copied');
    } catch {
      const target = $(button.dataset.copies);
      if (target) getSelection().selectAllChildren(target);
      say('It is selected now: copy it');
    }
    setTimeout(() => (button.textContent = was), 2000);
  });
}
