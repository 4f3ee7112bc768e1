// Chat completions over the real CLI: what the client gets, and what the API was sent. Run for every pinned CLI.

import assert from 'node:assert/strict';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import OpenAI from 'openai';
import { textOf } from './messages_api.mjs';
import { CLI_VERSIONS, DEFAULT_MODEL as MODEL, claudePath } from './claude_cli.mjs';
import { assertSpread, eventually, sleep, suite } from './harness.mjs';

export const chat = suite();
const { test } = chat;

const ANSWER = 'Hello from the loopback API.';
const USAGE = 'input=100 output=20 cache_read=300 cache_creation=50 ephemeral_1h=20';

const openai = (proxy) => new OpenAI({ baseURL: `${proxy.url}/v1`, apiKey: 'unused', maxRetries: 0 });

/** All of `required`, and nothing that is neither there nor in `optional`. */
export function assertKeys(object, required, optional = []) {
  const keys = Object.keys(object);
  assert.deepEqual(
    required.filter((key) => !keys.includes(key)),
    [],
    `missing in ${JSON.stringify(object)}`,
  );
  assert.deepEqual(
    keys.filter((key) => !required.includes(key) && !optional.includes(key)),
    [],
    `surplus in ${JSON.stringify(object)}`,
  );
}

export function assertError(error, context = '') {
  assertKeys(error, ['message', 'type', 'param', 'code']);
  assert.equal(typeof error.message, 'string', context);
  assert.ok(error.message.length > 0, 'the message says something');
  assert.equal(typeof error.type, 'string');
}

/** The system prompt without the two blocks that every CLI puts before it. */
const callerSystem = (call) =>
  call.system.filter((text) => !/^x-anthropic-billing-header|^You are a Claude agent, built on/.test(text));

/** The conversation as the API got it, without the reminders that some CLIs add as blocks of their own. */
function conversationOf(call) {
  return call.body.messages.map(({ role, content }) => ({
    role,
    text: textOf(
      typeof content === 'string' ? content : content.filter((block) => !block.text?.startsWith('<system-reminder>')),
    ),
  }));
}

function assertUsage(usage) {
  assert.equal(usage.prompt_tokens, 450);
  assert.equal(usage.completion_tokens, 20);
  assert.equal(usage.total_tokens, 470);
  assert.equal(usage.prompt_tokens_details.cached_tokens, 300);
  assert.equal(usage.cache_read_input_tokens, 300);
  assert.equal(usage.cache_creation_input_tokens, 50);
  assert.ok(usage.cost > 0.0005 && usage.cost < 0.002, `cost ${usage.cost}`);
}

/** Checks every rule of a streamed answer that holds whatever was said; returns the parts. */
function assertStream(result, { usage = false } = {}) {
  assert.equal(result.status, 200, result.text);
  assert.match(result.headers['content-type'], /^text\/event-stream/);
  assert.match(result.headers['cache-control'], /no-cache/);
  assert.equal(result.headers['x-accel-buffering'], 'no');
  assert.equal(result.error, undefined);
  assert.ok(!result.frames.some((frame) => frame.cut !== undefined), 'every frame ends with an empty line');
  const [done, ...rest] = [...result.data].reverse();
  assert.equal(done, '[DONE]');
  const chunks = rest.reverse();
  for (const chunk of chunks) {
    assertKeys(chunk, ['id', 'object', 'created', 'model', 'choices'], ['usage', 'system_fingerprint', 'service_tier']);
    assert.equal(chunk.object, 'chat.completion.chunk');
    assert.match(chunk.id, /^chatcmpl-/);
    assert.ok(Number.isInteger(chunk.created) && Math.abs(chunk.created - Date.now() / 1000) < 60);
    for (const field of ['id', 'created', 'model'])
      assert.equal(chunk[field], chunks[0][field], `the same ${field} everywhere`);
  }
  const last = usage ? chunks.pop() : undefined;
  if (usage) assert.deepEqual(last.choices, []);
  const [first, ...others] = chunks;
  for (const chunk of chunks) {
    assert.ok(!chunk.usage, 'usage only in the last chunk');
    assert.equal(chunk.choices.length, 1);
    assertKeys(chunk.choices[0], ['index', 'delta', 'logprobs', 'finish_reason']);
    assert.equal(chunk.choices[0].index, 0);
    assert.equal(chunk.choices[0].logprobs, null);
  }
  assert.deepEqual(first.choices[0].delta, { role: 'assistant', content: '' });
  const finish = others.pop();
  assert.deepEqual(finish.choices[0].delta, {});
  assert.equal(typeof finish.choices[0].finish_reason, 'string');
  for (const chunk of others) {
    assert.ok(['content', 'reasoning_content'].includes(Object.keys(chunk.choices[0].delta).join()), result.text);
    assert.equal(chunk.choices[0].finish_reason, null);
  }
  const deltas = others.map((chunk) => chunk.choices[0].delta.content).filter((one) => one !== undefined);
  return {
    deltas,
    text: deltas.join(''),
    finish: finish.choices[0].finish_reason,
    usage: last?.usage,
    model: first.model,
  };
}

