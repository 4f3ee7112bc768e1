// Tries what `make dist` has put into build/dist, as users would. Run it by `make test-packages`.
// The last line counts: "N passed, N failed, N skipped".
//
// DIST=folder takes packages from another folder. The Debian roots stay in build/roots for the next run.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import https from 'node:https';
import { dirname, join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
const dist = resolve(process.env.DIST ?? join(root, 'build/dist'));
const scratch = join(root, 'build/packages-tests');
rmSync(scratch, { recursive: true, force: true });
mkdirSync(scratch, { recursive: true });

const version = /^#define CLAUDE_OPENAI_VERSION "(.*)"$/m.exec(readFileSync(join(root, 'claude-openai.hpp'), 'utf8'))[1];
const machine = { x64: 'x86_64', arm64: 'aarch64' }[process.arch];
const architecture = { x64: 'amd64', arm64: 'arm64' }[process.arch];
const user_environment = { PATH: '/usr/local/bin:/usr/bin:/bin', HOME: scratch, LC_ALL: 'C.UTF-8' };

class skipped extends Error {}
const skip = (why) => {
  throw new skipped(why);
};

/** What the command prints; it has to end well. */
const done = (command, args, options = {}) =>
  new Promise((resolve, reject) => {
    execFile(command, args, { maxBuffer: 1 << 26, cwd: scratch, ...options }, (error, out, err) => {
      if (error) reject(new Error(`${command} ${args.join(' ')}: ${error.code ?? error.signal}\n${out}${err}`));
      else resolve(out);
    });
  });

const question = { method: 'POST', headers: { authorization: 'Bearer a-key-of-16-characters' } };
const question_body = { messages: [{ role: 'user', content: 'Say hello' }] };

const ask_in_clear = async (url, more) => {
  const response = await fetch(url, { ...question, body: JSON.stringify({ ...question_body, ...more }) });
  return { status: response.status, answer: await response.json() };
};

/** Trusts that one certificate. The question is compressed. */
const ask_by_tls = async (url, ca) => {
  const headers = { ...question.headers, 'content-encoding': 'gzip' };
  const request = https.request(url, { ...question, headers, ca }).end(gzipSync(JSON.stringify(question_body)));
  const [response] = await once(request, 'response');
  return { status: response.statusCode, answer: JSON.parse(Buffer.concat(await response.toArray())) };
};

/** Starts the demo, asks it one question as a client would, and ends it by SIGTERM; `pid_of` says whom to signal. */
async function play_demo(command, args, { env = user_environment, pid_of = (child) => child.pid, ask = ask_in_clear } = {}) {
  const child = spawn(command, args, { cwd: scratch, env, stdio: ['ignore', 'pipe', 'pipe'] });
  let err = '';
  child.stderr.on('data', (data) => (err += data));
  const ended = new Promise((resolve) => {
    child.on('error', (error) => resolve(error.message));
    child.on('exit', (code, signal) => resolve(code ?? signal));
  });
  try {
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    const first = (await lines.next()).value ?? '';
    const url = /^claude-openai (\S+) is listening on (https?:\S+)/.exec(first);
    assert.ok(url, `${first}\n${err}`);
    assert.equal(url[1], version);
    const { status, answer } = await ask(`${url[2]}/v1/chat/completions`);
    assert.equal(status, 200, JSON.stringify(answer));
    assert.ok(answer.choices[0].message.content.length > 0);
    assert.equal(answer.choices[0].finish_reason, 'stop');
    process.kill(pid_of(child), 'SIGTERM');
    assert.equal(await ended, 0, err);
  } finally {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL');
  }
}
const demo = ['--demo', '--port', '0', '--api-key', 'a-key-of-16-characters'];

// ---- tests --------------------------------------------------------------------------------------

const tests = [];
const test = (name, body) => tests.push({ name, body });

test('the sums are those of the files', async () => {
  const checked = await done('sha256sum', ['--strict', '--check', 'SHA256SUMS'], { cwd: dist });
  assert.ok(checked.match(/: OK$/gm).length >= 7, checked);
});

const unpack = async (name) => {
  await done('tar', ['-xzf', join(dist, `${name}.tar.gz`)]);
  return join(scratch, name);
};

for (const [kind, name] of [[0x3e, 'x86_64'], [0xb7, 'aarch64']])
  test(`the program for ${name} is one, needs no library, has SQLite in it, and does not hold the folder that it was built in`, async () => {
    const program = readFileSync(join(await unpack(`claude-openai-${version}-linux-${name}`), 'claude-openai'));
    assert.equal(program.readUInt16LE(18), kind);
    // Program headers and section headers of a 64-bit ELF file: where, how large, how many; the kind is the first or second word.
    const kinds = (at, sizes, word) => {
      const [offset, size, count] = [Number(program.readBigUInt64LE(at)), program.readUInt16LE(sizes), program.readUInt16LE(sizes + 2)];
      return Array.from({ length: count }, (_, one) => program.readUInt32LE(offset + one * size + word));
    };
    const [interpreter, symbols] = [3, 2];
    assert.ok(!kinds(32, 54, 0).includes(interpreter), 'it names an interpreter');
    assert.ok(!kinds(40, 58, 4).includes(symbols), 'it is not stripped');
    assert.ok(program.includes('SQLite format 3\0'), 'it is without SQLite');
    assert.ok(!program.includes(`${root}/`), 'it holds the folder');
  });

test('the unpacked archive says its version, and its demo answers', async () => {
  const program = join(await unpack(`claude-openai-${version}-linux-${machine}`), 'claude-openai');
  assert.match(await done(program, ['--version'], { env: user_environment }), new RegExp(`^claude-openai ${version.replaceAll('.', '\\.')} \\(commit \\w`));
  await play_demo(program, demo);
});

test('the program speaks TLS, and takes compressed requests', async () => {
  const program = join(await unpack(`claude-openai-${version}-linux-${machine}`), 'claude-openai');
  assert.match(await done(program, ['--version'], { env: user_environment }), /^TLS: OpenSSL 3/m);
  const [certificate, key] = [join(scratch, 'cert.pem'), join(scratch, 'key.pem')];
  await done('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', key, '-out', certificate]);
  await play_demo(program, [...demo, '--tls-cert', certificate, '--tls-key', key], { ask: (url) => ask_by_tls(url, readFileSync(certificate)) });
});

