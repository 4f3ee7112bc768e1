// Load balancers with the configurations of packaging/: real programs on free ports of loopback.

import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { eventually, freePort } from './harness.mjs';
import { scratchFolder } from './operate.mjs';

export const PACKAGING = fileURLToPath(new URL('../../packaging/', import.meta.url));

/** A program, also where only root has its folder on PATH. */
export function findProgram(name) {
  const folders = [...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/usr/local/sbin'];
  return folders.map((folder) => path.join(folder, name)).find((file) => existsSync(file));
}

/** Why tests that need these programs cannot run here; undefined: they can. */
export function missing(...names) {
  const none = names.filter((name) => !findProgram(name));
  return none.length ? `no ${none.join(', no ')} here` : undefined;
}

const accepts = (port) =>
  new Promise((resolve) => {
    const socket = net.connect({ port, host: '127.0.0.1' });
    socket.once('connect', () => resolve(true)).once('error', () => resolve(false));
    socket.on('connect', () => socket.destroy());
  });

/** A program that listens at `port`, until the end of the test. `kill` resolves when it is gone. */
async function startProgram(t, name, port, args, env = {}) {
  const child = spawn(findProgram(name), args, { stdio: ['ignore', 'pipe', 'pipe'], env: { PATH: process.env.PATH, ...env } });
  const program = { port, pid: child.pid, output: '' };
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text) => {
      program.output += text;
    });
  }
  const gone = new Promise((resolve) => {
    child.once('exit', (code, signal) => resolve((program.exit = { code, signal })));
    child.once('error', (error) => resolve((program.exit = { error })));
  });
  program.signal = (signal) => child.kill(signal);
  program.kill = async (signal = 'SIGTERM') => {
    if (!program.exit) child.kill(signal);
    const late = setTimeout(() => child.kill('SIGKILL'), 8000);
    await gone;
    clearTimeout(late);
  };
  t.defer(() => program.kill());
  await eventually(`${name} listens`, async () => program.exit || (await accepts(port)));
  if (program.exit) throw new Error(`${name} ended: ${JSON.stringify(program.exit)} ${program.output}`);
  return program;
}

// ---- HAProxy -------------------------------------------------------------------------------------

/** packaging/haproxy.cfg, without a user of its own where only root may change to one. */
export function haproxyConfiguration(folder) {
  const whole = readFileSync(path.join(PACKAGING, 'haproxy.cfg'), 'utf8');
  const file = path.join(folder, 'haproxy.cfg');
  writeFileSync(file, process.getuid() === 0 ? whole : whole.replace(/^ +(user|group) .*\n/gm, ''));
  return file;
}

/** What HAProxy's configuration takes from the environment. */
export const haproxyEnvironment = (port, ports) => ({
  BIND: `127.0.0.1:${port}`,
  ...Object.fromEntries(ports.map((one, i) => [`REPLICA_${i + 1}`, `127.0.0.1:${one}`])),
});

/** `reload` resolves when a new worker serves. */
export async function startHaproxy(t, ports) {
  const port = await freePort();
  const config = haproxyConfiguration(scratchFolder(t));
  const program = await startProgram(t, 'haproxy', port, ['-W', '-db', '-f', config], haproxyEnvironment(port, ports));
  program.reload = async () => {
    const workers = () => [...program.output.matchAll(/New worker \((\d+)\) forked/g)].length;
    const before = workers();
    program.signal('SIGUSR2');
    await eventually('HAProxy has a new worker', () => workers() > before && /Loading success/.test(program.output));
  };
  return program;
}

// ---- nginx ---------------------------------------------------------------------------------------

/** packaging/nginx.conf at these ports, inside a whole configuration as Debian's includes it. */
export function nginxConfiguration(folder, { port = 8080, ports = [8001, 8002, 8003] } = {}) {
  let site = readFileSync(path.join(PACKAGING, 'nginx.conf'), 'utf8');
  [8001, 8002, 8003].forEach((shipped, i) => {
    site = site.replace(`server 127.0.0.1:${shipped} `, `server 127.0.0.1:${ports[i]} `);
  });
  site = site.replace('listen 127.0.0.1:8080;', `listen 127.0.0.1:${port};`);
  writeFileSync(path.join(folder, 'site.conf'), site);
  const file = path.join(folder, 'nginx.conf');
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${folder}/${name};`);
  writeFileSync(file, `${process.getuid() === 0 ? 'user root;\n' : ''}daemon off;
pid ${folder}/pid;
error_log stderr;
events {}
http {
  access_log off;
  ${temporary.join('\n  ')}
  include ${folder}/site.conf;
}
`);
  return file;
}

export async function startNginx(t, ports) {
  const port = await freePort();
  const folder = scratchFolder(t);
  return startProgram(t, 'nginx', port, ['-p', folder, '-c', nginxConfiguration(folder, { port, ports }), '-e', 'stderr']);
}

/** What the program's own check says: {ok, text}. */
export function checkConfiguration(name, ...args) {
  const { status, stdout, stderr } = spawnSync(findProgram(name), args, { encoding: 'utf8' });
  return { ok: status === 0, text: stdout + stderr };
}
