// Coding agents from npm, unmodified, each in a folder and a HOME of its own: Codex, opencode and Claude Code itself. The loopback
// model asks for a shell command; the agent runs it, and the result comes back to the process that waits. Beyond loopback there is
// nothing: what an agent asks of other hosts (plugins, updates) ends at a gate.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { mcpServer } from './agents.test.mjs';
import { conversationOf, processOf } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { PROXY, suite } from './harness.mjs';
import { startMessagesApi } from './messages_api.mjs';
import { scrape } from './operate.mjs';

export const codingAgents = suite();
const { test } = codingAgents;

export const KEY = 'sk-client-key-of-the-proxy';
export const PROMPT = 'Please make the file.';
export const COMMAND = 'echo marker-$((40+2)) > made.txt; cat made.txt';
const SHELLS = {
  Bash: { command: COMMAND, description: 'Makes the file' },
  bash: { command: COMMAND, description: 'Makes the file' },
  exec_command: { cmd: COMMAND },
};
const blocksOf = ({ content }) => (typeof content === 'string' ? [] : content);

/** The model: asks for the tool once, and is done when it has the result; to who offers none it is a maker of titles. */
export const playing =
  (tools) =>
  ({ body }) => {
    const at = body.messages.findLastIndex(({ role }) => role === 'user');
    const tool = (body.tools ?? []).find(({ name }) => tools[name] ?? tools[/lookup$/.exec(name)?.[0]]);
    if (!tool) return { name: 'plain', text: 'A title' };
    if (blocksOf(body.messages[at]).some(({ type }) => type === 'tool_result')) return { name: 'plain', text: 'All done.' };
    if (body.messages.length > 2) return { name: 'plain', text: 'Once more.' };
    const args = tools[tool.name] ?? tools.lookup;
    return { name: 'tool_use', tool: tool.name, args, before: 'Let me see.', ...(body.thinking?.type === 'enabled' ? { thinking: 'Hm.' } : {}) };
  };

/** The URL of an HTTP proxy that refuses all. */
async function startGate(t) {
  const gate = net.createServer((socket) =>
    socket.on('error', () => {}).once('data', () => socket.end('HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n')),
  );
  await new Promise((resolve) => {
    gate.listen(0, '127.0.0.1', resolve);
  });
  t.defer(async () => gate.close());
  return `http://127.0.0.1:${gate.address().port}`;
}

/** A proxy with an API and a client key of its own, and an agent's folders. */
export async function prepare(t, tools = SHELLS, args = []) {
  const api = await startMessagesApi({ scenario: playing(tools) });
  t.defer(() => api.close());
  const proxy = await t.start({ url: api.url, cli: t.cli, args: ['--api-key', KEY, '--spares', '1', '--model', MODEL, ...args] });
  const scratch = mkdtempSync(path.join(tmpdir(), 'claude-openai-agent-'));
  t.defer(async () => rmSync(scratch, { recursive: true, force: true, maxRetries: 3 }));
  const [home, work] = ['home', 'work'].map((name) => path.join(scratch, name));
  [home, work].forEach((folder) => mkdirSync(folder));
  return { t, api, proxy, scratch, home, work, gate: await startGate(t) };
}

/** Runs an agent to its end; resolves to {code, lines, output}, `lines` being those of its JSON. */
export async function run({ t, home, work, gate }, program, args, env) {
  const child = spawn(program, args, {
    cwd: work,
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      HOME: home,
      TMPDIR: home,
      PATH: process.env.PATH,
      SHELL: '/bin/bash',
      HTTP_PROXY: gate,
      HTTPS_PROXY: gate,
      http_proxy: gate,
      https_proxy: gate,
      NO_PROXY: '127.0.0.1,localhost',
      no_proxy: '127.0.0.1,localhost',
      ...env,
    },
  });
  const kill = () => {
    try {
      process.kill(-child.pid, 'SIGKILL'); // its own group
    } catch {
      /* it has ended */
    }
  };
  t.defer(async () => kill());
  let output = '';
  let complaints = '';
  child.stdout.setEncoding('utf8').on('data', (text) => {
    output += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text) => {
    complaints += text;
  });
  const code = await new Promise((resolve, reject) => {
    child.once('error', reject).once('close', resolve);
  });
  const lines = output
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line));
  return { code, lines, output: `${output}\n${complaints}`.slice(-4000) };
}

