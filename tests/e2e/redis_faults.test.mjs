// A Redis that fails in the midst, is full, read-only, of a cluster, or forbids what the proxy needs; long histories and odd names.
// Nothing may be lost without a word, stored twice, or hang.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import net from 'node:net';
import { eventually, startAndExpectExit, suite } from './harness.mjs';
import { ask, standIn } from './operate.mjs';
import { PASSWORD, Redis, assertAnswered, keyOf } from './redis_server.mjs';

export const redisFaults = suite();
const { test } = redisFaults;

async function shared(t, options) {
  const server = await Redis.start(t, options);
  const cli = standIn(t);
  const start = ({ args = [], ...rest } = {}) => t.start({ cli, ...rest, args: ['--spares', '0', '--store', server.url, ...args] });
  return { server, start };
}

const chat = (t, proxy, text, session = 'mine') => t.send({ proxy, body: ask(`${text} [[who]]`, { session_id: session }) }).done;
const seen = (result) => JSON.parse(assertAnswered(result).json.choices[0].message.content);
const problemOf = async (t, proxy) => (await t.get('/health', { proxy })).json.problem;
const gone = (t, proxy) => eventually('health tells it', () => problemOf(t, proxy));
const well = (t, proxy) => eventually('health is well again', async () => (await problemOf(t, proxy)) === undefined);
const isRefused = ({ status, json, text }) => assert.deepEqual([status, json?.error?.code], [503, 'store_unavailable'], text);

for (const stream of [false, true]) {
  test(`a turn that a Redis which stands still did not take in time is not stored later (stream: ${stream})`, { slow: true }, async (t) => {
    const { server, start } = await shared(t);
    const [one, two] = [await start(), await start()];
    seen(await chat(t, one, 'secret-1'));
    const turn = t.send({ proxy: one, body: ask('secret-2 [[text n=3 first_ms=1500]]', { session_id: 'mine', stream }) });
    await eventually('it has the lease', () => server.cli('GET', keyOf('lease', 'mine')));
    server.kill('SIGSTOP');
    const result = await turn.done;
    if (stream) assert.match(result.text, /store_unavailable/);
    if (!stream) isRefused(result);
    server.kill('SIGCONT');
    await Promise.all([well(t, one), well(t, two)]);
    assert.deepEqual(seen(await chat(t, two, 'secret-3')).secrets, ['secret-1', 'secret-3']);
    assert.deepEqual(seen(await chat(t, one, 'secret-4')).secrets, ['secret-1', 'secret-3', 'secret-4']);
  });
}

/** Passes bytes on to Redis, but for one reply to what holds the word, after so many of them: then the connection ends. */
async function losesOneReply(t, target, word, after) {
  let found = 0;
  const server = net.createServer((client) => {
    let lost = false;
    const onward = net.connect(target, '127.0.0.1').on('error', () => client.destroy());
    client.on('error', () => onward.destroy()).on('close', () => onward.destroy());
    client.on('data', (data) => {
      lost ||= data.includes(word) && found++ === after;
      onward.write(data);
    });
    onward.on('data', (data) => (lost ? client.destroy() : client.write(data)));
    onward.on('close', () => client.destroy());
  });
  await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
  t.defer(async () => server.close());
  return { port: server.address().port, lost: () => found > after };
}

for (const [what, word, after] of [['a request is counted', ':count:', 0], ['it is reserved', ':budget:', 0], ['it is charged', ':budget:', 1]]) {
  test(`a lost reply counts nothing twice: ${what}`, async (t) => {
    const { server, start } = await shared(t);
    const wire = await losesOneReply(t, server.port, word, after);
    const limits = ['--rate-limit', '--rate-limit-chat', '100', '--budget', 'requests=100/day', '--budget', 'tokens=5000/day'];
    const proxy = await start({ args: ['--store', server.urlAt(wire.port), ...limits] });
    const { usage } = assertAnswered(await t.send({ proxy, body: ask('[[text]]', { max_tokens: 500 }) }).done).json;
    await eventually('the reply is lost', () => wire.lost());
    const keys = (pattern) => server.cli('KEYS', pattern).split('\n').filter(Boolean).sort();
    await eventually('it is charged', () => keys('*:budget:use:*').every((key) => server.cli('HGET', key, 'tokens')));
    const [key] = keys('*:budget:use:*');
    assert.deepEqual([server.cli('HGET', key, 'requests'), Number(server.cli('HGET', key, 'tokens'))], ['1', usage.total_tokens]);
    assert.equal(keys('*:budget:held:*').length, 0, 'nothing stays reserved');
    assert.deepEqual(keys('*:count:*').map((one) => server.cli('GET', one)), ['1']);
  });
}

test('usage that a Redis which stands still took late is not counted twice', { slow: true }, async (t) => {
  const { server, start } = await shared(t);
  const proxy = await start();
  assertAnswered(await t.send({ proxy, body: ask('[[text]]') }).done);
  const answers = async () => (await t.get('/v1/usage', { proxy })).json.total?.answers;
  await eventually('it is counted', async () => (await answers()) === 1);
  const turn = t.send({ proxy, body: ask('[[text first_ms=1500]]') });
  await eventually('it is under way', async () => (await t.busyProcesses({ proxy })) > 0);
  server.kill('SIGSTOP');
  assertAnswered(await turn.done);
  await gone(t, proxy);
  server.kill('SIGCONT');
  await well(t, proxy);
  await eventually('both are counted', async () => (await answers()) >= 2);
  assertAnswered(await t.send({ proxy, body: ask('[[text]]') }).done);
  await eventually('the third is counted', async () => (await answers()) >= 3);
  assert.equal(await answers(), 3);
});

