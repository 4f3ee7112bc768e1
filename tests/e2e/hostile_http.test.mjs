// What no decent client sends, from raw sockets: always a 4xx or a closed connection, bounded memory, nobody else disturbed.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { eventually, send, sleep, suite } from './harness.mjs';
import {
  MODEL,
  MOST_MEMORY,
  assertNothingLeft,
  chatBody,
  connectRaw,
  get,
  head,
  memory,
  post,
  postChat,
  resources,
  restingResources,
  withWitnesses,
} from './raw_client.mjs';

export const hostile = suite();
const { test } = hostile;

const MIB = 1 << 20;
const ENOUGH = 160 * MIB; // more than may be kept of it

/** A proxy whose memory nobody else uses. */
async function ownProxy(t, more = []) {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', '--idle-timeout', '0', ...more] });
  await proxy.inspected();
  const headers = more.includes('--api-key') ? { authorization: 'Bearer right' } : {};
  assert.equal((await send(proxy, { headers, body: chatBody('[[text]]') }).done).status, 200);
  return proxy;
}

const refused = ({ status }) => status >= 400 && status < 500;

/** Bytes for one connection; what comes back is at most one answer, a 4xx if it is one, and the end. */
async function assertTurnedAway(t, proxy, bytes, what, ms = 8000) {
  const client = connectRaw(t, proxy);
  await client.write(bytes);
  const ended = await client.ends(ms);
  assert.ok(ended, `${what}: the connection stays open; got ${JSON.stringify(client.got.slice(0, 200))}`);
  assert.ok(
    client.responses.length <= 1 && client.responses.every(refused),
    `${what}: got ${client.got.slice(0, 200)}`,
  );
  client.close();
}

// ---- endless things ------------------------------------------------------------------------------

for (const [what, beginning, block] of [
  ['request line', 'GET /', 'a'.repeat(65536)],
  ['header line', 'GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ', 'a'.repeat(65536)],
  ['row of headers', 'GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n', 'A: b\r\n'.repeat(10_000)],
  ['row of empty lines', '', '\r\n'.repeat(30_000)],
  ['chunk-size line', head('POST /v1/chat/completions HTTP/1.1', 'Transfer-Encoding: chunked'), 'a'.repeat(65536)],
  [
    'chunk extension',
    `${head('POST /v1/chat/completions HTTP/1.1', 'Transfer-Encoding: chunked')}5;x=`,
    'a'.repeat(65536),
  ],
  [
    'chunked body',
    head('POST /v1/chat/completions HTTP/1.1', 'Transfer-Encoding: chunked'),
    `10000\r\n${'a'.repeat(65536)}\r\n`,
  ],
  [
    'chunked body of single bytes',
    head('POST /v1/chat/completions HTTP/1.1', 'Transfer-Encoding: chunked'),
    '1\r\na\r\n'.repeat(10_000),
  ],
  [
    'row of trailers',
    `${head('POST /v1/chat/completions HTTP/1.1', 'Transfer-Encoding: chunked')}2\r\n{}\r\n0\r\n`,
    'A: b\r\n'.repeat(10_000),
  ],
  ['body', head('POST /v1/chat/completions HTTP/1.1', 'Content-Length: 9999999999999'), 'a'.repeat(65536)],
  ['body where none belongs', head('GET /health HTTP/1.1', 'Content-Length: 9999999999999'), 'a'.repeat(65536)],
]) {
  test(`an endless ${what} is cut off, and costs nobody anything`, async (t) => {
    const proxy = await ownProxy(t);
    const before = await restingResources(proxy);
    const client = connectRaw(t, proxy);
    await withWitnesses(t, proxy, async () => {
      await client.write(beginning);
      await client.flood(block, ENOUGH);
    });
    assert.ok(await client.ends(10_000), 'it was read on and on');
    for (const { status } of client.responses.filter(({ status: one }) => one !== 200))
      assert.ok(status >= 400 && status < 500, `${status}`);
    client.close();
    await assertNothingLeft(proxy, before);
  });
}

test('endless pipelining is answered one by one and kept nowhere', async (t) => {
  const proxy = await ownProxy(t);
  const request = get('/version', ...Array.from({ length: 7 }, (_, i) => `X-${i}: ${'p'.repeat(8000)}`));
  const client = connectRaw(t, proxy);
  const times = Math.floor((100 * MIB) / request.length / 10);
  await withWitnesses(t, proxy, async () => {
    await client.flood(request.repeat(10), times * 10 * request.length);
    await client.answers(1);
  });
});

test('stalled uploads together hold no more memory than may be', async (t) => {
  const proxy = await ownProxy(t);
  const before = await restingResources(proxy);
  const idle = memory(proxy);
  const body = Buffer.alloc(9 * MIB, 'a');
  const clients = Array.from({ length: 16 }, () => connectRaw(t, proxy));
  await withWitnesses(t, proxy, async () => {
    for (const client of clients) {
      client.write(head('POST /v1/chat/completions HTTP/1.1', `Content-Length: ${10 * MIB}`));
      client.write(body);
    }
    await sleep(2500);
  });
  clients.forEach((client) => client.close());
  await assertNothingLeft(proxy, before);
  const stays = Math.round(memory(proxy) - idle);
  assert.ok(stays < MOST_MEMORY, `${stays} MiB stay when they are gone`);
});

