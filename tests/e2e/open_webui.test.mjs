// Open WebUI, unmodified, in Chromium: a login, a chat with a tool, its title, a second turn. make installs it by the lock file in
// python/; without torch, which only its models for documents and speech need.

import assert from 'node:assert/strict';
import path from 'node:path';
import { conversationOf, processOf } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { callsOf, KEY, playing, prepare, turnsOf } from './coding_agents.test.mjs';
import { eventually, freePort, suite } from './harness.mjs';
import { CLIENTS, missing, startProgram } from './language_client.mjs';
import { browser } from './page.test.mjs';

export const openWebui = suite(900_000);

const USER = { name: 'Ada', email: 'ada@example.com', password: 'a-password-of-ada' };
const SETTINGS = {
  ENABLE_OLLAMA_API: 'False',
  OFFLINE_MODE: 'True',
  RAG_EMBEDDING_ENGINE: 'openai', // else it loads a model of its own
  ENABLE_VERSION_UPDATE_CHECK: 'False',
  WEBUI_SECRET_KEY: 'a-secret-of-this-test-with-32-bytes-or-more',
};
const TOOL = `class Tools:
    def get_weather(self, city: str) -> str:
        """
        The weather of a city
        :param city: The city
        """
        return city + ": sunny"
`;

/** Starts it; resolves to {url, program, post(path, body)}, with a user who is logged in, and a tool for the model. */
async function startOpenWebui(t, { proxy }) {
  const port = await freePort();
  const env = { ...SETTINGS, OPENAI_API_BASE_URL: `${proxy.url}/v1`, OPENAI_API_KEY: KEY };
  const command = [path.join(CLIENTS, 'open_webui', 'bin', 'open-webui'), 'serve', '--host', '127.0.0.1', '--port', `${port}`];
  const program = await startProgram(t, ['sh', '-c', 'DATA_DIR="$HOME/data" exec "$@"', 'sh', ...command], { env });
  const url = `http://127.0.0.1:${port}`;
  let ended = false;
  program.ended.then(() => (ended = true));
  const lives = () => assert.ok(!ended, `${program.output()}\n${program.complaints()}`.slice(-4000)) ?? fetch(`${url}/health`).then(({ ok }) => ok, () => false);
  await eventually('Open WebUI listens', lives, 400_000);
  let token;
  const post = async (where, body) => {
    const headers = { 'content-type': 'application/json', ...(token && { authorization: `Bearer ${token}` }) };
    const answer = await fetch(`${url}/api/v1${where}`, { method: 'POST', headers, body: JSON.stringify(body) });
    assert.equal(answer.status, 200, `${where}: ${await answer.clone().text()}`);
    return answer.json();
  };
  ({ token } = await post('/auths/signup', USER));
  await post('/tools/create', { id: 'weather', name: 'Weather', content: TOOL, meta: { description: 'The weather' }, access_grants: [] });
  await post('/models/create', { id: MODEL, base_model_id: null, name: 'Claude', meta: { toolIds: ['weather'] }, params: { function_calling: 'native' }, access_grants: [] });
  const { version } = await (await fetch(`${url}/api/config`)).json();
  await post('/users/user/settings/update', { ui: { version } }); // its news were read
  return { url, program };
}

openWebui.test('python, Open WebUI: a login, a chat with a tool, its title, a second turn', { skip: missing('open_webui') ?? browser.skip }, async (t) => {
  const setting = await prepare(t);
  const play = playing({ get_weather: { city: 'Bern' } });
  const isTitle = ({ raw }) => /generate a concise/i.test(raw);
  setting.api.script((request) => (isTitle(request) ? { name: 'plain', text: '{"title": "Bern and its weather"}' } : play(request)));
  const { url, program } = await startOpenWebui(t, setting);

  const chromium = await browser.chromium.launch({ executablePath: browser.executablePath, args: ['--no-sandbox'] });
  t.defer(() => chromium.close());
  const tab = await chromium.newContext({ viewport: { width: 1280, height: 900 } });
  tab.setDefaultTimeout(300_000);
  const foreign = [];
  tab.on('request', (request) => request.url().startsWith(url) || /^(data|blob):/.test(request.url()) || foreign.push(request.url()));
  const view = await tab.newPage();
  await view.goto(`${url}/auth`);
  await view.fill('input[type=email]', USER.email);
  await view.fill('input[type=password]', USER.password);
  await view.press('input[type=password]', 'Enter');
  const say = async (text) => {
    await view.click('#chat-input');
    await view.keyboard.insertText(text);
    await view.keyboard.press('Enter');
  };
  await say('How is the weather in Bern?');
  await view.getByText('All done.').waitFor();
  await view.getByText('Bern and its weather').first().waitFor();
  await say('And now?');
  await view.getByText('Once more.').waitFor();

  const [first, second, third, ...more] = turnsOf(setting);
  assert.equal(more.length, 0);
  assert.equal(first.body.tools.find(({ name }) => name === 'get_weather').description.trim(), 'The weather of a city');
  assert.equal(processOf(first), processOf(second), 'the process that waits goes on');
  assert.match(JSON.stringify(conversationOf(second)[2]), /Bern: sunny/);
  assert.deepEqual(
    conversationOf(third).map(({ role }) => role),
    ['user', 'assistant', 'user', 'assistant', 'user'],
  );
  assert.match(JSON.stringify(conversationOf(third).at(-1)), /And now\?/);
  const refused = callsOf(setting).find(({ refusal }) => refusal);
  assert.equal(refused, undefined, refused?.refusal);
  assert.deepEqual([foreign, program.asked], [[], []], 'nothing but the proxy is asked');
});
