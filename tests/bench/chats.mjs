// Chats, bursts and crowds: through the proxy, and beside it, in the same run, with a process per request.

import assert from 'node:assert/strict';
import { median, heading, note, row, verdict } from './figures.mjs';
import { ChatByHand, SparesByHand, asWrappersDo, callTool, health, initialize, lean, openSpare } from './ways.mjs';
import { pair, processPerRequest, quiet, startSpare, throughProxy, user, withProxy } from './ways.mjs';

const times = (count, make) => Array.from({ length: count }, (_, i) => make(i));
const chatCalls = (api) => api.requests.filter(({ path }) => path === '/v1/messages');

/**
 * Lets the ways take turns, each as often the first as the others and after each of its neighbours, so that what else
 * happens on the machine, and what the one before left in its caches, meets them alike; each begins when all is quiet.
 * Resolves, by way, to the milliseconds to the first token and the API's calls.
 */
async function compare({ api, proxy, rounds }, ways) {
  const names = Object.keys(ways);
  const took = Object.fromEntries(names.map((name) => [name, { first: [], calls: [] }]));
  for (let round = 0; round <= rounds; round++) {
    const order = names.map((_, i) => names[(round + i) % names.length]);
    for (const name of round % 2 ? order.reverse() : order) {
      await quiet(proxy);
      const before = chatCalls(api).length;
      const { first } = await ways[name](round);
      if (round === 0) continue; // a warm-up
      took[name].first.push(first);
      took[name].calls.push(...chatCalls(api).slice(before));
    }
  }
  return Object.values(took);
}

/** Tells them by name and returns their medians. */
function tell(names, took) {
  names.forEach((name, i) => row(name, took[i].first));
  return took.map(({ first }) => median(first));
}

/** The two ways to ask with a process per request, `messages` of a round. */
const perRequest = (proxy, spare, messages) => ({
  'a process per request, as wrappers': (round) => processPerRequest(asWrappersDo(proxy, spare), messages(round)),
  'a process per request, lean': (round) => processPerRequest(lean(spare), messages(round)),
});

/** The target is over what wrappers do; how much is left over the leanest way is told beside it. */
function tellSooner(through, [asWrappers, leanest], target) {
  const sooner = asWrappers / through;
  verdict('sooner than a process per request', sooner, 'times', sooner >= target, `at least ${target}`);
  note(`${(leanest / through).toFixed(1)} times sooner than a lean one, which takes the proxy's own flags`);
}

export async function freshRequests({ api, proxy, rounds }) {
  const spare = proxy.claudes()[0];
  const plain = new SparesByHand(proxy, () => startSpare(spare), initialize());
  const opened = new SparesByHand(proxy, () => openSpare(spare));
  const question = (round) => `Say hello, round ${round}.`;
  const ways = {
    'through the proxy': (round) => throughProxy(proxy, [user(question(round))]),
    'a spare driven by hand': (round) => plain.ask(question(round)),
    'one that was opened as the proxy does': (round) => opened.ask(question(round)),
    ...perRequest(proxy, spare, (round) => [user(question(round))]),
  };
  const took = await compare({ api, proxy, rounds }, ways);
  await Promise.all([plain.stop(), opened.stop()]);
  // The same work: what the API was asked for by the proxy and by hand differs in nothing.
  const [asked, ...byHand] = took.slice(0, 3).map(({ calls }) => calls.map(({ body: { metadata, ...body } }) => body));
  for (const one of byHand) assert.deepEqual(asked, one);

  heading('a fresh request, ms to the first token');
  const [through, hand, same, ...each] = tell(Object.keys(ways), took);
  tellSooner(through, each, 6);
  verdict('over the spare driven by hand', through - hand, 'ms', through - hand <= 3, 'at most 3');
  note(`${(through - same).toFixed(1)} ms over one that was opened and rehearsed by hand too`);
}

const lengths = ({ calls }) => calls.map(({ body }) => body.messages.length);
const processes = ({ calls }) => new Set(calls.map((call) => call.headers['x-claude-code-session-id'])).size;

export async function laterTurns({ api, proxy, rounds }) {
  const spare = proxy.claudes()[0];
  const byHand = new ChatByHand(spare);
  const question = (turn) => `Turn ${turn} of a chat.`;
  const chat = (turn) => [...times(turn, (i) => pair(question(i))).flat(), user(question(turn))];
  await throughProxy(proxy, chat(0));
  await byHand.ask(question(0));
  const ways = {
    'through the proxy': (round) => throughProxy(proxy, chat(round + 1)),
    'a living claude driven by hand': (round) => byHand.ask(question(round + 1)),
    ...perRequest(proxy, spare, (round) => chat(round + 1)),
  };
  const took = await compare({ api, proxy, rounds }, ways);
  await byHand.stop();
  // Real roles and one process on the one side, one text and a process each on the other.
  const [through, hand, ...each] = took;
  assert.deepEqual(lengths(through), times(rounds, (i) => 2 * i + 5));
  assert.deepEqual(lengths(through), lengths(hand));
  for (const one of each) assert.deepEqual(lengths(one), times(rounds, () => 1));
  assert.deepEqual(took.map(processes), [1, 1, rounds, rounds]);

  heading(`a later turn of a chat (2 to ${rounds + 1} turns before it), ms to the first token`);
  const [proxied, , ...eachTook] = tell(Object.keys(ways), took);
  tellSooner(proxied, eachTook, 20);
}

