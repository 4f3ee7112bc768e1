// A mixed load with faults, for a given time: make soak, or
//
//   SOAK_TIME=300 SOAK_SEED=1 SOAK_CLI=stand-in|claude|demo node soak.mjs
//
// Without SOAK_CLI half of the time goes to the stand-in, for volume, and half to the real CLI over a loopback Messages API.
// $PROXY and $STAND_IN name the programs; else those of build/. SOAK_LOG=FILE keeps what the proxies log. The last line counts: "N passed, N failed".

import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { send, sleep, startProxy } from '../e2e/harness.mjs';
import { parseMetrics } from '../e2e/operate.mjs';
import { memory, resources, restingResources } from '../e2e/raw_client.mjs';
import { Faults, Lag, Watch, claudesOf } from './faults.mjs';
import { Tally, Verdicts } from './figures.mjs';
import { Load } from './load.mjs';
import { DIALECTS } from './talk.mjs';
import { startWorld } from './worlds.mjs';

const KEYS = ['soak-key-of-one', 'soak-key-of-two'];
const BODY_LIMIT = 4 << 20;
const SPARES = 2;
const IDLE = 4; // s
const KEPT = 20; // s that a session or a response is kept
const MOST_GROWTH = 20; // MiB of resident memory over the second half
const WARM = 60; // s; a shorter run tells nothing of growth
const CROWDED = 0.2; // of the time lost to others
const MOST_LEFT = 64; // MiB above the beginning, when all is over

const heading = (text) => console.log(`\n${text}`);

/** The sum of the samples of a figure that have these labels. */
const figure = (families, name, labels = {}) =>
  (families.get(`claude_openai_${name}`)?.samples ?? [])
    .filter((sample) => Object.entries(labels).every(([key, value]) => sample.labels[key] === value))
    .reduce((sum, { value }) => sum + value, 0);

async function scrape(proxy) {
  const { text } = await send(proxy, { method: 'GET', path: '/metrics', headers: { 'x-api-key': KEYS[0] } }).done;
  return parseMetrics(text);
}

/** What is still more than at the beginning, when it has had its time. */
async function leftOver(proxy, before) {
  const end = performance.now() + (KEPT + 30) * 1000;
  const ask = async (where, key) =>
    (await send(proxy, { method: 'GET', path: where, headers: { 'x-api-key': key } }).done).json;
  for (;;) {
    const sessions = (await Promise.all(KEYS.map((key) => ask('/v1/sessions', key)))).map(({ total }) => total);
    const health = await ask('/health', KEYS[0]);
    await sleep(500);
    const now = {
      ...resources(proxy),
      sessions: sessions[0] + sessions[1],
      waiting: health.queued,
      unhealthy: health.status === 'healthy' ? 0 : 1,
    };
    const more = Object.keys(now).filter((name) => now[name] > (before[name] ?? 0));
    if (!more.length || performance.now() > end) return { now, more };
  }
}

/** The counters of /metrics beside what the clients have counted. */
function compareCounts(families, load, verdicts) {
  for (const { path } of Object.values(DIALECTS)) {
    const route = path.replace('/v1', '');
    const [total, sent, unsure] = [
      figure(families, 'requests_total', { route }),
      load.sent.of(path),
      load.unsure.of(path),
    ];
    if (total > sent || total < sent - unsure)
      verdicts.fail(
        'requests_total is not what was sent',
        `${route}: ${total}, sent ${sent}, of which unsure ${unsure}`,
      );
    for (const status of ['200', '400', '401', '413', '429', '500', '502', '503', '504', '529']) {
      const counted = figure(families, 'requests_total', { route, status });
      const got = load.got.of(`${path} ${status}`);
      if (Math.abs(counted - got) > unsure)
        verdicts.fail(
          'requests_total is not what was got',
          `${route} ${status}: ${counted}, got ${got}, unsure ${unsure}`,
        );
    }
  }
  const kinds = { input: ['input', 'cache_read', 'cache_write'], output: ['output'] };
  Object.values(kinds).forEach((names, i) => {
    const counted = names.reduce((sum, kind) => sum + figure(families, 'tokens_total', { kind }), 0);
    // A turn is 11 in and 7 out; tools and retries take more. What broke off is charged by its length.
    const most = load.tokens[i] + load.partial * 4 * 11 + load.partialText / 3;
    if (counted < load.tokens[i] || counted > most)
      verdicts.fail(
        'tokens_total is not what was told',
        `${Object.keys(kinds)[i]}: ${counted}, told ${load.tokens[i]}, at most ${most}`,
      );
  });
  const answering = figure(families, 'requests_in_flight');
  if (answering !== 1)
    verdicts.fail('a gauge is not back', `${answering} requests are being answered, the one that asks among them`);
}

