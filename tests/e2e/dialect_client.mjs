// Clients of the Messages, Responses and Completions APIs that carry one conversation on and look at both ends, as ChatClient
// does for chat. Each reader checks every rule that holds whatever was said, and gives a stream the shape of a whole answer.

import assert from 'node:assert/strict';
import { assertError, assertKeys } from './chat.test.mjs';
import { ChatClient, ignoredOf } from './chat_client.mjs';
import { DEFAULT_MODEL } from './claude_cli.mjs';

const isRecent = (seconds) => Number.isInteger(seconds) && Math.abs(seconds - Date.now() / 1000) < 60;

/** The events of a stream, each named as its type says, without keep-alives. */
function eventsOf(result) {
  assert.match(result.headers['content-type'], /^text\/event-stream/);
  assert.match(result.headers['cache-control'], /no-cache/);
  assert.equal(result.headers['x-accel-buffering'], 'no');
  assert.equal(result.error, undefined);
  assert.ok(!result.frames.some(({ cut }) => cut !== undefined), 'every frame ends with an empty line');
  return result.frames
    .filter(({ data }) => data !== undefined)
    .map(({ event, data, at }) => {
      const value = JSON.parse(data);
      assert.equal(value.type, event, 'the event is named as its type');
      return { value, at };
    });
}

// ---- Messages ------------------------------------------------------------------------------------

const MESSAGE = ['id', 'type', 'role', 'model', 'content', 'stop_reason', 'stop_sequence', 'usage'];
const USAGE = ['input_tokens', 'cache_creation_input_tokens', 'cache_read_input_tokens', 'cache_creation', 'output_tokens', 'service_tier'];
const BLOCKS = {
  text: ['type', 'text'],
  thinking: ['type', 'thinking', 'signature'],
  redacted_thinking: ['type', 'data'],
  tool_use: ['type', 'id', 'name', 'input'],
  server_tool_use: ['type', 'id', 'name', 'input'],
  web_search_tool_result: ['type', 'tool_use_id', 'content'],
  web_fetch_tool_result: ['type', 'tool_use_id', 'content'],
};

function assertMessage(message) {
  assertKeys(message, MESSAGE);
  assert.match(message.id, /^msg_/);
  assert.deepEqual([message.type, message.role], ['message', 'assistant']);
  assertKeys(message.usage, USAGE, ['cost', 'output_tokens_details', 'server_tool_use', 'inference_geo', 'iterations', 'speed']);
  assertKeys(message.usage.cache_creation, ['ephemeral_5m_input_tokens', 'ephemeral_1h_input_tokens']);
  for (const block of message.content) assertKeys(block, BLOCKS[block.type] ?? assert.fail(`a block of ${block.type}`), block.type === 'text' ? ['citations'] : []);
}

const DELTAS = { text: { text_delta: 'text', citations_delta: 'citation' }, thinking: { thinking_delta: 'thinking', signature_delta: 'signature' } };
for (const kind of ['tool_use', 'server_tool_use']) DELTAS[kind] = { input_json_delta: 'partial_json' };

/** Puts one block together out of its start, its deltas and its stop. */
function readBlock(index, [start, ...events]) {
  assertKeys(start.value, ['type', 'index', 'content_block']);
  assert.deepEqual([start.value.type, start.value.index], ['content_block_start', index]);
  const block = { ...start.value.content_block };
  assertKeys(block, BLOCKS[block.type]);
  const empty = { text: { text: '' }, thinking: { thinking: '', signature: '' }, tool_use: { input: {} }, server_tool_use: { input: {} } }[block.type] ?? {};
  for (const [field, value] of Object.entries(empty)) assert.deepEqual(block[field], value, `a block starts empty`);
  const stop = events.pop();
  assert.deepEqual(stop.value, { type: 'content_block_stop', index });
  let json = '';
  for (const { value } of events) {
    assertKeys(value, ['type', 'index', 'delta']);
    assert.deepEqual([value.type, value.index], ['content_block_delta', index]);
    const field = DELTAS[block.type]?.[value.delta.type] ?? assert.fail(`${value.delta.type} in a block of ${block.type}`);
    assertKeys(value.delta, ['type', field]);
    assert.equal(typeof value.delta[field], field === 'citation' ? 'object' : 'string');
    if (field === 'citation') block.citations = [...(block.citations ?? []), value.delta.citation];
    else if (field === 'partial_json') json += value.delta[field];
    else block[field] += value.delta[field];
  }
  if (block.type.endsWith('tool_use') && json) block.input = JSON.parse(json);
  const signed = events.findIndex(({ value }) => value.delta.type === 'signature_delta');
  if (signed >= 0) assert.equal(signed, events.length - 1, 'the signature comes last');
  return block;
}

