// Searches of the web (`--web`): the API makes them within its answer, as the loopback API plays it. What it was offered, what the
// client got in each dialect, what of it comes back in the next request; and who may not have it. `everyVersion` runs with all CLIs
// but the oldest, `web` with the newest, both with one proxy that has `--web`.

import assert from 'node:assert/strict';
import path from 'node:path';
import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';
import { ChatClient, eachWay, processOf, say } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { MessagesClient, ResponsesClient, assertAnthropicError, assertOpenAIError, bothWays } from './dialect_client.mjs';
import { startAndExpectExit, suite } from './harness.mjs';
import { directive, pageOf } from './messages_api.mjs';
import { scratchFolder } from './operate.mjs';

export const everyVersion = suite();
export const web = suite();
const { test } = web;

const searched = (options = {}) => directive('searched', options);
const PIECE = 'Grüne Katzen 🐈.';
const LENGTH = [...PIECE].length;
const TEXT = `${PIECE}${PIECE} That is all.`;
const OPENAI_TOOL = { type: 'web_search_20250305', name: 'web_search', max_uses: 8 };
const OWN = { type: 'web_search_20250305', name: 'web_search', max_uses: 3 };
const LOOK = { type: 'object', properties: { at: { type: 'string' } } };
const FUNCTION = { name: 'look', description: 'Looks', parameters: LOOK };

/** A search in each dialect: its client, what asks for it, and how the client's own tool is offered. */
const DIALECTS = {
  chat: [ChatClient, { web_search_options: {} }, { type: 'function', function: FUNCTION }],
  messages: [MessagesClient, { tools: [OWN] }, { name: 'look', description: 'Looks', input_schema: LOOK }],
  responses: [ResponsesClient, { tools: [{ type: 'web_search' }] }, { type: 'function', ...FUNCTION }],
};

/** Where the pages are cited: each for a piece of the text, in characters. */
const cited = (begin = 0) =>
  [0, 1].map((at) => ({ start_index: begin + at * LENGTH, end_index: begin + (at + 1) * LENGTH, ...pageOf(at) }));

/** The sources of an answer, in whatever dialect. */
function sourcesOf({ content, output, message }) {
  const of = ({ type, url_citation, ...one }) => ({ ...one, ...url_citation });
  if (message?.annotations) return message.annotations.map(of);
  if (output) return output.flatMap((item) => item.content ?? []).flatMap(({ annotations }) => annotations.map(of));
  let at = 0;
  return content.flatMap(({ text = '', citations = [] }) => {
    const begin = at;
    at += [...text].length;
    return citations.map(({ url, title }) => ({ start_index: begin, end_index: at, url, title }));
  });
}

const blocksOf = ({ body }) => body.messages.filter(({ role }) => role === 'assistant').flatMap(({ content }) => content);
const unmarked = (one) => blocksOf(one).map(({ cache_control: _, ...block }) => block);
const kindsOf = (one) => blocksOf(one).map(({ type }) => type);

/** The tools that the API was offered: nothing but these. */
const assertOffered = ({ body }, ...tools) =>
  assert.deepEqual((body.tools ?? []).map(({ cache_control: _, ...tool }) => tool), tools);

/** Has instructions of its own, so that no other conversation takes its process. */
function apart(client) {
  const words = `You are ${client.name}.`;
  if (client instanceof MessagesClient) client.body = { ...client.body, system: words };
  else if (client instanceof ResponsesClient) client.body = { ...client.body, instructions: words };
  else client.messages.unshift({ role: 'system', content: words });
  return client;
}

// ---- what holds in each dialect ------------------------------------------------------------------

for (const [dialect, [Client, asks]] of Object.entries(DIALECTS))
  everyVersion.test(`${dialect}: a search is the API's own, its sources are told, and the conversation goes on in its process`, (t) =>
    bothWays(Client)(
      t,
      async (client) => {
        const first = await apart(client).ask(searched());
        assert.deepEqual([first.text, first.ignored, first.calls], [TEXT, [], []]);
        // Of 2.1.197 a text comes back without citations in what the CLI keeps, but its stream has them.
        assert.deepEqual(sourcesOf(first), cited());
        const second = await client.ask(say('It goes on.'));
        assert.deepEqual([second.text, second.ignored], ['It goes on.', []]);
        const calls = client.assertCalls(2);
        for (const one of calls) assertOffered(one, dialect === 'messages' ? OWN : OPENAI_TOOL);
        assert.deepEqual(kindsOf(calls[1]), ['server_tool_use', 'web_search_tool_result', 'text', 'text', 'text']);
        assert.equal(blocksOf(calls[1])[1].content[0].encrypted_content, 'enc-loopback', 'as the API has sealed it');
        assert.equal(calls[0].refusal ?? calls[1].refusal, undefined);
      },
      { body: asks },
    ));

