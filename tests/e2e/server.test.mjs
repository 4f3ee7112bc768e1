// The proxy around the chat: routes, validation, who may come in, secrets, processes, start and end. Run once, with the newest CLI.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { hostname, tmpdir } from 'node:os';
import path from 'node:path';
import { deflateSync, gzipSync } from 'node:zlib';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { assertError, assertKeys } from './chat.test.mjs';
import { API_KEY_OF_CLAUDE, PROXY, descriptorsOf, eventually, freePort, holdPort, madeKey, processesMarked, send, sleep, startAndExpectExit, suite } from './harness.mjs';
import { directive } from './messages_api.mjs';
import { QUESTIONS, SPOKEN, assertRefused } from './questions.mjs';

export const server = suite();
const { test } = server;

/** A program that stands where claude should be. */
function fakeClaude(t, script) {
  const folder = mkdtempSync(path.join(tmpdir(), 'fake-claude-'));
  t.defer(async () => rmSync(folder, { recursive: true }));
  const file = path.join(folder, 'claude');
  writeFileSync(file, `#!/bin/sh\n${script}\n`);
  chmodSync(file, 0o755);
  return file;
}

// ---- routes --------------------------------------------------------------------------------------

test('health, version and auth status, with and without /v1', async (t) => {
  for (const prefix of ['', '/v1']) {
    const health = await t.get(`${prefix}/health`);
    assert.equal(health.status, 200);
    assert.equal(health.json.status, 'healthy');
    assert.equal(typeof health.json.service, 'string');
    const version = await t.get(`${prefix}/version`);
    assert.match(version.json.version, /^\d+\.\d+\.\d+/);
    assert.equal(version.json.service, health.json.service);
    assert.equal(version.json.api_version, 'v1');
    const {
      json: { claude_code_auth: auth, server_info: info },
    } = await t.get(`${prefix}/auth/status`);
    assert.equal(auth.method, 'api_key');
    assert.deepEqual([auth.status.method, auth.status.valid, auth.status.errors], ['api_key', true, []]);
    assert.ok(auth.environment_variables.includes('ANTHROPIC_API_KEY'), 'names');
    assert.equal(info.api_key_required, false);
    assert.equal(typeof info.version, 'string');
    assert.ok(!JSON.stringify(auth).includes(API_KEY_OF_CLAUDE), 'no values');
  }
});

test("the model list holds the CLI's models and the well-known ids", async (t) => {
  const listed = async (where) => (await t.get(where)).json;
  await eventually('the CLI has reported', async () => (await listed('/v1/models')).data.some(({ id }) => id === 'opus'));
  for (const where of ['/models', '/v1/models']) {
    const list = await listed(where);
    assertKeys(list, ['object', 'data']);
    assert.equal(list.object, 'list');
    for (const model of list.data) {
      assertKeys(model, ['id', 'object', 'created', 'owned_by']);
      assert.deepEqual([model.object, typeof model.created, typeof model.owned_by], ['model', 'number', 'string']);
    }
    const ids = list.data.map(({ id }) => id);
    for (const id of [MODEL, 'claude-opus-4-1-20250805', 'claude-haiku-4-5-20251001', 'haiku'])
      assert.ok(ids.includes(id), `${id} in ${ids}`);
    assert.equal(new Set(ids).size, ids.length, 'each once');
    assert.ok(!ids.includes('claude-opus-4-5-20250929'), 'no such model was ever released');
  }
  const one = await t.get(`/v1/models/${MODEL}`);
  assert.deepEqual([one.status, one.json.id, one.json.object], [200, MODEL, 'model']);
});

test('the id that the reference wrapper has wrong is taken for the model that was meant', async (t) => {
  const result = await t.chat({ model: 'claude-opus-4-5-20250929', messages: t.messages('plain') });
  assert.deepEqual([result.status, result.json?.model], [200, 'claude-opus-4-5-20251101']);
  assert.equal(t.calls().at(-1).body.model, 'claude-opus-4-5-20251101');
});

test("an unknown path is 404 and a wrong method 405, in OpenAI's shape", async (t) => {
  assertRefused(await t.get('/v1/nothing'), 404, /nothing/);
  assert.match((await t.get('/')).text, /curl/, 'a word to who looks');
  const wrong = await t.get('/v1/chat/completions');
  assertRefused(wrong, 405);
  assert.match(wrong.headers.allow, /POST/);
  assertRefused(await t.send({ path: '/v1/models', body: {} }).done, 405);
});

test('chat works without /v1, with a last slash and with any content type', async (t) => {
  const asked = [
    { path: '/chat/completions' },
    { path: '/v1/chat/completions/' },
    { headers: { 'content-type': 'text/plain' } },
    { headers: { 'content-type': 'application/x-www-form-urlencoded' } },
    { headers: { 'content-type': 'multipart/form-data; boundary=x' } },
    { headers: { 'content-type': undefined } },
  ];
  for (const result of await Promise.all(asked.map((options) => t.chat({ messages: t.messages('plain') }, options)))) {
    assert.equal(result.status, 200, result.text);
  }
});

/** One question in each dialect, and the words of its answer. */

/** The words of a stream, and what it says of its end. */
function streamed({ data }) {
  const words = data.map((one) => one.choices?.[0]?.delta?.content ?? one.choices?.[0]?.text ?? one.delta?.text ?? '').join('');
  const ends = data.map((one) => one.choices?.[0]?.finish_reason ?? one.delta?.stop_reason);
  return [words, ends.find((end) => end)];
}

