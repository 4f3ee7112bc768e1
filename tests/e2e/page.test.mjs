// The page at /, in a real Chromium, against the real proxy and CLI. Where Chromium is missing every test is skipped, and told so.
// $CHROMIUM names the browser; else it is looked for where Debian and others put it.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { promisify } from 'node:util';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { DEMO } from './demo.test.mjs';
import { directive } from './messages_api.mjs';
import { PROXY, eventually, sleep, suite } from './harness.mjs';
import { ask, queryStore, scratchFolder, standIn } from './operate.mjs';
import { startWithFallback } from './plan.test.mjs';

export const page = suite();
/** A browser beside the CLI takes its time on a busy machine. */
const test = (name, options, body = options) =>
  page.test(name, { ...(body === options ? {} : options) }, body);

const PLACES = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
const executablePath = PLACES.find((place) => place && existsSync(place));
const { chromium, problem } = await import('playwright-core').catch((error) => ({ problem: error.message }));
if (!executablePath) page.skip = 'there is no Chromium; install the package `chromium`, or name one by $CHROMIUM';
else if (problem) page.skip = `playwright-core cannot be loaded: ${problem}`;

/** For tests of other suites that need a browser. */
export const browser = { chromium, executablePath, skip: page.skip };

const axeSource = () => readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const REFUSED = /Failed to load resource: the server responded with a status of (4\d\d|503)/; // the browser's word for any such answer

/**
 * The page in a browser of this test's own. The test fails on a console error or a breach of the policy; `refusals` allows answers
 * with an error status, which Chromium counts as one. `context` are Playwright's options, `prepare` gets the context first.
 */
async function open(t, { proxy = t.proxy, refusals = false, prepare = () => {}, ...context } = {}) {
  const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] }); // root has no sandbox
  const problems = [];
  t.defer(async () => {
    await browser.close();
    assert.deepEqual(problems, [], 'the console stays empty');
  });
  const tab = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...context });
  await tab.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: proxy.url });
  tab.setDefaultTimeout(30_000);
  tab.on('weberror', (error) => problems.push(error.error().stack));
  tab.on('console', (message) => {
    if (!['error', 'warning'].includes(message.type()) || (refusals && REFUSED.test(message.text()))) return;
    problems.push(message.text());
  });
  await prepare(tab);
  const view = await tab.newPage();
  await view.goto(proxy.url);
  return view;
}

const text = (view, selector) => view.locator(selector).first().textContent();
const is = (view, selector, expected) =>
  eventually(`${selector} says ${expected}`, async () => new RegExp(expected).test(await text(view, selector)));
const clipboard = (view) => view.evaluate(() => navigator.clipboard.readText());
const idle = (view) => eventually('the answer has ended', async () => (await text(view, '#send')) === 'Send');

/** What the user types so that the API plays this. The token tells its calls from others'. */
const typed = (t, scenario, options) => t.text(directive(scenario, options));

async function say(view, what) {
  await view.fill('#prompt', what);
  await view.press('#prompt', 'Enter');
}

// ---- the document --------------------------------------------------------------------------------

