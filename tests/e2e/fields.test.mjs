// Every field of the APIs' request types is honoured, refused by its name, or named in x-ignored-params. The types are the SDKs' own
// declarations, so a new version of one shows here which fields are new.

import assert from 'node:assert/strict';
import { ignoredOf } from './chat_client.mjs';
import { DEFAULT_MODEL as MODEL } from './claude_cli.mjs';
import { declarationsOf, suite } from './harness.mjs';

export const fields = suite(60_000);
const { test } = fields;

/** The names of an interface's fields in a declaration file. */
function fieldsOf(sdk, file, name) {
  const header = /\/\*\*\s*\* Header param:[^]*?\*\/\s*\w+\??:[^;]*;/g; // no part of the body
  const text = declarationsOf(sdk, file).replace(header, '').replace(/\/\*[^]*?\*\//g, '');
  const names = [];
  let depth = 0;
  for (const line of text.slice(text.search(new RegExp(`interface ${name}\\b`))).split('\n')) {
    const [, field] = /^\s+(\w+)\??:/.exec(line) ?? [];
    if (field && depth === 1) names.push(field);
    depth += line.split(/[{[(]/).length - line.split(/[}\])]/).length;
    if (depth === 0) break;
  }
  return names;
}

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
  cache_control: { type: 'ephemeral', ttl: '1h' },
  prompt_cache_key: 'me',
  prompt_cache_options: { ttl: '24h' },
  prompt_cache_retention: '24h',
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

/** What the API was asked and what the client got, without what differs each time. */
function outcomeOf({ status, text, headers }, calls) {
  const api = calls.map(({ body: { metadata, ...sent } }) => sent);
  const got = text
    .replace(/"(id|item_id|response_id|system_fingerprint|obfuscation)":"[^"]*"/g, '')
    .replace(/"(created|created_at|completed_at|cost)":[\d.e-]+/g, '')
    .replace(/"x_[^}]*/g, '');
  return { sent: JSON.stringify(api), all: JSON.stringify({ status, type: headers['content-type'], api, got }) };
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
      const refused = [400, 404].includes(result.status) && result.text.includes(field);
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