/** A client's own file, which a user has had before `claude-openai connect` puts the proxy into it. */
export function connect({ home, proxy }, client, name, before) {
  const file = path.join(home, name);
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, before);
  execFileSync(PROXY, ['connect', client, '--write', '--yes', '--url', proxy.url, '--model', MODEL], {
    cwd: home,
    env: { HOME: home, PATH: process.env.PATH, CLAUDE_OPENAI_KEY: KEY },
    stdio: 'ignore',
  });
  return file;
}

export const callsOf = ({ api }) => api.requests.filter(({ path: where }) => where === '/v1/messages');

/** Those of the API calls that are the agent's own, not the titles it gives to its conversation; by their tools. */
export const turnsOf = (setting) => callsOf(setting).filter(({ body }) => body.tools?.length);

/** What holds for each agent: the command ran, and the API got its result from the process that waited; `turns`: its calls of the API. */
export function assertMade(setting, { code, output }, system, turns = turnsOf(setting)) {
  assert.equal(code, 0, output);
  assert.equal(readFileSync(path.join(setting.work, 'made.txt'), 'utf8'), 'marker-42\n', output);
  const refused = callsOf(setting).find(({ refusal }) => refusal);
  assert.equal(refused, undefined, refused?.refusal);
  assert.equal(turns.length, 2, `${turns.length} turns; ${output}`);
  assert.equal(processOf(turns[0]), processOf(turns[1]), 'the process that waits goes on');
  const [asked, ...more] = conversationOf(turns[0]);
  assert.deepEqual(more, [], 'a conversation begins with what its user says');
  assert.ok(JSON.stringify(asked.content).includes(PROMPT));
  assert.doesNotMatch(JSON.stringify(asked.content), /title/i);
  const told = conversationOf(turns[1]);
  assert.deepEqual(
    told.map(({ role }) => role),
    ['user', 'assistant', 'user'],
  );
  const called = told[1].content.find((block) => block.call);
  assert.ok((called.input.command ?? called.input.cmd ?? called.input.commands[0]).startsWith(COMMAND));
  const result = told[2].content.find((block) => block.result === called.call);
  assert.match(JSON.stringify(result.content), /marker-42/);
  for (const turn of turns) {
    assert.match(turn.system.join('\n'), system);
    const { description } = turn.body.tools.find(({ name }) => name === called.name);
    assert.ok(description, 'the tool is described');
  }
  return turns;
}

/** The program of a package, out of its platform's own package. */
function programOf(name, platform, ...inside) {
  const require = createRequire(createRequire(import.meta.url).resolve(`${name}/package.json`));
  const program = path.join(path.dirname(require.resolve(`${platform}/package.json`)), ...inside);
  if (!existsSync(program)) throw new Error(`${name} is not installed: run npm ci`);
  return program;
}

// ---- Codex ---------------------------------------------------------------------------------------

const TRIPLES = {
  'linux-x64': 'x86_64-unknown-linux-musl',
  'linux-arm64': 'aarch64-unknown-linux-musl',
  'darwin-x64': 'x86_64-apple-darwin',
  'darwin-arm64': 'aarch64-apple-darwin',
};

/** Codex offers a search of the web all the same; without `--web` it is left out. */
const codexConfig = ({ more = '' } = {}) => `
check_for_update_on_startup = false

[analytics]
enabled = false
${more}`;