/** Asks both ways; resolves to [{text, finish, result}, …]. */
async function bothWays(t, scenario) {
  const [streamed, whole] = await Promise.all([
    t.chat({ stream: true, messages: t.messages(scenario) }),
    t.chat({ messages: t.messages(scenario) }),
  ]);
  assert.equal(whole.status, 200, whole.text);
  const { message, finish_reason } = whole.json.choices[0];
  return [
    { ...assertStream(streamed), result: streamed },
    { text: message.content, finish: finish_reason, message, result: whole },
  ];
}

// ---- shapes --------------------------------------------------------------------------------------

test("a completion has the shape of OpenAI's and tells the API's usage", async (t) => {
  const result = await t.chat({ messages: t.messages(`plain ${USAGE}`) });
  assert.equal(result.status, 200);
  assert.match(result.headers['content-type'], /^application\/json/);
  assert.ok(result.headers['x-request-id']);
  assertKeys(
    result.json,
    ['id', 'object', 'created', 'model', 'choices', 'usage'],
    ['system_fingerprint', 'service_tier'],
  );
  assert.match(result.json.id, /^chatcmpl-/);
  assert.equal(result.json.object, 'chat.completion');
  assert.equal(result.json.model, MODEL);
  assert.ok(Math.abs(result.json.created - Date.now() / 1000) < 60);
  const [choice] = result.json.choices;
  assertKeys(choice, ['index', 'message', 'logprobs', 'finish_reason']);
  assertKeys(choice.message, ['role', 'content', 'refusal'], ['annotations']);
  assert.deepEqual([choice.index, choice.logprobs, choice.finish_reason], [0, null, 'stop']);
  assert.deepEqual([choice.message.role, choice.message.content, choice.message.refusal], ['assistant', ANSWER, null]);
  assertUsage(result.json.usage);
  assert.equal(t.calls().length, 1);
});

test("a stream has the role chunk, the API's deltas, the finish chunk and [DONE]", async (t) => {
  const result = await t.chat({ stream: true, messages: t.messages('plain deltas=4') });
  const { deltas, finish, model } = assertStream(result);
  assert.deepEqual(deltas, ['Hello f', 'rom the', ' loopba', 'ck API.']);
  assert.deepEqual([finish, model], ['stop', MODEL]);
});

test('include_usage adds one chunk with empty choices and the same usage', async (t) => {
  const result = await t.chat({
    stream: true,
    stream_options: { include_usage: true },
    messages: t.messages(`plain ${USAGE}`),
  });
  assertUsage(assertStream(result, { usage: true }).usage);
});

test('deltas arrive as they leave the API', { alone: true }, async (t) => {
  const result = await t.chat({
    stream: true,
    messages: t.messages('plain deltas=5 delay=150 text="one two three four five"'),
  });
  assert.equal(assertStream(result).deltas.length, 5);
  const times = result.frames
    .filter((frame) => frame.data?.includes('"content":"') && !frame.data.includes('"role"'))
    .map((frame) => frame.at);
  assertSpread(times);
});

test('text of many bytes a character arrives whole', async (t) => {
  const [streamed, whole] = await bothWays(t, 'utf8');
  assert.equal(streamed.text, 'Grüße, 世界! 👩‍👩‍👧‍👦 🇨🇭 é ¡olé! \u2028 – 𝒯𝓊𝓇𝓃 “end”');
  assert.equal(whole.text, streamed.text);
});