for (const [what, keys, request] of [
  ['guess keys', ['--api-key', 'right'], (client) => client.write(get('/v1/models', 'Authorization: Bearer wrong'))],
  ['never send their body', ['--api-key', 'right'], (client) => client.write(head('POST /v1/messages HTTP/1.1', 'Content-Length: 9'))],
  ['never read', [], (client) => client.write(get('/', 'Accept: text/html').repeat(400))],
])
  test(`clients that ${what}, as many as there may be, shut nobody out`, async (t) => {
    const proxy = await ownProxy(t, ['--max-connections', '8', ...keys]);
    // Nobody of this crowd leaves: its places come free only where the proxy takes them back.
    for (let round = 0; round < 3; round++) {
      for (let i = 0; i < 16; i++) {
        const client = connectRaw(t, proxy);
        if (what === 'never read') client.socket.pause();
        request(client);
      }
      await sleep(200);
    }
    const health = async () => (await send(proxy, { method: 'GET', path: '/health' }).done).status === 200;
    for (let i = 0; i < 20; i++) {
      let served = await health();
      for (const end = performance.now() + 10_000; !served && performance.now() < end; await sleep(20))
        served = await health();
      assert.ok(served, `request ${i} is shut out`);
    }
  });

for (const [what, value] of [
  ['numbers', '0'],
  ['empty arrays', '[]'],
  ['empty strings', '""'],
  ['small objects', '{"":0}'],
]) {
  test(`a body of millions of ${what} takes no more memory than may be`, async (t) => {
    const proxy = await ownProxy(t);
    const values = Array(Math.floor((10 * MIB - 1000) / (value.length + 1))).fill(value);
    const body = `{"model":"${MODEL}","messages":[{"role":"user","content":"x"}],"padding":[${values.join(',')}]}`;
    await withWitnesses(t, proxy, async () => {
      const result = await t.send({ proxy, body }).done;
      assert.ok(result.status === 200 || refused(result), `${result.status} ${result.text.slice(0, 300)}`);
    });
  });
}

test('after large bodies the memory goes back', async (t) => {
  const proxy = await ownProxy(t);
  const idle = memory(proxy);
  const body = `{"messages":[],"padding":"${'x'.repeat(9 * MIB)}"}`;
  for (let round = 0; round < 2; round++)
    await Promise.all(Array.from({ length: 4 }, () => send(proxy, { body }).done));
  const isBack = () => memory(proxy) - idle < 32;
  await eventually('it is back', isBack).catch(() =>
    assert.fail(`${Math.round(memory(proxy) - idle)} MiB stay of bodies that are gone`),
  );
});

test('many sessions of long histories take no more memory than may be', async (t) => {
  const proxy = await ownProxy(t);
  const idle = memory(proxy);
  const long = 'x'.repeat(9 * MIB);
  for (let i = 0; i < 14; i++) {
    const result = await t.send({ proxy, body: chatBody(`[[text say=kept]] ${long}`, { session_id: `s${i}` }) }).done;
    assert.equal(result.status, 200, result.text.slice(0, 300));
  }
  const grown = Math.round(memory(proxy) - idle);
  assert.ok(grown < 160, `${grown} MiB are kept`);
});

