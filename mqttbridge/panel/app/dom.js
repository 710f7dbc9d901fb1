// Small things around the document.

export const $ = (id) => document.getElementById(id);
export const stamp = (id) => $(id).content.firstElementChild.cloneNode(true);

// text fills or hides an element, and touches it only when it must: screen
// readers read changes.
export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
  element.hidden = !value;
}

// say speaks to screen readers only.
export function say(words) {
  $('said').textContent = '';
  setTimeout(() => { $('said').textContent = words; }, 50);
}

// note shows what a person must read, until the next press.
export function note(words) {
  $('note').firstElementChild.textContent = words || '';
  $('note').hidden = !words;
}
$('note').lastElementChild.onclick = () => note();

export function buzz(...pattern) {
  if (navigator.userActivation?.hasBeenActive !== false) navigator.vibrate?.(pattern);
}

const clock = new Intl.DateTimeFormat([], { hour: 'numeric', minute: '2-digit' });
const weekday = new Intl.DateTimeFormat([], { weekday: 'short' });
const day = new Intl.DateTimeFormat([], { day: 'numeric', month: 'short' });

// when is short: today the time only, then weekdays, then dates.
export function when(time) {
  const then = new Date(time);
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (then >= midnight) return clock.format(then);
  return (then > midnight - 6 * 864e5 ? weekday : day).format(then) + ' ' + clock.format(then);
}
