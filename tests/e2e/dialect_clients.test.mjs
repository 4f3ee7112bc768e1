// Real clients of the other dialects over the real CLI, each in the way its documentation shows: Anthropic's SDK, the openai client's
// Responses and Completions, the AI SDK with its OpenAI (which speaks Responses) and Anthropic providers.

import assert from 'node:assert/strict';
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import Anthropic from '@anthropic-ai/sdk';
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from 'ai';
import OpenAI from 'openai';
import { zodFunction, zodTextFormat } from 'openai/helpers/zod';
import { call, callerSystem, conversationOf, say, steps, toolsOf } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { ADA, ANSWER, assertRounds, City, Person, ROUNDS, structured, weatherOf } from './client_tasks.mjs';
import { eventually, suite } from './harness.mjs';
import { directive } from './messages_api.mjs';

export const dialectClients = suite();
const { test } = dialectClients;

globalThis.AI_SDK_LOG_WARNINGS = false;

const PNG = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
  'base64',
);
const PDF = Buffer.from('%PDF-1.4\ntrailer<</Root 1 0 R>>\n%%EOF\n');
const CITY = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };
const thought = (text, options = {}) => directive('thinking', { thinking: 'Let me think.', text, thinking_tokens: 5, output: 12, ...options });

// ---- Anthropic's SDK -----------------------------------------------------------------------------

const anthropic = (t, options = {}) => new Anthropic({ baseURL: t.proxy.url, apiKey: 'unused', maxRetries: 0, ...options });
const asked = (t, scenario, fields = {}) => ({ model: MODEL, max_tokens: 2000, messages: t.messages(scenario), ...fields });
const WEATHER = { name: 'get_weather', description: 'The weather of a city', input_schema: CITY };

test('anthropic: create, with its raw response', async (t) => {
  const { data, response, request_id } = await anthropic(t).messages.create(asked(t, say('Hello.', { cache_read: 300 }))).withResponse();
  assert.deepEqual(data.content, [{ type: 'text', text: 'Hello.' }]);
  assert.deepEqual([data.stop_reason, data.model, data.usage.cache_read_input_tokens], ['end_turn', MODEL, 300]);
  assert.equal(response.headers.get('request-id'), request_id);
  assert.equal(data._request_id, request_id);
  assert.match(request_id, /^req_/);
});

test('anthropic: stream() and create({stream}), text events and finalMessage', async (t) => {
  const stream = anthropic(t).messages.stream(asked(t, say('One two three.', { deltas: 4, output: 9 })));
  const pieces = [];
  stream.on('text', (piece) => pieces.push(piece));
  const final = await stream.finalMessage();
  assert.deepEqual([pieces.length, pieces.join(''), await stream.finalText()], [4, 'One two three.', 'One two three.']);
  assert.deepEqual([final.stop_reason, final.usage.output_tokens, final.content.length], ['end_turn', 9, 1]);
  assert.match(stream.request_id, /^req_/);
  const kinds = [];
  for await (const event of await anthropic(t).messages.create(asked(t, say('One.', { deltas: 1, ping: true }), { stream: true }))) kinds.push(event.type);
  assert.deepEqual(
    kinds.filter((kind) => kind !== 'ping'),
    ['message_start', 'content_block_start', 'content_block_delta', 'content_block_stop', 'message_delta', 'message_stop'],
  );
});

for (const stream of [false, true])
  test(`anthropic: tools over three turns${stream ? ', streamed' : ''}`, async (t) => {
    const client = anthropic(t);
    const body = asked(t, ROUNDS, { tools: [WEATHER], system: [{ type: 'text', text: 'Be brief.', cache_control: { type: 'ephemeral' } }] });
    const ask = () => (stream ? client.messages.stream(body).finalMessage() : client.messages.create(body));
    let message = await ask();
    while (message.stop_reason === 'tool_use') {
      const calls = message.content.filter(({ type }) => type === 'tool_use');
      const results = calls.map(({ id, input }) => ({ type: 'tool_result', tool_use_id: id, content: weatherOf(input) }));
      body.messages.push({ role: 'assistant', content: message.content }, { role: 'user', content: results });
      message = await ask();
    }
    assert.deepEqual(message.content, [{ type: 'text', text: ANSWER }]);
    assert.equal(callerSystem(assertRounds(t)[0]), 'Be brief.');
  });

