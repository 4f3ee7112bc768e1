// instructor: a person by a tool, by a schema and by words, and in part as it comes.

import Instructor from '@instructor-ai/instructor';
import OpenAI from 'openai';
import { z } from 'zod/v3';
import { check, given, rejected } from './checks.mjs';

const Person = z.object({ name: z.string(), age: z.number().int() });
const oai = new OpenAI({ baseURL: `${given.url}/v1`, apiKey: given.key, maxRetries: 0 });
const create = (mode, content, more = {}) =>
  Instructor({ client: oai, mode }).chat.completions.create({
    model: given.model,
    messages: [{ role: 'user', content }],
    response_model: { schema: Person, name: 'Person' },
    ...more,
  });
const ask = async (mode, text) => {
  const { _meta, ...value } = await create(mode, text); // the usage
  return value;
};

await check('by_tools', (text) => ask('TOOLS', text));
await check('by_schema', (text) => ask('JSON_SCHEMA', text));
await check('by_words', (text) => ask('MD_JSON', text));

await check('partial', async (text) => {
  const states = [];
  for await (const { _meta, ...state } of await create('TOOLS', text, { stream: true })) states.push(state);
  return [states.at(-1), states.length > 2];
});

await check('error', async (text) => (await rejected(ask('TOOLS', text))).status);
