// What the suites of real clients ask alike: a person as JSON, and the weather in three cities by two rounds of tools.

import assert from 'node:assert/strict';
import { z } from 'zod';
import { call, conversationOf, processOf, say, steps, toolsOf } from './chat_client.mjs';
import { eventually } from './harness.mjs';
import { directive } from './messages_api.mjs';

export const Person = z.object({ name: z.string(), age: z.number().int() });
export const ADA = { name: 'Ada', age: 36 };
export const City = z.object({ city: z.string() });
export const structured = (value, options = {}) => directive('structured', { value, ...options });

/** What the API got of a wish for a person: the schema, in each of the calls. */
export function assertPersonAsked(calls) {
  assert.ok(calls.length > 0);
  for (const sent of calls) {
    const properties = Object.entries(toolsOf(sent).StructuredOutput.input_schema.properties);
    assert.deepEqual(Object.fromEntries(properties.map(([name, { type }]) => [name, type])), { name: 'string', age: 'integer' });
  }
}

export const weatherOf = ({ city }) => `${city}: sunny`;
export const inCity = (...cities) => call(cities.map((city) => ({ tool: 'get_weather', args: { city } })));

/** Two rounds of tools, the second with two calls, and a text. */
export const ROUNDS = steps(inCity('Zürich'), inCity('Bern', 'Basel'), say('Sunny everywhere.', { input: 20, output: 5 }));
export const ANSWER = 'Sunny everywhere.';

/** What the API got of ROUNDS: three calls of one process, and each result with its call. */
export function assertRounds(t) {
  const calls = t.calls();
  assert.equal(calls.length, 3);
  assert.equal(new Set(calls.map(processOf)).size, 1, 'the process that waits goes on');
  const told = conversationOf(calls[2]);
  assert.deepEqual(
    told.map(({ role }) => role),
    ['user', 'assistant', 'user', 'assistant', 'user'],
  );
  const made = [told[1], told[3]].flatMap(({ content }) => content.filter((block) => block.call));
  assert.deepEqual(
    made.map(({ input }) => input.city),
    ['Zürich', 'Bern', 'Basel'],
  );
  const results = Object.fromEntries(
    [told[2], told[4]].flatMap(({ content }) => content.map((one) => [one.result, one.content])),
  );
  for (const { call: id, input } of made) assert.equal(results[id], weatherOf(input));
  return calls;
}

/** The same for a check of a program. */
export const roundsOf = (ran, check) => assertRounds({ calls: () => ran.calls(check) });

/** The API is left in the middle of the one answer that a client has left. */
export const clientLeaves = (calls) => eventually('the API is left', () => calls.length === 1 && calls[0].clientLeft);
