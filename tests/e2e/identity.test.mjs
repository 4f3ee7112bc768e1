// What the API is sent by a process that has taken messages back is, byte for byte, what it is sent by one that has been
// asked the same and never took anything back: for whatever the process had on it before, back to the start, to the middle,
// for an answer that is given anew, and for a history that it is told.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { DEFAULT_MODEL } from './claude_cli.mjs';
import { eventually, send, startProxy, suite } from './harness.mjs';

export const identity = suite();
const { test } = identity;

const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
const PDF = Buffer.from('%PDF-1.1\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF').toString('base64');
const TOOL = { name: 'get_weather', description: 'The weather', input_schema: { type: 'object', properties: { city: { type: 'string' } } } };
const CALL = { name: 'tool_use', tool: 'get_weather', args: { city: 'Berne' } };
const SCHEMA = { type: 'json_schema', schema: { type: 'object', properties: { n: { type: 'integer' } }, required: ['n'] } };
const SAID = 'Hello from the loopback API.';
const user = (content) => ({ role: 'user', content });
const assistant = (content) => ({ role: 'assistant', content });
const text = (words) => ({ type: 'text', text: words });

/** The API's requests, as text, without what differs from process to process and case to case; ids of the API's by their order. */
function sent(call, what) {
  const { metadata, ...body } = call.body;
  assert.ok(metadata);
  const ids = [];
  return JSON.stringify(body).replace(what, 'a case').replace(/toolu_loopback_\d+/g, (id) => {
    if (!ids.includes(id)) ids.push(id);
    return `toolu_${ids.indexOf(id)}`;
  });
}

const health = async (proxy) => (await send(proxy, { method: 'GET', path: '/health' }).done).json.processes;

/** Nothing is under way any more: neither an answer nor what is taken back of one. */
const rests = (proxy) =>
  eventually('nothing is under way', async () => {
    const now = await health(proxy);
    return now.busy === 0 && now.rewinding === 0 && now.stopping === 0;
  });

const ask = (proxy, body) => send(proxy, { path: '/v1/messages', body });

async function answered(proxy, body, status = 200) {
  const got = await ask(proxy, body).done;
  assert.equal(got.status, status, got.text);
  await rests(proxy);
  return got;
}

async function turns(proxy, how) {
  const { text: figures } = await send(proxy, { method: 'GET', path: '/metrics' }).done;
  return Number(new RegExp(`turns_total\\{process="${how}"\\} (\\d+)`).exec(figures)?.[1] ?? 0);
}

/**
 * What a process may have had on it: `more` are fields of all requests of the case; `play(t, proxy, messages)` asks with
 * these messages before, and leaves the process with whatever comes of it.
 */
const CASES = {
  text: { last: 'a question' },
  image: { last: [{ type: 'image', source: { type: 'base64', media_type: 'image/png', data: PNG } }, text('what is it?')] },
  PDF: { last: [{ type: 'document', source: { type: 'base64', media_type: 'application/pdf', data: PDF } }, text('sum it up')] },
  'tools with results': {
    more: { tools: [TOOL] },
    async play(t, proxy, body) {
      t.api.script(({ raw }) => (raw.includes('tool_result') ? 'plain' : CALL));
      const { json } = await answered(proxy, body);
      const call = json.content.find(({ type }) => type === 'tool_use');
      const result = { type: 'tool_result', tool_use_id: call.id, content: 'sunny' };
      await answered(proxy, { ...body, messages: [...body.messages, assistant(json.content), user([result])] });
    },
  },
  'parked calls never answered': {
    more: { tools: [TOOL] },
    async play(t, proxy, body) {
      t.api.script(CALL);
      await answered(proxy, body);
    },
  },
  schema: {
    more: { output_config: { format: SCHEMA } },
    async play(t, proxy, body) {
      t.api.script({ name: 'structured', value: { n: 1 } });
      await answered(proxy, body);
    },
    answer: { name: 'structured', value: { n: 2 } },
    said: '{"n":2}',
  },
  thinking: {
    async play(t, proxy, body) {
      t.api.script({ name: 'thinking', thinking: 'hm', text: SAID });
      await answered(proxy, { ...body, max_tokens: 9000, thinking: { type: 'enabled', budget_tokens: 2048 } });
    },
  },
  sampling: {
    async play(t, proxy, body) {
      await answered(proxy, { ...body, temperature: 0.25, stop_sequences: ['never'], max_tokens: 77 });
    },
  },
  'failed turn': {
    async play(t, proxy, body) {
      t.api.script({ name: 'error', status: 400 });
      await answered(proxy, body, 400);
    },
  },
  'interrupted turn': {
    async play(t, proxy, body) {
      t.api.script({ name: 'hang', after: -1 });
      const calls = t.api.requests.length;
      const left = ask(proxy, { ...body, stream: true });
      await eventually('the API is asked', () => t.api.requests.length > calls);
      left.abort();
      await left.done;
      await rests(proxy);
    },
  },
  'cut by stop text': {
    async play(t, proxy, body) {
      await answered(proxy, { ...body, stop_sequences: ['loop'] });
    },
  },
  'client gone': {
    async play(t, proxy, body) {
      t.api.script({ name: 'hang', after: 2 });
      const left = ask(proxy, { ...body, stream: true });
      await left.head;
      await eventually('a part has come', () => left.chunks.some((chunk) => chunk.text.includes('text_delta')));
      left.abort();
      await left.done;
      await rests(proxy);
    },
  },
};

