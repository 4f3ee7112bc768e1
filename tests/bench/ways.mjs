// The ways to ask `claude` that the bench compares: through the proxy, by hand, and with a process per request. Each
// resolves to {first, whole}: the milliseconds until the first token and until the end.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { eventually, send, sleep, startProxy } from '../e2e/harness.mjs';
import { parseMetrics } from '../e2e/operate.mjs';

export const SYSTEM = 'You are a bench.';
const ANSWER = 'Hello from the loopback API.';
const QUIET_MS = 300;

export const user = (content) => ({ role: 'user', content });
export const pair = (question) => [user(question), { role: 'assistant', content: ANSWER }];

export const health = async (proxy) => (await send(proxy, { method: 'GET', path: '/health' }).done).json.processes;

/** The sum of the samples of a counter in /metrics. */
export async function counter(proxy, name) {
  const { text } = await send(proxy, { method: 'GET', path: '/metrics' }).done;
  const { samples } = parseMetrics(text).get(`claude_openai_${name}`);
  return samples.reduce((sum, { value }) => sum + value, 0);
}

/** Resolves when every process has been idle for a while, and as many spares as that are ready. */
export async function quiet(proxy, spares = 2) {
  await eventually(
    'the spares are ready and the rest is idle',
    async () => {
      const { warm, busy, stopping } = await health(proxy);
      return warm >= spares && busy === 0 && stopping === 0;
    },
    60_000,
  );
  await sleep(QUIET_MS);
}

/** Runs the body with a proxy that has its spares ready; `program`: another one than the one under test. */
export async function withProxy({ spares, program, ...options }, body) {
  const prepare = (proxy) => {
    proxy.command[0] = program ?? proxy.command[0];
  };
  const proxy = await startProxy({ prepare, ...options });
  try {
    await quiet(proxy, spares);
    return await body(proxy);
  } finally {
    const { faults } = await proxy.stop();
    if (faults.length) console.log(`      after the stop: ${faults.join('; ')}`);
  }
}

/** `more` are further fields of the request. */
export async function throughProxy(proxy, messages, { system = SYSTEM, ...more } = {}) {
  const body = { stream: true, messages: [{ role: 'system', content: system }, ...messages], ...more };
  const { sentAt, done } = send(proxy, { body });
  const result = await done;
  assert.equal(result.status, 200, result.text);
  assert.equal(result.data.map((chunk) => chunk.choices?.[0]?.delta.content ?? '').join(''), ANSWER);
  const first = result.frames.find((frame) => /"content":"[^"]/.test(frame.data));
  return { first: first.at - sentAt, whole: result.at - sentAt };
}

/** Makes the model call the tool; resolves to the assistant's message with the call. The process is left waiting. */
export async function callTool(proxy, messages, tools) {
  const body = { messages: [{ role: 'system', content: SYSTEM }, ...messages], tools };
  const { json, text } = await send(proxy, { body }).done;
  assert.equal(json?.choices?.[0].finish_reason, 'tool_calls', text);
  return json.choices[0].message;
}

/**
 * A started `claude`; `line(matches)` resolves to the time at which such a line was read. `tools` of the client are
 * listed when it asks for them; a call of one stays unanswered, and its request is kept in `call`.
 */
function start([program, ...args], { environment, cwd }) {
  const child = spawn(program, args, { env: environment, cwd, stdio: ['pipe', 'pipe', 'inherit'] });
  let waiting = [];
  let rest = '';
  const claude = { child };
  const read = (value) => {
    if (value.type === 'control_request') answerTools(claude, value);
    const found = waiting.filter(({ matches }) => matches(value));
    waiting = waiting.filter((one) => !found.includes(one));
    for (const { resolve } of found) resolve(performance.now());
  };
  child.stdout.setEncoding('utf8').on('data', (text) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop();
    for (const line of lines) read(JSON.parse(line));
  });
  const ended = new Promise((resolve) => {
    // Not at its exit: what it wrote last may come after that.
    child.once('close', (code) => {
      for (const { reject } of waiting) reject(new Error(`claude ended with ${code}`));
      resolve();
    });
  });
  const line = (matches) =>
    new Promise((resolve, reject) => {
      waiting.push({ matches, resolve, reject });
    });
  return Object.assign(claude, { line, ended });
}

const toolReply = ({ request_id, request: { message } }, result) => {
  const response = { mcp_response: { jsonrpc: '2.0', id: message.id ?? 0, result } };
  return `${JSON.stringify({ type: 'control_response', response: { subtype: 'success', request_id, response } })}\n`;
};

/** Does what the server of the client's tools has to do for a process driven by hand. */
function answerTools(claude, asked) {
  const { method, params } = asked.request.message;
  if (method === 'tools/call') {
    claude.call = asked;
    return;
  }
  const { protocolVersion } = params ?? {};
  const results = {
    initialize: { protocolVersion, capabilities: { tools: {} }, serverInfo: { name: 'client', version: '1' } },
    'tools/list': { tools: claude.tools },
  };
  claude.child.stdin.write(toolReply(asked, results[method] ?? {}));
}

function stop(claude) {
  claude.child.kill('SIGKILL');
  return claude.ended;
}

const isToken = (line) => line.event?.delta?.type === 'text_delta';
const isResult = (line) => line.type === 'result';

