// Records what the real `claude` prints: tests/golden/<scenario>.<version>.jsonl and initialize.<version>.json.
//
//   node record.mjs                       every scenario on every pinned CLI (about 3 minutes)
//   node record.mjs plain 'error_*'       only these scenarios
//   node record.mjs --cli 2.1.330         only this version; --cli 2.1.400=/path/to/claude: one that is not pinned
//   node record.mjs --into FOLDER         not into tests/golden

import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { startMessagesApi } from './messages_api.mjs';
import { ClaudeCli, CLI_VERSIONS, claudePath, userLine } from './claude_cli.mjs';

let folder = path.join(path.dirname(fileURLToPath(import.meta.url)), '..', 'golden');
const USAGE = 'input=100 output=20 cache_read=300 cache_creation=50 ephemeral_1h=20';

const WEATHER_TOOL = {
  name: 'get_weather',
  description: 'The weather of a city',
  inputSchema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  annotations: { readOnlyHint: true },
};

/** Plays the caller's MCP server: parks each tools/call for a moment, then answers it. */
function serveTools(request, cli) {
  const { server_name, message } = request.request;
  if (server_name !== 'client') return;
  const result = {
    initialize: {
      protocolVersion: message.params?.protocolVersion,
      capabilities: { tools: {} },
      serverInfo: { name: 'client', version: '1' },
    },
    'tools/list': { tools: [WEATHER_TOOL] },
    'tools/call': { content: [{ type: 'text', text: 'sunny, 21 degrees' }] },
  }[message.method];
  const answer = () =>
    cli.write({
      type: 'control_response',
      response: {
        subtype: 'success',
        request_id: request.request_id,
        response: { mcp_response: { jsonrpc: '2.0', id: message.id ?? 0, result: result ?? {} } },
      },
    });
  if (message.method === 'tools/call') setTimeout(answer, 100);
  else answer();
}

const SCHEMA = {
  type: 'object',
  properties: { city: { type: 'string' } },
  required: ['city'],
  additionalProperties: false,
};

/** Two of Claude Code's own tools, one after the other. */
const AGENT_ARGS = ['--bare', '--tools', 'Bash,Read', '--allowedTools', 'Bash,Read'];
const AGENT_STEPS =
  'tool_use tool=Bash before="Running." args={"command":"echo\\u0020hi\\u0020>f.txt;cat\\u0020f.txt"} | ' +
  'tool_use tool=Read before="Reading." args={"file_path":"f.txt"}';

/** One live turn whose text tells the API what to answer. */
const answering = (scenario, options = {}) => ({
  ...options,
  play: (cli) => cli.turn(`[[scenario:${scenario}]] Hello.`),
});

const SCENARIOS = {
  plain: answering(`plain ${USAGE} deltas=4`),
  utf8: answering('utf8'),
  thinking: answering('thinking', { env: { MAX_THINKING_TOKENS: undefined } }),
  max_tokens: answering('max_tokens'), // the CLI goes on by itself: the API's second answer is `plain`
  stop_sequence: answering('stop_sequence'),
  refusal: answering('refusal'),
  empty: answering('empty'),
  empty_no_blocks: answering('empty blocks=0'),
  error_400: answering('error status=400'),
  error_401: answering('error status=401'),
  error_403: answering('error status=403'),
  error_404: answering('error status=404'),
  error_413: answering('error status=413'),
  error_429: answering('error status=429 retry_after=1'),
  error_500: answering('error status=500'),
  error_529: answering('error status=529'),
  error_event_recovered: answering('error_event times=1'),
  error_event: answering('error_event'),
  drop_before_recovered: answering('drop times=1'),
  drop_before: answering('drop times=99'),
  drop_after_start: answering('drop after=0 then=same'),
  drop_same: answering('drop after=2 then=same'),
  drop_other: answering('drop after=2 then=other'),
  drop_nostream: answering('drop after=2 then=nostream'),
  drop_always: answering('drop after=2 times=99'),
  not_logged_in: answering('plain', { env: { ANTHROPIC_API_KEY: undefined }, args: [] }),
  two_turns: {
    play: async (cli) => [
      ...(await cli.turn(`[[scenario:plain ${USAGE}]] One.`)),
      ...(await cli.turn(`[[scenario:plain ${USAGE}]] Two.`)),
    ],
  },
  replay: {
    play: async (cli) => {
      const past = [
        ...(await cli.replay('Past question 1', 'Past answer 1')),
        ...(await cli.replay('Past question 2', 'Past answer 2')),
      ];
      return [...past, ...(await cli.turn('[[scenario:echo]] Live.'))];
    },
  },
  interrupted: {
    play: async (cli) => {
      const from = cli.lines.length;
      cli.write(userLine('[[scenario:hang after=2]] Hello.'));
      await cli.waitFor((line) => line.event?.type === 'content_block_delta', { from });
      await cli.control({ subtype: 'interrupt' });
      await cli.result(from);
      return cli.lines.slice(from);
    },
  },
  tool_use: answering('tool_use before="Let me look."', { tools: true }),
  tool_parallel: answering('tool_use count=2', { tools: true }),
  tool_thinking: answering('tool_use thinking="Hm." before="Let me look." | plain', {
    tools: true,
    env: { MAX_THINKING_TOKENS: undefined },
  }),
  schema_ok: answering('structured value={"city":"Bern"} | plain text="after"', { schema: true }), // 2.1.120 asks again
  schema_rejected: answering('structured value={"town":"Bern"} | structured value={"city":"Bern"} | plain text="after"', {
    schema: true,
  }),
  schema_tools: answering('tool_use before="Let me look." | structured value={"city":"Bern"} | plain text="after"', {
    schema: true,
    tools: true,
  }),
  agent: answering(`${AGENT_STEPS} | plain`, { args: AGENT_ARGS }),
  agent_turn_limit: answering(`${AGENT_STEPS} | plain`, { args: [...AGENT_ARGS, '--max-turns', '1'] }),
};

