// Drives the real `claude` by hand over its stdin and stdout: what the proxy does, in the plainest form.
// Also finds the pinned CLIs that npm put beside this file, and those that `make compat` has tried.

import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';

export const CLI_VERSIONS = ['2.1.120', '2.1.197', '2.1.330'];

/**
 * The native executable of a pinned version. Taken from the platform's own package and not from the alias's bin/, which is a
 * placeholder until an install script has run, and some npm versions and settings skip those.
 */
export function claudePath(version) {
  const here = import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname);
  const [pinned, tried] = [here, path.join(here, '../../build/compat')].map((place) =>
    path.join(place, 'node_modules', `claude-${version.replaceAll('.', '-')}`, 'package.json'),
  );
  const alias = existsSync(pinned) ? pinned : tried;
  const glibc = process.platform !== 'linux' || process.report.getReport().header.glibcVersionRuntime !== undefined;
  const platform = `${process.platform}-${process.arch}${glibc ? '' : '-musl'}`;
  const manifest = createRequire(alias).resolve(`@anthropic-ai/claude-code-${platform}/package.json`);
  const found = createRequire(manifest)(manifest).version;
  const executable = path.join(path.dirname(manifest), 'claude');
  if (found !== version || !existsSync(executable)) throw new Error(`claude ${version} is not installed: run npm ci`);
  return executable;
}

export const TOOL_LESS_ARGS = [
  '-p',
  '--input-format',
  'stream-json',
  '--output-format',
  'stream-json',
  '--verbose',
  '--include-partial-messages',
  '--tools',
  '',
  '--setting-sources',
  '',
  '--strict-mcp-config',
  '--no-session-persistence',
  '--permission-mode',
  'default',
];

export const DEFAULT_MODEL = 'claude-sonnet-4-5-20250929';

/** The environment of a CLI that talks to `url` and to nothing else. `undefined` values are left out. */
export function cliEnvironment(url, home, extra = {}) {
  const all = {
    HOME: home,
    TMPDIR: home,
    PATH: process.env.PATH,
    ANTHROPIC_BASE_URL: url,
    ANTHROPIC_API_KEY: 'sk-ant-test-key-0000',
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1',
    DISABLE_AUTOUPDATER: '1',
    CLAUDE_CODE_MAX_RETRIES: '2',
    MAX_THINKING_TOKENS: '0',
    ...extra,
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
}

export const userLine = (content, extra = {}) => ({
  type: 'user',
  message: { role: 'user', content },
  parent_tool_use_id: null,
  session_id: '',
  ...extra,
});

export const assistantLine = (text) => ({
  type: 'assistant',
  message: { role: 'assistant', content: [{ type: 'text', text }] },
  parent_tool_use_id: null,
  session_id: '',
});

/** One `claude` process in a scratch HOME of its own. `lines` holds {at, raw, value} of every line it printed. */
export class ClaudeCli {
  #waiters = new Set();
  #requestId = 0;

  constructor({ executable, url, model = DEFAULT_MODEL, args = [], env = {}, onControlRequest }) {
    this.scratch = mkdtempSync(path.join(tmpdir(), 'claude-e2e-'));
    this.lines = [];
    this.stderr = '';
    this.onControlRequest = onControlRequest;
    this.startedAt = performance.now();
    this.child = spawn(executable, [...TOOL_LESS_ARGS, '--model', model, ...args], {
      cwd: this.scratch,
      env: cliEnvironment(url, this.scratch, env),
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    this.exited = new Promise((resolve) =>
      this.child.once('close', (code, signal) => {
        this.exit = { code, signal, at: performance.now() };
        resolve(this.exit);
        this.#wake();
      }),
    );
    this.child.stdin.on('error', () => {}); // a child that died is told by `exit`
    this.child.stderr.setEncoding('utf8').on('data', (text) => {
      this.stderr += text;
    });
    let rest = '';
    this.child.stdout.setEncoding('utf8').on('data', (text) => {
      const parts = (rest + text).split('\n');
      rest = parts.pop();
      parts.forEach((raw) => this.#line(raw));
    });
  }

  #line(raw) {
    const value = JSON.parse(raw);
    this.lines.push({ at: performance.now(), raw, value });
    if (value.type === 'control_request') this.onControlRequest?.(value, this);
    this.#wake();
  }

  #wake() {
    this.#waiters.forEach((check) => check());
  }

  write(...values) {
    this.child.stdin.write(values.map((value) => `${JSON.stringify(value)}\n`).join(''));
  }

  /** The first line from index `from` on that matches; rejects when the process ends or the time is up. */
  waitFor(matches, { from = 0, ms = 60_000 } = {}) {
    return new Promise((resolve, reject) => {
      const finish = (settle, value) => {
        clearTimeout(timer);
        this.#waiters.delete(check);
        settle(value);
      };
      const fail = (why) =>
        finish(reject, new Error(`${why}; stderr: ${this.stderr}; last line: ${this.lines.at(-1)?.raw}`));
      const check = () => {
        const found = this.lines.slice(from).find((line) => matches(line.value));
        if (found) finish(resolve, found);
        else if (this.exit) fail(`claude exited ${JSON.stringify(this.exit)}`);
      };
      const timer = setTimeout(() => fail(`no such line within ${ms} ms`), ms);
      this.#waiters.add(check);
      check();
    });
  }

  controlLine(request) {
    return { type: 'control_request', request_id: String(++this.#requestId), request };
  }

  /** Sends a control request and resolves to the whole control_response. */
  async control(request, options) {
    const line = this.controlLine(request);
    this.write(line);
    const answer = await this.waitFor(
      (value) => value.type === 'control_response' && value.response.request_id === line.request_id,
      options,
    );
    return answer.value;
  }

  result(from, ms) {
    return this.waitFor((value) => value.type === 'result', { from, ms });
  }

  /** Writes a live user message and resolves to the lines of its turn, `result` included. */
  async turn(content, ms) {
    const from = this.lines.length;
    this.write(userLine(content));
    const result = await this.result(from, ms);
    return this.lines.slice(from, this.lines.indexOf(result) + 1);
  }

  /** Adds an earlier exchange with real roles. The wait keeps the order: unacknowledged user lines are batched. */
  async replay(userText, assistantText) {
    const from = this.lines.length;
    this.write(userLine(userText, { shouldQuery: false }));
    await this.result(from);
    if (assistantText !== undefined) this.write(assistantLine(assistantText));
    return this.lines.slice(from);
  }

  async stop() {
    if (!this.exit) this.child.kill('SIGKILL');
    await this.exited;
    rmSync(this.scratch, { recursive: true, force: true });
  }
}
