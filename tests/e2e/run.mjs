// Runs the end-to-end tests: the real proxy, the real CLIs, a loopback Messages API, real clients.
//
//   node run.mjs [--cli VERSION] [--suite NAME[,NAME…]] [--only REGEX]
//
// A suite is a version (what runs with each CLI) or the name of a file of tests that run once, with the newest CLI.
// $PROXY names the proxy's binary; else build/claude-openai. The last line counts: "N passed, N failed, N skipped".

import { CLI_VERSIONS, claudePath } from './claude_cli.mjs';
import * as agent from './agents.test.mjs';
import { answerFields } from './answer_fields.test.mjs';
import { authority } from './authority.test.mjs';
import { balancers } from './balancers.test.mjs';
import { chat, furnishHome } from './chat.test.mjs';
import { clients } from './clients.test.mjs';
import { codingAgents } from './coding_agents.test.mjs';
import { commands } from './commands.test.mjs';
import { confinement, prepareConfinement } from './confinement.test.mjs';
import { conversations, everyVersion } from './conversations.test.mjs';
import * as cursor from './cursor.test.mjs';
import { DEMO, demo } from './demo.test.mjs';
import { dialectClients } from './dialect_clients.test.mjs';
import * as dialect from './dialects.test.mjs';
import { documents } from './documents.test.mjs';
import { faults } from './faults.test.mjs';
import * as asked from './features.test.mjs';
import { fields } from './fields.test.mjs';
import { gateway } from './gateway.test.mjs';
import { histories } from './histories.test.mjs';
import { hostile } from './hostile_http.test.mjs';
import { identity } from './identity.test.mjs';
import { limits } from './limits.test.mjs';
import { money } from './money.test.mjs';
import { npm } from './npm.test.mjs';
import { npmAgents } from './npm_agents.test.mjs';
import { observe } from './observe.test.mjs';
import { ollama } from './ollama.test.mjs';
import { KEY } from './language_client.mjs';
import { languages } from './languages.test.mjs';
import { openWebui } from './open_webui.test.mjs';
import { page } from './page.test.mjs';
import { plan } from './plan.test.mjs';
import { python } from './python.test.mjs';
import { STAND_IN } from './raw_client.mjs';
import { readme } from './readme.test.mjs';
import { redis } from './redis.test.mjs';
import { redisFaults } from './redis_faults.test.mjs';
import { redisTls } from './redis_tls.test.mjs';
import { reference } from './reference.test.mjs';
import { replicas } from './replicas.test.mjs';
import { security } from './security.test.mjs';
import { server } from './server.test.mjs';
import { settings } from './settings.test.mjs';
import { silence } from './silence.test.mjs';
import { store } from './store.test.mjs';
import { transport } from './transport.test.mjs';
import { Conversation, endProxies, runTest, startProxy } from './harness.mjs';
import * as searches from './web.test.mjs';
import { startMessagesApi } from './messages_api.mjs';

const LANES = 2; // suites that run at a time, each beside a proxy of its own: most tests wait for something
const TOGETHER = 2; // tests of a suite that run at a time; each takes a process or two

function option(name) {
  const at = process.argv.indexOf(name);
  return at < 0 ? undefined : process.argv[at + 1];
}

const versions = option('--cli') ? [option('--cli')] : CLI_VERSIONS;
const only = new RegExp(option('--only') ?? '');
const counts = { passed: 0, failed: 0, skipped: 0 };
const failures = [];

function count(failure, name) {
  counts[failure ? 'failed' : 'passed']++;
  if (failure) failures.push(name);
}

/**
 * Runs the tests beside one proxy, which `prepare` gives what they need; or tells why they are skipped. Where it
 * reuses processes, tests that run at once share them, and no test can tell by which one it was served.
 */
