// Who may come in, and what may get out: foreign pages, guessed keys, paths with tricks, injected headers, secrets.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { chownSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs';
import path from 'node:path';
import { API_KEY_OF_CLAUDE, eventually, processesMarked, sleep, suite } from './harness.mjs';
import { MODEL, chatBody, connectRaw, filesIn, get, head, post, postChat, scratch, standIn } from './raw_client.mjs';

export const security = suite();
const { test } = security;

const KEY = 'key-of-a-client-4711';

/** One raw request, one answer. */
async function ask(t, proxy, bytes) {
  const client = connectRaw(t, proxy);
  await client.write(bytes);
  const [answer] = await client.answers();
  client.close();
  return answer ?? { status: 0, headers: {}, text: '' };
}

const withHost = (request, ...fields) => request.replace('Host: 127.0.0.1', fields.join('\r\n'));

// ---- foreign pages -------------------------------------------------------------------------------

test('a name that a page could rebind is refused, however it is written', async (t) => {
  const { port } = t.proxy;
  const faults = [];
  for (const host of [
    'evil.example.',
    'EVIL.EXAMPLE',
    '127.0.0.1@evil.example',
    'localhost@evil.example',
    `evil.example:${port}:${port}`,
    'localhost.',
    `localhost.:${port}`,
    'localhost:evil',
    'localhost:8000.evil.example',
    '127.0.0.1.',
    '127.0.0.1.nip.io',
    '127.1.evil.example',
    '[::1].evil.example',
    '[::1]evil.example',
    '[evil.example]',
    '127.0.0.1,evil.example',
    '127.0.0.1 evil.example',
    'evil.example\t127.0.0.1',
    'evil.example#127.0.0.1',
    'localhost/evil.example',
    'xn--localhost-',
    'localhost%00.evil.example',
    'localhost%2eevil.example',
  ])
    for (const request of [get('/v1/models'), get('/health'), postChat('[[text]]')]) {
      const { status } = await ask(t, t.proxy, withHost(request, `Host: ${host}`));
      // A last dot is the same name, so that one may be taken for ours.
      const same = /^(localhost|127\.0\.0\.1)\.(:\d+)?$/.test(host);
      if (!(status >= 400 && status < 500) && !(same && status === 200)) faults.push(`${host}: ${status}`);
    }
  assert.ok(!faults.length, faults.join('; '));
});

test('a second name does not get in behind the first', async (t) => {
  const faults = [];
  for (const [what, request] of [
    ['two Host fields', withHost(get('/v1/models'), 'Host: 127.0.0.1', 'Host: evil.example')],
    ['two, the other way', withHost(get('/v1/models'), 'Host: evil.example', 'Host: 127.0.0.1')],
    ['a foreign absolute target', get('http://evil.example/v1/models')],
    ['a foreign absolute target, no Host', withHost(get('http://evil.example/v1/models'), 'X: y')],
    ['a foreign Host with an own target', withHost(get('http://127.0.0.1/v1/models'), 'Host: evil.example')],
    ['no Host', withHost(get('/v1/models'), 'X: y')],
    ['a space before the colon', withHost(get('/v1/models'), 'Host : evil.example', 'Host: 127.0.0.1')],
    ['a folded Host', withHost(get('/v1/models'), 'Host:', ' evil.example')],
  ]) {
    const { status } = await ask(t, t.proxy, request);
    if (status === 200) faults.push(`${what}: ${status}`);
  }
  // An own target with a foreign Host: the target counts, says the standard. Either is safe when the target is an address.
  assert.ok(!faults.filter((one) => !one.startsWith('a foreign Host with')).length, faults.join('; '));
});

test('names of this machine are taken in any writing', async (t) => {
  const { port } = t.proxy;
  for (const host of [
    'LOCALHOST',
    `LocalHost:${port}`,
    '127.0.0.1',
    `127.0.0.1:${port}`,
    '[::1]',
    `[::1]:${port}`,
    '192.168.1.7',
  ])
    assert.equal((await ask(t, t.proxy, withHost(get('/v1/models'), `Host: ${host}`))).status, 200, host);
});

