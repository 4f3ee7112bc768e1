// The tables of README.md and docs/ against the program: flags and variables by --help, endpoints by the 404, figures by /metrics.
// Both directions.

import assert from 'node:assert/strict';
import path from 'node:path';
import { ALL_TEXT } from './documents.mjs';
import { startAndExpectExit, suite } from './harness.mjs';
import { ask, scrape, scratchFolder, startLight, startOwn, waitForWindow } from './operate.mjs';

export const readme = suite();
const { test } = readme;

/** The rows of every table of the pages whose first column has this name, as lists of cells. */
function rowsOf(heading) {
  const rows = [];
  let inside = false;
  for (const line of ALL_TEXT.split('\n')) {
    const cells = line.startsWith('|')
      ? line
          .split(/(?<!\\)\|/)
          .slice(1, -1)
          .map((cell) => cell.trim())
      : undefined;
    if (cells && inside && !/^-+$/.test(cells[0])) rows.push(cells);
    if (!cells) inside = false;
    else if (cells[0] === heading) inside = true;
  }
  assert.ok(rows.length > 0, `a table of ${heading}`);
  return rows;
}

const inCode = (cell, pattern) =>
  [...cell.matchAll(/`([^`]*)`/g)].flatMap(([, code]) => [...code.matchAll(pattern)].map(([found]) => found));
const FLAG = /--[a-z][a-z-]+/g;
const VARIABLE = /\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*\b/g;

/** What --help tells: {'--flag': {variables, default}}. */
async function helped(t) {
  const { output } = await startAndExpectExit({ url: t.api.url, args: ['--help'] });
  const flags = {};
  const options = output.slice(output.indexOf('Usage:'), output.indexOf('Commands:'));
  for (const line of options.split('\n').filter((one) => /^ {2}-/.test(one))) {
    const name = /--[a-z-]+/.exec(line)[0];
    const entry = options.slice(options.indexOf(line)).split(/\n {2}-|\n\n/)[0].replace(/\s+/g, ' ');
    flags[name] = {
      variables: /\[([A-Z_, ]+)\]/.exec(entry)?.[1].split(/, /) ?? [],
      default: /\(default: (\S+)\)/.exec(entry)?.[1],
    };
  }
  assert.ok(Object.keys(flags).length > 40, Object.keys(flags).join());
  return { flags, output };
}

/** The table of flags, as {flags, variables, standard} of each row. */
const flagRows = () =>
  rowsOf('Flag').map(([flag, variable = '', standard = '']) => ({
    flags: inCode(flag, FLAG),
    variables: inCode(variable, VARIABLE),
    standards: inCode(standard, /.+/g),
  }));

function documentedFlags() {
  const documented = flagRows().flatMap(({ flags }) => flags);
  assert.deepEqual([...new Set(documented)], documented, 'each once');
  return new Set(documented);
}

test('every flag of --help is in the table, and every flag of the table is in --help', async (t) => {
  const { flags, output } = await helped(t);
  const documented = documentedFlags();
  assert.deepEqual(
    Object.keys(flags).filter((name) => !documented.has(name)),
    [],
    'not in the pages',
  );
  const known = (name) => flags[name] || output.includes(`,${name}`);
  assert.deepEqual(
    [...documented].filter((name) => !known(name)),
    [],
    'not in --help',
  );
});

test('every variable of --help is beside its flag in the table, and none else is', async (t) => {
  const { flags } = await helped(t);
  let count = 0;
  for (const row of flagRows()) {
    const told = row.flags.flatMap((name) => flags[name]?.variables ?? []);
    assert.deepEqual(row.variables.toSorted(), told.toSorted(), row.flags.join());
    count += told.length;
  }
  assert.ok(count > 40, `${count} variables`);
});

test('the defaults in the table are those of --help', async (t) => {
  const { flags } = await helped(t);
  let count = 0;
  for (const row of flagRows())
    for (const name of row.flags) {
      const standard = flags[name]?.default;
      if (standard === undefined || standard === '0') continue; // told in words: "none", "no limit"
      assert.ok(row.standards.includes(standard), `${name}: ${row.standards}, not ${standard}`);
      count++;
    }
  assert.ok(count > 15, `${count} defaults`);
});

test('the variables that no flag has are told: DEBUG_MODE and VERBOSE', async () => {
  for (const name of ['DEBUG_MODE', 'VERBOSE'])
    assert.ok(ALL_TEXT.includes(`\`${name}\``) || ALL_TEXT.includes(name), name);
});