/** Processor time the proxy has used, in ms. */
function processorTime(proxy) {
  const fields = readFileSync(`/proc/${proxy.pid}/stat`, 'utf8').split(') ').pop().split(' ');
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

for (const [what, body] of [
  [
    'tools',
    (count) => {
      const tools = Array.from({ length: count }, (_, i) => ({ type: 'function', function: { name: `tool${i}` } }));
      return chatBody('x', { tools });
    },
  ],
  [
    'tools of names that mean the same to the model',
    (count) => {
      const name = (i) => i.toString(2).padStart(14, '0').replaceAll('0', '!').replaceAll('1', '?');
      const tools = Array.from({ length: count / 16 }, (_, i) => ({ type: 'function', function: { name: name(i) } }));
      return chatBody('x', { tools });
    },
  ],
  [
    'tool calls and results',
    (count) => {
      const each = (make) => Array.from({ length: count / 2 }, (_, i) => make(`call${i}`));
      const calls = each((id) => ({ id, type: 'function', function: { name: 't', arguments: '{}' } }));
      const results = each((id) => ({ role: 'tool', tool_call_id: id, content: 'x' }));
      const messages = [
        { role: 'user', content: 'x' },
        { role: 'assistant', content: null, tool_calls: calls },
      ];
      return JSON.stringify({ model: MODEL, messages: [...messages, ...results.slice(1)] });
    },
  ],
  [
    'tool calls of one id',
    (count) => {
      const call = { id: 'x', type: 'function', function: { name: 't', arguments: '{}' } };
      const round = [
        { role: 'assistant', content: null, tool_calls: [call] },
        { role: 'tool', tool_call_id: 'x', content: 'x' },
      ];
      const messages = Array.from({ length: count / 4 }, () => round).flat().slice(0, -1); // the last has no result
      return JSON.stringify({ model: MODEL, messages });
    },
  ],
  [
    'items and references to items',
    (count) => {
      const make = (item) => JSON.stringify({ model: MODEL, input: Array.from({ length: count / 10 }, item) });
      return [
        make((_, i) => ({ type: 'message', id: `item${i}`, role: 'user', content: 'x' })),
        make((_, i) => ({ type: 'item_reference', id: `none${i}` })),
      ].map((text) => ({ target: '/v1/responses', text }));
    },
  ],
  ['letters of a body to look at', (count) => [{ target: '/v1/debug/request', text: 'a'.repeat(count * 30) }]],
  [
    'messages',
    (count) => {
      const turn = [
        { role: 'user', content: 'x' },
        { role: 'assistant', content: 'y' },
      ];
      const messages = Array.from({ length: count }, () => turn).flat();
      return JSON.stringify({ model: MODEL, response_format: { type: 'none' }, messages }); // refused before any process
    },
  ],
])
  test(`four times as many ${what} cost four times the time, not sixteen times`, async (t) => {
    const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', '--idle-timeout', '0', '--timeout', '20s'] });
    await proxy.inspected();
    const cost = async (count) => {
      const before = processorTime(proxy);
      for (const { target, text } of [body(count)].flat().map((one) => (one.target ? one : { text: one }))) {
        const client = connectRaw(t, proxy);
        await client.write(post(target ?? '/v1/chat/completions', text));
        await client.answers(1);
        client.close();
      }
      return processorTime(proxy) - before;
    };
    const few = Math.max(60, await cost(8000));
    const many = await cost(32_000);
    assert.ok(many < 6 * few, `${few} ms became ${many} ms of processor time`);
  });

test('on a small stack long paths and headers are no danger', async (t) => {
  const proxy = await t.start({
    cli: t.cli,
    args: ['--spares', '0', '--idle-timeout', '0'],
    // What threads get on other systems; here they usually have 8 MiB.
    prepare: (one) => {
      one.command = ['sh', '-c', 'ulimit -s 512; exec "$@"', 'sh', ...one.command];
    },
  });
  const long = 'a'.repeat(8000);
  const deaths = [];
  for (const [what, request] of [
    ['GET', get(`/${long}`)],
    ['POST', post(`/${long}`, '{}')],
    ['DELETE', head(`DELETE /${long} HTTP/1.1`)],
    ['slashes', post(`/${'/'.repeat(8000)}`, '{}')],
    ['escapes', post(`/${'%41'.repeat(2600)}`, '{}')],
    ['query', get(`/health?${'a=b&'.repeat(2000)}`)],
    ['Range of digits', get('/health', `Range: bytes=${'1'.repeat(8000)}-`)],
    ['Range of many', get('/health', `Range: bytes=${'1-1,'.repeat(2000)}1-1`)],
    ['Range of spaces', get('/health', `Range: bytes=1-1,${' '.repeat(8000)}1-1`)],
    ['Content-Type', post('/v1/compatibility', '{}', `Content-Type: multipart/form-data; boundary=${long}`)],
    ['Accept', get('/health', `Accept: ${'*/*,'.repeat(2000)}`)],
    ['Accept-Encoding', get('/health', `Accept-Encoding: ${'gzip;q=0.1,'.repeat(700)}`)],
    ['Cookie', get('/health', `Cookie: ${'a=b; '.repeat(1600)}`)],
    ['Authorization', get('/v1/models', `Authorization: Digest ${'a="b", '.repeat(1100)}`)],
    ['deep JSON', post('/v1/chat/completions', `{"a":${'['.repeat(126)}${']'.repeat(126)},"messages":[]}`)],
    ['deep schema', post('/v1/chat/completions', chatBody('x', { tools: [nestedTool(100)] }))],
  ]) {
    const client = connectRaw(t, proxy);
    await client.write(request);
    await client.answers().catch(() => {});
    if (!client.responses.length && !client.closed) deaths.push(`${what}: no answer`);
    client.close();
    await sleep(20);
    if (!proxy.exit) continue;
    deaths.push(`${what}: ${proxy.exit.signal}`);
    proxy.start();
    proxy.port = proxy.exit = undefined;
    proxy.output = '';
    await proxy.listening();
  }
  assert.ok(!deaths.length, deaths.join('; '));
});

/** A tool whose parameters nest so deep. */
function nestedTool(depth) {
  let parameters = { type: 'object' };
  for (let i = 0; i < depth / 2; i++) parameters = { type: 'object', properties: { a: parameters } };
  return { type: 'function', function: { name: 'nested', parameters } };
}

test('references to a long item do not multiply it', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', '--idle-timeout', '0', '--timeout', '4s'] });
  await proxy.inspected();
  const ask = (input) => t.send({ proxy, path: '/v1/responses', body: { model: MODEL, input } }).done;
  const item = { type: 'message', id: 'long', role: 'user', content: 'x'.repeat(MIB) };
  assert.equal((await ask([item])).status, 200);
  await withWitnesses(t, proxy, async () => {
    const result = await ask(Array.from({ length: 80 }, () => ({ type: 'item_reference', id: 'long' })));
    assert.ok(refused(result), `80 MiB by reference: ${result.status} ${result.text.slice(0, 200)}`);
  });
});

test('a conversation that refers to itself again and again is bounded', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', '--idle-timeout', '0', '--timeout', '4s'] });
  await proxy.inspected();
  const idle = memory(proxy);
  let previous;
  for (let turn = 0; turn < 12; turn++) {
    const body = { model: MODEL, input: `${'x'.repeat(2 * MIB)} [[text say=on]]`, previous_response_id: previous };
    const result = await t.send({ proxy, path: '/v1/responses', body }).done;
    if (result.status !== 200) break; // too long by now, or out of time: an answer as well
    previous = result.json.id;
  }
  const grown = Math.round(memory(proxy) - idle);
  assert.ok(grown < 256, `${grown} MiB are kept of 24`);
});

// ---- slow things ---------------------------------------------------------------------------------

test('a head that comes byte by byte is cut off', { slow: true }, async (t) => {
  const client = connectRaw(t);
  const bytes = get('/health', `X: ${'y'.repeat(1000)}`);
  const started = performance.now();
  for (let at = 0; !client.closed && performance.now() - started < 45_000; at++) {
    await client.write(bytes[at] ?? 'z');
    await sleep(200);
  }
  assert.ok(client.closed, 'half a head is waited for longer than 45 s');
});

test('a body that comes byte by byte is cut off', { slow: true }, async (t) => {
  const client = connectRaw(t);
  await client.write(head('POST /v1/chat/completions HTTP/1.1', `Content-Length: ${10 * MIB}`));
  const started = performance.now();
  while (!client.closed && performance.now() - started < 45_000) {
    await client.write('x');
    await sleep(500);
  }
  assert.ok(client.closed, 'a body of 2 bytes per second is waited for longer than 45 s');
});