for (const stream of [false, true]) {
  test(`a stop text of white space ends the answer in every dialect, without the API${stream ? ', streamed' : ''}`, async (t) => {
    const scenario = directive('hang', { text: 'One.\n\nTwo.', deltas: 10, after: 8 });
    const stop = ['\n\n', 'END', '\u3000'];
    for (const [path, fields, end] of [
      ['/chat/completions', { stop }, 'stop'],
      ['/completions', { stop }, 'stop'],
      ['/fim/completions', { stop }, 'stop'],
      ['/messages', { stop_sequences: stop }, 'stop_sequence'],
    ]) {
      const [ask] = QUESTIONS[path.replace('/fim', '')];
      const result = await t.send({ path: `/v1${path}`, body: { model: MODEL, stream, ...ask(t.text(scenario)), ...fields } }).done;
      assert.equal(result.status, 200, result.text);
      const choice = result.json?.choices?.[0];
      const whole = [choice?.message?.content ?? choice?.text ?? result.json?.content[0].text, choice?.finish_reason ?? result.json?.stop_reason];
      assert.deepEqual(stream ? streamed(result) : whole, ['One.', end], path);
      if (path === '/messages') assert.match(result.text, /"stop_sequence":"\\n\\n"/);
      assert.equal(result.headers['x-ignored-params'], undefined);
      const call = t.calls().at(-1);
      assert.deepEqual(call.body.stop_sequences, ['END']);
      await eventually('the API is left', () => call.clientLeft);
    }
  });
}

test('a conversation goes on after a stop text of white space, from where it was cut', async (t) => {
  const session_id = t.token;
  const ask = (scenario) => t.chat({ session_id, stop: ' \n', messages: t.messages(scenario) });
  const first = await ask(directive('plain', { text: 'One  \n Two.', deltas: 11 }));
  assert.deepEqual([first.json.choices[0].message.content, first.json.choices[0].finish_reason], ['One ', 'stop']);
  assert.ok(first.json.usage.completion_tokens > 0);
  const { messages } = JSON.parse((await ask('echo')).json.choices[0].message.content);
  assert.deepEqual(messages.map(({ role, text }) => [role, role === 'user' || text]), [['user', true], ['assistant', 'One '], ['user', true]]);
});

test('white space that is no stop text in the end is told, and so is an answer of n that goes on', async (t) => {
  const text = 'One.\n \n.\n';
  const whole = await t.chat({ n: 2, stop: ['\n\n'], messages: t.messages(directive('plain', { text, deltas: 9 })) });
  assert.deepEqual(whole.json.choices.map(({ message }) => message.content), [text, text]);
  const stream = await t.chat({ stream: true, stop: ['\n\n'], messages: t.messages(directive('plain', { text, deltas: 9 })) });
  assert.deepEqual(streamed(stream), [text, 'stop']);
});

test('of n answers that a client leaves, all are charged', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '2'] });
  const exchange = t.send({ proxy, body: { model: MODEL, n: 2, messages: t.messages('hang after=2') } });
  await eventually('both are under way', () => t.calls().length === 2);
  const counted = async () => /tokens_total\{model="[^"]*",kind="input"\} (\d+)/.exec((await t.get('/metrics', { proxy })).text)?.[1];
  await Promise.all(t.calls().map((call) => eventually('the API has counted its input', () => call.usage)));
  exchange.abort();
  await eventually('they are counted', async () => Number(await counted()) >= 22);
});

test("Mistral's fill-in-the-middle is a completion with the answer of a chat", async (t) => {
  const body = { model: MODEL, prompt: t.text('plain'), suffix: 'the end', max_tokens: 50, random_seed: 1 };
  const whole = await t.send({ path: '/v1/fim/completions', body }).done;
  assert.deepEqual([whole.status, whole.json?.object, whole.headers['x-ignored-params']], [200, 'chat.completion', 'random_seed']);
  assert.equal(whole.json.choices[0].message.content, SPOKEN);
  const stream = await t.send({ path: '/v1/fim/completions', body: { ...body, stream: true } }).done;
  assert.deepEqual(streamed(stream), [SPOKEN, 'stop']);
  assert.ok(stream.data.every((one) => one === '[DONE]' || one.choices.length === 1), 'Continue reads choices[0] of each');
  for (const call of t.calls()) assert.match(call.text, /^<prefix>[^]*<\/prefix><suffix>the end<\/suffix>$/);
  assertRefused(await t.send({ path: '/v1/fim/completions', body: { model: MODEL } }).done, 400, /prompt/);
});

// ---- what the API refuses ------------------------------------------------------------------------

test('a conversation that is too long is context_length_exceeded, in the words of the API', async (t) => {
  for (const message of [
    'prompt is too long: 250000 tokens > 200000 maximum',
    'input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000, decrease input length',
  ]) {
    const scenario = directive('error', { status: 400, message });
    for (const [path, [ask]] of Object.entries(QUESTIONS)) {
      const result = await t.send({ path, body: { model: MODEL, stream: path !== '/completions', ...ask(t.text(scenario)) } }).done;
      assert.equal(result.status, 400, result.text);
      const { error } = result.json;
      assert.match(error.message, /^(prompt is too long|input length)/);
      assert.deepEqual([error.type, error.code], ['invalid_request_error', path === '/messages' ? undefined : 'context_length_exceeded']);
    }
  }
});

test('a model that the API does not know is a 404 that names some that it does', async (t) => {
  for (const path of ['/chat/completions', '/messages']) {
    const [ask] = QUESTIONS[path];
    const result = await t.send({ path, body: { model: 'gpt-4o', ...ask(t.text('error status=404')) } }).done;
    assert.equal(result.status, 404, result.text);
    assert.match(result.json.error.message, /gpt-4o.*`sonnet`, `opus` and `haiku`/);
    assert.equal(t.calls().at(-1).body.model, 'gpt-4o');
  }
});

const TOWN = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };
const STRUCTURED = {
  '/chat/completions': { response_format: { type: 'json_schema', json_schema: { name: 'x', schema: TOWN } } },
  '/responses': { text: { format: { type: 'json_schema', name: 'x', schema: TOWN } } },
  '/messages': { output_config: { format: { type: 'json_schema', schema: TOWN } } },
};
for (const [path, format] of Object.entries(STRUCTURED))
  test(`${path}: an answer that misses its schema holds the last one, and no client asks again by itself`, async (t) => {
    const [ask] = QUESTIONS[path];
    const wrong = 'structured value={"town":"Bern"}';
    const plain = 'plain text="Never." | plain text="Never!"';
    for (const [scenario, last] of [
      [[wrong, wrong].join(' | '), '{"town":"Bern"}'],
      [[wrong, 'structured value={"village":"Bern"}'].join(' | '), '{"village":"Bern"}'],
      [plain, 'Never!'],
    ])
      for (const stream of [false, true]) {
        const before = t.calls().length;
        const result = await t.send({ path: `/v1${path}`, body: { model: MODEL, stream, ...format, ...ask(t.text(scenario)) } }).done;
        const { error } = result.json ?? result.data.map((one) => one.response ?? one).findLast((one) => one.error);
        if (!stream) assert.equal(result.status, 502, result.text);
        if (result.status !== 200) assert.equal(result.headers['x-should-retry'], 'false');
        // A stream has told the first answer when the schema refuses it: the client has it.
        if (stream && scenario !== plain) assert.match(error.message, /does not follow the schema/);
        else assert.ok(error.message.endsWith(`its last answer: ${last}`), error.message);
        assert.ok(t.calls().length > before, 'the API was asked');
      }
  });

