// The jobs that wait or run, each with a button that ends it.

import { cancelJob } from './api.js';
import { byId, keyed, make, setText } from './dom.js';
import * as format from './format.js';

const cancelling = new Set();  // ids whose end was asked for

function createRow(job) {
  const button = make('button', { type: 'button', className: 'quiet' }, 'Cancel');
  button.setAttribute('aria-label', `Cancel job ${job.id}`);
  button.addEventListener('click', () => cancel(job.id, button));
  const generated = make('td', { className: 'generated' }, make('span'),
    make('progress'));
  return make('tr', {}, make('th', { scope: 'row' }, String(job.id)), make('td'), make('td'),
    generated, make('td'), make('td', {}, button));
}

function updateRow(row, job) {
  const [, state, prompt, generated, age, action] = row.children;
  row.dataset.state = job.state;
  setText(state, job.state);
  setText(prompt, format.count(job.prompt_tokens));
  const counted = `${format.count(job.completion_tokens)} / ${format.count(job.max_tokens)}`;
  setText(generated.firstElementChild, counted);
  const bar = generated.lastElementChild;
  bar.max = Math.max(job.max_tokens, 1);  // a job that scores generates nothing
  bar.value = job.completion_tokens;
  bar.setAttribute('aria-label', `Job ${job.id}: generated ${counted}`);
  setText(age, format.age(job.age_s));
  const button = action.firstElementChild;
  button.disabled = cancelling.has(String(job.id));
}

async function cancel(id, button) {
  cancelling.add(String(id));
  button.disabled = true;
  setText(button, 'Cancelling');
  try {
    await cancelJob(id);
  } catch (error) {
    // 404: it ended by itself; the next data will not have it any more.
    if (error.status === 404) return;
    cancelling.delete(String(id));
    button.disabled = false;
    setText(button, 'Try again');
    button.title = error.message;
  }
}

export function showJobs(data) {
  const empty = byId('jobs-empty');
  const jobs = data ? data.jobs.listed : [];
  keyed(byId('jobs'), jobs, (job) => job.id, createRow, updateRow);
  const here = new Set(jobs.map((job) => String(job.id)));
  for (const id of cancelling) if (!here.has(id)) cancelling.delete(id);
  empty.hidden = jobs.length > 0;
  setText(empty, data ? 'No job is queued or running.' : 'Waiting for the coordinator');
  if (!data) return setText(byId('jobs-count'), '');
  const { running, queued } = data.jobs;
  const left = running + queued - jobs.length;
  const more = left > 0 ? `, ${format.count(left)} not shown` : '';
  setText(byId('jobs-count'), `${format.count(running)} running, ${format.count(queued)} queued${more}`);
}
