// What the program does beside serving: `doctor --url` looks at a running proxy from outside, `connect` tells clients of it.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { existsSync, lstatSync, mkdirSync, readFileSync, readdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import path from 'node:path';
import { promisify } from 'node:util';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { recipeOf } from './documents.mjs';
import { PROXY, eventually, freePort, suite } from './harness.mjs';
import { startMessagesApi } from './messages_api.mjs';
import { NO_CLI, scratchFolder, startLight, startOwn } from './operate.mjs';
import { makeCertificate } from './transport.test.mjs';

export const commands = suite();
const { test } = commands;

/** Runs the program to its end, without a terminal: {code, stdout, stderr}. */
async function ran(args, { home = '/nonexistent', env = {} } = {}) {
  const environment = { PATH: process.env.PATH, HOME: home, ...env };
  const done = await promisify(execFile)(PROXY, args, { env: environment, cwd: '/', timeout: 150_000 }).catch((error) => error);
  return { code: done.code ?? 0, stdout: done.stdout, stderr: done.stderr };
}

/** What `doctor --url` says: {code, lines: [{what, good, detail, remedy}], of(what), stdout}. */
async function examined(url, { args = [], env } = {}) {
  const { code, stdout, stderr } = await ran(['doctor', '--url', url, '--model', MODEL, ...args], { env });
  assert.equal(stderr, '');
  const lines = [...stdout.matchAll(/^(ok|FAIL) +([^:\n]+): (.*)(?:\n {6}(.+))?/gm)].map(([, state, what, detail, remedy]) => ({
    what, good: state === 'ok', detail, remedy,
  }));
  for (const { detail } of lines) assert.match(detail, /, \d+ ms$/);
  return { code, lines, stdout, of: (name) => lines.find(({ what }) => what === name) ?? assert.fail(`no ${name}: ${stdout}`) };
}

const LOOKS = ['version', 'health', 'models', 'login', 'sessions'];
const DIALECTS = ['chat completions', 'Responses', 'Messages', 'completions'];
const ANSWERS = [...DIALECTS.flatMap((name) => [name, `${name}, streamed`]), 'a tool round'];

// ---- doctor --url --------------------------------------------------------------------------------

const RESULT = 'sunny, 24 degrees';

test('doctor --url: every dialect, streamed and not, and a tool round, through a proxy over the real CLI', { slow: true }, async (t) => {
  const scenario = ({ body, raw }) =>
    body.tools?.some(({ name }) => name === 'get_weather') && !raw.includes(RESULT)
      ? { name: 'tool_use', tool: 'get_weather', args: { city: 'Lisbon' } }
      : { name: 'plain', text: 'OK' };
  const api = await startMessagesApi({ scenario });
  t.defer(() => api.close());
  const proxy = await t.start({ url: api.url, cli: t.cli, args: ['--spares', '1'] });
  await proxy.inspected();
  const { code, lines, stdout, of } = await examined(`${proxy.url}/v1/`);
  assert.deepEqual(lines.map(({ what }) => what), [...LOOKS, ...ANSWERS]);
  assert.deepEqual(lines.filter(({ good }) => !good), [], stdout);
  assert.equal(code, 0);
  assert.match(of('login').detail, /^api_key, no client key/);
  const calls = api.requests.filter((call) => call.path === '/v1/messages');
  assert.equal(calls.length, ANSWERS.length + 1, 'the tool round is two');
  assert.ok(calls.every(({ body }) => body.model === MODEL));
  assert.equal(calls.filter(({ raw }) => raw.includes(RESULT)).length, 1);
});

test('doctor --url: https and a unix socket', async (t) => {
  const pair = makeCertificate(scratchFolder(t), 'doctor');
  const socket = path.join(scratchFolder(t), 'proxy.sock');
  const proxy = await startLight(t, { args: ['--tls-cert', pair.cert, '--tls-key', pair.key, '--unix-socket', socket] });
  await proxy.inspected();
  const seen = await Promise.all([examined(proxy.url, { env: { SSL_CERT_FILE: pair.cert } }), examined(`unix:${socket}`)]);
  for (const { of, stdout } of seen)
    for (const what of ['version', 'health', 'models', 'Messages', 'chat completions, streamed']) assert.ok(of(what).good, stdout);
  const doubtful = await examined(proxy.url);
  assert.equal(doubtful.code, 1, doubtful.stdout);
  assert.match(doubtful.of('version').remedy, /SSL_CERT_FILE/);
});

