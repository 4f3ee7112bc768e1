// Ollama's API: the `ollama` client of npm, unmodified, and what its other clients send by hand. Both ends are looked at.

import assert from 'node:assert/strict';
import http from 'node:http';
import { Ollama } from 'ollama';
import { call, callerSystem, conversationOf, ignoredOf, say, steps, toolsOf } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { ADA, ANSWER, assertRounds, ROUNDS, structured, weatherOf } from './client_tasks.mjs';
import { eventually, startAndExpectExit, suite } from './harness.mjs';
import { PDF, PNG } from './language_client.mjs';
import { directive } from './messages_api.mjs';

export const ollama = suite();
const { test } = ollama;

const client = (t, options = {}) => new Ollama({ host: t.proxy.url, ...options });
const asked = (t, scenario, fields = {}) => ({ model: MODEL, messages: t.messages(scenario), ...fields });
const CITY = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };
const tool = (name) => ({ type: 'function', function: { name, description: 'The weather of a city', parameters: CITY } });
const WEATHER = tool('get_weather');
const PERSON = { type: 'object', properties: { name: { type: 'string' }, age: { type: 'integer' } }, required: ['name', 'age'] };
const thought = (text) => directive('thinking', { thinking: 'Let me think.', text, thinking_tokens: 5, output: 12 });
const raised = (promise) => promise.then(() => assert.fail('no error'), (error) => error);
const gather = async (stream) => {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
};
const linesOf = ({ text }) => text.trimEnd().split('\n').map((line) => JSON.parse(line));

const DURATIONS = ['total_duration', 'load_duration', 'prompt_eval_duration', 'eval_duration'];

/** The times of an answer: whole nanoseconds that were measured, and together no more than all of it took. */
function assertTimes(end, least = 0) {
  for (const name of DURATIONS) assert.ok(Number.isInteger(end[name]) && end[name] >= 0, `${name}: ${end[name]}`);
  const [total, ...parts] = DURATIONS.map((name) => end[name]);
  assert.ok(parts.reduce((sum, one) => sum + one) <= total, JSON.stringify(end));
  assert.ok(total > 1e6 && end.eval_duration >= least * 1e6, JSON.stringify(end));
  assert.match(end.created_at, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$/);
  assert.ok(Math.abs(Date.parse(end.created_at) - Date.now()) < 60_000, end.created_at);
}

// ---- the client of npm ---------------------------------------------------------------------------

test('ollama: chat, whole, with its figures', async (t) => {
  const body = asked(t, say('Hello.', { input: 20, cache_read: 300, output: 7 }), { options: { temperature: 0.5, num_predict: 99, stop: ['END'] } });
  body.messages.unshift({ role: 'system', content: 'Be brief.' });
  const answer = await client(t).chat(body);
  assert.deepEqual(answer.message, { role: 'assistant', content: 'Hello.' });
  assert.deepEqual([answer.model, answer.done, answer.done_reason], [MODEL, true, 'stop']);
  assert.deepEqual([answer.prompt_eval_count, answer.eval_count], [320, 7]);
  assertTimes(answer);
  const [sent, ...others] = t.calls();
  assert.deepEqual([others.length, sent.body.model, sent.body.temperature, sent.body.max_tokens, sent.body.stop_sequences], [0, MODEL, 0.5, 99, ['END']]);
  assert.equal(callerSystem(sent), 'Be brief.');
});

test('ollama: chat, streamed as it comes', async (t) => {
  const parts = await gather(await client(t).chat(asked(t, say('One two three.', { deltas: 4, delay: 60, output: 9 }), { stream: true })));
  const [end, ...pieces] = parts.reverse();
  assert.deepEqual(pieces.reverse().map(({ message }) => message.role), Array(4).fill('assistant'));
  assert.equal(pieces.map(({ message }) => message.content).join(''), 'One two three.');
  assert.ok(pieces.every(({ done, model }) => !done && model === MODEL));
  assert.deepEqual([end.done, end.done_reason, end.message.content, end.eval_count], [true, 'stop', '', 9]);
  assertTimes(end, 150);
  assert.deepEqual(pieces.map((one) => one.created_at), pieces.map((one) => one.created_at).sort());
});

