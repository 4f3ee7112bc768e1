// Clients of Python, unmodified: the SDKs of OpenAI and Anthropic, and what is built upon them. The programs are in python/, and so are
// the lock files; make installs them.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { call, callerSystem, conversationOf, say, steps, toolsOf } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { ADA, ANSWER, assertPersonAsked, assertRounds, clientLeaves, ROUNDS, roundsOf, structured } from './client_tasks.mjs';
import { PROXY, startProxy, suite } from './harness.mjs';
import { CLIENTS, heals, KEY, missing, PDF, PNG, runProgram, testChecks } from './language_client.mjs';
import { directive, startMessagesApi } from './messages_api.mjs';

export const python = suite();

/** A test of a program of python/ with the packages of one lock file. */
function test(lock, file, what, scenarios, body, more) {
  const command = [path.join(CLIENTS, lock, 'bin', 'python'), path.join(import.meta.dirname, 'python', `${file}.py`)];
  testChecks(python, `python, ${what}`, { needs: lock, command, scenarios, more }, body);
}

const thought = (text) => directive('thinking', { thinking: 'Let me think.', text, thinking_tokens: 5, output: 12 });
const mediaOf = (sent) => Object.fromEntries(conversationOf(sent)[0].content.filter(({ source }) => source).map(({ type, source }) => [type, source.data]));
const WEATHER = call({ tool: 'get_weather', args: { city: 'Bern' } }, { before: 'Let me look.', deltas: 4 });

// ---- openai --------------------------------------------------------------------------------------

const STATUSES = { 400: 'BadRequestError', 403: 'PermissionDeniedError', 404: 'NotFoundError', 429: 'RateLimitError', 500: 'InternalServerError', 529: 'InternalServerError' };
const NOTICE = 'loopback says so';
/** Texts that make the API fail with each status. */
const failing = (t) => ({ errors: Object.fromEntries(Object.keys(STATUSES).map((status) => [status, t.text(`error status=${status} message="${NOTICE}" should_retry=false`)])) });

