// TanStack AI: chats with a tool, with a schema and over two turns, by its adapters for responses, chat completions and messages.

import { chat, streamToText, toolDefinition } from '@tanstack/ai';
import { createAnthropicChat } from '@tanstack/ai-anthropic';
import { createOpenaiChat, createOpenaiChatCompletions } from '@tanstack/ai-openai';
import { check, City, given, Person, rejected, weatherOf } from './checks.mjs';

const openai = { baseURL: `${given.url}/v1` };
const adapters = {
  responses: createOpenaiChat(given.model, given.key, openai),
  chat: createOpenaiChatCompletions(given.model, given.key, openai),
  messages: createAnthropicChat(given.model, given.key, { baseURL: given.url }),
};
const get_weather = toolDefinition({ name: 'get_weather', description: 'The weather of a city', inputSchema: City }).server(weatherOf);
const user = (content) => ({ role: 'user', content });

for (const [api, adapter] of Object.entries(adapters)) {
  await check(api, (text) => streamToText(chat({ adapter, systemPrompts: ['Be brief.'], messages: [user(text)], tools: [get_weather] })));
  await check(`${api}_schema`, (text) => chat({ adapter, messages: [user(text)], outputSchema: Person }));
  await check(`${api}_turns`, async (text) => {
    const first = await streamToText(chat({ adapter, messages: [user(text)] }));
    const messages = [user(text), { role: 'assistant', content: first }, user('And now?')];
    return [first, await streamToText(chat({ adapter, messages }))];
  });
  await check(`${api}_error`, async (text) => (await rejected(streamToText(chat({ adapter, messages: [user(text)] })))).message);
}
