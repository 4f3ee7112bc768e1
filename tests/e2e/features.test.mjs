// Everything a chat request can ask for, over the real CLI: tools, images, structured output, sampling, n, reasoning. Both ends
// are looked at: what the client got, streamed and not, and what the API was sent. `everyVersion` runs for every pinned CLI,
// `features` for all but the oldest, `once` with the newest.

import assert from 'node:assert/strict';
import { CLI_VERSIONS, DEFAULT_MODEL as MODEL, claudePath } from './claude_cli.mjs';
import { assertError } from './chat.test.mjs';
import {
  ChatClient,
  assertRefused,
  call,
  callerSystem,
  conversationOf,
  eachWay,
  ignoredOf,
  processOf,
  read,
  readFailedStream,
  say,
  steps,
  toolsOf,
} from './chat_client.mjs';
import { eventually, sleep, suite } from './harness.mjs';
import { directive } from './messages_api.mjs';

export const everyVersion = suite();
export const features = suite();
export const once = suite();
const { test } = features;

const OLD_MODEL = 'claude-sonnet-4-20250514'; // takes temperature and top_p together
const USAGE = { input: 100, output: 20, cache_read: 300, cache_creation: 50, ephemeral_1h: 20 };
const times = (count, make) => Array.from({ length: count }, (_, i) => make(i));

const tool = (name, properties = {}, more = {}) => ({
  type: 'function',
  function: {
    name,
    description: `What ${name} does`,
    parameters: { type: 'object', properties, required: Object.keys(properties) },
    ...more,
  },
});
const WEATHER = tool('get_weather', { city: { type: 'string', description: 'Its name' } });
const TIME = tool('get_time', { zone: { type: 'string' } });
const inZurich = { tool: 'get_weather', args: { city: 'Zürich' } };
const argumentsOf = ({ calls }) => calls.map(({ function: { arguments: text } }) => JSON.parse(text));
const namesOf = ({ calls }) => calls.map(({ function: { name } }) => name);
/** A tool call as the API sees it. */
const asBlock = ({ id, function: { name, arguments: text } }) => ({ call: id, name, input: JSON.parse(text) });

function assertUsage(usage, factor = 1) {
  assert.equal(usage.prompt_tokens, 450 * factor);
  assert.equal(usage.completion_tokens, 20 * factor);
  assert.equal(usage.total_tokens, 470 * factor);
  assert.equal(usage.prompt_tokens_details.cached_tokens, 300 * factor);
}

/** A proxy of the test's own, for what may not disturb others. */
async function startOwn(t, args = []) {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', ...args] });
  await proxy.inspected();
  return proxy;
}

async function killAll(proxy) {
  proxy.claudes().forEach(({ pid }) => process.kill(pid, 'SIGKILL'));
  await eventually('none is left', () => proxy.claudes().length === 0);
}

// ---- tools: the round trip -----------------------------------------------------------------------

everyVersion.test('a tool call goes out, its result comes back, and the same process goes on', (t) =>
  eachWay(
    t,
    async (client) => {
      const scenario = steps(
        call(inZurich, { ...USAGE, deltas: 4 }),
        call({ tool: 'get_time', args: { zone: 'CET' } }, { before: 'Sunny there. ' }),
        say('It is noon.', USAGE),
      );
      const first = await client.ask(scenario);
      assert.deepEqual([first.finish, first.text, namesOf(first)], ['tool_calls', null, ['get_weather']]);
      assert.deepEqual(argumentsOf(first), [{ city: 'Zürich' }]);
      assertUsage(first.usage);
      assert.equal(first.usage.cost, undefined, 'the CLI tells the cost when its turn ends');
      if (client.stream) assert.deepEqual(first.pieces, [4], "the API's own pieces");
      assert.deepEqual(first.ignored, []);

      const second = await client.results('sunny, 21 °C').send();
      assert.deepEqual([second.finish, second.text, namesOf(second)], ['tool_calls', 'Sunny there. ', ['get_time']]);
      if (client.stream) assert.deepEqual(second.kinds, ['content', 'tool_calls']);
      const third = await client.results('12:00').send();
      assert.deepEqual([third.finish, third.text, third.calls], ['stop', 'It is noon.', []]);
      assertUsage(third.usage);
      assert.ok(third.usage.cost > 0);
      const fourth = await client.ask(say('You are welcome.'));
      assert.equal(fourth.text, 'You are welcome.');

      const calls = client.assertCalls(4);
      const whole = [
        { role: 'user', content: [client.text(scenario)] },
        { role: 'assistant', content: first.calls.map(asBlock) },
        { role: 'user', content: [{ result: first.calls[0].id, content: 'sunny, 21 °C' }] },
        { role: 'assistant', content: ['Sunny there. ', ...second.calls.map(asBlock)] },
        { role: 'user', content: [{ result: second.calls[0].id, content: '12:00' }] },
        { role: 'assistant', content: ['It is noon.'] },
        { role: 'user', content: [client.text(say('You are welcome.'))] },
      ];
      calls.forEach((one, i) => assert.deepEqual(conversationOf(one), whole.slice(0, 2 * i + 1)));
      for (const one of calls) {
        assert.deepEqual(toolsOf(one), {
          get_weather: { description: 'What get_weather does', input_schema: WEATHER.function.parameters },
          get_time: { description: 'What get_time does', input_schema: TIME.function.parameters },
        });
        assert.equal(callerSystem(one), 'Be brief.');
        assert.ok([undefined, 'auto'].includes(one.body.tool_choice?.type));
      }
    },
    { body: { tools: [WEATHER, TIME] }, messages: [{ role: 'system', content: 'Be brief.' }] },
  ),
);

everyVersion.test('parallel calls come together after the text, and their results in any order', (t) =>
  eachWay(
    t,
    async (client) => {
      const calls = [
        inZurich,
        { tool: 'get_time', args: { zone: 'CET' } },
        { tool: 'get_weather', args: { city: 'Bern' } },
      ];
      const first = await client.ask(steps(call(calls, { before: 'Let me look.' }), say('Done.')));
      assert.deepEqual([first.finish, first.text], ['tool_calls', 'Let me look.']);
      assert.deepEqual(namesOf(first), ['get_weather', 'get_time', 'get_weather']);
      assert.deepEqual(argumentsOf(first), [{ city: 'Zürich' }, { zone: 'CET' }, { city: 'Bern' }]);
      assert.equal(new Set(first.calls.map(({ id }) => id)).size, 3);
      client.results('sunny', 'noon', 'rain');
      client.messages.push(...client.messages.splice(-3).reverse());
      const second = await client.send();
      assert.deepEqual([second.finish, second.text], ['stop', 'Done.']);
      const [, last] = client.assertCalls(2);
      const [user, assistant, results, ...more] = conversationOf(last);
      assert.deepEqual(more, []);
      assert.equal(user.role, 'user');
      assert.deepEqual(assistant.content, ['Let me look.', ...first.calls.map(asBlock)]);
      const expected = first.calls.map(({ id }, i) => ({ result: id, content: ['sunny', 'noon', 'rain'][i] }));
      const byId = (a, b) => (a.result < b.result ? -1 : 1);
      assert.deepEqual(results.content.sort(byId), expected.sort(byId));
    },
    { body: { tools: [WEATHER, TIME] } },
  ),
);

test('a call without arguments, a tool without parameters, and a schema that goes through whole', (t) => {
  const schema = {
    type: 'object',
    properties: { a: { $ref: '#/$defs/A' }, b: { anyOf: [{ type: 'null' }, { type: 'integer', minimum: 0 }] } },
    $defs: { A: { type: 'string', enum: ['x', 'ü'], pattern: '^.$' } },
    additionalProperties: false,
    description: 'Its own words',
  };
  const tools = [
    { type: 'function', function: { name: 'now' } },
    tool('whole', {}, { parameters: schema }),
    tool('empty', {}, { parameters: {} }),
  ];
  return eachWay(
    t,
    async (client) => {
      const first = await client.ask(
        steps(
          call([
            { tool: 'now', args: {} },
            { tool: 'whole', args: { b: null } },
          ]),
          say('Done.'),
        ),
      );
      assert.deepEqual(
        first.calls.map(({ function: one }) => one.arguments),
        ['{}', '{"b":null}'],
      );
      assert.equal((await client.results('1', '2').send()).text, 'Done.');
      const [sent] = client.assertCalls(2);
      const offered = toolsOf(sent);
      assert.deepEqual(Object.keys(offered).sort(), ['empty', 'now', 'whole']);
      assert.deepEqual(offered.whole.input_schema, schema);
      for (const name of ['now', 'empty']) {
        assert.equal(offered[name].input_schema.type, 'object');
        assert.deepEqual(offered[name].input_schema.properties ?? {}, {});
      }
    },
    { body: { tools } },
  );
});

test('arguments are streamed as they come', async (t) => {
  const client = new ChatClient(t, { stream: true, body: { tools: [WEATHER] } });
  const answer = await client.ask(call(inZurich, { deltas: 5, delay: 120 }));
  assert.deepEqual(answer.pieces, [5]);
  const arrived = answer.times.map(({ at }) => at);
  assert.ok(arrived.at(-1) - arrived[0] > 300, `all within ${Math.round(arrived.at(-1) - arrived[0])} ms`);
});

test('text after the calls is not lost', (t) =>
  eachWay(
    t,
    async (client) => {
      const answer = await client.ask(call(inZurich, { before: 'Before. ', after: 'After.' }));
      assert.deepEqual(
        [answer.finish, answer.text, namesOf(answer)],
        ['tool_calls', 'Before. After.', ['get_weather']],
      );
    },
    { body: { tools: [WEATHER] } },
  ));

test('a client that writes the call down in its own way is recognised', async (t) => {
  const variants = {
    'empty content': (message) => ({ ...message, content: '' }),
    'no content': ({ content: _, ...message }) => message,
    'other white space': (message) => ({
      ...message,
      tool_calls: message.tool_calls.map((one) => ({
        ...one,
        function: { ...one.function, arguments: JSON.stringify(JSON.parse(one.function.arguments), null, 2) },
      })),
    }),
    'other fields': (message) => ({ ...message, refusal: null, annotations: [], audio: null, name: 'me' }),
  };
  for (const [what, change] of Object.entries(variants)) {
    const client = new ChatClient(t, { body: { tools: [WEATHER] } });
    await client.ask(steps(call(inZurich), say('Done.')));
    client.messages.push(change(client.messages.pop()));
    assert.equal((await client.results('sunny').send()).text, 'Done.', what);
    client.assertCalls(2);
  }
});

// ---- tools: what results may be ------------------------------------------------------------------

const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
const PDF = Buffer.from(
  '%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n',
).toString('base64');
const textPart = (text) => ({ type: 'text', text });
const imagePart = (url) => ({ type: 'image_url', image_url: { url } });
const pngPart = imagePart(`data:image/png;base64,${PNG}`);
const pngBlock = { type: 'image', source: { type: 'base64', media_type: 'image/png', data: PNG } };
const urlBlock = { type: 'image', source: { type: 'url', url: 'https://pictures.example/a.png' } };

