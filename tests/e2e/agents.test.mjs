// Claude Code's own tools, lent to a chat: what the agent did to files, what the API was sent, what the client got; what the
// operator's flags and the client's headers bound; MCP servers, and the endpoints around them. `agents` runs for all CLIs but the
// oldest with one proxy (see `prepareAgents`), `once` with the newest.

import assert from 'node:assert/strict';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import {
  ChatClient,
  assertRefused,
  call,
  conversationOf,
  eachWay,
  processOf,
  say,
  steps,
  toolsOf,
} from './chat_client.mjs';
import { assertKeys } from './chat.test.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { eventually, processesMarked, sleep, suite } from './harness.mjs';
import { directive } from './messages_api.mjs';

export const agents = suite();
export const once = suite();
const { test } = agents;

const DEFAULT_TOOLS = ['Bash', 'Edit', 'Glob', 'Grep', 'Read', 'Write'];
const AGENT = { enable_tools: true };
const bash = (command) => ({ tool: 'Bash', args: { command, description: 'a test' } });
const write = (file, content) => ({ tool: 'Write', args: { file_path: file, content } });
const readFile = (file) => ({ tool: 'Read', args: { file_path: file } });
const offered = (one) => Object.keys(toolsOf(one)).sort();
/** The results that the API was told last, as text. */
const lastResults = (one) =>
  conversationOf(one)
    .at(-1)
    .content.filter(({ result }) => result);

const temporaryFolder = (t) => {
  const folder = realpathSync(mkdtempSync(path.join(tmpdir(), 'claude-openai-agent-')));
  t.defer(async () => rmSync(folder, { recursive: true, force: true }));
  return folder;
};

/** The directories of the proxy that the tests of `agents` share. */
const workOf = (proxy) => path.join(realpathSync(proxy.scratch), 'work');
const lentOf = (proxy) => path.join(realpathSync(proxy.scratch), 'lent');

/** An MCP server over stdio that has one tool, which says what it was started with. */
const MCP_SERVER = `
const write = (id, result) => process.stdout.write(JSON.stringify({ jsonrpc: '2.0', id, result }) + '\\n');
const say = (...answer) => setTimeout(write, Number(process.env.MCP_DELAY ?? 0), ...answer);
const answers = {
  initialize: ({ params }) => ({ protocolVersion: params.protocolVersion, capabilities: { tools: {}, prompts: {} }, serverInfo: { name: 'x', version: '1' } }),
  'tools/list': () => ({ tools: [{ name: 'lookup', description: 'Looks up', inputSchema: { type: 'object', properties: { key: { type: 'string' } } } }] }),
  'prompts/list': () => ({ prompts: [] }),
  'tools/call': ({ params }) => ({ content: [{ type: 'text', text: 'found ' + params.arguments.key + ' ' + process.argv[2] + ' ' + process.env.MCP_SECRET }] }),
};
let rest = '';
process.stdin.on('data', (bytes) => {
  const lines = (rest + bytes).split('\\n');
  rest = lines.pop();
  for (const line of lines.filter(Boolean)) {
    const request = JSON.parse(line);
    if (request.id !== undefined) say(request.id, answers[request.method]?.(request) ?? {});
  }
});
process.stdin.on('end', () => process.exit());
`;

/** Writes the server; returns how it is started, with a word of its own. */
export function mcpServer(folder, word, env = {}) {
  const file = path.join(folder, 'mcp-server.cjs');
  writeFileSync(file, MCP_SERVER);
  return { command: process.execPath, args: [file, word], env: { MCP_SECRET: `secret-${word}`, ...env } };
}

/** Gives the shared proxy its directories and the operator's MCP server. */
export function prepareAgents(proxy) {
  [workOf, lentOf].forEach((of) => mkdirSync(of(proxy)));
  const file = path.join(proxy.scratch, 'mcp.json');
  writeFileSync(file, JSON.stringify({ mcpServers: { operators: mcpServer(proxy.scratch, 'operators') } }));
  proxy.command.push('--cwd', workOf(proxy), '--allowed-cwd', lentOf(proxy), '--mcp-config', file);
}

// ---- the agent works -----------------------------------------------------------------------------

