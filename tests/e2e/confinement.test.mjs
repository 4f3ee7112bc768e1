// What an agent can reach that tries to escape: the loopback API plays a model that calls Bash, the file tools and an MCP server of its
// client's. What it got shows in the results that the API is sent, what it did on the disk. One proxy with --sandbox on is shared.

import assert from 'node:assert/strict';
import { execFile, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, realpathSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { mcpServer } from './agents.test.mjs';
import { ChatClient, assertRefused, call, conversationOf, say, steps } from './chat_client.mjs';
import { CLI_VERSIONS, claudePath } from './claude_cli.mjs';
import { API_KEY_OF_CLAUDE, eventually, processesMarked, suite } from './harness.mjs';
import { scratchFolder } from './operate.mjs';

export const confinement = suite();
const works = await promisify(execFile)('bwrap', ['--unshare-all', '--ro-bind', '/', '/', 'true']).then(() => true, () => false);
const test = (name, options, body = options) =>
  confinement.test(name, { skip: works ? undefined : 'bubblewrap does not work here', ...(body === options ? {} : options) }, body);

const [KEY_ONE, KEY_TWO] = ['key-of-one-00000000', 'key-of-two-00000000'];
const SECRET = 'the-secret-of-the-operator';
const HEADERS = 'X-Of-The-Operator: header-secret-4711';
const OPERATORS = 'secret-operators'; // of the operator's MCP server, see `mcpServer`
/** What no agent may ever see. */
const SECRETS = [SECRET, API_KEY_OF_CLAUDE, KEY_ONE, KEY_TWO, 'header-secret-4711', OPERATORS];

const bash = (command) => ({ tool: 'Bash', args: { command, description: 'a test' } });
const write = (file, content) => ({ tool: 'Write', args: { file_path: file, content } });
const read = (file) => ({ tool: 'Read', args: { file_path: file } });
const grep = (where) => ({ tool: 'Grep', args: { pattern: 'secret', path: where, output_mode: 'content' } });
const glob = (pattern, where) => ({ tool: 'Glob', args: { pattern, ...(where ? { path: where } : {}) } });

const outsideOf = (proxy) => path.join(realpathSync(proxy.scratch), 'outside');
const lentOf = (proxy) => path.join(realpathSync(proxy.scratch), 'lent');
const scriptOf = (proxy) => {
  const [own] = readdirSync(proxy.temporary).filter((name) => existsSync(path.join(proxy.temporary, name, 'confine')));
  return path.join(proxy.temporary, own, 'confine');
};

/** Files outside with a secret, a directory that is lent, the operator's server and two keys. */
export function prepareConfinement(proxy) {
  [outsideOf, lentOf].forEach((of) => mkdirSync(of(proxy)));
  writeFileSync(path.join(outsideOf(proxy), 'secret.txt'), `${SECRET}\n`);
  writeFileSync(path.join(lentOf(proxy), 'lent.txt'), 'this is lent\n');
  const file = path.join(proxy.scratch, 'mcp.json');
  writeFileSync(file, JSON.stringify({ mcpServers: { operators: mcpServer(proxy.scratch, 'operators') } }));
  proxy.environment.ANTHROPIC_CUSTOM_HEADERS = HEADERS;
  proxy.command.push(
    ...['--sandbox', 'on', '--mcp-config', file, '--add-dir', lentOf(proxy), '--allow-mcp-registration'],
    ...['--api-key', KEY_ONE, '--api-key', KEY_TWO],
  );
}

/** The agent of a key calls these, one after the other; resolves to the results, as [{text, failed}]. */
async function act(t, calls, { key = KEY_ONE, headers = {}, ...options } = {}) {
  const client = new ChatClient(t, { body: { enable_tools: true }, headers: { 'x-api-key': key, 'x-claude-max-turns': '40', ...headers }, ...options });
  const answer = await client.ask(steps(...calls.map((one) => call(one)), say('Done.')));
  assert.equal(answer.text, 'Done.');
  const results = conversationOf(client.calls().at(-1))
    .flatMap(({ content }) => content)
    .filter(({ result }) => result)
    .map(({ content, is_error: failed = false }) => ({ text: typeof content === 'string' ? content : JSON.stringify(content), failed }));
  assert.equal(results.length, calls.length);
  return results;
}

let scripts = 0;

/**
 * The output of one script of the agent's, read where it has written it: what the CLI shows a model is cut. Its text is hidden from
 * the CLI, which refuses some commands by their look; a script that another tool has written would be no different.
 */
async function run(t, script, options) {
  const dump = `dump-${++scripts}.txt`;
  const hidden = Buffer.from(`${script}\necho "THE-END"\n`).toString('base64');
  const [{ text }] = await act(t, [bash(`echo ${hidden} | base64 -d | bash > ${dump} 2>&1; echo "<$PWD>"`)], options);
  const [, folder] = /<(.+)>/.exec(text) ?? assert.fail(text);
  const output = readFileSync(path.join(folder, dump), 'utf8');
  rmSync(path.join(folder, dump));
  assert.match(output, /THE-END/, output);
  return output;
}

const assertNoSecret = (text, what = '') => {
  for (const secret of SECRETS) assert.ok(!text.includes(secret), `${what} tells ${secret}: ${text}`);
};

const traces = (folder) => readdirSync(folder).filter((name) => name.startsWith('proof'));

// ---- commands ------------------------------------------------------------------------------------

test('a command reads no file outside its directories, by whatever path', async (t) => {
  const outside = outsideOf(t.proxy);
  const file = path.join(outside, 'secret.txt');
  const script = `
cat '${file}'
cat "$PWD/../../../../../../../../../..${file}"
cat "/proc/self/root${file}"
cat "/proc/1/root${file}"
ln -s '${outside}' away; cat away/secret.txt; ls away/
ln -s '${file}' away.txt; cat < away.txt
python3 -c "print(open('${file}').read())"
cp '${file}' copied; cat copied
tar cf - '${outside}' 2>&1 | strings
find / -name 'secret*' -not -path '/proc/*' -not -path '/sys/*' -not -path '/usr/*' 2>/dev/null
ls -la '${t.proxy.scratch}' '${t.proxy.home}' '${t.proxy.temporary}' /root /home /etc/shadow
cat /etc/shadow '${path.join(t.proxy.scratch, 'mcp.json')}'`;
  const text = await run(t, script);
  assertNoSecret(text);
  for (const name of ['secret.txt\n', 'mcp.json\n', 'root:*', 'root:$']) assert.ok(!text.replaceAll(/^(cat|ls|python3|tar|cp):.*$/gm, '').includes(name), `${name}: ${text}`);
});

test("a command finds no key: in no variable, no process's environment, no descriptor", async (t) => {
  const text = await run(
    t,
    `env; set; export -p
for file in /proc/[0-9]*/environ /proc/$PPID/environ /proc/self/environ; do tr '\\0' '\\n' < $file; done
for file in /proc/[0-9]*/fd/* /dev/fd/*; do [ -p $file ] && timeout 1 head -c 500 $file; done
cat /proc/[0-9]*/cmdline | tr '\\0' ' '`,
  );
  assertNoSecret(text);
  for (const name of ['ANTHROPIC_API_KEY', 'ANTHROPIC_CUSTOM_HEADERS', 'ANTHROPIC_AUTH_TOKEN', 'CLAUDE_CODE_OAUTH_TOKEN', 'FILE_DESCRIPTOR='])
    assert.ok(!text.includes(name), `${name}: ${text}`);
});

test('a command changes nothing outside its directories', async (t) => {
  const outside = outsideOf(t.proxy);
  const before = readFileSync(path.join(outside, 'secret.txt'), 'utf8');
  await run(
    t,
    `touch '${outside}/proof-1'; mkdir -p '${outside}/proof-2'; echo x > '${outside}/secret.txt'; rm -rf '${outside}'
ln -s '${outside}' writes; touch writes/proof-3
touch '${t.proxy.scratch}/proof-4' '${t.proxy.home}/proof-5' "${t.proxy.temporary}/proof-6" "$PWD/../proof-7" "$PWD/../../proof-8"
touch /usr/proof-${t.token} /etc/proof-${t.token} /proof-${t.token} /var/tmp/proof-${t.token} /tmp/proof-${t.token}
mount -o remount,rw /usr; unshare -Ur true; touch /usr/bin/proof-${t.token}`,
  );
  assert.equal(readFileSync(path.join(outside, 'secret.txt'), 'utf8'), before);
  for (const folder of [outside, t.proxy.scratch, t.proxy.home, t.proxy.temporary, '/', '/usr', '/usr/bin', '/etc', '/tmp', '/var/tmp'])
    assert.deepEqual(traces(folder).filter((name) => folder.startsWith(t.proxy.scratch) || name.includes(t.token)), [], folder);
  // Not readdirSync: files come and go there meanwhile.
  const { stdout } = spawnSync('find', [path.dirname(scriptOf(t.proxy)), '-name', 'proof-[78]'], { encoding: 'utf8' });
  assert.equal(stdout, '');
});

test('a command neither sees nor changes what confines it', async (t) => {
  const script = scriptOf(t.proxy);
  const before = readFileSync(script, 'utf8');
  const text = await run(t, `cat '${script}'; echo '#!/bin/sh' > '${script}'; rm -f '${script}'; mv x '${script}'; ls -la '${path.dirname(script)}'`);
  assert.equal(readFileSync(script, 'utf8'), before);
  assert.equal(statSync(script).mode & 0o777, 0o700);
  assert.ok(!text.includes('exec'), text);
  const results = await act(t, [read(script), write(script, '#!/bin/sh\n')]);
  assert.deepEqual(results.map(({ failed }) => failed), [true, true], JSON.stringify(results));
  assert.equal(readFileSync(script, 'utf8'), before);
});

test('a command sees no other process, and ends none', async (t) => {
  const { pid } = t.proxy;
  const text = await run(t, `cat /proc/[0-9]*/cmdline | tr '\\0' ' '; echo; kill -9 ${pid}; kill -0 ${pid} && echo REACHED; ls -d /proc/${pid} && echo SEEN`);
  assert.doesNotMatch(text, /REACHED|SEEN|stream-json|claude-openai --port/, text);
  await act(t, [bash('kill -9 -1')]); // itself
  assert.equal(t.proxy.exit, undefined);
  assert.ok(t.proxy.claudes().length > 0, 'the CLI lives on');
});

test('a command works in its own directory and in those that are lent, with git', async (t) => {
  const text = await run(
    t,
    `echo mine > own.txt && cat own.txt && cat '${lentOf(t.proxy)}/lent.txt' && echo written > '${lentOf(t.proxy)}/by-agent.txt'
git init -q repository && cd repository && echo 1 > file && git add . && git -c user.name=n -c user.email=e@x commit -qm 'a commit' && git log --oneline
echo temporary > "$TMPDIR/file" && cat "$TMPDIR/file"; echo 'echo from-home' > ~/script && sh ~/script; echo here | tee /tmp/file`,
  );
  for (const word of ['mine', 'this is lent', 'a commit', 'temporary', 'from-home', 'here']) assert.ok(text.includes(word), `${word}: ${text}`);
  assert.equal(readFileSync(path.join(lentOf(t.proxy), 'by-agent.txt'), 'utf8'), 'written\n');
});

/** A server on this machine; `hits` are the paths that were asked for. */
async function localServer(t) {
  const hits = [];
  const server = http.createServer((request, response) => {
    hits.push(request.url);
    response.end('reached');
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.defer(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  return { hits, port: server.address().port };
}

const knock = (port) => `
curl -sS --max-time 10 http://127.0.0.1:${port}/by-curl; curl -sS --max-time 10 http://localhost:${port}/by-name
(exec 3<>/dev/tcp/127.0.0.1/${port} && printf 'GET /by-bash HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3)`;

test('a command reaches no network, this machine included, unless the operator says so', async (t) => {
  const { hits, port } = await localServer(t);
  const text = await run(t, `${knock(port)}${knock(t.proxy.port)}${knock(t.api.port)}`);
  assert.ok(!text.includes('reached'), text);
  assert.deepEqual(hits, []);
  const proxy = await t.start({ cli: t.cli, args: ['--sandbox', 'on', '--sandbox-network', '--spares', '0'] });
  const open = await run(t, knock(port), { proxy, key: '' });
  assert.match(open, /reached/);
  assert.ok(hits.includes('/by-curl') && hits.includes('/by-bash'), `${hits}`);
});

// ---- file tools ----------------------------------------------------------------------------------

/** What file tools must not reach; `away` is a link of the agent's own. */
const fileAttacks = (outside, work) => [
  read(path.join(outside, 'secret.txt')),
  read(`${work}/../../../../../../../../../..${outside}/secret.txt`),
  read(`/proc/self/root${outside}/secret.txt`),
  read('/proc/self/environ'),
  read('/etc/passwd'),
  read(path.join(work, 'away', 'secret.txt')),
  read(path.join(work, 'away.txt')),
  grep(outside),
  grep(path.dirname(outside)),
  grep(path.join(work, 'away')),
  glob('*', outside),
  glob(`${outside}/*`),
  glob('**/*', path.join(work, 'away')),
  write(path.join(outside, 'proof-written'), 'x'),
  write(path.join(work, 'away', 'proof-linked'), 'x'),
  write(`${work}/../../../proof-above`, 'x'),
  { tool: 'Edit', args: { file_path: path.join(outside, 'secret.txt'), old_string: SECRET, new_string: 'proof' } },
];

for (const version of CLI_VERSIONS)
  test(`${version}: file tools reach the agent's directories and no others`, async (t) => {
    const folder = realpathSync(mkdtempSync(path.join(tmpdir(), 'claude-openai-confined-')));
    t.defer(async () => rmSync(folder, { recursive: true, force: true }));
    const [work, outside, lent] = ['work', 'outside', 'lent'].map((name) => path.join(folder, name));
    [work, outside, lent].forEach((one) => mkdirSync(one));
    writeFileSync(path.join(outside, 'secret.txt'), `${SECRET}\n`);
    writeFileSync(path.join(lent, 'lent.txt'), 'this is lent\n');
    writeFileSync(path.join(work, 'own.txt'), 'this is mine\n');
    symlinkSync(outside, path.join(work, 'away'));
    symlinkSync(path.join(outside, 'secret.txt'), path.join(work, 'away.txt'));
    const proxy = await t.start({ cli: claudePath(version), args: ['--spares', '0', '--cwd', work, '--add-dir', lent] });
    const results = await act(t, fileAttacks(outside, work), { proxy, key: '' });
    for (const [i, { text }] of results.entries()) {
      const what = JSON.stringify(fileAttacks(outside, work)[i]);
      assertNoSecret(text, what);
      assert.ok(!/root:x:|PATH=/.test(text), `${what}: ${text}`);
    }
    assert.equal(readFileSync(path.join(outside, 'secret.txt'), 'utf8'), `${SECRET}\n`);
    assert.deepEqual([...traces(outside), ...traces(folder), ...traces(path.dirname(folder))], []);
    const own = await act(
      t,
      [read(path.join(work, 'own.txt')), write(path.join(work, 'new.txt'), 'new'), read(path.join(lent, 'lent.txt')), write(path.join(lent, 'new.txt'), 'new')],
      { proxy, key: '' },
    );
    assert.deepEqual(own.map(({ failed }) => failed), [false, false, false, false], JSON.stringify(own));
    assert.match(own[0].text + own[2].text, /this is mine.*this is lent/s);
    assert.deepEqual([existsSync(path.join(work, 'new.txt')), existsSync(path.join(lent, 'new.txt'))], [true, true]);
  });

test('no rule of a client lets a file tool out of the directories', async (t) => {
  for (const rule of ['Read(//etc/**)', 'Read(~/**)', 'Edit(//**)', 'Read(../**)', 'Glob(/**)', 'Write(!x)']) {
    const headers = { 'x-api-key': KEY_ONE, 'x-claude-allowed-tools': rule };
    assertRefused(await t.chat({ enable_tools: true, messages: t.messages('plain') }, { headers }), 403);
  }
  assert.equal(t.calls().length, 0);
});

test("no rule of a client's takes a file out of what the operator denies", async (t) => {
  const proxy = await t.start({
    cli: t.cli,
    args: ['--spares', '0', '--disallowed-tools', 'Read(denied.txt)'],
    prepare: (one) => {
      const work = path.join(one.scratch, 'work');
      mkdirSync(work);
      writeFileSync(path.join(work, 'denied.txt'), SECRET);
      one.command.push('--cwd', work);
    },
  });
  const file = path.join(realpathSync(proxy.scratch), 'work', 'denied.txt');
  for (const rule of ['Read(x)', 'Read(!denied.txt)', 'Read( !denied.txt)', 'Read(!**)', 'Glob(!**)']) {
    const headers = { 'x-claude-disallowed-tools': rule };
    const body = { enable_tools: true, messages: [{ role: 'user', content: t.text(steps(call(read(file)), say('Done.')), rule) }] };
    await t.chat(body, { proxy, headers });
    for (const { raw } of t.calls()) assertNoSecret(raw, rule);
  }
});

test('no folder with a secret in it can be moved to where the secret is not hidden', async (t) => {
  const proxy = await t.start({
    cli: t.cli,
    args: ['--spares', '0', '--sandbox', 'on'],
    prepare: (one) => {
      const folder = path.join(one.scratch, 'work', 'a', 'b');
      mkdirSync(folder, { recursive: true });
      writeFileSync(path.join(folder, 'settings.toml'), `# ${SECRET}\n`);
      writeFileSync(path.join(folder, 'mcp.json'), JSON.stringify({ mcpServers: {}, note: SECRET }));
      one.command.push('--cwd', path.join(one.scratch, 'work'), '--config', path.join(folder, 'settings.toml'));
      one.command.push('--mcp-config', path.join(folder, 'mcp.json'));
    },
  });
  const work = path.join(realpathSync(proxy.scratch), 'work');
  const moves = 'mv a elsewhere; mv a/b a/c; mv a/b here; mkdir -p a/b; echo own > a/b/own.txt; cp -r a copy; cat a/b/own.txt';
  assert.match(await run(t, moves, { proxy, key: '' }), /^own$/m, 'it works in these folders');
  assertNoSecret(await run(t, 'cat $(find . -type f)', { proxy, key: '' }));
  assert.match(readFileSync(path.join(work, 'a', 'b', 'settings.toml'), 'utf8'), new RegExp(SECRET), 'the next start has its own');
  const results = await act(t, ['elsewhere/b', 'a/c', 'here'].map((where) => read(path.join(work, where, 'settings.toml'))), { proxy, key: '' });
  for (const { text } of results) assertNoSecret(text);
});

test('what hides a secret that is not there goes with the proxy, and what its user has there stays', async (t) => {
  const work = realpathSync(scratchFolder(t));
  const settings = path.join(work, 'proxy', '.env');
  for (const own of [undefined, '', 'CLAUDE_OPENAI_UNKNOWN=1\n']) {
    rmSync(path.join(work, 'proxy'), { recursive: true, force: true });
    mkdirSync(path.join(work, 'proxy'));
    if (own !== undefined) writeFileSync(settings, own, { mode: 0o400 });
    const proxy = await t.start({
      cli: t.cli,
      args: ['--spares', '0', '--sandbox', 'on', '--cwd', work],
      prepare: (one) => one.command.unshift('env', '-C', path.join(work, 'proxy')),
    });
    await run(t, 'rm -f proxy/.env; echo "PORT=1" > proxy/.env', { proxy, key: '' });
    assert.equal(readFileSync(settings, 'utf8'), own ?? '', 'an agent cannot make the settings of the next start');
    proxy.stopped = true;
    assert.deepEqual((await proxy.stop()).faults, []);
    assert.equal(existsSync(settings), own !== undefined, `${own}`);
  }
});

test("a command neither asks through the proxy's own socket nor takes its place", async (t) => {
  const proxy = await t.start({
    cli: t.cli,
    args: ['--spares', '0', '--sandbox', 'on'],
    prepare: (one) => {
      const work = path.join(one.scratch, 'work');
      mkdirSync(work);
      one.command.push('--cwd', work, '--unix-socket', path.join(work, 'socket'));
    },
  });
  const asked = await run(t, 'curl -sS --max-time 10 --unix-socket socket http://localhost/v1/models; mv socket taken; rm -f socket; ls', { proxy, key: '' });
  assert.doesNotMatch(asked, /"object"|^taken$/m);
  const over = { socketPath: path.join(proxy.scratch, 'work', 'socket') };
  assert.equal((await t.get('/v1/models', { proxy, over })).status, 200);
});

// ---- tenants -------------------------------------------------------------------------------------

test("two keys' agents have directories of their own; those of one key share theirs", async (t) => {
  const where = async (key) => {
    const text = await run(t, 'echo "<$PWD> <$TMPDIR>"', { key });
    return /<(.+)> <(.+)>/.exec(text).slice(1);
  };
  const [one, again, two] = [await where(KEY_ONE), await where(KEY_ONE), await where(KEY_TWO)];
  assert.deepEqual(one, again);
  assert.ok(one[0] !== two[0] && one[1] !== two[1], `${one} ${two}`);
  await run(t, 'echo of-the-first-tenant > kept.txt; echo of-the-first-tenant > "$TMPDIR/kept.txt"', { key: KEY_ONE });
  assert.match(await run(t, 'cat kept.txt', { key: KEY_ONE }), /of-the-first-tenant/);
  const attacks = [
    bash(`cat ${one[0]}/kept.txt ${one[1]}/kept.txt; ls ${path.dirname(one[0])} ${path.dirname(path.dirname(one[0]))}; echo x > ${one[0]}/proof`),
    read(path.join(one[0], 'kept.txt')),
    grep(path.dirname(path.dirname(one[0]))),
    glob('**/kept.txt', path.dirname(path.dirname(one[0]))),
    write(path.join(one[0], 'proof'), 'x'),
  ];
  const results = await act(t, attacks, { key: KEY_TWO });
  for (const { text } of results) assert.ok(!text.includes('of-the-first-tenant'), text);
  assert.ok(!results[0].text.split('\n').includes(path.basename(path.dirname(one[0]))), `the other is not listed: ${results[0].text}`);
  assert.ok(!existsSync(path.join(one[0], 'proof')));
});

// 2.1.120 and 2.1.197 ask git for the state of their directory when they start, and git asks the program that core.fsmonitor names.
for (const version of CLI_VERSIONS)
  test(`${version}: a repository that an agent has made runs no command at the next start, of an agent or a chat`, async (t) => {
    const folder = realpathSync(mkdtempSync(path.join(tmpdir(), 'claude-openai-confined-')));
    t.defer(async () => rmSync(folder, { recursive: true, force: true }));
    const work = path.join(folder, 'work');
    mkdirSync(work);
    const proxy = await t.start({ cli: claudePath(version), args: ['--spares', '1', '--sandbox', 'on', '--cwd', work] });
    const made = await run(
      t,
      `git init -q . && printf '#!/bin/sh\\ntouch %s/proof proof\\n' '${folder}' > hook.sh && chmod +x hook.sh && touch file && git add file
git config core.fsmonitor "$PWD/hook.sh" && git config core.pager "$PWD/hook.sh"; git status; ls; rm -f proof; cat .git/config`,
      { proxy, key: '' },
    );
    assert.match(made, /proof[^]*fsmonitor/, 'it works where the agent runs it itself');
    await act(t, [read(path.join(work, 'file'))], { proxy, key: '' });
    const chat = new ChatClient(t, { proxy });
    await chat.ask(say('No agent.'));
    assert.deepEqual([...traces(folder), ...traces(work)], []);
  });

for (const version of CLI_VERSIONS)
  test(`${version}: no link of an agent's leads what the CLI itself writes out of the directories, nor keeps it from work`, async (t) => {
    const folder = realpathSync(mkdtempSync(path.join(tmpdir(), 'claude-openai-confined-')));
    t.defer(async () => rmSync(folder, { recursive: true, force: true }));
    const proxy = await t.start({ cli: claudePath(version), args: ['--spares', '0', '--sandbox', 'on'] });
    await run(
      t,
      `rm -rf "$TMPDIR"/*claude*; for name in claude-$(id -u) claude claude-0 cc-socks; do ln -s '${folder}' "$TMPDIR/$name"; done
ln -sfn '${folder}' "$TMPDIR/../claude/claude-$(id -u)"; ln -s '${folder}' .claude`,
      { proxy, key: '' },
    );
    const large = [bash('seq 1 20000'), bash('(exit 3)'), bash('cd /tmp && echo "in-$PWD"')];
    for (let conversation = 0; conversation < 2; conversation++) {
      const [, failing, elsewhere] = await act(t, large, { proxy, key: '' });
      assert.match(failing.text, /[Ee]xit code 3/, 'the status of a command is its own');
      assert.match(elsewhere.text, /^in-\/tmp/);
    }
    assert.deepEqual(readdirSync(folder, { recursive: true }), []);
  });

// ---- MCP servers ---------------------------------------------------------------------------------

test("the operator's MCP server is not confined, has its variables, and its file is no secret of the disk's", async (t) => {
  const [{ text, failed }] = await act(t, [{ tool: 'mcp__operators__lookup', args: { key: 'k' } }]);
  assert.deepEqual([text, failed], [`found k operators ${OPERATORS}`, false]);
  const { stdout: holding } = spawnSync('grep', ['-rlsF', OPERATORS, t.proxy.temporary], { encoding: 'utf8' });
  assert.equal(holding, '', 'no file tells it');
});

test("the account's key and the servers' secrets are in no environment and no arguments of an agent", async (t) => {
  await act(t, [bash('true')]);
  const agents = t.proxy.claudes().filter(({ argv }) => argv.includes('--mcp-config'));
  assert.ok(agents.length > 0);
  for (const { environment, argv } of agents) {
    const all = JSON.stringify([environment, argv]);
    for (const secret of [API_KEY_OF_CLAUDE, OPERATORS, KEY_ONE, KEY_TWO]) assert.ok(!all.includes(secret), secret);
  }
});

/** A client's server as code alone: its tool runs a command and tells what came of it. */
const SHELL_SERVER = `
const write = (id, result) => process.stdout.write(JSON.stringify({ jsonrpc: '2.0', id, result }) + '\\n');
require('child_process').exec(process.env.AT_START || 'true');
const answers = {
  initialize: ({ params }) => ({ protocolVersion: params.protocolVersion, capabilities: { tools: {} }, serverInfo: { name: 'x', version: '1' } }),
  'tools/list': () => ({ tools: [{ name: 'run', description: 'Runs', inputSchema: { type: 'object', properties: { line: { type: 'string' } } } }] }),
  'tools/call': ({ params }) => {
    const { stdout, stderr } = require('child_process').spawnSync('bash', ['-c', params.arguments.line], { encoding: 'utf8' });
    return { content: [{ type: 'text', text: stdout + stderr }] };
  },
};
require('readline').createInterface(process.stdin).on('line', (line) => {
  const request = JSON.parse(line);
  if (request.id !== undefined) write(request.id, answers[request.method]?.(request) ?? {});
}).on('close', () => process.exit());
`;

const register = async (t, name, more) => {
  const server = { name, command: process.execPath, args: ['-e', SHELL_SERVER], ...more };
  const added = await t.send({ path: '/v1/mcp/servers', headers: { 'x-api-key': KEY_ONE }, body: server }).done;
  assert.equal(added.status, 200, added.text);
  t.defer(async () => {
    const off = { ...server, enabled: false };
    await t.send({ path: '/v1/mcp/servers', headers: { 'x-api-key': KEY_ONE }, body: off }).done;
  });
};
const connect = (t, name) => t.send({ path: '/v1/mcp/connect', headers: { 'x-api-key': KEY_ONE }, body: { server_name: name } }).done;
const inServer = (name, line) => ({ tool: `mcp__${name}__run`, args: { line } });

test("a client's MCP server is confined like a command, when it is tried and when it is used", async (t) => {
  const outside = outsideOf(t.proxy);
  const { hits, port } = await localServer(t);
  const attack = `touch '${outside}/proof-server'; cat '${outside}/secret.txt' > stolen.txt; env >> stolen.txt; curl -s --max-time 5 http://127.0.0.1:${port}/server`;
  await register(t, 'mine', { env: { AT_START: attack, OF_THE_CLIENT: "it's \${HOME} \"quoted\"" } });
  const tried = await connect(t, 'mine');
  assert.equal(tried.json.tools, 1, tried.text);
  const [first, second, third] = await act(t, [
    inServer('mine', `${attack}; cat '${outside}/secret.txt' /proc/*/environ; ls '${t.proxy.scratch}' '${t.proxy.home}'; env; pwd`),
    inServer('mine', 'echo "<$OF_THE_CLIENT>"; cat own-file 2>/dev/null; echo from-server > own-file'),
    bash('cat own-file; cat stolen.txt'),
  ]);
  assertNoSecret(first.text + third.text);
  assert.ok(second.text.includes(`<it's \${HOME} "quoted">`), `its variables are its own: ${second.text}`);
  assert.match(third.text, /from-server/, 'it works where the agent does');
  assert.deepEqual(traces(outside), []);
  assert.deepEqual(hits, []);
});

test("no variable of a client's MCP server starts anything outside", async (t) => {
  const outside = outsideOf(t.proxy);
  const made = await run(
    t,
    `mkdir -p fake && printf '#!/bin/sh\\ntouch %s/proof-path; exec /usr/bin/env node "$@"\\n' '${outside}' > fake/bwrap && chmod +x fake/bwrap && cp fake/bwrap fake/bash
printf 'touch %s/proof-sourced\\n' '${outside}' > sourced.sh; echo "<$PWD>"`,
  );
  const [, work] = /<(.+)>/.exec(made);
  const harmful = {
    PATH: `${work}/fake:/usr/bin:/bin`,
    CLAUDE_OPENAI_SERVER: `sh -c "touch '${outside}/proof-server'"`,
    CLAUDE_OPENAI_CONFINE: `sh -c "touch '${outside}/proof-confine'" `,
    CLAUDE_OPENAI_CONFINED: `touch '${outside}/proof-confined'`,
    CLAUDE_CODE_SHELL_PREFIX: `${work}/fake/bwrap`,
    LD_PRELOAD: `${work}/evil.so`,
    BASH_ENV: `${work}/sourced.sh`,
    ENV: `${work}/sourced.sh`,
    NODE_OPTIONS: '--no-warnings',
    LEAKED: '${ANTHROPIC_CUSTOM_HEADERS} ${ANTHROPIC_API_KEY}',
  };
  for (const [name, value] of Object.entries(harmful)) {
    const server = `env-${name.toLowerCase().replaceAll('_', '-')}`;
    await register(t, server, { env: { [name]: value } });
    await connect(t, server); // some cannot start
  }
  await register(t, 'arguments', { args: ['-e', SHELL_SERVER, '--', '${ANTHROPIC_CUSTOM_HEADERS}', "'; touch proof-quoted; '"] });
  const [{ text }, told] = await act(t, [
    inServer('env-leaked', 'echo "$LEAKED"'),
    inServer('arguments', "tr '\\0' ' ' < /proc/$PPID/cmdline | tail -c 300; ls"),
  ]);
  assertNoSecret(text + told.text);
  assert.ok(text.includes('${ANTHROPIC_CUSTOM_HEADERS}'), text);
  assert.ok(told.text.includes('${ANTHROPIC_CUSTOM_HEADERS}') && told.text.includes("'; touch proof-quoted; '"), told.text);
  assert.deepEqual(traces(outside), []);
  for (const name of ['a.b', 'a b', 'A=B', '1A', 'A;id', '']) {
    const body = { name: 'odd', command: 'true', env: { [name]: 'x' } };
    assertRefused(await t.send({ path: '/v1/mcp/servers', headers: { 'x-api-key': KEY_ONE }, body }).done, 400);
  }
});

// ---- how far it goes -----------------------------------------------------------------------------

/** A PATH with every program of this machine but bubblewrap. */
function pathWithoutBubblewrap(t) {
  const folder = mkdtempSync(path.join(tmpdir(), 'claude-openai-programs-'));
  t.defer(async () => rmSync(folder, { recursive: true, force: true }));
  for (const name of readdirSync('/usr/bin').filter((one) => one !== 'bwrap')) symlinkSync(path.join('/usr/bin', name), path.join(folder, name));
  return folder;
}

test('without bubblewrap --sandbox on lends no agent and says why; auto confines the file tools', async (t) => {
  const env = { PATH: pathWithoutBubblewrap(t) };
  const strict = await t.start({ cli: t.cli, env, args: ['--sandbox', 'on', '--spares', '0'] });
  const result = await t.chat({ enable_tools: true, messages: t.messages('plain') }, { proxy: strict });
  assertRefused(result, 503);
  assert.match(result.json.error.message, /--sandbox on.*bubblewrap/);
  assert.equal(t.calls().length, 0);
  assert.equal((await t.chat({ messages: t.messages('plain') }, { proxy: strict })).status, 200, 'a chat needs none');
  const auto = await t.start({ cli: t.cli, env, args: ['--sandbox', 'auto', '--spares', '0'] });
  const file = path.join(outsideOf(t.proxy), 'secret.txt');
  const [tool, command] = await act(t, [read(file), bash(`cat '${file}'`)], { proxy: auto, key: '' });
  assert.ok(tool.failed && !tool.text.includes(SECRET), tool.text);
  assert.match(command.text, new RegExp(SECRET), 'commands are the operator’s risk there, as before');
});

test('with --sandbox off an agent reaches other files, and none that hold secrets', async (t) => {
  const denied = [];
  const proxy = await t.start({
    cli: t.cli,
    args: ['--sandbox', 'off', '--spares', '0', '--env-file', 'settings.env', '--config', 'settings.toml', '--session-dir', 'sessions'],
    prepare: (one) => {
      const home = realpathSync(one.home);
      mkdirSync(path.join(home, '.claude'));
      mkdirSync(path.join(home, '.config'));
      const files = ['settings.env', 'settings.toml', '.env', 'home/.claude/.credentials.json', 'home/.config/claude-openai.env'];
      for (const name of files) {
        const file = path.join(realpathSync(one.scratch), name);
        const text = { 'settings.env': `OTHER=${SECRET}\n`, 'settings.toml': `# ${SECRET}\n` }[name] ?? SECRET;
        writeFileSync(file, text, { mode: 0o600 });
        denied.push(file);
      }
    },
  });
  const sessions = path.join(realpathSync(proxy.scratch), 'sessions');
  writeFileSync(path.join(sessions, 'x.json'), SECRET);
  denied.push(path.join(sessions, 'x.json'), '/proc/self/environ');
  const open = path.join(realpathSync(proxy.scratch), 'open.txt');
  writeFileSync(open, 'open to all\n');
  const results = await act(t, [...denied.map(read), grep(sessions), ...denied.slice(0, 2).map((file) => write(file, 'proof')), read(open)], { proxy, key: '' });
  const last = results.pop();
  assert.match(last.text, /open to all/);
  for (const [i, { text, failed }] of results.entries()) {
    assertNoSecret(text, denied[i]);
    assert.ok(failed || /No (files|matches) found/.test(text), `${denied[i]}: ${text}`);
  }
  assert.match(readFileSync(path.join(proxy.scratch, 'settings.env'), 'utf8'), new RegExp(SECRET));
});

test('an account of Bedrock: no AWS variable reaches a command', async (t) => {
  const aws = { AWS_ACCESS_KEY_ID: 'AKIA-of-the-operator', AWS_SECRET_ACCESS_KEY: 'aws-secret-4711', AWS_SESSION_TOKEN: 'aws-token-4711' };
  const { port } = await localServer(t);
  const proxy = await t.start({
    cli: t.cli,
    args: ['--sandbox', 'on', '--spares', '0', '--auth-method', 'bedrock'],
    env: { ...aws, AWS_REGION: 'us-east-1', ANTHROPIC_BEDROCK_BASE_URL: `http://127.0.0.1:${port}`, ANTHROPIC_API_KEY: undefined },
  });
  await proxy.inspected();
  const exchange = t.send({ proxy, body: { enable_tools: true, model: 'sonnet', messages: t.messages('plain') } });
  t.defer(async () => exchange.abort());
  const agent = await eventually('an agent runs', () => proxy.claudes().find(({ environment }) => environment.CLAUDE_OPENAI_CONFINE));
  // What the CLI does with each command, with the environment that it has.
  const env = agent.environment;
  assert.equal(env.AWS_SECRET_ACCESS_KEY, aws.AWS_SECRET_ACCESS_KEY, 'the CLI itself needs it');
  const { stdout } = await promisify(execFile)(env.CLAUDE_CODE_SHELL_PREFIX, ['env; echo THE-END'], { env, cwd: agent.cwd });
  assert.match(stdout, /THE-END/);
  assert.doesNotMatch(stdout, /4711|of-the-operator|AWS_/);
  const seen = await promisify(execFile)(env.CLAUDE_CODE_SHELL_PREFIX, ["cat /proc/[0-9]*/environ | tr '\\0' '\\n'"], { env, cwd: agent.cwd });
  assert.match(seen.stdout, /HOME=/);
  assert.doesNotMatch(seen.stdout, /4711|of-the-operator|AWS_/);
});

test('nothing of an agent is left when its client goes', async (t) => {
  const client = new ChatClient(t, { stream: true, body: { enable_tools: true }, headers: { 'x-api-key': KEY_ONE } });
  const exchange = client.user(steps(call(bash('sleep 87.6')), say('Never.'))).sendRaw();
  t.defer(async () => exchange.abort());
  const sleeping = () => processesMarked(t.proxy.scratch).filter(({ argv }) => argv.includes('87.6'));
  await eventually('it runs', () => sleeping().length > 0);
  exchange.abort();
  await eventually('nothing of it is left', () => sleeping().length === 0);
});
