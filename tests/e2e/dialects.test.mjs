// The Messages, Responses and Completions APIs over the real CLI: what the client got, streamed and not, and what the API was
// sent. And models, refusals, and bodies at the wrong endpoint. `dialects` runs for every pinned CLI but the oldest: the CLI speaks
// the Messages API, and what it changes shows there. The other APIs are ours: `once` runs with the newest.

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { assertKeys } from './chat.test.mjs';
import { ChatClient, call, callerSystem, conversationOf, processOf, say, steps, toolsOf } from './chat_client.mjs';
import { CLI_VERSIONS, DEFAULT_MODEL as MODEL, claudePath } from './claude_cli.mjs';
import {
  ANTHROPIC,
  MessagesClient,
  ResponsesClient,
  assertAnthropicError,
  assertOpenAIError,
  assertResponse,
  bothWays,
  readCompletion,
  readMessage,
  readResponse,
} from './dialect_client.mjs';
import { assertSpread, eventually, send, sleep, suite } from './harness.mjs';
import { directive } from './messages_api.mjs';

export const dialects = suite();
export const once = suite();
const { test } = dialects;

const ANSWER = 'Hello from the loopback API.';
const USAGE = { input: 100, output: 20, cache_read: 300, cache_creation: 50, ephemeral_1h: 20, thinking_tokens: 5 };
const SIGNATURE = 'c2lnbmF0dXJl';
const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
const PDF = Buffer.from('%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n').toString('base64');
const CITY = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };
const PERSON = {
  type: 'object',
  properties: { name: { type: 'string' }, age: { type: 'integer' } },
  required: ['name', 'age'],
  additionalProperties: false,
};
const ADA = { name: 'Ada', age: 36 };
const ADAPTIVE_MODEL = 'claude-opus-4-8';
const inCity = (city) => ({ tool: 'get_weather', args: { city } });
const thought = (options = {}) => directive('thinking', { thinking: 'Let me think.', text: 'I thought.', ...options });
const structured = (value, options = {}) => directive('structured', { value, ...options });
/** A call of the Messages API as the API sees it in a history. */
const asBlock = ({ id, name, input }) => ({ call: id, name, input });
const choiceOf = ({ body }) => body.tool_choice;
/** The results in a user's message by their call: older CLIs change their order. */
const resultsOf = ({ content }) => Object.fromEntries(content.map((one) => [one.result, one.content]));
/** A message with its results in the order of their calls' ids. */
const ordered = ({ role, content }) => {
  const number = ({ result = '' }) => Number(/\d+$/.exec(result)?.[0] ?? 0);
  return { role, content: [...content].sort((a, b) => (a.result && b.result ? number(a) - number(b) : 0)) };
};
const thinks = ({ body: { thinking } }) => (['enabled', 'adaptive'].includes(thinking?.type) ? thinking : undefined);

// ---- Messages: shape -----------------------------------------------------------------------------

const messages = bothWays(MessagesClient);
/** Streamed first, then whole, in one conversation: a process less. */
const inTurn = async (client, body) => {
  for (const stream of [true, false]) {
    client.stream = stream;
    await body(client);
  }
};
const WEATHER = { name: 'get_weather', description: 'The weather of a city', input_schema: CITY };
const MEMBERS = { strict: true, input_examples: [{ city: 'Bern' }] };
const TIME = { name: 'get_time', input_schema: { type: 'object', properties: {} } };

test('messages: a message and its events, with the usage of the API', (t) =>
  messages(t, async (client) => {
    const answer = await client.ask(say(ANSWER, { ...USAGE, deltas: 4, ping: true }));
    assert.deepEqual(answer.content, [{ type: 'text', text: ANSWER }]);
    assert.deepEqual([answer.finish, answer.stop_sequence, answer.model], ['end_turn', null, MODEL]);
    const { cost, ...usage } = answer.usage;
    assert.deepEqual(
      { ...usage, output_tokens_details: undefined },
      {
        input_tokens: 100,
        cache_creation_input_tokens: 50,
        cache_read_input_tokens: 300,
        cache_creation: { ephemeral_5m_input_tokens: 30, ephemeral_1h_input_tokens: 20 },
        output_tokens: 20,
        output_tokens_details: undefined,
        service_tier: 'standard',
      },
    );
    assert.ok(cost > 0.0005 && cost < 0.002, `cost ${cost}`);
    assert.equal(answer.result.headers['request-id'], answer.result.headers['x-request-id']);
    assert.deepEqual(answer.ignored, []);
    if (client.stream) {
      assert.deepEqual(
        answer.pieces[0].map(({ value }) => value.delta.text),
        ['Hello f', 'rom the', ' loopba', 'ck API.'],
      );
      assert.deepEqual([answer.first.input_tokens, answer.first.cache_read_input_tokens, answer.first.output_tokens], [100, 300, 1]);
    }
    const [sent] = client.assertCalls(1);
    assert.deepEqual(conversationOf(sent), [{ role: 'user', content: [client.messages[0].content] }]);
    assert.deepEqual([sent.body.model, sent.body.max_tokens, sent.body.tools], [MODEL, 2000, []]);
    assert.equal(thinks(sent), undefined);
    assert.doesNotMatch(sent.system.join('\n'), /Claude Code/);
  }));

once.test('messages: deltas arrive as they leave the API', { alone: true }, async (t) => {
  const client = new MessagesClient(t, { stream: true });
  const { pieces } = await client.ask(say('one two three four five', { deltas: 5, delay: 150 }));
  assertSpread(pieces[0].map(({ at }) => at));
});

once.test('messages: a stream that is silent for 15 s pings, before its first event and after', { slow: true }, async (t) => {
  const exchanges = ['hang after=-1', 'hang after=2'].map((scenario) =>
    t.send({ path: '/v1/messages', body: { model: MODEL, max_tokens: 9, stream: true, messages: t.messages(scenario) } }),
  );
  t.defer(async () => exchanges.forEach((exchange) => exchange.abort()));
  await Promise.all(
    exchanges.map((exchange) => eventually('a ping', () => exchange.chunks.some(({ text }) => text.includes('event: ping\n')))),
  );
  const [before, after] = exchanges.map(({ chunks }) => chunks.map(({ text }) => text).join(''));
  assert.equal(before, 'event: ping\ndata: {"type":"ping"}\n\n');
  assert.match(after, /text_delta[^]*event: ping\ndata: \{"type":"ping"\}\n\n$/);
});

test('messages: text of many bytes a character, an empty answer, and a long one', (t) =>
  inTurn(new MessagesClient(t), async (client) => {
    const { text } = await client.ask('utf8');
    assert.equal(text, 'Grüße, 世界! 👩‍👩‍👧‍👦 🇨🇭 é ¡olé! \u2028 – 𝒯𝓊𝓇𝓃 “end”');
    const long = await client.ask('long bytes=300000');
    assert.equal(long.text.replaceAll('The quick brown fox jumps over the lazy dog. ', ''), '');
    assert.ok(long.text.length >= 300_000);
    const empty = await client.ask('empty');
    assert.deepEqual([empty.text, empty.finish], ['', 'end_turn']);
  }));

// ---- Messages: what the API is sent --------------------------------------------------------------

const cached = (block) => ({ ...block, cache_control: { type: 'ephemeral', ttl: '1h' } });
const textBlock = (text) => ({ type: 'text', text });

for (const [what, system, sent] of [
  ['a string', 'Be brief.', 'Be brief.'],
  ['blocks', [textBlock('Be brief.'), cached(textBlock('Be kind. ✓'))], 'Be brief.\nBe kind. ✓'],
])
  test(`messages: system as ${what} is the system prompt`, async (t) => {
    const client = new MessagesClient(t, { body: { system } });
    await inTurn(client, () => client.ask(say('Fine.')));
    for (const one of client.assertCalls(2)) assert.equal(callerSystem(one), sent);
  });

const pngBlock = { type: 'image', source: { type: 'base64', media_type: 'image/png', data: PNG } };
const urlBlock = { type: 'image', source: { type: 'url', url: 'https://pictures.example/a.png' } };
const pdfBlock = { type: 'document', source: { type: 'base64', media_type: 'application/pdf', data: PDF }, title: 'a.pdf' };
const pdfUrlBlock = { type: 'document', source: { type: 'url', url: 'https://papers.example/a.pdf' } };
const plainDocument = { type: 'document', source: { type: 'text', media_type: 'text/plain', data: 'The sky is blue.' }, title: 'sky.txt' };

once.test("messages: the billing tag of Claude Code as a client is not taken for the system prompt's", async (t) => {
  const tag = 'x-anthropic-billing-header: cc_version=2.1.330.abc; cc_entrypoint=cli;';
  const client = new MessagesClient(t, { body: { system: [textBlock(tag), cached(textBlock('Be brief.')), textBlock('Be kind.')] } });
  await client.ask(say('Fine.'));
  const [sent] = client.assertCalls(1);
  assert.equal(callerSystem(sent), 'Be brief.\nBe kind.');
  assert.ok(!sent.raw.includes('2.1.330.abc'));
  const own = sent.body.system.find(({ text }) => text.startsWith('Be brief.'));
  assert.ok(own.cache_control, 'it can be cached');
});

test('messages: text, images and documents reach the API, live and in the history', async (t) => {
  const content = [textBlock('See'), pngBlock, urlBlock, pdfBlock, pdfUrlBlock, plainDocument].map(cached);
  const sent = ['See', pngBlock, urlBlock, pdfBlock, pdfUrlBlock, plainDocument];
  const client = new MessagesClient(t, { stream: true });
  const ask = client.text(say('I see.'));
  client.messages.push({ role: 'user', content: [...content, cached(textBlock(ask))] });
  assert.equal((await client.send()).text, 'I see.');
  await client.ask(say('More.'));
  const other = new MessagesClient(t, { messages: [{ role: 'user', content }, { role: 'assistant', content: [cached(textBlock('I saw.'))] }] });
  await other.ask(say('More.'));
  assert.deepEqual(conversationOf(client.assertCalls(2)[0])[0].content, [...sent, ask]);
  assert.deepEqual(conversationOf(client.calls()[1])[0].content, [...sent, ask]);
  assert.deepEqual(conversationOf(other.assertCalls(1)[0]).slice(0, 2), [
    { role: 'user', content: sent },
    { role: 'assistant', content: ['I saw.'] },
  ]);
});

test('messages: thoughts of a history reach the API with their signatures, in their places', (t) =>
  messages(
    t,
    async (client) => {
      const thinking = { type: 'thinking', thinking: 'Which city?', signature: 'sig-1' };
      const redacted = { type: 'redacted_thinking', data: 'cipher-1' };
      const silent = { type: 'thinking', thinking: '', signature: 'sig-2' };
      const use = { type: 'tool_use', id: 'toolu_made', name: 'get_weather', input: { city: 'Bern' } };
      client.messages.push(
        { role: 'user', content: 'Weather?' },
        { role: 'assistant', content: [thinking, redacted, textBlock('Let me look.'), use] },
        { role: 'user', content: [{ type: 'tool_result', tool_use_id: 'toolu_made', content: 'sunny' }] },
        { role: 'assistant', content: [silent, textBlock('Sunny.')] },
      );
      await client.ask(thought());
      const [sent] = client.assertCalls(1);
      assert.deepEqual(conversationOf(sent).slice(0, 4), [
        { role: 'user', content: ['Weather?'] },
        { role: 'assistant', content: [thinking, redacted, 'Let me look.', asBlock(use)] },
        { role: 'user', content: [{ result: 'toolu_made', content: 'sunny' }] },
        { role: 'assistant', content: [silent, 'Sunny.'] },
      ]);
      assert.deepEqual(thinks(sent), { type: 'enabled', budget_tokens: 1500 });
    },
    { body: { tools: [WEATHER], max_tokens: 4000, thinking: { type: 'enabled', budget_tokens: 1500 } } },
  ));

once.test('messages: what a newer client puts into the middle as role system is an instruction', async (t) => {
  const client = new MessagesClient(t, { body: { system: 'Be brief.' } });
  client.messages.push({ role: 'user', content: 'Hi' }, { role: 'assistant', content: 'Hello' }, { role: 'system', content: 'Be kind.' });
  await client.ask(say('Fine.'));
  const [sent] = client.assertCalls(1);
  assert.equal(callerSystem(sent), 'Be brief.');
  const words = conversationOf(sent).map(({ content }) => content);
  assert.deepEqual(words, [['Hi'], ['Hello'], ['<system-reminder>\nBe kind.\n</system-reminder>', client.text(say('Fine.'))]]);
});

// ---- Messages: tools -----------------------------------------------------------------------------

