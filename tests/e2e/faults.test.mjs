// What goes wrong around the proxy: processes killed or stopped at every stage, disks, descriptors and memory that end, clocks that
// jump, a CLI that is replaced. Each counts processes, descriptors, threads and files before and after.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { CLI_VERSIONS, DEFAULT_MODEL, claudePath } from './claude_cli.mjs';
import { PROXY, descriptorsOf, eventually, processesMarked, sleep, suite } from './harness.mjs';
import { queryStore, scrape } from './operate.mjs';
import {
  MODEL,
  assertNothingLeft,
  chatBody,
  filesIn,
  get,
  connectRaw,
  postChat,
  resources,
  restingResources,
  scratch,
  standIn,
} from './raw_client.mjs';

export const faults = suite();
const { test } = faults;

const say = (reason) => console.log(`     (${reason})`);
const pids = (proxy) => proxy.claudes().map(({ pid }) => pid);
const signalAll = (proxy, signal) => pids(proxy).forEach((pid) => process.kill(pid, signal));

/** One of the two CLIs, and how it is told what to do. */
const STAND_IN_CLI = {
  name: 'the stand-in',
  model: MODEL,
  program: (t) => standIn(t),
  text: () => '[[text say=well]]',
  slow: () => '[[text n=200 delay_ms=50]]',
  tool: () => '[[tool names=look_up]]',
  toolWay: { enable_tools: true }, // the stand-in calls tools as an agent does
};
const REAL_CLI = {
  name: `claude ${CLI_VERSIONS.at(-1)}`,
  model: DEFAULT_MODEL,
  program: () => ({ program: claudePath(CLI_VERSIONS.at(-1)), conf: () => {} }),
  text: (t) => t.text('plain'),
  slow: (t) => t.text('plain deltas=100 delay=100'),
  tool: (t) => t.text('tool_use tool=look_up | plain'),
};

const TOOLS = [{ type: 'function', function: { name: 'look_up', parameters: { type: 'object', properties: {} } } }];

/** A proxy with that CLI: `ask` sends a chat, `well` that one succeeds, `before` is what it holds at rest. */
async function proxyWith(t, cli, { args = [], env, prepare, lines = [] } = {}) {
  const { program, conf } = cli.program(t);
  conf(...lines);
  const idle = args.includes('--idle-timeout') ? [] : ['--idle-timeout', '0'];
  const spares = args.includes('--spares') ? [] : ['--spares', '0'];
  const proxy = await t.start({ cli: program, args: [...spares, ...idle, ...args], env, prepare });
  await proxy.inspected();
  const ask = (content, more = {}) =>
    t.send({ proxy, body: { model: cli.model, messages: [{ role: 'user', content }], ...more } });
  const well = async () => {
    const result = await ask(cli.text(t)).done;
    assert.equal(result.status, 200, result.text);
  };
  return { proxy, program, conf, ask, well };
}

/** An error as clients understand it: a status and a body, or the last event of a stream. */
function assertFailedWell(result) {
  assert.equal(result.error, undefined, `the connection broke: ${result.error?.message}`);
  const told = result.frames ? result.data.filter((one) => one !== '[DONE]').at(-1) : result.json;
  assert.equal(typeof told?.error?.message, 'string', result.text.slice(-500));
  if (!result.frames) assert.ok(result.status >= 500 || result.status === 429, `${result.status}`);
}

/** The answer, or an error that is told well. */
function assertAnsweredOrFailedWell(result) {
  const whole = result.frames
    ? result.data.at(-1) === '[DONE]' && !result.data.some((one) => one.error)
    : result.status === 200;
  if (!whole) assertFailedWell(result);
}

// ---- killed --------------------------------------------------------------------------------------

