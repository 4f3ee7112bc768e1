// Conversations that go on: their processes, sessions, the cap and the queue, clients that leave, the end. Both ends are
// looked at: what the client got, and what the API was sent. `everyVersion` runs for every pinned CLI, `conversations`
// once, with the newest.
//
// TEST_SEED repeats the random interleaving of the isolation test, SOAK=1 runs it at its large size.

import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { assertError, assertKeys } from './chat.test.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { eventually, send, sleep, suite } from './harness.mjs';
import { textOf } from './messages_api.mjs';

export const everyVersion = suite();
export const conversations = suite();
const { test } = conversations;

const SOON = 8000; // on a machine that has other work to do
const times = (count, make) => Array.from({ length: count }, (_, i) => make(i));

/** The conversation as the API got it, without what CLIs add: reminders, and entries of the role `system`. */
const conversationOf = (call) =>
  call.body.messages
    .filter(({ role }) => role !== 'system')
    .map(({ role, content }) => ({
      role,
      content: textOf(
        typeof content === 'string' ? content : content.filter((block) => !block.text?.startsWith('<system-reminder>')),
      ),
    }));

/** The system prompt without the two blocks that every CLI puts before it. */
const callerSystem = (call) =>
  call.system.filter((text) => !/^x-anthropic-billing-header|^You are a Claude agent, built on/.test(text)).join('\n');

/** Which process made the call: each has an id of its own, which it tells the API. */
const processOf = (call) => call.headers['x-claude-code-session-id'];

const answerOf = (result) =>
  result.data
    ? result.data.map((chunk) => chunk.choices?.[0]?.delta.content ?? '').join('')
    : result.json?.choices?.[0].message.content;

const isWhole = ({ status, error, data }) =>
  status === 200 && !error && (!data || (data.at(-1) === '[DONE]' && !data.some((chunk) => chunk.error)));

function assertRefused(result, status, param) {
  assert.equal(result.status, status, result.text);
  assertKeys(result.json, ['error']);
  assertError(result.json.error);
  if (param) assert.equal(result.json.error.param, param);
}

const bearer = (key) => ({ authorization: `Bearer ${key}` });
const sessionPath = (id) => `/v1/sessions/${encodeURIComponent(id)}`;
/** With the first key: where a proxy has keys, only a client that shows one is told the figures. */
const health = async (t, proxy) => (await t.get('/health', { proxy, headers: bearer('key-one') })).json;
const pids = (proxy) => proxy.claudes().map(({ pid }) => pid);

/** How a client can carry on a conversation: what it sends of {history, question, id}. */
const WAYS = {
  'whole history': ({ history, question }) => ({ body: { messages: [...history, question] } }),
  session_id: ({ question, id }) => ({ body: { session_id: id, messages: [question] } }),
  'X-Session-Id': ({ question, id }) => ({ body: { messages: [question] }, headers: { 'x-session-id': id } }),
  'session_id and whole history': ({ history, question, id }) => ({
    body: { session_id: id, messages: [...history, question] },
  }),
};

/** A client that goes on with its conversation and looks at both ends of each turn. */
class Client {
  static #count = 0;

  constructor(t, { way = 'whole history', proxy = t.proxy, system, model = MODEL, key, history = [], id } = {}) {
    Object.assign(this, { t, way, proxy, system, model, key, history });
    this.name = `client-${++Client.#count}-`;
    this.id = id ?? `session ${this.name}`;
    this.turns = 0;
    this.processes = []; // one entry a turn
  }

  /** Another client with the same past, up to that turn. */
  branch(turns, changes = {}) {
    const { t, way, proxy, system, model, key } = this;
    return new Client(t, { way, proxy, system, model, key, history: this.history.slice(0, 2 * turns), ...changes });
  }

  /** Sends the next question; `scenario` adds to how the API answers it. */
  begin({ scenario = '', name = 'plain', ...fields } = {}) {
    const label = `${this.name}${++this.turns}-`;
    this.answer = `answer ${label}`;
    this.question = {
      role: 'user',
      content: this.t.text(`${name} text="${this.answer}" ${scenario}`, `question ${label}`),
    };
    const { body, headers } = WAYS[this.way](this);
    if (this.system && (this.way === 'whole history' || !this.history.length))
      body.messages = [{ role: 'system', content: this.system }, ...body.messages];
    return this.t.send({
      proxy: this.proxy,
      headers: { ...headers, ...(this.key ? bearer(this.key) : {}) },
      body: { model: this.model, stream: this.turns % 2 === 0, ...body, ...fields },
    });
  }

  calls() {
    return this.t.calls().filter((call) => conversationOf(call).at(-1).content === this.question.content);
  }

  /** Checks a finished turn: the client got the answer, and the API one call with the whole conversation. */
  finish(result) {
    assert.equal(result.status, 200, result.text);
    assert.equal(answerOf(result), this.answer, result.text);
    const [call, ...more] = this.calls();
    assert.equal(more.length, 0, 'one call a turn');
    assert.deepEqual(conversationOf(call), [...this.history, this.question]);
    assert.equal(call.body.model, this.model);
    if (this.system) assert.equal(callerSystem(call), this.system);
    this.history = [...this.history, this.question, { role: 'assistant', content: this.answer }];
    this.processes.push(processOf(call));
    return call;
  }

  async ask(options) {
    return this.finish(await this.begin(options).done);
  }

  async askTimes(turns) {
    for (let i = 0; i < turns; i++) await this.ask();
  }

