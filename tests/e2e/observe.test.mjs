// What the operator sees: figures, log lines, windows of a subscription, the debug endpoint, the doctor, the status.

import assert from 'node:assert/strict';
import { chmodSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { eventually, holdPort, sleep, startAndExpectExit, suite } from './harness.mjs';
import {
  NO_CLI,
  ask,
  logLines,
  logObjects,
  parseMetrics,
  scratchFolder,
  scrape,
  standIn,
  startLight,
  startOwn,
  waitForWindow,
} from './operate.mjs';
import { connectRaw } from './raw_client.mjs';

export const observe = suite();
const { test } = observe;

// ---- figures -------------------------------------------------------------------------------------

test('the parser of figures is strict: it refuses what Prometheus would', async () => {
  const good = [
    '# HELP claude_openai_waits Waits.',
    '# TYPE claude_openai_waits histogram',
    'claude_openai_waits_bucket{le="1"} 1',
    'claude_openai_waits_bucket{le="+Inf"} 2',
    'claude_openai_waits_sum 3.5',
    'claude_openai_waits_count 2',
    '',
  ];
  assert.equal(parseMetrics(good.join('\n')).size, 1);
  const spoiled = [
    [2, 'claude_openai_waits_bucket{le="1"} 3'], // not cumulative
    [3, 'claude_openai_waits_bucket{le="+Inf"} 4'], // not the count
    [3, 'claude_openai_waits_bucket{le="2"} 2'], // no +Inf
    [1, '# TYPE claude_openai_waits counter'],
    [1, ''],
    [0, ''],
    [4, 'claude_openai_waits_sum three'],
    [4, 'claude_openai_other_sum 3'],
    [5, 'claude_openai_waits_bucket{le="1"} 1'], // twice
    [5, 'claude_openai_waits_count{a="b"c"} 2'],
    [6, 'no new line'],
  ];
  for (const [at, line] of spoiled)
    assert.throws(() => parseMetrics(good.map((one, i) => (i === at ? line : one)).join('\n')), line);
});

const NAMES = {
  build_info: 'gauge',
  uptime_seconds: 'gauge',
  requests_total: 'counter',
  requests_in_flight: 'gauge',
  time_to_first_token_seconds: 'histogram',
  request_duration_seconds: 'histogram',
  tokens_total: 'counter',
  cost_usd_total: 'counter',
  processes: 'gauge',
  processes_max: 'gauge',
  processes_started_total: 'counter',
  turns_total: 'counter',
  messages_rewound_total: 'counter',
  messages_replayed_total: 'counter',
  queue_depth: 'gauge',
  queue_wait_seconds: 'histogram',
  upstream_errors_total: 'counter',
  upstream_retries_total: 'counter',
  fallback_answers_total: 'counter',
  fallback_cost_usd_total: 'counter',
  rejected_total: 'counter',
  sessions: 'gauge',
  subscription_limit: 'gauge',
  subscription_utilization_ratio: 'gauge',
  subscription_reset_timestamp_seconds: 'gauge',
};

test('figures: the names, the types, behind the key, and before anything has happened', async (t) => {
  await startLight(t, { args: ['--api-key', 'right', '--max-processes', '3'] });
  assert.equal((await t.get('/metrics')).status, 401);
  const headers = { authorization: 'Bearer right' };
  await eventually(
    'the CLI was looked at',
    async () => (await scrape(t, { headers })).families.get('claude_openai_build_info').samples[0].labels.cli_version,
  );
  const figures = await scrape(t, { headers });
  const found = Object.fromEntries([...figures.families].map(([name, { type }]) => [name.slice(14), type]));
  assert.deepEqual(Object.fromEntries(Object.entries(found).sort()), Object.fromEntries(Object.entries(NAMES).sort()));
  for (const { name, help } of figures.families.values()) assert.ok(help.length > 8, name);
  const build = figures.families.get('claude_openai_build_info').samples[0];
  assert.match(build.labels.version, /^\d+\.\d+\.\d+/);
  assert.match(build.labels.cli_version, /^2\.1\.330/);
  assert.equal(build.value, 1);
  assert.equal(figures('processes_max'), 3);
  assert.equal(figures('turns_total') + figures('tokens_total') + figures('cost_usd_total'), 0);
  assert.equal(figures('requests_in_flight'), 1, 'this one');
  const again = await t.get('/v1/metrics', { headers });
  assert.equal(again.status, 200);
  assert.equal(figures('requests_total', { route: '/chat/completions' }), 0);
});

/** The differences of figures that an action makes. */
async function changes(t, action) {
  const before = await scrape(t);
  const result = await action();
  // A stream is summed up just after its last byte.
  const others = (figures) => figures('requests_total') - figures('requests_total', { route: '/metrics' });
  let after;
  await eventually('it is summed up', async () => {
    after = await scrape(t);
    return others(after) > others(before);
  });
  return {
    result,
    delta: (name, labels) => Math.round((after(name, labels) - before(name, labels)) * 1e9) / 1e9,
    after,
  };
}

test('figures of one chat, one stream, one message: requests, tokens, cost, times', async (t) => {
  await (await startLight(t)).inspected();
  const chat = { route: '/chat/completions', dialect: 'openai_chat', model: 'sonnet', status: '200' };
  const one = await changes(t, () =>
    t.chat({ ...ask('[[text in=30 out=20 cache_read=5 cache_write=3]]'), model: 'sonnet' }),
  );
  assert.equal(one.result.status, 200);
  assert.equal(one.delta('requests_total', chat), 1);
  assert.equal(one.delta('requests_total'), 2, 'and the scrape before');
  assert.equal(one.delta('requests_total', { route: '/metrics', dialect: '', model: '', status: '200' }), 1);
  const kinds = ['input', 'output', 'cache_read', 'cache_write'];
  assert.deepEqual(
    kinds.map((kind) => one.delta('tokens_total', { kind })),
    [30, 20, 5, 3],
  );
  assert.equal(one.delta('tokens_total', { model: 'sonnet' }), 58);
  assert.ok(one.result.json.usage.cost > 0);
  assert.ok(Math.abs(one.delta('cost_usd_total') - one.result.json.usage.cost) < 1e-7);
  const dialect = { dialect: 'openai_chat' };
  for (const name of ['time_to_first_token_seconds', 'request_duration_seconds'])
    assert.equal(one.delta(`${name}_count`, dialect), 1, name);
  assert.equal(one.delta('queue_wait_seconds_count'), 1);
  assert.equal(one.delta('turns_total', { process: 'started' }), 1);
  assert.equal(one.delta('processes_started_total'), 1);
  assert.equal(one.after('processes', { state: 'idle' }), 1, 'it waits for the next turn');

  const two = await changes(t, () =>
    t.chat({ stream: true, model: 'opus', ...ask('[[text n=5 delay_ms=60 first_ms=300 in=7 out=9]]') }),
  );
  assert.equal(two.delta('requests_total', { ...chat, model: 'opus' }), 1);
  assert.deepEqual(
    kinds.map((kind) => two.delta('tokens_total', { kind, model: 'opus' })),
    [7, 9, 0, 0],
  );
  assert.equal(two.delta('tokens_total'), 16, 'each token is counted once, whatever it is summed by');
  const [first, whole] = ['time_to_first_token_seconds_sum', 'request_duration_seconds_sum'].map((n) =>
    two.delta(n, dialect),
  );
  assert.ok(first >= 0.29 && whole >= first + 0.2, `first token after ${first}, the end after ${whole}`);

  const three = await changes(
    t,
    () => t.send({ path: '/v1/messages', body: { model: 'sonnet', max_tokens: 99, ...ask('[[text]] three') } }).done,
  );
  const messages = { route: '/messages', dialect: 'anthropic_messages', model: 'sonnet', status: '200' };
  assert.equal(three.delta('requests_total', messages), 1);
  assert.equal(three.delta('request_duration_seconds_count', { dialect: 'anthropic_messages' }), 1);
  assert.equal(three.delta('request_duration_seconds_count', dialect), 0);
  const others = [
    ['/v1/responses', { input: '[[text]] four' }, 'openai_responses'],
    ['/v1/completions', { prompt: '[[text]] five' }, 'openai_completions'],
    ['/api/chat', ask('[[text]] six'), 'ollama'],
    ['/api/generate', { prompt: '[[text]] seven' }, 'ollama'],
  ];
  for (const [where, body, name] of others) {
    const other = await changes(t, () => t.send({ path: where, body: { model: 'sonnet', ...body } }).done);
    assert.equal(other.result.status, 200, other.result.text);
    assert.equal(other.delta('requests_total', { dialect: name, status: '200' }), 1, name);
  }
});

test('figures: how a process came to each answer, what it took back and what it was told', async (t) => {
  await (await startLight(t, { args: ['--max-processes', '4'] })).inspected();
  const first = ask('[[text say=one]]');
  const answered = await t.chat(first);
  const second = {
    messages: [...first.messages, answered.json.choices[0].message, { role: 'user', content: '[[text]] two' }],
  };
  const figuresOf = ({ delta }) =>
    ['turns_total', 'messages_rewound_total', 'messages_replayed_total', 'processes_started_total'].map((name) => delta(name));
  const continued = await changes(t, () => t.chat(second));
  assert.equal(continued.delta('turns_total', { process: 'continued' }), 1);
  assert.deepEqual(figuresOf(continued), [1, 0, 0, 0]);
  const strange = [
    { role: 'user', content: 'never said' },
    { role: 'assistant', content: 'nor this' },
  ];
  const rewound = await changes(t, () => t.chat({ messages: [...strange, { role: 'user', content: '[[text]]' }] }));
  assert.equal(rewound.delta('turns_total', { process: 'rewound' }), 1);
  assert.deepEqual(figuresOf(rewound), [1, 2, 2, 0], 'the two questions before, and the two strange messages');

  await startLight(t, { args: ['--spares', '1'] });
  const model = t.proxy.environment.DEFAULT_MODEL;
  await eventually('a spare is ready', async () => (await scrape(t))('processes', { state: 'spare' }) === 1);
  const spare = await changes(t, () => t.chat({ model, ...ask('[[text]]') }));
  assert.equal(spare.delta('turns_total', { process: 'spare' }), 1);
});

test('figures: errors of ours and of the upstream, and its retries', async (t) => {
  await startLight(t);
  const bad = await changes(t, () => t.chat({ messages: 'none' }));
  assert.equal(bad.result.status, 400);
  assert.equal(bad.delta('requests_total', { route: '/chat/completions', status: '400' }), 1);
  assert.equal(bad.delta('upstream_errors_total'), 0);
  const lost = await changes(t, () => t.get('/v1/nothing'));
  assert.equal(lost.delta('requests_total', { status: '404' }), 1);
  for (const stream of [false, true]) {
    const failed = await changes(t, () => t.chat({ stream, ...ask('[[api_error status=500 retries=2 delay_ms=1]]') }));
    assert.equal(failed.result.status, 500, failed.result.text);
    assert.equal(failed.delta('upstream_errors_total', { status: '500' }), 1, `stream ${stream}`);
    assert.equal(failed.delta('upstream_retries_total'), 2, `stream ${stream}`);
    assert.equal(failed.delta('requests_total', { route: '/chat/completions', status: '500' }), 1);
  }
  const midway = await changes(t, () => t.chat({ stream: true, ...ask('[[crash after=1]]') }));
  assert.equal(midway.result.status, 200, 'it had begun');
  assert.equal(midway.delta('upstream_errors_total'), 1, 'an error after the first byte counts too');
  const crash = await changes(t, () => t.chat(ask('[[crash]]')));
  assert.equal(crash.result.status, 502, crash.result.text);
  assert.equal(crash.delta('upstream_errors_total', { status: '502' }), 1);
});

test('figures: the queue, its depth, its waits, and whom it refuses', async (t) => {
  await startLight(t, { args: ['--max-processes', '1', '--max-queue', '1'] });
  await t.proxy.inspected();
  const before = await scrape(t);
  const busy = t.send({ body: { model: 'sonnet', stream: true, ...ask('[[hang after=1]] one') } });
  await busy.head;
  await eventually('it is busy', async () => (await scrape(t))('processes', { state: 'busy' }) === 1);
  const waiting = t.chat(ask('[[text]] two'));
  await eventually('one waits', async () => (await scrape(t))('queue_depth') === 1);
  const during = await scrape(t);
  assert.equal(during('requests_in_flight'), 3);
  const refused = await t.chat(ask('[[text]] three'));
  assert.equal(refused.status, 429, refused.text);
  assert.equal(refused.json.error.code, 'processes_busy');
  const begun = performance.now();
  await sleep(400);
  busy.abort();
  assert.equal((await waiting).status, 200);
  const atMost = (performance.now() - begun) / 1000;
  await eventually('both are over', async () => (await scrape(t))('requests_in_flight') === 1);
  const after = await scrape(t);
  const grown = (name, labels) => after(name, labels) - before(name, labels);
  assert.equal(after('queue_depth'), 0);
  assert.equal(grown('queue_wait_seconds_count'), 2);
  const waited = grown('queue_wait_seconds_sum');
  assert.ok(waited >= 0.39 && waited < atMost + 10, `${waited} s`);
  assert.equal(grown('rejected_total', { reason: 'queue_full' }), 1);
  assert.equal(grown('upstream_errors_total'), 0, 'that is not the upstream’s fault');
  assert.equal(grown('requests_total', { route: '/chat/completions' }), 3);
});

test('figures: refusals by reason, and their routes', async (t) => {
  await startOwn(t, {
    args: ['--api-key', 'right', '--rate-limit', '--rate-limit-debug', '1'],
  });
  const headers = { authorization: 'Bearer right' };
  await waitForWindow(() => t.get('/health'), 5);
  const debug = (more) => t.send({ path: '/v1/debug/request', body: {}, headers: { ...headers, ...more } }).done;
  assert.equal((await debug()).status, 200);
  assert.equal((await debug()).status, 429);
  assert.equal((await t.get('/v1/models')).status, 401);
  assert.equal((await t.get('/v1/models', { headers: { ...headers, origin: 'https://evil.example' } })).status, 403);
  const figures = await scrape(t, { headers });
  for (const reason of ['rate_limit', 'key', 'origin']) assert.equal(figures('rejected_total', { reason }), 1, reason);
  assert.equal(figures('requests_total', { route: '/debug/request', status: '429' }), 1, 'the route is known');
  assert.equal(figures('requests_total', { route: '/models', status: '401' }), 1, 'the route is known');
});

test('figures and log: what is no request is counted and told', async (t) => {
  await startLight(t);
  const client = connectRaw(t, t.proxy);
  await client.write('GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n');
  assert.ok(await client.ends());
  assert.equal(client.responses[0].status, 400);
  await eventually('a line of the log', () => /info refused bad HTTP from 127\.0\.0\.1: .*two host/i.test(t.proxy.output));
  assert.equal((await scrape(t))('rejected_total', { reason: 'http' }), 1);
});

test('figures and log: a client that leaves an answer is no bad HTTP', async (t) => {
  await startLight(t);
  const exchange = t.send({ body: ask('[[hang]]') });
  await eventually('a process works', async () => (await scrape(t))('processes', { state: 'busy' }) === 1);
  exchange.abort();
  await eventually('the answer is given up', () => /POST \/v1\/chat\/completions 499/.test(t.proxy.output));
  await eventually('nothing is left', async () => (await scrape(t))('processes', { state: 'busy' }) === 0);
  assert.doesNotMatch(t.proxy.output, /bad HTTP/);
  assert.ok(!(await scrape(t))('rejected_total', { reason: 'http' }));
});

test('figures: clients cannot make the number of series grow without end, nor break a line', async (t) => {
  await startLight(t, { args: ['--max-processes', '2'] });
  for (const model of ['a"b', 'a\\b', 'a\nb', 'ünï', 'a}b 1']) await t.chat({ model, ...ask('[[text]]') });
  await scrape(t);
  for (let i = 0; i < 70; i++) await t.get(`/v1/path-${i}`);
  await Promise.all(Array.from({ length: 60 }, (_, i) => t.chat({ model: `m-${i}`, messages: [], n: 0 })));
  const figures = await scrape(t);
  const series = figures.families.get('claude_openai_requests_total').samples.length;
  assert.ok(series < 40, `${series} series`);
});

// ---- the subscription's windows ------------------------------------------------------------------

test('the subscription’s windows: as figures, and as headers of answers', async (t) => {
  await startLight(t);
  const none = await t.chat(ask('[[text]] one'));
  assert.ok(!Object.keys(none.headers).some((name) => name.startsWith('x-claude-ratelimit')), 'nothing is told yet');
  for (const stream of [false, true]) {
    const type = stream ? 'seven_day' : 'five_hour';
    const told = await t.chat({ stream, ...ask(`[[rate_limit type=${type} status=allowed_warning]] ${stream}`) });
    assert.equal(told.status, 200, told.text);
    assert.equal(told.headers[`x-claude-ratelimit-${type}-status`], 'allowed_warning');
    assert.equal(told.headers[`x-claude-ratelimit-${type}-utilization`], '0.91');
    assert.equal(told.headers[`x-claude-ratelimit-${type}-reset`], '1795380000');
  }
  let figures;
  await eventually('both are summed up', async () => {
    figures = await scrape(t);
    return figures('requests_total', { route: '/chat/completions' }) === 3;
  });
  for (const window of ['five_hour', 'seven_day']) {
    assert.equal(figures('subscription_utilization_ratio', { window }), 0.91);
    assert.equal(figures('subscription_reset_timestamp_seconds', { window }), 1795380000);
  }
  const later = await t.chat(ask('[[text]] later'));
  assert.equal(later.headers['x-claude-ratelimit-five_hour-utilization'], '0.91', 'the last known is told on');
  const messages = await t.send({ path: '/v1/messages', body: { model: 'sonnet', max_tokens: 9, ...ask('[[text]]') } })
    .done;
  assert.equal(messages.headers['x-claude-ratelimit-seven_day-status'], 'allowed_warning');
});

// ---- the log -------------------------------------------------------------------------------------

test('the log: one line per request, which tells what it was and what it took', async (t) => {
  const proxy = await startLight(t, { args: ['--api-key', 'right', '--api-key', 'left'] });
  const headers = { authorization: 'Bearer left', 'x-request-id': 'my-id-1' };
  const chat = await t.chat({ model: 'sonnet', ...ask('[[text in=30 out=20]] my-secret-prompt') }, { headers });
  assert.equal(chat.status, 200);
  await t.chat(
    { stream: true, model: 'opus', ...ask('[[text]] my-secret-prompt') },
    { headers: { ...headers, 'x-request-id': 'my-id-2' } },
  );
  await t.get('/v1/models?key=my-secret-query', { headers: { 'x-request-id': 'my-id-3' } });
  await t.get('/health', { headers: { 'x-request-id': 'my-id-4' } });
  const lineOf = (id) => {
    const lines = logLines(proxy).filter((line) => line.includes(id));
    assert.equal(lines.length, 1, `one line of ${id}: ${lines}`);
    return lines[0];
  };
  await eventually('they are logged', () => proxy.output.includes('my-id-4'));
  const one = lineOf('my-id-1');
  for (const part of [
    / POST \/v1\/chat\/completions 200 /,
    /\d+ ms/,
    /model sonnet/,
    /30 in 20 out/,
    /cost \d/,
    /process started/,
    /client key-2/,
    /127\.0\.0\.1/,
  ])
    assert.match(one, part);
  assert.match(lineOf('my-id-2'), /POST \/v1\/chat\/completions 200 .*stream done.*model opus/);
  assert.match(lineOf('my-id-3'), /GET \/v1\/models 401/);
  assert.match(lineOf('my-id-4'), /GET \/health 200/);
  assert.doesNotMatch(proxy.output, /my-secret|Bearer left/);
});

test('the log for programs: objects with their fields, one line per request', async (t) => {
  const proxy = await startLight(t, { args: ['--log-format', 'json', '--api-key', 'right'] });
  const headers = { 'x-api-key': 'right', 'x-request-id': 'json-1' };
  const chat = await t.chat({ model: 'sonnet', ...ask('[[text in=30 out=20 cache_read=4]]') }, { headers });
  await t.chat({ stream: true, ...ask('[[crash after=1]]') }, { headers: { ...headers, 'x-request-id': 'json-2' } });
  await t.get('/v1/nothing', { headers: { ...headers, 'x-request-id': 'json-3' } });
  const find = (id) => logObjects(proxy).filter((one) => one.id === id);
  await eventually('they are logged', () => find('json-3').length === 1);
  const [[one], [two], [three]] = ['json-1', 'json-2', 'json-3'].map(find);
  assert.equal(find('json-1').length, 1);
  assert.equal(find('json-2').length, 1);
  const { seconds, cost_usd: cost, first_token_seconds: first, queue_seconds: queued, time, ...rest } = one;
  assert.match(time, /^\d{4}-\d\d-\d\dT[\d:.]+Z$/);
  assert.ok(seconds > 0 && seconds < 20 && first > 0 && first <= seconds && queued >= 0, JSON.stringify(one));
  assert.ok(Math.abs(cost - chat.json.usage.cost) < 1e-9);
  const expected = {
    level: 'info',
    method: 'POST',
    path: '/v1/chat/completions',
    status: 200,
    model: 'sonnet',
    dialect: 'openai_chat',
    client: 'key-1',
    process: 'started',
    address: '127.0.0.1',
    messages_rewound: 0,
    messages_replayed: 0,
    retries: 0,
    input_tokens: 30,
    output_tokens: 20,
    cache_read_tokens: 4,
  };
  for (const [name, value] of Object.entries(expected)) assert.deepEqual(rest[name], value, name);
  assert.equal(two.status, 200);
  assert.ok(two.stream, 'how the stream ended');
  assert.notEqual(two.error ?? two.stream, 'done', `that it failed: ${JSON.stringify(two)}`);
  assert.deepEqual([three.status, three.path], [404, '/v1/nothing']);
  for (const line of proxy.output
    .trim()
    .split('\n')
    .filter((one) => /json-\d/.test(one)))
    JSON.parse(line);
});

test('log levels, and no line of a request can forge another', async (t) => {
  const quiet = await startOwn(t, { args: ['--log-level', 'warning'] });
  await t.get('/v1/nothing');
  assert.deepEqual(
    logLines(quiet).filter((line) => / info /.test(line)),
    [],
  );
  const loud = await startOwn(t);
  const forged = '/v1/x%0a2026-01-01T00:00:00.000Z%20error%20forged%1b%5b31m';
  await t.get(forged, { headers: { 'x-request-id': 'a b\tc', 'x-forwarded-for': 'nobody' } });
  await eventually('it is logged', () => logLines(loud).some((line) => /forged/.test(line)));
  assert.ok(!loud.output.split('\n').some((line) => /^2026-01-01/.test(line)));
  assert.ok(!loud.output.includes('\x1b'));
});

test('--log-bodies at debug logs bodies, with keys masked; not at info', async (t) => {
  const secret = 'sk-ant-api03-abcdefghijklmnop';
  const body = () => ({ ...ask(`[[text say=visible-answer]] visible-prompt ${secret}`) });
  const proxy = await startLight(t, { args: ['--log-level', 'debug', '--log-bodies'] });
  assert.equal((await t.chat(body())).status, 200);
  const stream = await t.chat({ stream: true, ...body() });
  assert.equal(stream.status, 200);
  await eventually('the answer is logged', () => (proxy.output.match(/visible-answer/g) ?? []).length >= 2);
  assert.match(proxy.output, / debug .*visible-prompt/);
  assert.ok(!proxy.output.includes(secret), 'the key is masked');
  assert.match(proxy.output, /visible-prompt [^"]*sk-/, 'and seen to be');
  for (const before of ['\n', '\t', '"', "'", '=', ':', '(']) {
    const chat = await t.chat(ask(`[[text]] visible-again${before}${secret}`));
    assert.equal(chat.status, 200, chat.text);
  }
  await eventually(
    'all are logged',
    () => (proxy.output.match(/debug \S+ request:.*visible-again/g) ?? []).length >= 7,
  );
  const shown = proxy.output.split('\n').filter((line) => line.includes(secret));
  assert.deepEqual(
    shown.map((line) => /visible-again.{0,4}/.exec(line)?.[0]),
    [],
    'masked wherever it stands',
  );
  const named = { api_key: 'hidden-1', nested: { Password: 'hidden-2', 'x-auth-token': 'hidden-3' }, metadata: { note: JSON.stringify({ secret: 'hidden-4', text: 'seen-1' }) } };
  const echo = await t.chat({ ...ask('[[text say=visible-end]]'), ...named });
  assert.equal(echo.status, 200, echo.text);
  await t.send({ body: JSON.stringify({ ...named, cut: 'seen-2' }).slice(0, -1) }).done;
  await t.get('/v1/nothing%3fapi_key=hidden-5&page=seen-3');
  await eventually('they are logged', () => /seen-1[^]*seen-2[^]*seen-3/.test(proxy.output));
  assert.doesNotMatch(proxy.output, /hidden-/, 'what is named like a secret is masked, like a header');
  for (const args of [['--log-bodies'], ['--log-level', 'debug']]) {
    const other = await startLight(t, { args });
    assert.equal((await t.chat(body())).status, 200);
    await eventually('it is logged', () => / 200 /.test(other.output));
    assert.doesNotMatch(other.output, /visible-/, `${args}`);
  }
});

// ---- the debug endpoint --------------------------------------------------------------------------

test('POST /v1/debug/request: the reference’s shape, behind the key, secrets masked', async (t) => {
  await startOwn(t, { args: ['--api-key', 'right-key'] });
  const body = { model: 'sonnet', ...ask('hello') };
  assert.equal((await t.send({ path: '/v1/debug/request', body }).done).status, 401);
  const secrets = { authorization: 'Bearer right-key', 'x-api-key': 'also-secret', cookie: 'session=very-secret' };
  const debug = async (given, more = {}, query = '') => {
    const result = await t.send({
      path: `/v1/debug/request?${query}a=b`,
      body: given,
      headers: { ...secrets, 'x-mine': 'told', ...more },
    }).done;
    assert.equal(result.status, 200, result.text);
    assert.doesNotMatch(result.text, /right-key|also-secret|very-secret/);
    return result.json.debug_info;
  };
  const hidden = { api_key: 'also-secret', deep: [{ Authorization: 'also-secret' }] };
  for (const given of [{ ...body, ...hidden }, JSON.stringify(hidden).slice(0, -3)]) await debug(given, {}, 'api_key=also-secret&');
  const good = await debug(body);
  assert.deepEqual(Object.keys(good).sort(), [
    ...['debug_mode_enabled', 'example_valid_request', 'headers', 'json_parse_error', 'method', 'parsed_body'],
    ...['raw_body', 'url', 'validation_result'],
  ]);
  assert.equal(good.method, 'POST');
  assert.match(good.url, /\/v1\/debug\/request/);
  assert.equal(good.headers['x-mine'], 'told');
  for (const name of Object.keys(secrets)) assert.ok(good.headers[name], `${name} is named`);
  assert.deepEqual(good.parsed_body, body);
  assert.equal(good.raw_body, JSON.stringify(body));
  assert.equal(good.json_parse_error, null);
  assert.equal(good.validation_result.valid, true);
  assert.deepEqual(good.validation_result.validated_data, body);
  assert.equal(good.debug_mode_enabled, false);
  assert.ok(good.example_valid_request.messages.length > 0);

  const broken = await debug('{"model": ');
  assert.ok(broken.json_parse_error);
  assert.equal(broken.parsed_body, null);
  assert.equal(broken.validation_result.valid, false);
  const invalid = await debug({ messages: [{ role: 'nobody', content: 'x' }] });
  assert.equal(invalid.json_parse_error, null);
  assert.equal(invalid.validation_result.valid, false);
  const [error] = invalid.validation_result.errors;
  assert.match(error.field, /messages.*role/);
  assert.ok(error.message && error.type);
  for (const odd of ['', '[1]', '"text"', 'null', '12', '\u0000\ufffd', '{"messages":[]}']) {
    const info = await debug(odd);
    assert.equal(info.validation_result.valid, false, odd);
  }
  for (const bomb of [
    `{"messages":${'['.repeat(100_000)}${']'.repeat(100_000)}}`,
    `{${Array.from({ length: 20_000 }, (_, i) => `"${i}":1`).join()}}`,
  ]) {
    const info = await debug(bomb);
    assert.match(info.json_parse_error, /nested too deeply|too many fields/);
    assert.deepEqual([info.parsed_body, info.validation_result.valid], [null, false]);
  }
  const bytes = await debug(Buffer.from([0x7b, 0xff, 0xfe, 0x7d]));
  assert.ok(bytes.json_parse_error);
  const leaking = await debug({ ...body, api_key: 'sk-ant-api03-abcdefghijklmnop' });
  assert.ok(!JSON.stringify(leaking).includes('abcdefghijklmnop'), 'a key in the body is masked everywhere');
});

// ---- the doctor and the status -------------------------------------------------------------------

/** What the doctor says: {code, findings by name, output}. */
async function examined(t, options, ms = 25_000) {
  const { exit, output, faults } = await startAndExpectExit(
    { url: t.api.url, ...options, args: ['doctor', ...(options.args ?? [])] },
    ms,
  );
  assert.ok(exit, `it does not end: ${output}`);
  assert.deepEqual(faults, []);
  const findings = {};
  for (const [, state, what, detail, remedy] of output.matchAll(/^(ok|FAIL) +([^:\n]+): (.*)(?:\n {6}(.+))?/gm))
    findings[what] = { good: state === 'ok', detail, remedy };
  return { code: exit.code, findings, output };
}

test('doctor: all is well with the real CLI', { slow: true }, async (t) => {
  const { code, findings, output } = await examined(t, { cli: t.cli });
  assert.equal(code, 0, output);
  for (const what of ['port', 'temporary directory', 'claude', 'login', 'a process of claude', 'an answer'])
    assert.ok(findings[what]?.good, `${what}: ${output}`);
  assert.match(findings.claude.detail, /, 2\.1\.\d+/);
  assert.equal(findings['cache lifetime'].detail, 'as a request asks');
  assert.match(findings.login.detail, /ANTHROPIC_API_KEY/);
  assert.match(findings['an answer'].detail, /first token in \d+ ms, complete in \d+ ms, \d+ tokens in/);
  assert.doesNotMatch(output, /sk-ant-test/, 'no secret');
});

async function statusOf(t, options) {
  await startOwn(t, options);
  return eventually('the status tells it', async () => {
    const { json } = await t.get('/v1/auth/status');
    return json.claude_code_auth.status.errors.length && json.claude_code_auth.status;
  });
}

test('doctor and status: claude is missing', async (t) => {
  const { code, findings, output } = await examined(t, { cli: NO_CLI });
  assert.equal(code, 1, output);
  assert.equal(findings.claude.good, false);
  assert.match(findings.claude.remedy, /npm install -g @anthropic-ai\/claude-code/);
  assert.match(findings.claude.detail, /nonexistent/);
  const status = await statusOf(t, { cli: NO_CLI });
  assert.equal(status.valid, false);
  assert.match(status.errors.join(), /nonexistent/);
  const health = await t.get('/health');
  assert.equal(health.json.status, 'degraded');
});

test('doctor: claude is too old', async (t) => {
  const cli = standIn(t, 'version value=2.1.119');
  const { code, findings, output } = await examined(t, { cli });
  assert.equal(code, 1, output);
  assert.match(findings.claude.detail, /2\.1\.119 .*too old/);
  assert.match(findings.claude.remedy, /npm install/);
});

test('doctor and status: claude is not logged in', { slow: true }, async (t) => {
  const env = { ANTHROPIC_API_KEY: undefined };
  const fake = await examined(t, { cli: standIn(t, 'not_logged_in\nauth method=none'), env });
  assert.equal(fake.code, 1, fake.output);
  assert.equal(fake.findings.login.good, false, fake.output);
  assert.match(fake.findings.login.remedy, /claude auth login/);
  const real = await examined(t, { cli: t.cli, env });
  assert.equal(real.code, 1, real.output);
  assert.equal(real.findings.login?.good, false, real.output);
  const status = await statusOf(t, { cli: standIn(t, 'not_logged_in\nauth method=none'), env });
  assert.equal(status.valid, false);
  assert.match(status.errors.join(), /not logged in.*claude auth login/);
  const unset = await examined(t, { cli: standIn(t), env: { ...env, CLAUDE_AUTH_METHOD: 'api_key' } });
  assert.equal(unset.code, 1, unset.output);
  assert.match(unset.findings.login.detail, /ANTHROPIC_API_KEY environment variable not set/);
});

test('doctor and status: where --bare is the default the flag that takes it back is passed; without one it is said that the login is not read', async (t) => {
  const env = { ANTHROPIC_API_KEY: undefined };
  for (const flag of ['--no-bare', '--without-bare', '--hidden']) {
    const cli = standIn(t, `bare_by_default flag=${flag}`);
    const known = flag.endsWith('bare');
    const { code, findings, output } = await examined(t, { cli, env });
    assert.equal(code, known ? 0 : 1, output);
    assert.match(findings.claude.detail, known ? new RegExp(`, with ${flag} to read the login$`) : /\d$/);
    assert.equal(findings['an answer'].good, known, output);
    await startOwn(t, { cli, env });
    const status = await eventually('claude was looked at', async () => {
      const now = (await t.get('/v1/auth/status')).json.claude_code_auth.status;
      return now.config.claude_version && now;
    });
    assert.equal(status.valid, known, JSON.stringify(status));
    if (!known) assert.match(status.errors.join(), /^`claude auth status` has a login, but `claude -p` does not read it/);
    assert.equal((await t.send({ body: ask('Well?') }).done).status, known ? 200 : 503);
  }
});

test('doctor: the port is busy', async (t) => {
  const { port, close } = await holdPort();
  t.defer(close);
  const { code, findings, output } = await examined(t, { cli: standIn(t), args: ['--port', String(port)] });
  assert.equal(code, 1, output);
  assert.equal(findings.port.good, false);
  assert.match(findings.port.detail, new RegExp(`${port}`));
  assert.match(findings.port.remedy, /--port/);
  assert.ok(findings['an answer'].good, 'it goes on looking');
});

test('doctor: a claude that never gets ready, that fails to answer, that says nonsense', { slow: true }, async (t) => {
  const failing = await examined(t, { cli: standIn(t, 'answer api_error status=401 retries=0') });
  assert.equal(failing.code, 1, failing.output);
  assert.equal(failing.findings['an answer']?.good, false, failing.output);
  assert.ok(failing.findings['an answer'].remedy);
  const folder = scratchFolder(t);
  const cli = path.join(folder, 'claude');
  writeFileSync(cli, '#!/bin/sh\necho nonsense\n');
  chmodSync(cli, 0o755);
  const nonsense = await examined(t, { cli });
  assert.equal(nonsense.code, 1);
  assert.match(nonsense.findings.claude.detail, /does not tell its version/);
  const crashing = await examined(t, { cli: standIn(t, 'crash_at_start') });
  assert.equal(crashing.code, 1, crashing.output);
});

test('doctor looks at TLS files and the unix socket too, and waits for no answer longer than --timeout', async (t) => {
  const folder = scratchFolder(t);
  const file = path.join(folder, 'not-a-certificate.pem');
  writeFileSync(file, 'nothing of the kind');
  const tls = await examined(t, { cli: standIn(t), args: ['--tls-cert', file, '--tls-key', file] });
  assert.equal(tls.code, 1, tls.output);
  assert.match(tls.output, /certificate/);
  const socket = await examined(t, { cli: standIn(t), args: ['--unix-socket', file] });
  assert.equal(socket.code, 1, socket.output);
  const begun = performance.now();
  const silent = await examined(t, { cli: standIn(t, 'answer hang'), args: ['--timeout', '1s'] });
  assert.equal(silent.code, 1, silent.output);
  assert.equal(silent.findings['an answer'].good, false);
  assert.ok(performance.now() - begun < 30_000);
});

test('doctor takes the settings of files and variables, and its flags on either side', async (t) => {
  const cli = standIn(t);
  const { port, close } = await holdPort();
  t.defer(close);
  for (const args of [
    ['--port', String(port), 'doctor'],
    ['doctor', '--port', String(port)],
    ['doctor', '--no-prompt', '--port', String(port)],
  ]) {
    const { exit, output } = await startAndExpectExit({ url: t.api.url, cli, args });
    assert.equal(exit?.code, 1, output);
    assert.match(output, new RegExp(`FAIL +port: .*${port}`));
  }
});
