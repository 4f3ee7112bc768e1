// Checks what the header promises to a program that includes it, and what the house rules ask of it.
// The last line counts: "N passed, N failed, N skipped". Run it by `make header`.
//
//   node tests/build/run.mjs [WORD...]     only the checks whose names hold one of the words
//
// HEADER=file takes another header than claude-openai.hpp (to try the checks themselves).

import { execFile, spawn } from 'node:child_process';
import { appendFileSync, cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { functions_of, sections_of, tokens_of } from './header.mjs';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
const header_path = resolve(process.env.HEADER ?? join(root, 'claude-openai.hpp'));
const header_folder = dirname(header_path);
const header_name = header_path.slice(header_folder.length + 1);
const scratch = join(root, 'build/header-tests');
rmSync(scratch, { recursive: true, force: true });
mkdirSync(scratch, { recursive: true });

const header = readFileSync(header_path, 'utf8');
const { prologue, sections, epilogue, problems } = sections_of(header);
const header_version = /^#define CLAUDE_OPENAI_VERSION "(.*)"$/m.exec(header)[1];

// ---- running programs ---------------------------------------------------------------------------

// { code, out, err }; a program that is not there has the code ENOENT.
const run = (command, args, options = {}) =>
  new Promise((done) => {
    const limits = { maxBuffer: 1 << 28, timeout: 900_000, cwd: scratch, ...options };
    execFile(command, args, limits, (error, out, err) => done({ code: error ? (error.code ?? error.signal) : 0, out, err }));
  });

const words = (text) => text.split(/\s+/).filter(Boolean);

async function pkg_config(what) {
  if (process.env.HTTPLIB_INCLUDE) return what === '--cflags' ? ['-isystem', process.env.HTTPLIB_INCLUDE] : [];
  const found = [];
  for (const name of ['cpp-httplib', 'nlohmann_json', 'CLI11']) {
    const { code, out } = await run('pkg-config', [what, name]);
    if (code === 0) found.push(...words(out));
  }
  for (const [name, ...macro] of [['sqlite3', 'SQLITE'], ['hiredis_ssl'], ['hiredis', 'REDIS']]) {
    const { code, out } = await run('pkg-config', [what, name]);
    if (code === 0) found.push(...words(out), ...(what === '--cflags' ? macro.map((one) => `-DCLAUDE_OPENAI_${one}`) : []));
  }
  return found;
}

const cxx = process.env.CXX || 'g++';
const cflags = ['-pthread', ...(await pkg_config('--cflags')), ...words(process.env.CPPFLAGS ?? '')];
const libs = [...(await pkg_config('--libs')), ...(cflags.join(' ').includes('OPENSSL_SUPPORT') ? ['-lssl', '-lcrypto'] : [])];
const include = ['-I', header_folder];
const warnings = ['-Wall', '-Wextra', '-Wpedantic', '-Wconversion', '-Wshadow', '-Werror'];

function file(name, text) {
  const path = join(scratch, name);
  writeFileSync(path, text);
  return path;
}

async function compile(compiler, args) {
  const { code, out, err } = await run(compiler, args);
  if (code === 'ENOENT') return skip(`${compiler} is not here`);
  if (code !== 0) throw new Error(head(err || out || `${compiler} ended with ${code}`));
}

const head = (text, lines = 25) => text.split('\n').slice(0, lines).join('\n');

// ---- checks -------------------------------------------------------------------------------------

const checks = [];
const check = (name, body) => checks.push({ name, body });
class skipped extends Error {}
const skip = (why) => {
  throw new skipped(why);
};
const is = (got, wanted) => {
  if (`${got}` !== `${wanted}`) throw new Error(`${got}\nnot ${wanted}`);
};
const none = (list, what) => {
  if (list.length) throw new Error(`${what}:\n  ${list.slice(0, 25).join('\n  ')}`);
};

check('two translation units link, and the program runs', async () => {
  const use = `#include "${header_name}"\n`;
  const one = file('one.cpp', `${use}const char* other();\nint main() { return other() == nullptr; }\n`);
  const two = file('two.cpp', `${use}const char* other();\nconst char* other() { return CLAUDE_OPENAI_VERSION; }\n`);
  const program = join(scratch, 'two_units');
  // Without optimization, so that what is not inline is really there twice.
  await compile(cxx, ['-std=c++17', '-O0', ...cflags, ...include, one, two, '-o', program, ...libs]);
  const { code, err } = await run(program, []);
  if (code !== 0) throw new Error(`the program ended with ${code}: ${head(err)}`);
});

const done = async (command, args, options) => {
  const { code, out, err } = await run(command, args, options);
  if (code === 'ENOENT') skip(`${command} is not here`);
  if (code !== 0) throw new Error(`${command} ${args.join(' ')}: ${head(err || out)}`);
  return out;
};

const use_installed = file('use_installed.cpp', '#include <claude-openai.hpp>\nint main() { return claude_openai::options().port == 8000 ? 0 : 1; }\n');
const installed = join(scratch, 'installed');
let install;
const installing = () =>
  (install ??= (async () => {
    await done('cmake', ['-S', root, '-B', join(scratch, 'cmake'), `-DCMAKE_INSTALL_PREFIX=${installed}`]);
    await done('cmake', ['--install', join(scratch, 'cmake')]);
  })());

for (const [how, finds] of Object.entries({
  'find_package': `find_package(claude_openai ${header_version.replace(/^(0\.\d+|\d+).*/, '$1')} REQUIRED)`,
  'FetchContent': `include(FetchContent)\nFetchContent_Declare(claude_openai SOURCE_DIR "${root}")\nFetchContent_MakeAvailable(claude_openai)`,
}))
  check(`a project of CMake's builds with the header by ${how}`, async () => {
    await installing();
    const [source, build] = ['source', 'build'].map((what) => join(scratch, `${how} ${what}`));
    mkdirSync(source);
    const lines = [
      'cmake_minimum_required(VERSION 3.16)', 'project(consumer LANGUAGES CXX)', finds,
      `add_executable(consumer "${use_installed}")`, 'target_link_libraries(consumer PRIVATE claude_openai::claude_openai)',
    ];
    writeFileSync(join(source, 'CMakeLists.txt'), lines.join('\n') + '\n');
    await done('cmake', ['-S', source, '-B', build, `-DCMAKE_PREFIX_PATH=${installed}`]);
    await done('cmake', ['--build', build]);
    await done(join(build, 'consumer'), []);
  });

check('pkg-config knows the installed header, of the version that it says', async () => {
  await installing();
  const env = { ...process.env, PKG_CONFIG_PATH: join(installed, 'share/pkgconfig') };
  const version = (await done('pkg-config', ['--modversion', 'claude-openai'], { env })).trim();
  if (version !== header_version) throw new Error(`it says ${version}`);
  const program = join(scratch, 'by_pkg_config');
  const flags = words(await done('pkg-config', ['--cflags', '--libs', 'claude-openai'], { env }));
  await done(cxx, ['-std=c++17', use_installed, '-o', program, ...flags]);
  await done(program, []);
});

check('leaks no macro but CLAUDE_OPENAI_*', async () => {
  const directives = prologue.split('\n').filter((line) => /^\s*#\s*(include|if|el|endif)/.test(line));
  const guard = directives.findIndex((line) => /^\s*#\s*ifndef/.test(line));
  if (guard >= 0) directives.splice(guard, 1);
  const macros = async (name, text) => {
    const { code, out, err } = await run(cxx, ['-std=c++17', ...cflags, ...include, '-E', '-dM', file(name, text)]);
    if (code !== 0) throw new Error(head(err));
    return out.split('\n').filter(Boolean).map((line) => /^#define (\w+)/.exec(line)[1]);
  };
  const before = new Set(await macros('includes.cpp', directives.join('\n') + '\n'));
  const after = await macros('header.cpp', `#include "${header_name}"\n`);
  none(after.filter((name) => !before.has(name) && !name.startsWith('CLAUDE_OPENAI_')), 'leaked');
});

const stricter = {
  'g++': ['-Wold-style-cast', '-Wnon-virtual-dtor', '-Woverloaded-virtual', '-Wsign-conversion', '-Wextra-semi'],
};
// The last two together: a switch over an enum names every value and has no default.
stricter['clang++'] = [...stricter['g++'], '-Wcovered-switch-default', '-Wswitch-enum'];

const consumer = file('consumer.cpp', `#include "${header_name}"\nint main() {}\n`);
// Debian 12 has no g++ 14, which finds more than its own.
check('no warning from g++ 14 in main.cpp', async () => {
  const newest = await run('g++-14', ['--version']).then(({ code }) => code === 0, () => false);
  if (!newest) skip('there is no g++-14');
  await compile('g++-14', ['-std=c++17', '-fsyntax-only', ...warnings, ...cflags, ...include, join(root, 'main.cpp')]);
});

for (const compiler of ['g++', 'clang++']) {
  for (const standard of ['c++17', 'c++20']) {
    check(`no warning from ${compiler} in ${standard}`, () =>
      compile(compiler, [`-std=${standard}`, '-fsyntax-only', ...warnings, ...cflags, ...include, consumer]));
  }
  check(`no warning from ${compiler} for a consumer with stricter flags`, () =>
    compile(compiler, ['-std=c++17', '-fsyntax-only', ...warnings, ...stricter[compiler], ...cflags, ...include, consumer]));
}

// Between two calls another thread may start a child, which would inherit the descriptor.
check('no descriptor is made close-on-exec by a second call where the system can do it in one', async () => {
  if (process.platform !== 'linux') skip('only Linux is known to have accept4, pipe2 and SOCK_CLOEXEC');
  const lines = ['#include <fcntl.h>', '#undef FD_CLOEXEC', '#define FD_CLOEXEC by_a_second_call', `#include "${header_name}"`];
  const source = file('close_on_exec.cpp', lines.join('\n') + '\n');
  const { code, out, err } = await run(cxx, ['-std=c++17', '-E', '-P', ...cflags, ...include, source]);
  if (code !== 0) throw new Error(head(err));
  const own = out.slice(out.indexOf('namespace claude_openai')).split('\n');
  none(own.filter((line) => line.includes('by_a_second_call')), 'these lines do');
});

check('no warning from g++ without OpenSSL, where clients have names at random and no session is stored', () => {
  const without = cflags.filter((flag) => !flag.includes('OPENSSL'));
  return compile('g++', ['-std=c++17', '-fsyntax-only', ...warnings, ...without, ...include, consumer]);
});

check('without SQLite and hiredis nothing needs a symbol of theirs, --version says what is missing, and --store and --session-dir are refused', async () => {
  const without = cflags.filter((flag) => !/^-DCLAUDE_OPENAI_(SQLITE|REDIS)$/.test(flag));
  const program = join(scratch, 'without_sqlite');
  const linked = libs.filter((flag) => flag !== '-lsqlite3' && !flag.startsWith('-lhiredis'));
  const args = ['-std=c++17', '-O0', ...warnings, ...without, ...include, join(root, 'main.cpp'), '-o', program, ...linked];
  await compile(cxx, args);
  const symbols = await run('nm', ['-C', program]);
  none(symbols.out.split('\n').filter((line) => /sqlite|redis[A-Z]/.test(line)), 'a symbol');
  is((await done(program, ['--version'])).split('\n')[2], 'Store: none, so no --store and no --session-dir; a build with SQLite and OpenSSL has it');
  const state = join(scratch, 'state');
  for (const [flag, value, needs] of [['--store', state, 'SQLite'], ['--session-dir', state, 'SQLite'], ['--store', 'redis://:secret@h', 'hiredis']]) {
    const { code, out, err } = await run(program, [flag, value, '--port', '0', '--no-prompt']);
    const text = out + err;
    if (code !== 2 || !new RegExp(`needs? a build with ${needs}`).test(text) || text.includes('secret')) throw new Error(`${flag}: ${code} ${text}`);
  }
});

for (const [with_, flag, library] of [['SQLite alone', 'REDIS', 'hiredis'], ['hiredis alone', 'SQLITE', 'sqlite3']])
  check(`no warning from g++ with ${with_} of the stores`, async () => {
    const without = cflags.filter((one) => one !== `-DCLAUDE_OPENAI_${flag}`);
    if (without.length === cflags.length) skip(`${library} is not here`);
    await compile('g++', ['-std=c++17', '-fsyntax-only', ...warnings, ...without, ...include, consumer]);
  });

check('main.cpp compiles with a header-only cpp-httplib', async () => {
  const folder = process.env.HTTPLIB_INCLUDE;
  if (!folder) skip('HTTPLIB_INCLUDE is not set');
  if (!existsSync(join(root, 'main.cpp'))) skip('there is no main.cpp');
  await compile(cxx, ['-std=c++17', '-fsyntax-only', ...warnings, ...cflags, ...include, join(root, 'main.cpp')]);
});

// A path is left out of the image's build when a line of .dockerignore matches it or a folder above it.
check('.dockerignore keeps secrets, tests and build products out of the image, and nothing that the build needs', () => {
  const lines = readFileSync(join(root, '.dockerignore'), 'utf8').split('\n').filter((line) => line && !line.startsWith('#'));
  const one = (line) => line.replace(/[.+]/g, '\\$&').replaceAll('**/', '(?:.*/)?').replaceAll(/(?<![.)])\*/g, '[^/]*');
  const ignored = new RegExp(`^(?:${lines.map(one).join('|')})(?:/|$)`);
  const secrets = ['.env', '.env.local', 'packaging/.env', 'cert.pem', 'tls/server.key', '.git/config', 'tests/run', 'build/x', 'packaging/cli/node_modules/x'];
  const needed = ['Makefile', '.ci/deps', 'main.cpp', 'claude-openai.hpp', ...readdirSync(join(root, 'packaging')).map((name) => `packaging/${name}`)];
  none(secrets.filter((path) => !ignored.test(path)), 'not ignored');
  none(needed.filter((path) => ignored.test(path)), 'ignored');
});

check('the CLI that `make run` and the image install is pinned by checksums, for every platform', () => {
  const read = (path) => readFileSync(join(root, path), 'utf8');
  const { packages } = JSON.parse(read('packaging/cli/package-lock.json'));
  const cli = packages['node_modules/@anthropic-ai/claude-code'];
  const wanted = ['@anthropic-ai/claude-code', ...Object.keys(cli.optionalDependencies)];
  const pinned = (name) => /^sha512-/.test(packages[`node_modules/${name}`]?.integrity);
  none(wanted.filter((name) => !pinned(name)), 'without a checksum');
  none(Object.keys(packages).filter((path) => packages[path].resolved), 'names a registry');
  const tested = JSON.parse(read('tests/e2e/package.json')).dependencies;
  if (!Object.values(tested).includes(`npm:@anthropic-ai/claude-code@${cli.version}`)) throw new Error(`${cli.version} is not tested`);
  const image = read('packaging/Dockerfile');
  if (!/^ARG BASE=debian:[a-z]+-\d{8}-slim@sha256:[0-9a-f]{64}$/m.test(image)) throw new Error('the base image is not pinned');
  none(image.match(/^FROM (?!\$\{BASE\}).*$/gm) ?? [], 'another base image');
  none([image, read('Makefile')].flatMap((text) => text.match(/npm install.*claude-code.*@\S+/g) ?? []), 'past the lock file');
});

check('.ci/deps says what it will install before anything is called as root', async () => {
  const folder = join(scratch, 'no_packages');
  mkdirSync(folder, { recursive: true });
  const stub = (name, script) => writeFileSync(join(folder, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  stub('id', 'echo 1000');
  stub('uname', 'echo Linux');
  stub('apt-get', 'exit 1');
  stub('sudo', 'echo "as root: $*"');
  const { code, out, err } = await run('/bin/sh', [join(root, '.ci/deps'), 'tidy', 'format'], { env: { PATH: folder } });
  const [first, second] = out.split('\n');
  if (code !== 0 || first !== 'Missing packages, now installed by sudo apt-get: clang-tidy clang-format') throw new Error(out + err);
  if (second !== 'as root: apt-get update -qq') throw new Error(out);
});

// ---- sections -----------------------------------------------------------------------------------

check('the banners are well formed', () => none(problems, 'in the header'));

check('sections are numbered from 01 and have names of their own', () => {
  none(sections.filter((section, i) => Number(section.number) !== i + 1).map((section) => section.number + ' ' + section.name), 'out of order');
  const names = sections.map((section) => section.name);
  none(names.filter((name, i) => names.indexOf(name) !== i), 'twice');
});

check('the table of contents lists the sections in their order', () => {
  const list = (rows) => rows.map(({ number, name }) => `[${number}] ${name}`);
  const contents = [...prologue.matchAll(/\[(\d\d)\] ([a-z_]+)/g)].map(([, number, name]) => ({ number, name }));
  const [said, there] = [list(contents), list(sections)];
  none(said.filter((row) => !there.includes(row)), 'in the table only');
  none(there.filter((row) => !said.includes(row)), 'not in the table');
  if (said.join() !== there.join()) throw new Error(`the table has another order: ${said.join(' ')}`);
});

check('a section uses only sections above it', () => {
  const wrong = [];
  sections.forEach((section, i) => {
    const above = sections.slice(0, i).map((other) => other.name);
    for (const name of section.uses) if (!above.includes(name)) wrong.push(`${section.name} uses ${name}`);
  });
  none(wrong, 'not above');
});

check('every include stands before the first section', () => {
  const wrong = sections.filter((section) => /^\s*#\s*include/m.test(section.text));
  none(wrong.map((section) => section.name), 'include something');
});

// The section's own sections, and theirs, in order.
function closure(section, into = new Set()) {
  for (const name of section.uses) {
    const other = sections.find((candidate) => candidate.name === name);
    if (other && !into.has(other)) closure(other, into.add(other));
  }
  return sections.filter((other) => into.has(other));
}

// The includes are compiled once. Kept out of it is the guard, so the rest can follow in the unit.
const is_directive = (line) => /^\s*#/.test(line);
const guard_name = /^\s*#\s*ifndef\s+(\w+)/m.exec(prologue)?.[1];
const includes = prologue.split('\n')
  .filter((line) => is_directive(line) && !new RegExp(`^\\s*#\\s*(ifndef|define)\\s+${guard_name}\\b`).test(line));
const opening = prologue.split('\n').filter((line) => !is_directive(line)).join('\n') + '\n';
const closing = epilogue.replace(/^#endif.*$/m, '');
const precompiled = file('prologue.hpp', includes.join('\n') + '\n');
let precompile;

// A unit that holds of the sections above this one just those that it names, and this one, proves it: the last such unit is compiled.
sections.forEach((section, at) => {
  const above = closure(section).length;
  const holds = (other) => other.includes(section) && other.filter((one) => sections.indexOf(one) < at).length === above;
  section.unit = sections.findLast((other) => holds([...closure(other), other]));
});

const compiled_first = [...sections].sort((a, b) => (b.unit === b) - (a.unit === a)); // the rest wait for these
for (const { name, unit } of compiled_first) {
  check(`section ${name} compiles with only the sections it names`, async () => {
    precompile ??= compile(cxx, ['-std=c++17', ...cflags, '-x', 'c++-header', precompiled, '-o', precompiled + '.gch']);
    await precompile;
    const parts = [...closure(unit), unit].map((part) => part.text);
    const text = ['#include "prologue.hpp"\n', opening, ...parts, closing].join('');
    unit.compiled ??= compile(cxx, ['-std=c++17', '-fsyntax-only', ...cflags, file(`section_${unit.name}.cpp`, text)]);
    await unit.compiled;
  });
}

// ---- house rules --------------------------------------------------------------------------------

// The routes and all above them see neither its requests nor its responses.
check('only sections connection and http name httplib', () => {
  const wrong = [];
  for (const section of sections) {
    if (['connection', 'http'].includes(section.name)) continue;
    for (const token of tokens_of(section.text)) {
      if (token.text === 'httplib') wrong.push(`${section.name}, line ${section.line + token.line - 1}`);
    }
  }
  none(wrong, 'named');
});

// nlohmann's values are copied and written by recursion: text of any depth would overflow the stack.
check('JSON is parsed within bounds everywhere: only section json_access calls the parser itself', () => {
  const rest = sections.filter(({ name }) => name !== 'json_access').map(({ name, text }) => [name, text]);
  const wrong = [...rest, ['main.cpp', readFileSync(join(root, 'main.cpp'), 'utf8')]].flatMap(([name, text]) => {
    const tokens = tokens_of(text);
    const parses = (_, i) => tokens.slice(i, i + 3).map((token) => token.text).join('') === 'json::parse';
    return tokens.filter(parses).map(() => name);
  });
  none(wrong, 'sections that do');
});

// Calls of the operating system. The short names are common words, so only `::name(` counts for them.
const POSIX = `fork vfork posix_spawn posix_spawnp execv execve execvp pipe pipe2 dup2 dup3 fcntl waitpid
  waitid setpgid getpgid killpg prctl sigaction pidfd_open syscall ppoll epoll_create1 epoll_wait
  eventfd socketpair mkdtemp setsockopt getsockname getaddrinfo getenv sysconf`.split(/\s+/);
const POSIX_SHORT = 'poll kill read write open close select wait send recv socket bind listen accept connect unlink rmdir'.split(' ');
const POSIX_SECTIONS = ['process', 'transport', 'connection'];
// Elsewhere, with the reason.
const POSIX_EXCEPTIONS = {
  pool: ['poll'],             // the janitor waits for its spares and for its wake-up
  store: ['open', 'fcntl', 'poll'],   // the file that SQLite gets is made for this user alone; no child inherits the socket to Redis, and TLS does not block it
  sessions: ['open', 'unlink'],  // the salt; a session's file of an older version
  engine: ['poll'],           // a turn waits for the process and the client's socket at once
  status: ['poll'],           // the probe waits for the first answer of a CLI
  agents: ['poll', 'open'],   // the trial of an MCP server; the file with those of an agent
  demo: ['poll', 'read'],     // it reads lines while it answers
  doctor: ['unlink'],         // the trial of the unix socket
  server: ['poll', 'accept', 'accept4', 'fcntl', 'unlink'],  // the accept loop; the socket's file
};

check('only sections process, transport and connection call the operating system', () => {
  const wrong = [];
  for (const section of sections) {
    if (POSIX_SECTIONS.includes(section.name)) continue;
    const tokens = tokens_of(section.text);
    tokens.forEach((token, i) => {
      if (tokens[i + 1]?.text !== '(' || ['.', '->'].includes(tokens[i - 1]?.text)) return;
      const before = tokens[i - 2];
      const global = tokens[i - 1]?.text === '::' && (before?.kind !== 'word' || before.text === 'return');
      if (!POSIX.includes(token.text) && !(global && POSIX_SHORT.includes(token.text))) return;
      if (POSIX_EXCEPTIONS[section.name]?.includes(token.text)) return;
      wrong.push(`${token.text}( in ${section.name}, line ${section.line + token.line - 1}`);
    });
  }
  none(wrong, 'calls');
});

const lines = header.split('\n');

check('make run, make doctor and make login find their programs in a folder whose name has a blank', async () => {
  const folder = join(scratch, 'my checkout');
  const cli_version = JSON.parse(readFileSync(join(root, 'packaging/cli/package.json'), 'utf8')).dependencies['@anthropic-ai/claude-code'];
  const cli = `build/cli/${cli_version}/node_modules/@anthropic-ai/claude-code/bin/claude.exe`;
  const program = (path, script) => {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  };
  cpSync(join(root, 'packaging'), join(folder, 'packaging'), { recursive: true });
  cpSync(join(root, 'Makefile'), join(folder, 'Makefile'));
  program('.ci/deps', 'exit 0');
  program('build/claude-openai', 'echo "$# $*: $CLAUDE_CLI_PATH"');
  program(cli, 'echo "claude $*"');
  program('tools/claude', 'echo "my claude $*"');
  const env = { PATH: '/usr/bin:/bin' };
  const built = ['-o', 'build/claude-openai', '-o', `build/cli/${cli_version}/installed`];
  for (const [goals, wanted, more] of [
    [['run', `ARGS=--cwd 'a b'`], `2 --cwd a b: ${join(folder, cli)}\n`],
    [['doctor'], `1 doctor: ${join(folder, cli)}\n`],
    [['login'], 'claude auth login\n'],
    [['login'], 'my claude auth login\n', { CLAUDE_CLI_PATH: join(folder, 'tools/claude') }],
  ]) {
    const { out, err } = await run('make', ['--no-print-directory', ...built, ...goals], { cwd: folder, env: { ...env, ...more } });
    if (out !== wanted) throw new Error(`${goals}: ${out}${err}`);
  }
});

check('make run starts what make dist has built from this commit, if its checksum is right, and compiles nothing then', async () => {
  const folder = join(scratch, 'a packed program');
  for (const path of ['.ci', 'packaging', 'Makefile', 'claude-openai.hpp']) cpSync(join(root, path), join(folder, path), { recursive: true });
  writeFileSync(join(folder, '.gitignore'), 'build\n');
  writeFileSync(join(folder, '.ci/deps'), '#!/bin/sh\n');
  const commit_all = async () => {
    const identity = ['-c', 'user.name=n', '-c', 'user.email=e@x', '-c', 'commit.gpgsign=false'];
    for (const command of [['add', '.'], [...identity, 'commit', '-q', '--allow-empty', '-m', 'one']]) await done('git', command, { cwd: folder });
    return (await done('git', ['rev-parse', 'HEAD'], { cwd: folder })).slice(0, 12);
  };
  await done('git', ['init', '-q', folder]);
  const name = `claude-openai-${header_version}-linux-${(await done('uname', ['-m'])).trim()}`;
  const dist = join(folder, 'build/dist');
  mkdirSync(join(dist, name), { recursive: true });
  const program = (path, of) => writeFileSync(path, `#!/bin/sh\n[ "$1" != --version ] || { echo "claude-openai 1 (commit ${of})"; exit; }\necho "$0 $*"\n`, { mode: 0o755 });
  const pack = async (of) => {
    program(join(dist, name, 'claude-openai'), of);
    await done('tar', ['-czf', `${name}.tar.gz`, name], { cwd: dist });
    writeFileSync(join(dist, 'SHA256SUMS'), await done('sha256sum', [`${name}.tar.gz`], { cwd: dist }));
  };
  program(join(folder, 'build/claude-openai'), 'compiled');
  const started = async () => {
    const { out, err } = await run('make', ['--no-print-directory', '-o', 'build/claude-openai', 'run', 'ARGS=9000'], { cwd: folder, env: { PATH: process.env.PATH, CLAUDE_CLI_PATH: '/bin/true' } });
    return out + err;
  };
  const [packed, compiled] = ['build/claude-openai-packed 9000\n', 'build/claude-openai 9000\n'];
  is(await started(), compiled);
  await pack(await commit_all());
  is(await started(), packed);
  appendFileSync(join(folder, 'Makefile'), '# edited\n');
  is(await started(), compiled);  // there is more than the commit
  await pack(await commit_all());
  is(await started(), packed);
  writeFileSync(join(dist, 'SHA256SUMS'), readFileSync(join(dist, 'SHA256SUMS'), 'utf8').replace(/^\w{8}/, '00000000'));
  is(await started(), compiled);
});

for (const prefix of ['/opt/proxy', '/opt/my proxy'])
check(`make install puts program, header and service files below the prefix ${prefix}, make uninstall takes them away`, async () => {
  const folder = join(scratch, `installed in${prefix.replaceAll('/', ' ')}`);
  const made = (...goals) => run('make', ['--no-print-directory', ...goals, `DESTDIR=${folder}`, `PREFIX=${prefix}`], { cwd: root });
  const { code, out, err } = await made('install');
  if (code !== 0) throw new Error(out + err);
  const at = (path) => join(folder, prefix, path);
  const version = await run(at('bin/claude-openai'), ['--version']);
  if (!/^claude-openai \d/.test(version.out)) throw new Error(version.out);
  if (readFileSync(at('include/claude-openai.hpp'), 'utf8') !== header) throw new Error('another header');
  const flags = (await run(at('bin/claude-openai'), ['--help'])).out.match(/^ {2}(?:-h,)?--[a-z-]+/gm).map((flag) => flag.replace(/.*--/, ''));
  if (flags.length < 40) throw new Error(`${flags}`);
  const shells = ['bash-completion/completions/claude-openai', 'zsh/site-functions/_claude-openai', 'fish/vendor_completions.d/claude-openai.fish'];
  for (const path of [...shells, 'man/man1/claude-openai.1']) {
    const text = readFileSync(at(`share/${path}`), 'utf8').replaceAll('\\-', '-');
    none(flags.filter((flag) => !new RegExp(`[- ]${flag}\\b`).test(text)), `not in ${path}`);
  }
  const units = ['share/systemd/user', 'lib/systemd/system'].map((place) => `${place}/claude-openai.service`);
  for (const path of [...units, 'share/claude-openai/claude-openai.plist']) {
    const text = readFileSync(at(path), 'utf8');
    if (!text.includes(`"${prefix}/bin/claude-openai"`) || text.includes('@PREFIX@')) throw new Error(text);
    // Else the system ends every `claude` with the proxy, and none of them finishes what it says.
    if (path.endsWith('.service') && !text.includes('\nKillMode=mixed\n')) throw new Error(text);
  }
  await made('uninstall');
  const left = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => !entry.isDirectory());
  none(left.map(({ name }) => name), 'left');
});

const proxy = process.env.PROXY ?? join(root, 'build/claude-openai');
const generated = async (what) => {
  const { code, out, err } = await run(proxy, ['generate', what], { env: { PATH: process.env.PATH } });
  if (code !== 0) throw new Error(out + err);
  return out;
};

check('a shell completes flags, their values, files, directories, and the commands with their own flags', async () => {
  const folder = join(scratch, 'complete');
  mkdirSync(join(folder, 'a folder'), { recursive: true });
  writeFileSync(join(folder, 'a file'), '');
  const scripts = {
    bash: '. "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _claude_openai; printf "%s\\n" "${COMPREPLY[@]}"',
    fish: 'source $argv[1]; complete -C (string join " " -- $argv[2..])',
  };
  const cases = [
    [['--log-l'], ['--log-level']],
    [['--log-format', ''], ['json', 'text']],
    [['--sandbox-network', '--log-format', 'j'], ['json']],
    [['--config', 'a'], ['a file', 'a folder']],
    [['--add-dir', 'a'], ['a folder']],
    [['--api-key', ''], []],
    [['doc'], ['doctor']],
    [['doctor', '--sec'], ['--security']],
    [['--sec'], []],
    [['connect', 'open'], ['open-webui', 'opencode']],
    [['connect', 'codex', '--wr'], ['--write']],
  ];
  for (const [shell, script] of Object.entries(scripts)) {
    if ((await run(shell, ['-c', 'true'])).code === 'ENOENT') continue;
    const path = file(`completion.${shell}`, await generated(shell));
    for (const [typed, wanted] of cases) {
      const { out, err } = await run(shell, ['-c', script, path, 'claude-openai', ...typed], { cwd: folder, env: { ...process.env, HOME: folder } });
      const offered = out.split('\n').map((line) => line.split('\t')[0].replace(/\\(?= )|\/$/g, '')).filter(Boolean).sort();
      if (err || `${offered}` !== `${wanted}`) throw new Error(`${shell}: ${typed}: ${offered}, not ${wanted}\n${err}`);
    }
  }
  const { code, err } = await run('zsh', ['-n', file('completion.zsh', await generated('zsh'))]);
  if (code !== 'ENOENT' && (code !== 0 || err)) throw new Error(`zsh: ${err}`);
});

check('man shows the manual without a warning', async () => {
  const { code, out, err } = await run('man', ['--warnings=w', '-l', file('claude-openai.1', await generated('man'))], { env: { ...process.env, MANWIDTH: '100' } });
  if (code === 'ENOENT') skip('man is not here');
  if (code !== 0 || err) throw new Error(err);
  for (const wanted of ['.env > ~/.config/claude-openai.env', '--permission-mode TEXT', 'EXIT STATUS'])
    if (!out.replace(/\s+/g, ' ').includes(wanted)) throw new Error(`without ${wanted}: ${out}`);
});

check('systemd takes the units, and finds that the one for a server shuts the proxy in', async () => {
  const prefix = join(scratch, 'a prefix');
  const folder = join(scratch, 'units');
  for (const place of [join(prefix, 'bin'), join(prefix, 'include'), folder]) mkdirSync(place, { recursive: true });
  writeFileSync(join(prefix, 'bin/claude-openai'), '#!/bin/sh\n', { mode: 0o755 });
  writeFileSync(join(prefix, 'include/claude-openai.hpp'), '');
  const analyze = async (...args) => {
    const { code, out, err } = await run('systemd-analyze', args, { env: { ...process.env, XDG_RUNTIME_DIR: scratch } });
    if (code === 'ENOENT') skip('systemd-analyze is not here');
    if (code !== 0 || err) throw new Error(`${args.join(' ')}: ${code}\n${head(err + out, 40)}`);
  };
  const unit = (source) => {
    const text = readFileSync(join(root, 'packaging', source), 'utf8').replaceAll('@PREFIX@', prefix);
    return file(`units/${source}`, text);
  };
  await analyze('--user', '--man=no', 'verify', unit('claude-openai.service'));
  const system = unit('claude-openai-system.service');
  await analyze('--man=no', 'verify', system);
  await analyze('security', '--offline=true', '--threshold=35', '--no-pager', system);  // 0 is best, 100 worst; bubblewrap needs a /proc without covers
});

check('no line is over 100 columns', () => {
  none(lines.flatMap((line, i) => ([...line].length > 100 ? [`line ${i + 1}: ${[...line].length}`] : [])), 'too long');
});

check('no tab and no space at a line end', () => {
  none(lines.flatMap((line, i) => (/\t|[ \r]$/.test(line) ? [`line ${i + 1}`] : [])), 'found');
});

// Lines of each section, some three in a hundred above what it had on 30 November 2026. Growth shall be noticed: whoever raises
// one has looked for what can go first.
const BUDGETS = {
  text: 260, errors: 100, json_access: 240, log: 190, options: 330, conversation: 490, fields: 600, events: 150, sse: 80,
  openai_chat: 760, anthropic_messages: 750, openai_responses: 830, openai_completions: 200, catalog: 310, ollama: 410,
  cli_protocol: 1_610, cli_command: 490, process: 610, claude_process: 740, pool: 1_140, store: 1_530, sessions: 630,
  responses: 420, engine: 620, agents: 1_010, demo: 740, guard: 200, limits: 320, metrics: 440, status: 280, http_head: 230,
  transport: 420, page: 1_680, connection: 370, routes: 1_220, http: 160, server: 630, doctor: 395,
};
check('each section of the header is within its budget', () => {
  none(sections.filter(({ name }) => !BUDGETS[name]).map(({ name }) => name), 'without a budget');
  const length = ({ text }) => text.split('\n').length;
  none(sections.filter((one) => length(one) > BUDGETS[one.name]).map((one) => `${one.name}: ${length(one)} lines`), 'over');
});

check('the header is under 21,520 lines', () => {
  if (lines.length >= 21_520) throw new Error(`${lines.length} lines`);
});

let functions;
function all_functions() {
  const of = (path) => functions_of(readFileSync(path, 'utf8')).map((one) => ({ ...one, file: path.slice(dirname(path).length + 1) }));
  const main = join(root, 'main.cpp');
  return (functions ??= [...of(header_path), ...(existsSync(main) ? of(main) : [])]);
}

// g++ takes it, and the sanitizers, which clang builds, stood still for it.
check('no test captures a structured binding, which clang refuses in C++17', () => {
  const tests = readdirSync(join(root, 'tests'), { recursive: true }).filter((name) => /^(unit|protocol|golden)\/.*pp$/.test(name));
  none(tests.flatMap((name) => {
    const bindings = readFileSync(join(root, 'tests', name), 'utf8').matchAll(/auto&{0,2} \[([^\]]+)\] :[^]*?\n  \}/g);
    return [...bindings].flatMap(([body, names]) => {
      const word = new RegExp(`\\b(CAPTURE|INFO)\\([^"\n]*\\b(${names.split(', ').join('|')})\\b`);
      return word.test(body) ? [`${name}: ${word.exec(body)[0]}`] : [];
    });
  }), 'captured');
});

check('no function is over 40 lines', () => {
  const wrong = all_functions().filter((one) => one.lines > 40);
  none(wrong.map((one) => `${one.file}:${one.line}: ${one.name} has ${one.lines} lines`), 'too long');
});

// The server is the sum of its parts: it has one member for each of them.
check('no class is over 400 lines or has over 14 members', () => {
  const wrong = [];
  lines.forEach((line, at) => {
    const name = /^(?:class|struct) (\w+)[^;]*\{$/.exec(line)?.[1];
    if (!name) return;
    const body = lines.slice(at, lines.indexOf('};', at) + 1);
    const members = body.filter((one) => /^  (?!return|static|\/)[^()=]*[\w>] \w+_(?: =.*|\{.*\})?;/.test(one)).length;
    if (body.length > 400 || members > (name === 'server' ? 22 : 14)) wrong.push(`${name}: ${body.length} lines, ${members} members`);
  });
  none(wrong, 'too large');
});

// Words that stand for a noun, so that nobody can search for what is meant. The page has words of its own.
const words_at_most = { told: 25, said: 20, whoever: 5, 'what is asked': 0, 'longest_\\w+': 0, 'most_\\w+': 0 };
check(`few vague words: ${Object.keys(words_at_most).join(', ')}`, () => {
  const page = sections.find(({ name }) => name === 'page');
  const code = header.replace(header.slice(...[page.number, Number(page.number) + 1].map((n) => header.indexOf(`\n// [${n}] `))), '');
  none(Object.entries(words_at_most).flatMap(([word, most]) => {
    const found = code.match(new RegExp(`\\b${word}\\b`, 'gi'))?.length ?? 0;
    return found > most ? [`${word}: ${found}, at most ${most}`] : [];
  }), 'too many');
});

check('no function nests over 3 deep', () => {
  const wrong = all_functions().filter((one) => one.nesting > 3);
  none(wrong.map((one) => `${one.file}:${one.line}: ${one.name} is ${one.nesting} deep`), 'too deep');
});


// ---- the forge, and packages --------------------------------------------------------------------

const text_of = (path) => readFileSync(join(root, path), 'utf8');
const forge_files = readdirSync(join(root, '.github'), { recursive: true }).filter((name) => /\.(yml|md)$/.test(name)).map((name) => `.github/${name}`);
const workflows = forge_files.filter((path) => path.startsWith('.github/workflows/'));
const forms = forge_files.filter((path) => path.startsWith('.github/ISSUE_TEMPLATE/'));

// By Python's parser, as JSON: { path: content }.
let parsed;
const yaml_files = () => (parsed ??= (async () => {
  const script = 'import json, sys, yaml\nprint(json.dumps({path: yaml.load(open(path), yaml.BaseLoader) for path in sys.argv[1:]}))';
  const { code, out, err } = await run('python3', ['-c', script, ...forge_files.filter((path) => path.endsWith('.yml'))], { cwd: root });
  if (code === 'ENOENT' || /No module named 'yaml'/.test(err)) skip('python3 with yaml is not here');
  if (code !== 0) throw new Error(err);
  return JSON.parse(out);
})());

check('every YAML file of the forge parses, and a shell takes each step of the workflows', async () => {
  const files = await yaml_files();
  const jobs = workflows.flatMap((path) => Object.entries(files[path].jobs).map(([name, job]) => ({ name: `${path}: ${name}`, ...job })));
  const steps = jobs.flatMap(({ name, steps }) => steps.filter((step) => step.run).map((step) => ({ name, script: step.run })));
  if (steps.length < 10) throw new Error(`${steps.length} steps`);
  for (const { name, script } of steps) {
    const { code, err } = await run('bash', ['-n', '-c', script.replace(/\$\{\{.*?\}\}/g, 'value')]);
    if (code !== 0) throw new Error(`${name}: ${script}\n${err}`);
  }
  none(jobs.filter((job) => !job['timeout-minutes']).map(({ name }) => name), 'without a time limit');
});

check('workflows may read only, but for the release, and pin every action by its commit', async () => {
  const files = await yaml_files();
  none(workflows.filter((path) => JSON.stringify(files[path].permissions) !== '{"contents":"read"}'), 'may do more');
  const more = workflows.flatMap((path) => Object.entries(files[path].jobs).filter(([, job]) => job.permissions).map(([name]) => `${path}: ${name}`));
  if (`${more}` !== '.github/workflows/release.yml: release') throw new Error(`jobs with more permissions: ${more}`);
  const used = workflows.flatMap((path) => text_of(path).match(/uses: .*/g));
  none(used.filter((line) => !/^uses: [\w-]+\/[\w-]+@[0-9a-f]{40} # v[\d.]+$/.test(line)), 'not pinned');
  none(workflows.filter((path) => /pull_request_target|secrets\./.test(text_of(path))), 'gives strangers more than they need');
});

check('workflows, forms and .github/CONTRIBUTING.md name only targets, files and commands that exist', () => {
  const targets = [...text_of('Makefile').matchAll(/^([a-z][\w/ -]*):(?!=)/gm)].flatMap(([, names]) => words(names));
  const main = text_of('main.cpp');
  const values = (text, name) => [...text.matchAll(new RegExp(`\\b${name}: (?:\\[([^\\]]*)\\]|([^,}\\n]+))`, 'g'))].map(([, list, one]) => list?.replaceAll(/, */g, ' ') ?? one);
  const wrong = forge_files.flatMap((path) => {
    const text = text_of(path).replace(/\$\{\{ matrix\.(\w+) \}\}/g, (_, name) => values(text_of(path), name).join(' '));
    const made = [...text.matchAll(/(?:^ *|`|run: |name: |&& )g?make((?: [a-z][\w/-]*)+)/gm)].flatMap(([, names]) => words(names));
    const named = text.match(/(?<![\w/.-])(?:\.ci|\.github|docs|packaging|tests)\/[\w./-]*\w/g) ?? [];
    const commands = [...text.matchAll(/`claude-openai ([a-z]+)/g)].map(([, name]) => name);
    const flags = forms.includes(path) ? text.match(/(?<=[ `])--[a-z][a-z-]+/g) ?? [] : [];
    return [
      ...made.filter((name) => !targets.includes(name)).map((name) => `make ${name}`),
      ...named.filter((name) => !existsSync(join(root, name))),
      ...commands.filter((name) => !new RegExp(`add_subcommand\\(\\s*"${name}"`).test(main)),
      ...flags.filter((flag) => !main.includes(`"${flag}`)),
    ].map((what) => `${path}: ${what}`);
  });
  none(wrong, 'not there');
  for (const form of ['bug', 'client'])
    if (!text_of(`.github/ISSUE_TEMPLATE/${form}.yml`).includes('`claude-openai doctor`')) throw new Error(`${form}.yml does not ask for doctor's output`);
});

check('Dependabot looks where there is something to renew', async () => {
  const { updates } = (await yaml_files())['.github/dependabot.yml'];
  const manifests = { 'github-actions': '.github/workflows/ci.yml', npm: 'package.json', pip: 'newest.txt', gomod: 'go.mod', cargo: 'Cargo.toml', maven: 'pom.xml' };
  none(Object.keys(manifests).filter((kind) => !updates.some((one) => one['package-ecosystem'] === kind)), 'without updates');
  const looked_at = updates.flatMap((one) => [join(one.directory, manifests[one['package-ecosystem']]), ...(one['exclude-paths'] ?? [])]);
  none(looked_at.filter((path) => !existsSync(join(root, path))), 'not there');
});

check('the top level holds header, main.cpp, Makefile, README and tests; beside them docs, packaging, CMakeLists.txt, LICENSE and dot files', async () => {
  if (!existsSync(join(root, '.git'))) skip('there is no repository');
  const names = (await done('git', ['ls-files', '-z'], { cwd: root })).split('\0').map((path) => path.split('/')[0]);
  is([...new Set(names)].filter((name) => name && !name.startsWith('.')).sort(), ['CMakeLists.txt', 'LICENSE', 'Makefile', 'README.md', 'claude-openai.hpp', 'docs', 'main.cpp', 'packaging', 'tests']);
});

// Files that must name it themselves.
check('each file that names the version has the header\'s, and `make version` writes it there', async () => {
  const patterns = {
    'packaging/claude-openai.rb': /\/download\/v(.*)\/claude-openai-\1\.tar\.gz"/,
    'packaging/PKGBUILD': /^pkgver=(.*)$/m,
    'packaging/flake.nix': /^ *version = "(.*)";$/m,
    'packaging/claude-openai.pc': /^Version: (.*)$/m,
    'packaging/npm/package.json': /^  "version": "(.*)",$/m,
  };
  const wrong = (folder, version) => Object.entries(patterns)
    .filter(([path, pattern]) => pattern.exec(readFileSync(join(folder, path), 'utf8'))?.[1] !== version).map(([path]) => path);
  none(wrong(root, header_version), `not ${header_version}`);
  if (!new RegExp(`^## \\[${header_version}\\] - \\d{4}-\\d\\d-\\d\\d$`, 'm').test(text_of('docs/changelog.md'))) throw new Error(`docs/changelog.md has no ${header_version}`);

  const folder = join(scratch, 'a later version');
  for (const path of ['.ci', 'packaging', 'Makefile']) cpSync(join(root, path), join(folder, path), { recursive: true });
  writeFileSync(join(folder, 'claude-openai.hpp'), header.replace(`VERSION "${header_version}"`, 'VERSION "12.3.40"'));
  await done('make', ['--no-print-directory', 'version'], { cwd: folder });
  none(wrong(folder, '12.3.40'), 'not written');
  if (!readFileSync(join(folder, 'claude-openai.hpp'), 'utf8').includes('\n#define CLAUDE_OPENAI_VERSION_NUMBER 120340  //')) throw new Error('another number');
});

check('--version names version, commit, TLS, SQLite, and the oldest and the newest CLI that the end-to-end tests run with', async () => {
  const tested = Object.values(JSON.parse(text_of('tests/e2e/package.json')).dependencies).flatMap((one) => /claude-code@(.*)/.exec(one)?.[1] ?? []);
  tested.sort((one, other) => one.localeCompare(other, 'en', { numeric: true }));
  const [first, tls, store, clis] = (await done(proxy, ['--version'])).split('\n');
  if (!/^claude-openai (\S+) \(commit (?:unknown|[0-9a-f]{12}(?:-dirty)?)\)$/.test(first) || !first.includes(` ${header_version} `)) throw new Error(first);
  if (!/^TLS: (?:OpenSSL \d|none, )/.test(tls)) throw new Error(tls);
  if (!/^Store: (?:SQLite 3\.\d|none, )/.test(store)) throw new Error(store);
  is(clis, `Claude Code: tested with ${tested[0]} to ${tested.at(-1)}`);
});

check('a new commit compiles commit.o alone, and sources without a repository of their own have none', async () => {
  const folder = join(scratch, 'a commit');
  mkdirSync(join(folder, 'build/obj'), { recursive: true });
  cpSync(join(root, 'Makefile'), join(folder, 'Makefile'));
  cpSync(join(root, '.ci'), join(folder, '.ci'), { recursive: true });
  for (const name of ['main.cpp', '.gitignore']) writeFileSync(join(folder, name), name === 'main.cpp' ? 'extern const char claude_openai_commit[];\n#include <cstdio>\nint main() { std::puts(claude_openai_commit); }\n' : 'build\n');
  const built = async () => {
    const out = await done('make', ['--no-print-directory', 'build/claude-openai', 'cflags=', 'libs='], { cwd: folder });
    return [out.includes('c++  main.cpp (takes about a minute)\n'), (await done(join(folder, 'build/claude-openai'), [])).trim()];
  };
  const commit = async () => {
    const identity = ['-c', 'user.name=n', '-c', 'user.email=e@x', '-c', 'commit.gpgsign=false'];
    await done('git', [...identity, 'commit', '-q', '--allow-empty', '-m', 'one'], { cwd: folder });
    return (await done('git', ['rev-parse', 'HEAD'], { cwd: folder })).slice(0, 12);
  };
  is(await built(), [true, 'unknown']);
  await done('git', ['init', '-q'], { cwd: folder });
  await done('git', ['add', '.'], { cwd: folder });
  is(await built().then(([main]) => main), false);
  const first = await commit();
  is(await built(), [false, first]);
  const second = await commit();
  is(await built(), [false, second]);
  writeFileSync(join(folder, '.gitignore'), 'build/\n');
  is(await built(), [false, `${second}-dirty`]);
});

for (const [tool, flag, path] of [['ruby', '-c', 'packaging/claude-openai.rb'], ['bash', '-n', 'packaging/PKGBUILD'], ['nix-instantiate', '--parse', 'packaging/flake.nix']])
  check(`${tool} takes ${path}`, () => done(tool, [flag, join(root, path)]));

check('make links with LDLIBS, after what needs them', async () => {
  const { out, err } = await run('make', ['-n', '-W', 'main.cpp', 'build/claude-openai', 'LDLIBS=-lone -ltwo'], { cwd: root });
  if (!/ -o build\/claude-openai build\/obj\/main\.o .*-lone -ltwo$/m.test(out)) throw new Error(head(out + err));
});

const machines = ['x86_64', 'aarch64'];
const files_below = async (command, args) => (await done(command, args)).split('\n').filter((path) => /[^/]$/.test(path)).sort();
// A project's folder with programs that print their arguments, as `.ci/release programs` would have left real ones.
async function release_folder() {
  const doc = '/usr/share/doc/libcpp-httplib-dev/copyright';
  if (process.platform !== 'linux' || !existsSync(doc)) skip(`there is no ${doc}`);
  if ((await run('dpkg-deb', ['--version'])).code !== 0) skip('there is no dpkg-deb');
  const folder = join(scratch, 'a release');
  const put = (path, text, mode = 0o644) => {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), text, { mode });
  };
  for (const path of ['.ci', '.gitignore', 'LICENSE', 'README.md', 'claude-openai.hpp', 'packaging']) cpSync(join(root, path), join(folder, path), { recursive: true });
  const portable = 'build/portable';
  for (const machine of machines) put(`${portable}/static/claude-openai-${machine}`, `#!/bin/sh\n# ${machine}\necho "$*"\n`, 0o755);
  put(`${portable}/include/httplib.h`, '#define CPPHTTPLIB_VERSION "0.18.7"\n#define CPPHTTPLIB_VERSION_NUM "0x001207"\n');
  put(`${portable}/include/nlohmann/detail/abi_macros.hpp`, ['MAJOR 3   // why', 'MINOR 11  // why', 'PATCH 2'].map((line) => `#define NLOHMANN_JSON_VERSION_${line}\n`).join(''));
  put(`${portable}/include/CLI/Version.hpp`, '#define CLI11_VERSION_MAJOR 2\n#define CLI11_VERSION "2.4.1"\n');
  for (const path of ['libc/musl/COPYRIGHT', 'libcxx/LICENSE.TXT', 'libunwind/LICENSE.TXT']) put(`${portable}/zig/ziglang/lib/${path}`, `${path}\n`);
  const libraries = `${portable}/libraries-${(await done('uname', ['-m'])).trim()}`;
  put(`${libraries}/openssl/include/openssl/opensslv.h`, '# define OPENSSL_VERSION_MAJOR  3\n# define OPENSSL_FULL_VERSION_STR "3.0.22"\n');
  put(`${libraries}/zlib/zlib.h`, '#define ZLIB_VERSION "1.2.13"\n#define ZLIB_VERNUM 0x12d0\n');
  put(`${libraries}/sqlite/sqlite3.h`, '#define SQLITE_VERSION        "3.40.1"\n#define SQLITE_VERSION_NUMBER 3040001\n');
  for (const path of ['openssl/LICENSE.txt', 'zlib/LICENSE', 'sqlite/LICENSE.md']) put(`${libraries}/${path}`, `${path}\n`);
  const hiredis = libraries.replace('libraries-', 'hiredis-');
  put(`${hiredis}/include/hiredis/hiredis.h`, '#define HIREDIS_MAJOR 1\n#define HIREDIS_MINOR 2\n#define HIREDIS_PATCH 0\n#define HIREDIS_SONAME 1.1.0\n');
  put(`${hiredis}/source/COPYING`, 'source/COPYING\n');
  const identity = ['-c', 'user.name=n', '-c', 'user.email=e@x', '-c', 'commit.gpgsign=false'];
  for (const command of [['init', '-q'], ['add', '.'], [...identity, 'commit', '-qm', 'all']]) await done('git', command, { cwd: folder });
  return folder;
}

const release_in = (folder, what, more) => run('.ci/release', [what], { cwd: folder, env: { PATH: process.env.PATH, ...more } });

// Packs all; returns the sums.
async function pack_release(folder, more) {
  for (const what of ['packages', 'sources']) {
    const { code, out, err } = await release_in(folder, what, more);
    if (code !== 0) throw new Error(`${what}: ${out}${err}`);
  }
  return readFileSync(join(folder, 'build/dist/SHA256SUMS'), 'utf8');
}

let release;
const released = () =>
  (release ??= (async () => {
    const folder = await release_folder();
    const sums = await pack_release(folder, { GITHUB_REF_TYPE: 'tag', GITHUB_REF_NAME: `v${header_version}` });
    return { folder, made: join(folder, 'build/dist'), sums };
  })());

check('.ci/release packs programs and sources, makes sums, and fills in the checksum of the sources', async () => {
  const { folder, made, sums } = await released();
  const version = header_version;
  const another = await release_in(folder, 'version', { GITHUB_REF_TYPE: 'tag', GITHUB_REF_NAME: 'v9.9.9' });
  if (another.code !== 1 || !another.err.includes('v9.9.9')) throw new Error(`a tag of another version: ${another.code} ${another.err}`);
  const archives = machines.map((machine) => `claude-openai-${version}-linux-${machine}`);
  const files = [
    'PKGBUILD', 'SHA256SUMS', 'claude-openai.rb', `claude-openai-${version}.tar.gz`, `claude-openai-${version}-npm.tgz`,
    ...archives.flatMap((name) => [`${name}.tar.gz`, `${name}.spdx.json`]), ...['amd64', 'arm64'].map((name) => `claude-openai_${version}_${name}.deb`),
  ].sort();
  if (`${readdirSync(made).sort()}` !== `${files}`) throw new Error(`${readdirSync(made)}`);
  const checked = await done('sha256sum', ['--check', 'SHA256SUMS'], { cwd: made });
  if (checked.match(/: OK$/gm).length !== files.length - 1) throw new Error(checked);

  const sum = new RegExp(`^(\\w{64})  claude-openai-${version}\\.tar\\.gz$`, 'm').exec(sums)[1];
  for (const [path, line] of [['claude-openai.rb', `\n  sha256 "${sum}"\n`], ['PKGBUILD', `\nsha256sums=('${sum}')\n`]])
    if (!readFileSync(join(made, path), 'utf8').includes(line)) throw new Error(`${path} is without ${line}`);
  const sources = await files_below('tar', ['-tzf', join(made, `claude-openai-${version}.tar.gz`)]);
  if (!sources.includes(`claude-openai-${version}/claude-openai.hpp`)) throw new Error('other sources');

});

check('two builds of the packages have the same bytes, whatever folder, times, modes, time zone and language they are built in', async () => {
  const { folder, sums } = await released();
  const other = join(scratch, 'a release again');
  cpSync(folder, other, { recursive: true });
  await done('find', ['.', '-path', './.git', '-prune', '-o', '-type', 'f', '-exec', 'touch', '-d', '2001-02-03', '{}', '+'], { cwd: other });
  await done('chmod', ['-R', 'go-rx', 'LICENSE', 'README.md', 'packaging', 'build/portable'], { cwd: other });
  const again = await pack_release(other, { TZ: 'Asia/Tokyo', LC_ALL: 'tr_TR.UTF-8', TMPDIR: scratch });
  if (again !== sums) throw new Error(`other bytes:\n${sums}\n${again}`);
});

check('each package has the program for its machine, the manual, completions and licenses, and says what it consists of', async () => {
  const { made } = await released();
  const version = header_version;
  const documents = ['LICENSE', 'LICENSES-OF-OTHERS', 'README.md'];
  for (const [machine, architecture] of [['x86_64', 'amd64'], ['aarch64', 'arm64']]) {
    const name = `claude-openai-${version}-linux-${machine}`;
    const inside = [...documents, 'claude-openai', 'claude-openai.1', 'completions/_claude-openai', 'completions/claude-openai.bash', 'completions/claude-openai.fish'];
    is(await files_below('tar', ['-tzf', join(made, `${name}.tar.gz`)]), inside.map((path) => `${name}/${path}`).sort());
    const deb = join(made, `claude-openai_${version}_${architecture}.deb`);
    const root_of_deb = join(scratch, `deb ${machine}`);
    await done('dpkg-deb', ['-x', deb, root_of_deb]);
    const installed = readdirSync(root_of_deb, { recursive: true, withFileTypes: true }).filter((one) => one.isFile()).map((one) => join(one.parentPath ?? one.path, one.name).slice(root_of_deb.length)).sort();
    is(installed, [
      '/usr/bin/claude-openai', '/usr/lib/systemd/system/claude-openai.service', '/usr/lib/systemd/user/claude-openai.service',
      '/usr/share/bash-completion/completions/claude-openai', '/usr/share/doc/claude-openai/README.md', '/usr/share/doc/claude-openai/copyright',
      '/usr/share/fish/vendor_completions.d/claude-openai.fish', '/usr/share/man/man1/claude-openai.1.gz', '/usr/share/zsh/vendor-completions/_claude-openai',
    ]);
    for (const unit of ['system', 'user'])
      if (!readFileSync(join(root_of_deb, `usr/lib/systemd/${unit}/claude-openai.service`), 'utf8').includes('"/usr/bin/claude-openai"')) throw new Error(unit);
    if (!readFileSync(join(root_of_deb, 'usr/bin/claude-openai'), 'utf8').includes(machine)) throw new Error(`not the program of ${machine}`);
    is((await done('dpkg-deb', ['-f', deb, 'Package', 'Version', 'Architecture'])).trim().split('\n'), ['Package: claude-openai', `Version: ${version}`, `Architecture: ${architecture}`]);
    const owners = (await done('dpkg-deb', ['-c', deb])).trim().split('\n').filter((line) => !/^(?:drwxr-xr-x|-rwxr-xr-x|-rw-r--r--) root\/root /.test(line));
    none(owners, 'of another owner or mode');

    const bill = JSON.parse(readFileSync(join(made, `${name}.spdx.json`), 'utf8'));
    const parts = bill.packages.map(({ name, versionInfo }) => `${name} ${versionInfo}`);
    const wanted = [`claude-openai ${version}`, 'cpp-httplib 0.18.7', 'nlohmann-json 3.11.2', 'CLI11 2.4.1', 'OpenSSL 3.0.22', 'zlib 1.2.13', 'SQLite 3.40.1', 'hiredis 1.2.0', 'musl-of-zig', 'libcxx-of-zig', 'libunwind-of-zig'];
    none(wanted.filter((part) => !parts.some((one) => one.startsWith(part))), `not in ${parts}`);
    is(bill.packages.find(({ name }) => name === 'SQLite').licenseDeclared, 'blessing');
    if (bill.spdxVersion !== 'SPDX-2.3' || bill.relationships.length !== bill.packages.length) throw new Error(JSON.stringify(bill));
  }
  const npm = join(made, `claude-openai-${version}-npm.tgz`);
  const commands = ['bin/claude-openai', ...machines.map((machine) => `bin/claude-openai-${machine}`)];
  is(await files_below('tar', ['-tzf', npm]), [...documents, 'package.json', ...commands].map((path) => `package/${path}`).sort());
  const readme = await done('tar', ['-xOf', npm, 'package/README.md']);
  none(readme.match(/\]\((?!https?:|#)[^)]*\)/g) ?? [], 'links that lead nowhere outside the repository');
  const license = await done('tar', ['-xOf', npm, 'package/LICENSE']);
  is(license, text_of('LICENSE'));
  const of_others = await done('tar', ['-xOf', npm, 'package/LICENSES-OF-OTHERS']);
  none(['openssl/LICENSE.txt', 'zlib/LICENSE', 'sqlite/LICENSE.md', 'source/COPYING'].filter((text) => !of_others.includes(`/${text}\n\n${text}\n`)), 'licenses that are missing');
});

check('npm installs the package without a network, and its command starts the program for this machine', async () => {
  const { made } = await released();
  const prefix = join(scratch, 'an npm prefix');
  const settings = ['--offline', '--no-audit', '--no-fund', '--loglevel=error', '--cache', join(scratch, 'npm cache')];
  await done('npm', ['install', '--global', '--prefix', prefix, ...settings, join(made, `claude-openai-${header_version}-npm.tgz`)]);
  const out = await done(join(prefix, 'bin/claude-openai'), ['--port', 'a b']);
  if (out !== '--port a b\n') throw new Error(out);
});

// ---- the documents' snippet ---------------------------------------------------------------------

check('the program of docs/embedding.md that includes the header compiles and runs', async () => {
  const blocks = [...readFileSync(join(root, 'docs/embedding.md'), 'utf8').matchAll(/^```cpp\n([^]*?)^```/gm)].map(([, block]) => block);
  const snippet = blocks.find((block) => block.includes('#include "claude-openai.hpp"') && /\bint main\b/.test(block));
  if (!snippet) throw new Error('no ```cpp block with the header and a main');
  const program = join(scratch, 'snippet');
  await compile(cxx, ['-std=c++17', ...warnings, ...cflags, ...include, file('snippet.cpp', snippet), '-o', program, ...libs]);

  const stand_in = process.env.STAND_IN ?? join(root, 'build/tests/stand-in');
  if (!existsSync(stand_in)) skip(`compiled; not run, because there is no ${stand_in}`);
  const path = join(scratch, 'path');
  mkdirSync(path);
  symlinkSync(stand_in, join(path, 'claude'));  // the snippet finds `claude` on PATH, as a user's would
  const environment = { ...process.env, PATH: `${path}:${process.env.PATH}`, CLAUDE_CLI_PATH: stand_in };
  const ended = await runs_for(5000, program, environment);
  if (ended && ended.code !== 0) throw new Error(`it ended with ${ended.code}: ${head(ended.err)}`);
});

// Null when the program was still running after so many milliseconds, as a server should; it is ended.
function runs_for(milliseconds, program, env) {
  return new Promise((done) => {
    const child = spawn(program, [], { cwd: scratch, env, stdio: ['ignore', 'ignore', 'pipe'] });
    let err = '';
    let still_running = false;
    child.stderr.on('data', (data) => (err += data));
    const enough = setTimeout(() => {
      still_running = true;
      child.kill('SIGTERM');
      setTimeout(() => child.kill('SIGKILL'), 5000).unref();
    }, milliseconds);
    child.on('error', (error) => done({ code: error.code, err: '' }));
    child.on('exit', (code, signal) => {
      clearTimeout(enough);
      done(still_running ? null : { code: code ?? signal, err });
    });
  });
}

// ---- running them -------------------------------------------------------------------------------

const wanted = checks.filter(({ name }) => process.argv.length < 3 || process.argv.slice(2).some((word) => name.includes(word)));
const count = { passed: 0, failed: 0, skipped: 0 };

async function worker(queue) {
  for (let one = queue.shift(); one; one = queue.shift()) {
    let outcome = 'passed';
    let why = '';
    const begin = performance.now();
    try {
      await one.body();
    } catch (error) {
      outcome = error instanceof skipped ? 'skipped' : 'failed';
      why = error.message;
    }
    count[outcome]++;
    console.log(`${outcome}: ${one.name} (${Math.round(performance.now() - begin)} ms)${why && (outcome === 'skipped' ? ` (${why})` : `\n${why}`)}`);
  }
}

const queue = [...wanted];
await Promise.all(cpus().map(() => worker(queue)));
console.log(`${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`);
process.exitCode = count.failed ? 1 : 0;
