// What the Messages API says reaches the client: every field of its stream, by the SDK's own types, arrives in each dialect, streamed
// and not, or stands in the one table below with the reason why it does not. A new version of the SDK shows here what is new. Errors
// are the business of faults.test.mjs.

import assert from 'node:assert/strict';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { suite } from './harness.mjs';
import { Declarations } from './sdk_types.mjs';

export const answerFields = suite();
const { test } = answerFields;

const types = new Declarations('@anthropic-ai/sdk', 'resources/beta/messages/messages.d.ts');
const EVENTS = types.alternativesOf('BetaRawMessageStreamEvent').map((type) => ({
  name: types.fieldsOf(type).type.slice(1, -1),
  type,
}));
/** Without what is form, and each dialect's own: who speaks, and the numbers of the blocks. Reasons have a test of their own. */
const FORM = /^content_block_\w+\.index$|\.role$|\.stop_reason$/;
const LEAVES = EVENTS.flatMap(({ name, type }) => types.leavesOf(type, name)).filter(({ path }) => !FORM.test(path));

// ---- what does not arrive ------------------------------------------------------------------------

const OPENAI = ['chat completions', 'responses', 'completions'];
const OTHERS = [...OPENAI, 'ollama'];
const ALL = [...OTHERS, 'messages'];
const START = 'message_start.message';
const BLOCK = (kind) => `content_block_start.content_block(${kind})`;
const DELTA = (kind) => `content_block_delta.delta(${kind})`;
const CITATION = (kind) => `${DELTA('citations_delta')}.citation(${kind})`;

/** `of`: fields, or what holds them; `in`: dialects, with ` streamed` or ` whole` one way of answering. */
const LOST = [
  { of: [`${START}.id`], in: ALL, why: 'an answer may be made of several messages, so it has an id of its own' },
  { of: [`${START}.content`], in: ALL, why: 'empty at the start: the blocks come in events of their own' },
  {
    of: ['stop_sequence', 'stop_details', 'container'].map((name) => `${START}.${name}`),
    in: ALL,
    why: 'null at the start: the end tells it',
  },
  {
    of: ['input_tokens', 'output_tokens', 'output_tokens_details', 'cache_creation_input_tokens', 'cache_read_input_tokens', 'iterations', 'fallback_credit', 'server_tool_use'].map(
      (name) => `${START}.usage.${name}`,
    ),
    in: [...OTHERS, 'messages whole'],
    why: 'the end counts anew',
  },
  {
    of: ['message_delta.usage.iterations', 'message_delta.usage.fallback_credit', 'message_delta.usage.server_tool_use', 'message_delta.delta.container'],
    in: OTHERS,
    why: 'about tools and models of the API\'s own side, for which the others have no field',
  },
  {
    of: [`${START}.usage.inference_geo`, `${START}.usage.service_tier`, `${START}.usage.speed`],
    in: OTHERS,
    why: 'places and tiers of Anthropic\'s, for which the others have no names',
  },
  { of: [`${START}.usage.cache_creation`], in: ['responses', 'ollama'], why: 'the lifetimes of a cache have no field there' },
  {
    of: [`${START}.context_management`, 'message_delta.context_management', `${START}.diagnostics`],
    in: ALL,
    why: 'answers a field of the request that x-ignored-params names',
  },
  {
    of: [`${START}.input_transformations`, 'message_delta.input_transformations', `${DELTA('thinking_delta')}.estimated_tokens`],
    in: ALL,
    why: 'of a beta that the CLI asks for, if anyone',
  },
  { of: ['message_delta.delta.stop_sequence'], in: OTHERS, why: 'the others tell that it stopped, not where' },
  { of: ['message_delta.delta.stop_details.fallback_credit_token'], in: ALL, why: 'the CLI keeps it to itself' },
  {
    of: ['category', 'fallback_has_prefill_claim', 'recommended_model'].map((name) => `message_delta.delta.stop_details.${name}`),
    in: OTHERS,
    why: 'the others tell a refusal in words alone',
  },
  { of: ['message_delta.delta.stop_details.explanation'], in: ['ollama'], why: 'told by `done_reason` alone' },
  { of: ['message_delta.usage.output_tokens_details'], in: ['ollama'], why: 'thoughts are counted with the output' },
  { of: ['message_delta.delta.stop_details.explanation'], in: ['completions'], why: 'a completion is text alone' },
  { of: ['message_delta.delta.stop_details.explanation'], in: ['responses'], why: 'told by `incomplete_details.reason` alone' },
  {
    of: ['server_tool_use', 'web_search_tool_result', 'web_fetch_tool_result', 'advisor_tool_result', 'code_execution_tool_result', 'bash_code_execution_tool_result', 'text_editor_code_execution_tool_result', 'tool_search_tool_result', 'mcp_tool_use', 'mcp_tool_result', 'mcp_tool_listing', 'container_upload'].map(
      BLOCK,
    ),
    in: ALL,
    why: 'of tools of the API\'s own, which no request can ask for without --web',
  },
  { of: [BLOCK('compaction'), DELTA('compaction_delta')], in: ALL, why: 'no request can ask for it here: x-ignored-params names `compaction`' },
  { of: [BLOCK('fallback')], in: ALL, why: 'the CLI tells it in no event' },
  {
    of: [`${BLOCK('text')}.text`, `${BLOCK('text')}.citations`, BLOCK('thinking'), `${BLOCK('tool_use')}.input`],
    in: ALL,
    why: 'empty at the start: the deltas say it',
  },
  {
    of: [`${BLOCK('tool_use')}.caller`, `${BLOCK('tool_use')}.toolset_name`],
    in: ALL,
    why: 'tells calls of a client\'s tool from those of the API\'s own, which there are none of',
  },
  {
    of: ['char_location', 'page_location', 'content_block_location', 'search_result_location'].map(CITATION),
    in: OTHERS,
    why: 'nothing in their requests asks for citations of documents',
  },
  { of: [CITATION('web_search_result_location')], in: ['completions', 'ollama'], why: 'no request of theirs can ask for a search' },
  {
    of: ['cited_text', 'encrypted_index'].map((name) => `${CITATION('web_search_result_location')}.${name}`),
    in: ['chat completions', 'responses'],
    why: 'their citations have a place, a title and an address',
  },
  {
    of: [DELTA('signature_delta'), BLOCK('redacted_thinking')],
    in: ['chat completions', 'completions', 'ollama'],
    why: 'no field takes it back in the next request',
  },
  {
    of: [DELTA('thinking_delta'), DELTA('input_json_delta'), BLOCK('tool_use')],
    in: ['completions'],
    why: 'a completion is text alone',
  },
];

