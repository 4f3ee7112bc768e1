// How often clients may ask, what keys may use, who may come in, and which pages may.

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { eventually, sleep, startAndExpectExit, suite } from './harness.mjs';
import { ask, reload, scrape, startLight, startOwn, waitForWindow } from './operate.mjs';

export const limits = suite();
const { test } = limits;

const writeEnv = (proxy, text) => writeFileSync(path.join(proxy.scratch, '.env'), text);
const bearer = (key) => ({ authorization: `Bearer ${key}` });
const STANDING = ['limit', 'remaining', 'reset'].map((name) => `x-ratelimit-${name}-requests`);
const standing = ({ headers }) => STANDING.map((name) => headers[name]);

/** The 429 of the reference wrapper, with the true seconds. */
function assertLimited(result, what) {
  assert.equal(result.status, 429, `${what}: ${result.text}`);
  const seconds = Number(result.headers['retry-after']);
  assert.ok(Number.isInteger(seconds) && seconds > 0 && seconds <= 60, `${what}: ${result.headers['retry-after']}`);
  const { message, type, code, retry_after: wait } = result.json.error;
  assert.deepEqual(
    { message, type, code, wait },
    {
      message: `Rate limit exceeded. Try again in ${seconds} seconds.`,
      type: 'rate_limit_exceeded',
      code: 'too_many_requests',
      wait: seconds,
    },
    what,
  );
  const [limit, remaining, reset] = standing(result);
  assert.equal(remaining, '0', what);
  assert.ok(Number(limit) >= 0 && Math.abs(Number.parseInt(reset, 10) - seconds) <= 1, `${what}: reset ${reset}`);
}

const probe = (t, proxy, headers) => () => t.get('/version', { proxy, headers });

// ---- rate limits ---------------------------------------------------------------------------------

const GROUPS = [
  ['chat', 'RATE_LIMIT_CHAT_PER_MINUTE', 10, { path: '/v1/chat/completions', body: {} }],
  ['debug', 'RATE_LIMIT_DEBUG_PER_MINUTE', 2, { path: '/v1/debug/request', body: {} }],
  ['auth', 'RATE_LIMIT_AUTH_PER_MINUTE', 10, { method: 'GET', path: '/v1/auth/status' }],
  ['session', 'RATE_LIMIT_SESSION_PER_MINUTE', 15, { method: 'GET', path: '/v1/sessions' }],
  ['health', 'RATE_LIMIT_HEALTH_PER_MINUTE', 30, { method: 'GET', path: '/health' }],
  ['other', 'RATE_LIMIT_PER_MINUTE', 30, { method: 'GET', path: '/v1/tools' }],
];

test('each group of endpoints has its own count, with the documented defaults', { slow: true }, async (t) => {
  const proxy = await startOwn(t, { env: { RATE_LIMIT_ENABLED: 'true' } });
  await waitForWindow(probe(t, proxy), 20);
  await t.get('/version'); // opens the count of health in the new window, if there was a wait
  for (const [name, , limit, request] of GROUPS) {
    const first = await t.send(request).done;
    const [told, left] = standing(first);
    assert.equal(told, String(limit), `${name}: ${first.text}`);
    assert.notEqual(first.status, 429, name);
    let remaining = Number(left);
    if (name !== 'health') assert.equal(remaining, limit - 1, name);
    for (; remaining > 0; remaining--) {
      const next = await t.send(request).done;
      assert.equal(standing(next)[1], String(remaining - 1), name);
      assert.notEqual(next.status, 429, name);
    }
    assertLimited(await t.send(request).done, name);
  }
});