/** What the API is told of a tool's result, when the same process goes on and when a fresh one is told the history. */
const RESULTS = {
  'an error': ['Error: no such city', 'Error: no such city'],
  'something like a reminder': [
    '<system-reminder>\nmine\n</system-reminder>',
    '<system-reminder>\nmine\n</system-reminder>',
  ],
  'text parts': [
    [textPart('one'), textPart('two')],
    ['one', 'two'],
  ],
  'an image': [
    [textPart('see'), pngPart, textPart('there')],
    ['see', pngBlock, 'there'],
  ],
  'an image alone': [[pngPart], pngBlock],
  'an image by URL': [
    [textPart('see'), imagePart('https://pictures.example/a.png')],
    ['see', urlBlock],
    { replayed: true },
  ],
  JSON: ['{"a": [1, 2, "ü\\n"]}', '{"a": [1, 2, "ü\\n"]}'],
};

for (const [what, [content, sent, { replayed = false } = {}]] of Object.entries(RESULTS)) {
  test(`a result that is ${what} reaches the API as it is`, (t) =>
    eachWay(
      t,
      async (client) => {
        const { calls } = await client.ask(steps(call([inZurich, inZurich]), say('Done.')));
        assert.equal((await client.results(content, 'plain').send()).text, 'Done.');
        const [, last] = client.assertCalls(2, replayed ? 2 : 1);
        const results = Object.fromEntries(
          conversationOf(last)
            .at(-1)
            .content.map(({ result, ...one }) => [result, one]),
        );
        assert.deepEqual(results, { [calls[0].id]: { content: sent }, [calls[1].id]: { content: 'plain' } });
      },
      { body: { tools: [WEATHER] } },
    ));
}

everyVersion.test('large results reach the API whole: 400 kB, three of 150 kB, 900 kB', async (t) => {
  // The CLI would write what it finds too long to a file, and tell the model where.
  await Promise.all(
    [[400], [150, 150, 150], [900]].map(async (sizes) => {
      const client = new ChatClient(t, { body: { tools: [WEATHER] } });
      await client.ask(steps(call(sizes.map(() => inZurich)), say('Done.')));
      const contents = sizes.map((size, i) => `${i}-begin ${'0123456789 ü '.repeat((size * 1000) / 14)} end-${i}`);
      assert.equal((await client.results(...contents).send()).text, 'Done.', `${sizes}`);
      const last = conversationOf(client.calls().at(-1)).at(-1).content;
      assert.deepEqual(
        last.map(({ content }) => content.length),
        contents.map(({ length }) => length),
      );
      assert.deepEqual(
        last.map(({ content }) => content),
        contents,
      );
    }),
  );
});

test('an empty result is a result', async (t) => {
  const client = new ChatClient(t, { body: { tools: [WEATHER] } });
  const { calls } = await client.ask(steps(call([inZurich, inZurich]), say('Done.')));
  assert.equal((await client.results('', []).send()).text, 'Done.');
  const last = conversationOf(client.assertCalls(2)[1]).at(-1).content;
  assert.deepEqual(last.map(({ result }) => result).sort(), calls.map(({ id }) => id).sort());
  // The CLI says in its own words that there was nothing.
  for (const { content } of last) assert.ok(content.length === 0 || /no output/.test(content), JSON.stringify(content));
});

// ---- tools: when the process does not just go on -------------------------------------------------

everyVersion.test(
  'a process killed between call and result: the history is replayed with its tool blocks',
  async (t) => {
    const proxy = await startOwn(t);
    await eachWay(
      t,
      async (client) => {
        const scenario = steps(
          call([inZurich, { tool: 'get_time', args: { zone: 'CET' } }], { before: 'Look:' }),
          say('Done.'),
        );
        client.first = await client.ask(scenario);
        client.scenario = scenario;
        client.results('sunny', 'noon');
        t.clients = [...(t.clients ?? []), client];
      },
      { proxy, body: { tools: [WEATHER, TIME] } },
    );
    await killAll(proxy);
    for (const client of t.clients) {
      assert.equal((await client.send()).text, 'Done.');
      assert.equal((await client.ask(say('More.'))).text, 'More.');
      const calls = client.assertCalls(3, 2);
      const [first, second] = client.first.calls;
      const told = [
        { role: 'user', content: [client.text(client.scenario)] },
        { role: 'assistant', content: ['Look:', asBlock(first), asBlock(second)] },
        {
          role: 'user',
          content: [
            { result: first.id, content: 'sunny' },
            { result: second.id, content: 'noon' },
          ],
        },
      ];
      assert.deepEqual(conversationOf(calls[1]), told);
      assert.deepEqual(conversationOf(calls[2]).slice(0, 3), told);
      assert.equal(processOf(calls[1]), processOf(calls[2]), 'the fresh process goes on');
      assert.deepEqual(Object.keys(toolsOf(calls[1])).sort(), ['get_time', 'get_weather']);
    }
  },
);

test('a session keeps calls and results, with its process and without', async (t) => {
  const proxy = await startOwn(t);
  const clients = [true, false].map(
    (stream) => new ChatClient(t, { proxy, stream, session: 'tools', body: { tools: [WEATHER] } }),
  );
  const scenario = steps(call(inZurich), call({ tool: 'get_weather', args: { city: 'Bern' } }), say('Done.'));
  await Promise.all(
    clients.map(async (client) => {
      await client.ask(scenario);
      client.firstCalls = client.last.calls;
      await client.results('sunny').send();
      client.results('rain');
    }),
  );
  await killAll(proxy);
  for (const client of clients) {
    assert.equal((await client.send()).text, 'Done.');
    const calls = client.assertCalls(3, 2);
    assert.equal(processOf(calls[0]), processOf(calls[1]));
    assert.deepEqual(conversationOf(calls[2]), [
      { role: 'user', content: [client.text(scenario)] },
      { role: 'assistant', content: client.firstCalls.map(asBlock) },
      { role: 'user', content: [{ result: client.firstCalls[0].id, content: 'sunny' }] },
      { role: 'assistant', content: client.messages.at(-3).tool_calls.map(asBlock) },
      { role: 'user', content: [{ result: client.messages.at(-2).tool_call_id, content: 'rain' }] },
    ]);
    assert.equal((await client.ask(say('More.'))).text, 'More.');
    assert.equal(conversationOf(client.calls()[3]).length, 7);
  }
});

test('results and user text in one request both reach the API', (t) =>
  eachWay(
    t,
    async (client) => {
      const { calls } = await client.ask(call([inZurich, inZurich]));
      const answer = await client.results('sunny', 'rain').user(say('Done.'), 'and now?').send();
      assert.equal(answer.text, 'Done.');
      const last = conversationOf(client.calls().at(-1));
      assert.equal(client.calls().length, 2);
      assert.deepEqual(
        last.map(({ role }) => role),
        ['user', 'assistant', 'user'],
      );
      assert.deepEqual(last[2].content, [
        { result: calls[0].id, content: 'sunny' },
        { result: calls[1].id, content: 'rain' },
        client.text(say('Done.'), 'and now?'),
      ]);
      assert.equal((await client.ask(say('More.'))).text, 'More.');
      const [, told, next] = client.calls().map(processOf);
      if (client.proxy !== t.shared) assert.equal(next, told);
    },
    { body: { tools: [WEATHER] } },
  ));

test('results for some of the calls only, or for a call that nobody made, are 400, and the call still waits', async (t) => {
  const client = new ChatClient(t, { body: { tools: [WEATHER] } });
  const { calls } = await client.ask(steps(call([inZurich, inZurich]), say('Done.')));
  const [one, two] = client.results('sunny', 'rain').messages.splice(-2);
  const made = client.messages;
  const refused = async (param, ...messages) => {
    for (const stream of [true, false]) {
      client.messages = [...made, ...messages];
      assertRefused(await client.sendRaw({ stream }).done, 400, param);
    }
  };
  await refused(/^messages/, one);
  await refused(/^messages/, two);
  await refused(/^messages/); // none at all, and no user text
  await refused(/^messages/, one, { role: 'user', content: client.text(say('x')) });
  await refused(/^messages/, one, { ...two, tool_call_id: 'toolu_nobody' });
  await refused(/^messages/, one, two, { ...two, tool_call_id: 'toolu_nobody' });
  await refused(/^messages/, one, two, two);
  client.messages = [{ role: 'user', content: client.text(say('x')) }, one];
  assertRefused(await client.sendRaw().done, 400, /^messages/);
  assert.equal(client.calls().length, 1, 'nothing of this reached the API');

  client.messages = [...made, one, two];
  assert.equal((await client.send()).text, 'Done.');
  client.assertCalls(2);
  assert.equal(calls.length, 2);
});

everyVersion.test('a history with tools that another provider made is replayed', async (t) => {
  const client = new ChatClient(t, { body: { tools: [WEATHER] } });
  const made = (id, args) => ({ id, type: 'function', function: { name: 'get_weather', arguments: args } });
  client.messages.push(
    { role: 'user', content: 'Weather?' },
    { role: 'assistant', content: null, tool_calls: [made('call_1', '{"city":"Zürich"}'), made('call:2/ü', '')] },
    { role: 'tool', tool_call_id: 'call:2/ü', content: 'rain' },
    { role: 'tool', tool_call_id: 'call_1', content: 'sunny' },
    { role: 'assistant', content: 'Sunny and rain.' },
    { role: 'user', content: client.text(steps(call(inZurich), say('Done.'))) },
    { role: 'assistant', content: 'Again:', tool_calls: [made('call_3', '{"city":"Bern"}')] },
    { role: 'tool', tool_call_id: 'call_3', content: 'snow' },
  );
  assert.equal((await client.send()).text, 'Done.');
  const sent = conversationOf(client.calls()[0]);
  assert.deepEqual(
    sent.map(({ role }) => role),
    ['user', 'assistant', 'user', 'assistant', 'user', 'assistant', 'user'],
  );
  assert.deepEqual(sent[1].content[0], { call: 'call_1', name: 'get_weather', input: { city: 'Zürich' } });
  assert.deepEqual([sent[1].content[1].name, sent[1].content[1].input], ['get_weather', {}]);
  const results = Object.fromEntries(sent[2].content.map(({ result, content }) => [result, content]));
  assert.deepEqual(results, { call_1: 'sunny', [sent[1].content[1].call]: 'rain' });
  assert.deepEqual(sent[5].content, ['Again:', { call: 'call_3', name: 'get_weather', input: { city: 'Bern' } }]);
  assert.deepEqual(sent[6].content, [{ result: 'call_3', content: 'snow' }]);
  assert.equal((await client.ask(say('More.'))).text, 'More.');
  client.assertCalls(2);
});

