// A process serves whatever its client asks next: it takes back what the request has not, and is told what it lacks. Here
// with every version of the CLI, those that take nothing back among them: what the client gets and what the API is sent
// does not depend on it.

import assert from 'node:assert/strict';
import { DEFAULT_MODEL, claudePath } from './claude_cli.mjs';
import { conversationOf, processOf } from './chat_client.mjs';
import { eventually, suite } from './harness.mjs';

export const everyVersion = suite();
export const once = suite();

const SAID = 'Hello from the loopback API.';
const user = (content) => ({ role: 'user', content });
const said = { role: 'assistant', content: SAID };
const told = (...words) => words.map((content, i) => ({ role: i % 2 ? 'assistant' : 'user', content: [content] }));
const old = ['2.1.120', '2.1.197'].map(claudePath);
const goesBack = (t) => !old.includes(t.cli);

/** Asks one question after the other; resolves to the API's calls, a call each. */
async function askAll(t, proxy, requests, more = {}) {
  for (const messages of requests) {
    const system = { role: 'system', content: `You are ${t.token}.` };
    const got = await t.chat({ ...more, messages: [system, ...messages] }, { proxy });
    assert.equal(got.status, 200, got.text);
    assert.equal(got.json.choices[0].message.content, SAID);
  }
  const calls = t.calls();
  assert.equal(calls.length, requests.length, 'each is asked once');
  return calls;
}

const own = async (t, ...args) => {
  const proxy = await t.start({ cli: t.cli, args });
  await proxy.inspected();
  return proxy;
};

everyVersion.test('one-off questions, one after the other: the API is sent each alone', async (t) => {
  const proxy = await own(t, '--spares', '0');
  const questions = ['one', 'two', 'three', 'four'].map((word) => [user(word)]);
  const calls = await askAll(t, proxy, questions);
  assert.deepEqual(calls.map(conversationOf), questions.map(([{ content }]) => told(content)));
  assert.equal(new Set(calls.map(processOf)).size, goesBack(t) ? 1 : 4);
});

everyVersion.test('an edited message, an answer given anew and a branch: the API is sent that history, no more', async (t) => {
  const proxy = await own(t, '--spares', '0');
  const chat = [user('a'), said, user('b'), said, user('c')];
  const asked = [
    [user('a')],
    chat.slice(0, 3),
    chat,
    [...chat.slice(0, 4), user('c, edited')],
    [...chat.slice(0, 4), user('c, edited')],
    [...chat.slice(0, 2), user('b, edited')],
    [user('z'), said, user('b')],
    chat,
  ];
  const calls = await askAll(t, proxy, asked);
  assert.deepEqual(
    calls.map(conversationOf),
    asked.map((messages) => told(...messages.map(({ content }) => content))),
  );
  if (goesBack(t)) assert.equal(new Set(calls.map(processOf)).size, 1);
});

once.test('who will not have it: --no-process-reuse gives each conversation a process of its own', async (t) => {
  const proxy = await own(t, '--spares', '0', '--no-process-reuse');
  const calls = await askAll(t, proxy, [[user('one')], [user('two')], [user('one'), said, user('and')]]);
  const [one, two, three] = calls.map(processOf);
  assert.notEqual(one, two);
  assert.equal(one, three);
});

once.test('another system prompt, other tools, another effort: another process', async (t) => {
  const proxy = await own(t, '--spares', '0');
  const tool = { type: 'function', function: { name: 'f', parameters: { type: 'object' } } };
  const ask = (system, more) =>
    t.chat({ messages: [{ role: 'system', content: `${t.token} ${system}` }, user('hello')], ...more }, { proxy });
  for (const [system, more] of [['a'], ['b'], ['a', { tools: [tool] }], ['a', { reasoning_effort: 'low', model: 'claude-opus-4-5' }]])
    assert.equal((await ask(system, more)).status, 200);
  assert.equal(new Set(t.calls().map(processOf)).size, 4);
});