test('messages: a failure of a tool reaches the API whole, however long; of one with an image, the words', (t) =>
  messages(
    t,
    async (client) => {
      const long = { content: `from ${'x'.repeat(12_000)} to`, is_error: true };
      const shown = { content: [textBlock('See:'), pngBlock], is_error: true };
      await client.ask(steps(call(inCity('Bern')), call(inCity('Bern')), say('So be it.')));
      const second = await client.results(long).send();
      const third = await client.results(shown).send();
      assert.deepEqual([second.finish, third.text], ['tool_use', 'So be it.']);
      const [, one, two] = client.assertCalls(3, 3); // the process that waits would take but a part of each
      const resultIn = (asked) => conversationOf(asked).at(-1).content[0];
      assert.deepEqual([resultIn(one).content, resultIn(one).is_error], [long.content, true]);
      assert.deepEqual([resultIn(two).content, resultIn(two).is_error], ['See:', true]);
    },
    { body: { tools: [WEATHER] } },
  ));

test('messages: documents to be cited and search results reach the API whole, and citations come back', (t) =>
  messages(
    t,
    async (client) => {
      const citations = { enabled: true };
      const source = { type: 'text', media_type: 'text/plain', data: 'The grass is green.' };
      const pieces = { type: 'content', content: [textBlock('The sky is blue.'), pngBlock] };
      const found = { type: 'search_result', source: 'https://example.org/x', title: 'X', content: [textBlock('Snow is white.')], citations };
      const cited = { type: 'char_location', cited_text: 'green', document_index: 0, document_title: 'G', start_char_index: 13, end_char_index: 18 };
      const scenario = steps(call(inCity('Bern')), directive('cited', { text: 'It is green.', citations: [cited] }));
      const documents = [
        { type: 'document', source, title: 'G', context: 'Of plants.', citations },
        { type: 'document', source: pieces, citations: { enabled: false } },
        found,
      ];
      client.messages.push({ role: 'user', content: [...documents, { type: 'text', text: client.text(scenario) }] });
      await client.send();
      const answer = await client.results([found]).send();
      assert.deepEqual(answer.content, [{ type: 'text', text: 'It is green.', citations: [cited] }]);
      assert.deepEqual(answer.ignored, []);
      const [first, second] = client.assertCalls(2, 2); // MCP knows no search results
      const { citations: _, ...uncited } = documents[1];
      assert.deepEqual(conversationOf(first)[0].content.slice(0, 3), [documents[0], uncited, found]);
      assert.deepEqual(conversationOf(second)[2].content[0].content, found);
    },
    { body: { tools: [WEATHER] } },
  ));

test('messages: what else a tool has reaches the API, a tool that a result refers to is told as text', (t) =>
  messages(
    t,
    async (client) => {
      await client.ask(steps(call(inCity('Bern')), say('Sunny.')));
      const answer = await client.results([{ type: 'tool_reference', tool_name: 'get_time' }]).send();
      assert.deepEqual([answer.text, answer.ignored], ['Sunny.', ['tools.defer_loading']]);
      const [first, second] = client.assertCalls(2);
      const { cache_control: _, ...offered } = first.body.tools[0];
      assert.deepEqual(offered, { ...WEATHER, ...MEMBERS });
      assert.equal(first.body.tools[1].defer_loading, undefined);
      assert.equal(conversationOf(second).at(-1).content[0].content, "The tool 'get_time' is available.");
    },
    { body: { tools: [{ ...WEATHER, ...MEMBERS }, { ...TIME, defer_loading: true }] } },
  ));

test('messages: tools over three rounds, in one process', (t) =>
  messages(
    t,
    async (client) => {
      const scenario = steps(
        call([inCity('Zürich'), { tool: 'get_time', args: {} }], { before: 'Let me look.', deltas: 4 }),
        call(inCity('Bern')),
        say('Sunny.'),
      );
      const first = await client.ask(scenario);
      assert.deepEqual([first.finish, first.kinds, first.text], ['tool_use', ['text', 'tool_use', 'tool_use'], 'Let me look.']);
      assert.deepEqual(
        first.calls.map(({ name, input }) => [name, input]),
        [
          ['get_weather', { city: 'Zürich' }],
          ['get_time', {}],
        ],
      );
      if (client.stream) assert.ok(first.pieces[1].length > 2, 'the input is streamed');
      const second = await client.results('sunny', [textBlock('one'), textBlock('two')]).send();
      assert.deepEqual([second.finish, second.kinds], ['tool_use', ['tool_use']]);
      const third = await client.results({ content: 'no such city', is_error: true }).send();
      assert.deepEqual([third.finish, third.text], ['end_turn', 'Sunny.']);
      await client.ask(say('You are welcome.'));
      const calls = client.assertCalls(4);
      const whole = [
        { role: 'user', content: [client.text(scenario)] },
        { role: 'assistant', content: ['Let me look.', ...first.calls.map(asBlock)] },
        {
          role: 'user',
          content: [
            { result: first.calls[0].id, content: 'sunny' },
            { result: first.calls[1].id, content: ['one', 'two'] },
          ],
        },
        { role: 'assistant', content: second.calls.map(asBlock) },
        { role: 'user', content: [{ result: second.calls[0].id, content: 'no such city', is_error: true }] },
        { role: 'assistant', content: ['Sunny.'] },
        { role: 'user', content: [client.text(say('You are welcome.'))] },
      ];
      calls.forEach((one, i) => assert.deepEqual(conversationOf(one).map(ordered), whole.slice(0, 2 * i + 1)));
      assert.deepEqual(toolsOf(calls[3]), {
        get_weather: { description: WEATHER.description, input_schema: CITY },
        get_time: { description: '', input_schema: TIME.input_schema, strict: true },
      });
    },
    { body: { tools: [cached(WEATHER), { type: 'custom', ...TIME, strict: true }] } },
  ));

const LONG = `First paragraph. ✓\n\nSecond one,\r\n\r\n\ttabbed\u00a0 and\u200b odd.\n\n${'A long line of it. '.repeat(500)}\n\nThe end.`;
const LONG_SCHEMA = { type: 'object', properties: { x: { type: 'string', description: LONG } }, description: LONG };

test('tools reach the API word for word, in their order, in every dialect', async (t) => {
  const named = ['zebra', 'apple'].map((name) => ({ name, description: LONG, schema: LONG_SCHEMA }));
  const chat = new ChatClient(t, {
    body: { tools: named.map(({ schema: parameters, ...one }) => ({ type: 'function', function: { ...one, parameters } })) },
  });
  const anthropic = new MessagesClient(t, { body: { tools: named.map(({ schema: input_schema, ...one }) => ({ ...one, input_schema })) } });
  const response = new ResponsesClient(t, {
    body: { tools: named.map(({ schema: parameters, ...one }) => ({ type: 'function', ...one, parameters })) },
  });
  await Promise.all(
    [chat, anthropic, response].map(async (client) => {
      await client.ask(steps(call({ tool: 'zebra', args: { x: 'y' } }), say('Done.')));
      assert.equal((await client.results('fine').send()).text, 'Done.');
      for (const { body } of client.assertCalls(2)) {
        const told = body.tools.map(({ name, description, input_schema: schema }) => ({ name, description, schema }));
        assert.deepEqual(told, named);
      }
    }),
  );
  // Beside an answer by a schema, which is a tool of the CLI's.
  const both = await anthropic.ask(structured(ADA), { output_config: { format: { type: 'json_schema', schema: PERSON } } });
  assert.deepEqual(JSON.parse(both.text), ADA);
  const { StructuredOutput, zebra } = toolsOf(anthropic.calls().at(-1));
  assert.deepEqual([StructuredOutput.input_schema, zebra.description], [PERSON, LONG]);
});

test('messages: tool_choice and disable_parallel_tool_use reach the API, each turn anew', (t) =>
  messages(
    t,
    async (client) => {
      const asked = [
        [undefined, undefined],
        [{ type: 'auto' }, undefined],
        [{ type: 'any' }, { type: 'any' }],
        [{ type: 'tool', name: 'get_time' }, { type: 'tool', name: 'get_time' }],
        [{ type: 'none' }, { type: 'none' }],
        [{ type: 'auto', disable_parallel_tool_use: true }, { type: 'auto', disable_parallel_tool_use: true }],
        [{ type: 'any', disable_parallel_tool_use: true }, { type: 'any', disable_parallel_tool_use: true }],
        [{ type: 'any', disable_parallel_tool_use: false }, { type: 'any' }],
        [{ type: 'auto' }, undefined],
      ];
      for (const [tool_choice, sent] of asked) {
        await client.ask(say('Fine.'), tool_choice && { tool_choice });
        const got = choiceOf(client.calls().at(-1));
        assert.deepEqual(got?.type === 'auto' && !sent ? undefined : got, sent, JSON.stringify(tool_choice));
      }
      client.assertCalls(asked.length);
    },
    { body: { tools: [WEATHER, TIME] } },
  ));

test('messages: results with images and documents, and text beside them', (t) =>
  messages(
    t,
    async (client) => {
      await client.ask(steps(call([inCity('Bern'), inCity('Basel'), inCity('Chur')]), say('Done.')));
      const calls = [...client.last.calls];
      client.results([textBlock('see'), pngBlock], [pdfBlock], {});
      client.messages.at(-1).content.push(textBlock('and now?'));
      assert.equal((await client.send()).text, 'Done.');
      const last = ordered(conversationOf(client.calls().at(-1)).at(-1));
      assert.equal(client.calls().length, 2);
      assert.deepEqual(last.content.slice(0, 2), [
        { result: calls[0].id, content: ['see', pngBlock] },
        { result: calls[1].id, content: pdfBlock },
      ]);
      assert.equal(last.content[2].result, calls[2].id, 'an empty result is one');
      assert.equal(last.content[3], 'and now?');
    },
    { body: { tools: [WEATHER] } },
  ));

test('messages: a text after the calls stays in its place', (t) =>
  messages(
    t,
    async (client) => {
      const scenario = steps(call(inCity('Bern'), { before: 'Before.', after: 'After.', thinking: 'Hm.' }), say('Done.'));
      const { content, kinds } = await client.ask(scenario);
      assert.deepEqual(kinds, ['thinking', 'text', 'tool_use', 'text']);
      assert.deepEqual([content[1].text, content[3].text], ['Before.', 'After.']);
      assert.equal((await client.results('sunny').send()).text, 'Done.');
      client.assertCalls(2);
    },
    { body: { tools: [WEATHER], max_tokens: 4000, thinking: { type: 'enabled', budget_tokens: 1024 } } },
  ));

once.test('messages: a call in the history whose tool is offered no more', async (t) => {
  const client = new MessagesClient(t);
  client.messages.push(
    { role: 'user', content: 'Weather?' },
    { role: 'assistant', content: [{ type: 'tool_use', id: 'toolu_1', name: 'get_weather', input: { city: 'Bern' } }] },
    { role: 'user', content: [{ type: 'tool_result', tool_use_id: 'toolu_1', content: 'sunny' }, textBlock(client.text(say('Fine.')))] },
  );
  assert.equal((await client.send()).text, 'Fine.');
  const [sent] = client.assertCalls(1);
  assert.deepEqual(choiceOf(sent), { type: 'none' });
});

for (const [what, fields, says] of [
  ['web_search_20250305', { tools: [{ type: 'web_search_20250305', name: 'web_search' }] }, /web_search_20250305/],
  ['bash_20250124', { tools: [{ type: 'bash_20250124', name: 'bash' }] }, /bash_20250124/],
  ['a tool without a schema', { tools: [{ name: 'x' }] }, /tools\[0\]\.input_schema/],
  ['a schema that is no object', { tools: [{ name: 'x', input_schema: { type: 'string' } }] }, /tools\[0\]\.input_schema/],
  ['two tools of one name', { tools: [WEATHER, WEATHER] }, /get_weather/],
  ['a choice of a tool that is not there', { tools: [WEATHER], tool_choice: { type: 'tool', name: 'nope' } }, /nope/],
  ['a choice without tools', { tool_choice: { type: 'any' } }, /tool/],
  ['an unknown choice', { tools: [WEATHER], tool_choice: { type: 'some' } }, /tool_choice\.type/],
  ['a result of no call', { messages: [{ role: 'user', content: [{ type: 'tool_result', tool_use_id: 'toolu_x', content: 'x' }] }] }, /toolu_x/],
  ['an unknown block', { messages: [{ role: 'user', content: [{ type: 'video' }] }] }, /video/],
  ['a block without a type', { messages: [{ role: 'user', content: [{ text: 'x' }] }] }, /messages\[0\]\.content\[0\]\.type/],
  ['a role that nobody has', { messages: [{ role: 'robot', content: 'x' }] }, /messages\[0\]\.role/],
  ['no messages', { messages: [] }, /messages/],
  ['no max_tokens', { max_tokens: undefined }, /max_tokens/],
  ['max_tokens of 0', { max_tokens: 0 }, /max_tokens/],
  ['no model', { model: undefined }, /model/],
  ['a temperature above 1', { temperature: 1.1 }, /temperature/],
  ['a top_p above 1', { top_p: 1.1 }, /top_p/],
  ['a top_k below 0', { top_k: -1 }, /top_k/],
  ['stop sequences that are no list', { stop_sequences: 'END' }, /stop_sequences/],
  ['a budget too small', { thinking: { type: 'enabled', budget_tokens: 1000 } }, /thinking\.budget_tokens/],
  ['an unknown thinking', { thinking: { type: 'deep' } }, /thinking\.type/],
  ['an unknown effort', { output_config: { effort: 'enormous' } }, /output_config\.effort/],
  ['an unknown format', { output_config: { format: { type: 'xml' } } }, /output_config\.format\.type/],
  ['an image that is no base64', { messages: [{ role: 'user', content: [{ ...pngBlock, source: { ...pngBlock.source, data: '%%' } }] }] }, /base64/],
  ['an image of a strange type', { messages: [{ role: 'user', content: [{ ...pngBlock, source: { ...pngBlock.source, media_type: 'image/tiff', data: 'AAAA' } }] }] }, /image\/tiff/],
  ['a file by id', { messages: [{ role: 'user', content: [{ type: 'image', source: { type: 'file', file_id: 'file_1' } }] }] }, /file/],
])
  once.test(`messages: 400 for ${what}`, async (t) => {
    for (const stream of [true, false]) {
      const body = { model: MODEL, max_tokens: 9, stream, messages: t.messages('plain'), ...fields };
      assertAnthropicError(await t.send({ path: '/v1/messages', headers: ANTHROPIC, body }).done, 400, 'invalid_request_error', says);
    }
    assert.equal(t.calls().length, 0);
  });