test('anthropic: thinking and its signature, over two turns', async (t) => {
  const client = anthropic(t);
  const fields = { thinking: { type: 'enabled', budget_tokens: 1024 }, tools: [WEATHER] };
  const scenario = steps(
    call({ tool: 'get_weather', args: { city: 'Bern' } }, { thinking: 'Which city?', redacted: 'Y2lwaGVy' }),
    thought('Sunny.'),
  );
  const body = asked(t, scenario, fields);
  const stream = client.messages.stream(body);
  const thoughts = [];
  stream.on('thinking', (piece) => thoughts.push(piece));
  const first = await stream.finalMessage();
  assert.equal(thoughts.join(''), 'Which city?');
  assert.deepEqual(
    first.content.map(({ type }) => type),
    ['redacted_thinking', 'thinking', 'tool_use'],
  );
  assert.ok(first.content[1].signature);
  const result = { type: 'tool_result', tool_use_id: first.content[2].id, content: 'sunny' };
  body.messages.push({ role: 'assistant', content: first.content }, { role: 'user', content: [result] });
  const second = await client.messages.create(body);
  assert.deepEqual(
    second.content.map(({ type }) => type),
    ['thinking', 'text'],
  );
  const [, sent] = t.calls();
  assert.deepEqual(conversationOf(sent)[1].content.slice(0, 2), first.content.slice(0, 2));
  assert.deepEqual(sent.body.thinking, { type: 'enabled', budget_tokens: 1024 });
});

test('anthropic: images and documents', async (t) => {
  const image = { type: 'image', source: { type: 'base64', media_type: 'image/png', data: PNG.toString('base64') } };
  const document = { type: 'document', source: { type: 'base64', media_type: 'application/pdf', data: PDF.toString('base64') } };
  const content = [image, document, { type: 'text', text: t.text(say('I see.')) }];
  const message = await anthropic(t).messages.create({ model: MODEL, max_tokens: 99, messages: [{ role: 'user', content }] });
  assert.equal(message.content[0].text, 'I see.');
  assert.deepEqual(conversationOf(t.calls()[0])[0].content, [image, document, content[2].text]);
});

test('anthropic: structured output by parse()', async (t) => {
  const { zodOutputFormat } = await import('@anthropic-ai/sdk/helpers/zod');
  const body = asked(t, structured(ADA), { output_config: { format: zodOutputFormat(Person) } });
  const message = await anthropic(t).messages.parse(body);
  assert.deepEqual(message.parsed_output, ADA);
  assert.deepEqual(Object.keys(toolsOf(t.calls()[0]).StructuredOutput.input_schema.properties), ['name', 'age']);
});

test('anthropic: countTokens and models', async (t) => {
  const client = anthropic(t);
  const counted = await client.messages.countTokens({ model: MODEL, messages: t.messages('count tokens=1234'), tools: [WEATHER] });
  assert.deepEqual(counted, { input_tokens: 1234 });
  const ids = [];
  for await (const model of client.models.list({ limit: 3 })) ids.push(model.id);
  assert.ok(ids.includes(MODEL) && ids.length > 5 && new Set(ids).size === ids.length, `${ids}`);
  assert.equal((await client.models.retrieve(MODEL)).type, 'model');
});

test('anthropic: its error classes, before a stream and within', { slow: true }, async (t) => {
  const client = anthropic(t);
  const raised = (promise) =>
    promise.then(
      () => assert.fail('no error'),
      (error) => error,
    );
  await Promise.all(
    [
      [400, Anthropic.BadRequestError, 'invalid_request_error'],
      [403, Anthropic.PermissionDeniedError, 'permission_error'],
      [404, Anthropic.NotFoundError, 'not_found_error'],
      [429, Anthropic.RateLimitError, 'rate_limit_error'],
      [529, Anthropic.InternalServerError, 'overloaded_error'],
    ].map(async ([status, kind, type], i) => {
      const error = await raised(client.messages.create(asked(t, `error status=${status} message="loopback says so"`, { stream: i % 2 === 0 })));
      assert.ok(error instanceof kind, `${status} is ${error.constructor.name}: ${error.message}`);
      assert.deepEqual([error.status, error.type ?? error.error.error.type], [status, type]);
      assert.match(error.requestID, /^req_/);
    }),
  );
  const proxy = await t.start({ cli: t.cli, args: ['--api-key', 'the-key', '--spares', '0'] });
  const denied = await raised(anthropic(t, { baseURL: proxy.url }).messages.create(asked(t, 'plain')));
  assert.ok(denied instanceof Anthropic.AuthenticationError, denied.message);
  for (const options of [{ apiKey: 'the-key' }, { apiKey: null, authToken: 'the-key' }])
    assert.equal((await anthropic(t, { baseURL: proxy.url, ...options }).messages.create(asked(t, say('Fine.')))).content[0].text, 'Fine.');
  const stream = client.messages.stream(asked(t, 'error_event after=2'));
  const pieces = [];
  stream.on('text', (piece) => pieces.push(piece));
  const failed = await raised(stream.finalMessage());
  assert.ok(failed instanceof Anthropic.APIError, failed.constructor.name);
  assert.match(failed.message, /Overloaded/);
  assert.ok(pieces.length > 0);
});

