// Every field of the APIs' request types is honoured, refused by its name, or named in x-ignored-params. The types are the SDKs' own
// declarations, so a new version of one shows here which fields are new.

import assert from 'node:assert/strict';
import { ignoredOf } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { suite } from './harness.mjs';
import { Declarations } from './sdk_types.mjs';

export const fields = suite();
const { test } = fields;

/** The names of the fields of a type in a declaration file. */
const fieldsOf = (sdk, file, type) => Object.keys(new Declarations(sdk, file).fieldsOf(type));

const parameters = { type: 'object', properties: { city: { type: 'string' } } };
const TOOL = { type: 'function', function: { name: 'look', parameters } };
const FLAT_TOOL = { type: 'function', name: 'look', parameters };
const OWN_TOOL = { name: 'look', input_schema: parameters };
const SCHEMA = { type: 'json_schema', json_schema: { name: 'x', schema: parameters } };

/** Whose business a field is that neither the model nor the answer shows: labels of an account, and hints for caches. */
const LABELS = {
  metadata: { user_id: 'me' },
  user: 'me',
  safety_identifier: 'me',
  store: true,
  prompt_cache_key: 'me',
  keep_alive: '10m',
};

/**
 * By dialect: how it is asked, its fields (with those that they need beside them; all ask for something), and those that are labels.
 * `base` is what the question is without a field.
 */
