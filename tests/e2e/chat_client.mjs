// A chat client that carries one conversation on and looks at both ends: it checks the shape of all that it gets, streamed or not,
// and finds the API calls that it caused. What the tests of features share.

import assert from 'node:assert/strict';
import { assertError, assertKeys } from './chat.test.mjs';
import { DEFAULT_MODEL } from './claude_cli.mjs';
import { directive } from './messages_api.mjs';

/** One scenario for each API call of a turn. */
export const steps = (...scenarios) => scenarios.join(' | ');
export const say = (text, options = {}) => directive('plain', { text, ...options });
/** The model calls tools: each {tool, args}, or {of, args} with `of` the description of the tool. */
export const call = (calls, options = {}) => directive('tool_use', { calls: [calls].flat(), ...options });

// ---- what the API was sent -----------------------------------------------------------------------

const blocksOf = (content) => (typeof content === 'string' ? [{ type: 'text', text: content }] : (content ?? []));

/** A block as the tests write it: text is a string, a call {call, name, input}, a result {result, content}; others whole. */
function plainBlock({ cache_control: _, ...block }) {
  switch (block.type) {
    case 'text':
      return block.text;
    case 'tool_use':
      return { call: block.id, name: block.name, input: block.input };
    case 'tool_result': {
      const content = blocksOf(block.content).map(plainBlock);
      const result = { result: block.tool_use_id, content: content.length === 1 ? content[0] : content };
      return block.is_error ? { ...result, is_error: true } : result;
    }
    default:
      return block;
  }
}

/** The conversation as the API got it, without what CLIs add: reminders, and entries of the role `system`. */
export const conversationOf = ({ body }) =>
  body.messages
    .filter(({ role }) => role !== 'system')
    .map(({ role, content }) => ({
      role,
      content: blocksOf(content)
        .filter(({ type, text }) => !(type === 'text' && text.startsWith('<system-reminder>\nAs you answer')))
        .map(plainBlock),
    }));

/** The tools that the API was offered, by name, in no order: the CLI sorts them. */
export const toolsOf = ({ body }) =>
  Object.fromEntries((body.tools ?? []).map(({ cache_control: _, name, ...tool }) => [name, tool]));

export const callerSystem = ({ system }) =>
  system.filter((text) => !/^x-anthropic-billing-header|^You are a Claude agent, built on/.test(text)).join('\n');

/** Which process made the call: each has an id of its own, which it tells the API. */
export const processOf = ({ headers }) => headers['x-claude-code-session-id'];

// ---- what the client got -------------------------------------------------------------------------

const CHUNK = ['id', 'object', 'created', 'model', 'choices'];
const OPTIONAL = ['usage', 'system_fingerprint', 'service_tier'];

/** Adds one delta of a call; the first one names it, later ones hold arguments alone, and calls never interleave. */
function addCallDelta(calls, delta) {
  assert.equal(delta.length, 1);
  const [{ index, ...part }] = delta;
  if (index === calls.length) {
    assert.deepEqual(Object.keys(delta[0]), ['index', 'id', 'type', 'function']);
    assert.deepEqual(part.function, { name: part.function.name, arguments: '' }, 'the first delta only names the call');
    calls.push({ ...part, function: { ...part.function }, pieces: 0 });
    return;
  }
  assert.equal(index, calls.length - 1, 'calls come one after the other, from 0');
  assertKeys(delta[0], ['index', 'function']);
  assertKeys(part.function, ['arguments']);
  assert.ok(part.function.arguments.length > 0, 'a delta says something');
  calls[index].function.arguments += part.function.arguments;
  calls[index].pieces++;
}

function addFunctionDelta(message, delta) {
  if (!message.function_call) {
    assert.deepEqual(delta, { name: delta.name, arguments: '' });
    message.function_call = { ...delta };
    return;
  }
  assertKeys(delta, ['arguments']);
  message.function_call.arguments += delta.arguments;
}

/** The sources of a search of the web, which no other answer has. */
function assertAnnotations(annotations) {
  for (const one of annotations) {
    assertKeys(one, ['type', 'url_citation']);
    assertKeys(one.url_citation, ['start_index', 'end_index', 'url', 'title']);
  }
  return annotations;
}

