// The four dialects as a soak speaks them: bodies out of a neutral conversation, answers and errors back into neutral parts.

import assert from 'node:assert/strict';
import { assertError, assertKeys } from '../e2e/chat.test.mjs';
import { read as readChat } from '../e2e/chat_client.mjs';
import { ANTHROPIC, readCompletion, readMessage, readResponse } from '../e2e/dialect_client.mjs';

const SCHEMA = { type: 'object', properties: { city: { type: 'string' } } };
const ABOUT = 'Looks up';

/** An error body in OpenAI's shape: what it is called. */
function openaiError(json) {
  assertKeys(json, ['error']);
  assertError(json.error);
  return json.error.code ?? json.error.type;
}

function anthropicError(json) {
  assertKeys(json, ['type', 'error', 'request_id']);
  assertKeys(json.error, ['type', 'message']);
  assert.equal(json.type, 'error');
  assert.ok(json.error.message);
  return json.error.type;
}

/** The error of a stream of data lines that ends in [DONE]; undefined when there is none. */
function openaiInBand({ data }) {
  const last = data.at(-2);
  if (data.at(-1) !== '[DONE]' || !last?.error) return undefined;
  assertError(last.error);
  return last.error.code ?? last.error.type;
}

/** `{role, text, calls, results}` as OpenAI's messages. */
const openaiMessages = (messages) =>
  messages.flatMap(({ role, text, calls, results }) => {
    if (results) return results.map(({ id, text: content }) => ({ role: 'tool', tool_call_id: id, content }));
    if (!calls) return [{ role, content: text }];
    const told = calls.map(({ id, name, args }) => ({
      id,
      type: 'function',
      function: { name, arguments: JSON.stringify(args) },
    }));
    return [{ role, content: text || null, tool_calls: told }];
  });

const anthropicMessages = (messages) =>
  messages.map(({ role, text, calls, results }) => {
    if (results)
      return {
        role: 'user',
        content: results.map(({ id, text: content }) => ({ type: 'tool_result', tool_use_id: id, content })),
      };
    if (!calls) return { role, content: text };
    const uses = calls.map(({ id, name, args }) => ({ type: 'tool_use', id, name, input: args }));
    return { role, content: [...(text ? [{ type: 'text', text }] : []), ...uses] };
  });

const responsesItems = (messages) =>
  messages.flatMap(({ role, text, calls, results }) => {
    if (results) return results.map(({ id, text: output }) => ({ type: 'function_call_output', call_id: id, output }));
    const said = text ? [{ role, content: [{ type: role === 'user' ? 'input_text' : 'output_text', text }] }] : [];
    const told = (calls ?? []).map(({ id, name, args }) => ({
      type: 'function_call',
      call_id: id,
      name,
      arguments: JSON.stringify(args),
    }));
    return [...said, ...told];
  });

/**
 * By dialect: `path`; `body({model, system, messages, stream, tool, n, session, previous})`; `read(result)` to {texts, calls, usage:
 * [input, output], id}, which throws when the answer breaks a rule; `error(json)` and `inBand(result)` to the name of an error.
 */
export const DIALECTS = {
  chat: {
    path: '/v1/chat/completions',
    headers: {},
    body: ({ model, system, messages, stream, tool, n, session }) => ({
      model,
      messages: [...(system ? [{ role: 'system', content: system }] : []), ...openaiMessages(messages)],
      ...(stream ? { stream, stream_options: { include_usage: true } } : {}),
      ...(tool
        ? { tools: [{ type: 'function', function: { name: tool, description: ABOUT, parameters: SCHEMA } }] }
        : {}),
      ...(n > 1 ? { n } : {}),
      ...(session ? { session_id: session } : {}),
    }),
    read(result) {
      const { choices, usage, calls } = readChat(result);
      return {
        texts: choices.map(({ message }) => message.content ?? ''),
        calls: calls.map(({ id, function: { name, arguments: args } }) => ({ id, name, args: JSON.parse(args) })),
        usage: [usage.prompt_tokens, usage.completion_tokens],
      };
    },
    error: openaiError,
    inBand: openaiInBand,
  },

  completions: {
    path: '/v1/completions',
    headers: {},
    single: true, // no history and no tools
    body: ({ model, messages, stream, n }) => ({
      model,
      prompt: messages.at(-1).text,
      ...(stream ? { stream, stream_options: { include_usage: true } } : {}),
      ...(n > 1 ? { n } : {}),
    }),
    read(result) {
      const { choices, usage } = readCompletion(result);
      return {
        texts: choices.map(({ text }) => text),
        calls: [],
        usage: [usage.prompt_tokens, usage.completion_tokens],
      };
    },
    error: openaiError,
    inBand: openaiInBand,
  },

  responses: {
    path: '/v1/responses',
    headers: {},
    chains: true,
    body: ({ model, system, messages, stream, tool, previous }) => ({
      model,
      instructions: system,
      input: responsesItems(messages),
      ...(stream ? { stream } : {}),
      ...(tool
        ? { tools: [{ type: 'function', name: tool, description: ABOUT, parameters: SCHEMA, strict: false }] }
        : {}),
      ...(previous ? { previous_response_id: previous } : {}),
    }),
    read(result) {
      const { id, text, calls, usage } = readResponse(result);
      return {
        id,
        texts: [text],
        calls: calls.map(({ call_id, name, arguments: args }) => ({ id: call_id, name, args: JSON.parse(args) })),
        usage: [usage.input_tokens, usage.output_tokens],
      };
    },
    error: openaiError,
    inBand({ data }) {
      const last = data.filter((one) => one !== '[DONE]').at(-1);
      if (last?.type !== 'response.failed') return undefined;
      assert.ok(last.response.error.message);
      return last.response.error.code;
    },
  },

  messages: {
    path: '/v1/messages',
    headers: ANTHROPIC,
    body: ({ model, system, messages, stream, tool, session }) => ({
      model,
      max_tokens: 100_000,
      system,
      messages: anthropicMessages(messages),
      ...(stream ? { stream } : {}),
      ...(tool ? { tools: [{ name: tool, description: ABOUT, input_schema: SCHEMA }] } : {}),
      ...(session ? { session_id: session } : {}),
    }),
    read(result) {
      const { text, calls, usage } = readMessage(result);
      return {
        texts: [text],
        calls: calls.map(({ id, name, input }) => ({ id, name, args: input })),
        usage: [
          usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens,
          usage.output_tokens,
        ],
      };
    },
    error: anthropicError,
    inBand({ data }) {
      const last = data.at(-1);
      return last?.type === 'error' ? anthropicError(last) : undefined;
    },
  },
};

/** An event stream as the harness's `send` reads it. */
export function asResult({ status, headers, text }, times) {
  const result = { status, headers, text, ...times };
  if (/event-stream/.test(headers['content-type'] ?? '')) {
    result.frames = text
      .split('\n\n')
      .filter((frame) => frame.trim())
      .map((frame) => ({
        at: times.at,
        event: /^event: ?(.*)$/m.exec(frame)?.[1],
        data: /^data: ?(.*)$/m.exec(frame)?.[1],
      }));
    result.data = result.frames
      .filter(({ data }) => data !== undefined)
      .map(({ data }) => (data === '[DONE]' ? data : JSON.parse(data)));
  } else {
    try {
      result.json = JSON.parse(text);
    } catch {
      /* the reader says so */
    }
  }
  return result;
}