test('doctor --url: where a client key is missing or wrong it says so, and asks nothing more', async (t) => {
  const proxy = await startOwn(t, { args: ['--api-key', 'the-right-key'] });
  const missing = await examined(proxy.url);
  assert.equal(missing.code, 1, missing.stdout);
  assert.equal(missing.lines.at(-1).what, 'models', missing.stdout);
  assert.match(missing.of('models').detail, /^HTTP 401 /);
  assert.match(missing.of('models').remedy, /--key KEY, or CLAUDE_OPENAI_KEY/);
  const wrong = await examined(proxy.url, { args: ['--key', 'another-key'] });
  assert.equal(wrong.code, 1, wrong.stdout);
  assert.match(wrong.of('models').remedy, /other client keys/);
  for (const given of [{ args: ['--key=the-right-key'] }, { env: { CLAUDE_OPENAI_KEY: 'the-right-key' } }]) {
    const right = await examined(proxy.url, given);
    assert.ok(right.of('models').good && right.of('sessions').good, right.stdout);
    assert.match(right.of('login').detail, /client key set/);
    assert.doesNotMatch(right.stdout, /the-right-key/);
  }
});

test('doctor --url: no CLI is told by health, by the login and by every answer, with what to do', async (t) => {
  const proxy = await startOwn(t, { cli: NO_CLI });
  await proxy.inspected();
  const { code, lines, stdout, of } = await examined(proxy.url);
  assert.equal(code, 1, stdout);
  assert.deepEqual(lines.filter(({ good }) => good).map(({ what }) => what), ['version', 'models', 'sessions'], stdout);
  assert.match(of('health').detail, /nonexistent/);
  assert.match(of('chat completions').detail, /^HTTP 503 /);
  assert.match(of('chat completions').remedy, /claude-openai doctor/);
});