test('calls in the history whose tools are not offered any more are history all the same', async (t) => {
  const client = new ChatClient(t, { body: { tools: [WEATHER] } });
  const { calls } = await client.ask(steps(call(inZurich), say('Done.')));
  await client.results('sunny').send();
  client.body = {};
  assert.equal((await client.ask(say('More.'))).text, 'More.');
  client.body = { tools: [TIME] };
  assert.equal((await client.ask(say('And more.'))).text, 'And more.');
  const [, , bare, other] = client.assertCalls(4, 3);
  // The API wants to know the tools of a history; what is offered no more may not be called.
  assert.deepEqual([Object.keys(toolsOf(bare)), bare.body.tool_choice], [['get_weather'], { type: 'none' }]);
  assert.deepEqual([Object.keys(toolsOf(other)), choiceOf(other)], [['get_time'], undefined]);
  for (const one of [bare, other]) {
    assert.deepEqual(conversationOf(one)[1].content, calls.map(asBlock));
    assert.deepEqual(conversationOf(one)[2].content, [{ result: calls[0].id, content: 'sunny' }]);
  }
});

test('a tool that comes with the results is offered', async (t) => {
  const client = new ChatClient(t, { body: { tools: [WEATHER] } });
  await client.ask(steps(call(inZurich), call({ tool: 'get_time', args: {} }), say('Done.')));
  client.body = { tools: [WEATHER, TIME] };
  assert.deepEqual(namesOf(await client.results('sunny').send()), ['get_time']);
  assert.equal((await client.results('noon').send()).text, 'Done.');
  const calls = client.assertCalls(3, 2);
  assert.deepEqual(Object.keys(toolsOf(calls[1])).sort(), ['get_time', 'get_weather']);
});

test("an error after the results is the API's, and the same results can be sent again", async (t) => {
  for (const stream of [true, false]) {
    const client = new ChatClient(t, { stream, body: { tools: [WEATHER] } });
    const failing = directive('error', { status: 400, message: 'not now', until: client.name, text: 'Done.' });
    await client.ask(steps(call(inZurich), failing));
    const failed = await client.results('sunny').sendRaw().done;
    assertRefused(failed, 400);
    assert.match(failed.json.error.message, /not now/);
    t.api.heal(client.name);
    assert.equal((await client.send()).text, 'Done.');
    const [first, second, ...more] = client.calls();
    assert.equal(processOf(first), processOf(second));
    for (const one of more) assert.deepEqual(conversationOf(one), conversationOf(second));
  }
});

once.test(
  'at the cap a waiting call gives its process up for another conversation, and goes on when that is over',
  async (t) => {
    const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', '--max-processes', '1', '--max-queue', '4'] });
    await proxy.inspected();
    const clients = times(2, () => new ChatClient(t, { proxy, body: { tools: [WEATHER] } }));
    for (const client of clients) await client.ask(steps(call(inZurich), say('Done.')));
    const { processes } = (await t.get('/health', { proxy })).json;
    assert.deepEqual([processes.busy, processes.idle], [0, 1], 'a waiting call is idle');
    for (const client of clients) assert.equal((await client.results('sunny').send()).text, 'Done.');
    for (const client of clients) client.assertCalls(2);

    // A process that ends tells the API nothing of the call that it gives up.
    const last = new ChatClient(t, { proxy, body: { tools: [WEATHER] } });
    await last.ask(call(inZurich));
    assert.deepEqual((await proxy.stop()).faults, []);
    proxy.stopped = true;
    last.assertCalls(1);
  },
);

once.test("a call of one client key is never answered by another's result", async (t) => {
  const proxy = await startOwn(t, ['--api-key', 'key-one', '--api-key', 'key-two']);
  const client = new ChatClient(t, { proxy, headers: { 'x-api-key': 'key-one' }, body: { tools: [WEATHER] } });
  await client.ask(steps(call(inZurich), say('Done.')));
  client.results('sunny');
  const other = read(await client.sendRaw({}, { 'x-api-key': 'key-two' }).done);
  assert.equal(other.text, 'Done.', 'a replay, as of any history');
  assert.equal((await client.send()).text, 'Done.');
  const [asked, foreign, own] = client.calls().map(processOf);
  assert.notEqual(foreign, asked);
  assert.equal(own, asked, 'the call still waited');
});

// ---- tools: which ones, and how --------------------------------------------------------------------

const CHOICES = {
  auto: [{ tool_choice: 'auto' }, undefined],
  none: [{ tool_choice: 'none' }, { type: 'none' }],
  required: [{ tool_choice: 'required' }, { type: 'any' }],
  named: [{ tool_choice: { type: 'function', function: { name: 'get_time' } } }, { type: 'tool', name: 'get_time' }],
  'one at a time': [{ parallel_tool_calls: false }, { type: 'auto', disable_parallel_tool_use: true }],
  'required, one at a time': [
    { tool_choice: 'required', parallel_tool_calls: false },
    { type: 'any', disable_parallel_tool_use: true },
  ],
  'parallel, as usual': [{ parallel_tool_calls: true }, undefined],
};
/** As the API takes it: nothing said is auto. */
const choiceOf = ({ body: { tool_choice: choice } }) => {
  if (!choice || (choice.type === 'auto' && !choice.disable_parallel_tool_use)) return undefined;
  return choice.disable_parallel_tool_use === false ? { ...choice, disable_parallel_tool_use: undefined } : choice;
};

everyVersion.test('tool_choice and parallel_tool_calls reach the API, for their own request alone', async (t) => {
  await Promise.all(
    [true, false].map(async (stream) => {
      const client = new ChatClient(t, { stream, body: { tools: [WEATHER, TIME] } });
      const expected = [];
      for (const [what, [fields, choice]] of Object.entries(CHOICES)) {
        const forced = ['any', 'tool'].includes(choice?.type);
        const scenario =
          choice?.type === 'none' ? say('No.') : steps(call({ tool: 'get_time', args: {} }), say('Done.'));
        const answer = await client.ask(scenario, fields);
        assert.deepEqual(answer.ignored, [], what);
        expected.push(choice);
        if (choice?.type === 'none') continue;
        // The choice of the first request would force a call again and again; asked again, it stays.
        await client.results('noon').send(forced ? {} : fields);
        expected.push(forced ? undefined : choice);
      }
      const calls = client.assertCalls(expected.length);
      assert.deepEqual(calls.map(choiceOf), expected);
      for (const one of calls) assert.equal(Object.keys(toolsOf(one)).length, 2);
    }),
  );
});

once.test('a tool that must be called, of a model that always thinks: it is asked to, which is told', async (t) => {
  for (const [choice, said] of [
    ['required', /Answer with a call of one of your tools/],
    [{ type: 'function', function: { name: 'get_weather' } }, /Answer with a call of the tool `get_weather`/],
  ]) {
    const client = new ChatClient(t, { body: { model: 'sonnet', tools: [WEATHER], tool_choice: choice } });
    const answer = await client.ask(steps(call(inZurich), say('Done.')));
    assert.deepEqual([answer.finish, answer.ignored], ['tool_calls', ['tool_choice']]);
    assert.equal((await client.results('sunny').send()).text, 'Done.');
    const [first, second] = client.assertCalls(2);
    assert.equal(first.body.thinking.type, 'adaptive');
    assert.ok([undefined, 'auto'].includes(first.body.tool_choice?.type));
    assert.match(JSON.stringify(first.body.messages), said);
    const session = ({ headers }) => headers['x-claude-code-session-id'];
    assert.equal(session(first), session(second), 'the process that waited goes on');
  }
  const strict = new ChatClient(t, { headers: { 'x-strict-params': 'true' }, body: { model: 'sonnet', tools: [WEATHER], tool_choice: 'required' } });
  await assert.rejects(strict.ask(say('no')), /tool_choice/);
});

test('tool_choice asked again with the results forces again', async (t) => {
  const client = new ChatClient(t, { body: { tools: [WEATHER], tool_choice: 'required' } });
  await client.ask(steps(call(inZurich), call(inZurich), say('Done.')));
  assert.equal((await client.results('sunny').send()).finish, 'tool_calls');
  assert.deepEqual(client.assertCalls(2).map(choiceOf), [{ type: 'any' }, { type: 'any' }]);
});

for (const [param, fields] of [
  [/^tool_choice/, { tool_choice: 'sometimes', tools: [WEATHER] }],
  [/^tool_choice/, { tool_choice: { type: 'function', function: { name: 'nobody' } }, tools: [WEATHER] }],
  [/^tool_choice/, { tool_choice: 'required' }],
  [/^tool_choice/, { tool_choice: 7, tools: [WEATHER] }],
  [/^parallel_tool_calls/, { parallel_tool_calls: 'x', tools: [WEATHER] }],
  ['tools', { tools: 'x' }],
  ['tools[0]', { tools: ['x'] }],
  [/^tools\[0\]\.type/, { tools: [{ type: 'retrieval' }] }],
  [/^tools\[1\]\.function\.name/, { tools: [WEATHER, { type: 'function', function: {} }] }],
  [/^tools\[1\]\.function\.name/, { tools: [WEATHER, tool('')] }],
  [/^tools\[1\]/, { tools: [WEATHER, WEATHER] }],
  [/^tools\[0\]\.function\.parameters/, { tools: [tool('x', {}, { parameters: 'x' })] }],
  [/^tools\[0\]\.function\.parameters/, { tools: [tool('x', {}, { parameters: { type: 'array' } })] }],
  [
    /^messages\[1\]\.tool_calls/,
    {
      messages: [
        { role: 'user', content: 'x' },
        { role: 'assistant', tool_calls: 'x' },
      ],
    },
  ],
]) {
  once.test(`400 names ${param} of ${JSON.stringify(fields)}`, async (t) => {
    const result = await t.chat({ messages: t.messages('plain'), ...fields });
    assertRefused(result, 400, param);
    assert.equal(t.calls().length, 0);
  });
}

test('names that the API would refuse, or that mean something to the CLI, come back as they were given', async (t) => {
  const names = [
    'my.tool/with spaces',
    'my_tool_with_spaces',
    'my tool.with/spaces',
    'wëather',
    '世界',
    'x'.repeat(64),
    'y'.repeat(200),
    'StructuredOutput',
    'Bash',
    'Read',
    'Task',
    'mcp__client__x',
    'mcp__other__x',
    'client',
    '-',
    '__proto__',
  ];
  const tools = names.map((name, i) => tool(name, {}, { description: `tool number ${i}.` }));
  await eachWay(
    t,
    async (client) => {
      const calls = names.map((_, i) => ({ of: `tool number ${i}.`, args: { i } }));
      const first = await client.ask(steps(call(calls), say('Done.')));
      assert.deepEqual(namesOf(first), names);
      assert.deepEqual(
        argumentsOf(first),
        names.map((_, i) => ({ i })),
      );
      const answer = await client.results(...names.map((name) => `result of ${name}`)).send();
      assert.equal(answer.text, 'Done.');
      const [one, two] = client.assertCalls(2);
      const offered = Object.fromEntries(one.body.tools.map(({ name, description }) => [description, name]));
      const told = conversationOf(two);
      assert.deepEqual(
        told[1].content.map(({ name }) => name),
        names.map((_, i) => offered[`tool number ${i}.`]),
      );
      const results = Object.fromEntries(told[2].content.map(({ result, content }) => [result, content]));
      first.calls.forEach(({ id, function: { name } }) => assert.equal(results[id], `result of ${name}`));
      // What the API takes is left alone.
      for (const name of ['my_tool_with_spaces', 'x'.repeat(64)])
        assert.equal(offered[`tool number ${names.indexOf(name)}.`], name);

      // A fresh process is told the same names, and the one that is chosen is found.
      const chosen = await new ChatClient(t, { body: { tools }, messages: client.messages }).ask(
        call({ of: 'tool number 0.', args: {} }),
        { tool_choice: { type: 'function', function: { name: names[0] } }, user: 'other' },
      );
      assert.deepEqual(namesOf(chosen), [names[0]]);
    },
    { body: { tools } },
  );
  const forced = t.calls().filter(({ body }) => body.tool_choice?.type === 'tool');
  assert.equal(forced.length, 2);
  for (const { body } of forced) {
    const { name } = body.tools.find(({ description }) => description === 'tool number 0.');
    assert.equal(body.tool_choice.name, name);
    assert.equal(body.messages[1].content[0].name, name, 'the same in the history');
  }
});