/** Replaces what differs from run to run and from machine to machine; durations stay. */
function makeScrubber(scratch) {
  const uuids = new Map();
  const stable = (uuid) => {
    if (!uuids.has(uuid)) uuids.set(uuid, `00000000-0000-4000-8000-${String(uuids.size + 1).padStart(12, '0')}`);
    return uuids.get(uuid);
  };
  return (text) =>
    text
      .replaceAll(scratch, '/scratch')
      .replaceAll(scratch.replaceAll(/[^a-zA-Z0-9]/g, '-'), '-scratch') // the CLI's own name for a project folder
      .replaceAll(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g, stable)
      .replaceAll(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/g, '2026-01-01T00:00:00.000Z')
      .replaceAll(/127\.0\.0\.1:\d+/g, '127.0.0.1:1')
      .replaceAll(/"[^"]*\/cc-socks\/\d+\.sock"/g, '"/scratch/cc-socks/1.sock"')
      .replaceAll(/"pid":\d+/g, '"pid":1');
}

async function record(name, version, executable) {
  const scenario = SCENARIOS[name];
  const api = await startMessagesApi();
  const toolArgs = ['--allowedTools', 'mcp__client'];
  const cli = new ClaudeCli({
    executable,
    url: api.url,
    args: [...(scenario.args ?? ['--bare']), ...(scenario.tools ? toolArgs : [])],
    env: { ...scenario.env, ...(scenario.tools ? { ENABLE_TOOL_SEARCH: 'false' } : {}) },
    onControlRequest: serveTools,
  });
  try {
    const initialized = await cli.control({
      subtype: 'initialize',
      systemPrompt: ['You are a test.'],
      ...(scenario.tools ? { sdkMcpServers: ['client'] } : {}),
      ...(scenario.schema ? { jsonSchema: SCHEMA } : {}),
    });
    const scrub = makeScrubber(cli.scratch);
    if (name === 'plain') {
      writeFileSync(
        path.join(folder, `initialize.${version}.json`),
        `${scrub(JSON.stringify(initialized, null, 1))}\n`,
      );
    }
    const lines = await scenario.play(cli);
    writeFileSync(path.join(folder, `${name}.${version}.jsonl`), lines.map((line) => `${scrub(line.raw)}\n`).join(''));
    console.log(
      `${name} ${version}: ${lines.length} lines, ${api.requests.filter((request) => request.scenario).length} API calls`,
    );
  } finally {
    await cli.stop();
    await api.close();
  }
}

function parseArguments(args) {
  const clis = [];
  const patterns = [];
  for (let i = 0; i < args.length; i++) {
    if (args[i] === '--cli') clis.push(args[++i].split('='));
    else if (args[i] === '--into') folder = path.resolve(args[++i]);
    else patterns.push(new RegExp(`^${args[i].replaceAll('*', '.*')}$`));
  }
  return { clis: clis.length ? clis : CLI_VERSIONS.map((version) => [version]), patterns };
}

const { clis, patterns } = parseArguments(process.argv.slice(2));
let failed = 0;
mkdirSync(folder, { recursive: true });
for (const [version, executable] of clis) {
  for (const name of Object.keys(SCENARIOS)) {
    if (patterns.length && !patterns.some((pattern) => pattern.test(name))) continue;
    await record(name, version, executable ?? claudePath(version)).catch((error) => {
      failed++;
      console.error(`${name} ${version}: ${error.message}`);
    });
  }
}
process.exitCode = failed ? 1 : 0;