// ---- Messages: thinking, sampling, format --------------------------------------------------------

test('messages: thinking is told with its signature and passed on, in one process', (t) =>
  messages(
    t,
    async (client) => {
      const scenario = steps(
        call(inCity('Bern'), { thinking: 'Which city?', redacted: 'Y2lwaGVy', before: 'Let me look.' }),
        thought({ thinking: 'Sunny, then.', thinking_tokens: 3 }),
      );
      const first = await client.ask(scenario);
      assert.deepEqual(first.kinds, ['redacted_thinking', 'thinking', 'text', 'tool_use']);
      assert.equal(first.content[0].data, 'Y2lwaGVy');
      assert.deepEqual(first.content[1], { type: 'thinking', thinking: 'Which city?', signature: SIGNATURE });
      const second = await client.results('sunny').send();
      assert.deepEqual(second.content, [
        { type: 'thinking', thinking: 'Sunny, then.', signature: SIGNATURE },
        { type: 'text', text: 'I thought.' },
      ]);
      const [one, two] = client.assertCalls(2);
      for (const sent of [one, two]) assert.deepEqual(thinks(sent), { type: 'enabled', budget_tokens: 2000 });
      const [redacted, thinking, ...rest] = conversationOf(two)[1].content;
      assert.deepEqual([redacted, thinking], first.content.slice(0, 2));
      assert.deepEqual(rest, ['Let me look.', ...first.calls.map(asBlock)]);
    },
    { body: { tools: [WEATHER], max_tokens: 8000, thinking: { type: 'enabled', budget_tokens: 2000 } } },
  ));

test('messages: thoughts that nobody asked for are not told, and stay with the process for its tool results', (t) =>
  Promise.all(
    [undefined, { type: 'disabled' }].map((thinking) =>
      messages(
        t,
        async (client) => {
          const scenario = steps(call(inCity('Bern'), { thinking: 'Which city?', redacted: 'Y2lwaGVy', before: 'Let me look.' }), thought());
          const first = await client.ask(scenario);
          assert.deepEqual(first.kinds, ['text', 'tool_use']); // the reader checks that a stream counts them from 0
          const second = await client.results('sunny').send();
          assert.deepEqual(second.content, [{ type: 'text', text: 'I thought.' }]);
          const alwaysThinks = !CLI_VERSIONS.slice(0, -1).map(claudePath).includes(t.cli); // its `sonnet`
          assert.deepEqual(second.ignored, thinking && alwaysThinks ? ['thinking'] : []);
          const [, last] = client.assertCalls(2);
          assert.equal(last.body.thinking.type, alwaysThinks ? 'adaptive' : 'disabled');
          const [redacted, thoughts] = conversationOf(last)[1].content;
          assert.deepEqual(redacted, { type: 'redacted_thinking', data: 'Y2lwaGVy' });
          assert.deepEqual(thoughts, { type: 'thinking', thinking: 'Which city?', signature: SIGNATURE });
        },
        { body: { model: 'sonnet', tools: [WEATHER], thinking } },
      ),
    ),
  ));

test('messages: the same after the process was lost: the signed thoughts are replayed', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', '--max-processes', '6'] });
  await proxy.inspected();
  const clients = [];
  await messages(
    t,
    async (client) => {
      clients.push(client);
      await client.ask(steps(call(inCity('Bern'), { thinking: 'Which city?', redacted: 'Y2lwaGVy' }), thought()));
      client.results('sunny');
    },
    { proxy, body: { tools: [WEATHER], max_tokens: 8000, thinking: { type: 'enabled', budget_tokens: 2000 } } },
  );
  for (const { pid } of proxy.claudes()) process.kill(pid, 'SIGKILL');
  await eventually('they are gone', () => proxy.claudes().length === 0);
  for (const client of clients) {
    const answer = await client.send();
    assert.deepEqual([answer.kinds, answer.ignored], [['thinking', 'text'], []]);
    const [, sent] = client.assertCalls(2, 2);
    assert.deepEqual(thinks(sent), { type: 'enabled', budget_tokens: 2000 });
    assert.deepEqual(conversationOf(sent)[1].content, [
      { type: 'redacted_thinking', data: 'Y2lwaGVy' },
      { type: 'thinking', thinking: 'Which city?', signature: SIGNATURE },
      ...client.messages[1].content.filter(({ type }) => type === 'tool_use').map(asBlock),
    ]);
  }
});

test('messages: signed thoughts are replayed to an alias of a model too', async (t) => {
  const client = new MessagesClient(t, { body: { model: 'sonnet', max_tokens: 4000, thinking: { type: 'adaptive' } } });
  const thinking = { type: 'thinking', thinking: 'Hm.', signature: 'sig-1' };
  client.messages.push({ role: 'user', content: 'Hi' }, { role: 'assistant', content: [thinking, textBlock('Hello')] });
  await client.ask(say('Fine.'));
  const [sent] = client.assertCalls(1);
  assert.match(sent.body.model, /^claude-sonnet-/);
  assert.deepEqual(conversationOf(sent)[1], { role: 'assistant', content: [thinking, 'Hello'] });
});

// Processes of 2.1.197 that start at the same moment in one HOME may forget the effort that they were told.
once.test('messages: thinking is off unless asked for, adaptive where the model is, and its text may be hidden', async (t) => {
  const off = new MessagesClient(t);
  await off.ask(say('Fine.'), { thinking: { type: 'disabled' } });
  await off.ask(say('Fine.'));
  for (const one of off.assertCalls(2)) assert.equal(thinks(one), undefined);
  for (const stream of [true, false]) {
    const client = new MessagesClient(t, { stream, body: { model: ADAPTIVE_MODEL, max_tokens: 9000, thinking: { type: 'adaptive' } } });
    const answer = await client.ask(thought({ thinking: '' }), { output_config: { effort: 'low' } });
    assert.deepEqual(answer.content[0], { type: 'thinking', thinking: '', signature: SIGNATURE });
    assert.equal(answer.text, 'I thought.');
    const [sent] = client.assertCalls(1);
    assert.equal(sent.body.thinking.type, 'adaptive');
    assert.equal(sent.body.output_config?.effort, 'low');
  }
});

once.test('messages: an effort alone is told to the API and makes no model think', async (t) => {
  const client = new MessagesClient(t, { body: { model: ADAPTIVE_MODEL } });
  const answer = await client.ask(say('Fine.'), { output_config: { effort: 'medium' } });
  assert.deepEqual([answer.text, answer.ignored], ['Fine.', []]);
  const [sent] = client.assertCalls(1);
  assert.equal(sent.body.output_config?.effort, 'medium');
  assert.equal(thinks(sent), undefined);
});

test('messages: sampling, stop sequences and max_tokens reach the API, and how it stopped comes back', (t) =>
  messages(t, async (client) => {
    const asked = [
      [{ temperature: 0.3, stop_sequences: ['END', '|'] }, { temperature: 0.3, stop_sequences: ['END', '|'] }],
      [{ top_k: 40, max_tokens: 1234 }, { top_k: 40, max_tokens: 1234 }],
      [{ temperature: 0 }, { temperature: 0, top_k: undefined, stop_sequences: undefined, max_tokens: 2000 }],
    ];
    for (const [fields, sent] of asked) {
      assert.deepEqual((await client.ask(say('Fine.'), fields)).ignored, []);
      const { body } = client.calls().at(-1);
      for (const [name, value] of Object.entries(sent)) assert.deepEqual(body[name], value, `${name} of ${JSON.stringify(fields)}`);
    }
    const stopped = await client.ask(say('One two END three'), { stop_sequences: ['END'] });
    assert.deepEqual([stopped.text, stopped.finish, stopped.stop_sequence], ['One two ', 'stop_sequence', 'END']);
    const cut = await client.ask(say('One two three four'), { max_tokens: 2 });
    assert.deepEqual([cut.text, cut.finish, cut.stop_sequence], ['One two ', 'max_tokens', null]);
    client.assertCalls(5);
    const refused = await new MessagesClient(t, { stream: client.stream }).ask('refusal');
    assert.deepEqual([refused.text, refused.finish], ['I cannot', 'refusal']);
    await sleep(300); // the CLI would go on by itself
    assert.equal(client.calls().length, 5);
  }));

test('messages: top_p goes to a model that takes it, and is else named', async (t) => {
  // In the place of the second, which is retired, the CLI puts a newer model.
  for (const model of ['claude-sonnet-4-20250514', 'claude-opus-4-20250514']) {
    const old = new MessagesClient(t, { body: { model } });
    const answer = await old.ask(say('Fine.'), { temperature: 0.4, top_p: 0.5 });
    const [{ body }] = old.assertCalls(1);
    assert.deepEqual(answer.ignored, [...(body.temperature === 0.4 ? [] : ['temperature']), ...(body.top_p === 0.5 ? [] : ['top_p'])]);
    assert.equal(answer.ignored.length === 0, body.model === 'claude-sonnet-4-20250514');
  }
  const client = new MessagesClient(t);
  assert.deepEqual((await client.ask(say('Fine.'), { temperature: 0.4, top_p: 0.5 })).ignored, ['top_p']);
});

test('messages: output_config.format is an answer of JSON', (t) =>
  messages(t, async (client) => {
    for (const fields of [
      { output_config: { format: { type: 'json_schema', schema: PERSON } } },
      { output_format: { type: 'json_schema', schema: PERSON } },
    ]) {
      const answer = await client.ask(structured(ADA), fields);
      assert.deepEqual([answer.kinds, answer.finish], [['text'], 'end_turn']);
      assert.deepEqual(JSON.parse(answer.text), ADA);
      const sent = client.calls().at(-1);
      assert.deepEqual(Object.keys(toolsOf(sent).StructuredOutput.input_schema.properties), ['name', 'age']);
      client.messages.length = 0;
    }
  }));

once.test('messages: metadata and what else asks for nothing is accepted, what is not honoured is named', async (t) => {
  const client = new MessagesClient(t, { stream: true });
  const fields = { metadata: { user_id: 'someone' }, service_tier: 'auto', cache_control: { type: 'ephemeral' }, betas: [] };
  assert.deepEqual((await client.ask(say('Fine.'), fields, { 'anthropic-beta': 'tools-2024' })).ignored, []);
  const asked = { mcp_servers: [{ name: 'x' }], container: 'c', context_management: { edits: [{ type: 'x' }] }, stop_sequences: [''], unknown: 1 };
  const { ignored } = await client.ask(say('Fine.'), asked);
  assert.deepEqual(ignored, ['container', 'context_management', 'mcp_servers', 'stop_sequences', 'unknown']);
  for (const { body } of client.assertCalls(2)) assert.equal(body.mcp_servers, undefined);
});

// ---- Messages: errors ----------------------------------------------------------------------------

for (const [status, type, says, retryAfter] of [
  [400, 'invalid_request_error', /loopback says so/],
  [401, 'authentication_error', /./],
  [403, 'permission_error', /loopback says so/],
  [404, 'not_found_error', /./],
  [413, 'request_too_large', /./],
  [429, 'rate_limit_error', /loopback says so/, true],
  [500, 'api_error', /loopback says so/],
  [529, 'overloaded_error', /loopback says so/, true],
])
  test(`messages: the API's ${status} reaches the client as it is`, { slow: true }, async (t) => {
    await messages(t, async (client) => {
      client.user(`error status=${status} message="loopback says so" ${status === 429 ? 'retry_after=1' : ''}`);
      const result = await client.sendRaw().done;
      assertAnthropicError(result, status, type, says);
      if (retryAfter) assert.match(result.headers['retry-after'] ?? '', /^[1-9]\d*$/);
    });
  });