test('128 tools are offered and called', async (t) => {
  const tools = times(128, (i) => tool(`tool_${i}`, { value: { type: 'string', description: 'x'.repeat(100) } }));
  const client = new ChatClient(t, { stream: true, body: { tools } });
  const first = await client.ask(
    steps(
      call([
        { tool: 'tool_0', args: {} },
        { tool: 'tool_127', args: { value: 'v' } },
      ]),
      say('Done.'),
    ),
  );
  assert.deepEqual(namesOf(first), ['tool_0', 'tool_127']);
  assert.equal((await client.results('a', 'b').send()).text, 'Done.');
  const [sent] = client.assertCalls(2);
  const offered = toolsOf(sent);
  assert.equal(Object.keys(offered).length, 128);
  for (const { function: one } of tools)
    assert.deepEqual(offered[one.name], { description: one.description, input_schema: one.parameters });
});

test('a long description reaches the API whole', async (t) => {
  const description = `begin ${'words '.repeat(1500)}the end`; // the CLI cuts at 2048 or 4096 characters
  const client = new ChatClient(t, { body: { tools: [tool('long', {}, { description })] } });
  await client.ask(say('Done.'));
  const sent = JSON.stringify(client.calls()[0].body.tools);
  for (const part of ['begin words', 'words the end']) assert.ok(sent.includes(part), `${part} in ${sent.slice(-300)}`);
  assert.equal(sent.match(/words/g).length, 1500);
});

test('40 calls in one message, and the answer to all of them', async (t) => {
  const client = new ChatClient(t, { stream: true, body: { tools: [WEATHER] } });
  const first = await client.ask(
    steps(call(times(40, (i) => ({ tool: 'get_weather', args: { city: `city-${i}` } }))), say('Done.')),
  );
  assert.equal(first.calls.length, 40);
  assert.equal((await client.results(...times(40, (i) => `weather-${i}`)).send()).text, 'Done.');
  const [, last] = client.assertCalls(2);
  const results = Object.fromEntries(conversationOf(last)[2].content.map(({ result, content }) => [result, content]));
  first.calls.forEach(({ id }, i) => assert.equal(results[id], `weather-${i}`));
});

test('functions and function_call, as they were before tools', (t) => {
  const functions = [WEATHER.function, TIME.function];
  return eachWay(
    t,
    async (client) => {
      const first = await client.ask(steps(call(inZurich, { before: 'Look:' }), say('Done.')), {
        function_call: 'auto',
      });
      assert.deepEqual([first.finish, first.text, first.calls], ['function_call', 'Look:', []]);
      assert.equal(first.message.function_call.name, 'get_weather');
      assert.deepEqual(JSON.parse(first.message.function_call.arguments), { city: 'Zürich' });
      client.messages.push({ role: 'function', name: 'get_weather', content: 'sunny' });
      const second = await client.send();
      assert.deepEqual([second.finish, second.text], ['stop', 'Done.']);
      await client.ask(say('No.'), { function_call: 'none' });
      await client.ask(call({ tool: 'get_time', args: {} }), { function_call: { name: 'get_time' } });
      const calls = client.calls();
      assert.equal(calls.length, 4);
      // An old client knows of one call only, so the API may be asked for no more.
      const one = { disable_parallel_tool_use: true };
      assert.deepEqual(calls.map(choiceOf), [
        { type: 'auto', ...one },
        { type: 'auto', ...one },
        { type: 'none' },
        { type: 'tool', name: 'get_time', ...one },
      ]);
      assert.deepEqual(Object.keys(toolsOf(calls[0])).sort(), ['get_time', 'get_weather']);
      const [, assistant, result] = conversationOf(calls[1]);
      assert.deepEqual([assistant.content[1].name, assistant.content[1].input], ['get_weather', { city: 'Zürich' }]);
      assert.deepEqual(result.content, [{ result: assistant.content[1].call, content: 'sunny' }]);
    },
    { body: { functions } },
  );
});

// ---- images and files ----------------------------------------------------------------------------

const EARLIER = [{ role: 'user', content: 'Well?' }, { role: 'assistant', content: 'Yes?' }];
/** How each API asks that a cached prompt is kept for an hour, with the name that a CLI without that leaves unhonoured. */
const CACHE_FIELDS = {
  '/v1/chat/completions': [['prompt_cache_retention', { prompt_cache_retention: '24h' }], ['prompt_cache_options.ttl', { prompt_cache_options: { ttl: '30m' } }]],
  '/v1/messages': [
    ['cache_control.ttl', { cache_control: { type: 'ephemeral', ttl: '1h' } }],
    ['cache_control.ttl', { system: [{ type: 'text', text: 'Be brief.', cache_control: { type: 'ephemeral', ttl: '1h' } }] }],
    ['cache_control.ttl', { messages: [{ role: 'user', content: [{ type: 'text', text: 'Hm.', cache_control: { type: 'ephemeral', ttl: '1h' } }] }] }],
  ],
};

everyVersion.test('a cached prompt is kept as long as its request asks, or that is named; the next one of its process is not', async (t) => {
  const lifetimes = ({ body }) => new Set([...JSON.stringify(body).matchAll(/"cache_control":(\{[^}]*\})/g)].map(([, mark]) => JSON.parse(mark).ttl ?? 'default'));
  const ask = async (path, text, more) => {
    const said = { role: 'user', content: t.text('plain', text) };
    const body = { model: MODEL, max_tokens: 100, ...more, messages: [...(more.messages ? [...more.messages, EARLIER[1]] : []), said] };
    const { done } = t.send({ path, body });
    const result = await done;
    assert.equal(result.status, 200, result.text);
    const call = t.calls().find(({ raw }) => raw.includes(text));
    return [lifetimes(call), result.headers['x-ignored-params'] ?? '', Number(/cc_version=2\.1\.(\d+)/.exec(call.raw)[1]) >= 242];
  };
  for (const [path, rows] of Object.entries(CACHE_FIELDS)) {
    for (const [at, [name, more]] of rows.entries()) {
      const [kept, named, can] = await ask(path, `${path} ${at} asks.`, more);
      assert.deepEqual([[...kept].join(), named], can ? ['1h', ''] : ['default', name]);
      if (!can) continue; // then nothing of it reached the process
      assert.deepEqual((await ask(path, `${path} ${at} does not.`, {})).slice(0, 2), [new Set(['default']), '']);
    }
  }
  const bad = await t.send({ path: '/v1/messages', body: { model: MODEL, max_tokens: 9, cache_control: { type: 'ephemeral', ttl: '2h' }, messages: EARLIER.slice(0, 1) } }).done;
  assert.deepEqual([bad.status, bad.json.error.message], [400, "'cache_control.ttl' must be '5m' or '1h'"]);
});

everyVersion.test('images and PDFs reach the API in their order, and stay in the conversation', (t) =>
  eachWay(t, async (client) => {
    const file = { type: 'file', file: { filename: 'a.pdf', file_data: `data:application/pdf;base64,${PDF}` } };
    client.messages.push({
      role: 'user',
      content: [
        textPart('first'),
        pngPart,
        imagePart('https://pictures.example/a.png'),
        imagePart('http://pictures.example/b.png?x=1'),
        file,
        textPart(client.text(say('I see.'))),
      ],
    });
    const answer = await client.send();
    assert.deepEqual([answer.text, answer.ignored], ['I see.', []]);
    client.messages.push({ role: 'user', content: [pngPart, textPart(client.text(say('Again.')))] });
    assert.equal((await client.send()).text, 'Again.');
    const [first, second] = client.assertCalls(2).map(conversationOf);
    const [text, png, one, two, pdf, last] = first[0].content;
    assert.deepEqual([text, last], ['first', client.text(say('I see.'))]);
    assert.deepEqual([png, one], [pngBlock, urlBlock]);
    assert.deepEqual(two.source, { type: 'url', url: 'http://pictures.example/b.png?x=1' });
    assert.equal(pdf.type, 'document');
    assert.deepEqual(pdf.source, { type: 'base64', media_type: 'application/pdf', data: PDF });
    assert.deepEqual(second[0], first[0]);
    assert.deepEqual(second[2].content, [pngBlock, client.text(say('Again.'))]);
  }),
);

test('an image without text, and images in a history that is replayed', async (t) => {
  const client = new ChatClient(t, {
    messages: [
      { role: 'user', content: [pngPart] },
      { role: 'assistant', content: 'A dot.' },
      { role: 'user', content: [imagePart('https://pictures.example/a.png'), pngPart] },
      { role: 'assistant', content: [textPart('Two '), textPart('of them.')] },
    ],
  });
  assert.equal((await client.ask(say('Yes.'))).text, 'Yes.');
  const sent = conversationOf(client.calls()[0]);
  assert.deepEqual(sent[0].content, [pngBlock]);
  assert.deepEqual(sent[2].content, [urlBlock, pngBlock]);
  const alone = await t.chat({
    messages: [
      { role: 'system', content: `alone-${t.token}` },
      { role: 'user', content: [pngPart] },
    ],
  });
  assert.equal(alone.status, 200, alone.text);
  const [sentAlone] = t.calls().filter(({ raw }) => raw.includes(`alone-${t.token}`));
  assert.deepEqual(conversationOf(sentAlone), [{ role: 'user', content: [pngBlock] }]);
});

