// What the prompt cache is worth: requests of four dialects, with tools, edits, branches and late system messages, against an API
// that counts by a prefix cache of its own. What is new of a request is reckoned from what the clients ask alone.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { randomOf } from '../e2e/money.test.mjs';
import { send } from '../e2e/harness.mjs';
import { counter, withProxy } from './ways.mjs';
import { heading, note, table, verdict } from './figures.mjs';

const tokensOf = (text) => Math.ceil(text.length / 4);
const sum = (values) => values.reduce((all, one) => all + one, 0);

// ---- the API's cache -----------------------------------------------------------------------------

/** What the model reads of a block, without what all blocks of its kind have. */
function textOf({ text, name = '', description = '', input, input_schema: schema, content }) {
  if (Array.isArray(content)) return content.map(textOf).join('');
  return text ?? content ?? name + description + JSON.stringify(input ?? schema);
}

/**
 * A request's blocks in the order of the cache; what changes all that follows is one of no length. The API takes the header that
 * the CLI sends as a block of the system prompt for no part of it; nor does it matter in which order a block's fields come.
 */
function blocksOf({ model, tools = [], system = [], messages, tool_choice, thinking }) {
  const prompt = system.filter(({ text }) => !text.startsWith('x-anthropic-billing-header:'));
  const contents = messages.flatMap(({ role, content }) => (typeof content === 'string' ? [{ type: 'text', text: content }] : content).map((block) => [role, block]));
  const counted = [...tools, ...prompt].map((block) => ['', block]);
  return [[model, {}], ...counted, [JSON.stringify([tool_choice, thinking]), {}], ...contents].map(([of, { cache_control: marked, ...block }]) => ({
    key: JSON.stringify([of, Object.entries(block).sort()]),
    length: block.type || block.name ? tokensOf(textOf(block)) : 0,
    marked,
  }));
}

/** As the API's: an entry ends at a mark, and a mark finds those up to 20 blocks before it. */
class PrefixCache {
  static least = 1024; // tokens of an entry
  entries = new Set();

  /** The tokens of a request: read, written, and neither. */
  count(body) {
    const hash = createHash('sha256');
    let length = 0;
    const ends = blocksOf(body).map((block) => {
      length += block.length;
      return { name: hash.update(`${block.key}\n`).copy().digest('base64'), length, marked: block.marked };
    });
    const marks = ends.flatMap(({ marked }, at) => (marked ? [at] : []));
    const found = marks.flatMap((at) => ends.slice(Math.max(0, at - 20), at + 1)).filter(({ name }) => this.entries.has(name));
    const read = Math.max(0, ...found.map((end) => end.length));
    const last = ends[marks.at(-1)]?.length ?? 0;
    const kept = last >= PrefixCache.least ? last : read;
    for (const at of marks) if (ends[at].length >= PrefixCache.least) this.entries.add(ends[at].name);
    return { cache_read: read, cache_creation: Math.max(0, kept - read), input: length - Math.max(kept, read) };
  }
}

// ---- what clients ask ----------------------------------------------------------------------------

const written = ({ call }) => JSON.stringify(call.args);

