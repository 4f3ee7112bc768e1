// Real clients from npm over the real CLI, each in the way its documentation shows: the openai client, the AI SDK, LangChain.

import assert from 'node:assert/strict';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { HumanMessage } from '@langchain/core/messages';
import { tool as langchainTool } from '@langchain/core/tools';
import { ChatOpenAI } from '@langchain/openai';
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from 'ai';
import OpenAI, { AzureOpenAI } from 'openai';
import { zodFunction, zodResponseFormat } from 'openai/helpers/zod';
import { call, conversationOf, say, steps, toolsOf } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { ADA, ANSWER, assertRounds, City, Person, ROUNDS, structured, weatherOf } from './client_tasks.mjs';
import { suite } from './harness.mjs';
import { directive } from './messages_api.mjs';

export const clients = suite();
const { test } = clients;

const thought = (text) => directive('thinking', { thinking: 'Let me think.', text, thinking_tokens: 5 });

// ---- openai --------------------------------------------------------------------------------------

const openai = (t) => new OpenAI({ baseURL: `${t.proxy.url}/v1`, apiKey: 'unused', maxRetries: 0 });

for (const stream of [false, true]) {
  test(`openai: runTools${stream ? ', streamed' : ''}`, async (t) => {
    const asked = [];
    const runner = openai(t).chat.completions.runTools({
      model: MODEL,
      stream,
      messages: t.messages(ROUNDS),
      tools: [
        zodFunction({
          name: 'get_weather',
          description: 'The weather of a city',
          parameters: City,
          function: (args) => {
            asked.push(args.city);
            return weatherOf(args);
          },
        }),
      ],
    });
    const pieces = [];
    if (stream) runner.on('content', (piece) => pieces.push(piece));
    assert.equal(await runner.finalContent(), ANSWER);
    assert.deepEqual(asked, ['Zürich', 'Bern', 'Basel']);
    if (stream) assert.equal(pieces.join(''), ANSWER);
    const [{ body }] = assertRounds(t);
    assert.equal(body.tools[0].description, 'The weather of a city');
    assert.deepEqual(body.tools[0].input_schema.properties.city.type, 'string');
  });
}

test('openai: stream() puts calls and text together', async (t) => {
  const stream = openai(t).chat.completions.stream({
    model: MODEL,
    messages: t.messages(
      call({ tool: 'get_weather', args: { city: 'Zürich' } }, { before: 'Let me look.', deltas: 4 }),
    ),
    tools: [zodFunction({ name: 'get_weather', parameters: City })],
    stream_options: { include_usage: true },
  });
  const deltas = [];
  const done = [];
  stream.on('tool_calls.function.arguments.delta', ({ arguments_delta: delta }) => deltas.push(delta));
  stream.on('tool_calls.function.arguments.done', (event) => done.push(event));
  const final = await stream.finalChatCompletion();
  const [{ message, finish_reason: finish }] = final.choices;
  assert.deepEqual([finish, message.content], ['tool_calls', 'Let me look.']);
  assert.deepEqual(message.tool_calls[0].function.parsed_arguments, { city: 'Zürich' });
  assert.equal(deltas.join(''), '{"city":"Zürich"}');
  assert.ok(deltas.filter(Boolean).length > 1);
  assert.deepEqual([done.length, done[0].name], [1, 'get_weather']);
  assert.equal(final.usage.total_tokens, 18);
});

test('openai: parse() with zodResponseFormat, whole and streamed', async (t) => {
  const request = {
    model: MODEL,
    messages: t.messages(structured(ADA)),
    response_format: zodResponseFormat(Person, 'person'),
  };
  const whole = await openai(t).chat.completions.parse(request);
  assert.deepEqual(whole.choices[0].message.parsed, ADA);
  const partial = [];
  const stream = openai(t).chat.completions.stream(request);
  stream.on('content.delta', ({ parsed }) => partial.push(parsed));
  const final = await stream.finalChatCompletion();
  assert.deepEqual(final.choices[0].message.parsed, ADA);
  assert.ok(partial.length > 1 && partial.some((one) => one?.name && one.age === undefined), 'it grows');
  for (const sent of t.calls()) {
    const { properties, additionalProperties } = toolsOf(sent).StructuredOutput.input_schema;
    assert.deepEqual([Object.keys(properties), additionalProperties], [['name', 'age'], false]);
  }
  assert.equal(t.calls().length, 2);
});