test('a 429 or 529 of the API is told in its words where the CLI tells them, and with the time to wait', async (t) => {
  const message = 'You may ask again at five';
  const ask = (options) => t.chat({ messages: t.messages(directive('error', options)) });
  for (const [status, told] of [
    [429, 429],
    [529, 503],
  ]) {
    const soon = await ask({ status, message, retry_after: 30 });
    assertRefused(soon, told, /asks to wait .* try again in 3\d s/);
    assert.match(soon.headers['retry-after'], /^3\d$/);
    const late = await ask({ status, message, retry_after: 3600 });
    assertRefused(late, told, /^You may ask again at five$/);
    assert.equal(late.headers['retry-after'], '60', 'that it is over a minute is all that the CLI shows');
  }
});

test('slashes in a row are one, wherever they stand in a path, in every dialect', async (t) => {
  for (const [path, [ask, wordsOf]] of Object.entries(QUESTIONS)) {
    const result = await t.send({ path: `//v1//${path}//`, body: { model: MODEL, ...ask(t.text('plain')) } }).done;
    assert.equal(result.status, 200, result.text);
    assert.equal(wordsOf(result.json), SPOKEN);
    for (const where of [`//v1${path}`, `/v1/${path}`, `//v1/v1//${path}`]) assert.equal((await t.get(where)).status, 405, where);
  }
  const ids = ['//v1//models//x', '/v1/models/a%2F%2Fb'].map(async (where) => (await t.get(where)).json.id);
  assert.deepEqual(await Promise.all(ids), ['x', 'a//b'], 'an id keeps those that were percent-encoded');
  assert.equal((await t.get('/v1/models?after_id=a//b', { headers: { 'anthropic-version': '2023-06-01' } })).status, 200);
});

test("Azure's paths are the same routes, and their deployment is the model where the body names none", async (t) => {
  const version = '?api-version=2024-10-21';
  for (const [prefix, path, model, expected] of [
    ['/openai/deployments/claude-haiku-4-5-20251001', '/chat/completions', undefined, 'claude-haiku-4-5-20251001'],
    ['/openai/deployments/gpt', '/completions', MODEL, MODEL],
    ['/openai/v1', '/responses', MODEL, MODEL],
    ['/openai', '/messages', MODEL, MODEL],
  ]) {
    const [ask, wordsOf] = QUESTIONS[path];
    const result = await t.send({ path: `${prefix}${path}${version}`, body: { model, ...ask(t.text('plain')) } }).done;
    assert.equal(result.status, 200, `${prefix}${path}: ${result.text}`);
    assert.equal(wordsOf(result.json), SPOKEN);
    assert.equal(t.calls().at(-1).body.model, expected);
  }
  assert.equal((await t.get(`/openai/models${version}`)).json.object, 'list');
  assertRefused(await t.get(`/openai/deployments/-x/chat/completions${version}`), 405);
  const wrong = await t.send({ path: `/openai/deployments/-x/chat/completions${version}`, body: { messages: t.messages('plain') } }).done;
  assertRefused(wrong, 400, /deployment/);
  assertRefused(await t.send({ path: `/openai/deployments/x/embeddings${version}`, body: {} }).done, 404, /no embedding model/);
});

test('a body of gzip or deflate is decoded, chunked too, in every dialect', async (t) => {
  const chunked = { 'content-length': undefined, 'transfer-encoding': 'chunked' };
  for (const [path, coding, encode, headers] of [
    ['/chat/completions', 'gzip', gzipSync, {}],
    ['/completions', 'GZip', gzipSync, chunked],
    ['/responses', 'deflate', deflateSync, {}],
    ['/messages', 'deflate', deflateSync, chunked],
    ['/chat/completions', 'identity', Buffer.from, {}],
  ]) {
    const [ask, wordsOf] = QUESTIONS[path];
    const body = encode(JSON.stringify({ model: MODEL, ...ask(t.text('plain', 'Grüße')) }));
    const result = await t.send({ path: `/v1${path}`, body, headers: { 'content-encoding': coding, ...headers } }).done;
    assert.equal(result.status, 200, `${coding} ${path}: ${result.text}`);
    assert.equal(wordsOf(result.json), SPOKEN);
    assert.match(t.calls().at(-1).text, /Grüße/);
  }
});

test('a body in another coding is a 415 that names those that are taken; one that is not what it says a 400', async (t) => {
  for (const coding of ['br', 'zstd', 'compress', 'gzip, gzip', 'x']) {
    const result = await t.send({ body: '{}', headers: { 'content-encoding': coding } }).done;
    assertRefused(result, 415, /gzip, deflate/);
    assert.equal(result.headers['accept-encoding'], 'gzip, deflate');
    assert.equal(result.json.error.code, 'unsupported_content_encoding');
    const messages = await t.send({ path: '/v1/messages', body: '{}', headers: { 'content-encoding': coding } }).done;
    assert.deepEqual([messages.status, messages.json.error.type], [415, 'invalid_request_error']);
  }
  for (const coding of ['gzip', 'deflate'])
    assertRefused(await t.send({ body: '{"messages":[]}', headers: { 'content-encoding': coding } }).done, 400, /Content-Encoding/);
  assert.equal(t.calls().length, 0);
});

