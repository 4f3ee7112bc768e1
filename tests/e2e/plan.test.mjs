// What happens where a subscription's plan is used up: the refusal, extra usage, and the other account.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { symlinkSync, unlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { CLI_VERSIONS, DEFAULT_MODEL as MODEL, claudePath } from './claude_cli.mjs';
import { API_KEY_OF_CLAUDE, PROXY, eventually, startAndExpectExit, suite } from './harness.mjs';
import { startCloudApi } from './cloud_api.mjs';
import { directive, startMessagesApi } from './messages_api.mjs';
import { randomOf } from './money.test.mjs';
import { reload, scratchFolder } from './operate.mjs';
import { QUESTIONS, SPOKEN, assertRefused } from './questions.mjs';

export const plan = suite();
const { test } = plan;

const SUBSCRIBED = { ANTHROPIC_API_KEY: undefined, CLAUDE_CODE_OAUTH_TOKEN: 'sk-ant-oat01-test' };

/** The headers by which the API tells a subscription's limits; they begin anew in so many seconds. */
export function limitHeaders(seconds, more) {
  const reset = String(Math.floor(Date.now() / 1000) + seconds);
  const unified = Object.entries({ reset, 'representative-claim': 'five_hour', '5h-reset': reset, ...more });
  return Object.fromEntries(unified.map(([name, value]) => [`anthropic-ratelimit-unified-${name}`, value]));
}
const EXTRA = { status: 'rejected', 'overage-status': 'allowed', 'overage-in-use': 'true' };
/** Of one family of models alone; the windows' names in the headers are shorter than the CLI's. */
const SONNET_ENDS = { status: 'rejected', 'representative-claim': 'seven_day_sonnet' };
const HAIKU = 'claude-haiku-4-5-20251001';
/** An older CLI, which tells less of the limits, and the newest that is tried. */
const OLDER = claudePath('2.1.197');
const mainClis = (t) => [OLDER, t.cli === OLDER ? claudePath(CLI_VERSIONS.at(-1)) : t.cli];