function readMessageStream(result) {
  const events = eventsOf(result).filter(({ value }) => value.type !== 'ping');
  const [{ value: start }] = events;
  assertKeys(start, ['type', 'message']);
  assert.equal(start.type, 'message_start');
  const { message } = start;
  assertMessage(message);
  assert.deepEqual([message.content, message.stop_reason, message.stop_sequence], [[], null, null]);
  const [delta, end] = events.splice(-2).map(({ value }) => value);
  assert.deepEqual(end, { type: 'message_stop' });
  assertKeys(delta, ['type', 'delta', 'usage']);
  assert.equal(delta.type, 'message_delta');
  assertKeys(delta.delta, ['stop_reason', 'stop_sequence']);
  const content = [];
  const pieces = [];
  for (let rest = events.slice(1); rest.length; ) {
    const length = rest.findIndex(({ value }) => value.type === 'content_block_stop') + 1;
    assert.ok(length > 0, 'every block is stopped');
    const block = rest.slice(0, length);
    content.push(readBlock(content.length, block));
    pieces.push(block.slice(1, -1));
    rest = rest.slice(length);
  }
  const first = message.usage;
  for (const field of USAGE.filter((name) => /_tokens$/.test(name)))
    assert.ok(delta.usage[field] >= first[field], `${field} only grows`);
  return { message: { ...message, content, ...delta.delta, usage: delta.usage }, pieces, first };
}

/** Checks a whole answer, streamed or not, and reads it: the message's own members, and its parts by kind. */
export function readMessage(result) {
  assert.equal(result.status, 200, result.text);
  assert.match(result.headers['request-id'] ?? '', /./);
  const streamed = result.data ? readMessageStream(result) : { message: result.json };
  const { message } = streamed;
  assertMessage(message);
  const of = (kind) => message.content.filter(({ type }) => type === kind);
  const text = of('text')
    .map((block) => block.text)
    .join('');
  const kinds = message.content.map(({ type }) => type);
  return { ...streamed, ...message, text, kinds, calls: of('tool_use'), finish: message.stop_reason, ignored: ignoredOf(result), result };
}

/** An error in Anthropic's shape. */
export function assertAnthropicError(result, status, type, says = /./) {
  assert.equal(result.status, status, result.text);
  assert.match(result.headers['content-type'], /^application\/json/);
  assertKeys(result.json, ['type', 'error', 'request_id']);
  assertKeys(result.json.error, ['type', 'message']);
  assert.deepEqual([result.json.type, result.json.error.type], ['error', type], result.text);
  assert.match(result.json.error.message, says);
  assert.equal(result.json.request_id, result.headers['request-id']);
}

export const ANTHROPIC = { 'anthropic-version': '2023-06-01' };

export class MessagesClient extends ChatClient {
  sendRaw(fields = {}, headers = {}) {
    return this.t.send({
      proxy: this.proxy,
      path: '/v1/messages',
      headers: { ...ANTHROPIC, ...this.headers, ...headers },
      body: {
        model: DEFAULT_MODEL,
        max_tokens: 2000,
        ...(this.stream ? { stream: true } : {}),
        ...(this.session ? { session_id: this.session } : {}),
        ...this.body,
        messages: this.messages.slice(this.known),
        ...fields,
      },
    });
  }