test('messages: an error after the first event is told in the stream, which ends', { slow: true }, async (t) => {
  for (const [scenario, type] of [
    ['error_event after=2 text="One two three four."', 'overloaded_error'],
    ['drop after=2 times=99', 'api_error'],
  ]) {
    const client = new MessagesClient(t, { stream: true });
    const result = await client.user(scenario).sendRaw().done;
    assert.equal(result.status, 200);
    const frames = result.frames.filter(({ data }) => data !== undefined);
    const { event, data } = frames.pop();
    assert.equal(event, 'error');
    const told = JSON.parse(data);
    assertKeys(told, ['type', 'error', 'request_id']);
    assert.deepEqual([told.type, told.error.type, told.request_id], ['error', type, result.headers['request-id']]);
    const text = frames.map((frame) => JSON.parse(frame.data).delta?.text ?? '').join('');
    assert.equal(text, 'One two th');
    assert.ok(!frames.some((frame) => ['message_delta', 'message_stop'].includes(frame.event)), 'a failed answer has no end');
  }
});

test('messages: an answer broken off is completed, each part once', { slow: true }, (t) =>
  messages(t, async (client) => {
    assert.equal((await client.ask('drop after=2')).text, 'One two three four.');
  }));

once.test('messages: keys by x-api-key and Bearer, and refusals in the dialect of the endpoint', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--api-key', 'first-key', '--api-key', 'second-key', '--spares', '0'] });
  const ask = (headers, where = '/v1/messages') =>
    t.send({ proxy, path: where, headers, body: { model: MODEL, max_tokens: 9, messages: t.messages('plain') } }).done;
  for (const headers of [{ 'x-api-key': 'first-key' }, { authorization: 'Bearer first-key' }])
    assert.equal(readMessage(await ask({ ...ANTHROPIC, ...headers })).text, ANSWER);
  for (const where of ['/v1/messages', '/messages', '/v1/messages/count_tokens'])
    for (const headers of [{}, ANTHROPIC, { 'x-api-key': 'wrong' }]) assertAnthropicError(await ask(headers, where), 401, 'authentication_error');
  for (const where of ['/v1/chat/completions', '/v1/responses', '/v1/completions'])
    assertOpenAIError(await ask({ ...ANTHROPIC, 'x-api-key': 'wrong' }, where), 401);
  // Where both dialects ask, the version header decides.
  assertAnthropicError(await t.get('/v1/models', { proxy, headers: ANTHROPIC }), 401, 'authentication_error');
  assertOpenAIError(await t.get('/v1/models', { proxy }), 401);
  assert.equal(t.calls().length, 2);
});

once.test('messages: what never reached the endpoint is refused in its dialect', async (t) => {
  const refused = async (options, status, type) =>
    assertAnthropicError(await t.send({ path: '/v1/messages', headers: ANTHROPIC, ...options }).done, status, type);
  await refused({ body: '{"model":' }, 400, 'invalid_request_error');
  await refused({ body: '[]' }, 400, 'invalid_request_error');
  await refused({ method: 'GET' }, 405, 'invalid_request_error');
  await refused({ path: '/v1/nowhere', body: {} }, 404, 'not_found_error');
  await refused({ headers: { ...ANTHROPIC, origin: 'https://evil.example' }, body: {} }, 403, 'permission_error');
  await refused({ body: { model: MODEL, max_tokens: 9, messages: [{ role: 'user', content: 'x'.repeat(11 * 1024 * 1024) }] } }, 413, 'request_too_large');
});

once.test('messages: not logged in is 503 with the command', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--auth-method', 'cli', '--spares', '0'] });
  for (const stream of [false, true]) {
    const body = { model: MODEL, max_tokens: 9, stream, messages: t.messages('plain') };
    const result = await t.send({ proxy, path: '/v1/messages', body }).done;
    assertAnthropicError(result, 503, 'api_error', /claude auth login/);
  }
  assert.equal(t.calls().length, 0);
});

// ---- Messages: sessions and Claude Code's own tools ----------------------------------------------

test('messages: with session_id only what is new is sent', (t) =>
  messages(
    t,
    async (client) => {
      await client.ask(steps(call(inCity('Bern')), say('Sunny.')));
      await client.results('sunny').send();
      await client.ask(say('You are welcome.'));
      const calls = client.assertCalls(3);
      assert.deepEqual(
        calls.map((one) => conversationOf(one).length),
        [1, 3, 5],
      );
      assert.equal(callerSystem(calls[2]), 'Be brief.');
    },
    { session: 'dialects', body: { tools: [WEATHER], system: 'Be brief.' } },
  ));

once.test('X-Session-Id is a session, but not where it only tells a router the way, nor for several answers', async (t) => {
  const id = `routed-${t.token}`;
  const first = new MessagesClient(t, { headers: { 'x-session-id': id } });
  await first.ask(say('One.'));
  const second = new MessagesClient(t, { headers: { 'x-session-id': id } });
  await second.ask(say('Two.'));
  assert.equal(conversationOf(second.assertCalls(1)[0]).length, 3, 'the session is told first');
  const third = new MessagesClient(t, { headers: { 'x-session-id': id, 'x-session-affinity': id } });
  await third.ask(say('Three.'));
  assert.equal(conversationOf(third.assertCalls(1)[0]).length, 1, 'opencode sends the same id with its requests for titles');
  const headers = { 'x-session-id': id };
  const before = t.calls().length;
  assertOpenAIError(await t.chat({ n: 2, messages: t.messages('plain') }, { headers }), 400);
  assertOpenAIError(await complete(t, { prompt: [t.text('plain'), t.text('plain')] }, { headers }), 400);
  assert.equal(t.calls().length, before);
});

test('messages: enable_tools lends Claude Code its own tools, which are off else', async (t) => {
  const prepare = (one) => one.command.push('--add-dir', one.scratch); // agents read their own directories alone
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0'], prepare });
  const file = path.join(proxy.scratch, 'note.txt');
  writeFileSync(file, 'a note on the disk');
  const scenario = steps(call({ tool: 'Read', args: { file_path: file } }, { before: 'Let me read.' }), say('Read it.'));
  const [streamed, whole] = await Promise.all(
    [true, false].map(async (stream) => {
      const client = new MessagesClient(t, { proxy, stream, body: { enable_tools: true, show_activity: stream } });
      const answer = await client.ask(scenario);
      assert.deepEqual([answer.finish, answer.calls], ['end_turn', []]);
      assert.match(answer.text, /^Let me read\.\s*Read it\.$/);
      const [first, second] = client.assertCalls(2);
      assert.ok(toolsOf(first).Read);
      assert.match(JSON.stringify(second.body.messages), /a note on the disk/);
      return answer;
    }),
  );
  assert.match(streamed.content.map(({ thinking }) => thinking ?? '').join(''), /Read [^]*a note on the disk/, 'told as thinking');
  assert.ok(!whole.kinds.includes('thinking'));
  const plain = new MessagesClient(t, { proxy });
  await plain.ask(say('Fine.'));
  assert.deepEqual(toolsOf(plain.calls()[0]), {});
});

// ---- Messages: counting tokens -------------------------------------------------------------------

const count = (t, body, options = {}) =>
  t.send({ path: '/v1/messages/count_tokens', headers: ANTHROPIC, body: { model: MODEL, ...body }, ...options }).done;
const countsOf = (t) => t.api.requests.filter(({ path: where, raw }) => where === '/v1/messages/count_tokens' && raw.includes(t.token));

once.test('count_tokens: with an API key it is the true count, of all that counts', async (t) => {
  const content = [textBlock(`[[scenario:count tokens=4321]] ${t.token}`), pngBlock, pdfBlock];
  const body = {
    system: [cached(textBlock('Be brief.'))],
    tools: [cached(WEATHER)],
    tool_choice: { type: 'any' },
    thinking: { type: 'enabled', budget_tokens: 1024 },
    messages: [
      { role: 'user', content: 'Weather?' },
      { role: 'assistant', content: [{ type: 'thinking', thinking: 'Hm.', signature: 'sig' }, { type: 'tool_use', id: 'toolu_1', name: 'get_weather', input: { city: 'Bern' } }] },
      { role: 'user', content: [{ type: 'tool_result', tool_use_id: 'toolu_1', content: 'sunny' }, ...content] },
    ],
  };
  delete body.tool_choice; // the API refuses to count what it would refuse to answer
  const result = await count(t, body);
  assert.equal(result.status, 200, result.text);
  assert.deepEqual([result.json, result.headers['x-token-count']], [{ input_tokens: 4321 }, 'exact']);
  const [sent, ...more] = countsOf(t);
  assert.equal(more.length, 0);
  assert.equal(sent.headers['x-api-key'], 'sk-ant-test-key-0000');
  assert.ok(sent.headers['anthropic-version']);
  assert.deepEqual(callerSystem(sent), 'Be brief.');
  assert.deepEqual(toolsOf(sent), { get_weather: { description: WEATHER.description, input_schema: CITY } });
  assert.deepEqual(conversationOf(sent), [
    { role: 'user', content: ['Weather?'] },
    { role: 'assistant', content: [body.messages[1].content[0], { call: 'toolu_1', name: 'get_weather', input: { city: 'Bern' } }] },
    { role: 'user', content: [{ result: 'toolu_1', content: 'sunny' }, content[0].text, pngBlock, pdfBlock] },
  ]);
  assert.deepEqual(sent.body.thinking, body.thinking);
  assert.equal(t.calls().length, 0, 'nobody was asked');
});

once.test('count_tokens: an alias is counted as the model that it stands for', async (t) => {
  const result = await count(t, { messages: [{ role: 'user', content: t.token }], model: 'sonnet' });
  assert.deepEqual([result.status, result.headers['x-token-count']], [200, 'exact'], result.text);
  assert.match(countsOf(t).at(-1).body.model, /^claude-sonnet-/);
});

once.test('count_tokens: an estimate says so: with another login, an unknown name, or where the API does not count', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--auth-method', 'cli', '--spares', '0'] });
  const words = (length) => ({ messages: [{ role: 'user', content: `${t.token} ${'word '.repeat(length)}` }] });
  const estimate = async (body, options) => {
    const result = await count(t, body, options);
    assert.equal(result.status, 200, result.text);
    assert.deepEqual([Object.keys(result.json), result.headers['x-token-count']], [['input_tokens'], 'estimate']);
    return result.json.input_tokens;
  };
  const small = await estimate(words(100), { proxy });
  const large = await estimate(words(1000), { proxy });
  assert.ok(small > 80 && small < 250, `${small}`);
  assert.ok(large > 800 && large < 2500, `${large}`);
  assert.ok((await estimate({ ...words(100), system: 'word '.repeat(200) }, { proxy })) > small + 150);
  assert.ok((await estimate({ ...words(100), tools: [WEATHER] }, { proxy })) > small + 10);
  const image = { messages: [{ role: 'user', content: [textBlock(t.token), pngBlock] }] };
  assert.ok((await estimate(image, { proxy })) > 1000);
  assert.equal(countsOf(t).length, 0, 'the key is not this login’s');
  await estimate({ ...words(100), model: 'no-such-alias' });
  await estimate({ messages: t.messages('error status=529') });
});

once.test('count_tokens: what is wrong is a 400 that names it', async (t) => {
  const refused = async (body, says) => assertAnthropicError(await count(t, body), 400, 'invalid_request_error', says);
  await refused({}, /messages/);
  await refused({ messages: [] }, /messages/);
  await refused({ model: undefined, messages: t.messages('plain') }, /model/);
  await refused({ messages: [{ role: 'user', content: [{ type: 'video' }] }] }, /video/);
  assert.equal(countsOf(t).length, 0);
});

// ---- Responses: shape ----------------------------------------------------------------------------

const responses = bothWays(ResponsesClient);
const respond = (t, body, options = {}) => t.send({ path: '/v1/responses', body: { model: MODEL, ...body }, ...options }).done;
const fn = (name, parameters = CITY, more = {}) => ({ type: 'function', name, description: `What ${name} does`, parameters, ...more });
const WEATHER_FN = fn('get_weather');
const argumentsOf = ({ calls }) => calls.map((one) => JSON.parse(one.arguments));
const fnBlock = ({ call_id, name, arguments: text }) => ({ call: call_id, name, input: JSON.parse(text) });

once.test('responses: a response and its events, with the usage of the API', (t) =>
  responses(t, async (client) => {
    const input = client.text(say(ANSWER, { ...USAGE, deltas: 4 }));
    const answer = readResponse(await client.sendRaw({ input }).done);
    assert.deepEqual([answer.kinds, answer.text, answer.status], [['message'], ANSWER, 'completed']);
    assert.deepEqual([answer.model, answer.error, answer.incomplete_details], [MODEL, null, null]);
    const { cost, ...usage } = answer.usage;
    assert.deepEqual(
      [usage.input_tokens, usage.input_tokens_details.cached_tokens, usage.output_tokens, usage.total_tokens],
      [450, 300, 20, 470],
    );
    assert.equal(usage.output_tokens_details.reasoning_tokens, 5);
    assert.ok(cost > 0.0005 && cost < 0.002, `cost ${cost}`);
    if (client.stream) {
      assert.deepEqual(
        answer.deltas[0].map(({ value }) => value.delta),
        ['Hello f', 'rom the', ' loopba', 'ck API.'],
      );
    }
    const [sent] = client.assertCalls(1);
    assert.deepEqual(conversationOf(sent), [{ role: 'user', content: [input] }]);
    assert.deepEqual([sent.body.tools, thinks(sent)], [[], undefined]);
  }));

