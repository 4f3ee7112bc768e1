// State that lasts: what a proxy still knows after one before it was killed, and what it does where it cannot know. Both ends are
// looked at. SOAK=1 makes 200 kills.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { CLI_VERSIONS, DEFAULT_MODEL, claudePath } from './claude_cli.mjs';
import { PROXY, eventually, suite } from './harness.mjs';
import { directive } from './messages_api.mjs';
import { ask, queryStore, scrape, scratchFolder, standIn } from './operate.mjs';

export const store = suite();
const { test } = store;

const bearer = (key) => ({ authorization: `Bearer ${key}` });
const newest = claudePath(CLI_VERSIONS.at(-1));

/** A file for state in a folder of its own, and a proxy with it. */
function stored(t) {
  const file = path.join(scratchFolder(t), 'state.sqlite');
  const start = ({ args = [], ...rest } = {}) => t.start({ cli: newest, ...rest, args: ['--spares', '0', '--store', file, ...args] });
  return { file, start };
}

async function stop(proxy, signal) {
  const { faults } = await proxy.stop(signal);
  proxy.stopped = true;
  assert.deepEqual(faults, []);
}

/** The text of an answer of Responses. */
const textOf = ({ output }) => output.find(({ type }) => type === 'message').content[0].text;

test('a session and a chain of responses go on after the proxy was killed', async (t) => {
  const { start } = stored(t);
  const cli = standIn(t);
  let proxy = await start({ cli });
  // The stand-in answers with the secrets in all that it was sent.
  const respond = async (secret, previous) => {
    const body = { input: `${secret} [[who]]`, ...(previous && { previous_response_id: previous }) };
    const { status, json, text } = await t.send({ proxy, path: '/v1/responses', body }).done;
    assert.equal(status, 200, text);
    return { id: json.id, ...JSON.parse(textOf(json)) };
  };
  const chat = async (secret) => {
    const { status, json, text } = await t.send({ proxy, body: ask(`${secret} [[who]]`, { session_id: 'mine' }) }).done;
    assert.equal(status, 200, text);
    return JSON.parse(json.choices[0].message.content);
  };
  const first = await respond('secret-1');
  const second = await respond('secret-2', first.id);
  await chat('secret-4');
  const gone = await respond('secret-5');
  assert.equal((await t.send({ proxy, method: 'DELETE', path: `/v1/responses/${gone.id}` }).done).status, 200);
  await stop(proxy, 'SIGKILL');

  proxy = await start({ cli });
  const third = await respond('secret-3', second.id);
  assert.deepEqual([third.messages, third.secrets], [5, ['secret-1', 'secret-2', 'secret-3']], 'it was sent all that was before');
  const again = await chat('secret-6');
  assert.deepEqual([again.messages, again.secrets], [3, ['secret-4', 'secret-6']]);
  assert.equal((await t.get(`/v1/responses/${second.id}`, { proxy })).json.status, 'completed');
  assert.equal((await t.get(`/v1/responses/${gone.id}`, { proxy })).status, 404);
});

test('a day’s budget of a key holds after the proxy was killed', async (t) => {
  const { start } = stored(t);
  const begin = () => start({ cli: standIn(t), args: ['--budget', 'requests=3/day'], env: { API_KEYS: 'one,two' } });
  let proxy = await begin();
  const chat = async (key) => (await t.send({ proxy, headers: bearer(key), body: ask('[[text]]') }).done).status;
  assert.deepEqual([await chat('one'), await chat('one')], [200, 200]);
  const over = async () => /^claude_openai_requests_in_flight 1$/m.test((await t.get('/metrics', { proxy, headers: bearer('one') })).text);
  await eventually('both are charged', over);
  await stop(proxy, 'SIGKILL');
  proxy = await begin();
  assert.deepEqual([await chat('one'), await chat('one'), await chat('two')], [200, 429, 200]);
});