test(
  'what is counted together: dialects, sessions and responses, health and version, the rest',
  { slow: true },
  async (t) => {
    const env = Object.fromEntries(GROUPS.map(([name, variable], i) => [variable, String(101 + i)]));
    await startOwn(t, { env: { ...env, RATE_LIMIT_ENABLED: 'true' } });
    const limitOf = Object.fromEntries(GROUPS.map(([name], i) => [name, String(101 + i)]));
    const post = (path) => ({ path, body: {} });
    const get = (path) => ({ method: 'GET', path });
    const expected = [
      ['chat', [post('/v1/chat/completions'), post('/v1/messages'), post('/v1/responses'), post('/v1/completions'), post('/api/chat'), post('/api/generate')]],
      ['session', [get('/v1/sessions'), get('/v1/sessions/stats'), get('/v1/sessions/x'), get('/v1/responses/x')]],
      ['health', [get('/health'), get('/version'), get('/v1/health'), get('/api/version')]],
      ['auth', [get('/v1/auth/status')]],
      ['debug', [post('/v1/debug/request')]],
      [
        'other',
        [get('/v1/tools'), get('/v1/mcp/servers'), post('/v1/compatibility'), get('/nothing'), get('/v1/messages')],
      ],
      [undefined, [get('/v1/models'), get('/v1/models/x'), get('/api/tags'), post('/api/show'), get('/metrics'), get('/')]],
    ];
    for (const [group, requests] of expected)
      for (const request of requests) {
        const result = await t.send(request).done;
        assert.equal(result.headers[STANDING[0]], limitOf[group], `${request.method} ${request.path}`);
        if (group) assert.match(result.headers[STANDING[2]], /^\d+s?$/);
      }
  },
);

test('a limited request costs nothing, and the window ends when it was told', { slow: true }, async (t) => {
  const proxy = await startLight(t, {
    args: ['--rate-limit', '--rate-limit-chat', '2', '--rate-limit-health', '1000'],
  });
  await waitForWindow(probe(t, proxy));
  const chat = () => t.chat(ask('[[text say=fine]]'));
  assert.deepEqual([(await chat()).status, (await chat()).status], [200, 200]);
  const refused = await chat();
  assertLimited(refused, 'the third');
  const stream = await t.chat({ stream: true, ...ask('[[text]]') });
  assertLimited(stream, 'streamed');
  const messages = await t.send({
    path: '/v1/messages',
    body: { model: 'sonnet', max_tokens: 9, ...ask('[[text]]') },
  }).done;
  assert.equal(messages.status, 429, messages.text);
  assert.deepEqual(
    [messages.json.type, messages.json.error.type],
    ['error', 'rate_limit_error'],
    'in the shape of Messages',
  );
  assert.ok(Number(messages.headers['retry-after']) > 0);
  const figures = await scrape(t);
  assert.equal(figures('rejected_total', { reason: 'rate_limit' }), 3);
  assert.equal(figures('turns_total'), 2, 'the model was asked twice');
  // The seconds are true: they run down, and when they are few enough to wait for, the window ends with them.
  const [begun, left] = [performance.now(), Number(refused.headers['retry-after'])];
  await sleep(left > 30 ? 4000 : left * 1000 + 300);
  const later = await chat();
  if (left <= 30) return assert.equal(later.status, 200, 'the window is over');
  assertLimited(later, 'later');
  const passed = left - Number(later.headers['retry-after']);
  assert.ok(Math.abs(passed - (performance.now() - begun) / 1000) < 2.5, `${passed} s of ${left} have passed`);
});

test('off on loopback unless switched on, on beyond it unless switched off', async (t) => {
  const limited = async (options) => {
    const proxy = await startOwn(t, options);
    const result = await t.get('/health');
    assert.equal(result.status, 200);
    proxy.stopped = true;
    assert.deepEqual((await proxy.stop()).faults, []);
    return result.headers[STANDING[0]] !== undefined;
  };
  const beyond = ['--host', '0.0.0.0'];
  assert.equal(await limited({}), false);
  assert.equal(await limited({ args: ['--rate-limit'] }), true);
  assert.equal(await limited({ env: { RATE_LIMIT_ENABLED: 'on' } }), true);
  assert.equal(await limited({ args: beyond }), true);
  assert.equal(await limited({ args: [...beyond, '--no-rate-limit'] }), false);
  for (const value of ['false', 'False', '0', 'no', 'off'])
    assert.equal(await limited({ args: beyond, env: { RATE_LIMIT_ENABLED: value } }), false, value);
});

