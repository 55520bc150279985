// Asks the coordinator how things are, every two seconds while the page is seen, and shows it.

import { apiKey, getJson } from './api.js';
import { showBoxes } from './boxes.js';
import { startChat } from './chat.js';
import { byId, setText } from './dom.js';
import * as format from './format.js';
import { showJobs } from './jobs.js';
import { Cursor, Plot } from './plot.js';

const POLL_MS = 2000;
const LONGEST_WAIT_MS = 10000;

const cursor = new Cursor();
const plots = [
  new Plot(byId('plot-tokens'), cursor, {
    title: 'Tokens per second',
    format: format.number,
    tick: format.tick,
    least: 0.5,
    series: [
      { name: 'generated', field: 'generated_tokens_per_s' },
      { name: 'prompt', field: 'prompt_tokens_per_s' },
    ],
  }),
  new Plot(byId('plot-jobs'), cursor, {
    title: 'Jobs',
    format: format.count,
    tick: format.tick,
    least: 1,
    series: [
      { name: 'running', field: 'running_jobs' },
      { name: 'queued', field: 'queued_jobs' },
    ],
  }),
  new Plot(byId('plot-first-token'), cursor, {
    title: 'Time to first token',
    format: format.seconds,
    tick: format.secondsTick,
    least: 0.005,
    series: [
      { name: 'p50', field: 'first_token_p50_s' },
      { name: 'p99', field: 'first_token_p99_s' },
    ],
  }),
];

let data = null;    // the last answer
let failures = 0;   // since it
let timer = null;
let asking = false;

function showState(kind, text) {
  const state = byId('state');
  state.dataset.kind = kind;
  setText(state, text);
  document.body.classList.toggle('stale', kind === 'lost' && data !== null);
}

function show() {
  setText(byId('model'), data.model);
  document.title = data.model ? `${data.model} · Caravan` : 'Caravan';
  const sentence = data.state.charAt(0).toUpperCase() + data.state.slice(1);
  showState(data.serving ? 'serving' : 'waiting', data.serving ? 'Serving' : sentence);
  showBoxes(data);
  showJobs(data);
  for (const plot of plots) plot.update(data.history);
  showCursorTime();
}

function showCursorTime() {
  const ages = data?.history.age_s ?? [];
  const age = cursor.at === null ? 0 : ages[ages.length - 1 - cursor.at];
  setText(byId('plot-time'), cursor.at === null || !(age >= 1) ? 'now' : `${Math.round(age)} s ago`);
}

async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  let wait = POLL_MS;
  try {
    data = await getJson('/dashboard/data');
    failures = 0;
    byId('key-form').hidden = true;
    show();
  } catch (error) {
    if (error.status === 401) {
      wait = null;
      askForKey();
    } else {
      ++failures;
      wait = Math.min(1000 * 2 ** (failures - 1), LONGEST_WAIT_MS);
      const why = error.status === undefined ? 'The coordinator cannot be reached' : error.message;
      showState('lost', `${why}; trying again`);
    }
  }
  asking = false;
  // Without a key there is nothing to show yet.
  byId('main').hidden = wait === null && data === null;
  if (wait !== null) timer = setTimeout(poll, wait);
}

function askForKey() {
  const form = byId('key-form');
  const note = byId('key-note');
  setText(note, apiKey.get() ? 'That key was refused.' : 'Kept in this tab only.');
  apiKey.forget();
  showState('waiting', 'An API key is needed');
  if (!form.hidden) return;
  form.hidden = false;
  byId('key').focus();
}

byId('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  apiKey.set(byId('key').value.trim());
  byId('key').value = '';
  poll();
});
document.addEventListener('visibilitychange', poll);
window.addEventListener('online', poll);
cursor.onMove(showCursorTime);

// Nothing is shown before the first answer, so that nothing moves when it comes.
showBoxes(null);
showJobs(null);
startChat();
poll();
