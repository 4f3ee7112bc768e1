// What answers behind the proxy: the stand-in for the CLI, the real one over a loopback Messages API, or the demo. Each is asked by
// the same wishes in the user's text, `[[who]]` for one, which world.wish() spells.

import { chmodSync, closeSync, copyFileSync, mkdtempSync, openSync, readSync, renameSync, rmSync } from 'node:fs';
import { symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { DEFAULT_MODEL, claudePath } from '../e2e/claude_cli.mjs';
import { furnishHome } from '../e2e/chat.test.mjs';
import { startMessagesApi } from '../e2e/messages_api.mjs';
import { STAND_IN } from '../e2e/raw_client.mjs';

/** Whole ones only: a stream cuts words in two. */
const secretsInOrder = (text) => text.match(/secret-\d{7}/g) ?? [];
export const secretsIn = (text) => new Set(secretsInOrder(text));

/** Reads lines as they are appended to a file, again and again. */
class Tail {
  #rest = '';

  constructor(file, take) {
    const descriptor = openSync(file, 'r');
    const bytes = Buffer.alloc(1 << 16);
    const read = () => {
      for (let count; (count = readSync(descriptor, bytes)) > 0; ) {
        const lines = (this.#rest + bytes.toString('latin1', 0, count)).split('\n');
        this.#rest = lines.pop();
        lines.forEach(take);
      }
    };
    const timer = setInterval(read, 10);
    this.close = () => {
      clearInterval(timer);
      read();
      closeSync(descriptor);
    };
  }
}

/** The text of `[[text n= size=]]`, as the stand-in makes it. */
export const longText = (n, size = 0) =>
  Array.from({ length: n }, (_, i) => `${i ? ' ' : ''}w${i}`.padEnd(size, 'x')).join('');

/** A folder with two versions of a program, and a link that turns from one to the other. */
class Versions {
  #next = 0;

  constructor(programs) {
    this.folder = mkdtempSync(path.join(tmpdir(), 'claude-openai-soak-'));
    this.programs = programs(this.folder);
    this.link = path.join(this.folder, 'claude');
    this.turn();
  }

  /** The link points to the other one, and at no time to none. */
  turn() {
    const fresh = path.join(this.folder, 'next');
    symlinkSync(this.programs[this.#next++ % this.programs.length], fresh);
    renameSync(fresh, this.link);
  }

  remove() {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

const spell = (name, options = {}) =>
  `[[${[name, ...Object.entries(options).map(([key, value]) => `${key}=${value}`)].join(' ')}]]`;

/** Fast, and misbehaves by name. */
function standInWorld() {
  // Turns without a wish, such as those after a lost process's tool results, tell who was asked too.
  const behaviour = ['answer who', 'journal_requests', 'slow_rewind every=20 ms=300', ''].join('\n');
  const names = ['claude', 'claude-a', 'claude-b'];
  const versions = new Versions((folder) => {
    for (const name of names) {
      writeFileSync(path.join(folder, `${name}.conf`), behaviour);
      writeFileSync(path.join(folder, `${name}.journal`), '');
    }
    return ['claude-a', 'claude-b'].map((name) => {
      const program = path.join(folder, name);
      copyFileSync(STAND_IN, program);
      chmodSync(program, 0o755);
      return program;
    });
  });
  const world = {
    name: 'stand-in',
    model: 'claude-test',
    options: { cli: versions.link, url: 'http://127.0.0.1:9' },
    clients: 8,
    processes: 12,
    queue: 6,
    timeout: 12,
    queueTimeout: 6,
    bigBody: 2_000_000,
    pause: 60,
    wish: (name, options) =>
      ({
        who: () => spell('who'),
        long: () => spell('text', options),
        tool: () => spell('tool', { names: 'look_up' }),
        error: () => spell('api_error', { retries: 0, ...options }),
        break: () => spell('crash', { after: 1 }),
        left: () => spell('exit_zero', { after: 1 }),
        nonsense: () => spell('malformed', { kind: 'cut_off' }),
        hang: () => spell('hang', { after: 1 }),
      })[name](),
    breaks: ['break', 'left', 'nonsense'],
    tool: 'look_up',
    swap: () => versions.turn(),
    counts: true,
    asked() {},
    takesBack() {},
    close: async () => {
      journals.forEach((one) => one.close());
      versions.remove();
    },
  };
  const take = (line) => {
    const [, pid, what, more] = /^(\d+) (asked|rewind) ?(.*)$/.exec(line) ?? [];
    if (what === 'asked') world.asked({ process: pid, ...JSON.parse(more) });
    if (what === 'rewind') world.takesBack(Number(pid));
  };
  const journals = names.map((name) => new Tail(path.join(versions.folder, `${name}.journal`), take));
  return world;
}

/** The real CLI, two versions of it. */
async function claudeWorld(verdicts) {
  const versions = new Versions(() => ['2.1.330', '2.1.197'].map(claudePath));
  const api = await startMessagesApi();
  const storms = []; // times at which the API answers nobody well
  let seen = 0;
  let weather;

  /** What this call answers. The texts of one conversation alone may have come. */
  const answer = (record) => {
    const last = (record.body.messages ?? []).filter(({ role }) => role === 'user').pop();
    const text =
      typeof last?.content === 'string' ? last.content : (last?.content ?? []).map((one) => one.text ?? '').join('\n');
    if (weather && performance.now() < weather.until) return weather.scenario;
    const [, name = 'who', rest = ''] = [...text.matchAll(/\[\[(\w+)((?: \w+=\S+?)*)\]\]/g)].pop() ?? [];
    const given = Object.fromEntries([...rest.matchAll(/(\w+)=(\S+)/g)].map(([, key, value]) => [key, Number(value)]));
    switch (name) {
      case 'long':
        return {
          name: 'plain',
          text: longText(given.n, given.size),
          deltas: Math.min(given.n, 200),
          delay: given.delay_ms ?? 0,
        };
      case 'tool':
        return { name: 'tool_use' };
      case 'error':
        return { name: 'error', status: given.status, should_retry: false };
      case 'break':
        return { name: 'drop', after: 1, times: 50 };
      case 'retried':
        return { name: 'drop', after: 2, times: 1, text: whoOf(record) };
      case 'event':
        return { name: 'error_event', after: 1, times: 50 };
      case 'hang':
        return { name: 'hang', after: 1 };
      default:
        return { name: 'plain', text: whoOf(record) };
    }
  };
  const whoOf = (record) =>
    JSON.stringify({ messages: record.body.messages.length, secrets: [...secretsIn(record.raw)].sort() });
  /** Who is left in mid-answer is interrupted, and takes back next. */
  const watchLeft = async (record) => {
    const pid = world.pidOf(record.port);
    const left = await api.waitFor((one) => one === record && one.clientLeft, 20_000).catch(() => undefined);
    if (left && pid) world.takesBack(pid);
  };
  api.script((record) => {
    const { system, messages } = record.body;
    const secrets = secretsInOrder(JSON.stringify([system, messages]));
    world.asked({ process: record.headers['x-claude-code-session-id'], secrets });
    const scenario = answer(record);
    if (scenario.name === 'hang') watchLeft(record);
    return scenario;
  });
  /** Records are kept by the loopback for ever; a soak needs none of their bytes once they are answered. */
  const forget = setInterval(() => {
    for (; seen < api.requests.length && (api.requests[seen].done || api.requests[seen].clientLeft); seen++)
      Object.assign(api.requests[seen], { raw: '', body: undefined, text: '', system: [] });
  }, 500);
  const world = {
    name: 'claude',
    model: DEFAULT_MODEL,
    tool: 'look_up',
    options: { cli: versions.link, url: api.url, prepare: furnishHome, env: { CLAUDE_CODE_MAX_RETRIES: '2' } },
    clients: 5,
    processes: 8,
    queue: 4,
    timeout: 30,
    queueTimeout: 15,
    bigBody: 200_000,
    longest: 100, // words: the loopback keeps to max_tokens, and the CLI asks for 32,000
    pause: 150,
    wish: (name, options) => spell(name, options),
    breaks: ['break', 'event', 'retried'],
    swap: () => versions.turn(),
    /** The API fails for a while. */
    storm(ms, scenario) {
      weather = { until: performance.now() + ms, scenario };
      storms.push([performance.now(), weather.until]);
    },
    stormed: (from, to) => storms.some(([begin, end]) => begin < to && from < end),
    asked() {},
    takesBack() {},
    pidOf: () => undefined,
    async close() {
      clearInterval(forget);
      await api.close();
      versions.remove();
    },
  };
  return world;
}

function demoWorld() {
  return {
    name: 'demo',
    model: 'sonnet',
    tool: 'look_up',
    options: { args: ['--demo'], env: { CLAUDE_DEMO_PACE: '0ms', ANTHROPIC_API_KEY: undefined } },
    clients: 8,
    processes: 12,
    queue: 6,
    timeout: 12,
    queueTimeout: 6,
    bigBody: 2_000_000,
    pause: 60,
    says: true, // answers what it is told to, and knows of no words told before
    wish: (name, options = {}) =>
      ({
        who: () => '/say',
        long: () => `/long ${options.n}`,
        tool: () => '/tool look_up {"city":"Oslo"}',
        error: () => `/error ${options.status}`,
        break: () => '/crash',
        hang: () => '/hang',
      })[name](),
    breaks: ['break'],
    close: async () => {},
  };
}

export const startWorld = (name, verdicts) =>
  ({ 'stand-in': standInWorld, claude: claudeWorld, demo: demoWorld })[name](verdicts);
