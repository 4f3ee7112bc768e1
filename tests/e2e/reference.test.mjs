// What the clients of the Python wrapper (claude-code-openai-wrapper 2.2.0) count on, so that they move over by changing a port: its own
// HTTP checks, made anew. Where the README says otherwise (400 for 422, keys for all routes, honest counts), ours is checked.

import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import path from 'node:path';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { send, startAndExpectExit, suite } from './harness.mjs';
import { NO_CLI, ask, startLight, startOwn } from './operate.mjs';

export const reference = suite();
const { test } = reference;

const OLD_MODELS = ['claude-3-5-haiku-20241022', 'claude-3-5-sonnet-20241022', 'claude-3-7-sonnet-20250219'];
const LISTED = [
  ...['claude-sonnet-4-5-20250929', 'claude-haiku-4-5-20251001', 'claude-opus-4-1-20250805'],
  ...['claude-opus-4-20250514', 'claude-sonnet-4-20250514'],
];
const TOOLS = [
  ...['Task', 'Bash', 'Glob', 'Grep', 'Read', 'Edit', 'Write', 'NotebookEdit', 'WebFetch', 'TodoWrite', 'WebSearch'],
  ...['BashOutput', 'KillShell', 'Skill', 'SlashCommand'],
];

const has = (object, names) => names.forEach((name) => assert.ok(name in object, `${name} in ${Object.keys(object)}`));
const post = (t, where, body, more = {}) => t.send({ path: where, body, ...more }).done;

function assertError(result, status, message = /./) {
  assert.equal(result.status, status, result.text);
  assert.match(result.headers['content-type'], /^application\/json/);
  const { error } = result.json;
  assert.equal(typeof error.message, 'string', 'a text, whatever went wrong');
  assert.match(error.message, message);
  assert.equal(typeof error.type, 'string');
  assert.ok('code' in error);
}

// ---- 1: what all have in common ------------------------------------------------------------------

test('every answer names its request: the id of the client, or a fresh one', async (t) => {
  const given = { 'X-Request-ID': 'f47ac10b-58cc-4372-a567-0e02b2c3d479' };
  for (const result of [
    await t.get('/health', { headers: given }),
    await t.get('/nothing', { headers: given }),
    await post(t, '/v1/chat/completions', '{', { headers: given }),
    await post(t, '/v1/chat/completions', { messages: 1 }, { headers: given }),
  ])
    assert.equal(result.headers['x-request-id'], given['X-Request-ID']);
  const [one, two] = [await t.get('/health'), await t.get('/health')].map(({ headers }) => headers['x-request-id']);
  assert.ok(one && two && one !== two);
});

test('JSON is compact UTF-8, and errors have one shape', async (t) => {
  const answered = await t.chat({ messages: [{ role: 'user', content: `${t.text('plain text=Grüße→🎉')}` }] });
  assert.equal(answered.status, 200, answered.text);
  assert.match(answered.headers['content-type'], /^application\/json/);
  assert.ok(answered.text.includes('Grüße→🎉'), 'nothing is escaped');
  assert.equal(answered.text, JSON.stringify(answered.json), 'no blanks');
  assertError(await t.get('/v1/nothing'), 404);
  const wrong = await t.get('/v1/chat/completions');
  assertError(wrong, 405);
  assert.match(wrong.headers.allow, /POST/);
});

