// One question in each dialect, and the shape of a refusal.

import assert from 'node:assert/strict';
import { assertError, assertKeys } from './chat.test.mjs';

/** By path: the body of a question, and where the answer's words are. */
export const QUESTIONS = {
  '/chat/completions': [(text) => ({ messages: [{ role: 'user', content: text }] }), (json) => json.choices[0].message.content],
  '/completions': [(text) => ({ prompt: text }), (json) => json.choices[0].text],
  '/responses': [(text) => ({ input: text, store: false }), (json) => json.output.at(-1).content[0].text],
  '/messages': [
    (text) => ({ max_tokens: 99, messages: [{ role: 'user', content: text }] }),
    (json) => json.content.find(({ type }) => type === 'text').text,
  ],
};
export const SPOKEN = 'Hello from the loopback API.';

export function assertRefused(result, status, message = /./) {
  assert.equal(result.status, status, result.text);
  assertKeys(result.json, ['error']);
  assertError(result.json.error);
  assert.match(result.json.error.message, message);
}