const MEBIBYTE = 1024 * 1024;
for (const [what, part, status = 400] of [
  ['audio', { type: 'input_audio', input_audio: { data: 'AAAA', format: 'wav' } }],
  ['an image of a type that the API does not know', imagePart('data:image/bmp;base64,AAAA')],
  ['an image that is no image', imagePart('data:text/html;base64,AAAA')],
  ['an image whose data is no base64', imagePart('data:image/png;base64,***')],
  ['an image without data', imagePart('data:image/png;base64,')],
  ['an image whose data is not in base64', imagePart('data:image/png,abc')],
  ['an image of a file', imagePart('file:///etc/passwd')],
  ['an image by ftp', imagePart('ftp://pictures.example/a.png')],
  ['an image without URL', { type: 'image_url', image_url: {} }],
  ['an image whose URL is a number', imagePart(7)],
  ['an image over 5 MiB', imagePart(`data:image/png;base64,${'A'.repeat(7 * MEBIBYTE)}`), /400|413/],
  ['a file by id', { type: 'file', file: { file_id: 'file-1' } }],
  [
    'a file of another type',
    { type: 'file', file: { filename: 'a.zip', file_data: 'data:application/zip;base64,AAAA' } },
  ],
  ['a file whose data is no base64', { type: 'file', file: { file_data: 'data:application/pdf;base64,*' } }],
  ['a file without data', { type: 'file', file: { filename: 'a.pdf' } }],
]) {
  once.test(`${what} is refused before anything is sent`, async (t) => {
    for (const where of ['user', 'tool']) {
      const client = new ChatClient(t, { body: { tools: [WEATHER] } });
      const content = [textPart('x'), part];
      client.user(say('x'));
      if (where === 'user') client.messages.push({ role: 'user', content });
      else {
        const made = { id: 'a', type: 'function', function: { name: 'get_weather', arguments: '{}' } };
        client.messages.push({ role: 'assistant', tool_calls: [made] }, { role: 'tool', tool_call_id: 'a', content });
      }
      const result = await client.sendRaw().done;
      assert.match(String(result.status), status instanceof RegExp ? status : /400/, result.text.slice(0, 300));
      assertRefused(
        result,
        result.status,
        where === 'user' ? /^messages\[1\]\.content\[1\]/ : /^messages\[2\]\.content\[1\]/,
      );
      assert.ok(result.text.length < 2000, 'the data is not said back');
      assert.equal(client.calls().length, 0);
    }
  });
}

test('an image of 400 kB arrives whole, and one just under 5 MB as an image that the API takes', async (t) => {
  // A PNG is read by its head; what follows its end is no matter. Larger ones the CLI writes anew by itself, and smaller.
  for (const [bytes, whole] of [
    [300_000, true],
    [3_700_000, false],
  ]) {
    const data = Buffer.concat([Buffer.from(PNG, 'base64'), Buffer.alloc(bytes, 7)]).toString('base64');
    const client = new ChatClient(t);
    client.messages.push({
      role: 'user',
      content: [imagePart(`data:image/png;base64,${data}`), textPart(client.text(say('Big.')))],
    });
    assert.equal((await client.send()).text, 'Big.');
    const [{ type, source }] = conversationOf(client.calls()[0])[0].content;
    assert.equal(type, 'image');
    if (whole) assert.ok(source.data === data, 'as it was sent');
  }
});

// ---- structured output ---------------------------------------------------------------------------

const PERSON = {
  type: 'object',
  properties: { name: { type: 'string' }, age: { type: 'integer' } },
  required: ['name', 'age'],
  additionalProperties: false,
};
const CITY = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };
const schemaFormat = (schema, more = {}) => ({
  response_format: { type: 'json_schema', json_schema: { name: 'answer', schema, ...more } },
});
const ADA = { name: 'Ada "L" Lovelace', age: 36 };
const structured = (value, options = {}) => directive('structured', { value, ...options });

everyVersion.test('json_schema: the content is the JSON, streamed as it comes, and the API gets the schema', (t) =>
  eachWay(
    t,
    async (client) => {
      const answer = await client.ask(steps(structured(ADA, { ...USAGE, deltas: 4 }), say('Done.')));
      assert.deepEqual([answer.finish, answer.calls, answer.ignored], ['stop', [], []]);
      assert.deepEqual(JSON.parse(answer.text), ADA);
      if (client.stream) {
        assert.deepEqual(answer.kinds, ['content']);
        assert.equal(answer.times.length, 4, "the API's own pieces");
      }
      const [sent] = client.calls();
      assert.deepEqual(Object.keys(toolsOf(sent)), ['StructuredOutput']);
      assert.deepEqual(toolsOf(sent).StructuredOutput.input_schema, { ...PERSON, description: 'A person' });
      assert.equal(answer.usage.completion_tokens % 20, 0);
      assert.equal((await client.ask(structured({ name: 'Bob', age: 1 }))).text, '{"name":"Bob","age":1}');
    },
    { body: schemaFormat(PERSON, { strict: true, description: 'A person' }) },
  ),
);

test('json_schema: what only a newer draft can say holds too', (t) =>
  Promise.all(
    [
      [{ p: { type: 'array', prefixItems: [{ type: 'string' }, { type: 'number' }], items: false } }, { p: ['a', 1] }, { p: [1, 'a'] }],
      [{ p: { type: 'string', nullable: true } }, { p: null }, { p: 1 }],
      [{ p: { $ref: '#name' }, q: { $anchor: 'name', type: 'string' } }, { p: 'a' }, { p: 1 }],
      [{ p: { $ref: '#/properties/t/prefixItems/1' }, t: { prefixItems: [{ type: 'string' }, { type: 'number' }] } }, { p: 1 }, { p: 'a' }],
      [{ p: { $ref: '#/$defs/t/items' } }, { p: 1 }, { p: 'a' }, { t: { prefixItems: [{ type: 'string' }], items: { type: 'number' } } }],
      [{ p: { $ref: '#/$defs/word', minLength: 3 } }, { p: 'abc' }, { p: 'a' }, { word: { type: 'string' } }],
    ].map(async ([properties, right, wrong, $defs = {}]) => {
      const client = new ChatClient(t, { body: schemaFormat({ type: 'object', properties, $defs }) });
      // The CLI refuses the wrong one, and the model is asked again.
      const answer = await client.ask(steps(structured(wrong), structured(right)));
      assert.deepEqual([JSON.parse(answer.text), answer.ignored], [right, []]);
      const [sent] = client.assertCalls(2);
      const told = toolsOf(sent).StructuredOutput.input_schema;
      if (properties.p.prefixItems) assert.deepEqual(told.properties, properties);
    }),
  ),
);

for (const [dialect, path, formatOf, askOf] of [
  ['chat', '/v1/chat/completions', (schema) => schemaFormat(schema), (text) => ({ messages: [{ role: 'user', content: text }] })],
  ['responses', '/v1/responses', (schema) => ({ text: { format: { type: 'json_schema', name: 'answer', schema } } }), (text) => ({ input: text })],
  [
    'messages',
    '/v1/messages',
    (schema) => ({ output_config: { format: { type: 'json_schema', schema } } }),
    (text) => ({ max_tokens: 100, messages: [{ role: 'user', content: text }] }),
  ],
])
  once.test(`${dialect}: what of an answer's schema is not checked is named`, async (t) => {
    const field = { chat: 'response_format.json_schema.schema', responses: 'text.format.schema', messages: 'output_config.format.schema' }[dialect];
    const inner = { type: 'object', properties: { city: { type: 'string' } }, unevaluatedProperties: false };
    for (const [more, named] of [
      [{ properties: { inner }, nullable: true }, [`${field}.nullable`, `${field}.unevaluatedProperties`]],
      [{ properties: { list: { type: 'array', unevaluatedItems: false } } }, [`${field}.unevaluatedItems`]],
      [{ unevaluatedProperties: true, nullable: false }, []],
    ])
      for (const stream of [false, true]) {
        const body = { model: MODEL, stream, ...formatOf({ type: 'object', ...more }), ...askOf(t.text(structured({}))) };
        const result = await t.send({ path, body }).done;
        assert.equal(result.status, 200, result.text);
        assert.deepEqual(ignoredOf(result), named);
        const { input_schema } = toolsOf(t.calls().at(-1)).StructuredOutput;
        assert.deepEqual([input_schema.type, JSON.stringify(input_schema).includes('unevaluated')], ['object', false]);
      }
  });

test('json_schema costs one call of the API', async (t) => {
  const client = new ChatClient(t, { body: schemaFormat(PERSON) });
  const { usage } = await client.ask(structured(ADA, USAGE));
  assertUsage(usage);
  await sleep(300);
  client.assertCalls(1);
});

test('json_object: any object', (t) =>
  eachWay(
    t,
    async (client) => {
      const value = { any: ['thing', { at: 'all' }], n: null };
      assert.deepEqual(JSON.parse((await client.ask(structured(value))).text), value);
      assert.equal(toolsOf(client.calls()[0]).StructuredOutput.input_schema.type, 'object');
      const nothing = await client.ask(structured({}));
      assert.deepEqual([nothing.text, nothing.finish], ['{}', 'stop']);
      client.assertCalls(2);
    },
    { body: { response_format: { type: 'json_object' } } },
  ));

for (const [place, body] of [
  ['beside json_object', { response_format: { type: 'json_object', schema: PERSON } }],
  ['beside json_schema', { response_format: { type: 'json_schema', schema: PERSON } }],
  ['in guided_json', { guided_json: PERSON }],
  ['in structured_outputs', { structured_outputs: { json: PERSON } }],
])
  once.test(`a schema ${place} reaches the API, as the clients of other servers send it`, (t) =>
    eachWay(
      t,
      async (client) => {
        const answer = await client.ask(structured(ADA));
        assert.deepEqual([JSON.parse(answer.text), answer.finish, answer.ignored], [ADA, 'stop', []]);
        assert.deepEqual(toolsOf(client.calls()[0]).StructuredOutput.input_schema, PERSON);
      },
      { body },
    ),
  );

test('text of the model beside the JSON is no part of the content', (t) =>
  eachWay(
    t,
    async (client) => {
      const beside = await client.ask(structured(ADA, { before: 'Here you are:' }));
      assert.deepEqual(JSON.parse(beside.text), ADA);
      // It answers in text first, and the CLI asks it for the tool by itself.
      const late = await client.ask(steps(say('Ada is 36.'), structured(ADA)));
      assert.deepEqual([JSON.parse(late.text), late.finish], [ADA, 'stop']);
    },
    { body: schemaFormat(PERSON) },
  ));

test('an attempt that does not match the schema', async (t) => {
  const scenario = steps(structured({ name: 'Ada', age: 'old' }), structured(ADA));
  const whole = new ChatClient(t, { body: schemaFormat(PERSON) });
  const answer = await whole.ask(scenario);
  assert.deepEqual([JSON.parse(answer.text), answer.finish], [ADA, 'stop'], 'only the accepted one is seen');
  whole.assertCalls(2);
  const streamed = await new ChatClient(t, { stream: true, body: schemaFormat(PERSON) }).user(scenario).sendRaw().done;
  const { error, deltas } = readFailedStream(streamed);
  assert.ok(
    deltas
      .map(({ content }) => content)
      .join('')
      .startsWith('{"name":"Ada"'),
    'what was sent cannot be taken back',
  );
  assert.match(error.message, /schema|attempt|answer/i);
});