test('every flag that the text mentions exists', async (t) => {
  const { flags, output } = await helped(t);
  // In the text, and in the lines of examples that start the proxy; other programs have flags of their own.
  const text = ALL_TEXT.replace(/```[^]*?```/g, (block) =>
    block
      .split('\n')
      .filter((line) => /claude-openai\b.* --/.test(line) && !/docker|systemctl/.test(line))
      .map((line) => `\`${line.slice(line.indexOf('claude-openai')).replace(/#.*/, '')}\``)
      .join('\n'),
  );
  const ours = [...text.matchAll(/`((?:claude-openai )?[^`]*)`/g)]
    .map(([, code]) => code)
    .filter((code) => /^(?:claude-openai .*)?--[a-z]/.test(code));
  const mentioned = new Set(ours.flatMap((code) => code.match(FLAG) ?? []));
  assert.ok(mentioned.size > 30, [...mentioned].join());
  const isFlag = (name) =>
    flags[name] ||
    [`${name}{`, `,${name}`, `\n    ${name} `].some((one) => output.includes(one)) ||
    (name.endsWith('-') && text.includes(`${name}…`) && Object.keys(flags).some((one) => one.startsWith(name)));
  assert.deepEqual(
    [...mentioned].filter((name) => !isFlag(name)),
    [],
  );
});

// ---- endpoints -----------------------------------------------------------------------------------

/** `GET /v1/a/{id}; `GET …/b` of a row to `GET /v1/a/*`, `GET /v1/a/* /b`; a method holds for the paths behind it. */
function documentedRoutes() {
  const routes = new Set();
  for (const [cell] of rowsOf('Endpoint')) {
    let methods = [];
    let last = '';
    for (const part of cell.matchAll(/`([^`]+)`/g)) {
      const [, code] = part;
      const found = /^((?:GET|POST|DELETE|HEAD|OPTIONS)\b)?\s*(\S+)?$/.exec(code.trim());
      assert.ok(found, `an endpoint: ${code}`);
      const [, method, where] = found;
      const between = cell.slice(0, part.index).slice(-2);
      if (method && methods.pending) methods.push(method);
      else if (method) methods = [method];
      methods.pending = !where;
      if (!where) continue;
      const full = where.startsWith('…') ? last.replace(/(\{id\}).*/, '$1') + where.slice(1) : where;
      assert.ok(full.startsWith('/'), `${code} after ${between}`);
      if (!where.startsWith('…')) last = full;
      for (const one of methods) routes.add(`${one} ${full.replace(/\{[^}]*\}/g, '*')}`);
    }
  }
  return routes;
}

/** What the 404 lists. */
async function listedRoutes(t) {
  const { json } = await t.get('/v1/no-such-path');
  const list = /this server has (.*)$/.exec(json.error.message)[1];
  return new Set(list.split(', '));
}

/** The paths below a `*` are one route inside; `/` is no path of /v1. */
const same = (route) =>
  route
    .replace(/^(\S+ )\/v1\/?$/, '$1/')
    .replace(/(\/\*).*/, '$1')
    .replace(/^(\S+ )\/(?!v1\/)(.+)$/, '$1/v1/$2');

test('every route of the 404 is in the table, and every endpoint of the table is a route', async (t) => {
  await startOwn(t);
  const listed = new Set([...(await listedRoutes(t))].map(same));
  const documented = new Set([...documentedRoutes()].map(same));
  assert.ok(listed.size > 20, [...listed].join());
  assert.deepEqual(
    [...listed].filter((route) => !documented.has(route)),
    [],
    'not in the pages',
  );
  assert.deepEqual(
    [...documented].filter((route) => !listed.has(route)),
    [],
    'not in the 404',
  );
});

test('every documented endpoint answers, and the 404 says where each is', async (t) => {
  await startOwn(t);
  const all = [...documentedRoutes()];
  for (const route of all) {
    const [method, where] = route.split(' ');
    const body = method === 'POST' ? {} : undefined;
    const result = await t.send({ method, path: where.replaceAll('*', 'no-such-id'), body }).done;
    assert.notEqual(result.status, 405, route);
    if (result.status === 404) assert.doesNotMatch(result.json.error.message, /unknown path/, route);
  }
  const listed = await listedRoutes(t);
  for (const route of listed) {
    const [method, where] = route.split(' ');
    const body = method === 'POST' ? {} : undefined;
    const result = await t.send({ method, path: where.replaceAll('*', 'no-such-id'), body }).done;
    assert.notEqual(result.status, 405, `as it is listed: ${route}`);
    if (result.status === 404)
      assert.doesNotMatch(result.json.error.message, /unknown path/, `as it is listed: ${route}`);
  }
});

// ---- figures -------------------------------------------------------------------------------------

/** The table of figures: {name: {labels, row}}; a name stands without its prefix. */
function documentedFigures() {
  const documented = {};
  for (const [cell, what] of rowsOf('Metric'))
    for (const [, code] of cell.matchAll(/`([^`]+)`/g)) {
      const [, name, labels = ''] = /^(?:claude_openai_)?([a-z_]+)(?:\{([a-z_,]+)\})?$/.exec(code) ?? assert.fail(code);
      assert.ok(!documented[name], `${name} once`);
      documented[name] = { labels: labels.split(',').filter(Boolean), row: `${cell} ${what}` };
    }
  return documented;
}

test('every metric of /metrics is in the pages, with its labels and their values, and the other way round', async (t) => {
  await startLight(t, {
    args: [
      ...['--api-key', 'right', '--rate-limit', '--rate-limit-debug', '0', '--budget', 'requests=3/day'],
      ...['--max-processes', '1', '--max-queue', '0', '--store', path.join(scratchFolder(t), 'state.sqlite')],
    ],
  });
  await t.proxy.inspected(); // by the only process that may be
  const headers = { authorization: 'Bearer right' };
  const busy = t.send({ headers, body: { model: 'sonnet', stream: true, ...ask('[[rate_limit n=12 delay_ms=200]]') } });
  assert.equal((await busy.head).statusCode, 200);
  const refused = [
    [429, await t.chat(ask('[[text]]'), { headers })], // the queue
    [401, await t.get('/v1/models')],
    [403, await t.get('/v1/models', { headers: { ...headers, origin: 'https://evil.example' } })],
    [429, await t.send({ path: '/v1/debug/request', body: {}, headers }).done],
  ];
  await busy.done;
  refused.push([500, await t.chat(ask('[[api_error status=500 retries=1 delay_ms=1]]'), { headers })]);
  refused.push([429, await t.chat(ask('[[text]]'), { headers })]); // the budget
  refused.forEach(([status, result]) => assert.equal(result.status, status, result.text));
  const { families } = await scrape(t, { headers });
  const figures = Object.fromEntries([...families].map(([name, one]) => [name.replace('claude_openai_', ''), one]));
  const documented = documentedFigures();
  assert.deepEqual(Object.keys(documented).toSorted(), Object.keys(figures).toSorted());
  for (const [name, { labels, row }] of Object.entries(documented)) {
    const { type, samples } = figures[name];
    assert.ok(samples.length > 0, `there is a ${name}`);
    const real = [...new Set(samples.flatMap((one) => Object.keys(one.labels)))].filter((label) => label !== 'le');
    if (type === 'histogram') real.forEach((label) => assert.ok(row.includes(label), `${name}: ${label}`));
    else assert.deepEqual(labels, real, name);
    for (const label of ['reason', 'kind', 'process', 'state'].filter((one) => labels.includes(one)))
      for (const value of new Set(samples.map((one) => one.labels[label])))
        assert.ok(row.includes(`\`${value}\``), `${name}: ${label} ${value}`);
  }
  const reasons = new Set(figures.rejected_total.samples.map(({ labels }) => labels.reason));
  assert.deepEqual([...reasons].toSorted(), ['budget', 'key', 'origin', 'queue_full', 'rate_limit']);
});

test('the response headers that the pages name are sent', async (t) => {
  await startLight(t, { args: ['--rate-limit', '--rate-limit-chat', '1'] });
  await waitForWindow(() => t.get('/health'), 5);
  const fine = await t.chat(ask('[[rate_limit]]', { seed: 5 }));
  assert.equal(fine.status, 200, fine.text);
  const limited = await t.chat(ask('[[text]]'));
  const sent = new Set([fine, limited].flatMap(({ headers }) => Object.keys(headers)));
  const named = ALL_TEXT.match(/x-(?:ratelimit|claude-ratelimit)-[A-Za-z_{},*-]+/g) ?? [];
  assert.ok(
    named.some((name) => name.startsWith('x-ratelimit')),
    'the pages tell the headers of limits',
  );
  assert.ok(
    named.some((name) => name.startsWith('x-claude-ratelimit')),
    'and those of the subscription',
  );
  for (const name of ['x-request-id', 'openai-processing-ms', 'x-ignored-params', 'retry-after', 'retry-after-ms']) {
    assert.ok(sent.has(name), `${name} is sent`);
    assert.ok(ALL_TEXT.toLowerCase().includes(name), `${name} is told`);
  }
});
