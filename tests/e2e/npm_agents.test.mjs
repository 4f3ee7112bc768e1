// Terminal agents from npm, unmodified, with the settings that `claude-openai connect` or docs/clients.md has for them: a command that
// changes a file, and a second turn of the same session. Their lock files are in npm/ and npm_large/.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { conversationOf } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { assertMade, COMMAND, connect, KEY, playing, prepare, PROMPT, run, turnsOf } from './coding_agents.test.mjs';
import { eventually, processesMarked, PROXY, suite } from './harness.mjs';
import { CLIENTS, missing } from './language_client.mjs';

export const npmAgents = suite(900_000);

/** What `connect` prints for a client: the beginning of a command line. */
const recipe = ({ proxy, home }, client) =>
  execFileSync(PROXY, ['connect', client, '--url', proxy.url, '--model', MODEL, '--key', KEY], { env: { HOME: home }, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();

/** Puts a file of a client's own into its home. */
function put({ home }, name, settings) {
  const file = path.join(home, name);
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, JSON.stringify(settings));
  return file;
}

/** A program that is spoken to while it runs, and what it has said; `until` waits as long as it lives. It ends with the test. */
function startProgram({ t, home, work, gate }, program, args, environment) {
  const env = { HOME: home, TMPDIR: home, SHELL: '/bin/sh', HTTP_PROXY: gate, HTTPS_PROXY: gate, NO_PROXY: '127.0.0.1', ...environment };
  const child = spawn(program, args, { cwd: work, detached: true, env });
  let over = false;
  const ended = new Promise((resolve) => {
    child.once('close', resolve);
  }).then(() => (over = true));
  t.defer(async () => {
    child.kill(); // of a terminal, and the program in it goes with it
    await ended;
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text) => {
      output += text;
    });
  child.stdin.on('error', () => {});
  const until = (what, holds) => eventually(what, () => holds() || assert.ok(!over, `it ended before ${what}: ${output.slice(-4000)}`), 600_000);
  return { write: (text) => child.stdin.write(text), output: () => output, until };
}

/**
 * A test of an agent. `shell`: the tool by which it runs commands, `input` what that gets. `begin(setting)` has the command lines of a
 * first turn and of one that goes on with it, without what the user says; in place of each a function that makes the turn.
 * `system`: what its own system prompt says; its helpers, which name a session or remember it, have others.
 */
function test(name, needs, { shell, input = { command: COMMAND, description: 'Makes the file' }, system, environment = {}, begin }) {
  npmAgents.test(`npm, ${name} runs a command that changes a file, and goes on`, { skip: missing(needs), slow: true }, async (t) => {
    const setting = await prepare(t);
    const isOwn = (request) => system.test(request.system.join('\n'));
    const play = playing({ [shell]: input });
    setting.api.script((request) => (isOwn(request) ? play(request) : { name: 'plain', text: 'A title' }));
    const turns = () => turnsOf(setting).filter(isOwn);
    const env = { PATH: `${path.join(CLIENTS, needs, 'node_modules', '.bin')}:${process.env.PATH}`, CI: '1', ...environment };
    const say = (command, text) => run(setting, 'sh', ['-c', `${command} '${text}'`], env);
    const [first, again] = begin(setting, env);
    const made = await (typeof first === 'function' ? first(PROMPT) : say(first, PROMPT));
    assertMade(setting, made, system, turns());
    assert.match(made.output, /All done\./);
    if (!again) return;
    if (typeof again === 'function') {
      await again({ env, turns });
    } else {
      const more = await say(again, 'And now?');
      assert.equal(more.code, 0, more.output);
      assert.match(more.output, /Once more\./);
    }
    const [, , third, ...others] = turns();
    assert.equal(others.length, 0);
    const told = conversationOf(third);
    assert.deepEqual(
      told.map(({ role }) => role),
      ['user', 'assistant', 'user', 'assistant', 'user'],
    );
    assert.match(JSON.stringify(told[2]), /marker-42/);
    assert.match(JSON.stringify(told[4]), /And now\?/);
  });
}

// ---- Continue ------------------------------------------------------------------------------------

for (const [provider, settings] of [
  ['the file that `connect` writes', (setting) => connect(setting, 'continue', '.continue/config.yaml', '')],
  [
    'its ollama provider',
    (setting) => {
      const model = { name: 'Claude', provider: 'ollama', model: MODEL, apiBase: setting.proxy.url, apiKey: KEY, capabilities: ['tool_use'] };
      return put(setting, '.continue/config.yaml', { name: 'Claude', version: '1.0.0', schema: 'v1', models: [model] });
    },
  ],
])
  test(`Continue's cn with ${provider}`, 'npm', {
    shell: 'Bash',
    system: /You are an agent in the Continue CLI/,
    begin: (setting) => {
      const cn = `cn --config ${settings(setting)} --auto`;
      return [`${cn} -p`, `${cn} --resume -p`];
    },
  });

// ---- the large ones ------------------------------------------------------------------------------

test('pi', 'npm_large', {
  shell: 'bash',
  system: /You are an expert coding assistant operating inside pi/,
  begin: (setting) => {
    connect(setting, 'pi', '.pi/agent/models.json', '{}');
    const pi = `pi --provider claude --model ${MODEL}`;
    return [`${pi} -p`, `${pi} --continue -p`];
  },
});

/** Ends when all that was written to standard output, which is a socket, has been read (TIOCOUTQ is SIOCOUTQ there). */
const ALL_READ = `python3 -c "
import fcntl, struct, termios, time
while struct.unpack('i', fcntl.ioctl(1, termios.TIOCOUTQ, bytes(4)))[0]: time.sleep(0.01)"`;

// It reads a command's output until that exits, so that on a busy machine the last lines are lost of one that exits at once.
test('Qwen Code', 'npm_large', {
  shell: 'run_shell_command',
  input: { command: `${COMMAND}; ${ALL_READ}`, description: 'Makes the file' },
  system: /You are Qwen Code/,
  begin: (setting) => {
    const qwen = `${recipe(setting, 'qwen')} --yolo`;
    return [`${qwen} -p`, `${qwen} --continue -p`];
  },
});

test('Copilot CLI', 'npm_large', {
  shell: 'bash',
  system: /You are the GitHub Copilot CLI/,
  begin: (setting) => {
    const copilot = `COPILOT_OFFLINE=true ${recipe(setting, 'copilot')} --allow-all-tools`;
    return [`${copilot} -p`, `${copilot} --continue -p`];
  },
});

/** Gives Droid its model. */
const setUpDroid = (setting) => {
  const model = { model: MODEL, displayName: 'Sonnet', baseUrl: setting.proxy.url, apiKey: KEY, provider: 'anthropic', maxOutputTokens: 16000 };
  put(setting, '.factory/settings.json', { customModels: [model] });
  return 'custom:Sonnet-0';
};
const DROID = { shell: 'Execute', input: { command: COMMAND, summary: 'Makes the wanted file' }, system: /You are Droid/ };

// `droid exec --session-id` asks its maker's server for the session.
test('Droid', 'npm_large', { ...DROID, begin: (setting) => [`droid exec --skip-permissions-unsafe -m ${setUpDroid(setting)}`] });

test('Droid as its editor extensions drive it', 'npm_large', {
  ...DROID,
  input: { ...DROID.input, riskLevelReason: 'It makes a file.', riskLevel: 'low' },
  begin: (setting, env) => {
    const modelId = setUpDroid(setting);
    const droid = startProgram(setting, 'droid', ['exec', '--input-format', 'stream-jsonrpc', '--output-format', 'stream-jsonrpc'], env);
    let id = 0;
    const request = (method, params) => droid.write(`${JSON.stringify({ jsonrpc: '2.0', factoryApiVersion: '1.0.0', type: 'request', id: `${++id}`, method, params })}\n`);
    request('droid.initialize_session', { machineId: 'a-test', cwd: setting.work, modelId, autonomyLevel: 'high' });
    let answered = 0;
    const say = async (text) => {
      await droid.until('it listens', () => droid.output().includes('"session":'));
      request('droid.add_user_message', { text });
      answered++;
      await droid.until('the turn is over', () => droid.output().split('"agent_turn_completed"').length > answered);
      return { code: 0, output: droid.output() };
    };
    return [say, () => say('And now?')];
  },
});

test('Kilo', 'npm_large', {
  shell: 'bash',
  system: /You are Kilo/,
  environment: { KILO_TELEMETRY_LEVEL: 'off' },
  begin: (setting) => {
    const options = { baseURL: `${setting.proxy.url}/v1`, apiKey: KEY };
    put(setting, '.config/kilo/kilo.json', { provider: { claude: { npm: '@ai-sdk/openai-compatible', options, models: { [MODEL]: { name: 'Claude' } } } } });
    const kilo = `kilo run --auto --model claude/${MODEL}`;
    return [kilo, `${kilo} --continue`];
  },
});

// It goes on with a session in a terminal only, and leaves a process behind, its hub: the setting has only the first turn do without.
test('Cline', 'npm_large', {
  shell: 'run_commands',
  input: { commands: [COMMAND] },
  system: /You are Cline/,
  environment: { CLINE_SESSION_BACKEND_MODE: 'local', CLINE_NO_AUTO_UPDATE: '1' },
  begin: (setting) => [
    `${recipe(setting, 'cline')} && cline`,
    async ({ env, turns }) => {
      const { output } = await run(setting, 'cline', ['history', '--json'], env);
      setting.t.defer(async () => processesMarked(`HOME=${setting.home}`).forEach(({ pid }) => process.kill(pid, 'SIGKILL')));
      const command = `cline --id ${/"sessionId":"([^"]+)"/.exec(output)[1]}`;
      const terminal = startProgram(setting, 'script', ['-qefc', command, '/dev/null'], { TERM: 'xterm-256color', ...env });
      const shows = (text) => terminal.output().includes(text);
      await terminal.until('the session is shown', () => shows('done.'));
      terminal.write('And now?');
      await terminal.until('the line is shown', () => shows('now?'));
      // What it draws of the text may be ahead of what Enter sends, and an Enter without text is lost. The switch of Shift+Tab comes
      // behind the text: when it is drawn, the text is there.
      const before = terminal.output().length;
      terminal.write('\x1b[Z');
      await terminal.until('the switch is drawn', () => terminal.output().slice(before).includes('disabled'));
      terminal.write('\r');
      await terminal.until('the answer is shown', () => turns().length > 2 && shows('more.'));
    },
  ],
});