test('an address and a key are counted each by itself', { slow: true }, async (t) => {
  const keys = ['one', 'two', 'three'];
  const proxy = await startOwn(t, {
    args: ['--rate-limit', '--trusted-proxy', '127.0.0.1', '--rate-limit-session', '3'],
    env: { API_KEYS: keys.join(',') },
  });
  await waitForWindow(probe(t, proxy, { 'x-forwarded-for': '10.9.9.9' }));
  const from = (address, key) => t.get('/v1/sessions', { headers: { ...bearer(key), 'x-forwarded-for': address } });
  const statuses = async (...calls) => {
    const got = [];
    for (const call of calls) got.push((await from(...call)).status);
    return got;
  };
  // One key from many addresses: the key's count ends it.
  assert.deepEqual(
    await statuses(['10.0.0.1', 'one'], ['10.0.0.2', 'one'], ['10.0.0.3', 'one'], ['10.0.0.4', 'one']),
    [200, 200, 200, 429],
  );
  // Another key is free from the same addresses; and one address with many keys is ended too.
  assert.deepEqual(await statuses(['10.0.0.1', 'two'], ['10.0.0.1', 'three'], ['10.0.0.1', 'two']), [200, 200, 429]);
  assert.deepEqual(await statuses(['10.0.0.5', 'two']), [200]);
  // The stricter of the two is told.
  const told = standing(await from('10.0.0.6', 'three'));
  assert.deepEqual(told.slice(0, 2), ['3', '1'], 'the key has had two, the address one');
});

test('X-Forwarded-For counts from a trusted proxy only, and only its last foreign hop', { slow: true }, async (t) => {
  const remaining = async (proxy, forwarded) => {
    const headers = forwarded ? { 'x-forwarded-for': forwarded } : {};
    return Number(standing(await t.get('/v1/sessions', { proxy, headers }))[1]);
  };
  const args = ['--rate-limit', '--rate-limit-session', '50'];
  const plain = await startOwn(t, { args });
  await waitForWindow(probe(t, plain));
  const first = await remaining(plain, '1.1.1.1');
  assert.equal(await remaining(plain, '2.2.2.2'), first - 1, 'without trust it is nobody’s word');
  const trusting = await startOwn(t, { args: [...args, '--trusted-proxy', '127.0.0.0/8,10.0.0.0/8'] });
  assert.equal(await remaining(trusting, '1.1.1.1'), 49);
  assert.equal(await remaining(trusting, '1.1.1.2'), 49);
  assert.equal(await remaining(trusting, '6.6.6.6, 1.1.1.1'), 48, 'what the client wrote itself is not believed');
  assert.equal(await remaining(trusting, '1.1.1.1, 10.1.2.3'), 47, 'through two proxies of ours');
  assert.equal(await remaining(trusting), 49, 'the proxy itself');
  assert.match(trusting.output, / from 1\.1\.1\.2/, 'the log tells the client');
  const other = await startOwn(t, { args: [...args, '--trusted-proxy', '192.168.0.0/16'] });
  assert.equal(await remaining(other, '1.1.1.1'), 49);
  assert.equal(await remaining(other, '2.2.2.2'), 48, 'another network’s trust is not ours');
});

