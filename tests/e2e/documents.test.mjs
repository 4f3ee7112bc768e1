// Every command and program of README and docs/ is run, every link leads somewhere. What no test can run is in NOT_RUN, with
// the reason.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { conversationOf } from './chat_client.mjs';
import { ALL_TEXT, PAGES, ROOT, anchorsOf, blocksOf, commandsOf, linksOf } from './documents.mjs';
import { PROXY, suite } from './harness.mjs';
import { startMessagesApi } from './messages_api.mjs';
import { NO_CLI, scratchFolder } from './operate.mjs';
import { browser } from './page.test.mjs';
import { PICTURE, PICTURED, SIZE, takePicture } from './picture.mjs';

export const documents = suite();
const { test } = documents;
const run = (program, args, options) => promisify(execFile)(program, args, { timeout: 100_000, ...options });

/** Commands that no test runs, and why. */
const NOT_RUN = [
  [/^git clone /, 'needs the network; its address is compared with the page'],
  [/^cd claude-openai$/, 'goes with the clone'],
  [/^make login$/, 'needs an account and a browser'],
  [/^claude (auth login|setup-token)$/, 'needs an account and a browser'],
  [/^sudo apt-get$/, 'changes the machine; .ci/deps is tested in tests/build'],
  [/^brew install$/, 'macOS'],
  [/^(launchctl |cp \S+\.plist )/, 'macOS'],
  [/^git -c /, 'shows what a rule lets through'],
  [/^(systemctl|loginctl) /, 'needs a running systemd; tests/build verifies the units'],
  [/^docker /, 'needs Docker'],
  [/^npx claude-openai$/, 'needs a release; tests/packages has npx run the package of `make dist`'],
  [/^(npm install -g|npm install|pip install) /, 'installs on the machine'],
  [/^(eval|export) /, 'commands.test.mjs has a shell take what `connect env` prints, which is compared with the page'],
  [/^(codex|opencode|claude -p)( |$)/, 'coding_agents.test.mjs runs these clients with their settings'],
  [/^(pi|copilot|qwen|kilo|cline|droid)( |$)/, 'npm_agents.test.mjs runs these clients with their settings'],
  [/^aider( |$)/, 'python.test.mjs runs it with its settings'],
  [/^open-webui /, 'open_webui.test.mjs runs it with these settings'],
  [/^redis-server /, 'redis.test.mjs and replicas.test.mjs start one of their own'],
  [/^haproxy /, 'balancers.test.mjs starts it with this file'],
  [/^claude-openai$/, 'redis.test.mjs starts it with such an address'],
  [/^grok( |$)/, 'a client that the tests do not run; tried by hand'],
];

/** Targets of make that take minutes or do not end: `make -n` says that they exist, and their ARGS are checked. */
const isMake = (command) => /^make( |$)/.test(command);
const withoutAssignments = (command) => command.replace(/^(?:[A-Z_]+=(?:'[^']*'|\S*) +)+/, '');
const reasonOf = (command) => NOT_RUN.find(([pattern]) => pattern.test(withoutAssignments(command)))?.[1];
const isOurs = (command) => /^claude-openai /.test(command);
const isCurl = (command) => /^curl /.test(command);
const everyCommand = PAGES.flatMap((page) => commandsOf(page).map((command) => ({ page: page.name, command })));

test('every command of README and docs is run, or is listed with a reason', async () => {
  const unknown = everyCommand.filter(
    ({ command }) => !isMake(command) && !isOurs(command) && !isCurl(command) && !reasonOf(command),
  );
  assert.deepEqual(unknown, []);
  const used = (pattern) => everyCommand.some(({ command }) => pattern.test(withoutAssignments(command)));
  assert.deepEqual(
    NOT_RUN.filter(([pattern]) => !used(pattern)).map(([pattern]) => `${pattern}`),
    [],
    'listed, and in no page',
  );
});

test('every target of make exists', async () => {
  const commands = [...new Set(everyCommand.map(({ command }) => command).filter((one) => isMake(one) && !reasonOf(one)))];
  assert.ok(commands.length > 8, commands.join('\n'));
  const environment = { ...process.env, MAKEFLAGS: '', MFLAGS: '' };
  for (const command of commands)
    await run('sh', ['-c', command.replace(/^make/, 'make -n').replaceAll('…', '')], { cwd: ROOT, env: environment }).catch(
      (error) => assert.fail(`${command}: ${error.stderr}`),
    );
});

/** The program's arguments in a command: of `claude-openai …` and of `make run ARGS=…`. */
const argumentsIn = (command) =>
  isOurs(command) ? command.slice('claude-openai '.length) : /^make run ARGS="?([^"]*)/.exec(command)?.[1];