for (const cli of [STAND_IN_CLI, REAL_CLI]) {
  const slow = cli === REAL_CLI;
  const options = { slow };

  test(`${cli.name}, killed as a spare, is replaced`, options, async (t) => {
    const { proxy, well } = await proxyWith(t, cli, { args: ['--spares', '1'] });
    const spare = (than) => {
      const only = async () => {
        const { warm, stopping } = (await t.get('/health', { proxy })).json.processes;
        const [one, ...others] = pids(proxy); // what looked at the program may still be ending
        return warm === 1 && stopping === 0 && others.length === 0 && one !== than && one;
      };
      return eventually(`a spare other than ${than}`, only);
    };
    let one = await spare();
    const before = await restingResources(proxy);
    for (let round = 0; round < 2; round++) {
      process.kill(one, 'SIGKILL');
      one = await spare(one);
    }
    await well();
    await spare();
    await assertNothingLeft(proxy, before);
  });

  // Killed at these times after its start: before exec, amid its start, amid `initialize`.
  for (const [when, ms, lines] of [
    ['at once', 0, ['slow_start ms=2000']],
    ['while it starts', 150, ['slow_start ms=2000']],
    ['in the middle of initialize', 400, ['slow_control ms=2000']],
  ])
    for (const stream of [false, true]) {
      if (slow && stream !== (ms === 150)) continue; // each moment once is enough of the slow one
      test(
        `${cli.name}, killed ${when}, is an error or another try${stream ? ', streamed' : ''}`,
        options,
        async (t) => {
          const { proxy, conf, ask, well } = await proxyWith(t, cli);
          await well();
          const before = await restingResources(proxy);
          conf(...lines);
          const exchange = ask(cli.slow(t), { stream });
          await eventually('a process', () => pids(proxy).length > 0);
          await sleep(ms);
          signalAll(proxy, 'SIGKILL');
          conf();
          if (exchange.result === undefined) await sleep(50);
          const result = await Promise.race([exchange.done, sleep(3000)]);
          if (result) assertAnsweredOrFailedWell(result);
          else exchange.abort(); // another process is answering, at length
          await well();
          await assertNothingLeft(proxy, before);
        },
      );
    }

  for (const stream of [false, true])
    test(`${cli.name}, killed amid an answer, is an error${stream ? ' in the stream' : ''}`, options, async (t) => {
      const { proxy, ask, well } = await proxyWith(t, cli);
      await well();
      const before = await restingResources(proxy);
      const exchange = ask(cli.slow(t), { stream });
      if (stream) await eventually('some deltas', () => exchange.chunks.length > 2);
      else {
        await eventually('a process', () => pids(proxy).length > 0);
        if (slow) await t.waitForCall();
        await sleep(500);
      }
      const killed = performance.now();
      signalAll(proxy, 'SIGKILL');
      const result = await exchange.done;
      assertFailedWell(result);
      assert.ok(performance.now() - killed < 20_000, 'it is told at once');
      await well();
      await assertNothingLeft(proxy, before);
    });

  test(`${cli.name}, killed while it waits for a tool, is replaced by one that knows all`, options, async (t) => {
    const { proxy, ask, well } = await proxyWith(t, cli, { args: ['--idle-timeout', '600'] });
    await well();
    signalAll(proxy, 'SIGKILL');
    await eventually('nobody', () => pids(proxy).length === 0);
    const before = await restingResources(proxy);
    const question = { role: 'user', content: cli.tool(t) };
    const called = await ask('', { messages: [question], tools: TOOLS, ...cli.toolWay }).done;
    const [choice] = called.json?.choices ?? [];
    assert.equal(choice?.finish_reason, 'tool_calls', called.text);
    assert.equal(choice.message.tool_calls[0].function.name, 'look_up');
    await sleep(300);
    assert.equal(pids(proxy).length, 1, 'it is parked');
    signalAll(proxy, 'SIGKILL');
    if (!slow) await sleep(200);
    const [call] = choice.message.tool_calls;
    const messages = [question, choice.message, { role: 'tool', tool_call_id: call.id, content: 'the result' }];
    const result = await ask('', { messages, tools: TOOLS, ...cli.toolWay }).done;
    assert.equal(result.status, 200, result.text);
    signalAll(proxy, 'SIGKILL');
    await assertNothingLeft(proxy, before);
  });

  test(`${cli.name}, killed between two turns, is replaced by one that knows all`, options, async (t) => {
    const { proxy, ask, well } = await proxyWith(t, cli, { args: ['--idle-timeout', '600'] });
    await well();
    signalAll(proxy, 'SIGKILL');
    await eventually('nobody', () => pids(proxy).length === 0);
    const before = await restingResources(proxy);
    const messages = [{ role: 'user', content: cli.text(t) }];
    for (let turn = 0; turn < 2; turn++) {
      const result = await ask('', { messages }).done;
      assert.equal(result.status, 200, result.text);
      assert.equal(pids(proxy).length, 1, 'it waits for the next turn');
      signalAll(proxy, 'SIGKILL');
      if (turn === 0) await sleep(200); // noticed, or not yet
      messages.push(result.json.choices[0].message, { role: 'user', content: cli.text(t) });
    }
    assert.equal((await ask('', { messages }).done).status, 200);
    signalAll(proxy, 'SIGKILL');
    await assertNothingLeft(proxy, before);
  });
}

test('a process killed again and again during a crowd of requests leaves nothing', async (t) => {
  const { proxy, ask, well } = await proxyWith(t, STAND_IN_CLI, { args: ['--max-processes', '4'] });
  await well();
  const before = await restingResources(proxy);
  const exchanges = Array.from({ length: 24 }, (_, i) => ask('[[text n=10 delay_ms=30]]', { stream: i % 2 === 0 }));
  for (let i = 0; i < 10; i++) {
    await sleep(60);
    const [one] = pids(proxy);
    if (one) process.kill(one, 'SIGKILL');
  }
  for (const exchange of exchanges) assertAnsweredOrFailedWell(await exchange.done);
  await well();
  await assertNothingLeft(proxy, before);
});

test('SIGKILL of the proxy leaves no claude, though they are deaf, stopped or parked', async (t) => {
  const { program, conf } = standIn(t, 'ignore_sigterm', 'ignore_eof');
  const proxy = await t.start({ cli: program, args: ['--spares', '1', '--max-processes', '8'] });
  await proxy.inspected();
  conf('ignore_sigterm', 'ignore_eof');
  t.send({ proxy, body: chatBody('[[hang after=2]]', { stream: true }) });
  t.send({ proxy, body: chatBody('[[grandchild]] [[hang]]') });
  const called = await t.send({ proxy, body: chatBody('[[tool names=look_up]]', { tools: TOOLS, enable_tools: true }) })
    .done;
  assert.equal(called.json?.choices[0].finish_reason, 'tool_calls', called.text);
  await eventually('all of them', () => pids(proxy).length >= 4);
  process.kill(pids(proxy)[0], 'SIGSTOP');
  process.kill(pids(proxy)[2], 'SIGSTOP');
  const comm = ({ pid }) => readFileSync(`/proc/${pid}/comm`, 'utf8').trim();
  const named = processesMarked(proxy.scratch).filter((one) => comm(one) === path.basename(PROXY));
  assert.ok(named.some(({ pid }) => pid === proxy.pid));
  for (const { pid } of named) process.kill(pid, 'SIGKILL'); // as `pkill -9 claude-openai` does
  const { faults: left } = await proxy.stop('SIGKILL');
  proxy.stopped = true;
  assert.deepEqual(left, []);
});