for (const stream of [false, true])
  test(`ollama: tools over three turns, whose results name no call${stream ? ', streamed' : ''}`, async (t) => {
    const body = asked(t, ROUNDS, { tools: [WEATHER], stream });
    const ask = async () => {
      const answer = await client(t).chat(body);
      const parts = stream ? await gather(answer) : [answer];
      return { calls: parts.flatMap(({ message }) => message.tool_calls ?? []), content: parts.map(({ message }) => message.content).join(''), end: parts.at(-1) };
    };
    let answer = await ask();
    while (answer.calls.length) {
      assert.equal(answer.end.done_reason, 'stop');
      assert.deepEqual(answer.calls.map((one) => one.function.index), answer.calls.map((_, at) => at));
      const calls = answer.calls.map(({ function: { name, arguments: input } }) => ({ function: { name, arguments: input } }));
      const results = calls.map(({ function: one }) => ({ role: 'tool', tool_name: one.name, content: weatherOf(one.arguments) }));
      body.messages.push({ role: 'assistant', content: answer.content, tool_calls: calls }, ...results);
      answer = await ask();
    }
    assert.equal(answer.content, ANSWER);
    assert.equal(assertRounds(t)[0].body.tools[0].description, 'The weather of a city');
  });

test('ollama: results find their calls by id, or by the name of the tool, in any order', async (t) => {
  const two = steps(call([{ tool: 'get_weather', args: { city: 'Bern' } }, { tool: 'get_time', args: { city: 'Rome' } }]), say('Well.'));
  const resultsFor = { // of the calls: the results that a client sends
    id: (calls) => calls.map((one) => ({ role: 'tool', tool_call_id: one.id, content: one.function.arguments.city })).reverse(),
    name: (calls) => calls.map((one) => ({ role: 'tool', tool_name: one.function.name, content: one.function.arguments.city })).reverse(),
    order: (calls) => calls.map((one) => ({ role: 'tool', content: one.function.arguments.city })),
  };
  for (const [way, results] of Object.entries(resultsFor)) {
    const body = { model: MODEL, stream: false, tools: [WEATHER, tool('get_time')], messages: [{ role: 'user', content: t.text(two, way) }] };
    const { message } = (await t.send({ path: '/api/chat', body }).done).json;
    assert.ok(message.tool_calls.every(({ id }) => /^\w+$/.test(id)), JSON.stringify(message));
    const plain = way === 'id' ? message.tool_calls : message.tool_calls.map(({ id: _, ...one }) => one);
    body.messages.push({ ...message, tool_calls: plain }, ...results(message.tool_calls));
    assert.equal((await t.send({ path: '/api/chat', body }).done).json.message.content, 'Well.', way);
    const told = conversationOf(t.calls().filter(({ raw }) => raw.includes(`${t.token} ${way}`)).at(-1));
    const made = Object.fromEntries(told[1].content.filter((one) => one.call).map((one) => [one.call, one.input.city]));
    for (const { result, content } of told[2].content) assert.equal(content, made[result], way);
    assert.equal(Object.keys(made).length, 2, way);
  }
});

test('ollama: format holds the answer to a schema, or to any object', async (t) => {
  for (const format of [PERSON, 'json']) {
    const { message } = await client(t).chat(asked(t, structured(ADA), { format }));
    assert.deepEqual(JSON.parse(message.content), ADA);
  }
  const stream = await client(t).chat(asked(t, structured(ADA), { format: PERSON, stream: true }));
  assert.deepEqual(JSON.parse((await gather(stream)).map(({ message }) => message.content).join('')), ADA);
  const [schema, any] = t.calls().map((sent) => toolsOf(sent).StructuredOutput.input_schema);
  assert.deepEqual([Object.keys(schema.properties), any.properties], [['name', 'age'], undefined]);
});

