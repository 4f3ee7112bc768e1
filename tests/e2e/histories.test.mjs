// Histories that were begun at another server: what its tools did there never ends a conversation here. The model is told, or the
// header x-ignored-params names what it is not told.

import assert from 'node:assert/strict';
import { callerSystem, conversationOf, ignoredOf, read, say, toolsOf } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { assertOpenAIError, readMessage, readResponse } from './dialect_client.mjs';
import { suite } from './harness.mjs';
import { declarationsOf } from './sdk_types.mjs';

export const histories = suite();
const { test } = histories;

const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
const URI = `data:image/png;base64,${PNG}`;
const LOOK = { type: 'function', name: 'look', parameters: { type: 'object', properties: {} }, strict: false };

/** One example of every type of the SDK's ResponseInputItem, with its pair, and what tells that it has arrived. */
const ITEMS = {
  message: [[{ type: 'message', role: 'assistant', content: [{ type: 'output_text', text: 'mark', annotations: [] }] }], { told: 'mark' }],
  file_search_call: [[{ id: 'fs', queries: ['mark'], status: 'completed', results: [{ text: 'found' }] }], { call: 'file_search', told: 'found' }],
  computer_call: [
    [
      { id: 'cu', call_id: 'c', pending_safety_checks: [], status: 'completed', action: { type: 'click', x: 1, y: 2, button: 'left' } },
      { type: 'computer_call_output', call_id: 'c', output: { type: 'computer_screenshot', image_url: URI } },
    ],
    { call: 'computer', told: PNG },
  ],
  computer_call_output: [[{ call_id: 'c', output: { type: 'computer_screenshot', image_url: URI } }], { call: 'computer', told: PNG }],
  web_search_call: [[{ id: 'ws', status: 'completed', action: { type: 'search', query: 'mark' } }], { call: 'web_search', told: 'mark' }],
  function_call: [
    [
      { call_id: 'f', name: 'look', arguments: '{"at":"mark"}' },
      { type: 'function_call_output', call_id: 'f', output: 'seen' },
    ],
    { call: 'look', told: 'mark' },
  ],
  function_call_output: [
    [
      { type: 'function_call', call_id: 'f', name: 'look', arguments: '{}' },
      { call_id: 'f', output: [{ type: 'input_text', text: 'mark' }] },
    ],
    { call: 'look', told: 'mark' },
  ],
  tool_search_call: [[{ id: 'ts', execution: 'server', call_id: null, arguments: { goal: 'mark' } }], { call: 'tool_search', told: 'mark' }],
  tool_search_output: [[{ id: 'to', execution: 'server', call_id: null, tools: [LOOK] }], { offers: 'look' }],
  additional_tools: [[{ role: 'developer', tools: [LOOK] }], { offers: 'look' }],
  configuration_update: [[{ text: { verbosity: 'low' } }], { named: 'text.verbosity' }],
  reasoning: [[{ id: 'rs', summary: [], encrypted_content: 'gAAAAABo' }], { named: 'input.reasoning' }],
  compaction: [[{ id: 'cm', encrypted_content: 'gAAAAABo' }], { named: 'input.compaction', told: 'compaction' }],
  image_generation_call: [[{ id: 'ig', status: 'completed', result: PNG, revised_prompt: 'mark' }], { call: 'image_generation', told: PNG }],
  code_interpreter_call: [
    [{ id: 'ci', code: 'print(1)', container_id: 'x', status: 'completed', outputs: [{ type: 'logs', logs: 'mark' }] }],
    { call: 'code_interpreter', told: 'mark' },
  ],
  local_shell_call: [
    [
      { id: 'lc', call_id: 's', status: 'completed', action: { type: 'exec', command: ['ls'], env: {} } },
      { type: 'local_shell_call_output', id: 's', output: 'mark' },
    ],
    { call: 'local_shell', told: 'mark' },
  ],
  local_shell_call_output: [[{ id: 's', output: 'mark' }], { call: 'local_shell', told: 'mark' }],
  shell_call: [
    [
      { call_id: 's', action: { commands: ['ls'] } },
      { type: 'shell_call_output', call_id: 's', output: [{ stdout: 'mark', stderr: '', outcome: { type: 'exit', exit_code: 0 } }] },
    ],
    { call: 'shell', told: 'mark' },
  ],
  shell_call_output: [[{ call_id: 's', output: [{ stdout: 'mark', stderr: '', outcome: { type: 'timeout' } }] }], { call: 'shell', told: 'mark' }],
  apply_patch_call: [
    [
      { call_id: 'p', status: 'completed', operation: { type: 'delete_file', path: 'mark' } },
      { type: 'apply_patch_call_output', call_id: 'p', status: 'failed', output: 'no such file' },
    ],
    { call: 'apply_patch', told: 'mark' },
  ],
  apply_patch_call_output: [[{ call_id: 'p', status: 'completed' }], { call: 'apply_patch', told: 'completed' }],
  mcp_list_tools: [[{ id: 'ml', server_label: 'git', tools: [] }], { named: 'input.mcp_list_tools' }],
  mcp_approval_request: [[{ id: 'mr', name: 'mark', server_label: 'git', arguments: '{}' }], { named: 'input.mcp_approval_request', told: 'mark' }],
  mcp_approval_response: [[{ approval_request_id: 'mark', approve: true }], { named: 'input.mcp_approval_response', told: 'mark' }],
  mcp_call: [[{ id: 'mc', name: 'log', server_label: 'git', arguments: '{}', output: 'mark' }], { call: 'mcp', told: 'mark' }],
  custom_tool_call: [
    [
      { call_id: 'u', name: 'patch', input: 'mark' },
      { type: 'custom_tool_call_output', call_id: 'u', output: 'done' },
    ],
    { call: 'patch', told: 'mark' },
  ],
  custom_tool_call_output: [
    [
      { type: 'custom_tool_call', call_id: 'u', name: 'patch', input: '*' },
      { call_id: 'u', output: 'mark' },
    ],
    { call: 'patch', told: 'mark' },
  ],
  compaction_trigger: [[{}], { named: 'input.compaction_trigger' }],
  program: [
    [
      { id: 'pr', call_id: 'g', code: 'mark', fingerprint: 'x' },
      { type: 'program_output', id: 'po', call_id: 'g', result: '2', status: 'completed' },
    ],
    { call: 'program', told: 'mark' },
  ],
  program_output: [[{ id: 'po', call_id: 'g', result: 'mark', status: 'completed' }], { call: 'program', told: 'mark' }],
  // Beyond the SDK's types: what Codex keeps, and what does not exist yet.
  ghost_snapshot: [[{ ghost_commit: { id: 'abc' } }], { named: 'input.ghost_snapshot' }],
  never_heard_of: [[{ text: 'mark' }], { named: 'input.never_heard_of', told: 'mark' }],
};