test('a proxy that was killed leaves no folder behind', async (t) => {
  const { proxy, well } = await proxyWith(t, STAND_IN_CLI);
  await well();
  assert.equal(readdirSync(proxy.temporary).length, 1);
  proxy.kill('SIGKILL');
  await proxy.exited;
  await eventually('its folder is removed', () => readdirSync(proxy.temporary).length === 0);
});

// ---- stopped -------------------------------------------------------------------------------------

for (const stream of [false, true])
  test(`a claude that is stopped amid an answer ends with --timeout${stream ? ', streamed' : ''}`, async (t) => {
    const { proxy, ask, well } = await proxyWith(t, STAND_IN_CLI, { args: ['--timeout', '2s'] });
    await well();
    const before = await restingResources(proxy);
    const exchange = ask('[[text n=200 delay_ms=50]]', { stream });
    await eventually('its process', () => pids(proxy).length === 1);
    await sleep(300);
    const [stopped] = pids(proxy);
    process.kill(stopped, 'SIGSTOP');
    const result = await exchange.done;
    assertFailedWell(result);
    if (!stream) assert.equal(result.status, 504, result.text);
    assert.ok(result.at - result.sentAt < 20_000);
    await eventually('it is gone', () => !existsSync(`/proc/${stopped}`));
    await well();
    await assertNothingLeft(proxy, before);
  });

test('a spare that is stopped costs one request its time, and is gone then', async (t) => {
  const { proxy, ask } = await proxyWith(t, STAND_IN_CLI, { args: ['--timeout', '2s', '--spares', '1'] });
  await eventually('the spare', () => pids(proxy).length === 1);
  const before = await restingResources(proxy);
  const [stopped] = pids(proxy);
  process.kill(stopped, 'SIGSTOP');
  const first = await ask('[[text]]', { model: DEFAULT_MODEL }).done;
  assertAnsweredOrFailedWell(first);
  assert.equal((await ask('[[text]]', { model: DEFAULT_MODEL }).done).status, 200);
  await eventually('it is gone', () => !existsSync(`/proc/${stopped}`));
  await assertNothingLeft(proxy, before);
});

test('a claude that is stopped between two turns costs one request its time, and is gone then', async (t) => {
  const { proxy, ask } = await proxyWith(t, STAND_IN_CLI, { args: ['--timeout', '2s', '--idle-timeout', '600'] });
  const before = await restingResources(proxy);
  const question = { role: 'user', content: '[[text say=one]]' };
  const first = await ask('', { messages: [question] }).done;
  const [stopped] = pids(proxy);
  process.kill(stopped, 'SIGSTOP');
  const messages = [question, first.json.choices[0].message, { role: 'user', content: '[[text say=two]]' }];
  assertAnsweredOrFailedWell(await ask('', { messages }).done);
  await eventually('it is gone', () => !existsSync(`/proc/${stopped}`));
  assert.equal((await ask('', { messages }).done).status, 200);
  signalAll(proxy, 'SIGKILL');
  await assertNothingLeft(proxy, before);
});

test('SIGTERM of the proxy ends claudes that are stopped', async (t) => {
  const { proxy } = await proxyWith(t, STAND_IN_CLI, { args: ['--spares', '2'] });
  await eventually('the spares', () => pids(proxy).length === 2);
  signalAll(proxy, 'SIGSTOP');
  const { faults: left, took } = await proxy.stop();
  proxy.stopped = true;
  assert.deepEqual(left, []);
  assert.ok(took < 7500, `took ${took} ms`);
});

test('a proxy that was stopped for a while goes on', async (t) => {
  const { proxy, ask, well } = await proxyWith(t, STAND_IN_CLI);
  await well();
  const before = await restingResources(proxy);
  const exchange = ask('[[text n=30 delay_ms=50]]', { stream: true });
  await eventually('some deltas', () => exchange.chunks.length > 2);
  proxy.child.kill('SIGSTOP');
  await sleep(1500);
  proxy.child.kill('SIGCONT');
  assert.equal((await exchange.done).data.at(-1), '[DONE]');
  await well();
  await assertNothingLeft(proxy, before);
});

// ---- what runs out -------------------------------------------------------------------------------

/** A session that grows; resolves to the statuses. */
async function growSession(ask, rounds) {
  const statuses = [];
  for (let i = 0; i < rounds; i++) {
    const result = await ask(`[[text say=kept]] ${'x'.repeat(30_000)}`, { session_id: 'grows' }).done;
    statuses.push(result.status);
  }
  return statuses;
}

/** Sessions that cannot be stored any more go on in memory, and the proxy says so. */
async function assertSurvivesFullDisk({ proxy, ask, well }) {
  await well();
  const before = await restingResources(proxy);
  const statuses = await growSession(ask, 6);
  assert.ok(!proxy.exit, `the proxy ended: ${JSON.stringify(proxy.exit)}`);
  assert.deepEqual(statuses, Array(6).fill(200));
  assert.match(proxy.output, /session not stored/);
  const told = (await ask('[[who]]', { session_id: 'grows' }).done).json.choices[0].message.content;
  assert.equal(JSON.parse(told).messages, 13, 'nothing of it is forgotten');
  await well();
  await assertNothingLeft(proxy, before);
}