test('a session in the program’s store goes on after a restart', async () => {
  const program = join(await unpack(`claude-openai-${version}-linux-${machine}`), 'claude-openai');
  assert.match(await done(program, ['--version'], { env: user_environment }), /^Store: SQLite 3\.\S+, Redis by hiredis 1\.\S+ with TLS$/m);
  const messages = [];
  const ask = async (url) => {
    const asked = await ask_in_clear(url, { session_id: 'kept' });
    const session = await fetch(new URL('/v1/sessions/kept', url), { headers: question.headers });
    messages.push((await session.json()).message_count);
    return asked;
  };
  mkdirSync(join(scratch, 'state'), { mode: 0o700 });
  const args = [...demo, '--store', join(scratch, 'state/state.sqlite')];
  for (let start = 0; start < 2; start++) await play_demo(program, args, { ask });
  assert.deepEqual(messages, [2, 4]);
});

test('npm installs the package without a network; its command, and npx, start the program', async () => {
  const prefix = join(scratch, 'a prefix');
  const settings = ['--offline', '--no-audit', '--no-fund', '--loglevel=error', '--cache', join(scratch, 'npm cache')];
  const npm = join(dist, `claude-openai-${version}-npm.tgz`);
  await done('npm', ['install', '--global', '--prefix', prefix, ...settings, npm]);
  const said = await done(join(prefix, 'bin/claude-openai'), ['--version']);
  assert.ok(said.startsWith(`claude-openai ${version} `), said);
  assert.equal(await done('npx', ['--yes', ...settings, `--package=${npm}`, 'claude-openai', '--version']), said);
  await play_demo(join(prefix, 'bin/claude-openai'), demo);
});

/** A clean Debian, made once. */
async function debian_root(suite) {
  if (process.getuid() !== 0) skip('only root can make a root file system');
  const folder = join(root, 'build/roots', suite);
  if (existsSync(join(folder, 'etc/made'))) return folder;
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(dirname(folder), { recursive: true });
  try {
    await done('debootstrap', ['--variant=minbase', suite, folder], { env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' } });
  } catch (error) {
    skip(`there is no ${suite} to be had here: ${error.message.split('\n').slice(-3).join(' ')}`);
  }
  await done('touch', [join(folder, 'etc/made')]);
  return folder;
}

// With a /proc and processes of its own; the network is the machine's.
const within = (folder, user, words) => [
  '--mount', '--pid', '--fork', '--kill-child', `--mount-proc=${join(folder, 'proc')}`, 'chroot', `--userspec=${user}`, folder,
  '/usr/bin/env', '-i', 'PATH=/usr/sbin:/usr/bin:/sbin:/bin', 'HOME=/tmp', 'DEBIAN_FRONTEND=noninteractive', ...words,
];

for (const [number, suite] of [[12, 'bookworm'], [13, 'trixie']])
  test(`the .deb is installed in a clean Debian ${number}, a user who is not root starts the demo, and purging it leaves nothing`, async () => {
    const folder = await debian_root(suite);
    const as = (user, ...words) => done('unshare', within(folder, user, words));
    const files = () => as('0:0', 'find', '/', '-xdev', '(', '-path', '/proc', '-o', '-path', '/var/lib/dpkg', '-o', '-path', '/var/log', ')', '-prune', '-o', '-print');
    await as('0:0', 'dpkg', '--purge', 'claude-openai').catch(() => '');
    cpSync(join(dist, `claude-openai_${version}_${architecture}.deb`), join(folder, 'tmp/claude-openai.deb'));
    const before = await files();
    await as('0:0', 'dpkg', '--install', '/tmp/claude-openai.deb');
    assert.equal((await as('0:0', 'dpkg', '--verify', 'claude-openai')).trim(), '');
    assert.ok((await as('65534:65534', 'claude-openai', '--version')).startsWith(`claude-openai ${version} `));
    // The process that unshare has started is the proxy, after chroot and env.
    const pid_of = ({ pid }) => Number(readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8'));
    await play_demo('unshare', within(folder, '65534:65534', ['claude-openai', ...demo]), { env: process.env, pid_of });
    await as('0:0', 'dpkg', '--purge', 'claude-openai');
    assert.deepEqual((await files()).split('\n').sort(), before.split('\n').sort());
  });

const count = { passed: 0, failed: 0, skipped: 0 };
for (const { name, body } of tests) {
  let outcome = 'passed';
  let why = '';
  try {
    await body();
  } catch (error) {
    outcome = error instanceof skipped ? 'skipped' : 'failed';
    why = error.message;
  }
  count[outcome]++;
  console.log(`${outcome}: ${name}${why && (outcome === 'skipped' ? ` (${why})` : `\n${why}`)}`);
}
console.log(`${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`);
process.exitCode = count.failed ? 1 : 0;