for (const [dialect, [Client, asks, tool]] of Object.entries(DIALECTS))
  test(`${dialect}: a search and a call of the client's own tool in one answer`, (t) =>
    bothWays(Client)(
      t,
      async (client) => {
        const scenario = `${searched({ calls: [{ tool: 'look', args: { at: 'x' } }] })} | ${say('Seen.')}`;
        const first = await client.ask(scenario);
        assert.deepEqual([first.text, first.calls.length], [TEXT, 1]);
        assert.equal((await client.results('seen').send()).text, 'Seen.');
        const calls = client.assertCalls(2);
        for (const one of calls) assert.deepEqual(one.body.tools.map(({ name }) => name), ['look', 'web_search']);
        assert.ok(kindsOf(calls[1]).includes('web_search_tool_result'));
      },
      { body: { ...asks, tools: [tool, ...(asks.tools ?? [])] } },
    ));

for (const [dialect, [Client, asks]] of Object.entries(DIALECTS))
  test(`${dialect}: a history with a search is told again to a new process`, (t) =>
    bothWays(Client)(
      t,
      async (client) => {
        await client.ask(searched());
        client.messages[0].content += ' (edited)'; // so that no process holds it
        assert.equal((await client.ask(say('Again.'))).text, 'Again.');
        const [, told] = client.calls();
        assert.equal(told.refusal, undefined);
        const texts = blocksOf(told).filter(({ type }) => type === 'text').map(({ text }) => text);
        assert.equal(texts.join(''), TEXT);
        // Clients of the Messages API bring what the API has found; the others have only the text.
        if (dialect !== 'messages') return;
        assert.deepEqual(kindsOf(told), ['server_tool_use', 'web_search_tool_result', 'text', 'text', 'text']);
        const held = client.messages[1].content;
        assert.deepEqual(blocksOf(told)[1], held[1]);
        assert.deepEqual(blocksOf(told)[2].citations, held[2].citations);
      },
      { body: asks },
    ));

const SEALED = ['server_tool_use', 'web_search_tool_result', 'text', 'text', 'text'];

test('a session goes on after a search with what was found: in its process and in another one; without the tool with its text', (t) =>
  eachWay(
    t,
    async (client) => {
      await apart(client).ask(searched());
      await client.ask(say('Kept.'));
      await client.ask(say('Told.'), { model: 'claude-haiku-4-5-20251001' });
      await client.ask(say('Bare.'), { model: MODEL, web_search_options: undefined });
      const [, kept, told, bare] = client.calls();
      assert.deepEqual(kindsOf(kept), SEALED);
      assert.deepEqual(unmarked(told).slice(0, 5), unmarked(kept), 'unchanged');
      assert.equal(blocksOf(bare).map(({ type, text }) => type && text).join('|').replaceAll('|', ''), `${TEXT}Kept.Told.`);
      assert.deepEqual([kept, told, bare].map(({ refusal }) => refusal), Array(3).fill(undefined));
    },
    { session: 'web', body: { web_search_options: {} } },
  ));

test('a stored session brings back to the API what a search has found, unchanged, after a restart', async (t) => {
  const file = path.join(scratchFolder(t), 'store');
  const start = () => t.start({ cli: t.cli, args: ['--web', '--spares', '1', '--store', file] });
  const client = new ChatClient(t, { proxy: await start(), session: 'stored', body: { web_search_options: {} } });
  await apart(client).ask(searched());
  await client.ask(say('Kept.'));
  assert.deepEqual((await client.proxy.stop()).faults, []);
  client.proxy.stopped = true;
  client.proxy = await start();
  assert.equal((await client.ask(say('Told.'))).text, 'Told.');
  const [, kept, told] = client.calls();
  assert.deepEqual(kindsOf(kept), SEALED);
  assert.deepEqual(unmarked(told).slice(0, 5), unmarked(kept));
  assert.equal(told.refusal, undefined);
});

// ---- shapes --------------------------------------------------------------------------------------

