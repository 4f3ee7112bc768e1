// A loopback Messages API that answers what it is told to. No dependencies.
//
//   import { startMessagesApi } from './messages_api.mjs';
//   const api = await startMessagesApi();
//   api.script('plain text="Hi" deltas=4 delay=20');           // from now on, for every request
//   api.script([{ name: 'error', status: 429 }, 'plain']);     // one scenario per request, in order
//   api.script((request) => ({ name: 'echo' }));               // or computed
//
// A client that cannot reach script() picks by itself, in the text of the last user message:
//   [[scenario:drop after=2 then=other]]
// That directive wins over script(function) and script(scenario), not over a queue. Several scenarios, one for each call
// that the turn makes, are divided by " | "; the last one stands for all further calls:
//   [[scenario:tool_use tool=get_weather | plain text="It is sunny."]]
// Calls are counted by the assistant messages that follow the directive, so turns that run at the same time do not mix.
//
// As the API does, it refuses with a 400 what no model takes (see `refusalOf`), and ends a `plain` text at a stop sequence of
// the request or at its max_tokens (four characters a token).
//
// Run alone it prints its URL: node messages_api.mjs --port 0
//
// Options of every scenario that answers a message (times in ms):
//   text, deltas (number of pieces), delay (between pieces), ttft (before the first byte), stop_reason, stop_sequence,
//   input, output, thinking_tokens (part of output), cache_read, cache_creation, ephemeral_1h (part of cache_creation),
//   ping=true, split (bytes per TCP write), together (wait until so many calls with this text have come), headers (JSON object)
// Scenarios:
//   plain      the text
//   echo       a JSON dump {model, system:[text], messages:[{role,text}], tools:[name]} of what arrived
//   utf8       multi-byte text, one character per delta, cut in the middle of characters on the wire
//   cited      a text with citations (a JSON array of them)
//   thinking   a thinking block (thinking, signature; thinking="" with a signature alone), then the text;
//              redacted: the data of a redacted_thinking block before it
//   searched   the API's own search of the web, where the request offers one: before, the search (query), what it found (pages: how
//              many; failed: an error code instead), a text that cites page after page, and one without (after); with calls as tool_use
//   fetched    the API's own fetch of a page (url), and a text
//   max_tokens, stop_sequence, refusal, empty (blocks=0: no content block at all)
//   tool_use   tool (name; default the first one offered), args (JSON object), count, thinking and before (text) first,
//              after (text) last; cut (characters of a call's JSON that are sent); calls: a JSON array of {tool, args} instead of tool, args and count,
//              or {of, args} with a tool's description
//   structured value (JSON): a call of the tool StructuredOutput; before
//   error      status, message, type, retry_after (s), headers (JSON object), times (fail only the first k attempts), should_retry (true|false),
//              until (a word: fails until heal(word) is called; a name for those who cannot count the retries)
//   error_event  after (deltas), type, message, times; a call that is not streamed gets a 529
//   drop       after (-1: before the response head, 0: after message_start, k: after k deltas), times (default 1),
//              then=same|other|nostream (nostream: every streamed attempt is dropped)
//   hang       after (-1: no response head, 0: after message_start, k: after k deltas)
//   long       bytes (default 2,000,000)
//   events     of: the name under which keep(name, events) was given the events of the stream; they are sent as they are

import http from 'node:http';
import { fileURLToPath } from 'node:url';

const ERROR_TYPES = {
  400: 'invalid_request_error',
  401: 'authentication_error',
  403: 'permission_error',
  404: 'not_found_error',
  413: 'request_too_large',
  429: 'rate_limit_error',
  500: 'api_error',
  504: 'timeout_error',
  529: 'overloaded_error',
};
const ERROR_MESSAGES = {
  400: 'messages.0.content: loopback says this is bad',
  401: 'invalid x-api-key',
  403: 'loopback forbids this',
  404: 'model: no-such-model',
  413: 'Request exceeds the maximum size',
  429: 'loopback rate limit reached',
  500: 'Internal server error',
  504: 'Request timed out',
  529: 'Overloaded',
};
const UTF8_TEXT = 'Grüße, 世界! 👩‍👩‍👧‍👦 🇨🇭 é ¡olé! \u2028 – 𝒯𝓊𝓇𝓃 “end”';