/** Reads the chunks of one choice by the rules that hold whatever was said. */
function readChoice(chunks) {
  const [first, ...others] = chunks.map(({ choices: [choice], at }) => ({ ...choice, at }));
  assert.deepEqual(first.delta, { role: 'assistant', content: '' });
  assert.equal(first.finish_reason, null);
  const last = others.pop();
  assert.deepEqual(last.delta, {}, 'the last chunk only tells how it ended');
  const calls = [];
  const message = { role: 'assistant', content: null };
  const kinds = [];
  const times = [];
  for (const { delta, finish_reason, at } of others) {
    assert.equal(finish_reason, null);
    const [kind, ...more] = Object.keys(delta);
    assert.deepEqual(more, [], 'one thing a delta');
    if (kinds.at(-1) !== kind) kinds.push(kind);
    times.push({ kind, at });
    if (kind === 'tool_calls') addCallDelta(calls, delta.tool_calls);
    else if (kind === 'function_call') addFunctionDelta(message, delta.function_call);
    else {
      if (kind === 'annotations') {
        message.annotations = [...(message.annotations ?? []), ...assertAnnotations(delta.annotations)];
        continue;
      }
      assert.ok(['content', 'reasoning_content'].includes(kind), `a delta of ${kind}`);
      assert.equal(typeof delta[kind], 'string');
      message[kind] = (message[kind] ?? '') + delta[kind];
    }
  }
  if (calls.length) message.tool_calls = calls.map(({ pieces: _, ...one }) => one);
  else if (!message.function_call) message.content ??= '';
  return { message, finish: last.finish_reason, pieces: calls.map(({ pieces }) => pieces), kinds, times };
}

function readStream(result) {
  assert.match(result.headers['content-type'], /^text\/event-stream/);
  assert.equal(result.error, undefined);
  assert.ok(!result.frames.some(({ cut }) => cut !== undefined), 'every frame ends with an empty line');
  assert.equal(result.data.at(-1), '[DONE]');
  const frames = result.frames.filter(({ data }) => data !== undefined && data !== '[DONE]');
  const chunks = result.data.slice(0, -1).map((chunk, i) => ({ ...chunk, at: frames[i].at }));
  for (const { at: _, ...chunk } of chunks) {
    assert.equal(chunk.error, undefined, JSON.stringify(chunk.error));
    assertKeys(chunk, CHUNK, OPTIONAL);
    assert.equal(chunk.object, 'chat.completion.chunk');
    for (const field of ['id', 'created', 'model']) assert.equal(chunk[field], chunks[0][field], field);
    for (const choice of chunk.choices) assertKeys(choice, ['index', 'delta', 'logprobs', 'finish_reason']);
  }
  const usage = chunks.at(-1).choices.length === 0 ? chunks.pop().usage : undefined;
  assert.ok(!chunks.some((chunk) => chunk.usage), 'usage only in the last chunk');
  assert.ok(
    chunks.every(({ choices }) => choices.length === 1),
    'one choice a chunk',
  );
  const count = Math.max(...chunks.map(({ choices }) => choices[0].index)) + 1;
  const choices = Array.from({ length: count }, (_, index) =>
    readChoice(chunks.filter(({ choices: [choice] }) => choice.index === index)),
  );
  return { choices, usage, model: chunks[0].model, order: chunks.map(({ choices: [choice] }) => choice.index) };
}

function readWhole({ json }) {
  assertKeys(json, [...CHUNK, 'usage'], OPTIONAL);
  assert.equal(json.object, 'chat.completion');
  const choices = json.choices.map((choice, index) => {
    assertKeys(choice, ['index', 'message', 'logprobs', 'finish_reason']);
    assert.equal(choice.index, index);
    const { refusal, annotations, ...message } = choice.message;
    assertKeys(message, ['role', 'content'], ['tool_calls', 'function_call', 'reasoning_content']);
    assert.deepEqual([message.role, refusal], ['assistant', null]);
    if (annotations.length) message.annotations = assertAnnotations(annotations);
    for (const one of message.tool_calls ?? []) assertKeys(one, ['id', 'type', 'function']);
    return { message, finish: choice.finish_reason };
  });
  return { choices, usage: json.usage, model: json.model };
}

export const ignoredOf = ({ headers }) => headers['x-ignored-params']?.split(/,\s*/).sort() ?? [];