test('pages of other origins are refused on every route, with a key too', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--api-key', KEY, '--spares', '0'] });
  const faults = [];
  for (const origin of [
    'http://evil.example',
    'http://localhost.evil.example',
    'http://localhost@evil.example',
    'http://evil.example#localhost',
    'http://evil.example?http://localhost',
    'http://127.0.0.1.nip.io',
    'http://[::1].evil.example',
    'http://192.168.1.7',
    'null',
    'NULL',
    'chrome-extension://abcdef',
    'moz-extension://abcdef',
    'localhost',
    '//localhost',
    'http://localhost http://evil.example',
    'http://localhost, http://evil.example',
    'http://evil.example%00localhost',
  ])
    for (const request of [
      get('/health', `Origin: ${origin}`),
      get('/v1/models', `Origin: ${origin}`, `Authorization: Bearer ${KEY}`),
      post('/v1/chat/completions', chatBody('x'), `Origin: ${origin}`, `x-api-key: ${KEY}`, 'Content-Type: text/plain'),
      head('OPTIONS /v1/chat/completions HTTP/1.1', `Origin: ${origin}`, 'Access-Control-Request-Method: POST'),
    ]) {
      const { status, headers } = await ask(t, proxy, request);
      if (status !== 403) faults.push(`${origin}: ${status}`);
      if (headers['access-control-allow-origin']) faults.push(`${origin}: allowed`);
    }
  assert.ok(!faults.length, faults.join('; '));
  assert.equal(proxy.claudes().length, 0);
});

test('a second Origin does not get in behind the first', async (t) => {
  for (const pair of [
    ['Origin: http://localhost', 'Origin: http://evil.example'],
    ['Origin: http://evil.example', 'Origin: http://localhost'],
  ]) {
    const { status, headers } = await ask(t, t.proxy, get('/v1/models', ...pair));
    assert.ok(status >= 400 && status < 500, `${pair}: ${status}`);
    assert.equal(headers['access-control-allow-origin'], undefined);
  }
});

test('what a page can ask for by GET, without Origin, changes nothing', async (t) => {
  for (const target of [
    '/v1/chat/completions',
    '/v1/sessions/x',
    '/v1/tools/config',
    '/v1/mcp/servers',
    '/v1/mcp/connect',
  ]) {
    const { status } = await ask(t, t.proxy, get(`${target}?session_id=x&messages=y`, 'Sec-Fetch-Site: cross-site'));
    const only = ['/v1/tools/config', '/v1/mcp/servers'].includes(target); // tells, and changes nothing
    assert.ok(only || (status >= 400 && status < 500), `${target}: ${status}`);
  }
  assert.equal((await t.get('/v1/sessions')).json.total, 0, 'no session was made');
});

test('no answer lets a foreign page read it, and none is framed or sniffed into a page', async (t) => {
  const name = '<img src=x onerror=alert(1)>';
  for (const request of [
    get(`/v1/${encodeURIComponent(name)}`),
    post('/v1/chat/completions', `{"model":"${name}","messages":[]}`),
  ]) {
    const { headers } = await ask(t, t.proxy, request);
    assert.equal(headers['access-control-allow-origin'], undefined);
    assert.match(headers['content-type'], /^application\/json/);
  }
});

test('/health tells a stranger no path and no word of claude', async (t) => {
  const proxy = await t.start({ cli: '/home/somebody/bin/claude', args: ['--api-key', KEY, '--spares', '0'] });
  await proxy.inspected();
  const { status, json } = await t.get('/health', { proxy });
  assert.equal(status, 200);
  assert.deepEqual(json, { status: 'degraded', service: 'claude-openai', code: 'claude_not_usable' });
  assert.deepEqual((await t.get('/health', { proxy, headers: { 'x-api-key': 'wrong' } })).json, json);
  const whole = (await t.get('/health', { proxy, headers: { 'x-api-key': KEY } })).json;
  assert.match(whole.problem, /\/home\/somebody|claude/);
  assert.equal(whole.processes.maximum > 0, true);
});

// ---- keys ----------------------------------------------------------------------------------------

