// What answers are charged: the sum over many turns that end in every way there is, against what the API counted. SOAK=1 makes it
// a thousand turns, SOAK_SEED=n repeats one.

import assert from 'node:assert/strict';
import { CLI_VERSIONS, DEFAULT_MODEL, claudePath } from './claude_cli.mjs';
import { eventually, suite } from './harness.mjs';
import { directive } from './messages_api.mjs';
import { ask, scrape, startLight } from './operate.mjs';

export const money = suite();
const { test } = money;

/** Anthropic's list price of Sonnet 4.5, in USD per million tokens. */
const PRICE = { input: 3, output: 15, write5m: 3.75, write1h: 6, read: 0.3 };

function priceOf(usage) {
  const { ephemeral_5m_input_tokens: short, ephemeral_1h_input_tokens: long } = usage.cache_creation;
  const cost =
    usage.input_tokens * PRICE.input +
    usage.output_tokens * PRICE.output +
    short * PRICE.write5m +
    long * PRICE.write1h +
    usage.cache_read_input_tokens * PRICE.read;
  return cost / 1e6;
}

/** Numbers from 0 to 1 that a seed repeats (mulberry32). */
export function randomOf(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const TOOLS = [{ type: 'function', function: { name: 'look_up', parameters: { type: 'object', properties: {} } } }];
const WORDS = 'a few words that a model may write, ';

/** A user who talks to one proxy, with usage and moments by chance. */
class Talker {
  constructor(t, proxy, random) {
    Object.assign(this, { t, proxy, random });
  }

  upTo(most) {
    return Math.floor(this.random() * (most + 1));
  }

  usage(output = 20 + this.upTo(400)) {
    const creation = this.upTo(2000);
    return {
      input: 100 + this.upTo(3000),
      output,
      cache_creation: creation,
      ephemeral_1h: this.upTo(creation),
      cache_read: this.upTo(20_000),
    };
  }

  text(name, options) {
    return this.t.text(directive(name, { ...this.usage(), ...options }), `${this.upTo(1e9)}`);
  }

  /** One text for each call of the turn. */
  texts(...scenarios) {
    return this.t.text(scenarios.map(([name, more]) => directive(name, { ...this.usage(), ...more })).join('| '), `${this.upTo(1e9)}`);
  }

  send(messages, more = {}, options = {}) {
    const body = typeof messages === 'string' ? ask(messages, more) : { messages, ...more };
    return this.t.send({ proxy: this.proxy, body: { model: DEFAULT_MODEL, ...body }, ...options });
  }

  async well(messages, more) {
    const result = await this.send(messages, more).done;
    assert.equal(result.status, 200, result.text);
    return result;
  }

  stream() {
    return { stream: this.random() < 0.5 };
  }

  /** Its input is as large as its text: the proxy can only estimate it when it is left before the API has told anything. */
  slow() {
    const of = { input: 250, cache_creation: 0, ephemeral_1h: 0, cache_read: 0 };
    return this.text('plain', { ...of, text: WORDS.repeat(20), deltas: 60, delay: 20, output: 180 });
  }

  /** Leaves when some of the answer has come, or has been sent where the client gets it whole. */
  async leave(exchange, text) {
    const [, own] = / (\d+)$/.exec(text);
    const most = this.upTo(10);
    const sent = () => this.t.calls().find(({ raw, usage }) => raw.includes(own) && usage?.output_tokens > most);
    await eventually('some of it was sent', sent);
    exchange.abort();
    await exchange.done;
  }

  /** A conversation of so many tool calls; whether the last one's result is brought. */
  async tools(calls, answered) {
    const scenarios = [...Array.from({ length: calls }, () => ['tool_use', { tool: 'look_up' }]), ['plain', { text: 'Found.' }]];
    const messages = [{ role: 'user', content: this.texts(...scenarios) }];
    for (let i = 0; i < calls; i++) {
      const { json } = await this.well(messages, { tools: TOOLS });
      const said = json.choices[0].message;
      assert.equal(said.tool_calls.length, 1);
      messages.push(said, { role: 'tool', tool_call_id: said.tool_calls[0].id, content: 'a result' });
    }
    if (answered) await this.well(messages, { tools: TOOLS });
  }
}

/** The ways in which a turn ends of whose use the API tells all, and how often each is taken. */
const TOLD = [
  ['whole', 3, (one) => one.well(one.text('plain', { text: WORDS.repeat(3) }), one.stream())],
  ['thinking', 1, (one) => one.well(one.text('thinking', { thinking: WORDS, text: WORDS }), { reasoning_effort: 'low' })],
  [
    'a conversation that goes on',
    2,
    async (one) => {
      const messages = [{ role: 'user', content: one.text('plain', { text: 'Well.' }) }];
      const { json } = await one.well(messages);
      await one.well([...messages, json.choices[0].message, { role: 'user', content: one.text('plain', { text: 'Good.' }) }]);
    },
  ],
  ['max_tokens', 2, (one) => one.well(one.text('plain', { text: WORDS.repeat(30), output: 50 }), { max_tokens: 50, ...one.stream() })],
  ['a stop text', 2, (one) => one.well(one.text('plain', { text: `${WORDS}STOP${WORDS}` }), { stop: ['STOP'], ...one.stream() })],
  ['a tool call that nobody answers', 2, (one) => one.tools(1, false)],
  ['tool calls, the last one not answered', 1, (one) => one.tools(2, false)],
  ['tool calls to their end', 2, (one) => one.tools(1 + one.upTo(1), true)],
  ['refused by the API', 1, (one) => one.send(one.text('error', { status: 400 })).done],
  ['several choices', 1, (one) => one.well(one.text('plain', { text: WORDS }), { n: 2 + one.upTo(1), ...one.stream() })],
  [
    'several choices, all cut',
    1,
    (one) => one.well(one.text('plain', { text: WORDS.repeat(30), output: 40 }), { n: 2, max_tokens: 40 }),
  ],
];

/** The ways in which it ends before the API has told it. */
const UNTOLD = [
  [
    'a client that leaves a stream',
    3,
    (one) => {
      const text = one.slow();
      return one.leave(one.send(text, { stream: true }), text);
    },
  ],
  [
    'a client that leaves',
    1,
    (one) => {
      const text = one.slow();
      return one.leave(one.send(text), text);
    },
  ],
  [
    'cancelled',
    1,
    async (one) => {
      const text = one.slow();
      const stream = one.send(text, {}, { path: '/v1/responses', body: { model: DEFAULT_MODEL, stream: true, input: text } });
      await eventually('it has begun', () => stream.chunks.length > 2);
      const [, id] = /"id":"(resp_[^"]+)"/.exec(stream.chunks.map((chunk) => chunk.text).join(''));
      await one.t.send({ proxy: one.proxy, path: `/v1/responses/${id}/cancel` }).done;
      await stream.done;
    },
  ],
  ['failed after tokens', 1, (one) => one.send(one.text('error_event', { text: WORDS.repeat(4), after: 3 }), { stream: true }).done],
  ['broken and begun anew', 1, (one) => one.send(one.text('drop', { text: WORDS.repeat(4), after: 2, then: 'same' }), one.stream()).done],
];