test('openai: a bad parameter is a BadRequestError that names it', async (t) => {
  const asking = openai(t).chat.completions.create({ model: MODEL, messages: t.messages('plain'), n: 99 });
  await assert.rejects(asking, (error) => error instanceof OpenAI.BadRequestError && error.param === 'n');
});

test('openai: the AzureOpenAI class, its deployments and its key', async (t) => {
  const proxy = await t.start({ cli: t.cli, args: ['--api-key', 'key-of-azure', '--spares', '0'] });
  const options = { endpoint: proxy.url, apiKey: 'key-of-azure', apiVersion: '2024-10-21', maxRetries: 0 };
  const azure = new AzureOpenAI({ ...options, deployment: MODEL });
  const whole = await azure.chat.completions.create({ messages: t.messages('plain') });
  assert.equal(whole.choices[0].message.content, 'Hello from the loopback API.');
  const stream = await new AzureOpenAI(options).chat.completions.create({ model: MODEL, stream: true, messages: t.messages('plain') });
  let text = '';
  for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? '';
  assert.equal(text, 'Hello from the loopback API.');
  assert.deepEqual(t.calls().map(({ body }) => body.model), [MODEL, MODEL]);
});

// ---- the AI SDK ----------------------------------------------------------------------------------

globalThis.AI_SDK_LOG_WARNINGS = false;
const claude = (t, options = {}) =>
  createOpenAICompatible({
    name: 'claude',
    baseURL: `${t.proxy.url}/v1`,
    apiKey: 'unused',
    includeUsage: true,
    ...options,
  })(MODEL);
const weatherTool = (asked) =>
  tool({
    description: 'The weather of a city',
    inputSchema: City,
    execute: async (args) => {
      asked.push(args.city);
      return weatherOf(args);
    },
  });

test('ai: generateText with tools over several steps', async (t) => {
  const asked = [];
  const result = await generateText({
    model: claude(t),
    tools: { get_weather: weatherTool(asked) },
    stopWhen: stepCountIs(5),
    system: 'Be brief.',
    prompt: t.text(ROUNDS),
    maxRetries: 0,
  });
  assert.equal(result.text, ANSWER);
  assert.deepEqual(asked.sort(), ['Basel', 'Bern', 'Zürich']);
  assert.deepEqual(
    result.steps.map(({ finishReason, toolCalls }) => [finishReason, toolCalls.length]),
    [
      ['tool-calls', 1],
      ['tool-calls', 2],
      ['stop', 0],
    ],
  );
  assert.deepEqual([result.usage.inputTokens, result.usage.outputTokens], [20, 5]);
  assert.equal(result.totalUsage.inputTokens, 42);
  assertRounds(t);
});

test('ai: streamText with tools over several steps', async (t) => {
  const asked = [];
  const errors = [];
  const result = streamText({
    model: claude(t),
    tools: { get_weather: weatherTool(asked) },
    stopWhen: stepCountIs(5),
    prompt: t.text(ROUNDS),
    maxRetries: 0,
    onError: ({ error }) => errors.push(error),
  });
  const kinds = new Set();
  for await (const part of result.fullStream) kinds.add(part.type);
  assert.deepEqual(errors, []);
  assert.equal(await result.text, ANSWER);
  assert.deepEqual(asked.sort(), ['Basel', 'Bern', 'Zürich']);
  for (const kind of ['tool-input-start', 'tool-input-delta', 'tool-call', 'tool-result', 'text-delta', 'finish'])
    assert.ok(kinds.has(kind), `${kind} in ${[...kinds]}`);
  assert.equal(await result.finishReason, 'stop');
  assert.equal((await result.usage).outputTokens, 5);
  assertRounds(t);
});

test('ai: reasoning is told as such', async (t) => {
  const options = { model: claude(t), providerOptions: { claude: { reasoningEffort: 'low' } }, maxRetries: 0 };
  const whole = await generateText({ ...options, prompt: t.text(thought('I thought.')) });
  assert.deepEqual([whole.reasoningText, whole.text], ['Let me think.', 'I thought.']);
  assert.equal(whole.usage.outputTokenDetails?.reasoningTokens ?? whole.usage.reasoningTokens, 5);
  const streamed = streamText({ ...options, prompt: t.text(thought('I thought.')) });
  await streamed.consumeStream();
  assert.deepEqual([await streamed.reasoningText, await streamed.text], ['Let me think.', 'I thought.']);
  for (const { body } of t.calls()) assert.deepEqual(body.thinking, { type: 'enabled', budget_tokens: 2048 });
});