test('a body that is no chat request is a 400 that names the field', async (t) => {
  const message = { role: 'user', content: 'Hi' };
  const bad = [
    ['', /empty/],
    ['{"messages": [', /JSON/],
    ['[]', /object/],
    [{}, /messages/, 'messages'],
    [{ messages: 'Hi' }, /array/, 'messages'],
    [{ messages: [{ content: 'Hi' }] }, /role/, 'messages[0].role'],
    [{ messages: [{ role: 'nobody', content: 'Hi' }] }, /role/, 'messages[0].role'],
    [{ messages: [{ role: 'user', content: 5 }] }, /content/, 'messages[0].content'],
    [{ messages: [message], temperature: 2.5 }, /between/, 'temperature'],
    [{ messages: [message], temperature: -0.1 }, /between/, 'temperature'],
    [{ messages: [message], top_p: 1.5 }, /between/, 'top_p'],
    [{ messages: [message], n: 0 }, /n\b/, 'n'],
    [{ messages: [message], presence_penalty: 3 }, /between/, 'presence_penalty'],
    [{ messages: [message], frequency_penalty: -3 }, /between/, 'frequency_penalty'],
    [{ messages: [message], session_id: 5 }, /string/, 'session_id'],
    [{ messages: [message], model: 5 }, /string/, 'model'],
  ];
  for (const [body, text, param] of bad) {
    const result = await post(t, '/v1/chat/completions', body);
    assertError(result, 400, text);
    if (param) assert.equal(result.json.error.param, param, result.text);
  }
});

test('a body over MAX_REQUEST_SIZE is a 413, also in chunks', async (t) => {
  const proxy = await startOwn(t, { env: { MAX_REQUEST_SIZE: '2000' } });
  assertError(await post(t, '/v1/chat/completions', ask('x'.repeat(3000))), 413);
  const chunked = await send(proxy, {
    body: JSON.stringify(ask('x'.repeat(3000))),
    headers: { 'content-length': undefined, 'transfer-encoding': 'chunked' },
  }).done;
  assertError(chunked, 413);
  const fits = await post(t, '/v1/debug/request', ask('x'.repeat(1000)));
  assert.equal(fits.status, 200);
});

// ---- 1.3, 2: chat completions --------------------------------------------------------------------

test('a chat completion has the members that its clients read', async (t) => {
  const { status, json, text } = await t.chat({ model: MODEL, messages: t.messages('plain text=Hello') });
  assert.equal(status, 200, text);
  assert.match(json.id, /^chatcmpl-/);
  assert.equal(json.object, 'chat.completion');
  assert.ok(Number.isInteger(json.created) && Math.abs(json.created - Date.now() / 1000) < 60);
  assert.equal(typeof json.model, 'string');
  assert.equal(json.choices.length, 1);
  const [choice] = json.choices;
  assert.deepEqual([choice.index, choice.message.role, choice.message.content], [0, 'assistant', 'Hello']);
  assert.equal(choice.finish_reason, 'stop');
  const { prompt_tokens: sent, completion_tokens: got, total_tokens: all } = json.usage;
  assert.ok(sent > 0 && got > 0 && all === sent + got, JSON.stringify(json.usage));
  assert.ok('system_fingerprint' in json);
});

test('a streamed one: the role, the text, the reason, [DONE]; usage when it is asked for', async (t) => {
  for (const usage of [false, true]) {
    const result = await t.chat({
      stream: true,
      ...(usage ? { stream_options: { include_usage: true } } : {}),
      messages: t.messages('plain text="  indented\u0020text"'),
    });
    assert.equal(result.status, 200, result.text);
    assert.match(result.headers['content-type'], /^text\/event-stream/);
    assert.match(result.headers['cache-control'], /no-cache/);
    assert.equal(result.data.at(-1), '[DONE]');
    const chunks = result.data.slice(0, -1);
    for (const chunk of chunks) {
      assert.match(chunk.id, /^chatcmpl-/);
      assert.equal(chunk.object, 'chat.completion.chunk');
      assert.equal(chunk.id, chunks[0].id);
      assert.equal(chunk.created, chunks[0].created, 'one time for all');
      has(chunk, ['model', 'choices']);
    }
    assert.deepEqual(chunks[0].choices[0].delta, { role: 'assistant', content: '' });
    const texts = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('');
    assert.ok(texts.length > 0);
    const reasons = chunks.map((chunk) => chunk.choices[0]?.finish_reason).filter(Boolean);
    assert.deepEqual(reasons, ['stop']);
    const told = chunks.filter((chunk) => chunk.usage);
    assert.equal(told.length, usage ? 1 : 0);
    if (usage) assert.ok(told[0].usage.total_tokens > 0);
  }
});

