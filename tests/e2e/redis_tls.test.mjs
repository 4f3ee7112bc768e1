// `--store rediss://`: the state in Redis over TLS. Both ends are looked at: what goes over the wire, and what the API was sent.
// Where the system's hiredis has no TLS, another program is under test, which make builds with a newer one.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import tls from 'node:tls';
import { PROXY, eventually, startAndExpectExit, suite } from './harness.mjs';
import { ask, standIn } from './operate.mjs';
import { Redis, assertAnswered, makeIssuer, noRedis } from './redis_server.mjs';

const other = path.join(path.dirname(fileURLToPath(import.meta.url)), '..', '..', 'build', 'tests', 'redis-tls');
const hasTls = (program) => existsSync(program) && /with TLS$/m.test(spawnSync(program, ['--version'], { encoding: 'utf8' }).stdout);
const binary = [PROXY, other].find(hasTls);

export const redisTls = suite();
redisTls.skip = noRedis ?? (binary ? undefined : 'no hiredis with TLS can be had here');
const { test } = redisTls;

const chat = (t, proxy, text) => t.send({ proxy, body: ask(`${text} [[who]]`, { session_id: 'mine' }) }).done;
const seen = (result) => JSON.parse(assertAnswered(result).json.choices[0].message.content).secrets;
const problemOf = async (t, proxy) => (await t.get('/health', { proxy })).json.problem;

/** A Redis with a certificate of an issuer's; `start` starts a proxy over it that trusts the issuer. */
async function shared(t, { subject = 'DNS:localhost,IP:127.0.0.1', ...more } = {}) {
  const issuer = makeIssuer(t);
  const server = await Redis.start(t, { tls: issuer.issue(subject), ...more });
  const env = { SSL_CERT_FILE: issuer.ca };
  const start = (url = server.url) => t.start({ binary, cli: standIn(t), env, args: ['--spares', '0', '--log-level', 'debug', '--store', url] });
  return { issuer, server, env, start };
}

/** The line by which a proxy refuses to start. */
async function refusal(url, env = {}) {
  const { exit, output } = await startAndExpectExit({ binary, cli: '/nonexistent/claude', env: { ...env, CLAUDE_STORE: url } });
  assert.ok(exit && exit.code !== 0, `${url} starts`);
  assert.ok(!output.includes('sesame'), output);
  return /--store: (rediss:\/\/.*)/.exec(output)?.[1] ?? output;
}

/** A server of the test's own at `port`; `bytes()` are what clients have sent. */
async function listen(t, create) {
  const sockets = new Set();
  const heard = [];
  const server = create((socket) => {
    sockets.add(socket.on('error', () => {}).on('data', (data) => heard.push(data)));
  });
  await new Promise((resolve) => {
    server.listen(0, '127.0.0.1', resolve);
  });
  t.defer(async () => {
    server.close();
    sockets.forEach((socket) => socket.destroy());
  });
  return { port: server.address().port, server, bytes: () => Buffer.concat(heard) };
}

/** Passes bytes on to a server, in both directions, and keeps them. */
async function relay(t, target) {
  const back = [];
  const { port, bytes } = await listen(t, (accept) =>
    net.createServer((client) => {
      accept(client);
      const onward = net.connect(target, '127.0.0.1').on('error', () => client.destroy());
      onward.on('data', (data) => back.push(data)).pipe(client).pipe(onward);
      client.on('close', () => onward.destroy());
    }),
  );
  return { port, bytes: () => Buffer.concat([bytes(), ...back]) };
}

const isHello = (bytes) => bytes[0] === 0x16 && bytes[1] === 3 && bytes[5] === 1;