test('the page is one document with a strict policy, and never stored', async (t) => {
  const ask = () => t.get('/', { headers: { accept: 'text/html,application/xhtml+xml;q=0.9,*/*;q=0.8' } });
  const { status, headers, text: html } = await ask();
  assert.equal(status, 200);
  assert.match(headers['content-type'], /^text\/html; *charset=utf-8$/i);
  assert.equal(headers['cache-control'], 'no-store');
  assert.equal(headers['x-content-type-options'], 'nosniff');
  assert.equal(headers['referrer-policy'], 'no-referrer');
  const nonce = /script-src 'nonce-([\w+/=-]{16,})'/.exec(headers['content-security-policy'])[1];
  assert.equal(
    headers['content-security-policy'],
    `default-src 'none'; script-src 'nonce-${nonce}'; style-src 'nonce-${nonce}'; connect-src 'self'; img-src data:; ` +
      `base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
  );
  assert.notEqual((await ask()).headers['content-security-policy'], headers['content-security-policy'], 'a nonce for each');
  assert.ok(Buffer.byteLength(html) <= 64_800, `${Buffer.byteLength(html)} bytes`);
  assert.ok(!html.includes('{{'), 'no placeholder is left');
  const { version } = (await t.get('/version')).json;
  for (const title of ['Claude Code OpenAI Wrapper', 'Quick Start', 'API Endpoints', `v${version}`]) assert.ok(html.includes(title), title);
  const markup = html.replace(/<(script|style)\b[^]*?<\/\1>/g, (whole) => whole.slice(0, whole.indexOf('>') + 1));
  assert.doesNotMatch(markup, /\s(on\w+|style|src)\s*=/i, 'no inline handlers or styles, and nothing to load');
});

test('who asks for no HTML gets the word for curl', async (t) => {
  for (const accept of [undefined, '*/*', 'text/plain']) {
    const { headers, text: said } = await t.get('/', { headers: { accept } });
    assert.match(headers['content-type'], /^text\/plain/, accept);
    assert.match(said, /curl http/);
  }
});

// ---- at a glance ---------------------------------------------------------------------------------

test('the page tells at a glance how the server is', async (t) => {
  const view = await open(t);
  await is(view, '#connection', '^Connected$');
  assert.ok(await view.locator('#demo').isHidden());
  assert.ok(await view.locator('#problem').isHidden());
  assert.ok(await view.locator('#usage').isHidden(), 'there is no store');
  await is(view, '#auth-method', '^Anthropic API key$');
  await is(view, '#cli-version', '^\\d+\\.\\d+\\.\\d+$');
  await is(view, '#default-model', `^${MODEL}$`);
  await is(view, '#uptime', '^\\d+ (s|min|h|days)');
  await is(view, '#key-state', '^None needed$');
  assert.equal(await text(view, '#openai-url'), `${t.proxy.url}/v1`);
  assert.equal(await text(view, '#anthropic-url'), t.proxy.url);
  assert.ok((await view.locator('#model option').count()) > 3, 'models to choose from');
});

test('a server that is gone is told, and found again', async (t) => {
  const view = await open(t);
  await is(view, '#connection', '^Connected$');
  const lost = (route) => route.abort();
  await view.route('**/health', lost);
  // Chromium reports the failed request, which is the point here.
  view.context().removeAllListeners('console');
  await is(view, '#connection', '^No answer$');
  await is(view, '#problem', '^The server does not answer');
  await view.unroute('**/health', lost);
  await is(view, '#connection', '^Connected$');
  assert.ok(await view.locator('#problem').isHidden());
});

test('a problem is told in a bar over all of the page, with the command that mends it', async (t) => {
  const login = await t.start({ cli: t.cli, env: { ANTHROPIC_API_KEY: undefined }, args: ['--spares', '0'] });
  const missing = await t.start({ cli: '/nowhere/claude', args: ['--spares', '0'] });
  for (const [proxy, told, command] of [
    [login, /not logged in/, 'claude auth login'],
    [missing, /\/nowhere\/claude/, 'npm install -g @anthropic-ai/claude-code@latest'],
  ]) {
    const view = await open(t, { proxy });
    await is(view, '#connection', '^Degraded$');
    assert.match(await text(view, '#problem'), told);
    assert.equal(await text(view, '#problem code'), command);
    await view.locator('#problem').getByRole('button', { name: 'Copy command' }).click();
    await is(view, '#announcer', 'Copied');
    assert.equal(await clipboard(view), command);
    await view.evaluate(() => scrollTo(0, 1e9));
    assert.ok(await view.locator('#problem').evaluate((bar) => bar.getBoundingClientRect().top >= 0), 'in sight everywhere');
  }
});

test('one name for the product, and every description of an endpoint names its object', async (t) => {
  const view = await open(t);
  assert.equal(await view.title(), 'claude-openai');
  const shown = await view.evaluate(() => document.body.innerText);
  assert.doesNotMatch(shown, /wrapper/i);
  const descriptions = await view.locator('.endpoint > summary > .muted').allTextContents();
  assert.ok(descriptions.length > 25);
  assert.equal(new Set(descriptions).size, descriptions.length, 'no two alike');
  assert.deepEqual(descriptions.filter((one) => /\b(it|its|them|their|they|one|that)\b/i.test(one)), []);
});

const paper = (view) => view.evaluate(() => getComputedStyle(document.body).backgroundColor);

test('the theme follows the system until one is chosen, which is remembered', async (t) => {
  const view = await open(t, { colorScheme: 'dark' });
  const dark = await paper(view);
  await view.emulateMedia({ colorScheme: 'light' });
  const light = await paper(view);
  assert.notEqual(dark, light);
  await view.click('#theme');
  await view.click('#theme');
  assert.equal(await text(view, '#theme'), 'Theme: dark');
  assert.equal(await paper(view), dark);
  await view.reload();
  assert.deepEqual([await text(view, '#theme'), await paper(view)], ['Theme: dark', dark]);
  await view.click('#theme');
  assert.deepEqual([await text(view, '#theme'), await paper(view)], ['Theme: auto', light]);
  await view.reload();
  assert.deepEqual([await text(view, '#theme'), await paper(view)], ['Theme: auto', light]);
});

test('the page fits narrow and wide windows, and nothing jumps while it loads', async (t) => {
  const prepare = (tab) =>
    tab.addInitScript(() => {
      window.shifted = 0;
      new PerformanceObserver((list) => list.getEntries().forEach(({ value }) => (window.shifted += value))).observe({
        type: 'layout-shift',
        buffered: true,
      });
    });
  for (const width of [360, 768, 1600]) {
    const view = await open(t, { prepare, viewport: { width, height: 900 } });
    const devtools = await view.context().newCDPSession(view);
    await devtools.send('Emulation.setCPUThrottlingRate', { rate: 4 }); // else all is there before the first paint
    await view.reload();
    await is(view, '#connection', '^Connected$');
    await is(view, '#default-model', MODEL);
    await sleep(500);
    assert.equal(await view.evaluate(() => document.documentElement.scrollWidth), width, 'nothing sticks out');
    const shifted = await view.evaluate(() => window.shifted);
    assert.ok(shifted < 0.02, `at ${width}: ${shifted}`);
  }
});

// ---- quick start ---------------------------------------------------------------------------------

test('quick start: the keyboard walks through the tabs, and each snippet is copied as it is shown', async (t) => {
  const view = await open(t);
  await is(view, '#default-model', MODEL);
  const names = ['curl', 'Python openai', 'Python anthropic', 'Node openai', 'Codex', 'opencode', 'Claude Code', 'aider', 'Continue', 'Cline', 'Zed', 'pi', 'Qwen Code', 'Copilot CLI', 'Open WebUI', 'Environment'];
  assert.deepEqual(await view.getByRole('tab').allTextContents(), names);
  await view.getByRole('tab', { name: 'curl', exact: true }).focus();
  for (const name of names) {
    const panel = view.getByRole('tabpanel');
    assert.equal(await panel.count(), 1);
    assert.equal(await view.locator('[aria-selected="true"]').textContent(), name);
    assert.equal(await view.evaluate(() => document.activeElement.textContent), name);
    const shown = await panel.locator('pre').textContent();
    assert.ok(shown.includes(t.proxy.url), `${name}: the address`);
    assert.ok(['Claude Code', 'Open WebUI', 'Environment'].includes(name) || shown.includes(MODEL), `${name}: the model`);
    await panel.getByRole('button', { name: /^Copy/ }).click();
    assert.equal(await clipboard(view), shown);
    await view.getByRole('tab', { name, exact: true }).focus();
    await view.keyboard.press('ArrowRight');
  }
  assert.equal(await view.locator('[aria-selected="true"]').textContent(), names[0], 'around the corner');
  await view.keyboard.press('End');
  assert.equal(await view.locator('[aria-selected="true"]').textContent(), names.at(-1));
});

test('the copied curl line works in a shell', async (t) => {
  const view = await open(t);
  await is(view, '#snippet', MODEL);
  await view.getByRole('button', { name: 'Copy snippet' }).click();
  await is(view, '#announcer', 'Copied');
  const { stdout } = await promisify(execFile)('sh', ['-c', await clipboard(view)]);
  assert.equal(JSON.parse(stdout).choices[0].message.content, 'Hello from the loopback API.');
});

test('quick start: Node runs its snippet, and each client has what `claude-openai connect` prints', async (t) => {
  const view = await open(t);
  await is(view, '#default-model', MODEL);
  const snippet = async (name) => {
    await view.getByRole('tab', { name, exact: true }).click();
    return text(view, '#snippet');
  };
  const { stdout } = await promisify(execFile)('node', ['--input-type=module', '-e', await snippet('Node openai')], { cwd: import.meta.dirname });
  assert.equal(stdout, 'Hello from the loopback API.\n');
  const connect = async (...args) => promisify(execFile)(PROXY, ['connect', ...args], { env: { HOME: '/home/me' } });
  const clients = (await connect()).stdout.trim().split('\n').map((line) => line.split(/ +/));
  const titles = { codex: 'Codex', claude: 'Claude Code', continue: 'Continue', cline: 'Cline', zed: 'Zed', qwen: 'Qwen Code', copilot: 'Copilot CLI', 'open-webui': 'Open WebUI', env: 'Environment' };
  for (const [name, file] of clients) {
    const printed = await connect(name, '--url', t.proxy.url, '--model', MODEL);
    const start = /^# then: (.*)$/m.exec(printed.stderr)?.[1];
    const note = [file.startsWith('/') && `In ${file.replace('/home/me', '~')}`, start && `then: ${start}`].filter(Boolean).join('; ');
    const settings = printed.stdout.trim();
    const expected = note ? `${settings.startsWith('{') ? '//' : '#'} ${note}\n${settings}` : settings;
    assert.equal(await snippet(titles[name] ?? name), expected);
  }
});

test('copying works where the browser gives pages no clipboard', async (t) => {
  const prepare = (tab) => tab.addInitScript(() => Object.defineProperty(navigator, 'clipboard', { value: undefined }));
  const view = await open(t, { prepare });
  await view.getByRole('button', { name: 'Copy openai url' }).click();
  await is(view, '#announcer', 'Copied');
  await view.focus('#prompt');
  await view.keyboard.press('Control+V');
  assert.equal(await view.inputValue('#prompt'), `${t.proxy.url}/v1`);
});

// ---- explorer ------------------------------------------------------------------------------------

const entryOf = (view, method, where) =>
  view.locator('.endpoint').filter({ has: view.locator(`> summary > .method.${method}`) })
    .filter({ has: view.locator('> summary > code').getByText(where, { exact: true }) });

/** What an entry answers to its example; 200 where nothing is said. */
const ANSWERS = {
  'POST /v1/mcp/servers': 403, // wants --allow-mcp-registration
  'POST /v1/mcp/connect': 404,
  'POST /v1/mcp/disconnect': 404,
  'GET /v1/usage': 404, // wants --store
};

test('explorer: every route of the server is there', async (t) => {
  const view = await open(t);
  const { message } = (await t.get('/no-such-path')).json.error;
  const routes = [...message.matchAll(/(GET|POST|DELETE) (\/[^\s,]*)/g)].map(([, method, where]) => [method, where]);
  assert.ok(routes.length > 20, message);
  const entries = await view.locator('.endpoint > summary').evaluateAll((all) =>
    all.map((one) => [one.querySelector('.method').textContent, one.querySelector('code').textContent]));
  const plain = (where) => where.replace(/^\/v1/, '').replace(/\{[^}]*\}/g, '*') || '/';
  for (const [method, where] of routes)
    assert.ok(entries.some(([verb, at]) => verb === method && plain(at) === plain(where)), `${method} ${where} is on the page`);
});

test('explorer: every entry opens, asks and shows the answer', { alone: true }, async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '1'] });
  await t.chat({ session_id: 'from the test', messages: t.messages('plain') }, { proxy });
  const view = await open(t, { proxy, refusals: true });
  await is(view, '#session-count', '^1$');
  await is(view, '#default-model', MODEL);
  for (const entry of await view.locator('.endpoint').all()) {
    const [method, where] = [await entry.locator('.method').textContent(), await entry.locator('> summary > code').textContent()];
    const name = `${method} ${where}`;
    await entry.locator('> summary').click();
    if (method !== 'GET') await entry.getByRole('button', { name: 'Send' }).click();
    await eventually(`${name} is answered`, async () => /in all/.test(await entry.getByRole('status').textContent()));
    const told = await entry.getByRole('status').textContent();
    assert.ok(told.startsWith(String(ANSWERS[name] ?? 200)), `${name}: ${told} ${await entry.locator('.answer').textContent()}`);
    assert.match(told, /\d (ms|s) in all$/, name);
    assert.doesNotMatch(await entry.locator('.answer').textContent(), /response\.failed/, name); // whose id nobody can ask for
    assert.match(await entry.locator('.answer').textContent(), /Headers \(\d+\)[^]*content-type: /, name);
    if (method === 'GET' && where !== '/' && where !== '/metrics') assert.ok(await entry.locator('pre .key').count(), `${name}: in colour`);
    if (/^Events/m.test(await entry.locator('.answer').textContent())) assert.match(told, /First token/, name);
    await entry.locator('> summary').click();
  }
  await is(view, '#session-count', '^0$'); // one entry has deleted it
});

test('explorer: a stream comes token by token and can be stopped, which leaves the API', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0'] });
  const view = await open(t, { proxy });
  await is(view, '#default-model', MODEL);
  await eventually('the first look at the CLI is over', () => proxy.claudes().length === 0);
  const entry = entryOf(view, 'POST', '/v1/messages');
  await entry.locator('> summary').click();
  const content = typed(t, 'plain', { text: 'word '.repeat(40), deltas: 40, delay: 150 });
  await entry.getByLabel('Body').fill(JSON.stringify({ model: MODEL, max_tokens: 100, stream: true, messages: [{ role: 'user', content }] }));
  await entry.getByRole('button', { name: 'Send' }).click();
  const lengths = new Set();
  await eventually('the text grows', async () => {
    lengths.add((await entry.locator('pre.flow').textContent({ timeout: 30_000 })).length);
    return lengths.size > 4;
  });
  assert.equal(proxy.claudes().length, 1);
  await entry.getByRole('button', { name: 'Stop' }).click();
  await is(entry, '[role="status"]', '^Stopped');
  assert.match(await entry.getByRole('status').textContent(), /First token \d/);
  await eventually('the API is told', () => t.calls()[0].clientLeft);
});

test('explorer: what is wrong in a body is told with its status, and mending it helps', async (t) => {
  const view = await open(t, { refusals: true });
  const entry = entryOf(view, 'POST', '/v1/compatibility');
  await entry.locator('> summary').click();
  await entry.getByLabel('Body').fill('{"messages": 7}');
  await entry.getByRole('button', { name: 'Send' }).click();
  await is(entry, '[role="status"]', '^400 Bad Request');
  await is(entry, '.answer', 'messages');
  await entry.getByLabel('Body').fill('{"messages": [{"role": "user", "content": "hi"}], "seed": 1}');
  await entry.getByRole('button', { name: 'Send' }).click();
  await is(entry, '[role="status"]', '^200 OK');
  await is(entry, '.answer', '"unsupported_parameters": \\[\\s*"seed"');
  await entry.getByRole('button', { name: 'Copy as curl' }).click();
  const { stdout } = await promisify(execFile)('sh', ['-c', await clipboard(view)]);
  assert.deepEqual(JSON.parse(stdout).compatibility_report.unsupported_parameters, ['seed']);
});

// ---- playground ----------------------------------------------------------------------------------

test('playground: two streamed turns, with Markdown, reasoning, figures and the same as curl', async (t) => {
  const view = await open(t);
  await is(view, '#default-model', MODEL);
  await view.fill('#system', "Don't be long.");
  await view.selectOption('#effort', 'low');
  const answer = '# Title\n\nSome **bold** and `code`:\n\n- one\n- two\n\n```js\nconst x = 1;\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nSee [here](https://example.org/x).';
  await say(view, typed(t, 'thinking', { thinking: 'Hm, well.', text: answer, deltas: 20, delay: 15 }));
  await idle(view);
  const first = view.locator('.message').nth(1);
  assert.equal(await first.locator('h4').textContent(), 'Title');
  assert.equal(await first.locator('strong').textContent(), 'bold');
  assert.deepEqual(await first.locator('li').allTextContents(), ['one', 'two']);
  assert.deepEqual(await first.locator('td').allTextContents(), ['1', '2']);
  assert.equal(await first.locator('a').getAttribute('href'), 'https://example.org/x');
  assert.equal(await first.locator('a').getAttribute('rel'), 'noopener noreferrer');
  await first.getByRole('button', { name: 'Copy code' }).click();
  assert.equal(await clipboard(view), 'const x = 1;');
  await first.getByRole('button', { name: 'Copy the answer' }).click();
  assert.equal(await clipboard(view), answer);
  assert.equal(await first.locator('.thoughts').getAttribute('open'), null, 'collapsed');
  assert.equal(await first.locator('.thoughts div').textContent(), 'Hm, well.');
  assert.match(await first.locator('footer').textContent(), new RegExp(`${MODEL} · first token .* in all · 11 in, 7 out · \\$0\\.0001`));

  await say(view, `${typed(t, 'plain', { text: 'And done.' })} It's the second`);
  await idle(view);
  assert.equal(await view.locator('.message').nth(3).locator('.text').textContent(), 'And done.');
  const [, call] = t.calls();
  assert.deepEqual(call.body.messages.map(({ role }) => role), ['user', 'assistant', 'user']);
  assert.ok(call.raw.includes("Don't be long."));
  assert.equal(t.calls().length, 2);

  await view.click('#as-curl');
  await view.locator('#curl').getByRole('button').click();
  const line = await clipboard(view);
  const { stdout } = await promisify(execFile)('sh', ['-c', line]);
  assert.match(stdout, /^data: \[DONE\]$/m);
  const told = (one) => one.body.messages.map(({ role, content }) => [role, content.filter(({ type }) => type === 'text').map((part) => part.text)]);
  assert.deepEqual(told(t.calls()[2]), told(call), 'asked again, word for word');
  const seen = await view.evaluate(() => {
    const box = (id) => document.getElementById(id).getBoundingClientRect();
    return box('curl').bottom <= box('as-curl').top && box('curl').height > 100 && box('log').height > 100;
  });
  assert.ok(seen, 'it opens above its button, beside the chat');
  await view.click('#restart');
  await eventually('the chat is empty', async () => (await view.locator('.message').count()) === 0);
  assert.ok(await view.locator('#empty').isVisible());
});

test('playground: two streamed turns with the demo', async (t) => {
  const proxy = await t.start({ ...DEMO, args: ['--demo', '--spares', '1'] });
  const view = await open(t, { proxy });
  await is(view, '#connection', 'Connected');
  await say(view, '/think /say The **first** answer');
  await idle(view);
  assert.equal(await view.locator('.message').nth(1).locator('strong').textContent(), 'first');
  await say(view, 'And what now?');
  await idle(view);
  assert.match(await view.locator('.message').nth(3).locator('.text').textContent(), /demo.*And what now\?/s);
  const { processes, demo } = (await t.get('/health', { proxy })).json;
  assert.equal(demo, true);
  assert.ok(await view.locator('.bar #demo').isVisible(), 'a badge says so');
  assert.match(await text(view, '#auth-method'), /demo/);
  assert.equal(processes.idle, 1, 'both turns went to one process');
});

test('playground: the settings are sent, and an answer that is not streamed is shown too', async (t) => {
  const view = await open(t);
  await is(view, '#default-model', MODEL);
  const models = await view.locator('#model option').allTextContents();
  const other = models.find((id) => /^claude-opus/.test(id));
  await view.selectOption('#model', other);
  await view.fill('#temperature', '0.3');
  await view.uncheck('#stream');
  const request = view.waitForRequest('**/v1/chat/completions');
  await say(view, typed(t, 'plain', { text: 'All at once.' }));
  const body = (await request).postDataJSON();
  await idle(view);
  assert.deepEqual([body.model, body.temperature, body.stream, body.reasoning_effort], [other, 0.3, undefined, undefined]);
  assert.equal(await text(view, '.markdown'), 'All at once.');
  assert.match(await text(view, '.message footer'), /^claude-opus.* in all · 11 in, 7 out · \$/);
  await view.check('#stream');
  await view.check('#tools');
  await view.fill('#temperature', '');
  await view.selectOption('#effort', 'low');
  const next = view.waitForRequest('**/v1/chat/completions');
  await say(view, typed(t, 'plain', {}));
  const { enable_tools, stream, reasoning_effort, temperature } = (await next).postDataJSON();
  assert.deepEqual([enable_tools, stream, reasoning_effort, temperature], [true, true, 'low', undefined]);
  await idle(view);
  assert.equal(await view.locator('.failure').count(), 0);
});

test('playground: a failure is told with its status, and is no part of the conversation', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', '--no-builtin-tools'] });
  const view = await open(t, { proxy, refusals: true });
  await say(view, typed(t, 'error', { status: 400, message: 'no such thing' }));
  await idle(view);
  assert.equal(await text(view, '.failure'), '400: no such thing');
  assert.match(await view.inputValue('#prompt'), /scenario:error/, 'the text is there again');
  await say(view, typed(t, 'error_event', { after: 2, text: 'One two three four.', message: 'Broken off' }));
  await idle(view);
  assert.match(await view.locator('.failure').nth(1).textContent(), /Broken off/);
  assert.match(await view.locator('.message').last().locator('footer').textContent(), /^failed/);
  await view.click('#restart');
  await view.check('#tools');
  await say(view, 'Use a tool');
  await idle(view);
  assert.match(await text(view, '.failure'), /^403: .*tools/i);
  await view.uncheck('#tools');
  await say(view, typed(t, 'plain', { text: 'Fine.' }));
  await idle(view);
  assert.equal(await view.locator('.message').last().locator('.text').textContent(), 'Fine.');
  assert.equal(t.calls().at(-1).body.messages.length, 1, 'what failed is not sent again');
});

test('playground: stopping in mid-stream leaves the API, and the chat goes on', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0'] });
  const view = await open(t, { proxy, reducedMotion: 'no-preference' });
  await is(view, '#default-model', MODEL);
  await eventually('the first look at the CLI is over', () => proxy.claudes().length === 0);
  await say(view, typed(t, 'plain', { text: 'word '.repeat(60), deltas: 60, delay: 100 }));
  await is(view, '.markdown', 'word word word');
  const caret = () => view.evaluate(() => getComputedStyle(document.querySelector('.running .text > *'), '::after').animationName);
  assert.equal(await caret(), 'blink');
  await view.emulateMedia({ reducedMotion: 'reduce' });
  assert.equal(await caret(), 'none', 'who wants it still has it still');
  assert.equal(proxy.claudes().length, 1);
  await view.click('#send');
  await idle(view);
  await eventually('the API is told', () => t.calls()[0].clientLeft);
  assert.match(await text(view, '.message footer'), /^stopped · .* · first token \d/);
  const kept = (await text(view, '.markdown')).trim();
  assert.ok(kept.startsWith('word word') && kept.length < 290, kept);
  await say(view, typed(t, 'plain', { text: 'Next.' }));
  await idle(view);
  assert.equal(await view.locator('.markdown').nth(1).textContent(), 'Next.');
  assert.deepEqual(t.calls()[1].body.messages.map(({ role }) => role), ['user', 'assistant', 'user']);
});

