// Runs programs in other languages, each a user of one client library: it gets its work as JSON on standard input, and prints a line of
// JSON for each of its checks. Its environment is clean, its HOME a scratch folder; beyond loopback there is nothing but a gate that
// refuses all and remembers what was asked.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { DEFAULT_MODEL } from './claude_cli.mjs';
import { directive } from './messages_api.mjs';

const HERE = path.dirname(fileURLToPath(import.meta.url));
export const CLIENTS = path.join(HERE, '..', '..', 'build', 'clients');
export const KEY = 'sk-client-key-of-the-proxy';
export const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
export const PDF = Buffer.from('%PDF-1.4\ntrailer<</Root 1 0 R>>\n%%EOF\n').toString('base64');

const OFF = {
  DO_NOT_TRACK: '1',
  OPENAI_AGENTS_DISABLE_TRACING: '1',
  LITELLM_OFFLINE_MODE: 'true',
  LITELLM_LOCAL_MODEL_COST_MAP: 'True',
  LANGSMITH_TRACING: 'false',
  HF_HUB_OFFLINE: '1',
  ANONYMIZED_TELEMETRY: 'False',
  PYTHONUNBUFFERED: '1',
  PYTHONDONTWRITEBYTECODE: '1',
};

/** Why tests that need what `make` installs cannot run, if it is not there. */
export const missing = (name) => (existsSync(path.join(CLIENTS, name, 'installed')) ? undefined : `${name} is not installed`);

/** An HTTP proxy that refuses all, with the first lines of what it was asked. */
async function startGate(t) {
  const asked = [];
  const gate = net.createServer((socket) =>
    socket.on('error', () => {}).once('data', (bytes) => {
      asked.push(bytes.toString('latin1').split('\r\n')[0]);
      socket.end('HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n');
    }),
  );
  await new Promise((resolve) => {
    gate.listen(0, '127.0.0.1', resolve);
  });
  t.defer(async () => gate.close());
  return { asked, url: `http://127.0.0.1:${gate.address().port}` };
}

/**
 * Starts a program in a scratch folder that holds its HOME; resolves to {ended, output(), complaints(), home, work, asked}, `ended` being
 * a promise of its status. It ends with the test at the latest.
 */
export async function startProgram(t, [program, ...args], { env = {}, input = '', prepare = () => {} } = {}) {
  const scratch = mkdtempSync(path.join(tmpdir(), 'claude-openai-client-'));
  t.defer(async () => rmSync(scratch, { recursive: true, force: true, maxRetries: 3 }));
  const [home, work] = ['home', 'work'].map((name) => path.join(scratch, name));
  [home, work].forEach((folder) => mkdirSync(folder));
  const { asked, url: gate } = await startGate(t);
  const proxies = Object.fromEntries(['HTTP_PROXY', 'HTTPS_PROXY', 'http_proxy', 'https_proxy'].map((name) => [name, gate]));
  const local = { NO_PROXY: '127.0.0.1,localhost', no_proxy: '127.0.0.1,localhost' };
  prepare({ home, work });
  const child = spawn(program, args, {
    cwd: work,
    detached: true,
    env: { HOME: home, TMPDIR: home, PATH: process.env.PATH, LANG: 'C.UTF-8', ...OFF, ...proxies, ...local, ...env },
  });
  const ended = new Promise((resolve, reject) => {
    child.once('error', reject).once('close', resolve);
  });
  t.defer(async () => {
    try {
      process.kill(-child.pid, 'SIGKILL'); // its own group
    } catch {
      /* it has ended */
    }
    await ended.catch(() => {});
  });
  let output = '';
  let complaints = '';
  child.stdout.setEncoding('utf8').on('data', (text) => {
    output += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text) => {
    complaints += text;
  });
  child.stdin.on('error', () => {}).end(input);
  return { ended, output: () => output, complaints: () => complaints, home, work, asked };
}

/** Runs a program to its end; resolves to {code, output, complaints, home, work, asked}. */
export async function runProgram(t, command, options) {
  const { ended, output, complaints, ...program } = await startProgram(t, command, options);
  const code = await ended;
  return { ...program, code, output: output(), complaints: complaints() };
}

/**
 * Runs a program of checks, `scenarios` telling what the model answers in each; `more` goes along on standard input. Resolves to
 * {value(check), calls(check)}: what the program tells of a check, and the API calls that it caused.
 */
export async function runChecks(t, command, scenarios = {}, { more = {}, ...options } = {}) {
  const marks = Object.fromEntries(Object.keys(scenarios).map((name) => [name, `(${t.token} ${name})`]));
  const texts = Object.fromEntries(Object.entries(scenarios).map(([name, scenario]) => [name, t.text(scenario, marks[name])]));
  const given = { url: t.proxy.url, model: DEFAULT_MODEL, key: KEY, png: PNG, pdf: PDF, texts, ...more };
  const result = await runProgram(t, command, { input: JSON.stringify(given), ...options });
  const said = `${result.output}\n${result.complaints}`.slice(-6000);
  assert.equal(result.code, 0, said);
  assert.deepEqual(result.asked, [], 'nothing but the proxy is asked');
  const lines = result.output
    .split('\n')
    .filter((line) => line.startsWith('{"check"'))
    .map((line) => JSON.parse(line));
  const known = new Set();
  const value = (name) => {
    const [line, ...others] = lines.filter(({ check }) => check === name);
    assert.ok(line && !others.length, `${name} is told ${line ? 'more than once' : 'nowhere'}: ${said}`);
    assert.equal(line.error, undefined, `${name}: ${line.error}`);
    known.add(name);
    return line.value;
  };
  const calls = (name) => t.api.requests.filter(({ path: where, raw }) => where === '/v1/messages' && raw?.includes(marks[name]));
  /** All that the program has told was looked at. */
  const assertAllSeen = () => assert.deepEqual(lines.map(({ check }) => check).filter((name) => !known.has(name)), []);
  return { ...result, value, calls, assertAllSeen };
}

/** An error that is over when it has come once. */
export const heals = (text) => directive('error', { status: 500, should_retry: false, until: 'HEALED', text });

/** A test of a program of checks, with what `make` installs into the folder `needs`; `more(t)` goes along on standard input. */
export function testChecks(tests, name, { needs, command, scenarios, more }, body) {
  tests.test(name, { skip: missing(needs), slow: true }, async (t) => {
    const healed = (scenario) => scenario.replace('HEALED', t.token);
    const own = Object.fromEntries(Object.entries(scenarios).map(([check, scenario]) => [check, healed(scenario)]));
    t.api.waitFor(({ raw }) => raw?.includes(`until=\\"${t.token}`), 240_000).then(() => t.api.heal(t.token), () => {});
    const ran = await runChecks(t, command, own, { more: more?.(t) });
    await body({ t, ...ran });
    ran.assertAllSeen();
  });
}