test('a limit on the size of files costs the stored session, not the proxy', async (t) => {
  let folder;
  const got = await proxyWith(t, STAND_IN_CLI, {
    prepare: (one) => {
      folder = path.join(one.scratch, 'sessions');
      // 64 kB or 128 kB, as the shell counts
      one.command = ['sh', '-c', 'ulimit -f 128; exec "$@"', 'sh', ...one.command, '--session-dir', folder];
    },
  });
  await assertSurvivesFullDisk(got);
});

/** A tiny file system of this test's own; undefined where mounting is not allowed. */
function tinyDisk(t) {
  const folder = path.join(scratch(t), 'disk');
  mkdirSync(folder);
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=128k,mode=0755', 'tmpfs', folder], { stdio: 'ignore' });
  } catch {
    say('no mounting here: a full disk is tried by a limit on the size of files alone');
    return undefined;
  }
  t.defer(async () => execFileSync('umount', ['-l', folder]));
  return folder;
}

test('a full disk costs the stored session, not the proxy', async (t) => {
  const folder = tinyDisk(t);
  if (!folder) return;
  const sessions = path.join(folder, 'sessions');
  const got = await proxyWith(t, STAND_IN_CLI, { args: ['--session-dir', sessions] });
  await assertSurvivesFullDisk(got);
  await got.proxy.stop();
  got.proxy.stopped = true;
  const copy = path.join(scratch(t), 'copy'); // to look at it takes room
  cpSync(sessions, copy, { recursive: true });
  assert.deepEqual(queryStore(path.join(copy, 'claude-openai.sqlite'), 'PRAGMA integrity_check'), [['ok']]);
});

test('a full disk for temporary files is told at the start, or does no harm', async (t) => {
  const folder = tinyDisk(t);
  if (!folder) return;
  try {
    writeFileSync(path.join(folder, 'filler'), Buffer.alloc(1 << 20));
  } catch {
    /* that is what it is for */
  }
  const { proxy, well } = await proxyWith(t, STAND_IN_CLI, { env: { TMPDIR: folder } });
  await well();
  const agent = await t.send({
    proxy,
    body: chatBody('[[text]]', { enable_tools: true, session_id: 'x' }),
  }).done;
  assertAnsweredOrFailedWell(agent);
  await proxy.stop();
  proxy.stopped = true;
  assert.deepEqual(readdirSync(folder), ['filler']);
});

/** `as` is how to be the proxy's user. */
function prlimit(proxy, as, ...args) {
  const [program, ...all] = [...as, 'prlimit', '--pid', String(proxy.pid), ...args];
  return execFileSync(program, all, { encoding: 'utf8' }).trim();
}
const limit = (proxy, what, value, as = []) => prlimit(proxy, as, `--${what}=${value}:`);
const limitOf = (proxy, what, as = []) => prlimit(proxy, as, `--${what}`, '--output', 'SOFT', '--noheadings');

test('without descriptors for a claude a request fails as one, and all is well when there are some', async (t) => {
  const { proxy, ask, well } = await proxyWith(t, STAND_IN_CLI);
  await well();
  const before = await restingResources(proxy);
  const usual = limitOf(proxy, 'nofile');
  let failed = 0;
  for (const more of [4, 6, 8]) {
    const used = new Set(descriptorsOf(proxy.pid).map(Number));
    if (!used.size) return say('only root sees the descriptors of the proxy: nothing was tried');
    const unused = Array.from({ length: used.size + 20 }, (_, fd) => fd).filter((fd) => !used.has(fd));
    limit(proxy, 'nofile', unused[more]);
    const results = await Promise.all(Array.from({ length: 3 }, (_, i) => ask('[[text]]', { stream: i === 1 }).done));
    limit(proxy, 'nofile', usual);
    results.forEach(assertAnsweredOrFailedWell);
    failed += results.filter(({ status }) => status >= 500).length;
    assert.equal((await t.get('/health', { proxy })).status, 200);
    await well();
  }
  assert.ok(failed > 0, 'there were enough: this tried nothing');
  await assertNothingLeft(proxy, before);
});

test('without memory for threads or a claude the proxy lives on, and all is well when there is some', async (t) => {
  const { proxy, ask, well } = await proxyWith(t, STAND_IN_CLI);
  await well();
  const before = await restingResources(proxy);
  let failed = 0;
  for (const more of [0, 1, 9, 10, 12, 20, 40]) {
    const size = Number(/^VmSize:\s+(\d+)/m.exec(readFileSync(`/proc/${proxy.pid}/status`, 'utf8'))[1]);
    limit(proxy, 'as', (size + more * 1024) * 1024);
    const results = await Promise.all(
      Array.from({ length: 3 }, (_, i) => Promise.race([ask('[[text]]', { stream: i === 1 }).done, sleep(5000)])),
    );
    limit(proxy, 'as', 'unlimited');
    assert.ok(
      !proxy.exit,
      `with ${more} MiB the proxy ended: ${JSON.stringify(proxy.exit)} ${proxy.output.slice(-500)}`,
    );
    for (const result of results) {
      assert.ok(result, `with ${more} MiB a request was not answered`);
      failed += result.error !== undefined || result.status !== 200;
      if (!result.error) assertAnsweredOrFailedWell(result);
    }
    await well();
  }
  assert.ok(failed > 0, 'there was enough: this tried nothing');
  await assertNothingLeft(proxy, before);
});