test('a compressed body is bounded by what it becomes: a bomb is a 413', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', '--max-request-size', '1000000'] });
  const ask = (size) => gzipSync(JSON.stringify({ messages: [{ role: 'user', content: 'x'.repeat(size) }], model: 5 }));
  const send = (body) => t.send({ proxy, body, headers: { 'content-encoding': 'gzip' } }).done;
  assertRefused(await send(ask(1_000_000)), 413, /1000000 bytes/);
  assertRefused(await send(ask(300_000_000)), 413, /1000000 bytes/);
  assertRefused(await send(ask(999_000)), 400, /model/);
});

test('memory for a body is taken as it comes, not as it is announced', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', '--max-request-size', '900000000000000'] });
  const client = net.connect({ port: proxy.port, host: '127.0.0.1', allowHalfOpen: true });
  const got = client.setEncoding('utf8').reduce((all, piece) => all + piece, '');
  client.end('POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 800000000000000\r\n\r\n{}');
  assert.match(await got, /^HTTP\/1.1 400 [^]*did not arrive whole/);
});

test('a stream that is silent for 15 s says `: keep-alive`', { slow: true }, async (t) => {
  const result = await t.chat({ stream: true, messages: t.messages('plain ttft=17000') });
  assert.deepEqual(
    result.frames.slice(0, 1).map(({ comment }) => comment),
    [': keep-alive'],
  );
  const [first, ...rest] = result.data;
  assert.deepEqual(first.choices[0].delta, { role: 'assistant', content: '' });
  assert.equal(rest.at(-1), '[DONE]');
});

test("the client's request id is kept, or one is made", async (t) => {
  assert.equal((await t.get('/health', { headers: { 'x-request-id': 'mine-1' } })).headers['x-request-id'], 'mine-1');
  const [one, two] = [await t.get('/health'), await t.get('/health')].map(({ headers }) => headers['x-request-id']);
  assert.ok(one && two && one !== two);
});

test('many requests go over one connection', async (t) => {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const ports = new Set();
  for (let i = 0; i < 3; i++) {
    const body = JSON.stringify({ model: MODEL, stream: i === 1, messages: t.messages('plain') });
    const status = await new Promise((resolve, reject) => {
      const request = http.request(
        {
          port: t.proxy.port,
          agent,
          method: 'POST',
          path: '/v1/chat/completions',
          headers: { 'content-length': body.length },
        },
        (response) => response.resume().once('end', () => resolve(response.statusCode)),
      );
      request.once('socket', (socket) => {
        const note = () => ports.add(socket.localPort);
        if (socket.connecting) socket.once('connect', note);
        else note();
      });
      request.once('error', reject).end(body);
    });
    assert.equal(status, 200);
  }
  agent.destroy();
  assert.equal(ports.size, 1);
});

// ---- what a request may hold ---------------------------------------------------------------------

const USER = { role: 'user', content: 'x' };
for (const [param, body] of [
  ['messages', {}],
  ['messages', { messages: null }],
  ['messages', { messages: 'hi' }],
  ['messages', { messages: [] }],
  ['messages', { messages: {} }],
  ['messages[0]', { messages: ['hi'] }],
  ['messages[0].role', { messages: [{ content: 'hi' }] }],
  ['messages[1].role', { messages: [USER, { role: 'robot', content: 'hi' }] }],
  ['messages[0].role', { messages: [{ role: 7, content: 'hi' }] }],
  ['messages[0].content', { messages: [{ role: 'user', content: 7 }] }],
  ['messages[0].content[0].type', { messages: [{ role: 'user', content: [{ text: 'hi' }] }] }],
  [
    'messages[0].content[1].text',
    {
      messages: [
        {
          role: 'user',
          content: [
            { type: 'text', text: 'a' },
            { type: 'text', text: 7 },
          ],
        },
      ],
    },
  ],
  ['messages[0].content[0].type', { messages: [{ role: 'user', content: [{ type: 'hologram' }] }] }],
  ['messages[1].tool_call_id', { messages: [USER, { role: 'tool', content: 'x' }] }],
  ['model', { model: 7, messages: [USER] }],
  ['stream', { stream: 'maybe', messages: [USER] }],
  ['stream_options', { stream_options: 'x', messages: [USER] }],
  ['stream_options.include_usage', { stream_options: { include_usage: 'x' }, messages: [USER] }],
  ['temperature', { temperature: 'hot', messages: [USER] }],
  ['temperature', { temperature: 9, messages: [USER] }],
  ['max_tokens', { max_tokens: 'many', messages: [USER] }],
]) {
  test(`400 names ${param} of ${JSON.stringify(body)}`, async (t) => {
    const result = await t.send({ body }).done;
    assertRefused(result, 400);
    assert.equal(result.json.error.type, 'invalid_request_error');
    assert.equal(result.json.error.param, param);
  });
}

test('what is no JSON object is 400', async (t) => {
  for (const body of [
    '',
    '{',
    '[]',
    '"text"',
    '{"messages":[{"role":"user","content":"\u00ff',
    `${'['.repeat(100_000)}`,
  ]) {
    const result = await t.send({ body }).done;
    assertRefused(result, 400);
    assert.equal(result.json.error.param, null);
  }
});

test('unknown fields are accepted and named', async (t) => {
  const result = await t.chat({
    messages: [{ ...t.messages('plain')[0], name: 'me', cache_control: {} }],
    not_a_field: { a: 1 },
    seed: 1,
  });
  assert.equal(result.status, 200, result.text);
  assert.equal(result.headers['x-ignored-params'], 'messages.name, seed, not_a_field');
  const plain = await t.chat({ messages: t.messages('plain'), temperature: null, tools: null });
  assert.equal(plain.headers['x-ignored-params'], undefined, 'null is "not set"');
});

test('a body over 10 MiB is 413, announced or chunked; one just under is taken', async (t) => {
  const large = 'x'.repeat(10 * 1024 * 1024 + 1);
  assertRefused(await t.send({ body: large }).done, 413, /10485760/);
  assertRefused(
    await t.send({ body: large, headers: { 'content-length': undefined, 'transfer-encoding': 'chunked' } }).done,
    413,
    /10485760/,
  );
  assertRefused(await t.send({ body: `{"messages":[],"padding":"${large.slice(100)}"}` }).done, 400, /messages/);
});