  assertProcesses(count) {
    assert.ok(this.processes.every(Boolean), 'every call tells its process');
    assert.equal(new Set(this.processes).size, count, `processes by turn: ${this.processes}`);
  }
}

/** Runs beside `work` and resolves to the most `claude` processes that lived at once. */
async function mostProcesses(proxy, work) {
  let most = 0;
  let done = false;
  const watch = (async () => {
    while (!done) {
      most = Math.max(most, proxy.claudes().length);
      await sleep(15);
    }
  })();
  try {
    await work();
  } finally {
    done = true;
    await watch;
  }
  return most;
}

/** A proxy of the test's own that has no `claude` yet. */
async function startQuiet(t, args = []) {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', ...args] });
  await proxy.inspected();
  const none = async () => {
    const { spare, busy, idle, stopping } = (await health(t, proxy)).processes;
    return spare + busy + idle + stopping + proxy.claudes().length === 0;
  };
  await eventually('no claude is left of the start', none);
  return proxy;
}

/** Ends it now; what it leaves behind fails the test. */
async function stop(proxy, signal) {
  const { faults, took } = await proxy.stop(signal);
  proxy.stopped = true;
  assert.deepEqual(faults, []);
  return took;
}

// ---- one process, turn after turn ----------------------------------------------------------------

for (const way of Object.keys(WAYS)) {
  everyVersion.test(
    `20 turns with ${way}: one process, 20 calls, one pair more each`,
    async (t) => {
      const client = new Client(t, { way, system: `Be brief with ${way}.` });
      await client.askTimes(20);
      client.assertProcesses(1);
      assert.equal(t.calls().length, 20);
      t.calls().forEach((call, i) => assert.equal(conversationOf(call).length, 2 * i + 1));
    },
  );
}

for (const way of ['whole history', 'session_id']) {
  everyVersion.test(`20 turns with ${way} outlive two kills of their process`, async (t) => {
    const proxy = await startQuiet(t);
    const client = new Client(t, { way, proxy });
    const kill = async (pid) => {
      assert.deepEqual(pids(proxy), [pid], 'still the one process');
      process.kill(pid, 'SIGKILL');
    };
    await client.askTimes(7);
    const [first] = pids(proxy);
    assert.deepEqual((await health(t, proxy)).processes.idle, 1);
    await kill(first);
    await eventually('the proxy notices', async () => (await health(t, proxy)).processes.idle === 0);
    await client.askTimes(6);
    const [second] = pids(proxy);
    assert.notEqual(second, first);
    await kill(second); // and the next turn comes at once
    await client.askTimes(7);
    client.assertProcesses(3);
    assert.equal(t.calls().length, 20, 'nothing was asked twice');
  });
}

// ---- sessions that outlive the proxy -------------------------------------------------------------

const temporaryFolder = (t) => {
  const folder = mkdtempSync(path.join(tmpdir(), 'claude-openai-sessions-'));
  t.defer(async () => rmSync(folder, { recursive: true, force: true }));
  return folder;
};

const modeOf = (file) => (statSync(file).mode & 0o777).toString(8);

test('20 turns go on after restarts with --session-dir', { slow: true }, async (t) => {
  const folder = path.join(temporaryFolder(t), 'sessions');
  const start = () => startQuiet(t, ['--session-dir', folder]);
  const described = async (client) => (await t.get(sessionPath(client.id), { proxy: client.proxy })).json;
  let proxy = await start();
  const clients = ['session_id', 'session_id and whole history'].map(
    (way) => new Client(t, { way, proxy, system: `Remember, with ${way}.`, id: `../${way} ünï/€` }),
  );
  await Promise.all(clients.map((client) => client.askTimes(7)));
  assert.equal(modeOf(folder), '700');
  for (const file of readdirSync(folder)) {
    assert.equal(modeOf(path.join(folder, file)), '600');
    assert.match(file, /^salt$|^claude-openai\.sqlite(-wal)?$/, 'no part of an id');
  }
  const before = await Promise.all(clients.map(described));
  await stop(proxy);

  // Files as older versions wrote them: one is taken over; others are torn in every way: half of a whole one, nothing, no object,
  // an object of something else, and a write that did not end.
  const content = (text) => [{ type: 'text', text }];
  const messages = [{ role: 'user', content: content('Hi') }, { role: 'assistant', content: content('Hello') }];
  const times = { created_ms: Date.now(), last_accessed_ms: Date.now() };
  const whole = JSON.stringify({ version: 1, client: '', id: 'old', system: '', ...times, messages });
  const torn = {
    'half.json': whole.slice(0, whole.length / 2),
    'empty.json': '',
    'list.json': '[1]',
    'other.json': '{"id":"x"}',
  };
  const taken = path.join(folder, `${'y'.repeat(24)}.json`);
  writeFileSync(taken, whole, { mode: 0o600 });
  Object.entries(torn).forEach(([name, text]) => writeFileSync(path.join(folder, name), text, { mode: 0o600 }));
  writeFileSync(path.join(folder, `${'x'.repeat(24)}.json.new`), whole.slice(0, 40), { mode: 0o600 });

  proxy = await start();
  for (const name of Object.keys(torn)) assert.match(proxy.output, new RegExp(`skipped.*${name}`));
  clients.forEach((client) => Object.assign(client, { proxy }));
  const after = await Promise.all(clients.map(described));
  after.forEach((session, i) => {
    assert.equal(session.message_count, 14);
    assert.equal(session.created_at, before[i].created_at);
  });
  assert.equal((await t.get('/v1/sessions/old', { proxy })).json.message_count, 2);
  assert.equal(existsSync(taken), false, 'it is in the store now');
  assert.equal((await t.get('/v1/sessions', { proxy })).json.total, 3);
  await Promise.all(clients.map((client) => client.askTimes(7)));
  await stop(proxy, 'SIGKILL'); // what was answered is stored, however it ends

  proxy = await start();
  clients.forEach((client) => Object.assign(client, { proxy }));
  await Promise.all(clients.map((client) => client.askTimes(6)));
  clients.forEach((client) => client.assertProcesses(3));
  assert.equal(t.calls().length, 40);
  assert.equal((await t.send({ proxy, method: 'DELETE', path: sessionPath(clients[0].id) }).done).status, 200);
  await stop(proxy);
  proxy = await start();
  const left = (await t.get('/v1/sessions', { proxy })).json.sessions.map(({ session_id }) => session_id);
  assert.deepEqual(left.sort(), [clients[1].id, 'old'].sort(), 'it does not come back');
});