test('responses: a search is an item of its own, then one text with its sources', (t) =>
  bothWays(ResponsesClient)(
    t,
    async (client) => {
      const answer = await client.ask(searched({ before: 'I search.' }));
      assert.deepEqual(answer.kinds, ['message', 'web_search_call', 'message']);
      const [before, search, text] = answer.output;
      assert.equal(before.content[0].text, 'I search.');
      const sources = [0, 1].map((at) => ({ type: 'url', url: pageOf(at).url }));
      assert.deepEqual([search.status, search.action], ['completed', { type: 'search', query: 'green cats', sources }]);
      assert.deepEqual(text.content[0].annotations, cited().map((one) => ({ type: 'url_citation', ...one })));
      const failed = await client.ask(searched({ failed: 'max_uses_exceeded' }));
      assert.equal(failed.output.find(({ type }) => type === 'web_search_call').status, 'failed');
    },
    { body: { tools: [{ type: 'web_search_preview' }], include: ['web_search_call.action.sources'] } },
  ));

test('messages: blocks and usage are those of the API, of a search and of a fetch', (t) =>
  bothWays(MessagesClient)(
    t,
    async (client) => {
      const answer = await client.ask(searched());
      assert.deepEqual(answer.kinds, ['server_tool_use', 'web_search_tool_result', 'text', 'text', 'text']);
      assert.deepEqual(answer.content[0].input, { query: 'green cats' });
      assert.deepEqual(answer.content[1].content.map(({ url, title }) => ({ url, title })), [pageOf(0), pageOf(1)]);
      assert.equal(answer.usage.server_tool_use.web_search_requests, 1);
      const fetched = await client.ask(directive('fetched'));
      assert.deepEqual(fetched.kinds, ['server_tool_use', 'web_fetch_tool_result', 'text']);
      assert.equal(fetched.content[1].content.url, pageOf(0).url);
      const calls = client.assertCalls(2);
      for (const one of calls) assertOffered(one, OWN, { type: 'web_fetch_20250910', name: 'web_fetch', allowed_domains: ['x.example'] });
    },
    { body: { tools: [OWN, { type: 'web_fetch_20250910', name: 'web_fetch', allowed_domains: ['x.example'] }] } },
  ));

test('openai: the sources of a chat are counted in characters of the whole content', (t) =>
  eachWay(
    t,
    async (client) => {
      const before = 'Ich suche “ü” 🐈: ';
      const answer = await client.ask(searched({ before }));
      assert.deepEqual(sourcesOf(answer), cited([...before].length));
    },
    { body: { web_search_options: {} } },
  ));

// ---- what a client asks of a search --------------------------------------------------------------

const PLACE = { city: 'Zürich', country: 'CH', timezone: 'Europe/Zurich' };

test('domains, the place of the user and the number of searches reach the API; what it does not know is named', async (t) => {
  const responses = new ResponsesClient(t, {
    body: {
      tools: [
        {
          type: 'web_search',
          filters: { allowed_domains: ['a.example'] },
          user_location: { type: 'approximate', ...PLACE },
          search_context_size: 'high',
          external_web_access: false,
        },
      ],
      max_tool_calls: 2,
      tool_choice: { type: 'web_search' },
    },
  });
  const first = await responses.ask(searched());
  const names = ['tools.web_search.external_web_access', 'tools.web_search.search_context_size'];
  assert.deepEqual(first.ignored, names);
  const location = { type: 'approximate', ...PLACE };
  assertOffered(responses.calls()[0], { ...OPENAI_TOOL, max_uses: 2, allowed_domains: ['a.example'], user_location: location });
  assert.deepEqual(responses.calls()[0].body.tool_choice, { type: 'tool', name: 'web_search' });
  const chat = new ChatClient(t, { body: { web_search_options: { user_location: { type: 'approximate', approximate: PLACE } } } });
  assert.deepEqual((await chat.ask(searched())).ignored, []);
  assertOffered(chat.calls()[0], { ...OPENAI_TOOL, user_location: location });
  const own = { ...OWN, blocked_domains: ['b.example'], user_location: location };
  const messages = new MessagesClient(t, { body: { tools: [own], tool_choice: { type: 'tool', name: 'web_search' } } });
  assert.deepEqual((await messages.ask(searched())).ignored, []);
  assertOffered(messages.calls()[0], own);
});

test('a function and a search of the same name are refused', async (t) => {
  const tools = [{ type: 'function', name: 'web_search', parameters: LOOK }, { type: 'web_search' }];
  const client = new ResponsesClient(t, { body: { tools } });
  assertOpenAIError(await client.user(say('No.')).sendRaw().done, 400, 'tools[1]', /web_search/);
});

test('an agent has the search of Claude Code, and that of the API is named', async (t) => {
  const client = new ResponsesClient(t, { body: { tools: [{ type: 'web_search' }], enable_tools: true } });
  const answer = await client.ask(say('Fine.'));
  assert.deepEqual([answer.text, answer.ignored], ['Fine.', ['tools.web_search']]);
});