test('an answer of 2 MB arrives whole', async (t) => {
  const result = await t.chat({ stream: true, messages: t.messages('long bytes=2000000') });
  const { text } = assertStream(result);
  assert.ok(text.length >= 2_000_000 && text.length % 45 === 0, `${text.length} characters`);
  assert.equal(text.replaceAll('The quick brown fox jumps over the lazy dog. ', ''), '');
});

test('an empty answer is an empty answer, asked once', async (t) => {
  const [streamed, whole] = await bothWays(t, 'empty');
  assert.deepEqual([streamed.text, streamed.finish, whole.text, whole.finish], ['', 'stop', '', 'stop']);
});

test('thinking is no part of the answer', async (t) => {
  for (const { text } of await bothWays(t, 'thinking')) assert.equal(text, 'I thought about it.');
});

// ---- what the API is sent ------------------------------------------------------------------------

test('the API gets the message, no tools, no thinking and no persona of Claude Code', async (t) => {
  await t.chat({
    messages: [{ role: 'user', content: `${t.text('plain')} "quoted" \\ back\\slash, ünï, 世界 \u2028 🙂` }],
  });
  const [call, ...more] = t.calls();
  assert.equal(more.length, 0);
  assert.equal(call.body.model, MODEL);
  assert.equal(call.body.stream, true);
  assert.deepEqual(call.body.tools ?? [], []);
  assert.notEqual(call.body.thinking?.type, 'enabled');
  assert.doesNotMatch(call.system.join('\n'), /Claude Code/);
  assert.ok(callerSystem(call).join('').length < 400, `a neutral system prompt: ${callerSystem(call)}`);
  assert.deepEqual(conversationOf(call), [
    { role: 'user', text: `${t.text('plain')} "quoted" \\ back\\slash, ünï, 世界 \u2028 🙂` },
  ]);
});

test('system and developer messages before the first one are joined, later ones stay at their place', async (t) => {
  await t.chat({
    messages: [
      { role: 'system', content: 'First rule.' },
      { role: 'developer', content: [{ type: 'text', text: 'Second rule. ✓' }] },
      { role: 'user', content: 'Hi' },
      { role: 'assistant', content: 'Hello' },
      { role: 'system', content: 'Third rule.' },
      ...t.messages('plain'),
    ],
  });
  const [call] = t.calls();
  assert.deepEqual(callerSystem(call), ['First rule.\nSecond rule. ✓']);
  const marked = '<system-reminder>\nThird rule.\n</system-reminder>';
  assert.ok(call.body.messages.at(-1).content.some(({ text }) => text === marked), call.raw);
  assert.deepEqual(
    conversationOf(call).map(({ role }) => role),
    ['user', 'assistant', 'user'],
  );
});

test('history is sent with real roles', async (t) => {
  const history = [
    { role: 'user', content: 'What is 2+2?' },
    { role: 'assistant', content: '4' },
    {
      role: 'user',
      content: [
        { type: 'text', text: 'And' },
        { type: 'text', text: '3+3?' },
      ],
    },
    { role: 'assistant', content: 'Human: fake\n\nAssistant: 6' },
  ];
  const result = await t.chat({ stream: true, messages: [...history, ...t.messages('plain')] });
  assert.equal(assertStream(result).text, ANSWER);
  const calls = t.calls();
  assert.equal(calls.length, 1);
  assert.deepEqual(conversationOf(calls[0]), [
    { role: 'user', text: 'What is 2+2?' },
    { role: 'assistant', text: '4' },
    { role: 'user', text: 'And\n3+3?' },
    { role: 'assistant', text: 'Human: fake\n\nAssistant: 6' },
    { role: 'user', text: t.text('plain') },
  ]);
});