for (const [lock, version] of [['newest', /^3\./], ['middle', /^2\./], ['earlier', /^1\./]]) {
  test(
    lock,
    'openai_chat',
    `openai ${version.source[1]}.x: chat completions and the Azure classes`,
    {
      create: say('Hello.', { cache_read: 300 }),
      stream: say('One two three.', { deltas: 4, output: 9 }),
      stream_helper: call({ tool: 'GetWeather', args: { city: 'Bern' } }, { before: 'Let me look.', deltas: 4 }),
      tools: ROUNDS,
      tools_streamed: ROUNDS,
      parse: structured(ADA),
      parse_streamed: structured(ADA),
      files: say('I see.'),
      asynchronous: say('At once.'),
      error_in_stream: 'error_event after=2',
      retries: heals('After all.'),
      abort: 'hang after=2',
      abort_asynchronous: 'hang after=2',
      timeout: 'hang',
      completions: say('One two END three'),
      azure: say('From Azure.'),
      azure_asynchronous: say('From Azure.'),
    },
    async (ran) => {
      const { t, value, calls } = ran;
      assert.match(value('version'), version);
      const created = value('create');
      assert.deepEqual([created.answer, created.finish, created.model], ['Hello.', 'stop', MODEL]);
      assert.equal(created.usage.prompt_tokens_details.cached_tokens, 300);
      assert.match(created.ignored, /seed/);
      assert.match(created.request_id, /^req_/);
      const [sent, ...others] = calls('create');
      assert.deepEqual([others.length, sent.body.model, sent.body.temperature], [0, MODEL, 0.2]);
      const streamed = value('stream');
      assert.deepEqual([streamed.pieces.length, streamed.pieces.join(''), streamed.finish], [4, 'One two three.', 'stop']);
      assert.equal(streamed.usage.completion_tokens, 9);
      const helped = value('stream_helper');
      assert.deepEqual([helped.content, helped.finish, helped.call, helped.arguments], ['Let me look.', 'tool_calls', 'GetWeather', { city: 'Bern' }]);
      for (const kind of ['chunk', 'content.delta', 'content.done', 'tool_calls.function.arguments.delta', 'tool_calls.function.arguments.done'])
        assert.ok(helped.kinds.includes(kind), `${kind} in ${helped.kinds}`);
      assert.equal(toolsOf(calls('stream_helper')[0]).GetWeather.description, 'The weather of a city');
      for (const check of ['tools', 'tools_streamed']) {
        assert.equal(value(check), ANSWER);
        assert.equal(roundsOf(ran, check)[0].body.tools[0].description, 'The weather of a city');
      }
      assert.deepEqual(value('parse'), ADA);
      assert.deepEqual(value('parse_streamed'), { parsed: ADA, grew: true });
      assertPersonAsked([...calls('parse'), ...calls('parse_streamed')]);
      assert.equal(value('files'), 'I see.');
      assert.deepEqual(mediaOf(calls('files')[0]), { image: PNG, document: PDF });
      assert.deepEqual(value('asynchronous'), ['At once.', 'At once.']);
      assert.equal(calls('asynchronous').length, 2);
      for (const [status, [kind, got, message, has_id]] of Object.entries(value('errors'))) {
        assert.deepEqual([kind, got, has_id], [STATUSES[status], status === '529' ? 503 : Number(status), true]);
        assert.ok(message.includes(status === '404' ? 'selected model' : NOTICE), message);
      }
      assert.deepEqual(value('bad_parameter'), ['BadRequestError', 'n', 'invalid_request_error']);
      assert.deepEqual(value('bad_key'), ['AuthenticationError', 'invalid_api_key']);
      const broken = value('error_in_stream');
      assert.deepEqual([broken.error, /Overloaded/.test(broken.message), broken.pieces.length > 0], ['APIError', true, true]);
      assert.equal(value('retries'), 'After all.');
      assert.ok(calls('retries').length > 1);
      assert.ok(value('abort'));
      assert.equal(value('abort_asynchronous'), true);
      assert.equal(value('timeout'), 'APITimeoutError');
      for (const check of ['abort', 'abort_asynchronous', 'timeout']) await clientLeaves(calls(check));
      const { listed, one } = value('models');
      assert.ok(listed.includes(MODEL) && listed.length > 5, `${listed}`);
      assert.deepEqual([one.id, one.object], [MODEL, 'model']);
      assert.deepEqual(value('completions'), ['One two ', 'stop']);
      assert.deepEqual(value('azure'), ['From Azure.', 'From Azure.', 'AuthenticationError']);
      assert.equal(value('azure_asynchronous'), 'From Azure.');
      assert.deepEqual([...calls('azure'), ...calls('azure_asynchronous')].map(({ body }) => body.model), [MODEL, MODEL, MODEL]);
      assert.ok(t.calls().every(({ headers }) => !JSON.stringify(headers).includes('sk-client-key')), 'the key of the client stays with the proxy');
    },
    failing,
  );

  test(
    lock,
    'openai_responses',
    `openai ${version.source[1]}.x: the Responses API`,
    {
      create: say('Hello.', { cache_read: 300 }),
      stream: say('One.', { deltas: 1 }),
      stream_helper: say('One two three.', { deltas: 4, output: 9 }),
      parse: structured(ADA),
      parse_streamed: structured(ADA),
      tools: ROUNDS,
      tools_chained: ROUNDS,
      previous_response_id: steps(say('First.'), say('Second.')),
      pydantic_tool: call({ tool: 'GetWeather', args: { city: 'Bern' } }),
      files: say('One two three four'),
      reasoning: thought('I thought.'),
      asynchronous: say('At once.'),
      errors: 'error status=400 message="not so"',
      error_in_stream: 'error_event after=2',
      abort: 'hang after=2',
      azure: say('From Azure.'),
    },
    async (ran) => {
      const { value, calls } = ran;
      const { usage, ...created } = value('create');
      assert.deepEqual(created, { text: 'Hello.', status: 'completed', got: 'Hello.', same_input: true, gone: 'NotFoundError' });
      assert.equal(usage.input_tokens_details.cached_tokens, 300);
      assert.equal(callerSystem(calls('create')[0]), 'Be brief.');
      assert.deepEqual(
        value('stream').map((kind) => kind.replace('response.', '')),
        ['created', 'in_progress', 'output_item.added', 'content_part.added', 'output_text.delta', 'output_text.done', 'content_part.done', 'output_item.done', 'completed'],
      );
      const helped = value('stream_helper');
      assert.deepEqual([helped.pieces.length, helped.pieces.join(''), helped.text, helped.output_tokens], [4, helped.text, 'One two three.', 9]);
      for (const check of ['parse', 'parse_streamed']) assert.deepEqual(value(check), ADA);
      assertPersonAsked([...calls('parse'), ...calls('parse_streamed')]);
      for (const check of ['tools', 'tools_chained']) {
        assert.equal(value(check), ANSWER);
        roundsOf(ran, check);
      }
      assert.deepEqual(value('previous_response_id'), ['First.', 'Second.', true]);
      assert.deepEqual(
        conversationOf(calls('previous_response_id')[1]).map(({ role }) => role),
        ['user', 'assistant', 'user'],
      );
      assert.deepEqual(value('pydantic_tool'), ['GetWeather', { city: 'Bern' }]);
      assert.deepEqual(value('files'), ['incomplete', 'max_output_tokens', 'One two ']);
      assert.deepEqual(mediaOf(calls('files')[0]), { image: PNG, document: PDF });
      assert.deepEqual(value('reasoning'), ['Let me think.', 'I thought.', true]);
      assert.equal(calls('reasoning')[0].body.thinking.type, 'enabled');
      assert.equal(value('asynchronous'), 'At once.');
      const [refused, status, message, unknown] = value('errors');
      assert.deepEqual([refused, status, /not so/.test(message), unknown], ['BadRequestError', 400, true, 'NotFoundError']);
      const [kind, state, why] = value('error_in_stream');
      assert.deepEqual([kind, state], ['response.failed', 'failed']);
      assert.match(why, /verloaded/);
      assert.ok(value('abort'));
      await clientLeaves(calls('abort'));
      assert.equal(value('azure'), 'From Azure.');
    },
  );
}