test('without processes for a claude a request fails as one, and all is well when there are some', async (t) => {
  // Root has no limit on processes, so a proxy of root's would be another user's.
  const nobody = 65534;
  const isRoot = process.getuid() === 0;
  const asNobody = ['setpriv', `--reuid=${nobody}`, `--regid=${nobody}`, '--clear-groups', '--'];
  if (isRoot) {
    try {
      execFileSync(asNobody[0], [...asNobody.slice(1), 'test', '-x', PROXY]);
    } catch {
      return say('root has no limit on processes, and nobody may not run the proxy: not tried');
    }
  }
  const { proxy, program, ask, well } = await proxyWith(t, STAND_IN_CLI, {
    prepare: (one) => {
      if (!isRoot) return;
      [one.scratch, one.home, one.temporary].forEach((folder) => chownSync(folder, nobody, nobody));
      const cli = one.command[one.command.indexOf('--claude-path') + 1];
      chmodSync(path.dirname(cli), 0o755);
      one.command = [...asNobody, ...one.command];
    },
  });
  await well();
  const before = await restingResources(proxy);
  const as = isRoot ? asNobody : [];
  const usual = limitOf(proxy, 'nproc', as);
  let failed = 0;
  for (const more of [0, 3]) {
    limit(proxy, 'nproc', resources(proxy).threads + 1 + more, as);
    const results = await Promise.all(
      Array.from({ length: 3 }, () => Promise.race([ask('[[text]]').done, sleep(5000)])),
    );
    limit(proxy, 'nproc', usual, as);
    assert.ok(!proxy.exit, `the proxy ended: ${JSON.stringify(proxy.exit)}`);
    for (const result of results) {
      assert.ok(result, 'a request was not answered');
      failed += result.error !== undefined || result.status !== 200;
      if (!result.error) assertAnsweredOrFailedWell(result);
    }
    await well();
  }
  assert.ok(failed > 0, `there were enough: this tried nothing (${program})`);
  await assertNothingLeft(proxy, before);
});

test('a log that nobody reads stops nobody', async (t) => {
  const { proxy, well } = await proxyWith(t, STAND_IN_CLI, { args: ['--log-format', 'json'] });
  await well();
  const outputs = [proxy.child.stdout, proxy.child.stderr];
  outputs.forEach((stream) => stream.pause());
  t.defer(async () => outputs.forEach((stream) => stream.resume()));
  const client = connectRaw(t, proxy);
  for (let i = 1; i <= 30; i++) {
    await client.write(get('/version').repeat(100));
    await client.answers(i * 100, 5000).catch(() => {});
    if (client.responses.length < i * 100) break;
  }
  const answered = client.responses.length;
  const health = await Promise.race([t.get('/health', { proxy }), sleep(3000)]);
  outputs.forEach((stream) => stream.resume());
  assert.deepEqual([answered, health?.status], [3000, 200]);
  const told = await eventually('it is told how many lines were lost', async () => {
    await t.get('/health', { proxy });
    return proxy.output.split('\n').find((line) => line.includes('lines of the log were lost'));
  });
  const { level, message } = JSON.parse(told);
  assert.equal(level, 'warning');
  assert.match(message, /^[1-9]\d* lines of the log were lost: nobody read it$/);
});

test('a log that is closed stops nobody', async (t) => {
  const { proxy, well } = await proxyWith(t, STAND_IN_CLI);
  await well();
  const before = await restingResources(proxy);
  proxy.child.stdout.destroy();
  proxy.child.stderr.destroy();
  for (let i = 0; i < 5; i++) await well();
  await assertNothingLeft(proxy, before);
});

// ---- clocks --------------------------------------------------------------------------------------

const FAKETIME =
  process.env.FAKETIME_LIBRARY ??
  readdirSync('/usr/lib')
    .map((name) => `/usr/lib/${name}/faketime/libfaketimeMT.so.1`)
    .find((file) => existsSync(file));

/** A proxy whose wall clock is moved by `jump(seconds)`. */
async function proxyWithClock(t, options = {}) {
  if (!FAKETIME) {
    say('libfaketime is not installed: no clock was moved');
    return undefined;
  }
  const file = path.join(scratch(t), 'clock');
  const jump = (seconds) => {
    writeFileSync(`${file}.new`, `${seconds < 0 ? '' : '+'}${seconds}\n`);
    renameSync(`${file}.new`, file);
  };
  jump(0);
  const env = {
    LD_PRELOAD: FAKETIME,
    FAKETIME_TIMESTAMP_FILE: file,
    FAKETIME_NO_CACHE: '1',
    FAKETIME_DONT_FAKE_MONOTONIC: '1',
    DONT_FAKE_MONOTONIC: '1',
  };
  return { jump, ...(await proxyWith(t, STAND_IN_CLI, { ...options, env })) };
}

