// What a request costs through the proxy, beside driving `claude` by hand and starting one per request.
// One run, one loopback Messages API, the newest pinned CLI; about a minute. `make bench`
//
//   node tests/bench/bench.mjs        ROUNDS=15 is how often each way is measured
//
// The three ways take turns, so that what else happens on the machine meets them alike, and each
// begins only when every process has been warm and quiet for a while.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import net from 'node:net';
import { cpus, loadavg } from 'node:os';
import { CLI_VERSIONS, claudePath } from '../e2e/claude_cli.mjs';
import { eventually, send, sleep, startProxy } from '../e2e/harness.mjs';
import { startMessagesApi } from '../e2e/messages_api.mjs';

const ROUNDS = Number(process.env.ROUNDS ?? 15);
const QUIET_MS = 300;
const TOKENS = 6000;
const SYSTEM = 'You are a bench.';

const version = CLI_VERSIONS.at(-1);
const cli = claudePath(version);
const api = await startMessagesApi();
api.script('plain deltas=4');

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
const spread = (values) => [...values].sort((a, b) => a - b).filter((_, i, all) => [Math.floor(all.length / 4), Math.floor(all.length * 3 / 4)].includes(i));

let failed = 0;
function verdict(name, value, unit, holds, target) {
  if (!holds) failed++;
  console.log(`${holds ? 'PASS' : 'FAIL'}  ${name}: ${value.toFixed(1)} ${unit} (target: ${target})`);
}

// ---- the three ways: each resolves to the milliseconds until the first token -------------------------

const health = async (proxy) => (await send(proxy, { method: 'GET', path: '/health' }).done).json.processes;

async function quiet(proxy) {
  await eventually('the spare is warm', async () => {
    const { warm, busy, stopping } = await health(proxy);
    return warm === 1 && busy === 0 && stopping === 0;
  }, 20_000);
  await sleep(QUIET_MS);
}

async function throughProxy(proxy, text) {
  const body = { stream: true, messages: [{ role: 'system', content: SYSTEM }, { role: 'user', content: text }] };
  const exchange = send(proxy, { body });
  const result = await exchange.done;
  assert.equal(result.status, 200, result.text);
  const first = result.frames.find((frame) => frame.data?.includes('"content":"H'));
  return first.at - exchange.sentAt;
}

/** A started `claude`; `line(matches)` resolves to the time at which such a line was read. */
function start([program, ...args], { environment, cwd }) {
  const child = spawn(program, args, { env: environment, cwd, stdio: ['pipe', 'pipe', 'inherit'] });
  const waiting = [];
  let rest = '';
  child.stdout.setEncoding('utf8').on('data', (text) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop();
    for (const value of lines.map((line) => JSON.parse(line))) {
      for (const one of waiting.splice(0)) if (one.matches(value)) one.resolve(performance.now()); else waiting.push(one);
    }
  });
  const line = (matches) => new Promise((resolve, reject) => {
    waiting.push({ matches, resolve });
    child.once('exit', (code) => reject(new Error(`claude ended with ${code}`)));
  });
  const ended = new Promise((resolve) => { child.once('exit', resolve); });
  return { child, line, ended };
}

function stop(claude) {
  claude.child.kill('SIGKILL');
  return claude.ended;
}

const isToken = (line) => line.event?.delta?.type === 'text_delta';
const isResult = (line) => line.type === 'result';
const control = (id, request) => `${JSON.stringify({ type: 'control_request', request_id: id, request })}\n`;

/**
 * A spare driven by hand: the program, arguments, environment and lines that the proxy has. The next one starts when one has
 * been used, so that it has been warm for as long as the proxy's own, which waits 200 ms with that.
 */
class ByHand {
  constructor(proxy, spare) {
    Object.assign(this, { proxy, spare });
    this.next = this.#start();
  }

  async #start() {
    const claude = start(this.spare.argv, this.spare);
    claude.child.stdin.write(control('probe', { subtype: 'apply_flag_settings', settings: {} }));
    await claude.line((line) => line.type === 'control_response');
    return claude;
  }

  async ask(text) {
    const claude = await this.next;
    await quiet(this.proxy);
    const [token, result] = [claude.line(isToken), claude.line(isResult)];
    const sent = performance.now();
    claude.child.stdin.write(control('initialize', { subtype: 'initialize', systemPrompt: [SYSTEM] })
      + `${JSON.stringify({ type: 'user', message: { role: 'user', content: [{ type: 'text', text }] }, parent_tool_use_id: null, session_id: '' })}\n`);
    const took = await token - sent;
    await result;
    await stop(claude);
    this.next = this.#start();
    return took;
  }

  async stop() { await stop(await this.next); }
}

/** What other wrappers do. With the spare's flags, since those start faster than the usual ones. */
async function processPerRequest(proxy, spare, text) {
  await quiet(proxy);
  const input = spare.argv.indexOf('--input-format');
  const argv = [...spare.argv.toSpliced(input, 2), '--system-prompt', SYSTEM];
  const sent = performance.now();
  const claude = start(argv, spare);
  claude.child.stdin.end(text);
  const [token] = await Promise.all([claude.line(isToken), claude.line(isResult)]);
  await claude.ended;
  return token - sent;
}