test('no answer is sniffed into another type, nor kept by a cache', async (t) => {
  const chat = { messages: t.messages('plain'), model: MODEL };
  const post = (body, where = '/v1/chat/completions') => t.send({ path: where, body }).done;
  const raw = await ask(t, t.proxy, 'GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n folded\r\n\r\n');
  assert.equal(raw.status, 400, 'what is no request');
  for (const [what, { headers }] of Object.entries({
    raw,
    chat: await post(chat),
    stream: await post({ ...chat, stream: true }),
    messages: await post({ ...chat, max_tokens: 100 }, '/v1/messages'),
    lines: await post({ ...chat, stream: false }, '/api/chat'),
    'bad request': await post({ messages: 7 }),
    'unknown path': await t.get('/v1/nothing'),
    models: await t.get('/v1/models'),
    sessions: await t.get('/v1/sessions'),
    figures: await t.get('/metrics'),
    page: await t.get('/'),
  })) {
    assert.equal(headers['x-content-type-options'], 'nosniff', what);
    assert.match(headers['cache-control'], what === 'stream' ? /^no-cache, no-store$/ : /^no-store$/, what);
  }
});

test('guessing keys is slow, and does not slow who has one', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--api-key', KEY, '--spares', '0'] });
  const guess = (i) => t.get('/v1/models', { proxy, headers: { 'x-api-key': `guess-${i}` } });
  const started = performance.now();
  let turnedAway = 0;
  let slowest = 0;
  for (let i = 0; i < 12; i++) {
    const { status } = await guess(i);
    assert.ok([401, 429].includes(status), `${status}`);
    turnedAway += status === 429;
    if (i % 4 !== 3) continue;
    const asked = performance.now();
    assert.equal((await t.get('/v1/models', { proxy, headers: { 'x-api-key': KEY } })).status, 200);
    assert.equal((await t.get('/health', { proxy })).status, 200);
    slowest = Math.max(slowest, performance.now() - asked);
  }
  const took = performance.now() - started;
  assert.ok(took > 1000 || turnedAway > 0, `twelve guesses took ${Math.round(took)} ms`);
  assert.ok(slowest < 3000, `who has a key waited ${Math.round(slowest)} ms`);
  const many = performance.now();
  const statuses = await Promise.all(Array.from({ length: 40 }, (_, i) => guess(i).then(({ status }) => status)));
  assert.ok(
    performance.now() - many > 500 || statuses.includes(429),
    `forty guesses at once took ${Math.round(performance.now() - many)} ms`,
  );
});

test('a key is compared byte by byte, as it was sent', async (t) => {
  const keys = ['plain-key', 'per%63ent%20key'];
  const proxy = await t.start({ cli: t.cli, args: [...keys.flatMap((key) => ['--api-key', key]), '--spares', '0'] });
  const faults = [];
  for (const [key, wanted] of [
    [keys[0], 200],
    [keys[1], 200],
    ['%70lain-key', 401],
    ['plain%2dkey', 401],
    ['percent key', 401],
    ['PLAIN-KEY', 401],
    ['plain-key\x00', 400],
    ['plain-key, per%63ent%20key', 401],
    ['"plain-key"', 401],
    ['plain-ke', 401],
    ['plain-keyy', 401],
    ['', 401],
    ['x'.repeat(7000), 401],
  ])
    for (const field of [`x-api-key: ${key}`, `Authorization: Bearer ${key}`]) {
      const { status } = await ask(t, proxy, get('/v1/models', field));
      if (status !== wanted && !(wanted === 400 && status === 401)) faults.push(`${field.slice(0, 60)}: ${status}`);
    }
  assert.ok(!faults.length, faults.join('; '));
  for (const request of [
    get('/v1/models?api_key=plain-key&key=plain-key'),
    get('/v1/models', 'Cookie: api_key=plain-key'),
    get('/v1/models', 'Proxy-Authorization: Bearer plain-key'),
  ])
    assert.equal((await ask(t, proxy, request)).status, 401, request);
});

// ---- paths ---------------------------------------------------------------------------------------