// ---- playground: files, other turns, and chats that stay ------------------------------------------

const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
const PDF = Buffer.from('%PDF-1.4\n%%EOF\n').toString('base64');
const FILES = [
  { name: 'dot.png', mimeType: 'image/png', buffer: Buffer.from(PNG, 'base64') },
  { name: 'report <b>.pdf', mimeType: 'application/pdf', buffer: Buffer.from(PDF, 'base64') },
];
const sent = ({ body }) => body.messages.map(({ role, content }) => [role, content.map(({ text, source }) => source?.data ?? text).filter((part) => !/^<system-reminder>/.test(part))]);
const userTexts = (view) => view.locator('.user .text').allTextContents();
const answers = (view) => view.locator('.markdown').allTextContents();
const newChat = async (view) => {
  await view.click('#restart');
  await eventually('the chat is empty', async () => (await view.locator('.message').count()) === 0);
};

test('playground: an image and a PDF go to the API, and can be taken away before', async (t) => {
  const view = await open(t);
  await is(view, '#default-model', MODEL);
  await view.setInputFiles('#files', [...FILES, FILES[0]]);
  await eventually('three chips', async () => (await view.locator('#draft button').count()) === 3);
  await view.getByRole('button', { name: 'Remove Image' }).last().click();
  assert.deepEqual(await view.locator('#draft button').evaluateAll((all) => all.map((one) => one.ariaLabel)), ['Remove Image', 'Remove report <b>.pdf']);
  const asked = typed(t, 'plain', { text: 'Seen.' });
  await say(view, asked);
  await idle(view);
  assert.deepEqual(sent(t.calls()[0]), [['user', [PNG, PDF, asked]]]);
  const blocks = t.calls()[0].body.messages[0].content.map(({ type, source, title }) => [type, source?.media_type, title]);
  assert.deepEqual(blocks.filter(([type]) => type !== 'text'), [['image', 'image/png', undefined], ['document', 'application/pdf', 'report <b>.pdf']]);
  assert.equal(await view.locator('#draft button').count(), 0);
  assert.equal(await view.locator('.user img').getAttribute('src'), `data:image/png;base64,${PNG}`);
  assert.equal(await text(view, '.user .badge'), 'report <b>.pdf');
  // A file that the API does not take is refused with a reason, and is there again.
  await view.context().removeAllListeners('console');
  await view.setInputFiles('#files', [{ name: 'notes.txt', mimeType: 'text/plain', buffer: Buffer.from('x') }]);
  await view.getByRole('button', { name: 'Remove notes.txt' }).waitFor();
  await say(view, t.token);
  await idle(view);
  assert.match(await text(view, '.failure'), /^400: .*text\/plain/);
  assert.equal(await view.getByRole('button', { name: 'Remove notes.txt' }).count(), 1);
  assert.equal(t.calls().length, 1);
});

