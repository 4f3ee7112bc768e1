// What the proxy itself costs as sessions and streams become many: its own memory and CPU time, against the stand-in
// for `claude`, which costs next to nothing.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { eventually, send, sleep, startProxy } from '../e2e/harness.mjs';
import { cpuOf, heading, median, memoryOf, notJudged, note, row, table, verdict } from './figures.mjs';
import { health } from './ways.mjs';

const WINDOW_MS = 3000;
const times = (count, make) => Array.from({ length: count }, (_, i) => make(i));
const sum = (values) => values.reduce((all, one) => all + one, 0);

/** Runs the body with a proxy of that many processes. No spares: what starts is part of what is measured. */
async function withProcesses(standIn, most, body) {
  const args = ['--spares', '0', '--max-processes', String(most), '--log-level', 'warning'];
  const proxy = await startProxy({ cli: standIn, args });
  try {
    await proxy.inspected();
    await body(proxy);
  } finally {
    await proxy.stop();
  }
}

/** The stand-in answers what the text between double brackets tells it to. */
async function ask(proxy, session, turn) {
  const text = `[[text n=3]] turn ${turn}. ${'Some words. '.repeat(80)}`;
  const body = { session_id: session, messages: [{ role: 'user', content: text }] };
  const result = await send(proxy, { body }).done;
  assert.equal(result.status, 200, result.text);
  return { took: result.at - result.sentAt, bytes: text.length + result.json.choices[0].message.content.length };
}

/** The same work at any time: short chats that are deleted at their end. */
async function costOfTurns(proxy, chats, turns) {
  const took = [];
  const before = cpuOf(proxy.pid);
  for (let chat = 0; chat < chats; chat++) {
    for (let turn = 0; turn < turns; turn++) took.push((await ask(proxy, 'a chat', turn)).took);
    await send(proxy, { method: 'DELETE', path: '/v1/sessions/a%20chat' }).done;
  }
  return { cpu: (cpuOf(proxy.pid) - before) / took.length, took: median(took) };
}

export function manySessions({ standIn, counts }) {
  return withProcesses(standIn, 32, async (proxy) => {
    heading('sessions of one turn each, at most 32 processes; beside them a chat of 10 turns');
    const tell = table(['sessions', 'RSS MiB', 'PSS MiB', 'CPU µs a turn', 'ms a turn']);
    const memory = [];
    let bytes;
    let open = 0;
    for (const count of counts) {
      for (; open < count; open++) ({ bytes } = await ask(proxy, `session ${open}`, 0));
      const { cpu, took } = await costOfTurns(proxy, 60, 10);
      const { rss, pss } = memoryOf(proxy.pid);
      memory.push(rss);
      tell(String(count), rss, pss, cpu, took);
    }
    const each = ((memory.at(-1) - memory[0]) * 1024) / (counts.at(-1) - counts[0]);
    note(`a session takes ${each.toFixed(1)} KiB, for a text of ${(bytes / 1024).toFixed(1)} KiB`);
  });
}

/**
 * What stores add to a turn of a session with a long history: turns of several proxies by turns, one with memory alone. `redis`: the
 * address of one, if there is one.
 */
export async function storedTurns({ standIn, history, turns, redis }) {
  const folder = mkdtempSync(path.join(tmpdir(), 'bench-store-'));
  const args = ['--spares', '0', '--log-level', 'warning'];
  const stores = [
    ['in memory', []],
    ['with --store FILE', ['--store', path.join(folder, 'state')]],
    ...(redis ? [['over Redis', ['--store', redis]]] : []),
  ];
  const proxies = [];
  try {
    for (const [, more] of stores) {
      proxies.push(await startProxy({ cli: standIn, args: [...args, ...more] }));
      await proxies.at(-1).inspected();
    }
    const pair = [{ role: 'user', content: 'Some words. '.repeat(20) }, { role: 'assistant', content: 'Some other words. '.repeat(20) }];
    const messages = [...times(history - 1, () => pair).flat(), { role: 'user', content: '[[text]]' }];
    for (const proxy of proxies) assert.equal((await send(proxy, { body: { session_id: 's', messages } }).done).status, 200);
    const took = proxies.map(() => []);
    for (let turn = 0; turn < turns; turn++) {
      for (const [i, proxy] of proxies.entries()) took[i].push((await ask(proxy, 's', turn)).took);
    }
    heading(`a session's turn after ${history} turns, in ms`);
    stores.forEach(([name], i) => row(name, took[i]));
    const [memory, ...others] = took.map(median);
    for (const [i, store] of others.entries()) {
      const more = store - memory;
      verdict(`what a turn ${stores[i + 1][0]} costs more`, more, `ms, ${(store / memory).toFixed(2)} times memory's`, more <= 2, 'at most 2 ms');
    }
    if (!redis) notJudged('what a turn over Redis costs more', 'no redis-server here');
  } finally {
    for (const proxy of proxies) await proxy.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

const tokensOf = ({ chunks }) => sum(chunks.map(({ text }) => text.split(/"content":"[^"]/).length - 1));

async function timeOfHealth(proxy) {
  const took = [];
  for (let i = 0; i < 11; i++) {
    const { sentAt, at } = await send(proxy, { method: 'GET', path: '/health' }).done;
    took.push(at - sentAt);
  }
  return median(took);
}

/** Opens streams that do as told, and looks at the proxy for a while when all of them have begun. */
async function watchStreams(proxy, count, told) {
  const streams = times(count, (i) => {
    const messages = [{ role: 'user', content: `[[${told}]] stream ${i}` }];
    return send(proxy, { body: { stream: true, messages } });
  });
  await eventually('all have begun', () => streams.every(tokensOf), 30_000);
  await sleep(500);
  for (const { chunks } of streams) chunks.length = 0;
  const [before, began] = [cpuOf(proxy.pid), performance.now()];
  await sleep(WINDOW_MS);
  const [cpu, lasted] = [cpuOf(proxy.pid) - before, performance.now() - began];
  const perToken = cpu / sum(streams.map(tokensOf));
  const seen = { ...memoryOf(proxy.pid), perToken, share: cpu / 10 / lasted, health: await timeOfHealth(proxy) };
  for (const { abort } of streams) abort();
  await Promise.all(streams.map(({ done }) => done));
  await eventually('none is left', async () => (await health(proxy)).busy === 0, 10_000);
  return seen;
}

export function manyStreams({ standIn, counts }) {
  return withProcesses(standIn, Math.max(...counts), async (proxy) => {
    heading('open streams of 10 tokens a second, and silent ones; CPU in % of one core');
    const tell = table(['streams', 'RSS MiB', 'PSS MiB', 'CPU %', 'CPU µs a token', '/health ms', 'CPU % if silent']);
    for (const count of counts) {
      const speaking = await watchStreams(proxy, count, 'text n=100000 delay_ms=100');
      const silent = await watchStreams(proxy, count, 'hang after=1');
      const { rss, pss, share, perToken } = speaking;
      tell(String(count), rss, pss, share, perToken, speaking.health, silent.share);
    }
  });
}