/** The types of the SDK's ResponseInputItem, read from its declarations. */
function inputItemTypes() {
  const source = declarationsOf('openai', 'resources/responses/responses.d.ts');
  const names = /export type ResponseInputItem = ([^;]+);/.exec(source)[1].split('|').map((name) => name.trim());
  const own = /export declare namespace ResponseInputItem \{[^]*?\n\}/.exec(source)[0];
  return new Set(
    names.map((name) => {
      const [inner] = /(?<=ResponseInputItem\.).*/.exec(name) ?? [];
      const indent = inner ? '    ' : '';
      const start = `${indent}${inner ? '' : 'export '}interface ${inner ?? name} \\{`;
      const body = new RegExp(`^${start}[^]*?^${indent}\\}`, 'm').exec(inner ? own : source)[0];
      return new RegExp(`^${indent}    type\\??: '(\\w+)'`, 'm').exec(body)[1];
    }),
  );
}

/** A piece of what the API was sent as text that a test can search. */
const spelled = (sent) => JSON.stringify(conversationOf(sent));

test('responses: every item type of the SDK is among those that are tried', async () => {
  const missing = [...inputItemTypes()].filter((type) => !ITEMS[type] && type !== 'item_reference');
  assert.deepEqual(missing, []);
});

const withType = (type, items) => items.map((one) => ({ type, ...one }));