async function runSuite({ version, tests, prepare = furnishHome, program, args = [], options, reuse = version === newest, skip, calm }, label) {
  const named = tests.filter(({ name }) => only.test(name));
  const wanted = named.filter((one) => !skip && !one.skip);
  for (const one of named.filter((each) => skip || each.skip)) console.log(`SKIP ${label}${one.name} (${skip ?? one.skip})`);
  counts.skipped += named.length - wanted.length;
  if (!wanted.length) return;
  const api = await startMessagesApi();
  const cli = options ? undefined : (program ?? claudePath(version));
  const shared = { name: 'a proxy starts', deadline: 300_000 };
  let proxy;
  const started = await runTest(
    {
      ...shared,
      body: async () => {
        proxy = await startProxy({
          url: api.url,
          cli,
          prepare,
          // Without reuse each conversation keeps a process: more of them, or one's is ended for another's.
          args: ['--spares', '3', ...(reuse ? ['--max-processes', '16'] : ['--max-processes', '32', '--no-process-reuse']), ...args],
          ...options,
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
      const context = Object.assign(new Conversation({ api, proxy }), { cli, shared: reuse ? proxy : undefined });
      count(await runTest(one, context, label), `${label}${one.name}`);
    };
    const crowd = wanted.filter((one) => !one.alone).sort((a, b) => (b.slow ?? false) - (a.slow ?? false));
    const next = async () => {
      while (crowd.length) await runOne(crowd.shift());
    };
    await Promise.all(Array.from({ length: calm ? 1 : TOGETHER }, next));
    for (const one of wanted.filter(({ alone }) => alone)) await runOne(one);
    const ended = await runTest(
      {
        name: 'SIGTERM ends the proxy and leaves nothing behind',
        deadline: 300_000,
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

const newest = versions.at(-1); // of one version alone, as `make compat` runs them, that one
const suites = [
  // The longest first, so that no lane ends long before the other. Where no CLI has a part the stand-in is fast.
  { name: 'identity', version: newest, tests: identity.tests },
  { name: 'hostile', version: newest, program: STAND_IN, tests: hostile.tests },
  { name: 'coding_agents', version: newest, tests: codingAgents.tests },
  { name: 'python', version: newest, args: ['--api-key', KEY], tests: [...python.tests, ...gateway.tests] },
  { name: 'languages', version: newest, args: ['--api-key', KEY], tests: languages.tests },
  { name: 'npm', version: newest, args: ['--api-key', KEY], tests: npm.tests },
  { name: 'page', version: newest, tests: page.tests, skip: page.skip },
  // The older ones are there for what lies between us and the CLI; `--cli` runs all with one of them.
  ...versions.map((version) => ({
    name: version,
    version,
    tests: [
      ...chat.tests,
      ...everyVersion.tests,
      ...asked.everyVersion.tests,
      ...(version === newest ? [...asked.features.tests, ...clients.tests] : []),
    ],
  })),
  { name: 'server', version: newest, tests: server.tests },
  { name: 'settings', version: newest, tests: settings.tests },
  { name: 'commands', version: newest, tests: commands.tests },
  { name: 'limits', version: newest, tests: limits.tests },
  { name: 'plan', version: newest, tests: plan.tests },
  { name: 'money', version: newest, tests: money.tests },
  { name: 'store', version: newest, tests: store.tests },
  { name: 'redis', version: newest, tests: [...redis.tests, ...redisFaults.tests], skip: redis.skip },
  { name: 'redis_tls', version: newest, program: STAND_IN, tests: redisTls.tests, skip: redisTls.skip },
  { name: 'balancers', version: newest, tests: balancers.tests },
  { name: 'replicas', version: newest, tests: replicas.tests },
  { name: 'transport', version: newest, tests: transport.tests },
  { name: 'observe', version: newest, tests: observe.tests },
  ...versions.map((version) => ({
    name: 'cursor',
    version,
    tests: [...cursor.everyVersion.tests, ...(version === newest ? cursor.once.tests : [])],
  })),
  { name: 'reference', version: newest, tests: reference.tests },
  { name: 'readme', version: newest, tests: readme.tests },
  { name: 'documents', version: newest, tests: documents.tests },
  { name: 'histories', version: newest, tests: histories.tests },
  { name: 'fields', version: newest, tests: fields.tests },
  { name: 'silence', version: newest, tests: silence.tests },
  { name: 'answer_fields', version: newest, tests: answerFields.tests },
  { name: 'faults', version: newest, program: STAND_IN, tests: faults.tests },
  { name: 'authority', version: newest, tests: authority.tests },
  { name: 'confinement', version: newest, prepare: prepareConfinement, tests: confinement.tests },
  { name: 'security', version: newest, program: STAND_IN, tests: security.tests },
  { name: 'conversations', version: newest, reuse: false, tests: conversations.tests },
  { name: 'features', version: newest, tests: asked.once.tests },
  ...versions
    .filter((version) => version !== CLI_VERSIONS[0])
    .map((version) => ({
      name: 'agents',
      version,
      prepare: agent.prepareAgents,
      tests: [...agent.agents.tests, ...(version === newest ? agent.once.tests : [])],
    })),
  ...versions
    .filter((version) => version !== CLI_VERSIONS[0])
    .map((version) => ({
      name: 'dialects',
      version,
      tests: [...dialect.dialects.tests, ...(version === newest ? [...dialectClients.tests, ...dialect.once.tests] : [])],
    })),
  ...versions
    .filter((version) => version !== CLI_VERSIONS[0])
    .map((version) => ({
      name: 'web',
      version,
      args: ['--web'],
      tests: [...searches.everyVersion.tests, ...(version === newest ? searches.web.tests : [])],
    })),
  { name: 'ollama', version: newest, tests: ollama.tests },
  { name: 'demo', version: 'without a CLI', options: DEMO, tests: demo.tests },
  // Large programs with time limits of their own: when the others have ended, one at a time.
  { name: 'npm_agents', version: newest, args: ['--api-key', KEY], tests: npmAgents.tests, calm: true },
  { name: 'open_webui', version: newest, tests: openWebui.tests, calm: true },
];
const begin = performance.now();
const names = option('--suite')?.split(',');
const chosen = suites.filter(({ name }) => !names || names.includes(name));
const labelOf = ({ name, version }) => `[${name === version ? '' : `${name} `}${version}] `;
const unfinished = new Set(chosen);
// Out of time: what ran is counted, and what did not is named.
process.once('SIGTERM', () => {
  endProxies();
  unfinished.forEach((one) => console.log(`NOT RUN, or not to its end: ${labelOf(one)}`));
  failures.forEach((name) => console.log(`failed: ${name}`));
  console.log(`${counts.passed} passed, ${counts.failed + 1} failed, ${counts.skipped} skipped`);
  process.exit(1);
});
const lane = async (waiting) => {
  for (let one = waiting.shift(); one; one = waiting.shift()) {
    await runSuite(one, labelOf(one));
    unfinished.delete(one);
  }
};
const crowd = chosen.filter(({ calm }) => !calm);
await Promise.all(Array.from({ length: LANES }, () => lane(crowd)));
await lane(chosen.filter(({ calm }) => calm));
console.log(`${Math.round((performance.now() - begin) / 1000)} s`);
failures.forEach((name) => console.log(`failed: ${name}`));
// The suites that run with several versions have tests that run with the newest alone.
const several = new Map(suites.filter(({ version }) => version === newest).map((one) => [one.name.replace(newest, ''), one.tests.length]));
for (const version of versions.filter((one) => !names && one !== newest)) {
  const ran = suites.filter((one) => one.version === version).map((one) => [one.name.replace(version, ''), one.tests.length]);
  const left = ran.map(([name, count]) => several.get(name) - count).reduce((sum, one) => sum + one);
  console.log(`NOT RUN with ${version}, which make compat CLI=${version} does: ${left} tests of features, clients and dialects`);
}
if (counts.skipped) console.log(`SKIPPED: ${counts.skipped} tests, for the reasons above`);
console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
process.exit(counts.failed || !counts.passed ? 1 : 0); // nothing ran: `--only` names no test any more