// ---- the proxy itself --------------------------------------------------------------------------------

function memoryMiB(pid) {
  const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  return Object.fromEntries(['Rss', 'Pss'].map((name) => [name, Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(rollup)[1]) / 1024]));
}

function cpuMicroseconds(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ');
  return (Number(fields[11]) + Number(fields[12])) * 10_000; // the kernel tells ticks of 10 ms
}

async function cpuPerToken(proxy) {
  await quiet(proxy);
  const before = cpuMicroseconds(proxy.pid);
  const body = { stream: true, messages: [{ role: 'user', content: `[[scenario:plain deltas=${TOKENS} delay=1 text="${'abc '.repeat(TOKENS)}"]]` }] };
  const result = await send(proxy, { body }).done;
  const tokens = result.data.filter((chunk) => chunk.choices?.[0]?.delta?.content).length;
  assert.equal(tokens, TOKENS, 'every token is a chunk of its own');
  return (cpuMicroseconds(proxy.pid) - before) / tokens;
}

function connects(port) {
  return new Promise((resolve) => {
    const socket = net.connect(port, '127.0.0.1', () => { socket.destroy(); resolve(true); });
    socket.on('error', () => resolve(false));
  });
}

async function freePort() {
  const server = net.createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => { server.once('listening', resolve); });
  const { port } = server.address();
  await new Promise((resolve) => { server.close(resolve); });
  return port;
}

/** From the exec to the first accepted connection. */
async function startup() {
  const port = await freePort();
  let begun;
  let accepted;
  const prepare = (proxy) => {
    const begin = proxy.start.bind(proxy);
    proxy.start = () => {
      begun = performance.now();
      begin();
      accepted = (async () => { while (!await connects(port)); return performance.now(); })();
    };
  };
  const proxy = await startProxy({ url: api.url, cli, prepare, args: ['--port', String(port), '--spares', '0'] });
  const took = await accepted - begun;
  await proxy.stop();
  return took;
}

// ---- the run -----------------------------------------------------------------------------------------

console.log(`claude ${version}, a loopback Messages API, ${ROUNDS} rounds; times are medians [quartiles] in ms`);
if (loadavg()[0] > cpus().length / 2) console.log(`The machine is busy (load ${loadavg()[0].toFixed(1)}): do not trust what follows.`);

const proxy = await startProxy({ url: api.url, cli, args: ['--spares', '1', '--log-level', 'warning'] });
try {
  await quiet(proxy);
  const idle = memoryMiB(proxy.pid);
  const spare = proxy.claudes()[0];
  const by_hand = new ByHand(proxy, spare);
  const ways = {
    'through the proxy': async (text) => { await quiet(proxy); return throughProxy(proxy, text); },
    'a spare driven by hand': (text) => by_hand.ask(text),
    'a process per request': (text) => processPerRequest(proxy, spare, text),
  };
  const took = Object.fromEntries(Object.keys(ways).map((name) => [name, []]));
  for (let round = -1; round < ROUNDS; round++) { // the first one is a warm-up
    for (const [name, way] of Object.entries(ways)) {
      const milliseconds = await way(`Say hello, round ${round + 2}.`);
      if (round >= 0) took[name].push(milliseconds);
    }
  }
  // The same work: what the API was asked for by the proxy and by hand differs in nothing.
  await by_hand.stop();
  const [asked, asked_by_hand] = api.requests.filter((one) => one.path === '/v1/messages').slice(-3).map(({ body: { metadata, ...body } }) => body);
  assert.deepEqual({ ...asked, messages: 0 }, { ...asked_by_hand, messages: 0 });

  console.log('\ntime to the first token');
  for (const [name, values] of Object.entries(took)) {
    const [low, high] = spread(values);
    console.log(`      ${name.padEnd(24)}${median(values).toFixed(1).padStart(7)}  [${low.toFixed(1)}–${high.toFixed(1)}]`);
  }
  const [through, hand, process_each] = Object.values(took).map(median);
  verdict('sooner than a process per request', process_each / through, 'times', process_each / through >= 6, 'at least 6');
  verdict('over the spare driven by hand', through - hand, 'ms', through - hand <= 3, 'at most 3');

  console.log('\nthe proxy itself');
  verdict('memory when idle, RSS', idle.Rss, 'MiB', idle.Rss <= 20, 'at most 20');
  console.log(`      PSS ${idle.Pss.toFixed(1)} MiB; after the requests RSS ${memoryMiB(proxy.pid).Rss.toFixed(1)} MiB`);
  console.log(`      CPU per streamed token: ${(await cpuPerToken(proxy)).toFixed(1)} µs`);
} finally {
  await proxy.stop();
}

const startups = [];
for (let i = 0; i < 9; i++) startups.push(await startup());
verdict('from exec to the first accepted connection', median(startups), 'ms', median(startups) <= 50, 'at most 50');

await api.close();
process.exitCode = failed ? 1 : 0;