/** How it is run: what would serve or look at this machine's account says its settings, or looks at the demo. */
function harmless(args) {
  if (/^(help|generate|connect|--version|--help|doctor --security)/.test(args)) return args;
  if (args.startsWith('doctor --url')) return `${args} --print-config`; // commands.test.mjs has proxies for it
  return args.startsWith('doctor') ? `${args} --demo --port 0` : `${args} --print-config`;
}

test('every command line of the program is taken by it', async (t) => {
  const whole = everyCommand.filter(({ command }) => !command.includes('…'));
  const lines = [...new Set(whole.map(({ command }) => argumentsIn(command)).filter(Boolean))];
  assert.ok(lines.length > 5, lines.join('\n'));
  const home = scratchFolder(t);
  for (const line of lines)
    await run('sh', ['-c', `exec "$0" ${harmless(line)}`, PROXY], {
      cwd: home,
      env: { PATH: process.env.PATH, HOME: home, TMPDIR: home, CLAUDE_CLI_PATH: NO_CLI },
    }).catch((error) => {
      const isOpen = /^doctor --security/.test(line) && error.code === 1; // it finds something, as it may
      if (!isOpen) assert.fail(`${line}: ${error.stdout}${error.stderr}`);
    });
});

// ---- examples ------------------------------------------------------------------------------------

const ANSWER = 'Hello from the loopback API.';
const WEATHER = 'Lisbon: sunny, 24 degrees';
const isResult = ({ content }) => Array.isArray(content) && content.some(({ type }) => type === 'tool_result');

/** The model of the examples: asks for the tool that it is offered, keeps to a schema, else says ANSWER. */
function playing({ body }) {
  const offers = (name) => (body.tools ?? []).some((tool) => tool.name === name);
  if (offers('StructuredOutput')) return { name: 'structured', value: { name: 'Ada', age: 36 } };
  if (offers('get_weather') && !isResult(body.messages.at(-1)))
    return { name: 'tool_use', tool: 'get_weather', args: { city: 'Lisbon' } };
  return { name: 'plain', text: ANSWER };
}

/** A proxy over the real CLI and a model of the examples' own; `here` puts its address into a text. */
async function startExamples(t) {
  const api = await startMessagesApi({ scenario: playing });
  t.defer(() => api.close());
  const proxy = await t.start({ url: api.url, cli: t.cli, args: ['--spares', '1'], env: { DEFAULT_MODEL: undefined } });
  const environment = { PATH: process.env.PATH, HOME: scratchFolder(t), NO_PROXY: '*', no_proxy: '*' };
  return { api, proxy, environment, here: (text) => text.replaceAll('127.0.0.1:8000', `127.0.0.1:${proxy.port}`) };
}

/** How many messages the API was sent with each question that holds this text. */
const lengthsWith = (api, text) =>
  api.requests.filter(({ raw }) => raw?.includes(text)).map((call) => conversationOf(call).length);

test('every curl works as it is, and the session of the examples keeps what it was told', async (t) => {
  const { api, proxy, environment, here } = await startExamples(t);
  const commands = everyCommand.map(({ command }) => command).filter((one) => isCurl(one) && !one.includes('PATH'));
  assert.ok(commands.length > 6, commands.join('\n'));
  for (const command of commands) {
    const { stdout } = await run('sh', ['-c', `${here(command)} -sS --fail-with-body --noproxy '*'`], {
      env: environment,
    }).catch((error) => assert.fail(`${command}: ${error.stdout}${error.stderr}${proxy.output}`));
    if (command.includes('"stream":true')) assert.match(stdout, /data: \[DONE\]\n\n$/, command);
    else if (command.includes('/chat/completions'))
      assert.ok(JSON.parse(stdout).choices[0].message.content.includes(ANSWER), stdout);
    else assert.ok(stdout.length > 10, command);
  }
  assert.deepEqual(lengthsWith(api, 'I am going to Lisbon.'), [1, 3]);
});