/** Where each reason of the API's turns up, and under which name. */
const REASONS = {
  end_turn: { chat: 'stop', responses: 'completed' },
  stop_sequence: { chat: 'stop', responses: 'completed' },
  pause_turn: { chat: 'stop', responses: 'completed' },
  compaction: { chat: 'stop', responses: 'completed' },
  max_tokens: { chat: 'length', responses: 'incomplete max_output_tokens' },
  model_context_window_exceeded: { chat: 'length', responses: 'incomplete max_output_tokens' },
  tool_use: { chat: 'tool_calls', responses: 'completed' },
  refusal: { chat: 'content_filter', responses: 'incomplete content_filter' },
};

// ---- what the API sends --------------------------------------------------------------------------

const TOOL = 'tool_of_the_client';
const OWN_VALUES = {
  'content_block_start.content_block(tool_use).name': TOOL,
  'content_block_delta.delta(input_json_delta).partial_json': '{"city":"mark_of_the_input"}',
};

/** Each field's own value, which is known again wherever it turns up. Counts of tokens are bits: dialects tell sums of them. */
function valueOf({ path, type }, at) {
  if (path in OWN_VALUES) return OWN_VALUES[path];
  const starts = path.startsWith(START); // what both ends tell is told apart
  if (Array.isArray(type)) return type.at(starts && type.length > 3 ? 0 : -1);
  if (type === 'boolean') return !starts;
  if (type === 'number') return /\.usage\.(\w+_tokens|cache_creation\.\w+|output_tokens_details\.\w+)$/.test(path) ? BITS.next(path) : 5_000_011 + 7 * at;
  return /\.input$/.test(path) ? {} : `mark_${at}_`; // the API sends it in pieces
}

const BITS = {
  given: new Map(),
  next(path) {
    if (!this.given.has(path)) this.given.set(path, 2 ** (24 + this.given.size));
    return this.given.get(path);
  },
};

const VALUES = new Map(LEAVES.map((leaf, at) => [leaf.path, valueOf(leaf, at)]));

