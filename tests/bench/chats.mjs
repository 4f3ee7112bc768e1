// Chats, bursts and crowds: through the proxy, and beside it, in the same run, with a process per request.

import assert from 'node:assert/strict';
import { cpus } from 'node:os';
import { cpuOfAll, cpuOfEnded, heading, median, note, notJudged, row, verdict } from './figures.mjs';
import { ChatByHand, SparesByHand, ToolsByHand, asWrappersDo, callTool, counter, health, lean } from './ways.mjs';
import { SYSTEM, pair, processPerRequest, quiet, throughProxy, user, withProxy } from './ways.mjs';

const times = (count, make) => Array.from({ length: count }, (_, i) => make(i));
const chatCalls = (api) => api.requests.filter(({ path }) => path === '/v1/messages');
const lengths = (calls) => calls.map(({ body }) => body.messages.length);
const processes = (calls) => new Set(calls.map((call) => call.headers['x-claude-code-session-id'])).size;
/** What the API was asked for, without what names the process, the round and the call. */
const withoutNames = ({ body: { metadata, ...body } }) =>
  JSON.stringify(body).replaceAll(/ound \d+|toolu_loopback_\d+/g, '');

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

const noMoreThan = (name, value, most, unit = 'times') => verdict(name, value, unit, value <= most, `at most ${Number(most.toFixed(2))}`);
const noLessThan = (name, value, least) => verdict(name, value, 'times', value >= least, `at least ${least}`);

/** The target is over what wrappers do; how much is left over the leanest way is told beside it. */
function tellSooner(through, [asWrappers, leanest], target) {
  noLessThan('sooner than a process per request', asWrappers / through, target);
  note(`${(leanest / through).toFixed(1)} times sooner than a lean one, which takes the proxy's own flags`);
}

/** A chat that takes one turn after the other; its last message can be asked again, or another in its place. */
class Chat {
  constructor(proxy, pairs, system = SYSTEM) {
    this.ask = (messages) => throughProxy(proxy, messages, { system });
    this.before = times(pairs, (i) => pair(`${system} Turn ${i}, round 0.`)).flat();
    this.last = user('Go on, round 0.');
  }

  regenerate() {
    return this.ask([...this.before, this.last]);
  }

  edit(text) {
    this.last = user(text);
    return this.regenerate();
  }

  goOn(text) {
    this.before.push(...pair(this.last.content));
    return this.edit(text);
  }
}

const TOOLS = [
  {
    type: 'function',
    function: { name: 'look_up', description: 'Looks up', parameters: { type: 'object', properties: {} } },
  },
];

/** Questions of one system prompt and the same tools, each the first of a conversation of its own. */
export async function oneOffs({ api, proxy, rounds }) {
  const spare = proxy.claudes()[0];
  const chat = new Chat(proxy, 0, 'You are another bench.');
  const question = (round) => [user(`Say hello, round ${round}.`)];
  const ask = (round) => throughProxy(proxy, question(round), { tools: TOOLS });
  await chat.regenerate();
  const before = chatCalls(api).length;
  await ask(0);
  const first = chatCalls(api)[before];
  const ways = {
    'a one-off, after the first one': ask,
    'a later turn of a chat': (round) => chat.goOn(`Go on, round ${round}.`),
    ...perRequest(proxy, spare, question),
  };
  const took = await compare({ api, proxy, rounds }, ways);
  // One process, which asks as it did when it was fresh.
  assert.equal(processes([first, ...took[0].calls]), 1);
  for (const call of took[0].calls) assert.equal(withoutNames(call), withoutNames(first));

  heading('a one-off request, system prompt and tools as before, ms to the first token');
  const [oneOff, later, ...each] = tell(Object.keys(ways), took);
  noMoreThan("of a later turn's time", oneOff / later, 1.5);
  tellSooner(oneOff, each, 12);
}

/** Asks `count` questions, `width` at a time, and tells what it took in all: ms and µs of processor time. */
async function batch(count, width, ask, cpuTime) {
  const before = cpuTime();
  let next = 0;
  const { wall } = await together(width, async () => {
    while (next < count) await ask([user(`Question ${next++}.`)]);
  });
  return { wall: wall / count, cpu: (cpuTime() - before) / count };
}