const DIALECTS = {
  'chat completions': {
    path: '/v1/chat/completions',
    types: () => fieldsOf('openai', 'resources/chat/completions/completions.d.ts', 'ChatCompletionCreateParamsBase'),
    base: (text) => ({ model: MODEL, messages: [{ role: 'user', content: text }] }),
    fields: {
      messages: (text) => ({ messages: [{ role: 'system', content: 'Be brief.' }, { role: 'user', content: text }] }),
      model: { model: 'claude-haiku-4-5-20251001' },
      audio: { audio: { voice: 'alloy', format: 'mp3' } },
      frequency_penalty: { frequency_penalty: 1 },
      function_call: [{ functions: [TOOL.function], function_call: { name: 'look' } }, { functions: [TOOL.function] }],
      functions: { functions: [TOOL.function] },
      logit_bias: { logit_bias: { 50256: -100 } },
      logprobs: { logprobs: true },
      max_completion_tokens: { max_completion_tokens: 2 },
      max_tokens: { max_tokens: 2 },
      modalities: { modalities: ['text', 'audio'] },
      moderation: { moderation: { model: 'omni-moderation-latest' } },
      n: { n: 2 },
      parallel_tool_calls: [{ tools: [TOOL], parallel_tool_calls: false }, { tools: [TOOL] }],
      prediction: { prediction: { type: 'content', content: 'Hello' } },
      presence_penalty: { presence_penalty: 1 },
      prompt_cache_options: { prompt_cache_options: { ttl: '30m' } },
      prompt_cache_retention: { prompt_cache_retention: '24h' },
      reasoning_effort: { reasoning_effort: 'high' },
      response_format: { response_format: SCHEMA },
      seed: { seed: 7 },
      service_tier: { service_tier: 'flex' },
      stop: { stop: ['loopback'] },
      stream: { stream: true },
      stream_options: [{ stream: true, stream_options: { include_usage: true } }, { stream: true }],
      temperature: { temperature: 0.3 },
      tool_choice: [{ tools: [TOOL], tool_choice: 'required' }, { tools: [TOOL] }],
      tools: { tools: [TOOL] },
      top_logprobs: [{ logprobs: true, top_logprobs: 3 }, { logprobs: true }],
      top_p: { top_p: 0.5 },
      verbosity: { verbosity: 'low' },
      web_search_options: { web_search_options: { search_context_size: 'high' } },
    },
  },
  completions: {
    path: '/v1/completions',
    types: () => fieldsOf('openai', 'resources/completions.d.ts', 'CompletionCreateParamsBase'),
    base: (text) => ({ model: MODEL, prompt: text }),
    fields: {
      model: { model: 'claude-haiku-4-5-20251001' },
      prompt: (text) => ({ prompt: [text, text] }),
      best_of: { best_of: 3 },
      echo: { echo: true },
      frequency_penalty: { frequency_penalty: 1 },
      logit_bias: { logit_bias: { 50256: -100 } },
      logprobs: { logprobs: 3 },
      max_tokens: { max_tokens: 2 },
      n: { n: 2 },
      presence_penalty: { presence_penalty: 1 },
      seed: { seed: 7 },
      stop: { stop: ['loopback'] },
      stream: { stream: true },
      stream_options: [{ stream: true, stream_options: { include_usage: true } }, { stream: true }],
      suffix: { suffix: 'and so on' },
      temperature: { temperature: 0.3 },
      top_p: { top_p: 0.5 },
    },
  },
  responses: {
    path: '/v1/responses',
    types: () => fieldsOf('openai', 'resources/responses/responses.d.ts', 'ResponseCreateParamsBase'),
    base: (text) => ({ model: MODEL, input: text }),
    fields: {
      access_programs: { access_programs: [{ id: 'x' }] },
      background: { background: true },
      context_management: { context_management: [{ type: 'compaction', compact_threshold: 1000 }] },
      conversation: { conversation: 'conv_1' },
      image: { image: { size: 'large' } },
      include: { include: ['message.output_text.logprobs'] },
      input: (text) => ({ input: [{ role: 'developer', content: 'Be brief.' }, { role: 'user', content: text }] }),
      instructions: { instructions: 'Be brief.' },
      max_output_tokens: { max_output_tokens: 16 },
      max_tool_calls: { max_tool_calls: 1 },
      model: { model: 'claude-haiku-4-5-20251001' },
      moderation: { moderation: { model: 'omni-moderation-latest' } },
      parallel_tool_calls: [{ tools: [FLAT_TOOL], parallel_tool_calls: false }, { tools: [FLAT_TOOL] }],
      previous_response_id: { previous_response_id: 'resp_none' },
      prompt: { prompt: { id: 'pmpt_1' } },
      prompt_cache_options: { prompt_cache_options: { ttl: '30m' } },
      prompt_cache_retention: { prompt_cache_retention: '24h' },
      reasoning: { reasoning: { effort: 'high' } },
      service_tier: { service_tier: 'flex' },
      store: { store: false },
      stream: { stream: true },
      stream_options: [{ stream: true, stream_options: { include_obfuscation: true } }, { stream: true }],
      temperature: { temperature: 0.3 },
      text: { text: { format: { ...SCHEMA.json_schema, type: 'json_schema' } } },
      tool_choice: [{ tools: [FLAT_TOOL], tool_choice: 'required' }, { tools: [FLAT_TOOL] }],
      tools: { tools: [FLAT_TOOL] },
      top_logprobs: { top_logprobs: 3 },
      top_p: { top_p: 0.5 },
      truncation: { truncation: 'auto' },
    },
  },
  messages: {
    path: '/v1/messages',
    types: () => fieldsOf('@anthropic-ai/sdk', 'resources/beta/messages/messages.d.ts', 'MessageCreateParamsBase'),
    base: (text) => ({ model: MODEL, max_tokens: 1000, messages: [{ role: 'user', content: text }] }),
    fields: {
      max_tokens: { max_tokens: 2 },
      messages: (text) => ({ messages: [{ role: 'user', content: text }, { role: 'assistant', content: 'Yes?' }, { role: 'user', content: text }] }),
      model: { model: 'claude-haiku-4-5-20251001' },
      billing_policy: { billing_policy: { type: 'x' } },
      cache_control: { cache_control: { type: 'ephemeral', ttl: '1h' } },
      compaction: { compaction: { enabled: true } },
      container: { container: 'container_1' },
      context_management: { context_management: { edits: [{ type: 'clear_tool_uses_20250919' }] } },
      diagnostics: { diagnostics: { previous_message_id: 'msg_1' } },
      fallback_credit_token: { fallback_credit_token: 'x' },
      fallbacks: { fallbacks: [{ model: 'claude-haiku-4-5-20251001' }] },
      inference_geo: { inference_geo: 'us' },
      mcp_servers: { mcp_servers: [{ type: 'url', name: 'git', url: 'https://mcp.example' }] },
      output_config: [{ model: 'claude-opus-4-8', output_config: { effort: 'low' } }, { model: 'claude-opus-4-8' }],
      output_format: { output_format: { type: 'json_schema', schema: parameters } },
      service_tier: { service_tier: 'standard_only' },
      speed: { speed: 'fast' },
      stop_sequences: { stop_sequences: ['loopback'] },
      stream: { stream: true },
      system: { system: 'Be brief.' },
      temperature: { temperature: 0.3 },
      thinking: { thinking: { type: 'enabled', budget_tokens: 1024 } },
      thread: { thread: { type: 'create' } },
      tool_choice: [{ tools: [OWN_TOOL], tool_choice: { type: 'any' } }, { tools: [OWN_TOOL] }],
      tools: { tools: [OWN_TOOL] },
      top_k: { top_k: 3 },
      top_p: { top_p: 0.5 },
    },
  },
};