once.test('responses: deltas arrive as they leave the API', { alone: true }, async (t) => {
  const { deltas } = await new ResponsesClient(t, { stream: true }).ask(say('one two three four five', { deltas: 5, delay: 150 }));
  assertSpread(deltas[0].map(({ at }) => at));
});

once.test('responses: a silent stream says `: keep-alive`, and so does one of completions', { slow: true }, async (t) => {
  const exchanges = [
    t.send({ path: '/v1/responses', body: { model: MODEL, stream: true, input: t.text('hang after=2') } }),
    t.send({ path: '/v1/completions', body: { model: MODEL, stream: true, prompt: t.text('hang after=2') } }),
  ];
  t.defer(async () => exchanges.forEach((exchange) => exchange.abort()));
  const said = (exchange) => exchange.chunks.map(({ text }) => text).join('');
  for (const exchange of exchanges)
    await eventually('a comment', () => /(delta|"text")[^]*\n\n: keep-alive\n\n$/.test(said(exchange)));
});

const ECHOED = {
  instructions: 'Be brief.',
  metadata: { a: 'b', long: 'x'.repeat(500) },
  temperature: 0.5,
  max_output_tokens: 500,
  parallel_tool_calls: false,
  tools: [WEATHER_FN],
  tool_choice: { type: 'function', name: 'get_weather' },
  text: { format: { type: 'text' } },
  truncation: 'disabled',
  user: 'someone',
  store: false,
};

once.test('responses: what was asked is repeated, with the defaults of what was not', (t) =>
  responses(t, async (client) => {
    const answer = await client.ask(call(inCity('Bern')), ECHOED);
    for (const [field, value] of Object.entries(ECHOED)) assert.deepEqual(answer.response[field], value, field);
    const plain = await client.results('sunny').user(say('Fine.')).send({ tools: [WEATHER_FN] });
    const { instructions, metadata, temperature, top_p, max_output_tokens, parallel_tool_calls, tool_choice, store, reasoning } = plain.response;
    assert.deepEqual([instructions, metadata, temperature, top_p, max_output_tokens], [null, {}, 1, 1, null]);
    assert.deepEqual([parallel_tool_calls, tool_choice, store, reasoning], [true, 'auto', true, { effort: null, summary: null }]);
  }));

// ---- Responses: what the API is sent -------------------------------------------------------------

const inputText = (text) => ({ type: 'input_text', text });
const dataUri = (type, data) => `data:${type};base64,${data}`;

once.test('responses: items of all kinds reach the API in their places', (t) =>
  responses(t, async (client) => {
    client.messages.push(
      { type: 'message', role: 'developer', content: [inputText('Be kind.')] },
      { role: 'user', content: 'What is 2+2?' },
      { type: 'message', id: 'msg_1', role: 'assistant', status: 'completed', content: [{ type: 'output_text', text: '4', annotations: [] }] },
      { role: 'system', content: 'Be exact. ✓' },
      {
        role: 'user',
        content: [
          inputText('See'),
          { type: 'input_image', image_url: dataUri('image/png', PNG), detail: 'auto' },
          { type: 'input_image', image_url: 'https://pictures.example/a.png' },
          { type: 'input_file', filename: 'a.pdf', file_data: dataUri('application/pdf', PDF) },
          { type: 'input_file', file_url: 'https://papers.example/a.pdf' },
        ],
      },
      { role: 'assistant', content: 'I see.' },
      { type: 'function_call', id: 'fc_1', call_id: 'call_1', name: 'get_weather', arguments: '{"city":"Bern"}', status: 'completed' },
      { type: 'function_call_output', call_id: 'call_1', output: [inputText('sunny'), { type: 'input_image', image_url: dataUri('image/png', PNG) }] },
      { role: 'assistant', content: [{ type: 'refusal', refusal: 'I will not say.' }] },
    );
    const answer = await client.ask(say('Fine.'), { instructions: 'Be brief.', tools: [WEATHER_FN] });
    assert.equal(answer.text, 'Fine.');
    const [sent] = client.assertCalls(1);
    assert.equal(callerSystem(sent), 'Be brief.\nBe kind.');
    assert.deepEqual(conversationOf(sent), [
      { role: 'user', content: ['What is 2+2?'] },
      { role: 'assistant', content: ['4'] },
      { role: 'user', content: ['<system-reminder>\nBe exact. ✓\n</system-reminder>', 'See', pngBlock, urlBlock, pdfBlock, pdfUrlBlock] },
      { role: 'assistant', content: ['I see.', { call: 'call_1', name: 'get_weather', input: { city: 'Bern' } }] },
      { role: 'user', content: [{ result: 'call_1', content: ['sunny', pngBlock] }] },
      { role: 'assistant', content: ['I will not say.'] },
      { role: 'user', content: [client.text(say('Fine.'))] },
    ]);
  }));

// ---- Responses: conversations --------------------------------------------------------------------

once.test('responses: previous_response_id goes on in the living process, and so do items sent again', async (t) => {
  for (const chained of [true, false])
    await responses(
      t,
      async (client) => {
        await client.ask(say('One.'));
        await client.ask(say('Two.'));
        const third = await client.ask(say('Three.'));
        assert.equal(third.text, 'Three.');
        assert.equal(third.previous_response_id === null, !chained);
        const calls = client.assertCalls(3);
        assert.deepEqual(
          conversationOf(calls[2]).map(({ role, content }) => [role, content.length]),
          ['user', 'assistant', 'user', 'assistant', 'user'].map((role) => [role, 1]),
        );
        assert.deepEqual(conversationOf(calls[2])[3].content, ['Two.']);
        for (const one of calls) assert.equal(callerSystem(one), 'Be brief.');
      },
      { chained, body: { instructions: 'Be brief.' } },
    );
});

once.test('responses: a conversation branches at any response, with other instructions if asked', async (t) => {
  const client = new ResponsesClient(t, { chained: true });
  const first = await client.ask(say('One.'), { instructions: 'Be brief.' });
  await client.ask(say('Two.'));
  client.last = first;
  const third = await client.ask(say('Three.'), { instructions: 'Be kind.' });
  assert.equal(third.previous_response_id, first.id);
  const [one, two, three] = client.assertCalls(3, 3);
  assert.deepEqual(
    [one, two, three].map((sent) => callerSystem(sent)),
    ['Be brief.', 'You are a helpful assistant.', 'Be kind.'],
    'instructions are of one response',
  );
  assert.deepEqual(conversationOf(three).slice(0, 2), [
    { role: 'user', content: [client.text(say('One.'))] },
    { role: 'assistant', content: ['One.'] },
  ]);
  assert.equal(conversationOf(three).length, 3);
});

once.test('responses: store:false is not kept, and a client that brings all of it loses nothing', (t) =>
  responses(
    t,
    async (client) => {
      const first = await client.ask(say('One.'));
      assertOpenAIError(await t.get(`/v1/responses/${first.id}`), 404);
      const body = { model: MODEL, previous_response_id: first.id, input: client.text(say('x')) };
      assertOpenAIError(await respond(t, body), 404, 'previous_response_id');
      client.messages.at(-1).id = undefined; // as Codex does
      assert.equal((await client.ask(say('Two.'))).text, 'Two.');
      client.assertCalls(2);
    },
    { body: { store: false } },
  ));

once.test('responses: an item is named by its id, if it is kept', async (t) => {
  const client = new ResponsesClient(t);
  const first = await client.ask(say('One.'));
  const [{ id: asked }] = (await t.get(`/v1/responses/${first.id}/input_items`)).json.data;
  for (const reference of [(id) => ({ type: 'item_reference', id }), (id) => ({ id })]) {
    client.messages = [reference(asked), reference(first.output[0].id)];
    assert.equal((await client.ask(say('Two.'))).text, 'Two.');
  }
  client.messages = [];
  assert.equal((await client.ask(say('Three.'), { previous_response_id: client.last.id })).text, 'Three.');
  const calls = client.calls();
  assert.equal(calls.length, 4);
  assert.equal(conversationOf(calls[3]).length, 5);
  for (const one of calls.slice(1))
    assert.deepEqual(conversationOf(one).slice(0, 2), [
      { role: 'user', content: [client.text(say('One.'))] },
      { role: 'assistant', content: ['One.'] },
    ]);
  client.messages = [{ type: 'item_reference', id: 'msg_nobody' }];
  const result = await client.user(say('x')).sendRaw().done;
  assertOpenAIError(result, 400, /^input\[0\]/);
});

// ---- Responses: tools ----------------------------------------------------------------------------

const PATCH = {
  type: 'custom',
  name: 'apply_patch',
  description: 'Edits files',
  format: { type: 'grammar', syntax: 'lark', definition: 'start: "*** Begin Patch" LF' },
};
const patchText = '*** Begin Patch\n+ "ü"\n*** End Patch';

once.test('responses: functions over three rounds, parallel ones too, chained and not', async (t) => {
  for (const chained of [true, false])
    await responses(
      t,
      async (client) => {
        const scenario = steps(
          call([inCity('Zürich'), inCity('Bern')], { before: 'Let me look.', deltas: 4 }),
          call(inCity('Basel')),
          say('Sunny.'),
        );
        const first = await client.ask(scenario);
        assert.deepEqual([first.status, first.kinds], ['completed', ['message', 'function_call', 'function_call']]);
        assert.deepEqual(argumentsOf(first), [{ city: 'Zürich' }, { city: 'Bern' }]);
        if (client.stream) assert.ok(first.deltas[1].length > 2, 'arguments are streamed');
        client.results('sunny', 'rain');
        client.messages.push(...client.messages.splice(-2).reverse());
        const second = await client.send();
        assert.deepEqual(second.kinds, ['function_call']);
        assert.equal((await client.results('fog').send()).text, 'Sunny.');
        const calls = client.assertCalls(3);
        const told = conversationOf(calls[2]);
        assert.deepEqual(told[1].content, ['Let me look.', ...first.calls.map(fnBlock)]);
        assert.deepEqual(resultsOf(told[2]), { [first.calls[0].call_id]: 'sunny', [first.calls[1].call_id]: 'rain' });
        assert.deepEqual(told[4].content, [{ result: second.calls[0].call_id, content: 'fog' }]);
        assert.deepEqual(toolsOf(calls[0]), {
          get_weather: { description: 'What get_weather does', input_schema: CITY },
          now: { description: '', input_schema: { type: 'object', properties: {} } },
        });
      },
      { chained, body: { tools: [WEATHER_FN, { type: 'function', name: 'now' }] } },
    );
});

once.test('responses: custom tools take text, by a grammar if there is one, and give text', async (t) => {
  for (const chained of [true, false])
    await responses(
      t,
      async (client) => {
        const first = await client.ask(steps(call([{ tool: 'apply_patch', args: { input: patchText } }, inCity('Bern')]), say('Done.')));
        assert.deepEqual(first.kinds, ['custom_tool_call', 'function_call']);
        assert.deepEqual([first.calls[0].name, first.calls[0].input], ['apply_patch', patchText]);
        assert.equal((await client.results('patched', 'sunny').send()).text, 'Done.');
        const [one, two] = client.assertCalls(2);
        const { description, input_schema: schema } = toolsOf(one).apply_patch;
        assert.match(description, /^Edits files\b[^]*start: "\*\*\* Begin Patch" LF/);
        assert.deepEqual([Object.keys(schema.properties), schema.required], [['input'], ['input']]);
        const told = conversationOf(two);
        assert.deepEqual(told[1].content[0], { call: first.calls[0].call_id, name: 'apply_patch', input: { input: patchText } });
        assert.deepEqual(resultsOf(told[2]), { [first.calls[0].call_id]: 'patched', [first.calls[1].call_id]: 'sunny' });
      },
      { chained, body: { tools: [PATCH, WEATHER_FN] } },
    );
});

once.test('responses: tools of a namespace are called by their name in it', async (t) => {
  const NAMESPACE = {
    type: 'namespace',
    name: 'weather_station',
    description: 'Weather of all kinds.',
    tools: [fn('get_weather'), fn('get_storms')],
  };
  for (const chained of [true, false])
    await responses(
      t,
      async (client) => {
        const scenario = steps(call([{ of: 'What get_storms does', args: { city: 'Bern' } }, inCity('Chur')]), say('Done.'));
        const first = await client.ask(scenario);
        assert.deepEqual(
          first.calls.map(({ type, name, namespace }) => [type, name, namespace]),
          [
            ['function_call', 'get_storms', 'weather_station'],
            ['function_call', 'get_weather', undefined],
          ],
        );
        assert.equal((await client.results('none', 'sunny').send()).text, 'Done.');
        const [one, two] = client.assertCalls(2);
        assert.equal(Object.keys(toolsOf(one)).length, 3);
        assert.deepEqual(resultsOf(conversationOf(two)[2]), { [first.calls[0].call_id]: 'none', [first.calls[1].call_id]: 'sunny' });
      },
      { chained, body: { tools: [WEATHER_FN, NAMESPACE] } },
    );
});