const HISTORY = [
  user([{ type: 'image', source: { type: 'base64', media_type: 'image/png', data: PNG } }, text('what is it?')]),
  assistant('A dot.'),
  user('and now?'),
  assistant('Two dots.'),
];
const WITH_CALLS = [
  ...HISTORY,
  user('the weather?'),
  assistant([text('Let me see.'), { type: 'tool_use', id: 'toolu_01A', name: TOOL.name, input: { city: 'Berne' } }]),
  user([{ type: 'tool_result', tool_use_id: 'toolu_01A', content: 'snow' }]),
  assistant('It snows.'),
];

const WAYS = {
  'to the start': { pairs: 0, then: 'another question' },
  'to the start and on by another history': { pairs: 0, then: 'another question', tells: true },
  'to the middle': { pairs: 1, then: 'another question' },
  regenerated: { pairs: 1 },
};
const METHODS = {
  '--bare': { args: ['--auth-method', 'api_key'] },
  'cli method': {
    args: ['--auth-method', 'cli'],
    env: { ANTHROPIC_API_KEY: undefined, CLAUDE_CODE_OAUTH_TOKEN: 'sk-ant-oat01-loopback' },
  },
};

for (const [method, options] of Object.entries(METHODS)) {
  test(`taken back, the API gets what a fresh process sends, ${method}`, { alone: true }, async (t) => {
    // In one directory: a prompt may name it.
    const cwd = mkdtempSync(path.join(tmpdir(), 'identity-'));
    t.defer(async () => rmSync(cwd, { recursive: true, force: true }));
    const start = (...more) => t.start({ cli: t.cli, ...options, args: [...options.args, '--cwd', cwd, ...more] });
    const used = await start('--spares', '0', '--max-processes', '1'); // or another one is cheaper than parked calls
    const fresh = await start('--spares', '2', '--no-process-reuse');
    await Promise.all([used.inspected(), fresh.inspected()]);
    const wanted = {}; // what a fresh process sends: cases that ask for the same differ by what the used one had on it
    for (const [name, { more = {}, last = 'a question', play, answer = 'plain', said = SAID }] of Object.entries(CASES)) {
      for (const [way, { pairs, then = last, tells }] of Object.entries(WAYS)) {
        const what = `${method}, ${name}, ${way}`;
        // A prompt of its own, so that no process is at hand that has another case on it.
        const body = { model: DEFAULT_MODEL, max_tokens: 100, system: `You are a test of ${what}.`, ...more };
        const before = [user('first question'), assistant(said)].slice(0, 2 * pairs);
        const asked = { ...body, messages: [...before, user(last)] };
        t.api.script(answer);
        if (pairs) await answered(used, { ...body, messages: [before[0]] });
        if (play) await play(t, used, asked);
        else await answered(used, asked);
        t.api.script(answer);
        const told = more.tools ? WITH_CALLS : HISTORY;
        const messages = [...before, ...(tells ? told : []), user(then)];
        const rewound = await turns(used, 'rewound');
        const continued = await turns(used, 'continued');
        const first = t.api.requests.length;
        await answered(used, { ...body, messages });
        const second = t.api.requests.length;
        const clean = ['failed turn', 'interrupted turn', 'client gone'].includes(name) && pairs > 0;
        assert.equal(await turns(used, clean ? 'continued' : 'rewound'), (clean ? continued : rewound) + 1, `${what}: the process went back`);
        assert.equal(second, first + 1, what);
        const wish = JSON.stringify([way, more, last, answer, said]);
        if (!wanted[wish]) {
          if (pairs) await answered(fresh, { ...body, messages: [before[0]] });
          const third = t.api.requests.length;
          await answered(fresh, { ...body, messages });
          assert.equal(t.api.requests.length, third + 1, what);
          wanted[wish] = sent(t.api.requests[third], what);
        }
        assert.equal(sent(t.api.requests[first], what), wanted[wish], what);
      }
    }
  });
}