test('the agent writes, runs and reads in the working directory; each turn of its text is told once', (t) =>
  eachWay(
    t,
    async (client) => {
      const work = workOf(t.proxy);
      const file = path.join(work, `${client.name}.txt`);
      const scenario = steps(
        call(write(file, 'one\n'), { before: 'I write.', output: 7 }),
        call(bash(`echo two >> ${client.name}.txt && pwd`), { before: 'I append.', output: 8 }),
        call(readFile(file), { output: 9 }),
        say('All done.', { output: 10 }),
      );
      const answer = await client.ask(scenario);
      assert.equal(readFileSync(file, 'utf8'), 'one\ntwo\n');
      assert.deepEqual([answer.finish, answer.text], ['stop', 'I write.\n\nI append.\n\nAll done.']);
      assert.deepEqual([answer.calls, answer.reasoning, answer.ignored], [[], undefined, []]);
      assert.equal(answer.usage.completion_tokens, 34, 'of all the calls');
      assert.ok(answer.usage.cost > 0);
      const calls = client.assertCalls(4);
      assert.match(JSON.stringify(lastResults(calls[2])), new RegExp(`${work}[^/]`), 'it runs there');
      assert.match(JSON.stringify(lastResults(calls[3])), /one.*two/);
      for (const one of calls) {
        const system = one.system.join('\n');
        assert.ok(system.length > 2000, `Claude Code's own prompt, of ${system.length} characters`);
        assert.ok(system.trimEnd().endsWith('Be brief.') || /\bBe brief\.\n/.test(system), "and the client's");
        assert.deepEqual(offered(one), [...DEFAULT_TOOLS, 'mcp__operators__lookup'].sort());
      }
    },
    { body: AGENT, messages: [{ role: 'system', content: 'Be brief.' }] },
  ));

test('without enable_tools nothing of this is there', async (t) => {
  const client = new ChatClient(t, { body: { enable_tools: false, show_activity: true } });
  const headers = {
    'x-claude-max-turns': '3',
    'x-claude-allowed-tools': 'Bash',
    'x-claude-disallowed-tools': 'Read',
    'x-claude-permission-mode': 'plan',
    'x-claude-cwd': lentOf(t.proxy),
  };
  const { ignored } = await client.ask(say('Fine.'), {}, headers);
  assert.deepEqual(toolsOf(client.assertCalls(1)[0]), {});
  const named = ignored.map((name) => name.toLowerCase()).sort();
  for (const name of Object.keys(headers)) assert.ok(named.includes(name), `${name} in ${named}`);
});

for (const way of ['the body', 'a header']) {
  test(`what the agent does is shown as reasoning when ${way} asks for it`, (t) =>
    eachWay(
      t,
      async (client) => {
        const scenario = steps(call(bash('echo out-of-$((1 + 1))'), { before: 'I look.' }), say('Done.'));
        const [fields, headers] =
          way === 'the body' ? [{ show_activity: true }, {}] : [{}, { 'x-claude-show-activity': 'true' }];
        const answer = await client.ask(scenario, fields, headers);
        assert.equal(answer.text, 'I look.\n\nDone.');
        for (const part of ['Bash', 'echo out-of-$((1 + 1))', 'out-of-2'])
          assert.ok(answer.reasoning?.includes(part), `${part} in ${answer.reasoning}`);
        if (client.stream) assert.deepEqual(answer.kinds, ['content', 'reasoning_content', 'content']);
      },
      { body: AGENT },
    ));
}

test('a conversation with an agent goes on in its process', (t) =>
  eachWay(
    t,
    async (client) => {
      await client.ask(steps(call(bash(`echo kept > ${client.name}`), { before: 'I keep it.' }), say('Kept.')));
      const second = await client.ask(steps(call(bash(`cat ${client.name}`)), say('It is kept.')));
      assert.equal(second.text, 'It is kept.');
      const calls = client.assertCalls(4);
      assert.match(JSON.stringify(lastResults(calls[3])), /kept/);
      assert.equal(conversationOf(calls[3]).length, 7, 'it knows what it did itself');
      const other = new ChatClient(t, { messages: client.messages });
      await other.ask(say('No agent.'));
      const [asked] = other.calls();
      assert.ok(
        !calls.some((one) => processOf(one) === processOf(asked)),
        'a chat without tools is another conversation',
      );
      assert.deepEqual(toolsOf(asked), {});
    },
    { body: AGENT },
  ));

test('no command runs on in the background, where its end would begin a turn that nobody has asked for', async (t) => {
  for (const more of [{ run_in_background: true }, { timeout: 1000 }]) {
    const client = new ChatClient(t, { body: AGENT });
    const args = { command: 'timeout 2 tail -f /dev/null; echo ended', description: 'a test', ...more };
    const first = await client.ask(steps(call({ tool: 'Bash', args }), say('Started.'), say('Who has asked?')));
    assert.equal(first.text, 'Started.');
    await sleep(3000);
    client.assertCalls(2);
    assert.equal((await client.ask(say('Asked.'))).text, 'Asked.');
    client.assertCalls(3);
  }
});