test('no way of writing a path gets past the key', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--api-key', KEY, '--spares', '0'] });
  const faults = [];
  for (const target of [
    '//v1/models',
    '/v1//models',
    '/v1/../v1/models',
    '/health/../v1/models',
    '/health/%2e%2e/v1/models',
    '/health%2f..%2fv1/models',
    '/v1/health/../models',
    '/v1%2fmodels',
    '/%76%31/models',
    '/v1/models%00/health',
    '/v1/models%00',
    '/v1/models/',
    '/v1/models//',
    '/v1/models;/health',
    '/v1/models?/health',
    '/v1/models#/health',
    '/V1/MODELS',
    '/./v1/models',
    '/v1/v1/models',
    '\\v1\\models',
    '/v1/sessions/%2e%2e',
    '/v1/models/../health',
    '/health?x=/../v1/models',
    'http://127.0.0.1/v1/models',
    'models',
    '*',
  ])
    for (const method of ['GET', 'HEAD', 'POST', 'DELETE', 'PUT', 'TRACE', 'CONNECT']) {
      const client = connectRaw(t, proxy);
      await client.write(`${method} ${target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n`);
      await client.ends(5000);
      const status = Number(/^HTTP\/1.1 (\d+)/.exec(client.got)?.[1] ?? 0);
      client.close();
      const open = method === 'GET' && target.startsWith('/health?');
      const isOpen = open || (method === 'HEAD' && target.startsWith('/health?'));
      if (isOpen ? status !== 200 : !(status >= 400 && status < 500)) faults.push(`${method} ${target}: ${status}`);
    }
  assert.ok(!faults.length, faults.join('; '));
});

test('the dots of a path lead nowhere', async (t) => {
  for (const target of [
    '/v1/../health',
    '/v1/%2e%2e/health',
    '/../health',
    '/..%2fhealth',
    '/v1/./health',
  ]) {
    const { status } = await ask(t, t.proxy, get(target));
    assert.ok(status === 404 || status === 400, `${target}: ${status}`);
  }
});

test('session ids are names, whatever they look like, and never paths', async (t) => {
  const { program } = standIn(t);
  let sessions;
  const proxy = await t.start({
    cli: program,
    args: ['--spares', '0', '--idle-timeout', '0'],
    prepare: (one) => {
      sessions = path.join(one.scratch, 'kept', 'sessions');
      mkdirSync(path.join(one.scratch, 'kept'));
      one.command.push('--session-dir', sessions);
    },
  });
  const before = readdirSync(proxy.scratch).sort();
  const ids = [
    '../out',
    '../../out',
    '..',
    '.',
    'a/b',
    'a\\b',
    '/etc/passwd',
    'con:x',
    '.hidden',
    '~',
    '%2e%2e%2fout',
    'a b',
    '*',
    'ü',
    '-rf',
    '$(id)',
    "';--",
  ];
  for (const id of ids) {
    const result = await t.send({ proxy, body: chatBody('[[text say=kept]]', { session_id: id }) }).done;
    if (result.status === 400) continue;
    assert.equal(result.status, 200, `${id}: ${result.text}`);
    const where = `/v1/sessions/${encodeURIComponent(id).replaceAll('.', '%2e')}`;
    const told = await t.get(where, { proxy });
    assert.deepEqual([told.status, told.json?.session_id], [200, id], `${where}: ${told.text}`);
  }
  for (const file of filesIn(path.dirname(sessions))) assert.match(file, /^(claude-openai\.sqlite(-wal)?|salt)$/, file);
  assert.deepEqual(readdirSync(path.dirname(sessions)), ['sessions']);
  assert.deepEqual(readdirSync(proxy.scratch).sort(), before);
  for (const id of ids) {
    const gone = await t.send({
      proxy,
      method: 'DELETE',
      path: `/v1/sessions/${encodeURIComponent(id).replaceAll('.', '%2e')}`,
    }).done;
    assert.ok([200, 400, 404].includes(gone.status), `${id}: ${gone.status}`);
  }
  for (const id of ['a\u0000b', 'a\nb', 'a\r\nX: y']) {
    const result = await t.send({ proxy, body: chatBody('x', { session_id: id }) }).done;
    assert.equal(result.status, 400, JSON.stringify(id));
  }
});

