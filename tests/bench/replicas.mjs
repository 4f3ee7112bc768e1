// What replicas bring: one-offs a second of three behind HAProxy, beside those of one alone, by turns.

import assert from 'node:assert/strict';
import { cpus } from 'node:os';
import { findProgram, startHaproxy } from '../e2e/balancers.mjs';
import { send, startProxy } from '../e2e/harness.mjs';
import { Redis, noRedis } from '../e2e/redis_server.mjs';
import { heading, median, notJudged, note, row, verdict } from './figures.mjs';

const PROCESSES = 4; // of a replica
const WIDTH = 2 * 3 * PROCESSES; // requests under way: enough for all replicas
const ENOUGH_PROCESSORS = 8; // a turn of the real CLI takes some 50 ms of one
const KEYS = Array.from({ length: 40 }, (_, i) => `bench-client-key-${i}`);

/** Runs the body with what tests' helpers want of a test: a place for what is to be ended. */
async function withCleanups(body) {
  const cleanups = [];
  try {
    return await body({ defer: (cleanup) => cleanups.push(cleanup) });
  } finally {
    for (const cleanup of cleanups.reverse()) await cleanup();
  }
}

/** With the address of a Redis that keeps changes on the disk; undefined where there is none. */
export const withRedis = (body) => (noRedis ? body(undefined) : withCleanups(async (t) => body((await Redis.start(t)).url)));

/** Answers a second. */
async function rate(target, count, content) {
  const began = performance.now();
  let next = 0;
  const lane = async () => {
    while (next < count) {
      const headers = { authorization: `Bearer ${KEYS[next++ % KEYS.length]}` };
      const { status, text } = await send(target, { headers, body: { messages: [{ role: 'user', content }] } }).done;
      assert.equal(status, 200, text);
    }
  };
  await Promise.all(Array.from({ length: WIDTH }, lane));
  return (count * 1000) / (performance.now() - began);
}

/** `content`: what asks for an answer that takes 250 ms, as the API would. */
async function compare(t, { url, program, content, rounds, count }) {
  const args = ['--spares', '0', '--max-processes', String(PROCESSES), '--max-queue', '1000', '--log-level', 'warning'];
  const replicas = [];
  t.defer(() => Promise.all(replicas.map((one) => one.stop())));
  for (let i = 0; i < 3; i++) replicas.push(await startProxy({ url, cli: program, env: { API_KEYS: KEYS.join(',') }, args }));
  const balancer = await startHaproxy(t, replicas.map(({ port }) => port));
  for (const target of [balancer, ...replicas]) await rate(target, count, content); // the processes start
  const rates = { one: [], three: [] };
  for (let round = 0; round < rounds; round++) {
    rates.one.push(await rate(replicas[round % 3], count, content));
    rates.three.push(await rate(balancer, count, content));
  }
  row('one replica, answers a second', rates.one);
  row('three behind HAProxy', rates.three);
  return median(rates.three) / median(rates.one);
}

export async function replicasAtOnce({ api, cli, standIn }) {
  heading(`one-offs of ${WIDTH} clients at once, ${PROCESSES} processes a replica, answers of 250 ms`);
  if (!findProgram('haproxy')) return notJudged('three replicas behind HAProxy', 'no haproxy here');
  const judge = (ratio) => verdict('answers of three replicas behind HAProxy', ratio, 'times those of one', ratio >= 2.5, 'at least 2.5');
  note(`there are ${cpus().length} processors; with the stand-in for claude`);
  judge(await withCleanups((t) => compare(t, { program: standIn, content: '[[text first_ms=250]]', rounds: 5, count: 120 })));
  const name = 'the same with claude';
  if (cpus().length < ENOUGH_PROCESSORS) return notJudged(name, `it needs ${ENOUGH_PROCESSORS} processors, and there are ${cpus().length}`);
  note('with claude');
  judge(await withCleanups((t) => compare(t, { url: api.url, program: cli, content: '[[scenario:plain ttft=250]]', rounds: 3, count: 60 })));
}
