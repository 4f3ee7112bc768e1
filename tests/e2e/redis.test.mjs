// State that several proxies share in Redis: what each of them knows of it, what happens when Redis is gone, slow, wrong or used by
// others. Both ends are looked at: the stand-in answers with the secrets in all that it was sent.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { CLI_VERSIONS, DEFAULT_MODEL, claudePath } from './claude_cli.mjs';
import { PROXY, eventually, startAndExpectExit, suite } from './harness.mjs';
import { directive } from './messages_api.mjs';
import { ask, scrape, standIn } from './operate.mjs';
import { PASSWORD, Redis, assertAnswered, keyOf, noRedis } from './redis_server.mjs';

export const redis = suite();
redis.skip = noRedis;
const { test } = redis;

const bearer = (key) => ({ authorization: `Bearer ${key}` });
const newest = claudePath(CLI_VERSIONS.at(-1));

/** A Redis, and proxies that share it. */
async function shared(t) {
  const server = await Redis.start(t);
  const cli = standIn(t);
  const start = ({ args = [], ...rest } = {}) => t.start({ cli, ...rest, args: ['--spares', '0', '--store', server.url, ...args] });
  return { server, start };
}

async function stop(proxy, signal) {
  const { faults } = await proxy.stop(signal);
  proxy.stopped = true;
  assert.deepEqual(faults, []);
}

const chat = (t, proxy, text, { session = 'mine', headers } = {}) =>
  t.send({ proxy, headers, body: ask(`${text} [[who]]`, { session_id: session }) }).done;

/** What the API was sent for a turn that went well. */
const seen = (result) => JSON.parse(assertAnswered(result).json.choices[0].message.content);

const codeOf = ({ status, json }) => [status, json?.error?.code];

/** Why /health is degraded by the store; undefined while it is not. */
async function trouble(t, proxy) {
  const { status, code, problem, store } = (await t.get('/health', { proxy })).json;
  if (store === 'ok') return void assert.deepEqual([status, code, problem], ['healthy', undefined, undefined]);
  assert.deepEqual([status, code, store], ['degraded', 'store_unavailable', 'unusable']);
  return /^the store cannot be used: (.+)/.exec(problem)[1];
}

test('a session, a chain of responses, an item by its id and the choice of tools go on at another proxy, and after all were killed', async (t) => {
  const { start } = await shared(t);
  const [one, two] = [await start(), await start()];
  const respond = async (proxy, input, previous) => {
    const { json } = assertAnswered(await t.send({ proxy, path: '/v1/responses', body: { input, ...(previous && { previous_response_id: previous.id }) } }).done);
    const message = json.output.find(({ type }) => type === 'message');
    return { id: json.id, message, ...JSON.parse(message.content[0].text) };
  };
  assert.deepEqual(seen(await chat(t, one, 'secret-1')).secrets, ['secret-1']);
  assert.deepEqual(seen(await chat(t, two, 'secret-2')).secrets, ['secret-1', 'secret-2']);
  const first = await respond(one, 'secret-3 [[who]]');
  const second = await respond(two, 'secret-4 [[who]]', first);
  assert.deepEqual(second.secrets, ['secret-3', 'secret-4']);
  const chosen = { session_id: 'mine', allowed_tools: ['Read'] };
  assertAnswered(await t.send({ proxy: one, path: '/v1/tools/config', body: chosen }).done);
  await Promise.all([stop(one, 'SIGKILL'), stop(two, 'SIGKILL')]);

  const three = await start();
  const last = seen(await chat(t, three, 'secret-5'));
  assert.deepEqual([last.messages, last.secrets], [5, ['secret-1', 'secret-2', 'secret-5']]);
  const third = await respond(three, [{ type: 'item_reference', id: second.message.id }, { role: 'user', content: 'secret-6 [[who]]' }], first);
  assert.deepEqual(third.secrets, ['secret-3', 'secret-4', 'secret-6'], 'the answer that is referred to tells secret-4');
  assert.deepEqual((await t.get('/v1/tools/config?session_id=mine', { proxy: three })).json.allowed_tools, ['Read']);
  const { sessions } = (await t.get('/v1/sessions', { proxy: three })).json;
  assert.deepEqual(sessions.map((each) => [each.session_id, each.message_count]), [['mine', 6]]);
  assert.equal((await t.get(`/v1/responses/${second.id}`, { proxy: three })).json.status, 'completed');
  assertAnswered(await t.send({ proxy: three, method: 'DELETE', path: '/v1/sessions/mine' }).done);
  assertAnswered(await t.send({ proxy: three, method: 'DELETE', path: `/v1/responses/${second.id}` }).done);
  const four = await start();
  assert.equal((await t.get('/v1/sessions/mine', { proxy: four })).status, 404);
  assert.equal((await t.get(`/v1/responses/${second.id}`, { proxy: four })).status, 404);
  assert.deepEqual(seen(await chat(t, three, 'secret-7')).secrets, ['secret-7'], 'nor does the copy that a proxy held');
});

