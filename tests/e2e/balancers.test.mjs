// packaging/ of replicas: the load balancers (who gets a request, what happens when one fails or leaves, streams), and Kubernetes.

import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { PACKAGING, checkConfiguration, missing, nginxConfiguration, startHaproxy, startNginx } from './balancers.mjs';
import { PROXY, eventually, freePort, suite } from './harness.mjs';
import { connectRaw, post } from './raw_client.mjs';
import { NO_CLI, ask, logLines, scrape, scratchFolder, standIn } from './operate.mjs';

export const balancers = suite();
const { test } = balancers;

const KEYS = Array.from({ length: 12 }, (_, i) => `client-key-number-${i}`);
const bearer = (key) => ({ authorization: `Bearer ${key}` });
const one = bearer(KEYS[0]);
const ENV = { API_KEYS: KEYS.join(',') };
const TRUST = ['--trusted-proxy', '127.0.0.1'];

/** Replicas whose stand-in answers with the replica's name. */
async function startReplicas(t, count = 3) {
  const names = Array.from({ length: count }, (_, i) => `replica${i + 1}`);
  return Promise.all(names.map((name) => t.start({ cli: standIn(t, `answer text n=1 say=${name}`), env: ENV, args: TRUST })));
}

/**
 * The replica that keeps these headers' requests: HAProxy gives one to another while it holds the last one for under way, which is so
 * for a moment after its end.
 */
async function homeOf(served, headers) {
  let [last, inRow] = [undefined, 0];
  return eventually('a replica keeps them', async () => {
    const now = await served(headers);
    inRow = now === last ? inRow + 1 : 1;
    last = now;
    return inRow === 5 && now;
  });
}

/** The replica that has a request under way. */
const busyOne = (t, replicas) =>
  eventually('a replica has it', async () => {
    const busy = await Promise.all(replicas.map((proxy) => t.busyProcesses({ proxy, headers: one })));
    return replicas[busy.findIndex(Boolean)];
  });

const portsOf = (replicas) => replicas.map(({ port }) => port);
const answerOf = ({ status, json, text }) => {
  assert.equal(status, 200, text);
  return json.choices[0].message.content;
};

test('who has connected when a proxy is told to stop is answered', async (t) => {
  const [proxy] = await startReplicas(t, 1);
  await proxy.inspected();
  proxy.kill('SIGSTOP'); // so that both are there at once
  const client = connectRaw(t, proxy);
  await client.write(post('/v1/chat/completions', JSON.stringify(ask('Well?')), `Authorization: ${one.authorization}`));
  proxy.kill('SIGTERM');
  proxy.kill('SIGCONT');
  const [{ status, text }] = await client.answers(1);
  assert.deepEqual([status, JSON.parse(text).choices[0].message.content], [200, 'replica1']);
});