// ---- anthropic -----------------------------------------------------------------------------------

const TYPES = { 400: 'invalid_request_error', 403: 'permission_error', 404: 'not_found_error', 429: 'rate_limit_error', 500: 'api_error', 529: 'overloaded_error' };
const CITATIONS = [{ type: 'char_location', cited_text: 'Grass is green.', document_index: 1, document_title: 'Grass', start_char_index: 0, end_char_index: 15 }];

test(
  'newest',
  'anthropic_sdk',
  'anthropic: the Messages API',
  {
    create: say('Hello. END', { cache_read: 300 }),
    stream: say('One.', { deltas: 1, ping: true }),
    stream_helper: say('One two three.', { deltas: 4, output: 9 }),
    tools: ROUNDS,
    tool_runner: ROUNDS,
    tool_runner_streamed: ROUNDS,
    thinking: steps(call({ tool: 'get_weather', args: { city: 'Bern' } }, { thinking: 'Which city?' }), thought('Sunny.')),
    parse: structured(ADA),
    parse_streamed: structured(ADA),
    cache_control: say('Hello.', { cache_creation: 50, ephemeral_1h: 20 }),
    count_tokens: 'count tokens=1234',
    documents: directive('cited', { citations: CITATIONS }),
    asynchronous: say('At once.'),
    error_in_stream: 'error_event after=2',
    retries: heals('After all.'),
    abort: 'hang after=2',
    abort_asynchronous: 'hang after=2',
    timeout: 'hang',
  },
  async (ran) => {
    const { value, calls } = ran;
    assert.match(value('version'), /^2\./);
    const created = value('create');
    assert.deepEqual([created.content, created.stop, created.cache_read], [[{ type: 'text', text: 'Hello. ' }], 'stop_sequence', 300]);
    assert.match(created.request_id, /^req_/);
    const [sent] = calls('create');
    assert.deepEqual([callerSystem(sent), sent.body.model], ['Be brief.', MODEL]);
    assert.deepEqual(value('stream'), ['message_start', 'content_block_start', 'content_block_delta', 'content_block_stop', 'message_delta', 'message_stop']);
    const helped = value('stream_helper');
    assert.deepEqual([helped.pieces.length, helped.pieces.join(''), helped.text, helped.output_tokens], [4, helped.text, 'One two three.', 9]);
    assert.equal(value('tools'), ANSWER);
    assert.equal(value('tool_runner'), ANSWER);
    assert.deepEqual(value('tool_runner_streamed'), [ANSWER, 3]);
    for (const check of ['tools', 'tool_runner', 'tool_runner_streamed']) assert.match(roundsOf(ran, check)[0].body.tools[0].description, /^The weather of a city/);
    const { kept, ...thinking } = value('thinking');
    assert.deepEqual(thinking, { thoughts: 'Which city?', first: ['thinking', 'tool_use'], second: ['thinking', 'text'] });
    const [, next] = calls('thinking');
    assert.deepEqual(conversationOf(next)[1].content[0], kept);
    assert.deepEqual(next.body.thinking, { type: 'enabled', budget_tokens: 1024 });
    for (const check of ['parse', 'parse_streamed']) assert.deepEqual(value(check), ADA);
    assertPersonAsked([...calls('parse'), ...calls('parse_streamed')]);
    assert.deepEqual(value('cache_control').cache_creation, { ephemeral_5m_input_tokens: 30, ephemeral_1h_input_tokens: 20 });
    assert.equal(callerSystem(calls('cache_control')[0]), 'Be brief.');
    assert.equal(value('count_tokens'), 1234);
    const { listed, one } = value('models');
    assert.ok(listed.includes(MODEL) && listed.length > 5 && new Set(listed).size === listed.length, `${listed}`);
    assert.deepEqual(one, [MODEL, 'model']);
    assert.deepEqual(value('documents'), { text: ['It is green.', 'It is green.'], cited: [CITATIONS, CITATIONS], streamed: ['Grass is green.'] });
    for (const call of calls('documents')) {
      const [image, pdf, grass] = conversationOf(call)[0].content;
      assert.deepEqual([image.source.data, pdf.source.data, grass.source.data], [PNG, PDF, 'Grass is green.']);
      assert.deepEqual([grass.title, grass.citations], ['Grass', { enabled: true }]);
    }
    assert.deepEqual(value('asynchronous'), ['At once.', 'At once.']);
    for (const [status, [kind, got, type, message, has_id]] of Object.entries(value('errors'))) {
      assert.deepEqual([kind, got, type, has_id], [status === '529' ? 'OverloadedError' : STATUSES[status], Number(status), TYPES[status], true]);
      assert.ok(message.includes(status === '404' ? 'selected model' : NOTICE), message);
    }
    assert.equal(value('bad_key'), 'AuthenticationError');
    const [kind, message] = value('bad_parameter');
    assert.deepEqual([kind, /max_tokens/.test(message)], ['BadRequestError', true]);
    const broken = value('error_in_stream');
    assert.deepEqual([broken.error, /Overloaded/.test(broken.message), broken.pieces.length > 0], [true, true, true]);
    assert.equal(value('retries'), 'After all.');
    assert.ok(calls('retries').length > 1);
    assert.ok(value('abort'));
    assert.equal(value('abort_asynchronous'), true);
    assert.equal(value('timeout'), 'APITimeoutError');
    for (const check of ['abort', 'abort_asynchronous', 'timeout']) await clientLeaves(calls(check));
  },
  failing,
);