test(
  'what was deleted stays so after a restart, and a session expires after --session-ttl',
  async (t) => {
    const folder = temporaryFolder(t);
    const args = ['--session-dir', folder, '--session-ttl', '2s'];
    let proxy = await startQuiet(t, args);
    const [gone, expired] = times(2, () => new Client(t, { way: 'session_id', proxy }));
    await gone.ask();
    await t.send({ proxy, method: 'DELETE', path: sessionPath(gone.id) }).done;
    await expired.ask();
    await stop(proxy);
    await sleep(2100);
    proxy = await startQuiet(t, args);
    for (const client of [gone, expired]) assertRefused(await t.get(sessionPath(client.id), { proxy }), 404);
    Object.assign(expired, { proxy, history: [] });
    await expired.ask(); // starts afresh
    await sleep(2100);
    assert.equal((await t.get('/v1/sessions', { proxy })).json.total, 0);
    await stop(proxy);
    proxy = await startQuiet(t, ['--session-dir', folder]);
    assert.equal((await t.get('/v1/sessions', { proxy })).json.total, 0, 'it does not come back');
  },
);

// ---- what is the same conversation, and what is not ----------------------------------------------

test('a branch of an older prefix and the first branch both go on', async (t) => {
  const first = new Client(t);
  await first.askTimes(3);
  const second = first.branch(1);
  await second.ask();
  for (let i = 0; i < 2; i++) {
    await first.ask();
    await second.ask();
  }
  const regenerated = first.branch(4); // the same past as the process of `first`, but for its end
  await regenerated.ask();
  for (const client of [first, second, regenerated]) client.assertProcesses(1);
  const used = [first, second, regenerated].map(({ processes }) => processes[0]);
  assert.equal(new Set(used).size, 3, 'each branch has its own process');
});

test('what changes is another conversation, a sampling parameter is not', async (t) => {
  const first = new Client(t, { system: 'One.' });
  await first.askTimes(2);
  const edited = first.branch(2);
  edited.history[0] = { ...edited.history[0], content: `${edited.history[0].content} edited` };
  const editedReply = first.branch(2);
  editedReply.history[1] = { ...editedReply.history[1], content: 'quite another answer' };
  const others = {
    edited,
    editedReply,
    system: first.branch(2, { system: 'Two.' }),
    'no system': first.branch(2, { system: undefined }),
    model: first.branch(2, { model: 'claude-haiku-4-5-20251001' }),
  };
  for (const client of Object.values(others)) await client.ask();
  await first.ask({ temperature: 0.5, max_tokens: 100, user: 'someone', metadata: { a: 'b' } });
  first.assertProcesses(1);
  for (const [what, client] of Object.entries(others)) {
    assert.ok(!first.processes.includes(client.processes[0]), what);
    await client.ask();
    client.assertProcesses(1);
  }
});

test('identical histories of two client keys never share a process', async (t) => {
  const proxy = await startQuiet(t, ['--api-key', 'key-one', '--api-key', 'key-two']);
  const one = new Client(t, { proxy, key: 'key-one' });
  await one.askTimes(2);
  const two = one.branch(2, { key: 'key-two' });
  await two.ask();
  await one.ask();
  await two.ask();
  for (const client of [one, two]) client.assertProcesses(1);
  assert.notEqual(one.processes[0], two.processes[0]);
  assert.equal(pids(proxy).length, 2);
  // The same bytes, once more, by both: each is answered by its own process, which takes back what it holds.
  const body = {
    model: MODEL,
    messages: [...one.history.slice(0, 2), { role: 'user', content: t.text('plain', 'the same') }],
  };
  for (const key of ['key-one', 'key-two']) await t.send({ proxy, headers: bearer(key), body }).done;
  const same = t.calls().filter((call) => call.text.endsWith('the same'));
  assert.deepEqual(same.map(processOf), [one.processes[0], two.processes[0]]);
});

// ---- the sessions of a client --------------------------------------------------------------------

const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/;

function assertSession(session, { id, count }) {
  assertKeys(session, ['session_id', 'created_at', 'last_accessed', 'message_count', 'expires_at']);
  assert.equal(session.session_id, id);
  assert.equal(session.message_count, count);
  for (const field of ['created_at', 'last_accessed', 'expires_at']) assert.match(session[field], ISO);
  const [created, accessed, expires] = ['created_at', 'last_accessed', 'expires_at'].map((field) =>
    Date.parse(session[field]),
  );
  assert.ok(Math.abs(Date.now() - created) < 120_000 && created <= accessed, JSON.stringify(session));
  assert.ok(Math.abs(expires - accessed - 3_600_000) < 2000, JSON.stringify(session));
}

