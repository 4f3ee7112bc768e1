// A redis-server of a test's own: on a free port, or at a socket, with a password, its data in a folder of the test's.

import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import path from 'node:path';
import { eventually, freePort } from './harness.mjs';
import { scratchFolder } from './operate.mjs';

/** Why the tests with Redis cannot run here; undefined where they can. */
export const noRedis = spawnSync('redis-server', ['--version']).error ? 'there is no redis-server' : undefined;

export const PASSWORD = 'open@sesame/1';

/** Started; `url` is for --store. What was written outlives a kill. */
export class Redis {
  constructor(folder, port) {
    this.folder = folder;
    this.port = port;
    this.url = `redis://:${encodeURIComponent(PASSWORD)}@127.0.0.1:${port}/2`;
    this.socket = path.join(folder, 'redis.sock');
  }

  static async start(t) {
    const redis = new Redis(scratchFolder(t), await freePort());
    t.defer(async () => redis.stop('SIGKILL'));
    return redis.start();
  }

  async start() {
    const settings = { port: this.port, bind: '127.0.0.1', dir: this.folder, unixsocket: this.socket, requirepass: PASSWORD, appendonly: 'yes', save: '' };
    const words = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)]);
    this.child = spawn('redis-server', words, { stdio: 'ignore' });
    this.ended = new Promise((resolve) => {
      this.child.on('exit', resolve);
    });
    await eventually('redis-server answers', () => this.answers());
    return this;
  }

  answers() {
    try {
      return this.cli('PING') === 'PONG';
    } catch {
      return false;
    }
  }

  kill(signal) {
    this.child.kill(signal);
  }

  async stop(signal = 'SIGTERM') {
    this.kill('SIGCONT');
    this.kill(signal);
    await this.ended;
  }

  /** What a command answers, without the last line's end. */
  cli(...words) {
    const login = ['-p', String(this.port), '-n', '2', '--no-auth-warning', '-a', PASSWORD];
    return execFileSync('redis-cli', [...login, ...words], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).replace(/\n$/, '');
  }

  keys(pattern) {
    return this.cli('KEYS', `claude-openai:v1:${pattern}`).split('\n').filter(Boolean);
  }
}

/** The key of a client's name that is in the store: without a client key it is empty. */
export const keyOf = (what, id) => `claude-openai:v1:${what}:session::${id}`;

export function assertAnswered(result) {
  assert.equal(result.status, 200, result.text);
  return result;
}