test("one client's key opens nothing of another's", async (t) => {
  const { program } = standIn(t);
  const proxy = await t.start({ cli: program, args: ['--api-key', 'one', '--api-key', 'two', '--spares', '0'] });
  const as = (key) => ({ proxy, headers: { 'x-api-key': key } });
  const kept = await t.send({ ...as('one'), body: chatBody('[[text say=secret]]', { session_id: 'shared' }) }).done;
  assert.equal(kept.status, 200);
  const stored = await t.send({
    ...as('one'),
    path: '/v1/responses',
    body: { model: MODEL, input: '[[text say=secret]]' },
  }).done;
  assert.equal(stored.status, 200, stored.text);
  assert.equal((await t.get('/v1/sessions/shared', as('two'))).status, 404);
  assert.equal((await t.get(`/v1/responses/${stored.json.id}`, as('two'))).status, 404);
  assert.equal((await t.send({ ...as('two'), method: 'DELETE', path: '/v1/sessions/shared' }).done).status, 404);
  assert.equal(
    (await t.send({ ...as('two'), method: 'DELETE', path: `/v1/responses/${stored.json.id}` }).done).status,
    404,
  );
  assert.ok(!(await t.get('/v1/sessions', as('two'))).text.includes('shared'));
  const next = await t.send({ ...as('two'), body: chatBody('[[echo]]', { session_id: 'shared' }) }).done;
  assert.ok(!next.json.choices[0].message.content.includes('say=secret'), 'a history of its own');
  const refused = await t.send({
    ...as('two'),
    path: '/v1/responses',
    body: { model: MODEL, input: 'x', previous_response_id: stored.json.id },
  }).done;
  assert.ok([400, 404].includes(refused.status), refused.text);
});

// ---- headers -------------------------------------------------------------------------------------

test('no value gets a header of its own into an answer', async (t) => {
  const endings = [
    '%0d%0aEvil: yes',
    '%0aEvil: yes',
    '%0dEvil: yes',
    '\rEvil: yes',
    '%00\rEvil: yes',
    '%E5%98%8A%E5%98%8DEvil: yes',
  ];
  for (const ending of endings)
    for (const request of [
      get('/health', `X-Request-Id: id${ending}`),
      get('/v1/models', `Origin: http://localhost${ending}`),
      get('/v1/models', `Host: localhost${ending}`),
      head('OPTIONS /v1/models HTTP/1.1', 'Origin: http://localhost', `Access-Control-Request-Headers: a${ending}`),
      head('OPTIONS /v1/models HTTP/1.1', 'Origin: http://localhost', `Access-Control-Request-Method: a${ending}`),
      get(`/v1/models/x${ending.replaceAll(' ', '%20').replaceAll('\r', '%0d')}`),
      get(`/v1/x${ending.replaceAll(' ', '%20').replaceAll('\r', '%0d')}`),
      postChat('[[text]]', {}, `X-Session-Id: s${ending}`),
      postChat('[[text]]', {}, `X-Claude-Max-Turns: 1${ending}`),
      postChat('[[text]]', {}, `X-Claude-Cwd: /tmp${ending}`),
      postChat('[[text]]', {}, `anthropic-version: 2023-06-01${ending}`),
    ]) {
      const client = connectRaw(t);
      await client.write(request);
      await client.answers();
      const head_ = client.got.split('\r\n\r\n')[0];
      assert.doesNotMatch(head_, /^evil/im, `${request}\n${head_}`);
      assert.ok(!/[^\r]\n|\r[^\n]/.test(head_), `a bare line end: ${JSON.stringify(head_)}`);
      client.close();
    }
});

test('no field of a body gets a header of its own into an answer', async (t) => {
  const evil = 'x\r\nEvil: yes';
  for (const more of [
    { model: evil },
    { user: evil },
    { session_id: evil },
    { [evil]: 1 },
    { seed: evil },
    { stop: [evil] },
    { response_format: { type: evil } },
    { service_tier: evil },
    { tools: [{ type: evil }] },
    { tools: [{ type: 'function', function: { name: evil } }] },
    { metadata: { [evil]: evil } },
    { stream: true, model: evil },
  ]) {
    const client = connectRaw(t);
    await client.write(postChat('[[text]]', more));
    await client.answers();
    assert.doesNotMatch(client.got.split('\r\n\r\n')[0], /^evil/im, JSON.stringify(more));
    client.close();
  }
});

test("a client's words make no line of the log", async (t) => {
  const { program } = standIn(t);
  const proxy = await t.start({ cli: program, args: ['--log-level', 'debug', '--spares', '0'] });
  await ask(t, proxy, get('/v1/x%0a2026-01-01T00:00:00Z%20error%20forged%0d%1b[31m'));
  await ask(t, proxy, get('/health', 'X-Request-Id: id%0aforged'));
  await ask(t, proxy, postChat('[[text]]', { model: 'x\nforged' }));
  await ask(t, proxy, postChat('[[text]]', { session_id: 'x\nforged' }));
  await sleep(100);
  for (const line of proxy.output.split('\n')) assert.doesNotMatch(line, /^(forged|2026-01-01T00:00:00Z)|\x1b/, line);
});