once.test('responses: tool_choice and parallel_tool_calls reach the API, each turn anew', (t) =>
  responses(
    t,
    async (client) => {
      const asked = [
        [{ tool_choice: 'auto' }, undefined],
        [{ tool_choice: 'required' }, { type: 'any' }],
        [{ tool_choice: { type: 'function', name: 'get_weather' } }, { type: 'tool', name: 'get_weather' }],
        [{ tool_choice: { type: 'custom', name: 'apply_patch' } }, { type: 'tool', name: 'apply_patch' }],
        [{ tool_choice: 'none' }, { type: 'none' }],
        [{ parallel_tool_calls: false }, { type: 'auto', disable_parallel_tool_use: true }],
        [{ tool_choice: 'required', parallel_tool_calls: false }, { type: 'any', disable_parallel_tool_use: true }],
        [{}, undefined],
      ];
      for (const [fields, sent] of asked) {
        await client.ask(say('Fine.'), fields);
        const got = choiceOf(client.calls().at(-1));
        assert.deepEqual(got?.type === 'auto' && !sent ? undefined : got, sent, JSON.stringify(fields));
      }
      client.assertCalls(asked.length);
    },
    { body: { tools: [WEATHER_FN, PATCH] } },
  ));

for (const type of ['web_search', 'web_search_preview', 'web_search_2025_08_26', 'file_search', 'computer_use_preview', 'code_interpreter', 'image_generation', 'mcp'])
  once.test(`responses: the tool ${type}, which only OpenAI can run, is left out and named, and refused where it is forced`, async (t) => {
    const tools = [WEATHER_FN, { type }];
    const answer = readResponse(await respond(t, { input: t.text('plain'), tools }));
    assert.deepEqual(answer.ignored, [`tools.${type}`]);
    assert.deepEqual(Object.keys(toolsOf(t.calls()[0])), ['get_weather']);
    assertOpenAIError(await respond(t, { input: t.text('plain'), tools, tool_choice: { type } }), 400, 'tool_choice', new RegExp(`'${type}'`));
    const strict = { headers: { 'x-strict-params': 'true' } };
    assertOpenAIError(await respond(t, { input: t.text('plain'), tools }, strict), 400, `tools.${type}`);
    assert.equal(t.calls().length, 1);
  });

for (const [param, fields] of [
  [/^tools\[0\]/, { tools: [{ type: 'function' }] }],
  [/^tools\[0\]\.parameters/, { tools: [fn('x', { type: 'string' })] }],
  [/^tools/, { tools: [WEATHER_FN, WEATHER_FN] }],
  [/^tool_choice/, { tools: [WEATHER_FN], tool_choice: { type: 'function', name: 'nope' } }],
  [/^tool_choice/, { tool_choice: 'required' }],
  [/^tool_choice/, { tools: [WEATHER_FN], tool_choice: 'some' }],
  ['input', { input: undefined }],
  ['input', { input: [] }],
  [/^input/, { input: 7 }],
  [/^input\[0\]\.type/, { input: [{ type: 7 }] }],
  [/^input\[0\]\.role/, { input: [{ role: 'robot', content: 'x' }] }],
  [/^input\[0\]\.content/, { input: [{ role: 'user' }] }],
  [/^input\[0\]\.content\[0\]/, { input: [{ role: 'user', content: [{ type: 'input_audio' }] }] }],
  [/file_id/, { input: [{ role: 'user', content: [{ type: 'input_image', file_id: 'file-1' }] }] }],
  [/file_id/, { input: [{ role: 'user', content: [{ type: 'input_file', file_id: 'file-1' }] }] }],
  [/image_url/, { input: [{ role: 'user', content: [{ type: 'input_image', image_url: 'ftp://x/y.png' }] }] }],
  [/name/, { input: [{ type: 'function_call', call_id: 'c', name: 7, arguments: '{}' }] }],
  ['temperature', { temperature: 2.1 }],
  ['top_p', { top_p: -1 }],
  ['max_output_tokens', { max_output_tokens: 0 }],
  [/^reasoning\.effort/, { reasoning: { effort: 'enormous' } }],
  [/^text\.format/, { text: { format: { type: 'xml' } } }],
  [/^text\.format/, { text: { format: { type: 'json_schema', name: 'x' } } }],
  ['conversation', { conversation: 'conv_1' }],
  ['prompt', { prompt: { id: 'pmpt_1' } }],
  ['previous_response_id', { previous_response_id: 7 }],
])
  once.test(`responses: 400 names ${param} of ${JSON.stringify(fields)}`, async (t) => {
    for (const stream of [true, false]) assertOpenAIError(await respond(t, { input: t.text('plain'), stream, ...fields }), 400, param);
    assert.equal(t.calls().length, 0);
  });

// ---- Responses: format, reasoning, limits --------------------------------------------------------

once.test('responses: text.format json_schema and json_object', (t) =>
  responses(t, async (client) => {
    const format = { type: 'json_schema', name: 'person', strict: true, schema: PERSON };
    const answer = await client.ask(structured(ADA), { text: { format } });
    assert.deepEqual([answer.kinds, answer.status, answer.format.format], [['message'], 'completed', format]);
    assert.deepEqual(JSON.parse(answer.text), ADA);
    assert.deepEqual(Object.keys(toolsOf(client.calls()[0]).StructuredOutput.input_schema.properties), ['name', 'age']);
    client.messages.length = 0;
    const any = await client.ask(structured({ x: 1 }), { text: { format: { type: 'json_object' } } });
    assert.deepEqual(JSON.parse(any.text), { x: 1 });
    const named = await client.ask(say('Fine.'), { text: { verbosity: 'low' } });
    assert.deepEqual(named.ignored, ['text.verbosity']);
  }));

once.test('responses: reasoning with and without a summary', (t) =>
  responses(t, async (client) => {
    const scenario = thought({ thinking: 'Let me think.', thinking_tokens: 5, output: 12 });
    const shown = await client.ask(scenario, { reasoning: { effort: 'low', summary: 'auto' } });
    assert.deepEqual([shown.kinds, shown.summary, shown.text], [['reasoning', 'message'], 'Let me think.', 'I thought.']);
    assert.equal(shown.usage.output_tokens_details.reasoning_tokens, 5);
    assert.deepEqual(shown.response.reasoning, { effort: 'low', summary: 'auto' });
    const unasked = await client.ask(scenario);
    assert.deepEqual([unasked.kinds, unasked.text], [['message'], 'I thought.']);
    const hidden = await client.ask(scenario, { reasoning: { effort: 'low' } });
    assert.deepEqual([hidden.kinds, hidden.summary, hidden.text], [['reasoning', 'message'], '', 'I thought.']);
    for (const { reasoning } of [shown, hidden]) assert.equal(reasoning[0].encrypted_content, undefined);
    const [first, , last] = client.assertCalls(3, 2);
    for (const one of [first, last]) assert.deepEqual(thinks(one), { type: 'enabled', budget_tokens: 2048 });
  }));

once.test('responses: a summary that is asked for alone comes, as it does beside encrypted reasoning', (t) =>
  responses(t, async (client) => {
    const scenario = thought({ thinking: 'Let me think.', thinking_tokens: 5, output: 12 });
    for (const include of [undefined, ['reasoning.encrypted_content']]) {
      const shown = await client.ask(scenario, { reasoning: { summary: 'auto' }, include });
      assert.deepEqual([shown.kinds, shown.summary, shown.ignored], [['reasoning', 'message'], 'Let me think.', []]);
    }
    const unasked = await client.ask(scenario, { reasoning: { summary: null } });
    assert.deepEqual(unasked.kinds, ['message']);
    for (const sent of client.calls()) assert.equal(thinks(sent)?.budget_tokens, undefined, 'to show thoughts asks for none');
  }));

once.test("responses: tools in the forms of chat and of Messages are taken: each is unambiguous", (t) =>
  responses(t, async (client) => {
    const { type: _, name, ...inside } = WEATHER_FN;
    const said = { name: 'say', description: 'Says it.' };
    const tools = [
      { type: 'function', function: { name, ...inside } },
      { name: 'look', input_schema: CITY },
      { type: 'custom', name: 'see', input_schema: CITY },
      { type: 'custom', custom: { ...said, format: { type: 'grammar', grammar: { syntax: 'regex', definition: 'a+' } } } },
    ];
    const answer = await client.ask(call([inCity('Bern'), { tool: 'say', args: { input: 'aa' } }]), { tools });
    assert.deepEqual(answer.ignored, []);
    assert.deepEqual(answer.output.map((item) => [item.type, item.name, item.input]), [
      ['function_call', 'get_weather', undefined],
      ['custom_tool_call', 'say', 'aa'],
    ]);
    const told = toolsOf(client.calls()[0]);
    assert.deepEqual(Object.keys(told).sort(), ['get_weather', 'look', 'say', 'see']);
    for (const own of ['look', 'see']) assert.deepEqual(told[own].input_schema.properties, CITY.properties);
    assert.match(told.say.description, /a\+/);
  }));

once.test('responses: encrypted reasoning is brought back to the API with its signature', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', '--max-processes', '6'] });
  await proxy.inspected();
  const clients = [];
  await responses(
    t,
    async (client) => {
      const scenario = steps(call(inCity('Bern'), { thinking: 'Which city?', redacted: 'Y2lwaGVy' }), thought({ thinking: 'Sunny, then.' }));
      const first = await client.ask(scenario);
      assert.deepEqual(first.kinds, ['reasoning', 'reasoning', 'function_call']);
      for (const { encrypted_content: sealed } of first.reasoning) assert.ok(sealed);
      assert.deepEqual(first.summary, '');
      client.results('sunny');
      clients.push(client);
    },
    { proxy, body: { store: false, include: ['reasoning.encrypted_content'], tools: [WEATHER_FN], reasoning: { effort: 'low' } } },
  );
  for (const { pid } of proxy.claudes()) process.kill(pid, 'SIGKILL');
  await eventually('they are gone', () => proxy.claudes().length === 0);
  for (const client of clients) {
    const answer = await client.send();
    assert.deepEqual([answer.kinds, answer.ignored], [['reasoning', 'message'], []]);
    const [, sent] = client.assertCalls(2, 2);
    assert.deepEqual(conversationOf(sent)[1].content.slice(0, 2), [
      { type: 'redacted_thinking', data: 'Y2lwaGVy' },
      { type: 'thinking', thinking: 'Which city?', signature: SIGNATURE },
    ]);
    assert.deepEqual(thinks(sent), { type: 'enabled', budget_tokens: 2048 });
  }
});

once.test('responses: reasoning that another server sealed is left out', async (t) => {
  const client = new ResponsesClient(t);
  const foreign = [
    { type: 'reasoning', id: 'rs_1', summary: [{ type: 'summary_text', text: 'Hm.' }], encrypted_content: 'gAAAAABodmVyeQ==' },
    { type: 'reasoning', id: 'rs_2', summary: [], encrypted_content: Buffer.from('{"signature":7}').toString('base64') },
    { type: 'reasoning', id: 'rs_3', summary: [] },
  ];
  client.messages.push({ role: 'user', content: 'Hi' }, ...foreign, { role: 'assistant', content: 'Hello' });
  await client.ask(say('Fine.'));
  const [sent] = client.assertCalls(1);
  assert.deepEqual(conversationOf(sent)[1], { role: 'assistant', content: ['Hello'] });
});

once.test('responses: max_output_tokens makes it incomplete, a refusal too, with the reason', (t) =>
  responses(t, async (client) => {
    const cut = await client.ask(say('One two three four'), { max_output_tokens: 2 });
    assert.deepEqual([cut.text, cut.status, cut.incomplete_details], ['One two ', 'incomplete', { reason: 'max_output_tokens' }]);
    assert.equal(cut.output.at(-1).status, 'incomplete');
    assert.equal(client.calls()[0].body.max_tokens, 2);
    if (client.stream) assert.equal(cut.result.frames.filter(({ data }) => data).at(-1).event, 'response.incomplete');
    const refused = await client.ask('refusal');
    assert.deepEqual([refused.status, refused.incomplete_details], ['incomplete', { reason: 'content_filter' }]);
    await sleep(300);
    assert.equal(client.calls().length, 2);
  }));

once.test('responses: a call that the limit cuts is an incomplete item, what was said before it is whole', (t) =>
  responses(
    t,
    async (client) => {
      const cut = await client.ask(call(inCity('Bern'), { before: 'Look:', stop_reason: 'max_tokens', cut: 8 }));
      assert.equal(cut.status, 'incomplete');
      assert.deepEqual(
        cut.output.map(({ type, status }) => [type, status]),
        [
          ['message', 'completed'],
          ['function_call', 'incomplete'],
        ],
      );
    },
    { body: { tools: [WEATHER_FN] } },
  ));

