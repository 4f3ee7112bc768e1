// A loopback Messages API that answers what it is told to. No dependencies.
//
//   import { startMessagesApi } from './messages_api.mjs';
//   const api = await startMessagesApi();
//   api.script('plain text="Hi" deltas=4 delay=20');           // from now on, for every request
//   api.script([{ name: 'error', status: 429 }, 'plain']);     // one scenario per request, in order
//   api.script((request) => ({ name: 'echo' }));               // or computed
//
// A client that cannot reach script() picks by itself, in the text of the last user message:
//   [[scenario:drop after=2 then=other]]
// That directive wins over script(function) and script(scenario), not over a queue.
//
// Run alone it prints its URL: node messages_api.mjs --port 0
//
// Options of every scenario that answers a message (times in ms):
//   text, deltas (number of pieces), delay (between pieces), ttft (before the first byte), stop_reason, stop_sequence,
//   input, output, cache_read, cache_creation, ephemeral_1h (part of cache_creation), ping=true, split (bytes per TCP write)
// Scenarios:
//   plain      the text
//   echo       a JSON dump {model, system:[text], messages:[{role,text}], tools:[name]} of what arrived
//   utf8       multi-byte text, one character per delta, cut in the middle of characters on the wire
//   thinking   a thinking block (thinking, signature), then the text
//   max_tokens, stop_sequence, refusal, empty (blocks=0: no content block at all)
//   tool_use   tool (name; default the first one offered), args (JSON object), count, before (text first)
//   error      status, message, type, retry_after (s), times (fail only the first k attempts), should_retry (true|false)
//   error_event  after (deltas), type, message, times; a call that is not streamed gets a 529
//   drop       after (-1: before the response head, 0: after message_start, k: after k deltas), times (default 1),
//              then=same|other|nostream (nostream: every streamed attempt is dropped)
//   hang       after (-1: no response head, 0: after message_start, k: after k deltas)
//   long       bytes (default 2,000,000)

import http from 'node:http';
import { fileURLToPath } from 'node:url';

const ERROR_TYPES = {
  400: 'invalid_request_error',
  401: 'authentication_error',
  403: 'permission_error',
  404: 'not_found_error',
  413: 'request_too_large',
  429: 'rate_limit_error',
  500: 'api_error',
  504: 'timeout_error',
  529: 'overloaded_error',
};
const ERROR_MESSAGES = {
  400: 'messages.0.content: loopback says this is bad',
  401: 'invalid x-api-key',
  403: 'loopback forbids this',
  404: 'model: no-such-model',
  413: 'Request exceeds the maximum size',
  429: 'loopback rate limit reached',
  500: 'Internal server error',
  504: 'Request timed out',
  529: 'Overloaded',
};
const UTF8_TEXT = 'Grüße, 世界! 👩‍👩‍👧‍👦 🇨🇭 é ¡olé! \u2028 – 𝒯𝓊𝓇𝓃 “end”';

/** `plain text="a b" deltas=3` → {name:'plain', text:'a b', deltas:3} */
export function parseScenario(text) {
  const [, name, rest] = /^\s*([\w-]+)\s*([^]*)$/.exec(text);
  const scenario = { name };
  for (const [, key, value] of rest.matchAll(/([\w]+)=("(?:[^"\\]|\\.)*"|\{[^\s]*\}|\S+)/g)) {
    try {
      scenario[key] = JSON.parse(value);
    } catch {
      scenario[key] = value;
    }
  }
  return scenario;
}

const blocksOf = (content) => (typeof content === 'string' ? [{ type: 'text', text: content }] : (content ?? []));

/** All text of a message's content, blocks joined by newlines. */
export function textOf(content) {
  return blocksOf(content)
    .filter((block) => block.type === 'text')
    .map((block) => block.text)
    .join('\n');
}

const systemOf = (body) => blocksOf(body.system).map((block) => block.text);

function lastUserText(body) {
  const user = (body?.messages ?? []).filter((message) => message.role === 'user').pop();
  return user ? textOf(user.content) : '';
}

/** Cuts text in `count` pieces of whole code points. */
function pieces(text, count) {
  const points = Array.from(text);
  const size = Math.max(1, Math.ceil(points.length / Math.max(1, count)));
  const result = [];
  for (let i = 0; i < points.length; i += size) result.push(points.slice(i, i + size).join(''));
  return result;
}