/** The text of a scenario: directive('plain', {text: 'a b'}) → `plain text="a\u0020b"`. A value holds no blank and no `|`, a text no `]`. */
export function directive(name, options = {}) {
  const escaped = (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`;
  const values = Object.entries(options).filter(([, one]) => one !== undefined);
  const text = [
    name,
    ...values.map(([key, one]) => `${key}=${JSON.stringify(one).replaceAll(typeof one === 'string' ? /[\s|\]]/g : /[\s|]/g, escaped)}`),
    '',
  ].join(' ');
  if (text.includes(']]')) throw new Error(`arrays in arrays would end the directive: ${text}`);
  return text;
}

/** `plain text="a b" deltas=3` → {name:'plain', text:'a b', deltas:3} */
export function parseScenario(text) {
  const [, name, rest] = /^\s*([\w-]+)\s*([^]*)$/.exec(text);
  const scenario = { name };
  for (const [, key, value] of rest.matchAll(/(\w+)=("(?:[^"\\]|\\.)*"(?=\s|$)|\S+)/g)) {
    try {
      scenario[key] = JSON.parse(value);
    } catch {
      scenario[key] = value;
    }
  }
  return scenario;
}

const blocksOf = (content) => (typeof content === 'string' ? [{ type: 'text', text: content }] : (content ?? []));

/** All text of a message's content, blocks joined by newlines. */
export function textOf(content) {
  return blocksOf(content)
    .filter((block) => block.type === 'text')
    .map((block) => block.text)
    .join('\n');
}

const systemOf = (body) => blocksOf(body.system).map((block) => block.text);

const DIRECTIVE = /\[\[scenario:([^]*?)\]\]/g;

/**
 * What the conversation asks this call to play. A directive of several scenarios holds for the calls after tool results and after
 * what the CLI says by itself too; any other only where it stands in the last user message.
 */
function directiveOf(body) {
  const messages = body?.messages ?? [];
  const last = messages.findLastIndex(({ role }) => role === 'user');
  for (let at = last; at >= 0; at--) {
    if (messages[at].role !== 'user') continue;
    const found = [...textOf(messages[at].content).matchAll(DIRECTIVE)].pop()?.[1];
    if (found === undefined) continue;
    const scenarios = found.split(/\s\|\s/);
    if (scenarios.length === 1) return at === last ? found : undefined;
    const calls = messages.slice(at).filter(({ role }) => role === 'assistant').length;
    return scenarios[Math.min(calls, scenarios.length - 1)];
  }
  return undefined;
}

function lastUserText(body) {
  const user = (body?.messages ?? []).filter((message) => message.role === 'user').pop();
  return user ? textOf(user.content) : '';
}

/** Cuts text in `count` pieces of whole code points. */
function pieces(text, count) {
  const points = Array.from(text);
  const size = Math.max(1, Math.ceil(points.length / Math.max(1, count)));
  const result = [];
  for (let i = 0; i < points.length; i += size) result.push(points.slice(i, i + size).join(''));
  return result;
}

function usageOf(scenario) {
  const creation = scenario.cache_creation ?? 0;
  const hour = scenario.ephemeral_1h ?? 0;
  return {
    input_tokens: scenario.input ?? 11,
    cache_creation_input_tokens: creation,
    cache_read_input_tokens: scenario.cache_read ?? 0,
    cache_creation: { ephemeral_5m_input_tokens: creation - hour, ephemeral_1h_input_tokens: hour },
    output_tokens: scenario.output ?? 7,
    ...(/^(search|fetch)ed$/.test(scenario.name)
      ? { server_tool_use: { web_search_requests: Number(scenario.name === 'searched'), web_fetch_requests: Number(scenario.name === 'fetched') } }
      : {}),
    ...(scenario.thinking_tokens ? { output_tokens_details: { thinking_tokens: scenario.thinking_tokens } } : {}),
    service_tier: 'standard',
  };
}

function toolBlocks(scenario, body, nextId) {
  const same = { tool: scenario.tool ?? body.tools?.[0]?.name ?? 'no_tool_offered', args: scenario.args };
  const calls = scenario.calls ?? Array.from({ length: scenario.count ?? 1 }, () => same);
  return calls.map(({ tool, of, args }) => ({
    type: 'tool_use',
    id: `toolu_loopback_${nextId()}`,
    name: tool ?? body.tools?.find(({ description }) => description === of)?.name ?? 'no_such_tool',
    input: args ?? { city: 'Zürich' },
  }));
}

/** The pages that a search of the loopback API finds. */
export const pageOf = (at) => ({ url: `https://page-${at}.example/a?b=c`, title: `Page ${at} – “ü”` });

function searchedBlocks({ query = 'green cats', pages = 2, failed, before, text = 'Grüne Katzen 🐈.', after = ' That is all.', calls }, body, nextId) {
  if (!body.tools?.some(({ type }) => type?.startsWith('web_search_2'))) return textBlocks('I cannot search.');
  const id = `srvtoolu_loopback_${nextId()}`;
  const found = Array.from({ length: pages }, (_, at) => pageOf(at));
  const content = failed
    ? { type: 'web_search_tool_result_error', error_code: failed }
    : found.map((page) => ({ type: 'web_search_result', ...page, encrypted_content: 'enc-loopback', page_age: null }));
  const citing = (page) => ({ type: 'web_search_result_location', ...page, encrypted_index: 'idx-loopback', cited_text: 'Cats are green' });
  return [
    ...textBlocks(before),
    { type: 'server_tool_use', id, name: 'web_search', input: { query } },
    { type: 'web_search_tool_result', tool_use_id: id, content },
    ...found.map((page) => ({ type: 'text', text, ...(failed ? {} : { citations: [citing(page)] }) })),
    ...textBlocks(after),
    ...(calls ? toolBlocks({ calls }, body, nextId) : []),
  ];
}

function fetchedBlocks({ url = pageOf(0).url, text = 'It says green.' }, nextId) {
  const id = `srvtoolu_loopback_${nextId()}`;
  const document = { type: 'document', source: { type: 'text', media_type: 'text/plain', data: 'Cats are green.' }, title: 'Page' };
  return [
    { type: 'server_tool_use', id, name: 'web_fetch', input: { url } },
    { type: 'web_fetch_tool_result', tool_use_id: id, content: { type: 'web_fetch_result', url, content: document, retrieved_at: null } },
    ...textBlocks(text),
  ];
}

const SIGNATURE = 'c2lnbmF0dXJl';
const thinkingBlocks = ({ thinking, signature = SIGNATURE, redacted: data }) => [
  ...(data === undefined ? [] : [{ type: 'redacted_thinking', data }]),
  ...(thinking === undefined ? [] : [{ type: 'thinking', thinking, signature }]),
];
const textBlocks = (text) => (text ? [{ type: 'text', text }] : []);

/** A text as a model ends it that is told to stop: at a stop sequence, or when it may say no more. */
function stoppedText(text, { stop_sequences: stops = [], max_tokens: most = Infinity }) {
  const first = stops
    .map((stop) => ({ stop, at: text.indexOf(stop) }))
    .filter(({ at }) => at >= 0)
    .sort((a, b) => a.at - b.at)[0];
  const cut = text.slice(0, first?.at);
  if (cut.length > most * 4)
    return { content: [{ type: 'text', text: cut.slice(0, most * 4) }], stop_reason: 'max_tokens' };
  const content = [{ type: 'text', text: cut }];
  return first ? { content, stop_reason: 'stop_sequence', stop_sequence: first.stop } : { content };
}

/** What the scenario answers, as the content of a message and its stop reason. */
function messageOf(scenario, body, nextId) {
  const text = (fallback) => [{ type: 'text', text: scenario.text ?? fallback }];
  switch (scenario.name) {
    case 'echo': {
      const messages = body.messages.map((message) => ({ role: message.role, text: textOf(message.content) }));
      const tools = (body.tools ?? []).map((tool) => tool.name);
      return { content: text(JSON.stringify({ model: body.model, system: systemOf(body), messages, tools })) };
    }
    case 'utf8':
      return { content: text(UTF8_TEXT) };
    case 'thinking':
      return {
        content: [
          ...thinkingBlocks({ thinking: 'Let me think about it.', ...scenario }),
          ...text('I thought about it.'),
        ],
      };
    case 'max_tokens':
      return { content: text('This answer is cut'), stop_reason: 'max_tokens' };
    case 'stop_sequence':
      return {
        content: text('Before the stop'),
        stop_reason: 'stop_sequence',
        stop_sequence: scenario.stop_sequence ?? 'END',
      };
    case 'refusal':
      return { content: text('I cannot'), stop_reason: 'refusal' };
    case 'empty':
      return { content: scenario.blocks === 0 ? [] : [{ type: 'text', text: '' }] };
    case 'tool_use':
      return {
        content: [
          ...thinkingBlocks(scenario),
          ...textBlocks(scenario.before),
          ...toolBlocks(scenario, body, nextId),
          ...textBlocks(scenario.after),
        ],
        stop_reason: 'tool_use',
      };
    case 'structured': {
      const call = toolBlocks({ tool: 'StructuredOutput', args: scenario.value }, body, nextId);
      return { content: [...textBlocks(scenario.before), ...call], stop_reason: 'tool_use' };
    }
    case 'long': {
      const line = 'The quick brown fox jumps over the lazy dog. ';
      return { content: text(line.repeat(Math.ceil((scenario.bytes ?? 2_000_000) / line.length))) };
    }
    case 'searched':
      return { content: searchedBlocks(scenario, body, nextId), ...(scenario.calls ? { stop_reason: 'tool_use' } : {}) };
    case 'fetched':
      return { content: fetchedBlocks(scenario, nextId) };
    case 'cited':
      return { content: [{ ...text('It is green.')[0], citations: scenario.citations }] };
    default:
      return stoppedText(text('Hello from the loopback API.')[0].text, body);
  }
}

/** The deltas of one content block, in the API's own terms: of a call without arguments not a byte of them. */
function deltasOf(block, count, cut) {
  if (block.type === 'thinking') {
    return [
      ...pieces(block.thinking, count).map((thinking) => ({ type: 'thinking_delta', thinking })),
      { type: 'signature_delta', signature: block.signature },
    ];
  }
  if (block.type === 'redacted_thinking' || block.type.endsWith('_tool_result')) return [];
  if (block.type.endsWith('tool_use')) {
    const input = JSON.stringify(block.input).slice(0, cut);
    return ['', ...(input === '{}' ? [] : pieces(input, count))].map((partial_json) => ({
      type: 'input_json_delta',
      partial_json,
    }));
  }
  return [
    ...pieces(block.text, count).map((text) => ({ type: 'text_delta', text })),
    ...(block.citations ?? []).map((citation) => ({ type: 'citations_delta', citation })),
  ];
}

const emptied = (block) =>
  ({
    text: { type: 'text', text: '' },
    thinking: { type: 'thinking', thinking: '', signature: '' },
    redacted_thinking: block,
    tool_use: { ...block, input: {} },
    server_tool_use: { ...block, input: {} },
  })[block.type] ?? block;

const defaultDeltas = { utf8: Infinity, long: 2000 };

const NAME = /^[\w-]{1,128}$/;
const IMAGE_TYPES = ['image/jpeg', 'image/png', 'image/gif', 'image/webp'];
const BASE64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/;
/** Models that take temperature and top_p together, and a fixed thinking budget only. */
const isOld = (model) => /^claude-3|^claude-(opus|sonnet)-4-(0|2025)/.test(model);

function sourceRefusal({ type, source }, where) {
  if (source?.type === 'url')
    return /^https?:\/\//.test(source.url) ? undefined : `${where}.source.url: Only HTTP(S) URLs are supported`;
  if (source?.type === 'text' && type === 'document')
    return source.media_type === 'text/plain' && source.data ? undefined : `${where}.source.text: Input should be text/plain`;
  if (source?.type !== 'base64') return `${where}.source: Field required`;
  const types = type === 'image' ? IMAGE_TYPES : ['application/pdf'];
  if (!types.includes(source.media_type)) return `${where}.source.base64.media_type: Input should be ${types}`;
  return BASE64.test(source.data) && source.data ? undefined : `${where}.source.base64: invalid base64 data`;
}

function blockRefusal(block, where) {
  if (block.type === 'document' && block.source?.type === 'content') return blockRefusals(block.source.content, `${where}.source`);
  if (block.type === 'image' || block.type === 'document') return sourceRefusal(block, where);
  if (block.type === 'search_result')
    return block.source && block.title ? blockRefusals(block.content, where) : `${where}.search_result: Field required`;
  if (block.type === 'text' && !block.text) return `${where}: text content blocks must be non-empty`;
  if (block.type === 'thinking' && !block.signature) return `${where}.thinking.signature: Field required`;
  if (block.type === 'redacted_thinking' && !block.data) return `${where}.redacted_thinking.data: Field required`;
  if (block.type === 'tool_use' && !NAME.test(block.name)) return `${where}.name: String should match pattern`;
  if (block.type === 'tool_use' && !/^[\w-]+$/.test(block.id)) return `${where}.id: String should match pattern`;
  return block.type === 'tool_result' ? blockRefusals(block.content, where) : undefined;
}

function blockRefusals(content, where) {
  if (content === '') return undefined;
  return blocksOf(content)
    .map((inner, i) => blockRefusal(inner, `${where}.content.${i}`))
    .find(Boolean);
}

/** What the API itself has found comes back as it was, after its search. */
function searchRefusal({ messages }) {
  for (const [at, { content }] of messages.entries()) {
    const blocks = blocksOf(content);
    const of = (type) => blocks.filter((block) => type.test(block.type));
    const searches = of(/^server_tool_use$/).map(({ id }) => id);
    const results = of(/^web_(search|fetch)_tool_result$/).map(({ tool_use_id: id }) => id);
    if (`${searches}` !== `${results}`) return `messages.${at}: \`server_tool_use\` and its result must be in one message`;
    const pages = of(/^web_search_tool_result$/).flatMap(({ content: found }) => (Array.isArray(found) ? found : []));
    if (pages.some(({ encrypted_content: sealed }) => sealed !== 'enc-loopback')) return `messages.${at}: Invalid \`encrypted_content\``;
  }
  return undefined;
}

/** Each call has its result in the next message, and each result its call in the message before. */
function pairingRefusal(messages) {
  const idsOf = (message, type, key) =>
    blocksOf(message?.content)
      .filter((block) => block.type === type)
      .map((block) => block[key]);
  for (const [at, message] of messages.entries()) {
    const called = idsOf(message, 'tool_use', 'id');
    const answered = idsOf(messages[at + 1], 'tool_result', 'tool_use_id');
    const missing = called.filter((id) => !answered.includes(id));
    if (missing.length)
      return `messages.${at}: \`tool_use\` ids were found without \`tool_result\` blocks immediately after: ${missing}`;
    const results = idsOf(message, 'tool_result', 'tool_use_id');
    const known = idsOf(messages[at - 1], 'tool_use', 'id');
    const surplus = results.filter((id, i) => !known.includes(id) || results.indexOf(id) !== i);
    if (surplus.length) return `messages.${at}: unexpected \`tool_use_id\` found in \`tool_result\` blocks: ${surplus}`;
    const kinds = blocksOf(message.content).map(({ type }) => type === 'tool_result');
    if (kinds.lastIndexOf(true) > kinds.indexOf(false) && kinds.includes(false) && kinds.includes(true))
      return `messages.${at}: \`tool_result\` blocks must come first`;
  }
  return undefined;
}

function samplingRefusal({ model, temperature, top_p, thinking, max_tokens, stop_sequences = [], tool_choice, tools }) {
  const given = (value) => value !== undefined && value !== null;
  const thinks = thinking?.type === 'enabled' || thinking?.type === 'adaptive';
  if (!(max_tokens >= 1)) return 'max_tokens: Input should be greater than or equal to 1';
  if (given(temperature) && !(temperature >= 0 && temperature <= 1)) return 'temperature: range: 0..1';
  if (given(top_p) && !(top_p >= 0 && top_p <= 1)) return 'top_p: range: 0..1';
  if (!isOld(model) && given(temperature) && given(top_p))
    return '`temperature` and `top_p` cannot both be specified for this model. Please use only one.';
  if (thinks && given(temperature) && temperature !== 1)
    return '`temperature` may only be set to 1 when thinking is enabled.';
  if (thinks && given(top_p) && top_p < 0.95)
    return '`top_p` must be greater than or equal to 0.95 or unset when thinking';
  if (thinking?.type === 'enabled' && !(thinking.budget_tokens >= 1024))
    return 'thinking.enabled.budget_tokens: Input should be greater than or equal to 1024';
  if (thinking?.type === 'enabled' && thinking.budget_tokens >= max_tokens)
    return '`max_tokens` must be greater than `thinking.budget_tokens`.';
  if (thinks && ['any', 'tool'].includes(tool_choice?.type))
    return 'Thinking may not be enabled when tool_choice forces tool use.';
  if (stop_sequences.some((stop) => !stop.trim()))
    return 'stop_sequences: each stop sequence must contain non-whitespace';
  if (tool_choice && !tools?.length) return 'tool_choice: may only be specified while providing tools';
  if (tool_choice?.type === 'tool' && !tools.some(({ name }) => name === tool_choice.name))
    return `Tool '${tool_choice.name}' not found in provided tools`;
  return undefined;
}

/** Why the real API would answer 400, so that no test passes with a body that only a loopback takes. */
export function refusalOf(body) {
  const { messages, tools = [], thinking } = body;
  for (const [at, { role, content }] of messages.entries()) {
    const inBlock = blocksOf(content)
      .map((block, i) => blockRefusal(block, `messages.${at}.content.${i}`))
      .find(Boolean);
    if (inBlock && role !== 'system') return inBlock;
  }
  const names = tools.map(({ name }) => name);
  const odd = names.find((name) => !NAME.test(name));
  if (odd !== undefined) return `tools.${names.indexOf(odd)}.custom.name: String should match pattern '${NAME.source}'`;
  if (new Set(names).size !== names.length) return 'tools: Tool names must be unique.';
  const rootless = tools.findIndex(({ input_schema: schema }) => schema && schema.type !== 'object');
  if (rootless >= 0) return `tools.${rootless}.custom.input_schema.type: Field required`;
  const reply = messages.findLast(({ role }) => role === 'assistant');
  const goesOn = blocksOf(messages.at(-1)?.content).some(({ type }) => type === 'tool_result');
  if (thinking?.type === 'enabled' && goesOn && !/thinking$/.test(blocksOf(reply?.content)[0]?.type))
    return 'Expected `thinking` or `redacted_thinking`, but found `tool_use`. When `thinking` is enabled, a final `assistant` message must start with a thinking block';
  return pairingRefusal(messages) ?? searchRefusal(body) ?? samplingRefusal(body);
}

const COUNTED = ['model', 'messages', 'system', 'tools', 'tool_choice', 'thinking', 'output_config', 'cache_control'];

/** Why the real API would not count the tokens of a body, as [status, message]. */
function countRefusalOf(body, headers) {
  if (!headers['x-api-key']) return [401, 'x-api-key header is required'];
  if (!headers['anthropic-version']) return [400, 'anthropic-version: header is required'];
  const extra = Object.keys(body).find((key) => !COUNTED.includes(key));
  if (extra) return [400, `${extra}: Extra inputs are not permitted`];
  if (!body.model?.startsWith('claude-')) return [404, `model: ${body.model}`];
  const message = refusalOf({ max_tokens: 1_000_000, ...body });
  return message && [400, message];
}

/** One HTTP exchange: the response, the record of the request, and ways to answer. */
class Exchange {
  /** `shared`: what all exchanges have in common. */
  constructor(response, record, shared) {
    Object.assign(this, { response, record, shared });
    this.gone = new Promise((resolve) => response.once('close', resolve));
  }

  get left() {
    return this.record.clientLeft;
  }

  /** Sleeps, but not longer than the client stays. */
  async sleep(ms) {
    let timer;
    await Promise.race([
      new Promise((resolve) => {
        timer = setTimeout(resolve, ms);
      }),
      this.gone,
    ]);
    clearTimeout(timer);
  }

  async write(event, split) {
    const bytes = Buffer.from(`event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`);
    for (let i = 0; i < bytes.length && !this.left; i += split ?? bytes.length) {
      const flowing = this.response.write(bytes.subarray(i, i + (split ?? bytes.length)));
      if (split) await this.sleep(0);
      if (!flowing) await Promise.race([new Promise((resolve) => this.response.once('drain', resolve)), this.gone]);
    }
  }

  json(status, value, headers = {}) {
    this.record.status = status;
    this.response.writeHead(status, { 'content-type': 'application/json', 'request-id': this.record.id, ...headers });
    this.response.end(JSON.stringify(value));
  }

  error({ status = 500, message, type, retry_after, should_retry, headers: more = {} }) {
    const headers = { ...more };
    if (retry_after !== undefined) headers['retry-after'] = String(retry_after);
    if (should_retry !== undefined) headers['x-should-retry'] = String(should_retry);
    this.json(
      status,
      {
        type: 'error',
        error: {
          type: type ?? ERROR_TYPES[status] ?? 'api_error',
          message: message ?? ERROR_MESSAGES[status] ?? `status ${status}`,
        },
        request_id: this.record.id,
      },
      headers,
    );
  }

  drop() {
    this.response.droppedByUs = true;
    this.response.destroy();
  }

  hang() {
    return this.gone;
  }

  /** Answers the scenario's message; `fault` may break the stream off after some deltas. */
  async message(scenario, fault) {
    const { body } = this.record;
    if (scenario.together) await Promise.race([this.shared.meet(this.record.text, scenario.together), this.gone]);
    const { content, ...stop } = messageOf(scenario, body, this.shared.nextId);
    const message = {
      id: this.record.id.replace('req_', 'msg_'),
      type: 'message',
      role: 'assistant',
      model: body.model,
      content,
      stop_reason: scenario.stop_reason ?? stop.stop_reason ?? 'end_turn',
      stop_sequence: stop.stop_sequence ?? null,
      usage: usageOf(scenario),
    };
    if (!body.stream) {
      await this.sleep(scenario.ttft ?? 0);
      if (this.left) return;
      this.record.usage = message.usage;
      this.json(200, message);
      return;
    }
    await this.stream(message, scenario, fault);
  }

  async stream(message, scenario, fault = { after: Infinity }) {
    const split = scenario.split ?? (scenario.name === 'utf8' ? 7 : undefined);
    const send = (event) => this.write(event, split);
    const usage = { ...message.usage, output_tokens: 1 };
    if (scenario.ttft) await this.sleep(scenario.ttft);
    if (this.left) return;
    this.record.status = 200;
    this.response.writeHead(200, {
      'content-type': 'text/event-stream',
      'cache-control': 'no-cache',
      'request-id': this.record.id,
      ...scenario.headers,
    });
    this.record.usage = { ...message.usage, output_tokens: 0 };
    let characters = 0;
    await send({
      type: 'message_start',
      message: { ...message, content: [], stop_reason: null, stop_sequence: null, usage },
    });
    let sent = 0;
    for (const [index, block] of message.content.entries()) {
      if (sent >= fault.after) return fault.act(this);
      await send({ type: 'content_block_start', index, content_block: emptied(block) });
      if (scenario.ping) await send({ type: 'ping' });
      for (const delta of deltasOf(block, scenario.deltas ?? defaultDeltas[scenario.name] ?? 3, scenario.cut)) {
        if (sent >= fault.after) return fault.act(this);
        if (sent++ > 0 && scenario.delay) await this.sleep(scenario.delay);
        if (this.left) return;
        characters += Array.from(delta.text ?? delta.thinking ?? delta.partial_json ?? '').length;
        this.record.usage.output_tokens = Math.ceil(characters / 4);
        await send({ type: 'content_block_delta', index, delta });
      }
      await send({ type: 'content_block_stop', index });
    }
    if (fault.act) return fault.act(this);
    if (this.left) return;
    this.record.usage = message.usage;
    await send({
      type: 'message_delta',
      delta: { stop_reason: message.stop_reason, stop_sequence: message.stop_sequence },
      usage: message.usage,
    });
    await send({ type: 'message_stop' });
    this.response.end();
  }
}

/** The scenarios that are more than a message. `attempt` counts from 1 the times the same messages were asked. */
const faults = {
  error(exchange, scenario, attempt) {
    const over = scenario.until ? exchange.shared.healed.has(scenario.until) : attempt > (scenario.times ?? Infinity);
    return over ? exchange.message({ ...scenario, name: 'plain' }) : exchange.sleep(scenario.ttft ?? 0).then(() => exchange.error(scenario));
  },

  error_event(exchange, scenario, attempt) {
    const plain = { deltas: 4, ...scenario, name: 'plain' };
    if (attempt > (scenario.times ?? Infinity)) return exchange.message(plain);
    const error = { type: scenario.type ?? 'overloaded_error', message: scenario.message ?? 'Overloaded' };
    if (!exchange.record.body.stream) return exchange.error({ status: 529, ...error });
    return exchange.message(plain, {
      after: scenario.after ?? 2,
      act: async () => {
        await exchange.write({ type: 'error', error, request_id: exchange.record.id });
        exchange.response.end();
      },
    });
  },

  drop(exchange, scenario, attempt) {
    const plain = { deltas: 4, text: 'One two three four.', ...scenario, name: 'plain' };
    const dropped = scenario.then === 'nostream' ? exchange.record.body.stream : attempt <= (scenario.times ?? 1);
    if (!dropped) {
      return exchange.message(
        scenario.then === 'other' ? { ...plain, text: scenario.other ?? 'Quite another text.' } : plain,
      );
    }
    if ((scenario.after ?? -1) < 0 || !exchange.record.body.stream) return exchange.drop();
    return exchange.message(plain, {
      after: scenario.after,
      act: async () => {
        await exchange.sleep(250); // a busy client loses what it has not read when the connection breaks
        exchange.drop();
      },
    });
  },

  async events(exchange, { of }) {
    exchange.record.status = 200;
    exchange.response.writeHead(200, { 'content-type': 'text/event-stream', 'request-id': exchange.record.id });
    for (const event of exchange.shared.kept.get(of)) await exchange.write(event);
    exchange.response.end();
  },

  hang(exchange, scenario) {
    if ((scenario.after ?? -1) < 0 || !exchange.record.body.stream) return exchange.hang();
    return exchange.message(
      { deltas: 4, ...scenario, name: 'plain' },
      { after: scenario.after, act: () => exchange.hang() },
    );
  },
};

function readBody(request) {
  return new Promise((resolve, reject) => {
    const chunks = [];
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('end', () => resolve(Buffer.concat(chunks).toString('utf8')));
    request.on('error', reject);
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * Resolves to {url, port, requests, script, heal, keep, waitFor, close}. A record in `requests` (every POST, HEAD and GET) holds
 * {id, method, path, port, headers, body, raw, at, text, system, scenario, attempt, refusal, status, done, clientLeft, leftAt, usage}; times are of
 * performance.now(). `usage` is what the API would bill: that of the message, or where it broke off its input and a token for each four
 * characters that were sent.
 */
export async function startMessagesApi({ port = 0, scenario: initial = 'plain' } = {}) {
  const requests = [];
  const attempts = new Map();
  const healed = new Set();
  let scripted = initial;
  let queue = [];
  let toolIds = 0;
  const meetings = new Map();
  const shared = {
    healed,
    kept: new Map(),
    nextId: () => ++toolIds,
    /** Resolves when so many calls with the same text have come. */
    meet(text, count) {
      const meeting = meetings.get(text) ?? { here: 0 };
      meetings.set(text, meeting);
      meeting.all ??= new Promise((resolve) => {
        meeting.complete = resolve;
      });
      if (++meeting.here >= count) meeting.complete();
      return meeting.all;
    },
  };
  const waiters = new Set();
  const wake = () => waiters.forEach((check) => check());

  function choose(record) {
    const choice =
      queue.shift() ??
      directiveOf(record.body) ??
      (typeof scripted === 'function' ? scripted(record) : scripted) ??
      'plain';
    return typeof choice === 'string' ? parseScenario(choice) : choice;
  }

  /** A retry repeats the messages of the same CLI session. */
  function countAttempt(record) {
    const key = `${record.headers['x-claude-code-session-id'] ?? ''} ${JSON.stringify(record.body.messages)}`;
    attempts.set(key, (attempts.get(key) ?? 0) + 1);
    return attempts.get(key);
  }

  /** `tokens` of the directive, or one for each four bytes. */
  function countTokens(exchange) {
    const { record } = exchange;
    record.scenario = parseScenario(directiveOf(record.body) ?? 'plain');
    if (record.scenario.name === 'error') return exchange.error(record.scenario);
    const [status, message] = countRefusalOf(record.body ?? {}, record.headers) ?? [];
    if (status) return exchange.error({ status, message: (record.refusal = message) });
    return exchange.json(200, { input_tokens: record.scenario.tokens ?? Math.ceil(record.raw.length / 4) });
  }

  async function answer(exchange) {
    const { record } = exchange;
    if (record.method !== 'POST')
      return exchange.json(record.path === '/' || record.path === '/v1/models' ? 200 : 404, { data: [] });
    if (record.path === '/v1/messages/count_tokens') return countTokens(exchange);
    if (record.path !== '/v1/messages' || !record.body?.messages)
      return exchange.error({ status: 404, message: `no route ${record.path}` });
    record.scenario = choose(record);
    record.attempt = countAttempt(record);
    record.refusal = refusalOf(record.body);
    wake();
    if (record.refusal) return exchange.error({ status: 400, message: record.refusal });
    const fault = faults[record.scenario.name];
    if (fault) return fault(exchange, record.scenario, record.attempt);
    return exchange.message(record.scenario);
  }

  const server = http.createServer(async (request, response) => {
    const record = {
      id: `req_loopback_${requests.length + 1}`,
      method: request.method,
      path: request.url.split('?')[0],
      port: request.socket.remotePort,
      headers: request.headers,
      at: performance.now(),
      text: '',
      system: [],
      done: false,
      clientLeft: false,
    };
    requests.push(record);
    response.on('close', () => {
      record.done = response.writableFinished;
      record.clientLeft = !response.writableEnded && !response.droppedByUs;
      record.leftAt = performance.now();
      wake();
    });
    record.raw = await readBody(request).catch(() => '');
    record.body = parsed(record.raw);
    record.text = lastUserText(record.body);
    record.system = systemOf(record.body ?? {});
    wake();
    const exchange = new Exchange(response, record, shared);
    await answer(exchange).catch((error) => {
      if (response.headersSent) exchange.drop();
      else exchange.error({ status: 500, message: `the loopback failed: ${error.stack}` });
    });
  });
  server.keepAliveTimeout = 0;
  server.requestTimeout = 0;
  await new Promise((resolve, reject) => server.once('error', reject).listen(port, '127.0.0.1', resolve));

  return {
    port: server.address().port,
    url: `http://127.0.0.1:${server.address().port}`,
    requests,

    /** An array is a queue that comes before all else; anything else stays until replaced. */
    script(what) {
      if (Array.isArray(what)) queue = [...what];
      else scripted = what;
    },

    /** Ends the errors of `until=word`. */
    heal(word) {
      healed.add(word);
    },

    /** Gives the scenario `events of=name` its stream. */
    keep(name, events) {
      shared.kept.set(name, events);
    },

    /** Resolves to the first record for which `matches` holds; rejects after `ms`. */
    waitFor(matches, ms = 60_000) {
      return new Promise((resolve, reject) => {
        const finish = (settle, value) => {
          clearTimeout(timer);
          waiters.delete(check);
          settle(value);
        };
        const check = () => {
          const found = requests.find(matches);
          if (found) finish(resolve, found);
        };
        const timer = setTimeout(() => finish(reject, new Error(`no such API request within ${ms} ms`)), ms);
        waiters.add(check);
        check();
      });
    },

    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const at = process.argv.indexOf('--port');
  const api = await startMessagesApi({ port: at < 0 ? 0 : Number(process.argv[at + 1]) });
  console.log(api.url);
}