once.test('eight conversations of one prompt take turns over two processes', { slow: true }, async (t) => {
  const proxy = await own(t, '--max-processes', '2', '--spares', '0');
  const asked = [];
  for (const turn of [0, 1, 2])
    for (let chat = 0; chat < 8; chat++) {
      const before = Array.from({ length: turn }, (_, i) => [user(`chat ${chat} turn ${i}`), said]).flat();
      asked.push([...before, user(`chat ${chat} turn ${turn}`)]);
    }
  const calls = await askAll(t, proxy, asked);
  assert.deepEqual(
    calls.map(conversationOf),
    asked.map((messages) => told(...messages.map(({ content }) => content))),
  );
  assert.ok(new Set(calls.map(processOf)).size <= 3, 'a process is ended for room at most once');
});

// ---- what nobody wants any more ------------------------------------------------------------------

const processes = async (t, proxy) => (await t.get('/health', { proxy })).json.processes;

for (const stream of [true, false])
  once.test(`a client that leaves ${stream ? 'a stream' : 'before its answer'}: the API is left, the process serves the next`, async (t) => {
    const proxy = await own(t, '--spares', '0');
    const left = t.send({ proxy, body: { model: DEFAULT_MODEL, stream, messages: t.messages(`hang after=${stream ? 2 : -1}`) } });
    const call = await t.waitForCall();
    if (stream) await eventually('a part has come', () => left.chunks.some(({ text }) => text.includes('Hello')));
    const [before] = proxy.claudes();
    left.abort();
    await eventually('the API sees the connection close', () => call.clientLeft);
    await eventually('the process is idle', async () => {
      const { busy, idle, rewinding } = await processes(t, proxy);
      return busy === 0 && idle === 1 && rewinding === 0;
    });
    const next = await t.chat({ messages: t.messages('plain') }, { proxy });
    assert.equal(next.json.choices[0].message.content, SAID);
    assert.deepEqual(proxy.claudes().map(({ pid }) => pid), [before.pid]);
    assert.deepEqual(conversationOf(t.calls()[1]), told(t.text('plain')));
  });

for (const [what, scenario, more, status] of [
  ['the API refuses', 'error status=400', [], 400],
  ['the API asks to wait too long for', 'error status=429 retry_after=60', [], 429],
  ['that takes too long', 'hang after=-1', ['--timeout', '3s'], 504],
])
  once.test(`a turn ${what} is taken back: the process serves the next`, async (t) => {
    const proxy = await own(t, '--spares', '0', ...more);
    assert.equal((await t.chat({ messages: t.messages(scenario) }, { proxy })).status, status);
    await eventually('the process is idle', async () => {
      const { busy, idle, rewinding } = await processes(t, proxy);
      return busy === 0 && idle === 1 && rewinding === 0;
    });
    const [before] = proxy.claudes();
    assert.equal((await t.chat({ messages: t.messages('plain') }, { proxy })).status, 200);
    assert.deepEqual(proxy.claudes().map(({ pid }) => pid), [before.pid]);
    assert.deepEqual(conversationOf(t.calls().at(-1)), told(t.text('plain')));
  });

// ---- calls of one id -----------------------------------------------------------------------------

const parameters = { type: 'object', properties: { in: { type: 'string' } } };
const WEATHER = { type: 'function', function: { name: 'weather', parameters } };
const made = (id, place) => ({ id, type: 'function', function: { name: 'weather', arguments: JSON.stringify({ in: place }) } });
const result = (id, content) => ({ role: 'tool', tool_call_id: id, content });
const calling = (...calls) => ({ role: 'assistant', content: null, tool_calls: calls });

