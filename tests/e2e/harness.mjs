// Starts the proxy under test, talks to it, and proves afterwards that nothing of it is left. And a small test runner.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { DEFAULT_MODEL } from './claude_cli.mjs';

const HERE = path.dirname(fileURLToPath(import.meta.url));
export const PROXY = process.env.PROXY ?? path.join(HERE, '..', '..', 'build', 'claude-openai');
export const API_KEY_OF_CLAUDE = 'sk-ant-test-key-0000';

export const sleep = (ms) =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
  });

/**
 * Asks until it holds, and returns what held; says what it waited for when the time is up. The limits here and of suites are no
 * claims: they say how long a test that fails may take, on a machine that has other work to do.
 */
export async function eventually(what, holds, ms = 30_000) {
  const end = performance.now() + ms;
  for (;;) {
    const value = await holds();
    if (value) return value;
    if (performance.now() > end) throw new Error(`${what}: not within ${ms} ms`);
    await sleep(20);
  }
}

/** Holds a port of this machine that was free: {port, close()}. */
export async function holdPort() {
  const holder = net.createServer();
  await new Promise((resolve) => {
    holder.listen(0, '127.0.0.1', resolve);
  });
  const close = () =>
    new Promise((resolve) => {
      holder.close(resolve);
    });
  return { port: holder.address().port, close };
}

/** A port of this machine that nobody listens on. */
export async function freePort() {
  const { port, close } = await holdPort();
  await close();
  return port;
}

// ---- processes -----------------------------------------------------------------------------------

const readProc = (pid, file) => {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8');
  } catch {
    return '';
  }
};
export const linkOf = (pid, file) => {
  try {
    return readlinkSync(`/proc/${pid}/${file}`);
  } catch {
    return '';
  }
};
/** The open descriptors of a process; none where only root may see those of the proxy, whose memory is protected. */
export function descriptorsOf(pid) {
  try {
    return readdirSync(`/proc/${pid}/fd`);
  } catch (error) {
    if (error.code !== 'EACCES') throw error;
    return [];
  }
}
const strings = (text) => text.split('\0').slice(0, -1); // an argument may be empty

/** Living processes (no zombies) that carry the marker in their environment. */
export function processesMarked(marker) {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => readProc(pid, 'environ').includes(marker) && !/^State:\s+Z/m.test(readProc(pid, 'status')))
    .map((pid) => ({
      pid: Number(pid),
      group: Number(readProc(pid, 'stat').split(') ').pop().split(' ')[2]),
      argv: strings(readProc(pid, 'cmdline')),
      executable: linkOf(pid, 'exe'),
      cwd: linkOf(pid, 'cwd'),
      environment: Object.fromEntries(strings(readProc(pid, 'environ')).map((line) => line.split(/=([^]*)/, 2))),
    }));
}

// ---- the proxy -----------------------------------------------------------------------------------

const running = new Set();
/** Ends the proxies that run, with their processes: for a run that is cut. */
export const endProxies = () => running.forEach(({ child }) => child.kill('SIGKILL')); // their guards see to the rest

class Proxy {
  /**
   * `url` of the API; `cli` the path of a claude; `env` over the clean environment, undefined removes; `terminal`: it runs in one of
   * its own, whose keyboard is `keys`; `ownPort`: that of its default, instead of any; `binary`: another than the one under test.
   */
  constructor({ url, cli, args = [], env = {}, terminal = false, ownPort = false, binary = PROXY }) {
    this.terminal = terminal;
    this.scratch = mkdtempSync(path.join(tmpdir(), 'claude-openai-e2e-'));
    this.home = path.join(this.scratch, 'home');
    this.temporary = path.join(this.scratch, 'tmp');
    [this.home, this.temporary].forEach((folder) => mkdirSync(folder));
    this.output = '';
    const environment = {
      HOME: this.home,
      TMPDIR: this.temporary,
      PATH: process.env.PATH,
      ANTHROPIC_BASE_URL: url,
      // The spares are of the default model: with that of most tests none is started in vain.
      DEFAULT_MODEL,
      ANTHROPIC_API_KEY: API_KEY_OF_CLAUDE,
      CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1',
      DISABLE_AUTOUPDATER: '1',
      ...env,
    };
    Object.keys(environment).forEach((name) => environment[name] === undefined && delete environment[name]);
    this.command = [
      binary,
      ...(ownPort || args.some((arg) => arg === '--port' || /^\d{4,}$/.test(arg)) ? [] : ['--port', '0']),
      ...(cli ? ['--claude-path', cli] : []),
      ...args,
    ];
    this.environment = environment;
  }