test('a request that comes byte by byte, but in time, is answered', async (t) => {
  const client = connectRaw(t);
  for (const byte of postChat('[[text say="in pieces"]]')) {
    await client.write(byte);
    if (Math.random() < 0.1) await sleep(1);
  }
  const [{ status, text }] = await client.answers();
  assert.equal(status, 200);
  assert.equal(JSON.parse(text).choices[0].message.content, 'in pieces');
});

for (const [what, pace] of [
  ['at 1 kB/s', 1000],
  ['never', 0],
]) {
  test(`clients that read a long stream ${what} disturb nobody`, async (t) => {
    const proxy = await ownProxy(t);
    const before = await restingResources(proxy);
    const clients = Array.from({ length: 4 }, () => connectRaw(t, proxy));
    await withWitnesses(t, proxy, async () => {
      for (const client of clients) {
        client.socket.removeAllListeners('data');
        client.socket.pause();
        // 60 MB, more than all buffers between the two ends
        await client.write(postChat('[[text n=3000 size=20000]]', { stream: true }));
      }
      for (const end = performance.now() + 3000; performance.now() < end; await sleep(250))
        for (const client of clients) if (pace) client.socket.read(pace / 4);
    });
    clients.forEach((client) => client.close());
    await assertNothingLeft(proxy, before);
  });
}

test('clients that never read a whole answer of megabytes disturb nobody', async (t) => {
  const proxy = await ownProxy(t);
  const before = await restingResources(proxy);
  const clients = Array.from({ length: 4 }, () => connectRaw(t, proxy));
  await withWitnesses(t, proxy, async () => {
    for (const client of clients) {
      client.socket.removeAllListeners('data');
      client.socket.pause();
      await client.write(postChat('[[text n=10 size=100000]]'));
    }
    await sleep(2000);
  });
  clients.forEach((client) => client.close());
  await assertNothingLeft(proxy, before);
});

// ---- many connections ----------------------------------------------------------------------------

for (const [what, begin] of [
  ['silent connections', async () => {}],
  ['half heads', async (client) => client.write('GET /health HTTP/1.1\r\nHos')],
  [
    'connections that wait after an answer',
    async (client) => {
      await client.write(get('/version'));
      await client.answers(1).catch(() => {}); // those that are too many get none
    },
  ],
]) {
  test(`1,030 ${what} shut nobody out`, { alone: true }, async (t) => {
    const proxy = await ownProxy(t);
    const before = await restingResources(proxy);
    const clients = [];
    for (let i = 0; i < 103; i++) {
      const ten = Array.from({ length: 10 }, () => connectRaw(t, proxy));
      await Promise.all(ten.map(begin));
      clients.push(...ten);
    }
    await sleep(300);
    assert.ok(memory(proxy) < MOST_MEMORY + 20, `${memory(proxy)} MiB`);
    const answers = [];
    for (let i = 0; i < 3; i++) {
      const started = performance.now();
      const health = await Promise.race([send(proxy, { method: 'GET', path: '/health' }).done, sleep(5000)]);
      answers.push(`${health?.status ?? 'none'}${performance.now() - started > 2000 ? ', late' : ''}`);
    }
    const chat = await Promise.race([send(proxy, { body: chatBody('[[text]]') }).done, sleep(5000)]);
    answers.push(`${chat?.status ?? 'none'}`);
    clients.forEach((client) => client.close());
    assert.deepEqual(answers, ['200', '200', '200', '200']);
    await assertNothingLeft(proxy, before);
  });
}

test('300 connections that are reset at once leave nothing', async (t) => {
  const proxy = await ownProxy(t);
  const before = await restingResources(proxy);
  for (let i = 0; i < 300; i++) {
    const client = connectRaw(t, proxy);
    const written = client.write(i % 3 ? postChat('[[hang]]', { stream: i % 2 === 0 }) : 'POST /v1/chat');
    if (i % 10 === 0) await written;
    if (i % 30 === 0) await sleep(20);
    client.socket.resetAndDestroy();
  }
  await assertNothingLeft(proxy, before);
  assert.equal((await t.get('/health', { proxy })).status, 200);
});

test('keep-alive clients beside each other each get their own answers', async (t) => {
  const clients = Array.from({ length: 8 }, () => connectRaw(t));
  for (let round = 1; round <= 4; round++)
    await Promise.all(
      clients.map(async (client, i) => {
        const words = `client ${i} round ${round}`;
        await client.write(postChat(`[[text say="${words}"]]`));
        const answers = await client.answers(round);
        assert.equal(JSON.parse(answers.at(-1).text).choices[0].message.content, words);
      }),
    );
});

// ---- pipelining, half-closed connections, other ways to speak HTTP ---------------------------------

for (const count of [2, 20]) {
  test(`${count} requests in one packet are answered in order`, async (t) => {
    const client = connectRaw(t);
    const kinds = [
      (id) => get('/version', id),
      (id) => postChat('[[text say=one]]', {}, id),
      (id) => post('/v1/nothing', '', id),
      (id) => postChat('[[text say=two]]', { stream: true }, id),
      (id) => post('/v1/compatibility', chatBody('x'), id),
    ];
    const requests = Array.from({ length: count }, (_, i) => kinds[i % kinds.length](`X-Request-Id: in-order-${i}`));
    await client.write(requests.join(''));
    const answers = await client.answers(count);
    assert.deepEqual(
      answers.map(({ headers }) => headers['x-request-id']),
      requests.map((_, i) => `in-order-${i}`),
    );
    assert.deepEqual(
      answers.map(({ status }) => status),
      requests.map((_, i) => [200, 200, 404, 200, 200][i % 5]),
    );
  });
}