/** By dialect: where it is asked, and a question with a history of calls [id, place] and results [id, content] behind it. */
const WITH_CALLS = {
  chat: [
    '/v1/chat/completions',
    (question, rounds) => ({
      tools: [WEATHER],
      messages: [
        user(question),
        ...rounds.flatMap(([calls, results]) => [calling(...calls.map((one) => made(...one))), ...results.map((one) => result(...one))]),
      ],
    }),
  ],
  messages: [
    '/v1/messages',
    (question, rounds) => ({
      max_tokens: 99,
      tools: [{ name: 'weather', input_schema: parameters }],
      messages: [
        user(question),
        ...rounds.flatMap(([calls, results]) => [
          { role: 'assistant', content: calls.map(([id, place]) => ({ type: 'tool_use', id, name: 'weather', input: { in: place } })) },
          user(results.map(([id, content]) => ({ type: 'tool_result', tool_use_id: id, content }))),
        ]),
      ],
    }),
  ],
  responses: [
    '/v1/responses',
    (question, rounds) => ({
      tools: [{ type: 'function', name: 'weather', parameters, strict: false }],
      input: [
        user(question),
        ...rounds.flatMap(([calls, results]) => [
          ...calls.map(([id, place]) => ({ type: 'function_call', call_id: id, name: 'weather', arguments: JSON.stringify({ in: place }) })),
          ...results.map(([id, output]) => ({ type: 'function_call_output', call_id: id, output })),
        ]),
      ],
    }),
  ],
};

for (const [dialect, [path, ask]] of Object.entries(WITH_CALLS))
  for (const [what, rounds] of Object.entries({
    'numbered anew in each round': [[[['call_0', 'Berne']], [['call_0', 'snow']]], [[['call_0', 'Rome']], [['call_0', 'sun']]]],
    'twice in one message': [[[['call_0', 'Berne'], ['call_0', 'Rome']], [['call_0', 'snow'], ['call_0', 'sun']]]],
    'that the CLI takes for one': [[[['call_1', 'Berne'], ['call_1_2', 'Rome']], [['call_1', 'snow'], ['call_1_2', 'sun']]]],
    'that the API would take for one': [[[['a.b', 'Berne'], ['a:b', 'Rome']], [['a.b', 'snow'], ['a:b', 'sun']]]],
    'which is empty': [[[['', 'Berne'], ['', 'Rome']], [['', 'snow'], ['', 'sun']]]],
  }))
    once.test(`${dialect}: calls of one id, ${what}: every call and its result reach the API`, async (t) => {
      for (const stream of [false, true]) {
        const got = await t.send({ path, body: { model: DEFAULT_MODEL, stream, ...ask(t.text('plain'), rounds) } }).done;
        assert.equal(got.status, 200, got.text);
        assert.ok(got.text.includes(stream ? 'Hello' : SAID), got.text);
        const { body } = t.calls().at(-1);
        const blocks = body.messages.flatMap(({ content }) => content);
        const calls = blocks.filter(({ type }) => type === 'tool_use');
        assert.deepEqual(calls.map(({ input }) => input.in), ['Berne', 'Rome']);
        assert.equal(new Set(calls.map(({ id }) => id)).size, 2);
        const results = new Map(blocks.filter(({ type }) => type === 'tool_result').map((one) => [one.tool_use_id, JSON.stringify(one.content)]));
        assert.match(results.get(calls[0].id), /snow/);
        assert.match(results.get(calls[1].id), /sun/);
      }
      assert.equal(t.calls().length, 2);
    });

/** What models have called tools with: a text, or with Messages the value itself; and what the API is told of it. */
const ARGUMENTS = [
  ['null', {}],
  ['[]', {}],
  ['', {}],
  [null, {}],
  [{ in: 'Berne' }, { in: 'Berne' }],
  ['{"in":"Be', { _invalid_arguments: '{"in":"Be' }],
];
for (const [dialect, [path, ask]] of Object.entries(WITH_CALLS))
  once.test(`${dialect}: whatever the arguments of an earlier call are, the conversation goes on`, async (t) => {
    for (const [i, [given, told]] of ARGUMENTS.entries()) {
      const text = JSON.stringify(ask(t.text('plain'), [[[['call_1', 'PLACE']], [['call_1', 'snow']]]]));
      const body = JSON.parse(text, (name, value) => {
        const isArguments = name === 'arguments' || (name === 'input' && value.in === 'PLACE'); // of Messages
        return isArguments ? given : value;
      });
      const got = await t.send({ path, body: { model: DEFAULT_MODEL, stream: i % 2 === 1, ...body } }).done;
      assert.equal(got.status, 200, got.text);
      const calls = t.calls().at(-1).body.messages.flatMap(({ content }) => content).filter(({ type }) => type === 'tool_use');
      assert.deepEqual(calls.map(({ input }) => input), [told], JSON.stringify(given));
    }
    assert.equal(t.calls().length, ARGUMENTS.length);
  });