test('which tools a key and its session have chosen holds after the proxy was killed', async (t) => {
  const { start } = stored(t);
  const begin = () => start({ cli: standIn(t), env: { API_KEYS: 'one,two' } });
  let proxy = await begin();
  const chosen = async (key, session = '') => {
    const { status, json } = await t.get(`/v1/tools/config?session_id=${session}`, { proxy, headers: bearer(key) });
    assert.equal(status, 200);
    const { allowed_tools, disallowed_tools, created_at, updated_at } = json;
    return { allowed_tools, disallowed_tools, ...(key === 'one' && { created_at, updated_at }) };
  };
  const all = async () => [await chosen('one'), await chosen('one', 'mine'), await chosen('one', 'other'), await chosen('two')];
  for (const body of [{ allowed_tools: ['Read', 'Glob'] }, { session_id: 'mine', allowed_tools: [], disallowed_tools: ['Read'] }]) {
    const { status } = await t.send({ proxy, path: '/v1/tools/config', headers: bearer('one'), body }).done;
    assert.equal(status, 200);
  }
  const before = await all();
  assert.deepEqual(before.map((one) => one.allowed_tools.length), [2, 0, 2, 6]);
  await stop(proxy, 'SIGKILL');
  proxy = await begin();
  assert.deepEqual(await all(), before);
});

test('the sums of /v1/usage are what the API counted, by each way to sum up, after a restart too', { slow: true, deadline: 300_000 }, async (t) => {
  const { start } = stored(t);
  const begin = () => start({ env: { API_KEYS: 'one,two' } });
  let proxy = await begin();
  let turn = 0;
  const usage = () => ({ input: 100 + ++turn, output: 20 + turn, cache_creation: 30 * turn, ephemeral_1h: 0, cache_read: 7 * turn });
  const text = () => t.text(directive('plain', { text: 'Well.', ...usage() }));
  const send = async (key, where, body) => {
    const result = await t.send({ proxy, path: where, headers: bearer(key), body: { model: DEFAULT_MODEL, ...body } }).done;
    assert.equal(result.status, 200, result.text);
  };
  const all = async () => {
    for (const key of ['one', 'two']) {
      await send(key, '/v1/chat/completions', ask(text()));
      await send(key, '/v1/messages', { max_tokens: 1000, ...ask(text()) });
    }
    await send('two', '/v1/responses', { input: text() });
  };
  const kinds = ['input_tokens', 'output_tokens', 'cache_read_tokens', 'cache_write_tokens'];
  const kept = async (query, answers) => {
    const got = async () => {
      const { json } = await t.get(`/v1/usage?${query}`, { proxy, headers: bearer('one') });
      return json.total.answers === answers && json;
    };
    return eventually('all answers are counted', got);
  };
  const counted = () => {
    const sum = (name) => t.calls().reduce((all, { usage }) => all + usage[name], 0);
    return ['input_tokens', 'output_tokens', 'cache_read_input_tokens', 'cache_creation_input_tokens'].map(sum);
  };
  const figures = (row) => kinds.map((kind) => row[kind]);
  await all();
  await kept('by=key', 5);
  await stop(proxy, 'SIGKILL');
  proxy = await begin();
  await send('one', '/v1/chat/completions', ask(text()));
  const today = new Date().toISOString().slice(0, 10);
  for (const [by, names] of [
    ['key', ['key-1', 'key-2']],
    ['dialect', ['anthropic_messages', 'openai_chat', 'openai_responses']],
    ['model', [DEFAULT_MODEL]],
    ['day', [today]],
  ]) {
    const json = await kept(`by=${by}`, 6);
    assert.equal(json.by, by);
    assert.ok(!('plan' in json), 'nobody told what the plan costs');
    for (const row of [...json.data, json.total]) {
      const [input, , reads, writes] = figures(row);
      assert.equal(row.cache_share, reads / (input + reads + writes), `by ${by}`);
    }
    if (by !== 'day') assert.deepEqual(json.data.map((row) => row[by]), names); // a test may run at midnight
    assert.deepEqual(figures(json.total), counted(), `by ${by}`);
    for (const kind of [...kinds, 'answers']) {
      assert.equal(json.data.reduce((sum, row) => sum + row[kind], 0), json.total[kind], `${kind} by ${by}`);
    }
  }
  const tomorrow = new Date(Date.now() + 2 * 86_400_000).toISOString().slice(0, 10);
  assert.deepEqual((await kept(`from=${tomorrow}`, 0)).data, []);
  for (const [wrong, param] of [['by=hour', 'by'], ['from=today', 'from'], ['from=2026-11-30x', 'from']]) {
    const { status, json } = await t.get(`/v1/usage?${wrong}`, { proxy, headers: bearer('one') });
    assert.deepEqual([status, json.error.param], [400, param]);
  }
  assert.equal((await t.get('/v1/usage', { proxy })).status, 401, 'it is told to nobody without a key');

  const table = execFileSync(PROXY, ['usage', '--by', 'key', '--url', proxy.url, '--key', 'two'], { encoding: 'utf8', env: { PATH: process.env.PATH } });
  const [heading, ...rows] = table.trim().split('\n').map((line) => line.trim().split(/\s+/));
  assert.deepEqual(heading, ['key', 'answers', 'input', 'output', 'cache_read', 'cache_write', 'cached', 'USD']);
  assert.deepEqual(rows.map(([name]) => name), ['key-1', 'key-2', 'total']);
  assert.deepEqual(rows.at(-1).slice(1, 6).map(Number), [6, ...counted()]);
});