/** Many one-offs, `width` at a time, beside fewer ways with a process each, which take far longer. */
function batches({ api, cli, count, width }, judge) {
  return withProxy({ url: api.url, cli, spares: 2 }, async (proxy) => {
    const spare = proxy.claudes()[0];
    const before = chatCalls(api).length;
    const lookedWith = (await counter(proxy, 'processes_started_total')) - proxy.claudes().length; // and has ended
    const ours = await batch(count, width, (messages) => throughProxy(proxy, messages), () => cpuOfAll(proxy));
    assert.deepEqual(lengths(chatCalls(api).slice(before)), times(count, () => 1));
    const started = (await counter(proxy, 'processes_started_total')) - lookedWith;
    await quiet(proxy);
    const ended = () => cpuOfEnded(process.pid);
    const few = Math.max(width, Math.ceil(count / 10));
    const each = [];
    for (const launch of [asWrappersDo(proxy, spare), lean(spare)])
      each.push(await batch(few, width, (messages) => processPerRequest(launch, messages), ended));
    heading(`${count} one-offs, ${width} at a time, and ${few} with a process each`);
    const names = ['through the proxy', 'a process per request, as wrappers', 'a process per request, lean'];
    for (const [i, { wall, cpu }] of [ours, ...each].entries()) {
      const figures = [(1000 / wall).toFixed(1), (cpu / 1000).toFixed(1)];
      note(`${names[i].padEnd(38)}${figures[0]} a second, ${figures[1]} ms of processor time each`);
    }
    judge({ ours, each, started });
  });
}

export async function oneOffBatches({ api, cli, count }) {
  await batches({ api, cli, count, width: 1 }, ({ ours, each: [asWrappers, leanest] }) => {
    noLessThan('less processor time than a process per request', asWrappers.cpu / ours.cpu, 12);
    note(`${(leanest.cpu / ours.cpu).toFixed(1)} times less than a lean one`);
  });
  await batches({ api, cli, count, width: 4 }, ({ ours, each: [asWrappers, leanest], started }) => {
    noLessThan('as many a second as with a process per request', asWrappers.wall / ours.wall, 10);
    note(`${(leanest.wall / ours.wall).toFixed(1)} times as many as with a lean one`);
    noMoreThan('processes started', started, 4 + 2, 'processes');
  });
}

export async function changedChats({ api, proxy, rounds }) {
  const pairs = 100;
  const chat = new Chat(proxy, pairs);
  await chat.regenerate();
  const told = await counter(proxy, 'messages_replayed_total');
  const ways = {
    'a later turn': (round) => chat.goOn(`Go on, round ${round}.`),
    'the last message edited': (round) => chat.edit(`Not that, round ${round}.`),
    'the answer regenerated': () => chat.regenerate(),
  };
  const took = await compare({ api, proxy, rounds }, ways);
  assert.equal(processes(took.flatMap(({ calls }) => calls)), 1);
  for (const { calls } of took.slice(1)) for (const length of lengths(calls)) assert.equal(length % 2, 1);
  assert.deepEqual(lengths(took[0].calls), times(rounds, (round) => 2 * (pairs + round) + 5));

  heading(`a chat of ${pairs} pairs, ms to the first token`);
  const [later, edited, regenerated] = tell(Object.keys(ways), took);
  noMoreThan("edited, of a later turn's time", edited / later, 2);
  noMoreThan("regenerated, of a later turn's time", regenerated / later, 2);
  noMoreThan('told anew', (await counter(proxy, 'messages_replayed_total')) - told, 0, 'messages');
}

/** More chats of one client than processes, each asking in turn. `before`: another proxy to compare with. */
export async function chatsInTurn({ api, cli, rounds, before }) {
  const [count, most, pairs] = [8, 4, 20];
  const args = ['--max-processes', String(most)];
  const measure = (program) =>
    withProxy({ url: api.url, cli, program, args, spares: 2 }, async (proxy) => {
      const chats = times(count, (i) => new Chat(proxy, pairs, `You are a bench, and this is chat ${i % 2}.`));
      for (const chat of chats) await chat.regenerate();
      const from = chatCalls(api).length;
      const took = [];
      for (let round = 1; round <= rounds; round++)
        for (const chat of chats) took.push((await chat.goOn(`Go on, round ${round}.`)).whole);
      const asked = lengths(chatCalls(api).slice(from));
      assert.deepEqual(
        asked,
        times(rounds * count, (i) => 2 * (pairs + Math.floor(i / count)) + 3),
      );
      return took;
    });
  const took = await measure();
  const other = before && (await measure(before));
  heading(`${count} chats of ${pairs} pairs in turn over ${most} processes, ms a turn`);
  row('the proxy', took);
  if (!other) return notJudged('of the time of the proxy before', 'BEFORE=PROXY names it');
  row('the one before', other);
  return noMoreThan('of its time', median(took) / median(other), 0.5);
}