once.test('a client that renames calls: the process that waits for their results gets them', async (t) => {
  const proxy = await own(t, '--spares', '0');
  const question = user(t.text('tool_use calls=[{"tool":"weather","args":{"in":"Berne"}},{"tool":"weather","args":{"in":"Rome"}}] | plain'));
  const first = await t.chat({ tools: [WEATHER], messages: [question] }, { proxy });
  const { tool_calls } = first.json.choices[0].message;
  assert.equal(tool_calls.length, 2);
  const renamed = tool_calls.map((one, i) => ({ ...one, id: `call_${i}` }));
  const messages = [question, calling(...renamed), result('call_0', 'snow'), result('call_1', 'sun')];
  const next = await t.chat({ tools: [WEATHER], messages }, { proxy });
  assert.equal(next.json?.choices[0].message.content, SAID, next.text);
  const [one, two] = t.calls();
  assert.equal(processOf(one), processOf(two));
  const results = two.body.messages.at(-1).content.filter(({ type }) => type === 'tool_result');
  assert.deepEqual(results.map(({ tool_use_id }) => tool_use_id), tool_calls.map(({ id }) => id));
  assert.match(JSON.stringify(results[0]), /snow/);
});

/** A turn with two calls in each of the other dialects, and the next request of a client that knows ids of its own alone. */
const RENAMED = {
  messages: {
    path: '/v1/messages',
    first: (words) => ({ max_tokens: 99, tools: [{ name: 'weather', input_schema: WEATHER.function.parameters }], messages: [user(words)] }),
    idsOf: ({ content }) => content.map(({ id }) => id),
    next: (words, { content }, names) => ({
      messages: [
        user(words),
        { role: 'assistant', content: content.map((one, i) => ({ ...one, id: names[i] })) },
        { role: 'user', content: names.map((id, i) => ({ type: 'tool_result', tool_use_id: id, content: WEATHERS[i] })) },
      ],
    }),
  },
  responses: {
    path: '/v1/responses',
    first: (words) => ({ tools: [{ type: 'function', name: 'weather', parameters: WEATHER.function.parameters }], input: [user(words)] }),
    idsOf: ({ output }) => output.map(({ call_id: id }) => id),
    next: (words, { output }, names) => ({
      input: [user(words), ...output.map((one, i) => ({ ...one, call_id: names[i] })), ...names.map((id, i) => ({ type: 'function_call_output', call_id: id, output: WEATHERS[i] }))],
    }),
  },
};
const WEATHERS = ['snow', 'sun'];

for (const [dialect, { path, first, idsOf, next }] of Object.entries(RENAMED))
  once.test(`${dialect}: calls have the API's ids; a client that knows them by \`call_…\` of its own is understood by the same process`, async (t) => {
    const proxy = await own(t, '--spares', '0');
    const words = t.text('tool_use calls=[{"tool":"weather","args":{"in":"Berne"}},{"tool":"weather","args":{"in":"Rome"}}] | plain');
    const ask = (body) => t.send({ proxy, path, body: { model: DEFAULT_MODEL, ...body } }).done;
    const asked = await ask(first(words));
    const ids = idsOf(asked.json);
    assert.equal(ids.length, 2, asked.text);
    for (const id of ids) assert.match(id, /^toolu_/); // Anthropic's clients expect it, OpenAI's take any text
    const answered = await ask({ ...first(words), ...next(words, asked.json, ['call_0', 'call_1']) });
    assert.equal(answered.status, 200, answered.text);
    const [one, two] = t.calls();
    assert.equal(processOf(one), processOf(two));
    const results = two.body.messages.at(-1).content.filter(({ type }) => type === 'tool_result');
    assert.deepEqual(results.map(({ tool_use_id }) => tool_use_id), ids);
    results.forEach((result, i) => assert.match(JSON.stringify(result), new RegExp(WEATHERS[i])));
  });