test('sessions are listed, told, counted and deleted, for their own key alone', async (t) => {
  const proxy = await startQuiet(t, ['--api-key', 'key-one', '--api-key', 'key-two', '--max-processes', '2']);
  const as = (key) => ({ proxy, headers: bearer(key) });
  const list = async (key) => (await t.get('/v1/sessions', as(key))).json;
  const stats = async (key) => (await t.get('/v1/sessions/stats', as(key))).json;
  const remove = (id, key) => t.send({ ...as(key), method: 'DELETE', path: sessionPath(id) }).done;
  assert.deepEqual(await list('key-one'), { sessions: [], total: 0 });

  const ids = ['a/b c', 'ends/', 'stats', 'Zürich 世界 🙂', '%2F?#&=+..', 'ü'.repeat(128)];
  const clients = ids.map((id) => new Client(t, { way: 'session_id', proxy, key: 'key-one', id }));
  for (const client of clients) await client.ask();
  await clients[0].ask();
  const { sessions, total } = await list('key-one');
  assert.equal(total, ids.length);
  assert.deepEqual(
    sessions.map(({ session_id: id }) => id),
    ids,
  );
  sessions.forEach((session, i) => assertSession(session, { id: ids[i], count: i ? 2 : 4 }));
  const { session_stats: counted, ...defaults } = await stats('key-one');
  assert.deepEqual(counted, { active_sessions: ids.length, expired_sessions: 0, total_messages: 2 * ids.length + 2 });
  assertKeys(defaults, ['cleanup_interval_minutes', 'default_ttl_hours']);
  assert.equal(defaults.default_ttl_hours, 1);
  assert.equal(typeof defaults.cleanup_interval_minutes, 'number');
  for (const id of ids.filter((one) => one !== 'stats')) {
    const told = await t.get(sessionPath(id), as('key-one'));
    assertSession(told.json, { id, count: id === ids[0] ? 4 : 2 });
  }

  // The other key has a session of the same id, and sees nothing else.
  assertRefused(await t.get('/v1/sessions', { proxy }), 401);
  assert.deepEqual(await list('key-two'), { sessions: [], total: 0 });
  const other = new Client(t, { way: 'session_id', proxy, key: 'key-two', id: ids[0] });
  await other.ask(); // its history is its own
  assert.deepEqual(
    (await list('key-two')).sessions.map(({ message_count: count }) => count),
    [2],
  );
  assert.equal((await stats('key-two')).session_stats.total_messages, 2);
  assertRefused(await t.get(sessionPath(clients.at(-1).id), as('key-two')), 404);
  assertRefused(await remove(clients.at(-1).id, 'key-two'), 404);
  await clients.at(-1).ask();

  for (const id of ids) {
    const removed = await remove(id, 'key-one');
    assert.deepEqual([removed.status, typeof removed.json.message], [200, 'string'], removed.text);
    assertRefused(await remove(id, 'key-one'), 404);
  }
  assert.deepEqual(await list('key-one'), { sessions: [], total: 0 });
  assert.equal((await list('key-two')).total, 1);
  assert.equal((await t.get(sessionPath('never seen'), as('key-one'))).json.error.message, 'Session not found');
  clients[0].history = [];
  await clients[0].ask(); // afresh
});

test('a session id is 1 to 256 characters without control characters', async (t) => {
  const messages = t.messages('plain');
  for (const id of ['', 'a\nb', 'a\0', '\x7f', 'x'.repeat(257), 'ü'.repeat(257), 7, {}, ['a']]) {
    const result = await t.chat({ session_id: id, messages });
    assertRefused(result, 400, 'session_id');
  }
  for (const id of ['x'.repeat(257), 'a\tb'])
    assertRefused(await t.chat({ messages }, { headers: { 'x-session-id': id } }), 400);
  assert.equal(t.calls().length, 0);
  assert.equal((await t.chat({ session_id: null, messages })).status, 200, 'null is none');
  const longest = await t.chat({ session_id: 'ü'.repeat(256), messages });
  assert.equal(longest.status, 200, longest.text);
});

test('a failed turn leaves the session as it was', async (t) => {
  const client = new Client(t, { way: 'session_id', system: 'The first rule.' });
  const described = async () => (await t.get(sessionPath(client.id))).json;
  const fail = async (status, scenario, fields) => {
    const [failed, whole] = [client.begin({ ...scenario, ...fields, stream: false }), await described()];
    assert.equal((await failed.done).status, status);
    return whole;
  };
  await fail(400, { name: 'error', scenario: 'status=400' });
  assertRefused(await t.get(sessionPath(client.id)), 404);
  await client.askTimes(2);
  for (const stream of [false, true]) {
    const body = {
      session_id: client.id,
      stream,
      messages: [
        { role: 'system', content: 'Another rule.' },
        { role: 'user', content: t.text('error status=400', 'a question that fails') },
      ],
    };
    const result = await t.chat(body);
    assertRefused(result, 400);
    assert.equal((await described()).message_count, 4);
  }
  const leaver = client.begin({ scenario: 'deltas=4', name: 'hang', stream: true });
  await eventually('it is asked', () => client.calls().length);
  leaver.abort();
  await leaver.done;
  await client.ask(); // the history and the system prompt are those of the two turns that went well
  assert.equal((await described()).message_count, 6);
});