/** Of both of Ollama's endpoints. */
const OLLAMA = {
  model: { model: 'claude-haiku-4-5-20251001' },
  format: { format: parameters },
  logprobs: { logprobs: true },
  options: { options: { num_predict: 2 } },
  stream: { stream: true },
  think: { think: 'high' },
  top_logprobs: [{ logprobs: true, top_logprobs: 3 }, { logprobs: true }],
};
Object.assign(DIALECTS, {
  'ollama chat': {
    path: '/api/chat',
    types: () => fieldsOf('ollama', 'browser.d.ts', 'ChatRequest'),
    base: (text) => ({ model: MODEL, stream: false, messages: [{ role: 'user', content: text }] }),
    fields: {
      ...OLLAMA,
      messages: (text) => ({ messages: [{ role: 'system', content: 'Be brief.' }, { role: 'user', content: text }] }),
      tools: { tools: [TOOL] },
    },
  },
  'ollama generate': {
    path: '/api/generate',
    types: () => fieldsOf('ollama', 'browser.d.ts', 'GenerateRequest'),
    base: (text) => ({ model: MODEL, stream: false, prompt: text }),
    fields: {
      ...OLLAMA,
      context: { context: [1, 2, 3] },
      height: { height: 512 },
      images: { images: ['iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='] },
      prompt: (text) => ({ prompt: `${text} Well?` }),
      raw: { raw: true },
      steps: { steps: 4 },
      suffix: { suffix: 'and so on' },
      system: { system: 'Be brief.' },
      template: { template: '{{ .Prompt }}' },
      width: { width: 512 },
    },
  },
});

/** What a response repeats of its request, whatever becomes of it. */
const ECHOED = [
  'instructions', 'max_output_tokens', 'max_tool_calls', 'parallel_tool_calls', 'reasoning', 'service_tier', 'temperature', 'text',
  'tool_choice', 'tools', 'top_p', 'truncation', 'user',
];

