// @openai/agents: runs with a tool, an output type, a stream and a session, over responses and chat completions.

import { Agent, MemorySession, OpenAIProvider, Runner, tool } from '@openai/agents';
import { check, City, given, Person, rejected, weatherOf } from './checks.mjs';

const runner = (useResponses) =>
  new Runner({
    modelProvider: new OpenAIProvider({ baseURL: `${given.url}/v1`, apiKey: given.key, useResponses }),
    tracingDisabled: true,
  });
const runners = { responses: runner(true), chat: runner(false) };
const get_weather = tool({ name: 'get_weather', description: 'The weather of a city', parameters: City, execute: weatherOf });
const agent = new Agent({ name: 'weather', instructions: 'Be brief.', model: given.model, tools: [get_weather] });
const plain = new Agent({ name: 'plain', model: given.model });

for (const api of ['responses', 'chat']) {
  await check(api, async (text) => (await runners[api].run(agent, text)).finalOutput);
  await check(`${api}_stream`, async (text) => {
    const result = await runners[api].run(agent, text, { stream: true });
    const kinds = [];
    for await (const event of result) if (event.type === 'run_item_stream_event') kinds.push(event.name);
    return [result.finalOutput, kinds];
  });
  await check(`${api}_output_type`, async (text) => {
    const reader = new Agent({ name: 'reader', model: given.model, outputType: Person });
    return (await runners[api].run(reader, text)).finalOutput;
  });
  await check(`${api}_session`, async (text) => {
    const session = new MemorySession();
    const first = await runners[api].run(plain, text, { session });
    const second = await runners[api].run(plain, 'And now?', { session });
    return [first.finalOutput, second.finalOutput];
  });
  await check(`${api}_error`, async (text) => (await rejected(runners[api].run(plain, text))).status);
}

await check('chained', async (text) => {
  const first = await runners.responses.run(plain, text);
  const second = await runners.responses.run(plain, 'And now?', { previousResponseId: first.lastResponseId });
  return [first.finalOutput, second.finalOutput];
});