test('requests for one session at several proxies are served one after the other, and none is lost', async (t) => {
  const { server, start } = await shared(t);
  const proxies = [await start(), await start()];
  const names = Array.from({ length: 12 }, (_, i) => `secret-${i}`);
  const turns = await Promise.all(names.map((name, i) => chat(t, proxies[i % 2], name)));
  const lengths = turns.map((turn) => seen(turn).messages).sort((a, b) => a - b);
  assert.deepEqual(lengths, names.map((_, i) => 2 * i + 1));
  const last = seen(await chat(t, proxies[0], 'done'));
  assert.deepEqual([...last.secrets].sort(), [...names].sort());
  await eventually('no lease and no queue is left', () => server.keys('*session::mine').filter((key) => !/record/.test(key)).length === 0);
});

test('a request whose lease another has taken is told so, and the session stays as it was', async (t) => {
  const { server, start } = await shared(t);
  const [one, two] = [await start(), await start()];
  seen(await chat(t, one, 'secret-1'));
  for (const stream of [false, true]) {
    const turn = t.send({ proxy: one, body: ask('secret-2 [[text n=3 first_ms=2000]]', { session_id: 'mine', stream }) });
    await eventually('it has the lease', () => server.cli('GET', keyOf('lease', 'mine')));
    server.cli('SET', keyOf('lease', 'mine'), 'another', 'PX', '60000');
    const result = await turn.done;
    if (stream) assert.match(result.text, /session_lost/);
    if (!stream) {
      assert.deepEqual(codeOf(result), [503, 'session_lost'], result.text);
      assert.ok(Number(result.headers['retry-after']) > 0);
    }
    server.cli('DEL', keyOf('lease', 'mine'));
  }
  assert.deepEqual(seen(await chat(t, two, 'secret-3')).secrets, ['secret-1', 'secret-3']);
  assert.deepEqual(seen(await chat(t, one, 'secret-4')).secrets, ['secret-1', 'secret-3', 'secret-4']);
});

test('a lease of a proxy that was killed ends by itself, and a request that waits for it is served', { slow: true }, async (t) => {
  const { server, start } = await shared(t);
  const [one, two] = [await start(), await start()];
  const lost = t.send({ proxy: one, body: ask('secret-1 [[hang]]', { session_id: 'mine' }) });
  await eventually('it has the lease', () => server.cli('GET', keyOf('lease', 'mine')));
  const waiting = chat(t, two, 'secret-2');
  await eventually('another waits for it', () => server.keys('queue:session::mine').length === 1);
  await stop(one, 'SIGKILL');
  await lost.done;
  assert.deepEqual(seen(await waiting).secrets, ['secret-2']);
});

test('a turn that takes longer than a lease lasts keeps its session, while others wait', { slow: true }, async (t) => {
  const { server, start } = await shared(t);
  const [one, two] = [await start(), await start()];
  const long = t.send({ proxy: one, body: ask('secret-1 [[text first_ms=18000]]', { session_id: 'mine' }) });
  await eventually('it has the lease', () => server.cli('GET', keyOf('lease', 'mine')));
  const waiting = chat(t, two, 'secret-2');
  assertAnswered(await long.done);
  assert.deepEqual(seen(await waiting).secrets, ['secret-1', 'secret-2']);
});