// ---- openai: Responses and Completions -----------------------------------------------------------

const openai = (t) => new OpenAI({ baseURL: `${t.proxy.url}/v1`, apiKey: 'unused', maxRetries: 0 });

test('openai: responses.create, retrieve, its input and delete', async (t) => {
  const client = openai(t);
  const input = t.text(say('Hello.', { cache_read: 300 }));
  const { data, request_id } = await client.responses.create({ model: MODEL, instructions: 'Be brief.', input }).withResponse();
  assert.deepEqual([data.output_text, data.status, data.usage.input_tokens_details.cached_tokens], ['Hello.', 'completed', 300]);
  assert.match(request_id, /^req_/);
  assert.equal(callerSystem(t.calls()[0]), 'Be brief.');
  const got = await client.responses.retrieve(data.id);
  assert.deepEqual([got.output_text, got.status], ['Hello.', 'completed']);
  const items = [];
  for await (const item of client.responses.inputItems.list(data.id)) items.push(item);
  assert.deepEqual([items.length, items[0].content[0].text], [1, input]);
  await client.responses.delete(data.id);
  await assert.rejects(client.responses.retrieve(data.id), OpenAI.NotFoundError);
});

test('openai: responses.stream, its events and finalResponse', async (t) => {
  const stream = openai(t).responses.stream({ model: MODEL, input: t.text(say('One two three.', { deltas: 4, output: 9 })) });
  const pieces = [];
  stream.on('response.output_text.delta', ({ delta }) => pieces.push(delta));
  const final = await stream.finalResponse();
  assert.deepEqual([pieces.length, pieces.join(''), final.output_text], [4, 'One two three.', 'One two three.']);
  assert.deepEqual([final.status, final.usage.output_tokens], ['completed', 9]);
});

test('openai: responses.parse and a stream of it', async (t) => {
  const request = { model: MODEL, input: t.text(structured(ADA)), text: { format: zodTextFormat(Person, 'person') } };
  assert.deepEqual((await openai(t).responses.parse(request)).output_parsed, ADA);
  const final = await openai(t).responses.stream(request).finalResponse();
  assert.deepEqual(final.output_parsed, ADA);
  for (const sent of t.calls()) assert.deepEqual(Object.keys(toolsOf(sent).StructuredOutput.input_schema.properties), ['name', 'age']);
});

for (const chained of [true, false])
  test(`openai: tools over three turns, ${chained ? 'by previous_response_id, streamed' : 'with all items each time'}`, async (t) => {
    const client = openai(t);
    const { name, parameters, strict } = zodFunction({ name: 'get_weather', parameters: City }).function;
    const tools = [{ type: 'function', name, parameters, strict, description: 'The weather of a city' }];
    const items = [{ role: 'user', content: t.text(ROUNDS) }];
    const ask = (body) => (chained ? client.responses.stream(body).finalResponse() : client.responses.create({ ...body, store: false }));
    let response = await ask({ model: MODEL, tools, input: items });
    for (let calls = []; ; ) {
      calls = response.output.filter(({ type }) => type === 'function_call');
      if (!calls.length) break;
      const results = calls.map(({ call_id, arguments: text }) => ({ type: 'function_call_output', call_id, output: weatherOf(JSON.parse(text)) }));
      items.push(...response.output, ...results);
      response = await ask({ model: MODEL, tools, ...(chained ? { previous_response_id: response.id, input: results } : { input: items }) });
    }
    assert.equal(response.output_text, ANSWER);
    assertRounds(t);
  });