/** What the API was asked and what the client got, without what differs each time, and what only repeats the request. */
function outcomeOf({ status, text, json, headers }, calls) {
  const api = calls.map(({ body: { metadata, ...sent } }) => sent);
  if (json?.object === 'response') ECHOED.forEach((name) => delete json[name]);
  const got = (json?.object === 'response' ? JSON.stringify(json) : text)
    .replace(/"(id|item_id|response_id|system_fingerprint|obfuscation)":"[^"]*"/g, '')
    .replace(/"(created|created_at|completed_at|cost|\w+_duration)":(?:[\d.e-]+|"[\d:.TZ-]+")/g, '')
    .replace(/"x_[^}]*/g, '');
  return { sent: JSON.stringify(api), all: JSON.stringify({ status, type: headers['content-type'], api, got }) };
}

/** An error that names the field: as its parameter, or in its words. */
function blames({ json }, field) {
  const { param, message } = typeof json?.error === 'string' ? { message: json.error } : (json?.error ?? {});
  return (param ?? '').split(/[.[\]]+/).includes(field) || new RegExp(`(^|['".])${field}(['":.[]|$)`).test(message ?? '') || (message ?? '').startsWith(`${field} `);
}

for (const [name, dialect] of Object.entries(DIALECTS)) {
  const words = (t) => t.text('plain');
  const ask = async (t, body) => {
    const before = t.calls().length;
    const result = await t.send({ path: dialect.path, body }).done;
    return { result, ...outcomeOf(result, t.calls().slice(before)) };
  };

  test(`${name}: every field of the SDK's type is among those that are tried`, async () => {
    const missing = dialect.types().filter((field) => !dialect.fields[field] && !(field in LABELS));
    assert.deepEqual(missing, []);
  });

  test(`${name}: the same request twice comes out the same, so that what differs is a field's doing`, async (t) => {
    const [one, two] = [await ask(t, dialect.base(words(t))), await ask(t, dialect.base(words(t)))];
    assert.equal(one.result.status, 200, one.result.text);
    assert.equal(one.all, two.all);
  });

  test(`${name}: each field is honoured, refused by its name, or named in x-ignored-params`, async (t) => {
    const silent = [];
    const text = words(t);
    for (const [field, given] of Object.entries(dialect.fields)) {
      const [asked, beside = {}] = [given].flat().map((one) => (typeof one === 'function' ? one(text) : one));
      const without = await ask(t, { ...dialect.base(text), ...beside });
      const { result, sent, all } = await ask(t, { ...dialect.base(text), ...asked });
      const refused = [400, 404].includes(result.status) && blames(result, field);
      const named = result.status === 200 && ignoredOf(result).some((one) => one === field || one.startsWith(`${field}.`));
      const honoured = sent !== without.sent || (result.status === 200 && all !== without.all);
      if (!refused && !named && !honoured) silent.push(`${field}: ${result.status} ${result.text.slice(0, 120)}`);
    }
    assert.equal(silent.join('\n'), '');
  });

  test(`${name}: labels and hints for caches are taken, and change nothing`, async (t) => {
    const text = words(t);
    const without = await ask(t, dialect.base(text));
    for (const field of dialect.types().filter((one) => one in LABELS && !(one in dialect.fields))) {
      const asked = await ask(t, { ...dialect.base(text), [field]: LABELS[field] });
      assert.equal(asked.result.status, 200, `${field}: ${asked.result.text}`);
      if (name !== 'responses') assert.equal(asked.all, without.all, field); // a response tells what it was asked
    }
  });
}

// ---- fields within fields ------------------------------------------------------------------------

const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
const PDF = 'JVBERi0xLjQK';
const CHAT = ['openai', 'resources/chat/completions/completions.d.ts'];
const SHARED = ['openai', 'resources/shared.d.ts'];
const RESPONSES = ['openai', 'resources/responses/responses.d.ts'];
const MESSAGES = ['@anthropic-ai/sdk', 'resources/beta/messages/messages.d.ts'];

/** Of no effect: hints for caches, names of items, and the states and the callers of those in a history. */
const INNER_LABELS = ['cache_control', 'prompt_cache_breakpoint', 'id', 'status', 'type'];

const JSON_ANSWER = '[[scenario:structured value={"city":"Rome"}]]';
const says = (...content) => ({ messages: [{ role: 'user', content }] });
const input = (...items) => ({ input: [...items, { role: 'user', content: 'Well?' }] });
const DOCUMENT = { type: 'document', source: { type: 'base64', media_type: 'application/pdf', data: PDF } };
const CALL = { type: 'tool_use', id: 'c', name: 'look', input: { city: 'Rome' } };
const RESULT = { type: 'tool_result', tool_use_id: 'c' };
const CITATION = { type: 'char_location', cited_text: 'x', document_index: 0, document_title: null, start_char_index: 0, end_char_index: 1 };
const calls = (call, result) => ({ tools: [OWN_TOOL], messages: [{ role: 'user', content: 'Hi' }, { role: 'assistant', content: [call] }, { role: 'user', content: [result] }] });

/**
 * By dialect: [file, type of the SDK, an object of it with what it must have, what else it may have, the request that holds it].
 * A function of the text is given it, so that what differs is the field alone.
 */
const NESTED = {
  'chat completions': [
    [CHAT, 'ChatCompletionUserMessageParam', { role: 'user', content: 'Hi' }, { name: 'Ann' }, (one) => ({ messages: [one] })],
    [CHAT, 'ChatCompletionSystemMessageParam', { role: 'system', content: 'Be brief.' }, { name: 'boss' }, (one) => ({ messages: [one, { role: 'user', content: 'Hi' }] })],
    [CHAT, 'ChatCompletionDeveloperMessageParam', { role: 'developer', content: 'Be brief.' }, { name: 'boss' }, (one) => ({ messages: [one, { role: 'user', content: 'Hi' }] })],
    [
      CHAT,
      'ChatCompletionAssistantMessageParam',
      { role: 'assistant', content: 'Yes?' },
      { name: 'Bob', audio: { id: 'audio_1' }, refusal: 'No.', function_call: { name: 'look', arguments: '{}' }, tool_calls: [{ id: 'c', type: 'function', function: { name: 'look', arguments: '{}' } }] },
      (one) => ({ tools: [TOOL], messages: [{ role: 'user', content: 'Hi' }, one, ...(one.tool_calls ? [{ role: 'tool', tool_call_id: 'c', content: 'x' }] : []), ...(one.function_call ? [{ role: 'function', name: 'look', content: 'x' }] : []), { role: 'user', content: 'Well?' }] }),
    ],
    [CHAT, 'ChatCompletionToolMessageParam', { role: 'tool', tool_call_id: 'c', content: 'x' }, {}],
    [CHAT, 'ChatCompletionContentPartText', { type: 'text', text: 'Hi' }, {}],
    [CHAT, 'ChatCompletionContentPartRefusal', { type: 'refusal', refusal: 'No.' }, {}],
    [CHAT, 'ChatCompletionContentPartImage', { type: 'image_url', image_url: {} }, {}],
    [CHAT, 'ChatCompletionContentPartImage.ImageURL', { url: `data:image/png;base64,${PNG}` }, { detail: 'low' }, (image_url) => says({ type: 'image_url', image_url })],
    [CHAT, 'ChatCompletionContentPartInputAudio', {}, { input_audio: { data: 'AAAA', format: 'wav' } }, (one) => says({ type: one.input_audio ? 'input_audio' : 'text', text: 'Hi', ...one })],
    [CHAT, 'File.File', { file_data: PDF }, { filename: 'a.pdf', file_id: 'file_1' }, (file) => says({ type: 'file', file })],
    [SHARED, 'FunctionDefinition', { name: 'look' }, { description: 'Looks.', parameters, strict: true }, (one) => ({ tools: [{ type: 'function', function: one }] })],
    [CHAT, 'ChatCompletionCustomTool.Custom', { name: 'look' }, { description: 'Looks.', format: { type: 'grammar', grammar: { definition: 'a', syntax: 'regex' } } }, (custom) => ({ tools: [{ type: 'custom', custom }] })],
    [CHAT, 'Custom.Grammar.Grammar', { definition: 'a' }, { syntax: 'regex' }, (grammar) => ({ tools: [{ type: 'custom', custom: { name: 'look', format: { type: 'grammar', grammar } } }] })],
    [CHAT, 'ChatCompletionAllowedTools', { tools: [{ type: 'function', function: { name: 'look' } }] }, { mode: 'required' }, (allowed_tools) => ({ tools: [TOOL], tool_choice: { type: 'allowed_tools', allowed_tools } })],
    [CHAT, 'ChatCompletionStreamOptions', {}, { include_usage: true, include_obfuscation: true }, (stream_options) => ({ stream: true, stream_options })],
    [SHARED, 'ResponseFormatJSONSchema.JSONSchema', { name: 'x', schema: parameters, strict: true }, { description: 'A place.' }, (json_schema) => ({ ...says({ type: 'text', text: JSON_ANSWER }), response_format: { type: 'json_schema', json_schema } })],
  ],
  'ollama chat': [
    [
      ['ollama', 'browser.d.ts'],
      'Message',
      { role: 'assistant', content: 'Yes?' },
      { thinking: 'Hm.', images: [PNG], tool_calls: [{ function: { name: 'look', arguments: {} } }], tool_name: 'look' },
      ({ tool_name, ...one }) => ({
        tools: [TOOL],
        messages: [
          { role: 'user', content: 'Hi' },
          tool_name ? { ...one, tool_calls: ['hear', 'look'].map((name) => ({ function: { name, arguments: {} } })) } : one,
          ...(tool_name ? [{ role: 'tool', tool_name, content: 'x' }, { role: 'tool', content: 'y' }] : []),
          ...(one.tool_calls ? [{ role: 'tool', content: 'x' }] : []),
          { role: 'user', content: 'Well?' },
        ],
      }),
    ],
    [
      ['ollama', 'browser.d.ts'],
      'Options',
      {},
      {
        ...Object.fromEntries(['numa', 'low_vram', 'f16_kv', 'logits_all', 'vocab_only', 'use_mmap', 'use_mlock', 'embedding_only', 'penalize_newline'].map((name) => [name, true])),
        ...Object.fromEntries(['num_ctx', 'num_batch', 'num_gpu', 'main_gpu', 'num_thread', 'num_keep', 'seed', 'num_predict', 'top_k', 'repeat_last_n', 'mirostat'].map((name) => [name, 2])),
        ...Object.fromEntries(['top_p', 'min_p', 'tfs_z', 'typical_p', 'temperature', 'repeat_penalty', 'presence_penalty', 'frequency_penalty', 'mirostat_tau', 'mirostat_eta'].map((name) => [name, 0.5])),
        stop: ['loopback'],
      },
      (options) => ({ options }),
    ],
  ],
  responses: [
    [RESPONSES, 'EasyInputMessage', { role: 'assistant', content: 'Yes?' }, { phase: 'commentary' }, (one) => input(one)],
    [RESPONSES, 'ResponseOutputMessage', { role: 'assistant', content: [{ type: 'output_text', text: 'Yes?' }] }, { phase: 'commentary' }, (one) => input({ type: 'message', ...one })],
    [RESPONSES, 'ResponseInputText', { type: 'input_text', text: 'Hi' }, {}],
    [RESPONSES, 'ResponseInputImage', { type: 'input_image', image_url: `data:image/png;base64,${PNG}` }, { detail: 'low', file_id: 'file_1' }, (one) => input({ role: 'user', content: [one] })],
    [RESPONSES, 'ResponseInputFile', { type: 'input_file', file_data: PDF }, { filename: 'a.pdf', detail: 'low', file_id: 'file_1', file_url: 'https://example.com/a.pdf' }, (one) => input({ role: 'user', content: [one] })],
    [RESPONSES, 'FunctionTool', { type: 'function', name: 'look', parameters }, { description: 'Looks.', strict: true, async: true, defer_loading: true, allowed_callers: ['programmatic'], output_schema: parameters }, (one) => ({ tools: [one] })],
    [RESPONSES, 'CustomTool', { type: 'custom', name: 'look' }, { description: 'Looks.', format: { type: 'grammar', definition: 'a', syntax: 'regex' }, async: true, defer_loading: true, allowed_callers: ['programmatic'] }, (one) => ({ tools: [one] })],
    [RESPONSES, 'NamespaceTool', { type: 'namespace', name: 'git', tools: [FLAT_TOOL] }, { description: 'Git.' }, (one) => ({ tools: [one] })],
    [RESPONSES, 'ToolChoiceAllowed', { type: 'allowed_tools', tools: [{ type: 'function', name: 'look' }] }, { mode: 'required' }, (tool_choice) => ({ tools: [FLAT_TOOL], tool_choice })],
    [RESPONSES, 'ResponseTextConfig', {}, { format: { type: 'json_object' }, verbosity: 'low' }, (text) => ({ input: JSON_ANSWER, text })],
    [RESPONSES, 'ResponseFormatTextJSONSchemaConfig', { type: 'json_schema', name: 'x', schema: parameters, strict: true }, { description: 'A place.' }, (format) => ({ input: JSON_ANSWER, text: { format } })],
    [SHARED, 'Reasoning', {}, { effort: 'high', summary: 'auto', generate_summary: 'auto', context: 'all_turns', mode: 'pro' }, (reasoning) => ({ model: 'claude-opus-4-8', input: '[[scenario:thinking]]', reasoning })],
    [RESPONSES, 'ResponseCreateParamsBase.StreamOptions', {}, { include_obfuscation: true }, (stream_options) => ({ stream: true, stream_options })],
  ],
  messages: [
    [MESSAGES, 'BetaSystemMessageParam', { role: 'system', content: 'Be brief.' }, { clear_at: 'next_user_message', output_config: { effort: 'low' } }, (one) => ({ messages: [{ role: 'user', content: 'Hi' }, one] })],
    [MESSAGES, 'BetaTextBlockParam', { type: 'text', text: 'Yes?' }, { citations: [CITATION] }, (one) => ({ messages: [{ role: 'user', content: 'Hi' }, { role: 'assistant', content: [one] }, { role: 'user', content: 'Well?' }] })],
    [MESSAGES, 'BetaImageBlockParam', { type: 'image', source: { type: 'base64', media_type: 'image/png', data: PNG } }, { transformations: { crop: true } }, (one) => says(one)],
    [MESSAGES, 'BetaRequestDocumentBlock', DOCUMENT, { citations: { enabled: true }, context: 'A letter.', title: 'a.pdf' }, (one) => says(one)],
    [MESSAGES, 'BetaSearchResultBlockParam', { type: 'search_result', source: 'x', title: 'X', content: [{ type: 'text', text: 'x' }] }, { citations: { enabled: true } }, (one) => says(one)],
    [MESSAGES, 'BetaToolUseBlockParam', CALL, { caller: { type: 'code_execution_20250825', tool_id: 'x' }, toolset_name: 'x' }, (one) => calls(one, RESULT)],
    [MESSAGES, 'BetaToolResultBlockParam', RESULT, { content: 'snow', is_error: true, toolset_name: 'x' }, (one) => calls(CALL, one)],
    [MESSAGES, 'BetaThinkingBlockParam', { type: 'thinking', thinking: 'Hm.', signature: 'c2ln' }, {}],
    [MESSAGES, 'BetaRedactedThinkingBlockParam', { type: 'redacted_thinking', data: 'c2ln' }, {}],
    [MESSAGES, 'BetaTool', { name: 'look', input_schema: parameters }, { description: 'Looks.', strict: true, eager_input_streaming: true, input_examples: [{ city: 'Rome' }], defer_loading: true, allowed_callers: ['code_execution_20250825'] }, (one) => ({ tools: [one] })],
    [MESSAGES, 'BetaToolChoiceAuto', { type: 'auto' }, { disable_parallel_tool_use: true }, (tool_choice) => ({ tools: [OWN_TOOL], tool_choice })],
    [MESSAGES, 'BetaToolChoiceAny', { type: 'any' }, { disable_parallel_tool_use: true }, (tool_choice) => ({ tools: [OWN_TOOL], tool_choice })],
    [MESSAGES, 'BetaToolChoiceTool', { type: 'tool', name: 'look' }, { disable_parallel_tool_use: true }, (tool_choice) => ({ tools: [OWN_TOOL], tool_choice })],
    [MESSAGES, 'BetaThinkingConfigEnabled', { type: 'enabled', budget_tokens: 1024 }, { display: 'omitted', block_binding: { type: 'x' } }, (thinking) => ({ max_tokens: 2000, thinking })],
    [MESSAGES, 'BetaThinkingConfigAdaptive', { type: 'adaptive' }, { display: 'omitted', block_binding: { type: 'x' } }, (thinking) => ({ max_tokens: 9000, thinking })],
    [MESSAGES, 'BetaThinkingConfigBetweenTools', {}, { type: 'between_tools' }, (thinking) => (thinking.type ? { thinking } : {})],
    [MESSAGES, 'BetaOutputConfig', {}, { effort: 'low', format: { type: 'json_schema', schema: parameters }, task_budget: { type: 'tokens', total: 1000 } }, (output_config) => ({ model: 'claude-opus-4-8', ...says({ type: 'text', text: JSON_ANSWER }), output_config })],
  ],
};

for (const [name, rows] of Object.entries(NESTED)) {
  const dialect = DIALECTS[name];
  const ask = async (t, body) => {
    const before = t.api.requests.length;
    const result = await t.send({ path: dialect.path, body: { ...dialect.base('Hi'), ...body } }).done;
    const sent = t.api.requests.slice(before).filter(({ path }) => path === '/v1/messages');
    const { response } = result.data?.at(-1) ?? { response: result.json };
    const told = response?.output ? { ...result, text: JSON.stringify(response.output) } : result; // a response repeats what it was asked
    return { result, ...outcomeOf(told, sent) };
  };

  test(`${name}: each field within a field is honoured, refused by its name, or named in x-ignored-params`, { alone: true }, async (t) => {
    const silent = [];
    for (const [file, type, base, others, request] of rows) {
      const known = [...Object.keys(base), ...Object.keys(others), ...INNER_LABELS];
      for (const field of fieldsOf(...file, type)) if (!known.includes(field)) silent.push(`${type}.${field} is not tried`);
      const without = request && (await ask(t, request(base)));
      if (without && without.result.status !== 200) silent.push(`${type}: ${without.result.text.slice(0, 160)}`);
      for (const [field, value] of Object.entries(others)) {
        const { result, sent, all } = await ask(t, request({ ...base, [field]: value }));
        const refused = result.status === 400 && blames(result, field);
        const named = result.status === 200 && ignoredOf(result).some((one) => one.endsWith(`.${field}`) || one === field);
        const honoured = result.status === 200 && (sent !== without.sent || all !== without.all);
        if (!refused && !named && !honoured) silent.push(`${type}.${field}: ${result.status} ${result.text.slice(0, 160)}`);
      }
    }
    assert.equal(silent.join('\n'), '');
  });
}

// ---- efforts, and errors in what a history holds -------------------------------------------------

/** How an effort is asked for, by dialect; `field` is its name in x-ignored-params. */
const EFFORTS = {
  'chat completions': { field: 'reasoning_effort', body: (reasoning_effort) => ({ reasoning_effort }) },
  completions: { field: 'reasoning_effort', body: (reasoning_effort) => ({ reasoning_effort }) },
  responses: { field: 'reasoning', body: (effort) => ({ reasoning: { effort } }) },
  'ollama chat': { field: 'think', body: (think) => ({ think }) },
  messages: { field: 'output_config.effort', body: (effort) => ({ output_config: { effort } }) },
};
const BUDGETS = { low: 2048, high: 8192, xhigh: 16384, max: 31999 };

test('an effort that the model does not have is told as thinking tokens, or named in x-ignored-params', async (t) => {
  const asked = [
    ['claude-sonnet-4-5-20250929', 'low'],
    ['claude-opus-4-5-20251101', 'max'],
    ['claude-sonnet-4-6', 'xhigh'],
    ['claude-opus-4-8', 'xhigh'],
    ['claude-3-7-sonnet-20250219', 'high'],
  ];
  const silent = [];
  for (const [model, effort] of asked) {
    const check = async ([name, { field, body }]) => {
      const text = t.text('plain', `${model} ${name}.`);
      const result = await t.send({ path: DIALECTS[name].path, body: { ...DIALECTS[name].base(text), model, ...body(effort) } }).done;
      assert.equal(result.status, 200, result.text);
      const { output_config: told, thinking } = t.calls().find(({ raw }) => raw.includes(`${model} ${name}.`)).body;
      const honoured = told?.effort === effort || thinking?.budget_tokens === BUDGETS[effort];
      if (honoured === ignoredOf(result).includes(field)) silent.push(`${name}, ${model}, ${effort}: ${JSON.stringify({ told, thinking })} ${ignoredOf(result)}`);
    };
    await Promise.all(Object.entries(EFFORTS).map(check));
  }
  assert.equal(silent.join('\n'), '');
});

test('an error in the arguments of a call in a history names the field, in each dialect', async (t) => {
  const deep = '['.repeat(200);
  const flat = { type: 'function', name: 'look', parameters };
  const histories = {
    'messages[1].tool_calls[0].function.arguments': ['chat completions', { messages: [{ role: 'user', content: 'Hi' }, { role: 'assistant', tool_calls: [{ id: 'c', type: 'function', function: { name: 'look', arguments: deep } }] }, { role: 'tool', tool_call_id: 'c', content: 'x' }], tools: [TOOL] }],
    'messages[1].function_call.arguments': ['chat completions', { messages: [{ role: 'user', content: 'Hi' }, { role: 'assistant', function_call: { name: 'look', arguments: deep } }, { role: 'function', name: 'look', content: 'x' }] }],
    'messages[1].content[0].input': ['messages', { messages: [{ role: 'user', content: 'Hi' }, { role: 'assistant', content: [{ type: 'tool_use', id: 'c', name: 'look', input: deep }] }, { role: 'user', content: [{ type: 'tool_result', tool_use_id: 'c', content: 'x' }] }], tools: [OWN_TOOL] }],
    'input[1].arguments': ['responses', { input: [{ role: 'user', content: 'Hi' }, { type: 'function_call', call_id: 'c', name: 'look', arguments: deep }, { type: 'function_call_output', call_id: 'c', output: 'x' }], tools: [flat] }],
  };
  for (const [field, [name, body]] of Object.entries(histories)) {
    const { status, json } = await t.send({ path: DIALECTS[name].path, body: { ...DIALECTS[name].base('Hi'), ...body } }).done;
    assert.equal(status, 400, field);
    if (name !== 'messages') assert.equal(json.error.param, field);
    assert.ok(json.error.message.startsWith(`'${field}' cannot be read: `), json.error.message);
  }
});