test('ollama: think shows the thoughts, tells how hard, or asks for none', async (t) => {
  const whole = await client(t).chat(asked(t, thought('Sunny.'), { think: true }));
  assert.deepEqual([whole.message.thinking, whole.message.content], ['Let me think.', 'Sunny.']);
  const parts = await gather(await client(t).chat(asked(t, thought('Sunny.'), { think: 'high', stream: true })));
  assert.equal(parts.map(({ message }) => message.thinking ?? '').join(''), 'Let me think.');
  assert.equal(parts.map(({ message }) => message.content).join(''), 'Sunny.');
  const none = await client(t).chat(asked(t, thought('Sunny.'), { think: false }));
  assert.deepEqual(none.message, { role: 'assistant', content: 'Sunny.' });
  const unasked = await client(t).chat(asked(t, thought('Sunny.')));
  assert.equal(unasked.message.thinking, undefined);
  const budgets = t.calls().map(({ body }) => body.thinking?.budget_tokens);
  assert.deepEqual(budgets, [4096, 8192, undefined, undefined]);
});

test('ollama: images reach the model before the text', async (t) => {
  const text = t.text(say('I see.'));
  const messages = [{ role: 'user', content: text, images: [PNG, new Uint8Array(Buffer.from(PNG, 'base64'))] }];
  const { message } = await client(t).chat({ model: MODEL, messages });
  assert.equal(message.content, 'I see.');
  const image = { type: 'image', source: { type: 'base64', media_type: 'image/png', data: PNG } };
  assert.deepEqual(conversationOf(t.calls()[0])[0].content, [image, image, text]);
  const error = await raised(client(t).chat({ model: MODEL, messages: [{ role: 'user', content: 'Look', images: [PDF] }] }));
  assert.match(error.message, /messages\[0\]\.images\[0\]/);
  assert.equal(error.status_code, 400);
});

test('ollama: generate, whole and streamed, with instructions, thoughts and a gap to fill', async (t) => {
  const whole = await client(t).generate({ model: MODEL, prompt: t.text(thought('Sunny.')), system: 'Be brief.', think: true, images: [PNG] });
  assert.deepEqual([whole.response, whole.thinking, whole.done_reason, whole.message], ['Sunny.', 'Let me think.', 'stop', undefined]);
  assertTimes(whole);
  const parts = await gather(await client(t).generate({ model: MODEL, prompt: t.text(say('One two.', { deltas: 3 })), stream: true }));
  assert.equal(parts.map(({ response }) => response).join(''), 'One two.');
  const gap = await client(t).generate({ model: MODEL, prompt: t.text(say('x + y')), suffix: '\nprint(f(1, 2))' });
  assert.equal(gap.response, 'x + y');
  const [first, , third] = t.calls();
  assert.equal(callerSystem(first), 'Be brief.');
  assert.equal(conversationOf(first)[0].content[0].type, 'image');
  assert.match(callerSystem(third), /fill gaps/);
  assert.match(conversationOf(third)[0].content[0], /<suffix>\nprint\(f\(1, 2\)\)<\/suffix>$/);
});

test('ollama: list, show, ps and version', async (t) => {
  const { models } = await client(t).list();
  const listed = (await t.get('/v1/models')).json.data.map(({ id }) => id);
  assert.deepEqual(models.map(({ name }) => name), listed.map((id) => `${id}:latest`));
  assert.ok(models.every((one) => one.model === one.name && /^[0-9a-f]{64}$/.test(one.digest) && one.size === 0 && !Number.isNaN(Date.parse(one.modified_at))));
  assert.equal(new Set(models.map(({ digest }) => digest)).size, models.length);
  const shown = await client(t).show({ model: `${MODEL}:latest` });
  assert.deepEqual(shown.capabilities, ['completion', 'tools', 'insert', 'vision', 'thinking']);
  assert.equal(shown.model_info['claude.context_length'], 200_000);
  assert.deepEqual([shown.model_info['general.basename'], shown.details.family], [MODEL, 'claude']);
  assert.deepEqual((await client(t).show({ model: 'claude-3-5-haiku-20241022' })).capabilities.includes('thinking'), false);
  assert.deepEqual((await t.send({ path: '/api/show', body: { name: 'sonnet' } }).done).json.model_info['general.basename'], 'sonnet');
  assert.deepEqual(await client(t).ps(), { models: [] });
  const { version } = await client(t).version();
  const [major, minor] = version.split('.').map(Number);
  assert.ok(major > 0 || minor >= 12, `${version}: some clients want 0.6.4, or more`);
});

