// Nothing is silent: an answer without words ends where the API ends it, a field that nobody reads is named, and so is what of a
// history no API takes. Both ends are looked at: what the client got, and what the API was sent.

import assert from 'node:assert/strict';
import { ignoredOf } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { suite } from './harness.mjs';
import { directive } from './messages_api.mjs';

export const silence = suite();
const { test } = silence;

const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
const LOOK = { name: 'look', input_schema: { type: 'object', properties: { a: { type: 'string' } } } };
const LOOK_OF_CHAT = { type: 'function', function: { name: 'look', parameters: LOOK.input_schema } };
const user = (content) => ({ role: 'user', content });
const assistant = (content, more = {}) => ({ role: 'assistant', content, ...more });

/** How each dialect is asked, and where its answer has the text. */
const DIALECTS = {
  chat: { path: '/v1/chat/completions', body: (text) => ({ messages: [user(text)] }), said: ({ choices }) => choices[0].message.content },
  responses: {
    path: '/v1/responses',
    body: (text) => ({ input: text }),
    said: ({ output }) => output.flatMap(({ content = [] }) => content.map(({ text }) => text)).join(''),
  },
  messages: {
    path: '/v1/messages',
    body: (text) => ({ max_tokens: 1000, messages: [user(text)] }),
    said: ({ content }) => content.map(({ text = '' }) => text).join(''),
  },
  completions: { path: '/v1/completions', body: (text) => ({ prompt: text }), said: ({ choices }) => choices[0].text },
  ollama: { path: '/api/chat', body: (text) => ({ stream: false, messages: [user(text)] }), said: ({ message }) => message.content },
};

const post = (t, path, body, headers) => t.send({ path, body: typeof body === 'string' ? body : { model: MODEL, ...body }, headers }).done;
const spoken = (call) => call.body.messages.map(({ role, content }) => [role, typeof content === 'string' ? content : content.map(({ text }) => text).join('|')]);

/** An API's answer as it is written down, with the events of one content block. */
function keep(t, name, block, deltas, stop_reason) {
  const usage = { input_tokens: 11, output_tokens: 7 };
  const message = { id: 'msg_loopback_kept', type: 'message', role: 'assistant', model: MODEL, content: [], stop_reason: null, stop_sequence: null, usage };
  t.api.keep(name, [
    { type: 'message_start', message },
    { type: 'content_block_start', index: 0, content_block: block },
    ...deltas.map((delta) => ({ type: 'content_block_delta', index: 0, delta })),
    { type: 'content_block_stop', index: 0 },
    { type: 'message_delta', delta: { stop_reason, stop_sequence: null }, usage },
    { type: 'message_stop' },
  ]);
}

// ---- answers -------------------------------------------------------------------------------------

const WORDLESS = {
  'of white space': [directive('plain', { text: '\n' }), '\n'],
  'of thoughts alone': [directive('thinking', { thinking: 'Hm.', text: '' }), ''],
  'that ends at a stop text before its first word': [directive('stop_sequence', { text: '\n' }), '\n'],
  'that promises a call and makes none': [directive('plain', { text: 'I will look.', stop_reason: 'tool_use' }), 'I will look.'],
};
for (const [what, [scenario, words]] of Object.entries(WORDLESS))
  test(`an answer ${what} is what the client gets; the API is asked once, and the CLI adds nothing`, async (t) => {
    for (const [dialect, { path, body, said }] of Object.entries(DIALECTS)) {
      const begun = t.calls().length;
      const question = t.text(scenario, `in ${dialect}`);
      const { status, json, text } = await post(t, path, body(question));
      assert.equal(status, 200, `${dialect}: ${text}`);
      assert.equal(said(json).trim(), words.trim(), `${dialect}: ${text}`);
      assert.equal(t.calls().length, begun + 1, dialect);
    }
    const messages = [user(t.text(scenario, 'at first'))];
    const { json } = await post(t, '/v1/messages', { max_tokens: 1000, messages });
    const held = json.content.filter(({ type }) => type === 'text' && words.trim());
    const next = t.text('plain', 'and then');
    assert.equal((await post(t, '/v1/messages', { max_tokens: 1000, messages: [...messages, ...(held.length ? [assistant(held)] : []), user(next)] })).status, 200);
    assert.doesNotMatch(t.calls().at(-1).raw, /no visible output|valid tool call/);
  });