test('playground: an image is pasted into the message', async (t) => {
  const view = await open(t);
  await view.focus('#prompt');
  await view.evaluate(async (data) => {
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    await navigator.clipboard.write([new ClipboardItem({ 'image/png': new Blob([bytes], { type: 'image/png' }) })]);
  }, PNG);
  await view.keyboard.press('Control+V');
  await view.getByRole('button', { name: 'Remove Image' }).waitFor();
});

test('playground: an answer is made again, and a message is edited; what follows gives way once there is an answer', async (t) => {
  const view = await open(t, { refusals: true });
  await is(view, '#default-model', MODEL);
  const [one, two, three] = ['One.', 'Two.', 'Three.'].map((said) => typed(t, 'plain', { text: said }));
  for (const what of [one, two]) {
    await say(view, what);
    await idle(view);
  }
  assert.equal(await view.getByRole('button', { name: 'Regenerate' }).count(), 1, 'of the last answer alone');
  await view.getByRole('button', { name: 'Regenerate' }).click();
  await eventually('it is asked again', () => t.calls().length === 3);
  await idle(view);
  assert.deepEqual(sent(t.calls()[2]), [['user', [one]], ['assistant', ['One.']], ['user', [two]]]);
  assert.deepEqual(await answers(view), ['One.', 'Two.']);

  await view.locator('.user').first().getByRole('button', { name: 'Edit' }).click();
  assert.equal(await view.inputValue('#prompt'), one);
  await say(view, typed(t, 'error', { status: 400, message: 'no such thing' }));
  await idle(view);
  assert.deepEqual((await answers(view)).slice(0, 2), ['One.', 'Two.'], 'nothing is lost by a failure');
  assert.match(await view.inputValue('#prompt'), /scenario:error/);
  await say(view, three);
  await idle(view);
  assert.deepEqual(sent(t.calls().at(-1)), [['user', [three]]]);
  assert.deepEqual((await answers(view)).at(-1), 'Three.');
  assert.ok(!(await answers(view)).includes('One.') && !(await answers(view)).includes('Two.'));

  await view.fill('#prompt', 'not sent yet');
  view.once('dialog', (dialog) => dialog.dismiss());
  await view.locator('.user').last().getByRole('button', { name: 'Edit' }).click();
  assert.equal(await view.inputValue('#prompt'), 'not sent yet');
  view.once('dialog', (dialog) => dialog.accept());
  await view.locator('.user').last().getByRole('button', { name: 'Edit' }).click();
  assert.equal(await view.inputValue('#prompt'), three);
  await view.getByRole('button', { name: 'Cancel the edit' }).click();
  await say(view, two);
  await idle(view);
  assert.deepEqual(sent(t.calls().at(-1)), [['user', [three]], ['assistant', ['Three.']], ['user', [two]]]);
});

