// What kind of device and browser this is, to show the steps that fit.

const ua = navigator.userAgent;
const touchMac = /Macintosh/.test(ua) && navigator.maxTouchPoints > 1; // how iPads call themselves

const systems = [
  ['ios', touchMac || /iPhone|iPad|iPod/.test(ua)],
  ['android', /Android/.test(ua)],
  ['chromeos', /CrOS/.test(ua)],
  ['macos', /Macintosh/.test(ua)],
  ['windows', /Windows/.test(ua)],
  ['linux', true],
];

export const system = systems.find(([, fits]) => fits)[0];
export const apple = system === 'ios' || system === 'macos';

// Browsers inside other apps save no files, and on iOS only Safari reaches the
// certificates of the system.
const inApp = /FBAN|FBAV|Instagram|Line\/|GSA\/|; wv\)/.test(ua);
const notSafari = system === 'ios' && (/CriOS|FxiOS|EdgiOS|OPiOS|OPT\/|DuckDuckGo|Brave/.test(ua) || !/Safari\//.test(ua));
export const wrongBrowser = notSafari || inApp ? (system === 'ios' ? 'safari' : 'app') : '';

export const example = {
  ios: /iPhone/.test(ua) ? 'anna-iphone' : 'anna-ipad',
  android: 'anna-phone',
  macos: 'anna-mac',
}[system] || 'anna-laptop';