test('what its clients send is taken: old models, names, text parts, every parameter, unknown ones', async (t) => {
  await startLight(t, { args: ['--max-processes', '3'] });
  const message = { role: 'user', content: '[[text say=fine]]' };
  const bodies = [
    ...OLD_MODELS.map((model) => ({ model, messages: [message] })),
    { model: 'some-model-of-tomorrow', messages: [message] },
    { messages: [message] },
    { messages: [{ role: 'system', content: 'Be brief.' }, message] },
    { messages: [{ ...message, name: 'me' }] },
    {
      messages: [
        {
          role: 'user',
          content: [
            { type: 'text', text: 'One.' },
            { type: 'text', text: message.content },
          ],
        },
      ],
    },
    { messages: [{ role: 'user', content: 'Hi' }, { role: 'assistant', content: 'Hello' }, message] },
    { messages: [{ role: 'assistant', content: 'I begin.' }, message] },
    { messages: [message], temperature: 0.7, top_p: 0.9, n: 1, max_tokens: 100, user: 'me' },
    { messages: [message], max_completion_tokens: 100, presence_penalty: 0.5, frequency_penalty: -0.5 },
    { messages: [message], stop: ['END'], logit_bias: { 50256: -100 }, seed: 5, unknown_field: { a: 1 } },
    { messages: [message], temperature: null, top_p: null, stop: null, n: null, user: null, session_id: null },
    { messages: [message], stream: null, stream_options: null, enable_tools: false },
  ];
  for (const body of bodies) {
    const result = await post(t, '/v1/chat/completions', body);
    assert.equal(result.status, 200, `${JSON.stringify(body)}: ${result.text}`);
    assert.equal(result.json.choices[0].message.content, 'fine');
  }
});

test('text is passed on as it is: nothing is filtered, cut or put in', async (t) => {
  await startLight(t);
  const texts = [
    'history <attempt_completion>old answer</attempt_completion> [[echo]] and the new question',
    '<question>why is the sky blue?</question> [[echo]]',
    'fix <bash>ls</bash> [[echo]]',
    '<thinking>not ours</thinking> [[echo]]\n\n\n\nfour lines on',
    '[Image: a.png] data:image/png;base64,AAAA [[echo]]',
    'Human: I said this\n\nAssistant: and not you [[echo]]',
  ];
  for (const text of texts) {
    const result = await post(t, '/v1/chat/completions', {
      messages: [
        { role: 'system', content: 'First.' },
        { role: 'system', content: 'Second.' },
        { role: 'user', content: text },
      ],
    });
    assert.equal(result.status, 200, result.text);
    const echo = JSON.parse(result.json.choices[0].message.content);
    const told = JSON.stringify(echo.history.at(-1));
    assert.ok(told.includes(JSON.stringify(text).slice(1, -1)), told);
    const system = JSON.stringify(echo.told.initialize);
    assert.ok(system.includes('First.') && system.includes('Second.'), 'both system texts reach the model');
  }
});

// ---- 1.4: messages -------------------------------------------------------------------------------

test('a message has the members that its clients read; system, caching, tools and streams work', async (t) => {
  const body = { model: MODEL, max_tokens: 500, messages: t.messages('plain text=Hello') };
  const { status, json, text } = await post(t, '/v1/messages', body);
  assert.equal(status, 200, text);
  assert.match(json.id, /^msg_/);
  assert.deepEqual(
    [json.type, json.role, json.stop_reason, json.stop_sequence],
    ['message', 'assistant', 'end_turn', null],
  );
  assert.equal(json.content[0].type, 'text');
  assert.equal(json.content[0].text, 'Hello');
  assert.ok(json.usage.input_tokens > 0 && json.usage.output_tokens > 0);
  const cached = { type: 'text', text: t.text('plain'), cache_control: { type: 'ephemeral' } };
  const more = [
    { ...body, system: 'Be brief.' },
    { ...body, system: [{ type: 'text', text: 'Be brief.' }] },
    { ...body, messages: [{ role: 'user', content: [cached] }] },
    { ...body, temperature: 0.5, top_p: 0.9, top_k: 40, stop_sequences: ['END'], metadata: { user_id: 'me' } },
  ];
  for (const one of more) {
    const result = await post(t, '/v1/messages', one);
    assert.equal(result.status, 200, result.text);
  }
  const streamed = await post(t, '/v1/messages', { ...body, stream: true });
  assert.match(streamed.headers['content-type'], /^text\/event-stream/);
  const events = streamed.frames.map(({ event }) => event).filter((name) => name !== 'ping');
  assert.deepEqual(
    [events[0], events[1], events.at(-2), events.at(-1)],
    ['message_start', 'content_block_start', 'message_delta', 'message_stop'],
  );
  const refused = await post(t, '/v1/messages', { ...body, messages: [{ role: 'nobody', content: 'x' }] });
  assert.deepEqual([refused.status, refused.json.type], [400, 'error'], refused.text);
});