test('ollama: errors are those of the API, as the client raises them, before a stream and within', { slow: true }, async (t) => {
  const failing = (status) => asked(t, `error status=${status} message="loopback says so" should_retry=false`);
  for (const stream of [false, true])
    for (const [status, told] of [[400, 400], [403, 403], [529, 503]]) {
      const error = await raised(client(t).chat({ ...failing(status), stream }));
      assert.deepEqual([error.name, error.status_code], ['ResponseError', told]);
      assert.match(error.message, /loopback says so/);
    }
  const parts = [];
  const within = await raised((async () => {
    for await (const part of await client(t).chat(asked(t, 'error_event after=2', { stream: true }))) parts.push(part.message.content);
  })());
  assert.match(within.message, /Overloaded/);
  assert.ok(parts.length > 0, 'what came before is told');
  const bad = await raised(client(t).chat(asked(t, 'plain', { options: { temperature: 'warm' } })));
  assert.match(bad.message, /options\.temperature/);
});

test('ollama: a client that aborts its stream leaves the API', async (t) => {
  const stream = await client(t).chat(asked(t, 'hang after=2', { stream: true }));
  const error = await raised((async () => {
    for await (const _ of stream) stream.abort();
  })());
  assert.equal(error.name, 'AbortError');
  await eventually('the API is left', () => t.calls().length === 1 && t.calls()[0].clientLeft);
});

test('ollama: what only Ollama has is a 404 that says what to do', async (t) => {
  const asks = {
    pull: () => client(t).pull({ model: 'llama3' }),
    push: () => client(t).push({ model: 'llama3' }),
    create: () => client(t).create({ model: 'mine', from: 'sonnet' }),
    copy: () => client(t).copy({ source: 'sonnet', destination: 'mine' }),
    delete: () => client(t).delete({ model: 'sonnet' }),
    embed: () => client(t).embed({ model: MODEL, input: 'Hi' }),
    embeddings: () => client(t).embeddings({ model: MODEL, prompt: 'Hi' }),
  };
  for (const [name, ask] of Object.entries(asks)) {
    const error = await raised(ask());
    assert.deepEqual([error.name, error.status_code], ['ResponseError', 404], name);
    assert.match(error.message, new RegExp(`^/api/${name} is not offered here: `));
  }
  const blob = await t.send({ method: 'HEAD', path: `/api/blobs/sha256:${'0'.repeat(64)}` }).done;
  assert.equal(blob.status, 404);
  const unknown = await t.get('/api/nothing');
  assert.deepEqual([unknown.status, Object.keys(unknown.json)], [404, ['error']]);
  assert.match(unknown.json.error, /POST \/api\/chat, /);
  assert.deepEqual(Object.keys((await t.get('/api/chat')).json), ['error']);
});

// ---- what other clients send ---------------------------------------------------------------------

test('a client that does not say so gets a stream of lines, the last of which ends it', async (t) => {
  for (const [path, words] of [['/api/chat', ({ message }) => message.content], ['/api/generate', ({ response }) => response]]) {
    const text = t.text(say('One two three.', { deltas: 3 }));
    const body = { model: MODEL, prompt: text, messages: [{ role: 'user', content: text }] };
    const got = await t.send({ path, body }).done;
    assert.equal(got.headers['content-type'], 'application/x-ndjson');
    const lines = linesOf(got);
    assert.equal(lines.map(words).join(''), 'One two three.', path);
    assert.deepEqual(lines.map(({ done }) => done), [false, false, false, true]);
  }
});