test('a session with an agent', async (t) => {
  const client = new ChatClient(t, { session: 'agent', body: AGENT });
  await client.ask(steps(call(bash('echo 1'), { before: 'One.' }), say('Two.')));
  assert.equal((await client.ask(say('Three.'))).text, 'Three.');
  client.assertCalls(3);
});

test("an agent and the client's own tools", (t) =>
  eachWay(
    t,
    async (client) => {
      const scenario = steps(
        call(bash('echo from-the-agent'), { before: 'First.' }),
        call({ of: 'Asks the user', args: { question: 'why?' } }, { before: 'Second.' }),
        call(bash('echo again')),
        say('Done.'),
      );
      const first = await client.ask(scenario);
      assert.deepEqual([first.finish, first.text], ['tool_calls', 'First.\n\nSecond.']);
      assert.deepEqual(
        first.calls.map(({ function: { name } }) => name),
        ['ask.user'],
      );
      const second = await client.results('because').send();
      assert.deepEqual([second.finish, second.text], ['stop', 'Done.']);
      const calls = client.assertCalls(4);
      assert.match(JSON.stringify(lastResults(calls[1])), /from-the-agent/);
      assert.match(JSON.stringify(lastResults(calls[2])), /because/);
      assert.match(JSON.stringify(lastResults(calls[3])), /again/);
    },
    {
      body: {
        ...AGENT,
        tools: [
          {
            type: 'function',
            function: {
              name: 'ask.user',
              description: 'Asks the user',
              parameters: { type: 'object', properties: { question: { type: 'string' } } },
            },
          },
        ],
      },
    },
  ));

test('an agent that answers by a schema', (t) =>
  eachWay(
    t,
    async (client) => {
      const value = { answer: 42 };
      const scenario = steps(call(bash('echo 42'), { before: 'I count.' }), directive('structured', { value }));
      const answer = await client.ask(scenario);
      assert.deepEqual([JSON.parse(answer.text), answer.finish], [value, 'stop']);
      assert.match(JSON.stringify(lastResults(client.calls()[1])), /42/);
    },
    {
      body: {
        ...AGENT,
        response_format: {
          type: 'json_schema',
          json_schema: { name: 'x', schema: { type: 'object', properties: { answer: { type: 'integer' } } } },
        },
      },
    },
  ));

test('X-Claude-Max-Thinking-Tokens lets the agent think, and the thinking is told', async (t) => {
  const client = new ChatClient(t, { body: AGENT });
  const thought = directive('thinking', { thinking: 'Hm.', text: 'Yes.' });
  const answer = await client.ask(thought, {}, { 'x-claude-max-thinking-tokens': '3000' });
  assert.deepEqual([answer.text, answer.reasoning], ['Yes.', 'Hm.']);
  assert.deepEqual(client.calls()[0].body.thinking, { type: 'enabled', budget_tokens: 3000 });
});

// ---- its limits ----------------------------------------------------------------------------------

test('a disallowed tool is not offered, does nothing when it is called, and the agent is told', async (t) => {
  const trace = path.join(workOf(t.proxy), `${t.token}-forbidden`);
  const client = new ChatClient(t, { body: AGENT });
  const answer = await client.ask(
    steps(call(bash(`touch ${trace}`)), say('I may not.')),
    { show_activity: true },
    { 'x-claude-disallowed-tools': 'Bash, Write' },
  );
  assert.equal(answer.text, 'I may not.');
  assert.ok(!existsSync(trace), 'it did not run');
  const [first, second] = client.assertCalls(2);
  assert.deepEqual(offered(first), ['Edit', 'Glob', 'Grep', 'Read', 'mcp__operators__lookup']);
  const [{ is_error: failed, content }] = lastResults(second);
  assert.ok(failed, `the model is told: ${content}`);
  assert.match(answer.reasoning, /Bash/, 'and the client who wants to know');
});

test('X-Claude-Allowed-Tools is all that there is, and a rule in it bounds a tool', async (t) => {
  const trace = path.join(workOf(t.proxy), `${t.token}-rule`);
  const client = new ChatClient(t, { body: AGENT, headers: { 'x-claude-allowed-tools': 'Bash(mkdir:*), Read' } });
  await client.ask(
    steps(
      call(bash(`touch ${trace}-touched`)),
      call(bash(`mkdir ${trace}-made`)),
      call(write(`${trace}-written`, 'x')),
      say('Done.'),
    ),
  );
  assert.deepEqual(
    ['touched', 'made', 'written'].filter((what) => existsSync(`${trace}-${what}`)),
    ['made'],
  );
  const calls = client.assertCalls(4);
  assert.deepEqual(offered(calls[0]), ['Bash', 'Read']);
  assert.deepEqual(
    calls.slice(1).map((one) => lastResults(one)[0].is_error ?? false),
    [true, false, true],
  );
});