// ---- 1.5: compatibility --------------------------------------------------------------------------

test('POST /v1/compatibility: the report of what is honoured', async (t) => {
  const body = { model: MODEL, messages: [{ role: 'user', content: 'Hi' }], temperature: 0.5, user: 'me' };
  const { status, json, text } = await post(t, '/v1/compatibility', {
    ...body,
    logit_bias: { 1: 1 },
    presence_penalty: 1,
  });
  assert.equal(status, 200, text);
  const { compatibility_report: report, claude_agent_sdk_options: options } = json;
  has(report, ['supported_parameters', 'unsupported_parameters', 'warnings', 'suggestions']);
  for (const list of [...Object.values(report), options.supported, options.custom_headers])
    assert.ok(Array.isArray(list));
  for (const name of ['model', 'messages', 'temperature']) assert.ok(report.supported_parameters.includes(name), name);
  assert.deepEqual(report.unsupported_parameters.toSorted(), ['logit_bias', 'presence_penalty']);
  assert.equal(report.suggestions.length, 2);
  for (const name of ['Max-Turns', 'Allowed-Tools', 'Disallowed-Tools', 'Permission-Mode', 'Max-Thinking-Tokens'])
    assert.ok(options.custom_headers.includes(`X-Claude-${name}`), name);
  const fine = await post(t, '/v1/compatibility', body);
  assert.deepEqual(fine.json.compatibility_report.unsupported_parameters, []);
  assertError(await post(t, '/v1/compatibility', { messages: 1 }), 400);
});

// ---- 4: authentication ---------------------------------------------------------------------------

test('GET /v1/auth/status has its shape, for every method', async (t) => {
  const methods = [
    [{ CLAUDE_AUTH_METHOD: 'anthropic' }, 'api_key', true],
    [{ CLAUDE_AUTH_METHOD: 'API_KEY' }, 'api_key', true],
    [{ CLAUDE_AUTH_METHOD: 'claude_cli' }, 'cli', true],
    [{ CLAUDE_CODE_USE_BEDROCK: '1', AWS_REGION: 'eu-west-1' }, 'bedrock', true],
    [
      { CLAUDE_AUTH_METHOD: 'bedrock', CLAUDE_CODE_USE_BEDROCK: '1' },
      'bedrock',
      false,
      /AWS_REGION or AWS_DEFAULT_REGION/,
    ],
    [{ CLAUDE_CODE_USE_VERTEX: '1', ANTHROPIC_VERTEX_PROJECT_ID: 'p', CLOUD_ML_REGION: 'r' }, 'vertex', true],
    [{ CLAUDE_AUTH_METHOD: 'vertex', CLAUDE_CODE_USE_VERTEX: '1' }, 'vertex', false, /ANTHROPIC_VERTEX_PROJECT_ID/],
    [
      { CLAUDE_AUTH_METHOD: 'api_key', ANTHROPIC_API_KEY: undefined },
      'api_key',
      false,
      /ANTHROPIC_API_KEY environment variable not set/,
    ],
  ];
  for (const [env, method, valid, error] of methods) {
    const proxy = await startLight(t, { env });
    await proxy.inspected();
    const { status: code, json, text } = await t.get('/v1/auth/status');
    assert.equal(code, 200, text);
    const { claude_code_auth: auth, server_info: info } = json;
    assert.deepEqual([auth.method, auth.status.method], [method, method], JSON.stringify(env));
    assert.equal(auth.status.valid, valid, `${JSON.stringify(env)}: ${text}`);
    assert.match(auth.status.errors.join(), error ?? /^$/);
    assert.equal(typeof auth.status.config, 'object');
    assert.ok(Array.isArray(auth.environment_variables));
    assert.deepEqual([info.api_key_required, info.api_key_source], [false, 'none']);
    assert.equal(typeof info.version, 'string');
    proxy.stopped = true;
    await proxy.stop();
  }
});