/** Puts a value where a path says; false where an alternative of that field stands there already. */
function put(object, path, value) {
  const steps = [...path.matchAll(/\.(\w+)((?:\[\])*)(?:\((\w+)\))?/g)];
  let holder = object;
  for (const [at, [, name, list, kind]] of steps.entries()) {
    const last = at === steps.length - 1;
    const fresh = last ? value : kind && /^[a-z]/.test(kind) ? { type: kind } : {};
    if (name in holder && Array.isArray(holder[name]) !== Boolean(list)) return false;
    if (list) {
      const all = (holder[name] ??= []);
      const same = last ? undefined : all.find(({ type }) => type === fresh.type);
      if (!same) all.push(fresh);
      holder = same ?? fresh;
      continue;
    }
    if (!last && holder[name] && holder[name].type !== fresh.type && kind) return false;
    holder = holder[name] = last ? value : (holder[name] ?? fresh);
  }
  return true;
}

/** The object that holds the values of all fields below a path. */
function built(prefix, without = /^$/) {
  const object = {};
  for (const { path } of LEAVES)
    if (path.startsWith(prefix) && !without.test(path)) put(object, path.slice(prefix.length), VALUES.get(path));
  return object;
}

const kinds = (pattern) => [...new Set(LEAVES.map(({ path }) => pattern.exec(path)?.[1]).filter(Boolean))];
const partOf = (kind, path) => ({ type: kind, ...built(`${path}(${kind})`) });
const deltaOf = (kind) => partOf(kind, 'content_block_delta.delta');
const citations = kinds(/\(citations_delta\)\.citation\((\w+)\)/).map((kind) => ({
  type: 'citations_delta',
  citation: partOf(kind, 'content_block_delta.delta(citations_delta).citation'),
}));
const DELTAS = {
  thinking: [deltaOf('thinking_delta'), deltaOf('signature_delta')],
  text: [deltaOf('text_delta'), ...citations],
  tool_use: [deltaOf('input_json_delta')],
  compaction: [deltaOf('compaction_delta')],
};

/** The events of an answer with these blocks, in which every field is set; `reason` why it ends. */
function answerOf(id, blocks, reason) {
  const end = built('message_delta');
  end.delta.stop_reason = reason;
  return [
    { type: 'message_start', message: { ...built(START, /\.content\[\]/), id, content: [], role: 'assistant' } },
    ...blocks.flatMap((kind, index) => [
      { type: 'content_block_start', index, content_block: partOf(kind, 'content_block_start.content_block') },
      ...(DELTAS[kind] ?? []).map((one) => ({ type: 'content_block_delta', index, delta: one })),
      { type: 'content_block_stop', index },
    ]),
    { type: 'message_delta', ...end },
    { type: 'message_stop' },
  ];
}
const BLOCKS = kinds(/^content_block_start\.content_block\((\w+)\)/);

// ---- what the client gets ------------------------------------------------------------------------

const parameters = { type: 'object', properties: { city: { type: 'string' } } };

/** How each dialect is asked for all that it can tell. */
const DIALECTS = {
  'chat completions': {
    path: '/v1/chat/completions',
    body: (text, stream) => ({
      model: MODEL,
      messages: [{ role: 'user', content: text }],
      tools: [{ type: 'function', function: { name: TOOL, parameters } }],
      reasoning_effort: 'high',
      ...(stream ? { stream, stream_options: { include_usage: true } } : {}),
    }),
  },
  messages: {
    path: '/v1/messages',
    body: (text, stream) => ({
      model: MODEL,
      max_tokens: 2000,
      messages: [{ role: 'user', content: text }],
      tools: [{ name: TOOL, input_schema: parameters }],
      thinking: { type: 'enabled', budget_tokens: 1024 },
      stream,
    }),
  },
  responses: {
    path: '/v1/responses',
    body: (text, stream) => ({
      model: MODEL,
      input: text,
      tools: [{ type: 'function', name: TOOL, parameters }],
      reasoning: { effort: 'high', summary: 'auto' },
      include: ['reasoning.encrypted_content'],
      stream,
    }),
  },
  ollama: {
    path: '/api/chat',
    body: (text, stream) => ({
      model: MODEL,
      messages: [{ role: 'user', content: text }],
      tools: [{ type: 'function', function: { name: TOOL, parameters } }],
      think: 'high',
      stream,
    }),
  },
  completions: {
    path: '/v1/completions',
    body: (text, stream) => ({ model: MODEL, prompt: text, ...(stream ? { stream, stream_options: { include_usage: true } } : {}) }),
  },
};

/** All texts, numbers and flags of an answer with the last two of their names, sealed texts opened. */
function scalarsOf(value, names = []) {
  const name = names.at(-1);
  if (/^(created|created_at|cost|\w+_duration)$/.test(name)) return [];
  if (name === 'encrypted_content' && value) return [[name, Buffer.from(value, 'base64').toString()]];
  if (value && typeof value === 'object')
    return Object.entries(value).flatMap(([key, one]) => scalarsOf(one, Array.isArray(value) ? names : [...names, key]));
  return [[names.slice(-2).join('.'), value]];
}