  start() {
    const [program, ...args] = this.command;
    this.startedAt = performance.now();
    const quoted = this.command.map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(' ');
    this.child = this.terminal
      ? spawn('script', ['-qec', `exec ${quoted}`, '/dev/null'], {
          env: { ...this.environment, SHELL: '/bin/sh' },
          cwd: this.scratch,
          stdio: ['pipe', 'pipe', 'pipe'],
        })
      : spawn(program, args, { env: this.environment, cwd: this.scratch, stdio: ['ignore', 'pipe', 'pipe'] });
    running.add(this);
    this.child.once('exit', () => running.delete(this));
    this.keys = this.child.stdin;
    this.pid = this.child.pid;
    for (const stream of [this.child.stdout, this.child.stderr])
      stream.setEncoding('utf8').on('data', (text) => this.#heard(text));
    this.exited = new Promise((resolve) =>
      this.child.once('exit', (code, signal) => resolve((this.exit = { code, signal, at: performance.now() }))),
    );
    this.closed = new Promise((resolve) => {
      this.child.once('close', resolve);
    });
    this.child.once('error', (error) => {
      this.output += error.message;
    });
  }

  #heard(text) {
    this.output += text;
    if (this.listeningAt) return;
    const place = / is listening on (?:(https?):\/\/\S+:(\d+)|unix:\S+)\r?\n/.exec(this.output);
    if (!place) return;
    this.listeningAt = performance.now();
    if (!place[1]) return; // the unix socket alone
    this.port = Number(place[2]);
    this.url = `${place[1]}://127.0.0.1:${this.port}`;
  }

  async listening(ms = 30_000) {
    await eventually('the proxy listens', () => this.listeningAt || this.exit, ms).catch((error) => {
      throw new Error(`${error.message}; it said: ${this.output}`);
    });
    if (this.exit) throw new Error(`the proxy ended with ${JSON.stringify(this.exit)}; it said: ${this.output}`);
  }

  /** Waits until the CLI was looked at, which takes a process too. */
  async inspected() {
    await eventually('the start tells the login', () => /login|PROBLEM/.test(this.output));
  }

  /** The `claude` processes that live now: each leads a group. A child of one looks just like it until it has called exec. */
  claudes() {
    return processesMarked(this.scratch).filter((one) => one.group === one.pid && one.argv.includes('stream-json'));
  }

  kill(signal = 'SIGTERM') {
    if (!this.exit) this.child.kill(signal);
  }

  /** Ends it and returns what should not be there any more. */
  async stop(signal = 'SIGTERM') {
    const killed = this.exit?.signal === 'SIGKILL'; // by the test itself
    this.kill(signal);
    const late = setTimeout(() => this.kill('SIGKILL'), 8000);
    const asked = performance.now();
    await this.exited;
    clearTimeout(late);
    const faults = [];
    if (signal === 'SIGTERM' && this.exit.signal === 'SIGKILL' && !killed) faults.push('ignored SIGTERM for 8 s');
    const none = () => processesMarked(this.scratch).length === 0;
    await eventually('no process is left', none).catch(() =>
      faults.push(
        `processes live on: ${processesMarked(this.scratch)
          .map((one) => `${one.pid} ${one.argv.join(' ')}`)
          .join('; ')}`,
      ),
    );
    const left = readdirSync(this.temporary);
    if (signal === 'SIGTERM' && left.length) faults.push(`temporary files are left: ${left.join(' ')}`);
    for (const one of processesMarked(this.scratch)) process.kill(one.pid, 'SIGKILL');
    rmSync(this.scratch, { recursive: true, force: true });
    return { faults, took: this.exit.at - asked };
  }
}

/** The key that the proxy has made for itself: a terminal shows it, else it is in the file that is named. */
export function madeKey(proxy) {
  const file = /client key +in (\S+)/.exec(proxy.output)?.[1];
  return file ? readFileSync(file, 'utf8').trim() : /sk-local-[\w-]+/.exec(proxy.output)[0];
}

/** A started proxy that listens. */
export async function startProxy(options) {
  const proxy = new Proxy(options);
  options.prepare?.(proxy);
  proxy.start();
  try {
    await proxy.listening(options.ms);
  } catch (error) {
    await proxy.stop();
    throw error;
  }
  return proxy;
}

/** A proxy that is expected to refuse to start. Resolves to {exit, output}; `exit` is null when it stays. */
export async function startAndExpectExit(options, ms = 60_000) {
  const proxy = new Proxy(options);
  options.prepare?.(proxy);
  proxy.start();
  const exit = await Promise.race([proxy.exited, sleep(ms).then(() => null)]);
  const { faults } = await proxy.stop();
  await Promise.race([proxy.closed, sleep(10_000)]); // what it said last may come after its end
  return { exit, output: proxy.output, faults };
}