function codex(setting, args, options = {}) {
  const platform = `${process.platform}-${process.arch}`;
  const program = programOf('@openai/codex', `@openai/codex-${platform}`, 'vendor', TRIPLES[platform], 'bin', 'codex');
  connect(setting, 'codex', '.codex/config.toml', codexConfig(options));
  const flags = ['--json', '--skip-git-repo-check', '--dangerously-bypass-approvals-and-sandbox'];
  return run(setting, program, ['exec', ...flags, ...args], { CLAUDE_OPENAI_KEY: KEY });
}

const itemsOf = ({ lines }, kind) => lines.filter(({ type, item }) => type === 'item.completed' && item.type === kind).map(({ item }) => item);

test('Codex runs a command that the model asks for, and goes on another day', async (t) => {
  const setting = await prepare(t);
  const result = await codex(setting, [PROMPT]);
  const turns = assertMade(setting, result, /coding agent running in the Codex CLI/);
  const [ran] = itemsOf(result, 'command_execution');
  assert.deepEqual([ran.exit_code, ran.aggregated_output, ran.status], [0, 'marker-42\n', 'completed'], result.output);
  assert.deepEqual(
    itemsOf(result, 'agent_message').map(({ text }) => text),
    ['Let me see.', 'All done.'],
  );
  const { type, usage } = result.lines.at(-1);
  assert.deepEqual([type, usage.input_tokens, usage.output_tokens], ['turn.completed', 22, 14]);
  const more = await codex(setting, ['resume', '--last', 'And now?']);
  assert.equal(more.code, 0, more.output);
  assert.equal(itemsOf(more, 'agent_message').at(-1).text, 'Once more.', more.output);
  const later = turnsOf(setting).at(-1);
  assert.deepEqual(
    conversationOf(later).map(({ role }) => role),
    ['user', 'assistant', 'user', 'assistant', 'user'],
  );
  assert.match(JSON.stringify(conversationOf(later)[2]), /marker-42/);
  assert.equal(turns.length + 1, turnsOf(setting).length);
});

test('Codex searches the web as it is configured by default, and goes on with what was found', async (t) => {
  const setting = await prepare(t, SHELLS, ['--web']);
  setting.api.script(({ body }) => (/And now/.test(JSON.stringify(body.messages)) ? 'plain text="So it is."' : 'searched after=""'));
  const result = await codex(setting, ['What is green?']);
  assert.equal(result.code, 0, result.output);
  const [search] = itemsOf(result, 'web_search');
  assert.equal(search?.query, 'green cats', result.output);
  assert.deepEqual(itemsOf(result, 'agent_message').map(({ text }) => text), ['Grüne Katzen 🐈.Grüne Katzen 🐈.']);
  const more = await codex(setting, ['resume', '--last', 'And now?']);
  assert.equal(itemsOf(more, 'agent_message').at(-1)?.text, 'So it is.', more.output);
  const [asked, later] = turnsOf(setting);
  assert.equal(processOf(asked), processOf(later), 'its process goes on');
  assert.deepEqual([asked.refusal, later.refusal], [undefined, undefined]);
  assert.deepEqual(asked.body.tools.filter(({ type }) => type).map(({ type }) => type), ['web_search_20250305']);
  assert.ok(later.body.messages[1].content.some(({ type }) => type === 'web_search_tool_result'));
});

test('Codex calls a tool of an MCP server, which it offers in a namespace', async (t) => {
  const setting = await prepare(t, { lookup: { key: 'sky' } });
  const { command, args } = mcpServer(setting.scratch, 'today');
  const more = `[mcp_servers.words]\ncommand = ${JSON.stringify(command)}\nargs = ${JSON.stringify(args)}\n`;
  const result = await codex(setting, [PROMPT], { more });
  assert.equal(result.code, 0, result.output);
  const [called] = itemsOf(result, 'mcp_tool_call');
  assert.deepEqual([called?.server, called?.tool, called?.status], ['words', 'lookup', 'completed'], result.output);
  assert.equal(itemsOf(result, 'agent_message').at(-1).text, 'All done.');
  const [, told] = turnsOf(setting);
  assert.match(JSON.stringify(conversationOf(told)[2]), /found sky today/);
});

