// Where settings come from, how they change while the proxy runs, and the key that a terminal is asked about.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { chmodSync, copyFileSync, existsSync, mkdirSync, readFileSync, readdirSync, realpathSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { PROXY, eventually, madeKey, processesMarked, startAndExpectExit, suite } from './harness.mjs';
import { NO_CLI, STAND_IN, ask, logLines, reload, scratchFolder, standIn, startLight, startOwn } from './operate.mjs';

export const settings = suite();
const { test } = settings;

const QUESTION = /Enable API key protection\? \(y\/N\)/;
const KEEP = /Keep the new key in (\S+) for later starts\? \(y\/N\)/;
const KEY = /sk-local-[A-Za-z0-9_-]+/g;
const bearer = (key) => ({ headers: { authorization: `Bearer ${key}` } });

/** What --print-config says, as {name: [value, source]}. `files` lie in the working directory. */
async function printed(t, { args = [], env = {}, files = {} } = {}) {
  const result = await startAndExpectExit(
    {
      url: t.api.url,
      cli: NO_CLI,
      args: [...args, '--print-config'],
      env: { DEFAULT_MODEL: undefined, ...env },
      prepare: (proxy) => writeFiles(proxy, files),
    },
    20_000,
  );
  assert.equal(result.exit?.code, 0, result.output);
  const found = {};
  for (const line of result.output.trim().split('\n')) {
    if (/^# (settings from|NOT taken from|\S+ is NOT read:) /.test(line)) continue; // what was taken of .env
    const parts = /^(?:# )?([a-z-]+) = "(.*)" {2}# (.+)$/.exec(line); // "# " before what would not be read again
    assert.ok(parts, `a setting: ${line}`);
    found[parts[1]] = parts.slice(2);
  }
  return Object.assign(found, { output: () => result.output });
}

function writeFiles(proxy, files) {
  for (const [name, text] of Object.entries(files)) writeFileSync(path.join(proxy.scratch, name), text);
}

/** A `.env` counts whole where it is named; in a folder that is not the program's it chooses neither keys nor programs. */
const ENV_FILE = ['--env-file', '.env'];

/** A start that a wrong setting prevents: the status is 2. */
async function refusal(t, { files = {}, ...options }) {
  const result = await startAndExpectExit({
    url: t.api.url,
    cli: NO_CLI,
    ...options,
    prepare: (proxy) => writeFiles(proxy, files),
  });
  assert.equal(result.exit?.code, 2, `it starts: ${result.output}`);
  assert.deepEqual(result.faults, []);
  return result.output;
}

// ---- where settings come from --------------------------------------------------------------------

test('a flag wins over the environment, that over .env, that over the file, that over the default', async (t) => {
  const config = 'spares = 5\nmax-queue = 15\nidle-timeout = "25s"\nmax-turns = 35\nlog-level = "warning"\n';
  const found = await printed(t, {
    args: ['--config', 'proxy.toml', '--spares', '1'],
    env: { CLAUDE_SPARES: '2', CLAUDE_MAX_QUEUE: '12' },
    files: {
      'proxy.toml': config,
      '.env': 'CLAUDE_SPARES=3\nCLAUDE_MAX_QUEUE=13\nCLAUDE_IDLE_TIMEOUT=23s\n',
    },
  });
  assert.deepEqual(found.spares, ['1', 'flag']);
  assert.deepEqual(found['max-queue'], ['12', 'environment, CLAUDE_MAX_QUEUE']);
  assert.deepEqual(found['idle-timeout'], ['23s', '.env, CLAUDE_IDLE_TIMEOUT']);
  assert.deepEqual(found['max-turns'], ['35', 'file']);
  assert.deepEqual(found['log-level'], ['warning', 'file']);
  assert.deepEqual(found['queue-timeout'], ['60s', 'default']);
});

test('the same order holds for the client key', async (t) => {
  const opens = async ({ args = [], env = {}, files = {} }) => {
    const proxy = await startOwn(t, {
      args: [...args],
      env,
      prepare: (one) => writeFiles(one, files),
    });
    const opened = [];
    for (const key of ['of-flag', 'of-environment', 'of-env-file', 'of-file'])
      if ((await t.get('/v1/models', { proxy, ...bearer(key) })).status === 200) opened.push(key);
    assert.equal((await t.get('/v1/models', { proxy })).status, 401, 'a key is needed');
    proxy.stopped = true;
    assert.deepEqual((await proxy.stop()).faults, []);
    return opened;
  };
  const files = { '.env': 'API_KEY=of-env-file\n', 'proxy.toml': 'api-key = "of-file"\n' };
  const config = ['--config', 'proxy.toml'];
  const env = { API_KEY: 'of-environment' };
  assert.deepEqual(await opens({ args: [...config, '--api-key', 'of-flag'], env, files }), ['of-flag']);
  assert.deepEqual(await opens({ args: config, files: { 'proxy.toml': files['proxy.toml'] } }), ['of-file']);
  assert.deepEqual(await opens({ args: ENV_FILE, files }), ['of-env-file']);
  assert.deepEqual(await opens({ args: ENV_FILE, env, files }), ['of-environment']);
  const both = [...ENV_FILE, ...config];
  assert.deepEqual(await opens({ args: both, files }), ['of-env-file'], '.env over the file');
  assert.deepEqual(await opens({ args: both, env, files }), ['of-environment'], 'the environment over the file');
});

test('.env is read as shells do, another one on demand, and neither overrides the environment', async (t) => {
  const file = [
    '# a comment',
    '',
    'export CLAUDE_SPARES=4 # as the machine is small',
    "DEFAULT_MODEL='opus'",
    'CLAUDE_QUEUE_TIMEOUT="7s"',
    'UNKNOWN_NAME=is no concern of ours',
  ].join('\r\n');
  const found = await printed(t, { files: { '.env': file } });
  assert.deepEqual(found.spares, ['4', '.env, CLAUDE_SPARES']);
  assert.deepEqual(found.model, ['opus', '.env, DEFAULT_MODEL']);
  assert.deepEqual(found['queue-timeout'], ['7s', '.env, CLAUDE_QUEUE_TIMEOUT']);
  const other = await printed(t, {
    args: ['--env-file', 'other.env'],
    files: { '.env': 'CLAUDE_SPARES=4\nCLAUDE_MAX_QUEUE=4\n', 'other.env': 'CLAUDE_SPARES=6\n' },
  });
  assert.equal(other.spares[0], '6');
  assert.equal(other['max-queue'][0], '64', 'the one in the working directory is not read then');
  const marked = await printed(t, { files: { '.env': '\ufeffCLAUDE_SPARES=8\n' } });
  assert.equal(marked.spares[0], '8', 'behind the mark that some editors put first');
  assert.match(await refusal(t, { args: ['--env-file', 'missing.env'] }), /missing\.env/);
  for (const broken of ['this is no setting', 'A="open'])
    assert.match(await refusal(t, { files: { '.env': `CLAUDE_SPARES=1\n${broken}\n` } }), /\.env: line 2/);
});

test("claude gets the account's variables from .env, as from the environment", async (t) => {
  const cli = standIn(t);
  const proxy = await startOwn(t, {
    cli,
    args: ENV_FILE,
    env: { ANTHROPIC_API_KEY: undefined },
    prepare: (one) => writeFiles(one, { '.env': 'ANTHROPIC_API_KEY=sk-ant-of-the-file\nAPI_KEY=client-key\n' }),
  });
  const answer = await t.chat(ask('[[echo]]'), { proxy, ...bearer('client-key') });
  assert.equal(answer.status, 200, answer.text);
  const names = JSON.parse(answer.json.choices[0].message.content).environment;
  assert.ok(names.includes('ANTHROPIC_API_KEY'), `${names}`);
  assert.ok(!names.includes('API_KEY'), 'the client key is not its business');
});

test('the file of settings: lists, flags, and what is wrong in it', async (t) => {
  const toml = [
    'port = 0',
    'api-key = ["key-one", "key-two"]',
    'cors-origin = ["https://a.example", "https://b.example"]',
    'budget = ["requests=5/minute", "usd=2.5/day"]',
    'strict = true',
    'rate-limit = true',
    'rate-limit-chat = 3',
    '',
  ].join('\n');
  const files = { 'proxy.toml': toml };
  const found = await printed(t, { args: ['--config', 'proxy.toml'], files });
  assert.equal(found['cors-origin'][1], 'file');
  assert.match(found['cors-origin'][0], /https:\/\/a\.example,https:\/\/b\.example/);
  assert.equal(found['rate-limit-chat'][0], '3');
  const proxy = await startLight(t, {
    args: ['--config', 'proxy.toml'],
    prepare: (one) => writeFiles(one, files),
  });
  for (const key of ['key-one', 'key-two']) {
    const listed = await t.get('/v1/tools', { proxy, headers: { 'x-api-key': key, origin: 'https://b.example' } });
    assert.equal(listed.status, 200, listed.text);
    assert.equal(listed.headers['access-control-allow-origin'], 'https://b.example');
    assert.equal(listed.headers['x-ratelimit-limit-requests'], '30', 'the limits are on');
  }
  const strict = await t.chat({ seed: 1, ...ask('[[text]]') }, { proxy, ...bearer('key-one') });
  assert.equal(strict.status, 400, strict.text);
  const config = ['--config', 'proxy.toml'];
  const wrong = [
    ['no-such-setting = 1', /no-such-setting/],
    ['spares = "many"', /spares/],
    ['spares = 1000', /spares/],
    ['timeout = "soon"', /timeout/],
    ['budget = ["usd=lots/day"]', /budget/],
  ];
  for (const [line, message] of wrong)
    assert.match(await refusal(t, { args: config, files: { 'proxy.toml': `${line}\n` } }), message);
  assert.match(await refusal(t, { args: config }), /proxy\.toml/, 'a file that is not there');
});

test('--print-config knows every flag, tells no secret, and starts nothing', async (t) => {
  const help = await startAndExpectExit({ url: t.api.url, args: ['--help'] });
  const flags = [...help.output.matchAll(/^ {2}(?:-h,)?--([a-z-]+)/gm)].map(([, name]) => name);
  assert.equal(new Set(flags).size, flags.length, 'each once');
  assert.ok(flags.length > 30, `${flags}`);
  const files = { '.env': 'API_KEYS=secret-of-env,secret-two\n' };
  const found = await printed(t, { args: ENV_FILE, env: { ANTHROPIC_API_KEY: 'sk-ant-very-secret' }, files });
  for (const flag of flags.filter((name) => !['help', 'version', 'config', 'print-config'].includes(name)))
    assert.ok(found[flag], `${flag} is told`);
  assert.equal(found['api-key'][0], '***');
  assert.match(found['api-key'][1], /^\.env, API_KEYS$/, 'where the key comes from');
  assert.ok(!/secret/.test(found.output()), found.output());
  for (const args of [
    ['--api-key', 'secret-1'],
    ['--api-key=secret-2', '--api-key', 'secret-3'],
  ]) {
    const flagged = await printed(t, { args });
    assert.deepEqual(flagged['api-key'], ['***', 'flag']);
    assert.ok(!/secret/.test(flagged.output()));
  }
});

test('what --print-config says is taken by --config', async (t) => {
  const first = await printed(t, { args: ['--max-queue', '7', '--strict', '--cors-origin', 'https://a.example'] });
  const again = await printed(t, { args: ['--config', 'said.toml'], files: { 'said.toml': first.output() } });
  for (const [name, value] of [['max-queue', '7'], ['strict', 'true'], ['cors-origin', 'https://a.example']])
    assert.deepEqual(again[name], [value, 'file']);
});

test('--print-config tells what holds by default, and a file of it asks for nothing that was not asked for', async (t) => {
  const keys = { API_KEY: 'key-of-sixteen-characters' };
  for (const [host, limited] of [['127.0.0.1', 'false'], ['0.0.0.0', 'true']]) {
    const first = await printed(t, { args: ['--host', host, '--cwd', '/'], env: keys });
    assert.deepEqual(first['rate-limit'], [limited, 'default']);
    assert.match(first['max-processes'][0], /^[1-9]\d*$/);
    assert.equal(first['auth-method'][0], 'api_key');
    const active = first.output().split('\n').filter((line) => line && !line.startsWith('#')).map((line) => line.split(' ')[0]);
    assert.deepEqual(active.sort(), ['claude-path', 'cwd', 'host', 'port'], 'what the test has asked for');
    const again = await printed(t, { args: ['--config', 'said.toml'], files: { 'said.toml': first.output() }, env: keys });
    assert.deepEqual(again['rate-limit'], [limited, 'default']);
    assert.deepEqual(again.host, [host, 'file']);
  }
  assert.ok((await printed(t)).cwd[0], 'which folder it is');
});

test('--print-config tells what holds: levels by DEBUG_MODE, switches by variable', async (t) => {
  for (const env of [{ DEBUG_MODE: 'true' }, { VERBOSE: '1' }]) {
    const [name] = Object.keys(env);
    const [level, source] = (await printed(t, { env }))['log-level'];
    assert.equal(level, 'debug');
    assert.ok(source.endsWith(name), source);
  }
  const off = await printed(t, { env: { RATE_LIMIT_ENABLED: 'False', CLAUDE_NO_BUILTIN_TOOLS: 'yes' } });
  assert.match(off['rate-limit'][0], /^false$/i);
  assert.equal(off['rate-limit'][1], 'environment, RATE_LIMIT_ENABLED');
  assert.match(off['no-builtin-tools'][0], /^(true|yes)$/);
  assert.equal((await printed(t, { args: ['--no-rate-limit'] }))['rate-limit'][0], 'false');
});

test('a flag that is none, and a value that is none, are told', async (t) => {
  const wrong = [
    [{ args: ['--no-such-flag'] }, /no-such-flag/],
    [{ args: ['--budget', 'usd=1/week'] }, /usd=1\/week/],
    [{ args: ['--budget', 'requests=-1/day'] }, /budget/],
    [{ args: ['--rate-limit-chat', '-1'] }, /rate-limit-chat/],
    [{ args: ['--log-format', 'xml'] }, /log-format/],
    [{ args: ['--alias', 'gpt-4o'] }, /alias/],
    [{ args: ['--alias', '=opus'] }, /alias/],
    [{ env: { CORS_ORIGINS: '[1]' } }, /CORS|cors|array/],
    [{ env: { CORS_ORIGINS: 'app.example' } }, /origin/],
    [{ env: { RATE_LIMIT_CHAT_PER_MINUTE: 'ten' } }, /rate-limit-chat|RATE_LIMIT_CHAT/],
  ];
  for (const [options, message] of wrong) assert.match(await refusal(t, options), message);
});

test('a bad value of a variable is reported by the name of the variable, and of the file that holds it', async (t) => {
  const help = await startAndExpectExit({ url: t.api.url, args: ['--help'] });
  const variables = [...help.output.matchAll(/\[([A-Z][A-Z_]+)\]/g)].map(([, name]) => name);
  assert.ok(variables.length > 40, help.output);
  let refused = 0;
  for (const name of variables) {
    const { exit, output } = await startAndExpectExit({ url: t.api.url, cli: NO_CLI, args: ['--print-config'], env: { [name]: '[%' } });
    if (exit.code === 0) continue; // any text will do
    refused++;
    assert.match(output, new RegExp(`\\(environment, ${name}\\)`), `${name}: ${output}`);
  }
  assert.ok(refused > 25, `${refused} variables take no text`);
  const own = await refusal(t, { args: ENV_FILE, files: { '.env': 'CLAUDE_SPARES=many\n' } });
  assert.match(own, /--spares \(\.env, CLAUDE_SPARES\): /);
  assert.match(await refusal(t, { env: { CORS_ORIGINS: 'app.example' } }), /--cors-origin \(environment, CORS_ORIGINS\)/);
  assert.doesNotMatch(await refusal(t, { args: ['--spares', 'many'], env: { CLAUDE_SPARES: '2' } }), /CLAUDE_SPARES/);
});

test('a word that is no command, and a flag that is none, is named with what was meant, and no value is shown', async (t) => {
  const wrong = [
    [['doctr'], "unknown command 'doctr'; did you mean `doctor`?"],
    [['doctr', '--security'], "unknown command 'doctr'; did you mean `doctor`?"],
    [['version'], "unknown command 'version'; did you mean `--version`?"],
    [['frobnicate'], "unknown command 'frobnicate'\n"],
    [['--prot', '9000'], "unknown flag '--prot'; did you mean `--port`?"],
    [['--apikey', 'SECRET'], "unknown flag '--apikey'; did you mean `--api-key`?"],
    [['--apikey=SECRET'], "unknown flag '--apikey'; did you mean `--api-key`?"],
    [['doctor', '--securty'], "unknown flag '--securty'; did you mean `--security`?"],
    [['99999'], "unexpected '99999': a port is one number between 0 and 65535"],
    [['8001', '8002'], "unexpected '8002': a port is one number"],
  ];
  for (const [args, message] of wrong) {
    const output = await refusal(t, { args });
    assert.ok(output.includes(message), output);
    assert.doesNotMatch(output, /SECRET/);
  }
});

test('of a flag that is given twice the last value counts, and a list takes all', async (t) => {
  const twice = ['--claude-path', 'a', '--claude-path', 'b', '8001', '--port', '8002', '--strict', '--strict'];
  const found = await printed(t, { args: [...twice, '--log-level', 'off', '--log-level=debug', '--add-dir', '/', '--add-dir', '/tmp'] });
  for (const [name, value] of [['claude-path', 'b'], ['port', '8002'], ['strict', 'true'], ['log-level', 'debug'], ['add-dir', '/,/tmp']])
    assert.deepEqual(found[name], [value, 'flag']);
});

test('`help` shows what --help shows: groups of flags, each flag once, in 100 columns', async (t) => {
  const [byWord, byFlag] = await Promise.all(['help', '--help'].map((word) => startAndExpectExit({ url: t.api.url, args: [word] })));
  assert.equal(byWord.exit?.code, 0, byWord.output);
  assert.equal(byWord.output, byFlag.output);
  assert.deepEqual(byWord.output.split('\n').filter((line) => line.length > 100), []);
  const groups = [...byWord.output.matchAll(/^([A-Z].*):$/gm)].map(([, name]) => name);
  assert.ok(groups.length > 6, `${groups}`);
});

test('a relative path of claude, and relative folders, are those of the working directory', async (t) => {
  const proxy = await startOwn(t, {
    cli: undefined,
    env: { CLAUDE_CLI_PATH: './tools/claude', CLAUDE_CWD: 'work' },
    prepare: ({ scratch }) => {
      ['tools', 'work'].forEach((name) => mkdirSync(path.join(scratch, name)));
      copyFileSync(STAND_IN, path.join(scratch, 'tools', 'claude'));
      chmodSync(path.join(scratch, 'tools', 'claude'), 0o755);
    },
  });
  const answer = await t.chat(ask('[[echo]]'));
  assert.equal(answer.status, 200, answer.text);
  assert.equal(JSON.parse(answer.json.choices[0].message.content).cwd, path.join(proxy.scratch, 'work'));
});

test('--alias: a client that knows other names of models gets the one that is meant, in each dialect, and is told', async (t) => {
  const write = (proxy, aliases) => writeFiles(proxy, { '.env': `CLAUDE_ALIASES=${aliases}\n` });
  const proxy = await startLight(t, { args: ENV_FILE, prepare: (one) => write(one, 'gpt-4o=opus,gpt-*=haiku') });
  const question = { role: 'user', content: '[[echo]]' };
  const dialects = {
    '/v1/chat/completions': [{ messages: [question] }, ({ choices }) => choices[0].message.content],
    '/v1/messages': [{ max_tokens: 99, messages: [question] }, ({ content }) => content[0].text],
    '/v1/responses': [{ input: '[[echo]]' }, ({ output }) => output.at(-1).content[0].text],
    '/v1/completions': [{ prompt: '[[echo]]' }, ({ choices }) => choices[0].text],
    '/api/chat': [{ stream: false, messages: [question] }, ({ message }) => message.content],
    '/api/generate': [{ stream: false, prompt: '[[echo]]' }, ({ response }) => response],
  };
  for (const [where, [body, words]] of Object.entries(dialects)) {
    for (const [name, meant] of [['gpt-4o', 'opus'], ['gpt-5-mini', 'haiku'], ['sonnet', undefined]]) {
      const got = await t.send({ path: where, body: { model: name, ...body } }).done;
      assert.equal(got.status, 200, got.text);
      assert.match(JSON.parse(words(got.json)).argv.join(' '), new RegExp(`--model[ =]${meant ?? name}`), `${where}, ${name}`);
      assert.equal(got.headers['x-model-alias'], meant && `${name}=${meant}`);
    }
  }
  const listed = async () => (await t.get('/v1/models')).json.data.map(({ id }) => id);
  assert.ok((await listed()).includes('gpt-4o'), 'a name is listed');
  assert.ok(!(await listed()).includes('gpt-*'), 'a pattern is none');
  write(proxy, 'o3=opus');
  assert.match(await reload(proxy), /loaded anew/);
  assert.ok((await listed()).includes('o3'));
  assert.ok(!(await listed()).includes('gpt-4o'));
});

// ---- SIGHUP --------------------------------------------------------------------------------------

test('SIGHUP: keys, limits, model and log level change; a stream goes on, an idle process is reused', async (t) => {
  const write = (proxy, text) => writeFiles(proxy, { '.env': text });
  const proxy = await startLight(t, {
    args: ENV_FILE,
    env: { DEFAULT_MODEL: undefined, CLAUDE_MAX_PROCESSES: '4' },
    prepare: (one) => write(one, 'API_KEY=old-key\nDEFAULT_MODEL=sonnet\n'),
  });
  const [old, fresh] = [bearer('old-key'), bearer('new-key')];
  const first = ask('[[who]] one');
  const one = await t.chat(first, { ...old });
  assert.equal(one.status, 200, one.text);
  const stream = t.send({
    ...old,
    body: { stream: true, model: 'sonnet', ...ask('[[text n=30 delay_ms=100]]') },
  });
  await stream.head;
  write(
    proxy,
    'API_KEYS=old-key,new-key\nDEFAULT_MODEL=opus\nRATE_LIMIT_ENABLED=true\nRATE_LIMIT_PER_MINUTE=7\nLOG_LEVEL=debug\n',
  );
  assert.match(await reload(proxy), /loaded anew/);
  assert.equal((await t.get('/v1/models', fresh)).status, 200, 'the new key');
  assert.equal((await t.get('/v1/tools', fresh)).headers['x-ratelimit-limit-requests'], '7', 'the new limits');
  const debug = await t.send({ path: '/v1/debug/request', body: {}, ...fresh }).done;
  assert.equal(debug.json.debug_info.debug_mode_enabled, true, 'the new log level');
  const told = await t.chat({ model: undefined, ...ask('[[echo]]') }, fresh);
  const argv = JSON.parse(told.json.choices[0].message.content).argv.join(' ');
  assert.match(argv, /--model[ =]opus/, 'the new default model');
  const second = await t.chat(
    { messages: [...first.messages, one.json.choices[0].message, { role: 'user', content: '[[who]] two' }] },
    old,
  );
  const [before, after] = [one, second].map(({ json }) => JSON.parse(json.choices[0].message.content));
  assert.deepEqual([after.pid, after.turn], [before.pid, 2], 'the idle process goes on');
  const whole = await stream.done;
  assert.equal(whole.data.at(-1), '[DONE]', 'the stream went on');
  assert.equal(whole.data.filter((one) => one.choices?.[0]?.delta?.content).length >= 30, true);
  // The old key goes: whoever has it is out at once.
  write(proxy, 'API_KEY=new-key\n');
  assert.match(await reload(proxy), /loaded anew/);
  assert.equal((await t.get('/v1/models', old)).status, 401);
  assert.equal((await t.get('/v1/models', fresh)).status, 200);
  assert.equal((await t.get('/v1/tools', fresh)).headers['x-ratelimit-limit-requests'], undefined, 'off again');
});

test('SIGHUP with a broken file changes nothing, says why, and later goes well', async (t) => {
  const proxy = await startOwn(t, {
    args: [...ENV_FILE, '--config', 'proxy.toml'],
    prepare: (one) => writeFiles(one, { '.env': 'API_KEY=old-key\n', 'proxy.toml': 'rate-limit-chat = 5\n' }),
  });
  const broken = [
    { '.env': 'API_KEY=new-key\nno setting\n' },
    { '.env': 'API_KEY=new-key\nLOG_LEVEL=loud\n' },
    { '.env': 'API_KEY=new-key\nCORS_ORIGINS=nowhere\n' },
    { '.env': 'API_KEY=new-key\nCLAUDE_BUDGET=usd=much/day\n' },
    { '.env': 'API_KEY=new-key\n', 'proxy.toml': 'no-such-setting = 5\n' },
    { '.env': 'API_KEY=new-key\n', 'proxy.toml': 'rate-limit-chat = "many"\n' },
  ];
  for (const files of broken) {
    writeFiles(proxy, { '.env': 'API_KEY=new-key\n', 'proxy.toml': 'rate-limit-chat = 5\n', ...files });
    const said = await reload(proxy);
    assert.match(said, /stay as they were: ./, JSON.stringify(files));
    const [, variable] = /\n([A-Z_]+)=/.exec(files['.env']) ?? [];
    if (variable) assert.ok(said.includes(`(.env, ${variable})`), said);
    assert.equal((await t.get('/v1/models', bearer('new-key'))).status, 401, JSON.stringify(files));
    assert.equal((await t.get('/v1/models', bearer('old-key'))).status, 200, JSON.stringify(files));
    assert.match(logLines(proxy).at(-3) + logLines(proxy).at(-1), /Z (error|info) /);
  }
  writeFiles(proxy, { '.env': 'API_KEY=new-key\n', 'proxy.toml': 'rate-limit-chat = 5\n' });
  assert.match(await reload(proxy), /loaded anew/);
  assert.equal((await t.get('/v1/models', bearer('new-key'))).status, 200);
});

test('SIGHUP never takes the last key away, on loopback either, and says so', async (t) => {
  const env = (keys) => writeFileSync(path.join(proxy.scratch, '.env'), keys.map((key) => `API_KEY=${key}\n`).join(''));
  const proxy = await t.start({ cli: NO_CLI, args: ['--spares', '0', ...ENV_FILE], prepare: (one) => writeFiles(one, { '.env': 'API_KEY=first\n' }) });
  const statuses = async () => {
    const asked = [{}, bearer('first'), bearer('second')].map((as) => t.get('/v1/models', { proxy, ...as }));
    return (await Promise.all(asked)).map(({ status }) => status);
  };
  env([]);
  assert.match(await reload(proxy), /stay as they were: .*without a client key/);
  assert.deepEqual(await statuses(), [401, 200, 401]);
  env(['second']);
  assert.match(await reload(proxy), /loaded anew/);
  assert.deepEqual(await statuses(), [401, 401, 200]);
});

test('SIGHUP never opens a proxy that others can reach, and keeps a key that was made', async (t) => {
  const proxy = await startOwn(t, {
    args: [...ENV_FILE, '--host', '0.0.0.0'],
    prepare: (one) => writeFiles(one, { '.env': 'API_KEY=the-key-of-the-start\n' }),
  });
  writeFiles(proxy, { '.env': '# no key any more\n' });
  assert.match(await reload(proxy), /stay as they were: .*key/);
  for (const env of ['API_KEY=short\n', 'API_KEY=short\nCLAUDE_WRAPPER_HOST=127.0.0.1\n']) {
    writeFiles(proxy, { '.env': env });
    assert.match(await reload(proxy), /stay as they were: .*at least 16 characters/, env);
  }
  assert.equal((await t.get('/v1/models')).status, 401);
  assert.equal((await t.get('/v1/models', bearer('the-key-of-the-start'))).status, 200);
  const made = await startOwn(t, { args: ['--generate-key'] });
  const key = madeKey(made);
  assert.match(await reload(made), /loaded anew/);
  assert.equal((await t.get('/v1/models', { proxy: made })).status, 401);
  assert.equal((await t.get('/v1/models', { proxy: made, ...bearer(key) })).status, 200);
});

test('a storm of SIGHUPs among requests loses none', async (t) => {
  const proxy = await startLight(t, {
    args: [...ENV_FILE, '--max-processes', '3'],
    prepare: (one) => writeFiles(one, { '.env': 'API_KEY=the-key\n' }),
  });
  const stream = t.send({
    ...bearer('the-key'),
    body: { model: 'sonnet', stream: true, ...ask('[[text n=20 delay_ms=40]]') },
  });
  await stream.head;
  for (let i = 0; i < 40; i++) {
    proxy.kill('SIGHUP');
    const results = await Promise.all([t.get('/v1/models', bearer('the-key')), t.get('/v1/models')]);
    assert.deepEqual(
      results.map(({ status }) => status),
      [200, 401],
    );
  }
  assert.equal((await stream.done).data.at(-1), '[DONE]');
  await eventually('it was loaded anew', () => /loaded anew/.test(proxy.output));
});

// ---- the key that a terminal is asked about ------------------------------------------------------

/** Starts it in a terminal and types `answers`, each when a question is there again. */
async function typed(t, answers, options = {}) {
  let made;
  const started = t.start({
    cli: NO_CLI,
    terminal: true,
    ...options,
    args: ['--spares', '0', ...(options.args ?? [])],
    prepare: (proxy) => {
      made = proxy;
    },
  });
  started.catch(() => {});
  for (const [i, answer] of answers.entries()) {
    await eventually('it asks', () => made?.output.split('(y/N): ').length > i + 1 || made?.exit);
    made.keys.write(answer);
  }
  const proxy = (t.proxy = await started);
  await eventually('the start is told', () => /try it/.test(proxy.output));
  return proxy;
}

async function assertOpen(t, proxy) {
  assert.equal((await t.get('/v1/models', { proxy })).status, 200);
  assert.equal((await t.get('/v1/auth/status', { proxy })).json.server_info.api_key_required, false);
}

async function assertKeyed(t, proxy, key) {
  assert.equal((await t.get('/v1/models', { proxy })).status, 401);
  assert.equal((await t.get('/v1/models', { proxy, ...bearer(`${key}x`) })).status, 401);
  const status = await t.get('/v1/auth/status', { proxy, ...bearer(key) });
  assert.equal(status.json?.server_info.api_key_required, true, status.text);
}

/** The key that the proxy has printed: 256 bits, and shown once beside the curl line. */
function keyOf(proxy) {
  const keys = proxy.output.match(KEY) ?? [];
  assert.ok(keys.length >= 1, proxy.output);
  assert.equal(new Set(keys).size, 1, 'one key');
  assert.ok(Math.log2(62) * (keys[0].length - 'sk-local-'.length) >= 256, `256 bits: ${keys[0].length}`);
  assert.match(keys[0], /^[A-Za-z0-9_-]+$/, 'fit for an URL');
  const curl = /curl [^\n]*/.exec(proxy.output)[0];
  assert.ok(curl.includes(`http://127.0.0.1:${proxy.port}/`), `the true address: ${curl}`);
  assert.ok(curl.includes(keys[0]) || curl.includes('$API_KEY'), curl);
  return keys[0];
}

test('on a terminal: yes makes a key and enforces it', async (t) => {
  const keys = new Set();
  for (const answer of ['y\n', ' YES \n']) {
    const proxy = await typed(t, [answer, 'n\n']);
    keys.add(keyOf(proxy));
    await assertKeyed(t, proxy, keyOf(proxy));
    const curl = /curl [^\n]*/.exec(proxy.output)[0];
    assert.match(curl, /-H 'Authorization: Bearer sk-local-/, 'a line to copy');
  }
  assert.equal(keys.size, 2, 'a key of its own each time');
});

test('on a terminal: no, an empty line, the end of input and Ctrl-C mean no key, on loopback', async (t) => {
  for (const answer of ['n\n', 'No\n', '\n', '\x04', '\x03']) {
    const proxy = await typed(t, [answer]);
    assert.equal(proxy.output.match(KEY), null, JSON.stringify(answer));
    await assertOpen(t, proxy);
  }
});

test('on a terminal: what is no answer is asked again', async (t) => {
  const proxy = await typed(t, ['maybe\n', 'x\n', 'y\n', 'perhaps\n', '\n']);
  await assertKeyed(t, proxy, keyOf(proxy));
});

test('no question: --no-prompt, a key that is set, no terminal; --generate-key needs none', async (t) => {
  const quiet = await typed(t, [], { args: ['--no-prompt'] });
  assert.doesNotMatch(quiet.output, QUESTION);
  await assertOpen(t, quiet);
  const byVariable = await typed(t, [], { env: { CLAUDE_NO_PROMPT: 'true' } });
  assert.doesNotMatch(byVariable.output, QUESTION);
  const keyed = await typed(t, [], { env: { API_KEY: 'mine' } });
  assert.doesNotMatch(keyed.output, QUESTION);
  await assertKeyed(t, keyed, 'mine');
  assert.doesNotMatch(keyed.output, /mine/, 'a key of the operator is never shown');
  const piped = await startOwn(t);
  assert.doesNotMatch(piped.output, QUESTION);
  await assertOpen(t, piped);
  const made = await startOwn(t, { args: ['--generate-key'] });
  assert.doesNotMatch(made.output, QUESTION);
  await assertKeyed(t, made, madeKey(made));
});

test('a made key that is kept opens the next start too, without a question, and stays at SIGHUP', { slow: true }, async (t) => {
  for (const [answers, args] of [[['y\n', 'y\n'], []], [['y\n'], ['--host', '0.0.0.0']], [['y\n'], ['--generate-key']]]) {
    const env = { HOME: scratchFolder(t) };
    const file = path.join(env.HOME, '.config', 'claude-openai.env');
    const first = await typed(t, answers, { args, env });
    const [key] = first.output.match(KEY);
    assert.equal(KEEP.exec(first.output)[1], file);
    assert.ok(first.output.includes(`(kept in ${file})`), first.output);
    assert.equal(readFileSync(file, 'utf8'), `API_KEY=${key}\n`);
    assert.equal(statSync(file).mode & 0o777, 0o600);
    process.kill(processesMarked(first.scratch).find(({ executable }) => executable === realpathSync(PROXY)).pid, 'SIGHUP');
    await eventually('it was loaded anew', () => /loaded anew/.test(first.output));
    await assertKeyed(t, first, key);
    first.stopped = true;
    assert.deepEqual((await first.stop()).faults, []);
    const next = await typed(t, [], { args: args.filter((word) => word !== '--generate-key'), env });
    assert.ok(!next.output.includes('(y/N)') && !next.output.includes(key), next.output);
    assert.ok(next.output.includes(`settings from ${file}: API_KEY`), next.output);
    await assertKeyed(t, next, key);
    next.stopped = true;
    assert.deepEqual((await next.stop()).faults, []);
  }
});

test('a key is kept beside what the file holds, which only its user can read then', async (t) => {
  const env = { HOME: scratchFolder(t) };
  const file = path.join(env.HOME, '.config', 'claude-openai.env');
  mkdirSync(path.dirname(file));
  writeFileSync(file, 'CLAUDE_MAX_QUEUE=7', { mode: 0o644 });
  const proxy = await typed(t, ['y\n', 'yes\n'], { env });
  assert.equal(readFileSync(file, 'utf8'), `CLAUDE_MAX_QUEUE=7\nAPI_KEY=${keyOf(proxy)}\n`);
  assert.equal(statSync(file).mode & 0o777, 0o600);
  const cannot = { HOME: '/proc/nowhere' };
  const other = await typed(t, ['y\n', 'y\n'], { env: cannot });
  assert.match(other.output, /the key is not kept: \/proc\/nowhere\/\.config\/claude-openai\.env: ./);
  await assertKeyed(t, other, keyOf(other));
});

test("the user's own file counts whole, after .env and before --config; --env-file and a key set elsewhere take its place", async (t) => {
  const HOME = scratchFolder(t);
  const file = path.join(HOME, '.config', 'claude-openai.env');
  mkdirSync(path.dirname(file));
  writeFileSync(file, 'CLAUDE_SPARES=4\nCLAUDE_MAX_QUEUE=14\nCLAUDE_MAX_TURNS=24\nAPI_KEY=kept-key\n', { mode: 0o600 });
  const files = { '.env': 'CLAUDE_SPARES=3\n', 'proxy.toml': 'max-queue = 5\nidle-timeout = "25s"\n' };
  const env = { HOME, CLAUDE_MAX_TURNS: '20' };
  const found = await printed(t, { args: ['--config', 'proxy.toml'], env, files });
  assert.deepEqual(found.spares, ['3', '.env, CLAUDE_SPARES']);
  assert.deepEqual(found['max-queue'], ['14', `${file}, CLAUDE_MAX_QUEUE`]);
  assert.deepEqual(found['max-turns'], ['20', 'environment, CLAUDE_MAX_TURNS']);
  assert.deepEqual(found['idle-timeout'], ['25s', 'file']);
  assert.deepEqual(found['api-key'], ['***', `${file}, API_KEY`]);
  assert.deepEqual((await printed(t, { args: ENV_FILE, env, files }))['max-queue'], ['64', 'default']);
  const proxy = await startOwn(t, { env: { HOME, API_KEYS: 'key-one,key-two' } });
  const statuses = [];
  for (const key of ['key-one', 'key-two', 'kept-key']) statuses.push((await t.get('/v1/models', { proxy, ...bearer(key) })).status);
  assert.deepEqual(statuses, [200, 200, 401]);
  const reloaded = await startOwn(t, { env: { HOME } });
  assert.match(await reload(reloaded), /loaded anew/);
  chmodSync(file, 0o666);
  assert.match(await reload(reloaded), /stay as they were: .*claude-openai\.env is gone, or not this user's alone/);
  assert.equal((await t.get('/v1/models', { proxy: reloaded, ...bearer('kept-key') })).status, 200);
  const left = await printed(t, { env: { HOME } });
  assert.equal(left['max-queue'][1], 'default', 'others may write it');
});

test('a made key is not printed where no terminal shows it: a file for this user alone holds it while the proxy runs', async (t) => {
  for (const args of [['--generate-key'], ['--host', '0.0.0.0']]) {
    const proxy = await startOwn(t, { args });
    const key = madeKey(proxy);
    assert.match(key, /^sk-local-/);
    assert.ok(!proxy.output.includes(key), 'it would end in a log');
    const file = /client key +in (\S+)/.exec(proxy.output)[1];
    assert.equal(statSync(file).mode & 0o777, 0o600);
    assert.equal(statSync(path.dirname(file)).mode & 0o777, 0o700);
    assert.ok(/curl [^\n]*/.exec(proxy.output)[0].includes(`$(cat ${file})`), 'a line to copy');
    await assertKeyed(t, proxy, key);
    await proxy.stop();
    proxy.stopped = true;
    assert.ok(!existsSync(file), 'it goes with the proxy');
  }
});

test('no question for a job in the background: it would be stopped', async (t) => {
  const script = `set -m; "$0" "$@" & sleep 2; echo; jobs; kill -KILL %1; wait`;
  const folder = scratchFolder(t);
  const { stdout } = await promisify(execFile)(
    'script',
    ['-qec', `bash -c '${script}' ${PROXY} --port 0 --spares 0 --claude-path ${NO_CLI}`, '/dev/null'],
    {
      cwd: folder,
      env: { PATH: process.env.PATH, HOME: folder, TMPDIR: folder, SHELL: '/bin/sh' },
      timeout: 10_000,
    },
  );
  assert.doesNotMatch(stdout, QUESTION);
  assert.doesNotMatch(stdout, /Stopped/);
  assert.match(stdout, /is listening on/);
});

test('beyond loopback it is never open: Ctrl-C, the end of input and --no-prompt change nothing', async (t) => {
  for (const [answers, args] of [[['\x03'], []], [['\x04'], []], [[], ['--no-prompt']]]) {
    const proxy = await typed(t, answers, { args: ['--host', '0.0.0.0', ...args] });
    assert.doesNotMatch(proxy.output, QUESTION, 'there is no choice');
    assert.ok(!existsSync(path.join(proxy.home, '.config')), 'it is not kept');
    await assertKeyed(t, proxy, madeKey(proxy));
    const curl = /curl [^\n]*/.exec(proxy.output)[0];
    assert.ok(curl.includes(`:${proxy.port}/`), curl);
  }
});

test('--generate-key beside a key that is set takes none away', async (t) => {
  const proxy = await startOwn(t, { args: ['--generate-key'], env: { API_KEY: 'mine' } });
  const made = madeKey(proxy);
  for (const when of ['at the start', 'after SIGHUP']) {
    assert.equal((await t.get('/v1/models', bearer(made))).status, 200, `the key that was made, ${when}`);
    assert.equal((await t.get('/v1/models', bearer('mine'))).status, 200, `the key that was set, ${when}`);
    const { server_info: info } = (await t.get('/v1/auth/status', bearer('mine'))).json;
    assert.deepEqual([info.api_key_required, info.api_key_source], [true, 'runtime'], when);
    await reload(proxy);
  }
});

test('a terminal that is closed ends the proxy', async (t) => {
  const proxy = await typed(t, ['n\n']);
  proxy.stopped = true;
  t.defer(async () => void (await proxy.stop('SIGKILL')));
  proxy.child.kill('SIGKILL'); // the terminal's other end
  await eventually('the proxy is gone', () => processesMarked(proxy.scratch).length === 0);
  assert.deepEqual(readdirSync(proxy.temporary), [], 'in good order');
});

test('a key is in no log, no list of processes, and no answer', async (t) => {
  const proxy = await startLight(t, {
    args: ['--api-key', 'secret-flag-key', '--api-key=secret-other-key', '--log-level', 'debug', '--log-bodies'],
  });
  for (const key of ['secret-flag-key', 'secret-other-key'])
    assert.equal((await t.get('/v1/models', bearer(key))).status, 200);
  await t.get('/v1/models', bearer('secret-guess'));
  assert.doesNotMatch(readFileSync(`/proc/${proxy.pid}/cmdline`, 'utf8'), /secret/);
  await eventually('the requests are logged', () => logLines(proxy).length >= 3);
  assert.doesNotMatch(proxy.output, /secret/);
});
