// Small builders and formats that the rest of the viewer uses. Text enters the page through textContent alone.
'use strict';

const SVG = 'http://www.w3.org/2000/svg';

function build(node, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'text') node.textContent = value;
    else if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : String(value));
  }
  for (const child of children.flat(9)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}
const el = (tag, props, ...children) => build(document.createElement(tag), props, children);
const svg = (tag, props, ...children) => build(document.createElementNS(SVG, tag), props, children);
const readJson = (id) => JSON.parse(document.getElementById(id).textContent);

const fmtInt = (n) => Math.round(n).toLocaleString('en-US');
function fmtShort(n) {
  if (n === 0) return '0';
  const size = Math.abs(n);
  for (const [unit, name] of [[1e9, 'B'], [1e6, 'M'], [1e4, 'k']]) {
    if (size >= unit) return (n / (unit === 1e4 ? 1e3 : unit)).toFixed(size / unit >= 100 ? 0 : 1) + ' ' + name;
  }
  if (size >= 100 || Number.isInteger(n)) return fmtInt(n);
  return String(Number(n.toPrecision(3)));
}
function fmtBytes(n) {
  for (const [unit, name] of [[2 ** 40, 'TiB'], [2 ** 30, 'GiB'], [2 ** 20, 'MiB'], [2 ** 10, 'KiB']]) {
    if (n >= unit) return (n / unit).toFixed(n / unit >= 100 ? 0 : 1) + ' ' + name;
  }
  return fmtInt(n) + ' B';
}
function fmtDuration(seconds) {
  if (seconds < 60) return Number(seconds.toPrecision(3)) + ' s';
  if (seconds < 5400) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return (seconds / 3600).toFixed(seconds >= 36000 ? 0 : 1) + ' h';
}
const fmtShare = (share) => (share > 0 && share < 0.01 ? '< 1 %' : Math.round(share * 100) + ' %');
function fmtValue(value, unit) {
  if (unit === 'seconds') return fmtDuration(value);
  if (unit === 'bytes') return fmtBytes(value);
  return fmtShort(value);
}

// Old to new; ov2_core/report/draw.py has the same ramp and the same group colours.
const RAMP = [[77, 107, 254], [16, 178, 190], [132, 204, 60], [250, 190, 40], [249, 86, 79]];
const GROUPS = ['#6366f1', '#14a096', '#f59e0b', '#ec4899', '#84a814', '#0e96dc', '#a855f7', '#ef5a3c'];
const groupColour = (index) => GROUPS[index % GROUPS.length];
function rampColour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const index = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[index].map((low, i) => Math.round(low + (RAMP[index + 1][i] - low) * (place - index)));
}

function card(title, ...children) {
  return el('section', { class: 'card' }, title && el('h3', { text: title }), ...children);
}
function facts(rows) {
  return el('dl', { class: 'facts' }, rows.map(([name, value]) => el('div', {}, el('dt', { text: name }), el('dd', { text: value }))));
}
function copyButton(text) {
  const button = el('button', { type: 'button', class: 'quiet', text: 'Copy' });
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = el('textarea', {});
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand('copy');
      area.remove();
    }
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 1200);
  });
  return button;
}