test('playground: chats stay over a reload, are gone on with, and deleted when that is confirmed', async (t) => {
  const view = await open(t);
  await is(view, '#default-model', MODEL);
  const [first, second, third] = ['**First.**', 'Second.', 'Third.'].map((said) => typed(t, 'plain', { text: said }));
  await view.setInputFiles('#files', FILES);
  await view.getByRole('button', { name: 'Remove Image' }).waitFor();
  await say(view, first);
  await idle(view);
  const foot = await text(view, '.message footer span');
  await newChat(view);
  await say(view, second);
  await idle(view);
  await view.reload();
  await is(view, '.markdown', '^Second.$');
  assert.deepEqual(await userTexts(view), [second]);
  const kept = view.locator('#chats');
  assert.deepEqual(await kept.locator('option').evaluateAll((all) => all.map((one) => one.textContent)), [second.slice(0, 60), first.slice(0, 60)]);
  await kept.selectOption({ index: 1 });
  await is(view, '.markdown strong', '^First.$');
  assert.equal(await text(view, '.message footer span'), foot);
  assert.equal(await view.locator('.user img').getAttribute('src'), `data:image/png;base64,${PNG}`);
  await say(view, third);
  await idle(view);
  assert.deepEqual(sent(t.calls().at(-1)), [['user', [PNG, PDF, first]], ['assistant', ['**First.**']], ['user', [third]]]);

  const confirm = (yes) => view.once('dialog', (dialog) => (yes ? dialog.accept() : dialog.dismiss()));
  confirm(false);
  await view.getByRole('button', { name: 'Delete', exact: true }).click();
  assert.equal(await kept.locator('option').count(), 2, 'not without a yes');
  confirm(true);
  await view.getByRole('button', { name: 'Delete', exact: true }).click();
  await eventually('the chat is empty', async () => (await view.locator('.message').count()) === 0);
  assert.ok(!(await view.evaluate(() => JSON.stringify(localStorage))).includes('First.'));
  assert.ok((await view.evaluate(() => JSON.stringify(localStorage))).includes('Second.'), 'and only that one');
  confirm(true);
  await view.getByRole('button', { name: 'Delete all' }).click();
  await eventually('all are gone', () => view.evaluate(() => localStorage.getItem('claude-openai-chats') === '[]'));
  await view.reload();
  assert.equal(await view.locator('.message').count(), 0);
});

test('playground: a new chat in mid-stream keeps what was answered of the old one, and takes the files along', async (t) => {
  const view = await open(t);
  await is(view, '#default-model', MODEL);
  await say(view, typed(t, 'plain', { text: 'word '.repeat(60), deltas: 60, delay: 100 }));
  await is(view, '.markdown', 'word word');
  await view.setInputFiles('#files', FILES[0]);
  await view.getByRole('button', { name: 'Remove Image' }).waitFor();
  await newChat(view);
  await eventually('the API is told', () => t.calls()[0].clientLeft);
  assert.equal(await view.locator('#draft button').count(), 1);
  await view.locator('#chats').selectOption({ index: 1 });
  await is(view, '.markdown', 'word word');
  assert.match(await text(view, '.message footer'), /^stopped/);
});