test('what the plan costs stands beside the list price, for the same time, where the operator has told it', async (t) => {
  const { start } = stored(t);
  const proxy = await start({ cli: standIn(t), args: ['--plan-price', '73'] }); // 2.40 a day
  const day = (ago) => new Date(Date.now() - ago * 86_400_000).toISOString().slice(0, 10);
  const plan = async (query) => (await t.get(`/v1/usage?${query}`, { proxy })).json.plan;
  const since = day(9);
  const { usd_per_month, cost_usd } = await plan(`from=${since}`);
  assert.equal(usd_per_month, 73);
  const days = (Date.now() - Date.parse(since)) / 86_400_000;
  assert.ok(Math.abs(cost_usd - 2.4 * days) < 0.1, `${cost_usd} USD for ${days} days`);
  assert.equal((await plan(`from=${day(-2)}`)).cost_usd, 0);
  const table = execFileSync(PROXY, ['usage', '--from', since, '--url', proxy.url], { encoding: 'utf8', env: { PATH: process.env.PATH } });
  assert.match(table, /^The plan costs 2[1-4]\.\d{4} USD in that time, at 73\.00 USD a month; its answers cost \d+\.\d{4} USD at the list price\.$/m);
});

test('without --store usage is a 404 that says so', async (t) => {
  const got = await t.get('/v1/usage');
  assert.deepEqual([got.status, got.json.error.code], [404, 'no_store']);
});

/** A proxy that cannot use its store says so, and serves what needs none. */
async function assertServesTheRest(t, proxy, why) {
  assert.match(proxy.output, new RegExp(`state.sqlite cannot be used: .*${why}`));
  const plain = await t.send({ proxy, body: ask('[[text]]') }).done;
  assert.equal(plain.status, 200, plain.text);
  const responses = await t.send({ proxy, path: '/v1/responses', body: { input: '[[text]]' } }).done;
  assert.equal(responses.status, 200, responses.text);
  const needs = [
    t.send({ proxy, body: ask('[[text]]', { session_id: 'x' }) }),
    t.send({ proxy, path: '/v1/responses', body: { input: '[[text]]', previous_response_id: 'resp_x' } }),
    t.send({ proxy, method: 'GET', path: '/v1/sessions' }),
    t.send({ proxy, method: 'GET', path: '/v1/responses/resp_x' }),
    t.send({ proxy, method: 'GET', path: '/v1/usage' }),
    t.send({ proxy, method: 'GET', path: '/v1/tools/config' }),
    t.send({ proxy, body: ask('[[text]]', { enable_tools: true }) }),
  ];
  for (const { done } of needs) {
    const { status, json, headers } = await done;
    assert.deepEqual([status, json.error.code], [503, 'store_unavailable'], JSON.stringify(json));
    assert.ok(Number(headers['retry-after']) > 0);
  }
  assert.match(await trouble(t, proxy), new RegExp(why));
}

/** Why /health is degraded by the store; undefined while it is not. The figures agree with it. */
async function trouble(t, proxy, headers) {
  const health = await t.get('/health', { proxy, headers });
  const { status, code, problem, store } = health.json;
  const figures = await scrape(t, { proxy, headers });
  assert.deepEqual([health.status, figures('store_usable')], [200, store === 'ok' ? 1 : 0]);
  if (store === 'ok') return void assert.deepEqual([status, code, problem], ['healthy', undefined, undefined]);
  assert.deepEqual([status, code, store], ['degraded', 'store_unavailable', 'unusable']);
  return /^the store cannot be used: (.+)/.exec(problem)[1];
}