test('attempts that never match the schema are an error', { slow: true }, async (t) => {
  const client = new ChatClient(t, { body: schemaFormat(PERSON) });
  const result = await client.user(steps(structured({}), structured({ name: 1 }))).sendRaw().done;
  assert.ok(result.status >= 400 && result.status < 600, `${result.status} ${result.text}`);
  assertError(result.json.error);
  assert.ok(client.calls().length < 10, `${client.calls().length} calls`);
});

test('json_schema together with tools', (t) =>
  eachWay(
    t,
    async (client) => {
      const first = await client.ask(steps(call(inZurich, { before: 'Let me look.' }), structured(ADA)));
      assert.deepEqual([first.finish, namesOf(first)], ['tool_calls', ['get_weather']]);
      const second = await client.results('sunny').send();
      assert.deepEqual([JSON.parse(second.text), second.finish, second.calls], [ADA, 'stop', []]);
      const [sent, last] = client.assertCalls(2);
      for (const one of [sent, last])
        assert.deepEqual(Object.keys(toolsOf(one)).sort(), ['StructuredOutput', 'get_weather']);
      assert.deepEqual(conversationOf(last).at(-1).content, [{ result: first.calls[0].id, content: 'sunny' }]);
    },
    { body: { tools: [WEATHER], ...schemaFormat(PERSON) } },
  ));

test('another schema, or none, in the next turn', async (t) => {
  const client = new ChatClient(t);
  await client.ask(structured(ADA), schemaFormat(PERSON));
  const city = await client.ask(structured({ city: 'Bern' }), schemaFormat(CITY));
  assert.deepEqual(JSON.parse(city.text), { city: 'Bern' });
  const text = await client.ask(say('Plain.'), { response_format: { type: 'text' } });
  assert.deepEqual([text.text, text.ignored], ['Plain.', []]);
  const [person, other, none] = client.assertCalls(3, 3);
  assert.deepEqual(toolsOf(person).StructuredOutput.input_schema, PERSON);
  assert.deepEqual(toolsOf(other).StructuredOutput.input_schema, CITY);
  assert.deepEqual(toolsOf(none), {});
  assert.ok(JSON.stringify(conversationOf(none)[1]).includes('Lovelace'), 'the history holds the first answer');
});

for (const [param, format] of [
  ['response_format', 'json'],
  ['response_format.type', {}],
  ['response_format.type', { type: 'xml' }],
  ['response_format.json_schema', { type: 'json_schema' }],
  ['response_format.json_schema.schema', { type: 'json_schema', json_schema: { name: 'x', schema: 'x' } }],
  [
    'response_format.json_schema.schema',
    { type: 'json_schema', json_schema: { name: 'x', schema: { type: 'array' } } },
  ],
  [
    'response_format.json_schema.schema',
    { type: 'json_schema', json_schema: { name: 'x', schema: { type: 'string' } } },
  ],
  ['response_format.json_schema.schema', { type: 'json_schema', json_schema: { name: 'x', schema: { anyOf: [] } } }],
]) {
  once.test(`400 names ${param} of ${JSON.stringify(format)}`, async (t) => {
    assertRefused(await t.chat({ messages: t.messages('plain'), response_format: format }), 400, param);
    assert.equal(t.calls().length, 0);
  });
}

test('a schema that the CLI cannot use is an error at once, not a hang or a plain answer', async (t) => {
  const client = new ChatClient(t, { body: schemaFormat({ type: 'object', properties: { a: { type: 'nonsense' } } }) });
  const result = await client.user(structured({ a: 1 })).sendRaw().done;
  assert.ok(result.status >= 400 && result.status < 600, `${result.status} ${result.text}`);
  assertError(result.json.error);
});

test('schemas as zod and pydantic write them are taken', async (t) => {
  const day = {
    type: 'object',
    properties: { day: { type: 'string', format: 'date' } },
    required: ['day'],
    title: 'Day',
  };
  const schemas = {
    'its draft': { $schema: 'https://json-schema.org/draft/2020-12/schema', ...day },
    'an older draft': { $schema: 'http://json-schema.org/draft-07/schema#', ...day },
    definitions: {
      type: 'object',
      properties: { day: { $ref: '#/$defs/Day' } },
      $defs: { Day: { type: 'string', format: 'date' } },
    },
  };
  await Promise.all(
    Object.entries(schemas).map(async ([what, schema]) => {
      const client = new ChatClient(t, { body: schemaFormat(schema) });
      const { text } = await client.ask(structured({ day: '2026-01-02' }));
      assert.deepEqual(JSON.parse(text), { day: '2026-01-02' }, what);
      const { properties } = toolsOf(client.calls()[0]).StructuredOutput.input_schema;
      assert.deepEqual(Object.keys(properties), ['day']);
    }),
  );
});

test('a refusal and an answer that is cut end as they are, with a schema too', async (t) => {
  const refused = await t.chat({ messages: t.messages('refusal'), ...schemaFormat(PERSON) });
  assert.equal(refused.json.choices[0].finish_reason, 'content_filter', refused.text);
  const cut = await t.chat({
    messages: t.messages(structured(ADA, { stop_reason: 'max_tokens' })),
    ...schemaFormat(PERSON),
  });
  assert.equal(cut.json.choices[0].finish_reason, 'length', cut.text);
  assert.equal(t.calls().length, 2);
});

// ---- sampling and limits -------------------------------------------------------------------------

const samplingOf = ({ body: { temperature, top_p, stop_sequences, max_tokens } }) => ({
  temperature: temperature ?? undefined,
  top_p: top_p ?? undefined,
  stop_sequences: stop_sequences?.length ? stop_sequences : undefined,
  max_tokens,
});

everyVersion.test('temperature, stop and max_tokens reach the API, each turn of a living conversation its own', (t) =>
  eachWay(t, async (client) => {
    const text = 'One two three. HALT four five six. END seven.';
    const asked = [
      [{}, text, 'stop'],
      [{ temperature: 0.2, stop: ['END', 'HALT'], max_tokens: 55 }, 'One two three. ', 'stop'],
      [{ temperature: 0.9, stop: 'END' }, 'One two three. HALT four five six. ', 'stop'],
      [{ max_completion_tokens: 3 }, 'One two thre', 'length'],
      [{ temperature: 0 }, text, 'stop'],
      [{}, text, 'stop'],
    ];
    for (const [fields, said, finish] of asked) {
      const answer = await client.ask(say(text), fields);
      assert.deepEqual([answer.text, answer.finish, answer.ignored], [said, finish, []], JSON.stringify(fields));
    }
    // An answer that is cut costs its process: the CLI would ask the model to go on.
    const calls = client.calls();
    assert.equal(calls.length, asked.length);
    if (client.proxy !== t.shared) assert.ok(new Set(calls.map(processOf)).size <= 2);
    const [usual, ...sent] = calls.map(samplingOf);
    assert.ok(usual.max_tokens >= 8000, 'no limit of ours');
    assert.deepEqual(sent, [
      { ...usual, temperature: 0.2, stop_sequences: ['END', 'HALT'], max_tokens: 55 },
      { ...usual, temperature: 0.9, stop_sequences: ['END'] },
      { ...usual, max_tokens: 3 },
      { ...usual, temperature: 0 },
      usual,
    ]);
  }),
);

test('an answer at the limit of the request is `length` at the first cut', async (t) => {
  for (const stream of [true, false]) {
    const client = new ChatClient(t, { stream });
    const answer = await client.ask(say('x'.repeat(100)), { max_tokens: 5 });
    assert.deepEqual([answer.text, answer.finish], ['x'.repeat(20), 'length']);
    await sleep(400); // the CLI would go on by itself
    client.assertCalls(1);
    const next = await client.ask(say('More.'));
    assert.equal(next.text, 'More.');
    assert.deepEqual(
      conversationOf(client.calls()[1]).map(({ role }) => role),
      ['user', 'assistant', 'user'],
    );
  }
});

test("sampling holds for the call after a tool result too, and is that request's own", async (t) => {
  const client = new ChatClient(t, { body: { tools: [WEATHER] } });
  await client.ask(steps(call(inZurich), call(inZurich), say('Done.')), {
    temperature: 0.1,
    max_tokens: 111,
    stop: 'A',
  });
  await client.results('sunny').send({ temperature: 0.3, max_tokens: 222 });
  await client.results('rain').send();
  const [one, two, three] = client.assertCalls(3).map(samplingOf);
  assert.deepEqual([one.temperature, one.max_tokens, one.stop_sequences], [0.1, 111, ['A']]);
  assert.deepEqual([two.temperature, two.max_tokens, two.stop_sequences], [0.3, 222, undefined]);
  assert.deepEqual([three.temperature, three.stop_sequences], [1, undefined]);
  assert.ok(three.max_tokens > 222);
});

test('a call that max_tokens cuts is `length`, and no half call goes out as a whole one', async (t) => {
  for (const stream of [true, false]) {
    const client = new ChatClient(t, { stream, body: { tools: [WEATHER] } });
    const result = await client.user(call(inZurich, { before: 'Look:', stop_reason: 'max_tokens' })).sendRaw().done;
    assert.equal(result.status, 200, result.text);
    const finish = stream
      ? result.data
          .slice(0, -1)
          .map(({ choices: [choice] }) => choice?.finish_reason)
          .filter(Boolean)
      : [result.json.choices[0].finish_reason];
    assert.deepEqual(finish, ['length']);
    await sleep(300);
    client.assertCalls(1);
  }
});

test('what is out of range or not possible is told', async (t) => {
  const asked = [
    [{ temperature: 1.7 }, ['temperature'], { temperature: 1 }],
    [{ temperature: 2 }, ['temperature'], { temperature: 1 }],
    [{ temperature: 1 }, [], { temperature: 1 }],
    [{ temperature: 0.4, top_p: 0.5 }, ['top_p'], { temperature: 0.4, top_p: undefined }],
    [{ stop: ['', 'END'] }, ['stop'], { stop_sequences: ['END'] }],
    [{ stop: ['  ', 'END', '\n', '\u3000'] }, [], { stop_sequences: ['END'] }],
    [{ stop: ' ' }, [], { stop_sequences: undefined }],
    [
      { stop: null, temperature: null, top_p: null, max_tokens: null },
      [],
      { temperature: 1, stop_sequences: undefined },
    ],
    [{ stop: [] }, [], { stop_sequences: undefined }],
  ];
  for (const stream of [true, false]) {
    const client = new ChatClient(t, { stream });
    for (const [fields, ignored, sent] of asked) {
      const answer = await client.ask(say('Fine.'), fields);
      assert.deepEqual([answer.text, answer.ignored], ['Fine.', ignored], JSON.stringify(fields));
      const got = samplingOf(client.calls().at(-1));
      for (const [field, value] of Object.entries(sent))
        assert.deepEqual(got[field], value, `${field} of ${JSON.stringify(fields)}`);
    }
    client.assertCalls(asked.length);
  }
});