// ---- who may come in -----------------------------------------------------------------------------

test("only this machine's names are answered, and no foreign page", async (t) => {
  const { port } = t.proxy;
  for (const host of [
    `evil.example:${port}`,
    'evil.example',
    `127.0.0.1.evil.example:${port}`,
    `localhost.evil.example:${port}`,
  ]) {
    assertRefused(await t.get('/v1/models', { host }), 403);
    assertRefused(await t.get('/health', { host }), 403);
    assertRefused(await t.send({ host, body: { messages: [USER] } }).done, 403);
  }
  for (const host of [`127.0.0.1:${port}`, `localhost:${port}`, `[::1]:${port}`])
    assert.equal((await t.get('/v1/models', { host })).status, 200, host);
  for (const origin of ['https://evil.example', 'null', `http://127.0.0.1.evil.example:${port}`, 'file://']) {
    assertRefused(await t.get('/v1/models', { headers: { origin } }), 403);
    assertRefused(
      await t.send({ headers: { origin, 'content-type': 'text/plain' }, body: { messages: [USER] } }).done,
      403,
    );
  }
  assert.equal((await t.get('/v1/models', { headers: { origin: `http://localhost:${port}` } })).status, 200);
});

test('with keys every route but health and version wants one', async (t) => {
  const proxy = await t.start({
    cli: t.cli,
    args: ['--api-key', 'first-client-key', '--api-key', 'second-client-key', '--spares', '0'],
  });
  const models = async (headers) => (await t.get('/v1/models', { proxy, headers })).status;
  for (const key of ['first-client-key', 'second-client-key']) {
    assert.deepEqual(
      [
        await models({ authorization: `Bearer ${key}` }),
        await models({ authorization: `bearer ${key}` }),
        await models({ 'x-api-key': key }),
        await models({ 'api-key': key }),
      ],
      [200, 200, 200, 200],
    );
  }
  const bad = [
    {},
    { authorization: 'Bearer wrong' },
    { authorization: 'Bearer first-client-ke' },
    { authorization: 'Basic first-client-key' },
    { 'x-api-key': '' },
    { authorization: 'Bearer ' },
  ];
  for (const headers of bad) {
    for (const route of ['/v1/models', `/v1/models/${MODEL}`, '/v1/auth/status', '/auth/status']) {
      const result = await t.get(route, { proxy, headers });
      assertRefused(result, 401);
      assert.equal(result.json.error.code, 'invalid_api_key');
    }
    assertRefused(await t.send({ proxy, headers, body: { messages: t.messages('plain') } }).done, 401);
  }
  for (const route of ['/health', '/version', '/v1/health', '/v1/version'])
    assert.equal((await t.get(route, { proxy })).status, 200);
  const { json } = await t.get('/v1/auth/status', { proxy, headers: { 'x-api-key': 'first-client-key' } });
  assert.equal(json.server_info.api_key_required, true);
  assert.equal(t.calls().length, 0);
});

test('keys come from API_KEY and API_KEYS too', async (t) => {
  const proxy = await t.start({
    cli: t.cli,
    args: ['--spares', '0'],
    env: { API_KEY: 'key-one', API_KEYS: 'key-two, key-three' },
  });
  assert.equal((await t.get('/v1/models', { proxy })).status, 401);
  for (const key of ['key-one', 'key-two', 'key-three']) {
    assert.equal((await t.get('/v1/models', { proxy, headers: { 'x-api-key': key } })).status, 200, key);
  }
});

test('beyond loopback a key is made, told and wanted', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--host', '0.0.0.0', '--spares', '0'] });
  assert.equal((await t.get('/v1/models', { proxy })).status, 401);
  assert.equal((await t.get('/v1/models', { proxy, headers: { 'x-api-key': madeKey(proxy) } })).status, 200);
});

// ---- secrets -------------------------------------------------------------------------------------

const SECRETS = {
  API_KEY: 'client-secret-one',
  API_KEYS: 'client-secret-two',
  AWS_SECRET_ACCESS_KEY: 'aws-secret',
  DATABASE_URL: 'database-secret',
  GITHUB_TOKEN: 'github-secret',
};

test('a claude gets no secret but its own, the prompt is in no argv, and the log holds neither', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--log-level', 'debug', '--spares', '1'], env: SECRETS });
  const exchange = t.send({
    proxy,
    headers: { 'x-api-key': 'client-secret-one' },
    body: { stream: true, messages: [{ role: 'system', content: `system ${t.token}` }, ...t.messages('hang after=2')] },
  });
  await t.waitForCall();
  const children = await eventually('the spare and the busy one', () => {
    const all = proxy.claudes();
    return all.length === 2 && all;
  });
  for (const { environment, argv } of children) {
    const values = JSON.stringify(environment);
    for (const secret of Object.values(SECRETS)) assert.ok(!values.includes(secret), `${secret} in ${values}`);
    assert.equal(environment.ANTHROPIC_API_KEY, API_KEY_OF_CLAUDE);
    assert.ok(!argv.join(' ').includes(t.token) && !argv.join(' ').includes(API_KEY_OF_CLAUDE), argv.join(' '));
    assert.equal(argv[argv.indexOf('--tools') + 1], '', argv.join(' '));
  }
  assert.ok(!processesMarked(proxy.scratch).some(({ argv }) => argv.join(' ').includes(t.token)));
  exchange.abort();
  await sleep(100);
  for (const secret of [...Object.values(SECRETS), API_KEY_OF_CLAUDE, t.token])
    assert.ok(!proxy.output.includes(secret), `${secret} in the log`);
});

test("with the CLI's login no API key reaches it", async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--auth-method', 'cli', '--spares', '1'] });
  const [{ environment }] = await eventually('a spare', () => {
    const all = proxy.claudes();
    return all.length > 0 && all;
  });
  assert.equal(environment.ANTHROPIC_API_KEY, undefined);
  assert.equal(environment.HOME, proxy.home, 'its login lies there');
});

// ---- what is missing -----------------------------------------------------------------------------

