// What the tests of hostile clients, of faults and of security share: raw sockets, and what the proxy holds.

import assert from 'node:assert/strict';
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { descriptorsOf, eventually, processesMarked, send, sleep } from './harness.mjs';

const HERE = path.dirname(fileURLToPath(import.meta.url));
/** A fast `claude` that misbehaves by name; see tests/protocol/stand_in.cpp. */
export const STAND_IN = process.env.STAND_IN ?? path.join(HERE, '..', '..', 'build', 'tests', 'stand-in');
export const MODEL = 'claude-test';
export const MOST_MEMORY = 64; // MiB above idle, whatever a client does

/** A folder of this test's own. */
export function scratch(t) {
  const folder = mkdtempSync(path.join(tmpdir(), 'claude-openai-hostile-'));
  t.defer(async () => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** A copy of the stand-in that obeys these lines; `conf` writes others. */
export function standIn(t, ...lines) {
  const program = path.join(scratch(t), 'claude');
  copyFileSync(STAND_IN, program);
  const conf = (...wanted) => writeFileSync(`${program}.conf`, wanted.map((line) => `${line}\n`).join(''));
  conf(...lines);
  return { program, conf };
}

// ---- raw requests --------------------------------------------------------------------------------

export const chatBody = (wish, more = {}) =>
  JSON.stringify({ model: MODEL, messages: [{ role: 'user', content: wish }], ...more });

export const head = (line, ...fields) => `${[line, 'Host: 127.0.0.1', ...fields].join('\r\n')}\r\n\r\n`;
export const get = (target, ...fields) => head(`GET ${target} HTTP/1.1`, ...fields);
export const post = (target, body, ...fields) =>
  head(`POST ${target} HTTP/1.1`, `Content-Length: ${Buffer.byteLength(body)}`, ...fields) + body;
export const postChat = (wish, more, ...fields) => post('/v1/chat/completions', chatBody(wish, more), ...fields);

/** The whole responses in these bytes, `{status, headers, text, chunked}`; `rest` is what is none. */
export function responsesIn(bytes) {
  const found = [];
  let rest = bytes;
  for (;;) {
    const end = rest.indexOf('\r\n\r\n');
    const status = Number(/^HTTP\/1\.[01] (\d{3})/.exec(rest)?.[1]);
    if (end < 0 || !status) break;
    const headers = Object.fromEntries(
      rest
        .slice(0, end)
        .split('\r\n')
        .slice(1)
        .map((line) => [line.slice(0, line.indexOf(':')).toLowerCase(), line.slice(line.indexOf(':') + 1).trim()]),
    );
    let from = end + 4;
    let text = '';
    let whole = true;
    const chunked = headers['transfer-encoding'] === 'chunked';
    if (chunked) {
      for (;;) {
        const line = rest.indexOf('\r\n', from);
        const size = line < 0 ? NaN : parseInt(rest.slice(from, line), 16);
        if (Number.isNaN(size) || rest.length < line + 4 + size) {
          whole = false;
          break;
        }
        text += rest.slice(line + 2, line + 2 + size);
        from = line + 4 + size;
        if (size === 0) break;
      }
    } else if (status >= 200 && status !== 204) {
      const length = Number(headers['content-length'] ?? rest.length - from);
      text = rest.slice(from, from + length);
      from += length;
      whole = text.length === length;
    }
    found.push({ status, headers, text: Buffer.from(text, 'latin1').toString(), chunked, whole });
    rest = whole ? rest.slice(from) : '';
    if (!whole) break;
  }
  return { found, rest };
}

/** A connection by hand. `closed` tells that the proxy has ended it; `got` are its bytes as latin1. */
export class RawClient {
  constructor(proxy) {
    this.got = '';
    this.socket = net.connect({ port: proxy.port, host: '127.0.0.1', allowHalfOpen: true });
    this.gone = new Promise((resolve) => {
      const end = () => {
        this.closed = true;
        resolve();
      };
      this.socket.once('end', end).once('close', end);
    });
    this.socket.on('error', () => {}); // a reset is an end too
    this.socket.on('data', (bytes) => {
      this.got += bytes.toString('latin1');
    });
  }

  write(bytes) {
    return new Promise((resolve) => {
      if (this.socket.destroyed) resolve();
      else this.socket.write(typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes, () => resolve());
    });
  }

  get responses() {
    return responsesIn(this.got).found;
  }

  /** Waits for so many whole responses, or the end. */
  async answers(count = 1, ms = 30_000) {
    const enough = () =>
      this.closed || this.responses.filter(({ status, whole }) => status >= 200 && whole).length >= count;
    await eventually(`${count} answers; got ${JSON.stringify(this.got.slice(0, 300))}`, enough, ms);
    return this.responses;
  }

  /** True when the proxy ends it within that time. */
  async ends(ms = 5000) {
    await Promise.race([this.gone, sleep(ms)]);
    return this.closed === true;
  }

  /** Writes the block again and again, as long as somebody reads, for so many bytes. */
  async flood(block, bytes) {
    const whole = typeof block === 'string' ? Buffer.from(block, 'latin1') : block;
    for (let sent = 0; sent < bytes && !this.closed && !this.socket.destroyed; sent += whole.length) {
      if (this.socket.write(whole)) continue;
      await Promise.race([new Promise((resolve) => this.socket.once('drain', resolve)), this.gone, sleep(3000)]);
    }
  }

  close() {
    this.socket.destroy();
  }
}

/** A raw connection that the end of the test closes. */
export function connectRaw(t, proxy = t.proxy) {
  const client = new RawClient(proxy);
  t.defer(async () => client.close());
  return client;
}

// ---- what the proxy holds ------------------------------------------------------------------------

const statusField = (pid, name) =>
  Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) / 1024;
export const memory = (proxy) => statusField(proxy.pid, 'VmRSS');
export const peakMemory = (proxy) => statusField(proxy.pid, 'VmHWM');

export function filesIn(folder) {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((one) => one.isFile())
    .map(({ name }) => name);
}

/** Counts what a fault could leave behind. */
export function resources(proxy) {
  return {
    processes: processesMarked(proxy.scratch).length,
    descriptors: descriptorsOf(proxy.pid).length,
    threads: readdirSync(`/proc/${proxy.pid}/task`).length,
    // The first agent brings the script that confines all of them, which stays.
    files: filesIn(proxy.temporary).filter((name) => name !== 'confine').length,
  };
}

/** Waits until the proxy is at rest and says what it then holds. */
export async function restingResources(proxy) {
  let last = '';
  let since = performance.now();
  await eventually('the proxy rests', () => {
    const now = JSON.stringify(resources(proxy));
    if (now !== last) since = performance.now();
    last = now;
    return performance.now() - since > 400;
  });
  return resources(proxy);
}

/** Nothing more than before is left. */
export async function assertNothingLeft(proxy, before) {
  const isBack = () => Object.entries(resources(proxy)).every(([name, count]) => count <= before[name]);
  await eventually('everything is as before', isBack).catch((error) =>
    assert.fail(`${error.message}: before ${JSON.stringify(before)}, now ${JSON.stringify(resources(proxy))}`),
  );
}

// ---- who must not be disturbed -------------------------------------------------------------------

const SLOWEST_HEALTH = 5000; // ms; a few when nothing is wrong
const LONGEST_GAP = 5000; // ms between the words of a stream that sends one every 50 ms

/**
 * Runs an attack while somebody asks for /health every 50 ms and somebody reads a stream: neither may notice, and the
 * proxy's memory must stay bounded, and the proxy alive.
 */
export async function withWitnesses(t, proxy, attack, { most = MOST_MEMORY } = {}) {
  const key = proxy.key ? { 'x-api-key': proxy.key } : {};
  const idle = memory(proxy);
  let running = true;
  let slowest = 0;
  let asked = 0;
  const faults = [];
  const watch = async () => {
    while (running) {
      const started = performance.now();
      const health = await Promise.race([send(proxy, { method: 'GET', path: '/health' }).done, sleep(5000)]);
      if (health?.status !== 200) faults.push(`/health got ${health?.status ?? 'nothing within 5 s'}`);
      slowest = Math.max(slowest, performance.now() - started);
      asked++;
      await sleep(50);
    }
  };
  const read = async () => {
    while (running) {
      const exchange = send(proxy, { headers: key, body: chatBody('[[text n=20 delay_ms=50]]', { stream: true }) });
      const result = await Promise.race([exchange.done, sleep(15_000)]);
      if (result?.data?.at(-1) !== '[DONE]')
        faults.push(`the stream got ${result?.status}: ${result?.text.slice(-200)}`);
      const times = (result?.frames ?? []).map(({ at }) => at);
      const gap = Math.max(0, ...times.slice(1).map((at, i) => at - times[i]));
      if (gap > LONGEST_GAP) faults.push(`the stream was silent for ${Math.round(gap)} ms`);
    }
  };
  const witnesses = [watch(), read()];
  try {
    await attack();
  } finally {
    running = false;
    await Promise.all(witnesses);
  }
  assert.ok(!proxy.exit, `the proxy ended: ${JSON.stringify(proxy.exit)} ${proxy.output.slice(-500)}`);
  const grown = peakMemory(proxy) - idle;
  if (grown > most) faults.push(`memory grew by ${Math.round(grown)} MiB at its peak`);
  if (slowest > SLOWEST_HEALTH) faults.push(`/health took ${Math.round(slowest)} ms`);
  assert.ok(asked > 0);
  assert.deepEqual([...new Set(faults)], []);
}
