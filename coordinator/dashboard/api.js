// The calls that the page makes, all of them to the coordinator that served it.

const KEY = 'caravan-api-key';
const TIMEOUT_MS = 8000;

/** An answer that is no success, with OpenAI's words for it where there are any. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Of this tab; gone when it closes. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? '',
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

async function call(method, path, { body, signal } = {}) {
  const headers = {};
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  const response = await fetch(path, {
    method,
    headers,
    signal,
    cache: 'no-store',
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message ?? message;
  } catch {
    // Not from the coordinator itself; the status says enough.
  }
  throw new ApiError(response.status, message);
}

export async function getJson(path) {
  return (await call('GET', path, { signal: AbortSignal.timeout(TIMEOUT_MS) })).json();
}

export async function cancelJob(id) {
  const path = `/dashboard/jobs/${encodeURIComponent(id)}`;
  await call('DELETE', path, { signal: AbortSignal.timeout(TIMEOUT_MS) });
}

/** The data of each event of a stream of server-sent events. */
async function* events(stream) {
  const decoder = new TextDecoderStream();
  const reader = stream.pipeThrough(decoder).getReader();
  let pending = '';
  let data = [];
  while (true) {
    const { done, value } = await reader.read();
    if (done) return;
    pending += value;
    const lines = pending.split('\n');
    pending = lines.pop();
    for (const raw of lines) {
      const line = raw.endsWith('\r') ? raw.slice(0, -1) : raw;
      if (line === '') {
        if (data.length > 0) yield data.join('\n');
        data = [];
      } else if (line.startsWith('data:')) {
        data.push(line.slice(line[5] === ' ' ? 6 : 5));
      }
    }
  }
}

/**
 * The chunks of a chat completion. Aborting `signal` ends the job. Throws ApiError, and what fetch
 * throws; a stream that ends before its [DONE] was cut off.
 */
export async function* chat(request, signal) {
  const body = { ...request, stream: true, stream_options: { include_usage: true } };
  const response = await call('POST', '/v1/chat/completions', { body, signal });
  for await (const data of events(response.body)) {
    if (data === '[DONE]') return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(0, chunk.error.message);
    yield chunk;
  }
  throw new ApiError(0, 'The connection broke before the reply was complete.');
}