test('playground: chats have bounds: files that are too large go first and by name, then the oldest chats', async (t) => {
  const view = await open(t);
  await is(view, '#default-model', MODEL);
  await say(view, typed(t, 'plain', { text: 'Short.' }));
  await idle(view);
  await is(view, '#kept', '^Kept in this browser');
  await newChat(view);
  const large = Buffer.concat([Buffer.from(PDF, 'base64'), Buffer.alloc(900_000, ' ')]);
  await view.setInputFiles('#files', [{ name: 'large.pdf', mimeType: 'application/pdf', buffer: large }]);
  await view.getByRole('button', { name: 'Remove large.pdf' }).waitFor();
  const asked = typed(t, 'plain', { text: 'Read.' });
  await say(view, asked);
  await idle(view);
  await is(view, '#kept', 'without its files');
  await view.reload();
  await is(view, '.markdown', '^Read.$');
  assert.deepEqual(await userTexts(view), [`[large.pdf] ${asked}`]);
  const size = () => view.evaluate(() => localStorage.getItem('claude-openai-chats').length);
  assert.ok((await size()) < 10_000);
  await view.evaluate(() => {
    const chats = JSON.parse(localStorage.getItem('claude-openai-chats'));
    chats[1].turns[0].said = 'x'.repeat(1_999_000);
    localStorage.setItem('claude-openai-chats', JSON.stringify(chats));
  });
  await say(view, typed(t, 'plain', { text: 'More. '.repeat(200) }));
  await idle(view);
  assert.equal(await view.locator('#chats option').count(), 1, 'the oldest has made room');
  assert.ok((await size()) < 20_000);
  await view.evaluate(() => { Storage.prototype.setItem = () => { throw new Error('full'); }; });
  await say(view, typed(t, 'plain', { text: 'Last.' }));
  await idle(view);
  await is(view, '#kept', '^Not kept');
});

test('playground: a kept chat stays text, however hostile', async (t) => {
  const chats = [{ id: 7, turns: [{ text: HOSTILE, files: [{ type: 'file', file: { filename: '<img src=x onerror="pwned = 30">', file_data: 'x' } }], said: HOSTILE, thought: HOSTILE, note: HOSTILE }] }];
  const prepare = (tab) => tab.addInitScript((value) => location.protocol === 'http:' && localStorage.setItem('claude-openai-chats', value), JSON.stringify(chats));
  const view = await open(t, { prepare });
  await view.locator('.markdown').waitFor();
  await view.locator('.thoughts summary').click();
  await assertHarmless(view, '#log');
  await assertHarmless(view, '#chats');
});

const HOSTILE = `<script>pwned = 1</script> <img src=x onerror="pwned = 2"> <b>bold?</b>
[click](javascript:pwned=3) [click](JaVaScRiPt:pwned=3) [click](data:text/html,<script>pwned=4</script>) [click]( javascript:pwned=5)
![image](https://example.org/track.png) ![image](javascript:pwned=6) <javascript:pwned=7> [a](//example.org/x) [\u0001](\u0001javascript:pwned=8)

<iframe srcdoc="<script>parent.pwned = 9</script>"></iframe><style>body { display: none }</style><svg onload="pwned = 10">

\`\`\`html" onclick="pwned = 11
</code></pre><script>pwned = 12</script>
\`\`\`

| <script>pwned = 13</script> | b |
|---|---|
| [x](javascript:pwned=14) | 2 |

> # <img src=x onerror=pwned=15>

- ${'> - '.repeat(3000)}deep

${'*'.repeat(3000)}${'['.repeat(3000)}${'`'.repeat(3000)}`;

/** Nothing but what Markdown may make, and only links that may be clicked. */
async function assertHarmless(view, place) {
  const found = await view.locator(place).first().evaluate((root) => ({
    tags: [...new Set([...root.querySelectorAll('*')].map(({ tagName }) => tagName.toLowerCase()))],
    attributes: [...new Set([...root.querySelectorAll('*')].flatMap((one) => one.getAttributeNames()))],
    links: [...root.querySelectorAll('a')].map(({ href }) => href),
    pwned: window.pwned,
  }));
  const unwanted = ['script', 'img', 'iframe', 'style', 'svg', 'b', 'object', 'form', 'input'];
  assert.deepEqual(found.tags.filter((tag) => unwanted.includes(tag)), []);
  assert.deepEqual(found.attributes.filter((name) => /^(on|style|src)/.test(name)), []);
  assert.deepEqual(found.links.filter((href) => !/^https?:\/\//.test(href)), []);
  assert.equal(found.pwned, undefined);
}

test('what a model says stays text, however hostile', async (t) => {
  const view = await open(t);
  await is(view, '#default-model', MODEL);
  // Too long for a text that the user types: the API is asked to play it another way.
  const spoken = HOSTILE.replaceAll(']]', '] ]');
  t.api.script((record) => (record.raw.includes(t.token) ? { name: 'thinking', thinking: spoken, text: spoken, deltas: 30 } : 'plain'));
  t.defer(async () => t.api.script('plain'));
  await view.selectOption('#effort', 'low');
  await say(view, `${t.token} <img src=x onerror="pwned = 20">`);
  await idle(view);
  await sleep(300);
  await view.locator('.thoughts summary').click();
  await assertHarmless(view, '#log');
  const shown = await text(view, '.markdown');
  for (const said of ['<script>pwned = 1</script>', '<img src=x onerror="pwned = 2">', '(javascript:pwned=3)', '<iframe srcdoc=', '<svg onload', 'pwned = 13'])
    assert.ok(shown.includes(said), `${said} is readable`);
  assert.ok((await text(view, '.thoughts div')).includes('<script>pwned = 1</script>'));
  assert.ok((await text(view, '.user .text')).includes('<img src=x'));

  for (const stream of [true, false]) {
    const entry = entryOf(view, 'POST', '/v1/chat/completions');
    if (stream) await entry.locator('> summary').click();
    await entry.getByLabel('Body').fill(JSON.stringify({ model: MODEL, stream, messages: [{ role: 'user', content: t.token }] }));
    await entry.getByRole('button', { name: 'Send' }).click();
    await eventually('the answer', async () => /in all/.test(await entry.getByRole('status').textContent()));
    await assertHarmless(view, '.endpoint[open] .answer');
    assert.ok((await entry.locator('.answer').textContent()).includes('<script>pwned = 1</script>'));
  }
});

// ---- live ----------------------------------------------------------------------------------------

const buckets = (...counts) =>
  ['0.5', '1', '2', '+Inf'].map((le, at) => `claude_openai_time_to_first_token_seconds_bucket{dialect="openai_chat",le="${le}"} ${counts[at]}`);
let pages = 5000; // of other requests, such as the page's own, which are not answers
const figures = ({ requests, counts }) =>
  [
    '# TYPE claude_openai_requests_total counter',
    `claude_openai_requests_total{route="/v1/chat/completions",dialect="openai_chat",model="a \\"b\\"",status="200"} ${requests}`,
    `claude_openai_requests_total{route="/metrics",dialect="",model="",status="200"} ${(pages += 7)}`,
    ...buckets(...counts),
    'claude_openai_requests_in_flight 4', // with the page's own
    'claude_openai_queue_depth 4',
    'claude_openai_tokens_total{model="a \\"b\\"",kind="input"} 1000',
    'claude_openai_tokens_total{model="a \\"b\\"",kind="output"} 1200',
    'claude_openai_tokens_total{model="<i>c",kind="cache_read"} 2000',
    'claude_openai_tokens_total{model="<i>c",kind="cache_write"} 500',
    'claude_openai_cost_usd_total 1.2345',
    'claude_openai_processes{state="spare"} 2',
    'claude_openai_processes{state="busy"} 1',
    'claude_openai_processes{state="parked"} 1',
    'claude_openai_processes{state="idle"} 3',
    'claude_openai_processes{state="starting"} 0',
    'claude_openai_processes_max 12',
    'claude_openai_uptime_seconds 93784',
  ].join('\n');
const tile = (view, name) => view.locator('#tiles > div').filter({ hasText: name }).locator('dd').allTextContents();

test('live: the figures of /metrics, and how they move', async (t) => {
  // A thousand answers before the page was opened, then ten more: half within 1 s, all within 2 s.
  let now = { requests: 1000, counts: [1000, 1000, 1000, 1000] };
  const prepare = (tab) => tab.route('**/metrics', (route) => route.fulfill({ contentType: 'text/plain', body: figures(now) }));
  const view = await open(t, { prepare });
  await is(view, '#uptime', '^26 h 3 min$');
  assert.deepEqual(await tile(view, 'Requests'), ['0', 'in the last minute']);
  assert.deepEqual(await tile(view, 'First token'), ['250 ms', 'p95 475 ms']); // of all, since none is newer
  assert.deepEqual(await tile(view, 'In flight'), ['3', '4 queued']);
  assert.deepEqual(await tile(view, 'Tokens in'), ['3.5K', '57% cached']);
  assert.deepEqual(await tile(view, 'a \\"b'), ['0% cached', '1K in, 1.2K out']);
  assert.deepEqual(await tile(view, '<i>c'), ['80% cached', '2.5K in, 0 out']);
  assert.deepEqual(await tile(view, 'Tokens out'), ['1.2K', 'since the start']);
  assert.deepEqual(await tile(view, 'Cost'), ['$1.23', 'since the start']);
  assert.equal(await text(view, '#process-count'), '7 of at most 12');
  const slots = await view.locator('#slots li').evaluateAll((all) => all.map((one) => one.className));
  assert.equal(slots.join(' '), `spare spare busy idle idle idle parked${' free'.repeat(5)}`);
  assert.match(await text(view, '#bars-most'), /^none/);
  now = { requests: 1010, counts: [1000, 1005, 1010, 1010] };
  await eventually('ten more', async () => (await tile(view, 'Requests'))[0] === '10');
  assert.deepEqual(await tile(view, 'First token'), ['1.00 s', 'p95 1.90 s']); // of the new ones alone
  assert.equal(await text(view, '#bars-most'), 'at most 10 in 10 s');
  const heights = await view.locator('#bars i').evaluateAll((all) => all.map((one) => one.getBoundingClientRect().height));
  assert.equal(heights.length, 60);
  assert.ok(heights.at(-1) > 50 && heights.slice(0, -1).every((height) => height === 0), String(heights));
  now = { requests: 2, counts: [2, 2, 2, 2] };
  await eventually('the server was restarted', async () => (await tile(view, 'First token'))[0] === '250 ms');
});

test('playground and live: where there are two accounts the page says which one paid', async (t) => {
  const { plan, proxy } = await startWithFallback(t);
  const view = await open(t, { proxy });
  const paid = async (words) => {
    await say(view, words);
    await idle(view);
    return view.locator('#log footer').last().textContent();
  };
  assert.match(await paid('Within the plan.'), / · paid by the plan/);
  assert.match(await text(view, '#tiles'), /since the start$/);
  plan.ends = 0;
  assert.match(await paid('Beyond the plan.'), / · plan used up, paid by api_key/);
  await is(view, '#tiles', '1 by the fallback');
  await is(view, '#tiles', 'five_hour ?unknown ?until .*20\\d\\d');
});

test('live: the figures are those of this server', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '1', '--max-processes', '5'] });
  const view = await open(t, { proxy });
  await is(view, '#process-count', 'of at most \\d+$');
  const before = Number((await tile(view, 'Requests'))[0]);
  await say(view, typed(t, 'plain', { output: 40 }));
  await idle(view);
  await eventually('the request is counted', async () => Number((await tile(view, 'Requests'))[0]) > before);
  assert.match((await tile(view, 'First token'))[0], /^\d+ ms$|^\d+\.\d\d s$/);
});