const TOOLS = [
  {
    type: 'function',
    function: { name: 'look_up', description: 'Looks up', parameters: { type: 'object', properties: {} } },
  },
];

/** The request that brings a tool's result, from the result to the first token of what follows. */
export async function toolRoundTrip({ api, proxy, rounds }) {
  const spare = proxy.claudes()[0];
  const withResult = async (round) => {
    api.script('tool_use');
    const question = user(`Look something up, round ${round}.`);
    const call = await callTool(proxy, [question], TOOLS);
    api.script('plain deltas=4');
    await quiet(proxy);
    return [question, call, { role: 'tool', tool_call_id: call.tool_calls[0].id, content: 'Found.' }];
  };
  const ways = {
    'through the proxy': async (round) => throughProxy(proxy, await withResult(round), { tools: TOOLS }),
    ...perRequest(proxy, spare, (round) => [...pair(`Look up, round ${round}.`), user('Found.')]),
  };
  const took = await compare({ api, proxy, rounds }, ways);
  // Each call of the proxy's goes on where the model asked: question, call, result.
  assert.deepEqual(
    lengths({ calls: took[0].calls.filter(({ body }) => body.messages.length > 1) }),
    times(rounds, () => 3),
  );
  heading("a tool's result, ms to the first token after it");
  const [proxied, ...each] = tell(Object.keys(ways), took);
  tellSooner(proxied, each, 10);
}

export async function coldHistory({ api, proxy, rounds }) {
  const turns = 20;
  const spare = proxy.claudes()[0];
  const chat = (round) => [
    ...times(turns, (i) => pair(`Chat ${round}, turn ${i}. ${'Some words. '.repeat(20)}`)).flat(),
    user('And now?'),
  ];
  const ways = {
    'through the proxy': (round) => throughProxy(proxy, chat(round)),
    'a lean process per request': (round) => processPerRequest(lean(spare), chat(round)),
  };
  const took = await compare({ api, proxy, rounds }, ways);
  const [through, each] = took;
  assert.deepEqual(lengths(through), times(rounds, () => 2 * turns + 1));
  assert.deepEqual(lengths(each), times(rounds, () => 1));

  heading(`a history of ${turns} turns that no process holds, ms to the first token`);
  const [proxied, processEach] = tell(Object.keys(ways), took);
  note(`${(processEach / proxied).toFixed(1)} times sooner, and with real roles; the process got one flat text`);
}

/** Runs them all at once; resolves to the milliseconds until the last has ended, and to what each resolved to. */
async function together(count, body) {
  const began = performance.now();
  const results = await Promise.all(times(count, body));
  return { wall: performance.now() - began, results };
}

function tellTogether(took) {
  for (const [name, { walls, first }] of Object.entries(took)) {
    row(`${name}, all of them`, walls);
    row(`${name}, first token`, first);
  }
}

/** With a proxy of its own for each burst, as it is started without flags. */
export async function bursts({ api, cli, sizes, rounds }) {
  for (const size of sizes) {
    const took = { 'the proxy': { walls: [], first: [] }, 'a lean process each': { walls: [], first: [] } };
    const burst = async (name, way) => {
      const { wall, results } = await together(size, (i) => way([user(`Request ${i} of a burst.`)]));
      took[name].walls.push(wall);
      took[name].first.push(...results.map(({ first }) => first));
    };
    for (let round = 0; round < rounds; round++) {
      await withProxy({ url: api.url, cli, spares: 2 }, async (proxy) => {
        const spare = proxy.claudes()[0];
        await burst('the proxy', (messages) => throughProxy(proxy, messages));
        await quiet(proxy, 2);
        await burst('a lean process each', (messages) => processPerRequest(lean(spare), messages));
      });
    }
    heading(`${size} fresh requests at once, 2 spares, ms`);
    tellTogether(took);
  }
}

/** Chats that have begun; each asks its next question when it has its answer. */
export async function chatsAtOnce({ api, cli, count, turns }) {
  const question = (chat, turn) => `Chat ${chat}, turn ${turn}.`;
  const messages = (chat, turn) => [
    ...times(turn, (i) => pair(question(chat, i))).flat(),
    user(question(chat, turn)),
  ];
  const goOn = async (way) => {
    const first = [];
    const { wall } = await together(count, async (chat) => {
      for (let turn = 1; turn <= turns; turn++) first.push((await way(messages(chat, turn))).first);
    });
    return { walls: [wall], first };
  };
  await withProxy({ url: api.url, cli, spares: 2 }, async (proxy) => {
    const spare = proxy.claudes()[0];
    await together(count, (chat) => throughProxy(proxy, messages(chat, 0)));
    await quiet(proxy, 2);
    const before = chatCalls(api).length;
    const through = await goOn((asked) => throughProxy(proxy, asked));
    const used = processes({ calls: chatCalls(api).slice(before) });
    const { maximum } = await health(proxy);
    await quiet(proxy, 2);
    const each = await goOn((asked) => processPerRequest(lean(spare), asked));

    heading(`${count} chats going on at once, ${turns} more turns each, ms`);
    tellTogether({ 'the proxy': through, 'a lean process each': each });
    const faster = each.walls[0] / through.walls[0];
    note(`${faster.toFixed(1)} times as many turns a second, by ${used} processes (at most ${maximum})`);
  });
}