test('an agent that may do nothing is still an agent', async (t) => {
  const client = new ChatClient(t, {
    body: AGENT,
    headers: { 'x-claude-allowed-tools': 'Read', 'x-claude-disallowed-tools': 'Read' },
  });
  assert.equal((await client.ask(say('Idle.'))).text, 'Idle.');
  assert.deepEqual(offered(client.assertCalls(1)[0]), []);
});

test('plan mode changes nothing', async (t) => {
  const trace = path.join(workOf(t.proxy), `${t.token}-planned`);
  const client = new ChatClient(t, { body: AGENT, headers: { 'x-claude-permission-mode': 'plan' } });
  const answer = await client.ask(steps(call(write(trace, 'x')), say('I would.')));
  assert.ok(answer.text.endsWith('I would.'));
  assert.ok(!existsSync(trace));
});

for (const stream of [true, false]) {
  test(`the turn limit ends ${stream ? 'a stream' : 'an answer'} with what there is, and says so`, async (t) => {
    const client = new ChatClient(t, { stream, body: AGENT, headers: { 'x-claude-max-turns': '2' } });
    const busy = steps(
      call(bash('echo 1'), { before: 'One.' }),
      call(bash('echo 2'), { before: 'Two.' }),
      call(bash('echo 3')),
    );
    const answer = await client.ask(busy);
    assert.equal(answer.finish, 'length');
    assert.match(answer.text, /^One\.\n\nTwo\.\n\n.*turn/is);
    assert.equal(client.calls().length, 2);
    // The limit is for each request.
    const next = await client.ask(steps(call(bash('echo 4')), say('Enough.')));
    assert.deepEqual([next.finish, next.text], ['stop', 'Enough.']);
    assert.equal(client.calls().length, 4);
  });
}

test('ten turns are the default', async (t) => {
  const client = new ChatClient(t, { body: AGENT });
  const answer = await client.ask(steps(call(bash('true')), call(bash('true'))));
  assert.equal(answer.finish, 'length');
  assert.equal(client.calls().length, 10);
});

test('X-Claude-Cwd is where the agent works, if the operator lends it', async (t) => {
  const lent = lentOf(t.proxy);
  const below = path.join(lent, 'a folder');
  mkdirSync(below, { recursive: true });
  if (!existsSync(path.join(lent, 'out'))) symlinkSync(tmpdir(), path.join(lent, 'out'));
  for (const cwd of [lent, below]) {
    const client = new ChatClient(t, { body: AGENT, headers: { 'x-claude-cwd': cwd } });
    assert.equal((await client.ask(steps(call(bash(`pwd > ${client.name}`)), say('Done.')))).text, 'Done.');
    assert.equal(readFileSync(path.join(cwd, client.name), 'utf8'), `${cwd}\n`);
  }
  const outside = [workOf(t.proxy), '/', path.join(lent, '..'), path.join(lent, 'out'), `${lent}-nothing`, `${lent}/none`];
  const told = new Set();
  for (const cwd of outside) {
    const result = await t.chat({ ...AGENT, messages: t.messages('plain') }, { headers: { 'x-claude-cwd': cwd } });
    assertRefused(result, 403);
    told.add(result.json.error.message);
  }
  assert.equal(told.size, 1, 'which directories exist is not told');
});

for (const [name, value, status] of [
  ['X-Claude-Max-Turns', '-1', 400],
  ['X-Claude-Max-Turns', '1001', 400],
  ['X-Claude-Max-Turns', '2.5', 400],
  ['X-Claude-Max-Turns', 'many', 400],
  ['X-Claude-Permission-Mode', 'bogus', 400],
  ['X-Claude-Permission-Mode', 'bypassPermissions', 403],
  ['X-Claude-Allowed-Tools', '--dangerous', 400],
  ['X-Claude-Allowed-Tools', 'Bash(', 400],
  ['X-Claude-Allowed-Tools', 'Nothing', 403],
  ['X-Claude-Allowed-Tools', 'Read, mcp__nobody', 403],
  ['X-Claude-Disallowed-Tools', 'a b', 400],
  ['X-Claude-Max-Thinking-Tokens', 'x', 400],
  ['X-Claude-Max-Thinking-Tokens', '-1', 400],
]) {
  once.test(`${name}: ${value} is ${status}`, async (t) => {
    const result = await t.chat(
      { ...AGENT, messages: t.messages('plain') },
      { headers: { [name.toLowerCase()]: value } },
    );
    assertRefused(result, status, status === 400 ? name : undefined);
    assert.equal(t.calls().length, 0);
  });
}

for (const field of ['enable_tools', 'show_activity']) {
  once.test(`400 names ${field} that is no boolean`, async (t) => {
    assertRefused(await t.chat({ [field]: 'perhaps', messages: t.messages('plain') }), 400, field);
  });
}