/** Asks with these items between a question's answer and the next question; returns what the API was sent. */
async function goOn(t, items, { stream, ignored }) {
  const input = [
    { role: 'user', content: 'Begin.' },
    ...items,
    { role: 'assistant', content: 'So it is.' },
    { role: 'user', content: t.text(say('Fine.')) },
  ];
  const result = await t.send({ path: '/v1/responses', body: { model: MODEL, stream, input } }).done;
  assert.equal(readResponse(result).text, 'Fine.');
  assert.deepEqual(ignoredOf(result), ignored);
  const sent = t.calls().at(-1);
  assert.equal(callerSystem(sent), 'You are a helpful assistant.');
  return sent;
}

function assertTold(sent, { told, offers }) {
  if (told) assert.ok(spelled(sent).includes(told), `${told} in ${spelled(sent)}`);
  if (offers) assert.ok(toolsOf(sent)[offers], Object.keys(toolsOf(sent)).join());
}

for (const [at, [type, [items, expected]]] of Object.entries(ITEMS).entries())
  test(`responses: a history that holds ${type} goes on, and the model is told or the header says that it is not`, async (t) => {
    const ignored = expected.named ? [expected.named] : [];
    const sent = await goOn(t, withType(type, items), { stream: at % 2 === 1, ignored });
    assertTold(sent, expected);
    const calls = conversationOf(sent).flatMap(({ content }) => content.filter((one) => one.call));
    assert.deepEqual(
      calls.map(({ name }) => name),
      expected.call ? [expected.call] : [],
    );
    assert.equal(t.calls().length, 1);
  });

test('responses: items of all types together make a history that the API takes', async (t) => {
  const all = Object.entries(ITEMS);
  const items = all.flatMap(([type, [some]]) => withType(type, some));
  const ignored = all.flatMap(([, [, { named }]]) => named ?? []).sort();
  for (const stream of [false, true]) {
    const sent = await goOn(t, items, { stream, ignored });
    for (const [, [, expected]] of all) assertTold(sent, expected);
  }
  assert.equal(t.calls().length, 2);
});

test('responses: strict parameters refuse an item that is not honoured, by its type', async (t) => {
  const input = [{ type: 'compaction', encrypted_content: 'x' }, { role: 'user', content: t.text('plain') }];
  const result = await t.send({ path: '/v1/responses', headers: { 'x-strict-params': 'true' }, body: { model: MODEL, input } }).done;
  assertOpenAIError(result, 400, 'input.compaction');
  assert.equal(t.calls().length, 0);
});

test('messages: tools that the API has run in an earlier answer are calls with their results', async (t) => {
  const content = [
    { type: 'text', text: 'Let me see.' },
    { type: 'server_tool_use', id: 'srvtoolu_1', name: 'web_search', input: { query: 'x' } },
    { type: 'web_search_tool_result', tool_use_id: 'srvtoolu_1', content: [{ type: 'web_search_result', url: 'u', title: 'T', encrypted_content: 'Eg' }] },
    { type: 'mcp_tool_use', id: 'mcptoolu_1', name: 'log', server_name: 'git', input: {} },
    { type: 'mcp_tool_result', tool_use_id: 'mcptoolu_1', is_error: false, content: [{ type: 'text', text: 'one' }] },
    { type: 'text', text: 'So it is.' },
    { type: 'server_tool_use', id: 'srvtoolu_2', name: 'web_fetch', input: {} },
  ];
  for (const stream of [false, true]) {
    const messages = [
      { role: 'user', content: 'Begin.' },
      { role: 'assistant', content },
      { role: 'user', content: t.text(say('Fine.')) },
    ];
    const result = await t.send({ path: '/v1/messages', body: { model: MODEL, max_tokens: 100, stream, messages } }).done;
    assert.equal(readMessage(result).text, 'Fine.');
  }
  for (const sent of t.calls()) {
    const told = conversationOf(sent);
    assert.deepEqual(
      told.map(({ role, content: parts }) => [role, ...parts.map((part) => part.name ?? (part.result ? 'result' : part))]),
      [
        ['user', 'Begin.'],
        ['assistant', 'Let me see.', 'web_search'],
        ['user', 'result'],
        ['assistant', 'log'],
        ['user', 'result'],
        ['assistant', 'So it is.', 'web_fetch'],
        ['user', 'result', t.text(say('Fine.'))],
      ],
    );
    assert.deepEqual(told[1].content[1].input, { query: 'x' });
    assert.match(spelled(sent), /web_search_result/);
    assert.doesNotMatch(spelled(sent), /encrypted/);
  }
  assert.equal(t.calls().length, 2);
});