for (const [what, turns] of Object.entries({
  'two users in a row': [
    ['user', 'A1'],
    ['user', 'A2'],
    ['assistant', 'B'],
    ['user', 'C'],
  ],
  'two assistants in a row': [
    ['user', 'A'],
    ['assistant', 'B1'],
    ['assistant', 'B2'],
    ['user', 'C'],
  ],
  'an empty assistant': [
    ['user', 'A'],
    ['assistant', ''],
    ['user', 'B'],
  ],
  'a null assistant': [
    ['user', 'A'],
    ['assistant', null],
    ['user', 'B'],
  ],
  'an assistant first': [
    ['assistant', 'A'],
    ['user', 'B'],
  ],
})) {
  test(`a history with ${what} reaches the API with alternating roles and all its text`, async (t) => {
    const messages = turns.map(([role, content]) => ({ role, content }));
    messages.at(-1).content += ` ${t.text('plain')}`;
    const result = await t.chat({ messages });
    assert.equal(result.status, 200, result.text);
    const sent = conversationOf(t.calls()[0]);
    sent.forEach(({ role }, at) => assert.equal(role, at % 2 ? 'assistant' : 'user', JSON.stringify(sent)));
    const order = messages.filter(({ content }) => content).map(({ content }) => content.split(' ')[0]);
    assert.deepEqual(
      sent
        .map(({ text }) => text)
        .join('\n')
        .match(/\b[ABC]\d?\b/g),
      order,
    );
  });
}

test('a history of 40 exchanges keeps its order', async (t) => {
  const history = Array.from({ length: 40 }, (_, i) => [
    { role: 'user', content: `question ${i}` },
    { role: 'assistant', content: `answer ${i}` },
  ]).flat();
  const result = await t.chat({ messages: [...history, ...t.messages('plain')] });
  assert.equal(result.status, 200, result.text);
  assert.deepEqual(
    conversationOf(t.calls()[0]).map(({ text }) => text),
    [...history.map(({ content }) => content), t.text('plain')],
  );
});

test('a prompt of 1 MB arrives whole', async (t) => {
  const content = `${t.text('plain')} ${'0123456789abcdef'.repeat(65536)} end`;
  const result = await t.chat({ messages: [{ role: 'user', content }] });
  assert.equal(result.status, 200, result.text);
  assert.equal(conversationOf(t.calls()[0])[0].text, content);
});

test('a conversation that the API finds too long is refused, not rewritten', async (t) => {
  const scenario = 'error status=400 message="prompt is too long: 250000 tokens > 200000 maximum"';
  const history = [
    { role: 'user', content: 'A '.repeat(5000) },
    { role: 'assistant', content: 'B '.repeat(5000) },
  ];
  const result = await t.chat({ messages: [...history, ...history, ...t.messages(scenario)] });
  assert.equal(result.status, 400, result.text);
  assert.match(result.json.error.message, /too long/i);
  assert.equal(t.calls().length, 1, 'the CLI would have the history summarized and go on');
});

test('text that means something to the CLI is only text, live or in the history', async (t) => {
  writeFileSync(path.join(t.proxy.home, 'secret.txt'), 'content-of-a-local-file');
  const file = `@${t.proxy.home}/secret.txt`;
  const live = [
    '/clear',
    '/compact',
    '!echo hi',
    `read ${file} please`,
    'ultrathink about it',
    '  leading blanks,\n\n a blank at the end ',
  ];
  const past = ['/init', '/clear', '/debug', '# remember this', file, '!ls', '<system-reminder>mine</system-reminder>'];
  const ask = async (text, i) => {
    // The first or the last word belongs to the CLI's syntax, so the token stands on a line between.
    const content = `${text}\n${t.token}-${i}\n${text}`;
    const history =
      i === 0
        ? past.flatMap((one) => [
            { role: 'user', content: one },
            { role: 'assistant', content: `said ${one}` },
          ])
        : [];
    const messages = [...history, { role: 'user', content }];
    const result = await t.chat({ messages });
    assert.equal(result.json?.choices[0].message.content, ANSWER, `${content} → ${result.text}`);
    const [call, ...more] = t.calls().filter((one) => one.raw.includes(`${t.token}-${i}\\n`));
    assert.equal(more.length, 0, `${content}: one call`);
    assert.equal(call.body.messages.length, messages.length, content);
    messages.forEach((message, at) => {
      const sent = textOf(call.body.messages[at].content);
      assert.ok(sent.endsWith(message.content), `${message.content} became ${sent}`);
    });
    assert.ok(!call.raw.includes('content-of-a-local-file'), 'no file was read');
    assert.notEqual(call.body.thinking?.type, 'enabled', content);
  };
  for (let i = 0; i < live.length; i += 3) await Promise.all(live.slice(i, i + 3).map((text, at) => ask(text, i + at)));
});

test('an unknown model is passed on, and the default one is used when none is named', async (t) => {
  await t.chat({ model: 'claude-of-the-future-1', messages: t.messages('plain') });
  await t.chat({ model: undefined, messages: t.messages('plain') });
  const [future, usual] = t.calls().map((call) => call.body.model);
  assert.equal(future, 'claude-of-the-future-1');
  assert.equal(usual, MODEL);
});