  async send(fields, headers) {
    const answer = readMessage(await this.sendRaw(fields, headers).done);
    this.messages.push({ role: 'assistant', content: answer.content });
    if (this.session) this.known = this.messages.length;
    return (this.last = answer);
  }

  /** Adds the results of the calls of the last answer, in their order: contents, or members of a tool_result block. */
  results(...contents) {
    const { calls } = this.last;
    assert.equal(contents.length, calls.length, 'a result for each call');
    const blocks = calls.map(({ id }, i) => ({
      type: 'tool_result',
      tool_use_id: id,
      ...(typeof contents[i] === 'string' || Array.isArray(contents[i]) ? { content: contents[i] } : contents[i]),
    }));
    this.messages.push({ role: 'user', content: blocks });
    return this;
  }
}

// ---- Responses -----------------------------------------------------------------------------------

const RESPONSE = [
  'id', 'object', 'created_at', 'status', 'error', 'incomplete_details', 'instructions', 'max_output_tokens', 'metadata', 'model',
  'output', 'parallel_tool_calls', 'previous_response_id', 'reasoning', 'service_tier', 'store', 'temperature', 'text',
  'tool_choice', 'tools', 'top_p', 'truncation', 'usage', 'user',
];
const ITEMS = {
  message: ['id', 'type', 'status', 'role', 'content'],
  function_call: ['id', 'type', 'status', 'call_id', 'name', 'arguments'],
  custom_tool_call: ['id', 'type', 'status', 'call_id', 'name', 'input'],
  reasoning: ['id', 'type', 'summary'],
  web_search_call: ['id', 'type', 'status', 'action'],
};
const PREFIXES = { web_search_call: 'ws_', message: 'msg_', function_call: 'fc_', custom_tool_call: 'ctc_', reasoning: 'rs_' };

function assertItem(item, status = 'completed') {
  assertKeys(item, ITEMS[item.type] ?? assert.fail(`an item of ${item.type}`), ['encrypted_content', 'namespace']);
  assert.ok(item.id.startsWith(PREFIXES[item.type]), item.id);
  const failed = item.type === 'web_search_call' && item.status === 'failed';
  if (item.type !== 'reasoning' && !failed) assert.equal(item.status, status);
  if (item.type === 'message') assert.equal(item.role, 'assistant');
  for (const part of item.content ?? []) {
    assertKeys(part, ['type', 'text', 'annotations'], ['logprobs']);
    assert.equal(part.type, 'output_text');
    for (const one of part.annotations) assertKeys(one, ['type', 'start_index', 'end_index', 'url', 'title']);
  }
  for (const part of item.summary ?? []) assertKeys(part, ['type', 'text']);
}

export function assertResponse(response, statuses = ['completed', 'incomplete']) {
  assertKeys(response, RESPONSE, ['background', 'max_tool_calls']);
  assert.match(response.id, /^resp_/);
  assert.equal(response.object, 'response');
  assert.ok(isRecent(response.created_at), `created_at ${response.created_at}`);
  assert.ok(statuses.includes(response.status), response.status);
  if (response.usage) {
    assertKeys(
      response.usage,
      ['input_tokens', 'input_tokens_details', 'output_tokens', 'output_tokens_details', 'total_tokens'],
      ['cost'],
    );
    assert.equal(response.usage.total_tokens, response.usage.input_tokens + response.usage.output_tokens);
  }
}

