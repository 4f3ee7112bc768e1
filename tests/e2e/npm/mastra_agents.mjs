// Mastra: an agent whose model is a URL; with a tool, streamed, with a schema, over two turns.

import { Agent } from '@mastra/core/agent';
import { createTool } from '@mastra/core/tools';
import { check, City, given, Person, rejected, weatherOf } from './checks.mjs';

const get_weather = createTool({ id: 'get_weather', description: 'The weather of a city', inputSchema: City, execute: async (input) => weatherOf(input) });
const agent = new Agent({
  id: 'weather',
  name: 'weather',
  instructions: 'Be brief.',
  model: { id: `claude/${given.model}`, url: `${given.url}/v1`, apiKey: given.key },
  tools: { get_weather },
  maxRetries: 0,
});

await check('tools', async (text) => (await agent.generate(text)).text);

await check('stream', async (text) => {
  const pieces = [];
  for await (const piece of (await agent.stream(text)).textStream) pieces.push(piece);
  return pieces;
});

await check('schema', async (text) => (await agent.generate(text, { structuredOutput: { schema: Person } })).object);

await check('turns', async (text) => {
  const first = await agent.generate(text);
  const second = await agent.generate([{ role: 'user', content: text }, { role: 'assistant', content: first.text }, { role: 'user', content: 'And now?' }]);
  return [first.text, second.text];
});

await check('error', async (text) => (await rejected(agent.generate(text))).statusCode);