// ---- HTTP ----------------------------------------------------------------------------------------

/** Five deltas that left within 600 ms came so: what is gathered first comes all at once. */
export function assertSpread(times) {
  const after = times.map((at) => Math.round(at - times[0]));
  assert.ok(after.length === 5 && after.at(-1) > 300, `they came after ${after} ms`);
}

/** The frames of an event stream: {at, comment} or {at, event, data}. */
function parseFrames(chunks) {
  const frames = [];
  let rest = '';
  for (const { at, text } of chunks) {
    const parts = (rest + text).split('\n\n');
    rest = parts.pop();
    for (const frame of parts) {
      const data = frame
        .split('\n')
        .filter((line) => line.startsWith('data:'))
        .map((line) => line.slice(5).trimStart());
      const event = /^event: ?(.*)$/m.exec(frame)?.[1];
      frames.push(data.length ? { at, event, data: data.join('\n') } : { at, comment: frame });
    }
  }
  if (rest.trim()) frames.push({ at: chunks.at(-1).at, cut: rest });
  return frames;
}

/**
 * One request over a connection of its own. Returns at once: {sentAt, head, done, abort()}; `head` resolves at the response's head,
 * `done` to {status, headers, text, json, frames, data, at, error}. `data` are the parsed data frames, '[DONE]' as it is. `over` are
 * further options of the request: `socketPath`, or the `ca` of TLS.
 */
export function send(
  proxy,
  { method = 'POST', path: where = '/v1/chat/completions', headers = {}, body, host, over } = {},
) {
  const payload =
    body === undefined ? undefined : typeof body === 'string' || Buffer.isBuffer(body) ? body : JSON.stringify(body);
  const all = {
    ...(payload === undefined
      ? {}
      : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(payload) }),
    ...headers,
  };
  Object.keys(all).forEach((name) => all[name] === undefined && delete all[name]);
  const exchange = { sentAt: performance.now(), method, path: where, body: payload, chunks: [] };
  const request = (over?.ca ? https : http).request({
    host: '127.0.0.1',
    port: proxy.port,
    method,
    path: where,
    headers: all,
    agent: false,
    setHost: host === undefined,
    ...over,
  });
  if (host) request.setHeader('host', host);
  const decoder = new TextDecoder();
  exchange.head = new Promise((resolve, reject) => {
    request.once('response', resolve).once('error', reject);
  });
  exchange.head.catch(() => {}); // `done` tells it
  exchange.done = new Promise((resolve) => {
    const finish = (error) => resolve((exchange.result = finished(exchange, error)));
    request.once('error', finish);
    request.once('response', (response) => {
      Object.assign(exchange, { status: response.statusCode, headers: response.headers });
      response.on('data', (bytes) =>
        exchange.chunks.push({ at: performance.now(), text: decoder.decode(bytes, { stream: true }) }),
      );
      response.once('end', () => finish()).once('error', finish);
    });
  });
  exchange.abort = () => request.destroy();
  request.end(payload);
  return exchange;
}

function finished(exchange, error) {
  const text = exchange.chunks.map((chunk) => chunk.text).join('');
  const result = {
    status: exchange.status,
    headers: exchange.headers ?? {},
    text,
    error,
    at: performance.now(),
    sentAt: exchange.sentAt,
  };
  if (/event-stream/.test(result.headers['content-type'] ?? '')) {
    result.frames = parseFrames(exchange.chunks);
    result.data = result.frames
      .filter((frame) => frame.data !== undefined)
      .map((frame) => (frame.data === '[DONE]' ? '[DONE]' : JSON.parse(frame.data)));
  } else {
    try {
      result.json = JSON.parse(text);
    } catch {
      /* the test that needs it says so */
    }
  }
  return result;
}

// ---- the runner ----------------------------------------------------------------------------------

const shorten = (text, length = 1500) =>
  text.length > length ? `${text.slice(0, length)}… (${text.length} characters)` : text;

/** What a test gets: ways to ask that remember both ends, so that a failure can show them. */
export class Conversation {
  static #count = 0;

  constructor({ api, proxy }) {
    Object.assign(this, { api, proxy, exchanges: [], cleanups: [] });
    this.token = `test-${++Conversation.#count}-${process.pid}`;
  }

  /** User text that makes the API play the scenario and that is told apart from every other test's. */
  text(scenario, more = '') {
    return `[[scenario:${scenario}]] ${this.token} ${more}`.trim();
  }