test('a call whose input is no JSON is told as it is, and the CLI asks nobody about it', async (t) => {
  keep(t, 'broken_input', { type: 'tool_use', id: 'toolu_broken', name: 'look', input: {} }, [{ type: 'input_json_delta', partial_json: '{"a": "x" "b": 1}' }], 'tool_use');
  const { status, json, text } = await post(t, '/v1/chat/completions', { messages: [user(t.text(directive('events', { of: 'broken_input' })))], tools: [LOOK_OF_CHAT] });
  assert.equal(status, 200, text);
  assert.equal(json.choices[0].message.tool_calls[0].function.arguments, '{"a": "x" "b": 1}');
  assert.equal((await post(t, '/v1/chat/completions', { messages: [user(t.text('plain', 'afterwards'))] })).status, 200);
  assert.equal(t.calls().length, 2);
});

test('half a character, as JavaScript cuts an emoji, is U+FFFD in requests and costs no answer', async (t) => {
  keep(t, 'half_character', { type: 'tool_use', id: 'toolu_half', name: 'look', input: {} }, [{ type: 'input_json_delta', partial_json: '{"a":"x\\ud83d"}' }], 'tool_use');
  for (const stream of [true, false]) {
    const got = await post(t, '/v1/chat/completions', { stream, messages: [user(t.text(directive('events', { of: 'half_character' })))], tools: [LOOK_OF_CHAT] });
    assert.equal(got.status, 200, got.text);
    assert.match(got.text, /x\\\\ud83d|x\\ufffd|x\ufffd/);
    assert.doesNotMatch(got.text, /"error"/);
  }
  const body = JSON.stringify({ model: MODEL, messages: [user(`${t.text('plain')} cut: HALF and whole: \ud83d\ude00`)] }).replace('HALF', '\\ud83d');
  assert.equal((await post(t, '/v1/chat/completions', body)).status, 200);
  assert.match(t.calls().at(-1).raw, /cut: (\ufffd|\\ufffd) and whole: (\u{1F600}|\\ud83d\\ude00)/u);
});

test('an account that has to be paid first is a 402 that no SDK tries again', async (t) => {
  const error = directive('error', { status: 402, type: 'billing_error' });
  const chat = await post(t, '/v1/chat/completions', { messages: [user(t.text(error))] });
  assert.deepEqual([chat.status, chat.json.error.type, chat.headers['x-should-retry']], [402, 'billing_error', 'false']);
  const own = await post(t, '/v1/messages', { max_tokens: 10, messages: [user(t.text(error))] });
  assert.deepEqual([own.status, own.json.error.type, own.headers['x-should-retry']], [402, 'billing_error', 'false']);
});

// ---- requests ------------------------------------------------------------------------------------

const OF_OTHERS = {
  chat: { top_k: 5, stop_sequences: ['x'], min_p: 0.1, instructions: 'Be brief.', thinking: { type: 'enabled' } },
  responses: { stop: ['x'], max_tokens: 5, seed: 3, n: 2, reasoning_effort: 'high', response_format: { type: 'json_object' } },
  messages: { stop: ['x'], n: 2, reasoning_effort: 'high', response_format: { type: 'json_object' } },
  completions: { top_k: 5, tools: [LOOK_OF_CHAT], response_format: { type: 'json_object' } },
  ollama: { temperature: 0.5, max_tokens: 5, stop: ['x'], tool_choice: 'required' },
};
for (const [dialect, more] of Object.entries(OF_OTHERS))
  test(`${dialect}: a field that only another API has is named, and with x-strict-params a 400; one without effect is neither`, async (t) => {
    const { path, body } = DIALECTS[dialect];
    const quiet = { user: 'me', metadata: {}, top_p: null, extra: false, more: [], service_tier: 'auto' };
    const got = await post(t, path, { ...body(t.text('plain')), ...more, ...quiet, 'evil\r\nname': 1 });
    assert.equal(got.status, 200, got.text);
    assert.deepEqual(ignoredOf(got).sort(), [...Object.keys(more), 'evil__name'].sort());
    for (const [name, value] of Object.entries(more)) {
      const strict = await post(t, path, { ...body(t.text('plain')), [name]: value }, { 'x-strict-params': 'true' });
      assert.equal(strict.status, 400, name);
      assert.match(strict.text, new RegExp(name));
    }
    assert.equal(t.calls().length, 1);
  });