// ---- what is built upon them ---------------------------------------------------------------------

/** What is answered once and again by each of so many models. */
const times = (count, value) => Array.from({ length: count }, () => value);
const both = (value) => ({ openai: value, anthropic: value });

test(
  'newest',
  'litellm_library',
  'litellm as a library, openai/ and anthropic/',
  {
    create: say('Hello.', { cache_read: 300 }),
    stream: say('One two three.', { deltas: 4, output: 9 }),
    tools: ROUNDS,
    tools_anthropic: ROUNDS,
    parse: structured(ADA),
    parse_anthropic: call({ tool: 'json_tool_call', args: ADA }),
    thinking: thought('I thought.'),
    asynchronous: say('At once.'),
    responses: say('Hello.'),
    errors: 'error status=400 message="not so"',
  },
  async (ran) => {
    const { value, calls } = ran;
    value('version');
    assert.deepEqual(value('create'), both(['Hello.', 'stop', 300]));
    assert.deepEqual(value('stream'), both(['One two three.', true, 9]));
    for (const check of ['tools', 'tools_anthropic']) {
      assert.equal(value(check), ANSWER);
      roundsOf(ran, check);
    }
    assert.deepEqual([value('parse'), value('parse_anthropic')], [ADA, ADA]);
    assertPersonAsked(calls('parse'));
    assert.deepEqual(value('thinking'), both(['Let me think.', 'I thought.']));
    assert.deepEqual(calls('thinking').map(({ body }) => body.thinking.type), ['enabled', 'enabled']);
    assert.equal(value('asynchronous'), 'At once.');
    assert.equal(value('responses'), 'Hello.');
    assert.deepEqual(value('errors'), both('BadRequestError'));
    assert.deepEqual(value('bad_key'), both('AuthenticationError'));
    for (const check of ['create', 'stream', 'thinking']) assert.equal(calls(check).length, 2);
  },
);