test('top_p reaches a model that takes it beside the temperature, and is else sent alone or told', async (t) => {
  const old = new ChatClient(t, { body: { model: OLD_MODEL } });
  const both = await old.ask(say('Fine.'), { temperature: 0.4, top_p: 0.5 });
  assert.deepEqual(both.ignored, []);
  await old.ask(say('Fine.'), { top_p: 0.6 });
  const [one, two] = old.assertCalls(2).map(samplingOf);
  assert.deepEqual([one.temperature, one.top_p], [0.4, 0.5]);
  assert.equal(two.top_p, 0.6);
  const client = new ChatClient(t);
  const alone = await client.ask(say('Fine.'), { top_p: 0.6 });
  const { temperature, top_p } = samplingOf(client.calls()[0]);
  // The CLI sends a temperature of its own; the API refuses both together.
  if (top_p === undefined) assert.deepEqual(alone.ignored, ['top_p']);
  else assert.deepEqual([top_p, temperature, alone.ignored], [0.6, undefined, []]);
});

for (const [param, fields] of [
  ['stop', { stop: ['a', 'b', 'c', 'd', 'e'] }],
  [/^stop/, { stop: ['a', 7] }],
  ['stop', { stop: 7 }],
  ['stop', { stop: { a: 1 } }],
  ['temperature', { temperature: -0.1 }],
  ['temperature', { temperature: 2.1 }],
  ['top_p', { top_p: 1.1 }],
  ['top_p', { top_p: 'x' }],
  ['max_tokens', { max_tokens: 0 }],
  ['max_tokens', { max_tokens: -5 }],
  ['max_tokens', { max_tokens: 1.5 }],
  ['max_completion_tokens', { max_completion_tokens: 0 }],
  ['n', { n: 0 }],
  ['n', { n: 9 }],
  ['n', { n: 1.5 }],
  ['n', { n: 'x' }],
  ['n', { n: 2, session_id: 'a session' }],
  ['reasoning_effort', { reasoning_effort: 'enormous' }],
  ['reasoning_effort', { reasoning_effort: 7 }],
]) {
  once.test(`400 names ${param} of ${JSON.stringify(fields)}`, async (t) => {
    assertRefused(await t.chat({ messages: t.messages('plain'), ...fields }), 400, param);
    assert.equal(t.calls().length, 0);
  });
}

const IGNORED = {
  seed: 7,
  presence_penalty: 0.5,
  frequency_penalty: -0.5,
  logit_bias: { 50256: -100 },
  logprobs: true,
  top_logprobs: 3,
  prediction: { type: 'content', content: 'x' },
  verbosity: 'low',
  service_tier: 'flex',
};
const HONOURED = {
  user: 'someone',
  metadata: { a: 'b' },
  store: true,
  service_tier: 'auto',
  presence_penalty: 0,
  frequency_penalty: 0,
  logprobs: false,
  logit_bias: {},
  n: 1,
  stream: false,
  response_format: { type: 'text' },
  tools: [],
  stop: [],
  reasoning_effort: 'none',
};

test('what the API has not is named, each by itself; what asks for nothing is not', async (t) => {
  const client = new ChatClient(t);
  assert.deepEqual((await client.ask(say('Fine.'), IGNORED)).ignored, Object.keys(IGNORED).sort());
  assert.deepEqual((await client.ask(say('Fine.'), HONOURED)).ignored, []);
  assert.deepEqual((await client.ask(say('Fine.'), { service_tier: 'default' })).ignored, []);
  const streamed = await client.user(say('Fine.')).sendRaw({ stream: true, ...IGNORED }).done;
  assert.deepEqual(ignoredOf(streamed), Object.keys(IGNORED).sort());
  client.assertCalls(4);
});

const WOULD_IGNORE = [
  ...Object.entries(IGNORED).map(([name, value]) => [name, { [name]: value }]),
  ['temperature', { temperature: 1.7 }],
  ['top_p', { temperature: 0.4, top_p: 0.5 }],
  ['temperature', { temperature: 0.4, reasoning_effort: 'low' }],
  ['stop', { stop: [''] }],
];

async function assertStrict(t, options) {
  const messages = t.messages('plain');
  for (const [param, fields] of WOULD_IGNORE) {
    // Beside top_logprobs a client has to say logprobs, which is refused by itself.
    const result = await t.chat({ messages, ...fields }, options);
    assertRefused(result, 400, param);
    assert.equal(result.headers['x-ignored-params'], undefined);
  }
  assert.equal(t.calls().length, 0, 'nothing was asked');
  const fine = await t.chat({ messages, ...HONOURED, temperature: 0.5, stop: 'X', max_tokens: 50 }, options);
  assert.equal(fine.status, 200, fine.text);
}

once.test('x-strict-params makes what would be ignored a 400', (t) =>
  assertStrict(t, { headers: { 'x-strict-params': 'true' } }),
);

for (const [what, options] of [
  ['--strict', { args: ['--strict'] }],
  ['CLAUDE_STRICT=1', { env: { CLAUDE_STRICT: '1' } }],
]) {
  once.test(`${what} makes what would be ignored a 400`, async (t) => {
    const proxy = await t.start({ cli: t.cli, ...options, args: ['--spares', '0', ...(options.args ?? [])] });
    await assertStrict(t, { proxy });
  });
}

// ---- n -------------------------------------------------------------------------------------------

everyVersion.test('n=3: three choices by index, three calls, the usage is the sum', (t) =>
  eachWay(
    t,
    async (client) => {
      const scenario = say('one two three four', { ...USAGE, deltas: 4, delay: 150, together: 3 });
      const answer = await client.ask(scenario, { n: 3 });
      assert.deepEqual(
        answer.choices.map(({ message, finish }) => [message.content, finish]),
        times(3, () => ['one two three four', 'stop']),
      );
      assertUsage(answer.usage, 3);
      assert.ok(answer.usage.cost > 0.0015 && answer.usage.cost < 0.006, `cost ${answer.usage.cost}`);
      const calls = client.assertCalls(3, 3);
      for (const one of calls) {
        assert.deepEqual(conversationOf(one), [{ role: 'user', content: [client.text(scenario)] }]);
        assert.equal(callerSystem(one), 'Be brief.');
      }
      if (client.stream) {
        const turns = answer.order.filter((index, i) => index !== answer.order[i - 1]).length;
        assert.ok(turns > 6, `the streams take turns: ${answer.order}`);
      }
      // The conversation goes on from one of the choices, in the process that gave it.
      assert.equal((await client.ask(say('More.'))).text, 'More.');
      const last = client.calls().at(-1);
      if (client.proxy !== t.shared) assert.ok(calls.some((one) => processOf(one) === processOf(last)));
      assert.equal(conversationOf(last).length, 3);
    },
    { messages: [{ role: 'system', content: 'Be brief.' }] },
  ),
);

test('n=2 with tools: each choice has calls of its own, and both can go on', async (t) => {
  for (const stream of [true, false]) {
    const client = new ChatClient(t, { stream, body: { tools: [WEATHER] } });
    const answer = await client.ask(steps(call(inZurich), say('Done.')), { n: 2 });
    const messages = answer.choices.map(({ message }) => message);
    assert.deepEqual(
      answer.choices.map(({ finish, message }) => [finish, message.tool_calls.length]),
      [
        ['tool_calls', 1],
        ['tool_calls', 1],
      ],
    );
    assert.notEqual(messages[0].tool_calls[0].id, messages[1].tool_calls[0].id);
    const [question] = client.messages;
    for (const message of messages) {
      const branch = new ChatClient(t, { body: client.body, messages: [question, message] });
      branch.messages.push({ role: 'tool', tool_call_id: message.tool_calls[0].id, content: 'sunny' });
      assert.equal((await branch.send()).text, 'Done.');
    }
    client.assertCalls(4, 2);
  }
});

test('n=2 where the API fails is its error', { slow: true }, async (t) => {
  for (const stream of [true, false]) {
    const result = await t.chat({ stream, n: 2, messages: t.messages('error status=400 message="not so"') });
    assertRefused(result, 400);
    assert.match(result.json.error.message, /not so/);
  }
});

once.test(
  'n over what there is of processes ends, and requests with n do not block each other',
  async (t) => {
    const args = ['--spares', '0', '--max-processes', '3', '--queue-timeout', '20s'];
    const proxy = await t.start({ cli: t.cli, args });
    await proxy.inspected();
    const ask = (n) => t.chat({ n, messages: t.messages(say('Fine.')) }, { proxy });
    const over = await ask(8);
    assert.ok([200, 400, 429].includes(over.status), over.text);
    if (over.status === 200) assert.equal(over.json.choices.length, 8);
    else assertError(over.json.error);
    // Each could hold some of the processes and wait for the other's for ever.
    const results = await Promise.all([ask(2), ask(2), ask(2), ask(3)]);
    for (const [i, { status, json, text }] of results.entries()) {
      assert.equal(status, 200, text);
      assert.equal(json.choices.length, i === 3 ? 3 : 2);
    }
  },
);

once.test('when a client leaves n=3 all three processes are free', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0'] });
  await proxy.inspected();
  const exchange = t.send({ proxy, body: { model: MODEL, n: 3, stream: true, messages: t.messages('hang after=2') } });
  await eventually('three calls', () => t.calls().length === 3);
  exchange.abort();
  await eventually('the API sees all of them leave', () => t.calls().every(({ clientLeft }) => clientLeft));
  await eventually('no process is busy', async () => (await t.busyProcesses({ proxy })) === 0);
});

// ---- reasoning -----------------------------------------------------------------------------------

const BUDGETS = { minimal: 1024, low: 2048, medium: 4096, high: 8192, xhigh: 16384, max: 31999 };
const thinks = ({ body: { thinking } }) => (['enabled', 'adaptive'].includes(thinking?.type) ? thinking : undefined);
const thought = (options = {}) =>
  directive('thinking', { thinking: 'Let me think.', text: 'I thought.', thinking_tokens: 5, output: 12, ...options });

/** Asks with each effort in turn and checks what the client got; resolves to the thinking budgets that the API was told. */
async function budgetsOf(client, efforts) {
  for (const effort of efforts) {
    const answer = await client.ask(thought(), { reasoning_effort: effort });
    assert.deepEqual([answer.text, answer.finish, answer.ignored], ['I thought.', 'stop', []], effort);
    const asked = effort && effort !== 'none'; // this API thinks unasked too, which is not told
    assert.equal(answer.reasoning, asked ? 'Let me think.' : undefined);
    assert.equal(answer.usage.completion_tokens_details.reasoning_tokens, 5);
    assert.equal(answer.usage.completion_tokens, 12);
    if (client.stream) assert.deepEqual(answer.kinds, [...(asked ? ['reasoning_content'] : []), 'content']);
  }
  const calls = client.calls();
  assert.equal(calls.length, efforts.length);
  calls.forEach((one, i) => assert.equal(conversationOf(one).length, 2 * i + 1));
  return calls.map((one) => thinks(one)?.budget_tokens);
}