/** By dialect: where it is asked, the body for a conversation, and what the answer says or calls. */
const DIALECTS = {
  chat: {
    path: '/v1/chat/completions',
    entry: (one) => {
      if (one.call) return { role: 'assistant', content: null, tool_calls: [{ id: one.call.id, type: 'function', function: { name: one.call.name, arguments: written(one) } }] };
      return one.result ? { role: 'tool', tool_call_id: one.result.id, content: one.text } : { role: one.role, content: one.text };
    },
    body: ({ system, tools, entries }) => ({ messages: [{ role: 'system', content: system }, ...entries], tools: tools.map((one) => ({ type: 'function', function: one })) }),
    read: ({ choices: [{ message }] }) => ({ text: message.content, id: message.tool_calls?.[0].id }),
  },
  responses: {
    path: '/v1/responses',
    entry: (one) => {
      if (one.call) return { type: 'function_call', call_id: one.call.id, name: one.call.name, arguments: written(one) };
      if (one.result) return { type: 'function_call_output', call_id: one.result.id, output: one.text };
      return { role: one.role === 'system' ? 'developer' : one.role, content: one.text };
    },
    body: ({ system, tools, entries }) => ({ instructions: system, input: entries, tools: tools.map((one) => ({ type: 'function', ...one })), store: false }),
    read: ({ output }) => ({ text: output.at(-1).content?.[0].text, id: output.at(-1).call_id }),
  },
  messages: {
    path: '/v1/messages',
    entry: (one) => {
      if (one.call) return { role: 'assistant', content: [{ type: 'tool_use', id: one.call.id, name: one.call.name, input: one.call.args }] };
      return one.result ? { role: 'user', content: [{ type: 'tool_result', tool_use_id: one.result.id, content: one.text }] } : { role: one.role, content: one.text };
    },
    body: ({ system, tools, entries }) => ({ max_tokens: 32000, system, messages: entries, tools: tools.map(({ parameters, ...one }) => ({ ...one, input_schema: parameters })) }),
    read: ({ content }) => ({ text: content.at(-1).text, id: content.at(-1).id }),
  },
  ollama: {
    path: '/api/chat',
    entry: (one) => {
      if (one.call) return { role: 'assistant', content: '', tool_calls: [{ id: one.call.id, function: { name: one.call.name, arguments: one.call.args } }] };
      return one.result ? { role: 'tool', tool_call_id: one.result.id, tool_name: one.result.name, content: one.text } : { role: one.role, content: one.text };
    },
    body: ({ system, tools, entries }) => ({ stream: false, messages: [{ role: 'system', content: system }, ...entries], tools: tools.map((one) => ({ type: 'function', function: one })) }),
    read: ({ message }) => ({ text: message.content, id: message.tool_calls?.[0].id }),
  },
};

const NAMES = ['look_up', 'read_file', 'run_tests'];
const LOOKS = 'Look it up';

/** Words of their own for each text, since what is equal is cached. */
class Writer {
  constructor(random) {
    this.random = random;
  }

  upTo(most) {
    return Math.floor(this.random() * (most + 1));
  }

  text(length, begin = '') {
    let words = `${begin} `;
    while (words.length < length) words += `${this.upTo(1e9).toString(36)} `;
    return words.trim();
  }
}

/** A chat of one dialect; each step changes its history as users do, and asks. */
class Chat {
  entries = [];
  asked = 0;

  constructor(writer, system, tools) {
    Object.assign(this, { writer, system, tools });
    this.name = Object.keys(DIALECTS)[writer.upTo(3)];
  }

  /** Of 40 steps one edits, one asks again, one branches and three begin with a word of the system's; where there are tools, one in five calls one. */
  step() {
    const asked = this.entries.flatMap(({ role }, at) => (role === 'user' ? [at] : []));
    const begin = this.writer.upTo(4) === 0 && this.tools.length ? LOOKS : 'Tell me';
    const question = { role: 'user', text: this.writer.text(600, begin) };
    const way = asked.length ? this.writer.upTo(39) : 39;
    if (way === 0) this.entries.splice(asked.at(-1), Infinity, question);
    else if (way === 1) this.entries.splice(asked.at(-1) + 1);
    else if (way === 2) this.entries.splice(asked[this.writer.upTo(asked.length - 1)], Infinity, question);
    else if (way < 6) this.entries.push({ role: 'system', text: this.writer.text(400, 'From now on') }, question);
    else this.entries.push(question);
  }

  /** The history as the cache has it: a text for each of its pieces. */
  pieces() {
    const ofTool = ({ name, description, parameters }) => name + description + JSON.stringify(parameters);
    const of = (one) => (one.call ? one.call.name + written(one) : one.text);
    return [this.tools.map(ofTool).join(''), this.system, ...this.entries.map((one) => `${of(one)}`)];
  }