test('a session that is deleted at another proxy during a turn stays deleted', async (t) => {
  const { server, start } = await shared(t);
  const [one, two] = [await start(), await start()];
  seen(await chat(t, one, 'secret-1'));
  const turn = t.send({ proxy: one, body: ask('secret-2 [[text first_ms=1500]]', { session_id: 'mine' }) });
  await eventually('it has the lease', () => server.cli('GET', keyOf('lease', 'mine')));
  assertAnswered(await t.send({ proxy: two, method: 'DELETE', path: '/v1/sessions/mine' }).done);
  assertAnswered(await turn.done);
  assert.equal((await t.get('/v1/sessions/mine', { proxy: one })).status, 404);
  assert.deepEqual(seen(await chat(t, one, 'secret-3')).secrets, ['secret-3']);
});

const GONE = {
  'killed': { end: (server) => server.stop('SIGKILL'), back: (server) => server.start() },
  'stopped, so that it does not answer': { end: (server) => server.kill('SIGSTOP'), back: (server) => server.kill('SIGCONT') },
};
for (const [how, { end, back }] of Object.entries(GONE)) {
  test(`while Redis is ${how}, what needs it is a 503 and the rest is served; it is used again once it is back`, { slow: true }, async (t) => {
    const { server, start } = await shared(t);
    const proxy = await start();
    seen(await chat(t, proxy, 'secret-1'));
    await end(server);
    await eventually('health tells it', () => trouble(t, proxy));
    assert.equal((await scrape(t, { proxy }))('store_usable'), 0);
    assertAnswered(await t.send({ proxy, body: ask('[[text]]') }).done);
    assertAnswered(await t.send({ proxy, path: '/v1/responses', body: { input: '[[text]]' } }).done);
    const needs = [
      chat(t, proxy, 'secret-2'),
      t.send({ proxy, path: '/v1/responses', body: { input: '[[text]]', previous_response_id: 'resp_x' } }).done,
      ...['/v1/sessions', '/v1/responses/resp_x', '/v1/usage', '/v1/tools/config'].map((path) => t.get(path, { proxy })),
      t.send({ proxy, body: ask('[[text]]', { enable_tools: true }) }).done,
    ];
    for (const result of await Promise.all(needs)) {
      assert.deepEqual(codeOf(result), [503, 'store_unavailable'], result.text);
      assert.ok(Number(result.headers['retry-after']) > 0);
      assert.notEqual(result.headers['x-should-retry'], 'false');
    }
    await back(server);
    await eventually('health is well again', async () => (await trouble(t, proxy)) === undefined);
    assert.deepEqual(seen(await chat(t, proxy, 'secret-3')).secrets, ['secret-1', 'secret-3']);
    await eventually('what was used meanwhile is counted', async () => (await t.get('/v1/usage', { proxy })).json.total?.answers === 4);
    const lines = (pattern) => proxy.output.split('\n').filter((line) => pattern.test(line)).length;
    assert.deepEqual([lines(/error the store at .* is gone/), lines(/info the store at .* is back$/)], [1, 1]);
  });
}

test('a turn that is under way while Redis is restarted is stored once', async (t) => {
  const { server, start } = await shared(t);
  const proxy = await start();
  seen(await chat(t, proxy, 'secret-1'));
  const turn = t.send({ proxy, body: ask('secret-2 [[text first_ms=1500]]', { session_id: 'mine' }) });
  await eventually('it has the lease', () => server.cli('GET', keyOf('lease', 'mine')));
  await server.stop();
  await server.start();
  assertAnswered(await turn.done);
  const last = seen(await chat(t, proxy, 'secret-3'));
  assert.deepEqual([last.messages, last.secrets], [5, ['secret-1', 'secret-2', 'secret-3']]);
});