/** Every failure that no client asked for has a fault of ours behind it. */
function compareFaults(load, faults, figures, verdicts, crowded) {
  const { struck } = load;
  const [crashes, kills] = [struck.of('crash'), faults.done.of('kill')];
  const stops = faults.done.of('stop') + faults.done.of('freeze');
  if (crashes > kills + stops)
    verdicts.fail('more answers were lost than processes were killed', `${crashes} of ${kills} kills, ${stops} stops`);
  if (struck.of('timeout') > stops && !crowded)
    verdicts.fail('more timeouts than processes were stopped', `${struck.of('timeout')} of ${stops}`);
  if (figures.rewound < load.outcomes.of('right') / 20) verdicts.fail('hardly anything was taken back', `for ${figures.rewound} turns`);
  if (load.judged < load.outcomes.of('right') / 2 && !load.world.says)
    verdicts.fail('too few requests were judged', `${load.judged}`);
  const whole = load.outcomes.of('right');
  const lost = struck.sum();
  if (whole < 20 || lost > whole) verdicts.fail('too few right answers', `${whole}, and ${lost} without`);
}

/** From the third quarter to the last. What big bodies take for a moment is no growth, so the lower values count. */
function growth(series) {
  const values = series.map((one) => one.memory);
  const at = (share) => Math.floor(values.length * share);
  const low = (some) => some.sort((a, b) => a - b)[Math.floor(some.length / 5)];
  return low(values.slice(at(0.75))) - low(values.slice(at(0.5), at(0.75)));
}

function tell({ world, load, faults, watch, families, before, left, seconds, lag }) {
  heading(`[${world.name}] requests by dialect, kind and outcome`);
  [...load.kinds].sort().forEach(([name, count]) => console.log(`  ${String(count).padStart(6)}  ${name}`));
  heading(`[${world.name}] outcomes`);
  [...load.outcomes]
    .sort((a, b) => b[1] - a[1])
    .forEach(([name, count]) => console.log(`  ${String(count).padStart(6)}  ${name}`));
  heading(`[${world.name}] ms to the first token                 count     p50     p90     p99`);
  load.firsts.lines().forEach((line) => console.log(`  ${line}`));
  heading(`[${world.name}] ms to the end                         count     p50     p90     p99`);
  load.totals.lines().forEach((line) => console.log(`  ${line}`));
  const turns = Object.fromEntries(
    ['continued', 'rewound', 'spare', 'started'].map((process) => [process, figure(families, 'turns_total', { process })]),
  );
  const all = Object.values(turns).reduce((sum, count) => sum + count, 0);
  heading(`[${world.name}] ${seconds} s`);
  console.log(`  faults: ${[...faults.done].map(([name, count]) => `${count} ${name}`).join(', ')}`);
  console.log(`  lost to them: ${[...load.struck].map(([name, count]) => `${count} ${name}`).join(', ') || 'nothing'}`);
  console.log(
    `  processes: at most ${watch.most} of ${world.processes} at once, ${figure(families, 'processes_started_total')} started`,
  );
  console.log(
    `  turns: ${JSON.stringify(turns)}, ${((100 * (turns.continued + turns.rewound)) / (all || 1)).toFixed(0)} % by a process that had served`,
  );
  const [back, told] = ['messages_rewound_total', 'messages_replayed_total'].map((one) => figure(families, one));
  console.log(`  messages: ${back} taken back, ${told} told; ${load.judged} requests to the model judged`);
  console.log(
    `  rejected: ${JSON.stringify(Object.fromEntries((families.get('claude_openai_rejected_total')?.samples ?? []).map(({ labels, value }) => [labels.reason, value])))}`,
  );
  console.log(
    `  /health: ${watch.asked} times, degraded ${watch.degraded}, the slowest ${watch.slowest.toFixed(0)} ms; this program lost ${(lag.total / 1000).toFixed(1)} s to others`,
  );
  console.log(`  before: ${JSON.stringify(before)}; after: ${JSON.stringify(left.now)}`);
  const step = Math.max(1, Math.floor(watch.series.length / 20));
  console.log(
    `  resident MiB: ${watch.series
      .filter((_, i) => i % step === 0)
      .map((one) => one.memory.toFixed(0))
      .join(
        ' ',
      )}; growth over the second half ${growth(watch.series).toFixed(1)}, at rest ${left.memory.toFixed(0)} (${before.memory.toFixed(0)} before)`,
  );
}