once.test('responses: calls and outputs that do not fit together are a 400 that names the input', async (t) => {
  const made = { type: 'function_call', call_id: 'c', name: 'x', arguments: '{}' };
  const answered = { type: 'function_call_output', call_id: 'c', output: 'x' };
  const user = { role: 'user', content: t.text('plain') };
  for (const input of [[made, user], [answered, user], [user, answered], [made, answered, answered, user]])
    for (const stream of [true, false]) assertOpenAIError(await respond(t, { input, stream }), 400, 'input', /tool call.*'c'/);
  assert.equal(t.calls().length, 0);
});

once.test('responses: what is not honoured is named', async (t) => {
  const client = new ResponsesClient(t, { stream: true });
  const fields = { truncation: 'auto', top_logprobs: 3, max_tool_calls: 2, background: true, service_tier: 'flex' };
  assert.deepEqual((await client.ask(say('Fine.'), fields)).ignored, Object.keys(fields).sort());
  const neutral = { truncation: 'disabled', background: false, service_tier: 'auto', prompt_cache_key: 'k', client_metadata: {}, safety_identifier: 's' };
  assert.deepEqual((await client.ask(say('Fine.'), neutral)).ignored, []);
});

// ---- Responses: kept -----------------------------------------------------------------------------

once.test('responses: what was answered can be got, and its input, until it is deleted', (t) =>
  responses(t, async (client) => {
    const input = [{ role: 'user', content: client.text(say('Fine.')) }];
    const { response } = readResponse(await client.sendRaw({ input, metadata: { a: 'b' } }).done);
    const where = `/v1/responses/${response.id}`;
    const got = await t.get(where);
    assert.deepEqual(got.json, response);
    for (const order of ['', '?order=desc', '?order=asc']) {
      const { json } = await t.get(`${where}/input_items${order}`);
      assertKeys(json, ['object', 'data', 'first_id', 'last_id', 'has_more']);
      assert.deepEqual([json.object, json.has_more, json.data.length], ['list', false, 1]);
      const [item] = json.data;
      assert.deepEqual([item.type, item.role, json.first_id, json.last_id], ['message', 'user', item.id, item.id]);
      assert.deepEqual(item.content, [inputText(input[0].content)]);
    }
    const gone = await t.send({ method: 'DELETE', path: where }).done;
    assert.deepEqual([gone.status, gone.json], [200, { id: response.id, object: 'response', deleted: true }]);
    for (const [method, path_] of [['GET', where], ['DELETE', where], ['GET', `${where}/input_items`], ['POST', `${where}/cancel`]])
      assertOpenAIError(await t.send({ method, path: path_ }).done, 404);
    assertOpenAIError(await respond(t, { previous_response_id: response.id, input: 'x' }), 404, 'previous_response_id');
  }));

once.test('responses: input_items are of this response alone, in pages', async (t) => {
  const client = new ResponsesClient(t, { chained: true });
  await client.ask(say('One.'));
  client.messages.push({ role: 'user', content: 'first' }, { role: 'assistant', content: 'second' });
  const { id } = await client.ask(say('Two.'));
  const where = `/v1/responses/${id}/input_items`;
  const texts = ({ json }) => json.data.map(({ content }) => content[0].text.split(' ')[0]);
  const all = await t.get(`${where}?order=asc`);
  assert.deepEqual(texts(all), ['first', 'second', '[[scenario:plain']);
  assert.deepEqual(texts(await t.get(where)), texts(all).reverse(), 'the newest first');
  const page = await t.get(`${where}?order=asc&limit=2`);
  assert.deepEqual([texts(page), page.json.has_more], [texts(all).slice(0, 2), true]);
  const next = await t.get(`${where}?order=asc&limit=2&after=${page.json.last_id}`);
  assert.deepEqual([texts(next), next.json.has_more], [texts(all).slice(2), false]);
});

once.test('responses: one under way can be seen, and cancelled', async (t) => {
  const exchange = t.send({ path: '/v1/responses', body: { model: MODEL, stream: true, metadata: { a: 'b' }, input: t.text('hang after=2') } });
  t.defer(async () => exchange.abort());
  const said = () => exchange.chunks.map(({ text }) => text).join('');
  await eventually('some text', () => said().includes('output_text.delta'));
  const [id] = /resp_\w+/.exec(said());
  const seen = await t.get(`/v1/responses/${id}`);
  assertResponse(seen.json, ['in_progress']);
  assert.deepEqual([seen.json.metadata, seen.json.output], [{ a: 'b' }, []]);
  const cancelled = await t.send({ path: `/v1/responses/${id}/cancel` }).done;
  assert.equal(cancelled.status, 200, cancelled.text);
  assertResponse(cancelled.json, ['cancelled']);
  const result = await exchange.done;
  const answer = readResponse(result, ['cancelled']);
  assert.equal(answer.id, id);
  await eventually('the API sees the CLI leave', () => t.calls()[0].clientLeft);
  assert.equal((await t.get(`/v1/responses/${id}`)).json.status, 'cancelled');
  // What has ended stays as it ended.
  const done = await new ResponsesClient(t).ask(say('Fine.'));
  const late = await t.send({ path: `/v1/responses/${done.id}/cancel` }).done;
  assert.deepEqual([late.status, late.json], [200, done.response]);
});

once.test('responses: one that has failed, or whose client has left, is kept as such', async (t) => {
  const { done: broken } = t.send({ path: '/v1/responses', body: { model: MODEL, stream: true, input: t.text('error_event after=2 text="One two three four."') } });
  const failed = readResponse(await broken, ['failed']);
  const kept = await t.get(`/v1/responses/${failed.id}`);
  assert.deepEqual([kept.json.status, kept.json.error], ['failed', failed.error]);
  // Not streamed, nobody learns the id, but what was sent can be named.
  const remembered = { type: 'message', id: `msg_${t.token}`, role: 'user', content: 'Remember me.' };
  const refused = await respond(t, { input: [remembered, { role: 'user', content: t.text('error status=500 should_retry=false') }] });
  assertOpenAIError(refused, 500);
  const named = await respond(t, { input: [{ type: 'item_reference', id: remembered.id }, { role: 'user', content: t.text(say('Fine.')) }] });
  assert.equal(readResponse(named).text, 'Fine.');
  assert.deepEqual(conversationOf(t.calls().at(-1))[0].content, ['Remember me.', t.text(say('Fine.'))]);
  const exchange = t.send({ path: '/v1/responses', body: { model: MODEL, stream: true, input: t.text('hang after=2') } });
  const said = () => exchange.chunks.map(({ text }) => text).join('');
  await eventually('some text', () => said().includes('output_text.delta'));
  const [id] = /resp_\w+/.exec(said());
  exchange.abort();
  let left;
  await eventually('it is cancelled', async () => (left = await t.get(`/v1/responses/${id}`)).json.status !== 'in_progress');
  assertResponse(left.json, ['cancelled']);
  assert.equal((await t.get(`/v1/responses/${id}/input_items`)).json.data.length, 1);
});

once.test('responses: input_tokens counts what a request would send, earlier responses included', async (t) => {
  const client = new ResponsesClient(t);
  const first = await client.ask(say('One.'));
  const body = { model: MODEL, instructions: 'Be brief.', tools: [WEATHER_FN], previous_response_id: first.id };
  const input = `[[scenario:count tokens=4321]] ${t.token}`;
  const result = await t.send({ path: '/v1/responses/input_tokens', body: { ...body, input } }).done;
  assert.deepEqual([result.status, result.json], [200, { object: 'response.input_tokens', input_tokens: 4321 }], result.text);
  assert.equal(result.headers['x-token-count'], 'exact');
  const [sent] = countsOf(t);
  assert.equal(callerSystem(sent), 'Be brief.');
  assert.deepEqual(Object.keys(toolsOf(sent)), ['get_weather']);
  assert.deepEqual(
    conversationOf(sent).map(({ role, content }) => [role, content.at(-1)]),
    [
      ['user', client.text(say('One.'))],
      ['assistant', 'One.'],
      ['user', input],
    ],
  );
  assertOpenAIError(await t.send({ path: '/v1/responses/input_tokens', body: { model: MODEL } }).done, 400, 'input');
  assert.equal(t.calls().length, 1, 'nobody was asked');
});

once.test('responses: compact is a 404 that says what to do, and no id of a response', async (t) => {
  const result = await t.send({ path: '/v1/responses/compact', body: { model: MODEL, input: 'x' } }).done;
  assertOpenAIError(result, 404, undefined, /whole input to \/v1\/responses/);
});

once.test('responses: another client key sees nothing of it', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--api-key', 'key-one', '--api-key', 'key-two', '--spares', '1'] });
  const as = (key) => ({ authorization: `Bearer ${key}` });
  const client = new ResponsesClient(t, { proxy, chained: true, headers: as('key-one') });
  const { id, output } = await client.ask(say('Fine.'));
  for (const [method, path_] of [
    ['GET', `/v1/responses/${id}`],
    ['GET', `/v1/responses/${id}/input_items`],
    ['POST', `/v1/responses/${id}/cancel`],
    ['DELETE', `/v1/responses/${id}`],
  ])
    assertOpenAIError(await t.send({ proxy, method, path: path_, headers: as('key-two') }).done, 404);
  const other = { proxy, headers: as('key-two') };
  assertOpenAIError(await respond(t, { previous_response_id: id, input: t.text('plain') }, other), 404, 'previous_response_id');
  assertOpenAIError(await respond(t, { input: [{ type: 'item_reference', id: output[0].id }, { role: 'user', content: t.text('plain') }] }, other), 400);
  assert.equal((await t.get(`/v1/responses/${id}`, { proxy, headers: as('key-one') })).status, 200);
  assert.equal((await client.ask(say('More.'))).text, 'More.');
  client.assertCalls(2);
  assert.equal(t.calls().length, 2);
});

// ---- Responses: errors ---------------------------------------------------------------------------

for (const [status, becomes] of [
  [400, 400],
  [429, 429],
  [500, 500],
  [529, 503],
])
  once.test(`responses: the API's ${status} reaches the client as ${becomes}`, { slow: true }, async (t) => {
    for (const stream of [true, false]) {
      const input = t.text(`error status=${status} message="loopback says so" ${status === 429 ? 'retry_after=1' : ''}`);
      const result = await respond(t, { stream, input });
      assertOpenAIError(result, becomes, undefined, /loopback says so/);
      if (becomes !== 400 && becomes !== 500) assert.match(result.headers['retry-after'] ?? '', /^[1-9]\d*$/);
    }
  });

once.test('responses: an error after the first event is response.failed, the last event', { slow: true }, async (t) => {
  for (const scenario of ['error_event after=2 text="One two three four."', 'drop after=2 times=99']) {
    const answer = readResponse(await respond(t, { stream: true, input: t.text(scenario) }), ['failed']);
    assertKeys(answer.error, ['code', 'message']);
    assert.ok(answer.error.code && answer.error.message);
    const text = answer.rest.filter(({ type }) => type === 'response.output_text.delta').map(({ delta }) => delta);
    assert.equal(text.join(''), 'One two th');
    const kept = await t.get(`/v1/responses/${answer.id}`);
    assert.deepEqual([kept.json.status, kept.json.error], ['failed', answer.error]);
  }
});

// ---- Completions ---------------------------------------------------------------------------------

const complete = (t, body, options = {}) => t.send({ path: '/v1/completions', body: { model: MODEL, ...body }, ...options }).done;
/** Completes both ways; resolves to the readers' answers. */
const completions = async (t, body, streamed = {}) => {
  const results = await Promise.all([complete(t, { stream: true, ...streamed, ...body }), complete(t, body)]);
  return results.map(readCompletion);
};
const textsOf = ({ choices }) => choices.map(({ text }) => text);

once.test('completions: a prompt is completed, whole and streamed, with usage where it is asked for', async (t) => {
  const prompt = t.text(say(ANSWER, { ...USAGE, deltas: 4 }));
  const [streamed, whole] = await completions(t, { prompt }, { stream_options: { include_usage: true } });
  for (const answer of [streamed, whole]) {
    assert.deepEqual(answer.choices, [{ index: 0, text: ANSWER, finish: 'stop' }]);
    assert.equal(answer.model, MODEL);
    const { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details: details } = answer.usage;
    assert.deepEqual([prompt_tokens, completion_tokens, total_tokens, details.cached_tokens], [450, 20, 470, 300]);
  }
  assert.equal(streamed.chunks.length, 5);
  const [silent] = await completions(t, { prompt });
  assert.equal(silent.usage, undefined);
  for (const sent of t.calls()) {
    assert.deepEqual(conversationOf(sent), [{ role: 'user', content: [prompt] }]);
    assert.match(callerSystem(sent), /complete text/i);
  }
});

once.test('completions: an array of prompts and n are choices in order', async (t) => {
  const prompts = ['One.', 'Two.'].map((text) => t.text(say(text, { input: 10, output: 5, deltas: 3, delay: 30 })));
  for (const answer of await completions(t, { prompt: prompts, n: 2 }, { stream_options: { include_usage: true } })) {
    assert.deepEqual(textsOf(answer), ['One.', 'One.', 'Two.', 'Two.']);
    assert.ok(answer.choices.every(({ finish }) => finish === 'stop'));
    assert.deepEqual([answer.usage.prompt_tokens, answer.usage.completion_tokens], [40, 20]);
  }
  assert.equal(t.calls().length, 8);
});