for (const [name, start] of [['haproxy', startHaproxy], ['nginx', startNginx]]) {
  const skip = missing(name);
  const balanced = (rule, options, body = options) =>
    test(`${name}: ${rule}`, { ...(body === options ? {} : options), skip }, body);

  balanced('its own check finds no fault in the configuration', async (t) => {
    const args = name === 'haproxy' ? ['-c', '-f', path.join(PACKAGING, 'haproxy.cfg')] : ['-t', '-e', 'stderr', '-c', nginxConfiguration(scratchFolder(t))];
    const { ok, text } = checkConfiguration(name, ...args);
    assert.ok(ok, text);
    assert.doesNotMatch(text, /warn|alert|emerg/i);
  });

  balanced('a session stays with one replica, else a key does, and all replicas get some', async (t) => {
    const proxy = await start(t, portsOf(await startReplicas(t)));
    const served = async (headers) => answerOf(await t.send({ proxy, headers, body: ask('Well?') }).done);
    const inTurn = async (requests) => {
      const got = [];
      for (const headers of requests) got.push(await served(headers));
      return new Set(got);
    };
    const session = (id) => ({ 'x-session-id': `s${id}`, 'x-session-affinity': 'x' });
    const stays = (what, requests) => eventually(`${what} stays`, async () => (await inTurn(requests)).size === 1);
    await stays('a session, whatever the key,', KEYS.map((key) => ({ ...bearer(key), ...session(1) })));
    assert.equal((await inTurn(Array.from({ length: 30 }, (_, i) => ({ ...one, ...session(i) })))).size, 3, 'sessions spread');
    await stays('a key', KEYS.map(() => one));
    await stays('a key by its other name', KEYS.map(() => ({ 'x-api-key': KEYS[1] })));
    assert.ok((await inTurn(KEYS.map(bearer))).size > 1, 'keys spread');
  });

  balanced('passes on whose address it is', async (t) => {
    const [replica] = await startReplicas(t, 1);
    const proxy = await start(t, [replica.port, await freePort(), await freePort()]);
    const headers = { ...one, 'x-forwarded-for': '203.0.113.7' };
    answerOf(await t.send({ proxy, headers, body: ask('Well?') }).done);
    await eventually('the log has it', () => logLines(replica).some((line) => line.includes('203.0.113.7')));
  });

  balanced('passes on each piece of a stream, and a client that leaves ends its request', async (t) => {
    const replica = await t.start({ cli: t.cli, env: ENV, args: TRUST });
    // The other two refuse connections: that is no matter to anybody.
    const proxy = await start(t, [await freePort(), replica.port, await freePort()]);
    for (const stream of [true, false]) {
      const text = t.text(stream ? 'hang after=2 text="one two three four" deltas=4' : 'hang after=-1', `stream ${stream}`);
      const exchange = t.send({ proxy, headers: one, body: ask(text, { stream }) });
      const call = await t.api.waitFor((request) => request.raw?.includes(`${t.token} stream ${stream}`));
      const pieces = () => exchange.chunks.map((chunk) => chunk.text.match(/"delta":\{"content":"/g)?.length ?? 0);
      if (stream) await eventually('two pieces are there', () => pieces().reduce((sum, some) => sum + some, 0) === 2);
      exchange.abort();
      await eventually('the API sees that the client left', () => call.clientLeft);
    }
    assert.equal(t.calls().length, 2, 'nothing was sent twice');
  });

  balanced('a replica that is gone costs no new request; what it had begun is a 502 and is not sent again', async (t) => {
    const replicas = await startReplicas(t);
    const proxy = await start(t, portsOf(replicas));
    const sessions = Array.from({ length: 12 }, (_, i) => ({ ...one, 'x-session-id': `s${i}`, 'x-session-affinity': 'x' }));
    const place = async (headers) => answerOf(await t.send({ proxy, headers, body: ask('Well?') }).done);
    const places = [];
    for (const headers of sessions) places.push(await homeOf(place, headers));
    const begun = t.send({ proxy, headers: sessions[0], body: ask('[[hang]]') });
    const victim = await busyOne(t, replicas);
    const doomed = `replica${replicas.indexOf(victim) + 1}`;
    await victim.stop('SIGKILL');
    victim.stopped = true;
    const { status, json, headers } = await begun.done;
    assert.deepEqual([status, json.error.code, json.type], [502, 'replica_failed', 'error']);
    assert.ok(Number(headers['retry-after']) > 0);
    const others = replicas.filter((replica) => replica !== victim);
    for (const other of others) assert.equal(await t.busyProcesses({ proxy: other, headers: one }), 0, 'nobody else got it');
    for (const headers of sessions) assert.notEqual(await place(headers), doomed);
    for (const [i, headers] of sessions.entries()) {
      if (places[i] !== doomed) assert.equal(await homeOf(place, headers), places[i], 'the others stay where they are');
    }
  });

  balanced('a replica that drains finishes its streams, and no request fails', async (t) => {
    const replicas = await startReplicas(t);
    const proxy = await start(t, portsOf(replicas));
    const held = { ...one, 'x-session-id': 'held', 'x-session-affinity': 'x' };
    const stream = t.send({ proxy, headers: held, body: ask('[[text n=200 delay_ms=30]]', { stream: true }) });
    await eventually('it streams', () => stream.chunks.length);
    const leaving = await busyOne(t, replicas);
    let asked = 0;
    const talk = async (last) => {
      for (let before = 0; before < 5; before += last.now) {
        const headers = { ...one, 'x-session-id': `s${asked++ % 20}`, 'x-session-affinity': 'x' };
        answerOf(await t.send({ proxy, headers, body: ask('Well?') }).done);
      }
    };
    const drains = { now: false };
    const talks = Promise.all(Array.from({ length: 4 }, () => talk(drains)));
    talks.catch(() => {}); // it is told below
    await eventually('there is some load', () => asked > 10);
    leaving.kill();
    await eventually('it drains', () => leaving.exit || /stopping; what still runs/.test(leaving.output));
    drains.now = true;
    await talks;
    const { data, error } = await stream.done;
    assert.deepEqual([error, data.at(-1)], [undefined, '[DONE]']);
  });
}

const skip = missing('haproxy');

test('haproxy: one key’s requests at once are shared by the replicas', { skip }, async (t) => {
  const replicas = await startReplicas(t);
  const proxy = await startHaproxy(t, portsOf(replicas));
  const all = Array.from({ length: 12 }, () => t.send({ proxy, headers: one, body: ask('[[text n=5 delay_ms=100]]') }).done);
  (await Promise.all(all)).forEach(answerOf);
  const counts = await Promise.all(replicas.map(async (replica) => (await scrape(t, { proxy: replica, headers: one }))('requests_total', { dialect: 'openai_chat' })));
  assert.ok(counts.filter(Boolean).length > 1, `${counts}`);
});

test('haproxy: out is a replica whose claude does not work, not one that lacks its store', { skip }, async (t) => {
  const healthy = (await startReplicas(t, 1))[0];
  const without = await t.start({ cli: NO_CLI, env: ENV, args: TRUST });
  const store = path.join(scratchFolder(t), 'state.sqlite');
  await t.start({ cli: standIn(t), env: ENV, args: ['--store', store] });
  const storeless = await t.start({ cli: standIn(t, 'answer text n=1 say=storeless'), env: ENV, args: [...TRUST, '--store', store] });
  assert.deepEqual((await t.get('/health', { proxy: storeless })).json.code, 'store_unavailable');
  const proxy = await startHaproxy(t, portsOf([healthy, without, storeless]));
  await eventually('the one without claude is out', () => /replica2 is DOWN/.test(proxy.output), 60_000);
  const checks = async () => (await scrape(t, { proxy: storeless, headers: one }))('requests_total', { route: '/health' });
  const before = await checks();
  await eventually('the one without its store was asked again, twice', async () => (await checks()) >= before + 2, 60_000);
  assert.doesNotMatch(proxy.output, /replica[13] is DOWN/);
  const served = new Set();
  for (let i = 0; i < 20; i++) {
    served.add(answerOf(await t.send({ proxy, headers: { ...one, 'x-session-id': `s${i}`, 'x-session-affinity': 'x' }, body: ask('Well?') }).done));
  }
  assert.deepEqual([...served].sort(), ['replica1', 'storeless']);
});

test('haproxy: without any replica clients get a 503 that both dialects’ clients read', { skip }, async (t) => {
  const proxy = await startHaproxy(t, [await freePort(), await freePort(), await freePort()]);
  const refused = async () => {
    const { status, json } = await t.send({ proxy, body: ask('Well?') }).done;
    assert.deepEqual([status, json.type, json.error.code], [503, 'error', 'no_replica']);
  };
  await refused();
});

// ---- Kubernetes ----------------------------------------------------------------------------------

const READ_YAML = 'import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))';
const noYaml = spawnSync('python3', ['-c', 'import yaml']).status === 0 ? undefined : 'no python3-yaml here';

/** The objects of packaging/kubernetes.yaml by kind and name. */
function kubernetesObjects() {
  const all = JSON.parse(execFileSync('python3', ['-c', READ_YAML, path.join(PACKAGING, 'kubernetes.yaml')], { encoding: 'utf8' }));
  return new Map(all.map((object) => [`${object.kind} ${object.metadata.name}`, object]));
}

test('kubernetes: its objects fit together, and run nothing as root', { skip: noYaml }, async () => {
  const objects = kubernetesObjects();
  const names = ['Deployment claude-openai', 'Service claude-openai', 'PodDisruptionBudget claude-openai', 'StatefulSet claude-openai-redis', 'Service claude-openai-redis'];
  assert.deepEqual([...objects.keys()], names);
  const [deployment, service, budget, redis, redisService] = names.map((name) => objects.get(name));
  for (const { spec } of [deployment, redis]) {
    const { metadata, spec: pod } = spec.template;
    assert.deepEqual(spec.selector.matchLabels, metadata.labels);
    assert.deepEqual([pod.securityContext.runAsNonRoot, pod.automountServiceAccountToken], [true, false]);
    const [container] = pod.containers;
    const { allowPrivilegeEscalation, readOnlyRootFilesystem, capabilities } = container.securityContext;
    assert.deepEqual([allowPrivilegeEscalation, readOnlyRootFilesystem, capabilities.drop], [false, true, ['ALL']]);
    assert.ok(container.resources.requests && container.resources.limits.memory);
    const volumes = [...(pod.volumes ?? []), ...(spec.volumeClaimTemplates ?? []).map((claim) => claim.metadata)];
    assert.deepEqual(container.volumeMounts.map((mount) => mount.name).sort(), volumes.map((volume) => volume.name).sort());
  }
  for (const [front, behind] of [[service, deployment], [redisService, redis]]) {
    assert.deepEqual(front.spec.selector, behind.spec.template.metadata.labels);
    const ports = behind.spec.template.spec.containers[0].ports.map((port) => port.name);
    for (const { targetPort } of front.spec.ports) assert.ok(ports.includes(targetPort));
  }
  assert.deepEqual(budget.spec.selector, deployment.spec.selector);
  assert.equal(redis.spec.serviceName, redisService.metadata.name);

  const pod = deployment.spec.template.spec;
  const [proxy] = pod.containers;
  assert.ok(deployment.spec.replicas >= 3);
  for (const probe of ['startupProbe', 'readinessProbe', 'livenessProbe']) assert.deepEqual(proxy[probe].httpGet, { path: '/health', port: 'http' });
  const dockerfile = readFileSync(path.join(PACKAGING, 'Dockerfile'), 'utf8');
  const [, user] = /useradd --create-home --uid (\d+) claude/.exec(dockerfile);
  assert.equal(pod.securityContext.runAsUser, Number(user));
  assert.deepEqual(proxy.volumeMounts.map((mount) => mount.mountPath).sort(), ['/home/claude', '/tmp'], 'all that is written to');
  const drain = Number.parseInt(proxy.env.find((variable) => variable.name === 'CLAUDE_DRAIN_TIMEOUT').value, 10);
  const pause = Number(proxy.lifecycle.preStop.exec.command[1]);
  assert.ok(pod.terminationGracePeriodSeconds > pause + drain, 'a drain is not cut');
});

test('kubernetes: the program takes each variable for the setting that it names', { skip: noYaml }, async () => {
  const { spec } = kubernetesObjects().get('Deployment claude-openai').spec.template;
  const { env } = spec.containers[0];
  const help = execFileSync(PROXY, ['--help'], { encoding: 'utf8' });
  const settings = new Set([...help.matchAll(/\[([A-Z_]+(?:,\s+[A-Z_]+)*)\]/g)].flatMap(([, names]) => names.split(/,\s+/)));
  const others = ['ANTHROPIC_API_KEY', 'REDIS_PASSWORD']; // the CLI's own, and a part of another
  for (const { name, valueFrom } of env) {
    assert.ok(settings.has(name) || others.includes(name), `${name} is a setting`);
    if (valueFrom) assert.deepEqual(valueFrom.secretKeyRef, { name: 'claude-openai', key: name });
  }
  const values = Object.fromEntries(env.map(({ name, value }) => [name, (value ?? 'a-secret-of-24-characters').replaceAll('$(REDIS_PASSWORD)', 'secret')]));
  const options = { encoding: 'utf8', env: { PATH: process.env.PATH, ...values } };
  const printed = execFileSync(PROXY, ['--host', '0.0.0.0', '--env-file', '/dev/null', '--print-config'], options);
  for (const name of Object.keys(values).filter((one) => settings.has(one))) assert.match(printed, new RegExp(`# environment, ${name}$`, "m"));
});