test('the client key: Bearer in any case, all keys of API_KEYS, and no route is forgotten', async (t) => {
  await startOwn(t, { env: { API_KEY: 'first-key', API_KEYS: 'second-key, third-key' } });
  for (const authorization of ['Bearer first-key', 'bearer second-key', 'BEARER third-key'])
    assert.equal((await t.get('/v1/models', { headers: { authorization } })).status, 200, authorization);
  assert.equal((await t.get('/v1/models', { headers: { 'x-api-key': 'first-key' } })).status, 200, 'the Anthropic SDK');
  for (const authorization of [undefined, 'Basic Zmlyc3Qta2V5', 'first-key', 'Bearer', 'Bearer '])
    assertError(await t.get('/v1/models', { headers: { authorization } }), 401, /^Missing API key|^Invalid API key/);
  const wrong = await t.get('/v1/models', { headers: { authorization: 'Bearer first-ke' } });
  assertError(wrong, 401, /^Invalid API key/);
  assert.equal(wrong.headers['www-authenticate'], 'Bearer');
  const guarded = [
    ...['/v1/sessions', '/v1/sessions/stats', '/v1/sessions/x', '/v1/tools', '/v1/tools/config', '/v1/tools/stats'],
    ...['/v1/mcp/servers', '/v1/mcp/stats', '/v1/models', '/v1/auth/status', '/metrics'],
  ];
  for (const where of guarded) assertError(await t.get(where), 401);
  assertError(await t.send({ method: 'DELETE', path: '/v1/sessions/x' }).done, 401);
  for (const where of ['chat/completions', 'messages', 'compatibility', 'debug/request', 'tools/config', 'mcp/servers'])
    assert.equal((await post(t, `/v1/${where}`, {})).status, 401, where);
  for (const where of ['/health', '/version', '/']) assert.equal((await t.get(where)).status, 200, where);
  const status = await t.get('/v1/auth/status', { headers: { authorization: 'Bearer first-key' } });
  const { api_key_required: required, api_key_source: source } = status.json.server_info;
  assert.deepEqual([required, source], [true, 'environment']);
  assert.doesNotMatch(status.text, /first-key|second-key/);
});

// ---- 6: sessions ---------------------------------------------------------------------------------