/** Checks a whole answer, streamed or not, and reads it: {choices, usage, model, ignored, result} and the first choice's parts. */
export function read(result) {
  assert.equal(result.status, 200, result.text);
  const answer = result.data ? readStream(result) : readWhole(result);
  const [{ message, finish, ...parts }] = answer.choices;
  for (const one of answer.choices.flatMap((choice) => choice.message.tool_calls ?? [])) {
    assertKeys(one, ['id', 'type', 'function']);
    assertKeys(one.function, ['name', 'arguments']);
    assert.equal(one.type, 'function');
    assert.match(one.id, /^toolu_/);
    JSON.parse(one.function.arguments);
  }
  const { content: text, tool_calls: calls = [], reasoning_content: reasoning } = message;
  return { ...answer, ...parts, message, finish, text, calls, reasoning, ignored: ignoredOf(result), result };
}

export function assertRefused(result, status, param) {
  assert.equal(result.status, status, result.text);
  assertKeys(result.json, ['error']);
  assertError(result.json.error);
  if (param instanceof RegExp) assert.match(result.json.error.param ?? 'null', param, result.text);
  else if (param !== undefined) assert.equal(result.json.error.param, param, result.text);
}

/** The error of a stream that failed after its first byte, and the deltas before it. */
export function readFailedStream(result) {
  assert.equal(result.status, 200, result.text);
  const data = result.data.filter((one) => one !== '[DONE]');
  const { error } = data.pop();
  assertError(error ?? {}, result.text);
  assert.ok(
    data.every(({ choices }) => choices[0].finish_reason === null),
    'a failed answer has no finish_reason',
  );
  return { error, deltas: data.map(({ choices }) => choices[0].delta) };
}

// ---- the client ----------------------------------------------------------------------------------

export class ChatClient {
  static #count = 0;

  /** `body` goes with every request; with `session` the proxy keeps the history. */
  constructor(t, { stream = false, proxy = t.proxy, body = {}, headers = {}, session, messages = [] } = {}) {
    Object.assign(this, { t, stream, proxy, body, headers, session });
    this.name = `chat-${++ChatClient.#count}-`;
    this.messages = [...messages];
    this.known = 0; // messages that a session holds
    if (session) this.session = `${session} ${this.name}`;
  }

  /** User text that plays the scenario. */
  text(scenario, more = '') {
    return this.t.text(scenario, `${this.name} ${more}`);
  }

  user(scenario, more) {
    this.messages.push({ role: 'user', content: this.text(scenario, more) });
    return this;
  }

  /** Sends what there is; resolves to the raw result. */
  sendRaw(fields = {}, headers = {}) {
    return this.t.send({
      proxy: this.proxy,
      headers: { ...this.headers, ...headers },
      body: {
        model: DEFAULT_MODEL,
        ...(this.stream ? { stream: true, stream_options: { include_usage: true } } : {}),
        ...(this.session ? { session_id: this.session } : {}),
        ...this.body,
        messages: this.messages.slice(this.known),
        ...fields,
      },
    });
  }

  /** Sends what there is and reads the answer, which joins the conversation as a client would send it back. */
  async send(fields, headers) {
    const answer = read(await this.sendRaw(fields, headers).done);
    const { reasoning_content: _, ...message } = answer.message;
    this.messages.push(message);
    if (this.session) this.known = this.messages.length;
    return (this.last = answer);
  }

  ask(scenario, fields, headers) {
    return this.user(scenario).send(fields, headers);
  }

  /** Adds the results of the calls of the last answer, in their order. */
  results(...contents) {
    const { calls } = this.last;
    assert.equal(contents.length, calls.length, 'a result for each call');
    this.messages.push(...calls.map(({ id }, i) => ({ role: 'tool', tool_call_id: id, content: contents[i] })));
    return this;
  }

  /** The API calls of this conversation. */
  calls() {
    return this.t.api.requests.filter(({ path, raw }) => path === '/v1/messages' && raw?.includes(this.name));
  }

  /** Checks that there were so many API calls by so many processes, where that can be told; returns the calls. */
  assertCalls(count, processes = 1) {
    const calls = this.calls();
    assert.equal(calls.length, count, `API calls: ${calls.map(({ text }) => text.slice(0, 200)).join(' / ')}`);
    const used = calls.map(processOf);
    assert.ok(used.every(Boolean), 'every call tells its process');
    if (this.proxy !== this.t.shared) assert.equal(new Set(used).size, processes, `processes by call: ${used}`);
    return calls;
  }
}

/** Runs the body for a client that streams and for one that does not, at the same time. */
export const eachWay = (t, body, options = {}) =>
  Promise.all([true, false].map((stream) => body(new ChatClient(t, { ...options, stream }), stream)));