for (const supportsStructuredOutputs of [true, false]) {
  const format = supportsStructuredOutputs ? 'json_schema' : 'json_object';
  test(`ai: generateObject and streamObject, which ask for ${format}`, async (t) => {
    const model = claude(t, { supportsStructuredOutputs });
    const options = { model, schema: Person, prompt: t.text(structured(ADA)), maxRetries: 0 };
    const whole = await generateObject(options);
    assert.deepEqual(whole.object, ADA);
    const streamed = streamObject(options);
    const partial = [];
    for await (const one of streamed.partialObjectStream) partial.push(one);
    assert.deepEqual(await streamed.object, ADA);
    assert.ok(partial.length > 1, 'it grows');
    for (const sent of t.calls()) {
      const { properties } = toolsOf(sent).StructuredOutput.input_schema;
      assert.deepEqual(Object.keys(properties ?? {}), supportsStructuredOutputs ? ['name', 'age'] : []);
    }
    assert.equal(t.calls().length, 2);
  });
}

test('ai: an image and a PDF', async (t) => {
  const png = Buffer.from(
    'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
    'base64',
  );
  const pdf = Buffer.from('%PDF-1.4\ntrailer<</Root 1 0 R>>\n%%EOF\n');
  const content = [
    { type: 'text', text: t.text(say('I see.')) },
    { type: 'image', image: png },
    { type: 'file', data: pdf, mediaType: 'application/pdf', filename: 'a.pdf' },
  ];
  const { text } = await generateText({ model: claude(t), messages: [{ role: 'user', content }], maxRetries: 0 });
  assert.equal(text, 'I see.');
  const [, image, document] = conversationOf(t.calls()[0])[0].content;
  assert.deepEqual([image.source.media_type, image.source.data], ['image/png', png.toString('base64')]);
  assert.deepEqual([document.source.media_type, document.source.data], ['application/pdf', pdf.toString('base64')]);
});

// ---- LangChain -----------------------------------------------------------------------------------

const langchain = (t, options = {}) =>
  new ChatOpenAI({
    model: MODEL,
    apiKey: 'unused',
    maxRetries: 0,
    configuration: { baseURL: `${t.proxy.url}/v1` },
    ...options,
  });

for (const streaming of [false, true]) {
  test(`langchain: bindTools over several steps${streaming ? ', streamed' : ''}`, async (t) => {
    const weather = langchainTool(async (args) => weatherOf(args), {
      name: 'get_weather',
      description: 'The weather of a city',
      schema: City,
    });
    const model = langchain(t).bindTools([weather]);
    const ask = async (messages) => {
      if (!streaming) return model.invoke(messages);
      let whole;
      for await (const chunk of await model.stream(messages)) whole = whole ? whole.concat(chunk) : chunk;
      return whole;
    };
    const messages = [new HumanMessage(t.text(ROUNDS))];
    let answer;
    for (let step = 0; step < 5; step++) {
      answer = await ask(messages);
      messages.push(answer);
      if (!answer.tool_calls.length) break;
      for (const one of answer.tool_calls) messages.push(await weather.invoke(one));
    }
    assert.equal(answer.content, ANSWER);
    assert.equal(answer.usage_metadata.output_tokens, 5);
    assertRounds(t);
  });
}

for (const [method, scenario] of [
  ['jsonSchema', structured(ADA)],
  ['jsonMode', structured(ADA)],
  ['functionCalling', call({ tool: 'person', args: ADA })],
]) {
  test(`langchain: withStructuredOutput by ${method}`, async (t) => {
    const model = langchain(t).withStructuredOutput(Person, { name: 'person', method });
    assert.deepEqual(await model.invoke([new HumanMessage(t.text(scenario))]), ADA);
    const [sent, ...more] = t.calls();
    assert.equal(more.length, 0);
    if (method === 'functionCalling') {
      assert.deepEqual(Object.keys(toolsOf(sent)), ['person']);
      assert.deepEqual([sent.body.tool_choice.type, sent.body.tool_choice.name], ['tool', 'person']);
    } else assert.deepEqual(Object.keys(toolsOf(sent)), ['StructuredOutput']);
  });
}