test('X-Forwarded-For in several lines, as some proxies send it, is one list', async (t) => {
  const proxy = await startOwn(t, {
    args: ['--rate-limit', '--rate-limit-session', '50', '--trusted-proxy', '127.0.0.1'],
  });
  await waitForWindow(probe(t, proxy, { 'x-forwarded-for': '10.9.9.9' }), 5);
  const remaining = async (lines) =>
    Number(standing(await t.get('/v1/sessions', { headers: { 'x-forwarded-for': lines } }))[1]);
  assert.equal(await remaining(['6.6.6.1', '1.1.1.1']), 49);
  assert.equal(await remaining(['6.6.6.2', '1.1.1.1']), 48, 'the first line is the client’s own word');
  assert.equal(await remaining('1.1.1.1'), 47);
});

test('of many requests at once exactly as many pass as may', { slow: true }, async (t) => {
  const proxy = await startOwn(t, { args: ['--rate-limit', '--rate-limit-session', '25'] });
  await waitForWindow(probe(t, proxy), 8);
  const results = await Promise.all(Array.from({ length: 80 }, () => t.get('/v1/sessions')));
  assert.equal(results.filter(({ status }) => status === 200).length, 25);
  assert.equal(results.filter(({ status }) => status === 429).length, 55);
  const left = results.filter(({ status }) => status === 200).map((one) => Number(standing(one)[1]));
  assert.deepEqual(
    left.toSorted((a, b) => a - b),
    Array.from({ length: 25 }, (_, i) => i),
    'each is told its own',
  );
});

test('a limit of 0 shuts a group, and SIGHUP opens it', async (t) => {
  const proxy = await startOwn(t, {
    args: ['--rate-limit', '--env-file', '.env'],
    prepare: (one) => writeEnv(one, 'RATE_LIMIT_SESSION_PER_MINUTE=0\n'),
  });
  assertLimited(await t.get('/v1/sessions'), 'shut');
  assert.equal((await t.get('/v1/tools')).status, 200);
  writeEnv(proxy, 'RATE_LIMIT_SESSION_PER_MINUTE=5\n');
  assert.match(await reload(proxy), /anew/);
  assert.equal((await t.get('/v1/sessions')).status, 200);
});

test('wrong keys are slowed down, counted, and end in a 429', { slow: true }, async (t) => {
  const proxy = await startOwn(t, { args: ['--rate-limit', '--rate-limit-session', '8', '--api-key', 'right'] });
  await waitForWindow(probe(t, proxy), 20);
  const guesses = [];
  for (let i = 0; i < 7; i++) {
    const begun = performance.now();
    const result = await t.get('/v1/sessions', { headers: bearer(`guess-${i}`) });
    assert.equal(result.status, 401);
    assert.equal(result.headers['www-authenticate'], 'Bearer');
    assert.ok(result.headers[STANDING[0]], 'an answer that is limited tells so');
    guesses.push(performance.now() - begun);
  }
  assert.ok(guesses[6] > 800, `the seventh waits: ${guesses.map(Math.round)}`);
  assert.equal((await t.get('/v1/sessions')).status, 401, 'no key at all counts too');
  assertLimited(await t.get('/v1/sessions', { headers: bearer('guess') }), 'enough');
  const figures = await scrape(t, { headers: bearer('right') });
  assert.equal(figures('rejected_total', { reason: 'key' }), 8);
  assert.equal(figures('rejected_total', { reason: 'rate_limit' }), 1);
});

// ---- budgets -------------------------------------------------------------------------------------

/** A key's budget is used up: a 429 that says which, and when it begins anew. */
function assertSpent(result, what, span) {
  assert.equal(result.status, 429, result.text);
  assert.match(result.json.error.message, new RegExp(`budget of ${what} for one ${span}`));
  const seconds = Number(result.headers['retry-after']);
  assert.ok(seconds > 0 && seconds <= (span === 'minute' ? 60 : 86_400), `${seconds}`);
  assert.equal(result.json.error.code, 'budget_exceeded');
  if (span === 'day') {
    const now = new Date();
    const left = 86_400 - (now.getUTCHours() * 3600 + now.getUTCMinutes() * 60 + now.getUTCSeconds());
    assert.ok(Math.abs(seconds - left) <= 3, `until midnight, UTC: ${seconds}, not ${left}`);
  }
}