// ---- instructions in mid-conversation ------------------------------------------------------------

const REMINDER = '<system-reminder>\nBe brief now.\n</system-reminder>';
const late = {
  chat: (role) => ({
    path: '/v1/chat/completions',
    body: (words) => ({ messages: [{ role: 'system', content: 'S' }, user(words), said, { role, content: 'Be brief now.' }, user('go on')] }),
    first: (words) => ({ messages: [{ role: 'system', content: 'S' }, user(words)] }),
  }),
  messages: (role) => ({
    path: '/v1/messages',
    body: (words) => ({ max_tokens: 99, system: 'S', messages: [user(words), said, { role, content: 'Be brief now.' }, user('go on')] }),
    first: (words) => ({ max_tokens: 99, system: 'S', messages: [user(words)] }),
  }),
  responses: (role) => ({
    path: '/v1/responses',
    body: (words) => ({ instructions: 'S', input: [user(words), said, { role, content: 'Be brief now.' }, user('go on')] }),
    first: (words) => ({ instructions: 'S', input: [user(words)] }),
  }),
};
for (const [dialect, role] of [['chat', 'system'], ['chat', 'developer'], ['messages', 'system'], ['responses', 'developer'], ['responses', 'system']])
  once.test(`${dialect}: a late ${role} message stays at its place, and the process and the prompt stay`, async (t) => {
    const proxy = await own(t, '--spares', '0');
    const { path, body, first } = late[dialect](role);
    for (const stream of [false, true]) {
      const words = `${t.token} ${stream}`;
      for (const one of [first, body]) {
        const got = await t.send({ proxy, path, body: { model: DEFAULT_MODEL, stream, ...one(words) } }).done;
        assert.equal(got.status, 200, got.text);
      }
      const [one, two] = t.calls().slice(-2);
      assert.equal(processOf(one), processOf(two));
      assert.deepEqual(one.body.system, two.body.system);
      assert.deepEqual(conversationOf(two).map(({ content }) => content), [[words], [SAID], [REMINDER, 'go on']]);
    }
    assert.equal(t.calls().length, 4);
  });

const AFTER_RESULTS = 'Ten calls are left.';
const MARKED = `<system-reminder>\n${AFTER_RESULTS}\n</system-reminder>`;
const schema = WEATHER.function.parameters;
// The first request of each dialect, and the next one, with the tool's result and instructions behind it.
const afterResults = {
  chat: {
    path: '/v1/chat/completions',
    tools: [WEATHER],
    next: (question, { choices: [{ message }] }, role) => ({
      messages: [question, message, result(message.tool_calls[0].id, 'snow'), { role, content: AFTER_RESULTS }],
    }),
    first: (question) => ({ messages: [question] }),
  },
  messages: {
    path: '/v1/messages',
    tools: [{ name: 'weather', input_schema: schema }],
    first: (question) => ({ max_tokens: 99, messages: [question] }),
    next: (question, { content }, role, failed) => {
      const brought = { type: 'tool_result', tool_use_id: content.at(-1).id, content: 'snow', is_error: failed };
      return { max_tokens: 99, messages: [question, { role: 'assistant', content }, user([brought]), { role, content: AFTER_RESULTS }] };
    },
  },
  responses: {
    path: '/v1/responses',
    tools: [{ type: 'function', name: 'weather', parameters: schema }],
    first: (question) => ({ input: [question], store: false }),
    next: (question, { output }, role) => ({
      input: [question, ...output, { type: 'function_call_output', call_id: output.at(-1).call_id, output: 'snow' }, { role, content: AFTER_RESULTS }],
      store: false,
    }),
  },
};
for (const [dialect, role, failed] of [['chat', 'system'], ['chat', 'developer'], ['messages', 'system'], ['messages', 'system', true], ['responses', 'developer']])
  once.test(`${dialect}: a ${role} message after a tool's ${failed ? 'failure' : 'result'} reaches the process that waits for it, as a fresh one is told it`, async (t) => {
    const proxy = await own(t, '--spares', '0');
    const fresh = await own(t, '--spares', '0', '--no-process-reuse');
    const { path, tools, first, next } = afterResults[dialect];
    const ask = (where, body) => t.send({ proxy: where, path, body: { model: DEFAULT_MODEL, tools, ...body } }).done;
    const question = user(t.text('tool_use tool=weather | plain | plain'));
    const called = await ask(proxy, first(question));
    assert.equal(called.status, 200, called.text);
    for (const where of [proxy, fresh]) {
      const got = await ask(where, next(question, called.json, role, failed));
      assert.equal(got.status, 200, got.text);
    }
    const [one, two, told] = t.calls();
    assert.equal(processOf(one), processOf(two), 'the process that waits goes on');
    assert.notEqual(processOf(two), processOf(told));
    const results = (call) => call.body.messages.at(-1).content.find(({ type }) => type === 'tool_result').content;
    const words = failed ? results(two) : results(two).map(({ text }) => text).join('\n');
    assert.equal(words, `snow\n${MARKED}`);
    assert.deepEqual(results(told), results(two));
    assert.deepEqual(conversationOf(told), conversationOf(two));
  });