// ---- content blocks ------------------------------------------------------------------------------

const LOOKED = { id: 'mark', name: 'look', input: { at: 'mark' } };
const SEEN = { type: 'tool_result', tool_use_id: 'mark', content: 'seen' };
const outcome = (call) => ['assistant', [{ tool_use_id: 's', content: [{ type: 'text', text: 'mark' }] }], { call, told: 'mark' }];
const source = { type: 'text', media_type: 'text/plain', data: 'mark' };

/** One example of every content block of Anthropic's SDK: who says it, it (with more), and what tells that it has arrived. */
const BLOCKS = {
  text: ['user', [{ text: 'mark' }], { told: 'mark' }],
  image: ['user', [{ source: { type: 'base64', media_type: 'image/png', data: PNG } }], { told: PNG }],
  document: ['user', [{ source }], { told: 'mark' }],
  search_result: ['user', [{ source: 'mark', title: 'T', content: [{ type: 'text', text: 'x' }] }], { told: 'mark' }],
  thinking: ['assistant', [{ thinking: 'Hm.', signature: 'c2ln' }], {}],
  redacted_thinking: ['assistant', [{ data: 'Y2lwaGVy' }], {}],
  tool_use: ['assistant', [LOOKED], { call: 'look', told: 'mark', next: [SEEN] }],
  tool_result: ['assistant', [{ type: 'tool_use', ...LOOKED }], { call: 'look', told: 'seen', next: [SEEN] }],
  server_tool_use: ['assistant', [{ id: 's', name: 'web_search', input: { query: 'mark' } }], { call: 'web_search', told: 'mark' }],
  web_search_tool_result: outcome('web_search'),
  web_fetch_tool_result: outcome('web_fetch'),
  advisor_tool_result: outcome('advisor'),
  code_execution_tool_result: outcome('code_execution'),
  bash_code_execution_tool_result: outcome('bash_code_execution'),
  text_editor_code_execution_tool_result: outcome('text_editor_code_execution'),
  tool_search_tool_result: outcome('tool_search'),
  mcp_tool_use: ['assistant', [{ id: 'm', name: 'log', server_name: 'git', input: { of: 'mark' } }], { call: 'log', told: 'mark' }],
  mcp_tool_result: outcome('mcp'),
  container_upload: ['user', [{ file_id: 'mark' }], { named: 'messages.container_upload', told: 'mark' }],
  compaction: ['assistant', [{ content: 'mark' }], { named: 'messages.compaction', told: 'mark' }],
  tool_addition: ['system', [{ tool: { type: 'tool_reference', name: 'look' } }], { named: 'messages.tool_addition' }],
  tool_removal: ['system', [{ tool: { type: 'tool_reference', name: 'look' } }], { named: 'messages.tool_removal' }],
  mcp_tool_listing: ['assistant', [{ mcp_server_name: 'mark', tools: [] }], { named: 'messages.mcp_tool_listing', told: 'mark' }],
  fallback: ['assistant', [{ from: { model: 'mark' }, to: { model: 'x' } }], { named: 'messages.fallback', told: 'mark' }],
  // What does not exist yet, and the bytes of media, which are not read out.
  never_heard_of: ['user', [{ text: 'mark', source: { data: PNG } }], { named: 'messages.never_heard_of', told: 'mark', silent: PNG }],
};