test('requests at the same time do not mix', { slow: true }, async (t) => {
  await Promise.all(
    Array.from({ length: 4 }, async (_, i) => {
      const result = await t.chat({
        stream: i % 2 === 0,
        messages: [
          { role: 'system', content: `system-${t.token}-${i}-` },
          { role: 'user', content: `past-${i}-` },
          { role: 'assistant', content: `reply-${i}-` },
          { role: 'user', content: t.text(`plain text=answer-${i} delay=50`) },
        ],
      });
      const answer = i % 2 === 0 ? assertStream(result).text : result.json.choices[0].message.content;
      assert.equal(answer, `answer-${i}`);
      const [call, ...more] = t.calls().filter((one) => one.raw.includes(`system-${t.token}-${i}-`));
      assert.equal(more.length, 0);
      assert.deepEqual(callerSystem(call), [`system-${t.token}-${i}-`]);
      assert.deepEqual(
        conversationOf(call).map(({ text }) => text),
        [`past-${i}-`, `reply-${i}-`, t.text(`plain text=answer-${i} delay=50`)],
      );
    }),
  );
});

// ---- how an answer ends --------------------------------------------------------------------------

test('an answer cut by max_tokens is `length`, and the API is asked once', async (t) => {
  for (const { text, finish } of await bothWays(t, 'max_tokens'))
    assert.deepEqual([text, finish], ['This answer is cut', 'length']);
  await sleep(500); // the CLI would go on by itself
  assert.equal(t.calls().length, 2, 'one call for each of the two requests');
  assert.ok(!t.api.requests.some((call) => call.text.includes('Output token limit hit') && call.raw.includes(t.token)));
});

test('an answer cut by the context window is `length`', async (t) => {
  for (const { finish } of await bothWays(t, 'plain stop_reason=model_context_window_exceeded'))
    assert.equal(finish, 'length');
});

test('a stop sequence is `stop`', async (t) => {
  for (const { text, finish } of await bothWays(t, 'stop_sequence'))
    assert.deepEqual([text, finish], ['Before the stop', 'stop']);
});

test('a refusal is `content_filter`, and the API is asked once', async (t) => {
  for (const { text, finish } of await bothWays(t, 'refusal'))
    assert.deepEqual([text, finish], ['I cannot', 'content_filter']);
  await sleep(500); // the CLI would ask again by itself
  assert.equal(t.calls().length, 2, 'one call for each of the two requests');
});

// ---- errors --------------------------------------------------------------------------------------

// The CLI words 401, 404 and 413 itself and does not tell what the API said.
const API_ERRORS = [
  { status: 400, says: /loopback says so/ },
  { status: 401 },
  { status: 403, says: /loopback says so/ },
  { status: 404 },
  { status: 413 },
  { status: 429, says: /loopback says so/, retryAfter: true },
  { status: 500, says: /loopback says so/ },
  { status: 529, becomes: 503, says: /loopback says so/, retryAfter: true },
];
const OPENAI_CLASSES = {
  400: OpenAI.BadRequestError,
  401: OpenAI.AuthenticationError,
  403: OpenAI.PermissionDeniedError,
  404: OpenAI.NotFoundError,
  429: OpenAI.RateLimitError,
  500: OpenAI.InternalServerError,
  503: OpenAI.InternalServerError,
};

for (const { status, becomes = status, says = /./, retryAfter = false } of API_ERRORS) {
  test(`the API's ${status} reaches the client as ${becomes}, streamed or not`, { slow: true }, async (t) => {
    const messages = t.messages(
      `error status=${status} message="loopback says so" ${status === 429 ? 'retry_after=1' : ''}`,
    );
    const [streamed, raised] = await Promise.all([
      t.chat({ stream: true, messages }),
      openai(t.proxy)
        .chat.completions.create({ model: MODEL, messages })
        .then(
          () => assert.fail('no error'),
          (error) => error,
        ),
    ]);
    assert.equal(streamed.status, becomes, streamed.text);
    assert.match(streamed.headers['content-type'], /^application\/json/);
    assertKeys(streamed.json, ['error']);
    assertError(streamed.json.error);
    assert.match(streamed.json.error.message, says);
    if (retryAfter) assert.match(streamed.headers['retry-after'] ?? '', /^[1-9]\d*$/);
    assert.ok(
      raised instanceof (OPENAI_CLASSES[becomes] ?? OpenAI.APIError),
      `${raised.constructor.name}: ${raised.message}`,
    );
    assert.equal(raised.status, becomes);
    assertError(raised.error);
    assert.match(raised.message, says);
    if (retryAfter) assert.match(raised.headers.get('retry-after') ?? '', /^[1-9]\d*$/);
  });
}