/** A proxy of the test's own in a directory of its own. */
async function startOwn(t, args = []) {
  const work = temporaryFolder(t);
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', '--cwd', work, ...args] });
  await proxy.inspected();
  return { proxy, work };
}

test('the budget ends an answer with what there is, and says so', async (t) => {
  const { proxy } = await startOwn(t, ['--max-budget-usd', '0.01']);
  await eachWay(
    t,
    async (client) => {
      const dear = { output: 2000, before: 'One.' }; // some 0.03 USD
      const answer = await client.ask(steps(call(bash('echo 1'), dear), say('Never said.')));
      assert.equal(answer.finish, 'length');
      assert.match(answer.text, /^One\.\n\n.*budget/is);
      assert.equal(client.calls().length, 1);
    },
    { proxy, body: AGENT },
  );
});

once.test('--no-builtin-tools lends nothing', async (t) => {
  const { proxy } = await startOwn(t, ['--no-builtin-tools']);
  assertRefused(await t.chat({ ...AGENT, messages: t.messages('plain') }, { proxy }), 403);
  const plain = await t.chat({ messages: t.messages('plain') }, { proxy });
  assert.equal(plain.status, 200);
});

once.test("the operator's flags bound what a client may ask for", async (t) => {
  const args = [
    '--max-turns',
    '3',
    '--permission-mode',
    'default',
    '--allowed-tools',
    'Read,Bash',
    '--disallowed-tools',
    'Bash(rm:*)',
  ];
  const { proxy, work } = await startOwn(t, args);
  const refused = async (name, value) => {
    const headers = { [name]: value };
    assertRefused(await t.chat({ ...AGENT, messages: t.messages('plain') }, { proxy, headers }), 403);
  };
  await refused('x-claude-max-turns', '4');
  await refused('x-claude-permission-mode', 'acceptEdits');
  await refused('x-claude-allowed-tools', 'Write');
  await refused('x-claude-allowed-tools', 'Read, Write');
  await refused('x-claude-cwd', work);
  assert.equal(t.calls().length, 0);

  writeFileSync(path.join(work, 'kept'), '');
  const client = new ChatClient(t, { proxy, body: AGENT });
  const answer = await client.ask(
    steps(call(bash('rm kept')), call(bash('true')), call(bash('true')), say('Never said.')),
  );
  assert.equal(answer.finish, 'length');
  const calls = client.calls();
  assert.equal(calls.length, 3, 'the default of ten gives way');
  assert.deepEqual(offered(calls[0]), ['Bash', 'Read']);
  assert.ok(lastResults(calls[1])[0].is_error);
  assert.ok(existsSync(path.join(work, 'kept')));
});

once.test('--add-dir reaches the agent', async (t) => {
  const added = temporaryFolder(t);
  const { proxy } = await startOwn(t, ['--add-dir', added]);
  const client = new ChatClient(t, { proxy, body: AGENT });
  await client.ask(say('Fine.'));
  const [{ argv }] = proxy.claudes();
  assert.equal(argv[argv.indexOf('--add-dir') + 1], added);
});

once.test('bypassPermissions works where the operator allows it, for root by the allow-list', async (t) => {
  const { proxy, work } = await startOwn(t, ['--permission-mode', 'bypassPermissions']);
  const client = new ChatClient(t, {
    proxy,
    body: AGENT,
    headers: { 'x-claude-permission-mode': 'bypassPermissions' },
  });
  const answer = await client.ask(steps(call(bash('touch made')), say('Done.')));
  assert.equal(answer.text, 'Done.');
  assert.ok(existsSync(path.join(work, 'made')));
  assert.deepEqual(answer.ignored, process.getuid() === 0 ? ['X-Claude-Permission-Mode'] : []);
});

for (const flag of [
  ['--permission-mode', 'bogus'],
  ['--max-turns', '-1'],
  ['--max-budget-usd', '-1'],
  ['--mcp-config', '/no/such/file.json'],
  ['--allowed-cwd', '/no/such/directory'],
]) {
  once.test(`${flag.join(' ')} is refused at the start`, async (t) => {
    await assert.rejects(t.start({ cli: t.cli, args: flag }), /the proxy ended/);
  });
}

test('a client that leaves ends the agent and all that it started', async (t) => {
  const client = new ChatClient(t, { stream: true, body: AGENT });
  const exchange = client.user(steps(call(bash(`echo; sleep 98.7`), { before: 'I wait.' }), say('Never.'))).sendRaw();
  t.defer(async () => exchange.abort());
  const sleeping = () => processesMarked(t.proxy.scratch).filter(({ argv }) => argv.includes('98.7'));
  await eventually('it runs', () => sleeping().length > 0);
  exchange.abort();
  await eventually('nothing of it is left', () => sleeping().length === 0);
});