test('a session follows a client that cuts the history it sends', async (t) => {
  const first = new Client(t, { way: 'session_id and whole history' });
  await first.askTimes(3);
  const second = first.branch(1, { id: first.id }); // has taken two questions back
  await second.ask();
  assert.equal((await t.get(sessionPath(first.id))).json.message_count, 4);
  second.way = 'session_id'; // the session is what was said last
  await second.ask();
  second.assertProcesses(1);
  assert.notEqual(second.processes[0], first.processes[0]);
});

test('requests of one session at once are answered one after the other', async (t) => {
  const id = `shared ${t.token}`;
  const text = (i) => t.text(`plain text=answer-${i} deltas=4 delay=60`, `question ${i}`);
  const sent = [];
  for (let i = 0; i < 4; i++) {
    sent.push(
      t.send({
        body: { model: MODEL, session_id: id, stream: i % 2 === 0, messages: [{ role: 'user', content: text(i) }] },
      }),
    );
    await sleep(100); // their order is that of arrival
  }
  const results = await Promise.all(sent.map(({ done }) => done));
  results.forEach((result, i) => assert.equal(answerOf(result), `answer-${i}`, result.text));
  const calls = t.calls();
  assert.equal(calls.length, 4);
  const pairs = [];
  calls.forEach((call, i) => {
    assert.deepEqual(conversationOf(call), [...pairs, { role: 'user', content: text(i) }]);
    pairs.push({ role: 'user', content: text(i) }, { role: 'assistant', content: `answer-${i}` });
    if (i) assert.ok(call.at >= calls[i - 1].leftAt, 'not before the answer to the one before');
  });
  assert.equal(new Set(calls.map(processOf)).size, 1);
});

test('a session that is deleted while it is asked stays deleted', async (t) => {
  const client = new Client(t, { way: 'session_id' });
  await client.ask();
  const going = client.begin({ scenario: 'deltas=4 delay=300' });
  await eventually('it is asked', () => client.calls().length);
  assert.equal((await t.send({ method: 'DELETE', path: sessionPath(client.id) }).done).status, 200);
  client.finish(await going.done);
  assertRefused(await t.get(sessionPath(client.id)), 404);
  client.history = [];
  await client.ask();
});

// ---- clients that leave --------------------------------------------------------------------------

test('a client that leaves in the queue, in replay or in mid-answer stops its work', async (t) => {
  const proxy = await startQuiet(t, ['--max-processes', '1']);
  const queued = (count) =>
    eventually(`${count} in the queue`, async () => (await health(t, proxy)).queued === count);
  const free = () => eventually('its process is free', async () => (await t.busyProcesses({ proxy })) === 0);
  const asked = (client) => eventually('the API is asked', () => client.calls()[0]);

  // In the queue: it is never asked, and the one behind it is.
  const [holder, leaver, waiter] = times(3, () => new Client(t, { proxy }));
  const held = holder.begin({ name: 'hang', stream: true });
  const heldCall = await asked(holder);
  const left = leaver.begin();
  await queued(1);
  const waiting = waiter.begin();
  await queued(2);
  left.abort();
  await queued(1);
  held.abort();
  await eventually('the API sees that it left', () => heldCall.clientLeft);
  waiter.finish(await waiting.done);
  await waiter.ask();
  waiter.assertProcesses(1);
  assert.equal(leaver.calls().length, 0);

  // In replay, and before it. The process of `waiter` makes room.
  const history = times(400, (i) => ({
    role: i % 2 ? 'assistant' : 'user',
    content: `line ${i} ${'word '.repeat(200)}`,
  }));
  for (const wait of [0, 400]) {
    const replayed = new Client(t, { proxy, history });
    const exchange = replayed.begin({ name: 'hang' });
    await eventually('it has a process', async () => (await health(t, proxy)).processes.busy === 1);
    await sleep(wait);
    exchange.abort();
    await free();
    for (const call of replayed.calls()) await eventually('the API sees that it left', () => call.clientLeft);
  }

  // In mid-answer, streamed and not.
  for (const stream of [true, false]) {
    const client = new Client(t, { proxy });
    const exchange = client.begin({ name: 'hang', scenario: 'after=2', stream });
    const call = await asked(client);
    if (stream) await eventually('the first delta', () => exchange.chunks.length > 0);
    exchange.abort();
    await eventually('the API sees that it left', () => call.clientLeft);
    await free();
  }
  await waiter.ask();
});

// ---- the cap and the queue -----------------------------------------------------------------------

test('six conversations share two processes and all go on right', async (t) => {
  const proxy = await startQuiet(t, ['--max-processes', '2']);
  const clients = times(6, (i) => new Client(t, { proxy, way: i % 2 ? 'session_id' : 'whole history' }));
  const most = await mostProcesses(proxy, () => Promise.all(clients.map((client) => client.askTimes(2))));
  assert.ok(most > 0 && most <= 2, `${most} at once`);
  assert.equal(t.calls().length, 12);
});

test(
  'without reuse, at the cap the least recently used conversation makes room, and goes on by replay',
  async (t) => {
    const proxy = await startQuiet(t, ['--max-processes', '2', '--no-process-reuse']);
    const [oldest, kept, fresh] = times(3, () => new Client(t, { proxy }));
    const most = await mostProcesses(proxy, async () => {
      await kept.ask();
      await oldest.ask();
      await kept.ask(); // now `oldest` is the least recently used
      await fresh.ask();
      await kept.ask();
      await oldest.ask(); // in the place of `fresh`
      await kept.ask();
      await fresh.ask();
    });
    assert.ok(most <= 2, `${most} at once`);
    kept.assertProcesses(1);
    oldest.assertProcesses(2);
    fresh.assertProcesses(2);
  },
);