test('a session goes on at another proxy, and neither password nor conversation goes over the wire in clear', async (t) => {
  const { server, start } = await shared(t);
  const wire = await relay(t, server.port);
  const [one, two] = [await start(server.urlAt(wire.port)), await start(server.urlAt(wire.port, 'localhost'))];
  assert.deepEqual(seen(await chat(t, one, 'secret-1')), ['secret-1']);
  assert.deepEqual(seen(await chat(t, two, 'secret-2')), ['secret-1', 'secret-2']);
  assert.deepEqual(seen(await chat(t, one, 'secret-3')), ['secret-1', 'secret-2', 'secret-3']);
  assert.equal(server.keys('record:session::mine').length, 1);
  assert.ok(isHello(wire.bytes()));
  for (const word of ['sesame', 'AUTH', 'secret-', 'claude-openai']) assert.ok(!wire.bytes().includes(word), word);
  for (const { output } of [one, two]) assert.ok(!output.includes('sesame'), output);
});

test('a certificate that is not of the host, of an unknown issuer or over its time ends the start, and Redis hears no command', async (t) => {
  const { issuer, server, env } = await shared(t, { subject: 'DNS:redis.example' });
  const wire = await relay(t, server.port);
  const refused = '/2 cannot be used: its certificate is refused: ';
  const at = (host) => server.urlAt(wire.port, host);
  assert.equal(await refusal(at('127.0.0.1'), env), `rediss://127.0.0.1:${wire.port}${refused}IP address mismatch`);
  assert.equal(await refusal(at('localhost'), env), `rediss://localhost:${wire.port}${refused}hostname mismatch`);
  const unknown = /its certificate is refused: .*(issuer|self-signed|unable to)/;
  assert.match(await refusal(at('127.0.0.1')), unknown, 'the system’s issuers');
  assert.match(await refusal(at('127.0.0.1'), { SSL_CERT_FILE: makeIssuer(t).ca }), unknown, 'another issuer');
  assert.match(await refusal(at('127.0.0.1'), { SSL_CERT_FILE: '/nonexistent/ca.pem' }), /SSL_CERT_FILE: no certificate in \/nonexistent\/ca\.pem/);
  const old = await Redis.start(t, { tls: issuer.issue('IP:127.0.0.1', -1) });
  assert.match(await refusal(old.url, env), /its certificate is refused: certificate has expired/);
  assert.doesNotMatch(server.cli('INFO', 'commandstats'), /cmdstat_set:/);
});

test('the server is told the name that is asked for, so that it can choose its certificate', async (t) => {
  const issuer = makeIssuer(t);
  const server = await Redis.start(t);
  const pair = issuer.issue('DNS:localhost');
  const names = [];
  const { port } = await listen(t, (accept) =>
    tls.createServer({ cert: readFileSync(pair.certificate), key: readFileSync(pair.key) }, (client) => {
      accept(client);
      names.push(client.servername);
      client.pipe(net.connect(server.port, '127.0.0.1').on('error', () => client.destroy())).pipe(client);
    }),
  );
  const url = server.urlAt(port, 'localhost').replace('redis:', 'rediss:');
  const proxy = await t.start({ binary, cli: standIn(t), env: { SSL_CERT_FILE: issuer.ca }, args: ['--spares', '0', '--store', url] });
  assert.deepEqual(seen(await chat(t, proxy, 'secret-1')), ['secret-1']);
  assert.deepEqual([...new Set(names)], ['localhost']);
});

test('a server without TLS gets nothing but the greeting, and one that keeps it waiting is given up', async (t) => {
  const hello = (bytes) => assert.ok(isHello(bytes) && !bytes.includes('AUTH') && !bytes.includes('sesame'), bytes.toString('latin1'));
  const silly = {
    'answers in clear': ['no TLS: wrong version number', (socket) => socket.once('data', () => socket.write('-ERR unknown command\r\n'))],
    'shuts': ['no TLS: it closed the connection|no TLS: unexpected eof while reading', (socket) => socket.once('data', () => socket.end())],
    'is silent': ['no TLS: it does not answer', () => {}],
    'sends a byte now and then': [
      'no TLS: it does not answer',
      (socket) => {
        let timer;
        socket.once('data', () => {
          socket.write(Buffer.from([0x16, 3, 3, 0x40, 0, 2, 0, 0x3f, 0xfc]));
          timer = setInterval(() => socket.write('\x03'), 100);
        });
        socket.once('close', () => clearInterval(timer));
      },
    ],
  };
  for (const [what, [line, behave]] of Object.entries(silly)) {
    const { port, bytes } = await listen(t, (accept) => net.createServer((socket) => accept(socket) ?? behave(socket)));
    assert.match(await refusal(`rediss://:open%40sesame@127.0.0.1:${port}/2`), new RegExp(`/2 cannot be used: (${line})$`), what);
    hello(bytes());
  }
  const plain = await Redis.start(t);
  assert.match(await refusal(plain.url.replace('redis:', 'rediss:')), /cannot be used: no TLS: /);
});