const control = (id, request) => `${JSON.stringify({ type: 'control_request', request_id: id, request })}\n`;
export const initialize = (system = SYSTEM, more = {}) =>
  control('initialize', { subtype: 'initialize', systemPrompt: [system], ...more });
const userLine = (text, uuid) => {
  const message = { role: 'user', content: [{ type: 'text', text }] };
  return `${JSON.stringify({ type: 'user', message, parent_tool_use_id: null, session_id: '', uuid })}\n`;
};

/** By hand: a process with the program, arguments and environment of the proxy's spare, up and told nothing. */
export async function startSpare(spare) {
  const claude = start(spare.argv, spare);
  claude.child.stdin.write(control('probe', { subtype: 'apply_flag_settings', settings: {} }));
  await claude.line((line) => line.type === 'control_response');
  return claude;
}

async function turnByHand(claude, lines) {
  const [token, result] = [claude.line(isToken), claude.line(isResult)];
  const sent = performance.now();
  claude.child.stdin.write(lines);
  return { first: (await token) - sent, whole: (await result) - sent };
}

/**
 * Spares driven by hand, one a request. The next one starts when one has been used, so that it has been ready for as
 * long as the proxy's own, which waits 200 ms with that.
 */
export class SparesByHand {
  constructor(proxy, spare) {
    Object.assign(this, { proxy, spare });
    this.next = startSpare(spare);
  }

  async ask(system, text) {
    const claude = await this.next;
    await quiet(this.proxy);
    const took = await turnByHand(claude, initialize(system) + userLine(text));
    await stop(claude);
    this.next = startSpare(this.spare);
    await this.next; // or it would start while another way is measured
    return took;
  }

  async stop() {
    await stop(await this.next);
  }
}

/** One process driven by hand that stays for the whole chat. */
export class ChatByHand {
  constructor(spare) {
    this.started = startSpare(spare);
    this.opening = initialize();
  }

  async ask(text) {
    const took = await turnByHand(await this.started, this.opening + userLine(text));
    this.opening = '';
    return took;
  }

  async stop() {
    await stop(await this.started);
  }
}

/** One process driven by hand that is asked to call a tool, each time with the last question taken back. */
export class ToolsByHand {
  constructor(spare, tools) {
    const listed = tools.map(({ function: { name, description, parameters } }) => ({
      ...{ name, description, inputSchema: parameters },
      annotations: { readOnlyHint: true },
    }));
    this.started = startSpare(spare).then((claude) => Object.assign(claude, { tools: listed }));
    this.opening = initialize(SYSTEM, { sdkMcpServers: ['client'] });
  }

  /** Until the call waits for its result. */
  async call(text) {
    const claude = await this.started;
    if (this.asked) {
      const request = { subtype: 'rewind_conversation', target_message_uuid: this.asked };
      claude.child.stdin.write(control('rewind', request));
      await claude.line((line) => line.response?.response?.rewound);
    }
    const called = claude.line((line) => line.request?.message?.method === 'tools/call');
    claude.child.stdin.write(this.opening + userLine(text, (this.asked = randomUUID())));
    this.opening = '';
    await called;
  }

  /** From the result to what follows it. */
  async answer(text) {
    const claude = await this.started;
    return turnByHand(claude, toolReply(claude.call, { content: [{ type: 'text', text }] }));
  }

  async stop() {
    await stop(await this.started);
  }
}

/** A chat as one text: what a process that takes one prompt can be told of it. */
function flatten(messages) {
  if (messages.length === 1) return messages[0].content;
  return messages.map(({ role, content }) => `${role === 'user' ? 'Human' : 'Assistant'}: ${content}`).join('\n\n');
}

/**
 * How the Python wrapper starts a process per request, with the partial messages added that it lacks: without them
 * there is no first token. It drops the system prompt. The `claude -v` that it runs before each (10 ms) is left out.
 */
export const asWrappersDo = (proxy, { argv }) => ({
  argv: [
    ...[argv[0], '--output-format', 'stream-json', '--verbose', '--include-partial-messages', '--max-turns', '1'],
    ...['--disallowedTools', UNWANTED_TOOLS, argv.find((word) => word.startsWith('--model='))],
    ...['--setting-sources', '', '--print'],
  ],
  environment: { ...proxy.environment, TMPDIR: proxy.scratch, CLAUDE_CODE_ENTRYPOINT: 'sdk-py' },
  cwd: proxy.scratch,
});
const UNWANTED_TOOLS =
  'Task,Bash,Glob,Grep,Read,Edit,Write,NotebookEdit,WebFetch,TodoWrite,WebSearch,BashOutput,KillShell,Skill,SlashCommand';

/** The leanest process per request that we know: with the spare's flags and environment. No wrapper does it. */
export function lean({ argv, environment, cwd }) {
  const own = [...argv, '--system-prompt', SYSTEM];
  own.splice(own.indexOf('--input-format'), 2);
  return { argv: own, environment, cwd };
}

export async function processPerRequest(launch, messages) {
  const sent = performance.now();
  const claude = start(launch.argv, launch);
  claude.child.stdin.end(flatten(messages));
  const [token] = await Promise.all([claude.line(isToken), claude.line(isResult)]);
  await claude.ended;
  return { first: token - sent, whole: performance.now() - sent };
}