test('without reuse, an idle conversation makes room at once, even without a queue', async (t) => {
  const proxy = await startQuiet(t, ['--max-processes', '1', '--max-queue', '0', '--no-process-reuse']);
  const clients = times(2, () => new Client(t, { proxy }));
  for (const client of [...clients, ...clients]) await client.ask();
  for (const client of clients) client.assertProcesses(2);
});

test('idle processes end after --idle-timeout, and their conversations go on', async (t) => {
  const proxy = await startQuiet(t, ['--idle-timeout', '1s']);
  const client = new Client(t, { proxy });
  await client.ask();
  await eventually('it ends', () => proxy.claudes().length === 0);
  await client.ask();
  client.assertProcesses(2);
});

/** A proxy whose only process hangs in an answer. */
async function startBusy(t, args) {
  const proxy = await startQuiet(t, ['--max-processes', '1', ...args]);
  const holder = new Client(t, { proxy, key: args.includes('--api-key') ? 'key-one' : undefined });
  const held = holder.begin({ name: 'hang', stream: true });
  t.defer(async () => held.abort());
  await eventually('the API is asked', () => holder.calls().length);
  return { proxy, held };
}

function assertBusy(result) {
  assertRefused(result, 429);
  assert.equal(result.json.error.code, 'processes_busy');
  assert.match(result.json.error.message, /busy|no claude process is ready/);
  assert.match(result.headers['retry-after'] ?? '', /^[1-9]\d*$/);
  return result.at - result.sentAt;
}

test(
  'a full queue is 429 at once, a wait too long is 429 after --queue-timeout, and health is instant',
  async (t) => {
    const { proxy: full } = await startBusy(t, ['--max-queue', '0']);
    const took = assertBusy(await t.chat({ messages: t.messages('plain') }, { proxy: full }));
    assert.ok(took < 5000, `${took} ms`);

    const { proxy } = await startBusy(t, ['--max-queue', '2', '--queue-timeout', '5s']);
    const waiting = times(2, () =>
      t.send({ proxy, body: { model: MODEL, stream: true, messages: t.messages('plain') } }),
    );
    await eventually('both wait', async () => (await health(t, proxy)).queued === 2);
    const third = t.send({ proxy, body: { model: MODEL, messages: t.messages('plain') } });
    const replies = [];
    for (let i = 0; i < 11; i++) {
      const { status, sentAt, at } = await t.get('/health', { proxy });
      assert.equal(status, 200);
      replies.push(Math.round(at - sentAt));
    }
    const median = replies.sort((a, b) => a - b)[5];
    assert.ok(median < 1000, `health took ${replies} ms`);
    assert.ok(assertBusy(await third.done) < 4000, 'the queue was full');
    for (const { done } of waiting) {
      const waited = assertBusy(await done);
      assert.ok(waited > 4900 && waited < 5000 + SOON, `${waited} ms`);
    }
    assert.equal((await health(t, proxy)).queued, 0);
  },
);

test('the queue serves client keys in turn', async (t) => {
  const { proxy, held } = await startBusy(t, ['--api-key', 'key-one', '--api-key', 'key-two']);
  const order = [];
  const sent = [];
  for (const [i, key] of ['key-one', 'key-one', 'key-one', 'key-two', 'key-two'].entries()) {
    const client = new Client(t, { proxy, key });
    sent.push({ client, exchange: client.begin() });
    await eventually('it waits', async () => (await health(t, proxy)).queued === i + 1);
  }
  held.abort();
  for (const { client, exchange } of sent) client.finish(await exchange.done);
  for (const call of t.calls().slice(1))
    order.push(sent.findIndex(({ client }) => client.calls()[0] === call));
  assert.deepEqual(order, [3, 0, 4, 1, 2], 'the one that held it comes second');
});

test('a stampede of 200 requests on two processes: each is answered, or told that they are busy', async (t) => {
  const proxy = await startQuiet(t, ['--max-processes', '2', '--max-queue', '8', '--queue-timeout', '60s']);
  let results;
  const most = await mostProcesses(proxy, async () => {
    results = await Promise.all(times(200, () => t.chat({ messages: t.messages('plain') }, { proxy })));
  });
  assert.ok(most > 0 && most <= 2, `${most} at once`);
  results.filter(({ status }) => status !== 200).forEach(assertBusy);
  const served = results.filter(({ status }) => status === 200).length;
  assert.ok(served >= 1 && served === t.calls().length, `${served} served, ${t.calls().length} calls`);
  const after = new Client(t, { proxy });
  await after.ask();
});

// ---- connections ---------------------------------------------------------------------------------

test('200 clients that connect at once are all served', async (t) => {
  const client = new Client(t);
  const chat = client.begin({ scenario: 'deltas=3 delay=100' });
  const asked = ['/health', '/v1/models', '/version', '/v1/sessions'];
  const exchanges = times(200, (i) => send(t.proxy, { method: 'GET', path: asked[i % asked.length] }));
  for (const { done, path: where } of exchanges) {
    const { status, error } = await done;
    assert.equal(status, 200, `${where} ${error?.message}`);
  }
  client.finish(await chat.done);
});