function usageOf(scenario) {
  const creation = scenario.cache_creation ?? 0;
  const hour = scenario.ephemeral_1h ?? 0;
  return {
    input_tokens: scenario.input ?? 11,
    cache_creation_input_tokens: creation,
    cache_read_input_tokens: scenario.cache_read ?? 0,
    cache_creation: { ephemeral_5m_input_tokens: creation - hour, ephemeral_1h_input_tokens: hour },
    output_tokens: scenario.output ?? 7,
    service_tier: 'standard',
  };
}

function toolBlocks(scenario, body, nextId) {
  const name = scenario.tool ?? body.tools?.[0]?.name ?? 'no_tool_offered';
  return Array.from({ length: scenario.count ?? 1 }, () => ({
    type: 'tool_use',
    id: `toolu_loopback_${nextId()}`,
    name,
    input: scenario.args ?? { city: 'Zürich' },
  }));
}

/** What the scenario answers, as the content of a message and its stop reason. */
function messageOf(scenario, body, nextId) {
  const text = (fallback) => [{ type: 'text', text: scenario.text ?? fallback }];
  switch (scenario.name) {
    case 'echo': {
      const messages = body.messages.map((message) => ({ role: message.role, text: textOf(message.content) }));
      const tools = (body.tools ?? []).map((tool) => tool.name);
      return { content: text(JSON.stringify({ model: body.model, system: systemOf(body), messages, tools })) };
    }
    case 'utf8':
      return { content: text(UTF8_TEXT) };
    case 'thinking':
      return {
        content: [
          { type: 'thinking', thinking: scenario.thinking ?? 'Let me think about it.', signature: 'c2lnbmF0dXJl' },
          ...text('I thought about it.'),
        ],
      };
    case 'max_tokens':
      return { content: text('This answer is cut'), stop_reason: 'max_tokens' };
    case 'stop_sequence':
      return {
        content: text('Before the stop'),
        stop_reason: 'stop_sequence',
        stop_sequence: scenario.stop_sequence ?? 'END',
      };
    case 'refusal':
      return { content: text('I cannot'), stop_reason: 'refusal' };
    case 'empty':
      return { content: scenario.blocks === 0 ? [] : [{ type: 'text', text: '' }] };
    case 'tool_use':
      return {
        content: [
          ...(scenario.before ? [{ type: 'text', text: scenario.before }] : []),
          ...toolBlocks(scenario, body, nextId),
        ],
        stop_reason: 'tool_use',
      };
    case 'long': {
      const line = 'The quick brown fox jumps over the lazy dog. ';
      return { content: text(line.repeat(Math.ceil((scenario.bytes ?? 2_000_000) / line.length))) };
    }
    default:
      return { content: text('Hello from the loopback API.') };
  }
}

/** The deltas of one content block, in the API's own terms. */
function deltasOf(block, count) {
  if (block.type === 'thinking') {
    return [
      ...pieces(block.thinking, count).map((thinking) => ({ type: 'thinking_delta', thinking })),
      { type: 'signature_delta', signature: block.signature },
    ];
  }
  if (block.type === 'tool_use') {
    return ['', ...pieces(JSON.stringify(block.input), count)].map((partial_json) => ({
      type: 'input_json_delta',
      partial_json,
    }));
  }
  return pieces(block.text, count).map((text) => ({ type: 'text_delta', text }));
}

const emptied = (block) =>
  ({
    text: { type: 'text', text: '' },
    thinking: { type: 'thinking', thinking: '', signature: '' },
    tool_use: { ...block, input: {} },
  })[block.type];

const defaultDeltas = { utf8: Infinity, long: 2000 };

/** One HTTP exchange: the response, the record of the request, and ways to answer. */
class Exchange {
  constructor(response, record, nextId) {
    Object.assign(this, { response, record, nextId });
    this.gone = new Promise((resolve) => response.once('close', resolve));
  }

  get left() {
    return this.record.clientLeft;
  }

  /** Sleeps, but not longer than the client stays. */
  async sleep(ms) {
    let timer;
    await Promise.race([
      new Promise((resolve) => {
        timer = setTimeout(resolve, ms);
      }),
      this.gone,
    ]);
    clearTimeout(timer);
  }

  async write(event, split) {
    const bytes = Buffer.from(`event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`);
    for (let i = 0; i < bytes.length && !this.left; i += split ?? bytes.length) {
      const flowing = this.response.write(bytes.subarray(i, i + (split ?? bytes.length)));
      if (split) await this.sleep(0);
      if (!flowing) await Promise.race([new Promise((resolve) => this.response.once('drain', resolve)), this.gone]);
    }
  }

  json(status, value, headers = {}) {
    this.record.status = status;
    this.response.writeHead(status, { 'content-type': 'application/json', 'request-id': this.record.id, ...headers });
    this.response.end(JSON.stringify(value));
  }

