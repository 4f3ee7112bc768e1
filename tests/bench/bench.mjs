// What a request costs through the proxy, beside driving `claude` by hand and starting one per request, and what the
// proxy itself costs. One run, one loopback Messages API, the newest pinned CLI; some ten minutes. `make bench`
//
//   node tests/bench/bench.mjs [PART...]     ROUNDS=11 is how often each way is measured, at most 25 times, since the
//                                            first of a system prompt leaves a process idle; ONE_OFFS=200 is how many
//                                            make a batch, TURNS=1000 how many requests what is paid is counted over;
//                                            BEFORE=PROXY is another one to compare with
//
// Parts: oneoffs batches changed turns fresh later tools cold bursts chats fallback proxy sessions store replicas streams money; all of
// them when none is named.

import assert from 'node:assert/strict';
import net from 'node:net';
import { cpus, loadavg } from 'node:os';
import { fileURLToPath } from 'node:url';
import { CLI_VERSIONS, claudePath } from '../e2e/claude_cli.mjs';
import { send, startProxy } from '../e2e/harness.mjs';
import { startMessagesApi } from '../e2e/messages_api.mjs';
import { bursts, changedChats, chatsAtOnce, chatsInTurn, coldHistory, freshRequests, laterTurns } from './chats.mjs';
import { oneOffBatches, oneOffs, toolRoundTrip } from './chats.mjs';
import { planEnds } from './fallback.mjs';
import { cpuOf, failures, heading, median, memoryOf, note, verdict } from './figures.mjs';
import { manySessions, manyStreams, storedTurns } from './growth.mjs';
import { promptCache } from './money.mjs';
import { replicasAtOnce, withRedis } from './replicas.mjs';
import { quiet, withProxy } from './ways.mjs';

const ROUNDS = Number(process.env.ROUNDS ?? 11);
const ONE_OFFS = Number(process.env.ONE_OFFS ?? 200);
const TURNS = Number(process.env.TURNS ?? 1000);
const TOKENS = 6000;

const version = CLI_VERSIONS.at(-1);
const cli = claudePath(version);
const standIn = process.env.STAND_IN ?? fileURLToPath(new URL('../../build/tests/stand-in', import.meta.url));
const api = await startMessagesApi();
api.script('plain deltas=4');

/** With a proxy as it is by default. */
const withSpare = (body) => withProxy({ url: api.url, cli, spares: 2 }, body);

// ---- the proxy itself --------------------------------------------------------------------------------

async function cpuPerToken(proxy) {
  await quiet(proxy);
  const before = cpuOf(proxy.pid);
  const content = `[[scenario:plain deltas=${TOKENS} delay=1 text="${'abc '.repeat(TOKENS)}"]]`;
  const result = await send(proxy, { body: { stream: true, messages: [{ role: 'user', content }] } }).done;
  const tokens = result.data.filter((chunk) => chunk.choices?.[0]?.delta?.content).length;
  assert.equal(tokens, TOKENS, 'every token is a chunk of its own');
  return (cpuOf(proxy.pid) - before) / tokens;
}

function connects(port) {
  return new Promise((resolve) => {
    const socket = net.connect(port, '127.0.0.1', () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });
}

async function freePort() {
  const server = net.createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => {
    server.once('listening', resolve);
  });
  const { port } = server.address();
  await new Promise((resolve) => {
    server.close(resolve);
  });
  return port;
}

/** From the exec to the first accepted connection. */
async function startup() {
  const port = await freePort();
  let begun;
  let accepted;
  const prepare = (proxy) => {
    const begin = proxy.start.bind(proxy);
    proxy.start = () => {
      begun = performance.now();
      begin();
      accepted = (async () => {
        while (!(await connects(port)));
        return performance.now();
      })();
    };
  };
  const proxy = await startProxy({ url: api.url, cli, prepare, args: ['--port', String(port), '--spares', '0'] });
  const took = (await accepted) - begun;
  await proxy.stop();
  return took;
}

async function proxyItself() {
  await withSpare(async (proxy) => {
    const idle = memoryOf(proxy.pid);
    const cpu = await cpuPerToken(proxy);
    heading('the proxy itself');
    verdict('memory when idle, RSS', idle.rss, 'MiB', idle.rss <= 20, 'at most 20');
    const after = memoryOf(proxy.pid);
    note(`PSS ${idle.pss.toFixed(1)} MiB; after a stream of ${TOKENS} tokens RSS ${after.rss.toFixed(1)} MiB`);
    note(`CPU per streamed token: ${cpu.toFixed(1)} µs`);
  });
  const startups = [];
  for (let i = 0; i < 9; i++) startups.push(await startup());
  verdict('from exec to the first accepted connection', median(startups), 'ms', median(startups) <= 50, 'at most 50');
}

// ---- the run -----------------------------------------------------------------------------------------

const parts = {
  oneoffs: () => withSpare((proxy) => oneOffs({ api, proxy, rounds: ROUNDS })),
  batches: () => oneOffBatches({ api, cli, count: ONE_OFFS }),
  changed: () => withSpare((proxy) => changedChats({ api, proxy, rounds: ROUNDS })),
  turns: () => chatsInTurn({ api, cli, rounds: Math.ceil(ROUNDS / 2), before: process.env.BEFORE }),
  fresh: () => withSpare((proxy) => freshRequests({ api, proxy, rounds: ROUNDS })),
  later: () => withSpare((proxy) => laterTurns({ api, proxy, rounds: ROUNDS })),
  tools: () => withSpare((proxy) => toolRoundTrip({ api, proxy, rounds: ROUNDS })),
  cold: () => withSpare((proxy) => coldHistory({ api, proxy, rounds: Math.ceil(ROUNDS / 2) })),
  bursts: () => bursts({ api, cli, sizes: [4, 16], rounds: Math.min(3, ROUNDS) }),
  chats: () => chatsAtOnce({ api, cli, count: 16, turns: 3 }),
  fallback: () => planEnds({ api, cli, rounds: Math.ceil(ROUNDS / 2) }),
  proxy: proxyItself,
  sessions: () => manySessions({ standIn, counts: [1, 10, 100, 1000] }),
  store: () => withRedis((redis) => storedTurns({ standIn, history: 1000, turns: 60, redis })),
  replicas: () => replicasAtOnce({ api, cli, standIn }),
  streams: () => manyStreams({ standIn, counts: [1, 16, 64, 256] }),
  money: () => promptCache({ api, cli, turns: TURNS }),
};

const wanted = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(parts);
const unknown = wanted.filter((name) => !parts[name]);
if (unknown.length) throw new Error(`no part ${unknown}; there are ${Object.keys(parts)}`);

const began = performance.now();
console.log(`claude ${version}, a loopback Messages API, ${ROUNDS} rounds; times are medians [quartiles] of one run`);
if (loadavg()[0] > cpus().length / 2)
  console.log(`The machine is busy (load ${loadavg()[0].toFixed(1)}): do not trust what follows.`);
for (const name of wanted) await parts[name]();
note(`${Math.round((performance.now() - began) / 1000)} s`);

await api.close();
process.exitCode = failures() ? 1 : 0;