test('sessions: made by use, listed, looked at, counted, deleted', async (t) => {
  await startLight(t, { args: ['--max-processes', '3'] });
  const chat = (session, content) =>
    post(t, '/v1/chat/completions', { session_id: session, messages: [{ role: 'user', content }] });
  assert.equal((await chat('my-session', '[[text say=one]]')).status, 200);
  const two = await chat('my-session', '[[echo]]');
  const { history } = JSON.parse(two.json.choices[0].message.content);
  assert.match(JSON.stringify(history), /say=one/, 'the history is kept here');
  await chat('other', '[[text]]');
  const list = await t.get('/v1/sessions');
  assert.equal(list.json.total, 2);
  assert.deepEqual(list.json.sessions.map((one) => one.session_id).toSorted(), ['my-session', 'other']);
  const one = await t.get('/v1/sessions/my-session');
  for (const info of [one.json, ...list.json.sessions]) {
    has(info, ['session_id', 'created_at', 'last_accessed', 'message_count', 'expires_at']);
    for (const name of ['created_at', 'last_accessed', 'expires_at'])
      assert.match(info[name], /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d/, name);
    assert.ok(Date.parse(info.expires_at) > Date.parse(info.created_at));
  }
  assert.equal(one.json.message_count, 4);
  const stats = await t.get('/v1/sessions/stats');
  const { session_stats: counts, cleanup_interval_minutes: every, default_ttl_hours: ttl } = stats.json;
  assert.deepEqual([counts.active_sessions, counts.expired_sessions, counts.total_messages], [2, 0, 6]);
  assert.ok(every > 0, `swept every ${every} minutes`);
  assert.equal(ttl, 1);
  const gone = await t.send({ method: 'DELETE', path: '/v1/sessions/my-session' }).done;
  assert.deepEqual([gone.status, gone.json.message], [200, 'Session my-session deleted successfully']);
  for (const result of [
    await t.get('/v1/sessions/my-session'),
    await t.send({ method: 'DELETE', path: '/v1/sessions/my-session' }).done,
  ])
    assertError(result, 404, /^Session not found$/);
  const failed = await chat('failing', '[[api_error status=500 retries=0]]');
  assert.equal(failed.status, 500);
  assert.ok(
    ![200].includes((await t.get('/v1/sessions/failing')).status) ||
      (await t.get('/v1/sessions/failing')).json.message_count === 0,
    'a failed call leaves no message',
  );
});

// ---- 7: models -----------------------------------------------------------------------------------

test('GET /v1/models: the list, its members, and the ids that its clients choose', async (t) => {
  const { json } = await t.get('/v1/models');
  assert.equal(json.object, 'list');
  for (const model of json.data) {
    has(model, ['id', 'object', 'owned_by']);
    assert.equal(model.object, 'model');
    assert.equal(model.owned_by, 'anthropic');
  }
  const ids = json.data.map(({ id }) => id);
  for (const id of LISTED) assert.ok(ids.includes(id), id);
});

// ---- 8: tools and MCP ----------------------------------------------------------------------------

test('GET /v1/tools: the 15 tools; config and stats', async (t) => {
  await startOwn(t);
  const { json } = await t.get('/v1/tools');
  assert.equal(json.total, 15);
  assert.deepEqual(json.tools.map(({ name }) => name).toSorted(), TOOLS.toSorted());
  for (const tool of json.tools) {
    has(tool, ['name', 'description', 'category', 'parameters', 'examples', 'is_safe', 'requires_network']);
    assert.ok(tool.description.length > 5, tool.name);
  }
  const needing = json.tools.filter((tool) => tool.requires_network).map(({ name }) => name);
  assert.deepEqual(needing.toSorted(), ['WebFetch', 'WebSearch']);
  const before = await t.get('/v1/tools/config');
  has(before.json, ['allowed_tools', 'disallowed_tools', 'effective_tools']);
  const set = await post(t, '/v1/tools/config', {
    allowed_tools: ['Read', 'Grep', 'Bash'],
    disallowed_tools: ['Bash'],
  });
  assert.equal(set.status, 200, set.text);
  assert.deepEqual(set.json.effective_tools, ['Grep', 'Read']);
  const mine = await post(t, '/v1/tools/config', { session_id: 's1', allowed_tools: ['Glob'] });
  assert.deepEqual(mine.json.allowed_tools, ['Glob']);
  assert.deepEqual((await t.get('/v1/tools/config?session_id=s1')).json.allowed_tools, ['Glob']);
  assert.deepEqual((await t.get('/v1/tools/config')).json.effective_tools, ['Grep', 'Read']);
  assertError(await post(t, '/v1/tools/config', { allowed_tools: ['Read', 'Nonsense'] }), 400, /Nonsense/);
  const stats = await t.get('/v1/tools/stats');
  has(stats.json, ['total_tools', 'global_allowed', 'global_disallowed', 'session_configs', 'tool_categories']);
  assert.equal(stats.json.total_tools, 15);
  assert.equal(stats.json.session_configs, 1);
  assert.deepEqual(stats.json.tool_categories, { file: 6, system: 3, web: 2, productivity: 3, agent: 1 });
});