test('a rate limit lets through what it says, over all proxies', async (t) => {
  const { start } = await shared(t);
  const args = ['--rate-limit', '--rate-limit-chat', '7', '--budget', 'tokens=1000000/day'];
  const env = { API_KEYS: 'one,two' };
  const proxies = [await start({ args, env }), await start({ args, env }), await start({ args, env })];
  const requests = Array.from({ length: 30 }, (_, i) => t.send({ proxy: proxies[i % 3], headers: bearer('one'), body: ask('[[text]]') }).done);
  const statuses = (await Promise.all(requests)).map(({ status }) => status);
  const passed = statuses.filter((status) => status === 200).length;
  // Where a minute has ended meanwhile, seven more.
  assert.ok(passed === 7 || passed === 14, `${passed} passed`);
  assert.equal(statuses.filter((status) => status === 429).length, 30 - passed);
});

test('while Redis is gone a proxy counts for itself', async (t) => {
  const { server, start } = await shared(t);
  const proxy = await start({ args: ['--rate-limit', '--rate-limit-chat', '3', '--rate-limit-health', '10000'] });
  await server.stop('SIGKILL');
  await eventually('health tells it', () => trouble(t, proxy));
  const requests = Array.from({ length: 12 }, () => t.send({ proxy, body: ask('[[text]]') }).done);
  const passed = (await Promise.all(requests)).filter(({ status }) => status === 200).length;
  assert.ok(passed === 3 || passed === 6, `${passed} passed`); // the latter where a minute has ended
});

test('wrong keys at one proxy are counted at another, once it gets one, too', async (t) => {
  const { start } = await shared(t);
  const [one, two] = [await start({ env: { API_KEY: 'right' } }), await start({ env: { API_KEY: 'right' } })];
  const wrong = async (proxy) => (await t.get('/v1/models', { proxy, headers: bearer('wrong') })).status;
  await eventually('it is not even compared', async () => { // a minute may end meanwhile
    await Promise.all(Array.from({ length: 30 }, () => wrong(one)));
    await wrong(two);
    return (await wrong(two)) === 429;
  });
});

test('a budget of a key holds over all proxies, and after they were killed', async (t) => {
  const { start } = await shared(t);
  const begin = () => start({ args: ['--budget', 'requests=3/day'], env: { API_KEYS: 'one,two' } });
  const [one, two] = [await begin(), await begin()];
  const status = async (proxy, key) => (await t.send({ proxy, headers: bearer(key), body: ask('[[text]]') }).done).status;
  assert.deepEqual([await status(one, 'one'), await status(two, 'one')], [200, 200]);
  await stop(one, 'SIGKILL');
  const three = await begin();
  assert.deepEqual([await status(three, 'one'), await status(two, 'one'), await status(three, 'one')], [200, 429, 429]);
  assert.equal(await status(two, 'two'), 200);
});

for (const [unit, cap, used] of [
  ['tokens', 1500, ({ input_tokens: input, output_tokens: output }) => input + output],
  ['usd', 0.02, ({ cost_usd: usd }) => usd],
])
  test(`a budget in ${unit} is used up, and passed by no more than the last answer, however many proxies are asked at once`, async (t) => {
    const { start } = await shared(t);
    const begin = () => start({ args: ['--budget', `${unit}=${cap}/day`], env: { API_KEYS: 'one,two' } });
    const proxies = [await begin(), await begin(), await begin()];
    const headers = bearer('one');
    const send = async (i) => {
      const { status, text } = await t.send({ proxy: proxies[i % 3], headers, body: ask('[[text in=60 out=40 text="Well."]]', { model: DEFAULT_MODEL, max_tokens: 100 }) }).done;
      assert.ok([200, 429].includes(status), text);
      return status === 200;
    };
    const charged = async () => (await t.get('/v1/usage', { proxy: proxies[0], headers })).json.total;
    let answers = 0;
    let passed;
    do {
      const results = await Promise.all(Array.from({ length: 30 }, (_, i) => send(i)));
      passed = results.filter(Boolean).length;
      assert.ok(passed < 30, 'the budget does not hold so many at once');
      answers += passed;
      await eventually('all are counted', async () => (await charged()).answers === answers);
    } while (passed > 0);
    const each = used(await charged()) / answers;
    assert.ok(used(await charged()) >= cap, JSON.stringify(await charged()));
    assert.ok(used(await charged()) < cap + each, 'at most the last one went beyond it');
    assert.equal((await t.send({ proxy: proxies[1], headers: bearer('two'), body: ask('[[text]]') }).done).status, 200);
  });

