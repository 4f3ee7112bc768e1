// How bytes come in: TLS, the unix socket, many connections that stay.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, lstatSync, readFileSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import path from 'node:path';
import tls from 'node:tls';
import OpenAI from 'openai';
import { descriptorsOf, eventually, linkOf, processesMarked, send, sleep, startAndExpectExit, suite } from './harness.mjs';
import { NO_CLI, ask, reload, scratchFolder, startLight, startOwn } from './operate.mjs';

export const transport = suite();
const { test } = transport;

// ---- TLS -----------------------------------------------------------------------------------------

/** A self-signed certificate of that name, for loopback: the paths of its two files. */
export function makeCertificate(folder, name) {
  const files = { cert: path.join(folder, `${name}.pem`), key: path.join(folder, `${name}.key`) };
  execFileSync(
    'openssl',
    [
      ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'],
      ...['-subj', `/CN=${name}`, '-addext', 'subjectAltName=IP:127.0.0.1,DNS:localhost'],
      ...['-keyout', files.key, '-out', files.cert],
    ],
    { stdio: 'ignore' },
  );
  return files;
}

const tlsArgs = ({ cert, key }) => ['--tls-cert', cert, '--tls-key', key];
const trusting = ({ cert }) => ({ ca: readFileSync(cert) });

/** The name in the certificate that the proxy shows now. */
const shownName = (proxy, over) =>
  new Promise((resolve, reject) => {
    const socket = tls.connect({ port: proxy.port, host: '127.0.0.1', rejectUnauthorized: false, ...over }, () => {
      resolve(socket.getPeerCertificate().subject.CN);
      socket.destroy();
    });
    socket.once('error', reject);
  });

