// The live page: asks the server for its books once a second and draws them.  No library, no build.
'use strict';

const $ = (id) => document.getElementById(id);
const KEY = 'sparkdist-token';
const SHOWN = 200; // rows of the table
const QUIET = 10; // seconds after which a worker is called quiet
let token = '';
let last = null; // the newest status
let restarted = ''; // when the server was seen to be another one
let failures = 0;
let timer = 0;
let busy = false;

// --- words and numbers -----------------------------------------------------------------------

const numbers = (options) => new Intl.NumberFormat('en', options).format;
const whole = numbers({ maximumFractionDigits: 0 });
const short = numbers({ notation: 'compact', maximumSignificantDigits: 3 });
const four = numbers({ minimumSignificantDigits: 4, maximumSignificantDigits: 4 });
const loss = (value) => (Math.abs(value) >= 1e-4 || value === 0 ? four(value) : value.toExponential(2));
const many = (value) => (value < 1e6 ? whole(value) : short(value));
const clock = () => new Date().toLocaleTimeString('en-GB');

function duration(seconds) {
  if (seconds < 10) return `${(Math.round(seconds * 10) / 10).toFixed(1)} s`;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 ? ` ${s % 60} s` : ''}`;
  const minutes = Math.floor((s % 3600) / 60);
  return `${Math.floor(s / 3600)} h${minutes ? ` ${minutes} min` : ''}`;
}

function write(id, text) {
  const element = typeof id === 'string' ? $(id) : id;
  if (element.textContent !== text) element.textContent = text;
}

function say(text, mood, notice = '') {
  write('state', text);
  $('state').dataset.mood = mood;
  write('notice', notice);
  $('notice').hidden = !notice;
}

// --- what a status tells ---------------------------------------------------------------------

// Points are (seconds, applied pushes, examples, loss, weight), all sums from the start: what
// happened between two of them is their difference, whatever lies between.
function read(status) {
  const points = [[0, 0, 0, 0, 0], ...status.timeline];
  const newest = points[points.length - 1];
  const workers = status.workers;
  const joined = workers.length;
  const over = joined > 0 && joined >= status.n_workers && workers.every((worker) => worker.left);
  const seconds = over && points.length > 1
    ? Math.min(status.seconds, 2 * newest[0] - points[points.length - 2][0])
    : status.seconds;
  if (seconds > newest[0]) {
    points.push([seconds, status.counts.applied || 0, status.examples, status.loss, status.weight]);
  }
  let plan = {};
  try { plan = JSON.parse(status.plan); } catch { /* nothing was said */ }
  return { points, joined, over, seconds, total: (plan.rows || 0) * (plan.epochs || 0) };
}

// Quotient of two columns' growth over the window of so many seconds that ends at each point.
function ratios(points, above, below, window) {
  const xs = [], ys = [];
  for (let i = 1, j = 0; i < points.length; i++) {
    while (j < i - 1 && points[i][0] - points[j + 1][0] >= window(points[i][0])) j++;
    const grown = points[i][below] - points[j][below];
    if (grown > 0) {
      xs.push(points[i][0]);
      ys.push((points[i][above] - points[j][above]) / grown);
    }
  }
  return { xs, ys };
}

// --- charts ----------------------------------------------------------------------------------

function draw(parent, name, attributes, text) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return parent.appendChild(element);
}

function niceStep(span, most) {
  const rough = span / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((step) => step * power >= rough);
}

// Pairs of a value and what stands beside its line.
function ticks(low, high, logarithmic) {
  const found = [];
  if (logarithmic) {
    for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) {
      found.push(...[1, 2, 5].map((step) => [step * power, short(step * power)]));
    }
    return found.filter(([value]) => value >= low && value <= high);
  }
  const step = niceStep(high - low, 5), digits = Math.max(0, -Math.floor(Math.log10(step)));
  const told = (value) => (high >= 1000 ? short(value) : digits > 5 ? value.toExponential(1) : value.toFixed(digits));
  for (let k = Math.ceil(low / step); k * step <= high; k++) found.push([k * step, told(k * step)]);
  return found;
}

const SPANS = [0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200];

function timeTicks(end) {
  const step = SPANS.find((seconds) => end / seconds <= 5) || niceStep(end, 5);
  const [unit, name] = step < 20 ? [1, 's'] : step < 1800 ? [60, 'min'] : [3600, 'h'];
  const told = (t) => (unit === 60 && step < 60 ? `${Math.floor(t / 60)}:${`${t % 60}`.padStart(2, '0')}` : `${t / unit} ${name}`);
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, k) => [k * step, k ? told(k * step) : '0']);
}

function quantile(values, share) {
  return values.slice().sort((a, b) => a - b)[Math.floor(share * (values.length - 1))];
}

// Where values are drawn: by logarithms if they differ much.  What only a few have, and most of all
// the steep first moments, leaves the chart at its edge, so that the rest can be seen.
function valueScale({ line, raw, area }, bottom, top) {
  const now = line.ys[line.ys.length - 1];
  let low = area ? 0 : Math.min(now, quantile(raw.ys, 0.02), ...line.ys);
  let high = area ? Math.max(...line.ys) : Math.max(now, quantile(raw.ys, 0.97), quantile(line.ys, 0.95));
  const logarithmic = !area && low > 0 && high / low > 8;
  const room = logarithmic ? 0 : (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  if (!area) low -= room;
  high += room;
  const scale = logarithmic ? Math.log : Number;
  const y = (value) => {
    const share = (scale(logarithmic ? Math.max(value, low) : value) - scale(low)) / (scale(high) - scale(low));
    return bottom - share * (bottom - top);
  };
  return { y, values: ticks(low, high, logarithmic) };
}

// A line over time, with its raw values behind it, or with the area below it; the point next to
// the pointer, else the last one, says its value.
function plot(svg, chart, pointer) {
  const { line, raw, area, end, format } = chart;
  const width = svg.clientWidth, height = Number(svg.getAttribute('height'));
  if (width < 120) return; // it is not laid out
  svg.replaceChildren();
  if (!line.ys.some(Boolean)) {
    draw(svg, 'text', { x: 0, y: 16 }, svg.getAttribute('aria-label'));
    return;
  }
  let at = line.ys.length - 1;
  const left = 44, right = width - 14 - 8 * format(line.ys[at]).length, bottom = height - 24, top = 10;
  const x = (seconds) => left + (seconds / end) * (right - left);
  const { y, values } = valueScale(chart, bottom, top);
  const path = ({ xs, ys }) => xs.map((t, i) => `${i ? 'L' : 'M'}${x(t).toFixed(1)} ${y(ys[i]).toFixed(1)}`).join('');
  if (area) {
    const [first, final] = [line.xs[0], line.xs[at]].map((t) => x(t).toFixed(1));
    draw(svg, 'path', { class: 'area', d: `${path(line)}L${final} ${bottom}L${first} ${bottom}Z` });
  }
  for (const [value, text] of values) {
    draw(svg, 'line', { class: 'rule', x1: left, x2: right, y1: y(value), y2: y(value) });
    draw(svg, 'text', { x: left - 10, y: y(value) + 4, 'text-anchor': 'end' }, text);
  }
  for (const [seconds, text] of timeTicks(end)) {
    draw(svg, 'text', { x: x(seconds), y: height - 4, 'text-anchor': 'middle' }, text);
  }
  // A picture in the picture: it cuts off what is above and below.
  const inner = draw(svg, 'svg', { y: top, width, height: bottom - top + 1, viewBox: `0 ${top} ${width} ${bottom - top + 1}` });
  if (raw) draw(inner, 'path', { class: 'raw', d: path(raw) });
  draw(inner, 'path', { class: 'line', d: path(line) });
  if (pointer !== undefined) {
    const away = (i) => Math.abs(x(line.xs[i]) - pointer);
    at = line.xs.reduce((best, _, i) => (away(i) < away(best) ? i : best), 0);
    draw(svg, 'line', { class: 'rule', x1: x(line.xs[at]), x2: x(line.xs[at]), y1: top, y2: bottom });
  }
  const [px, py] = [x(line.xs[at]), Math.max(top, y(line.ys[at]))];
  draw(svg, 'circle', { class: 'dot', cx: px, cy: py, r: 5 });
  draw(svg, 'text', { class: 'label', x: px + 10, y: py + (pointer === undefined ? 4 : -8) },
    pointer === undefined ? format(line.ys[at]) : `${format(line.ys[at])} at ${duration(line.xs[at])}`);
}

// One column for each age; ages that few pushes have are gathered in the last column.
function columns(svg, staleness) {
  const width = svg.clientWidth, height = Number(svg.getAttribute('height'));
  if (width < 120) return;
  svg.replaceChildren();
  const all = staleness.reduce((sum, [, count]) => sum + count, 0);
  if (!all) return;
  let seen = 0;
  const usual = staleness.find(([, count]) => (seen += count) >= 0.99 * all)[0];
  const first = usual > 15 ? staleness[0][0] : 0;
  const size = Math.max(1, Math.ceil((usual - first + 1) / 12));
  const bins = Array(Math.max(4, Math.floor((usual - first) / size) + 1)).fill(0);
  let more = 0;
  for (const [age, count] of staleness) {
    const bin = Math.floor((age - first) / size);
    if (bin < bins.length) bins[bin] += count;
    else more += count;
  }
  if (more) bins.push(more);
  const slot = width / bins.length, bottom = height - 24, peak = Math.max(...bins);
  draw(svg, 'line', { class: 'rule', x1: 0, x2: width, y1: bottom + 0.5, y2: bottom + 0.5 });
  bins.forEach((count, i) => {
    const tall = count ? Math.max(1, (count / peak) * (bottom - 22)) : 0;
    const middle = (i + 0.5) * slot, bar = Math.min(slot - 3, 44);
    const from = first + i * size, overflow = more && i === bins.length - 1;
    draw(svg, 'rect', { class: 'column', x: middle - bar / 2, y: bottom - tall, width: bar, height: tall, rx: 2 });
    const share = (100 * count) / all;
    if (count && slot > 28) {
      draw(svg, 'text', { x: middle, y: bottom - tall - 5, 'text-anchor': 'middle' }, share < 1 ? '<1%' : `${Math.round(share)}%`);
    }
    draw(svg, 'text', { x: middle, y: height - 6, 'text-anchor': 'middle' }, overflow ? `${from}+` : `${from}`);
  });
}

// --- the parts of the page -------------------------------------------------------------------

function showCourse(status, { points, over, seconds, total }, rate) {
  const share = total ? Math.min(1, status.examples / total) : 0;
  $('bar').hidden = $('share').hidden = !total;
  write('share', `${Math.floor(100 * share)}%`);
  write('rows', total ? `${whole(status.examples)} of ${whole(total)} examples` : `${whole(status.examples)} examples`);
  $('bar').setAttribute('aria-valuenow', Math.floor(100 * share));
  $('bar').firstElementChild.style.width = `${100 * share}%`;
  const left = !over && total && rate > 0 && seconds > 3 ? (total - status.examples) / rate : 0;
  const after = `${over ? 'took' : 'running for'} ${duration(seconds)}`;
  write('left', left > 1 ? `${after}, about ${duration(Math.ceil(left))} left` : after);
  const state = over ? 'Finished' : points.length > 2 ? 'Training' : 'sparkdist';
  document.title = total ? `${Math.floor(100 * share)}% ${state}` : state;
}

function showFigures(status, { points, joined, over, seconds }, means, rates) {
  const now = means.ys[means.ys.length - 1], rate = rates.ys[rates.ys.length - 1] || 0;
  write('f-loss', now === undefined ? '–' : loss(now));
  write('f-loss-note', now === undefined ? 'none came so far' : `mean over the last ${duration(seconds / 10)}`);
  write('f-rate', many(over ? status.examples / points[points.length - 1][0] : rate));
  write('f-rate-note', over ? 'over the whole run' : 'just now');
  write('f-version', many(status.version));
  write('f-version-note', 'updates so far');
  const all = status.staleness.reduce((sum, [, count]) => sum + count, 0);
  const ages = status.staleness.reduce((sum, [age, count]) => sum + age * count, 0);
  const most = status.staleness.length ? status.staleness[status.staleness.length - 1][0] : 0;
  write('f-stale', all ? (ages / all).toFixed(2) : '–');
  write('f-stale-note', all ? `at most ${whole(most)}` : 'no update yet');
  const working = status.workers.filter((worker) => !worker.left).length;
  write('f-workers', `${whole(working)}`);
  write('f-workers-note', `at work; ${whole(joined)} of ${whole(status.n_workers)} joined`);
}

function showCharts(status, { points, seconds }, means, raw, rates) {
  const start = means.ys[0], now = means.ys[means.ys.length - 1];
  const parts = [
    ['loss', { line: means, raw, end: seconds, format: loss },
      now === undefined ? 'No losses came so far.' : `Loss over ${duration(seconds)}: from ${loss(start)} to ${loss(now)}, lowest ${loss(Math.min(...means.ys))}.`],
    ['rate', { line: rates, area: true, end: seconds, format: many },
      !status.examples ? 'No examples came so far.' : `Examples a second over ${duration(seconds)}: ${whole(rates.ys[rates.ys.length - 1] || 0)} now, at most ${whole(Math.max(0, ...rates.ys))}.`],
  ];
  for (const [id, chart, text] of parts) {
    $(id).setAttribute('aria-label', text);
    const svg = $(id);
    svg.onpointermove = (event) => plot(svg, chart, event.clientX - svg.getBoundingClientRect().left);
    svg.onpointerleave = () => plot(svg, chart);
    if (!svg.matches(':hover')) plot(svg, chart);
  }
  $('stale').setAttribute('aria-label', 'Pushes by staleness: '
    + (status.staleness.slice(0, 12).map(([age, count]) => `${age}: ${whole(count)}`).join(', ') || 'none yet') + '.');
  columns($('stale'), status.staleness);
}

const FATES = {
  received: 'Received', applied: 'Applied', kept: 'Kept for the open round', duplicate: 'Duplicate',
  duplicate_other_bytes: 'Duplicate, other bytes', dropped: 'Dropped: round closed', skipped: 'Skipped: not finite',
  ahead: 'Sent back: ahead', stale: 'Sent back: stale', rejected: 'Rejected', rejected_misfit: 'Rejected: misfit',
  rejected_not_finite: 'Rejected: not finite', rejected_failed: 'Rejected: descent failed', rejected_not_durable: 'Rejected: not durable',
};

function showList(id, rows) {
  const list = $(id);
  while (list.children.length > rows.length) list.lastElementChild.remove();
  rows.forEach(([name, value, bad], i) => {
    const row = list.children[i] || list.appendChild(document.createElement('div'));
    if (!row.children.length) row.append(document.createElement('dt'), document.createElement('dd'));
    write(row.children[0], name);
    write(row.children[1], value);
    row.className = bad ? 'bad' : '';
  });
}

function showBooks(status) {
  const counts = status.counts;
  const rejected = Object.keys(counts).some((name) => name.startsWith('rejected') && counts[name]);
  const always = ['received', 'applied', 'duplicate', ...(rejected ? [] : ['rejected'])];
  showList('fates', Object.keys(FATES)
    .filter((name) => always.includes(name) || counts[name])
    .map((name) => [FATES[name], whole(counts[name] || 0), name.startsWith('rejected') && counts[name]]));
  const behind = status.version - status.durable_version;
  const saved = status.durable_version >= 0;
  showList('facts', [
    ['Checkpoint', saved ? `version ${whole(status.durable_version)}` : 'none'],
    ...(saved ? [['Updates since', whole(behind)]] : []),
    ['Failed checkpoints', whole(status.checkpoint_failures), status.checkpoint_failures > 0],
    ['Consistency', status.consistency],
    ['Updater', status.updater],
    ['Parameters', `${whole(status.size)} in ${status.dtype === '<f4' ? 'float32' : 'float64'}`],
    ...(restarted ? [['Started again', `at ${restarted}`]] : []),
  ]);
  write('about', `Run ${status.run}, server ${status.generation}`);
}

function showWorkers(status) {
  const fastest = Math.max(0, ...status.workers.map((worker) => worker.clock));
  let workers = status.workers;
  if (workers.length > SHOWN) {
    const slowest = (worker) => (worker.left ? Infinity : worker.clock);
    workers = workers.slice().sort((a, b) => slowest(a) - slowest(b)).slice(0, SHOWN)
      .sort((a, b) => a.partition - b.partition);
  }
  const most = Math.max(10, fastest / 20, ...workers.map((worker) => fastest - worker.clock));
  write('workers-note', status.workers.length > SHOWN
    ? `the ${SHOWN} slowest of ${whole(status.workers.length)}` : 'each is a partition of the data');
  const body = $('workers');
  while (body.rows.length > workers.length) body.deleteRow(-1);
  workers.forEach((worker, i) => {
    const row = body.rows[i] || newRow(body);
    const lag = fastest - worker.clock;
    const waits = status.open_round.includes(worker.partition);
    const quiet = !worker.left && worker.seconds_ago > QUIET;
    write(row.cells[0], `${worker.partition}`);
    write(row.cells[1], whole(worker.clock));
    row.cells[2].firstElementChild.style.width = `${Math.round((60 * lag) / most)}%`;
    write(row.cells[2].lastElementChild, whole(lag));
    write(row.cells[3], worker.seconds_ago < 1 ? 'now' : `${duration(worker.seconds_ago)} ago`);
    write(row.cells[4], worker.left ? 'done' : waits ? 'waiting' : quiet ? 'quiet' : 'at work');
    row.className = worker.left ? 'left' : quiet ? 'quiet' : '';
  });
}

function newRow(body) {
  const row = body.insertRow();
  row.appendChild(document.createElement('th')).scope = 'row';
  for (let i = 0; i < 4; i++) row.insertCell();
  row.cells[2].className = 'lag';
  row.cells[2].append(document.createElement('i'), document.createElement('span'));
  return row;
}

function tell(status, { joined, over }) {
  const state = !status.run ? 'Waiting for a run' : !joined ? 'Waiting for workers' : over ? 'Finished' : 'Training';
  if (status.ready) say(state, state === 'Training' ? 'live' : 'calm');
  else say(state, 'alarm', 'The server is not ready: its checkpoints cannot be written, or it is ending.');
}

function show(status) {
  const found = read(status);
  const { points, seconds } = found;
  const means = ratios(points, 3, 4, (t) => t / 10), rates = ratios(points, 2, 0, () => Math.max(seconds / 30, 1));
  const steady = ratios(points, 2, 0, (t) => t / 3).ys;
  showCourse(status, found, steady[steady.length - 1]);
  if (document.hidden) return;
  showFigures(status, found, means, rates);
  showCharts(status, found, means, ratios(points, 3, 4, () => 0), rates);
  showBooks(status);
  showWorkers(status);
}

// --- asking ----------------------------------------------------------------------------------

// The token comes behind the # of the address, which no browser sends to anybody.  It is taken
// out of the address bar, and kept for this tab only.
function takeToken(text) {
  const found = /#.*\btoken=([\w-]+)/.exec(text) || /^\s*([\w-]+)\s*$/.exec(text);
  if (!found) return false;
  token = found[1];
  try { sessionStorage.setItem(KEY, token); } catch { /* for this page only */ }
  return true;
}

function openDoor(notice) {
  token = '';
  try { sessionStorage.removeItem(KEY); } catch { /* was not kept */ }
  $('main').hidden = $('about').hidden = true;
  $('door').hidden = false;
  say('Token needed', 'calm', notice);
  $('token').value = '';
  $('token').focus();
}

function lose(why) {
  failures += 1;
  if (failures !== 2) return; // one alone is not worth a word, and more are no news
  if (last && read(last).over) {
    say('Ended', 'calm', 'The run is over and its server has ended. These are the last numbers that came.');
  } else {
    say('No answer', 'alarm', `${why} since ${clock()}. It may be starting again, or have ended; this page goes on asking.`);
  }
}

async function ask() {
  if (busy || !token) return;
  clearTimeout(timer);
  busy = true;
  let status = null;
  try {
    const answer = await fetch('v1/status', {
      headers: { Authorization: `Bearer ${token}` }, cache: 'no-store', credentials: 'omit',
      redirect: 'error', referrerPolicy: 'no-referrer', signal: AbortSignal.timeout(5000),
    });
    if (answer.ok) status = await answer.json();
    else if (answer.status === 401) openDoor('This token is not the one of the server that is here now.');
    else lose(`The server answers ${answer.status}`);
  } catch {
    lose('No answer from the server');
  }
  busy = false;
  if (status) {
    if (last && last.run === status.run && last.generation !== status.generation) restarted = clock();
    failures = 0;
    last = status;
    $('main').hidden = $('about').hidden = false;
    $('door').hidden = true;
    tell(status, read(status));
    show(status);
  }
  timer = setTimeout(ask, document.hidden ? 15000 : Math.min(1000 * 2 ** Math.max(0, failures - 1), 10000));
}

function begin() {
  if (takeToken(location.hash)) history.replaceState(null, '', location.pathname);
  else if (!token) {
    try { token = sessionStorage.getItem(KEY) || ''; } catch { /* was not kept */ }
  }
  if (token) ask();
  else openDoor('');
}

$('door').addEventListener('submit', (event) => {
  event.preventDefault();
  if (takeToken($('token').value)) ask();
});
addEventListener('hashchange', begin);
document.addEventListener('visibilitychange', () => document.hidden || ask());
new ResizeObserver(() => last && show(last)).observe($('main'));
begin();