/** A value that others may have too counts under its own name alone. */
function arrives(path, scalars) {
  const sent = VALUES.get(path);
  const [mark] = /mark_\w+|tool_of_\w+/.exec(sent) ?? [];
  const names = path.replace(/\[\]|\(\w+\)/g, '').split('.').slice(-2).join('.');
  return scalars.some(([name, got]) => {
    if (BITS.given.has(path)) return typeof got === 'number' && Math.floor(got / sent) % 2 === 1;
    if (mark) return typeof got === 'string' && got.includes(mark);
    return got === sent && (typeof sent === 'number' || name === names);
  });
}

const WAYS = Object.keys(DIALECTS).flatMap((name) => [
  { name, stream: true, way: `${name} streamed` },
  { name, stream: false, way: `${name} whole` },
]);

/** What a client gets of an answer of the API. */
async function ask(t, { name, stream, way }, reason, blocks) {
  const { path, body } = DIALECTS[name];
  const key = `${way} ${reason}`.replaceAll(' ', '-');
  const taken = blocks.filter((kind) => name !== 'completions' || kind !== 'tool_use'); // no tools, so no call of one
  t.api.keep(key, answerOf(`msg_${key}`, taken, reason));
  const result = await t.send({ path, body: body(t.text(`events of=${key}`), stream) }).done;
  assert.equal(result.status, 200, `${way}: ${result.text}`);
  assert.equal(result.error, undefined, way);
  if (way !== 'ollama streamed') return result;
  return { ...result, data: result.text.trimEnd().split('\n').map((line) => JSON.parse(line)) };
}

test('every field of the stream arrives, or stands in the table with its reason; and no row is out of date', async (t) => {
  const rows = LOST.flatMap(({ of, in: places }) => of.flatMap((field) => places.map((place) => ({ field, place, used: false }))));
  const faults = [];
  const check = async (one) => {
    const result = await ask(t, one, one.name === 'completions' ? 'end_turn' : 'tool_use', BLOCKS);
    const scalars = scalarsOf(result.data ?? result.json);
    for (const { path } of LEAVES) {
      const below = rows.filter(({ field, place }) => path.startsWith(field) && /^$|^\W/.test(path.slice(field.length)) && one.way.startsWith(place));
      below.forEach((row) => (row.used = true));
      const arrived = arrives(path, scalars);
      if (!arrived && !below.length) faults.push(`${one.way}: ${path} is lost`);
      if (arrived && below.length) faults.push(`${one.way}: ${path} arrives, although the table says that it does not`);
    }
    if (one.way === 'messages streamed')
      assert.deepEqual([...new Set(result.frames.map(({ event }) => event).filter((event) => event !== 'ping'))].sort(), EVENTS.map(({ name }) => name).sort());
  };
  await Promise.all(WAYS.map(check));
  for (const { field, place, used } of rows) if (!used) faults.push(`the types have no ${field} (${place}) any more`);
  assert.equal(faults.join('\n'), '');
});

test('every reason why the API ends an answer reaches the client', async (t) => {
  const known = types.leavesOf('BetaRawMessageDeltaEvent').find(({ path }) => path.endsWith('.stop_reason')).type;
  assert.deepEqual(Object.keys(REASONS).sort(), [...known].sort());
  const told = {
    'chat completions': (whole) => whole.choices[0].finish_reason,
    completions: (whole) => whole.choices[0].finish_reason,
    messages: (whole) => whole.stop_reason,
    ollama: (whole) => whole.done_reason,
    responses: ({ status, incomplete_details: why }) => (why ? `${status} ${why.reason}` : status),
  };
  for (const [reason, { chat, responses }] of Object.entries(REASONS)) {
    const check = async (one) => {
      const call = reason === 'tool_use';
      if (call && one.name === 'completions') return;
      const { data, json } = await ask(t, one, reason, call ? ['tool_use'] : ['text']);
      const end = data?.filter((event) => event.choices?.[0]?.finish_reason || event.done || event.type === 'message_delta' || /^response\.(completed|incomplete)$/.test(event.type)).pop();
      const expected = { messages: reason, responses, ollama: call ? 'stop' : chat }[one.name] ?? chat;
      assert.equal(told[one.name](json ?? end.response ?? end.delta ?? end), expected, `${one.way}: ${reason}`);
    };
    await Promise.all(WAYS.map(check));
  }
});