async function soak(name, seconds, seed) {
  const verdicts = new Verdicts();
  const world = await startWorld(name, verdicts);
  const scratch = mkdtempSync(path.join(tmpdir(), 'claude-openai-soak-'));
  const settings = path.join(scratch, 'settings.env');
  writeFileSync(settings, Faults.settingsOf(KEYS));
  const { options } = world;
  const proxy = await startProxy({
    ...options,
    ms: 30_000,
    args: [
      ...(options.args ?? []),
      ...[
        '--env-file',
        settings,
        '--spares',
        String(SPARES),
        '--max-processes',
        String(world.processes),
        '--model',
        world.model,
      ],
      ...[
        '--max-queue',
        String(world.queue),
        '--queue-timeout',
        `${world.queueTimeout}s`,
        '--timeout',
        `${world.timeout}s`,
      ],
      ...['--idle-timeout', `${IDLE}s`, '--session-ttl', `${KEPT}s`, `--max-request-size=${BODY_LIMIT}`],
    ],
  });
  const lag = new Lag();
  const load = Object.assign(new Load({ proxy, world, verdicts, keys: KEYS, seed, lag }), { bodyLimit: BODY_LIMIT });
  const faults = new Faults({ proxy, world, verdicts, load, seed, settings, keys: KEYS });
  const watch = new Watch({ proxy, world, verdicts, lag });
  await sleep(3000); // spares, the look at the CLI
  const before = { ...(await restingResources(proxy, 30_000)), memory: memory(proxy) };
  console.log(
    `\n[${name}] ${load.clients.length} clients for ${seconds} s, SOAK_SEED=${seed}; at rest ${JSON.stringify(before)}`,
  );

  const idle = [lag.run(), watch.run()];
  const busy = [load.run(), faults.run()];
  await Promise.race([sleep(seconds * 1000), proxy.exited]);
  load.stop();
  faults.stop();
  const ended = await Promise.race([Promise.all(busy), sleep(load.deadline * 3)]);
  if (!ended) verdicts.fail('clients did not end', `within ${(load.deadline * 3) / 1000} s`);
  watch.stop();
  const left = { now: {}, more: [], memory: 0 };
  let families = new Map();
  if (proxy.exit) verdicts.fail('the proxy ended', `${JSON.stringify(proxy.exit)} ${proxy.output.slice(-1000)}`);
  else {
    const { memory: _, ...counts } = before;
    Object.assign(left, await leftOver(proxy, counts), { memory: memory(proxy) });
    if (left.more.length)
      verdicts.fail(
        'something is left',
        `${left.more}: before ${JSON.stringify(before)}, now ${JSON.stringify(left.now)}; ${claudesOf(proxy)}`,
      );
    if (left.memory - before.memory > MOST_LEFT)
      verdicts.fail('memory is left', `${(left.memory - before.memory).toFixed(0)} MiB`);
    const grown = growth(watch.series);
    if (grown > MOST_GROWTH && seconds >= WARM)
      verdicts.fail('memory grows', `${grown.toFixed(1)} MiB over the second half`);
    families = await scrape(proxy);
    compareCounts(families, load, verdicts);
    const crowded = lag.total > seconds * 1000 * CROWDED;
    if (crowded)
      console.log(
        `the machine was crowded: this program lost ${(lag.total / 1000).toFixed(0)} s, so timeouts prove nothing`,
      );
    const rewound = figure(families, 'turns_total', { process: 'rewound' });
    compareFaults(load, faults, { rewound }, verdicts, crowded);
  }
  lag.stop();
  await Promise.all(idle);
  const { faults: unclean } = await proxy.stop();
  if (unclean.length) verdicts.fail('the stop was not clean', unclean.join('; '));
  await world.close();
  rmSync(scratch, { recursive: true, force: true });

  tell({ world, load, faults, watch, families, before, left, seconds, lag });
  if (process.env.SOAK_LOG) appendFileSync(process.env.SOAK_LOG, proxy.output);
  const logged = new Tally();
  for (const [, what] of proxy.output.matchAll(/^\S+Z error ([^\n]{0,60})/gm)) logged.add(what.replaceAll(/\d+/g, 'N'));
  console.log(`  errors logged: ${JSON.stringify(Object.fromEntries(logged))}`);
  heading(`[${name}] verdicts`);
  return verdicts;
}

