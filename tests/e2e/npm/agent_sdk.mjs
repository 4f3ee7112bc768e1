// The Claude Agent SDK: a run with a tool of an MCP server in this process, and a second turn of its session. `program` is the `claude`
// that it starts.

import { createSdkMcpServer, query, tool } from '@anthropic-ai/claude-agent-sdk';
import { check, City, given, weatherOf } from './checks.mjs';

const get_weather = tool('get_weather', 'The weather of a city', City.shape, async (args) => ({ content: [{ type: 'text', text: weatherOf(args) }] }));
const options = {
  model: given.model,
  pathToClaudeCodeExecutable: given.program,
  env: { ...process.env, ANTHROPIC_BASE_URL: given.url, ANTHROPIC_API_KEY: given.key, CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1', DISABLE_AUTOUPDATER: '1' },
  systemPrompt: 'Be brief.',
  tools: [],
  settingSources: [],
  mcpServers: { weather: createSdkMcpServer({ name: 'weather', tools: [get_weather], alwaysLoad: true }) },
  allowedTools: ['mcp__weather'],
};

async function ask(prompt, more = {}) {
  let result;
  for await (const message of query({ prompt, options: { ...options, ...more } })) if (message.type === 'result') result = message;
  return result;
}

await check('tools', async (text) => {
  const { subtype, result, num_turns } = await ask(text);
  return [subtype, result, num_turns];
});

await check('turns', async (text) => {
  const first = await ask(text);
  const second = await ask('And now?', { resume: first.session_id });
  return [first.result, second.result];
});