test(
  'newest',
  'langchain_agents',
  'LangChain and LangGraph',
  {
    invoke: say('Hello.'),
    stream: say('One two three.', { deltas: 4, output: 9 }),
    agent: ROUNDS,
    agent_anthropic: ROUNDS,
    agent_responses: ROUNDS,
    graph: ROUNDS,
    parse: structured(ADA),
    asynchronous: say('At once.'),
    errors: 'error status=400 message="not so"',
  },
  async (ran) => {
    const { value, calls } = ran;
    assert.match(value('version'), /^1\./);
    assert.deepEqual(value('invoke'), times(4, 'Hello.'));
    assert.deepEqual(value('stream'), times(3, ['One two three.', 9]));
    assert.equal(value('agent'), ANSWER);
    assert.equal(callerSystem(roundsOf(ran, 'agent')[0]), 'Be brief.');
    assert.deepEqual(value('agent_anthropic'), [ANSWER, ['messages', 'values']]);
    assert.equal(value('agent_responses'), ANSWER);
    for (const check of ['agent_anthropic', 'agent_responses']) roundsOf(ran, check);
    assert.deepEqual(value('graph'), [ANSWER, ANSWER, 9]);
    assert.deepEqual(conversationOf(calls('graph').at(-1)).at(-1).content, ['And now?']);
    assert.deepEqual(value('parse'), [ADA, ADA]);
    assertPersonAsked(calls('parse'));
    assert.equal(value('asynchronous'), 'At once.');
    assert.deepEqual(value('errors'), ['OpenAIInvalidRequestError', 'AnthropicInvalidRequestError']);
  },
);

test(
  'newest',
  'ollama_clients',
  "Ollama's client, and LangChain's ChatOllama",
  {
    chat: say('Hello.', { output: 9 }),
    stream: say('One two three.', { deltas: 4, output: 9 }),
    tools: ROUNDS,
    parse: structured(ADA),
    think: thought('Sunny.'),
    images: say('I see.'),
    generate: say('Once.'),
    asynchronous: say('At once.', { deltas: 3 }),
    abort: 'hang after=2',
    errors: 'error status=400 message="not so"',
    error_in_stream: 'error_event after=2',
    langchain_invoke: say('Hello.', { output: 9 }),
    langchain_stream: say('One two three.', { deltas: 4 }),
    langchain_agent: ROUNDS,
    langchain_parse: structured(ADA),
    langchain_reasoning: thought('Sunny.'),
  },
  async (ran) => {
    const { value, calls } = ran;
    assert.match(value('version').join(), /^0\.6\.\d+,1\./);
    assert.deepEqual(value('chat'), ['Hello.', 'stop', 9, MODEL]);
    assert.equal(calls('chat')[0].body.temperature, 0.5);
    assert.deepEqual(value('stream'), ['One two three.', 5, 9, true]);
    assert.equal(value('tools'), ANSWER);
    assert.match(roundsOf(ran, 'tools')[0].body.tools[0].description, /^The weather of a city/);
    assert.deepEqual(value('parse'), ADA);
    assertPersonAsked(calls('parse'));
    assert.deepEqual(value('think'), ['Let me think.', 'Sunny.']);
    assert.equal(value('images'), 'I see.');
    assert.deepEqual(mediaOf(calls('images')[0]), { image: PNG });
    assert.deepEqual(value('generate'), ['Once.', 'Once.']);
    assert.equal(callerSystem(calls('generate')[0]), 'Be brief.');
    assert.equal(value('asynchronous'), 'At once.');
    assert.equal(value('abort'), true);
    await clientLeaves(calls('abort'));
    const errors = value('errors');
    assert.deepEqual(errors.map(([status]) => status), [400, 401, 404]);
    [/not so/, /^Missing API key/, /^\/api\/pull is not offered here: /].forEach((words, at) => assert.match(errors[at][1], words));
    assert.match(value('error_in_stream'), /Overloaded/);
    const [listed, capabilities, architecture, loaded] = value('models');
    assert.ok(listed.includes(`${MODEL}:latest`), `${listed}`);
    assert.deepEqual([capabilities.includes('tools'), architecture, loaded], [true, 'claude', []]);
    assert.deepEqual(value('langchain_invoke'), ['Hello.', 9]);
    assert.deepEqual(value('langchain_stream'), ['One two three.', 'stop']);
    assert.equal(value('langchain_agent'), ANSWER);
    assert.equal(callerSystem(roundsOf(ran, 'langchain_agent')[0]), 'Be brief.');
    assert.deepEqual(value('langchain_parse'), ADA);
    assertPersonAsked(calls('langchain_parse'));
    assert.deepEqual(value('langchain_reasoning'), ['Let me think.', 'Sunny.']);
  },
);