test('openai: reasoning, a custom tool, an image, an incomplete answer', async (t) => {
  const client = openai(t);
  const reasoned = await client.responses.create({
    model: MODEL,
    reasoning: { effort: 'low', summary: 'auto' },
    include: ['reasoning.encrypted_content'],
    input: t.text(thought('I thought.')),
  });
  assert.deepEqual([reasoned.output[0].summary[0].text, reasoned.output_text], ['Let me think.', 'I thought.']);
  assert.ok(reasoned.output[0].encrypted_content);
  const tools = [{ type: 'custom', name: 'run', description: 'Runs a text' }];
  const called = await client.responses.create({ model: MODEL, tools, input: t.text(call({ tool: 'run', args: { input: 'ls -l' } })) });
  assert.deepEqual([called.output[0].type, called.output[0].input], ['custom_tool_call', 'ls -l']);
  const image = { type: 'input_image', detail: 'auto', image_url: `data:image/png;base64,${PNG.toString('base64')}` };
  const content = [image, { type: 'input_text', text: t.text(say('One two three four')) }];
  const cut = await client.responses.create({ model: MODEL, max_output_tokens: 2, input: [{ role: 'user', content }] });
  assert.deepEqual([cut.status, cut.incomplete_details.reason, cut.output_text], ['incomplete', 'max_output_tokens', 'One two ']);
  assert.equal(conversationOf(t.calls()[2])[0].content[0].source.data, PNG.toString('base64'));
});

test('openai: a response under way is retrieved and cancelled', async (t) => {
  const client = openai(t);
  const stream = await client.responses.create({ model: MODEL, stream: true, input: t.text('hang after=2') });
  const events = stream[Symbol.asyncIterator]();
  const { value: created } = await events.next();
  const { id } = created.response;
  const seen = await client.responses.retrieve(id);
  assert.deepEqual([seen.status, seen.output_text], ['in_progress', '']);
  await eventually('the API is asked', () => t.calls().length === 1);
  assert.equal((await client.responses.cancel(id)).status, 'cancelled');
  let last;
  for (let next = await events.next(); !next.done; next = await events.next()) last = next.value;
  assert.equal(last.response.status, 'cancelled');
});

test('openai: responses raise its error classes, and a stream that fails says so', { slow: true }, async (t) => {
  const client = openai(t);
  const create = (scenario, fields = {}) => client.responses.create({ model: MODEL, input: t.text(scenario), ...fields });
  await assert.rejects(create('error status=400 message="not so"'), (error) => error instanceof OpenAI.BadRequestError && /not so/.test(error.message));
  const forced = { tools: [{ type: 'web_search' }], tool_choice: { type: 'web_search' } };
  await assert.rejects(create('plain', forced), (error) => error.status === 400 && error.param === 'tool_choice');
  await assert.rejects(create('plain', { previous_response_id: 'resp_nobody' }), OpenAI.NotFoundError);
  const events = [];
  for await (const event of await create('error_event after=2', { stream: true })) events.push(event);
  const { type, response } = events.at(-1);
  assert.deepEqual([type, response.status], ['response.failed', 'failed']);
  assert.ok(response.error.message);
});

test('openai: completions, whole and streamed', async (t) => {
  const client = openai(t);
  const prompt = t.text(say('One two END three', { deltas: 4 }));
  const whole = await client.completions.create({ model: MODEL, prompt, max_tokens: 500, stop: 'END' });
  assert.deepEqual([whole.choices[0].text, whole.choices[0].finish_reason], ['One two ', 'stop']);
  assert.ok(whole.usage.total_tokens > 0);
  const stream = await client.completions.create({
    model: MODEL,
    prompt: [prompt, prompt],
    suffix: 'the end',
    stream: true,
    stream_options: { include_usage: true },
  });
  const texts = ['', ''];
  let usage;
  for await (const chunk of stream) {
    for (const { index, text } of chunk.choices) texts[index] += text;
    usage = chunk.usage ?? usage;
  }
  assert.deepEqual(texts, ['One two END three', 'One two END three']);
  assert.equal(usage.total_tokens, 36);
});

// ---- the AI SDK ----------------------------------------------------------------------------------

const PROVIDERS = {
  openai: (t) => createOpenAI({ baseURL: `${t.proxy.url}/v1`, apiKey: 'unused' })(MODEL),
  anthropic: (t) => createAnthropic({ baseURL: `${t.proxy.url}/v1`, apiKey: 'unused' })(MODEL),
};
const THINKS = {
  openai: { openai: { reasoningEffort: 'low', reasoningSummary: 'auto', forceReasoning: true } },
  anthropic: { anthropic: { thinking: { type: 'enabled', budgetTokens: 2048 } } },
};
const weatherTool = (cities) =>
  tool({
    description: 'The weather of a city',
    inputSchema: City,
    execute: async (args) => {
      cities.push(args.city);
      return weatherOf(args);
    },
  });