test('not logged in is 503 with the command', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--auth-method', 'cli', '--spares', '0'] });
  for (const stream of [false, true]) {
    const result = await t.chat({ stream, messages: t.messages('plain') }, { proxy });
    assertRefused(result, 503, /claude auth login/);
    assert.match(result.headers['retry-after'] ?? '', /^\d+$/);
  }
  assert.equal(t.calls().length, 0);
  await eventually('the status tells it', async () => (await t.get('/v1/auth/status', { proxy })).json.claude_code_auth.status.valid === false);
});

test('a missing claude is 503 with the command that installs it', async (t) => {
  const proxy = await t.start({ cli: '/nowhere/claude', args: ['--spares', '1'] });
  const result = await t.chat({ messages: t.messages('plain') }, { proxy });
  assertRefused(result, 503, /npm install -g @anthropic-ai\/claude-code/);
  assert.match(result.headers['retry-after'] ?? '', /^\d+$/);
  assert.equal((await t.get('/v1/models', { proxy })).status, 200);
});

test('no claude on PATH is 503 as well', async (t) => {
  const proxy = await t.start({ env: { PATH: '/nowhere' }, args: ['--spares', '1'] });
  assertRefused(
    await t.chat({ messages: t.messages('plain') }, { proxy }),
    503,
    /npm install -g @anthropic-ai\/claude-code/,
  );
});

test('a claude older than 2.1.120 is refused at start with the upgrade line', async (t) => {
  const { exit, output, faults } = await startAndExpectExit({
    url: t.api.url,
    cli: fakeClaude(t, 'echo "2.1.119 (Claude Code)"'),
  });
  assert.notEqual(exit, null, 'it ended');
  assert.notEqual(exit.code, 0);
  assert.match(output, /2\.1\.119/);
  assert.match(output, /npm install -g @anthropic-ai\/claude-code/);
  assert.deepEqual(faults, []);
});

test('a claude that dies at once is an error, not a hang', async (t) => {
  const proxy = await t.start({
    cli: fakeClaude(
      t,
      '[ "$1" = --version ] && echo "2.1.330 (Claude Code)" && exit 0; echo "cannot start: no luck" >&2; exit 7',
    ),
    args: ['--spares', '1'],
  });
  const result = await t.chat({ messages: t.messages('plain') }, { proxy });
  assert.ok(result.status >= 500, result.text);
  assertError(result.json.error);
});

// ---- start, time and end -------------------------------------------------------------------------

test('it listens before any claude is up, and ends though none ever will be', { alone: true }, async (t) => {
  const proxy = await t.start({ cli: fakeClaude(t, 'exec sleep 60') });
  assert.ok(proxy.listeningAt - proxy.startedAt < 5000, `after ${proxy.listeningAt - proxy.startedAt} ms`);
  const health = await t.get('/health', { proxy });
  assert.equal(health.status, 200);
  assert.ok(health.at - proxy.startedAt < 10_000);
  const { faults, took } = await proxy.stop();
  proxy.stopped = true;
  assert.deepEqual(faults, []);
  assert.ok(took < 6000, `SIGTERM took ${took} ms`);
});

test('what keeps the proxy from starting is told by the name of its setting, and with what to do', async (t) => {
  const file = fakeClaude(t, '');
  const [folder, shared] = ['folder', 'shared'].map((name) => path.join(path.dirname(file), name));
  [folder, shared].forEach((one) => mkdirSync(one));
  chmodSync(shared, 0o777);
  const cases = [
    [['--session-dir', '/proc/x'], /^claude-openai: --session-dir: \/proc\/x cannot be made; choose /],
    [['--session-dir', '/dev/null/x/y'], /^claude-openai: --session-dir: \/dev\/null\/x\/y cannot be made; choose /],
    [['--session-dir', file], /^claude-openai: --session-dir: .* is not a directory/],
    [['--store', '/proc/x/state'], /^claude-openai: --store: \/proc\/x cannot be made; choose /],
    [['--store', folder], /^claude-openai: --store: .* cannot be used: Is a directory/],
    [['--store', path.join(shared, 'state')], /^claude-openai: --store: other users may write to /],
    [['--store', 'state', '--session-dir', 'sessions'], /--session-dir is a --store in that directory; name one of them/],
    [['--host', 'example.invalid'], /^claude-openai: --host: this machine has no address example\.invalid; choose /],
    [['--host', '192.0.2.1'], /^claude-openai: --host: this machine has no address 192\.0\.2\.1; choose /],
    [['--unix-socket', '/nowhere/socket'], /^claude-openai: --unix-socket: \/nowhere\/socket cannot be made; choose /],
    [['--unix-socket', file], /^claude-openai: --unix-socket: .* cannot be made; choose .*in use/],
    [['--tls-cert', file, '--tls-key', file], /^claude-openai: --tls-cert: no certificate in /],
    [['--mcp-config', file], /^claude-openai: --mcp-config: no MCP servers can be read from /],
    [['--config', '/nowhere'], /^claude-openai: --config: \/nowhere /],
    [[], /^claude-openai: no directory can be made in \/nowhere; set TMPDIR to /, { TMPDIR: '/nowhere' }],
  ];
  for (const [args, message, env] of cases) {
    const { exit, output } = await startAndExpectExit({ url: t.api.url, cli: '/nonexistent', args, env });
    assert.ok(exit?.code > 0, `${args}: ${output}`);
    assert.match(output, message);
    assert.equal(output.trim().split('\n').length, 1, output);
  }
});

test('a port that only root may have is told as that', async () => {
  if (Number(readFileSync('/proc/sys/net/ipv4/ip_unprivileged_port_start', 'utf8')) <= 80) return;
  const unprivileged = process.getuid() === 0 ? ['setpriv', '--bounding-set=-net_bind_service', '--inh-caps=-net_bind_service'] : ['env'];
  const { status, stderr } = spawnSync(unprivileged[0], [...unprivileged.slice(1), PROXY, '80', '--no-prompt', '--claude-path', '/nonexistent'], { encoding: 'utf8', timeout: 8000 });
  assert.equal(status, 1, stderr);
  assert.match(stderr, /^claude-openai: --port: only root may listen below 1024; choose a higher one/);
});

