// `--demo`: the proxy over its own stand-in for the CLI, over all four dialects, streamed and not. No network, no account, and no
// `claude` anywhere: neither on PATH nor by --claude-path.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import OpenAI from 'openai';
import { zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { read, readFailedStream } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { ANTHROPIC, readCompletion, readMessage, readResponse } from './dialect_client.mjs';
import { PROXY, descriptorsOf, eventually, processesMarked, suite } from './harness.mjs';

export const demo = suite();
const { test } = demo;

/** What a proxy needs to be a demo: nothing that the real one needs. */
export const DEMO = {
  args: ['--demo', '--spares', '3', '--max-processes', '16'],
  env: { PATH: '/nowhere', ANTHROPIC_BASE_URL: undefined, ANTHROPIC_API_KEY: undefined, CLAUDE_DEMO_PACE: '0ms' },
};
/** The same with as few processes as may be, so that all of them can be counted. */
const LONE = { ...DEMO, args: ['--demo', '--spares', '0', '--max-processes', '4'] };

/** A proxy of the test's own, whose only processes are those of the test. */
async function startLone(t, options = LONE) {
  const proxy = await t.start(options);
  await proxy.inspected();
  await eventually('the process that was looked at is gone', () => proxy.claudes().length === 0);
  return proxy;
}
const pidsOf = (proxy) => proxy.claudes().map(({ pid }) => pid);

const paced = (options) => ({ ...options, env: { ...options.env, CLAUDE_DEMO_PACE: undefined } });

// ---- one way to ask in four dialects -------------------------------------------------------------

const WEATHER = {
  type: 'object',
  properties: {
    city: { type: 'string' },
    unit: { type: 'string', enum: ['celsius', 'fahrenheit'] },
    days: { type: 'integer', minimum: 3 },
    note: { type: 'string' },
  },
  required: ['city', 'unit', 'days'],
};
const MADE_UP = { city: 'demo', unit: 'celsius', days: 3 };
const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';

const PDF = Buffer.from('%PDF-1.4\n%%EOF\n').toString('base64');

/** Fields that are not asked for are left out. */
const present = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

/** What finishes how, in the words of each dialect: said, cut at the limit, called tools, refused. */
const chat = {
  name: 'chat',
  path: '/v1/chat/completions',
  ends: { said: 'stop', stopped: 'stop', limit: 'length', tools: 'tool_calls', refused: 'content_filter' },
  body: ({ messages, stream, most, stop, tools, force, schema, think }) =>
    present({
      messages,
      stream,
      stream_options: stream ? { include_usage: true } : undefined,
      max_tokens: most,
      stop,
      tools: tools?.map((name) => ({ type: 'function', function: { name, parameters: WEATHER } })),
      tool_choice: force === true ? 'required' : force && { type: 'function', function: { name: force } },
      response_format: schema && { type: 'json_schema', json_schema: { name: 'answer', schema, strict: true } },
      reasoning_effort: think ? 'low' : undefined,
    }),
  read: (result) => {
    const { text, calls, finish, reasoning, usage, message } = read(result);
    return {
      text: text ?? '',
      calls: calls.map(({ id, function: { name, arguments: input } }) => ({ id, name, input: JSON.parse(input) })),
      end: finish,
      thought: reasoning,
      usage: [usage.prompt_tokens, usage.completion_tokens],
      turn: [message],
    };
  },
  results: (calls, contents) => calls.map(({ id }, i) => ({ role: 'tool', tool_call_id: id, content: contents[i] })),
};

const messages = {
  name: 'messages',
  path: '/v1/messages',
  headers: ANTHROPIC,
  ends: { said: 'end_turn', stopped: 'stop_sequence', limit: 'max_tokens', tools: 'tool_use', refused: 'refusal' },
  body: ({ messages: told, stream, most = 4000, stop, tools, force, schema, think }) =>
    present({
      messages: told,
      stream,
      max_tokens: most,
      stop_sequences: stop,
      tools: tools?.map((name) => ({ name, input_schema: WEATHER })),
      tool_choice: force === true ? { type: 'any' } : force && { type: 'tool', name: force },
      output_config: schema && { format: { type: 'json_schema', schema } },
      thinking: think ? { type: 'enabled', budget_tokens: 1024 } : undefined,
    }),
  read: (result) => {
    const { text, calls, finish, content, usage } = readMessage(result);
    const { input_tokens: fresh, cache_read_input_tokens: cached } = usage;
    return {
      text,
      calls: calls.map(({ id, name, input }) => ({ id, name, input })),
      end: finish,
      thought: content.find(({ type }) => type === 'thinking')?.thinking,
      usage: [fresh + cached, usage.output_tokens],
      turn: [{ role: 'assistant', content }],
    };
  },
  results: (calls, contents) => [
    { role: 'user', content: calls.map(({ id }, i) => ({ type: 'tool_result', tool_use_id: id, content: contents[i] })) },
  ],
};

const responses = {
  name: 'responses',
  path: '/v1/responses',
  ends: { said: 'completed', limit: 'max_output_tokens', tools: 'completed', refused: 'content_filter' },
  body: ({ messages: input, stream, most, tools, force, schema, think }) =>
    present({
      input,
      stream,
      max_output_tokens: most,
      tools: tools?.map((name) => ({ type: 'function', name, parameters: WEATHER, strict: false })),
      tool_choice: force === true ? 'required' : force && { type: 'function', name: force },
      text: schema && { format: { type: 'json_schema', name: 'answer', schema, strict: true } },
      reasoning: think ? { effort: 'low', summary: 'auto' } : undefined,
    }),
  read: (result) => {
    const { text, calls, status, incomplete_details: why, summary, reasoning, usage, output } = readResponse(result);
    return {
      text,
      calls: calls.map(({ call_id: id, name, arguments: input }) => ({ id, name, input: JSON.parse(input) })),
      end: why?.reason ?? status,
      thought: summary || (reasoning.length ? 'not told' : undefined),
      usage: [usage.input_tokens, usage.output_tokens],
      turn: output,
    };
  },
  results: (calls, contents) =>
    calls.map(({ id }, i) => ({ type: 'function_call_output', call_id: id, output: contents[i] })),
};

const completions = {
  name: 'completions',
  path: '/v1/completions',
  ends: { said: 'stop', stopped: 'stop', limit: 'length', refused: 'content_filter' },
  body: ({ messages: [{ content: prompt }], stream, most = 4000, stop }) =>
    present({ prompt, stream, stream_options: stream ? { include_usage: true } : undefined, max_tokens: most, stop }),
  read: (result) => {
    const {
      choices: [{ text, finish }],
      usage,
    } = readCompletion(result);
    return { text, calls: [], end: finish, usage: [usage.prompt_tokens, usage.completion_tokens], turn: [] };
  },
};

const ALL = [chat, messages, responses, completions];
const WITH_TOOLS = [chat, messages, responses];

const user = (content) => [{ role: 'user', content }];

/** One request; resolves to the raw result. */
const sendRaw = (t, dialect, { proxy = t.proxy, say, messages: told = user(say), headers, ...wishes }) =>
  t.send({
    proxy,
    path: dialect.path,
    headers: { ...dialect.headers, ...headers },
    body: { model: MODEL, ...dialect.body({ messages: told, ...wishes }) },
  });

const ask = async (t, dialect, wishes) => dialect.read(await sendRaw(t, dialect, wishes).done);

/** A test for each of the dialects, streamed and not. */
function each(dialects, name, body, options = {}) {
  for (const dialect of dialects)
    test(`${dialect.name}: ${name}`, options, (t) =>
      Promise.all([true, false].map((stream) => body(t, dialect, { stream: stream || undefined }))),
    );
}

// ---- what it says --------------------------------------------------------------------------------

each(ALL, 'the default answer says what it is and what it was told', async (t, dialect, how) => {
  const { text, end, thought, usage } = await ask(t, dialect, { say: `Good morning, ${t.token}!`, ...how });
  assert.match(text, /^This is the demo of claude-openai: no model has read this\./);
  assert.ok(text.includes(`"Good morning, ${t.token}!"`), text);
  assert.match(text, /Messages: 1, /);
  assert.equal(end, dialect.ends.said);
  assert.equal(thought, undefined);
  const words = text.split(/\s+/).length;
  assert.equal(usage[1], Math.ceil((words * 4) / 3), 'three words are four tokens');
});

each(ALL, '/say answers with that and nothing else', async (t, dialect, how) => {
  const { text } = await ask(t, dialect, { say: 'whatever /say  Guten Tag,\nWelt — 你好 /tmp/x /fast', ...how });
  assert.equal(text, 'Guten Tag,\nWelt — 你好 /tmp/x');
});

each(ALL, '/long says so many words, in as many pieces', async (t, dialect, how) => {
  const exchange = sendRaw(t, dialect, { say: '/long 250', ...how });
  const { text } = dialect.read(await exchange.done);
  assert.equal(text.split(' ').length, 250);
  if (how.stream) assert.ok(exchange.result.data.length >= 250, `${exchange.result.data.length} frames`);
});

test('the system prompt, images and documents are told', async (t) => {
  const source = { type: 'base64', media_type: 'image/png', data: PNG };
  const told = user([
    { type: 'image', source },
    { type: 'document', source: { ...source, media_type: 'application/pdf', data: PDF } },
    { type: 'text', text: 'Look!' },
  ]);
  const result = await t.send({
    path: '/v1/messages',
    headers: ANTHROPIC,
    body: { model: MODEL, max_tokens: 4000, system: 'Be kind.', messages: told },
  }).done;
  const { text } = readMessage(result);
  assert.match(text, /bytes of system prompt: 8, /);
  assert.match(text, /images: 1, documents: 1\./);
});

test('/help lists every command', async (t) => {
  const { text } = await ask(t, chat, { say: '/help' });
  for (const name of ['help', 'say', 'long', 'json', 'think', 'tool', 'tools', 'max', 'refuse', 'error', 'crash', 'hang', 'fast'])
    assert.match(text, new RegExp(`^ {4}/${name}\\b.* {2,}\\S`, 'm'));
});

each(WITH_TOOLS, 'thinking comes first, and is told where it is switched on', async (t, dialect, how) => {
  const switched = await ask(t, dialect, { say: 'Hello.', think: true, ...how });
  assert.match(switched.thought, /^Words of the user's: 1\. No model is here/);
  assert.match(switched.text, /^This is the demo/);
  const asked = await ask(t, dialect, { say: 'Hello, /think, /fast', ...how });
  assert.equal(asked.thought, undefined);
  assert.match(asked.text, /^This is the demo/);
});

// ---- how it ends ---------------------------------------------------------------------------------

each(ALL, 'max_tokens ends the answer', async (t, dialect, how) => {
  const { text, end, usage } = await ask(t, dialect, { say: '/long 100', most: 16, ...how });
  assert.equal(text.split(' ').length, 12);
  assert.equal(end, dialect.ends.limit);
  assert.equal(usage[1], 16);
  const half = await ask(t, dialect, { say: '/long 100 /max', ...how });
  assert.equal(half.text.split(' ').length, 50);
  assert.equal(half.end, dialect.ends.limit);
});

each([chat, messages, completions], 'a stop sequence ends the answer', async (t, dialect, how) => {
  const { text, end } = await ask(t, dialect, { say: '/say one two END three STOP', stop: ['STOP', 'END'], ...how });
  assert.equal(text, 'one two ');
  assert.equal(end, dialect.ends.stopped);
});

each(ALL, '/refuse ends the answer as a refusal', async (t, dialect, how) => {
  const { text, end } = await ask(t, dialect, { say: '/say one two three four /refuse', ...how });
  assert.equal(text, 'one two');
  assert.equal(end, dialect.ends.refused);
});

each(ALL, '/error fails with that status', async (t, dialect, how) => {
  for (const status of [400, 401, 403, 404, 413, 429, 500, 529]) {
    const result = await sendRaw(t, dialect, { say: `/error ${status}`, ...how }).done;
    const told = status === 529 && dialect !== messages ? 503 : status; // OpenAI has no 529
    assert.equal(result.status, told, result.text);
    assert.match(result.json.error.message, /the demo was asked to fail/);
    assert.equal(result.headers['retry-after'], [429, 529].includes(status) ? '1' : undefined, `Retry-After of ${status}`);
  }
});

// ---- tools ---------------------------------------------------------------------------------------

each(WITH_TOOLS, 'a tool is called and its result told, by the process that waits and from the history', async (t, dialect, how) => {
  const proxy = await startLone(t);
  const told = user(`/tool get_weather {"city": "Zürich"} for ${t.token}`);
  const wishes = { proxy, tools: ['get_time', 'get_weather'], ...how };
  const called = await ask(t, dialect, { messages: told, ...wishes });
  assert.deepEqual(called.calls.map(({ name, input }) => [name, input]), [['get_weather', { city: 'Zürich' }]]);
  assert.equal(called.end, dialect.ends.tools);
  const waiting = pidsOf(proxy);
  assert.equal(waiting.length, 1);
  const whole = [...told, ...called.turn, ...dialect.results(called.calls, ['12 degrees'])];
  const first = await ask(t, dialect, { messages: whole, ...wishes });
  assert.equal(first.text, 'The tool answered: 12 degrees');
  assert.deepEqual(pidsOf(proxy), waiting, 'the process that waited went on');
  // Nobody waits any more: it takes the call back and is told the history, and answers no differently.
  const again = await ask(t, dialect, { messages: whole, ...wishes });
  assert.deepEqual([again.text, again.usage], [first.text, first.usage]);
  assert.deepEqual(pidsOf(proxy), waiting);
});

each(WITH_TOOLS, '/tools calls two at once', async (t, dialect, how) => {
  const told = user(`/tools ${t.token}`);
  const wishes = { tools: ['get_time', 'get_weather'], ...how };
  const called = await ask(t, dialect, { messages: told, ...wishes });
  assert.deepEqual(called.calls.map(({ name, input }) => [name, input]), [['get_time', MADE_UP], ['get_weather', MADE_UP]]);
  const whole = [...told, ...called.turn, ...dialect.results(called.calls, ['noon', 'sunny'])];
  const { text } = await ask(t, dialect, { messages: whole, ...wishes });
  assert.equal(text, 'The tool answered: noon\nThe tool answered: sunny');
});

each(WITH_TOOLS, 'a tool is called when the request forces it, and not when it does not', async (t, dialect, how) => {
  const wishes = { say: `Hello, ${t.token}.`, tools: ['get_time', 'get_weather'], ...how };
  const forced = [await ask(t, dialect, { ...wishes, force: true }), await ask(t, dialect, { ...wishes, force: 'get_weather' })];
  assert.deepEqual(forced.map(({ calls }) => calls.map(({ name, input }) => [name, input])), [
    [['get_time', MADE_UP]],
    [['get_weather', MADE_UP]],
  ]);
  const free = await ask(t, dialect, wishes);
  assert.deepEqual(free.calls, []);
  assert.match(free.text, /tools: 2, /);
  const unknown = await ask(t, dialect, { ...wishes, say: '/tool get_lost' });
  assert.equal(unknown.text, 'The client offers no tool get_lost.');
});

test('tool_choice none and parallel_tool_calls false are honoured', async (t) => {
  const tools = ['get_time', 'get_weather'].map((name) => ({ type: 'function', function: { name, parameters: WEATHER } }));
  const asked = { tools, messages: user(`/tools ${t.token}`) };
  const none = read(await t.chat({ ...asked, tool_choice: 'none' }));
  assert.deepEqual([none.calls, none.finish], [[], 'stop']);
  assert.equal(read(await t.chat({ ...asked, parallel_tool_calls: false })).calls.length, 1);
});

test('a forced tool is answered when the request with its result no longer forces one', async (t) => {
  const told = user(`What is the weather, ${t.token}?`);
  const called = await ask(t, chat, { messages: told, tools: ['get_weather'], force: true });
  const whole = [...told, ...called.turn, ...chat.results(called.calls, ['rain'])];
  const { text } = await ask(t, chat, { messages: whole, tools: ['get_weather'] });
  assert.equal(text, 'The tool answered: rain');
});

// ---- JSON ----------------------------------------------------------------------------------------

const SCHEMA = {
  type: 'object',
  properties: {
    name: { type: 'string', minLength: 6 },
    born: { type: 'string', format: 'date' },
    age: { type: 'integer', minimum: 18, maximum: 99 },
    tags: { type: 'array', items: { $ref: '#/$defs/tag' }, minItems: 2 },
    kind: { anyOf: [{ type: 'string', const: 'person' }, { type: 'null' }] },
    alive: { type: 'boolean' },
  },
  required: ['name', 'born', 'age', 'tags', 'kind', 'alive'],
  additionalProperties: false,
  $defs: { tag: { type: 'string', enum: ['a', 'b'] } },
};
const FITTING = { name: 'demooo', born: '2026-01-01', age: 18, tags: ['a', 'a'], kind: 'person', alive: true };

each(WITH_TOOLS, 'a schema is answered by JSON that follows it, made up or given', async (t, dialect, how) => {
  const { text, end } = await ask(t, dialect, { say: 'Hello.', schema: SCHEMA, ...how });
  assert.deepEqual(JSON.parse(text), FITTING);
  assert.equal(end, dialect.ends.said);
  const ada = { ...FITTING, name: 'Ada Lovelace' };
  const given = await ask(t, dialect, { say: `/json ${JSON.stringify(ada)}`, schema: SCHEMA, ...how });
  assert.deepEqual(JSON.parse(given.text), ada);
});

test('/json answers with JSON without a schema too', async (t) => {
  assert.equal((await ask(t, chat, { say: '/json {"a": [1, 2]}' })).text, '{"a":[1,2]}');
  assert.deepEqual(JSON.parse((await ask(t, chat, { say: '/json' })).text), { demo: '/json' });
});

// ---- turns ---------------------------------------------------------------------------------------

each(WITH_TOOLS, 'two turns go to one process, and a replay of them says the same', async (t, dialect, how) => {
  const proxy = await startLone(t);
  const told = user(`/say one ${t.token}`);
  const first = await ask(t, dialect, { proxy, messages: told, ...how });
  const used = pidsOf(proxy);
  assert.equal(used.length, 1, 'one process for one conversation');
  const whole = [...told, ...first.turn, ...user('And now?')];
  const second = await ask(t, dialect, { proxy, messages: whole, ...how });
  assert.match(second.text, /Messages: 3, /);
  assert.deepEqual(pidsOf(proxy), used);
  const elsewhere = await ask(t, dialect, { messages: whole, ...how });
  assert.deepEqual([elsewhere.text, elsewhere.usage], [second.text, second.usage]);
});

test('a session and previous_response_id remember', async (t) => {
  const session_id = `demo ${t.token}`;
  const next = (say) => t.chat({ session_id, messages: user(say) });
  read(await next('/say one'));
  assert.match(read(await next('And now?')).text, /Messages: 3, /);
  const respond = async (input, more) => readResponse(await t.send({ path: '/v1/responses', body: { model: MODEL, input, ...more } }).done);
  const { id } = await respond('/say one');
  assert.match((await respond('And now?', { previous_response_id: id })).text, /Messages: 3, /);
});

test('an agent is answered by text, and calls the tools of its client', async (t) => {
  const { text } = read(await t.chat({ enable_tools: true, messages: user('/say hello') }));
  assert.equal(text, 'hello');
  const told = user(`/tool get_weather ${t.token}`);
  const tools = [{ type: 'function', function: { name: 'get_weather', parameters: WEATHER } }];
  const called = chat.read(await t.chat({ enable_tools: true, messages: told, tools }));
  assert.deepEqual(called.calls.map(({ name, input }) => [name, input]), [['get_weather', MADE_UP]]);
  const whole = [...told, ...called.turn, ...chat.results(called.calls, ['snow'])];
  assert.equal(read(await t.chat({ enable_tools: true, messages: whole, tools })).text, 'The tool answered: snow');
});

test('several choices, each of a process of its own', async (t) => {
  const { choices } = read(await t.chat({ n: 3, messages: user('/say one of three') }));
  assert.deepEqual(choices.map(({ message }) => message.content), Array(3).fill('one of three'));
});

test('two proxies answer alike: texts, ids of calls, usage', async (t) => {
  const [one, other] = [await t.start(DEMO), await t.start(DEMO)];
  const wishes = [
    { say: 'Hello.' },
    { say: 'Hello. /think', stream: true },
    { say: '/tools', tools: ['get_time', 'get_weather'] },
    { say: 'Hello.', schema: SCHEMA },
    { say: '/long 100', most: 10 },
  ];
  const id = ({ calls }) => calls.map((call) => call.id);
  const ids = [];
  for (const dialect of WITH_TOOLS)
    for (const wish of wishes) {
      const [a, b] = await Promise.all([one, other].map((proxy) => ask(t, dialect, { proxy, ...wish })));
      const plain = ({ turn: _, ...answer }) => answer;
      assert.deepEqual(plain(a), plain(b));
      ids.push(...id(a));
    }
  assert.equal(ids.length, 6, 'some of them called');
  const another = await ask(t, chat, { proxy: one, say: '/tools please', tools: ['get_time', 'get_weather'] });
  assert.ok(!ids.includes(another.calls[0].id), 'another conversation has other ids');
});

test('requests beyond the processes wait for their turn', async (t) => {
  const proxy = await t.start({ ...DEMO, args: ['--demo', '--spares', '0', '--max-processes', '2'] });
  const answers = await Promise.all(
    Array.from({ length: 12 }, (_, i) => ask(t, chat, { proxy, say: `/say ${i} ${t.token}` })),
  );
  assert.deepEqual(answers.map(({ text }) => text), answers.map((_, i) => `${i} ${t.token}`));
  assert.ok(proxy.claudes().length <= 2, `${proxy.claudes().length} processes`);
});

// ---- trouble -------------------------------------------------------------------------------------

test('/crash ends the process in mid-stream, and the answer as an error', async (t) => {
  const proxy = await startLone(t);
  const streamed = await sendRaw(t, chat, { proxy, say: '/long 100 /crash', stream: true }).done;
  const { error, deltas } = readFailedStream(streamed);
  assert.match(error.message, /demo: it was asked to \/crash/);
  const words = deltas.map(({ content = '' }) => content).join('').split(' ').length;
  assert.ok(words > 40 && words < 60, `${words} words`);
  const whole = await sendRaw(t, messages, { proxy, say: '/long 100 /crash' }).done;
  assert.equal(whole.status, 502, whole.text);
  await eventually('the processes are gone', () => proxy.claudes().length === 0);
  assert.equal((await ask(t, chat, { proxy, say: '/say alive' })).text, 'alive');
});

for (const dialect of ALL)
  test(`${dialect.name}: a client that leaves in mid-stream or at a /hang frees the process`, async (t) => {
    const proxy = await startLone(t, paced(LONE));
    const exchange = sendRaw(t, dialect, { proxy, say: '/long 10000', stream: true });
    await eventually('words come', () => sum(exchange.chunks.map(({ text }) => text.length)) > 2000);
    assert.equal(proxy.claudes().length, 1);
    const processes = async () => (await t.get('/health', { proxy })).json.processes;
    const isFree = async () => {
      const { busy, idle, rewinding } = await processes();
      return busy === 0 && idle === 1 && rewinding === 0;
    };
    exchange.abort();
    await eventually('the process is free', isFree);
    const silent = sendRaw(t, dialect, { proxy, say: '/hang' });
    await eventually('it hangs', async () => (await processes()).busy === 1);
    silent.abort();
    await eventually('it is free again', isFree);
    assert.equal(silent.result?.status, undefined);
    assert.equal(proxy.claudes().length, 1);
  });

test('/hang lasts until the timeout', async (t) => {
  const proxy = await t.start({ ...LONE, args: [...LONE.args, '--timeout', '1s'] });
  const result = await sendRaw(t, chat, { proxy, say: '/hang' }).done;
  assert.equal(result.status, 504, result.text);
  await eventually('nobody is busy', async () => (await t.get('/health', { proxy })).json.processes.busy === 0);
});

test('words come at a pace, unless they are to come /fast', { alone: true }, async (t) => {
  const proxy = await t.start(paced(DEMO));
  const took = async (say) => {
    const exchange = sendRaw(t, chat, { proxy, say, stream: true });
    const result = await exchange.done;
    return result.at - result.frames[0].at;
  };
  const slow = await took('/long 60');
  const fast = await took('/long 60 /fast');
  assert.ok(slow >= 590, `60 words at 10 ms took ${slow} ms`);
  assert.ok(fast < slow / 2, `and ${fast} ms at once`);
});

/** The stand-in alone, as the proxy starts it: `next` resolves to its next line of that type. */
function startStandIn(t, ...args) {
  const child = spawn(PROXY, ['demo-claude', ...args, '-p', '--model=some-model'], { stdio: ['pipe', 'pipe', 'inherit'] });
  t.defer(async () => child.kill('SIGKILL'));
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const write = (value) => child.stdin.write(`${JSON.stringify(value)}\n`);
  return {
    exited: new Promise((resolve) => child.once('exit', resolve)),
    end: () => child.stdin.end(),
    raw: (text) => child.stdin.write(text),
    say: (content, more) => write({ type: 'user', message: { role: 'user', content }, ...more }),
    control: (request) => write({ type: 'control_request', request_id: request.subtype, request }),
    next: async (type) => {
      for (;;) {
        const { value, done } = await lines.next();
        assert.ok(!done, `it ended without a ${type}`);
        const line = JSON.parse(value);
        if (line.type === type) return line;
      }
    },
  };
}

test('a stand-in answers within 30 ms of its start, and ends with its input', { alone: true }, async (t) => {
  const start = async () => {
    const began = performance.now();
    const one = startStandIn(t);
    one.control({ subtype: 'apply_flag_settings', settings: {} });
    const { response } = await one.next('control_response');
    const took = performance.now() - began;
    assert.deepEqual([response.subtype, response.request_id], ['success', 'apply_flag_settings']);
    one.end();
    assert.equal(await one.exited, 0);
    return took;
  };
  const times = [];
  do times.push(await start());
  while (times.at(-1) >= 30 && times.length < 20); // others may keep the machine busy
  assert.ok(times.at(-1) < 30, `starts took ${times.map(Math.round)} ms`);
});

test('an interrupt ends the turn at once, and the next turn works', async (t) => {
  const one = startStandIn(t, '--pace=1s');
  one.control({ subtype: 'interrupt' }); // of nothing
  for (const say of ['/long 100', '/hang']) {
    one.say(say);
    if (say === '/long 100') await one.next('stream_event');
    one.control({ subtype: 'interrupt' });
    const began = performance.now();
    const { subtype, is_error } = await one.next('result');
    assert.deepEqual([subtype, is_error], ['error_during_execution', true]);
    assert.ok(performance.now() - began < 10_000, `it took ${performance.now() - began} ms`);
  }
  one.say('/say well /fast');
  const { subtype, result, total_cost_usd: cost } = await one.next('result');
  assert.deepEqual([subtype, result], ['success', 'well']);
  one.say('/say well again /fast');
  assert.ok((await one.next('result')).total_cost_usd > cost, 'the cost is that of all turns');
  one.end();
  assert.equal(await one.exited, 0);
});

test('a line that is no JSON ends the stand-in with 1, as it does the CLI', async (t) => {
  const one = startStandIn(t);
  one.say('/fast');
  await one.next('result');
  one.raw('no JSON\n');
  assert.equal(await one.exited, 1);
});

test('the proxy is healthy without a login, keeps its spares, and leaves nothing behind', async (t) => {
  const proxy = await t.start(DEMO);
  await proxy.inspected();
  const health = () => t.get('/health', { proxy }).then(({ json }) => json);
  await eventually('the spares are warm', async () => (await health()).processes.warm === 3);
  assert.equal((await health()).status, 'healthy');
  const own = proxy.claudes();
  assert.equal(own.length, 3);
  const { executable: program } = processesMarked(proxy.scratch).find(({ pid }) => pid === proxy.pid);
  for (const { argv, executable } of own) assert.deepEqual([argv[1], executable], ['demo-claude', program]);
  const { json: models } = await t.get('/v1/models', { proxy });
  assert.ok(models.data.some(({ id }) => id === MODEL));
  const { faults } = await proxy.stop();
  proxy.stopped = true;
  assert.deepEqual(faults, []);
  assert.deepEqual(processesMarked(proxy.scratch), []);
});

test('a proxy that is killed takes its stand-ins with it', async (t) => {
  const proxy = await t.start(DEMO);
  await eventually('the spares are there', () => proxy.claudes().length === 3);
  const { faults } = await proxy.stop('SIGKILL');
  proxy.stopped = true;
  assert.deepEqual(faults, []);
});

test('what the proxy has inherited open reaches none of its processes', async () => {
  const scratch = mkdtempSync(path.join(tmpdir(), 'claude-openai-e2e-'));
  const env = { PATH: '/nowhere', HOME: scratch, TMPDIR: scratch };
  const proxy = spawn(PROXY, ['--demo', '--port', '0', '--spares', '1'], { env, stdio: ['ignore', 'ignore', 'ignore', 'pipe'] });
  const exited = once(proxy, 'exit');
  const others = () => processesMarked(scratch).filter(({ pid }) => pid !== proxy.pid);
  try {
    await eventually('its processes are there', () => others().some(({ argv }) => argv.includes('stream-json')));
    const open = ({ pid }) => {
      try {
        return descriptorsOf(pid).length;
      } catch {
        return 0; // it has ended meanwhile, as the one does that looks at the program
      }
    };
    await eventually('they have their streams alone', () => others().every((one) => open(one) <= 3));
  } finally {
    proxy.kill('SIGTERM');
    await exited;
    rmSync(scratch, { recursive: true, force: true });
  }
});

// ---- a real client -------------------------------------------------------------------------------

test('openai: create, stream, runTools, parse, errors', async (t) => {
  const client = new OpenAI({ baseURL: `${t.proxy.url}/v1`, apiKey: 'unused', maxRetries: 0 });
  const model = 'gpt-4o';
  const plain = await client.chat.completions.create({ model, messages: user('/say hello') });
  assert.equal(plain.choices[0].message.content, 'hello');
  let streamed = '';
  for await (const chunk of await client.chat.completions.create({ model, stream: true, messages: user('/say a b c') }))
    streamed += chunk.choices[0]?.delta.content ?? '';
  assert.equal(streamed, 'a b c');
  const asked = [];
  const getWeather = {
    type: 'function',
    function: { name: 'get_weather', parameters: WEATHER, parse: JSON.parse, function: (input) => asked.push(input) && 'sunny' },
  };
  const runner = client.chat.completions.runTools({ model, messages: user('/tool get_weather'), tools: [getWeather] });
  assert.equal(await runner.finalContent(), 'The tool answered: sunny');
  assert.deepEqual(asked, [MADE_UP]);
  const Person = z.object({ name: z.string(), email: z.email(), age: z.number().int().min(18), tags: z.array(z.enum(['x', 'y'])) });
  const parsed = await client.chat.completions.parse({ model, messages: user('Who?'), response_format: zodResponseFormat(Person, 'person') });
  assert.deepEqual(parsed.choices[0].message.parsed, { name: 'demo', email: 'demo@example.com', age: 18, tags: ['x'] });
  const limited = client.chat.completions.create({ model, messages: user('/error 429') });
  await assert.rejects(limited, (error) => error instanceof OpenAI.RateLimitError && error.status === 429);
});