// ---- tools: the endpoints ------------------------------------------------------------------------

const KNOWN_TOOLS = [
  ...['Task', 'Bash', 'Glob', 'Grep', 'Read', 'Edit', 'Write', 'NotebookEdit', 'WebFetch', 'TodoWrite', 'WebSearch'],
  ...['BashOutput', 'KillShell', 'Skill', 'SlashCommand'],
];
const post = (t, where, body, options = {}) => t.send({ ...options, path: where, body }).done;

once.test('the tools are listed as the reference wrapper does', async (t) => {
  for (const where of ['/v1/tools', '/tools']) {
    const { status, json } = await t.get(where);
    assert.equal(status, 200);
    assert.deepEqual([json.total, json.tools.map(({ name }) => name)], [15, KNOWN_TOOLS]);
    for (const one of json.tools) {
      assertKeys(one, ['name', 'description', 'category', 'parameters', 'examples', 'is_safe', 'requires_network']);
      assert.ok(one.description.length > 0);
      assert.equal(one.requires_network, one.category === 'web');
    }
    const categories = json.tools.map(({ category }) => category);
    const count = (name) => categories.filter((one) => one === name).length;
    assert.deepEqual(['file', 'system', 'web', 'productivity', 'agent'].map(count), [6, 3, 2, 3, 1]);
  }
});

once.test('what is allowed at /v1/tools/config is what the next agent has', async (t) => {
  const { proxy } = await startOwn(t, ['--api-key', 'key-one', '--api-key', 'key-two']);
  const as = (key) => ({ proxy, headers: { 'x-api-key': key } });
  const config = async (key = 'key-one', session = '') => (await t.get(`/v1/tools/config${session}`, as(key))).json;
  const toolsNow = async (key = 'key-one', options = {}) => {
    const client = new ChatClient(t, { ...as(key), body: AGENT, ...options });
    await client.ask(say('Fine.'));
    return offered(client.calls()[0]);
  };
  const first = await config();
  assertKeys(first, ['allowed_tools', 'disallowed_tools', 'effective_tools', 'created_at', 'updated_at']);
  assert.deepEqual(first.effective_tools, DEFAULT_TOOLS);
  assert.deepEqual(await toolsNow(), DEFAULT_TOOLS);

  const set = await post(
    t,
    '/v1/tools/config',
    { allowed_tools: ['Read', 'Grep', 'Bash'], disallowed_tools: ['Bash'] },
    as('key-one'),
  );
  assert.equal(set.status, 200, set.text);
  assert.deepEqual(set.json.effective_tools, ['Grep', 'Read']);
  assert.deepEqual(await toolsNow(), ['Grep', 'Read']);
  assert.deepEqual((await config('key-two')).effective_tools, DEFAULT_TOOLS, "another client's are its own");
  assert.deepEqual(await toolsNow('key-two'), DEFAULT_TOOLS);

  // Null keeps, an empty list sets.
  const kept = await post(t, '/v1/tools/config', { allowed_tools: null, disallowed_tools: [] }, as('key-one'));
  assert.deepEqual(kept.json.effective_tools, ['Bash', 'Grep', 'Read']);
  for (const body of [{ allowed_tools: ['Read', 'Nothing', 'Else'] }, { disallowed_tools: ['Nothing'] }]) {
    const wrong = await post(t, '/v1/tools/config', body, as('key-one'));
    assertRefused(wrong, 400);
    assert.match(wrong.json.error.message, /Nothing/);
  }
  assert.deepEqual((await config()).effective_tools, ['Bash', 'Grep', 'Read'], 'nothing of a wrong one is taken');

  // A session has its own.
  const session = new ChatClient(t, { ...as('key-one'), session: 'tools', body: AGENT });
  await post(t, '/v1/tools/config', { session_id: session.session, allowed_tools: ['Glob'] }, as('key-one'));
  await session.ask(say('Fine.'));
  assert.deepEqual(offered(session.calls()[0]), ['Glob']);
  const told = await config('key-one', `?session_id=${encodeURIComponent(session.session)}`);
  assert.deepEqual(told.effective_tools, ['Glob']);
  assert.deepEqual(await toolsNow(), ['Bash', 'Grep', 'Read'], 'and the others theirs');

  const { json: stats } = await t.get('/v1/tools/stats', as('key-one'));
  assert.deepEqual(stats, {
    total_tools: 15,
    global_allowed: 3,
    global_disallowed: 0,
    session_configs: 1,
    tool_categories: { file: 6, system: 3, web: 2, productivity: 3, agent: 1 },
  });
  for (const where of ['/v1/tools', '/v1/tools/config', '/v1/tools/stats'])
    assertRefused(await t.get(where, { proxy }), 401);
});

