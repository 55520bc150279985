// A conversation with the model, over the same API that everybody else uses. It lives in this page
// only.

import { chat, getJson } from './api.js';
import { byId, make, setText } from './dom.js';
import * as format from './format.js';

const log = byId('log');
const form = byId('ask');
const prompt = byId('prompt');
const send = byId('send');
const newChat = byId('new-chat');

let turns = [];      // what the model is sent: thoughts are left out, as R1's template wants it
let running = null;  // the AbortController of the reply under way
let model = null;

/** Scrolls along with what comes, unless the reader has scrolled up. */
function following(change) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function addTurn(role, text) {
  byId('chat-empty').hidden = true;
  const body = make('p', { className: 'text' }, text);
  const turn = make('article', { className: `turn ${role}` },
    make('h3', {}, role === 'user' ? 'You' : 'Model'), body);
  log.append(turn);
  return { turn, body };
}

// A model begins its thought and its answer with line breaks, which are nothing to see.
function appendText(element, text) {
  element.append(element.textContent ? text : text.trimStart());
}

/** One reply as it grows. */
class Reply {
  thought = '';
  answer = '';

  constructor() {
    const { turn, body } = addTurn('assistant', '');
    this.turn = turn;
    this.body = body;
    this.summary = make('summary', {}, 'Thinking');
    this.thoughtText = make('p', { className: 'text' });
    this.details = make('details', { className: 'thought', open: true, hidden: true }, this.summary,
      this.thoughtText);
    this.note = make('p', { className: 'note turn-note', role: 'status' }, 'Waiting for the first token');
    body.before(this.details);
    turn.append(this.note);
    this.started = performance.now();
    this.first = null;
  }

  add(delta) {
    const thought = delta.reasoning_content ?? '';
    const answer = delta.content ?? '';
    if (!thought && !answer) return;
    if (this.first === null) {
      this.first = performance.now();
      setText(this.note, '');
    }
    if (thought) {
      this.thought += thought;
      this.details.hidden = false;
      appendText(this.thoughtText, thought);
    }
    if (answer) {
      if (this.thought && !this.answer) {
        setText(this.summary, `Thought for ${format.seconds((performance.now() - this.first) / 1000)}`);
      }
      this.answer += answer;
      appendText(this.body, answer);
    }
  }

  end(reason, usage) {
    if (this.thought && !this.answer) setText(this.summary, 'Thought');
    const parts = [];
    if (reason === 'length') parts.push('Cut off: the reply reached its longest length');
    if (reason === 'stopped') parts.push('Stopped');
    if (this.first !== null) parts.push(`first token after ${format.seconds((this.first - this.started) / 1000)}`);
    const tokens = usage?.completion_tokens;
    if (tokens > 1) {
      const rate = (tokens - 1) / ((performance.now() - this.first) / 1000);
      parts.push(`${format.count(tokens)} tokens`, `${format.number(rate)} tokens/s`);
    }
    setText(this.note, parts.join(' · '));
  }

  fail(message) {
    this.turn.classList.add('failed');
    this.note.setAttribute('role', 'alert');
    setText(this.note, message);
  }
}

function explain(error) {
  if (error.status === 401) return 'The API key was refused.';
  if (error.status !== undefined) return error.message;
  return 'The coordinator cannot be reached.';
}

async function ask(text) {
  following(() => addTurn('user', text));
  log.scrollTop = log.scrollHeight;
  const reply = new Reply();
  following(() => {});
  const messages = [...turns, { role: 'user', content: text }];
  running = new AbortController();
  setText(send, 'Stop');
  newChat.disabled = false;
  let reason = null;
  let usage = null;
  try {
    model ??= (await getJson('/v1/models')).data[0].id;
    for await (const chunk of chat({ model, messages }, running.signal)) {
      const choice = chunk.choices[0];
      if (choice?.delta) following(() => reply.add(choice.delta));
      reason = choice?.finish_reason ?? reason;
      usage = chunk.usage ?? usage;
    }
    following(() => reply.end(reason, usage));
  } catch (error) {
    if (running.signal.aborted) {
      following(() => reply.end('stopped', null));
    } else {
      following(() => reply.fail(explain(error)));
      model = null;
    }
  }
  // What failed before its first token is asked again as if it had not been.
  if (reply.answer) turns = [...messages, { role: 'assistant', content: reply.answer }];
  running = null;
  setText(send, 'Send');
}

function submit() {
  if (running) return;
  const text = prompt.value.trim();
  if (text === '') return prompt.focus();
  prompt.value = '';
  ask(text);
}

export function startChat() {
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    if (running) {
      running.abort();
    } else {
      submit();
    }
  });
  prompt.addEventListener('keydown', (event) => {
    // While a reply comes Enter does nothing: it must not stop it by accident.
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  newChat.addEventListener('click', () => {
    running?.abort();
    turns = [];
    for (const turn of log.querySelectorAll('.turn')) turn.remove();
    byId('chat-empty').hidden = false;
    newChat.disabled = true;
    prompt.focus();
  });
}