test('what follows a refused body on its connection is never taken for a request', async (t) => {
  const hidden = get('/version');
  for (const request of [
    head('POST /v1/chat/completions HTTP/1.1', 'Origin: http://evil.example', `Content-Length: ${hidden.length}`),
    head('POST /v1/nothing HTTP/1.1', `Content-Length: ${hidden.length}`),
    head('GET /v1/models HTTP/1.1', `Content-Length: ${hidden.length}`),
    head('OPTIONS /v1/models HTTP/1.1', `Content-Length: ${hidden.length}`),
    head('DELETE /v1/sessions/none HTTP/1.1', `Content-Length: ${hidden.length}`),
    head('DELETE /v1/sessions/none HTTP/1.1', 'Transfer-Encoding: chunked'),
    head('POST /v1/nothing HTTP/1.1', 'Transfer-Encoding: chunked'),
  ]) {
    const client = connectRaw(t);
    await client.write(request + hidden);
    assert.ok(await client.ends(), request);
    assert.equal(client.responses.length, 1, `${request} got ${client.got}`);
    client.close();
  }
});

for (const [what, request] of [
  ['GET', () => get('/health')],
  ['chat', () => postChat('[[text say=finished first_ms=400]]')],
  ['stream', () => postChat('[[text say=finished first_ms=400 delay_ms=200]]', { stream: true })],
  [
    'chunked chat',
    () => {
      const body = chatBody('[[text say=finished first_ms=400]]');
      const fields = ['Transfer-Encoding: chunked'];
      return `${head('POST /v1/chat/completions HTTP/1.1', ...fields)}${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`;
    },
  ],
  ['HTTP/1.0 chat', () => postChat('[[text say=finished first_ms=400]]').replace('HTTP/1.1', 'HTTP/1.0')],
]) {
  test(`a client that has said all and half-closed gets its answer: ${what}`, async (t) => {
    const client = connectRaw(t);
    await client.write(request());
    client.socket.end();
    const answers = (await client.answers()).filter(({ status }) => status >= 200);
    assert.deepEqual([answers.length, answers[0].status, answers[0].whole], [1, 200, true], client.got);
    if (what !== 'GET') assert.match(answers[0].text, /finished/);
    if (what === 'stream') assert.match(answers[0].text, /\[DONE\]/);
    assert.ok(await client.ends(), 'and then the end');
  });
}

test('a client that has half-closed and then goes frees its process', async (t) => {
  const proxy = await ownProxy(t);
  const before = await restingResources(proxy);
  for (const stream of [false, true]) {
    const client = connectRaw(t, proxy);
    await client.write(postChat('[[hang after=1]]', { stream }));
    await eventually('its process', () => proxy.claudes().length > 0);
    client.socket.end();
    await sleep(300);
    client.close();
    await assertNothingLeft(proxy, before);
  }
});

test('half a request and a half-closed connection are a 4xx, or the end', async (t) => {
  for (const bytes of [
    '',
    'G',
    'GET /health HTTP/1.1\r\nHos',
    `${head('POST /v1/chat/completions HTTP/1.1', 'Content-Length: 100')}{`,
  ]) {
    const client = connectRaw(t);
    await client.write(bytes);
    client.socket.end();
    assert.ok(await client.ends(), JSON.stringify(bytes));
    assert.ok(client.responses.every(refused), client.got);
  }
});

test('Expect: 100-continue gets its 100 before the body is sent', async (t) => {
  const body = chatBody('[[text say="expected"]]');
  for (const expectation of ['100-continue', '100-Continue']) {
    const client = connectRaw(t);
    await client.write(
      head('POST /v1/chat/completions HTTP/1.1', `Expect: ${expectation}`, `Content-Length: ${body.length}`),
    );
    const invited = () => client.got.startsWith('HTTP/1.1 100 ');
    await eventually(`the 100 for ${expectation}`, invited);
    await client.write(body);
    assert.equal((await client.answers())[0 + 1].status, 200);
  }
});

test('Expect: 100-continue of what will be refused ends in the refusal', async (t) => {
  for (const [wanted, ...fields] of [
    [413, 'Content-Length: 99999999'],
    [400, 'Content-Length: x'],
  ]) {
    const client = connectRaw(t);
    await client.write(head('POST /v1/chat/completions HTTP/1.1', 'Expect: 100-continue', ...fields));
    assert.equal((await client.answers()).at(-1).status, wanted);
    assert.ok(await client.ends());
  }
});

test('HTTP/1.0: answered, and the connection is closed', async (t) => {
  const client = connectRaw(t);
  await client.write('GET /health HTTP/1.0\r\n\r\n');
  assert.equal((await client.answers())[0].status, 200);
  assert.ok(await client.ends());
});

test('HTTP/1.0: a stream comes without chunks, which that client cannot read', async (t) => {
  const client = connectRaw(t);
  await client.write(postChat('[[text say="plain old bytes"]]', { stream: true }).replace('HTTP/1.1', 'HTTP/1.0'));
  assert.ok(await client.ends(10_000), 'the end of the connection is the end of the answer');
  const [answer] = client.responses;
  assert.equal(answer.status, 200);
  assert.ok(!answer.chunked, client.got.slice(0, 500));
  assert.match(answer.text, /\[DONE\]\n\n$/);
});

test('`Connection: close` is heeded, however it is written', async (t) => {
  for (const value of ['close', 'Close', 'close, TE', 'TE, close']) {
    const client = connectRaw(t);
    await client.write(get('/health', `Connection: ${value}`));
    assert.equal((await client.answers())[0].status, 200);
    assert.ok(await client.ends(3000), value);
  }
});