test('live: without /metrics the page says so calmly, and shows what /health tells', async (t) => {
  let asked = 0;
  const prepare = (tab) =>
    tab.route('**/metrics', (route) => {
      asked++;
      return route.fulfill({ status: 404, body: '{}' });
    });
  const view = await open(t, { prepare, refusals: true });
  await is(view, '#live-note', 'tells no /metrics');
  await is(view, '#process-count', 'of at most 16');
  assert.deepEqual(await tile(view, 'Status'), ['healthy', '']);
  await sleep(4500);
  assert.equal(asked, 1, 'not asked again and again');
});

test('live: a session is shown, and deleted when that is confirmed', async (t) => {
  const id = `<img src=x onerror="pwned = 1"> ${t.token}`;
  const other = `other ${t.token}`;
  for (const session_id of [id, other]) await t.chat({ session_id, messages: t.messages('plain') });
  const view = await open(t);
  const row = view.locator('#sessions tr').filter({ hasText: id });
  await row.waitFor();
  assert.equal(await row.locator('td').nth(1).textContent(), '2');
  await assertHarmless(view, '#sessions');
  const answer = (accept) => view.once('dialog', (dialog) => (accept ? dialog.accept() : dialog.dismiss()));
  answer(false);
  await row.getByRole('button', { name: `Delete ${id}` }).click();
  await sleep(2500);
  assert.equal(await row.count(), 1, 'not without a yes');
  answer(true);
  await row.getByRole('button').click();
  await is(view, '#announcer', 'is deleted');
  await eventually('the row is gone', async () => (await row.count()) === 0);
  assert.equal((await t.get(`/v1/sessions/${encodeURIComponent(id)}`)).status, 404);
  assert.equal((await t.get(`/v1/sessions/${encodeURIComponent(other)}`)).status, 200, 'and only that one');
});

test('usage: with a store, what answers have used in a time, summed up as chosen, beside what the plan costs', async (t) => {
  const store = path.join(scratchFolder(t), 'state.sqlite');
  const begin = () => t.start({ cli: standIn(t), env: { API_KEYS: 'one,two' }, args: ['--spares', '0', '--store', store, '--plan-price', '73'] });
  const first = await begin();
  for (const key of ['one', 'two', 'two']) {
    const body = ask('[[text in=1000 out=200 cache_read=3000 cache_write=1000]]', { model: MODEL });
    const { status } = await t.send({ proxy: first, headers: { 'x-api-key': key }, body }).done;
    assert.equal(status, 200);
  }
  assert.deepEqual((await first.stop()).faults, []);
  first.stopped = true;
  queryStore(store, "UPDATE usage SET hour = hour - 10 * 24 WHERE key = 'key-2'");
  const proxy = await begin();
  const view = await open(t, { proxy });
  await is(view, '#connection', '^Connected$');
  assert.ok(await view.locator('#usage').isHidden(), 'it is told with the key');
  await view.locator('#key').fill('one');
  await view.keyboard.press('Enter');
  const table = () => view.locator('#usage-table tr').evaluateAll((all) => all.map((row) => [...row.children].map((cell) => cell.textContent)));
  const shows = async (days, by, names) => {
    await view.selectOption('#usage-days', days);
    await view.selectOption('#usage-by', by);
    const rows = eventually(`${days} by ${by}`, async () => {
      const [head, ...rows] = await table();
      return head?.[0] === by && JSON.stringify(rows.map(([name]) => name)) === JSON.stringify(names) && rows;
    });
    return rows;
  };
  const usd = async (query) => `$${(await t.get(`/v1/usage?${query}`, { proxy, headers: { 'x-api-key': 'one' } })).json.total.cost_usd.toPrecision(2)}`;
  const [all] = await eventually('all three', async () => {
    const rows = await shows('30 days', 'Model', [MODEL]); // today's table has the same names
    return rows[0][1] === '3' && rows;
  });
  assert.deepEqual(all.slice(1, 7), ['3', '3K', '600', '9K', '3K', '60%']);
  assert.equal(all[7], await usd('by=model'));
  const tiles = () => view.locator('#usage-tiles dd').allTextContents();
  const [answers, , tokens, cached, output, , cost, price, plan, worth] = await tiles();
  assert.deepEqual([answers, tokens, cached, output, cost, price, worth], ['3', '15K', '60% cached', '600', all[7], 'at the list price', 'for $0.00 of answers']);
  assert.match(plan, /^\$(69|7[0-2])\.\d\d$/); // 2.40 a day
  const keys = await shows('30 days', 'Key', ['key-1', 'key-2']);
  assert.deepEqual(keys.map((row) => row[1]), ['1', '2']);
  await shows('90 days', 'Dialect', ['openai_chat']);
  const day = (ago) => new Date(Date.now() - ago * 86_400_000).toISOString().slice(0, 10);
  const today = day(0);
  await shows('30 days', 'Day', [today, day(10)]);
  if (day(0) !== today) return; // a test may run at midnight
  await shows('7 days', 'Day', [today]);
  await shows('today', 'Key', ['key-1']);
  assert.equal((await tiles())[0], '1');

  for (const colorScheme of ['light', 'dark']) {
    await view.emulateMedia({ colorScheme });
    await view.evaluate(axeSource());
    const { violations } = await view.evaluate(() => window.axe.run('#usage'));
    assert.deepEqual(violations.filter(({ impact }) => ['serious', 'critical'].includes(impact)).map(({ id }) => id), []);
  }
  await view.setViewportSize({ width: 360, height: 780 });
  assert.equal(await view.evaluate(() => document.documentElement.scrollWidth), 360, 'nothing sticks out');
});