const heard = { input_audio: { data: PNG, format: 'wav' } };
/** The same for the parts of OpenAI's chat messages, and for those of Anthropic's that clients (Cursor) send there. */
const PARTS = {
  text: ['user', [{ text: 'mark' }], { told: 'mark' }],
  image_url: ['user', [{ image_url: { url: URI } }], { told: PNG }],
  input_audio: ['user', [heard], { named: 'messages.input_audio', told: 'input_audio', silent: PNG }],
  file: ['user', [{ file: { file_data: 'data:application/pdf;base64,JVBERi0xLjQK' } }], { told: 'JVBERi0xLjQK' }],
  refusal: ['assistant', [{ refusal: 'mark' }], { told: 'mark' }],
  tool_use: ['assistant', [LOOKED], { call: 'look', told: 'seen', next: [SEEN] }],
  tool_result: ['assistant', [{ type: 'tool_use', ...LOOKED }], { call: 'look', told: '"is_error":true', next: [{ ...SEEN, is_error: true }] }],
  thinking: ['assistant', [{ thinking: 'Hm.', signature: 'c2ln' }], { named: 'messages.thinking' }],
  redacted_thinking: ['assistant', [{ data: 'Y2lwaGVy' }], { named: 'messages.redacted_thinking' }],
  never_heard_of: ['user', [{ text: 'mark' }], { named: 'messages.never_heard_of', told: 'mark' }],
};

/** The `type` of each interface that a union of the SDK names, and of the unions in it. */
function typesOfUnion(sdk, file, union) {
  const declared = declarationsOf(sdk, file);
  const names = new RegExp(`export type ${union} = ([^;]+);`).exec(declared)[1].split('|');
  return names.flatMap((one) => {
    const name = one.trim().replace(/.*\./, '');
    const [, indent, body] = new RegExp(`^( *)(?:export )?interface ${name} (\\{[^]*?\n)\\1\\}`, 'm').exec(declared);
    return new RegExp(`^${indent}    type: '(\\w+)'`, 'm').exec(body)[1];
  });
}

test('messages, chat: every content block and part of the SDKs is among those that are tried', async () => {
  const blocks = typesOfUnion('@anthropic-ai/sdk', 'resources/beta/messages/messages.d.ts', 'BetaContentBlockParam');
  assert.ok(blocks.length > 20, `${blocks}`);
  assert.deepEqual(blocks.filter((type) => !BLOCKS[type]), []);
  const parts = typesOfUnion('openai', 'resources/chat/completions/completions.d.ts', 'ChatCompletionContentPart');
  assert.ok(parts.length > 3, `${parts}`);
  assert.deepEqual(parts.filter((type) => !PARTS[type]), []);
});

/** A conversation in which `speaker` says these blocks beside a text, and that goes on after them. */
function withBlocks(t, [speaker, blocks, { next = [] }]) {
  const said = [...blocks, { type: 'text', text: 'So.' }];
  const ask = { role: 'user', content: [...next, { type: 'text', text: t.text(say('Fine.')) }] };
  const begin = { role: 'user', content: 'Begin.' };
  if (speaker === 'user') return [{ role: 'user', content: said }, { role: 'assistant', content: 'Yes.' }, ask];
  if (speaker === 'system') return [begin, { role: 'assistant', content: 'Yes.' }, { role: 'system', content: said }, ask];
  return [begin, { role: 'assistant', content: next.length ? said.reverse() : said }, ask];
}

const ASKED = {
  messages: [BLOCKS, '/v1/messages', { max_tokens: 100 }, (result) => readMessage(result).text],
  chat: [PARTS, '/v1/chat/completions', {}, (result) => read(result).text],
};

for (const [dialect, [table, path, more, textOf]] of Object.entries(ASKED))
  for (const [type, example] of Object.entries(table))
    test(`${dialect}: a history that holds ${type} goes on, and what is not passed on is named`, async (t) => {
      const [speaker, blocks, { call, named, told, silent, next }] = example;
      const messages = withBlocks(t, [speaker, withType(type, blocks), { next }]);
      for (const stream of [false, true]) {
        const result = await t.send({ path, body: { model: MODEL, ...more, stream, messages } }).done;
        assert.equal(textOf(result), 'Fine.');
        assert.deepEqual(ignoredOf(result), named ? [named] : []);
        const sent = t.calls().at(-1);
        if (told) assert.ok(spelled(sent).includes(told) || sent.raw.includes(told), `${told} in ${spelled(sent)}`);
        if (silent) assert.ok(!sent.raw.includes(silent), spelled(sent));
        assert.ok(spelled(sent).includes('So.'));
        const calls = conversationOf(sent).flatMap(({ content }) => content.filter((one) => one.call));
        assert.deepEqual(calls.map(({ name }) => name), call ? [call] : []);
      }
      assert.equal(t.calls().length, 2);
    });