test(
  'newest',
  'pydantic_agents',
  'pydantic-ai',
  {
    chat: ROUNDS,
    responses: ROUNDS,
    messages: ROUNDS,
    stream: say('One two three.', { deltas: 4 }),
    second_turn: steps(say('First.'), say('Second.')),
    output_tool: call({ tool: 'final_result', args: ADA }),
    output_schema: structured(ADA),
    errors: 'error status=400 message="not so"',
  },
  async (ran) => {
    const { value, calls } = ran;
    assert.match(value('version'), /^2\./);
    assert.deepEqual(value('chat'), [ANSWER, 3]);
    assert.deepEqual([value('responses'), value('messages')], [ANSWER, ANSWER]);
    for (const check of ['chat', 'responses', 'messages']) assert.equal(callerSystem(roundsOf(ran, check)[0]), 'Be brief.');
    for (const [name, pieces] of Object.entries(value('stream'))) assert.deepEqual([name, pieces.join(''), pieces.length > 1], [name, 'One two three.', true]);
    assert.deepEqual(value('second_turn'), ['First.', 'Second.']);
    assert.deepEqual(value('output_tool'), ADA);
    assert.ok(toolsOf(calls('output_tool')[0]).final_result);
    assert.deepEqual(value('output_schema'), ADA);
    assertPersonAsked(calls('output_schema'));
    for (const told of Object.values(value('errors'))) assert.deepEqual(told, [true, 400]);
  },
);

test(
  'newest',
  'openai_agents',
  'openai-agents',
  {
    responses: ROUNDS,
    chat: ROUNDS,
    stream: ROUNDS,
    output_type: structured(ADA),
    handoff: steps(call({ tool: 'transfer_to_poet', args: {} }), say('A verse.')),
    session: steps(say('First.'), say('Second.')),
    chained: steps(say('First.'), say('Second.')),
    errors: 'error status=400 message="not so"',
  },
  async (ran) => {
    const { value, calls } = ran;
    assert.match(value('version'), /^0\./);
    assert.deepEqual([value('responses'), value('chat')], [ANSWER, ANSWER]);
    const [answer, kinds] = value('stream');
    assert.equal(answer, ANSWER);
    for (const kind of ['tool_called', 'tool_output', 'message_output_created']) assert.ok(kinds.includes(kind), `${kind} in ${kinds}`);
    for (const check of ['responses', 'chat', 'stream']) assert.equal(callerSystem(roundsOf(ran, check)[0]), 'Be brief.');
    assert.deepEqual(value('output_type'), [ADA, ADA]);
    assertPersonAsked(calls('output_type'));
    assert.deepEqual(value('handoff'), ['A verse.', 'poet']);
    assert.deepEqual(calls('handoff').map(callerSystem), ['You are a clerk.', 'You are a poet.']);
    for (const check of ['session', 'chained']) {
      assert.deepEqual(value(check), ['First.', 'Second.']);
      assert.deepEqual(conversationOf(calls(check)[1]).map(({ role }) => role), ['user', 'assistant', 'user']);
    }
    assert.deepEqual(value('errors'), times(2, 'BadRequestError'));
  },
);

const ANSWERED = [call({ tool: 'final_answer', args: { answer: ANSWER } })];

test(
  'newest',
  'smol_agents',
  'smolagents',
  {
    tool_calling: steps(call({ tool: 'get_weather', args: { city: 'Bern' } }), ...ANSWERED),
    tool_calling_streamed: steps(call({ tool: 'get_weather', args: { city: 'Bern' } }), ...ANSWERED),
    code: steps(say('Thought: I ask.\n<code>\nsky = get_weather("Bern")\nprint(sky)\n</code>'), say('Thought: I know.\n<code>\nfinal_answer(sky)\n</code>')),
  },
  async (ran) => {
    const { value, calls } = ran;
    assert.match(value('version'), /^1\./);
    assert.equal(value('tool_calling'), ANSWER);
    assert.deepEqual(value('tool_calling_streamed'), [ANSWER, true]);
    for (const check of ['tool_calling', 'tool_calling_streamed']) {
      const [asked, told] = calls(check);
      assert.deepEqual(Object.keys(toolsOf(asked)).sort(), ['final_answer', 'get_weather']);
      assert.match(JSON.stringify(conversationOf(told)), /Bern: sunny/);
    }
    assert.equal(value('code'), 'Bern: sunny');
    assert.match(JSON.stringify(conversationOf(calls('code')[1])), /Bern: sunny/);
  },
);

const fields = (values) => say([...Object.entries(values), ['completed', '']].map(([name, value]) => `[[ ## ${name} ## ]]\n${value}`).join('\n\n'));

