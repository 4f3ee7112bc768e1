// What the bench reckons with: medians, a process's memory and CPU time, and how figures are told.

import { readFileSync } from 'node:fs';
import { loadavg } from 'node:os';
import { processesMarked } from '../e2e/harness.mjs';

export const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

function quartiles(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return [1, 3].map((quarter) => sorted[Math.floor((sorted.length * quarter) / 4)]);
}

/** With the machine's load: the more there is, the less the figures below it say. */
export const heading = (text) => console.log(`\n${text} (load ${loadavg()[0].toFixed(1)})`);
export const note = (text) => console.log(`      ${text}`);

/** A row of times in ms: the median and, when they are many, the quartiles. */
export function row(name, values) {
  const [low, high] = quartiles(values);
  const spread = values.length > 3 ? `  [${low.toFixed(1)}–${high.toFixed(1)}]` : '';
  note(`${name.padEnd(38)}${median(values).toFixed(1).padStart(9)}${spread}`);
}

let failed = 0;

/** For what has a target, and only for that. */
export function verdict(name, value, unit, holds, target) {
  if (!holds) failed++;
  console.log(`${holds ? 'PASS' : 'FAIL'}  ${name}: ${value.toFixed(value < 10 ? 2 : 1)} ${unit} (target: ${target})`);
}

/** A target that this run cannot judge: it is neither passed nor failed. */
export const notJudged = (name, why) => console.log(`NOT JUDGED  ${name}: ${why}`);

export const failures = () => failed;

/** A table of figures, its columns as wide as their titles. */
export function table(titles) {
  note(titles.join('  '));
  return (...values) =>
    note(
      values
        .map((value, i) => (typeof value === 'number' ? value.toFixed(1) : value).padStart(titles[i].length))
        .join('  '),
    );
}

/** In MiB. RSS counts what is shared with other processes in full, PSS by its share; only root is told the proxy's PSS. */
export function memoryOf(pid) {
  const of = (file, name) =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(readFileSync(`/proc/${pid}/${file}`, 'utf8'))[1]) / 1024;
  const rss = of('status', 'VmRSS');
  try {
    return { rss, pss: of('smaps_rollup', 'Pss') };
  } catch (error) {
    if (error.code !== 'EACCES') throw error;
    return { rss, pss: rss };
  }
}

const ticksOf = (pid) =>
  readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').pop().split(' ').slice(11, 15).map(Number);

/** CPU time that the process has used, in µs. The kernel tells it in steps of 10 ms, so measure long enough. */
export function cpuOf(pid) {
  const [user, system] = ticksOf(pid);
  return (user + system) * 10_000;
}

/** The same of its children that have ended, with theirs. */
export function cpuOfEnded(pid) {
  const [, , user, system] = ticksOf(pid);
  return (user + system) * 10_000;
}

/** CPU time of a proxy and of all its children, those that live and those that have ended, in µs. */
export function cpuOfAll(proxy) {
  const living = new Set([proxy.pid, ...processesMarked(proxy.scratch).map(({ pid }) => pid)]);
  return [...living].reduce((sum, pid) => sum + cpuOf(pid) + cpuOfEnded(pid), 0);
}