/** Plays so many turns, several at once. */
async function play(t, proxy, ways, turns, random) {
  const all = ways.flatMap((way) => Array.from({ length: way[1] }, () => way));
  let left = turns;
  const talk = async () => {
    while (left-- > 0) {
      const [name, , turn] = all[Math.floor(random() * all.length)];
      await turn(new Talker(t, proxy, random)).catch((error) => {
        throw new Error(`${name}: ${error.stack}`);
      });
    }
  };
  await Promise.all(Array.from({ length: 6 }, talk));
}

const UNASKED = 555; // tokens of input, by which such a call is known

/** What has been charged and what the API counted, when nothing runs any more. */
async function sums(t, proxy) {
  const idle = async () => {
    const figures = await scrape(t, { proxy });
    return figures('requests_in_flight') === 1 && figures;
  };
  const figures = await eventually('all requests are over', idle);
  const calls = t.api.requests.filter(({ path }) => path === '/v1/messages');
  const over = () => calls.every(({ done, clientLeft, leftAt }) => done || clientLeft || leftAt !== undefined);
  await eventually('the API is left', over);
  const used = calls.filter(({ usage }) => usage);
  const sum = (some) => some.reduce((all, { usage }) => all + priceOf(usage), 0);
  // After `max_tokens` the CLI calls the API again, and is killed for it. Whether the API had begun to answer is a race.
  const unasked = sum(used.filter(({ scenario, clientLeft }) => scenario.input === UNASKED && clientLeft));
  return { calls: calls.length, least: sum(used) - unasked, counted: sum(used), charged: figures('cost_usd_total') };
}

