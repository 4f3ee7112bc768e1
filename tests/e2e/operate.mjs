// What the tests of the proxy's operation share: the stand-in for the CLI, terminals, windows of a minute, figures, log lines.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, copyFileSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { eventually, sleep } from './harness.mjs';

const HERE = path.dirname(fileURLToPath(import.meta.url));
export const STAND_IN = process.env.STAND_IN ?? path.join(HERE, '..', '..', 'build', 'tests', 'stand-in');

/** A folder of the test's own. */
export function scratchFolder(t) {
  const folder = mkdtempSync(path.join(tmpdir(), 'operate-'));
  t.defer(async () => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** A copy of the stand-in of the CLI, which starts at once; `conf` are lines for it, see `stand-in --help`. */
export function standIn(t, conf = '') {
  const file = path.join(scratchFolder(t), 'claude');
  assert.ok(existsSync(STAND_IN), 'the stand-in is built: make stand-in');
  copyFileSync(STAND_IN, file);
  chmodSync(file, 0o755);
  if (conf) writeFileSync(`${file}.conf`, `${conf}\n`);
  return file;
}

/** A path where no CLI is, for what needs none. */
export const NO_CLI = '/nonexistent/claude';

/** A proxy of the test's own, which it asks from now on. A process is started when one is needed, and not before. */
export async function startOwn(t, { args = [], ...rest } = {}) {
  const spares = args.includes('--spares') ? [] : ['--spares', '0'];
  t.proxy = await t.start({ cli: NO_CLI, ...rest, args: [...spares, ...args] });
  return t.proxy;
}

/** The same over the stand-in; `conf` are lines for it. */
export const startLight = (t, { conf, ...rest } = {}) => startOwn(t, { cli: standIn(t, conf), ...rest });

/** What a store's file answers to a statement, asked by another program while no proxy has it; a change is kept. */
export function queryStore(file, statement) {
  const script = 'import json, sqlite3, sys; print(json.dumps(sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2]).fetchall()))';
  return JSON.parse(execFileSync('python3', ['-c', script, file, statement], { encoding: 'utf8' }));
}

export const ask = (text, more = {}) => ({ messages: [{ role: 'user', content: text }], ...more });

/** Until at least `seconds` are left of the rate limits' minute, which every answer that is limited tells. */
export async function waitForWindow(probe, seconds = 12) {
  const left = Number.parseInt((await probe()).headers['x-ratelimit-reset-requests'], 10);
  assert.ok(left > 0 && left <= 60, `${left} s of the minute are left`);
  if (left < seconds) await sleep(left * 1000 + 300);
}

// ---- figures -------------------------------------------------------------------------------------

const NAME = /^[a-zA-Z_:][a-zA-Z0-9_:]*$/;

function parseLabels(text, line) {
  const labels = {};
  let rest = text;
  while (rest) {
    const found = /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)/.exec(rest);
    assert.ok(found, `labels of: ${line}`);
    assert.ok(!(found[1] in labels), `a label twice: ${line}`);
    labels[found[1]] = found[2].replace(/\\(.)/g, (_, c) => (c === 'n' ? '\n' : c));
    rest = rest.slice(found[0].length);
  }
  return labels;
}

function parseSample(line) {
  const found = /^([^\s{]+)(?:\{(.*)\})? (\S+)$/.exec(line);
  assert.ok(found, `a line of metrics: ${line}`);
  const [, name, labels = '', number] = found;
  assert.match(name, NAME);
  const value = number === '+Inf' ? Infinity : Number(number);
  assert.ok(number !== '' && !Number.isNaN(value), `a number: ${line}`);
  return { name, labels: parseLabels(labels, line), value };
}

function checkHistogram(name, samples) {
  const series = new Map();
  for (const { name: full, labels, value } of samples) {
    const { le, ...own } = labels;
    const key = JSON.stringify(own);
    if (!series.has(key)) series.set(key, { buckets: [] });
    const one = series.get(key);
    if (full === `${name}_bucket`) one.buckets.push([le === '+Inf' ? Infinity : Number(le), value]);
    else one[full.slice(name.length + 1)] = value;
  }
  for (const [key, { buckets, sum, count }] of series) {
    const what = `${name}${key}`;
    assert.ok(buckets.length > 1 && sum >= 0 && count >= 0, `${what}: buckets, sum and count`);
    for (let i = 1; i < buckets.length; i++) {
      assert.ok(buckets[i][0] > buckets[i - 1][0], `${what}: bounds rise`);
      assert.ok(buckets[i][1] >= buckets[i - 1][1], `${what}: buckets are cumulative`);
    }
    assert.deepEqual(buckets.at(-1), [Infinity, count], `${what}: +Inf is the count`);
    if (count === 0) assert.equal(sum, 0, what);
  }
}

/** The families of an exposition (text 0.0.4), parsed without mercy: {type, samples} by name. */
export function parseMetrics(text) {
  const families = new Map();
  const seen = new Set();
  let current;
  assert.ok(text.endsWith('\n'), 'the last line ends');
  for (const line of text.slice(0, -1).split('\n')) {
    const told = /^# (HELP|TYPE) (\S+) (.+)$/.exec(line);
    if (told?.[1] === 'HELP') {
      assert.ok(!families.has(told[2]), `${told[2]} once`);
      current = { name: told[2], help: told[3], samples: [] };
      families.set(told[2], current);
    } else if (told) {
      assert.equal(told[2], current?.name, 'TYPE follows its HELP');
      assert.ok(!current.type && !current.samples.length, 'one TYPE, before the samples');
      assert.match(told[3], /^(counter|gauge|histogram)$/);
      current.type = told[3];
    } else {
      const sample = parseSample(line);
      const endings = current?.type === 'histogram' ? ['_bucket', '_sum', '_count'] : [''];
      assert.ok(
        current?.type && endings.some((end) => sample.name === current.name + end),
        `a sample under its TYPE: ${line}`,
      );
      const key = JSON.stringify([sample.name, Object.entries(sample.labels).sort()]);
      assert.ok(!seen.has(key), `a sample once: ${line}`);
      seen.add(key);
      current.samples.push(sample);
    }
  }
  for (const { name, type, samples } of families.values()) {
    assert.match(name, /^claude_openai_[a-z_]+$/);
    if (type === 'histogram') checkHistogram(name, samples);
    if (type === 'counter') assert.match(name, /_total$/);
    if (type === 'counter') samples.forEach(({ value }) => assert.ok(value >= 0, name));
  }
  return families;
}

/** Reads the figures: `figures('requests_total', {status: '200'})` sums the samples that have these labels. */
export async function scrape(t, options) {
  const result = await t.get('/metrics', options);
  assert.equal(result.status, 200, result.text);
  assert.match(result.headers['content-type'], /^text\/plain; version=0\.0\.4/);
  const families = parseMetrics(result.text);
  const figures = (name, labels = {}) => {
    const full = `claude_openai_${name}`;
    const family = families.get(full) ?? families.get(full.replace(/_(bucket|sum|count)$/, ''));
    assert.ok(family, `there is ${full}`);
    return family.samples
      .filter((sample) => sample.name === full)
      .filter((sample) => Object.entries(labels).every(([key, value]) => sample.labels[key] === value))
      .reduce((sum, { value }) => sum + value, 0);
  };
  return Object.assign(figures, { families });
}

// ---- the log -------------------------------------------------------------------------------------

/** The lines that the proxy has logged, without what it prints at its start. */
export const logLines = (proxy) =>
  proxy.output.split('\n').filter((line) => /^\d{4}-\d\d-\d\dT[\d:.]+Z (debug|info|warning|error) /.test(line));

export const logObjects = (proxy) =>
  proxy.output
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line));

/** SIGHUP, and the word of the log that it was seen. */
export async function reload(proxy) {
  const before = proxy.output.length;
  proxy.kill('SIGHUP');
  return eventually('the reload is told', () => /loaded anew: keys|settings stay as they were: [^\n]*/.exec(proxy.output.slice(before))?.[0]);
}