test('MCP servers: registered, listed, counted; strangers and bad names are told', async (t) => {
  await startOwn(t, { args: ['--allow-mcp-registration'] });
  const server = {
    name: 'mine',
    command: '/nonexistent/server',
    args: ['-x'],
    description: 'Mine.',
    env: { SECRET: 'hidden' },
  };
  const made = await post(t, '/v1/mcp/servers', server);
  assert.equal(made.status, 200, made.text);
  assert.equal(made.json.message, "MCP server 'mine' registered successfully");
  const list = await t.get('/v1/mcp/servers');
  assert.equal(list.json.total, 1);
  const [one] = list.json.servers;
  has(one, [
    'name',
    'command',
    'args',
    'description',
    'enabled',
    'connected',
    'tools_count',
    'resources_count',
    'prompts_count',
  ]);
  assert.deepEqual([one.name, one.enabled, one.connected], ['mine', true, false]);
  assert.doesNotMatch(list.text, /hidden/);
  const stats = await t.get('/v1/mcp/stats');
  has(stats.json, [
    'mcp_available',
    'registered_servers',
    'connected_servers',
    'total_tools',
    'total_resources',
    'total_prompts',
    'servers',
  ]);
  assert.deepEqual([stats.json.registered_servers, stats.json.connected_servers], [1, 0]);
  for (const bad of [
    { name: 'a b', command: 'x' },
    { name: '', command: 'x' },
    { name: 'x', command: ' ' },
    { name: 'x' },
    { name: 'y'.repeat(101), command: 'x' },
  ])
    assertError(await post(t, '/v1/mcp/servers', bad), 400);
  assertError(await post(t, '/v1/mcp/disconnect', { server_name: 'unknown' }), 404);
  assertError(await post(t, '/v1/mcp/connect', { server_name: 'unknown' }), 404);
  const broken = await post(t, '/v1/mcp/connect', { server_name: 'mine' });
  assert.ok(broken.status >= 400 && broken.json.error.message, broken.text);
});

// ---- 3, 10: settings and the start ---------------------------------------------------------------

test('the variables that its users have set mean the same here', async (t) => {
  const cwd = path.join((await startOwn(t)).scratch, 'work');
  mkdirSync(cwd);
  await startLight(t, {
    env: {
      CLAUDE_CWD: cwd,
      DEFAULT_MODEL: 'claude-3-5-haiku-20241022',
      MAX_TIMEOUT: '600000',
      CLAUDE_WRAPPER_HOST: '127.0.0.1',
    },
  });
  const result = await post(t, '/v1/chat/completions', ask('[[echo]]'));
  const echo = JSON.parse(result.json.choices[0].message.content);
  assert.equal(echo.cwd, cwd);
  assert.match(echo.argv.join(' '), /--model[= ]claude-3-5-haiku-20241022/);
  await startLight(t, { env: { MAX_TIMEOUT: '10000' } });
  const late = await post(t, '/v1/chat/completions', ask('[[hang]]'));
  assert.equal(late.status, 504, 'milliseconds');
  assert.ok(late.at - late.sentAt >= 9900, 'all ten thousand of them');
  const missing = await startAndExpectExit({ url: t.api.url, cli: NO_CLI, env: { CLAUDE_CWD: '/nonexistent/folder' } });
  assert.notEqual(missing.exit?.code ?? 0, 0);
  assert.match(missing.output, /nonexistent/);
});

test('health, version and the page at the root answer without a key and at once', async (t) => {
  const proxy = await startOwn(t, { args: ['--api-key', 'right'] });
  assert.ok(proxy.listeningAt - proxy.startedAt < 15_000, 'no question to the model comes first');
  const health = await t.get('/health');
  assert.equal(health.status, 200);
  has(health.json, ['status', 'service']);
  const version = await t.get('/version');
  has(version.json, ['version', 'service', 'api_version']);
  assert.equal((await t.get('/')).status, 200);
  const head = await t.send({ method: 'HEAD', path: '/health' }).done;
  assert.deepEqual([head.status, head.text], [200, '']);
});