test('the sum of what is charged is what the API counted, never less and at most a tenth more', { deadline: 900_000, alone: true }, async (t) => {
  const turns = process.env.SOAK ? 1000 : 100;
  const seed = Number(process.env.SOAK_SEED ?? Math.floor(Math.random() * 2 ** 31));
  console.log(`     (seed ${seed})`);
  const random = randomOf(seed);
  const env = { CLAUDE_CODE_MAX_RETRIES: '1' };
  const proxy = await t.start({ cli: claudePath(CLI_VERSIONS.at(-1)), args: ['--max-processes', '12', '--spares', '3'], env });
  await proxy.inspected();
  t.api.script(`plain input=${UNASKED} output=20`);
  t.defer(async () => t.api.script('plain'));
  assert.equal((await sums(t, proxy)).counted, 0, 'the start asks the model nothing');
  await play(t, proxy, TOLD, Math.round(turns * 0.75), random);
  const told = await sums(t, proxy);
  const tell = (some) => console.log(`     (${JSON.stringify(some)})`);
  tell(told);
  assert.ok(told.charged >= told.least * 0.9999, 'what the API told is charged');
  assert.ok(told.charged <= told.counted * 1.01, 'and no more');
  await play(t, proxy, UNTOLD, Math.round(turns * 0.25), random);
  const all = await sums(t, proxy);
  tell(all);
  assert.ok(all.charged - told.charged >= all.least - told.least, 'never less, where the API told nothing');
  assert.ok(all.charged <= all.counted * 1.1, 'at most a tenth more');
});

test('many requests at once do not go over a budget together: what they may use is held back', async (t) => {
  const proxy = await startLight(t, { args: ['--budget', 'tokens=10000/day', '--max-processes', '8'], env: { API_KEY: 'one' } });
  const headers = { authorization: 'Bearer one' };
  const slow = Array.from({ length: 6 }, () => t.send({ proxy, headers, body: { ...ask('[[text n=4 delay_ms=400]]'), max_tokens: 4000 } }));
  const results = await Promise.all(slow.map(({ done }) => done));
  assert.equal(results.filter(({ status }) => status === 200).length, 2, '4,000 tokens each, of 10,000');
  const [refused] = results.filter(({ status }) => status === 429);
  assert.equal(refused.json.error.code, 'budget_exceeded');
  assert.match(refused.json.error.message, /budget of tokens for one day may be used up by its requests under way/);
  assert.ok(Number(refused.headers['retry-after']) <= 5);
  const next = await t.send({ proxy, headers, body: ask('[[text]]') }).done;
  assert.equal(next.status, 200, 'what they did not use is free again');
  const large = await t.send({ proxy, headers, body: { ...ask('[[text]]'), max_tokens: 32_000 } }).done;
  assert.equal(large.status, 200, 'one alone may go over');
});