test('the sums of /v1/usage over all proxies are what the API counted, by each way to sum up', { slow: true }, async (t) => {
  const { server } = await shared(t);
  const begin = () => t.start({ cli: newest, args: ['--spares', '0', '--store', server.url], env: { API_KEYS: 'one,two' } });
  const proxies = [await begin(), await begin()];
  let turn = 0;
  for (const key of ['one', 'two', 'one'])
    for (const proxy of proxies) {
      const usage = { input: 100 + ++turn, output: 20 + turn, cache_creation: 30 * turn, ephemeral_1h: 0, cache_read: 7 * turn };
      assertAnswered(await t.send({ proxy, headers: bearer(key), body: ask(t.text(directive('plain', usage)), { model: DEFAULT_MODEL }) }).done);
    }
  const sums = ['input_tokens', 'output_tokens', 'cache_read_input_tokens', 'cache_creation_input_tokens'].map((name) => t.calls().reduce((all, { usage }) => all + usage[name], 0));
  const rows = { key: ['key-1', 'key-2'], account: ['api_key'], model: [DEFAULT_MODEL], dialect: ['openai_chat'], day: undefined };
  for (const [by, names] of Object.entries(rows))
    for (const proxy of proxies) {
      const got = async () => {
        const { json } = await t.get(`/v1/usage?by=${by}`, { proxy, headers: bearer('one') });
        return json.total.answers === 6 && json;
      };
      const { data, total } = await eventually('all are counted', got);
      if (names) assert.deepEqual(data.map((row) => row[by]), names); // a test may run at midnight
      for (const read of [(name) => total[name], (name) => data.reduce((all, row) => all + row[name], 0)])
        assert.deepEqual(['input_tokens', 'output_tokens', 'cache_read_tokens', 'cache_write_tokens'].map(read), sums, `by ${by}`);
    }
});

test('a wrong address, password, user or database ends the start with a line that tells no password', async (t) => {
  const server = await Redis.start(t);
  const where = `127.0.0.1:${server.port}`;
  const secret = encodeURIComponent(PASSWORD);
  const wrong = {
    [`redis://${where}/2`]: /--store.*: redis:\/\/127.0.0.1:\d+\/2 cannot be used: NOAUTH/,
    [`redis://:opensesame@${where}/2`]: /cannot be used: WRONGPASS/,
    [`redis://nobody:${secret}@${where}`]: /cannot be used: WRONGPASS/,
    [`redis://:${secret}@${where}/99`]: /cannot be used: ERR DB index/,
    [`redis://:${secret}@${where}/two`]: /--store \(environment, CLAUDE_STORE\): this is no address of Redis/,
    [`redis://:${secret}@127.0.0.1:1/2`]: /cannot be used: Connection refused/,
    [`redis://:${secret}@127.0.0.1:x/2`]: /--store \(environment, CLAUDE_STORE\): this is no address of Redis/,
    [`valkey://:${secret}@${where}/2`]: /--store \(environment, CLAUDE_STORE\): this is no address of Redis/,
    [`rediss://:${secret}@${where}/2`]: /--store.*: (this build has no TLS to Redis|rediss:\S+ cannot be used: no TLS: it does not answer)/,
    [`unix://:${secret}@${server.folder}/none.sock`]: /cannot be used: No such file/,
  };
  for (const [url, line] of Object.entries(wrong)) {
    const { exit, output } = await startAndExpectExit({ cli: newest, args: [], env: { CLAUDE_STORE: url } });
    assert.ok(exit && exit.code !== 0, `${url} starts`);
    assert.match(output, line);
    assert.ok(!output.includes('sesame'), output);
  }
});