test(
  'newest',
  'dspy_programs',
  'DSPy',
  {
    call: say('Hello.'),
    predict: fields({ answer: 'Four.' }),
    chain_of_thought: fields({ reasoning: 'Two and two.', answer: '4' }),
    react: fields({ next_thought: 'I ask.', next_tool_name: 'get_weather', next_tool_args: '{"city": "Bern"}' }),
    errors: 'error status=400 message="not so"',
  },
  async ({ value, calls }) => {
    assert.match(value('version'), /^3\./);
    assert.deepEqual(value('call'), ['Hello.', 'Hello.']);
    assert.equal(value('predict'), 'Four.');
    assert.deepEqual(value('chain_of_thought'), ['Two and two.', 4]);
    assert.match(callerSystem(calls('chain_of_thought')[0]), /Your input fields are/);
    assert.equal(value('react'), 'Sunny.');
    assert.match(JSON.stringify(conversationOf(calls('react')[1])), /Bern: sunny/);
    assert.equal(value('errors'), 'LMInvalidRequestError');
  },
  // What the tool tells plays the rest: all steps are one message of the user's.
  () => ({ observed: `[[scenario:${fields({ next_thought: 'Enough.', next_tool_name: 'finish', next_tool_args: '{}', reasoning: 'It says so.', answer: 'Sunny.' })}]]` }),
);

const YOUNG = { name: 'Ada', age: 7 };

test(
  'middle',
  'instructor_models',
  'instructor',
  {
    by_tools: call({ tool: 'Person', args: ADA }),
    by_schema: structured(ADA),
    by_responses: call({ tool: 'Person', args: ADA }),
    by_anthropic: call({ tool: 'Person', args: ADA }),
    partial: call({ tool: 'Person', args: ADA }, { deltas: 6 }),
    asked_again: steps(call({ tool: 'Adult', args: YOUNG }), call({ tool: 'Adult', args: ADA })),
    errors: 'error status=400 message="not so"',
  },
  async ({ value, calls }) => {
    assert.match(value('version'), /^1\./);
    for (const check of ['by_tools', 'by_responses', 'by_anthropic']) {
      assert.deepEqual(value(check), ADA);
      const [{ body }] = calls(check);
      assert.deepEqual([body.tools[0].name, body.tool_choice.name], ['Person', 'Person']);
    }
    assert.deepEqual(value('by_schema'), ADA);
    assertPersonAsked(calls('by_schema'));
    assert.deepEqual(value('partial'), [ADA, true]);
    assert.deepEqual(value('asked_again'), ADA);
    assert.match(JSON.stringify(conversationOf(calls('asked_again')[1])), /too young/);
    assert.equal(value('errors'), 'InstructorRetryException');
  },
);

test(
  'middle',
  'llama_index_agents',
  'llama-index',
  {
    invoke: say('Hello.'),
    stream: say('One two three.', { deltas: 4 }),
    agent: ROUNDS,
    parse: call({ tool: 'Person', args: ADA }),
    errors: 'error status=400 message="not so"',
  },
  async (ran) => {
    const { value, calls } = ran;
    assert.match(value('version'), /^0\./);
    assert.equal(value('invoke'), 'Hello.');
    assert.equal(value('stream'), 'One two three.');
    assert.equal(value('agent'), ANSWER);
    assert.equal(callerSystem(roundsOf(ran, 'agent')[0]), 'Be brief.');
    assert.deepEqual(value('parse'), ADA);
    assert.deepEqual(Object.keys(toolsOf(calls('parse')[0])), ['Person']);
    assert.equal(value('errors'), 'BadRequestError');
  },
);

// ---- commands ------------------------------------------------------------------------------------

const programOf = (lock, name) => path.join(CLIENTS, lock, 'bin', name);

python.test('python, llm: a question, tools, a schema, a second turn', { skip: missing('newest'), slow: true }, async (t) => {
  const user = mkdtempSync(path.join(tmpdir(), 'claude-openai-llm-'));
  t.defer(async () => rmSync(user, { recursive: true, force: true }));
  const model = { model_id: 'sonnet', model_name: MODEL, api_base: `${t.proxy.url}/v1`, api_key_name: 'proxy', supports_tools: true, supports_schema: true, vision: true };
  writeFileSync(path.join(user, 'extra-openai-models.yaml'), JSON.stringify([model]));
  writeFileSync(path.join(user, 'keys.json'), JSON.stringify({ proxy: KEY }));
  const llm = async (...args) => {
    const { code, output, complaints } = await runProgram(t, [programOf('newest', 'llm'), ...args], { env: { LLM_USER_PATH: user } });
    assert.equal(code, 0, `${output}\n${complaints}`);
    return output.trim();
  };
  const text = (scenario, mark) => t.text(scenario, mark);
  const calls = (mark) => t.calls().filter(({ raw }) => raw.includes(mark));
  assert.equal(await llm('-m', 'sonnet', '-s', 'Be brief.', text(steps(say('First.'), say('Second.')), 'llm-turns')), 'First.');
  assert.equal(await llm('-c', 'And now?'), 'Second.');
  const [first, second] = calls('llm-turns');
  assert.equal(callerSystem(first), 'Be brief.');
  assert.deepEqual(conversationOf(second).slice(1), [{ role: 'assistant', content: ['First.'] }, { role: 'user', content: ['And now?'] }]);
  const tool = 'def get_weather(city: str) -> str:\n    "The weather of a city"\n    return f"{city}: sunny"\n';
  assert.match(await llm('-m', 'sonnet', '--functions', tool, text(ROUNDS, 'llm-tools')), /Sunny everywhere\.$/);
  assertRounds({ calls: () => calls('llm-tools') });
  const schema = JSON.stringify({ type: 'object', properties: { name: { type: 'string' }, age: { type: 'integer' } }, required: ['name', 'age'] });
  assert.deepEqual(JSON.parse(await llm('-m', 'sonnet', '--schema', schema, text(structured(ADA), 'llm-schema'))), ADA);
  assertPersonAsked(calls('llm-schema'));
});