for (const [name, model] of Object.entries(PROVIDERS)) {
  const options = (t, scenario) => ({ model: model(t), prompt: t.text(scenario), maxRetries: 0 });

  test(`ai with ${name}: generateText with tools over several steps`, async (t) => {
    const cities = [];
    const result = await generateText({
      ...options(t, ROUNDS),
      system: 'Be brief.',
      tools: { get_weather: weatherTool(cities) },
      stopWhen: stepCountIs(5),
    });
    assert.equal(result.text, ANSWER);
    assert.deepEqual(cities.sort(), ['Basel', 'Bern', 'Zürich']);
    assert.deepEqual(
      result.steps.map(({ finishReason, toolCalls }) => [finishReason, toolCalls.length]),
      [
        ['tool-calls', 1],
        ['tool-calls', 2],
        ['stop', 0],
      ],
    );
    assert.deepEqual([result.usage.inputTokens, result.usage.outputTokens, result.totalUsage.inputTokens], [20, 5, 42]);
    assert.equal(callerSystem(assertRounds(t)[0]), 'Be brief.');
  });

  test(`ai with ${name}: streamText with tools over several steps`, async (t) => {
    const cities = [];
    const errors = [];
    const result = streamText({
      ...options(t, ROUNDS),
      tools: { get_weather: weatherTool(cities) },
      stopWhen: stepCountIs(5),
      onError: ({ error }) => errors.push(error),
    });
    const kinds = new Set();
    for await (const part of result.fullStream) kinds.add(part.type);
    assert.deepEqual(errors, []);
    assert.equal(await result.text, ANSWER);
    assert.deepEqual(cities.sort(), ['Basel', 'Bern', 'Zürich']);
    for (const kind of ['tool-input-start', 'tool-input-delta', 'tool-call', 'tool-result', 'text-delta', 'finish'])
      assert.ok(kinds.has(kind), `${kind} in ${[...kinds]}`);
    assert.deepEqual([await result.finishReason, (await result.usage).outputTokens], ['stop', 5]);
    assertRounds(t);
  });

  test(`ai with ${name}: generateObject and streamObject`, async (t) => {
    const request = { ...options(t, structured(ADA)), schema: Person };
    assert.deepEqual((await generateObject(request)).object, ADA);
    const streamed = streamObject(request);
    const partial = [];
    for await (const one of streamed.partialObjectStream) partial.push(one);
    assert.deepEqual(await streamed.object, ADA);
    assert.ok(partial.length > 1, 'it grows');
    assert.equal(t.calls().length, 2);
  });

  test(`ai with ${name}: reasoning is told as such, and goes on with tools`, async (t) => {
    const scenario = steps(call({ tool: 'get_weather', args: { city: 'Bern' } }, { thinking: 'Which city?' }), thought('Sunny.'));
    const request = {
      ...options(t, scenario),
      providerOptions: THINKS[name],
      tools: { get_weather: weatherTool([]) },
      stopWhen: stepCountIs(3),
    };
    const whole = await generateText(request);
    assert.deepEqual(
      whole.steps.map(({ reasoningText }) => reasoningText),
      ['Which city?', 'Let me think.'],
    );
    assert.equal(whole.text, 'Sunny.');
    const streamed = streamText(request);
    await streamed.consumeStream();
    assert.deepEqual([await streamed.reasoningText, await streamed.text], ['Let me think.', 'Sunny.']);
    const calls = t.calls();
    assert.equal(calls.length, 4);
    for (const { body } of calls) assert.deepEqual(body.thinking, { type: 'enabled', budget_tokens: 2048 });
  });

  test(`ai with ${name}: an image and a PDF, a cut answer, an error`, { slow: true }, async (t) => {
    const content = [
      { type: 'text', text: t.text(say('One two three four')) },
      { type: 'image', image: PNG },
      { type: 'file', data: PDF, mediaType: 'application/pdf', filename: 'a.pdf' },
    ];
    const cut = await generateText({ model: model(t), maxOutputTokens: 2, maxRetries: 0, messages: [{ role: 'user', content }] });
    assert.deepEqual([cut.text, cut.finishReason], ['One two ', 'length']);
    const [, image, document] = conversationOf(t.calls()[0])[0].content;
    assert.deepEqual([image.source.data, document.source.data], [PNG.toString('base64'), PDF.toString('base64')]);
    await assert.rejects(generateText(options(t, 'error status=400 message="not so"')), (error) => error.statusCode === 400 && /not so/.test(error.message));
    const errors = [];
    const broken = streamText({ ...options(t, 'error_event after=2'), onError: ({ error }) => errors.push(error) });
    await broken.consumeStream();
    assert.equal(errors.length, 1);
    assert.match(JSON.stringify(errors[0]) + errors[0].message, /verloaded/);
  });
}