  async ask(proxy) {
    const { path, body, entry, read } = DIALECTS[this.name];
    const { system, tools } = this;
    const result = await send(proxy, { path, body: { model: 'sonnet', ...body({ system, tools, entries: this.entries.map(entry) }) } }).done;
    assert.equal(result.status, 200, result.text);
    this.asked++;
    const { text, id } = read(result.json);
    if (!id) return this.entries.push({ role: 'assistant', text });
    const args = { what: 'everything' };
    this.entries.push({ call: { id, name: NAMES[0], args } }, { result: { id, name: NAMES[0] }, text: this.writer.text(800, 'Found') });
    return this.ask(proxy);
  }
}

/** What no earlier request had sent before, in tokens. */
class Known {
  root = new Map();

  add(pieces) {
    let [at, fresh] = [this.root, 0];
    for (const piece of pieces) {
      if (!at.has(piece)) fresh += tokensOf(piece);
      at.set(piece, at.get(piece) ?? new Map());
      at = at.get(piece);
    }
    return fresh;
  }
}

/** So many requests of chats that take turns; more chats than processes, so that some are told anew. */
export async function promptCache({ api, cli, turns, seed = 1 }) {
  const [live, longest] = [12, 40];
  const writer = new Writer(randomOf(seed));
  const systems = Array.from({ length: 3 }, (_, i) => writer.text(6000, `You are number ${i}.`));
  const parameters = { type: 'object', properties: { what: { type: 'string' } } };
  const tools = NAMES.map((name) => ({ name, description: writer.text(400), parameters }));
  const begin = () => new Chat(writer, systems[writer.upTo(2)], writer.upTo(2) ? tools : []);
  const cache = new PrefixCache();
  const known = new Known();
  const rows = Object.fromEntries(Object.keys(DIALECTS).map((name) => [name, { requests: 0, fresh: 0, read: 0, uncached: 0 }]));
  let current;
  api.script(({ body }) => {
    const usage = cache.count(body);
    const row = rows[current.name];
    row.requests++;
    row.fresh += known.add(current.pieces());
    row.read += usage.cache_read;
    row.uncached += usage.cache_creation + usage.input;
    const last = JSON.stringify(body.messages.at(-1));
    const calls = last.includes(LOOKS) && !last.includes('"tool_result"');
    return calls ? { name: 'tool_use', tool: NAMES[0], args: { what: 'everything' }, ...usage } : { name: 'plain', text: writer.text(400, 'Well'), ...usage };
  });
  const chats = Array.from({ length: live }, begin);
  await withProxy({ url: api.url, cli, spares: 2, args: ['--max-processes', '8'] }, async (proxy) => {
    while (sum(Object.values(rows).map(({ requests }) => requests)) < turns) {
      const at = writer.upTo(live - 1);
      if (chats[at].asked >= longest) chats[at] = begin();
      current = chats[at];
      current.step();
      await current.ask(proxy);
    }
    const all = (field) => sum(Object.values(rows).map((row) => row[field]));
    const { text } = await send(proxy, { method: 'GET', path: '/metrics' }).done;
    const told = [...text.matchAll(/^claude_openai_tokens_total\{.*kind="cache_read".*\} (\d+)$/gm)].map(([, count]) => Number(count));
    assert.equal(sum(told), all('read'), 'the proxy tells what the API has counted');
    heading(`input that is paid in full over ${turns} requests of ${live} chats, tokens`);
    const print = table(['dialect   ', 'requests', '      new', ' uncached', 'read of all, %']);
    for (const [name, { requests, fresh, read, uncached }] of Object.entries(rows)) print(name, `${requests}`, `${fresh}`, `${uncached}`, (100 * read) / (read + uncached));
    note(`${await counter(proxy, 'messages_replayed_total')} messages were told anew, ${await counter(proxy, 'messages_rewound_total')} taken back`);
    const ratio = all('uncached') / all('fresh');
    verdict('uncached input, of what was new', ratio, 'times', ratio <= 1.05, 'at most 1.05');
  });
  api.script('plain deltas=4');
}