/** What each event of an item holds beside type and sequence_number. */
const EVENTS = {
  'response.output_item.added': ['output_index', 'item'],
  'response.output_item.done': ['output_index', 'item'],
  'response.content_part.added': ['item_id', 'output_index', 'content_index', 'part'],
  'response.content_part.done': ['item_id', 'output_index', 'content_index', 'part'],
  'response.output_text.delta': ['item_id', 'output_index', 'content_index', 'delta', 'logprobs'],
  'response.output_text.annotation.added': ['item_id', 'output_index', 'content_index', 'annotation_index', 'annotation'],
  'response.web_search_call.in_progress': ['item_id', 'output_index'],
  'response.web_search_call.searching': ['item_id', 'output_index'],
  'response.web_search_call.completed': ['item_id', 'output_index'],
  'response.output_text.done': ['item_id', 'output_index', 'content_index', 'text', 'logprobs'],
  'response.function_call_arguments.delta': ['item_id', 'output_index', 'delta'],
  'response.function_call_arguments.done': ['item_id', 'output_index', 'name', 'arguments'],
  'response.custom_tool_call_input.delta': ['item_id', 'output_index', 'delta'],
  'response.custom_tool_call_input.done': ['item_id', 'output_index', 'input'],
  'response.reasoning_summary_part.added': ['item_id', 'output_index', 'summary_index', 'part'],
  'response.reasoning_summary_part.done': ['item_id', 'output_index', 'summary_index', 'part'],
  'response.reasoning_summary_text.delta': ['item_id', 'output_index', 'summary_index', 'delta'],
  'response.reasoning_summary_text.done': ['item_id', 'output_index', 'summary_index', 'text'],
};

/** The order of an item's events, as a pattern over their short names. */
const ORDER = {
  message: /^added (content_part\.added (output_text\.(delta|annotation\.added) )*output_text\.done content_part\.done )?done$/,
  function_call: /^added (function_call_arguments\.delta )*function_call_arguments\.done done$/,
  custom_tool_call: /^added (custom_tool_call_input\.delta )*custom_tool_call_input\.done done$/,
  reasoning: /^added (reasoning_summary_part\.added (reasoning_summary_text\.delta )*reasoning_summary_text\.done reasoning_summary_part\.done )*done$/,
  web_search_call: /^added web_search_call\.in_progress web_search_call\.searching (web_search_call\.completed )?done$/,
};

/** The same for a call that was cut, whose end nobody knows. */
const CUT_ORDER = {
  ...ORDER,
  function_call: /^added (function_call_arguments\.delta )*done$/,
  custom_tool_call: /^added done$/,
};

function readItem(index, events) {
  const values = events.map(({ value }) => value);
  const [added, done] = [values[0], values.at(-1)];
  const cut = done.item.status === 'incomplete';
  for (const { type, sequence_number: _, ...members } of values) {
    assertKeys(members, EVENTS[type] ?? assert.fail(`an event ${type}`));
    assert.equal(members.output_index, index);
    if ('item_id' in members) assert.equal(members.item_id, added.item.id);
    if ('content_index' in members) assert.equal(members.content_index, 0);
    if ('summary_index' in members) assert.equal(members.summary_index, 0);
  }
  const names = values.map(({ type }) => type.replace(/^response\.(output_item\.)?/, '')).join(' ');
  assert.match(names, (cut ? CUT_ORDER : ORDER)[added.item.type]);
  assertItem(added.item, 'in_progress');
  assertItem(done.item, cut ? 'incomplete' : 'completed');
  const last = (kind, field) => values.find(({ type }) => type === `response.${kind}.done`)?.[field];
  const whole = (kind) => values.filter(({ type }) => type === `response.${kind}.delta`).map(({ delta }) => delta).join('');
  const { item } = done;
  switch (item.type) {
    case 'message':
      assert.deepEqual(added.item.content, []);
      if (!item.content.length) break;
      assert.deepEqual([whole('output_text'), last('output_text', 'text')], [item.content[0].text, item.content[0].text]);
      assert.deepEqual(last('content_part', 'part'), item.content[0]);
      assert.deepEqual(values.filter(({ annotation }) => annotation).map(({ annotation }) => annotation), item.content[0].annotations);
      break;
    case 'web_search_call':
      assert.equal(names.includes('.completed'), item.status === 'completed');
      break;
    case 'function_call':
      assert.equal(added.item.arguments, '');
      assert.deepEqual([added.item.name, added.item.call_id], [item.name, item.call_id]);
      assert.deepEqual([whole('function_call_arguments'), last('function_call_arguments', 'arguments')], [item.arguments, cut ? undefined : item.arguments]);
      break;
    case 'custom_tool_call':
      assert.equal(added.item.input, '');
      assert.deepEqual([whole('custom_tool_call_input'), last('custom_tool_call_input', 'input')], [item.input, cut ? undefined : item.input]);
      break;
    default:
      assert.equal(whole('reasoning_summary_text'), item.summary.map(({ text }) => text).join(''));
  }
  return { item, deltas: events.filter(({ value }) => 'delta' in value) };
}