test('a silent stream says that it lives, by lines without text', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '1'] });
  const stream = t.send({ proxy, path: '/api/chat', body: asked(t, 'hang after=-1') });
  await eventually('a line comes', () => stream.chunks.length > 0);
  const [line] = stream.chunks[0].text.split('\n').map((one) => one && JSON.parse(one));
  assert.deepEqual([line.message, line.done, line.model], [{ role: 'assistant', content: '' }, false, MODEL]);
  stream.abort();
  await stream.done;
});

test('a question without messages or prompt loads a model: it is answered, and nobody is asked', async (t) => {
  const before = t.api.requests.length;
  const loads = [
    ['/api/chat', { messages: [] }, 'load'],
    ['/api/chat', {}, 'load'],
    ['/api/generate', {}, 'load'],
    ['/api/generate', { prompt: '', keep_alive: '10m' }, 'load'],
    ['/api/generate', { keep_alive: 0 }, 'unload'],
  ];
  for (const [path, body, reason] of loads) {
    const { status, json } = await t.send({ path, body: { model: 'sonnet:latest', ...body } }).done;
    assert.deepEqual([status, json.model, json.done, json.done_reason], [200, 'sonnet:latest', true, reason]);
    assert.deepEqual(path === '/api/chat' ? json.message : json.response, path === '/api/chat' ? { role: 'assistant', content: '' } : '');
  }
  assert.equal(t.api.requests.length, before);
});

test('`:latest` is no part of a model, in any dialect, and an alias holds with and without it', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '1', '--alias', `llama3=${MODEL}`] });
  const paths = ['/api/chat', '/v1/chat/completions', '/v1/messages'];
  for (const path of paths)
    for (const model of [`${MODEL}:latest`, 'llama3:latest', 'llama3']) {
      const { status, text } = await t.send({ proxy, path, body: asked(t, 'plain', { model, max_tokens: 99 }) }).done;
      assert.equal(status, 200, text);
    }
  assert.deepEqual(t.calls().map(({ body }) => body.model), Array(9).fill(MODEL));
  assert.ok((await t.get('/api/tags', { proxy })).json.models.some(({ name }) => name === 'llama3:latest'));
});

test('what is not honoured is named in x-ignored-params, and refused where it must not be', async (t) => {
  const body = asked(t, 'plain', { stream: false, keep_alive: '5m', options: { num_ctx: 8192, seed: 7, repeat_penalty: 1 } });
  const got = await t.send({ path: '/api/chat', body }).done;
  assert.deepEqual([got.status, ignoredOf(got)], [200, ['options.num_ctx', 'options.seed']]);
  const strict = await t.send({ path: '/api/chat', headers: { 'x-strict-params': 'true' }, body }).done;
  assert.equal(strict.status, 400);
  assert.match(strict.json.error, /'options\.num_ctx' cannot be honoured/);
});

test('a client key holds there too, and its refusal has the shape of Ollama', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', '--api-key', 'sk-of-the-client-0000'] });
  for (const [method, path] of [['POST', '/api/chat'], ['POST', '/api/generate'], ['GET', '/api/tags'], ['POST', '/api/show'], ['GET', '/api/ps']]) {
    const { status, json } = await t.send({ proxy, method, path, body: method === 'POST' ? asked(t, 'plain') : undefined }).done;
    assert.deepEqual([status, Object.keys(json)], [401, ['error']], path);
    assert.match(json.error, /Missing API key/);
  }
  assert.equal((await t.get('/api/version', { proxy })).status, 200);
  const known = client(t, { host: proxy.url, headers: { Authorization: 'Bearer sk-of-the-client-0000' } });
  assert.equal((await known.chat(asked(t, say('Come in.')))).message.content, 'Come in.');
  assert.equal(t.calls().length, 1);
});