// ---- MCP servers ---------------------------------------------------------------------------------

test("the operator's MCP server works for an agent", async (t) => {
  const client = new ChatClient(t, { body: AGENT });
  const answer = await client.ask(steps(call({ tool: 'mcp__operators__lookup', args: { key: 'k' } }), say('Found.')));
  assert.equal(answer.text, 'Found.');
  const calls = client.assertCalls(2);
  assert.deepEqual(lastResults(calls[1])[0].content, 'found k operators secret-operators');
  const bounded = new ChatClient(t, { body: AGENT, headers: { 'x-claude-allowed-tools': 'mcp__operators__lookup' } });
  await bounded.ask(say('Fine.'));
  assert.deepEqual(offered(bounded.calls()[0]), ['mcp__operators__lookup']);
});

test('a slow MCP server is there for the first turn', async (t) => {
  const folder = temporaryFolder(t);
  const file = path.join(folder, 'mcp.json');
  writeFileSync(file, JSON.stringify({ mcpServers: { slow: mcpServer(folder, 'slow', { MCP_DELAY: '1500' }) } }));
  const { proxy } = await startOwn(t, ['--mcp-config', file]);
  const client = new ChatClient(t, { proxy, body: AGENT });
  await client.ask(say('Fine.'));
  assert.ok(offered(client.assertCalls(1)[0]).includes('mcp__slow__lookup'));
});

once.test(
  'an MCP server is registered, tried, used by the next agent, and taken away',
  async (t) => {
    const keys = ['--api-key', 'key-one', '--api-key', 'key-two'];
    const { proxy, work } = await startOwn(t, [...keys, '--allow-mcp-registration']);
    const as = (key) => ({ proxy, headers: { 'x-api-key': key } });
    const list = async (key = 'key-one') => (await t.get('/v1/mcp/servers', as(key))).json;
    const toolsNow = async (key = 'key-one') => {
      const client = new ChatClient(t, { ...as(key), body: AGENT });
      await client.ask(say('Fine.'));
      return offered(client.calls()[0]).filter((name) => name.startsWith('mcp__'));
    };
    assert.deepEqual(await list(), { servers: [], total: 0 });
    const server = { name: 'mine.1', description: 'My own', ...mcpServer(work, 'mine') };
    const added = await post(t, '/v1/mcp/servers', server, as('key-one'));
    assert.equal(added.status, 200, added.text);
    assert.match(added.json.message, /'mine\.1' registered/);
    const shown = await list();
    assert.equal(shown.total, 1);
    assertKeys(shown.servers[0], [
      ...['name', 'command', 'args', 'description', 'enabled', 'connected'],
      ...['tools_count', 'resources_count', 'prompts_count'],
    ]);
    assert.ok(!JSON.stringify(shown).includes('secret'), 'its variables are not told');
    assert.deepEqual(await list('key-two'), { servers: [], total: 0 }, "another client's are its own");

    const connected = await post(t, '/v1/mcp/connect', { server_name: 'mine.1' }, as('key-one'));
    assert.equal(connected.status, 200, connected.text);
    assert.deepEqual([connected.json.tools, connected.json.resources, connected.json.prompts], [1, 0, 0]);
    const [row] = (await list()).servers;
    assert.deepEqual([row.connected, row.tools_count], [true, 1]);
    const { json: stats } = await t.get('/v1/mcp/stats', as('key-one'));
    assert.deepEqual(
      [stats.mcp_available, stats.registered_servers, stats.connected_servers, stats.total_tools],
      [true, 1, 1, 1],
    );

    const client = new ChatClient(t, { ...as('key-one'), body: AGENT });
    const [name] = await toolsNow();
    assert.match(name, /^mcp__mine.1__lookup$/);
    const answer = await client.ask(steps(call({ tool: name, args: { key: 'k' } }), say('Found.')));
    assert.equal(answer.text, 'Found.');
    assert.equal(lastResults(client.calls()[1])[0].content, 'found k mine secret-mine');
    assert.deepEqual(await toolsNow('key-two'), []);

    const gone = await post(t, '/v1/mcp/disconnect', { server_name: 'mine.1' }, as('key-one'));
    assert.equal(gone.status, 200, gone.text);
    assert.deepEqual(await toolsNow(), []);
    assertRefused(await post(t, '/v1/mcp/disconnect', { server_name: 'mine.1' }, as('key-one')), 404);
    for (const where of ['connect', 'disconnect'])
      assertRefused(await post(t, `/v1/mcp/${where}`, { server_name: 'nobody' }, as('key-one')), 404);
    await post(t, '/v1/mcp/servers', { name: 'broken', command: '/no/such/program' }, as('key-one'));
    await post(t, '/v1/mcp/servers', { name: 'silent', command: 'true' }, as('key-one'));
    for (const one of ['broken', 'silent']) {
      const result = await post(t, '/v1/mcp/connect', { server_name: one }, as('key-one'));
      assert.ok(result.status >= 500 && result.status < 505, `${result.status} ${result.text}`);
      assertRefused(result, result.status);
    }
    for (const where of ['/v1/mcp/servers', '/v1/mcp/stats']) assertRefused(await t.get(where, { proxy }), 401);
    const left = () =>
      processesMarked(proxy.scratch).filter(({ argv }) => argv.some((one) => one.endsWith('mcp-server.cjs')));
    await eventually('no server that was tried lives on', () => left().length <= proxy.claudes().length);
  },
);