test('the start tells where the page is, where the API is reached, and who is billed', async (t) => {
  const key = { ANTHROPIC_API_KEY: undefined };
  const region = { CLAUDE_CODE_USE_BEDROCK: '1', AWS_REGION: 'eu-west-1', AWS_PROFILE: 'work' };
  const project = { CLAUDE_CODE_USE_VERTEX: '1', CLOUD_ML_REGION: 'europe-west1', ANTHROPIC_VERTEX_PROJECT_ID: 'my-project' };
  const own = { ANTHROPIC_BASE_URL: undefined };
  const cases = [
    [{}, [`API +${t.api.url}$`, 'auth method +api_key, by ANTHROPIC_API_KEY$', 'billed to +an Anthropic API account, not a Claude subscription .*--auth-method cli']],
    [own, ['API +https://api.anthropic.com$']],
    [{ ANTHROPIC_BASE_URL: 'https://me:SECRET@gate.example/v1?key=SECRET' }, ['API +https://gate.example/v1$']],
    [{ CLAUDE_AUTH_METHOD: 'cli' }, ['auth method +cli, by the login of `claude`$', 'billed to +the account of the login']],
    [{ ...key, ...region }, ['API +Amazon Bedrock eu-west-1$', 'auth method +bedrock, by AWS_PROFILE$', 'billed to +an AWS account$']],
    [{ ...key, ...project }, ['API +Google Vertex AI europe-west1$', 'billed to +the Google Cloud project my-project$']],
    [{ CLAUDE_DEMO: '1' }, ['billed to +nobody$']],
  ];
  for (const [env, lines] of cases) {
    const proxy = await t.start({ cli: env.CLAUDE_DEMO ? undefined : '/nonexistent', args: ['--spares', '0'], env });
    await eventually('the start is told', () => /try it/.test(proxy.output));
    for (const line of [...lines, `OpenAI base URL +${proxy.url}/v1$`, `Anthropic base URL +${proxy.url}$`, `Ollama base URL +${proxy.url}$`, `web page +${proxy.url}/$`])
      assert.match(proxy.output, new RegExp(`^ +${line}`, 'm'));
    assert.doesNotMatch(proxy.output, /SECRET/);
    proxy.stopped = true;
    assert.deepEqual((await proxy.stop()).faults, []);
  }
});

test('a start whose ANTHROPIC_BASE_URL is its own address is refused, however that is spelled; another address is not', async (t) => {
  const port = await freePort();
  const started = ([url, ...args], env = {}) => startAndExpectExit({ url, cli: '/nonexistent', args: ['--port', String(port), '--no-prompt', ...args], env });
  const beyond = ['--host', '0.0.0.0'];
  const bedrock = { CLAUDE_CODE_USE_BEDROCK: '1', ANTHROPIC_BEDROCK_BASE_URL: `http://localhost:${port}` };
  for (const [args, env] of [
    ...['127.0.0.1', 'localhost', 'LocalHost', '[::1]', '0.0.0.0', 'me:word@127.0.0.1'].map((host) => [[`http://${host}:${port}/v1`]]),
    [[`http://127.0.0.1:${port}`, ...beyond]],
    [[`http://${hostname()}:${port}`, ...beyond]],
    [[`https://localhost:${port}/?x`, 'doctor']],
    [[undefined], bedrock],
  ]) {
    const { exit, output } = await started(args, env);
    assert.equal(exit?.code, args.includes('doctor') ? 1 : 2, `${args}: ${output}`);
    assert.match(output, /ANTHROPIC_(BEDROCK_)?BASE_URL leads to this proxy, which would call itself.*start the proxy without the variable/);
    assert.doesNotMatch(output, /listening/);
  }
  for (const [url, args, env] of [
    [`http://127.0.0.1:${port + 1}`, []],
    [`http://127.0.0.1.example:${port}`, []],
    [`http://api.invalid:${port}`, beyond],
    [`http://127.0.0.1/${port}`, []],
    [`http://127.0.0.1:${port}`, ['--demo']],
    [`http://127.0.0.1:${port}`, [], { CLAUDE_AUTH_METHOD: 'bedrock' }],
  ]) {
    const proxy = await t.start({ cli: args.includes('--demo') ? undefined : '/nonexistent', args: ['--port', String(port), '--no-prompt', ...args], env: { ANTHROPIC_BASE_URL: url, ...env } });
    proxy.stopped = true;
    assert.deepEqual((await proxy.stop()).faults, []);
  }
});

test('the start tells what a user wants to know', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '1'] });
  await eventually('the version', () => proxy.output.includes('2.1.'));
  for (const fact of [proxy.url, t.cli, /api_key/, /spares\W+1/, /login|auth/, /curl /])
    assert.match(proxy.output, fact instanceof RegExp ? fact : new RegExp(fact.replaceAll('.', '\\.')));
  const [private_] = readdirSync(proxy.temporary);
  assert.ok(proxy.output.includes(path.join(proxy.temporary, private_)), 'the private working directory');
});

test('the printed curl line works as printed, with the newest Sonnet by default', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '1'], env: { DEFAULT_MODEL: undefined } });
  const line = await eventually('the line', () => /curl .*$/m.exec(proxy.output)?.[0]);
  const { execFile } = await import('node:child_process');
  const output = await new Promise((resolve, reject) => {
    execFile('sh', ['-c', `${line} -s`], (error, text) => (error ? reject(error) : resolve(text)));
  });
  assert.equal(JSON.parse(output).choices[0].message.content, 'Hello from the loopback API.');
  assert.match(JSON.parse(output).model, /^claude-sonnet-/);
});