everyVersion.test('reasoning_effort: none by default, a budget when asked, and the thinking is told', (t) =>
  eachWay(t, async (client) => {
    assert.deepEqual(await budgetsOf(client, ['low', 'low', undefined]), [2048, 2048, undefined]);
    const [first, second] = client.calls().map(processOf);
    assert.equal(first, second, 'the same effort goes on in the same process');
  }),
);

test('each reasoning_effort has its budget, in one conversation', async (t) => {
  const efforts = ['minimal', 'medium', 'high', 'xhigh', 'max', 'none'];
  const client = new ChatClient(t, { stream: true });
  assert.deepEqual(
    await budgetsOf(client, efforts),
    efforts.map((effort) => BUDGETS[effort]),
  );
});

const ADAPTIVE_MODEL = 'claude-opus-4-8';

test('on a model that thinks adaptively the effort is said as such', async (t) => {
  const efforts = ['minimal', 'medium', 'xhigh', 'max'];
  const client = new ChatClient(t, { stream: true, body: { model: ADAPTIVE_MODEL } });
  for (const effort of efforts) {
    const answer = await client.ask(thought(), { reasoning_effort: effort });
    assert.deepEqual([answer.reasoning, answer.text, answer.ignored], ['Let me think.', 'I thought.', []], effort);
  }
  const calls = client.calls();
  assert.equal(calls.length, efforts.length);
  for (const one of calls) assert.equal(one.body.thinking.type, 'adaptive');
  assert.deepEqual(
    calls.map(({ body }) => body.output_config?.effort),
    ['low', 'medium', 'xhigh', 'max'],
  );
  // Where the model can, it does not think when nobody asks.
  const silent = new ChatClient(t, { body: { model: ADAPTIVE_MODEL } });
  await silent.ask(say('Fine.'));
  assert.equal(thinks(silent.calls()[0]), undefined);
});

test('an effort of none is the least there is, also on models that think all the same', async (t) => {
  for (const model of ['claude-opus-4-7', ADAPTIVE_MODEL]) {
    const client = new ChatClient(t, { body: { model } });
    const answer = await client.ask(thought(), { reasoning_effort: 'none' });
    assert.deepEqual([answer.text, answer.reasoning, answer.ignored], ['I thought.', undefined, ['reasoning_effort']]);
    const [sent] = client.assertCalls(1);
    assert.equal(sent.body.output_config?.effort, 'low');
  }
});

test('thinking and a temperature, a forced tool, a small limit: what the API refuses is decided and told', async (t) => {
  const asked = [
    [{ temperature: 0.3 }, ['temperature']],
    [{ temperature: 0.3, top_p: 0.5 }, ['temperature', 'top_p']],
    [{ max_tokens: 3000, reasoning_effort: 'high' }, []],
    [{ temperature: 1 }, undefined],
    [{ max_tokens: 500 }, undefined],
    [{ tools: [WEATHER], tool_choice: 'required' }, undefined],
    [{ tools: [WEATHER], tool_choice: { type: 'function', function: { name: 'get_weather' } } }, undefined],
  ];
  await Promise.all(
    asked.map(async ([fields, ignored]) => {
      const client = new ChatClient(t);
      const answer = await client.ask(say('Fine.'), { reasoning_effort: 'low', ...fields });
      assert.equal(answer.text, 'Fine.');
      if (ignored) assert.deepEqual(answer.ignored, ignored, JSON.stringify(fields));
      const [sent] = client.assertCalls(1); // the loopback refuses what the API refuses
      if (fields.max_tokens) assert.equal(sent.body.max_tokens, fields.max_tokens);
      const kept = thinks(sent) !== undefined;
      const forced = ['any', 'tool'].includes(sent.body.tool_choice?.type);
      if (fields.max_tokens === 500 || fields.tool_choice)
        assert.ok(
          kept || forced || answer.ignored.includes('reasoning_effort'),
          `nothing is dropped in silence: ${answer.ignored}`,
        );
      if (fields.tool_choice && !forced) assert.deepEqual(answer.ignored, ['tool_choice']);
      if (!kept) assert.deepEqual(answer.ignored, ['reasoning_effort'], JSON.stringify(fields));
    }),
  );
});

test('thinking, then text, then tools, and the signed thinking stays with its process', (t) =>
  eachWay(
    t,
    async (client) => {
      const scenario = steps(
        call(inZurich, { thinking: 'Which city?', before: 'Let me look.', thinking_tokens: 3 }),
        thought({ thinking: 'Sunny, then.' }),
      );
      const first = await client.ask(scenario);
      assert.deepEqual([first.reasoning, first.text, first.finish], ['Which city?', 'Let me look.', 'tool_calls']);
      if (client.stream) assert.deepEqual(first.kinds, ['reasoning_content', 'content', 'tool_calls']);
      assert.equal(first.usage.completion_tokens_details.reasoning_tokens, 3);
      const second = await client.results('sunny').send();
      assert.deepEqual([second.reasoning, second.text], ['Sunny, then.', 'I thought.']);
      const [, last] = client.assertCalls(2);
      const [thinking, ...rest] = conversationOf(last)[1].content;
      assert.deepEqual([thinking.type, thinking.thinking], ['thinking', 'Which city?']);
      assert.ok(thinking.signature);
      assert.deepEqual(rest, ['Let me look.', ...first.calls.map(asBlock)]);
      assert.ok(thinks(last));
    },
    { body: { tools: [WEATHER], reasoning_effort: 'low' } },
  ));

test('tools in any form, the only ones allowed, and a custom one that takes text', (t) =>
  eachWay(
    t,
    async (client) => {
      const patch = JSON.stringify({ input: 'a "b"\nc' });
      const scenario = steps(call([{ tool: 'patch', args: JSON.parse(patch) }]), say('Done.'));
      const { result, message, finish } = await readCustom(client, scenario);
      assert.equal(finish, 'tool_calls');
      const [{ id, ...called }] = message.tool_calls;
      assert.deepEqual(called, { type: 'custom', custom: { name: 'patch', input: 'a "b"\nc' } });
      if (client.stream)
        for (const chunk of result.data.slice(0, -2)) assert.equal(chunk.usage, null, 'as OpenAI sends it');
      client.messages.push(message, { role: 'tool', tool_call_id: id, content: 'patched' });
      assert.equal((await client.send({ tool_choice: allowing('auto', 'patch', 'flat') })).text, 'Done.');
      const [first, second] = client.assertCalls(2);
      assert.deepEqual(Object.keys(toolsOf(first)).sort(), ['flat', 'foreign', 'patch']);
      assert.deepEqual(toolsOf(first).foreign.input_schema, WEATHER.function.parameters);
      assert.deepEqual(Object.keys(toolsOf(second)).sort(), ['flat', 'patch']);
    },
    {
      body: {
        tools: [
          { type: 'custom', custom: { name: 'patch', description: 'Patches', format: { type: 'text' } } },
          { type: 'function', name: 'flat', parameters: WEATHER.function.parameters },
          { name: 'foreign', input_schema: WEATHER.function.parameters },
        ],
      },
    },
  ));

const allowing = (mode, ...names) => ({
  type: 'allowed_tools',
  allowed_tools: { mode, tools: names.map((name) => ({ type: 'function', function: { name } })) },
});

/** The first answer of a client that has custom tools, whose calls no other reader knows. */
async function readCustom(client, scenario) {
  const result = await client.user(scenario).sendRaw().done;
  assert.equal(result.status, 200, result.text);
  if (!client.stream) return { result, message: result.json.choices[0].message, finish: result.json.choices[0].finish_reason };
  const choices = result.data.filter((one) => one.choices?.length).map(({ choices: [one] }) => one);
  const [begin, ...more] = choices.flatMap(({ delta }) => delta.tool_calls ?? []);
  const input = more.map(({ custom }) => custom.input).join('');
  assert.deepEqual(begin.custom, { name: 'patch', input: '' });
  const message = { role: 'assistant', content: null, tool_calls: [{ id: begin.id, type: begin.type, custom: { name: 'patch', input } }] };
  return { result, message, finish: choices.at(-1).finish_reason };
}

test('thoughts that nobody asked for are not told, and stay with the process for its tool results', (t) =>
  eachWay(
    t,
    async (client) => {
      const scenario = steps(call(inZurich, { thinking: 'Which city?', redacted: 'Y2lwaGVy', before: 'Let me look.' }), thought());
      const first = await client.ask(scenario);
      assert.deepEqual([first.reasoning, first.text, first.finish], [undefined, 'Let me look.', 'tool_calls']);
      const second = await client.results('sunny').send();
      assert.deepEqual([second.reasoning, second.text, second.ignored], [undefined, 'I thought.', []]);
      const [, last] = client.assertCalls(2);
      const alwaysThinks = !CLI_VERSIONS.slice(0, -1).map(claudePath).includes(t.cli); // its `sonnet`
      assert.equal(last.body.thinking.type, alwaysThinks ? 'adaptive' : 'disabled');
      assert.deepEqual(
        conversationOf(last)[1].content.map((block) => block.type ?? 'told'),
        ['redacted_thinking', 'thinking', 'told', 'told'],
      );
    },
    { body: { model: 'sonnet', tools: [WEATHER] } },
  ));

test('a replay of calls has no signed thinking, and the API is not asked to think without', async (t) => {
  const client = new ChatClient(t, { body: { tools: [WEATHER], reasoning_effort: 'low' } });
  const made = { id: 'call_1', type: 'function', function: { name: 'get_weather', arguments: '{"city":"Bern"}' } };
  client
    .user(say('Done.'))
    .messages.push(
      { role: 'assistant', content: null, tool_calls: [made] },
      { role: 'tool', tool_call_id: 'call_1', content: 'sunny' },
    );
  // The directive is in the first message: the loopback answers what it always does.
  const answer = await client.send();
  assert.equal(answer.text, 'Hello from the loopback API.');
  const [sent] = client.assertCalls(1);
  if (!thinks(sent)) assert.deepEqual(answer.ignored, ['reasoning_effort']);
});

test('a client that sends reasoning_content back is understood', async (t) => {
  const client = new ChatClient(t, { body: { reasoning_effort: 'low' } });
  await client.ask(thought());
  client.messages.at(-1).reasoning_content = 'Let me think.';
  assert.equal((await client.ask(thought({ text: 'Again.' }))).text, 'Again.');
  client.assertCalls(2);
});

// ---- what accompanies a request ------------------------------------------------------------------

test('metadata is accepted, the request id is echoed, the time is told', async (t) => {
  const fields = {
    user: 'u',
    metadata: { a: 'b' },
    store: false,
    service_tier: 'auto',
    safety_identifier: 's',
    prompt_cache_key: 'k',
  };
  for (const stream of [true, false]) {
    const client = new ChatClient(t, { stream });
    const { result, ignored } = await client.ask(say('Fine.'), fields, { 'x-request-id': `mine-${stream}` });
    assert.equal(result.headers['x-request-id'], `mine-${stream}`);
    assert.match(result.headers['openai-processing-ms'], /^\d+$/);
    assert.deepEqual(ignored, []);
    assert.doesNotMatch(client.calls()[0].raw, /mine-|safety/);
  }
});