test('a full Redis is gone until it has room, and no session has lost anything', { slow: true }, async (t) => {
  const { server, start } = await shared(t);
  const proxy = await start();
  seen(await chat(t, proxy, 'secret-1'));
  const turn = t.send({ proxy, body: ask('secret-2 [[text first_ms=1500]]', { session_id: 'mine' }) });
  await eventually('it has the lease', () => server.cli('GET', keyOf('lease', 'mine')));
  server.cli('CONFIG', 'SET', 'maxmemory', '1');
  isRefused(await turn.done);
  assert.match(await gone(t, proxy), /OOM/);
  isRefused(await chat(t, proxy, 'secret-3'));
  assertAnswered(await t.send({ proxy, body: ask('[[text]]') }).done);
  server.cli('CONFIG', 'SET', 'maxmemory', '0');
  await well(t, proxy);
  assert.deepEqual(seen(await chat(t, proxy, 'secret-4')).secrets, ['secret-1', 'secret-4']);
});

test('a Redis that became a replica is gone until it may be written to again', { slow: true }, async (t) => {
  const { server, start } = await shared(t);
  const proxy = await start();
  seen(await chat(t, proxy, 'secret-1'));
  server.cli('REPLICAOF', '127.0.0.1', '1');
  isRefused(await chat(t, proxy, 'secret-2'));
  assert.match(await gone(t, proxy), /READONLY|MASTERDOWN/);
  server.cli('REPLICAOF', 'NO', 'ONE');
  server.cli('SCRIPT', 'FLUSH');
  await well(t, proxy);
  assert.deepEqual(seen(await chat(t, proxy, 'secret-3')).secrets, ['secret-1', 'secret-3']);
});

test('a Redis of a cluster, or one that allows no scripts, ends the start', async (t) => {
  const cluster = await Redis.start(t, { 'cluster-enabled': 'yes', appendonly: 'no' });
  execFileSync('redis-cli', ['-s', cluster.socket, '--no-auth-warning', '-a', PASSWORD, 'CLUSTER', 'ADDSLOTSRANGE', '0', '16383']);
  await eventually('its slots are served', () => /cluster_state:ok/.test(cluster.cli('CLUSTER', 'INFO')));
  const server = await Redis.start(t);
  server.cli('ACL', 'SETUSER', 'plain', 'on', `>${PASSWORD}`, '~*', '+@all', '-@scripting');
  const wrong = {
    [cluster.url.replace(/2$/, '0')]: /cannot be used: it is of a cluster/,
    [server.url.replace('//:', '//plain:')]: /cannot be used: NOPERM/,
  };
  for (const [url, line] of Object.entries(wrong)) {
    const { exit, output } = await startAndExpectExit({ cli: '/nonexistent/claude', env: { CLAUDE_STORE: url } });
    assert.ok(exit && exit.code !== 0, `${url} starts`);
    assert.match(output, line);
    assert.ok(!output.includes('sesame'), output);
  }
});

test('a Redis that takes away rights or changes its password is gone until it gives them back', { slow: true }, async (t) => {
  const { server, start } = await shared(t);
  const proxy = await start();
  seen(await chat(t, proxy, 'secret-1'));
  server.cli('ACL', 'SETUSER', 'default', '-@scripting');
  isRefused(await chat(t, proxy, 'secret-2'));
  assert.match(await gone(t, proxy), /NOPERM/);
  server.cli('ACL', 'SETUSER', 'default', '+@all');
  await well(t, proxy);
  const withAnother = (...words) => execFileSync('redis-cli', ['-s', server.socket, '--no-auth-warning', '-a', 'another', ...words]);
  server.cli('ACL', 'SETUSER', 'default', 'resetpass', '>another');
  withAnother('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
  assert.match(await gone(t, proxy), /WRONGPASS/);
  assert.ok(!proxy.output.includes('sesame'));
  withAnother('ACL', 'SETUSER', 'default', 'resetpass', `>${PASSWORD}`);
  await well(t, proxy);
  assert.deepEqual(seen(await chat(t, proxy, 'secret-3')).secrets, ['secret-1', 'secret-3']);
});

test('sessions with odd names are each their own at every proxy', async (t) => {
  const { start } = await shared(t);
  const proxies = [await start(), await start()];
  const names = ['a', 'a:b', 'a*', '[a]', 'a b', 'ä', '"a"', '\\a', 'a\\n', '$a', '{a}', '%00', '..', 'session::a'];
  for (const [i, name] of names.entries()) {
    const result = await chat(t, proxies[i % 2], `secret-${i}`, name);
    if (result.status === 400) continue;
    assert.deepEqual(seen(result).secrets, [`secret-${i}`], name);
    assert.deepEqual(seen(await chat(t, proxies[(i + 1) % 2], 'secret-99', name)).secrets, [`secret-${i}`, 'secret-99'], name);
  }
});

test('a long history goes on at another proxy, beside other sessions; where Redis is too slow for it, nothing is stored', { slow: true }, async (t) => {
  const { start } = await shared(t);
  const [one, two] = [await start(), await start()];
  const turn = (...args) =>
    eventually('it is answered', async () => {
      const result = await chat(t, ...args);
      if (result.status === 503) return isRefused(result);
      return seen(result).secrets;
    }, 120_000);
  const long = 'a long tale '.repeat(200_000);
  const secrets = Array.from({ length: 5 }, (_, i) => `secret-${i}`);
  for (const i of [0, 1, 2]) assert.deepEqual(await turn(one, `secret-${i} ${long}`), secrets.slice(0, i + 1));
  const [big, small] = await Promise.all([turn(two, 'secret-3'), turn(two, 'secret-9', 'small')]);
  assert.deepEqual([big, small], [secrets.slice(0, 4), ['secret-9']]);
  assert.deepEqual(await turn(one, 'secret-4'), secrets);
});
