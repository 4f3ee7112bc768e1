// Clients of Go, Rust and Java, unmodified, a program each: an answer whole and streamed, rounds of tools, JSON by a schema, errors, an
// abort. `make` builds the programs of go/, rust/ and java/ into build/clients.

import assert from 'node:assert/strict';
import path from 'node:path';
import { conversationOf, say, steps, toolsOf } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { ADA, ANSWER, assertPersonAsked, clientLeaves, ROUNDS, roundsOf, structured } from './client_tasks.mjs';
import { suite } from './harness.mjs';
import { CLIENTS, testChecks } from './language_client.mjs';

export const languages = suite();

const SCENARIOS = {
  chat: say('Hello.', { cache_read: 300 }),
  stream: say('One two three.', { deltas: 4, output: 9 }),
  tools: ROUNDS,
  parse: structured(ADA),
  refused: 'error status=400 message="not so"',
  broken: 'error_event after=2',
  abort: 'hang after=2',
};
const ERRORS = { refused: 'invalid_request_error', bad_key: 'authentication_error' };

/**
 * A test of a program; `scenarios` and `body` are for what only this client does. `finish` and `errors`: how it names an answer's end, and
 * what it tells of the kind of an error; `field`: what it sends a bad value of; `broken`: what it tells of an error within a stream.
 */
function test(name, needs, command, { scenarios = {}, finish = 'stop', errors = ERRORS, field = 'temperature', broken = /verloaded/, body = () => {} } = {}) {
  testChecks(languages, name, { needs, command, scenarios: { ...SCENARIOS, bad_field: say('Hello.'), ...scenarios } }, async (ran) => {
    const { value, calls } = ran;
    assert.deepEqual(value('chat'), ['Hello.', finish, 300]);
    assert.deepEqual(value('stream'), ['One two three.', 4, 9]);
    for (const check of ['chat', 'stream']) assert.deepEqual(calls(check).map(({ body: sent }) => sent.model), [MODEL]);
    assert.equal(value('tools'), ANSWER);
    assertWeatherAsked(roundsOf(ran, 'tools'));
    assert.deepEqual(value('parse'), ADA);
    assertPersonAsked(calls('parse'));
    for (const [check, kind, why] of [
      ['refused', errors.refused, /not so/],
      ['bad_field', errors.refused, new RegExp(field)],
    ]) {
      const [status, type, message] = value(check);
      assert.deepEqual([status, type], [400, kind]);
      assert.match(message, why);
    }
    assert.deepEqual([calls('refused').length > 0, calls('bad_field').length], [true, 0]); // the CLI asks again without a beta
    assert.deepEqual(value('bad_key').slice(0, 2), [401, errors.bad_key]);
    assert.match(value('broken'), broken);
    assert.equal(value('abort'), true);
    await clientLeaves(calls('abort'));
    body(ran);
  });
}

function assertWeatherAsked([sent]) {
  const { description, input_schema } = toolsOf(sent).get_weather;
  assert.deepEqual([description, input_schema.properties.city.type, input_schema.required], ['The weather of a city', 'string', ['city']]);
}

const AZURE = { azure: say('From Azure.') };
const assertAzure = ({ value, calls }) => {
  assert.equal(value('azure'), 'From Azure.');
  assert.equal(calls('azure')[0].body.model, MODEL);
};
const OPENAI = { ...AZURE, responses: steps(say('First.'), say('Second.')), responses_tools: ROUNDS, responses_parse: structured(ADA) };
const assertOpenAi = (ran) => {
  const { value, calls } = ran;
  assertAzure(ran);
  assert.deepEqual(value('responses'), ['First.', 'Second.']);
  assert.deepEqual(
    conversationOf(calls('responses')[1]).map(({ role }) => role),
    ['user', 'assistant', 'user'],
  );
  assert.equal(value('responses_tools'), ANSWER);
  assertWeatherAsked(roundsOf(ran, 'responses_tools'));
  assert.deepEqual(value('responses_parse'), ADA);
  assertPersonAsked(calls('responses_parse'));
};

// ---- Go ------------------------------------------------------------------------------------------

const go = (program) => [path.join(CLIENTS, 'go', program)];

test('go, openai-go: chat completions, responses, Azure', 'go', go('openai_go'), { scenarios: OPENAI, body: assertOpenAi });

test('go, anthropic-sdk-go: messages, the tool runner, counting, models', 'go', go('anthropic_sdk_go'), {
  scenarios: { tool_runner: ROUNDS, count_tokens: 'count tokens=1234' },
  finish: 'end_turn',
  field: 'max_tokens',
  body: (ran) => {
    assert.equal(ran.value('tool_runner'), ANSWER);
    assertWeatherAsked(roundsOf(ran, 'tool_runner'));
    assert.equal(ran.value('count_tokens'), 1234);
    const found = ran.value('models');
    assert.ok(found.includes(MODEL) && found.length > 5 && new Set(found).size === found.length, `${found}`);
  },
});

test('go, sashabaranov/go-openai: chat completions, Azure', 'go', go('go_openai'), { scenarios: AZURE, body: assertAzure });

// ---- Rust ----------------------------------------------------------------------------------------

test('rust, async-openai: chat completions, responses, Azure', 'rust', [path.join(CLIENTS, 'rust', 'debug', 'claude-openai-e2e')], { scenarios: OPENAI, body: assertOpenAi });

// ---- Java ----------------------------------------------------------------------------------------

const java = (...program) => ['java', '-XX:TieredStopAtLevel=1', '-cp', ['classes', 'libraries/*'].map((name) => path.join(CLIENTS, 'java', name)).join(':'), ...program];

test('java, openai-java: chat completions, responses, Azure', 'java', java('OpenAiJava'), { scenarios: OPENAI, body: assertOpenAi });

for (const [provider, what] of [
  ['openai', 'chat completions'],
  ['responses', 'responses'],
  ['anthropic', 'messages'],
])
  test(`java, langchain4j: ${what}, an AI service with a tool, one that answers by a class`, 'java', java('LangChain4j', provider), {
    finish: 'STOP',
    broken: provider === 'openai' ? /^it ended: null$/ : undefined, // it passes over what is no chunk
    errors: { refused: 'InvalidRequestException', bad_key: 'AuthenticationException' },
  });