// ---- SDKs ----------------------------------------------------------------------------------------

test('the openai client and the Anthropic SDK read a search, whole and streamed', async (t) => {
  const openai = new OpenAI({ baseURL: `${t.proxy.url}/v1`, apiKey: 'unused', maxRetries: 0 });
  const asked = { model: MODEL, input: t.text(searched()), tools: [{ type: 'web_search' }] };
  const whole = await openai.responses.create(asked);
  const streamed = await openai.responses.stream(asked).finalResponse();
  for (const { output, output_text: text } of [whole, streamed]) {
    assert.equal(text, TEXT);
    assert.deepEqual(output.map(({ type }) => type), ['web_search_call', 'message']);
    assert.equal(output[1].content[0].annotations[1].url, pageOf(1).url);
  }
  const chat = { model: MODEL, messages: t.messages(searched()), web_search_options: {} };
  const { message } = (await openai.chat.completions.create(chat)).choices[0];
  assert.deepEqual([message.content, message.annotations[0].url_citation.url], [TEXT, pageOf(0).url]);
  assert.equal(await openai.chat.completions.stream(chat).finalContent(), TEXT);
  const anthropic = new Anthropic({ baseURL: t.proxy.url, apiKey: 'unused', maxRetries: 0 });
  const final = await anthropic.messages.stream({ model: MODEL, max_tokens: 500, messages: t.messages(searched()), tools: [OWN] }).finalMessage();
  assert.deepEqual(final.content.map(({ type }) => type), ['server_tool_use', 'web_search_tool_result', 'text', 'text', 'text']);
  assert.equal(final.content[2].citations[0].url, pageOf(0).url);
});

// ---- who may not, and who pays -------------------------------------------------------------------

/** Without the right, a search is what it is without `--web`: named, or refused where it cannot be left out. */
async function assertNoSearch(t, options) {
  const chat = new ChatClient(t, { ...options, body: { web_search_options: {} } });
  assert.deepEqual((await chat.ask(say('Fine.'))).ignored, ['web_search_options']);
  const responses = new ResponsesClient(t, { ...options, body: { tools: [{ type: 'web_search' }], store: false } });
  assert.deepEqual((await responses.ask(say('Fine.'))).ignored, ['tools.web_search']);
  for (const client of [chat, responses]) for (const one of client.calls()) assertOffered(one);
  const forced = await responses.user(say('No.')).sendRaw({ tool_choice: { type: 'web_search' } }).done;
  assertOpenAIError(forced, 400, 'tool_choice');
  const messages = new MessagesClient(t, { ...options, body: { tools: [OWN] } });
  assertAnthropicError(await messages.user(say('No.')).sendRaw().done, 400, 'invalid_request_error', /web_search_20250305/);
  assert.equal(messages.calls().length, 0);
}

test('a page of another origin cannot make the API search', (t) => assertNoSearch(t, { headers: { origin: 'http://localhost:3999' } }));

test('without --web there is no search, and the start says where there is one', async (t) => {
  assert.match(t.proxy.output, /web search +on \(--web\): the API bills each search/);
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '1'] });
  assert.doesNotMatch(proxy.output, /web search/);
  await assertNoSearch(t, { proxy });
});

test('Amazon Bedrock has no search: --web is refused at the start', async (t) => {
  const env = { CLAUDE_CODE_USE_BEDROCK: '1', AWS_REGION: 'eu-central-1', AWS_BEARER_TOKEN_BEDROCK: 'x' };
  const { exit, output } = await startAndExpectExit({ url: t.api.url, cli: t.cli, args: ['--web'], env });
  assert.equal(exit?.code, 2, output);
  assert.match(output, /--web: Amazon Bedrock/);
});

test('a search is charged: it is in the cost, and a budget counts it', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--web', '--spares', '1', '--budget', 'usd=0.012/day'], env: { API_KEY: 'sk-one-client-key-here' } });
  const client = new ChatClient(t, { proxy, headers: { authorization: 'Bearer sk-one-client-key-here' }, body: { web_search_options: {}, max_tokens: 10 } });
  const { usage } = await client.ask(searched());
  assert.ok(usage.cost > 0.01 && usage.cost < 0.012, `${usage.cost}`);
  await client.ask(searched());
  const refused = await client.user(searched()).sendRaw().done;
  assert.deepEqual([refused.status, refused.json.error.code], [429, 'budget_exceeded']);
});