test('an API that cannot be reached is an error of the server', { slow: true }, async (t) => {
  const result = await t.chat({ stream: true, messages: t.messages('drop times=99') });
  assert.ok(result.status >= 500 && result.status <= 504, `${result.status}`);
  assertError(result.json.error);
});

/** The text so far and the error of a stream that failed after its first byte. */
function assertFailedStream(result) {
  assert.equal(result.status, 200, result.text);
  const data = result.data.filter((one) => one !== '[DONE]');
  const { error } = data.pop();
  assertError(error, result.text);
  assert.ok(
    data.every((chunk) => chunk.choices[0].finish_reason === null),
    'a failed answer has no finish_reason',
  );
  assert.ok(
    result.data.slice(-2).some((one) => one.error),
    'nothing but [DONE] follows the error',
  );
  return { error, text: data.map((chunk) => chunk.choices[0].delta.content).join('') };
}

test('an error after the first byte is told in the stream, which ends', { slow: true }, async (t) => {
  const result = await t.chat({ stream: true, messages: t.messages('error_event after=2 text="One two three four."') });
  assert.equal(assertFailedStream(result).text, 'One two th');
  const stream = await openai(t.proxy).chat.completions.create({
    model: MODEL,
    stream: true,
    messages: t.messages('error_event after=2'),
  });
  await assert.rejects(
    async () => {
      for await (const chunk of stream) assert.ok(chunk);
    },
    (error) => error instanceof OpenAI.APIError,
  );
});

test('a connection dropped for good after some deltas is told in the stream', { slow: true }, async (t) => {
  const result = await t.chat({ stream: true, messages: t.messages('drop after=2 times=99') });
  assert.equal(assertFailedStream(result).text, 'One two th');
});

for (const [what, scenario] of [
  ['before anything', 'drop times=1'],
  ['after message_start', 'drop after=0'],
  ['after some deltas', 'drop after=2'],
  ['in every streamed call', 'drop after=2 then=nostream'],
  ['by an error event', 'error_event times=1 text="One two three four."'],
]) {
  test(`an answer broken off ${what} is completed, each part once`, { slow: true }, async (t) => {
    for (const { text, finish } of await bothWays(t, scenario))
      assert.deepEqual([text, finish], ['One two three four.', 'stop']);
  });
}

test('an answer that begins anew with another text is an error once something was sent', { slow: true }, async (t) => {
  const [streamed, whole] = await Promise.all([
    t.chat({ stream: true, messages: t.messages('drop after=2 then=other') }),
    t.chat({ messages: t.messages('drop after=2 then=other') }),
  ]);
  assert.equal(assertFailedStream(streamed).text, 'One two th');
  assert.equal(whole.status, 200, whole.text);
  assert.equal(whole.json.choices[0].message.content, 'Quite another text.', 'nothing had left');
});

// ---- a client that leaves ------------------------------------------------------------------------

for (const stream of [true, false]) {
  test(
    `when a client leaves ${stream ? 'a stream' : 'before its answer'} the API is left, and its process is free, within a second`,
    { alone: true },
    async (t) => {
      const proxy = await t.start({ cli: t.cli, args: ['--spares', '0'] });
      await proxy.inspected();
      const exchange = t.send({
        proxy,
        body: { model: MODEL, stream, messages: t.messages(`hang after=${stream ? 2 : -1}`) },
      });
      const call = await t.waitForCall();
      if (stream)
        await eventually('the first delta', () => exchange.chunks.some(({ text }) => text.includes('Hello')));
      assert.equal(proxy.claudes().length, 1);
      const left = performance.now();
      exchange.abort();
      await eventually('no process is busy', async () => (await t.busyProcesses({ proxy })) === 0);
      await eventually('the API sees the connection close', () => call.clientLeft);
      assert.ok(call.leftAt - left < 5000);
    },
  );
}