test('wrong passwords and missing client certificates are told as such', async (t) => {
  const { server, env } = await shared(t, { 'tls-auth-clients': 'yes' });
  assert.match(await refusal(server.url, env), /cannot be used: .*; if it wants certificates of clients, set its tls-auth-clients to no$/);
  server.cli('CONFIG', 'SET', 'tls-auth-clients', 'no');
  assert.match(await refusal(server.url.replace('sesame', 'sesame2'), env), /cannot be used: WRONGPASS/);
});

test('TLS 1.2 is enough, and doctor and --print-config tell no password', async (t) => {
  const { server, env, start } = await shared(t, { 'tls-protocols': 'TLSv1.2' });
  assert.deepEqual(seen(await chat(t, await start(), 'secret-1')), ['secret-1']);
  const run = (args, more) => {
    const all = { PATH: process.env.PATH, HOME: server.folder, CLAUDE_STORE: server.url, ...more };
    const { stdout, stderr } = spawnSync(binary, args, { encoding: 'utf8', env: all });
    assert.ok(!(stdout + stderr).includes('sesame'), stdout + stderr);
    return stdout + stderr;
  };
  assert.match(run(['doctor', '--demo'], env), /^ok +store: rediss:\/\/127.0.0.1:\d+\/2$/m);
  assert.match(run(['doctor', '--demo']), /^FAIL +store: rediss:\/\/127.0.0.1:\d+\/2 cannot be used: its certificate is refused/m);
  assert.match(run(['--print-config'], env), /^# store = "\*\*\*"/m);
});

const GONE = {
  'killed': (server) => server.stop('SIGKILL'),
  'stopped, so that it does not answer': (server) => server.kill('SIGSTOP'),
};
for (const [how, end] of Object.entries(GONE)) {
  test(`a Redis that was ${how} is used again once it is back, but not one with a wrong certificate in its place`, { slow: true }, async (t) => {
    const { issuer, server, start } = await shared(t);
    const proxy = await start();
    seen(await chat(t, proxy, 'secret-1'));
    await end(server);
    await eventually('health tells it', () => problemOf(t, proxy));
    assert.equal((await chat(t, proxy, 'secret-2')).json.error.code, 'store_unavailable');
    const right = server.tls;
    await server.stop('SIGKILL');
    server.tls = makeIssuer(t).issue('IP:127.0.0.1');
    await server.start();
    await eventually('health tells of the certificate', async () => /its certificate is refused/.test(await problemOf(t, proxy)));
    assert.equal((await chat(t, proxy, 'secret-2')).json.error.code, 'store_unavailable');
    await server.stop('SIGKILL');
    server.tls = right;
    await server.start();
    await eventually('health is well again', async () => (await problemOf(t, proxy)) === undefined);
    assert.deepEqual(seen(await chat(t, proxy, 'secret-3')), ['secret-1', 'secret-3']);
    assert.equal(issuer.ca, right.ca);
  });
}

test('a history of many TLS records goes over whole', async (t) => {
  const { start } = await shared(t);
  const [one, two] = [await start(), await start()];
  const long = `secret-1 ${'a long tale '.repeat(50_000)}`;
  assert.deepEqual(seen(await chat(t, one, long)), ['secret-1']);
  assert.deepEqual(seen(await chat(t, two, 'secret-2')), ['secret-1', 'secret-2']);
  assert.deepEqual(seen(await chat(t, one, 'secret-3')), ['secret-1', 'secret-2', 'secret-3']);
});