test('doctor and --print-config tell where the store is, without its password', async (t) => {
  const server = await Redis.start(t);
  const run = (args, url) => {
    const { stdout, stderr, status } = spawnSync(PROXY, args, { encoding: 'utf8', env: { PATH: process.env.PATH, HOME: server.folder, CLAUDE_STORE: url } });
    assert.ok(!(stdout + stderr).includes('sesame'), stdout + stderr);
    return { status, text: stdout + stderr };
  };
  assert.match(run(['--print-config'], server.url).text, /^# store = "\*\*\*"/m);
  assert.match(run(['doctor', '--demo'], server.url).text, /^ok +store: redis:\/\/127.0.0.1:\d+\/2$/m);
  const wrong = run(['doctor', '--demo'], server.url.replace('sesame', 'wrong'));
  assert.match(wrong.text, /^FAIL +store: redis:\/\/127.0.0.1:\d+\/2 cannot be used: WRONGPASS/m);
  assert.equal(wrong.status, 1);
});

test('a unix socket is as good, and no answer, log line or list of processes tells the password', async (t) => {
  const server = await Redis.start(t);
  const url = `unix://:${encodeURIComponent(PASSWORD)}@${server.socket}?db=2`;
  const proxy = await t.start({ cli: standIn(t), args: ['--spares', '0', '--log-level', 'debug', '--store', url] });
  seen(await chat(t, proxy, 'secret-1'));
  assert.equal(server.keys('record:session::mine').length, 1);
  const texts = [proxy.output, readFileSync(`/proc/${proxy.pid}/cmdline`, 'utf8')];
  for (const path of ['/health', '/metrics', '/v1/auth/status', '/v1/debug/request']) texts.push((await t.get(path, { proxy })).text);
  for (const text of texts) assert.ok(!text.includes('sesame'), text);
});

test('what others wrote under the prefix is ignored, with a warning, and replaced', async (t) => {
  const { server, start } = await shared(t);
  const proxy = await start();
  server.cli('SET', keyOf('record', 'text'), 'theirs');
  server.cli('RPUSH', keyOf('record', 'list'), 'r', '{"system":', 'no JSON');
  server.cli('RPUSH', keyOf('record', 'short'), 'r');
  server.cli('RPUSH', keyOf('record', 'odd'), 'r', '{"system":7,"created_ms":"x"}', '7', '"x"', '{"role":"user","content":{}}');
  server.cli('SET', keyOf('lease', 'text').replace('lease', 'queue'), 'theirs');
  for (const session of ['text', 'list', 'short', 'odd']) {
    assert.equal((await t.get(`/v1/sessions/${session}`, { proxy })).status, session === 'odd' ? 200 : 404, session);
    assert.deepEqual(seen(await chat(t, proxy, 'secret-1', { session })).secrets, ['secret-1']);
    assert.deepEqual(seen(await chat(t, proxy, 'secret-2', { session })).secrets, ['secret-1', 'secret-2']);
  }
  assert.match(proxy.output, /warning a session of the store is ignored: no proxy wrote it/);
  server.cli('DEL', 'claude-openai:v1:index:session:');
  server.cli('SET', 'claude-openai:v1:index:session:', 'theirs');
  assert.deepEqual((await t.get('/v1/sessions', { proxy })).json.total, 0);
  server.cli('HSET', 'claude-openai:v1:record:response::resp_x', 'a', 'b');
  server.cli('RPUSH', 'claude-openai:v1:record:tools::', 'r', '[]');
  assert.equal((await t.get('/v1/responses/resp_x', { proxy })).status, 404);
  assert.equal((await t.get('/v1/tools/config', { proxy })).status, 200);
  seen(await chat(t, proxy, 'secret-3', { session: 'new' }));
  assert.deepEqual((await t.get('/v1/sessions', { proxy })).json.total, 1);
});