function readResponseStream(result, statuses) {
  const events = eventsOf(result);
  events.forEach(({ value }, i) => assert.equal(value.sequence_number, i, 'sequence numbers count from 0'));
  const [created, begun] = events.splice(0, 2).map(({ value }) => value);
  assert.deepEqual([created.type, begun.type], ['response.created', 'response.in_progress']);
  const { value: end } = events.pop();
  for (const one of [created, begun, end]) assertKeys(one, ['type', 'sequence_number', 'response']);
  assert.deepEqual(created.response, begun.response);
  assertResponse(created.response, ['in_progress']);
  assert.deepEqual([created.response.output, created.response.usage], [[], null]);
  const { status } = end.response;
  assert.ok(statuses.includes(status), `${status}: ${JSON.stringify(end.response.error)}`);
  assert.equal(end.type, `response.${status === 'cancelled' ? 'failed' : status}`);
  const items = [];
  let rest = events;
  while (rest.length) {
    const length = rest.findIndex(({ value }) => value.type === 'response.output_item.done') + 1;
    if (length === 0) break;
    items.push(readItem(items.length, rest.slice(0, length)));
    rest = rest.slice(length);
  }
  if (['completed', 'incomplete'].includes(status)) assert.deepEqual(rest, [], 'every item is done');
  const { response } = end;
  assert.deepEqual(response.output, items.map(({ item }) => item));
  const same = ({ status: _, error, incomplete_details, output, usage, ...others }) => others;
  assert.deepEqual(same(response), same(created.response), 'the rest stays as it was');
  return { response, deltas: items.map(({ deltas }) => deltas), rest: rest.map(({ value }) => value) };
}

/** Checks a whole answer, streamed or not, and reads it: the response's own members, and its items by kind. */
export function readResponse(result, statuses = ['completed', 'incomplete']) {
  assert.equal(result.status, 200, result.text);
  const streamed = result.data ? readResponseStream(result, statuses) : { response: result.json };
  const { response } = streamed;
  assertResponse(response, statuses);
  response.output.forEach((item, i) => {
    const mayBeCut = response.status === 'incomplete' && i === response.output.length - 1;
    assertItem(item, mayBeCut && item.status === 'incomplete' ? 'incomplete' : 'completed');
  });
  const ids = response.output.map(({ id }) => id);
  assert.equal(new Set(ids).size, ids.length);
  const text = response.output
    .flatMap(({ type, content }) => (type === 'message' ? content : []))
    .map((part) => part.text)
    .join('');
  const cites = response.output.some(({ content = [] }) => content.some(({ annotations }) => annotations.length));
  assert.ok(!cites || response.output.some(({ type }) => type === 'web_search_call'), 'only a search has sources');
  const reasoning = response.output.filter(({ type }) => type === 'reasoning');
  return {
    ...response,
    ...streamed,
    text,
    format: response.text,
    kinds: response.output.map(({ type }) => type),
    calls: response.output.filter(({ type }) => /_call$/.test(type) && type !== 'web_search_call'),
    summary: reasoning.flatMap(({ summary }) => summary).map((part) => part.text).join(''),
    reasoning,
    ignored: ignoredOf(result),
    result,
  };
}

/** `chained`: sends only what is new, with previous_response_id; else all items each time. */
export class ResponsesClient extends ChatClient {
  constructor(t, { chained = false, ...options } = {}) {
    super(t, options);
    this.chained = chained;
  }