// ---- opencode ------------------------------------------------------------------------------------

for (const [provider, npm] of [
  ['openai-compatible', '@ai-sdk/openai-compatible'],
  ['anthropic', '@ai-sdk/anthropic'],
])
  test(`opencode through an ${provider} provider`, { slow: true }, async (t) => {
    const setting = await prepare(t);
    const before = JSON.stringify({ autoupdate: false, share: 'disabled' });
    const file = connect(setting, 'opencode', '.config/opencode/opencode.json', before);
    writeFileSync(file, readFileSync(file, 'utf8').replace('@ai-sdk/openai-compatible', npm));
    const program = programOf('opencode-ai', `opencode-${process.platform}-${process.arch}`, 'bin', 'opencode');
    const result = await run(setting, program, ['run', '--model', `claude/${MODEL}`, '--format', 'json', '--', PROMPT], {
      OPENCODE_DISABLE_AUTOUPDATE: '1',
      OPENCODE_DISABLE_MODELS_FETCH: '1',
      OPENCODE_DISABLE_LSP_DOWNLOAD: '1',
    });
    const turns = assertMade(setting, result, /You are OpenCode/i);
    const parts = (kind) => result.lines.filter(({ type }) => type === kind).map(({ part }) => part);
    const [ran] = parts('tool_use');
    assert.deepEqual([ran.tool, ran.state.status, ran.state.output], ['bash', 'completed', 'marker-42\n'], result.output);
    assert.deepEqual(
      parts('text').map(({ text }) => text),
      ['Let me see.', 'All done.'],
    );
    assert.deepEqual(
      parts('step_finish').map(({ reason, tokens }) => [reason, tokens.input, tokens.output]),
      [
        ['tool-calls', 11, 7],
        ['stop', 11, 7],
      ],
    );
    const { description } = turns[0].body.tools.find(({ name }) => name === 'bash');
    assert.ok(description.length > 1500 && description.includes('\n\n'), `${description.length} characters of description`);
    const titles = callsOf(setting).filter((one) => !turns.includes(one));
    assert.ok(titles.length <= 1, `${titles.length} other calls`);
  });

// ---- Claude Code ---------------------------------------------------------------------------------

const runClaudeCode = (setting, flags, credentials = { ANTHROPIC_API_KEY: KEY }) =>
  run(setting, setting.t.cli, ['-p', '--output-format', 'stream-json', '--verbose', ...flags, '--', PROMPT], {
    ANTHROPIC_BASE_URL: setting.proxy.url,
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1',
    DISABLE_AUTOUPDATER: '1',
    ...credentials,
  });

for (const [how, credentials] of [
  ['ANTHROPIC_API_KEY', { ANTHROPIC_API_KEY: KEY }],
  ['ANTHROPIC_AUTH_TOKEN', { ANTHROPIC_AUTH_TOKEN: KEY }],
])
  test(`Claude Code itself, with ANTHROPIC_BASE_URL and ${how}`, async (t) => {
    const setting = await prepare(t);
    const flags = ['--model', MODEL, '--allowedTools', 'Bash'];
    const result = await runClaudeCode(setting, flags, credentials);
    const turns = assertMade(setting, result, /Assist with authorized security testing/);
    const end = result.lines.at(-1);
    assert.deepEqual([end.type, end.subtype, end.result, end.num_turns], ['result', 'success', 'All done.', 2], result.output);
    assert.deepEqual([end.usage.input_tokens, end.usage.output_tokens], [22, 14]);
    const { description } = turns[0].body.tools.find(({ name }) => name === 'Bash');
    assert.ok(description.length > 1000 && description.includes('\n\n'), `${description.length} characters of description`);
    // Its thought came back to it with its signature, and it brought it along.
    const [thinking] = conversationOf(turns[1])[1].content;
    assert.deepEqual([thinking.type, thinking.thinking], ['thinking', 'Hm.']);
    const tagged = turns[0].body.system.filter(({ text }) => text.startsWith('x-anthropic-billing-header'));
    assert.ok(tagged.every(({ text }) => text.length < 200), 'its billing tag is not taken for the whole prompt');
  });