test('health is degraded while the store cannot be written to, says why, and is healthy again by itself', async (t) => {
  const { file, start } = stored(t);
  const cli = standIn(t);
  const begin = () => start({ cli, env: { API_KEY: 'one' } });
  let proxy = await begin();
  const headers = bearer('one');
  const turn = async () => {
    const { status, json } = await t.send({ proxy, headers, body: ask('[[who]]', { session_id: 'x' }) }).done;
    assert.equal(status, 200);
    return JSON.parse(json.choices[0].message.content).messages;
  };
  const limitFiles = (most) => execFileSync('prlimit', ['--pid', String(proxy.pid), `--fsize=${most}:`]);
  await turn();
  assert.equal(await trouble(t, proxy, headers), undefined);
  limitFiles(statSync(`${file}-wal`).size);
  assert.equal(await turn(), 3, 'it goes on in memory');
  assert.ok(await trouble(t, proxy, headers));
  assert.ok(await trouble(t, proxy, headers), 'as long as it lasts');
  const stranger = (await t.get('/health', { proxy })).json;
  assert.deepEqual(stranger, { status: 'degraded', service: 'claude-openai', code: 'store_unavailable' });
  limitFiles('unlimited');
  assert.equal(await trouble(t, proxy, headers), undefined);
  assert.equal(await turn(), 5);
  await stop(proxy, 'SIGKILL');
  proxy = await begin();
  assert.equal(await turn(), 7, 'what could not be written was written later');
});

test('a store that another proxy has, that is damaged, or that a newer version wrote costs only what needs it', async (t) => {
  const { file, start } = stored(t);
  const cli = standIn(t);
  const first = await start({ cli });
  const second = await start({ cli });
  await assertServesTheRest(t, second, 'another process uses it');
  await stop(second);
  const turn = await t.send({ proxy: first, body: ask('[[text]]', { session_id: 'x' }) }).done;
  assert.equal(turn.status, 200, 'the first one is not disturbed');
  await stop(first);
  execFileSync('python3', ['-c', 'import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute("PRAGMA user_version = 99")', file]);
  const newer = await start({ cli });
  await assertServesTheRest(t, newer, 'a newer version');
  await stop(newer);
  assert.deepEqual(queryStore(file, 'SELECT id FROM records WHERE kind = "session"'), [['x']], 'it was not changed');
  writeFileSync(file, 'x'.repeat(5000));
  const damaged = await start({ cli });
  await assertServesTheRest(t, damaged, 'not a database');
  await stop(damaged);
});

const KILLS = process.env.SOAK ? 200 : 40;

test(`${KILLS} kills under load lose at most the turn under way, and never half a turn`, { slow: true, deadline: KILLS * 30_000 }, async (t) => {
  const { file, start } = stored(t);
  const cli = standIn(t);
  const sessions = ['a', 'b', 'c'];
  const known = new Map(sessions.map((id) => [id, 0])); // turns that the client got an answer to
  const check = async (proxy) => {
    for (const id of sessions) {
      const { status, json } = await t.get(`/v1/sessions/${id}`, { proxy });
      const turns = status === 200 ? json.message_count / 2 : 0;
      assert.ok(turns === known.get(id) || turns === known.get(id) + 1, `${id}: ${turns} turns are stored, ${known.get(id)} were answered`);
      known.set(id, turns);
    }
  };
  for (let kill = 0; kill < KILLS; kill++) {
    const proxy = await start({ cli });
    await check(proxy);
    let answers = 0;
    const talk = async (id) => {
      for (;;) {
        const { status, json, error } = await t.send({ proxy, body: ask('[[text]]', { session_id: id }) }).done;
        if (error || status !== 200 || !json) return;
        known.set(id, known.get(id) + 1);
        answers++;
      }
    };
    const talks = sessions.map(talk);
    const most = 1 + (kill % 5);
    await eventually('some turns were answered', () => answers >= most);
    await stop(proxy, 'SIGKILL');
    await Promise.all(talks);
    assert.deepEqual(queryStore(file, 'PRAGMA integrity_check'), [['ok']], `after kill ${kill + 1}`);
    t.exchanges.length = 0;
  }
  const last = await start({ cli });
  await check(last);
  await stop(last);
  assert.deepEqual(queryStore(file, 'PRAGMA integrity_check'), [['ok']]);
  const rows = queryStore(file, "SELECT id, count(*), max(position) + 1, sum(body LIKE '{\"role\":\"user\"%') FROM items WHERE kind = 'session' GROUP BY id ORDER BY id");
  const whole = sessions.map((id) => [id, 2 * known.get(id), 2 * known.get(id), known.get(id)]);
  assert.deepEqual(rows, whole, 'each message once, in its place');
});
