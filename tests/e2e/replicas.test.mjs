// Replicas that share a store in Redis, behind HAProxy as packaging/ configures it: real programs, killed and restarted. Both
// ends are looked at.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { missing, startHaproxy } from './balancers.mjs';
import { DEFAULT_MODEL } from './claude_cli.mjs';
import { PROXY, eventually, freePort, send, sleep, suite } from './harness.mjs';
import { directive, textOf } from './messages_api.mjs';
import { ask, scrape, standIn } from './operate.mjs';
import { Redis } from './redis_server.mjs';
import { randomFrom } from '../soak/figures.mjs';

export const replicas = suite();
const { test } = replicas;

const KEYS = Array.from({ length: 10 }, (_, i) => `a-key-of-all-replicas-${i}`);
const bearer = { authorization: `Bearer ${KEYS[0]}` };
const built = /hiredis/.test(spawnSync(PROXY, ['--version'], { encoding: 'utf8' }).stdout);
const skip = missing('redis-server', 'haproxy') ?? (built ? undefined : 'the program is built without hiredis');
const times = (count, make) => Array.from({ length: count }, (_, i) => make(i));

/** Three replicas over one Redis behind HAProxy; `begin(i)` starts one again at its port. */
async function startAll(t, { cli = t.cli, args = [] } = {}) {
  const redis = await Redis.start(t);
  const ports = await Promise.all(times(3, freePort));
  const all = [];
  const begin = async (i) => {
    const own = ['--port', String(ports[i]), '--store', redis.url, '--trusted-proxy', '127.0.0.1'];
    all[i] = await t.start({ cli, env: { API_KEYS: KEYS.join(',') }, args: [...own, ...args] });
  };
  await Promise.all(times(3, begin));
  return { redis, all, begin, balancer: await startHaproxy(t, ports) };
}

/** For routing only: it names no session, see docs/api.md. */
const routedBy = (id) => ({ ...bearer, 'x-session-id': id, 'x-session-affinity': id });

const TURNS = 10;
const SESSIONS = 30;

test(
  `${SESSIONS} sessions of ${TURNS} turns over random replicas keep their history, while a replica is killed, Redis restarted and HAProxy reloaded`,
  { skip, slow: true, deadline: 900_000 },
  async (t) => {
    const seed = Number(process.env.TEST_SEED ?? Date.now() % 2 ** 31);
    console.log(`     the replicas' test's seed: TEST_SEED=${seed}`);
    const limits = ['--max-processes', '4', '--queue-timeout', '300s'];
    const { redis, all, begin, balancer } = await startAll(t, { args: limits });
    const random = randomFrom(seed);
    const words = times(SESSIONS, (i) => `secret${i}x${Math.floor(random() * 2 ** 40).toString(36)}x`);
    const counts = { answered: 0, failed: 0, late: 0 };
    const told = new Map(words.map((word) => [word, []])); // the history of each session

    const stored = (word) =>
      eventually('the session is told', async () => {
        const { status, json } = await send(balancer, { method: 'GET', path: `/v1/sessions/of-${word}`, headers: routedBy(String(random())) }).done;
        if (status === 200) return { messages: json.message_count };
        return status === 404 && { messages: 0 };
      }, 120_000);

    /** One request of a turn. True when its answer is whole; what failed must have been told. */
    const attempt = async (word, answer, content, stream) => {
      const result = await send(balancer, {
        headers: routedBy(String(random())),
        body: { model: DEFAULT_MODEL, stream, session_id: `of-${word}`, messages: [{ role: 'user', content }] },
      }).done;
      assert.deepEqual(words.filter((other) => other !== word && result.text.includes(other)), [], `${word} was told of another`);
      const text = stream ? result.data?.map((chunk) => chunk.choices?.[0]?.delta?.content ?? '').join('') : result.json?.choices?.[0].message.content;
      if (result.status === 200 && !result.error && (!stream || result.data.at(-1) === '[DONE]') && text === answer) return true;
      const cut = stream && result.status === 200 && (result.error || result.data.some(({ error }) => error));
      assert.ok(cut || [502, 503].includes(result.status), `${result.status} ${result.error} ${result.text}`);
      counts.failed++;
      return false;
    };

    /** One turn, tried again until it is in the session: once, whoever told of it. */
    const turn = async (word, own) => {
      const history = told.get(word);
      const n = history.length / 2 + 1;
      const answer = `the answer ${n} is ${word}`;
      const content = t.text(directive('plain', { text: answer, deltas: 3 }), `question ${n} of ${word}`);
      while (!(await attempt(word, answer, content, own() < 0.5))) {
        const { messages } = await stored(word);
        assert.ok([history.length, history.length + 2].includes(messages), `${word}: ${messages} messages after ${n} turns`);
        if (messages > history.length && ++counts.late) break; // it was stored before the answer was lost
        await sleep(200 * own());
      }
      history.push(['user', content], ['assistant', answer]);
      counts.answered++;
    };

    const faults = async () => {
      const reach = (share) => eventually('turns are answered', () => counts.answered >= share * SESSIONS * TURNS, 600_000);
      await reach(0.2);
      await all[1].stop('SIGKILL');
      all[1].stopped = true;
      await reach(0.35);
      await begin(1);
      await reach(0.5);
      await redis.stop();
      await redis.start();
      await reach(0.75);
      await balancer.reload();
    };
    const converse = async (word, i) => {
      const own = randomFrom(seed + i);
      while (told.get(word).length < 2 * TURNS) await turn(word, own);
    };
    await Promise.all([faults(), ...words.map(converse)]);
    console.log(`     ${counts.failed} requests failed and were tried again; ${counts.late} turns of these were stored`);

    for (const proxy of all) {
      const figures = await scrape(t, { proxy, headers: bearer });
      assert.ok(figures('requests_total', { dialect: 'openai_chat', status: '200' }) > 0, 'each replica has answered');
    }
    for (const word of words) {
      assert.equal((await stored(word)).messages, 2 * TURNS, word);
      const sent = t.calls().filter(({ raw }) => raw.includes(word)).map(({ body }) => body.messages.map(({ role, content }) => [role, textOf(content)]));
      const reached = new Set(sent.map((messages) => (messages.length + 1) / 2));
      assert.deepEqual([...reached].sort((a, b) => a - b), times(TURNS, (i) => i + 1), `${word}: each turn was sent`);
      for (const messages of sent) assert.deepEqual(messages, told.get(word).slice(0, messages.length), `${word}: exactly what was before`);
    }
  },
);