test('budgets: requests, tokens and dollars of a key, without another key’s', async (t) => {
  const conf = 'answer text n=1 in=30 out=20';
  const env = { API_KEYS: 'one,two' };
  const chat = (key, more) => t.chat(ask('[[text n=1 in=30 out=20]]', more), { headers: bearer(key) });
  await startLight(t, { conf, env, args: ['--budget', 'requests=2/day'] });
  assert.deepEqual([(await chat('one')).status, (await chat('one', { stream: true })).status], [200, 200]);
  assertSpent(await chat('one'), 'requests', 'day');
  assertSpent(await chat('one', { stream: true }), 'requests', 'day');
  assert.equal((await chat('two')).status, 200, 'another key');
  assert.equal((await t.get('/v1/models', { headers: bearer('one') })).status, 200, 'what costs nothing');
  const figures = await scrape(t, { headers: bearer('one') });
  assert.equal(figures('rejected_total', { reason: 'budget' }), 2);

  await startLight(t, { conf, env, args: ['--budget', 'tokens=60/day', '--budget', 'usd=1000/minute'] });
  const one = await chat('one');
  assert.equal(one.json.usage.total_tokens, 50);
  assert.equal((await chat('one', { stream: true })).status, 200, '50 of 60 are used');
  assertSpent(await chat('one'), 'tokens', 'day');

  await startLight(t, { conf, env, args: ['--budget', 'usd=0.0000001/day'] });
  const paid = await chat('one');
  assert.ok(paid.json.usage.cost > 0, paid.text);
  assertSpent(await chat('one'), 'US dollars', 'day');
  assert.equal((await chat('two')).status, 200);
});

test('a client that leaves before the end is charged for what it has got', async (t) => {
  const proxy = await startLight(t, {
    args: ['--budget', 'tokens=200/day', '--max-processes', '3'],
    env: { API_KEY: 'one' },
  });
  const headers = bearer('one');
  const statuses = [];
  for (let i = 0; i < 6; i++) {
    const stream = t.send({
      headers,
      body: { model: 'sonnet', stream: true, ...ask(`[[text n=100 delay_ms=50 in=100 out=100]] ${i}`) },
    });
    statuses.push((await stream.head).statusCode);
    await eventually('some of it has come', () => stream.chunks.length > 2 || stream.status !== 200);
    stream.abort();
    await stream.done;
    await eventually('it is over', () => (proxy.output.match(/ POST \/v1\/chat/g) ?? []).length > i);
  }
  assert.ok(statuses.includes(429), `six times 100 tokens in, of 200: ${statuses}`);
});

test('a budget of a minute, by variable, beside one of a day', { slow: true }, async (t) => {
  const proxy = await startLight(t, {
    args: ['--rate-limit', '--rate-limit-health', '1000', '--rate-limit-chat', '1000'],
    env: { API_KEY: 'one', CLAUDE_BUDGET: 'requests=2/minute,tokens=1000000/day' },
  });
  await waitForWindow(probe(t, proxy));
  const chat = () => t.chat(ask('[[text]]'), { headers: bearer('one') });
  assert.deepEqual([(await chat()).status, (await chat()).status], [200, 200]);
  assertSpent(await chat(), 'requests', 'minute');
  const messages = await t.send({
    path: '/v1/messages',
    headers: bearer('one'),
    body: { model: 'sonnet', max_tokens: 9, ...ask('[[text]]') },
  }).done;
  assert.deepEqual([messages.status, messages.json.error.type], [429, 'rate_limit_error'], messages.text);
});

// ---- pages ---------------------------------------------------------------------------------------

const preflight = (t, origin, headers = {}, path = '/v1/chat/completions') =>
  t.send({
    method: 'OPTIONS',
    path,
    headers: { origin, 'access-control-request-method': 'POST', ...headers },
  }).done;