test('an absolute request target is taken as its path', async (t) => {
  for (const target of [
    `http://127.0.0.1:${t.proxy.port}/v1/version`,
    'http://localhost/health',
    'HTTP://localhost/health?x=1',
  ]) {
    const client = connectRaw(t);
    await client.write(get(target));
    assert.equal((await client.answers())[0].status, 200, target);
    client.close();
  }
});

test('a query may hold anything a query may hold', async (t) => {
  for (const target of [
    '/health?',
    '/health??',
    '/health?a=b?c',
    '/health?%',
    '/health?a&&=&',
    `/health?${'q'.repeat(4000)}`,
  ]) {
    const client = connectRaw(t);
    await client.write(get(target));
    assert.equal((await client.answers())[0].status, 200, target.slice(0, 50));
    client.close();
  }
});

test('other protocols on this port are a 4xx, or the end', async (t) => {
  const hello = `\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03${'\x42'.repeat(240)}\r\n`;
  for (const [what, bytes] of [
    ['TLS', hello],
    ['HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'],
    ['HTTP/0.9', 'GET /health\r\n'],
    ['HTTP/1.2', get('/health').replace('HTTP/1.1', 'HTTP/1.2')],
    ['HTTP/11', get('/health').replace('HTTP/1.1', 'HTTP/11')],
    ['an unknown method', get('/health').replace('GET', 'BREW')],
    ['a method in lower case', get('/health').replace('GET', 'get')],
    ['SMTP', 'EHLO evil.example\r\n'],
    ['Redis', '*1\r\n$4\r\nPING\r\n\r\n'],
    ['noise', `${Array.from({ length: 1000 }, (_, i) => String.fromCharCode((i * 7919) % 256)).join('')}\r\n\r\n`],
    ['an empty target', get('')],
    ['a target with spaces', get('/health and more')],
    ['a tab for a space', get('/health').replace(' /', '\t/')],
  ])
    await assertTurnedAway(t, t.proxy, bytes, what);
});

// ---- where a request ends: what two readers could take differently -----------------------------------

const HIDDEN = get('/version', 'X-Request-Id: smuggled');

/** After each of these at most one answer may come, and the end: the hidden request stays unread. All that fail are named. */
async function assertNoSmuggling(t, attacks) {
  const faults = await Promise.all(
    attacks.map(async ([what, bytes]) => {
      const client = connectRaw(t);
      await client.write(bytes);
      const ended = await client.ends(6000);
      const statuses = client.responses.map(({ status }) => status);
      client.close();
      if (client.got.includes('smuggled')) return `${what}: the hidden request was answered (${statuses})`;
      if (statuses.length > 1) return `${what}: ${statuses.length} answers (${statuses})`;
      if (!ended) return `${what}: the connection stays open (${statuses})`;
      return undefined;
    }),
  );
  const found = faults.filter((fault) => fault);
  assert.ok(!found.length, found.join('\n  '));
}

/** The attack on a route that reads bodies, on one that does not exist, and on one without a body. */
const everywhere = (what, ...fields) =>
  ['POST /v1/compatibility', 'POST /v1/nothing', 'GET /version'].map((line) => [
    `${what}, ${line}`,
    head(`${line} HTTP/1.1`, ...fields) + HIDDEN,
  ]);

const LENGTH = HIDDEN.length;
const PLAIN = [
  ['twice, different', 'Content-Length: 0', `Content-Length: ${LENGTH}`],
  ['twice, different, the other way', `Content-Length: ${LENGTH}`, 'Content-Length: 0'],
  ['a list', `Content-Length: ${LENGTH}, 0`],
  ['negative', 'Content-Length: -1'],
  ['with a sign', `Content-Length: +${LENGTH}`],
  ['in hexadecimal', `Content-Length: 0x${LENGTH.toString(16)}`],
  ['a fraction', `Content-Length: ${LENGTH}.0`],
  ['over 64 bits', 'Content-Length: 18446744073709551616'],
  ['with digits of other scripts', 'Content-Length: \xd9\xa1'],
  ['percent-encoded zero', 'Content-Length: %30'],
  ['empty', 'Content-Length:'],
  ['a word', 'Content-Length: many'],
  ['with a NUL', 'Content-Length: 0\x00'],
];

test('a doubtful Content-Length is the last thing read of a connection', async (t) => {
  await assertNoSmuggling(
    t,
    PLAIN.flatMap(([what, ...fields]) => everywhere(what, ...fields)),
  );
});

test('a doubtful Transfer-Encoding is the last thing read of a connection', async (t) => {
  await assertNoSmuggling(
    t,
    [
      ['with a length', 'Transfer-Encoding: chunked', `Content-Length: ${LENGTH}`],
      ['with a length of 0', 'Content-Length: 0', 'Transfer-Encoding: chunked'],
      ['twice', 'Transfer-Encoding: identity', 'Transfer-Encoding: chunked'],
      ['chunked not last', 'Transfer-Encoding: chunked, identity'],
      ['unknown', 'Transfer-Encoding: xchunked'],
      ['gzip', 'Transfer-Encoding: gzip, chunked'],
      ['percent-encoded', 'Transfer-Encoding: chunke%64'],
      ['empty', 'Transfer-Encoding:'],
      ['with a vertical tab', 'Transfer-Encoding: \x0bchunked'],
    ].flatMap(([what, ...fields]) => everywhere(what, ...fields)),
  );
});