test('a previous_response_id of one replica goes on at another', { skip }, async (t) => {
  const { all } = await startAll(t, { cli: standIn(t) });
  let previous;
  for (const [i, proxy] of [...all, all[0]].entries()) {
    const body = { input: `secret-${i} [[who]]`, ...(previous && { previous_response_id: previous }) };
    const { status, json, text } = await t.send({ proxy, path: '/v1/responses', headers: bearer, body }).done;
    assert.equal(status, 200, text);
    const { messages, secrets } = JSON.parse(json.output.find(({ type }) => type === 'message').content[0].text);
    assert.deepEqual([messages, secrets], [2 * i + 1, times(i + 1, (n) => `secret-${n}`)]);
    previous = json.id;
  }
  for (const proxy of all) assert.equal((await t.get(`/v1/responses/${previous}`, { proxy, headers: bearer })).json.status, 'completed');
  assert.equal((await t.send({ proxy: all[1], method: 'DELETE', path: `/v1/responses/${previous}`, headers: bearer }).done).status, 200);
  assert.equal((await t.get(`/v1/responses/${previous}`, { proxy: all[2], headers: bearer })).status, 404);
});

test('of 60 requests against a limit of 20 a minute over three replicas 20 pass', { skip }, async (t) => {
  const { balancer } = await startAll(t, { cli: standIn(t), args: ['--rate-limit', '--rate-limit-chat', '20'] });
  const minute = () => Math.floor(Date.now() / 60_000);
  let passed;
  let begun;
  // Once more, as another client, where the minute has ended meanwhile.
  for (const [client, key] of KEYS.entries()) {
    begun = minute();
    const results = await Promise.all(
      times(60, (i) => {
        const headers = { ...routedBy(`r${i}`), authorization: `Bearer ${key}`, 'x-forwarded-for': `203.0.113.${client}` };
        return t.send({ proxy: balancer, headers, body: ask('[[text]]') }).done;
      }),
    );
    results.forEach(({ status, text }) => assert.ok([200, 429].includes(status), `${status} ${text}`));
    results.filter(({ status }) => status === 429).forEach(({ headers }) => assert.ok(Number(headers['retry-after']) > 0));
    passed = results.filter(({ status }) => status === 200).length;
    if (begun === minute()) break;
  }
  assert.equal(begun, minute(), 'a minute was long enough');
  assert.equal(passed, 20);
});

test('without Redis HAProxy takes no replica out: what needs no state is answered, the rest is a 503 until it is back', { skip }, async (t) => {
  const { redis, balancer } = await startAll(t, { cli: standIn(t) });
  const turn = async (route) => t.send({ proxy: balancer, headers: routedBy(route), body: ask('secret-1 [[who]]', { session_id: 'mine' }) }).done;
  const whole = ({ status, json, text }) => {
    assert.equal(status, 200, text);
    return JSON.parse(json.choices[0].message.content).messages;
  };
  assert.deepEqual([whole(await turn('a')), whole(await turn('b'))], [1, 3]);
  await redis.stop();
  for (let i = 0; i < 9; i++) {
    const plain = await t.send({ proxy: balancer, headers: routedBy(`r${i}`), body: ask('[[text]]') }).done;
    assert.equal(plain.status, 200, plain.text);
    const { status, json, headers } = await turn(`r${i}`);
    assert.deepEqual([status, json.error.code], [503, 'store_unavailable']);
    assert.ok(Number(headers['retry-after']) > 0);
  }
  assert.doesNotMatch(balancer.output, /is DOWN/);
  await redis.start();
  const back = await eventually('sessions go on', async () => {
    const result = await turn('c');
    return result.status === 200 && result;
  });
  assert.equal(whole(back), 5, 'with all that was before');
});

test('each replica counts the looks at its /health for itself, or their checks would use up each other’s limit', { skip }, async (t) => {
  const { all } = await startAll(t, { cli: standIn(t), args: ['--rate-limit', '--rate-limit-health', '5'] });
  for (const proxy of all) {
    for (let i = 0; i < 5; i++) assert.equal((await t.get('/health', { proxy })).status, 200);
  }
});