test('session_id in the body is a session in every dialect', async (t) => {
  for (const [dialect, { path, body }] of Object.entries(DIALECTS)) {
    const session_id = `${t.token}-${dialect}`;
    for (const words of ['My name is Bob.', 'What is it?']) assert.equal((await post(t, path, { ...body(`${t.token} ${words}`), session_id })).status, 200);
    assert.match(JSON.stringify(spoken(t.calls().at(-1))), /My name is Bob.*What is it/, dialect);
  }
});

test('a number of thinking tokens counts on older models, and is named on those that think as they see fit', async (t) => {
  for (const [model, named] of [[MODEL, []], ['claude-opus-4-6', ['thinking.budget_tokens']]]) {
    const got = await post(t, '/v1/messages', { model, max_tokens: 9000, thinking: { type: 'enabled', budget_tokens: 4000 }, messages: [user(t.text('plain'))] });
    assert.deepEqual([got.status, ignoredOf(got)], [200, named], got.text);
    assert.equal(t.calls().at(-1).body.thinking.budget_tokens, named.length ? undefined : 4000);
  }
  const adaptive = await post(t, '/v1/messages', { model: 'claude-opus-4-6', max_tokens: 9000, thinking: { type: 'adaptive' }, messages: [user(t.text('plain'))] });
  assert.deepEqual(ignoredOf(adaptive), []);
});

test('what Ollama samples by is named by its own place', async (t) => {
  const got = await post(t, '/api/chat', { stream: false, messages: [user(t.text('plain'))], options: { temperature: 2, seed: 3 } });
  assert.deepEqual(ignoredOf(got).sort(), ['options.seed', 'options.temperature']);
});

// ---- histories -----------------------------------------------------------------------------------

const IMAGE_URL = { type: 'image_url', image_url: { url: `data:image/png;base64,${PNG}` } };
const HELD = {
  'chat: an image of the assistant’s': ['/v1/chat/completions', [assistant([{ type: 'text', text: 'Here.' }, IMAGE_URL])], 'messages.image_url', 'Here.'],
  'chat: reasoning of other servers': ['/v1/chat/completions', [assistant('Here.', { reasoning: 'Hm.', reasoning_content: 'Ours comes back.' })], 'messages.reasoning', 'Here.'],
  'messages: an image of the assistant’s': [
    '/v1/messages',
    [assistant([{ type: 'text', text: 'Here.' }, { type: 'image', source: { type: 'base64', media_type: 'image/png', data: PNG } }])],
    'messages.image',
    'Here.',
  ],
  'messages: a thought without a signature': ['/v1/messages', [assistant([{ type: 'thinking', thinking: 'Hm.', signature: '' }, { type: 'text', text: 'Here.' }])], 'messages.thinking', 'Here.'],
  'messages: an image of a call that failed': [
    '/v1/messages',
    [
      assistant([{ type: 'tool_use', id: 'toolu_1', name: 'look', input: {} }]),
      user([{ type: 'tool_result', tool_use_id: 'toolu_1', is_error: true, content: [{ type: 'text', text: 'It broke.' }, { type: 'image', source: { type: 'base64', media_type: 'image/png', data: PNG } }] }]),
      assistant('Here.'),
    ],
    'messages.media_of_failed_calls',
    'It broke.',
  ],
  'responses: an image of the assistant’s': ['/v1/responses', [assistant([{ type: 'output_text', text: 'Here.' }, { type: 'input_image', image_url: IMAGE_URL.image_url.url }])], 'input.input_image', 'Here.'],
  'responses: reasoning that nobody sealed': [
    '/v1/responses',
    [{ type: 'reasoning', id: 'rs_1', summary: [], content: [{ type: 'reasoning_text', text: 'Hm.' }] }, assistant('Here.')],
    'input.reasoning.content',
    'Here.',
  ],
};
for (const [what, [path, held, name, reaches]] of Object.entries(HELD))
  test(`${what} is named, and the thread goes on`, async (t) => {
    const all = [user('Well?'), ...held, user(t.text('plain'))];
    const got = await post(t, path, path === '/v1/responses' ? { input: all } : { max_tokens: 1000, messages: all });
    assert.equal(got.status, 200, got.text);
    assert.deepEqual(ignoredOf(got), [name]);
    const [call] = t.calls();
    assert.match(call.raw, new RegExp(reaches));
    assert.ok(call.body.messages.filter(({ role }) => role === 'assistant').every(({ content }) => !JSON.stringify(content).includes('"image"')));
  });
