// litellm as a gateway in front of the proxy: the clients of npm speak to it, and it to the proxy in two dialects.

import assert from 'node:assert/strict';
import path from 'node:path';
import { writeFileSync } from 'node:fs';
import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';
import { zodFunction } from 'openai/helpers/zod';
import { callerSystem, conversationOf, say, steps } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { ANSWER, assertRounds, City, ROUNDS, weatherOf } from './client_tasks.mjs';
import { eventually, suite } from './harness.mjs';
import { CLIENTS, freePort, KEY, missing, startProgram } from './language_client.mjs';

export const gateway = suite(240_000);
const GATEWAY_KEY = 'sk-key-of-the-gateway';

/** A gateway with the models `openai` and `anthropic`, after the dialect that it speaks to the proxy; resolves to its URL. */
async function startGateway(t) {
  const port = await freePort();
  const models = { openai: `${t.proxy.url}/v1`, anthropic: t.proxy.url };
  const model_list = Object.entries(models).map(([model_name, api_base]) => ({
    model_name,
    litellm_params: { model: `${model_name}/${MODEL}`, api_base, api_key: KEY },
  }));
  const settings = JSON.stringify({ model_list, litellm_settings: { num_retries: 0 }, general_settings: { master_key: GATEWAY_KEY } });
  const command = [path.join(CLIENTS, 'earlier', 'bin', 'litellm'), '--config', 'config.yaml', '--host', '127.0.0.1', '--port', `${port}`];
  const program = await startProgram(t, command, { prepare: ({ work }) => writeFileSync(path.join(work, 'config.yaml'), settings) });
  const url = `http://127.0.0.1:${port}`;
  const said = () => `${program.output()}\n${program.complaints()}`.slice(-4000);
  let ended = false;
  program.ended.then(() => (ended = true));
  const lives = () => assert.ok(!ended, said()) ?? fetch(`${url}/health/liveliness`).then(({ ok }) => ok, () => false);
  await eventually('the gateway listens', lives, 200_000);
  return url;
}

gateway.test('python, litellm as a gateway in front: chat completions and messages, over both dialects', { skip: missing('earlier'), slow: true }, async (t) => {
  const url = await startGateway(t);
  const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: GATEWAY_KEY, maxRetries: 0 });
  const anthropic = new Anthropic({ baseURL: url, apiKey: GATEWAY_KEY, maxRetries: 0 });
  const calls = (mark) => t.calls().filter(({ raw }) => raw.includes(mark));
  for (const model of ['openai', 'anthropic']) {
    const tools = [zodFunction({ name: 'get_weather', description: 'The weather of a city', parameters: City, function: weatherOf })];
    const system = { role: 'system', content: 'Be brief.' };
    const asked = { role: 'user', content: t.text(ROUNDS, `${model}-tools`) };
    assert.equal(await openai.chat.completions.runTools({ model, messages: [system, asked], tools }).finalContent(), ANSWER);
    const [first] = assertRounds({ calls: () => calls(`${model}-tools`) });
    assert.deepEqual([callerSystem(first), first.body.model], ['Be brief.', MODEL]);
    const turns = [{ role: 'user', content: t.text(steps(say('One two three.', { deltas: 4 }), say('Second.')), `${model}-turns`) }];
    let text = '';
    for await (const chunk of await openai.chat.completions.create({ model, messages: turns, stream: true })) text += chunk.choices[0]?.delta.content ?? '';
    assert.equal(text, 'One two three.');
    turns.push({ role: 'assistant', content: text }, { role: 'user', content: 'And now?' });
    const second = await openai.chat.completions.create({ model, messages: turns });
    assert.equal(second.choices[0].message.content, 'Second.');
    assert.deepEqual(conversationOf(calls(`${model}-turns`)[1]).slice(1), [{ role: 'assistant', content: ['One two three.'] }, { role: 'user', content: ['And now?'] }]);
    const message = await anthropic.messages.create({ model, max_tokens: 100, messages: [{ role: 'user', content: t.text(say('Hello.'), `${model}-message`) }] });
    assert.deepEqual([message.content[0].text, message.stop_reason], ['Hello.', 'end_turn']);
    assert.equal(calls(`${model}-message`).length, 1);
    const refused = openai.chat.completions.create({ model, messages: [{ role: 'user', content: t.text('error status=400 message="not so"') }] });
    await assert.rejects(refused, (error) => error.status === 400 && /not so/.test(error.message));
  }
});
