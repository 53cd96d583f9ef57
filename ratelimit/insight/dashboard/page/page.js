// The page's only script. Whatever comes from outside becomes text (textContent) and nothing else.
'use strict';

const KEPT = 120; // seconds in a plot
// Workers tell their totals once a second, each at a moment of its own: a mean over a few of those.
const MEAN = 3; // seconds
const COLUMNS = ['passed', 'refused', 'would', 'failed'];
const LINES = ['passed', 'refused', 'would'];
const SVG = 'http://www.w3.org/2000/svg';

const byId = (id) => document.getElementById(id);
const setText = (node, text) => {
  // Only changes are written, so that a screen reader is not told the same again.
  if (node.textContent !== text) node.textContent = text;
};

function replace(node, children) {
  // What stays the same is left alone, with whatever of it is selected.
  if (node.textContent !== children.map((each) => each.textContent).join('')) node.replaceChildren(...children);
}

function make(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

// --- a plot: its lines of per-second rates ---------------------------------------------------

class Plot {
  constructor(label) {
    this.rates = [];
    this.svg = document.createElementNS(SVG, 'svg');
    this.svg.setAttribute('viewBox', `0 0 ${KEPT - 1} 100`);
    this.svg.setAttribute('preserveAspectRatio', 'none');
    this.svg.setAttribute('role', 'img');
    this.svg.setAttribute('aria-label', label);
    this.lines = LINES.map((name) => {
      const line = document.createElementNS(SVG, 'polyline');
      line.setAttribute('class', name);
      this.svg.append(line);
      return line;
    });
  }

  add(rates) {
    this.rates.push(rates);
    if (this.rates.length > KEPT) this.rates.shift();
    const top = this.top();
    const first = KEPT - this.rates.length;
    this.lines.forEach((line, which) => {
      const used = this.rates.some((each) => each[which] > 0);
      const points = this.rates.map((each, at) => {
        const height = 97 - (each[which] / top) * 92;
        return `${first + at},${height.toFixed(1)}`;
      });
      line.setAttribute('points', used || which === 0 ? points.join(' ') : '');
    });
  }

  top() {
    return Math.max(1, ...this.rates.flat());
  }
}

// --- rules -----------------------------------------------------------------------------------

const all = new Plot('Decisions per second in the last two minutes, passed and refused');
let rows = new Map(); // by the name of the rule
let rules = [];
let earlier = []; // the last numbers, as many as a mean needs

function showRules(told) {
  rules = told.rules;
  const known = rows;
  rows = new Map();
  const body = byId('rules');
  body.replaceChildren();
  for (const rule of rules) addRow(rule, known.get(rule.name));
  if (known.has(DENYLIST.name) && !rows.has(DENYLIST.name)) addRow(DENYLIST, known.get(DENYLIST.name));
  setText(byId('left-out'), told.left_out ? `${told.left_out} more rules are not shown.` : '');
  const select = byId('rule');
  const chosen = select.value;
  select.replaceChildren(...rules.map((rule) => {
    const option = make('option', rule.name);
    option.value = rule.name;
    return option;
  }));
  if (rules.some((rule) => rule.name === chosen)) select.value = chosen;
  showFields();
}

const DENYLIST = { name: '(denylist)', mode: 'refuses', limits: ['clients that are listed'], worst: ['0'], path: 'every path' };

function addRow(rule, known) {
  const row = make('tr');
  const name = make('th', rule.name);
  name.scope = 'row';
  name.append(make('div', rule.path, 'note'));
  row.append(name, make('td', rule.mode, rule.mode.startsWith('shadow') ? 'would' : ''));
  for (const texts of [rule.limits, rule.worst]) {
    const cell = make('td');
    cell.append(...texts.map((text) => make('div', text)));
    row.append(cell);
  }
  const cells = COLUMNS.map((column) => make('td', '–', `number ${column}`));
  const plot = known ? known.plot : new Plot(`Decisions of rule ${rule.name} per second`);
  const last = make('td');
  last.append(plot.svg);
  row.append(...cells, last);
  byId('rules').append(row);
  rows.set(rule.name, { cells, plot });
}

// --- numbers ---------------------------------------------------------------------------------

function rate(now, then, seconds) {
  return Math.max(0, ((now || 0) - (then || 0)) / seconds);
}

const short = (number) => (number >= 10 || number === 0 ? String(Math.round(number)) : number.toFixed(1));

function showNumbers(now) {
  // Another worker has another clock, and what it counts alone another beginning.
  const last = earlier.at(-1);
  if (last && (last.worker !== now.worker || last.shared !== now.shared || last.at > now.at)) earlier = [];
  const isNew = !earlier.length || now.at > earlier.at(-1).at;
  if (isNew) earlier.push(now);
  const kept = now.shared ? MEAN : 1;
  while (earlier.length > 2 && now.at - earlier[1].at >= kept - 0.5) earlier.shift();
  const then = earlier.length > 1 ? earlier[0] : null;
  const seconds = then ? now.at - then.at : 1;
  if (now.rules[DENYLIST.name] && !rows.has(DENYLIST.name)) addRow(DENYLIST);
  for (const [name, row] of rows) {
    const totals = now.rules[name] || {};
    const former = then ? then.rules[name] || {} : {};
    const rates = COLUMNS.map((column) => rate(totals[column], former[column], seconds));
    COLUMNS.forEach((column, at) => {
      const total = (totals[column] || 0).toLocaleString('en');
      setText(row.cells[at], then && rates[at] ? `${total} (${short(rates[at])}/s)` : total);
    });
    if (then && isNew) row.plot.add(rates.slice(0, LINES.length));
  }
  if (then) {
    const rates = LINES.map((column) => rate(now.all[column], then.all[column], seconds));
    LINES.forEach((column, at) => setText(byId(`rate-${column}`), short(rates[at])));
    if (isNew) all.add(rates);
    setText(byId('top'), short(all.top()));
  }
  setText(byId('scope'), now.scope);
  replace(byId('gauges'), now.gauges.map(([label, number]) => make('span', `${label} in this worker: ${number.toLocaleString('en')}`)));
  setText(byId('whose'), now.whose);
  const denied = now.denied.map((each) => {
    const row = make('tr');
    row.append(make('td', each.identity), make('td', each.rule));
    row.append(make('td', each.number.toLocaleString('en'), 'number'));
    return row;
  });
  if (!denied.length) {
    const cell = make('td', 'nobody was refused lately');
    cell.colSpan = 3;
    denied.push(make('tr'));
    denied[0].append(cell);
  }
  replace(byId('denied'), denied);
  replace(byId('facts'), now.facts.flatMap(([label, text]) => [make('dt', label), make('dd', text)]));
  say(now.ok ? 'the store answers' : 'the store does not answer', !now.ok);
}

function say(text, bad) {
  setText(byId('status'), text);
  byId('status').className = bad ? 'bad' : '';
}

// --- the stream ------------------------------------------------------------------------------

let stream = null;
let again = 0;

function listen() {
  clearTimeout(again);
  if (stream || document.hidden) return;
  stream = new EventSource('events');
  stream.addEventListener('rules', (event) => showRules(JSON.parse(event.data)));
  stream.addEventListener('numbers', (event) => showNumbers(JSON.parse(event.data)));
  stream.addEventListener('error', () => {
    if (stream && stream.readyState === EventSource.CLOSED) {
      say('no numbers come: the page is closed to you, or too many look; trying again', true);
      hush();
      again = setTimeout(listen, 10_000);
    } else {
      again = setTimeout(() => {
        if (stream && stream.readyState !== EventSource.OPEN) say('the application does not answer', true);
      }, 3_000);
    }
  });
}

function hush() {
  clearTimeout(again);
  if (stream) stream.close();
  stream = null;
}

// A page that nobody sees costs the application nothing.
document.addEventListener('visibilitychange', () => (document.hidden ? hush() : listen()));

// --- one key ---------------------------------------------------------------------------------

function showFields() {
  const rule = rules.find((each) => each.name === byId('rule').value);
  const box = byId('values');
  const wanted = rule ? JSON.stringify([rule.name, rule.by, rule.tiers]) : '';
  if (box.dataset.for === wanted) return; // a change elsewhere leaves what was typed
  box.dataset.for = wanted;
  box.replaceChildren();
  if (!rule) return;
  rule.by.forEach((part, at) => {
    const input = make('input');
    input.maxLength = 512;
    input.required = true;
    input.autocomplete = 'off';
    input.spellcheck = false;
    addField(box, `value-${at}`, part, input);
  });
  if (rule.tiers.length) {
    const select = make('select');
    select.append(...rule.tiers.map((tier) => make('option', tier)));
    addField(box, 'tier', 'tier', select);
  }
}

function addField(box, id, text, control) {
  control.id = id;
  const label = make('label', text);
  label.htmlFor = id;
  const line = make('p');
  line.append(label, ' ', control);
  box.append(line);
}

async function ask(event) {
  event.preventDefault();
  const values = [...byId('values').querySelectorAll('input')].map((input) => input.value);
  const tier = byId('tier');
  const answer = byId('answer');
  const box = byId('counters-box');
  box.hidden = true;
  try {
    const response = await fetch('state', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ rule: byId('rule').value, identity: values, tier: tier ? tier.value : null }),
    });
    const told = await response.json();
    if (told.error) {
      setText(answer, told.error);
      return;
    }
    byId('counters').replaceChildren(...told.counters.map((each) => {
      const row = make('tr');
      row.append(make('td', each.limit), make('td', each.state));
      row.append(make('td', each.remaining, 'number'), make('td', each.reset, 'number'));
      return row;
    }));
    box.hidden = told.counters.length === 0;
    setText(answer, told.counters.length ? told.counters.map((each) => `${each.remaining} left of ${each.limit}`).join('; ') : 'nothing limits this key');
  } catch {
    setText(answer, 'the application gave no answer');
  }
}

byId('plot').append(all.svg);
byId('rule').addEventListener('change', showFields);
byId('ask').addEventListener('submit', ask);
listen();
