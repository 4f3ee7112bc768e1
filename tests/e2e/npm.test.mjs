// Libraries from npm, unmodified, a program each in npm/; make installs those of the lock files in npm/ and npm_large/.

import assert from 'node:assert/strict';
import path from 'node:path';
import { call, callerSystem, conversationOf, processOf, say, steps, toolsOf } from './chat_client.mjs';
import { ADA, ANSWER, assertPersonAsked, ROUNDS, roundsOf, structured } from './client_tasks.mjs';
import { suite } from './harness.mjs';
import { CLIENTS, testChecks } from './language_client.mjs';

export const npm = suite();

/** A test of a program of npm/; `more(t)` goes along on its standard input. `needs`: the lock file with its packages. */
function test(file, what, scenarios, body, { needs = 'npm', more } = {}) {
  testChecks(npm, `npm, ${what}`, { needs, command: [process.execPath, path.join(CLIENTS, needs, `${file}.mjs`)], scenarios, more }, body);
}

const REFUSED = 'error status=400 message="not so"';
const TURNS = steps(say('First.'), say('Second.'));
const STREAMED = say('One two three.', { deltas: 4 });

/** The three cities were asked for with the tool, below the system prompt of the program. */
function assertWeather(ran, check, description = 'The weather of a city') {
  const [first] = roundsOf(ran, check);
  assert.equal(toolsOf(first).get_weather.description, description);
  assert.equal(callerSystem(first), 'Be brief.');
}

/** Two turns: the second call of the API has the first answer, and what was asked then. */
function assertTurns({ value, calls }, check) {
  assert.deepEqual(value(check), ['First.', 'Second.']);
  assert.deepEqual(conversationOf(calls(check)[1]).slice(1), [{ role: 'assistant', content: ['First.'] }, { role: 'user', content: ['And now?'] }]);
}

function assertPerson({ value, calls }, check) {
  assert.deepEqual(value(check), ADA);
  assertPersonAsked(calls(check));
}

/** The same checks of each of a program's APIs. */
const eachOf = (apis, checks) => Object.fromEntries(apis.flatMap((api) => Object.entries(checks).map(([check, scenario]) => [`${api}${check}`, scenario])));

test(
  'openai_agents',
  '@openai/agents: a tool, streams, an output type, sessions, over responses and chat completions',
  {
    ...eachOf(['responses', 'chat'], { '': ROUNDS, _stream: ROUNDS, _output_type: structured(ADA), _session: TURNS, _error: REFUSED }),
    chained: TURNS,
  },
  (ran) => {
    for (const api of ['responses', 'chat']) {
      assert.equal(ran.value(api), ANSWER);
      assertWeather(ran, api);
      const [answer, kinds] = ran.value(`${api}_stream`);
      assert.equal(answer, ANSWER);
      for (const kind of ['tool_called', 'tool_output', 'message_output_created']) assert.ok(kinds.includes(kind), `${kind} in ${kinds}`);
      assertWeather(ran, `${api}_stream`);
      assertPerson(ran, `${api}_output_type`);
      assertTurns(ran, `${api}_session`);
      assert.equal(ran.value(`${api}_error`), 400);
    }
    assertTurns(ran, 'chained');
  },
);

const inCity = (...cities) => call(cities.map((city) => ({ tool: 'mcp__weather__get_weather', args: { city } })), { thinking: 'Hm.' });