once.test('completions: echo, suffix, stop and max_tokens', async (t) => {
  const prompt = t.text(say('One two END three'));
  const sentFor = async (fields, i) => {
    const mark = `${t.token}-number-${i}`;
    const [streamed, whole] = await completions(t, { ...fields, prompt: `${prompt} ${mark}` });
    assert.deepEqual(streamed.choices, whole.choices);
    const calls = t.calls().filter(({ text }) => text.includes(mark));
    assert.equal(calls.length, 2);
    return { mark, ...whole.choices[0], body: calls[0].body, said: conversationOf(calls[0]), system: callerSystem(calls[0]) };
  };
  const [echoed, stopped, stops, cut, filled] = await Promise.all(
    [{ echo: true }, { stop: 'END' }, { stop: ['X', 'END'], temperature: 0.5 }, { max_tokens: 2 }, { suffix: ' the end', echo: true }].map(sentFor),
  );
  assert.deepEqual([echoed.text, echoed.finish], [`${prompt} ${echoed.mark}One two END three`, 'stop']);
  assert.deepEqual([stopped.text, stopped.finish, stopped.body.stop_sequences], ['One two ', 'stop', ['END']]);
  assert.deepEqual([stops.text, stops.body.stop_sequences, stops.body.temperature], ['One two ', ['X', 'END'], 0.5]);
  assert.deepEqual([cut.text, cut.finish, cut.body.max_tokens], ['One two ', 'length', 2]);
  assert.equal(filled.text, `${prompt} ${filled.mark}One two END three`);
  const [{ content }, ...more] = filled.said;
  assert.equal(more.length, 0);
  const [before, after] = [content[0].indexOf(prompt), content[0].indexOf(' the end')];
  assert.ok(before >= 0 && before < after, 'the model is told both sides');
  assert.match(filled.system, /gap/);
});

once.test('completions: an empty prompt, thoughts that are no text, tools that are not there', async (t) => {
  assert.equal((await complete(t, { prompt: '' })).status, 200);
  for (const answer of await completions(t, { prompt: t.text(thought()) })) assert.deepEqual(textsOf(answer), ['I thought.']);
  for (const { body } of t.calls()) assert.deepEqual(body.tools ?? [], []);
});

once.test('completions: what is not honoured is named', async (t) => {
  const fields = { logprobs: 3, best_of: 3, presence_penalty: 1, frequency_penalty: 1, logit_bias: { 50256: -100 }, seed: 7 };
  const [streamed, whole] = await completions(t, { prompt: t.text(say('Fine.')), n: 1, ...fields });
  for (const { ignored } of [streamed, whole]) assert.deepEqual(ignored, Object.keys(fields).sort());
  const neutral = { best_of: 1, presence_penalty: 0, logprobs: null, suffix: null, stop: null, user: 'u', echo: false };
  assert.deepEqual((await completions(t, { prompt: t.text(say('Fine.')), ...neutral }))[0].ignored, []);
});

for (const [param, fields] of [
  ['prompt', { prompt: undefined }],
  ['prompt', { prompt: [] }],
  [/^prompt/, { prompt: [1, 2, 3] }],
  [/^prompt/, { prompt: [[1, 2], [3]] }],
  [/^prompt/, { prompt: { a: 1 } }],
  ['prompt', { prompt: Array(9).fill('x'), n: 4 }],
  ['n', { n: 0 }],
  ['n', { n: 9 }],
  ['temperature', { temperature: 3 }],
  ['max_tokens', { max_tokens: 0 }],
  ['stop', { stop: ['a', 'b', 'c', 'd', 'e'] }],
])
  once.test(`completions: 400 names ${param} of ${JSON.stringify(fields)}`, async (t) => {
    assertOpenAIError(await complete(t, { prompt: t.text('plain'), ...fields }), 400, param);
    assert.equal(t.calls().length, 0);
  });

once.test("completions: the API's errors, before the first byte and after", { slow: true }, async (t) => {
  for (const stream of [true, false])
    assertOpenAIError(await complete(t, { stream, prompt: t.text('error status=400 message="not so"') }), 400, undefined, /not so/);
  const result = await complete(t, { stream: true, prompt: t.text('drop after=2 times=99') });
  const data = result.data.filter((one) => one !== '[DONE]');
  const { error } = data.pop();
  assert.ok(error?.message, result.text);
  assert.equal(data.map(({ choices }) => choices[0].text).join(''), 'One two th');
  assert.ok(data.every(({ choices }) => choices[0].finish_reason === null));
});

// ---- models --------------------------------------------------------------------------------------

const modelsOf = async (t, query = '') => {
  const result = await t.get(`/v1/models${query}`, { headers: ANTHROPIC });
  assert.equal(result.status, 200, result.text);
  assertKeys(result.json, ['data', 'has_more', 'first_id', 'last_id']);
  for (const model of result.json.data) {
    assertKeys(model, ['type', 'id', 'display_name', 'created_at']);
    assert.equal(model.type, 'model');
    assert.match(model.created_at, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/);
    assert.ok(model.display_name);
  }
  const ids = result.json.data.map(({ id }) => id);
  assert.deepEqual([result.json.first_id, result.json.last_id], [ids[0] ?? null, ids.at(-1) ?? null]);
  return { ids, more: result.json.has_more };
};

once.test('models: in the shape of OpenAI, or of Anthropic by its version header', async (t) => {
  const { json } = await t.get('/v1/models');
  assertKeys(json, ['object', 'data']);
  for (const model of json.data) {
    assertKeys(model, ['id', 'object', 'created', 'owned_by']);
    assert.deepEqual([model.object, typeof model.created, model.owned_by], ['model', 'number', 'anthropic']);
  }
  const ids = json.data.map(({ id }) => id);
  assert.equal(new Set(ids).size, ids.length);
  for (const id of [MODEL, 'sonnet', 'haiku']) assert.ok(ids.includes(id), `${id} in ${ids}`);
  assert.deepEqual((await modelsOf(t, '?limit=1000')).ids, ids);

  for (const id of [MODEL, 'a-model-of-tomorrow']) {
    const one = await t.get(`/v1/models/${id}`);
    assert.deepEqual([one.status, one.json.id, one.json.object], [200, id, 'model']);
    const other = await t.get(`/v1/models/${id}`, { headers: ANTHROPIC });
    assert.deepEqual([other.status, other.json.id, other.json.type], [200, id, 'model']);
  }
  const dated = await t.get(`/v1/models/${MODEL}`, { headers: ANTHROPIC });
  assert.match(dated.json.created_at, /^2025-09-29T00:00:00/);
});

once.test('models: pages in both directions', async (t) => {
  const { ids: all, more } = await modelsOf(t, '?limit=1000');
  assert.equal(more, false);
  assert.ok(all.length > 5);
  const walk = async (first, step) => {
    const seen = [];
    for (let page = await modelsOf(t, first); ; page = await modelsOf(t, step(page.ids))) {
      seen.push(page.ids);
      assert.ok(page.ids.length <= 4 && page.ids.length > 0);
      if (!page.more) return seen;
      assert.equal(page.ids.length, 4);
    }
  };
  assert.deepEqual((await walk('?limit=4', (ids) => `?limit=4&after_id=${ids.at(-1)}`)).flat(), all);
  const back = await walk(`?limit=4&before_id=${all.at(-1)}`, (ids) => `?limit=4&before_id=${ids[0]}`);
  assert.deepEqual(back.reverse().flat(), all.slice(0, -1));
  assert.equal((await modelsOf(t)).ids.length, Math.min(20, all.length));
  assert.deepEqual(await modelsOf(t, `?after_id=${all.at(-1)}`), { ids: [], more: false });
  for (const limit of ['0', '1001', 'x', '-1'])
    assertAnthropicError(await t.get(`/v1/models?limit=${limit}`, { headers: ANTHROPIC }), 400, 'invalid_request_error', /limit/);
});

// ---- refusals ------------------------------------------------------------------------------------

for (const [where, says] of [
  ['/embeddings', /embedding/],
  ['/images/generations', /image/],
  ['/images/edits', /image/],
  ['/audio/speech', /transcri|speak|hear/],
  ['/audio/transcriptions', /transcri|speak|hear/],
  ['/moderations', /chat\/completions/],
  ['/files', /within the request/],
  ['/files/file-1/content', /within the request/],
  ['/uploads', /within the request/],
  ['/batches', /one by one/],
  ['/messages/batches', /v1\/messages/],
  ['/assistants', /v1\/responses/],
  ['/assistants/asst_1', /v1\/responses/],
  ['/threads/thread_1/runs', /v1\/responses/],
  ['/conversations', /previous_response_id/],
  ['/conversations/conv_1/items', /previous_response_id/],
])
  once.test(`${where} is a 404 that says what to do instead, in the client's dialect`, async (t) => {
    for (const prefix of ['/v1', '']) {
      for (const options of [{ method: 'GET' }, { body: { model: MODEL, input: 'x' } }]) {
        const headers = ANTHROPIC;
        const path_ = prefix + where;
        if (!where.startsWith('/messages')) assertOpenAIError(await t.send({ path: path_, ...options }).done, 404, undefined, says);
        assertAnthropicError(await t.send({ path: path_, headers, ...options }).done, 404, 'not_found_error', says);
      }
    }
  });

// ---- bodies at the wrong endpoint ----------------------------------------------------------------

const USER = { role: 'user', content: 'Hi' };
const CHAT_TOOL = { type: 'function', function: { name: 'get_weather', parameters: CITY } };
const CHAT_IMAGE = { type: 'image_url', image_url: { url: dataUri('image/png', PNG) } };
const BASE = { model: MODEL, max_tokens: 9 };

for (const [what, where, body, right] of [
  ["Anthropic's image", '/v1/chat/completions', { messages: [{ role: 'user', content: [pngBlock] }] }, '/v1/messages'],
  ["Anthropic's document", '/v1/chat/completions', { messages: [{ role: 'user', content: [pdfBlock] }] }, '/v1/messages'],
  ["Anthropic's system", '/v1/chat/completions', { system: 'Be brief.', messages: [USER] }, '/v1/messages'],
  ['input', '/v1/chat/completions', { input: 'Hi' }, '/v1/responses'],
  ['input_text', '/v1/chat/completions', { messages: [{ role: 'user', content: [inputText('Hi')] }] }, '/v1/responses'],
  ['prompt', '/v1/chat/completions', { prompt: 'Hi' }, '/v1/completions'],
  ['input', '/v1/messages', { input: 'Hi' }, '/v1/responses'],
  ['prompt', '/v1/messages', { prompt: 'Hi' }, '/v1/completions'],
  ["chat's image", '/v1/messages', { messages: [{ role: 'user', content: [CHAT_IMAGE] }] }, '/v1/chat/completions'],
  ["chat's tools", '/v1/messages', { tools: [CHAT_TOOL], messages: [USER] }, '/v1/chat/completions'],
  ["chat's result", '/v1/messages', { messages: [USER, { role: 'tool', tool_call_id: 'x', content: 'y' }] }, '/v1/chat/completions'],
  ['input_image', '/v1/messages', { messages: [{ role: 'user', content: [{ type: 'input_image', image_url: 'x' }] }] }, '/v1/responses'],
  ['messages', '/v1/messages/count_tokens', { input: 'Hi' }, '/v1/responses'],
  ['messages', '/v1/responses', { messages: [USER] }, '/v1/chat/completions'],
  ['prompt', '/v1/responses', { prompt: 'Hi' }, '/v1/completions'],
  ["Anthropic's result", '/v1/responses', { input: [{ role: 'user', content: [{ type: 'tool_result', tool_use_id: 'x' }] }] }, '/v1/messages'],
  ["chat's image", '/v1/responses', { input: [{ role: 'user', content: [CHAT_IMAGE] }] }, '/v1/chat/completions'],
  ['messages', '/v1/completions', { messages: [USER] }, '/v1/chat/completions'],
  ['input', '/v1/completions', { input: 'Hi' }, '/v1/responses'],
])
  once.test(`${what} at ${where} is a 400 that names ${right}`, async (t) => {
    const result = await t.send({ path: where, body: { ...BASE, ...body } }).done;
    const says = new RegExp(`${right}(?![/\\w])`);
    if (where.startsWith('/v1/messages')) assertAnthropicError(result, 400, 'invalid_request_error', says);
    else assertOpenAIError(result, 400, undefined, says);
  });

once.test('dialects are served without /v1 too, and behind a last slash', async (t) => {
  const bodies = {
    '/messages': { max_tokens: 9, messages: t.messages('plain') },
    '/responses/': { input: t.text('plain') },
    '/completions': { prompt: t.text('plain') },
    '/messages/count_tokens?beta=true': { messages: t.messages('plain') },
  };
  for (const [where, body] of Object.entries(bodies)) assert.equal((await send(t.proxy, { path: where, body: { model: MODEL, ...body } }).done).status, 200, where);
});
