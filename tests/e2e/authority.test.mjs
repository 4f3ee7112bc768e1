// Who may do what: users of the machine, pages, keys, rules for tools, settings of strangers. Tried as an attacker would, with the
// real CLI: what was refused must have reached no API and left no trace. What an agent can reach is in confinement.test.mjs.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { chmodSync, chownSync, copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { promisify } from 'node:util';
import { mcpServer } from './agents.test.mjs';
import { ChatClient, assertRefused, call, say, steps, toolsOf } from './chat_client.mjs';
import { PROXY, descriptorsOf, eventually, processesMarked, startAndExpectExit, suite } from './harness.mjs';
import { NO_CLI, reload, scratchFolder, standIn, waitForWindow } from './operate.mjs';
import { browser } from './page.test.mjs';

export const authority = suite();
const { test } = authority;

const AGENT = { enable_tools: true };
const [KEY_ONE, KEY_TWO] = ['key-of-one-00000000', 'key-of-two-00000000'];
const BOTH = ['--api-key', KEY_ONE, '--api-key', KEY_TWO];
const bash = (command) => ({ tool: 'Bash', args: { command, description: 'a test' } });
const as = (key, proxy) => ({ proxy, headers: key ? { 'x-api-key': key } : {} });
const offered = (one) => Object.keys(toolsOf(one)).sort();
const post = (t, where, body, options = {}) => t.send({ ...options, path: where, body }).done;

/** A proxy over the real CLI that keeps no spares. */
const start = (t, args = [], more = {}) => t.start({ cli: t.cli, ...more, args: ['--spares', '0', ...args] });

/** The start's own look at the CLI is over, and no turn has a process, which it would keep. */
async function noProcess(proxy) {
  await proxy.inspected();
  await eventually('no process is left', () => proxy.claudes().length === 0);
}

/** What the tools of the last API call have answered, as text. */
const resultsOf = (client) => JSON.stringify(client.calls().at(-1)?.body.messages.at(-1));

// ---- users of the machine ------------------------------------------------------------------------

const NOBODY = 65534; // a user that every Linux has, and that owns nothing
const otherUser = process.platform !== 'linux' || process.getuid() !== 0 ? 'a second user needs root on Linux' : undefined;

/** Runs a module as that user; resolves to the JSON that it prints. `given` is what it finds as `given`. */
async function asNobody(program, given, uid = NOBODY) {
  const source = `import http from 'node:http'; import net from 'node:net'; const given = ${JSON.stringify(given)};
    const ask = (options, body) => new Promise((resolve, reject) => http.request({ host: '127.0.0.1', agent: false, ...options }, (response) => {
      let text = ''; response.on('data', (bytes) => (text += bytes)).on('end', () => resolve({ status: response.statusCode, text }));
    }).on('error', reject).end(body));
    ${program}`;
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', source], {
    uid,
    gid: NOBODY,
    cwd: '/',
    env: { PATH: process.env.PATH },
  });
  return JSON.parse(stdout);
}

const testUser = (name, body) => test(name, { skip: otherUser }, body);

/** The routes of the server, as it tells them itself: [{method, path}]. */
async function routesOf(t, options) {
  const { message } = (await t.get('/no-such-path', options)).json.error;
  const routes = [...message.matchAll(/(GET|POST|DELETE) (\/[^\s,]*)/g)].map(([, method, where]) => ({ method, path: where.replace('*', 'x') }));
  assert.ok(routes.length > 20, message);
  return routes;
}

testUser('without a key another user of the machine gets 401 on every route but the open ones, and is told why', async (t) => {
  const proxy = await start(t);
  const routes = await routesOf(t, { proxy });
  const { port } = proxy;
  const told = await asNobody(
    `const told = [];
     for (const route of given.routes) told.push({ ...route, ...(await ask({ port: given.port, ...route }, route.method === 'POST' ? given.body : undefined)) });
     console.log(JSON.stringify(told));`,
    { routes, port, body: JSON.stringify({ ...AGENT, messages: t.messages('plain') }) },
  );
  assert.equal(told.length, routes.length);
  for (const { method, path: where, status, text } of told) {
    if (/^(\/v1)?(\/|\/health|(\/api)?\/version)$/.test(where)) {
      assert.equal(status, 200, `${method} ${where}`);
      assert.ok(!text.includes('processes'), `how it stands is no concern of others: ${text}`);
      continue;
    }
    assert.equal(status, 401, `${method} ${where}: ${text}`);
    assert.match(text, /own user.*--api-key/s, where);
  }
  assert.equal(t.calls().length, 0);
  await noProcess(proxy);
  const own = new ChatClient(t, { proxy, body: AGENT });
  assert.equal((await own.ask(say('Yours.'))).text, 'Yours.', 'its own user is served, with tools');
});