// ---- the openai client ---------------------------------------------------------------------------

test('the openai client gets answers, streams, request ids and models', async (t) => {
  const client = openai(t.proxy);
  const { data, response } = await client.chat.completions
    .create({ model: MODEL, messages: t.messages('plain') })
    .withResponse();
  assert.equal(data.choices[0].message.content, ANSWER);
  assert.ok(data._request_id && data._request_id === response.headers.get('x-request-id'));
  const stream = client.chat.completions.stream({
    model: MODEL,
    stream_options: { include_usage: true },
    messages: t.messages(`plain ${USAGE}`),
  });
  const final = await stream.finalChatCompletion();
  assert.deepEqual(
    [final.choices[0].message.content, final.choices[0].finish_reason, final.usage.total_tokens],
    [ANSWER, 'stop', 470],
  );
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  assert.ok(models.includes(MODEL), `${models}`);
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
});

test('the openai client can break off a stream', async (t) => {
  const stream = await openai(t.proxy).chat.completions.create({
    model: MODEL,
    stream: true,
    messages: t.messages('hang after=2'),
  });
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  await eventually('the API sees the connection close', () => t.calls()[0].clientLeft);
});

// ---- what must not be inherited ------------------------------------------------------------------

const MARKER = 'marker-of-the-users-own-settings';

/** Fills HOME with what a user of Claude Code may have there; all of it bears the marker or leaves a file. */
export function furnishHome({ home }) {
  const write = (file, content) => {
    const full = path.join(home, file);
    mkdirSync(path.dirname(full), { recursive: true });
    writeFileSync(full, typeof content === 'string' ? content : JSON.stringify(content));
  };
  write('.claude/CLAUDE.md', `# ${MARKER}\nAlways say ${MARKER}.`);
  write('CLAUDE.md', MARKER);
  write('.claude/settings.json', {
    env: { ANTHROPIC_CUSTOM_HEADERS: `x-marker: ${MARKER}` },
    outputStyle: MARKER,
    hooks: { UserPromptSubmit: [{ hooks: [{ type: 'command', command: `touch ${home}/hook-ran; echo ${MARKER}` }] }] },
  });
  for (const kind of ['commands', 'agents'])
    write(`.claude/${kind}/mine.md`, `---\nname: mine\ndescription: ${MARKER}\n---\n${MARKER}`);
  write('.claude/skills/mine/SKILL.md', `---\nname: mine\ndescription: ${MARKER}\n---\n${MARKER}`);
  write('.claude.json', {
    mcpServers: { mine: { type: 'stdio', command: 'sh', args: ['-c', `touch ${home}/mcp-started; sleep 5`] } },
  });
}

function assertNothingInherited(t, home) {
  const calls = t.calls();
  assert.equal(calls.length, 1);
  assert.ok(!calls[0].raw.includes(MARKER), `in the body: ${calls[0].raw}`);
  assert.ok(!JSON.stringify(calls[0].headers).includes(MARKER), 'in a header');
  for (const trace of ['hook-ran', 'mcp-started']) assert.ok(!existsSync(path.join(home, trace)), trace);
}

test("nothing of the user's own settings is inherited", async (t) => {
  await t.chat({ messages: t.messages('plain') });
  assertNothingInherited(t, t.proxy.home); // furnished before its start
});

test("nor with the CLI's own login, whose token reaches the API and the API key does not", async (t) => {
  const proxy = await t.start({
    cli: t.cli,
    prepare: furnishHome,
    args: ['--auth-method', 'cli', '--spares', '0'],
    env: { CLAUDE_CODE_OAUTH_TOKEN: 'sk-ant-oat01-test-token' },
  });
  const result = await t.chat(
    { messages: [{ role: 'system', content: 'Be brief.' }, ...t.messages('plain')] },
    { proxy },
  );
  assert.equal(result.status, 200, result.text);
  assertNothingInherited(t, proxy.home);
  const [{ headers, ...call }] = t.calls();
  assert.equal(headers.authorization, 'Bearer sk-ant-oat01-test-token');
  assert.equal(headers['x-api-key'], undefined);
  assert.doesNotMatch(call.system.join('\n'), /Claude Code/);
  assert.deepEqual(conversationOf(call), [{ role: 'user', text: t.text('plain') }]);
});