test("a session's history is held back too: what it has, and what the turns before may add", async (t) => {
  const args = ['--budget', 'tokens=60000/day', '--max-processes', '8'];
  const proxy = await startLight(t, { args, env: { API_KEY: 'one' } });
  const headers = { authorization: 'Bearer one' };
  const turn = (session_id, text, more) => t.send({ proxy, headers, body: { ...ask(text, more), session_id, max_tokens: 1000 } });
  const large = 'word '.repeat(40_000); // 50,000 tokens
  const slow = '[[text n=4 delay_ms=300]]';
  const statuses = async (turns) => (await Promise.all(turns.map(({ done }) => done))).map(({ status }) => status);
  const six = (session) => Array.from({ length: 6 }, () => turn(session, slow));
  assert.equal((await turn('kept', `${large} [[text]]`).done).status, 200, 'one alone may take most of the budget');
  assert.deepEqual((await statuses(six('kept'))).toSorted(), [200, ...Array(5).fill(429)], 'with a history that is kept');
  assert.equal((await turn('kept', '[[text]]').done).status, 200, 'what they did not use is free again');
  assert.deepEqual((await statuses(six('new'))).toSorted(), Array(6).fill(200), 'a session without one holds no more than its turns');
  const first = turn('grows', `${large} ${slow}`);
  await eventually('it is under way', async () => (await scrape(t, { proxy, headers }))('processes', { state: 'busy' }) === 1);
  assert.deepEqual(await statuses([turn('grows', slow), turn('grows', slow)]), [429, 429], 'with one that is under way');
  const whole = turn('grows', slow, { messages: [{ role: 'assistant', content: 'Hi.' }, { role: 'user', content: slow }] });
  assert.deepEqual(await statuses([whole, first]), [200, 200], 'a client that brings the whole history adds none');
});

test('a document by its address is held back as a long one: nobody knows its size', async (t) => {
  const proxy = await startLight(t, { args: ['--budget', 'tokens=40000/day', '--max-processes', '8'], env: { API_KEY: 'one' } });
  const headers = { authorization: 'Bearer one' };
  const held = async (type, source) => {
    const body = { model: 'sonnet', max_tokens: 1000, messages: [{ role: 'user', content: [{ type: 'text', text: '[[text n=4 delay_ms=300]]' }, { type, source }] }] };
    const turns = Array.from({ length: 4 }, () => t.send({ proxy, headers, path: '/v1/messages', body }).done);
    return (await Promise.all(turns)).filter(({ status }) => status === 429).length;
  };
  const url = 'https://example.com/a';
  assert.equal(await held('document', { type: 'url', url }), 3);
  assert.equal(await held('image', { type: 'url', url }), 0);
});

test('choices and prompts count as requests, and so does count_tokens, which takes no dollars', async (t) => {
  const start = (budget) => startLight(t, { args: ['--budget', budget, '--max-processes', '4'], env: { API_KEY: 'one' } });
  const headers = { authorization: 'Bearer one' };
  const chat = (proxy, n) => t.send({ proxy, headers, body: ask('[[text]]', { n }) }).done;
  let proxy = await start('requests=5/day');
  const statuses = [];
  for (const n of [3, 3, 2, 1]) statuses.push((await chat(proxy, n)).status);
  assert.deepEqual(statuses, [200, 429, 200, 429]);
  const complete = (prompt) => t.send({ proxy, headers, path: '/v1/completions', body: { prompt } }).done;
  proxy = await start('requests=2/day');
  assert.deepEqual([(await complete(['a', 'b', 'c'])).status, (await complete(['[[text]]', '[[text]]'])).status, (await complete('a')).status], [429, 200, 429]);
  const count = () => t.send({ proxy, headers, path: '/v1/messages/count_tokens', body: { model: 'sonnet', ...ask('Hi') } }).done;
  proxy = await start('requests=1/day');
  assert.deepEqual([(await count()).status, (await count()).status], [200, 429]);
  proxy = await start('usd=0.0000001/day');
  assert.deepEqual([(await chat(proxy)).status, (await chat(proxy)).status, (await count()).status], [200, 429, 200]);
});
