// What the bench reckons with: medians, a process's memory and CPU time, and how figures are told.

import { readFileSync } from 'node:fs';

export const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

function quartiles(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return [1, 3].map((quarter) => sorted[Math.floor((sorted.length * quarter) / 4)]);
}

export const heading = (text) => console.log(`\n${text}`);
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
  console.log(`${holds ? 'PASS' : 'FAIL'}  ${name}: ${value.toFixed(1)} ${unit} (target: ${target})`);
}

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

/** CPU time that the process has used, in µs. The kernel tells it in steps of 10 ms, so measure long enough. */
export function cpuOf(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').pop().split(' ');
  return (Number(fields[11]) + Number(fields[12])) * 10_000;
}