test('--timeout ends a request with 504, and its process serves the next', { alone: true }, async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--timeout', '3s', '--spares', '0'] });
  await proxy.inspected();
  const whole = await t.chat({ messages: t.messages('hang') }, { proxy });
  assertRefused(whole, 504);
  await eventually('the API is left', () => t.calls()[0].clientLeft);
  const streamed = await t.chat({ stream: true, messages: t.messages('hang after=2') }, { proxy });
  assert.equal(streamed.status, 200);
  const last = streamed.data.filter((one) => one !== '[DONE]').at(-1);
  assertError(last.error);
  await eventually('the API is left', () => t.calls()[1].clientLeft);
  assert.equal((await t.chat({ messages: t.messages('plain') }, { proxy })).status, 200);
  assert.equal(new Set(t.calls().map(({ headers }) => headers['x-claude-code-session-id'])).size, 1);
});

test('there are never more processes than --max-processes', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '1', '--max-processes', '2'] });
  let most = 0;
  let done = false;
  const watch = (async () => {
    while (!done) {
      most = Math.max(most, proxy.claudes().length);
      await sleep(15);
    }
  })();
  const results = await Promise.all(
    Array.from({ length: 6 }, () => t.chat({ messages: t.messages('plain delay=100') }, { proxy })),
  );
  done = true;
  await watch;
  assert.ok(most > 0 && most <= 2, `${most} at once`);
  for (const result of results.filter(({ status }) => status !== 200)) {
    assertRefused(result, 429);
    assert.match(result.headers['retry-after'] ?? '', /^\d+$/);
  }
  assert.ok(
    results.some(({ status }) => status === 200),
    'those that fit are answered',
  );
});

test('a busy port that was asked for ends it with a clear line', async (t) => {
  const { port, close } = await holdPort();
  t.defer(close);
  for (const args of [['--port', String(port)], [String(port)]]) {
    const { exit, output } = await startAndExpectExit({ url: t.api.url, cli: t.cli, args });
    assert.equal(exit?.code, 1, output);
    assert.match(output, new RegExp(`${port}`));
    assert.match(output, /in use|busy/i);
  }
});

test('a busy default port gives way to the next free one, which is told; so is that all eleven are taken', async (t) => {
  const hold = (port) =>
    new Promise((resolve) => {
      const holder = net.createServer();
      t.defer(async () => holder.close());
      // Somebody else may hold it already, which does as well.
      holder.once('error', resolve).listen(port, '127.0.0.1', resolve);
    });
  await hold(8000);
  const proxy = await t.start({ cli: t.cli, ownPort: true });
  const [, port] = /port 8000 is busy; using (\d+) instead/.exec(proxy.output) ?? assert.fail(proxy.output);
  assert.ok(port > 8000 && port <= 8010, port);
  assert.equal(proxy.port, Number(port));
  assert.equal((await t.get('/health', { proxy })).status, 200);
  for (let other = 8001; other <= 8010; other++) await hold(other);
  const { exit, output } = await startAndExpectExit({ url: t.api.url, cli: t.cli, ownPort: true });
  assert.equal(exit?.code, 1, output);
  assert.match(output, /ports 8000 to 8010 are all taken; choose one with --port/);
});

test('SIGKILL of the proxy leaves no claude behind', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '2'] });
  t.send({ proxy, body: { stream: true, messages: t.messages('hang after=2') } });
  await t.waitForCall();
  await eventually('spares and a busy one', () => proxy.claudes().length >= 2);
  const { faults } = await proxy.stop('SIGKILL');
  proxy.stopped = true;
  assert.deepEqual(faults, []);
});

for (const signal of ['SIGTERM', 'SIGINT']) {
  test(`${signal} ends an idle proxy at once, status 0, and removes its folder`, async (t) => {
    const proxy = await t.start({ cli: t.cli, args: ['--spares', '2'] });
    assert.equal((await t.chat({ messages: t.messages('plain') }, { proxy })).status, 200);
    const [folder] = readdirSync(proxy.temporary);
    const { faults, took } = await proxy.stop(signal);
    proxy.stopped = true;
    assert.deepEqual(faults, []);
    assert.ok(!existsSync(path.join(proxy.temporary, folder)));
    assert.equal(proxy.exit.code, 0);
    assert.ok(took < 6000, `took ${took} ms`);
  });
}

test('a second SIGTERM ends it while an answer hangs', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0'] });
  const exchange = t.send({ proxy, body: { stream: true, messages: t.messages('hang after=2') } });
  await t.waitForCall();
  await eventually('the first delta', () => exchange.chunks.length > 0);
  proxy.kill('SIGTERM');
  await sleep(300);
  const { faults, took } = await proxy.stop();
  proxy.stopped = true;
  assert.deepEqual(faults, []);
  assert.ok(took < 6000, `took ${took} ms`);
});

test('an answer under way at SIGTERM is finished', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0'] });
  const exchange = t.send({ proxy, body: { stream: true, messages: t.messages('plain deltas=6 delay=200') } });
  await eventually('the first delta', () => exchange.chunks.length > 0);
  proxy.kill('SIGTERM');
  const result = await exchange.done;
  assert.equal(result.data?.at(-1), '[DONE]', result.text);
  await assert.rejects(send(proxy, { method: 'GET', path: '/health' }).head, /ECONNREFUSED|ECONNRESET/);
});

test('thirty aborted requests leave nothing behind', { alone: true }, async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '1', '--max-processes', '4', '--idle-timeout', '2s'] });
  const descriptors = () => descriptorsOf(proxy.pid).length;
  const threads = () => readdirSync(`/proc/${proxy.pid}/task`).length;
  await t.get('/health', { proxy });
  const alone = async () => {
    const { warm, busy, idle, stopping } = (await t.get('/health', { proxy })).json.processes;
    return warm === 1 && busy + idle + stopping === 0 && proxy.claudes().length === 1;
  };
  await proxy.inspected(); // by a process of its own
  await eventually('the spare', alone);
  await sleep(500);
  const before = [descriptors(), threads()];
  for (let i = 0; i < 30; i++) {
    const exchange = t.send({ proxy, body: { stream: i % 2 === 0, messages: t.messages('hang') } });
    await sleep(20 + (i % 3) * 60);
    exchange.abort();
  }
  await eventually('one spare is left', alone);
  await eventually('descriptors and threads are as before', () => descriptors() <= before[0] && threads() <= before[1]).catch((error) => assert.fail(`${error.message}; before ${before}, now ${threads()} and ${descriptorsOf(proxy.pid).join()}`));
});
