// genkit with its plug-in for compatible APIs: a tool, a stream, a schema, a second turn.

import { compatOaiModelRef, openAICompatible } from '@genkit-ai/compat-oai';
import { genkit, z } from 'genkit';
import { check, given, rejected, weatherOf } from './checks.mjs';

const ai = genkit({ plugins: [openAICompatible({ name: 'claude', apiKey: given.key, baseURL: `${given.url}/v1` })], model: `claude/${given.model}` });
const get_weather = ai.defineTool(
  { name: 'get_weather', description: 'The weather of a city', inputSchema: z.object({ city: z.string() }), outputSchema: z.string() },
  async (input) => weatherOf(input),
);

await check('tools', async (text) => (await ai.generate({ system: 'Be brief.', prompt: text, tools: [get_weather] })).text);

await check('stream', async (text) => {
  const { stream, response } = ai.generateStream(text);
  const pieces = [];
  for await (const chunk of stream) pieces.push(chunk.text);
  return [pieces, (await response).text];
});

await check('schema', async (text) => (await ai.generate({ prompt: text, output: { schema: z.object({ name: z.string(), age: z.number().int() }) } })).output);

await check('turns', async (text) => {
  const chat = [];
  for (const prompt of [text, 'And now?']) chat.push(await ai.generate({ messages: chat.at(-1)?.messages, prompt }));
  return chat.map((one) => one.text);
});

await check('error', async (text) => (await rejected(ai.generate(text))).message);