// ---- secrets -------------------------------------------------------------------------------------

const SECRET_KEY = 'sk-flag-key-31337';
const ENVIRONMENT = { API_KEY: 'sk-env-key-31337', API_KEYS: 'sk-env-keys-31337', GITHUB_TOKEN: 'sk-github-31337' };
const SAID = 'the-words-of-a-client-31337';

for (const level of ['debug', 'info', 'warning', 'error', 'off']) {
  test(`at --log-level ${level} no key and no word of a client is in the log`, async (t) => {
    const { program } = standIn(t);
    const proxy = await t.start({
      cli: program,
      args: ['--api-key', SECRET_KEY, '--log-level', level, '--spares', '1'],
      env: ENVIRONMENT,
    });
    if (!proxy.port) return;
    const mine = { 'x-api-key': SECRET_KEY };
    const wish = (what) => `${SAID} [[${what}]]`;
    const asked = [
      { body: chatBody(wish('text')) },
      { body: chatBody(wish('text'), { stream: true }) },
      { body: chatBody(wish('crash')) },
      { body: chatBody(wish('crash after=1'), { stream: true }) },
      { body: chatBody(wish('malformed kind=not_json')) },
      { body: chatBody(wish('malformed kind=deep')) },
      { body: chatBody(wish('api_error status=500')) },
      { body: chatBody(wish('error_result')) },
      { body: chatBody(wish('stderr_flood bytes=1000')) },
      { body: `{"messages":[{"role":"user","content":"${SAID}` },
      { body: chatBody('x', { temperature: SAID }) },
      { body: chatBody('x', { response_format: { type: SAID } }) },
      { body: chatBody('x', { session_id: 's', user: SAID, metadata: { [SAID]: SAID } }) },
      { body: { model: MODEL, input: SAID }, path: '/v1/responses' },
      { body: { model: MODEL, max_tokens: 9, messages: [{ role: 'user', content: SAID }] }, path: '/v1/messages' },
      { body: { model: MODEL, prompt: SAID }, path: '/v1/completions' },
      { body: { model: MODEL, prompt: SAID, options: { seed: SAID } }, path: '/api/generate' },
      { method: 'GET', path: `/v1/models?api_key=${SECRET_KEY}&q=${SAID}` },
      { method: 'GET', path: '/v1/models', headers: { 'x-api-key': 'sk-wrong-key-31337' } },
      { method: 'GET', path: '/v1/models', headers: { authorization: 'Bearer sk-wrong-key-31337' } },
      { method: 'GET', path: '/v1/models', headers: { authorization: `Basic ${SECRET_KEY}` } },
    ];
    await Promise.all(asked.map((one) => t.send({ proxy, ...one, headers: { ...mine, ...one.headers } }).done));
    await sleep(200);
    for (const secret of [SECRET_KEY, ...Object.values(ENVIRONMENT), API_KEY_OF_CLAUDE, 'sk-wrong-key-31337', SAID])
      assert.ok(!proxy.output.includes(secret), `${secret} in ${proxy.output.slice(0, 3000)}`);
    if (level === 'off') assert.doesNotMatch(proxy.output, / (debug|info|warning|error) /);
  });
}

for (const form of [['--api-key', SECRET_KEY], [`--api-key=${SECRET_KEY}`]]) {
  test(`\`ps\` shows no key: ${form.length > 1 ? '--api-key KEY' : '--api-key=KEY'}`, async (t) => {
    const { program } = standIn(t);
    const proxy = await t.start({
      cli: program,
      args: [...form, '--api-key', 'sk-second-31337', '--spares', '1'],
      env: ENVIRONMENT,
    });
    const exchange = t.send({
      proxy,
      headers: { 'x-api-key': SECRET_KEY },
      body: chatBody(`${SAID} [[hang after=1]]`, { stream: true }),
    });
    const secrets = [SECRET_KEY, 'sk-second-31337', ...Object.values(ENVIRONMENT), API_KEY_OF_CLAUDE, SAID];
    let processes = [];
    await eventually('the proxy, its guard, the spare and the busy one', () => {
      processes = processesMarked(proxy.scratch);
      return proxy.claudes().length >= 2 && processes.length >= 4;
    });
    const faults = [];
    for (const { pid, argv } of processes)
      for (const secret of secrets)
        if (argv.join(' ').includes(secret))
          faults.push(`${secret} in the command line of ${pid === proxy.pid ? 'the proxy' : pid}`);
    for (const { environment } of proxy.claudes())
      for (const secret of secrets)
        if (secret !== API_KEY_OF_CLAUDE && JSON.stringify(environment).includes(secret))
          faults.push(`${secret} in a claude's environment`);
    exchange.abort();
    assert.ok(!faults.length, faults.join('; '));
  });
}