test('a broken header line is the last thing read of a connection', async (t) => {
  await assertNoSmuggling(
    t,
    [
      ['a space before the colon', `Content-Length : ${LENGTH}`],
      ['a tab before the colon', `Content-Length\t: ${LENGTH}`],
      ['a folded length', `Content-Length:\r\n ${LENGTH}`],
      ['a line that begins with a space', `X: y\r\n Content-Length: ${LENGTH}`],
      ['a folded encoding', 'X: y\r\n\tTransfer-Encoding: chunked'],
      ['a bare LF at its end', `X: y\nContent-Length: ${LENGTH}`],
      ['a bare LF after the length', `Content-Length: ${LENGTH}\nX: y`],
      ['a bare CR', `X: y\rContent-Length: ${LENGTH}`],
      ['a NUL in the name', `Content-Length\x00: ${LENGTH}`],
      ['a NUL in the value', 'X: a\x00b'],
      ['no colon', 'this is no field'],
      ['no name', `: ${LENGTH}`],
      ['a space in the name', `Content Length: ${LENGTH}`],
      ['a control character', 'X: a\x01b'],
    ].flatMap(([what, ...fields]) => everywhere(what, ...fields)),
  );
});

test('bare LFs end no request line and no head', async (t) => {
  for (const bytes of [
    'GET /health HTTP/1.1\nHost: 127.0.0.1\n\n',
    `GET /health HTTP/1.1\r\nHost: 127.0.0.1\n\n`,
    'GET /health HTTP/1.1\nHost: 127.0.0.1\r\n\r\n',
    'GET /hea\x00lth HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n',
    '\x00GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n',
    'GET /health HTTP/1.1\r\r\nHost: 127.0.0.1\r\n\r\n',
  ]) {
    const client = connectRaw(t);
    await client.write(bytes);
    client.socket.end(); // the rest of the head, which it may wait for, will not come
    assert.ok(await client.ends(), JSON.stringify(bytes));
    assert.ok(client.responses.every(refused), `${JSON.stringify(bytes)} got ${client.got}`);
  }
});

test('a broken chunk is the last thing read of a connection', async (t) => {
  const body = chatBody('x');
  const size = body.length.toString(16);
  const begin = head('POST /v1/compatibility HTTP/1.1', 'Transfer-Encoding: chunked');
  await assertNoSmuggling(
    t,
    [
      ['data longer than told', `${size}\r\n${body}XX\r\n`],
      ['data shorter than told', `${(body.length + 4).toString(16)}\r\n${body}\r\n0\r\n\r\n`],
      ['no CRLF after the data', `${size}\r\n${body}0\r\n\r\n`],
      ['a bare LF after the data', `${size}\r\n${body}\n0\r\n\r\n`],
      ['a bare LF after the size', `${size}\n${body}\r\n0\r\n\r\n`],
      ['0x', `0x${size}\r\n${body}\r\n0\r\n\r\n`],
      ['a sign', `+${size}\r\n${body}\r\n0\r\n\r\n`],
      ['negative', `-${size}\r\n${body}\r\n0\r\n\r\n`],
      ['a space before the size', ` ${size}\r\n${body}\r\n0\r\n\r\n`],
      ['letters after the size', `${size}zz\r\n${body}\r\n0\r\n\r\n`],
      ['over 64 bits', `1${'0'.repeat(15)}${size.padStart(2, '0')}\r\n${body}\r\n0\r\n\r\n`],
      ['over 64 bits by far', `${'f'.repeat(40)}\r\n${body}\r\n0\r\n\r\n`],
      ['an empty size', `\r\n${body}\r\n0\r\n\r\n`],
      ['a NUL after the size', `${size}\x00\r\n${body}\r\n0\r\n\r\n`],
      ['a broken end', `${size}\r\n${body}\r\n0\r\nXX`],
    ].map(([what, chunks]) => [what, begin + chunks + HIDDEN]),
  );
});

test('chunks as the standard has them are taken: extensions, trailers, leading zeros, capitals', async (t) => {
  const body = chatBody('x'.repeat(200));
  const size = body.length.toString(16);
  for (const chunks of [
    `${size};name=value\r\n${body}\r\n0\r\n\r\n`,
    `${size.toUpperCase()};q="a;b"\r\n${body}\r\n0\r\n\r\n`,
    `000${size}\r\n${body}\r\n000\r\n\r\n`,
    `${size}\r\n${body}\r\n0\r\nX-Trailer: y\r\nAnother: z\r\n\r\n`,
    `${[...body].map((one) => `1\r\n${one}\r\n`).join('')}0\r\n\r\n`,
  ]) {
    const client = connectRaw(t);
    await client.write(
      head('POST /v1/compatibility HTTP/1.1', 'Transfer-Encoding: chunked') + chunks + get('/version'),
    );
    const answers = await client.answers(2);
    assert.deepEqual(
      answers.map(({ status }) => status),
      [200, 200],
      `${chunks.slice(0, 60)} got ${client.got.slice(0, 300)}`,
    );
    client.close();
  }
});

// ---- bodies --------------------------------------------------------------------------------------

test('deep nesting anywhere in a body is a 400', async (t) => {
  const deep = (open, close) => open.repeat(100_000) + close.repeat(100_000);
  for (const body of [
    deep('[', ']'),
    deep('{"a":', '}').replace('}', '1}'),
    `{"messages":[{"role":"user","content":${deep('[', ']')}}]}`,
    `{"messages":[{"role":"user","content":"x"}],"tools":${deep('[{"a":', '}]')}}`,
    `{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":${deep('{"items":', '}').replace('}', '{}}')}}}}`,
    `{"a":"\\"${'['.repeat(100_000)}`,
  ]) {
    const result = await t.send({ body }).done;
    assert.equal(result.status, 400, `${body.slice(0, 60)}: ${result.text.slice(0, 200)}`);
    assert.equal(typeof result.json.error.message, 'string');
  }
});