test('a wall clock that jumps changes nothing of what runs', async (t) => {
  const got = await proxyWithClock(t, { args: ['--timeout', '20s', '--spares', '1', '--idle-timeout', '600'] });
  if (!got) return;
  const { proxy, ask, jump } = got;
  const question = { role: 'user', content: '[[who]]' };
  const first = await ask('', { messages: [question] }).done;
  const { pid } = JSON.parse(first.json.choices[0].message.content);
  const streams = [];
  for (const seconds of [86_400, -86_400, 400_000_000, 0]) {
    const exchange = ask('[[text n=12 delay_ms=50]]', { stream: true });
    await eventually('a delta', () => exchange.chunks.length > 1);
    jump(seconds);
    const health = await t.get('/health', { proxy });
    assert.deepEqual([health.status, health.json.status], [200, 'healthy']);
    streams.push((await exchange.done).data?.at(-1));
    const told = (await ask('[[text]]').done).json;
    assert.ok(Math.abs(told.created - Date.now() / 1000 - seconds) < 100, 'it is the clock that answers tell');
  }
  assert.deepEqual(streams, Array(4).fill('[DONE]'));
  const messages = [question, first.json.choices[0].message, question];
  const next = JSON.parse((await ask('', { messages }).done).json.choices[0].message.content);
  assert.equal(next.pid, pid, 'no conversation was taken for old');
});

test('a wall clock that jumps a day ahead and back loses no session', async (t) => {
  let folder;
  const got = await proxyWithClock(t, {
    prepare: (one) => one.command.push('--session-dir', (folder = path.join(one.scratch, 'sessions'))),
  });
  if (!got) return;
  const { proxy, ask, jump } = got;
  assert.equal((await ask('[[text say=kept]]', { session_id: 'mine' }).done).status, 200);
  jump(86_400);
  await t.get('/v1/sessions', { proxy });
  jump(0);
  assert.equal((await t.get('/v1/sessions', { proxy })).json.total, 1, 'it was used a moment ago');
});

// ---- the CLI is replaced -------------------------------------------------------------------------

test('a CLI that is updated while the proxy runs is used from then on', { slow: true }, async (t) => {
  const link = path.join(scratch(t), 'claude');
  const point = (version) => {
    symlinkSync(claudePath(version), `${link}.new`);
    renameSync(`${link}.new`, link);
  };
  const [older, newer] = CLI_VERSIONS.slice(-2);
  point(older);
  const cli = { ...REAL_CLI, program: () => ({ program: link, conf: () => {} }) };
  const { proxy, ask } = await proxyWith(t, cli, { args: ['--spares', '1', '--idle-timeout', '600'] });
  await eventually('the spare', () => pids(proxy).length === 1);
  const question = { role: 'user', content: t.text('plain') };
  const first = await ask('', { messages: [question] }).done;
  assert.equal(first.status, 200, first.text);
  point(newer);
  const messages = [question, first.json.choices[0].message, { role: 'user', content: t.text('plain') }];
  const agents = () => t.calls().map(({ headers }) => /\d+\.\d+\.\d+/.exec(headers['user-agent'])?.[0]);
  assert.equal((await ask('', { messages }).done).status, 200, 'a conversation goes on with the old one');
  for (let i = 0; i < 3 && !agents().includes(newer); i++) assert.equal((await ask(t.text('plain')).done).status, 200);
  assert.equal(agents()[0], older);
  assert.ok(agents().includes(newer), `${agents()}`);
  await eventually('the status tells the new version', async () =>
    (await t.get('/v1/auth/status', { proxy })).json.claude_code_auth.status.config.claude_version === newer);
});

/** `claude` is a link, as installers make it: `point` moves it to another program. */
function linkedCli(t, first) {
  const link = path.join(scratch(t), 'claude');
  const point = (program) => {
    symlinkSync(program, `${link}.new`);
    renameSync(`${link}.new`, link);
  };
  point(first);
  return { link, point };
}

/** A script in place of `claude`, in a folder of its own. */
function script(t, body) {
  const file = path.join(scratch(t), 'claude');
  writeFileSync(file, `#!/bin/sh\n${body}\n`, { mode: 0o755 });
  return file;
}

/** The stand-in under a name of its own: it reads its lines beside the path by which it is started, which a link would be. */
const obeying = (t, ...lines) => script(t, `exec ${standIn(t, ...lines).program} "$@"`);

const config = async (t, proxy) => (await t.get('/v1/auth/status', { proxy })).json.claude_code_auth.status.config;
const VERSION_ONLY = 'case "$*" in *--version*) echo "2.1.999 (Claude Code)"; exit;; esac';

/** Programs that are no `claude`, by when it shows. */
const BROKEN = {
  'cannot be executed': (t) => path.join(scratch(t), 'nothing'),
  'dies at its start': (t) => script(t, 'exit 3'),
  'speaks another protocol': (t) => script(t, `${VERSION_ONLY}\nwhile read line; do echo hello; done`),
  'refuses conversations': (t) => obeying(t, 'error_in_initialize'),
  'dies at the first question': (t) => script(t, `while read -r line; do case "$line" in *'"type":"user"'*) exit;; esac; printf '%s\\n' "$line"; done | ${standIn(t).program} "$@"`),
};

for (const [way, broken] of Object.entries(BROKEN))
  test(`a CLI that ${way} after an update: the last one that worked answers, and the proxy says so`, async (t) => {
    const good = obeying(t, 'version value=2.1.400');
    const { link, point } = linkedCli(t, good);
    const { proxy, well } = await proxyWith(t, { ...STAND_IN_CLI, program: () => ({ program: link, conf: () => {} }) });
    await well();
    const before = await restingResources(proxy);
    const bad = broken(t);
    point(bad);
    for (let i = 0; i < 3; i++) await well(); // no request fails for it
    const health = () => t.get('/health', { proxy }).then(({ json }) => json);
    await eventually('it is said', async () => (await health()).warning && (await config(t, proxy)).warning);
    const told = await config(t, proxy);
    assert.equal(told.claude_version, '2.1.400');
    assert.match(told.warning, /claude has changed and does not work \(.+\); .+, the last one that worked, answers until it changes again$/);
    assert.ok(told.warning.includes(good), told.warning);
    assert.deepEqual([(await health()).status, (await health()).warning], ['healthy', told.warning]);
    assert.equal(proxy.output.split('does not work').length, 3, 'once in the log, and once as at the start');

    point(obeying(t, 'version value=2.1.401'));
    await eventually('a new one is used', async () => (await config(t, proxy)).claude_version === '2.1.401');
    assert.equal((await config(t, proxy)).warning, undefined);
    await well();
    await assertNothingLeft(proxy, before);
  });