  messages(scenario) {
    return [{ role: 'user', content: this.text(scenario) }];
  }

  send(options) {
    const exchange = send(options.proxy ?? this.proxy, options);
    this.exchanges.push(exchange);
    return exchange;
  }

  /** A chat request; resolves to the finished answer. */
  chat(body, options = {}) {
    return this.send({ ...options, body: { model: 'claude-sonnet-4-5-20250929', ...body } }).done;
  }

  get(where, options = {}) {
    return this.send({ ...options, method: 'GET', path: where }).done;
  }

  /** How many processes answer, or take back what nobody waits for any more. */
  async busyProcesses(options = {}) {
    const { busy, rewinding } = (await this.get('/health', options)).json.processes;
    return busy + rewinding;
  }

  /** The calls of this test that reached the API. */
  calls() {
    return this.api.requests.filter((request) => request.path === '/v1/messages' && request.raw?.includes(this.token));
  }

  waitForCall(ms) {
    return this.api.waitFor((request) => request.path === '/v1/messages' && request.raw?.includes(this.token), ms);
  }

  /** Undoes at the end of the test, whatever its outcome. */
  defer(cleanup) {
    this.cleanups.push(cleanup);
  }

  /**
   * A proxy of this test's own; what it leaves behind fails the test. It keeps no spares unless the test asks for some: a process of
   * the real CLI costs more than most tests do.
   */
  async start({ args = [], ...options }) {
    const own = args.includes('--spares') || 'CLAUDE_SPARES' in (options.env ?? {}) ? [] : ['--spares', '0'];
    const proxy = await startProxy({ url: this.api.url, args: [...own, ...args], ...options });
    this.defer(async () => {
      if (proxy.stopped) return;
      const { faults } = await proxy.stop();
      if (faults.length) throw new Error(`after the stop: ${faults.join('; ')}`);
    });
    this.proxy ??= proxy;
    this.ownProxy = proxy;
    return proxy;
  }

  async finish() {
    let failure;
    for (const cleanup of this.cleanups.reverse())
      await cleanup().catch((error) => {
        failure ??= error;
      });
    if (failure) throw failure;
  }

  evidence() {
    const client = this.exchanges.map((exchange) => {
      const got = exchange.result ?? {
        status: exchange.status,
        headers: exchange.headers,
        text: exchange.chunks.map((chunk) => chunk.text).join(''),
      };
      return (
        `  client sent ${exchange.method} ${exchange.path} ${shorten(exchange.body?.toString() ?? '', 600)}\n` +
        `  client got  ${got.status ?? 'nothing'} ${JSON.stringify(got.headers ?? {})} ${got.error ? `(${got.error.message}) ` : ''}${shorten(got.text)}`
      );
    });
    const upstream = this.calls().map(
      (call) =>
        `  API got     ${shorten(JSON.stringify(call.body), 900)} → ${call.status ?? 'nothing yet'}${call.clientLeft ? ', the CLI left' : ''}`,
    );
    const proxy = this.ownProxy ?? this.proxy;
    return [...client, ...upstream, ...(proxy ? [`  proxy said  ${shorten(proxy.output.slice(-1500))}`] : [])].join(
      '\n',
    );
  }
}

/**
 * A list of tests and the function that adds one. Options: `deadline` in ms if it works for long; `alone`: measures time, so nothing else may run;
 * `slow`: begins early, since it waits more than it works; `skip`: why it cannot run here. `deadline`: of tests that name none.
 */
export function suite(deadline = 300_000) {
  const tests = [];
  const test = (name, options, body = options) => {
    tests.push({ name, deadline, ...(body === options ? {} : options), body });
  };
  return { tests, test };
}

/** Runs the body of one test with its deadline; resolves to the error, if any. */
export async function runTest({ name, deadline, body }, context, label) {
  let timer;
  const started = performance.now();
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done within ${deadline} ms`)), deadline);
  });
  let failure;
  try {
    await Promise.race([body(context), late]);
  } catch (error) {
    failure = error;
  }
  clearTimeout(timer);
  const evidence = failure && context.evidence();
  await context.finish().catch((error) => {
    failure ??= error;
  });
  const took = `${Math.round(performance.now() - started)} ms`;
  console.log(
    failure
      ? `FAIL ${label}${name} (${took})\n  ${failure.stack?.split('\n').slice(0, 12).join('\n  ') ?? failure}\n${evidence ?? context.evidence()}`
      : `ok   ${label}${name} (${took})`,
  );
  return failure;
}