test('256 idle connections and 16 streams do not starve health', async (t) => {
  const proxy = await startQuiet(t, ['--max-processes', '2']);
  const agent = new http.Agent({ keepAlive: true, maxSockets: 256, maxFreeSockets: 256 });
  t.defer(async () => agent.destroy());
  const ask = () =>
    new Promise((resolve, reject) => {
      http
        .get({ host: '127.0.0.1', port: proxy.port, path: '/version', agent }, (response) =>
          response.resume().once('end', () => resolve(response.statusCode)),
        )
        .once('error', reject);
    });
  const statuses = await Promise.all(times(256, ask));
  assert.ok(statuses.every((status) => status === 200));
  assert.equal(Object.values(agent.freeSockets).flat().length, 256, 'all are kept alive');
  // Two of the streams are in mid-answer, the others wait for a process, all of them connected.
  const streams = times(16, () =>
    t.send({ proxy, body: { model: MODEL, stream: true, messages: t.messages('hang after=1') } }),
  );
  await eventually('two are in mid-answer', () => streams.filter(({ chunks }) => chunks.length).length === 2, 40_000);
  await eventually('the others wait', async () => (await health(t, proxy)).queued === 14);
  const took = [];
  for (let i = 0; i < 11; i++) {
    const { status, sentAt, at } = await t.get('/health', { proxy });
    assert.equal(status, 200);
    took.push(Math.round(at - sentAt));
  }
  assert.ok(took.sort((a, b) => a - b)[5] < 1000, `health took ${took} ms`);
  streams.forEach(({ abort }) => abort());
  await eventually('nobody waits', async () => (await health(t, proxy)).queued === 0);
});

// ---- the end -------------------------------------------------------------------------------------

test(
  'at SIGTERM a stream is finished, new connections are refused, idle conversations end',
  async (t) => {
    const proxy = await startQuiet(t, ['--drain-timeout', '20s']);
    const [idle, running] = times(2, () => new Client(t, { proxy }));
    await idle.ask();
    const stream = running.begin({ scenario: 'deltas=8 delay=250', stream: true });
    await eventually('the first delta', () => stream.chunks.length > 0);
    proxy.kill();
    const refused = async () =>
      (await send(proxy, { method: 'GET', path: '/health' }).done).error?.code === 'ECONNREFUSED';
    await eventually('new connections are refused', refused);
    assert.equal(stream.result, undefined, 'the stream goes on');
    running.finish(await stream.done);
    assert.equal(stream.result.data.at(-1), '[DONE]');
    await stop(proxy);
    assert.equal(proxy.exit.code, 0);
  },
);

test('SIGTERM waits for --drain-timeout and not longer, a second one not at all', async (t) => {
  const end = async (drain, again) => {
    const proxy = await startQuiet(t, ['--drain-timeout', drain]);
    const [idle, stuck, whole] = times(3, () => new Client(t, { proxy }));
    await idle.ask();
    const exchanges = [
      stuck.begin({ name: 'hang', scenario: 'after=1', stream: true }),
      whole.begin({ name: 'hang', stream: false }),
    ];
    const calls = await Promise.all(
      [stuck, whole].map((client) => eventually('asked', () => client.calls()[0])),
    );
    const began = performance.now();
    proxy.kill();
    if (again) await sleep(300).then(() => proxy.kill());
    await Promise.race([proxy.exited, sleep(15_000)]);
    const took = performance.now() - began;
    assert.ok(proxy.exit, 'it ended');
    await Promise.all(exchanges.map(({ done }) => done));
    for (const call of calls) await eventually('the API sees that they left', () => call.clientLeft);
    await stop(proxy);
    return took;
  };
  const drained = await end('1500ms', false);
  assert.ok(drained > 1400 && drained < 1500 + SOON, `${drained} ms`);
  const twice = await end('60s', true);
  assert.ok(twice < 300 + SOON, `${twice} ms`);
});

// ---- isolation -----------------------------------------------------------------------------------

/** A small generator of numbers from 0 to 1 that a seed repeats. */
function randomFrom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const SOAK = process.env.SOAK === '1';
const size = SOAK
  ? { chats: 50, turns: 12, kills: 150, processes: 24, pause: 4000, minutes: 20 }
  : { chats: 8, turns: 4, kills: 6, processes: 8, pause: 200, minutes: 5 };