test('sessions keep the history, and agents their tools, as in the other dialects', async (t) => {
  const session = { 'x-session-id': `ollama ${t.token}` };
  const ask = (content) => t.send({ path: '/api/chat', headers: session, body: { model: MODEL, stream: false, messages: [{ role: 'user', content }] } }).done;
  assert.equal((await ask(t.text(say('Noted.'), 'first'))).status, 200);
  assert.equal((await ask(t.text(say('Yes.'), 'second'))).json.message.content, 'Yes.');
  assert.deepEqual(conversationOf(t.calls().at(-1)).map(({ role }) => role), ['user', 'assistant', 'user']);
  const agent = await t.send({ path: '/api/chat', headers: { 'x-claude-allowed-tools': 'Read' }, body: asked(t, 'plain', { stream: false, enable_tools: true }) }).done;
  assert.equal(agent.status, 200, agent.text);
  assert.deepEqual(Object.keys(toolsOf(t.calls().at(-1))), ['Read']);
});

// ---- the address ---------------------------------------------------------------------------------

test('to its own clients the proxy says that Ollama is running, to a browser it shows the page', async (t) => {
  const told = (headers, method = 'GET') => t.send({ method, path: '/', headers }).done;
  for (const headers of [{ 'user-agent': 'ollama-js/0.6.4 (x64 linux)' }, { host: '127.0.0.1:11434' }])
    assert.equal((await told(headers)).text, 'Ollama is running');
  assert.equal((await told({ 'user-agent': 'ollama-python/0.6.3' }, 'HEAD')).status, 200);
  assert.match((await told({})).text, /^claude-openai [^]*Ollama is running/);
  assert.match((await told({ accept: 'text/html', host: '127.0.0.1:11434' })).text, /<!doctype html>/i);
});

const PORT = 11434;
const listenThere = () =>
  new Promise((resolve) => {
    const server = http.createServer((_, response) => response.end('taken'));
    server.once('error', () => resolve(undefined)).listen(PORT, '127.0.0.1', () => resolve(server));
  });
const close = (server) =>
  new Promise((resolve) => {
    server.closeAllConnections();
    server.close(resolve); // also where it is closed already
  });

test('--ollama listens at 127.0.0.1:11434 too, and says so where another program has it', { alone: true }, async (t) => {
  const other = await listenThere();
  if (!other) return; // a program of this machine's has the port
  t.defer(() => close(other));
  const args = ['--spares', '0', '--ollama'];
  const late = await t.start({ cli: t.cli, args });
  await eventually('the warning', () => /warning not listening at 127\.0\.0\.1:11434 .*clients of Ollama need the address http:/.test(late.output));
  assert.equal((await t.get('/api/version', { proxy: late })).status, 200, 'the dialect is at the port all the same');
  await late.stop();
  late.stopped = true;
  await close(other);
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '1'], env: { CLAUDE_OLLAMA: 'true' } });
  const there = { port: PORT };
  assert.equal((await t.get('/', { proxy: there })).text, 'Ollama is running');
  const answer = await new Ollama().chat(asked(t, say('Here, too.')));
  assert.equal(answer.message.content, 'Here, too.');
  assert.equal((await t.get('/api/version', { proxy })).status, 200);
  await proxy.stop();
  proxy.stopped = true;
  const again = await listenThere();
  assert.ok(again, 'the port is free again');
  await close(again);
});

test('--ollama beside that very port is no fault; without TCP, or where claude asks that port, it is one', { alone: true }, async (t) => {
  const free = await listenThere();
  if (!free) return;
  await close(free);
  const proxy = await t.start({ cli: t.cli, args: ['--spares', '0', '--ollama', '--port', String(PORT)] });
  assert.equal((await t.get('/api/version', { proxy })).status, 200);
  assert.doesNotMatch(proxy.output, /not listening/);
  await proxy.stop();
  proxy.stopped = true;
  const refusals = [
    [t.api.url, ['--ollama', '--no-tcp', '--unix-socket', '/nowhere'], /--ollama listens by TCP, which --no-tcp turns off/],
    [`http://127.0.0.1:${PORT}`, ['--ollama'], /leads to this proxy, which would call itself/],
  ];
  for (const [url, args, words] of refusals) {
    const { exit, output } = await startAndExpectExit({ url, cli: t.cli, args });
    assert.equal(exit?.code, 2, output);
    assert.match(output, words);
  }
});