// ---- thoughts, and pages ---------------------------------------------------------------------------

const thinkingOf = (call) => call.body.messages.flatMap(({ content }) => blocksOf(content)).filter(({ type }) => type === 'thinking');
const blocksOf = (content) => (typeof content === 'string' ? [] : content);
const THINK = { thinking: { type: 'enabled', budget_tokens: 2048 }, max_tokens: 9000 };

once.test('messages: a chat that brings thoughts of its own is told with them, not with those of another that reads alike', async (t) => {
  const proxy = await own(t, '--spares', '0');
  const ask = (messages) => t.send({ proxy, path: '/v1/messages', body: { model: DEFAULT_MODEL, ...THINK, messages } }).done;
  const hi = user(t.text('thinking thinking="first thought" | thinking thinking="next" | thinking thinking="other"'));
  const one = await ask([hi]);
  assert.equal(one.status, 200, one.text);
  const next = await ask([hi, { role: 'assistant', content: one.json.content }, user('and on')]);
  assert.equal(next.status, 200, next.text);
  const thought = { type: 'thinking', thinking: 'another thought', signature: 'c2lnbmF0dXJlIG9mIGFub3RoZXI=' };
  const alike = one.json.content.map((block) => (block.type === 'thinking' ? thought : block));
  const other = await ask([hi, { role: 'assistant', content: alike }, user('and on')]);
  assert.equal(other.status, 200, other.text);
  const [first, second, third] = t.calls();
  assert.equal(processOf(first), processOf(second), 'its own thoughts go on with the process');
  assert.deepEqual(thinkingOf(second).map(({ thinking }) => thinking), ['first thought']);
  assert.deepEqual(thinkingOf(third).map(({ thinking }) => thinking), ['another thought']);
});

once.test('a page that may only chat shares no process with the programs of its user', async (t) => {
  const proxy = await own(t, '--spares', '0');
  const ask = (messages, headers = {}) => t.send({ proxy, path: '/v1/messages', headers, body: { model: DEFAULT_MODEL, ...THINK, messages } }).done;
  const hi = user(t.text('thinking thinking="a secret thought" | plain | plain'));
  const one = await ask([hi]);
  assert.equal(one.status, 200, one.text);
  const words = one.json.content.find(({ type }) => type === 'text').text;
  const chat = [hi, { role: 'assistant', content: words }, user('what did you think?')];
  for (const port of [3000, 4000]) {
    const got = await ask(chat, { origin: `http://localhost:${port}` });
    assert.equal(got.status, 200, got.text);
  }
  const [mine, page, another] = t.calls();
  assert.equal(new Set([mine, page, another].map(processOf)).size, 3);
  assert.deepEqual([...thinkingOf(page), ...thinkingOf(another)], []);
});