test('brackets within a text are no nesting', async (t) => {
  const result = await t.send({ body: chatBody(`${'[{'.repeat(50_000)}\\"`) }).done;
  assert.equal(result.status, 200, result.text.slice(0, 300));
});

test('bad UTF-8 in a body is a 400 whose own text is good', async (t) => {
  const before = Buffer.from(`{"model":"${MODEL}","messages":[{"role":"user","content":"`);
  for (const bytes of [
    [0xff],
    [0xc0, 0xaf], // overlong
    [0xe0, 0x80, 0xaf],
    [0xed, 0xa0, 0x80], // a surrogate
    [0xf4, 0x90, 0x80, 0x80], // beyond Unicode
    [0x80],
    [0xe2, 0x82], // cut short
    [0x00],
    [0x0a],
  ]) {
    const result = await t.send({ body: Buffer.concat([before, Buffer.from(bytes), Buffer.from('"}]}')]) }).done;
    assert.equal(result.status, 400, `${bytes}: ${result.text}`);
    assert.ok(!result.text.includes('\ufffd'), result.text);
    assert.equal(typeof result.json?.error.message, 'string');
  }
  for (const [text, status] of [['\\u00', 400], ['\\ud800', 200], ['\\udc00\\ud800', 200]]) {
    const result = await t.send({ body: chatBody('x').replace('"x"', `"${text}"`) }).done;
    assert.equal(result.status, status, `${text}: ${result.text}`); // half a character is U+FFFD
  }
});

test('bad UTF-8 and NULs in field names and values never reach an answer broken', async (t) => {
  for (const more of [
    { ['\u0000']: 1 },
    { model: '\u0000' },
    { model: 'a\u0000b' },
    { messages: [{ role: '\u0000', content: 'x' }] },
    { stop: ['\u0000'] },
    { user: '\u0000', metadata: { '\u0000': '\u0000' } },
  ]) {
    const result = await t.send({ body: chatBody('x', more) }).done;
    assert.ok(result.status === 200 || refused(result), `${JSON.stringify(more)}: ${result.status} ${result.text}`);
    assert.ok(result.json, result.text);
  }
  const nul = await t.send({ body: chatBody('a\u0000b [[text say="fine"]]') }).done;
  assert.ok(nul.status === 200 || refused(nul), nul.text);
});

test('duplicate and null keys are one thing or the other, never a 500', async (t) => {
  const user = '[{"role":"user","content":"[[text say=last]]"}]';
  for (const body of [
    `{"messages":null,"messages":${user}}`,
    `{"messages":${user},"messages":null}`,
    `{"messages":${user},"stream":null,"stream":true,"stream":false}`,
    `{"messages":${user},"":null,"":1}`,
    `{"messages":[{"role":"user","role":"assistant","role":"user","content":"x"}]}`,
    `{"messages":${user},"__proto__":{"stream":true},"constructor":null}`,
    `{"messages":[null]}`,
    `{"messages":[{"role":null,"content":null}]}`,
    `{"messages":${user},"tools":[null]}`,
    `{"messages":${user},"tools":[{"type":"function","function":null}]}`,
    `{"messages":${user},"stop":[null]}`,
    `{"messages":${user},"response_format":{"type":null}}`,
  ]) {
    const result = await t.send({ body: body.replace('{', `{"model":"${MODEL}",`) }).done;
    assert.ok([200, 400].includes(result.status), `${body}: ${result.status} ${result.text}`);
  }
});

test('huge numbers are one thing or the other, never a 500', async (t) => {
  const numbers = [
    '1e999',
    '-1e999',
    '1e308',
    '99999999999999999999999999',
    '-9223372036854775809',
    '18446744073709551615',
    '9223372036854775807',
    '-0',
    '-0.0',
    '1e-999',
    `0.${'0'.repeat(5000)}1`,
    '9'.repeat(5000),
  ];
  const faults = [];
  for (const field of ['max_tokens', 'max_completion_tokens', 'temperature', 'top_p', 'n', 'seed', 'top_logprobs', 'x'])
    await Promise.all(
      numbers.map(async (number) => {
        const body = chatBody('x').replace('{', `{"${field}":${number},`);
        const result = await t.send({ body }).done;
        if (![200, 400].includes(result.status) || !result.json)
          faults.push(`${field} ${number.slice(0, 30)}: ${result.status} ${result.text.slice(0, 200)}`);
      }),
    );
  assert.deepEqual(faults, []);
});

test('a body shorter or longer than told harms its own connection alone', async (t) => {
  const body = chatBody('[[text]]');
  const longer = connectRaw(t);
  await longer.write(post('/v1/chat/completions', body) + 'and more\r\n\r\n');
  assert.ok(await longer.ends());
  assert.deepEqual(
    longer.responses.map(({ status }) => status),
    [200, 400],
  );
  const shorter = connectRaw(t);
  await shorter.write(head('POST /v1/chat/completions HTTP/1.1', `Content-Length: ${body.length + 10}`) + body);
  await sleep(300);
  assert.equal(shorter.got, '', 'it waits for the rest');
  shorter.socket.end();
  assert.ok(await shorter.ends());
  assert.deepEqual(
    shorter.responses.map(({ status }) => status),
    [400],
  );
  assert.equal((await t.get('/health')).status, 200);
});

test('after all this nothing is left', { alone: true }, async (t) => {
  await eventually('the threads of all those connections end', () => resources(t.proxy).threads <= 4).catch(
    (error) => assert.fail(`${error.message}: ${JSON.stringify(resources(t.proxy))}`),
  );
});