test('--no-extra-usage: what a subscription bills beyond its plan is refused until the limit begins anew; else it is answered, and said', async (t) => {
  const start = (...args) => t.start({ cli: t.cli, env: SUBSCRIBED, args: ['--spares', '0', ...args] });
  const ask = (proxy, text, headers) => t.chat({ messages: t.messages(directive('plain', { headers })).map((one) => ({ ...one, content: `${one.content} ${text}` })) }, { proxy });
  const asked = (text) => t.calls().filter(({ raw }) => raw.includes(text)).length;
  for (const refuses of [false, true]) {
    const proxy = await start(...(refuses ? ['--no-extra-usage'] : []));
    const within = await ask(proxy, 'Within.', limitHeaders(3600, { status: 'allowed', '5h-utilization': '0.3' }));
    assert.equal(within.headers['x-claude-ratelimit-five_hour-status'], 'allowed');
    assert.equal(within.headers['x-claude-ratelimit-five_hour-extra-usage'], undefined);
    const first = await ask(proxy, 'Beyond.', limitHeaders(3600, EXTRA));
    assert.equal(first.status, 200, 'nobody could know');
    assert.equal(first.headers['x-claude-ratelimit-five_hour-extra-usage'], 'true');
    assert.match(proxy.output, /the plan's limit five_hour is used up: answers are billed as extra usage/);
    const next = await ask(proxy, `Next, ${refuses}.`, limitHeaders(3600, EXTRA));
    assert.equal(asked(`Next, ${refuses}.`), refuses ? 0 : 1);
    if (!refuses) continue;
    assertRefused(next, 429, /^the plan's limit five_hour is used up for another \d+ s, and this proxy takes no extra usage/);
    assert.deepEqual([next.json.error.code, next.headers['x-should-retry']], ['extra_usage_refused', 'false']);
    const wait = Number(next.headers['retry-after']);
    assert.ok(wait > 3400 && wait <= 3600, next.headers['retry-after']);
    for (const [path, [question]] of Object.entries(QUESTIONS)) {
      const other = await t.send({ proxy, path: `/v1/${path}`, body: { model: MODEL, ...question(t.text('plain')) } }).done;
      assert.equal(other.status, 429, `${path}: ${other.text}`);
    }
  }
  const proxy = await start('--no-extra-usage');
  assert.equal((await ask(proxy, 'Beyond.', limitHeaders(2, EXTRA))).status, 200);
  await eventually('the limit begins anew', async () => (await ask(proxy, 'Later.', {})).status === 200);
});

test('--no-extra-usage: whichever word of the API says that answers are billed beyond the plan', async (t) => {
  const words = [{ ...EXTRA, status: 'allowed' }, { status: 'rejected', 'overage-status': 'allowed' }];
  for (const cli of mainClis(t)) {
    for (const [i, headers] of words.entries()) {
      const proxy = await t.start({ cli, env: SUBSCRIBED, args: ['--spares', '0', '--no-extra-usage'] });
      const ask = (text) => t.chat({ messages: t.messages(directive('plain', { headers: limitHeaders(3600, headers) })).map((one) => ({ ...one, content: `${one.content} ${text}` })) }, { proxy });
      assert.equal((await ask('Beyond.')).status, 200, 'nobody could know');
      const unasked = `Refused, ${proxy.port}, ${i}.`;
      assert.equal((await ask(unasked)).json.error?.code, 'extra_usage_refused');
      assert.ok(!t.calls().some(({ raw }) => raw.includes(unasked)));
    }
  }
});

test('what waits while the plan is used up is neither billed beyond it nor asked in vain: it is refused, or the other account answers', async (t) => {
  const headers = limitHeaders(3600, EXTRA);
  const script = (call) => (call.headers['x-api-key'] ? 'plain' : { name: 'plain', ttft: 400, headers });
  for (const args of [['--max-processes', '1'], ['--max-processes', '4']]) {
    for (const [kind, expected] of [['refused', [200, 429, 429]], ['other', ['api_key', 'api_key', 'cli']]]) {
      const env = { ...SUBSCRIBED, ...(kind === 'other' && { ANTHROPIC_API_KEY: API_KEY_OF_CLAUDE }) };
      const api = await startMessagesApi();
      t.defer(() => api.close());
      api.script(script);
      const fallback = kind === 'other' ? ['--fallback', 'api_key'] : [];
      const proxy = await t.start({ url: api.url, cli: t.cli, env, args: ['--auth-method', 'cli', '--no-extra-usage', '--spares', '0', ...args, ...fallback] });
      // With places for all they wait for their session, else for a process.
      const session = args[1] === '1' ? {} : { 'x-session-id': 'one' };
      const results = await Promise.all([1, 2, 3].map((i) => t.send({ proxy, headers: session, body: { model: MODEL, messages: [{ role: 'user', content: `At once ${i}.` }] } }).done));
      const outcomes = results.map(({ status, headers: got }) => (kind === 'other' ? got['x-claude-account'] : status)).sort();
      assert.deepEqual(outcomes, expected, results.map(({ text }) => text).join('\n'));
      assert.equal(api.requests.filter((call) => call.body?.messages && accountOf(call) === 'cli').length, 1, 'the plan is asked once');
      assert.equal(await t.busyProcesses({ proxy }), 0);
    }
  }
});

test('a model that needs a newer Claude Code is a 400 with the command that updates it, and is not tried again', async (t) => {
  const message = 'Claude Code 2.1.330 does not support this model; version 2.1.400 or newer is required';
  for (const stream of [false, true]) {
    const result = await t.chat({ stream, messages: t.messages(directive('error', { status: 400, message })) });
    assertRefused(result, 400, /version 2\.1\.400 or newer is required\. Update it: `claude update`/);
    assert.deepEqual([result.json.error.code, result.headers['x-should-retry']], ['claude_too_old', 'false']);
  }
});

test('which models need a newer Claude Code is told by the list and by doctor, they are no default, and another Claude Code is asked anew', async (t) => {
  const [other, newest] = CLI_VERSIONS.slice(-2).map(claudePath);
  const link = path.join(scratchFolder(t), 'claude');
  symlinkSync(newest, link);
  const model = 'claude-haiku-4-5-20251001';
  const proxy = await t.start({ cli: link, args: ['--spares', '0', '--model', model, '--alias', `small-too=${model}`] });
  await proxy.inspected();
  const list = async (headers) => (await t.get('/v1/models', { proxy, headers })).json.data;
  const needs = async (headers) => Object.fromEntries((await list(headers)).filter((one) => 'claude_code_required' in one).map((one) => [one.id, one.claude_code_required]));
  assert.equal((await list())[0].id, model);
  assert.deepEqual(await needs(), {});
  const message = 'Claude Code 2.1.330 does not support this model; version 2.1.400 or newer is required';
  const asks = (what) => t.chat({ model: undefined, messages: t.messages(what) }, { proxy });
  assertRefused(await asks(directive('error', { status: 400, message })), 400, /2\.1\.400/);
  assert.equal(t.calls().length, 1, 'it is asked once');
  for (const headers of [{}, { 'anthropic-version': '2023-06-01' }]) {
    assert.deepEqual(await needs(headers), { [model]: '2.1.400', 'small-too': '2.1.400' });
    assert.deepEqual((await list(headers)).slice(-2).map(({ id }) => id), [model, 'small-too'], 'what can be used comes first');
    assert.equal((await t.get(`/v1/models/${model}`, { proxy, headers })).json.claude_code_required, '2.1.400');
  }
  const looked = promisify(execFile)(PROXY, ['doctor', '--url', proxy.url, '--model', MODEL], { env: {} }).catch((error) => error);
  assert.match((await looked).stdout, new RegExp(`models: \\d+; .*${model} needs Claude Code 2\\.1\\.400 or newer: .claude update.`));
  unlinkSync(link);
  symlinkSync(other, link);
  await eventually('another Claude Code', async () => Object.keys(await needs()).length === 0);
  assert.equal((await list())[0].id, model);
  assert.equal((await asks('plain')).status, 200);
});

test('what a Claude Code can is asked of it: its version number says nothing about the lifetime of a cached prompt', async (t) => {
  const ttl = (text) => [...JSON.stringify(t.calls().find(({ raw }) => raw.includes(text)).body).matchAll(/"cache_control":\{"type":"ephemeral"(?:,"ttl":"(\w+)")?/g)].map(([, time]) => time);
  const [old, newest] = mainClis(t);
  for (const [program, named, sent] of [[old, 'prompt_cache_retention', undefined], [newest, undefined, '1h']]) {
    const cli = path.join(scratchFolder(t), 'claude');
    const untrue = named ? '2.1.999' : '2.1.130';
    writeFileSync(cli, `#!/bin/sh\ncase "$*" in *--version*) echo "${untrue} (Claude Code)"; exit;; esac\nexec ${program} "$@"\n`, { mode: 0o755 });
    const proxy = await t.start({ cli, args: ['--spares', '0'] });
    await proxy.inspected();
    const text = `Kept by ${path.basename(path.dirname(cli))}.`;
    const { status, headers } = await t.chat({ prompt_cache_retention: '24h', messages: t.messages('plain').map((one) => ({ ...one, content: `${one.content} ${text}` })) }, { proxy });
    assert.deepEqual([status, headers['x-ignored-params']], [200, named]);
    assert.deepEqual(new Set(ttl(text)), new Set([sent]));
    const { exit, output } = await startAndExpectExit({ cli, url: t.api.url, args: ['doctor'] });
    assert.equal(exit.code, 0, output);
    assert.match(output, named ? /cache lifetime: this claude cannot choose it; x-ignored-params says so/ : /cache lifetime: as a request asks/);
  }
});

/** The account that pays for a call: its key, or the login of a subscription. */
const accountOf = ({ headers }) => (headers['x-api-key'] ? 'api_key' : 'cli');

/** The words of a call, the account that was asked, and for which model. */
const callsOf = (api, text) => api.requests.filter(({ body, raw }) => body?.messages && raw.includes(text)).map((one) => [accountOf(one), one.body.model]);

/** A proxy whose login's plan the returned API can end, for so many seconds; its other account never ends. */
export async function startWithFallback(t, args = [], { cli = t.cli } = {}) {
  const api = await startMessagesApi();
  const plan = { ends: undefined, calls: 0 };
  api.script(({ headers, body }) => {
    const looks = body.tools?.length && !body.messages.at(-1).content.some?.(({ type }) => type === 'tool_result');
    if (headers['x-api-key'] || !(++plan.calls >= plan.ends)) return looks ? 'tool_use' : 'plain';
    return { name: 'error', status: 429, headers: limitHeaders(plan.seconds ?? 3600, { status: 'rejected' }) };
  });
  t.defer(() => api.close());
  const env = { ...SUBSCRIBED, ANTHROPIC_API_KEY: API_KEY_OF_CLAUDE };
  const proxy = await t.start({ url: api.url, cli, env, args: ['--auth-method', 'cli', '--fallback', 'api_key', '--spares', '1', ...args] });
  return { api, plan, proxy };
}

test('--fallback: while the plan is used up the other account answers, in each dialect, and nothing is asked twice', async (t) => {
  const { api, plan, proxy } = await startWithFallback(t);
  const calls = (text) => api.requests.filter(({ body, raw }) => body?.messages && raw.includes(text)).map(accountOf);
  const chat = (text) => t.chat({ model: MODEL, messages: [{ role: 'user', content: text }] }, { proxy });
  const outcome = ({ status, headers, json }) => [status, headers['x-claude-account'], json?.choices?.[0].message.content];
  assert.deepEqual(outcome(await chat('Within the plan.')), [200, 'cli', SPOKEN]);
  plan.ends = 0;
  assert.deepEqual(outcome(await chat('The first one beyond.')), [200, 'api_key', SPOKEN]);
  assert.deepEqual(calls('The first one beyond.'), ['cli', 'api_key'], 'refused once, answered once');
  assert.match(proxy.output, /the plan's limit five_hour is used up/);
  for (const [path, [question, wordsOf]] of Object.entries(QUESTIONS)) {
    for (const stream of [false, true]) {
      const text = `(${path}) ${stream} beyond.`;
      const result = await t.send({ proxy, path: `/v1/${path}`, body: { model: MODEL, stream, ...question(text) } }).done;
      assert.deepEqual([result.status, result.headers['x-claude-account']], [200, 'api_key'], result.text);
      if (!stream) assert.equal(wordsOf(result.json), SPOKEN);
      assert.deepEqual(calls(text), ['api_key'], 'a plan that is known to be used up is not asked');
    }
  }
  const metrics = await t.send({ proxy, method: 'GET', path: '/metrics' }).done;
  assert.match(metrics.text, /^claude_openai_fallback_answers_total 9$/m);
  const usdOf = (name) => Number(metrics.text.match(new RegExp(`^claude_openai_${name} (\\S+)$`, 'm'))[1]);
  assert.ok(usdOf('fallback_cost_usd_total') > 0 && usdOf('fallback_cost_usd_total') < usdOf('cost_usd_total'));
});

test('--fallback: a process of the other account is kept ready, which answers the first request that the plan refuses', async (t) => {
  const { plan, proxy } = await startWithFallback(t, ['--spares', '2', '--fallback-model', HAIKU]);
  await eventually('both are ready', async () => /processes\{state="spare"\} 2$/m.test((await t.get('/metrics', { proxy })).text));
  const keyed = proxy.claudes().filter(({ environment }) => environment.ANTHROPIC_API_KEY);
  assert.deepEqual([proxy.claudes().length, keyed.length], [2, 1]);
  plan.ends = 0;
  assert.equal((await t.chat({ model: MODEL, messages: [{ role: 'user', content: 'Refused.' }] }, { proxy })).headers['x-claude-account'], 'api_key');
  assert.match((await t.get('/metrics', { proxy })).text, /turns_total\{process="spare"\} 1$/m);
});

test('--fallback: a limit of a minute is not the plan, and the plan answers again when it begins anew', async (t) => {
  const { api, plan, proxy } = await startWithFallback(t);
  const ask = (text) => t.chat({ model: MODEL, messages: [{ role: 'user', content: text }] }, { proxy });
  api.script(({ headers }) => (headers['x-api-key'] ? 'plain' : { name: 'error', status: 429, retry_after: 1, should_retry: false }));
  const refusedForAMinute = await ask('In a minute.');
  assertRefused(refusedForAMinute, 429, /./);
  assert.equal(refusedForAMinute.headers['retry-after'], '60');
  assert.equal(api.requests.filter((one) => accountOf(one) === 'api_key').length, 0);
  let refused = 0;
  api.script(({ headers }) => (headers['x-api-key'] || refused++ ? 'plain' : { name: 'error', status: 429, headers: limitHeaders(2, { status: 'rejected' }) }));
  assert.equal((await ask('At the end of the plan.')).headers['x-claude-account'], 'api_key');
  await eventually('the plan answers', async () => (await ask('Later.')).headers['x-claude-account'] === 'cli');
  assert.equal(plan.calls, 0);
});

test('--fallback: a refusal of the other account has its own Retry-After, not that of the plan', async (t) => {
  const { api, proxy } = await startWithFallback(t);
  const refusals = { api_key: { retry_after: 1, should_retry: false }, cli: { headers: limitHeaders(3600, { status: 'rejected' }) } };
  api.script((call) => ({ name: 'error', status: 429, ...refusals[accountOf(call)] }));
  for (const text of ['Refused by both.', 'Refused by the other.']) {
    const result = await t.chat({ model: MODEL, messages: [{ role: 'user', content: text }] }, { proxy });
    assertRefused(result, 429, /./);
    assert.ok(Number(result.headers['retry-after']) <= 60, result.headers['retry-after']);
  }
  assert.deepEqual(callsOf(api, 'Refused by the other.').map(([account]) => account), ['api_key']);
});

test('--fallback: a refusal that comes when its limit has begun anew is answered by the other account, too', async (t) => {
  for (const cli of mainClis(t)) {
    const { api, proxy } = await startWithFallback(t, [], { cli });
    const late = () => ({ name: 'error', status: 429, ttft: 2500, headers: limitHeaders(1, { status: 'rejected' }) });
    api.script(({ headers }) => (headers['x-api-key'] ? 'plain' : late()));
    const result = await t.chat({ model: MODEL, messages: [{ role: 'user', content: 'Late.' }] }, { proxy });
    assert.deepEqual([result.status, result.headers['x-claude-account']], [200, 'api_key'], result.text);
    assert.deepEqual(callsOf(api, 'Late.').map(([account]) => account), ['cli', 'api_key']);
  }
});

/** How a turn is asked for, and what its answer holds: with the whole history, after a stored response, in a session. */
const LOOK = { description: 'Looks.', parameters: { type: 'object', properties: {} } };
const CHAT = {
  where: '/v1/chat/completions',
  tools: [{ type: 'function', function: { name: 'look', ...LOOK } }],
  asked: (messages) => ({ messages }),
  read: ({ json, data }) => (json ? json.choices[0].message : { content: data.map((one) => one.choices?.[0]?.delta.content ?? '').join('') }),
  wordsOf: (message) => message.content,
  callOf: (message) => message.tool_calls?.[0].id,
  assistant: (message) => ({ role: 'assistant', content: message.content, tool_calls: message.tool_calls }),
  found: (id, content) => ({ role: 'tool', tool_call_id: id, content }),
};
const TALKS = [
  CHAT,
  {
    where: '/v1/messages',
    tools: [{ name: 'look', description: LOOK.description, input_schema: LOOK.parameters }],
    asked: (messages) => ({ messages, max_tokens: 900 }),
    read: ({ json, data }) => json ?? { content: [{ type: 'text', text: data.map((one) => one.delta?.text ?? '').join('') }] },
    wordsOf: (message) => message.content.find(({ type }) => type === 'text')?.text,
    callOf: (message) => message.content.find(({ type }) => type === 'tool_use')?.id,
    assistant: ({ content }) => ({ role: 'assistant', content }),
    found: (id, content) => ({ role: 'user', content: [{ type: 'tool_result', tool_use_id: id, content }] }),
  },
  {
    where: '/v1/responses',
    tools: [{ type: 'function', name: 'look', ...LOOK }],
    asked: (messages) => ({ input: [messages.at(-1)], previous_response_id: messages.at(-2)?.id }),
    read: ({ json, data }) => json ?? data.find(({ type }) => type === 'response.completed').response,
    wordsOf: ({ output }) => output.find(({ type }) => type === 'message')?.content[0].text,
    callOf: ({ output }) => output.find(({ type }) => type === 'function_call')?.call_id,
    assistant: ({ id }) => ({ role: 'assistant', id }),
    found: (id, output) => ({ type: 'function_call_output', call_id: id, output }),
  },
  { ...CHAT, asked: (messages) => ({ messages: [messages.at(-1)] }), inSession: true },
];

/** One conversation of a kind; every third looks with a tool before it answers, of the others some are streamed. */
function conversation(t, { api, proxy, accounts, delays }, name, at) {
  const talk = TALKS[at % TALKS.length];
  const tools = at % 3 === 0 ? talk.tools : undefined;
  const stream = !tools && Math.floor(at / TALKS.length) === 1;
  const headers = talk.inSession ? { 'X-Session-Id': name.replace(/\W+/g, '-') } : {};
  const messages = [];
  let turns = 0;
  const ask = async (text) => {
    const calls = api.requests.length;
    const exchange = t.send({ proxy, path: talk.where, headers, body: { model: MODEL, stream, tools, ...talk.asked(messages) } });
    const result = await exchange.done;
    assert.equal(result.status, 200, result.text);
    const account = result.headers['x-claude-account'];
    if (account) accounts.add(account);
    else assert.ok(exchange.chunks[0].at - exchange.sentAt > 14_000, 'only a stream that has begun while it waited names none');
    const own = api.requests.slice(calls).filter((call) => call.body?.messages && JSON.stringify(call.body.messages.at(-1)).includes(text));
    const paid = own.filter(({ status }) => status === 200);
    assert.equal(paid.length, 1, `${text}: ${paid.length} answers`);
    assert.equal(paid[0].body.messages.filter(({ role }) => role === 'assistant').length, messages.filter(({ role }) => role === 'assistant').length, 'with its history');
    const refused = own.find(({ status }) => status === 429);
    if (refused) delays.push(exchange.chunks[0].at - refused.at);
    const message = talk.read(result);
    messages.push(talk.assistant(message));
    return message;
  };
  return async () => {
    const text = `${name}, turn ${++turns}.`;
    messages.push({ role: 'user', content: text });
    let answered = await ask(text);
    if (tools) {
      messages.push(talk.found(talk.callOf(answered), `Found in ${text}`));
      answered = await ask(`Found in ${text}`);
    }
    assert.equal(talk.wordsOf(answered), SPOKEN);
  };
}

test("--fallback: a conversation goes on in the plan's process when the limit has begun anew, and an agent is moved before it has used a tool", async (t) => {
  const { api, plan, proxy } = await startWithFallback(t);
  const messages = [];
  const say = async (text, more = {}) => {
    messages.push({ role: 'user', content: text });
    const { json, headers, status } = await t.chat({ model: MODEL, messages, ...more }, { proxy });
    assert.equal(status, 200, JSON.stringify(json));
    messages.push({ role: 'assistant', content: json.choices[0].message.content });
    return headers['x-claude-account'];
  };
  for (const more of [{}, { enable_tools: true }]) {
    messages.length = 0;
    api.script(({ headers }) => (!headers['x-api-key'] && plan.refuses ? { name: 'error', status: 429, headers: limitHeaders(2, { status: 'rejected' }) } : 'plain'));
    assert.equal(await say('Within.', more), 'cli');
    plan.refuses = true;
    assert.equal(await say('Beyond.', more), 'api_key');
    assert.deepEqual(callsOf(api, 'Beyond.').map(([one]) => one).slice(-2), ['cli', 'api_key']);
    plan.refuses = false;
    await eventually('the plan answers', async () => (await say('Again.', more)) === 'cli');
    if (!more.enable_tools) assert.match(proxy.output.split('\n').filter((line) => line.includes('/v1/chat/completions')).at(-1), /\b(continued|rewound)\b/, 'the process that has the beginning');
    const last = api.requests.filter(({ body, raw }) => body?.messages && raw.includes('Again.')).at(-1);
    assert.equal(last.body.messages.filter(({ role }) => role === 'assistant').length, messages.filter(({ role }) => role === 'assistant').length - 1);
  }
});

// At random moments; SOAK=1 ends the plan a hundred times, SOAK_SEED=n repeats one.
const ENDS = process.env.SOAK ? 100 : 3;
test('--fallback: conversations go on where the plan ends at any moment, no answer is lost and none is paid twice', { deadline: ENDS * 100_000 }, async (t) => {
  const run = await startWithFallback(t, ['--max-processes', '32']);
  const { plan, proxy } = run;
  Object.assign(run, { accounts: new Set(), delays: [] });
  const seed = Number(process.env.SOAK_SEED ?? Date.now() % 1e6);
  console.log(`     (SOAK_SEED=${seed})`);
  const random = randomOf(seed);
  let chats = [];
  for (let round = 0; round < ENDS; round++) {
    if (round % 3 === 0) chats = Array.from({ length: 12 }, (_, i) => conversation(t, run, `Round ${round}, chat ${i}`, i));
    Object.assign(plan, { calls: 0, ends: 1 + Math.floor(random() * 40), seconds: 2 });
    await Promise.all(chats.map(async (turn) => {
      for (let i = 0; i < 3; i++) await turn();
    }));
    plan.ends = undefined;
    await eventually('the plan begins anew', async () => (await t.chat({ model: MODEL, messages: [{ role: 'user', content: 'Well?' }] }, { proxy })).headers['x-claude-account'] === 'cli');
  }
  const delays = run.delays.sort((one, other) => one - other).map(Math.round);
  console.log(`     (${delays.length} refusals; until the first byte of the other account's answer ${delays[delays.length >> 1]} ms, at most ${delays.at(-1)} ms)`);
  assert.deepEqual([...run.accounts].sort(), ['api_key', 'cli']);
});

test('a limit of one family of models does not count for the others', async (t) => {
  for (const cli of mainClis(t)) {
    const { api, proxy } = await startWithFallback(t, [], { cli });
    const strict = await t.start({ url: api.url, cli, env: SUBSCRIBED, args: ['--spares', '0', '--no-extra-usage'] });
    const ask = (model, text, to = proxy) => t.chat({ model, messages: [{ role: 'user', content: text }] }, { proxy: to });
    const ends = limitHeaders(3600, SONNET_ENDS);
    api.script(({ headers, body }) => (headers['x-api-key'] || !body.model.includes('sonnet') ? 'plain' : { name: 'error', status: 429, headers: ends }));
    assert.equal((await ask(MODEL, 'Refused.')).headers['x-claude-account'], 'api_key');
    assert.equal((await ask(MODEL, 'Known to be refused.')).headers['x-claude-account'], 'api_key');
    assert.equal((await ask(HAIKU, 'Another family.')).headers['x-claude-account'], 'cli');
    assert.deepEqual(callsOf(api, 'Known to be refused.'), [['api_key', MODEL]]);
    assert.deepEqual(callsOf(api, 'Another family.'), [['cli', HAIKU]]);

    api.script(({ body }) => (body.model.includes('sonnet') ? { name: 'plain', headers: { ...ends, ...limitHeaders(3600, { ...SONNET_ENDS, ...EXTRA }) } } : 'plain'));
    assert.equal((await ask(MODEL, 'Beyond.', strict)).status, 200);
    assert.equal((await ask(MODEL, 'Refused here.', strict)).status, 429);
    assert.equal((await ask(HAIKU, 'Another family here.', strict)).status, 200);
  }
});

test('--fallback: a refusal that does not say until when goes on with the other account, too', async (t) => {
  for (const cli of mainClis(t)) {
    const { api, proxy } = await startWithFallback(t, [], { cli });
    const headers = { 'anthropic-ratelimit-unified-status': 'rejected', 'anthropic-ratelimit-unified-representative-claim': 'five_hour' };
    api.script((call) => (call.headers['x-api-key'] ? 'plain' : { name: 'error', status: 429, headers }));
    const result = await t.chat({ model: MODEL, messages: [{ role: 'user', content: 'No reset.' }] }, { proxy });
    assert.deepEqual([result.status, result.headers['x-claude-account']], [200, 'api_key'], result.text);
    assert.deepEqual(callsOf(api, 'No reset.').map(([account]) => account), ['cli', 'api_key']);
  }
});

test('--fallback with --no-extra-usage: what the plan would bill beyond it is paid by the other account', async (t) => {
  for (const words of [EXTRA, { ...EXTRA, status: 'allowed' }]) {
    const { api, proxy } = await startWithFallback(t, ['--no-extra-usage']);
    const ask = (text) => t.chat({ model: MODEL, messages: [{ role: 'user', content: text }] }, { proxy });
    const headers = limitHeaders(3600, words);
    api.script((call) => (call.headers['x-api-key'] ? 'plain' : { name: 'plain', headers }));
    assert.equal((await ask('Nobody could know.')).headers['x-claude-account'], 'cli');
    assert.equal((await ask('From now on.')).headers['x-claude-account'], 'api_key');
    assert.deepEqual(callsOf(api, 'From now on.').map(([account]) => account), ['api_key']);
  }
});

test('--fallback without --no-extra-usage: extra usage answers, and the other account is not asked', async (t) => {
  const { api, proxy } = await startWithFallback(t);
  const headers = limitHeaders(3600, EXTRA);
  api.script(() => ({ name: 'plain', headers }));
  for (const text of ['Beyond.', 'Still beyond.']) {
    const result = await t.chat({ model: MODEL, messages: [{ role: 'user', content: text }] }, { proxy });
    assert.equal(result.headers['x-claude-account'], 'cli');
    assert.deepEqual(callsOf(api, text).map(([account]) => account), ['cli']);
  }
});

test('--fallback-model: the other account answers with it, as far as it can what is asked, and log, usage and figures name both', async (t) => {
  const other = 'claude-opus-4-8';
  const store = path.join(scratchFolder(t), 'state.db');
  const { api, plan, proxy } = await startWithFallback(t, ['--fallback-model', other, '--store', store, '--plan-price', '73']);
  const ask = (text, more) => t.chat({ model: MODEL, temperature: 0.5, messages: [{ role: 'user', content: text }], ...more }, { proxy });
  await ask('Within the plan.');
  plan.ends = 0;
  for (const text of ['The first one beyond.', 'Another one beyond.']) {
    const { status, headers, json } = await ask(text);
    assert.deepEqual([status, headers['x-claude-account'], json.model], [200, 'api_key', other]);
    assert.equal(headers['x-ignored-params'], 'temperature', 'this model takes none');
    assert.deepEqual(callsOf(api, text).at(-1), ['api_key', other]);
    await eventually('its line in the log', () => new RegExp(`200 .*model ${other}, billed to api_key`).test(proxy.output));
  }
  const metrics = (await t.get('/metrics', { proxy })).text;
  assert.match(metrics, new RegExp(`requests_total\\{.*model="${other}".*\\} 2$`, 'm'));
  const usage = async (by) => (await t.get(`/v1/usage?by=${by}`, { proxy })).json;
  const { data, plan: price } = await usage('account');
  assert.deepEqual(data.map(({ account, answers }) => [account, answers]), [['api_key', 2], ['cli', 1]]);
  assert.equal(price.list_price_usd, data[1].cost_usd, 'the plan is held against its own answers');
  assert.deepEqual((await usage('model')).data.map(({ model, answers }) => [model, answers]), [[other, 2], [MODEL, 1]]);
});

test('--fallback: an account of Bedrock or of Vertex answers, with its own names for models', async (t) => {
  const clouds = {
    bedrock: [{ AWS_REGION: 'us-east-1', CLAUDE_CODE_SKIP_BEDROCK_AUTH: '1' }, 'us.anthropic.claude-sonnet-4-5-20250929-v1:0'],
    vertex: [{ CLOUD_ML_REGION: 'us-east5', ANTHROPIC_VERTEX_PROJECT_ID: 'my-project', CLAUDE_CODE_SKIP_VERTEX_AUTH: '1' }, 'claude-sonnet-4-5@20250929'],
  };
  for (const [cloud, [variables, model]] of Object.entries(clouds)) {
    const api = await startMessagesApi();
    const behind = await startCloudApi(cloud, api.url);
    t.defer(async () => void (await Promise.all([api.close(), behind.close()])));
    const headers = limitHeaders(3600, { status: 'rejected' });
    api.script((call) => (call.headers['x-api-key'] === cloud ? 'plain' : { name: 'error', status: 429, headers }));
    const env = { ...SUBSCRIBED, ...variables, [`ANTHROPIC_${cloud.toUpperCase()}_BASE_URL`]: behind.url };
    const proxy = await t.start({ url: api.url, cli: t.cli, env, args: ['--auth-method', 'cli', '--fallback', cloud, '--fallback-model', model, '--spares', '0'] });
    for (const stream of [false, true]) {
      const result = await t.chat({ model: MODEL, stream, messages: [{ role: 'user', content: `In the ${cloud}, ${stream}.` }] }, { proxy });
      assert.deepEqual([result.status, result.headers['x-claude-account']], [200, cloud], result.text);
      assert.ok(result.text.includes(SPOKEN.slice(0, 5)), result.text);
    }
    assert.deepEqual([...new Set(behind.calls.map((call) => call.model))], [model]);
    assert.equal(behind.calls.length, 2, 'each is asked once');
    assert.equal(api.requests.filter(({ headers: sent, body }) => body?.messages && sent['x-api-key'] !== cloud).length, 1);
  }
});

test('--fallback: an answer that has not begun names no account in its headers', async (t) => {
  const { api, proxy } = await startWithFallback(t);
  const silence = 15_000; // for so long the proxy waits before it begins a stream
  api.script(({ headers }) => (headers['x-api-key'] ? 'plain' : { name: 'error', status: 429, ttft: silence + 2000, headers: limitHeaders(3600, { status: 'rejected' }) }));
  const result = await t.chat({ model: MODEL, stream: true, messages: [{ role: 'user', content: 'Slowly refused.' }] }, { proxy });
  assert.deepEqual([result.status, result.headers['x-claude-account']], [200, undefined], result.text);
  assert.ok(result.text.includes('[DONE]'));
  assert.deepEqual(callsOf(api, 'Slowly refused.').map(([account]) => account), ['cli', 'api_key']);
  await eventually('its line in the log', () => /billed to api_key/.test(proxy.output));
});

test('--no-extra-usage by SIGHUP holds for what comes next, and its end too; extra usage that is used up as well is a refusal', async (t) => {
  const folder = scratchFolder(t);
  const file = path.join(folder, 'config.toml');
  const configure = (refuse) => writeFileSync(file, `no-extra-usage=${refuse}\n`);
  configure(false);
  const proxy = await t.start({ cli: t.cli, env: SUBSCRIBED, args: ['--spares', '0', '--config', file] });
  const ask = (headers, more = {}) => t.chat({ messages: t.messages(directive('plain', { headers, ...more })) }, { proxy });
  assert.equal((await ask(limitHeaders(3600, EXTRA))).status, 200);
  for (const refuse of [true, false]) {
    configure(refuse);
    assert.match(await reload(proxy), /loaded anew/);
    assert.equal((await ask(limitHeaders(3600, EXTRA))).status, refuse ? 429 : 200);
  }
  const calls = t.calls().length;
  const spent = limitHeaders(3600, { status: 'rejected', 'overage-status': 'rejected', 'overage-disabled-reason': 'out_of_credits' });
  const result = await t.chat({ messages: t.messages(directive('error', { status: 429, headers: spent })) }, { proxy });
  assertRefused(result, 429, /./);
  assert.ok(Number(result.headers['retry-after']) > 3400, result.headers['retry-after']);
  assert.equal(t.calls().length, calls + 1);
});

test('who pays is told by the banner, by /v1/auth/status and by doctor', async (t) => {
  const { proxy } = await startWithFallback(t);
  assert.match(proxy.output, /billed to +the account of the login: .*\n +fallback +api_key/);
  const { status } = (await t.get('/v1/auth/status', { proxy })).json.claude_code_auth;
  assert.match(status.billed_to, /^the account of the login/);
  assert.equal(status.fallback, 'api_key');
  const doctor = async (env) => (await startAndExpectExit({ cli: t.cli, url: t.api.url, env, args: ['doctor'] })).output;
  assert.match(await doctor(SUBSCRIBED), /login: .*billed to the account of the login/);
  assert.match(await doctor({}), /login: .*billed to an Anthropic API account/);
  t.api.requests.length = 0;
  const whole = await doctor({ ...SUBSCRIBED, ANTHROPIC_API_KEY: API_KEY_OF_CLAUDE, CLAUDE_AUTH_METHOD: 'cli', CLAUDE_FALLBACK: 'api_key', CLAUDE_FALLBACK_MODEL: HAIKU });
  assert.match(whole, /login: .*billed to the account of the login.*, and while the plan is used up to an Anthropic API account/);
  assert.match(whole, new RegExp(`an answer of the fallback: from ${HAIKU}`));
  const keyed = t.api.requests.filter(({ body, headers }) => body?.messages && headers['x-api-key']);
  assert.deepEqual([keyed.length, keyed.at(-1)?.body.model], [1, HAIKU]);
});

test('how full a limit is, is told of each that is reported; where it is not, it is not told as 0', async (t) => {
  for (const cli of mainClis(t)) {
    const proxy = await t.start({ cli, env: SUBSCRIBED, args: ['--spares', '0'] });
    const headers = { ...limitHeaders(3600, { status: 'allowed', '5h-utilization': '0.3', '7d-utilization': '0.5' }), 'anthropic-ratelimit-unified-7d-reset': String(Math.floor(Date.now() / 1000) + 9e4) };
    await t.chat({ messages: t.messages(directive('plain', { headers })) }, { proxy });
    const { text } = await t.get('/metrics', { proxy });
    const shares = [...text.matchAll(/subscription_utilization_ratio\{window="(\w+)"\} (\S+)/g)].map(([, name, share]) => [name, Number(share)]);
    assert.match(text, /subscription_limit\{window="five_hour",state="allowed"\} 1/);
    const told = cli === OLDER ? [] : [['five_hour', 0.3], ['seven_day', 0.5]];
    assert.deepEqual(shares, told);
  }
});

test('--fallback: what cannot be is a word at the start', async (t) => {
  const fails = async (env, args, why) => {
    const { exit, output } = await startAndExpectExit({ cli: t.cli, url: t.api.url, env: { ANTHROPIC_API_KEY: undefined, ...env }, args });
    assert.equal(exit.code, 2, output);
    assert.match(output, why);
  };
  await fails(SUBSCRIBED, ['--auth-method', 'cli', '--fallback', 'api_key'], /--fallback: ANTHROPIC_API_KEY/);
  await fails({ ANTHROPIC_API_KEY: API_KEY_OF_CLAUDE }, ['--fallback', 'bedrock'], /--fallback needs --auth-method cli/);
  await fails(SUBSCRIBED, ['--auth-method', 'cli', '--fallback', 'cli'], /--fallback/);
});

test("a subscription's limit is told in words, and with the time until it begins anew", async (t) => {
  const proxy = await t.start({ cli: t.cli, env: SUBSCRIBED, args: ['--spares', '0'] });
  const headers = limitHeaders(3600, { status: 'rejected', '5h-utilization': '1' });
  for (const stream of [false, true]) {
    const result = await t.chat({ stream, messages: t.messages(directive('error', { status: 429, headers })) }, { proxy });
    assertRefused(result, 429, /hit your .*limit.* resets /);
    const wait = Number(result.headers['retry-after']);
    assert.ok(wait > 3400 && wait <= 3600, result.headers['retry-after']);
  }
});