testUser('with a key another user of the machine is served', async (t) => {
  const proxy = await start(t, ['--api-key', KEY_ONE]);
  const body = JSON.stringify({ ...AGENT, messages: t.messages('plain text="Served."') });
  const request = { port: proxy.port, method: 'POST', path: '/v1/chat/completions' };
  const { status, text } = await asNobody(
    `console.log(JSON.stringify(await ask({ ...given.request, headers: { 'x-api-key': given.key } }, given.body)));`,
    { request, body, key: KEY_ONE },
  );
  assert.equal(status, 200, text);
  assert.match(text, /Served\./);
});

testUser("another user's wrong keys lock out neither the proxy's own user nor a third one, by TCP and by unix socket", async (t) => {
  const proxy = await start(t, ['--api-key', KEY_ONE, '--rate-limit', '--rate-limit-health', '60'], {
    cli: NO_CLI,
    prepare: (one) => one.command.push('--unix-socket', path.join(one.scratch, 'socket')),
  });
  const socketPath = path.join(proxy.scratch, 'socket');
  chmodSync(proxy.scratch, 0o755);
  chmodSync(socketPath, 0o666);
  const right = { path: '/health', headers: { 'x-api-key': KEY_ONE } };
  await waitForWindow(() => t.get('/health', { proxy, headers: right.headers }), 20);
  for (const place of [{ port: proxy.port }, { socketPath }]) {
    const told = await asNobody(
      `const told = [];
       for (let i = 0; i < 80; i++) told.push((await ask({ ...given, headers: { 'x-api-key': 'guess' + i } })).status);
       console.log(JSON.stringify(told));`,
      { path: '/health', ...place },
    );
    assert.ok(told.includes(200) && told.at(-1) === 429, `${told}`);
    const own = await t.get('/health', { proxy, headers: right.headers, over: place });
    assert.ok(own.status === 200 && own.json.processes, own.text);
    const third = `const answer = await ask(given); console.log(JSON.stringify(answer));`;
    assert.equal((await asNobody(third, { ...right, ...place }, NOBODY - 1)).status, 200);
    assert.equal((await asNobody(third, { ...right, ...place })).status, 429);
  }
});

testUser('a unix socket that others can open tells its users apart, too', async (t) => {
  const proxy = await start(t, [], {
    prepare: (one) => one.command.push('--unix-socket', path.join(one.scratch, 'socket')),
  });
  const socketPath = path.join(proxy.scratch, 'socket');
  chmodSync(proxy.scratch, 0o755);
  chmodSync(socketPath, 0o666);
  const request = { socketPath, path: '/v1/models' };
  const { status, text } = await asNobody('console.log(JSON.stringify(await ask(given)));', request);
  assert.equal(status, 401, text);
  assert.equal((await t.get('/v1/models', { proxy, over: { socketPath } })).status, 200);
});