  sendRaw(fields = {}, headers = {}) {
    const previous = this.chained && this.last ? { previous_response_id: this.last.id } : {};
    return this.t.send({
      proxy: this.proxy,
      path: '/v1/responses',
      headers: { ...this.headers, ...headers },
      body: {
        model: DEFAULT_MODEL,
        ...(this.stream ? { stream: true } : {}),
        ...previous,
        ...this.body,
        input: this.messages.slice(this.known),
        ...fields,
      },
    });
  }

  async send(fields, headers) {
    const answer = readResponse(await this.sendRaw(fields, headers).done);
    this.messages.push(...answer.output);
    if (this.chained) this.known = this.messages.length;
    return (this.last = answer);
  }

  results(...outputs) {
    const { calls } = this.last;
    assert.equal(outputs.length, calls.length, 'a result for each call');
    this.messages.push(...calls.map(({ type, call_id }, i) => ({ type: `${type}_output`, call_id, output: outputs[i] })));
    return this;
  }
}

// ---- Completions ---------------------------------------------------------------------------------

const COMPLETION = ['id', 'object', 'created', 'model', 'choices'];

function assertCompletion(value, optional = []) {
  assertKeys(value, COMPLETION, ['system_fingerprint', ...optional]);
  assert.match(value.id, /^cmpl-/);
  assert.equal(value.object, 'text_completion');
  assert.ok(isRecent(value.created));
  for (const choice of value.choices) {
    assertKeys(choice, ['text', 'index', 'logprobs', 'finish_reason']);
    assert.equal(typeof choice.text, 'string');
    assert.equal(choice.logprobs, null);
  }
}

function readCompletionStream(result) {
  const data = result.frames.filter((frame) => frame.data !== undefined);
  assert.ok(data.every(({ event }) => event === undefined), 'no named events');
  assert.equal(data.pop().data, '[DONE]');
  const chunks = data.map(({ data: text }) => JSON.parse(text));
  for (const chunk of chunks) {
    assertCompletion(chunk, ['usage']);
    for (const field of ['id', 'created', 'model']) assert.equal(chunk[field], chunks[0][field]);
  }
  const usage = chunks.at(-1).choices.length === 0 ? chunks.pop().usage : undefined;
  assert.ok(chunks.every(({ choices, usage: told }) => choices.length === 1 && !told));
  const parts = chunks.map(({ choices: [choice] }) => choice);
  const count = Math.max(...parts.map(({ index }) => index)) + 1;
  const choices = Array.from({ length: count }, (_, wanted) => {
    const own = parts.filter(({ index }) => index === wanted);
    const reasons = own.map(({ finish_reason: reason }) => reason);
    assert.equal(typeof reasons.pop(), 'string', 'the last chunk of a choice tells how it ended');
    assert.ok(reasons.every((reason) => reason === null));
    return { index: wanted, text: own.map(({ text }) => text).join(''), finish: own.at(-1).finish_reason };
  });
  return { choices, usage, model: chunks[0].model, chunks };
}

/** Checks a whole answer, streamed or not: {choices: [{index, text, finish}], usage, model, result}. */
export function readCompletion(result) {
  assert.equal(result.status, 200, result.text);
  if (result.data) return { ...readCompletionStream(result), ignored: ignoredOf(result), result };
  assertCompletion(result.json, ['usage']);
  assert.ok(result.json.usage);
  const choices = result.json.choices.map(({ index, text, finish_reason: finish }, i) => {
    assert.equal(index, i);
    return { index, text, finish };
  });
  return { ...result.json, choices, ignored: ignoredOf(result), result };
}

/** An error in OpenAI's shape. */
export function assertOpenAIError(result, status, param, says = /./) {
  assert.equal(result.status, status, result.text);
  assertKeys(result.json, ['error']);
  assertError(result.json.error);
  assert.match(result.json.error.message, says);
  if (param instanceof RegExp) assert.match(result.json.error.param ?? 'null', param, result.text);
  else if (param !== undefined) assert.equal(result.json.error.param, param, result.text);
}

/** Runs the body for a client that streams and for one that does not, at the same time. */
export const bothWays = (Client) => (t, body, options = {}) =>
  Promise.all([true, false].map((stream) => body(new Client(t, { ...options, stream }), stream)));