/** What is looked at, and the faults that speak against it. */
const CHECKS = {
  'every request ends in time': ['a request did not end in time', 'clients did not end', 'a connection broke'],
  'every answer is right, and an answer of its dialect': [
    'a wrong answer',
    'an answer that is not of the dialect',
    'an error was told as an answer',
  ],
  'every error is one of the dialect, and has a cause': [
    'an error that is not of the dialect',
    'an internal error',
    'an error that nothing explains',
    'more answers were lost than processes were killed',
    'more timeouts than processes were stopped',
    'too few right answers',
  ],
  'no word reaches another conversation': [
    'a word of another conversation',
    'a word in a list',
    'a request that nobody made',
    'a foreign word in a request',
    'a word is missing in a request',
    'words in another order',
    'too few requests were judged',
    'a process served two keys',
  ],
  'processes take back, and serve others': ['hardly anything was taken back'],
  'never more processes than allowed': ['more processes than --max-processes'],
  '/health answers within a second': ['/health was slow', '/health was not healthy'],
  'garbage, mistakes and wrong keys are refused': [
    'garbage was answered',
    'a mistake was not told',
    'a wrong key was taken',
    'a body over the limit was taken',
    'a list that is none',
  ],
  'reloads take good settings and no bad ones': ['a reload did not take', 'bad settings were taken'],
  'nothing is left behind': ['something is left', 'memory is left', 'a gauge is not back', 'the stop was not clean'],
  'memory does not grow': ['memory grows'],
  'the figures are what the clients counted': [
    'requests_total is not what was sent',
    'requests_total is not what was got',
    'tokens_total is not what was told',
    'figures that Prometheus would refuse',
  ],
  'the proxy and the soak live on': ['the proxy ended', 'the soak itself failed'],
};

const seconds = Number(process.env.SOAK_TIME ?? 300);
const seed = Number(process.env.SOAK_SEED ?? Date.now() % 2 ** 31);
const worlds = process.env.SOAK_CLI ? [process.env.SOAK_CLI] : ['stand-in', 'claude'];
if (!(seconds > 0) || worlds.some((name) => !['stand-in', 'claude', 'demo'].includes(name))) {
  console.error('SOAK_TIME is a number of seconds, SOAK_CLI one of stand-in, claude, demo');
  process.exit(2);
}
process.on('uncaughtException', (error) => {
  console.log(`FAULT the soak itself failed: ${error.stack}`);
  crashed++;
});
let crashed = 0;
const total = { passed: 0, failed: 0 };
for (const name of worlds) {
  const verdicts = await soak(name, seconds / worlds.length, seed);
  for (const [what, kinds] of Object.entries(CHECKS))
    total[verdicts.judge(`[${name}] ${what}`, kinds) ? 'passed' : 'failed']++;
  const known = Object.values(CHECKS).flat();
  for (const kind of verdicts.kinds) {
    console.log(`  fault: ${kind}`);
    if (!known.some((one) => kind.startsWith(one))) total.failed++;
  }
}
total.failed += crashed;
console.log(`${total.passed} passed, ${total.failed} failed`);
process.exit(total.failed || !total.passed ? 1 : 0);