once.test('a command is registered where the operator lets clients, and nowhere else', async (t) => {
  const { proxy: open } = await startOwn(t);
  const { proxy: lenient } = await startOwn(t, ['--allow-mcp-registration']);
  const server = { name: 'x', command: 'true' };
  assertRefused(await post(t, '/v1/mcp/servers', server, { proxy: open }), 403);
  assertRefused(await post(t, '/v1/mcp/connect', { server_name: 'x' }, { proxy: open }), 404);
  assert.equal((await post(t, '/v1/mcp/servers', server, { proxy: lenient })).status, 200);
  assert.equal((await t.get('/v1/mcp/servers', { proxy: lenient })).json.total, 1);
  for (const [param, body] of [
    ['name', { command: 'true' }],
    ['name', { name: 'a b', command: 'true' }],
    ['name', { name: 'x'.repeat(101), command: 'true' }],
    ['command', { name: 'x' }],
    ['command', { name: 'x', command: ' ' }],
    ['command', { name: 'x', command: 'y'.repeat(501) }],
    [/^args/, { name: 'x', command: 'true', args: [1] }],
    [/^env/, { name: 'x', command: 'true', env: { A: 1 } }],
    ['enabled', { name: 'x', command: 'true', enabled: 'perhaps' }],
  ])
    assertRefused(await post(t, '/v1/mcp/servers', body, { proxy: lenient }), 400, param);
});

once.test('a server of the same name replaces the old one; one that is not enabled is not used', async (t) => {
  const { proxy, work } = await startOwn(t, ['--allow-mcp-registration']);
  const ask = async () => {
    const client = new ChatClient(t, { proxy, body: AGENT });
    await client.ask(steps(call({ tool: 'mcp__mine__lookup', args: { key: 'k' } }), say('Done.')));
    return lastResults(client.calls()[1])[0];
  };
  for (const word of ['one', 'two']) {
    await post(t, '/v1/mcp/servers', { name: 'mine', ...mcpServer(work, word) }, { proxy });
    assert.equal((await ask()).content, `found k ${word} secret-${word}`);
  }
  await post(t, '/v1/mcp/servers', { name: 'mine', ...mcpServer(work, 'off'), enabled: false }, { proxy });
  assert.ok((await ask()).is_error);
  assert.equal((await t.get('/v1/mcp/servers', { proxy })).json.servers[0].enabled, false);
});

// ---- what of a request is honoured ---------------------------------------------------------------

once.test('POST /v1/compatibility tells what of a request is honoured', async (t) => {
  const body = {
    model: MODEL,
    messages: [{ role: 'user', content: 'x' }],
    temperature: 1.7,
    stop: 'END',
    max_tokens: 5,
    seed: 1,
    tools: [],
    logit_bias: { 1: 1 },
    user: 'me',
  };
  const result = await post(t, '/v1/compatibility', body);
  assert.equal(result.status, 200, result.text);
  assertKeys(result.json, ['compatibility_report', 'claude_agent_sdk_options']);
  const report = result.json.compatibility_report;
  assertKeys(report, ['supported_parameters', 'unsupported_parameters', 'warnings', 'suggestions']);
  assert.deepEqual(report.unsupported_parameters.sort(), ['logit_bias', 'seed', 'temperature']);
  for (const name of ['model', 'messages', 'stop', 'max_tokens', 'user'])
    assert.ok(report.supported_parameters.includes(name), name);
  assert.ok(report.suggestions.length >= 3);
  assertKeys(result.json.claude_agent_sdk_options, ['supported', 'custom_headers']);
  assert.ok(result.json.claude_agent_sdk_options.custom_headers.includes('X-Claude-Max-Turns'));
  assertRefused(await post(t, '/v1/compatibility', { messages: 'x' }), 400, 'messages');
});