test('TLS: chat, streams, large bodies, and a curl line that says https', async (t) => {
  const pair = makeCertificate(scratchFolder(t), 'first');
  const proxy = await startLight(t, { args: tlsArgs(pair) });
  const over = trusting(pair);
  assert.match(proxy.output, /curl [^\n]*https:\/\/127\.0\.0\.1:\d+\//);
  assert.match(proxy.output, /OpenAI base URL +https:/);
  const whole = await t.chat(ask('[[text say=fine]]'), { over });
  assert.equal(whole.status, 200, whole.text);
  assert.equal(whole.json.choices[0].message.content, 'fine');
  const stream = await t.chat({ stream: true, ...ask('[[text n=200 size=2000]]') }, { over });
  assert.equal(stream.data.at(-1), '[DONE]');
  const text = stream.data.map((chunk) => chunk.choices?.[0]?.delta?.content ?? '').join('');
  assert.ok(text.length >= 200 * 2000, `${text.length} characters`);
  const large = await t.chat(ask(`[[text say=read]] ${'x'.repeat(3_000_000)}`), { over });
  assert.equal(large.status, 200, large.text);
  const many = await Promise.all(Array.from({ length: 20 }, () => t.get('/v1/models', { over })));
  many.forEach((one) => assert.equal(one.status, 200));
});

test('beyond loopback without TLS the start warns that keys and prompts go in clear text', async (t) => {
  const warning = /WARNING +keys and prompts cross the network in clear text; use --tls-cert/;
  const pair = makeCertificate(scratchFolder(t), 'first');
  assert.match((await startOwn(t, { args: ['--host', '0.0.0.0'], env: { API_KEY: 'a-key-of-16-signs-or-more' } })).output, warning);
  assert.doesNotMatch((await startOwn(t, { args: ['--host', '127.0.0.1'] })).output, warning);
  assert.doesNotMatch((await startOwn(t, { args: ['--host', '0.0.0.0', ...tlsArgs(pair)], env: { API_KEY: 'a-key-of-16-signs-or-more' } })).output, warning);
});

test('TLS: slow, plain and strange clients harm nobody', async (t) => {
  const pair = makeCertificate(scratchFolder(t), 'first');
  const proxy = await startOwn(t, { args: tlsArgs(pair) });
  const over = trusting(pair);
  const silent = Array.from({ length: 5 }, () => net.connect(proxy.port, '127.0.0.1'));
  t.defer(async () => silent.forEach((socket) => socket.destroy()));
  const plain = await t.get('/health');
  assert.ok(plain.error || plain.status === 400, `in the clear: ${plain.status} ${plain.text}`);
  assert.ok((await t.get('/health', { over: { ca: 'none', rejectUnauthorized: true } })).error, 'an unknown signer');
  await assert.rejects(shownName(proxy, { maxVersion: 'TLSv1.1', minVersion: 'TLSv1', ciphers: 'ALL@SECLEVEL=0' }));
  const half = tls.connect({ port: proxy.port, host: '127.0.0.1', ...over });
  await new Promise((resolve) => {
    half.once('secureConnect', resolve);
  });
  half.write('GET /health HT');
  await sleep(50);
  half.destroy();
  for (const maxVersion of ['TLSv1.2', 'TLSv1.3']) assert.equal(await shownName(proxy, { maxVersion }), 'first');
  assert.equal((await t.get('/health', { over })).status, 200);
});

test('TLS: SIGHUP takes new files, for new connections; broken ones are refused', { slow: true }, async (t) => {
  const folder = scratchFolder(t);
  const pair = makeCertificate(folder, 'first');
  const next = makeCertificate(folder, 'second');
  const firstCa = trusting(pair);
  const proxy = await startLight(t, { args: tlsArgs(pair) });
  const stream = t.send({
    body: { model: 'sonnet', stream: true, ...ask('[[text n=20 delay_ms=60]]') },
    over: firstCa,
  });
  await stream.head;
  copyFileSync(next.cert, pair.cert);
  copyFileSync(next.key, pair.key);
  assert.match(await reload(proxy), /anew/);
  assert.equal(await shownName(proxy), 'second');
  assert.equal((await stream.done).data.at(-1), '[DONE]', 'the connection under way goes on');
  writeFileSync(pair.cert, 'no certificate');
  assert.match(await reload(proxy), /stay as they were: .*certificate/);
  assert.equal(await shownName(proxy), 'second', 'the old one stays');
  const other = makeCertificate(folder, 'third');
  copyFileSync(other.cert, pair.cert); // and the second's key
  assert.match(await reload(proxy), /stay as they were: .*key/);
  assert.equal(await shownName(proxy), 'second');
  copyFileSync(other.key, pair.key);
  assert.match(await reload(proxy), /anew/);
  assert.equal(await shownName(proxy), 'third');
});

test('TLS: a key with a pass phrase is refused, and nobody is asked for one: not at SIGHUP either', async (t) => {
  const folder = scratchFolder(t);
  const pair = makeCertificate(folder, 'first');
  const locked = path.join(folder, 'locked.key');
  execFileSync('openssl', ['ec', '-in', pair.key, '-aes256', '-passout', 'pass:secret', '-out', locked], {
    stdio: 'ignore',
  });
  assert.match(readFileSync(locked, 'utf8'), /ENCRYPTED/);
  const proxy = await startOwn(t, { terminal: true, args: ['--no-prompt', ...tlsArgs(pair)] });
  await eventually('the start is told', () => /try it/.test(proxy.output));
  const own = processesMarked(proxy.scratch).find((one) => one.argv.includes('--no-prompt') && one.pid !== proxy.pid);
  const over = trusting(pair);
  const served = async () => {
    const exchange = t.send({ method: 'GET', path: '/health', over });
    const late = setTimeout(exchange.abort, 3000);
    const { status } = await exchange.done;
    clearTimeout(late);
    return status;
  };
  assert.equal(await served(), 200);
  copyFileSync(locked, pair.key);
  process.kill(own.pid, 'SIGHUP');
  await eventually('the refusal is told', () => /stay as they were|PEM pass phrase/.test(proxy.output));
  assert.equal(await served(), 200, 'it serves on');
  assert.doesNotMatch(proxy.output, /PEM pass phrase/);
});

test('TLS: what cannot be used is refused at the start', async (t) => {
  const folder = scratchFolder(t);
  const [one, two] = [makeCertificate(folder, 'one'), makeCertificate(folder, 'two')];
  const broken = path.join(folder, 'broken.pem');
  writeFileSync(broken, 'nothing of the kind');
  const wrong = [
    [['--tls-cert', one.cert], /both a certificate and its key/],
    [['--tls-key', one.key], /both a certificate and its key/],
    [['--tls-cert', one.cert, '--tls-key', two.key], /key/],
    [['--tls-cert', broken, '--tls-key', one.key], /certificate/],
    [['--tls-cert', one.cert, '--tls-key', broken], /key/],
    [['--tls-cert', path.join(folder, 'missing'), '--tls-key', one.key], /missing/],
  ];
  for (const [args, message] of wrong) {
    const { exit, output } = await startAndExpectExit({ url: t.api.url, cli: NO_CLI, args });
    assert.ok(exit && exit.code !== 0, output);
    assert.match(output, message);
  }
});

// ---- the unix socket -----------------------------------------------------------------------------

test('a unix socket beside the port: mode 0600, chat and streams, gone at the end', async (t) => {
  const socketPath = path.join(scratchFolder(t), 'proxy.sock');
  const proxy = await startLight(t, { args: ['--unix-socket', socketPath] });
  const found = lstatSync(socketPath);
  assert.ok(found.isSocket());
  assert.equal(found.mode & 0o777, 0o600);
  assert.ok(proxy.output.includes(socketPath), 'the start tells it');
  for (const over of [{ socketPath }, undefined]) {
    const whole = await t.chat(ask('[[text say=fine]]'), { over });
    assert.equal(whole.json?.choices[0].message.content, 'fine', whole.text);
    const stream = await t.chat({ stream: true, ...ask('[[text n=3]]') }, { over });
    assert.equal(stream.data.at(-1), '[DONE]');
  }
  assert.equal((await t.get('/health', { over: { socketPath }, host: 'any.name.example' })).status, 200, 'any Host');
  assert.equal((await t.get('/health', { host: 'any.name.example' })).status, 403, 'not so by the port');
  await eventually('the log tells', () => / from unix/.test(proxy.output) && / from 127\.0\.0\.1/.test(proxy.output));
  proxy.stopped = true;
  assert.deepEqual((await proxy.stop()).faults, []);
  assert.ok(!existsSync(socketPath), 'removed');
});

test('a unix socket alone: no port, the key still holds, and the curl line works', async (t) => {
  const socketPath = path.join(scratchFolder(t), 'proxy.sock');
  const proxy = await startOwn(t, { args: ['--unix-socket', socketPath, '--no-tcp', '--api-key', 'right'] });
  assert.equal(proxy.port, undefined, proxy.output);
  const listening = readFileSync(`/proc/${proxy.pid}/net/tcp`, 'utf8').split('\n').slice(1);
  const inodes = new Set(
    listening
      .map((line) => line.trim().split(/\s+/))
      .filter((f) => f[3] === '0A')
      .map((f) => f[9]),
  );
  const own = descriptorsOf(proxy.pid).map((fd) => linkOf(proxy.pid, `fd/${fd}`)).join(' '); // one may be closed meanwhile
  for (const [, inode] of own.matchAll(/socket:\[(\d+)\]/g)) assert.ok(!inodes.has(inode), 'no socket of TCP listens');
  const over = { socketPath };
  assert.equal((await t.get('/v1/models', { over })).status, 401);
  assert.equal((await t.get('/v1/models', { over, headers: { 'x-api-key': 'right' } })).status, 200);
  assert.match(proxy.output, new RegExp(`curl --unix-socket ${socketPath} http://localhost/`));
  const { exit, output } = await startAndExpectExit({ url: t.api.url, cli: NO_CLI, args: ['--no-tcp'] });
  assert.ok(exit && exit.code !== 0);
  assert.match(output, /unix socket/);
});

test('a socket file: a dead one is replaced, a living one refused, another file is not touched', async (t) => {
  const folder = scratchFolder(t);
  const socketPath = path.join(folder, 'proxy.sock');
  const args = ['--spares', '0', '--unix-socket', socketPath];
  const killed = await startOwn(t, { args: ['--unix-socket', socketPath] });
  killed.stopped = true;
  await killed.stop('SIGKILL');
  assert.ok(existsSync(socketPath), 'left behind');
  const alive = await startOwn(t, { args: ['--unix-socket', socketPath] });
  assert.equal((await t.get('/health', { over: { socketPath } })).status, 200, 'replaced');
  const second = await startAndExpectExit({ url: t.api.url, cli: NO_CLI, args });
  assert.ok(second.exit && second.exit.code !== 0, second.output);
  assert.ok(second.output.includes(socketPath), second.output);
  assert.equal((await t.get('/health', { over: { socketPath } })).status, 200, 'the first one lives on');
  alive.stopped = true;
  await alive.stop();
  writeFileSync(socketPath, 'dear to somebody');
  const third = await startAndExpectExit({ url: t.api.url, cli: NO_CLI, args });
  assert.ok(third.exit && third.exit.code !== 0, third.output);
  assert.equal(readFileSync(socketPath, 'utf8'), 'dear to somebody');
  for (const bad of [path.join(folder, 'no', 'such', 'folder'), path.join(folder, 'x'.repeat(200))]) {
    const refused = await startAndExpectExit({ url: t.api.url, cli: NO_CLI, args: ['--unix-socket', bad] });
    assert.ok(refused.exit && refused.exit.code !== 0, refused.output);
  }
});

test('a proxy that finishes its answers leaves the socket to the next one', async (t) => {
  const socketPath = path.join(scratchFolder(t), 'proxy.sock');
  const old = await startLight(t, { args: ['--unix-socket', socketPath] });
  const stream = t.send({ body: { model: 'sonnet', stream: true, ...ask('[[text n=20 delay_ms=100]]') } });
  await stream.head;
  old.stopped = true;
  const stopped = old.stop();
  await eventually('it is stopping', () => /stopping/.test(old.output));
  await startLight(t, { args: ['--unix-socket', socketPath] });
  assert.equal((await stream.done).data.at(-1), '[DONE]');
  await stopped;
  assert.equal((await t.get('/health', { over: { socketPath } })).status, 200);
});

test('SIGTERM waits for no connection without a request, with half a head or half a body', async (t) => {
  const head = 'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n';
  const begin = (bytes) => (port) => {
    const socket = net.connect(port, '127.0.0.1');
    socket.write(bytes);
    return socket;
  };
  const shake = (port) => tls.connect({ port, host: '127.0.0.1', rejectUnauthorized: false });
  const ways = [
    ['half a head', begin(head)],
    ['half a body', begin(`${head}Content-Length: 100\r\n\r\n{`)],
    ['TLS without a request', shake, tlsArgs(makeCertificate(scratchFolder(t), 'own'))],
  ];
  for (const [name, connect, args = []] of ways) {
    const proxy = await startLight(t, { args: ['--drain-timeout', '20s', ...args] });
    const socket = connect(proxy.port).on('error', () => {});
    t.defer(async () => socket.destroy());
    await new Promise((resolve) => {
      socket.once(connect === shake ? 'secureConnect' : 'connect', resolve);
    });
    await sleep(200);
    const begun = performance.now();
    proxy.stopped = true;
    await proxy.stop();
    assert.ok(performance.now() - begun < 7500, `${name}: ${performance.now() - begun} ms`);
  }
});

test('clients by unix socket are not limited by default, and with TLS they speak in the clear', async (t) => {
  const folder = scratchFolder(t);
  const socketPath = path.join(folder, 'proxy.sock');
  const pair = makeCertificate(folder, 'first');
  await startOwn(t, { args: ['--unix-socket', socketPath, ...tlsArgs(pair)] });
  const got = await t.get('/health', { over: { socketPath } });
  assert.equal(got.status, 200, `${got.error}`);
  assert.equal(got.headers['x-ratelimit-limit-requests'], undefined);
  assert.equal((await t.get('/health', { over: trusting(pair) })).status, 200);
});

// ---- connections ---------------------------------------------------------------------------------

test('200 clients keep their connections, and each is answered on its own', { slow: true }, async (t) => {
  const proxy = await startLight(t, { args: ['--max-processes', '4'] });
  const agents = Array.from({ length: 200 }, () => new http.Agent({ keepAlive: true, maxSockets: 1 }));
  t.defer(async () => agents.forEach((agent) => agent.destroy()));
  const ports = agents.map(() => new Set());
  const get = (i, where) =>
    new Promise((resolve, reject) => {
      const request = http.get({ host: '127.0.0.1', port: proxy.port, agent: agents[i], path: where }, (response) => {
        ports[i].add(response.socket.localPort);
        let text = '';
        response.on('data', (bytes) => (text += bytes)).once('end', () => resolve({ response, text }));
      });
      request.once('error', reject);
    });
  for (let round = 0; round < 4; round++) {
    const results = await Promise.all(agents.map((_, i) => get(i, `/v1/models/model-${i}-${round}`)));
    results.forEach(({ response, text }, i) => {
      assert.equal(response.statusCode, 200);
      assert.equal(JSON.parse(text).id, `model-${i}-${round}`, 'its own answer');
    });
  }
  ports.forEach((one) => assert.equal(one.size, 1, 'one connection each'));
  const begun = performance.now();
  const chat = await t.chat(ask('[[text say=fine]]'));
  assert.equal(chat.status, 200, chat.text);
  assert.ok(performance.now() - begun < 15_000, 'the idle ones are in nobody’s way');
});

test('at --max-connections the one that is silent longest goes, and no request is lost', async (t) => {
  const proxy = await startLight(t, { args: ['--max-connections', '5'] });
  const busy = t.send({ body: { model: 'sonnet', stream: true, ...ask('[[text n=15 delay_ms=100]]') } });
  await busy.head;
  const idle = [];
  for (let i = 0; i < 12; i++) {
    const socket = net.connect(proxy.port, '127.0.0.1');
    socket.on('error', () => {});
    idle.push({ socket, closed: new Promise((resolve) => socket.once('close', resolve)) });
    await sleep(15);
  }
  t.defer(async () => idle.forEach(({ socket }) => socket.destroy()));
  const late = sleep(2000).then(() => 'open');
  assert.notEqual(await Promise.race([idle[0].closed, late]), 'open', 'the first went');
  assert.equal((await t.get('/health')).status, 200);
  assert.equal((await busy.done).data.at(-1), '[DONE]', 'the one at work stayed');
});

test('the OpenAI client over TLS and over the unix socket, as its users would set it', async (t) => {
  const folder = scratchFolder(t);
  const pair = makeCertificate(folder, 'first');
  const proxy = await startLight(t, { args: [...tlsArgs(pair), '--api-key', 'right'] });
  const fetchThrough =
    (ca) =>
    async (url, { method, headers, body }) => {
      const target = new URL(url);
      const result = await send(proxy, {
        method,
        path: target.pathname,
        headers: Object.fromEntries(new Headers(headers)),
        body,
        over: { ca },
      }).done;
      if (result.error) throw result.error;
      return new Response(result.text, {
        status: result.status,
        headers: { 'content-type': result.headers['content-type'] },
      });
    };
  const client = new OpenAI({
    baseURL: `${proxy.url}/v1`,
    apiKey: 'right',
    fetch: fetchThrough(readFileSync(pair.cert)),
  });
  const answer = await client.chat.completions.create({ model: 'sonnet', ...ask('[[text say=fine]]') });
  assert.equal(answer.choices[0].message.content, 'fine');
});