test('pages of loopback may ask by default, others may not; a preflight needs no key', async (t) => {
  await startOwn(t, { args: ['--api-key', 'right', '--rate-limit', '--rate-limit-chat', '1'] });
  for (const origin of ['http://localhost:5173', 'http://127.0.0.1:3000', 'https://localhost', 'http://[::1]:8080']) {
    const wanted = 'authorization,content-type,x-stainless-os,x-my-own';
    for (let i = 0; i < 3; i++) {
      const allowed = await preflight(t, origin, { 'access-control-request-headers': wanted });
      assert.deepEqual([allowed.status, allowed.text], [200, '']);
      assert.equal(allowed.headers['access-control-allow-origin'], origin);
      assert.equal(allowed.headers['access-control-allow-headers'], wanted);
      for (const method of ['GET', 'POST', 'DELETE'])
        assert.ok(allowed.headers['access-control-allow-methods'].includes(method));
      assert.ok(Number(allowed.headers['access-control-max-age']) > 0);
      assert.match(allowed.headers.vary, /origin/i);
    }
    const got = await t.get('/v1/models', { headers: { origin, ...bearer('right') } });
    assert.equal(got.status, 200);
    assert.equal(got.headers['access-control-allow-origin'], origin);
    const refused = await t.get('/v1/models', { headers: { origin } });
    assert.equal(refused.status, 401);
    assert.equal(refused.headers['access-control-allow-origin'], origin, 'the page can read why');
  }
  for (const origin of ['https://app.example', 'http://127.0.0.1.evil.example', 'http://localhost.evil', 'null']) {
    const denied = await preflight(t, origin);
    assert.equal(denied.headers['access-control-allow-origin'], undefined, origin);
    const asked = await t.get('/v1/models', { headers: { origin, ...bearer('right') } });
    assert.equal(asked.status, 403, origin);
    assert.equal(asked.headers['access-control-allow-origin'], undefined);
  }
});

test('CORS_ORIGINS: a JSON array, commas, repeated flags, and * for all', async (t) => {
  const two = ['https://a.example', 'https://b.example:8443'];
  const ways = [
    { env: { CORS_ORIGINS: JSON.stringify(two) } },
    { env: { CORS_ORIGINS: two.join(', ') } },
    { args: two.flatMap((origin) => ['--cors-origin', origin]) },
    { args: ['--cors-origin', two.join(',')] },
  ];
  for (const way of ways) {
    await startOwn(t, way);
    for (const origin of [...two, 'http://localhost:1'])
      assert.equal(
        (await preflight(t, origin)).headers['access-control-allow-origin'],
        origin,
        `${JSON.stringify(way)} ${origin}`,
      );
    for (const origin of ['https://b.example', 'http://a.example', 'https://a.example.evil'])
      assert.equal((await t.get('/v1/models', { headers: { origin } })).status, 403, origin);
  }
  for (const value of ['*', '["*"]']) {
    await startOwn(t, { env: { CORS_ORIGINS: value, API_KEY: 'a-key' } });
    for (const origin of ['https://any.example', 'null'])
      assert.ok(
        [origin, '*'].includes((await preflight(t, origin)).headers['access-control-allow-origin']),
        `${value} ${origin}`,
      );
  }
});