const HAS_ALL = 'import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))';
/** The first of the Pythons here that has these modules: $PYTHON_OF_CLIENTS, one that `make` has made, or that on PATH. */
async function pythonWith(modules) {
  const made = ['newest', 'middle'].map((name) => path.join(ROOT, 'build/clients', name, 'bin/python'));
  for (const python of [process.env.PYTHON_OF_CLIENTS, ...made, 'python3'].filter(Boolean))
    if (await run(python, ['-c', HAS_ALL, ...modules]).then(() => true, () => false)) return { python };
  return { skip: `no Python here has ${modules.join(' and ')}; name one by $PYTHON_OF_CLIENTS` };
}
const [{ python, skip: noPython }, parsing] = await Promise.all([['openai', 'anthropic'], ['tomllib', 'yaml']].map(pythonWith));

/** Runs the files that it is given one after the other, a form feed before what each prints: the SDKs are loaded once. */
const RUN_EACH = `
import sys
for file in sys.argv[1:]:
    print("\\f", end="")
    exec(compile(open(file).read(), file, "exec"), {"__name__": "__main__"})
`;

test('every Python program works as it is', { skip: noPython }, async (t) => {
  const { api, proxy, environment, here } = await startExamples(t);
  const programs = PAGES.flatMap(blocksOf).filter(({ language }) => language === 'python');
  assert.ok(programs.length > 6);
  const files = programs.map((_, i) => path.join(environment.HOME, `example_${i}.py`));
  files.forEach((file, i) => writeFileSync(file, here(programs[i].text)));
  const { stdout } = await run(python, ['-c', RUN_EACH, ...files], { env: environment, timeout: 230_000 }).catch((error) =>
    assert.fail(`${error.stdout}\n${error.stderr}${proxy.output}`),
  );
  const printed = stdout.split('\f').slice(1);
  const wanted = [['with_raw_response', /tokens in, \d+ out, \$ \d/], ['BaseModel', /name='Ada' age=36/]];
  programs.forEach(({ text }, i) =>
    assert.match(printed[i], wanted.find(([word]) => text.includes(word))?.[1] ?? new RegExp(ANSWER), text),
  );
  assert.deepEqual(lengthsWith(api, 'I am going to Lisbon.'), [1, 3]);
  assert.equal(lengthsWith(api, WEATHER).length, 1, 'the result of the tool reached the model');
});

test('every JavaScript program works as it is', async (t) => {
  const { proxy, environment, here } = await startExamples(t);
  const programs = PAGES.flatMap(blocksOf).filter(({ language }) => language === 'js');
  assert.ok(programs.length > 3);
  symlinkSync(path.join(ROOT, 'tests/e2e/node_modules'), path.join(environment.HOME, 'node_modules'));
  for (const { text } of programs) {
    const file = path.join(environment.HOME, 'example.mjs');
    writeFileSync(file, here(text));
    const { stdout } = await run(process.execPath, [file], { env: environment }).catch((error) =>
      assert.fail(`${text}: ${error.stderr}${proxy.output}`),
    );
    assert.match(stdout, new RegExp(ANSWER), text);
  }
});

// ---- the text ------------------------------------------------------------------------------------

test('every code block names its language, and JSON is JSON', async () => {
  const known = ['sh', 'python', 'js', 'cpp', 'cmake', 'json', 'toml', 'yaml', 'elisp', 'ruby', 'text'];
  const blocks = PAGES.flatMap(blocksOf);
  assert.deepEqual(
    blocks.filter(({ language }) => !known.includes(language)),
    [],
  );
  blocks.filter(({ language }) => language === 'json').forEach(({ text }) => JSON.parse(text));
  assert.ok(PAGES.every(({ text }) => text.match(/^```/gm)?.length % 2 !== 1), 'every block ends');
});

test('TOML is TOML, and YAML is YAML', { skip: parsing.skip }, async () => {
  const load = { toml: 'import sys, tomllib; tomllib.loads(sys.argv[1])', yaml: 'import sys, yaml; yaml.safe_load(sys.argv[1])' };
  const blocks = PAGES.flatMap(blocksOf).filter(({ language }) => load[language]);
  assert.ok(blocks.length > 2);
  for (const { language, text } of blocks) await run(parsing.python, ['-c', load[language], text]);
});

test('every link and every anchor leads somewhere', async () => {
  const others = ['.github/CONTRIBUTING.md', '.github/SECURITY.md'].map((name) => ({ name, text: readFileSync(path.join(ROOT, name), 'utf8') }));
  const pages = [...PAGES, ...others];
  const broken = [];
  for (const page of pages)
    for (const link of linksOf(page).filter((one) => !/^https:\/\//.test(one))) {
      const [file, anchor] = link.split('#');
      const name = file ? path.normalize(path.join(path.dirname(page.name), file)) : page.name;
      const target = pages.find((one) => one.name === name);
      const leads = existsSync(path.join(ROOT, name)) && (!anchor || (target && anchorsOf(target).includes(anchor)));
      if (!leads) broken.push(`${page.name}: ${link}`);
    }
  assert.deepEqual(broken, []);
  const [readme, ...docs] = PAGES;
  const linked = linksOf(readme);
  assert.deepEqual(
    docs.map(({ name }) => name).filter((name) => !linked.includes(name)),
    [],
    'pages that the README does not name',
  );
});

test('every address of the proxy in the pages is a base URL, or a path that it has', async () => {
  const addresses = [...ALL_TEXT.matchAll(/http:\/\/127\.0\.0\.1:8000([^\s"'`)\\,;]*)/g)].map(([, rest]) => rest);
  assert.ok(addresses.length > 30);
  const paths = /^(\/v1\/?|\/v1\/(chat\/completions|sessions\/trip|models)|\/metrics|\/health|\/)?$/;
  assert.deepEqual(
    addresses.filter((rest) => !paths.test(rest)),
    [],
  );
});