/** A server that answers each path as `answers` says: {path: [status, type, body]}. */
async function startOther(t, answers) {
  const server = http.createServer((request, response) => {
    const [status, type, body] = answers[request.url] ?? [404, 'text/html', '<h1>Not Found</h1>'];
    response.writeHead(status, { 'content-type': type }).end(body);
  });
  await new Promise((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  t.defer(async () => server.close());
  return `http://127.0.0.1:${server.address().port}`;
}

test('doctor --url: a closed port, and servers that are no claude-openai', async (t) => {
  const port = await freePort();
  const cases = [
    [`http://127.0.0.1:${port}`, /^no answer: /, /start the proxy/],
    ['unix:/nonexistent/socket', /^no answer: /, /start the proxy/],
    [await startOther(t, {}), /^HTTP 404 text\/html/, /the address that the proxy prints/],
    [await startOther(t, { '/version': [200, 'application/json', '{"version":"9"}'] }), /^what answers is no claude-openai/, /the address/],
  ];
  for (const [url, detail, remedy] of cases) {
    const { code, lines, stdout } = await examined(url);
    assert.equal(code, 1, stdout);
    assert.deepEqual(lines.map(({ what, good }) => [what, good]), [['version', false]], stdout);
    assert.match(lines[0].detail, detail);
    assert.match(lines[0].remedy, remedy);
  }
});

test('doctor --url: a stream that breaks off, one that ends in an error, and an answer without a text fail', async (t) => {
  const json = (value) => [200, 'application/json', JSON.stringify(value)];
  const url = await startOther(t, {
    '/version': json({ service: 'claude-openai', version: '9' }),
    '/health': json({ status: 'healthy' }),
    '/v1/models': json({ data: [{ id: MODEL }] }),
    '/v1/chat/completions': [200, 'text/event-stream', 'data: {"error":{"message":"too \\u001b[31mlate"}}\n\ndata: [DONE]\n\n'],
    '/v1/messages': [200, 'text/event-stream', 'data: {"delta":{"text":"O"}}\n\n'],
    '/v1/completions': [200, 'text/event-stream', 'data: {"choices":[]}\n\ndata: [DONE]\n\n'],
    '/v1/responses': json({ output: [] }),
  });
  const { code, stdout, of } = await examined(url);
  assert.equal(code, 1);
  assert.match(of('chat completions, streamed').detail, /^too \[31mlate, /, stdout);
  assert.match(of('Messages, streamed').detail, /^the stream breaks off after: data: {"delta":/);
  assert.match(of('completions, streamed').detail, /^a stream without a text/);
  assert.match(of('Responses').detail, /^an answer without a text/);
  assert.match(of('a tool round').detail, /^the model has called no tool/);
});

test('doctor --url: its key stands in no list of processes', async (t) => {
  const silent = net.createServer();
  await new Promise((resolve) => {
    silent.listen(0, '127.0.0.1', resolve);
  });
  const asked = new Promise((resolve) => {
    silent.once('connection', (socket) => socket.on('error', () => {}).once('data', () => resolve(socket)));
  });
  const args = ['doctor', '--key', 'a-secret', '--key=a-secret', '--url', `http://127.0.0.1:${silent.address().port}`];
  const child = spawn(PROXY, args, { env: { PATH: process.env.PATH }, stdio: 'ignore' });
  const ended = new Promise((resolve) => {
    child.once('exit', resolve);
  });
  t.defer(async () => void child.kill('SIGKILL'));
  const socket = await asked;
  assert.doesNotMatch(readFileSync(`/proc/${child.pid}/cmdline`, 'utf8'), /secret/);
  silent.close();
  socket.destroy();
  assert.equal(await ended, 1);
});

test('doctor and connect: a wrong flag ends with status 2', async (t) => {
  const home = scratchFolder(t);
  const wrong = [
    [['doctor', '--url', '127.0.0.1:8000'], /is no address such as http:\/\/127\.0\.0\.1:8000/],
    [['doctor', '--url'], /--url/],
    [['doctor', '--key', 'x'], /--url/],
    [['doctor', '--security', '--url', 'http://127.0.0.1'], /--security|--url/],
    [['connect', 'codecks'], /codecks/],
    [['connect', 'codex', '--yes'], /--write/],
    [['connect', 'codex', '--write'], /add --yes/],
    [['connect', 'claude', '--write', '--yes'], /has no file for it/],
    [['connect', 'codex', '--url', 'unix:/run/x'], /http:\/\//],
    [['connect', 'codex', '--key', `it's`], /--key has characters/],
  ];
  for (const [args, message] of wrong) {
    const { code, stdout, stderr } = await ran(args, { home });
    assert.equal(code, 2, `${args}: ${stdout}${stderr}`);
    assert.match(stderr, message, `${args}`);
  }
  assert.deepEqual(readdirSync(home), []);
});

// ---- connect -------------------------------------------------------------------------------------

/** The clients, with their headings in docs/clients.md. */
const HEADINGS = {
  codex: 'Codex', opencode: 'opencode', claude: 'Claude Code', aider: 'aider', continue: 'Continue', cline: 'Cline', zed: 'Zed',
  pi: 'pi', qwen: 'Qwen Code', copilot: 'Copilot CLI', 'open-webui': 'Open WebUI', env: 'Anthropic SDKs',
};

test('connect prints what docs/clients.md has for each client, and lists them with their files', async (t) => {
  const home = scratchFolder(t);
  const list = await ran(['connect'], { home });
  assert.equal(list.code, 0, list.stderr);
  assert.deepEqual(list.stdout.match(/^\S+/gm), Object.keys(HEADINGS));
  for (const [client, heading] of Object.entries(HEADINGS)) {
    const recipe = recipeOf(heading);
    const { code, stdout, stderr } = await ran(['connect', client], { home });
    assert.equal(code, 0, stderr);
    assert.ok(recipe.includes(stdout.trim()), `${client}: ${stdout}`);
    const file = new RegExp(`^${client} +${home}/(.*)$`, 'm').exec(list.stdout)?.[1];
    if (file) assert.ok(recipe.includes(`~/${file}`), `${client}: ${file}`);
    const start = /^# then: (.*)$/m.exec(stderr)?.[1];
    if (start) assert.ok(recipe.includes(start), `${client}: ${start}`);
  }
  assert.deepEqual(readdirSync(home), [], 'nothing is written');
});

test('connect puts address, key and model of its flags, its variable and the proxy’s settings into what it prints', async () => {
  const key = { CLAUDE_OPENAI_KEY: 'sk-mine' };
  const { stdout } = await ran(['connect', 'opencode', '--url', 'https://proxy.example/v1/', '--model', 'opus'], { env: key });
  const { claude } = JSON.parse(stdout).provider;
  assert.deepEqual(claude.options, { baseURL: 'https://proxy.example/v1', apiKey: 'sk-mine' });
  assert.deepEqual(Object.keys(claude.models), ['opus']);
  const own = await ran(['connect', 'env', '--port', '9000', '--key', 'sk-other'], { env: key });
  const { stdout: values } = await promisify(execFile)('sh', ['-c', `${own.stdout}\nenv`], { env: {} });
  const set = Object.fromEntries(values.trim().split('\n').map((line) => line.split('=')));
  assert.equal(set.OPENAI_BASE_URL, 'http://127.0.0.1:9000/v1');
  assert.equal(set.ANTHROPIC_BASE_URL, 'http://127.0.0.1:9000');
  assert.deepEqual([set.OPENAI_API_KEY, set.ANTHROPIC_API_KEY], ['sk-other', 'sk-other']);
  const keyed = await ran(['connect', 'env'], { env: { API_KEY: 'the-proxys-own' } });
  assert.match(keyed.stderr, /--key, or CLAUDE_OPENAI_KEY/);
  assert.doesNotMatch(keyed.stdout + keyed.stderr, /the-proxys-own/);
});

/** A file of a client's in a home of the test's own; `write` runs connect on it. */
function furnish(t, client, name, content, mode = 0o640) {
  const home = scratchFolder(t);
  const file = path.join(home, name);
  mkdirSync(path.dirname(file), { recursive: true });
  if (content !== undefined) writeFileSync(file, content, { mode });
  const write = (...more) => ran(['connect', client, '--write', '--yes', ...more], { home });
  return { home, file, write, text: () => readFileSync(file, 'utf8') };
}

test('connect --write keeps the other entries of a JSON file, its mode, the symlink to it, and a copy', async (t) => {
  const before = { theme: 'dark', provider: { other: { npm: 'x' }, claude: { options: { timeout: 5, apiKey: 'old' } } } };
  const { home, file, write, text } = furnish(t, 'opencode', '.config/opencode/opencode.json');
  const real = path.join(home, 'dotfiles.json');
  writeFileSync(real, JSON.stringify(before), { mode: 0o640 });
  symlinkSync(real, file);
  const done = await write();
  assert.equal(done.code, 0, done.stderr);
  assert.ok(lstatSync(file).isSymbolicLink());
  assert.equal(statSync(real).mode & 0o777, 0o640);
  assert.deepEqual(JSON.parse(readFileSync(`${real}.bak`, 'utf8')), before);
  const { theme, provider } = JSON.parse(text());
  assert.deepEqual([theme, provider.other], ['dark', { npm: 'x' }]);
  assert.deepEqual(provider.claude.options, { timeout: 5, apiKey: 'none', baseURL: 'http://127.0.0.1:8000/v1' });
  assert.match((await write()).stdout, /has these settings already/);
  assert.ok(!existsSync(`${real}.bak2`), 'what changes nothing is not written');
  assert.equal((await write('--model', 'opus')).code, 0);
  assert.deepEqual(Object.keys(JSON.parse(text()).provider.claude.models), ['sonnet', 'opus']);
  assert.deepEqual(readdirSync(home).filter((name) => name.startsWith('dotfiles')), ['dotfiles.json', 'dotfiles.json.bak', 'dotfiles.json.bak2']);
});

test('connect --write adds to a list what it does not hold, and makes a new file for its user alone', async (t) => {
  const { file, write, text } = furnish(t, 'pi', '.pi/agent/models.json');
  assert.equal((await write()).code, 0);
  assert.equal(statSync(file).mode & 0o777, 0o600);
  assert.deepEqual(readdirSync(path.dirname(file)), ['models.json'], 'there was none to copy');
  const [sonnet] = JSON.parse(text()).providers.claude.models;
  assert.equal((await write('--model', 'opus')).code, 0);
  assert.deepEqual(JSON.parse(text()).providers.claude.models, [sonnet, { ...sonnet, id: 'opus' }]);
});

test('connect --write puts its settings around those of a TOML file', async (t) => {
  const before = '# mine\napproval_policy = "never"\n\n[model_providers.other]\nname = "Other"\nmodel = "x"\n';
  const { file, write, text } = furnish(t, 'codex', '.codex/config.toml', before);
  const done = await write();
  assert.equal(done.code, 0, done.stderr);
  assert.ok(text().includes(before), 'as it was');
  assert.equal(statSync(file).mode & 0o777, 0o640);
  const [head, tail] = text().split(before);
  assert.match(head, /^# claude-openai connect: begin\nmodel = "sonnet"\nmodel_provider = "claude"\n\n# claude-openai connect: end\n$/);
  assert.match(tail, /^# claude-openai connect: begin\n\[model_providers\.claude\]\n[^]*\n# claude-openai connect: end\n$/);
  assert.match((await write()).stdout, /has these settings already/);
  const { file: moved } = furnish(t, 'codex', 'elsewhere/config.toml');
  const { code } = await ran(['connect', 'codex', '--write', '--yes'], { home: '/nonexistent', env: { CODEX_HOME: path.dirname(moved) } });
  assert.equal(code, 0);
  assert.ok(existsSync(moved));
});

test('connect --write leaves a file as it is that it cannot merge, says why, and prints the settings', async (t) => {
  const cases = [
    ['zed', '.config/zed/settings.json', '{\n  // mine\n  "theme": "One"\n}\n', /no plain JSON/],
    ['zed', '.config/zed/settings.json', '[]', /no plain JSON/],
    ['codex', '.codex/config.toml', 'model = "o3"\n', /`model`/],
    ['codex', '.codex/config.toml', '[model_providers."claude"]\nname = "x"\n', /`model_providers\.claude\.`/],
    ['codex', '.codex/config.toml', 'model_providers = { }\n', /`model_providers`/],
    ['codex', '.codex/config.toml', '[model_providers]\nclaude = { name = "x" }\n', /`model_providers\.claude`/],
    ['codex', '.codex/config.toml', 'notes = """\n[x]\n"""\n', /several lines/],
    ['continue', '.continue/config.yaml', 'name: Mine\nmodels:\n  - name: x\n', /`name`/],
    ['aider', '.aider.conf.yml', '# mine\n"model": x\n', /`model`/],
  ];
  for (const [client, name, content, why] of cases) {
    const { home, file, write, text } = furnish(t, client, name, content);
    const { code, stdout, stderr } = await write();
    assert.equal(code, 1, `${content}${stdout}${stderr}`);
    assert.match(stderr, why, content);
    assert.equal(text(), content);
    assert.deepEqual(readdirSync(path.dirname(file)).filter((one) => one.startsWith(path.basename(name))), [path.basename(name)]);
    assert.equal(stdout, (await ran(['connect', client], { home })).stdout);
  }
  const { write, text } = furnish(t, 'aider', '.aider.conf.yml', 'dark-mode: true');
  assert.equal((await write()).code, 0);
  assert.match(text(), /^dark-mode: true\n# claude-openai connect: begin\nopenai-api-base: /);
});

test('connect --write asks on a terminal, and writes after a yes only', async (t) => {
  for (const [answer, written] of [['n', false], ['', false], ['y', true]]) {
    const home = scratchFolder(t);
    const child = spawn('script', ['-qec', `'${PROXY}' connect codex --write`, '/dev/null'], {
      env: { PATH: process.env.PATH, HOME: home, SHELL: '/bin/sh' },
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    t.defer(async () => void child.kill('SIGKILL'));
    const ended = new Promise((resolve) => {
      child.once('exit', resolve);
    });
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text) => {
      output += text;
    });
    await eventually('it asks', () => output.includes('(y/N): '));
    assert.match(output, /model_provider = "claude"/, 'it shows what it would write');
    assert.ok(output.includes(`Write this into ${home}/.codex/config.toml?`), output);
    child.stdin.write(`${answer}\n`);
    assert.equal(await ended, written ? 0 : 1, output);
    assert.equal(existsSync(path.join(home, '.codex')), written);
  }
});