// ---- the key -------------------------------------------------------------------------------------

test('the key: asked for once, told when it is wrong, kept in this tab only', async (t) => {
  const proxy = await t.start({ cli: t.cli, env: { API_KEY: 'the-right-key' }, args: ['--spares', '0'] });
  const view = await open(t, { proxy, refusals: true });
  const dialog = view.getByRole('dialog');
  await dialog.waitFor();
  const statuses = [];
  view.on('response', (response) => statuses.push(response.status()));
  await view.getByRole('button', { name: 'Not now' }).click();
  await is(view, '#connection', '^Connected$');
  await is(view, '#default-model', 'told with the key');
  await is(view, '#live-note', 'with the client key');
  await is(view, '#tiles', 'healthy');
  await sleep(2500);
  assert.deepEqual(statuses.filter((status) => status !== 200), [], 'nothing is asked that would be refused');
  assert.ok(await dialog.isHidden());

  await view.getByRole('button', { name: 'Enter key' }).click();
  await view.locator('#key').fill('a-wrong-key');
  await view.keyboard.press('Enter');
  await is(view, '#key-problem', 'does not know this key');
  assert.ok(await dialog.isVisible());
  await view.locator('#key').fill('the-right-key');
  await view.keyboard.press('Enter');
  await dialog.waitFor({ state: 'hidden' });
  await is(view, '#default-model', MODEL);
  await is(view, '#live-note', 'every two seconds');
  await say(view, typed(t, 'plain', { text: 'Let in.' }));
  await idle(view);
  assert.equal(await text(view, '.markdown'), 'Let in.');
  const curl = await view.locator('#snippet').textContent();
  assert.ok(curl.includes('$API_KEY') && !curl.includes('the-right-key'), curl);

  assert.deepEqual(await view.evaluate(() => Object.values(sessionStorage)), ['the-right-key']);
  const kept = await view.evaluate(() => Object.values(localStorage));
  assert.ok(kept.join().includes('Let in.') && !kept.join().includes('the-right-key'), kept.join());
  assert.equal((await view.context().cookies()).length, 0);
  await view.reload();
  await is(view, '#default-model', MODEL);
  assert.ok(await dialog.isHidden(), 'once');
  const other = await view.context().newPage();
  await other.goto(proxy.url);
  await other.getByRole('dialog').waitFor();
  await view.getByRole('button', { name: 'Forget key' }).click();
  await is(view, '#default-model', 'told with the key');
  assert.deepEqual(await view.evaluate(() => Object.values(sessionStorage).filter(Boolean)), []);
});

test('the key: one that is no longer taken is told at any later call', async (t) => {
  const proxy = await t.start({ cli: t.cli, env: { API_KEY: 'the-right-key' }, args: ['--spares', '0'] });
  const expired = (tab) => tab.addInitScript(() => location.protocol === 'http:' && sessionStorage.setItem('claude-openai-key', 'an-old-key'));
  const view = await open(t, { proxy, refusals: true, prepare: expired });
  await view.getByRole('dialog').waitFor();
  await is(view, '#key-problem', 'does not take this key any more');
  await view.locator('#key').fill('the-right-key');
  await view.keyboard.press('Enter');
  await is(view, '#default-model', MODEL);
  // The account's own 401 is no matter of the client's key.
  await say(view, typed(t, 'error', { status: 401 }));
  await idle(view);
  assert.match(await text(view, '.failure'), /^401: /);
  await sleep(500);
  assert.ok(await view.getByRole('dialog').isHidden());
  assert.equal(await text(view, '#key-state'), 'In use');
});

// ---- for everybody -------------------------------------------------------------------------------

for (const colorScheme of ['light', 'dark']) {
  test(`axe finds nothing serious in the ${colorScheme} theme`, async (t) => {
    await t.chat({ session_id: `axe ${t.token}`, messages: t.messages('plain') });
    const view = await open(t, { colorScheme, refusals: true });
    await is(view, '#default-model', MODEL);
    await view.locator('#sessions tr').first().waitFor();
    await view.selectOption('#effort', 'low');
    await say(view, typed(t, 'thinking', { text: '# Title\n\n[link](https://example.org) `code`\n\n```js\n// comment\nconst x = "1";\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n> quoted' }));
    await idle(view);
    await say(view, typed(t, 'error', { status: 400 }));
    await idle(view);
    await view.click('#as-curl');
    for (const [method, where] of [['GET', '/v1/models'], ['POST', '/v1/messages'], ['DELETE', '/v1/sessions/{session}']])
      await entryOf(view, method, where).locator('> summary').click();
    await entryOf(view, 'POST', '/v1/messages').getByRole('button', { name: 'Send' }).click();
    await is(view, '.endpoint[open] [role="status"]', 'in all');
    const check = async (where) => {
      await view.evaluate(axeSource());
      const { violations } = await view.evaluate(() => window.axe.run());
      const serious = violations.filter(({ impact }) => ['serious', 'critical'].includes(impact));
      assert.deepEqual(serious.map(({ id, nodes }) => `${where}: ${id}: ${nodes.map(({ html }) => html.slice(0, 200)).join(' ')}`), []);
    };
    await check('wide');
    for (const name of ['Your message', 'System prompt', 'Body']) assert.ok(await view.getByRole('textbox', { name }).count(), name);
    await view.setViewportSize({ width: 360, height: 780 });
    await check('narrow');
  });
}

test('axe finds nothing serious in the dialog for the key', async (t) => {
  const proxy = await t.start({ cli: t.cli, env: { API_KEY: 'the-right-key' }, args: ['--spares', '0'] });
  const view = await open(t, { proxy, refusals: true });
  await view.locator('#key').fill('a-wrong-key');
  await view.keyboard.press('Enter');
  await is(view, '#key-problem', 'does not know');
  await view.evaluate(axeSource());
  const { violations } = await view.evaluate(() => window.axe.run());
  assert.deepEqual(violations.filter(({ impact }) => ['serious', 'critical'].includes(impact)).map(({ id }) => id), []);
});