/** The first request of a system prompt, for which there is a spare. */
export async function freshRequests({ api, proxy, rounds }) {
  const spare = proxy.claudes()[0];
  const byHand = new SparesByHand(proxy, spare);
  const question = (round) => `Say hello, round ${round}.`;
  const system = (round) => `You are the bench of round ${round}.`;
  const ways = {
    'through the proxy': (round) => throughProxy(proxy, [user(question(round))], { system: system(round) }),
    'a spare driven by hand': (round) => byHand.ask(system(round), question(round)),
    ...perRequest(proxy, spare, (round) => [user(question(round))]),
  };
  const took = await compare({ api, proxy, rounds }, ways);
  await byHand.stop();
  // The same work: what the API was asked for by the proxy and by hand differs in nothing.
  assert.deepEqual(took[0].calls.map(withoutNames), took[1].calls.map(withoutNames));

  heading('the first request of a system prompt, ms to the first token');
  const [through, hand, ...each] = tell(Object.keys(ways), took);
  tellSooner(through, each, 6);
  noMoreThan('over the spare driven by hand', through - hand, 3, 'ms');
}

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
  const [through, hand, ...each] = took.map(({ calls }) => calls);
  assert.deepEqual(lengths(through), times(rounds, (i) => 2 * i + 5));
  assert.deepEqual(lengths(through), lengths(hand));
  for (const one of each) assert.deepEqual(lengths(one), times(rounds, () => 1));
  assert.deepEqual([through, hand, ...each].map(processes), [1, 1, rounds, rounds]);

  heading(`a later turn of a chat (2 to ${rounds + 1} turns before it), ms to the first token`);
  const [proxied, driven, ...eachTook] = tell(Object.keys(ways), took);
  tellSooner(proxied, eachTook, 20);
  noMoreThan('over the claude driven by hand', proxied - driven, 3, 'ms');
}

/** The request that brings a tool's result, from the result to the first token of what follows. */
export async function toolRoundTrip({ api, proxy, rounds }) {
  const spare = proxy.claudes()[0];
  const byHand = new ToolsByHand(spare, TOOLS);
  const question = (round) => `Look something up, round ${round}.`;
  /** Until the call waits for its result, by the one way or the other. */
  const calling = async (call) => {
    api.script('tool_use');
    const called = await call();
    api.script('plain deltas=4');
    await quiet(proxy);
    return called;
  };
  const throughIt = async (round) => {
    const asked = user(question(round));
    const said = await calling(() => callTool(proxy, [asked], TOOLS));
    const result = { role: 'tool', tool_call_id: said.tool_calls[0].id, content: 'Found.' };
    return throughProxy(proxy, [asked, said, result], { tools: TOOLS });
  };
  const ways = {
    'through the proxy': throughIt,
    'a living claude driven by hand': async (round) => {
      await calling(() => byHand.call(question(round)));
      return byHand.answer('Found.');
    },
    ...perRequest(proxy, spare, (round) => [...pair(`Look up, round ${round}.`), user('Found.')]),
  };
  const took = await compare({ api, proxy, rounds }, ways);
  await byHand.stop();
  // Each goes on where the model asked, question, call, result, and by hand the same.
  const [through, hand] = took.map(({ calls }) => calls);
  assert.deepEqual(lengths(through), times(2 * rounds, (i) => (i % 2 ? 3 : 1)));
  assert.deepEqual(through.map(withoutNames), hand.map(withoutNames));
  assert.deepEqual([through, hand].map(processes), [1, 1]);
  heading("a tool's result, ms to the first token after it");
  const [proxied, driven, ...each] = tell(Object.keys(ways), took);
  tellSooner(proxied, each, 10);
  noMoreThan('over the claude driven by hand', proxied - driven, 3, 'ms');
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
  const [through, each] = took.map(({ calls }) => calls);
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
    const names = ['the proxy', 'a process each, as wrappers', 'a lean process each'];
    const took = Object.fromEntries(names.map((name) => [name, { walls: [], first: [] }]));
    const burst = async (name, way) => {
      const { wall, results } = await together(size, (i) => way([user(`Request ${i} of a burst.`)]));
      took[name].walls.push(wall);
      took[name].first.push(...results.map(({ first }) => first));
    };
    for (let round = 0; round < rounds; round++) {
      await withProxy({ url: api.url, cli, spares: 2 }, async (proxy) => {
        const spare = proxy.claudes()[0];
        const ways = [
          (messages) => throughProxy(proxy, messages),
          (messages) => processPerRequest(asWrappersDo(proxy, spare), messages),
          (messages) => processPerRequest(lean(spare), messages),
        ];
        for (const [i, way] of ways.entries()) {
          await quiet(proxy);
          await burst(names[i], way);
        }
      });
    }
    heading(`${size} fresh requests at once, 2 spares, ${cpus().length} processors, ms`);
    tellTogether(took);
    if (size < 16) continue;
    const [ours, theirs] = Object.values(took);
    noMoreThan('until the last answer, of a process each', median(ours.walls) / median(theirs.walls), 1 / 3);
    noMoreThan('until the median first token, of a process each', median(ours.first) / median(theirs.first), 0.2);
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
    const used = processes(chatCalls(api).slice(before));
    const { maximum } = await health(proxy);
    await quiet(proxy, 2);
    const each = await goOn((asked) => processPerRequest(lean(spare), asked));

    heading(`${count} chats going on at once, ${turns} more turns each, ms`);
    tellTogether({ 'the proxy': through, 'a lean process each': each });
    const faster = each.walls[0] / through.walls[0];
    note(`${faster.toFixed(1)} times as many turns a second, by ${used} processes (at most ${maximum})`);
  });
}