test('the README is short, and its clone line is the address of the page', async (t) => {
  const [{ text }] = PAGES;
  assert.ok(text.split('\n').length <= 181, `${text.split('\n').length - 1} lines; the rest belongs into docs/`);
  const html = (await t.get('/', { headers: { accept: 'text/html' } })).text;
  const address = /^git clone (\S+)$/m.exec(text)[1];
  assert.ok(html.includes(`"${address}"`) || html.includes(`${address}"`), address);
});

test('what the README has a client set is set so in docs/clients.md too', async () => {
  const [{ text }] = PAGES;
  const recipes = PAGES.find(({ name }) => name === 'docs/clients.md').text;
  const rows = [...text.matchAll(/^\| \[.*$/gm)].map(([row]) => row);
  const code = rows.flatMap((row) => [...row.matchAll(/`([^`]*)`/g)]).map(([, one]) => one);
  const settings = code.filter((one) => one.includes(' '));
  assert.ok(settings.length >= 4, settings.join('\n'));
  assert.deepEqual(settings.filter((one) => !recipes.includes(one)), []);
});

test('the commands of the demo are those of its page', async (t) => {
  t.proxy = await t.start(PICTURED);
  const { json } = await t.chat({ messages: [{ role: 'user', content: '/help' }] });
  const told = [...json.choices[0].message.content.matchAll(/^ +(\/\w+)/gm)].map(([, name]) => name);
  const { text } = PAGES.find(({ name }) => name === 'docs/demo.md');
  const firsts = [...text.matchAll(/^\| (`.*?) \|/gm)].map(([, cell]) => cell);
  const written = firsts.flatMap((cell) => [...cell.matchAll(/`(\/\w+)/g)].map(([, name]) => name));
  assert.ok(told.length > 8, told.join());
  assert.deepEqual(written, told);
});

test('the picture of the README is what picture.mjs takes', { skip: browser.skip }, async (t) => {
  const file = path.join(scratchFolder(t), 'page.png');
  await takePicture(await t.start(PICTURED), file);
  const sizeOf = (bytes) => ({ width: bytes.readUInt32BE(16), height: bytes.readUInt32BE(20) });
  for (const one of [file, PICTURE]) {
    assert.deepEqual(sizeOf(readFileSync(one)), SIZE, one);
    const { size } = statSync(one);
    assert.ok(size > 20_000 && size < 150_000, `${size} bytes`);
  }
});

test('the design names the sections of the header', async () => {
  const header = readFileSync(path.join(ROOT, 'claude-openai.hpp'), 'utf8');
  const sections = [...header.matchAll(/^\/\/ \[\d+\] (\w+) - /gm)].map(([, name]) => name);
  const { text } = PAGES.find(({ name }) => name === 'docs/design.md');
  const rows = text.split('\n').filter((line) => /^\| [\w ]+ \| `/.test(line));
  assert.deepEqual(
    rows.flatMap((row) => [...row.split('|')[2].matchAll(/`(\w+)`/g)].map(([, name]) => name)),
    sections,
  );
});