  error({ status = 500, message, type, retry_after, should_retry }) {
    const headers = {};
    if (retry_after !== undefined) headers['retry-after'] = String(retry_after);
    if (should_retry !== undefined) headers['x-should-retry'] = String(should_retry);
    this.json(
      status,
      {
        type: 'error',
        error: {
          type: type ?? ERROR_TYPES[status] ?? 'api_error',
          message: message ?? ERROR_MESSAGES[status] ?? `status ${status}`,
        },
        request_id: this.record.id,
      },
      headers,
    );
  }

  drop() {
    this.response.droppedByUs = true;
    this.response.destroy();
  }

  hang() {
    return this.gone;
  }

  /** Answers the scenario's message; `fault` may break the stream off after some deltas. */
  async message(scenario, fault) {
    const { body } = this.record;
    const { content, ...stop } = messageOf(scenario, body, this.nextId);
    const message = {
      id: this.record.id.replace('req_', 'msg_'),
      type: 'message',
      role: 'assistant',
      model: body.model,
      content,
      stop_reason: scenario.stop_reason ?? stop.stop_reason ?? 'end_turn',
      stop_sequence: stop.stop_sequence ?? null,
      usage: usageOf(scenario),
    };
    if (!body.stream) {
      await this.sleep(scenario.ttft ?? 0);
      if (!this.left) this.json(200, message);
      return;
    }
    await this.stream(message, scenario, fault);
  }

  async stream(message, scenario, fault = { after: Infinity }) {
    const split = scenario.split ?? (scenario.name === 'utf8' ? 7 : undefined);
    const send = (event) => this.write(event, split);
    const usage = { ...message.usage, output_tokens: 1 };
    if (scenario.ttft) await this.sleep(scenario.ttft);
    if (this.left) return;
    this.record.status = 200;
    this.response.writeHead(200, {
      'content-type': 'text/event-stream',
      'cache-control': 'no-cache',
      'request-id': this.record.id,
    });
    await send({
      type: 'message_start',
      message: { ...message, content: [], stop_reason: null, stop_sequence: null, usage },
    });
    let sent = 0;
    for (const [index, block] of message.content.entries()) {
      if (sent >= fault.after) return fault.act(this);
      await send({ type: 'content_block_start', index, content_block: emptied(block) });
      if (scenario.ping) await send({ type: 'ping' });
      for (const delta of deltasOf(block, scenario.deltas ?? defaultDeltas[scenario.name] ?? 3)) {
        if (sent >= fault.after) return fault.act(this);
        if (sent++ > 0 && scenario.delay) await this.sleep(scenario.delay);
        if (this.left) return;
        await send({ type: 'content_block_delta', index, delta });
      }
      await send({ type: 'content_block_stop', index });
    }
    if (fault.act) return fault.act(this);
    await send({
      type: 'message_delta',
      delta: { stop_reason: message.stop_reason, stop_sequence: message.stop_sequence },
      usage: message.usage,
    });
    await send({ type: 'message_stop' });
    this.response.end();
  }
}

/** The scenarios that are more than a message. `attempt` counts from 1 the times the same messages were asked. */
const faults = {
  error(exchange, scenario, attempt) {
    if (attempt > (scenario.times ?? Infinity)) return exchange.message({ ...scenario, name: 'plain' });
    return exchange.error(scenario);
  },

  error_event(exchange, scenario, attempt) {
    const plain = { deltas: 4, ...scenario, name: 'plain' };
    if (attempt > (scenario.times ?? Infinity)) return exchange.message(plain);
    const error = { type: scenario.type ?? 'overloaded_error', message: scenario.message ?? 'Overloaded' };
    if (!exchange.record.body.stream) return exchange.error({ status: 529, ...error });
    return exchange.message(plain, {
      after: scenario.after ?? 2,
      act: async () => {
        await exchange.write({ type: 'error', error, request_id: exchange.record.id });
        exchange.response.end();
      },
    });
  },

  drop(exchange, scenario, attempt) {
    const plain = { deltas: 4, text: 'One two three four.', ...scenario, name: 'plain' };
    const dropped = scenario.then === 'nostream' ? exchange.record.body.stream : attempt <= (scenario.times ?? 1);
    if (!dropped) {
      return exchange.message(
        scenario.then === 'other' ? { ...plain, text: scenario.other ?? 'Quite another text.' } : plain,
      );
    }
    if ((scenario.after ?? -1) < 0 || !exchange.record.body.stream) return exchange.drop();
    return exchange.message(plain, {
      after: scenario.after,
      act: async () => {
        await exchange.sleep(250); // a busy client loses what it has not read when the connection breaks
        exchange.drop();
      },
    });
  },

  hang(exchange, scenario) {
    if ((scenario.after ?? -1) < 0 || !exchange.record.body.stream) return exchange.hang();
    return exchange.message(
      { deltas: 4, ...scenario, name: 'plain' },
      { after: scenario.after, act: () => exchange.hang() },
    );
  },
};