test('Claude Code finds and calls a tool of an MCP server that it has deferred', async (t) => {
  const setting = await prepare(t);
  const { command, args, env } = mcpServer(setting.scratch, 'today');
  const file = path.join(setting.scratch, 'mcp.json');
  writeFileSync(file, JSON.stringify({ mcpServers: { words: { command, args, env } } }));
  setting.api.script(({ body: { tools = [], messages } }) => {
    const names = tools.map(({ name }) => name);
    const told = JSON.stringify(messages);
    if (/found sky today/.test(told)) return { name: 'plain', text: 'All done.' };
    if (names.includes('mcp__words__lookup')) return { name: 'tool_use', tool: 'mcp__words__lookup', args: { key: 'sky' } };
    if (names.includes('ToolSearch')) return { name: 'tool_use', tool: 'ToolSearch', args: { query: 'select:mcp__words__lookup' } };
    return { name: 'plain', text: 'A title' };
  });
  const flags = ['--model', MODEL, '--mcp-config', file, '--allowedTools', 'mcp__words'];
  const result = await runClaudeCode(setting, flags);
  assert.equal(result.lines.at(-1).result, 'All done.', result.output);
  assert.doesNotMatch(setting.proxy.output, / \/v1\/messages\S* 400 /);
  const [before, found, called] = turnsOf(setting);
  const offers = ({ body }) => body.tools.some(({ name }) => name === 'mcp__words__lookup');
  assert.deepEqual([before, found, called].map(offers), [false, true, true]);
  assert.match(JSON.stringify(conversationOf(found).at(-1)), /The tool 'mcp__words__lookup' is available/);
  assert.match(JSON.stringify(conversationOf(called).at(-1)), /found sky today/);
  assert.equal(processOf(found), processOf(called), 'the process that waits goes on');
});

test('Claude Code on a model with late system messages calls fifteen tools, and no history is told again', async (t) => {
  const setting = await prepare(t);
  const asked = [];
  setting.api.script(({ body: { tools = [], messages } }) => {
    if (!tools.some(({ name }) => name === 'Bash')) return { name: 'plain', text: 'A title' };
    const results = messages.flatMap(blocksOf).filter(({ type }) => type === 'tool_result').length;
    asked.push(results);
    if (results === 15) return { name: 'plain', text: 'All done.' };
    const command = `echo ${results + 1} >> count.txt; tail -n 1 count.txt`;
    return { name: 'tool_use', tool: 'Bash', args: { command, description: 'Counts' }, before: `Step ${results + 1}.` };
  });
  const flags = ['--model', 'claude-opus-4-8', '--allowedTools', 'Bash'];
  const result = await runClaudeCode(setting, flags);
  assert.equal(result.lines.at(-1).result, 'All done.', result.output);
  assert.deepEqual(asked, [...Array(16).keys()], 'each call of the API brings one result more');
  const turns = turnsOf(setting);
  assert.equal(turns.length, 16);
  assert.ok(turns.every(({ body }) => body.model === 'claude-opus-4-8'));
  assert.equal(new Set(turns.map(processOf)).size, 1, 'one process serves them all');
  const figures = await scrape(t, { proxy: setting.proxy, headers: { authorization: `Bearer ${KEY}` } });
  assert.equal(figures('messages_replayed_total'), 0, 'nothing is told again');
  assert.equal(figures('turns_total', { process: 'continued' }), 15);
});
