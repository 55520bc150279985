// Usage: node openai_client.mjs OPENAI_DIRECTORY GOLDENS_DIRECTORY CHECK URL
// Talks to the coordinator at URL by OpenAI's own client. Exit code 0: CHECK holds.

import assert from 'node:assert/strict';
import { File } from 'node:buffer';
import { readFileSync } from 'node:fs';

const [directory, goldens, check, url] = process.argv.slice(2);
globalThis.File ??= File; // Node.js 18 has it, but not there, where the client looks for it
const { default: OpenAI } = await import(`${directory}/index.mjs`);

const model = 'tiny-r1';
// Of log-probabilities in float32, summed up in another order: ten times the largest difference.
const tolerance = 1.5e-4;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'sk-one', maxRetries: 0 });

const goldenLines = (name) =>
  readFileSync(`${goldens}/${name}`, 'utf8').trim().split('\n').map((line) => JSON.parse(line));

/** The metric's value; `name` is with its labels. */
async function metric(name) {
  const headers = { Authorization: 'Bearer sk-one' };
  const text = await (await fetch(`${url}/metrics`, { headers })).text();
  const line = text.split('\n').find((each) => each.startsWith(`${name} `));
  return line === undefined ? 0 : Number(line.slice(name.length + 1));
}

/** Waits for what has no event to wait on. */
async function until(condition) {
  const deadline = Date.now() + 60_000;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, `did not come to be: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

const running = () => metric('caravan_jobs{priority="interactive",state="running"}');
const queued = () => metric('caravan_jobs{priority="interactive",state="queued"}');

/** The tensors of a safetensors file that are wanted, each as a typed array. */
function readTensors(name, wanted) {
  const bytes = readFileSync(`${goldens}/${name}`);
  const headerBytes = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, 8 + headerBytes).toString());
  const types = { F32: Float32Array, I32: Int32Array };
  return wanted.map((tensor) => {
    const { dtype, data_offsets: [begin, end] } = header[tensor];
    return new types[dtype](new Uint8Array(bytes.subarray(8 + headerBytes + begin, 8 + headerBytes + end)).buffer);
  });
}

/** log softmax of one row, at one place. */
function logProbability(logits, id) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const sum = logits.reduce((all, each) => all + Math.exp(each - most), 0);
  return logits[id] - most - Math.log(sum);
}

function assertNear(actual, expected, what) {
  assert.ok(Math.abs(actual - expected) <= tolerance, `${what}: ${actual} instead of ${expected}`);
}

const jsonl = (name, text) => OpenAI.toFile(Buffer.from(text), name);

/** A line of a batch. */
const line = (id, body) =>
  JSON.stringify({ custom_id: id, method: 'POST', url: '/v1/chat/completions', body: { model, ...body } });

async function submit(lines, more) {
  const file = await client.files.create(
    { file: await jsonl('in.jsonl', lines.map((each) => `${each}\n`).join('')), purpose: 'batch' });
  return client.batches.create(
    { input_file_id: file.id, endpoint: '/v1/chat/completions', completion_window: '24h', ...more });
}

/** The batch as it is when nothing of it is left to do. */
async function ended({ id }) {
  let batch;
  await until(async () => {
    batch = await client.batches.retrieve(id);
    return ['completed', 'failed', 'cancelled'].includes(batch.status);
  });
  return batch;
}

const lined = async (fileId) =>
  (await (await client.files.content(fileId)).text()).trim().split('\n').map((each) => JSON.parse(each));

/** What a stream's chunks come to. */
async function collect(stream) {
  const all = { thought: '', answer: '', finishReason: null, usage: undefined, chunks: 0 };
  for await (const chunk of stream) {
    all.chunks += 1;
    all.usage = chunk.usage;
    for (const choice of chunk.choices) {
      assert.equal(all.finishReason, null, 'nothing comes behind the end');
      all.thought += choice.delta.reasoning_content ?? '';
      all.answer += choice.delta.content ?? '';
      all.finishReason = choice.finish_reason;
    }
  }
  return all;
}

const checks = {
  async chat() {
    for (const golden of goldenLines('tiny-r1-replies.jsonl').slice(0, 12)) {
      const request = {
        model,
        messages: [{ role: 'user', content: golden.question }],
        temperature: 0,
      };
      const whole = await client.chat.completions.create(request);
      const { message, finish_reason: finishReason } = whole.choices[0];
      assert.equal(`<think>${message.reasoning_content}</think>${message.content}`, golden.reply);
      assert.equal(message.role, 'assistant');
      assert.equal(finishReason, 'stop');
      assert.equal(whole.object, 'chat.completion');
      assert.equal(whole.usage.prompt_tokens, golden.prompt_ids.length);
      assert.equal(whole.usage.completion_tokens, golden.reply_ids.length);

      const streamed = await collect(await client.chat.completions.create(
        { ...request, stream: true, stream_options: { include_usage: true } }));
      assert.equal(streamed.thought, message.reasoning_content);
      assert.equal(streamed.answer, message.content);
      assert.equal(streamed.finishReason, 'stop');
      assert.equal(streamed.usage.total_tokens, whole.usage.total_tokens);
      assert.ok(streamed.chunks > 10, 'it comes token by token');
    }
    // The client's own way to put chunks together.
    const runner = client.chat.completions.stream(
      { model, messages: [{ role: 'user', content: 'What is 75 + 4050?' }], temperature: 0 });
    assert.match(await runner.finalContent(), /75 \+ 4050 = 4125$/);
  },

  async choices() {
    const request = {
      model,
      messages: [{ role: 'user', content: 'What is 75 + 4050?' }],
      n: 3,
      seed: 7,
      temperature: 5,
      max_completion_tokens: 20,
      logprobs: true,
      top_logprobs: 3,
    };
    const first = await client.chat.completions.create(request);
    const again = await client.chat.completions.create(request);
    assert.deepEqual(first.choices, again.choices, 'a seed makes it repeatable');
    assert.deepEqual(first.choices.map((choice) => choice.index), [0, 1, 2]);
    const replies = first.choices.map((choice) =>
      `${choice.message.reasoning_content}|${choice.message.content}`);
    assert.equal(new Set(replies).size, 3, 'choices differ');
    for (const { logprobs } of first.choices) {
      const tokens = [...logprobs.reasoning_content, ...logprobs.content];
      assert.ok(tokens.length <= 20);
      for (const token of tokens) {
        assert.equal(token.top_logprobs.length, 3);
        assert.ok(token.logprob <= token.top_logprobs[0].logprob);
        assert.ok(token.top_logprobs[0].logprob >= token.top_logprobs[2].logprob);
      }
    }
    const stopped = await client.chat.completions.create(
      { ...request, n: 1, logprobs: false, top_logprobs: undefined, temperature: 0,
        max_completion_tokens: undefined, stop: [' = '] });
    assert.match(stopped.choices[0].message.content, /75 \+ 4050$/);
    assert.equal(stopped.choices[0].finish_reason, 'stop');
    const biased = await client.completions.create(
      { model, prompt: 'What', max_tokens: 5, temperature: 0, logit_bias: { 297: 100 }, logprobs: 1 });
    assert.equal(new Set(biased.choices[0].logprobs.tokens).size, 1);
  },

  async completions() {
    const { prompt_ids: prompt, reply_ids: reply, reply: text } = goldenLines('tiny-r1-replies.jsonl')[1];
    const request = { model, prompt, temperature: 0, max_tokens: 100, logprobs: 2 };
    const whole = await client.completions.create(request);
    const [choice] = whole.choices;
    assert.equal(choice.text, text);
    assert.equal(choice.finish_reason, 'stop');
    assert.equal(choice.logprobs.tokens.length, reply.length);
    assert.equal(choice.logprobs.tokens.slice(0, -1).join(''), text);
    choice.logprobs.token_logprobs.forEach((logprob, i) => {
      const top = choice.logprobs.top_logprobs[i];
      assert.equal(Object.keys(top).length, 2);
      assert.equal(logprob, Math.max(...Object.values(top)), 'greedy');
    });
    choice.logprobs.tokens.slice(0, -1).forEach((token, i) => {
      const at = choice.logprobs.text_offset[i];
      assert.equal(text.slice(at, at + token.length), token);
    });
    let streamed = '';
    const tokens = [];
    for await (const chunk of await client.completions.create({ ...request, stream: true })) {
      streamed += chunk.choices[0].text;
      tokens.push(...(chunk.choices[0].logprobs?.tokens ?? []));
    }
    assert.equal(streamed, text);
    assert.deepEqual(tokens, choice.logprobs.tokens);
    // Several prompts, in their order.
    const several = await client.completions.create(
      { model, prompt: ['What is', 'What is', 'Calculate'], n: 2, temperature: 0, max_tokens: 3, echo: true });
    assert.deepEqual(several.choices.map((each) => each.index), [0, 1, 2, 3, 4, 5]);
    assert.ok(several.choices.slice(0, 4).every((each) => each.text.startsWith('What is')));
    assert.ok(several.choices.slice(4).every((each) => each.text.startsWith('Calculate')));
  },

  // As lm-eval's loglikelihood: prompts as tokens, and of the reply one token that is not looked at.
  async echo() {
    for (const i of [0, 1, 2, 3, 4]) {
      const [ids, logits] = readTensors('tiny-r1-golden.safetensors', [`ids_${i}`, `logits_${i}`]);
      const vocabulary = logits.length / ids.length;
      for (const length of [0, 1]) {
        const { choices: [{ logprobs }] } = await client.completions.create(
          { model, prompt: [[...ids]], max_tokens: length, echo: true, logprobs: 1, temperature: 0, seed: 1234 });
        assert.equal(logprobs.token_logprobs.length, ids.length + length);
        assert.equal(logprobs.token_logprobs[0], null);
        for (let at = 1; at < ids.length; at += 1) {
          const row = logits.subarray((at - 1) * vocabulary, at * vocabulary);
          const expected = logProbability(row, ids[at]);
          assertNear(logprobs.token_logprobs[at], expected, `list ${i}, token ${at}`);
          const best = row.reduce((most, each, id) => (each > row[most] ? id : most), 0);
          const greedy = logprobs.token_logprobs[at] === Math.max(...Object.values(logprobs.top_logprobs[at]));
          assert.equal(greedy, ids[at] === best, `list ${i}, token ${at}`);
        }
      }
    }
  },

  async fourWayQuestions() {
    const questions = goldenLines('tiny-r1-mmlu.jsonl').filter((_, i) => i % 25 === 0);
    assert.equal(questions.length, 20);
    for (const { prompt, answer, logprobs: expected } of questions) {
      const letters = [' A', ' B', ' C', ' D'];
      const { choices } = await client.completions.create(
        { model, prompt: letters.map((letter) => prompt + letter), max_tokens: 0, echo: true, logprobs: 0 });
      const actual = choices.map(({ logprobs }, i) => {
        assert.equal(logprobs.tokens.at(-1), letters[i]);
        return logprobs.token_logprobs.at(-1);
      });
      actual.forEach((each, i) => assertNear(each, expected[i], `${prompt}${letters[i]}`));
      const next = await client.completions.create({ model, prompt, max_tokens: 1, logprobs: 4, temperature: 0 });
      assert.equal(next.choices[0].text, ` ${answer}`);
      assertNear(next.choices[0].logprobs.token_logprobs[0], Math.max(...expected), prompt);
    }
  },

  async models() {
    const { data } = await client.models.list();
    assert.deepEqual(data.map((each) => [each.id, each.object]), [[model, 'model']]);
    assert.equal((await client.models.retrieve(model)).id, model);
  },

  async errors() {
    const messages = [{ role: 'user', content: 'hi' }];
    const fails = (promise, type, wanted) => assert.rejects(promise, (error) => {
      assert.ok(error instanceof type, `${error.constructor.name}: ${error.message}`);
      for (const [name, value] of Object.entries(wanted)) assert.equal(error[name], value);
      return true;
    });
    const chat = (fields, from = client) => from.chat.completions.create({ model, messages, ...fields });
    await fails(chat({ temperature: -1 }), OpenAI.BadRequestError,
      { status: 400, param: 'temperature', type: 'invalid_request_error' });
    await fails(chat({ messages: [{ role: 'wizard', content: 'hi' }] }), OpenAI.BadRequestError,
      { param: 'messages[0].role' });
    await fails(client.completions.create({ model, prompt: Array(5000).fill(5) }), OpenAI.BadRequestError,
      { param: 'prompt', code: 'context_length_exceeded' });
    await fails(chat({ model: 'gpt-4' }), OpenAI.NotFoundError,
      { status: 404, param: 'model', code: 'model_not_found' });
    await fails(client.models.retrieve('gpt-4'), OpenAI.NotFoundError, { code: 'model_not_found' });
    await fails(client.embeddings.create({ model, input: 'hi' }), OpenAI.NotFoundError, { code: 'not_found' });
    await fails(chat({}, client.withOptions({ apiKey: 'sk-wrong' })), OpenAI.AuthenticationError,
      { status: 401, code: 'invalid_api_key' });
    // It would be asked again after any other 5xx.
    await fails(chat({ response_format: { type: 'json_object' } }, client.withOptions({ maxRetries: 5 })),
      OpenAI.InternalServerError, { status: 501, param: 'response_format' });
    assert.equal(await running() + await queued(), 0);
  },

  // The cluster's KV cache holds 64 prompts of one block, so of 1024 jobs most wait.
  async queue() {
    const many = await client.completions.create(
      { model, prompt: Array(8).fill('a'), n: 128, max_tokens: 2000, ignore_eos: true, stream: true });
    const request = { model, prompt: 'a', n: 128, max_tokens: 1 };
    await assert.rejects(client.completions.create(request), (error) => {
      assert.ok(error instanceof OpenAI.RateLimitError, error.message);
      assert.equal(error.type, 'rate_limit_error');
      assert.equal(error.headers.get('retry-after'), '1');
      return true;
    });
    many.controller.abort();
    await until(async () => await running() + await queued() === 0);
    // A client that tries again gets in.
    assert.equal((await client.completions.create(request)).choices.length, 128);
  },

  async abort() {
    const request = {
      model,
      messages: [{ role: 'user', content: 'hi' }],
      n: 2,
      temperature: 100,
      ignore_eos: true,
    };
    const stream = await client.chat.completions.create({ ...request, stream: true });
    for await (const chunk of stream) {
      assert.equal(chunk.object, 'chat.completion.chunk');
      assert.equal(await running(), 2);
      break; // ends the request
    }
    await until(async () => await running() === 0);
    assert.equal(await metric('caravan_jobs_total{outcome="cancelled",priority="interactive"}'), 2);

    const abort = new AbortController();
    const whole = client.chat.completions.create(request, { signal: abort.signal });
    await until(async () => await running() === 2);
    abort.abort();
    await assert.rejects(whole, OpenAI.APIUserAbortError);
    await until(async () => await running() === 0);
    assert.equal(await metric('caravan_jobs_total{outcome="cancelled",priority="interactive"}'), 4);
  },

  async files() {
    const content = '{"custom_id": "ä"}\n';
    const file = await client.files.create({ file: await jsonl('in.jsonl', content), purpose: 'batch' });
    assert.equal(file.filename, 'in.jsonl');
    assert.equal(file.bytes, Buffer.byteLength(content));
    assert.equal((await client.files.retrieve(file.id)).id, file.id);
    assert.equal(await (await client.files.content(file.id)).text(), content);
    const ids = [file.id];
    for (let i = 0; i < 4; i += 1) {
      ids.unshift((await client.files.create({ file: await jsonl(`${i}.jsonl`, 'x'), purpose: 'batch' })).id);
    }
    const listed = [];
    for await (const each of client.files.list({ limit: 2 })) listed.push(each.id); // page after page
    assert.deepEqual(listed, ids);
    assert.equal((await client.files.delete(file.id)).deleted, true);
    await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);
    await assert.rejects(client.files.create({ file: await jsonl('in.jsonl', 'x'), purpose: 'fine-tune' }),
      (error) => error instanceof OpenAI.BadRequestError && error.param === 'purpose');
  },

  async batches() {
    const golden = goldenLines('tiny-r1-replies.jsonl').slice(0, 8);
    const lines = golden.map(({ question }, i) => line(`line-${i}`, {
      messages: [{ role: 'user', content: question }],
      temperature: 0,
    }));
    lines.push(line('too-hot', { messages: [{ role: 'user', content: 'hi' }], temperature: -1 }));
    const created = await submit(lines, { metadata: { night: '1' } });
    assert.deepEqual(created.metadata, { night: '1' });
    const batch = await ended(created);
    assert.equal(batch.status, 'completed', JSON.stringify(batch));
    assert.deepEqual(batch.request_counts, { total: 9, completed: 8, failed: 1 });
    const replies = await lined(batch.output_file_id);
    assert.deepEqual(replies.map((each) => each.custom_id), golden.map((_, i) => `line-${i}`));
    replies.forEach(({ response, error }, i) => {
      assert.equal(error, null);
      assert.equal(response.status_code, 200);
      const { message } = response.body.choices[0];
      assert.equal(`<think>${message.reasoning_content}</think>${message.content}`, golden[i].reply);
    });
    const [failed] = await lined(batch.error_file_id);
    assert.equal(failed.custom_id, 'too-hot');
    assert.equal(failed.response.status_code, 400);
    assert.equal(failed.response.body.error.param, 'temperature');

    const wrong = await ended(await submit(['no JSON']));
    assert.equal(wrong.status, 'failed');
    assert.equal(wrong.errors.data[0].line, 1);

    const long = await submit([line('long', {
      messages: [{ role: 'user', content: 'hi' }],
      n: 4,
      temperature: 100,
      ignore_eos: true,
    })]);
    await until(async () => (await client.batches.retrieve(long.id)).status === 'in_progress');
    await client.batches.cancel(long.id);
    assert.equal((await ended(long)).status, 'cancelled');
    await until(async () => await metric('caravan_jobs{priority="bulk",state="running"}') === 0);

    const listed = [];
    for await (const each of client.batches.list({ limit: 1 })) listed.push(each.id);
    assert.deepEqual(listed, [long.id, wrong.id, batch.id]);
    await assert.rejects(client.batches.create(
      { input_file_id: 'file-none', endpoint: '/v1/chat/completions', completion_window: '24h' }),
    (error) => error.param === 'input_file_id');
  },
};

await checks[check]();