function readBody(request) {
  return new Promise((resolve, reject) => {
    const chunks = [];
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('end', () => resolve(Buffer.concat(chunks).toString('utf8')));
    request.on('error', reject);
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * Resolves to {url, port, requests, script, waitFor, close}. A record in `requests` (every POST, HEAD and GET) holds
 * {id, method, path, headers, body, raw, at, text, system, scenario, attempt, status, done, clientLeft, leftAt}; times are of performance.now().
 */
export async function startMessagesApi({ port = 0, scenario: initial = 'plain' } = {}) {
  const requests = [];
  const attempts = new Map();
  let scripted = initial;
  let queue = [];
  let toolIds = 0;
  const waiters = new Set();
  const wake = () => waiters.forEach((check) => check());

  function choose(record) {
    const directive = /\[\[scenario:([^]*?)\]\]/.exec(record.text)?.[1];
    const choice =
      queue.shift() ?? directive ?? (typeof scripted === 'function' ? scripted(record) : scripted) ?? 'plain';
    return typeof choice === 'string' ? parseScenario(choice) : choice;
  }

  /** A retry repeats the messages of the same CLI session. */
  function countAttempt(record) {
    const key = `${record.headers['x-claude-code-session-id'] ?? ''} ${JSON.stringify(record.body.messages)}`;
    attempts.set(key, (attempts.get(key) ?? 0) + 1);
    return attempts.get(key);
  }

  async function answer(exchange) {
    const { record } = exchange;
    if (record.method !== 'POST')
      return exchange.json(record.path === '/' || record.path === '/v1/models' ? 200 : 404, { data: [] });
    if (record.path === '/v1/messages/count_tokens') return exchange.json(200, { input_tokens: 42 });
    if (record.path !== '/v1/messages' || !record.body?.messages)
      return exchange.error({ status: 404, message: `no route ${record.path}` });
    record.scenario = choose(record);
    record.attempt = countAttempt(record);
    wake();
    const fault = faults[record.scenario.name];
    if (fault) return fault(exchange, record.scenario, record.attempt);
    return exchange.message(record.scenario);
  }

  const server = http.createServer(async (request, response) => {
    const record = {
      id: `req_loopback_${requests.length + 1}`,
      method: request.method,
      path: request.url.split('?')[0],
      headers: request.headers,
      at: performance.now(),
      text: '',
      system: [],
      done: false,
      clientLeft: false,
    };
    requests.push(record);
    response.on('close', () => {
      record.done = response.writableFinished;
      record.clientLeft = !response.writableEnded && !response.droppedByUs;
      record.leftAt = performance.now();
      wake();
    });
    record.raw = await readBody(request).catch(() => '');
    record.body = parsed(record.raw);
    record.text = lastUserText(record.body);
    record.system = systemOf(record.body ?? {});
    wake();
    await answer(new Exchange(response, record, () => ++toolIds));
  });
  server.keepAliveTimeout = 0;
  server.requestTimeout = 0;
  await new Promise((resolve, reject) => server.once('error', reject).listen(port, '127.0.0.1', resolve));

  return {
    port: server.address().port,
    url: `http://127.0.0.1:${server.address().port}`,
    requests,

    /** An array is a queue that comes before all else; anything else stays until replaced. */
    script(what) {
      if (Array.isArray(what)) queue = [...what];
      else scripted = what;
    },

    /** Resolves to the first record for which `matches` holds; rejects after `ms`. */
    waitFor(matches, ms = 5000) {
      return new Promise((resolve, reject) => {
        const finish = (settle, value) => {
          clearTimeout(timer);
          waiters.delete(check);
          settle(value);
        };
        const check = () => {
          const found = requests.find(matches);
          if (found) finish(resolve, found);
        };
        const timer = setTimeout(() => finish(reject, new Error(`no such API request within ${ms} ms`)), ms);
        waiters.add(check);
        check();
      });
    },

    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const at = process.argv.indexOf('--port');
  const api = await startMessagesApi({ port: at < 0 ? 0 : Number(process.argv[at + 1]) });
  console.log(api.url);
}
