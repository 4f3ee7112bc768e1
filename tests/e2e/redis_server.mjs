// A redis-server of a test's own: on a free port, or at a socket, with a password, its data in a folder of the test's.

import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { eventually, freePort } from './harness.mjs';
import { scratchFolder } from './operate.mjs';

/** Why the tests with Redis cannot run here; undefined where they can. */
export const noRedis = spawnSync('redis-server', ['--version']).error ? 'there is no redis-server' : undefined;

export const PASSWORD = 'open@sesame/1';

/** Started; `url` is for --store. What was written outlives a kill. */
export class Redis {
  /** `tls`: a pair {certificate, key} in PEM files, and the issuer's certificate `ca`. `more` are further settings. */
  constructor(folder, port, { tls, ...more } = {}) {
    this.folder = folder;
    this.port = port;
    this.tls = tls;
    this.more = more;
    this.url = this.urlAt(port);
    this.socket = path.join(folder, 'redis.sock');
  }

  urlAt(port, host = '127.0.0.1') {
    return `${this.tls ? 'rediss' : 'redis'}://:${encodeURIComponent(PASSWORD)}@${host}:${port}/2`;
  }

  static async start(t, options) {
    const redis = new Redis(scratchFolder(t), await freePort(), options);
    t.defer(async () => redis.stop('SIGKILL'));
    return redis.start();
  }

  async start() {
    const { certificate, key, ca } = this.tls ?? {};
    const tls = { port: 0, 'tls-port': this.port, 'tls-cert-file': certificate, 'tls-key-file': key, 'tls-ca-cert-file': ca, 'tls-auth-clients': 'no' };
    const settings = {
      bind: '127.0.0.1', dir: this.folder, unixsocket: this.socket, requirepass: PASSWORD, appendonly: 'yes', save: '',
      ...(this.tls ? tls : { port: this.port }), ...this.more,
    };
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
    const login = ['-s', this.socket, '-n', '2', '--no-auth-warning', '-a', PASSWORD];
    return execFileSync('redis-cli', [...login, ...words], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).replace(/\n$/, '');
  }

  keys(pattern) {
    return this.cli('KEYS', `claude-openai:v1:${pattern}`).split('\n').filter(Boolean);
  }
}

/**
 * An issuer of certificates in a folder of the test's own: its own one is the file `ca`; `issue(NAME)` makes a pair for a name such as
 * `DNS:localhost`, valid for `days`.
 */
export function makeIssuer(t) {
  const folder = scratchFolder(t);
  const file = (name) => path.join(folder, name);
  const openssl = (...words) => execFileSync('openssl', words, { stdio: 'pipe' });
  const request = (name, ...more) =>
    openssl('req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-subj', `/CN=${name}`, '-keyout', file(`${name}.key`), ...more);
  const ca = file('ca.pem');
  request('ca', '-x509', '-days', '2', '-out', ca);
  let count = 0;
  const issue = (subject, days = 2) => {
    const name = `pair-${++count}`;
    request(name, '-out', file(`${name}.csr`));
    writeFileSync(file(`${name}.ext`), `subjectAltName=${subject}\n`);
    openssl('x509', '-req', '-in', file(`${name}.csr`), '-CA', ca, '-CAkey', file('ca.key'), '-CAcreateserial', '-days', String(days),
      '-extfile', file(`${name}.ext`), '-out', file(`${name}.pem`));
    return { certificate: file(`${name}.pem`), key: file(`${name}.key`), ca };
  };
  return { ca, issue };
}

/** The key of a client's name that is in the store: without a client key it is empty. */
export const keyOf = (what, id) => `claude-openai:v1:${what}:session::${id}`;

export function assertAnswered(result) {
  assert.equal(result.status, 200, result.text);
  return result;
}
