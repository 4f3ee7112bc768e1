// Runs the end-to-end tests: the real proxy, the real CLIs, a loopback Messages API, real clients.
//
//   node run.mjs [--cli VERSION] [--only REGEX]
//
// $PROXY names the proxy's binary; else build/claude-openai. The last line counts: "N passed, N failed".

import { CLI_VERSIONS, claudePath } from './claude_cli.mjs';
import { chat, furnishHome } from './chat.test.mjs';
import { conversations, everyVersion } from './conversations.test.mjs';
import { server } from './server.test.mjs';
import { Conversation, runTest, startProxy } from './harness.mjs';
import { startMessagesApi } from './messages_api.mjs';

const TOGETHER = 3; // tests that run at a time; each takes a process or two

function option(name) {
  const at = process.argv.indexOf(name);
  return at < 0 ? undefined : process.argv[at + 1];
}

const versions = option('--cli') ? [option('--cli')] : CLI_VERSIONS;
const only = new RegExp(option('--only') ?? '');
const counts = { passed: 0, failed: 0 };
const failures = [];

function count(failure, name) {
  counts[failure ? 'failed' : 'passed']++;
  if (failure) failures.push(name);
}

async function runSuite({ tests }, version, label) {
  const wanted = tests.filter(({ name }) => only.test(name));
  if (!wanted.length) return;
  const api = await startMessagesApi();
  const cli = claudePath(version);
  const shared = { name: 'a proxy starts', deadline: 30_000 };
  let proxy;
  const started = await runTest(
    {
      ...shared,
      body: async () => {
        proxy = await startProxy({
          url: api.url,
          cli,
          prepare: furnishHome,
          args: ['--spares', '3', '--max-processes', '16'],
        });
        await proxy.inspected();
      },
    },
    new Conversation({ api }),
    label,
  );
  count(started, `${label}${shared.name}`);
  if (proxy) {
    const runOne = async (one) => {
      const context = Object.assign(new Conversation({ api, proxy }), { cli });
      count(await runTest(one, context, label), `${label}${one.name}`);
    };
    const crowd = wanted.filter((one) => !one.alone).sort((a, b) => (b.slow ?? false) - (a.slow ?? false));
    const next = async () => {
      while (crowd.length) await runOne(crowd.shift());
    };
    await Promise.all(Array.from({ length: TOGETHER }, next));
    for (const one of wanted.filter(({ alone }) => alone)) await runOne(one);
    const ended = await runTest(
      {
        name: 'SIGTERM ends the proxy and leaves nothing behind',
        deadline: 15_000,
        body: async () => {
          const { faults } = await proxy.stop();
          if (faults.length) throw new Error(faults.join('; '));
        },
      },
      new Conversation({ api, proxy }),
      label,
    );
    count(ended, `${label}SIGTERM ends the proxy and leaves nothing behind`);
  }
  await api.close();
}

const begin = performance.now();
const ofEachVersion = { tests: [...chat.tests, ...everyVersion.tests] };
for (const version of versions) await runSuite(ofEachVersion, version, `[${version}] `);
await runSuite(server, versions.at(-1), '[server] ');
await runSuite(conversations, versions.at(-1), '[conversations] ');
console.log(`${Math.round((performance.now() - begin) / 1000)} s`);
failures.forEach((name) => console.log(`failed: ${name}`));
console.log(`${counts.passed} passed, ${counts.failed} failed`);
process.exit(counts.failed ? 1 : 0);