test('no other process reads the memory of the proxy, and it leaves no core file; it runs well so', async (t) => {
  // Root reads everything: then the proxy is somebody else, without rights.
  const asRoot = process.getuid() === 0;
  const proxy = await t.start({
    args: ['--demo', '--api-key', KEY],
    env: { CLAUDE_DEMO_PACE: '0ms' },
    prepare: (one) => {
      if (!asRoot) return;
      [one.scratch, one.home, one.temporary].forEach((folder) => chownSync(folder, 12345, 12345));
      one.command.unshift('setpriv', '--reuid=12345', '--regid=12345', '--clear-groups');
    },
  });
  const of = (file) => `/proc/${proxy.pid}/${file}`;
  assert.match(readFileSync(of('limits'), 'utf8'), /^Max core file size +0 /m);
  assert.equal(statSync(of('environ')).uid, 0, 'not its user may read it');
  if (!asRoot) assert.throws(() => readFileSync(of('environ')), /EACCES/);
  const body = chatBody('/say fine');
  const { json } = await t.send({ proxy, headers: { 'x-api-key': KEY }, body }).done;
  assert.equal(json.choices[0].message.content, 'fine');
});

test('what is stored of a session is for the owner alone, and holds no key', async (t) => {
  const { program } = standIn(t);
  let sessions;
  const proxy = await t.start({
    cli: program,
    args: ['--api-key', SECRET_KEY, '--spares', '0'],
    prepare: (one) => one.command.push('--session-dir', (sessions = path.join(one.scratch, 'sessions'))),
  });
  const result = await t.send({
    proxy,
    headers: { 'x-api-key': SECRET_KEY },
    body: chatBody('[[text]]', { session_id: 'mine' }),
  }).done;
  assert.equal(result.status, 200, result.text);
  assert.equal(statSync(sessions).mode & 0o077, 0, 'the folder');
  for (const name of readdirSync(sessions)) {
    assert.equal(statSync(path.join(sessions, name)).mode & 0o077, 0, name);
    assert.ok(!readFileSync(path.join(sessions, name), 'utf8').includes(SECRET_KEY));
    assert.ok(!name.includes(SECRET_KEY));
  }
  assert.ok(readdirSync(sessions).includes('claude-openai.sqlite'));
});

test('a key finds its stored sessions after a restart, and a copy without the salt tells nothing of the key', async (t) => {
  const { program } = standIn(t);
  const sessions = path.join(scratch(t), 'sessions');
  const mine = { 'x-api-key': KEY };
  const start = () => t.start({ cli: program, args: ['--api-key', KEY, '--spares', '0', '--session-dir', sessions] });
  const total = async (proxy) => (await t.get('/v1/sessions', { proxy, headers: mine })).json.total;
  const first = await start();
  const body = chatBody('[[text]]', { session_id: 'mine' });
  assert.equal((await t.send({ proxy: first, headers: mine, body }).done).status, 200);
  await first.stop();
  first.stopped = true;
  const content = readFileSync(path.join(sessions, 'claude-openai.sqlite'), 'latin1');
  const salt = readFileSync(path.join(sessions, 'salt'));
  assert.ok(content.includes(createHmac('sha256', salt).update(KEY).digest('hex')));
  assert.ok(!content.includes(salt.toString()));
  const second = await start();
  assert.equal(await total(second), 1);
  await second.stop();
  second.stopped = true;
  rmSync(path.join(sessions, 'salt'));
  assert.equal(await total(await start()), 0, 'by another salt nobody has that name');
});