testUser('a socket that another user closes at once, or resets, starts nothing', async (t) => {
  const proxy = await start(t);
  await noProcess(proxy);
  const before = descriptorsOf(proxy.pid).length;
  const body = JSON.stringify({ ...AGENT, messages: t.messages('plain') });
  const request = `POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
  const sent = await asNobody(
    `let sent = 0;
     const once = (way) => new Promise((resolve) => {
       const socket = net.connect(given.port, '127.0.0.1', () => {
         socket.write(given.request, () => { sent++; socket[way](); });
       });
       socket.on('error', () => {}).on('close', resolve);
       socket.resume();
     });
     for (const way of ['end', 'destroy', 'resetAndDestroy']) for (let i = 0; i < 40; i++) await once(way);
     console.log(sent);`,
    { port: proxy.port, request },
  );
  assert.equal(sent, 120);
  await eventually('no connection of theirs is left', () => descriptorsOf(proxy.pid).length <= before);
  await noProcess(proxy);
  const own = new ChatClient(t, { proxy });
  await own.ask(say('Mine.'));
  assert.equal(t.calls().length, own.calls().length, 'the API saw no other turn');
});

// ---- pages ---------------------------------------------------------------------------------------

/** A page of this machine on a port of its own; resolves to its origin. */
async function foreignPage(t) {
  const server = http.createServer((_, response) => response.setHeader('content-type', 'text/html').end('<h1>A page</h1>'));
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.defer(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  return `http://localhost:${server.address().port}`;
}

/** What a page's own code gets: [status, text] for [path, body]; a GET without a body. */
const fetched = (view, base, where, body, type = 'application/json') =>
  view.evaluate(
    async ([target, content, contentType]) => {
      const options = content ? { method: 'POST', headers: { 'content-type': contentType }, body: JSON.stringify(content) } : {};
      const response = await fetch(target, options).catch((error) => ({ status: 0, text: () => error.message }));
      return [response.status, await response.text()];
    },
    [base + where, body, type],
  );

const WANTS = [
  ['/v1/tools/config', { allowed_tools: ['Bash'] }],
  ['/v1/tools/config'],
  ['/v1/mcp/servers'],
  ['/v1/mcp/servers', { name: 'x', command: '/bin/sh', args: ['-c', 'id'] }],
  ['/v1/mcp/connect', { server_name: 'x' }],
];

const testPage = (name, body) =>
  test(name, { skip: browser.skip }, async (t) => {
    const { executablePath, chromium } = browser;
    const running = await chromium.launch({ executablePath, args: ['--no-sandbox'] }); // root has no sandbox
    t.defer(async () => running.close());
    return body(t, await running.newPage());
  });

testPage('a page of another port of this machine may chat, and neither use tools nor register servers', async (t, view) => {
  const proxy = await start(t, ['--allow-mcp-registration']);
  await view.goto(await foreignPage(t));
  const chat = { messages: t.messages('plain text="Chat."') };
  const [status, text] = await fetched(view, proxy.url, '/v1/chat/completions', chat);
  assert.equal(status, 200, text);
  assert.match(text, /Chat\./);
  const before = t.calls().length;
  for (const type of ['application/json', 'text/plain']) {
    for (const where of ['/v1/chat/completions', '/v1/messages', '/v1/responses']) {
      const wish = { ...AGENT, model: 'sonnet', max_tokens: 9, input: t.text('plain'), messages: t.messages('plain') };
      const refused = await fetched(view, proxy.url, where, wish, type);
      assert.equal(refused[0], 403, `${where}: ${refused[1]}`);
      assert.match(refused[1], /--cors-origin/);
    }
    for (const [where, body] of WANTS) assert.equal((await fetched(view, proxy.url, where, body, type))[0], 403, where);
  }
  assert.equal(t.calls().length, before, 'no turn');
  assert.equal((await t.get('/v1/mcp/servers', { proxy })).json.total, 0, 'no server');
});

testPage("the proxy's own page and pages of a named origin may use tools", async (t, view) => {
  const origin = await foreignPage(t);
  const proxy = await start(t, ['--cors-origin', origin]);
  for (const address of [origin, proxy.url]) {
    const base = address === origin ? proxy.url : address;
    await view.goto(address);
    const [status, text] = await fetched(view, base, '/v1/chat/completions', { ...AGENT, messages: t.messages('plain text="Lent."') });
    assert.equal(status, 200, `${address}: ${text}`);
    assert.match(text, /Lent\./);
    assert.equal((await fetched(view, base, '/v1/tools/config'))[0], 200, address);
  }
  assert.ok(t.calls().every((one) => offered(one).includes('Bash')), 'with tools');
});

testPage("a page of http://localhost is not taken for the proxy's own: at its other address somebody else may listen", async (t, view) => {
  const proxy = await start(t);
  const address = proxy.url.replace('127.0.0.1', 'localhost');
  await view.goto(address);
  assert.equal((await fetched(view, address, '/v1/chat/completions', { messages: t.messages('plain') }))[0], 200, 'it may chat');
  assert.equal((await fetched(view, address, '/v1/chat/completions', { ...AGENT, messages: t.messages('plain') }))[0], 403);
});

test('a foreign page of this machine chats and no more: it neither sees, deletes nor goes on with what the proxy keeps', async (t) => {
  const proxy = await start(t);
  const owner = { proxy, headers: { origin: proxy.url } }; // the proxy's own page
  const kept = { session_id: 'trip', messages: [{ role: 'user', content: t.text('plain text="Private."', 'my own words') }] };
  assert.equal((await t.chat(kept, owner)).status, 200);
  const first = (await post(t, '/v1/responses', { input: t.text('plain text="Mine."') }, owner)).json;
  const before = t.calls().length;
  const page = { proxy, headers: { origin: 'http://localhost:3999' } };
  const refused = async (method, where, body, headers = {}) => {
    const answer = await t.send({ method, path: where, body, proxy, headers: { ...page.headers, ...headers } }).done;
    assert.equal(answer.status, 403, `${method} ${where} ${JSON.stringify(body)}: ${answer.text}`);
    assert.match(answer.text, /--cors-origin/);
    assert.ok(!answer.text.includes('Private'), answer.text);
  };
  const open = /^(\/v1)?\/(chat\/completions|messages.*|(fim\/)?completions|models.*|compatibility|health|version|responses|api\/.*)?$/;
  const routes = (await routesOf(t, page)).map((one) => ({ ...one, path: one.path.replace(/(sessions)\/x$/, '$1/trip').replace(/(responses)\/x/, `$1/${first.id}`) }));
  const closed = routes.filter(({ path: where }) => !open.test(where));
  assert.ok(closed.length >= 20, 'sessions, responses, tools, MCP servers, figures, the login, what has arrived');
  for (const { method, path: where } of closed) await refused(method, where, method === 'POST' ? { messages: t.messages('plain') } : undefined);
  const planted = { model: 'sonnet', max_tokens: 9, messages: t.messages('plain') };
  const dialects = { '/v1/chat/completions': planted, '/v1/messages': planted, '/v1/responses': { input: t.text('plain') }, '/v1/completions': { prompt: t.text('plain') }, '/v1/fim/completions': { prompt: t.text('plain') }, '/api/chat': planted, '/api/generate': { prompt: t.text('plain') } };
  for (const [where, body] of Object.entries(dialects)) await refused('POST', where, body, { 'x-session-id': 'trip' });
  for (const where of ['/v1/chat/completions', '/v1/messages', '/api/chat']) await refused('POST', where, { ...planted, session_id: 'trip' });
  await refused('POST', '/v1/responses', { input: t.text('plain'), previous_response_id: first.id });
  await refused('POST', '/v1/responses', { input: t.text('plain'), store: true });
  const named = await post(t, '/v1/responses', { input: [{ type: 'item_reference', id: first.output[0].id }] }, page);
  assert.ok([400, 404].includes(named.status) && !named.text.includes('Mine'), named.text);
  assert.equal(t.calls().length, before, 'none of that reached the API');

  const own = await post(t, '/v1/responses', { input: t.text('plain text="Chat."') }, page);
  assert.deepEqual([own.status, own.json.store], [200, false], own.text);
  assertRefused(await t.get(`/v1/responses/${own.json.id}`, owner), 404);
  assertRefused(await post(t, '/v1/responses', { input: t.text('plain'), previous_response_id: own.json.id }, owner), 404);
  assert.ok(!('processes' in (await t.get('/health', page)).json), 'how it stands is no concern of foreign pages');
  assert.deepEqual((await t.get('/v1/sessions', owner)).json.sessions.map((one) => [one.session_id, one.message_count]), [['trip', 2]]);
  assert.ok((await t.get('/health', owner)).json.processes && (await t.get('/metrics', owner)).status === 200);
  const next = await post(t, '/v1/responses', { input: t.text('plain text="On."'), previous_response_id: first.id }, owner);
  assert.equal(next.status, 200, next.text);
  const gone = await t.send({ ...owner, method: 'DELETE', path: '/v1/sessions/trip' }).done;
  assert.equal(gone.status, 200, gone.text);
});

test("a page of a named origin, and a page with a key of its own, are told apart: a key is no leave to read what the key's programs keep", async (t) => {
  const [named, other] = ['http://localhost:3998', 'http://localhost:3999'];
  const proxy = await start(t, ['--api-key', KEY_ONE, '--cors-origin', named], { cli: NO_CLI });
  const status = async (origin) => (await t.get('/v1/sessions', { proxy, headers: { origin, 'x-api-key': KEY_ONE } })).status;
  assert.deepEqual([await status(named), await status(proxy.url), await status(other)], [200, 200, 403]);
});

test("an origin of '*' without a key is refused at the start and at SIGHUP, where the old settings stay", async (t) => {
  const refused = await startAndExpectExit({ url: t.api.url, cli: NO_CLI, args: ['--cors-origin', '*'] });
  assert.equal(refused.exit?.code, 2, refused.output);
  assert.match(refused.output, /--cors-origin '\*'.*client key/);
  const writeEnv = (proxy, text) => writeFileSync(path.join(proxy.scratch, 'settings.env'), text);
  const proxy = await start(t, ['--env-file', 'settings.env'], {
    cli: NO_CLI,
    prepare: (one) => writeEnv(one, 'CORS_ORIGINS=https://a.example\n'),
  });
  writeEnv(proxy, 'CORS_ORIGINS=*\n');
  assert.match(await reload(proxy), /stay as they were: .*client key/);
  const from = async (origin) => (await t.get('/v1/models', { proxy, headers: { origin } })).status;
  assert.deepEqual([await from('https://a.example'), await from('https://b.example')], [200, 403]);
});

// ---- keys ----------------------------------------------------------------------------------------

/** A server that leaves a trace as soon as it runs. */
const tracing = (trace) => ({ name: 'x', command: '/bin/sh', args: ['-c', `touch '${trace}'`] });

for (const [what, args, message] of [
  ['no flag', [], /--allow-mcp-registration/],
  ['--no-builtin-tools', ['--allow-mcp-registration', '--no-builtin-tools'], /--no-builtin-tools/],
  ['--allowed-tools Read', ['--allow-mcp-registration', '--allowed-tools', 'Read'], /mcp__x/],
]) {
  test(`a key for chat stays one: with ${what} no MCP server is taken, and no command runs`, async (t) => {
    const proxy = await start(t, [...BOTH, ...args], { cli: NO_CLI });
    const trace = path.join(scratchFolder(t), 'proof');
    const added = await post(t, '/v1/mcp/servers', tracing(trace), as(KEY_ONE, proxy));
    assertRefused(added, 403);
    assert.match(added.json.error.message, message);
    const connected = await post(t, '/v1/mcp/connect', { server_name: 'x' }, as(KEY_ONE, proxy));
    assert.ok([403, 404].includes(connected.status), connected.text);
    assert.ok(!existsSync(trace));
  });
}

test("one key's disconnect leaves the operator's server to the other, and nobody is shown its command line", async (t) => {
  const proxy = await start(t, BOTH, {
    prepare: (one) => {
      const file = path.join(one.scratch, 'mcp.json');
      writeFileSync(file, JSON.stringify({ mcpServers: { shared: mcpServer(one.scratch, 'postgres://user:secret@host') } }));
      one.command.push('--mcp-config', file);
    },
  });
  const has = async (key) => {
    const client = new ChatClient(t, { ...as(key, proxy), body: AGENT });
    await client.ask(say('Fine.'));
    return offered(client.calls()[0]).includes('mcp__shared__lookup');
  };
  for (const key of [KEY_ONE, KEY_TWO])
    assert.equal((await post(t, '/v1/mcp/connect', { server_name: 'shared' }, as(key, proxy))).status, 200);
  const shown = await t.get('/v1/mcp/servers', as(KEY_ONE, proxy));
  assert.equal(shown.json.servers[0].tools_count, 1, shown.text);
  for (const word of ['secret', 'postgres', 'mcp-server.cjs', process.execPath]) assert.ok(!shown.text.includes(word), `${word}: ${shown.text}`);
  assert.equal((await post(t, '/v1/mcp/disconnect', { server_name: 'shared' }, as(KEY_ONE, proxy))).status, 200);
  assert.deepEqual([await has(KEY_ONE), await has(KEY_TWO)], [false, true]);
  assert.equal((await t.get('/v1/mcp/servers', as(KEY_TWO, proxy))).json.servers[0].connected, true);
  assertRefused(await post(t, '/v1/mcp/servers', { name: 'shared', command: 'true' }, as(KEY_ONE, proxy)), 403);
});

test('what a revoked key has left ends: its processes, its servers, its sessions', async (t) => {
  const writeKeys = (proxy, ...keys) => writeFileSync(path.join(proxy.scratch, 'settings.env'), `API_KEYS=${keys}\n`);
  const proxy = await start(t, ['--env-file', 'settings.env', '--allow-mcp-registration', '--sandbox', 'off'], {
    prepare: (one) => writeKeys(one, KEY_ONE, KEY_TWO),
  });
  const server = { name: 'mine', ...mcpServer(proxy.scratch, 'mine') };
  const clients = {};
  for (const key of [KEY_ONE, KEY_TWO]) {
    assert.equal((await post(t, '/v1/mcp/servers', server, as(key, proxy))).status, 200);
    clients[key] = new ChatClient(t, { ...as(key, proxy), session: 'kept', body: AGENT });
    await clients[key].ask(say('Kept.'));
  }
  const servers = () => processesMarked(proxy.scratch).filter(({ argv }) => argv.some((one) => one.endsWith('mcp-server.cjs')));
  assert.deepEqual([proxy.claudes().length, servers().length], [2, 2]);
  const session = (key) => t.get(`/v1/sessions/${encodeURIComponent(clients[key].session)}`, as(key, proxy));
  assert.equal((await session(KEY_ONE)).status, 200);
  writeKeys(proxy, KEY_TWO);
  assert.match(await reload(proxy), /loaded anew/);
  await eventually('its process and its server have ended', () => proxy.claudes().length === 1 && servers().length === 1);
  assert.equal((await session(KEY_ONE)).status, 401);
  assert.equal((await session(KEY_TWO)).status, 200);
  writeKeys(proxy, KEY_ONE, KEY_TWO);
  assert.match(await reload(proxy), /loaded anew/);
  assert.equal((await session(KEY_ONE)).status, 404, 'the session does not come back with the key');
  assert.equal((await t.get('/v1/mcp/servers', as(KEY_ONE, proxy))).json.total, 0, 'nor does the server');
  await clients[KEY_TWO].ask(say('Goes on.'));
  clients[KEY_TWO].assertCalls(2);
});

// ---- rules ---------------------------------------------------------------------------------------

test('no text after a rule, nor within its parentheses, gives more than the operator allows', async (t) => {
  const proxy = await start(t, ['--api-key', KEY_ONE, '--allowed-tools', 'Read,Bash(git:*)'], {
    prepare: (one) => {
      const file = path.join(one.scratch, 'mcp.json');
      writeFileSync(file, JSON.stringify({ mcpServers: { srv: mcpServer(one.scratch, 'srv') } }));
      one.command.push('--mcp-config', file);
    },
  });
  for (const rules of [
    'Bash(git:*), Read(x) Bash(*)',
    'Bash(git:*), Read(x)),Bash(*)',
    'mcp__srv(x) Bash(*)',
    'Read(x) Bash',
    'Read(x),Bash',
    'Read Bash',
    'Bash',
    'Bash(*)',
    'Bash(**)',
    'Bash()',
    'Bash( git:*)',
    'Read(a(b) Bash',
    'Read(a\\(b\\) Bash)',
    'Read\tBash',
    'Bash(git:*)x',
    'Bash(',
    'Read)Bash(',
    '--allowedTools',
    '*',
    'B*',
  ]) {
    const headers = { 'x-api-key': KEY_ONE, 'x-claude-allowed-tools': rules };
    const result = await t.chat({ ...AGENT, messages: t.messages('plain') }, { proxy, headers });
    assert.ok([400, 403].includes(result.status), `${rules}: ${result.status} ${result.text}`);
  }
  assert.equal(t.calls().length, 0);
  await noProcess(proxy);
});

for (const headers of [{}, { 'x-claude-allowed-tools': 'Read, Bash(git:*)' }, { 'x-claude-allowed-tools': 'Bash(git:*)' }]) {
  test(`a narrowed Bash stays narrow, with ${JSON.stringify(headers)}`, async (t) => {
    const work = scratchFolder(t);
    const proxy = await start(t, ['--cwd', work, '--allowed-tools', 'Read,Bash(git:*)']);
    const client = new ChatClient(t, { proxy, body: AGENT, headers });
    await client.ask(
      steps(call(bash('touch proof')), call(bash('git init . && touch proof')), call(bash('python3 -c "open(\'proof\', \'w\')"')), call(bash('git init .')), say('Done.')),
    );
    assert.ok(!existsSync(path.join(work, 'proof')), resultsOf(client));
    assert.ok(existsSync(path.join(work, '.git')) || !('x-claude-allowed-tools' in headers), resultsOf(client));
  });
}

test('acceptEdits, which runs commands by itself, is refused where a rule narrows Bash', async (t) => {
  const proxy = await start(t, ['--permission-mode', 'acceptEdits', '--allowed-tools', 'Read,Bash(git:*)'], { cli: NO_CLI });
  const headers = { 'x-claude-permission-mode': 'acceptEdits' };
  assertRefused(await t.chat({ ...AGENT, messages: t.messages('plain') }, { proxy, headers }), 403);
  const open = await start(t, [], { cli: NO_CLI });
  assertRefused(await t.chat({ ...AGENT, messages: t.messages('plain') }, { proxy: open, headers }), 403);
});

// ---- settings of strangers -----------------------------------------------------------------------

/** A proxy whose program lies in its own working directory, where a `.env` of this text lies, too. */
const besideProgram = (one, text) => {
  copyFileSync(PROXY, path.join(one.scratch, 'claude-openai'));
  one.command[0] = path.join(one.scratch, 'claude-openai');
  writeFileSync(path.join(one.scratch, '.env'), text, { mode: 0o600 });
};

/** A program that leaves a trace when somebody runs it. */
function trap(t) {
  const folder = scratchFolder(t);
  const file = path.join(folder, 'claude');
  writeFileSync(file, `#!/bin/sh\ntouch '${folder}/proof'\n`, { mode: 0o755 });
  return { file, sprung: () => existsSync(path.join(folder, 'proof')) };
}

test("a .env in somebody else's folder chooses no program, host, key nor address; it is said what was taken and what not", async (t) => {
  const { file, sprung } = trap(t);
  const dangerous = {
    CLAUDE_CLI_PATH: file,
    CLAUDE_WRAPPER_HOST: '0.0.0.0',
    API_KEY: 'a-key-that-the-attacker-knows',
    API_KEYS: 'another-key-that-is-known',
    CORS_ORIGINS: 'https://evil.example',
    ANTHROPIC_BASE_URL: 'http://127.0.0.1:9',
    HTTPS_PROXY: 'http://127.0.0.1:9',
    NODE_EXTRA_CA_CERTS: '/tmp/evil.pem',
    CLAUDE_MCP_CONFIG: file,
    CLAUDE_SANDBOX: 'off',
    CLAUDE_ALLOW_MCP_REGISTRATION: 'true',
    CLAUDE_ALLOW_KEYLESS_TOOLS: 'true',
    CLAUDE_PERMISSION_MODE: 'bypassPermissions',
    CLAUDE_ALLOWED_TOOLS: 'Bash',
    CLAUDE_ALLOWED_CWD: '/',
    CLAUDE_ADD_DIR: '/',
    CLAUDE_CWD: '/',
    CLAUDE_UNIX_SOCKET: '/tmp/evil.sock',
    TRUSTED_PROXIES: '0.0.0.0/0',
    LOG_BODIES: 'true',
    // These would lift limits of the file of --config.
    CLAUDE_NO_BUILTIN_TOOLS: 'false',
    CLAUDE_DISALLOWED_TOOLS: 'TodoWrite',
    CLAUDE_MAX_TURNS: '0',
    CLAUDE_MAX_QUEUE: '7',
    CLAUDE_STRICT: 'false',
    RATE_LIMIT_ENABLED: 'false',
    TMPDIR: '/tmp',
    PATH: path.dirname(file),
  };
  const unknown = { LD_PRELOAD: '/tmp/evil.so', NODE_OPTIONS: '--require=/tmp/evil.cjs' }; // of other programs, so neither
  const harmless = { CLAUDE_QUEUE_TIMEOUT: '7s', DEFAULT_MODEL: 'opus', LOG_LEVEL: 'debug' };
  const lines = Object.entries({ ...dangerous, ...unknown, ...harmless }).map(([name, value]) => `${name}=${value}\n`);
  const proxy = await t.start({
    args: ['--spares', '0'],
    env: { ANTHROPIC_BASE_URL: undefined, DEFAULT_MODEL: undefined, PATH: '/usr/bin:/bin' },
    prepare: (one) => writeFileSync(path.join(one.scratch, '.env'), lines.join(''), { mode: 0o600 }),
  });
  const taken = /^settings from \.env: (.*)$/m.exec(proxy.output)?.[1].split(', ');
  assert.deepEqual(taken?.toSorted(), Object.keys(harmless).sort(), proxy.output);
  const left = /^NOT taken from \.env.*?: (.*) \(to have them: --env-file \.env\)$/m.exec(proxy.output)?.[1].split(', ');
  assert.deepEqual(left?.toSorted(), Object.keys(dangerous).sort(), proxy.output);
  await proxy.inspected();
  assert.ok(!sprung(), 'the program of the file did not run');
  assert.equal((await t.get('/v1/models', { proxy })).status, 200, 'no key is asked for');
  assert.equal((await t.get('/v1/models', { proxy, headers: { origin: 'https://evil.example' } })).status, 403);
});

test('doctor runs no program that a .env of the folder names', async (t) => {
  const { file, sprung } = trap(t);
  const { output } = await startAndExpectExit({
    url: t.api.url,
    args: ['doctor'],
    env: { PATH: '/usr/bin:/bin' },
    prepare: (one) => writeFileSync(path.join(one.scratch, '.env'), `CLAUDE_CLI_PATH=${file}\n`, { mode: 0o600 }),
  });
  assert.match(output, /NOT taken from \.env.*CLAUDE_CLI_PATH/);
  assert.ok(!sprung(), output);
});

test('a .env beside the program counts whole, and one that --env-file names', async (t) => {
  const cli = standIn(t);
  const text = `CLAUDE_CLI_PATH=${cli}\nAPI_KEY=${KEY_ONE}\n`;
  for (const way of ['beside', 'named']) {
    const proxy = await t.start({
      args: ['--spares', '0', ...(way === 'named' ? ['--env-file', '.env'] : [])],
      env: { PATH: '/usr/bin:/bin' },
      prepare: (one) => (way === 'beside' ? besideProgram(one, text) : writeFileSync(path.join(one.scratch, '.env'), text)),
    });
    assert.match(proxy.output, /^settings from \.env: API_KEY, CLAUDE_CLI_PATH$/m, way);
    assert.equal((await t.get('/v1/models', { proxy })).status, 401, way);
    const answer = await t.chat({ messages: [{ role: 'user', content: '[[text say=Taken.]]' }] }, as(KEY_ONE, proxy));
    assert.match(answer.text, /Taken\./, way);
  }
});

test('a .env that others may write, or that is theirs, is not read, and this is said', async (t) => {
  for (const spoil of [
    (file) => chmodSync(file, 0o666),
    (file) => chmodSync(file, 0o620),
    ...(otherUser ? [] : [(file) => chownSync(file, NOBODY, NOBODY)]),
  ]) {
    const proxy = await t.start({
      cli: NO_CLI,
      args: ['--spares', '0'],
      prepare: (one) => {
        besideProgram(one, `API_KEY=${KEY_ONE}\n`);
        spoil(path.join(one.scratch, '.env'));
      },
    });
    assert.match(proxy.output, /^\.env is NOT read: /m);
    assert.equal((await t.get('/v1/models', { proxy })).status, 200, 'no key is asked for');
  }
});

test('SIGHUP keeps the settings when the .env is no longer trusted, or gone', async (t) => {
  const proxy = await t.start({
    cli: NO_CLI,
    args: ['--spares', '0'],
    prepare: (one) => besideProgram(one, `API_KEY=${KEY_ONE}\n`),
  });
  const file = path.join(proxy.scratch, '.env');
  writeFileSync(file, `API_KEY=${KEY_TWO}\n`);
  chmodSync(file, 0o666);
  assert.match(await reload(proxy), /stay as they were: .*\.env/);
  rmSync(file);
  assert.match(await reload(proxy), /stay as they were: .*\.env/);
  const statuses = [];
  for (const key of [undefined, KEY_TWO, KEY_ONE]) statuses.push((await t.get('/v1/models', as(key, proxy))).status);
  assert.deepEqual(statuses, [401, 401, 200]);
});

// ---- doctor --security ---------------------------------------------------------------------------

/** Ends with its exit status; a `claude` that it would run leaves a trace. */
async function reviewed(t, args, env = {}) {
  const { file, sprung } = trap(t);
  const { exit, output } = await startAndExpectExit({ url: t.api.url, cli: file, args: ['doctor', '--security', ...args], env });
  assert.ok(!sprung(), 'it starts no process');
  const lines = output.trim().split('\n');
  assert.ok(lines.length >= 5 && lines.length <= 24, output);
  assert.ok(lines.every((line) => /^(ok|OPEN) {2,4}\S|^ {6}\S/.test(line)), output);
  return { code: exit?.code, output, open: [...output.matchAll(/^OPEN +([^:]+):/gm)].map(([, what]) => what) };
}

test('doctor --security says what is open, with status 1, and 0 where nothing is', async (t) => {
  const closed = await reviewed(t, ['--no-builtin-tools']);
  assert.deepEqual([closed.open, closed.code], [[], 0], closed.output);
  const bounded = await reviewed(t, ['--api-key', KEY_ONE, '--allowed-tools', 'Read,Glob,Grep']);
  assert.deepEqual([bounded.open, bounded.code], [[], 0], bounded.output);
  for (const [args, what] of [
    [['--host', '0.0.0.0', '--api-key', KEY_ONE], 'who can connect'],
    [['--host', '0.0.0.0', '--api-key', KEY_ONE], 'encryption'],
    [['--cors-origin', '*', '--api-key', KEY_ONE], 'web pages'],
    [['--allow-keyless-tools'], 'tools without a key'],
    [['--allow-mcp-registration', '--api-key', KEY_ONE], 'MCP servers'],
    [['--permission-mode', 'bypassPermissions', '--api-key', KEY_ONE], 'permission mode'],
    [['--log-bodies'], 'log'],
  ]) {
    const { open, code, output } = await reviewed(t, args);
    assert.ok(open.includes(what), `${args}: ${output}`);
    assert.equal(code, 1);
    assert.ok(!output.includes(KEY_ONE), output);
  }
});