const EDIT = `I greet in German.

hello.py
\`\`\`python
<<<<<<< SEARCH
print("Hello")
=======
print("Hallo")
>>>>>>> REPLACE
\`\`\`
`;

for (const [how, provider, environment] of [
  ['openai/', 'openai', ({ url }) => ({ OPENAI_API_BASE: `${url}/v1`, OPENAI_API_KEY: KEY })],
  ['anthropic/', 'anthropic', ({ url }) => ({ ANTHROPIC_API_BASE: url, ANTHROPIC_API_KEY: KEY })],
  ['the file that `claude-openai connect` writes', 'openai'],
])
  python.test(`python, aider with ${how} edits a file in a git repository and commits it`, { skip: missing('earlier'), slow: true }, async (t) => {
    const api = await startMessagesApi({ scenario: ({ system }) => directive('plain', { text: /commit message/i.test(system.join('\n')) ? 'feat: greet in German' : EDIT, deltas: 5 }) });
    t.defer(() => api.close());
    const proxy = await startProxy({ url: api.url, cli: t.cli, args: ['--api-key', KEY, '--spares', '0'] });
    t.defer(async () => assert.deepEqual((await proxy.stop()).faults, []));
    const git = (work, ...args) => execFileSync('git', ['-c', 'user.name=Ada', '-c', 'user.email=ada@example.org', ...args], { cwd: work, encoding: 'utf8' });
    const flags = ['--yes-always', '--no-check-update', '--no-show-release-notes', '--analytics-disable', '--no-gitignore', '--no-pretty', '--no-show-model-warnings', '--map-tokens', '1024', '--no-suggest-shell-commands', '--disable-playwright', '--no-detect-urls'];
    const model = `${provider}/${MODEL}`;
    const chosen = environment ? ['--model', model, '--edit-format', 'diff'] : [];
    const connect = ['connect', 'aider', '--write', '--yes', '--url', proxy.url, '--model', MODEL, '--key', KEY];
    const ran = await runProgram(t, [programOf('earlier', 'aider'), ...chosen, '--weak-model', model, ...flags, '--message', 'Please greet in German.', 'hello.py'], {
      env: { ...environment?.(proxy), GIT_AUTHOR_NAME: 'Ada', GIT_AUTHOR_EMAIL: 'ada@example.org', GIT_COMMITTER_NAME: 'Ada', GIT_COMMITTER_EMAIL: 'ada@example.org' },
      prepare: ({ home, work }) => {
        if (!environment) execFileSync(PROXY, connect, { cwd: home, env: { HOME: home }, stdio: 'ignore' });
        git(work, 'init', '-q');
        writeFileSync(path.join(work, 'hello.py'), 'print("Hello")\n');
        git(work, 'add', '.');
        git(work, 'commit', '-qm', 'A greeting');
      },
    });
    assert.equal(ran.code, 0, `${ran.output}\n${ran.complaints}`);
    assert.equal(readFileSync(path.join(ran.work, 'hello.py'), 'utf8'), 'print("Hallo")\n', ran.output);
    assert.equal(git(ran.work, 'log', '--format=%s'), 'feat: greet in German\nA greeting\n');
    assert.equal(git(ran.work, 'status', '--porcelain', '--untracked-files=no'), '');
    const [edit, commit, ...others] = api.requests.filter(({ path: where }) => where === '/v1/messages');
    assert.deepEqual([others.length, edit.body.model, commit.body.model], [0, MODEL, MODEL]);
    assert.match(callerSystem(edit), /SEARCH\/REPLACE/);
    assert.match(JSON.stringify(conversationOf(edit).at(-1)), /Please greet in German/);
    assert.match(JSON.stringify(conversationOf(commit)), /\+print\(\\+"Hallo/);
  });