test('a page can read every header that the README and the SDKs use', async (t) => {
  await startLight(t, { args: ['--rate-limit', '--rate-limit-chat', '100'] });
  const origin = 'http://localhost:5173';
  const result = await t.chat(ask('[[rate_limit]]', { seed: 1 }), { headers: { origin } });
  assert.equal(result.status, 200, result.text);
  const exposed = result.headers['access-control-expose-headers'].toLowerCase().split(/, */);
  // Those that every page can read, and what only the browser has a use for.
  const safelisted = [
    ...['cache-control', 'content-length', 'content-type', 'date', 'connection', 'keep-alive', 'vary'],
    'x-content-type-options',
  ];
  const hidden = Object.keys(result.headers).filter(
    (name) =>
      !exposed.includes(name) && !safelisted.includes(name) && !/^access-control-|^transfer-|^server$/.test(name),
  );
  assert.deepEqual(hidden, []);
  for (const name of ['x-request-id', 'retry-after', 'retry-after-ms', 'x-should-retry', ...STANDING])
    assert.ok(exposed.includes(name), name);
});

test('too many wrong keys of one address end in a 429, also for a right one, on every route', { slow: true }, async (t) => {
  const args = ['--api-key', 'the-right-key', '--trusted-proxy', '127.0.0.1', '--rate-limit', '--rate-limit-health', '1000'];
  const proxy = await startOwn(t, { args });
  const from = (address, key) => ({ headers: { ...(key ? bearer(key) : {}), 'x-forwarded-for': address } });
  await waitForWindow(() => t.get('/version', from('9.9.9.9')), 20);
  // A route that needs no key would tell a right one, too, by a foreign Host. Its wrong keys do not wait.
  const guesses = await Promise.all(
    Array.from({ length: 40 }, (_, i) => t.get('/version', from('1.1.1.1', `guess-${i}`))),
  );
  assert.equal(guesses.filter(({ status }) => status === 200).length, 30);
  const refused = guesses.filter(({ status }) => status === 429);
  assert.equal(refused.length, 10);
  assert.match(refused[0].text, /[Ww]rong keys/);
  assert.ok(Number(refused[0].headers['retry-after']) > 0);
  for (const where of ['/v1/models', '/metrics', '/', '/health'])
    assert.equal((await t.get(where, from('1.1.1.1', 'the-right-key'))).status, 429, where);
  assert.equal((await t.get('/health', from('1.1.1.1'))).status, 200, 'no key is no guess');
  assert.equal((await t.get('/v1/models', from('2.2.2.2', 'the-right-key'))).status, 200, 'another address');
  // An address that has shown a right key is slowed down as ever, and not shut out.
  for (let i = 0; i < 40; i++) await t.get('/version', from('2.2.2.2', 'wrong'));
  assert.equal((await t.get('/v1/models', from('2.2.2.2', 'the-right-key'))).status, 200);
  assert.equal(proxy.exit, undefined);
});

test('a short key is refused beyond loopback, with a sentence', async (t) => {
  const { exit, output } = await startAndExpectExit({ args: ['--host', '0.0.0.0', '--port', '0', '--api-key', 'hunter2'] });
  assert.notEqual(exit?.code ?? 0, 0, output);
  assert.match(output, /at least 16 characters/);
  assert.doesNotMatch(output, /hunter2/);
});

// ---- memory --------------------------------------------------------------------------------------

test('bodies of many small values share the memory of bodies, however short their text is', async (t) => {
  const proxy = await startLight(t);
  const zeros = (count) => `[${'0,'.repeat(count)}0]`;
  const body = (text, count) =>
    `{"messages":[{"role":"user","content":"${text}"}],"prediction":${zeros(count)}}`;
  const first = t.send({ proxy, body: body('[[hang]]', 250_000) });
  await eventually('the first is worked on', async () => (await scrape(t))('processes', { state: 'busy' }) === 1);
  const second = await t.send({ proxy, body: body('[[text say=fine]]', 250_000) }).done;
  assert.equal(second.status, 503, second.text);
  assert.match(second.text, /too many large requests/);
  assert.equal((await t.send({ proxy, body: body('[[text say=fine]]', 1000) }).done).status, 200, 'a small one');
  first.abort();
  await eventually('the first has left', async () => {
    const again = await t.send({ proxy, body: body('[[text say=fine]]', 250_000) }).done;
    return again.status === 200;
  });
});