test('a CLI that does not work after an update is an error where the one before is gone', async (t) => {
  const good = standIn(t).program;
  const { link, point } = linkedCli(t, good);
  const { proxy, ask, well } = await proxyWith(t, { ...STAND_IN_CLI, program: () => ({ program: link, conf: () => {} }) });
  await well();
  point(script(t, `${VERSION_ONLY}\nexit 3`));
  await well();
  renameSync(good, `${good}.away`);
  const failed = await ask('[[text]]').done;
  assertFailedWell(failed);
  renameSync(`${good}.away`, good);
  await well();
});

test('of real CLIs, too, the last one that worked answers in place of a broken update', { slow: true }, async (t) => {
  const [older, newer] = CLI_VERSIONS.slice(-2);
  const { link, point } = linkedCli(t, claudePath(older));
  const { proxy, ask } = await proxyWith(t, { ...REAL_CLI, program: () => ({ program: link, conf: () => {} }) });
  const version = () => /\d+\.\d+\.\d+/.exec(t.calls().at(-1).headers['user-agent'])?.[0];
  const answersBy = async (wanted) => {
    assert.equal((await ask(t.text('plain')).done).status, 200);
    assert.equal(version(), wanted);
  };
  await answersBy(older);
  point(script(t, 'exit 1'));
  await answersBy(older);
  point(claudePath(newer));
  await eventually('the newer one answers', async () => {
    assert.equal((await ask(t.text('plain')).done).status, 200);
    return version() === newer;
  });
});

test('a CLI that is away for a moment, or broken, is an error until it is back', async (t) => {
  const { proxy, program, ask, well } = await proxyWith(t, STAND_IN_CLI);
  await well();
  const before = await restingResources(proxy);
  renameSync(program, `${program}.away`);
  assertFailedWell(await ask('[[text]]').done);
  writeFileSync(program, 'half of a progr');
  chmodSync(program, 0o755);
  assertFailedWell(await ask('[[text]]').done);
  rmSync(program);
  writeFileSync(program, '#!/bin/sh\nexit 3\n', { mode: 0o755 });
  assertFailedWell(await ask('[[text]]').done);
  renameSync(`${program}.away`, program);
  await well();
  await assertNothingLeft(proxy, before);
});

test('a CLI that is replaced in mid-answer finishes it', async (t) => {
  const { proxy, program, ask, well } = await proxyWith(t, STAND_IN_CLI);
  await well();
  const before = await restingResources(proxy);
  const exchange = ask('[[text n=20 delay_ms=50]]', { stream: true });
  await eventually('a delta', () => exchange.chunks.length > 1);
  renameSync(program, `${program}.old`);
  const other = standIn(t, 'version value=2.1.400');
  renameSync(other.program, program);
  assert.equal((await exchange.done).data.at(-1), '[DONE]');
  await well();
  await assertNothingLeft(proxy, before);
});

// ---- what it stands in ---------------------------------------------------------------------------

test('whoever takes the name of a private folder that was tidied away gets no process into it', async (t) => {
  const { proxy, ask, well } = await proxyWith(t, STAND_IN_CLI);
  await well();
  const [name] = readdirSync(proxy.temporary);
  const folder = path.join(proxy.temporary, name);
  rmSync(folder, { recursive: true });
  mkdirSync(folder, { mode: 0o777 });
  const refused = await ask('[[text]]').done;
  assert.equal(refused.status, 503, refused.text);
  assert.match(refused.json.error.message, /something else has its name; restart the proxy/);
  assert.ok(refused.json.error.message.includes(folder), refused.text);
  rmSync(folder, { recursive: true });
  await well();
});

test('a private folder that was tidied away is made anew; a working directory that is gone is told', async (t) => {
  const { proxy, ask, well } = await proxyWith(t, STAND_IN_CLI);
  await well();
  const folders = readdirSync(proxy.temporary).filter((name) => name.startsWith('claude-openai-'));
  assert.equal(folders.length, 1, folders.join());
  rmSync(path.join(proxy.temporary, folders[0]), { recursive: true });
  await well();
  assert.equal(statSync(path.join(proxy.temporary, folders[0])).mode & 0o777, 0o700);

  const folder = path.join(scratch(t), 'work');
  mkdirSync(folder);
  const elsewhere = await proxyWith(t, STAND_IN_CLI, { args: ['--cwd', folder] });
  await elsewhere.well();
  rmSync(folder, { recursive: true });
  const refused = await elsewhere.ask('[[text]]').done;
  assert.equal(refused.status, 503, refused.text);
  assert.equal(refused.json.error.code, 'working_directory_missing');
  assert.ok(refused.json.error.message.includes(folder), refused.text);
  mkdirSync(folder);
  await elsewhere.well();
  assert.equal((await ask('[[text]]').done).status, 200);
});

