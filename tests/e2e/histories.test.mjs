// Histories that were begun at another server: what its tools did there never ends a conversation here. The model is told, or the
// header x-ignored-params names what it is not told.

import assert from 'node:assert/strict';
import { callerSystem, conversationOf, ignoredOf, say, toolsOf } from './chat_client.mjs';
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