test('responses: a content part that nobody knows ends no history, and is named', async (t) => {
  for (const [role, told] of [['user', true], ['assistant', false]])
    for (const stream of [false, true]) {
      const part = { type: 'output_audio', data: PNG, transcript: 'mark' };
      const input = [
        { role: 'user', content: 'Begin.' },
        { role, content: [{ type: role === 'user' ? 'input_text' : 'output_text', text: 'So.' }, part] },
        { role: 'user', content: t.text(say('Fine.')) },
      ];
      const result = await t.send({ path: '/v1/responses', body: { model: MODEL, stream, input } }).done;
      assert.equal(readResponse(result).text, 'Fine.');
      assert.deepEqual(ignoredOf(result), ['input.output_audio']);
      const sent = t.calls().at(-1);
      assert.equal(spelled(sent).includes('mark'), told);
      assert.ok(spelled(sent).includes('So.') && !sent.raw.includes(PNG));
    }
});

test('chat: a call that stands in the content and among tool_calls is one call', async (t) => {
  const made = { id: 'mark', type: 'function', function: { name: 'look', arguments: '{"at":"mark"}' } };
  const messages = [
    { role: 'user', content: 'Begin.' },
    { role: 'assistant', content: [{ type: 'text', text: 'So.' }, { type: 'tool_use', ...LOOKED }], tool_calls: [made] },
    { role: 'tool', tool_call_id: 'mark', content: 'seen' },
    { role: 'user', content: t.text(say('Fine.')) },
  ];
  assert.equal(read(await t.chat({ messages })).text, 'Fine.');
  const [, reply, results] = conversationOf(t.calls()[0]);
  assert.deepEqual(reply.content.map(({ name }) => name), [undefined, 'look']);
  assert.equal(results.content[0].content, 'seen');
});

test('chat: an answer that was spoken stays a turn, and the header names the sound', async (t) => {
  for (const [content, told] of [[null, '[audio]'], ['Spoken.', 'Spoken.']])
    for (const stream of [false, true]) {
      const messages = [
        { role: 'user', content: 'Begin.' },
        { role: 'assistant', content, audio: { id: 'audio_1' } },
        { role: 'user', content: t.text(say('Fine.')) },
      ];
      const answer = read(await t.chat({ stream, messages }));
      assert.deepEqual([answer.text, answer.ignored], ['Fine.', ['messages.audio']]);
      const sent = conversationOf(t.calls().at(-1));
      assert.deepEqual(sent.map((one) => one.role), ['user', 'assistant', 'user']);
      assert.deepEqual(sent[1].content, [told]);
    }
});

test('messages: the citations of an earlier answer, which the CLI does not pass on, are named', async (t) => {
  const citation = { type: 'char_location', cited_text: 'mark', document_index: 0, document_title: null, start_char_index: 0, end_char_index: 4 };
  const cited = { type: 'text', text: 'So it is.', citations: [citation] };
  for (const stream of [false, true]) {
    const messages = [
      { role: 'user', content: [{ type: 'document', source, citations: { enabled: true } }, { type: 'text', text: 'Begin.' }] },
      { role: 'assistant', content: [cited] },
      { role: 'user', content: t.text(say('Fine.')) },
    ];
    const result = await t.send({ path: '/v1/messages', body: { model: MODEL, max_tokens: 100, stream, messages } }).done;
    assert.equal(readMessage(result).text, 'Fine.');
    assert.deepEqual(ignoredOf(result), ['messages.citations']);
    const [, reply] = t.calls().at(-1).body.messages;
    assert.equal(reply.content[0].text, 'So it is.');
  }
});
