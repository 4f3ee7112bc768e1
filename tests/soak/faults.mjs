// What a soak does to the proxy, and what it looks at meanwhile: from outside, by /proc and /health.

import { spawn } from 'node:child_process';
import { readFileSync, readdirSync, readlinkSync, writeFileSync } from 'node:fs';
import { send, sleep } from '../e2e/harness.mjs';
import { memory, resources } from '../e2e/raw_client.mjs';
import { Tally, randomFrom } from './figures.mjs';

const SLOWEST_HEALTH = 1000; // ms
const SLOWEST_WHEN_CROWDED = 10_000; // where others take the processors, each program waits in its own turn

const read = (file) => {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return ''; // it has ended
  }
};

/** How long this program was ready to run and did not: what a crowded machine takes from every measurement. */
export class Lag {
  total = 0; // ms
  #running = true;
  #recent = []; // [time, total]

  async run() {
    const pause = 20;
    while (this.#running) {
      const began = performance.now();
      await sleep(pause);
      this.total += Math.max(0, performance.now() - began - pause - 5);
      this.#recent.push([began, this.total]);
      while (this.#recent[0][0] < began - 10_000) this.#recent.shift();
    }
  }

  /** In the last ten seconds a fifth was lost: what is measured now tells of the machine. */
  get crowded() {
    return this.total - (this.#recent[0]?.[1] ?? 0) > 2000;
  }

  stop() {
    this.#running = false;
  }
}

const parentOf = (pid) => Number(read(`/proc/${pid}/stat`).split(') ').pop().split(' ')[1]);
const stateOf = (pid) => read(`/proc/${pid}/stat`).split(') ').pop().split(' ')[0];
const isClaude = (pid) => read(`/proc/${pid}/cmdline`).includes('stream-json');

/** The living `claude` processes of the proxy, as the system sees them. */
export function claudesOf(proxy) {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => parentOf(pid) === proxy.pid && isClaude(pid) && !'ZX'.includes(stateOf(pid)))
    .map(Number);
}

/** Which of the processes holds the connection that comes from this port. */
function pidOfPort(pids, port) {
  const hex = port.toString(16).toUpperCase().padStart(4, '0');
  const inode = read('/proc/net/tcp')
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .find(([, local, , state]) => state === '01' && local.endsWith(`:${hex}`))?.[9];
  const holds = (pid) => {
    try {
      const links = readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`));
      return links.includes(`socket:[${inode}]`);
    } catch {
      return false; // it has ended, or closed one meanwhile
    }
  };
  return inode && pids.find(holds);
}

const NOTHING = `require('http').createServer((_, answer) => answer.end('{}')).listen(0, '127.0.0.1', function () {
  console.log(this.address().port);
}); setTimeout(() => process.exit(), 86_400_000)`;

/** A server that does nothing but answer, in a process of its own: as slow as the machine makes everybody. */
async function startYardstick() {
  const child = spawn(process.execPath, ['-e', NOTHING], { stdio: ['ignore', 'pipe', 'inherit'] });
  const port = await new Promise((resolve) => child.stdout.once('data', (text) => resolve(Number(text))));
  return { port, stop: () => child.kill('SIGKILL') };
}

/** Looks at the proxy all the time. */
export class Watch {
  most = 0;
  slowest = 0;
  asked = 0;
  degraded = 0; // of these
  series = []; // {at, memory, ...resources}
  #running = true;

  constructor({ proxy, world, verdicts, lag }) {
    Object.assign(this, { proxy, world, verdicts, lag });
  }

  run() {
    return Promise.all([this.#count(), this.#askHealth(), this.#sample()]);
  }

  stop() {
    this.#running = false;
  }

  async #count() {
    while (this.#running) {
      const seen = claudesOf(this.proxy);
      // One may have ended while the others were looked at: only those that live on were there at once.
      const count =
        seen.length > this.world.processes
          ? seen.filter((pid) => isClaude(pid) && !'ZX'.includes(stateOf(pid))).length
          : seen.length;
      this.most = Math.max(this.most, count);
      if (count > this.world.processes)
        this.verdicts.fail('more processes than --max-processes', `${count} of ${this.world.processes}`);
      await sleep(100);
    }
  }

  async #askHealth() {
    const yardstick = await startYardstick();
    const timed = async (server) => {
      const began = performance.now();
      const exchange = send(server, { method: 'GET', path: '/health' });
      const result = await Promise.race([exchange.done, sleep(10_000)]);
      exchange.abort();
      return { result, took: performance.now() - began };
    };
    while (this.#running && !this.proxy.exit) {
      const [{ result, took }, { took: usual }] = await Promise.all([timed(this.proxy), timed(yardstick)]);
      if (!this.#running || this.proxy.exit) break;
      if (!result && this.lag.crowded) continue; // the machine stood still
      this.slowest = Math.max(this.slowest, took);
      this.asked++;
      const most = this.lag.crowded ? SLOWEST_WHEN_CROWDED : SLOWEST_HEALTH;
      if (took - usual > most)
        this.verdicts.fail(
          '/health was slow',
          `${Math.round(took)} ms of ${most}, where a server that does nothing took ${Math.round(usual)}`,
        );
      const status = result?.json?.status;
      // It may be worried for a while when the process is killed that it asks about the CLI.
      if (status === 'degraded') this.degraded++;
      else if (result?.status !== 200 || status !== 'healthy')
        this.verdicts.fail('/health was not healthy', `${result?.status} ${result?.text} ${result?.error ?? ''}`);
      await sleep(200);
    }
    yardstick.stop();
  }

  async #sample() {
    const began = performance.now();
    while (this.#running && !this.proxy.exit) {
      this.series.push({
        at: (performance.now() - began) / 1000,
        memory: memory(this.proxy),
        ...resources(this.proxy),
      });
      await sleep(2000);
    }
  }
}

/** Does harm at random. */
export class Faults {
  done = new Tally();
  #stopped = new Set();
  #running = true;
  #added = 0;

  /** `settings` is the file that SIGHUP loads anew. */
  constructor({ proxy, world, verdicts, load, seed, settings, keys }) {
    Object.assign(this, { proxy, world, verdicts, load, settings, keys, random: randomFrom(seed ^ 0x5eed) });
    world.takesBack = (pid) => this.#strike(pid);
    world.pidOf = (port) => pidOfPort(claudesOf(proxy), port);
  }

  /** A process begins to take back. */
  #strike(pid) {
    const harm = this.random.weighed({ kill: 3, pause: 3, freeze: 1, nothing: 3 });
    if (!this.#running || harm === 'nothing') return;
    this[harm](pid);
    this.done.add('in taking back');
  }

  static settingsOf(keys, more = '') {
    return `API_KEYS=${keys.join(',')}\n${more}`;
  }

  async run() {
    const harm = { kill: 30, pause: 15, freeze: 2, wither: 8, reload: 8, badReload: 8, nothing: 20 };
    if (this.world.swap) harm.swap = 8;
    if (this.world.storm) harm.storm = 6;
    while (this.#running) {
      await sleep(this.random.between(150, 1200));
      const name = this.random.weighed(harm);
      try {
        if (this.#running && !this.proxy.exit) await this[name]();
      } catch (error) {
        this.verdicts.fail('the soak itself failed', `${name}: ${error.stack}`);
      }
    }
    this.#stopped.forEach((pid) => this.#signal(pid, 'SIGCONT'));
  }

  stop() {
    this.#running = false;
  }

  #signal(pid, signal) {
    if (parentOf(pid) !== this.proxy.pid) return false; // it ended by itself
    try {
      process.kill(pid, signal);
      return true;
    } catch {
      return false;
    }
  }

  #victim() {
    const living = claudesOf(this.proxy);
    return living.length ? this.random.of(living) : undefined;
  }

  nothing() {}

  kill(pid = this.#victim()) {
    if (pid && this.#signal(pid, 'SIGKILL')) this.done.add('kill');
  }

  /** Silent for ever. */
  freeze(pid = this.#victim()) {
    if (pid && this.#signal(pid, 'SIGSTOP')) this.done.add('freeze');
  }

  /** Silent for a while, and then gone: in the middle of what it was told meanwhile. */
  wither() {
    const pid = this.#victim();
    if (!pid || !this.#signal(pid, 'SIGSTOP')) return;
    this.done.add('stop');
    setTimeout(() => this.kill(pid), this.random.between(200, 2500));
  }

  swap() {
    this.world.swap();
    this.done.add('swap');
  }

  storm() {
    const status = this.random.of([429, 500, 529]);
    this.world.storm(
      this.random.between(300, 1500),
      this.random.of([
        { name: 'error', status },
        { name: 'hang', after: 0 },
        { name: 'drop', after: 1, times: 50 },
      ]),
    );
    this.done.add('storm');
  }

  /** SIGHUP, and what the log says of it. */
  async #hangUp() {
    const from = this.proxy.output.length;
    this.proxy.kill('SIGHUP');
    for (let waited = 0; waited < this.load.deadline; waited += 20) {
      const told = /loaded anew: keys|settings stay as they were/.exec(this.proxy.output.slice(from))?.[0];
      if (told) return told;
      await sleep(20);
    }
    return 'nothing';
  }

  async #answers(key) {
    const { status } = await send(this.proxy, { method: 'GET', path: '/version', headers: {} }).done;
    if (status !== 200) return status;
    return (await send(this.proxy, { method: 'GET', path: '/v1/models', headers: { 'x-api-key': key } }).done).status;
  }

  /** A key comes with good settings and goes with the next. */
  async reload() {
    const [before, now] = [`passing-key-${this.#added}`, `passing-key-${++this.#added}`];
    writeFileSync(this.settings, Faults.settingsOf([...this.keys, now]));
    const told = await this.#hangUp();
    const statuses = [await this.#answers(now), await this.#answers(before)];
    if (!/anew/.test(told) || String(statuses) !== '200,401')
      this.verdicts.fail(
        'a reload did not take',
        `${told}; the new key got ${statuses[0]}, the old one ${statuses[1]}`,
      );
    this.done.add('reload');
  }

  async badReload() {
    writeFileSync(
      this.settings,
      Faults.settingsOf(
        ['bad'],
        this.random.of(['LOG_LEVEL=loud\n', 'RATE_LIMIT_CHAT_PER_MINUTE=many\n', 'CLAUDE_BUDGET=much\n']),
      ),
    );
    const told = await this.#hangUp();
    const statuses = [await this.#answers(this.keys[0]), await this.#answers('bad')];
    writeFileSync(this.settings, Faults.settingsOf(this.keys));
    if (!/stay/.test(told) || String(statuses) !== '200,401')
      this.verdicts.fail('bad settings were taken', `${told}; a good key got ${statuses[0]}, a bad one ${statuses[1]}`);
    this.done.add('bad reload');
  }

  /** Silent, and awake again. */
  pause(pid = this.#victim()) {
    if (!pid || !this.#signal(pid, 'SIGSTOP')) return;
    this.#stopped.add(pid);
    this.done.add('stop');
    setTimeout(
      () => {
        this.#stopped.delete(pid);
        this.#signal(pid, 'SIGCONT');
      },
      this.random.between(100, 3000),
    );
  }
}