test(
  `${size.chats} conversations at once with kills and disconnects never mix`,
  { deadline: size.minutes * 60_000, slow: true },
  async (t) => {
    const seed = Number(process.env.TEST_SEED ?? Date.now() % 2 ** 31);
    console.log(`     the isolation test's seed: TEST_SEED=${seed}`);
    const random = randomFrom(seed);
    const limits = ['--max-processes', String(size.processes), '--queue-timeout', '300s'];
    const keys = ['key-of-one-client', 'key-of-another'];
    const env = { API_KEYS: keys.join(',') };
    const proxy = await t.start({ cli: t.cli, env, args: ['--spares', '2', ...limits] });
    const words = times(size.chats, (i) => `secret${i}x${Math.floor(random() * 2 ** 40).toString(36)}x`);
    const keyOf = (word) => keys[(words.indexOf(word) >> 2) % 2];
    const kindOf = (word) => ['changes', 'session', 'one-offs', 'session'][words.indexOf(word) % 4];
    // All but sessions begin alike, with either key, so that a process may be taken back for another conversation.
    const systemOf = (word) => (kindOf(word) === 'session' ? `You keep ${word}.` : 'You keep your word.');
    const counts = { whole: 0, left: 0, killed: 0, stopped: 0 };
    const pasts = new Map(); // what a client that keeps the history itself had before each of its questions

    /** One conversation. Each has numbers of its own, so that a seed means the same whatever comes first. */
    const converse = async (word, i) => {
      const own = randomFrom(seed + i);
      const kind = kindOf(word);
      const session = kind === 'session' ? `session of ${word}` : undefined;
      let asked = 0;
      const question = () => {
        const answer = `the answer ${++asked} is ${word}`;
        const content = t.text(`plain text="${answer}" deltas=3 delay=40`, `question ${asked} of ${word}`);
        return { answer, content };
      };

      /** Asks once. Resolves to the history with this turn, or to nothing when the answer is not whole. */
      const ask = async (past, { answer, content }) => {
        const leaves = own() < 0.2;
        if (!session) pasts.set(content, past);
        const exchange = send(proxy, {
          headers: bearer(keyOf(word)),
          body: {
            model: MODEL,
            stream: own() < 0.5,
            ...(session ? { session_id: session } : {}),
            messages: [{ role: 'system', content: systemOf(word) }, ...past, { role: 'user', content }],
          },
        });
        const patience = own() * 1500;
        if (leaves) await Promise.race([exchange.done, sleep(patience).then(exchange.abort)]);
        const result = await exchange.done;
        const others = words.filter((other) => other !== word && result.text.includes(other));
        assert.deepEqual(others, [], `${word} was told of another`);
        if (isWhole(result)) {
          assert.equal(answerOf(result), answer);
          counts.whole++;
          return [...past, { role: 'user', content, answer }, { role: 'assistant', content: answer }];
        }
        // Its process was killed, or it left itself.
        assert.ok(
          result.error || result.status === 502 || result.data?.some((chunk) => chunk.error),
          `${result.status} ${result.text}`,
        );
        counts.left++;
        return undefined;
      };

      let history = [];
      for (let turn = 0; turn < size.turns; turn++) {
        await sleep(own() * size.pause);
        const change = kind === 'changes' && history.length ? own() : 1;
        let next = question();
        if (change < 0.2) {
          next = history.at(-2); // asked once more
          history = history.slice(0, -2);
        } else if (change < 0.45) {
          history = history.slice(0, own() < 0.3 ? 0 : -2); // edited
        } else if (change < 0.6) {
          await ask(history, question()); // another branch
        }
        let told;
        do {
          // The other end of a fork at the same time, now and then; and again until there is a whole answer.
          const twin = change >= 0.6 && change < 0.8 ? ask(history, question()) : undefined;
          told = await ask(session ? [] : history, next);
          await twin;
        } while (!told);
        if (kind === 'changes') history = told;
      }
    };

    let done = false;
    const signal = (pid, name) => {
      try {
        process.kill(pid, name);
        return 1;
      } catch {
        return 0; // it ended by itself
      }
    };
    const kills = (async () => {
      while (!done && counts.killed < size.kills) {
        await sleep(300 + random() * 700);
        const living = pids(proxy);
        if (!living.length || random() < 0.3) continue;
        const pid = living[Math.floor(random() * living.length)];
        // One that is stopped dies in the middle of what it was told meanwhile, such as to take messages back.
        if (random() < 0.4) {
          counts.stopped += signal(pid, 'SIGSTOP');
          await sleep(random() * 1500);
        }
        counts.killed += signal(pid, 'SIGKILL');
      }
    })();
    const most = await mostProcesses(proxy, () => Promise.all(words.map(converse)).finally(() => (done = true)));
    await kills;

    const calls = t.calls();
    assert.ok(calls.length >= counts.whole, `${calls.length} calls for ${counts.whole} turns`);
    for (const call of calls) {
      const held = words.filter((word) => call.raw.includes(word));
      assert.equal(held.length, 1, `the words of ${held} in one request: ${call.raw.slice(0, 2000)}`);
      const texts = conversationOf(call);
      texts.forEach(({ role, content }, at) => {
        assert.equal(role, at % 2 ? 'assistant' : 'user');
        assert.ok(content.includes(held[0]), `each message is of its conversation: ${content}`);
      });
      const past = pasts.get(texts.at(-1).content)?.map(({ role, content }) => ({ role, content }));
      if (past) assert.deepEqual(texts.slice(0, -1), past);
      assert.equal(callerSystem(call), systemOf(held[0]));
    }
    // One process serves the conversations of one key that begin alike.
    const owners = new Map();
    for (const call of calls) {
      const word = words.find((one) => call.raw.includes(one));
      const owner = `${keyOf(word)}: ${systemOf(word)}`;
      assert.equal(owners.get(processOf(call)) ?? owner, owner, 'a process served two clients');
      owners.set(processOf(call), owner);
    }
    assert.ok(owners.size < calls.length, 'some processes served more than one turn');
    const { text } = await t.get('/metrics', { proxy, headers: bearer(keys[0]) });
    const rewound = Number(/^claude_openai_turns_total\{process="rewound"\} (\d+)$/m.exec(text)?.[1]);
    assert.ok(rewound > 0, `turns for which messages were taken back: ${rewound}`);
    assert.ok(most <= size.processes, `${most} processes at once`);
    console.log(`     ${JSON.stringify(counts)}, ${calls.length} calls by ${owners.size} processes, ${rewound} after taking back`);
  },
);