test(
  'agent_sdk',
  'the Claude Agent SDK: a tool of an MCP server in its process, a session',
  { tools: steps(inCity('Zürich'), inCity('Bern', 'Basel'), say(ANSWER)), turns: TURNS },
  (ran) => {
    assert.deepEqual(ran.value('tools'), ['success', ANSWER, 4]);
    const [first, ...others] = ran.calls('tools');
    assert.deepEqual(others.map(processOf), [processOf(first), processOf(first)], 'the process that waits goes on');
    for (const city of ['Zürich', 'Bern', 'Basel']) assert.match(JSON.stringify(conversationOf(others[1])), new RegExp(`${city}: sunny`));
    assert.equal(toolsOf(first).mcp__weather__get_weather.description, 'The weather of a city');
    assert.match(first.system.join('\n'), /Be brief\./);
    assert.deepEqual(ran.value('turns'), ['First.', 'Second.']);
    const [, second] = ran.calls('turns');
    assert.deepEqual(conversationOf(second)[1], { role: 'assistant', content: ['First.'] });
    assert.match(JSON.stringify(conversationOf(second)[2]), /And now\?/);
  },
  { more: (t) => ({ program: t.cli }) },
);

test(
  'tanstack_ai',
  'TanStack AI: a tool, a schema, two turns, over responses, chat completions and messages',
  {
    ...eachOf(['responses', 'chat', 'messages'], { '': ROUNDS, _turns: TURNS, _error: REFUSED }),
    ...eachOf(['responses', 'chat'], { _schema: structured(ADA) }),
    messages_schema: call({ tool: 'structured_output', args: ADA }),
  },
  (ran) => {
    for (const api of ['responses', 'chat', 'messages']) {
      assert.equal(ran.value(api), ANSWER);
      assertWeather(ran, api);
      assertTurns(ran, `${api}_turns`);
      assert.match(ran.value(`${api}_error`), /not so/);
    }
    for (const api of ['responses', 'chat']) assertPerson(ran, `${api}_schema`);
    assert.deepEqual(ran.value('messages_schema'), ADA);
    assert.equal(ran.calls('messages_schema')[0].body.tool_choice.name, 'structured_output');
  },
);

const ALL = { tools: ROUNDS, stream: STREAMED, schema: structured(ADA), turns: TURNS, error: REFUSED };

const LARGE = { needs: 'npm_large' };

test('mastra_agents', 'Mastra: a tool, a stream, a schema, two turns', ALL, (ran) => {
  assert.equal(ran.value('tools'), ANSWER);
  assertWeather(ran, 'tools');
  const pieces = ran.value('stream');
  assert.deepEqual([pieces.join(''), pieces.length > 1], ['One two three.', true]);
  assertPerson(ran, 'schema');
  assertTurns(ran, 'turns');
  assert.equal(ran.value('error'), 400);
}, LARGE);

test('genkit_flows', 'genkit: a tool, a stream, a schema, two turns', { ...ALL, schema: say(JSON.stringify(ADA)) }, (ran) => {
  assert.equal(ran.value('tools'), ANSWER);
  assertWeather(ran, 'tools', ''); // its plug-in sends no description
  const [pieces, whole] = ran.value('stream');
  assert.deepEqual([pieces.join(''), whole, pieces.length > 1], ['One two three.', 'One two three.', true]);
  assert.deepEqual(ran.value('schema'), ADA);
  assert.match(JSON.stringify(conversationOf(ran.calls('schema')[0])), /conform to the following schema.*age/);
  assertTurns(ran, 'turns');
  assert.match(ran.value('error'), /not so/);
}, LARGE);

test(
  'instructor_models',
  'instructor: by a tool, by a schema, by words, in part',
  {
    by_tools: call({ tool: 'Person', args: ADA }),
    by_schema: structured(ADA),
    by_words: say(`\`\`\`json\n${JSON.stringify(ADA)}\n\`\`\``),
    partial: call({ tool: 'Person', args: ADA }, { deltas: 6 }),
    error: REFUSED,
  },
  ({ value, calls }) => {
    for (const check of ['by_tools', 'by_schema', 'by_words']) assert.deepEqual(value(check), ADA, check);
    const [{ body }] = calls('by_tools');
    assert.deepEqual([body.tools[0].name, body.tool_choice.name], ['Person', 'Person']);
    assertPersonAsked(calls('by_schema'));
    assert.deepEqual(value('partial'), [ADA, true]);
    assert.equal(value('error'), 400);
  },
);