test('a look at claude that found no place is made again later', async (t) => {
  const { program, conf } = standIn(t);
  conf('slow_version ms=1500');
  const proxy = await t.start({ cli: program, args: ['--spares', '0', '--max-processes', '1', '--max-queue', '0'] });
  const content = '[[text n=30 delay_ms=100]]';
  const busy = t.send({ proxy, body: { model: MODEL, messages: [{ role: 'user', content }] } });
  await eventually('it is told', () => /login +not known/.test(proxy.output));
  assert.equal((await busy.done).status, 200);
  await eventually('and told again', () => /login +valid/.test(proxy.output), 45_000);
});

// ---- spares --------------------------------------------------------------------------------------

const areWarm = async (t, proxy, spares) => (await t.get('/health', { proxy })).json.processes.warm === spares;
const startedBy = async (t, proxy) => (await scrape(t, { proxy }))('processes_started_total');

test('chats that go on with more models than spares start no process', async (t) => {
  const { proxy, ask } = await proxyWith(t, STAND_IN_CLI, {
    args: ['--spares', '2', '--model', 'a', '--idle-timeout', '600', '--max-processes', '16'],
  });
  const chats = ['a', 'b', 'c'].map((model) => ({ model, messages: [] }));
  const goOn = async (chat) => {
    chat.messages.push({ role: 'user', content: '[[text]]' });
    const { status, json, text } = await ask('', chat).done;
    assert.equal(status, 200, text);
    chat.messages.push(json.choices[0].message);
  };
  for (const chat of chats) await goOn(chat);
  await eventually('the spares are there', () => areWarm(t, proxy, 2));
  await sleep(500);
  const before = await startedBy(t, proxy);
  for (let turn = 0; turn < 3; turn++)
    for (const chat of chats) {
      await goOn(chat);
      await sleep(300); // longer than the pause before a spare is started
    }
  assert.equal(await startedBy(t, proxy), before);
  // Fresh ones of three models in turn take the processes that these chats have, and no spare is given up for another.
  for (let turn = 0; turn < 2; turn++)
    for (const { model } of chats) {
      assert.equal((await ask('[[text]]', { model }).done).status, 200);
      await eventually('the spares are there', () => areWarm(t, proxy, 2));
      await sleep(300);
    }
  assert.equal(await startedBy(t, proxy), before);
});

// ---- turns ---------------------------------------------------------------------------------------

test('a claude that begins a turn by itself is dropped, and nobody gets that turn', async (t) => {
  const { proxy, ask } = await proxyWith(t, STAND_IN_CLI, { args: ['--idle-timeout', '600'] });
  const question = { role: 'user', content: '[[wakes say=first ms=200]]' };
  const first = await ask('', { messages: [question] }).done;
  assert.equal(first.json?.choices[0].message.content, 'first', first.text);
  await eventually('it is gone', () => pids(proxy).length === 0);
  const messages = [question, first.json.choices[0].message, { role: 'user', content: '[[text say=second]]' }];
  const second = await ask('', { messages }).done;
  assert.equal(second.json?.choices[0].message.content, 'second', second.text);
});

test('a client that does not read holds its process no longer than --timeout', async (t) => {
  const { proxy } = await proxyWith(t, STAND_IN_CLI, { args: ['--timeout', '2s'] });
  const raw = await connectRaw(t, proxy);
  raw.socket.pause();
  await raw.write(postChat('[[text n=3000 size=4000]]', { stream: true }));
  await eventually('it works', () => pids(proxy).length === 1);
  await eventually('it is gone', () => pids(proxy).length === 0);
});

// ---- upstream ------------------------------------------------------------------------------------

test(
  'an API that dies in every answer leaves an error and nothing else',
  { slow: true },
  async (t) => {
    const { proxy, ask, well } = await proxyWith(t, REAL_CLI, { env: { CLAUDE_CODE_MAX_RETRIES: '1' } });
    await well();
    const before = await restingResources(proxy);
    const [streamed, whole] = await Promise.all([
      ask(t.text('drop after=2 times=99'), { stream: true }).done,
      ask(t.text('drop after=0 times=99')).done,
    ]);
    assertFailedWell(streamed);
    assertFailedWell(whole);
    await well();
    await assertNothingLeft(proxy, before);
  },
);

test('after all this the shared proxy is well', { alone: true }, async (t) => {
  assert.equal((await t.chat({ model: MODEL, messages: [{ role: 'user', content: '[[text]]' }] })).status, 200);
  const client = connectRaw(t);
  await client.write(get('/health'));
  assert.equal((await client.answers())[0].status, 200);
  assert.ok(resources(t.proxy).threads <= 6);
  assert.ok(processesMarked(t.proxy.scratch).length >= 2);
});

test('a tool call that nests too deeply is a 502, and the proxy goes on', async (t) => {
  const { proxy, ask, well } = await proxyWith(t, REAL_CLI);
  t.api.script((request) => {
    const deep = JSON.parse(`${'{"a":'.repeat(1000)}1${'}'.repeat(1000)}`);
    return request.text.includes('nest') ? { name: 'tool_use', tool: 'look_up', args: deep } : 'plain';
  });
  t.defer(async () => t.api.script('plain'));
  const whole = await ask('nest', { tools: TOOLS }).done;
  assert.equal(whole.status, 502, whole.text);
  const stream = await ask('nest', { tools: TOOLS, stream: true }).done;
  assert.match(stream.text, /nested too deeply|too deep/);
  await well();
  assert.equal(proxy.exit, undefined);
});
