// [09] openai_chat: answers, from events to bytes, streamed and whole.
#include <regex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;
using openai_chat::chat_reply;
using openai_chat::reply_style;
using strings = std::vector<std::string>;

namespace {

constexpr std::int64_t created = 1'795'370'974;

reply_style telling_usage(bool include_usage) {
  reply_style style;
  style.include_usage = include_usage;
  return style;
}

std::string stream_of(const std::vector<event>& events, const reply_style& style) {
  chat_reply writer({"abc", created}, style);
  std::string out;
  for (const auto& what : events) writer.write(0, what, out);
  return out;
}

std::string stream_of(const std::vector<event>& events, bool include_usage) {
  return stream_of(events, telling_usage(include_usage));
}

std::string whole_of(const std::vector<event>& events, const reply_style& style = {}) {
  const chat_reply writer({"abc", created}, style);
  collector answer;
  for (const auto& what : events) answer.add(what);
  return writer.render({answer.result()});
}

token_usage some_usage() {
  token_usage usage;
  usage.input = 100;
  usage.cache_read = 30;
  usage.cache_write = 12;
  usage.cache_write_5m = 2;
  usage.cache_write_1h = 10;
  usage.output = 20;
  usage.thinking = 7;
  return usage;
}

std::vector<event> hello(stop_reason reason = stop_reason::end_turn) {
  return {turn_started{"model-1", {}}, block_started{0, block_kind::text, {}, {}},
          block_delta{0, "Hel"},       block_delta{0, "lo \"you\"\n"},
          block_stopped{0, {}},        turn_stopped{reason, {}, some_usage()}};
}

const std::string head =
    R"({"id":"chatcmpl-abc","object":"chat.completion.chunk","created":1795370974,)"
    R"("model":"model-1","system_fingerprint":null,)";

std::string chunk(const std::string& delta, const std::string& reason) {
  return "data: " + head + R"("choices":[{"index":0,"delta":)" + delta +
         R"(,"logprobs":null,"finish_reason":)" + reason + "}]}\n\n";
}

const std::string first_chunk = chunk(R"({"role":"assistant","content":""})", "null");

const std::string usage_json =
    R"({"prompt_tokens":142,"completion_tokens":20,"total_tokens":162,)"
    R"("prompt_tokens_details":{"cached_tokens":30,"cache_write_tokens":12},)"
    R"("completion_tokens_details":{"reasoning_tokens":7},)"
    R"("cache_read_input_tokens":30,"cache_creation_input_tokens":12,)"
    R"("cache_creation":{"ephemeral_5m_input_tokens":2,"ephemeral_1h_input_tokens":10}})";

}  // namespace

TEST_CASE("chat stream: the exact bytes of an answer") {
  const auto expected = first_chunk + chunk(R"({"content":"Hel"})", "null") +
                        chunk(R"({"content":"lo \"you\"\n"})", "null") + chunk("{}", R"("stop")");
  CHECK(stream_of(hello(), false) == expected + "data: [DONE]\n\n");
  const std::regex end_of_chunk(R"((finish_reason":\S+\]))");
  CHECK(stream_of(hello(), true) ==
        std::regex_replace(expected, end_of_chunk, R"($1,"usage":null)") + "data: " + head +
            R"("choices":[],"usage":)" + usage_json + "}\n\ndata: [DONE]\n\n");
}

TEST_CASE("chat whole: the exact bytes of an answer") {
  CHECK(whole_of(hello()) ==
        R"({"id":"chatcmpl-abc","object":"chat.completion","created":1795370974,)"
        R"("model":"model-1","system_fingerprint":null,"choices":[{"index":0,)"
        R"("message":{"role":"assistant","content":"Hello \"you\"\n","refusal":null,)"
        R"("annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":)" +
            usage_json + "}");
}

TEST_CASE("chat: a custom tool is called with its text, whole and streamed") {
  reply_style style;
  style.freeform = {"patch"};
  std::vector<event> turn{turn_started{"model-1", {}}};
  turn.push_back(block_started{0, block_kind::tool_call, "t1", "patch"});
  for (const char* piece : {R"({"inp)", R"(ut":"a\nb)", R"("})"})
    turn.push_back(block_delta{0, piece});
  turn.push_back(block_stopped{0, {}});
  turn.push_back(turn_stopped{stop_reason::tool_use, {}, {}});
  const auto whole = json::parse(whole_of(turn, style))["choices"][0];
  CHECK(dump(whole["message"]["tool_calls"]) ==
        R"([{"id":"t1","type":"custom","custom":{"name":"patch","input":"a\nb"}}])");
  CHECK(whole["finish_reason"] == "tool_calls");
  chat_reply writer({"abc", created}, style);
  std::string out;
  for (const auto& what : turn) writer.write(0, what, out);
  const auto answer = test::read_chat_stream(out, 1);
  CHECK_MESSAGE(answer.problem.empty(), answer.problem);
  REQUIRE(answer.calls.size() == 1);
  CHECK(answer.calls[0].id + answer.calls[0].name == "t1patch");
  CHECK(answer.calls[0].arguments == "a\nb");
  CHECK(out.find(R"("type":"custom")") != std::string::npos);
}

TEST_CASE("chat: cost is told in dollars when it is known") {
  auto usage = some_usage();
  CHECK_FALSE(openai_chat::render_usage(usage).contains("cost"));
  usage.cost_usd = 0.000878;
  CHECK(openai_chat::render_usage(usage)["cost"].get<double>() == 0.000878);
  usage.cost_usd = 0.0;
  CHECK(openai_chat::render_usage(usage)["cost"].get<double>() == 0.0);
}

TEST_CASE("chat: every stop reason has OpenAI's word, streamed and whole") {
  const std::vector<std::pair<stop_reason, std::string>> words = {
      {stop_reason::end_turn, "stop"},     {stop_reason::stop_sequence, "stop"},
      {stop_reason::max_tokens, "length"}, {stop_reason::tool_use, "tool_calls"},
      {stop_reason::turn_limit, "length"}, {stop_reason::refusal, "content_filter"}};
  for (const auto& each : words) {
    const auto& reason = each.first;
    const auto& word = each.second;
    CAPTURE(word);
    CHECK(openai_chat::finish_reason(reason) == word);
    CHECK(test::read_chat_stream(stream_of(hello(reason), false)).finish_reason == word);
    CHECK(json::parse(whole_of(hello(reason)))["choices"][0]["finish_reason"] == word);
  }
}

TEST_CASE("chat: why the model refused is told as the refusal, streamed and whole") {
  auto told = hello(stop_reason::refusal);
  std::get<turn_stopped>(told.back()).api =
      json::parse(R"({"stop_details":{"type":"refusal","explanation":"Not that."}})");
  CHECK(stream_of(told, false)
            .find(chunk(R"({"refusal":"Not that."})", "null") +
                  chunk("{}", R"("content_filter")")) != std::string::npos);
  CHECK(json::parse(whole_of(told))["choices"][0]["message"]["refusal"] == "Not that.");
}

TEST_CASE("chat stream: each event is written at once, and nothing is written twice") {
  chat_reply writer({"abc", created}, telling_usage(true));
  const auto events = hello();
  const std::vector<std::size_t> frames = {1, 0, 1, 1, 0, 3};
  for (std::size_t i = 0; i < events.size(); ++i) {
    std::string out;
    writer.write(0, events[i], out);
    std::size_t count = 0;
    for (auto at = out.find("data: "); at != std::string::npos;
         at = out.find("\n\ndata: ", at + 1)) {
      ++count;
    }
    CAPTURE(i);
    CHECK(count == frames[i]);
  }
}

TEST_CASE("chat stream: what was in the buffer before stays") {
  chat_reply writer({"abc", created}, reply_style());
  std::string out = "before";
  writer.write(0, turn_started{"model-1", {}}, out);
  writer.write_keep_alive(out);
  CHECK(out == "before" + first_chunk + ": keep-alive\n\n");
}

TEST_CASE("chat stream: a keep-alive is a comment, also before the first event") {
  chat_reply writer({"abc", created}, reply_style());
  std::string out;
  writer.write_keep_alive(out);
  for (const auto& what : hello()) writer.write(0, what, out);
  const auto answer = test::read_chat_stream(out);
  CHECK(answer.problem.empty());
  CHECK(answer.comments == 1);
}

TEST_CASE("chat: text, thinking and tool calls each have their own place, streamed and whole") {
  const std::vector<event> events = {turn_started{"m", {}},
                                     block_started{0, block_kind::thinking, {}, {}},
                                     block_delta{0, "a thought"},
                                     block_stopped{0, "sig"},
                                     block_started{1, block_kind::text, {}, {}},
                                     block_delta{1, "Hello"},
                                     block_stopped{1, {}},
                                     block_started{2, block_kind::tool_call, "t", "look"},
                                     block_delta{2, "{\"a\":1}"},
                                     block_stopped{2, {}},
                                     block_started{3, block_kind::text, {}, {}},
                                     block_delta{3, " you"},
                                     block_stopped{3, {}},
                                     turn_stopped{}};
  const auto streamed = test::read_chat_stream(stream_of(events, true));
  CHECK(streamed.problem == "");
  CHECK(streamed.content == "Hello you");
  CHECK(streamed.reasoning == "a thought");
  REQUIRE(streamed.calls.size() == 1);
  CHECK(streamed.calls[0].id == "t");
  CHECK(streamed.calls[0].name == "look");
  CHECK(streamed.calls[0].arguments == "{\"a\":1}");
  const auto said = json::parse(whole_of(events))["choices"][0]["message"];
  CHECK(said["content"] == "Hello you");
  CHECK(said["reasoning_content"] == "a thought");
  REQUIRE(said["tool_calls"].size() == 1);
  CHECK(dump(said["tool_calls"][0]) ==
        R"({"id":"t","type":"function","function":{"name":"look","arguments":"{\"a\":1}"}})");
}

TEST_CASE("chat: an answer without a word has empty content and a finish_reason") {
  const std::vector<event> events = {turn_started{"m", {}}, turn_stopped{}};
  const auto answer = test::read_chat_stream(stream_of(events, false));
  CHECK(answer.problem.empty());
  CHECK(answer.role == "assistant");
  CHECK(answer.finish_reason == "stop");
  CHECK(json::parse(whole_of(events))["choices"][0]["message"]["content"] == "");
}

TEST_CASE("chat stream: a failure on the way is told in-band, and then the stream ends") {
  std::vector<event> events = hello();
  events.pop_back();
  api_error failure(error_kind::overloaded, "Overloaded \xFF");
  events.emplace_back(turn_failed{failure});
  const auto bytes = stream_of(events, true);
  const auto answer = test::read_chat_stream(bytes);
  CHECK(answer.problem.empty());
  CHECK(answer.content == "Hello \"you\"\n");
  CHECK(answer.finish_reason.empty());
  CHECK(answer.usage.is_null());
  CHECK(answer.error["message"] == "Overloaded \xEF\xBF\xBD");
  CHECK(answer.error["type"] == "server_error");
  const std::string end =
      R"(data: {"error":{"message":"Overloaded �","type":"server_error","param":null,)"
      R"("code":"overloaded"}})"
      "\n\ndata: [DONE]\n\n";
  CHECK(bytes.substr(bytes.size() - end.size()) == end);
}

TEST_CASE("chat error: message, type, param and code are always there") {
  const std::vector<std::pair<error_kind, std::pair<std::string, json>>> kinds = {
      {error_kind::invalid_request, {"invalid_request_error", nullptr}},
      {error_kind::authentication, {"authentication_error", "invalid_api_key"}},
      {error_kind::permission, {"permission_error", nullptr}},
      {error_kind::not_found, {"not_found_error", "not_found"}},
      {error_kind::method_not_allowed, {"invalid_request_error", "method_not_allowed"}},
      {error_kind::too_large, {"invalid_request_error", "request_too_large"}},
      {error_kind::unsupported_coding, {"invalid_request_error", "unsupported_content_encoding"}},
      {error_kind::rate_limited, {"rate_limit_error", "rate_limit_exceeded"}},
      {error_kind::internal, {"server_error", "internal_error"}},
      {error_kind::upstream_failed, {"server_error", "upstream_error"}},
      {error_kind::bad_gateway, {"server_error", "bad_gateway"}},
      {error_kind::unavailable, {"server_error", "unavailable"}},
      {error_kind::overloaded, {"server_error", "overloaded"}},
      {error_kind::timed_out, {"server_error", "timeout"}}};
  for (const auto& each : kinds) {
    const auto& kind = each.first;
    const auto& words = each.second;
    const auto body = json::parse(openai_chat::render_error(api_error(kind, "what")));
    CAPTURE(words.first);
    REQUIRE(body.size() == 1);
    REQUIRE(body["error"].size() == 4);
    CHECK(body["error"]["message"] == "what");
    CHECK(body["error"]["type"] == words.first);
    CHECK(body["error"]["param"].is_null());
    CHECK(body["error"]["code"] == words.second);
  }
}

TEST_CASE("chat error: the exact bytes, with a field and a code") {
  auto error = bad_field("messages[0].role", "is \"wrong\"");
  error.code = "invalid_type";
  CHECK(openai_chat::render_error(error) ==
        R"({"error":{"message":"'messages[0].role' is \"wrong\"","type":"invalid_request_error",)"
        R"("param":"messages[0].role","code":"invalid_type"}})");
}

TEST_CASE("chat: the parsed request's reply writes with the request's own wishes") {
  const auto reply_to = [](const std::string& fields) {
    const auto body =
        parse_body(R"({"messages":[{"role":"user","content":"Hi"}],"stream":true)" + fields + "}");
    auto parsed = openai_chat::dialect.parse(body, {"abc", created});
    std::string out;
    for (const auto& what : hello()) parsed.reply->write(0, what, out);
    return out;
  };
  CHECK(reply_to("") == stream_of(hello(), false));
  CHECK(reply_to(R"(,"stream_options":null)") == stream_of(hello(), false));
  CHECK(reply_to(R"(,"stream_options":{})") == stream_of(hello(), false));
  CHECK(reply_to(R"(,"stream_options":{"include_usage":null})") == stream_of(hello(), false));
  CHECK(reply_to(R"(,"stream_options":{"include_usage":false})") == stream_of(hello(), false));
  CHECK(reply_to(R"(,"stream_options":{"include_usage":true})") == stream_of(hello(), true));
  CHECK(openai_chat::dialect.render_error(api_error(error_kind::internal, "x"), "") ==
        openai_chat::render_error(api_error(error_kind::internal, "x")));
}

// ---- tool calls, reasoning and choices ----------------------------------------------------------

namespace {

/// One call of `look` between the given numbers of block and call.
std::vector<event> call_block(std::size_t index, const std::string& id, const strings& arguments) {
  std::vector<event> events = {block_started{index, block_kind::tool_call, id, "look"}};
  for (const auto& piece : arguments) events.emplace_back(block_delta{index, piece});
  events.emplace_back(block_stopped{index, {}});
  return events;
}

std::vector<event> operator+(std::vector<event> events, const std::vector<event>& more) {
  events.insert(events.end(), more.begin(), more.end());
  return events;
}

std::vector<event> said_block(std::size_t index, block_kind kind, const std::string& words) {
  return {block_started{index, kind, {}, {}}, block_delta{index, words}, block_stopped{index, {}}};
}

const std::vector<event> begun = {turn_started{"model-1", {}}};
const std::vector<event> waits = {turn_stopped{stop_reason::tool_use, {}, some_usage()}};

std::vector<event> two_calls() {
  return begun + call_block(0, "t1", {"{\"a\"", ":1}"}) + call_block(1, "t2", {"{}"}) + waits;
}

reply_style legacy() {
  reply_style style;
  style.legacy_functions = true;
  return style;
}

reply_style of_choices(std::size_t count) {
  auto style = telling_usage(true);
  style.choices = count;
  return style;
}

json message_of(const std::vector<event>& events, const reply_style& style = {}) {
  return json::parse(whole_of(events, style))["choices"][0]["message"];
}

}  // namespace

TEST_CASE("chat stream: the exact bytes of two tool calls") {
  const auto call = [](const std::string& one) {
    return chunk(R"({"tool_calls":[)" + one + "]}", "null");
  };
  CHECK(stream_of(two_calls(), false) ==
        first_chunk +
            call(R"({"index":0,"id":"t1","type":"function",)"
                 R"("function":{"name":"look","arguments":""}})") +
            call(R"({"index":0,"function":{"arguments":"{\"a\""}})") +
            call(R"({"index":0,"function":{"arguments":":1}"}})") +
            call(R"({"index":1,"id":"t2","type":"function",)"
                 R"("function":{"name":"look","arguments":""}})") +
            call(R"({"index":1,"function":{"arguments":"{}"}})") + chunk("{}", R"("tool_calls")") +
            "data: [DONE]\n\n");
}

TEST_CASE("chat: calls after thinking and text are numbered among themselves") {
  const auto events = begun + said_block(0, block_kind::thinking, "hm") +
                      said_block(1, block_kind::text, "Let me look.") +
                      call_block(2, "t1", {"{}"}) + call_block(3, "t2", {"{}"}) + waits;
  const auto answer = test::read_chat_stream(stream_of(events, true));
  CHECK(answer.problem == "");
  CHECK(answer.reasoning == "hm");
  CHECK(answer.content == "Let me look.");
  REQUIRE(answer.calls.size() == 2);
  CHECK(answer.calls[1].id == "t2");
  CHECK(answer.finish_reason == "tool_calls");
}

TEST_CASE("chat whole: beside calls an answer without a word has no content, else it has") {
  CHECK(message_of(two_calls())["content"].is_null());
  CHECK(message_of(begun + said_block(0, block_kind::text, "x") + call_block(1, "t", {"{}"}) +
                   waits)["content"] == "x");
  CHECK(message_of(begun + said_block(0, block_kind::thinking, "x") + waits)["content"] == "");
  CHECK_FALSE(message_of(hello()).contains("tool_calls"));
  CHECK_FALSE(message_of(hello()).contains("reasoning_content"));
}

TEST_CASE("chat: thinking and what an agent does are reasoning, in their order") {
  const auto events =
      begun + said_block(0, block_kind::thinking, "hm ") +
      said_block(1, block_kind::activity, "Bash {} ") + said_block(2, block_kind::text, "Done.") +
      said_block(3, block_kind::thinking, "well") + std::vector<event>{turn_stopped{}};
  const auto answer = test::read_chat_stream(stream_of(events, false));
  CHECK(answer.problem == "");
  CHECK(answer.reasoning == "hm Bash {} well");
  CHECK(answer.content == "Done.");
  CHECK(message_of(events)["reasoning_content"] == "hm Bash {} well");
  CHECK(message_of(events)["content"] == "Done.");
}

TEST_CASE("chat: a client of the old kind is told one function_call and its finish_reason") {
  const auto events =
      begun + said_block(0, block_kind::text, "x") + call_block(1, "t1", {"{\"a\"", ":1}"}) + waits;
  const auto streamed = test::read_chat_stream(stream_of(events, legacy()));
  CHECK(streamed.problem == "");
  CHECK(streamed.calls.empty());
  REQUIRE(streamed.legacy.size() == 1);
  CHECK(streamed.legacy[0].name == "look");
  CHECK(streamed.legacy[0].arguments == "{\"a\":1}");
  CHECK(streamed.finish_reason == "function_call");
  const auto said = message_of(events, legacy());
  CHECK_FALSE(said.contains("tool_calls"));
  CHECK(dump(said["function_call"]) == R"({"name":"look","arguments":"{\"a\":1}"})");
  CHECK(json::parse(whole_of(events, legacy()))["choices"][0]["finish_reason"] == "function_call");
  CHECK(json::parse(whole_of(hello(), legacy()))["choices"][0]["finish_reason"] == "stop");
}

TEST_CASE("chat stream: choices are told as they come, each by its index, usage once") {
  chat_reply writer({"abc", created}, of_choices(3));
  std::string out;
  const auto other = begun + said_block(0, block_kind::text, "other") +
                     std::vector<event>{turn_stopped{stop_reason::max_tokens, {}, some_usage()}};
  const auto calls = two_calls();
  // One event of each in turn; the shorter ones end early.
  for (std::size_t i = 0; i < calls.size(); ++i) {
    CHECK(out.find("[DONE]") == std::string::npos);
    CHECK(out.find("\"usage\":{") == std::string::npos);
    if (i < hello().size()) writer.write(0, hello()[i], out);
    writer.write(1, calls[i], out);
    if (i < other.size()) writer.write(2, other[i], out);
  }
  const auto answer = test::read_chat_stream(out, 3);
  REQUIRE(answer.problem == "");
  CHECK(answer.choices[0].content == "Hello \"you\"\n");
  CHECK(answer.choices[0].finish_reason == "stop");
  CHECK(answer.choices[1].calls.size() == 2);
  CHECK(answer.choices[1].finish_reason == "tool_calls");
  CHECK(answer.choices[2].content == "other");
  CHECK(answer.choices[2].finish_reason == "length");
  CHECK(answer.usage["prompt_tokens"] == 3 * 142);
  CHECK(answer.usage["completion_tokens"] == 3 * 20);
  CHECK(answer.usage["completion_tokens_details"]["reasoning_tokens"] == 3 * 7);
}

TEST_CASE("chat whole: choices by index, tokens and cost summed") {
  const auto collected = [](const std::vector<event>& events) {
    collector answer;
    for (const auto& what : events) answer.add(what);
    return answer.result();
  };
  auto first = collected(hello());
  auto second = collected(two_calls());
  first.usage.cost_usd = 0.25;
  second.usage.cost_usd = 0.5;
  const chat_reply writer({"abc", created}, of_choices(2));
  const auto whole = json::parse(writer.render({first, second}));
  REQUIRE(whole["choices"].size() == 2);
  CHECK(whole["choices"][0]["index"] == 0);
  CHECK(whole["choices"][0]["message"]["content"] == "Hello \"you\"\n");
  CHECK(whole["choices"][1]["index"] == 1);
  CHECK(whole["choices"][1]["message"]["tool_calls"].size() == 2);
  CHECK(whole["choices"][1]["finish_reason"] == "tool_calls");
  CHECK(whole["usage"]["prompt_tokens"] == 2 * 142);
  CHECK(whole["usage"]["total_tokens"] == 2 * 162);
  CHECK(whole["usage"]["cost"] == 0.75);
}

TEST_CASE("chat stream: the failure of one choice ends them all") {
  chat_reply writer({"abc", created}, of_choices(2));
  std::string out;
  writer.write(0, hello()[0], out);
  writer.write(1, turn_failed{api_error(error_kind::overloaded, "Overloaded")}, out);
  const auto answer = test::read_chat_stream(out, 2);
  CHECK(answer.problem == "");
  CHECK(answer.error["message"] == "Overloaded");
}

TEST_CASE("chat: the parsed request decides on choices and the kind of calls") {
  const auto stream = [](const std::string& fields, const std::vector<event>& events,
                         std::size_t choices) {
    auto parsed = openai_chat::parse(
        parse_body(R"({"messages":[{"role":"user","content":"Hi"}],)" + fields + "}"),
        {"abc", created});
    std::string out;
    for (std::size_t i = 0; i < choices; ++i) {
      for (const auto& what : events) parsed.reply->write(i, what, out);
    }
    return test::read_chat_stream(out, choices);
  };
  const auto two = stream(R"("n":2)", hello(), 2);
  CHECK(two.problem == "");
  CHECK(two.choices[1].content == "Hello \"you\"\n");
  const auto call = begun + call_block(0, "t", {"{}"}) + waits;
  CHECK(stream(R"("functions":[{"name":"look"}])", call, 1).legacy.size() == 1);
  CHECK(stream(R"("tools":[])", call, 1).calls.size() == 1);
}

// ---- what comes back ----------------------------------------------------------------------------

namespace {

json parsed_message(const std::string& whole) {
  return json::parse(whole)["choices"][0]["message"];
}

/// The request that goes on after an answer, as a client writes it.
turn_request next_request(const json& said) {
  json messages = json::array({json::object({{"role", "user"}, {"content", "q"}}), said});
  if (said.contains("tool_calls")) {
    for (const auto& call : said["tool_calls"]) {
      messages.push_back(
          json::object({{"role", "tool"}, {"tool_call_id", call["id"]}, {"content", "r"}}));
    }
  } else {
    messages.push_back(json::object({{"role", "user"}, {"content", "more"}}));
  }
  return openai_chat::parse(json::object({{"messages", messages}}), {"id", 1}).turns.front();
}

}  // namespace

TEST_CASE("chat: what a client sends back of an answer is the conversation that a process holds") {
  CAPTURE(test::seed());
  test::generator random(12);
  const std::vector<std::string> inputs = {"{}", R"({"b":1,"a":[1.0,"é"]})", R"({"a":{"c":null}})",
                                           R"({ "x" : "\u00e9\/" })"};
  for (int i = 0; i < 500; ++i) {
    auto events = begun;
    std::size_t blocks = 0;
    if (random.chance(50)) events = events + said_block(blocks++, block_kind::thinking, "hm");
    const auto words = random.words(4);
    const bool silent = text::trim(words).empty();
    if (!silent) events = events + said_block(blocks++, block_kind::text, words);
    for (std::size_t n = random.below(3) + (silent ? 1 : 0); n > 0; --n) {
      const auto id = "toolu_" + std::to_string(n);
      events = events + call_block(blocks++, id, {random.pick(inputs)});
    }
    events.emplace_back(turn_stopped{});
    collector answer;
    for (const auto& what : events) answer.add(what);
    turn_request asked;
    asked.messages = {message{role::user, {text_part{"q"}}}};
    auto held = make_trace(asked);
    append_message(held, make_reply(answer.result()), {});
    const auto said = parsed_message(whole_of(events));
    CAPTURE(dump(said));
    const auto next = make_trace(next_request(said));
    REQUIRE(next.ends.size() == 3);
    REQUIRE(next.words.substr(0, next.ends[1]) == held.words);
  }
}

namespace {

token_usage random_usage(test::generator& random) {
  token_usage usage;
  const auto count = [&] { return static_cast<std::int64_t>(random.below(100'000)); };
  usage.input = count();
  usage.cache_read = count();
  usage.cache_write_5m = count();
  usage.cache_write_1h = count();
  usage.cache_write = usage.cache_write_5m + usage.cache_write_1h;
  usage.output = count();
  if (random.chance(50)) usage.cost_usd = static_cast<double>(random.below(1'000)) / 997.0;
  return usage;
}

/// A turn that keeps the grammar and is otherwise anything.
std::vector<event> random_turn(test::generator& random, bool may_fail) {
  const std::vector<block_kind> kinds = {block_kind::text, block_kind::text, block_kind::thinking,
                                         block_kind::activity, block_kind::tool_call};
  const std::vector<stop_reason> reasons = {stop_reason::end_turn, stop_reason::max_tokens,
                                            stop_reason::stop_sequence, stop_reason::turn_limit,
                                            stop_reason::refusal};
  std::vector<event> events = {turn_started{"model-" + std::to_string(random.below(9)), {}}};
  const std::size_t blocks = random.below(5);
  bool calls = false;
  for (std::size_t i = 0; i < blocks; ++i) {
    const auto kind = random.pick(kinds);
    const bool call = kind == block_kind::tool_call;
    calls = calls || call;
    const auto number = std::to_string(i);
    events.emplace_back(block_started{i, kind, call ? "id" + number : "", call ? "f" : ""});
    if (call) events.emplace_back(block_delta{i, "{"});
    for (std::size_t n = random.below(6); n > 0; --n) {
      auto words = random.words(4) + (random.chance(5) ? random.bytes(5) : "");
      if (!words.empty()) events.emplace_back(block_delta{i, text::repair_utf8(words)});
    }
    events.emplace_back(block_stopped{i, "signature"});
  }
  const bool fails = may_fail && random.chance(30);
  if (fails) {
    events.resize(random.between(1, events.size()));
    events.emplace_back(turn_failed{api_error(error_kind::upstream_failed, random.words(5))});
  } else {
    const auto reason = calls ? stop_reason::tool_use : random.pick(reasons);
    events.emplace_back(turn_stopped{reason, "END", random_usage(random)});
  }
  return events;
}

void check_same_calls(const std::vector<test::chat_call>& calls, const test::json& said) {
  const auto told = said.value("tool_calls", test::json::array());
  REQUIRE(told.size() == calls.size());
  for (std::size_t i = 0; i < calls.size(); ++i) {
    REQUIRE(told[i]["id"] == calls[i].id);
    REQUIRE(told[i]["type"] == "function");
    REQUIRE(told[i]["function"]["name"] == calls[i].name);
    REQUIRE(told[i]["function"]["arguments"] == calls[i].arguments);
  }
}

}  // namespace

TEST_CASE("chat: what a stream adds up to is what the whole answer says, for any turn") {
  CAPTURE(test::seed());
  test::generator random(10);
  for (int i = 0; i < 2'000; ++i) {
    const auto events = random_turn(random, false);
    REQUIRE(test::grammar_problem(events) == "");
    const bool include_usage = random.chance(50);
    const auto bytes = stream_of(events, include_usage);
    CAPTURE(bytes);
    const auto answer = test::read_chat_stream(bytes);
    REQUIRE(answer.problem == "");
    const auto whole = nlohmann::json::parse(whole_of(events));
    const auto& choice = whole["choices"][0];
    REQUIRE(answer.id == whole["id"]);
    REQUIRE(answer.created == whole["created"]);
    REQUIRE(answer.model == whole["model"]);
    REQUIRE(answer.role == choice["message"]["role"]);
    const auto& content = choice["message"]["content"];
    REQUIRE(answer.content == (content.is_null() ? "" : content));
    REQUIRE(content.is_null() == (answer.content.empty() && !answer.calls.empty()));
    REQUIRE(answer.content == test::text_of(events));
    REQUIRE(answer.reasoning == choice["message"].value("reasoning_content", ""));
    check_same_calls(answer.calls, choice["message"]);
    REQUIRE(answer.finish_reason == choice["finish_reason"]);
    REQUIRE(answer.error.is_null());
    if (include_usage) {
      REQUIRE(answer.usage == whole["usage"]);
    } else {
      REQUIRE(answer.usage.is_null());
    }
    const auto usage = test::end_of(events).value().usage;
    REQUIRE(whole["usage"]["total_tokens"] == usage.prompt() + usage.output);
  }
}

TEST_CASE("chat stream: any failing turn tells what was said so far, one error and the end") {
  CAPTURE(test::seed());
  test::generator random(11);
  std::size_t failures = 0;
  for (int i = 0; i < 2'000; ++i) {
    const auto events = random_turn(random, true);
    REQUIRE(test::grammar_problem(events) == "");
    const auto bytes = stream_of(events, true);
    CAPTURE(bytes);
    const auto answer = test::read_chat_stream(bytes);
    REQUIRE(answer.problem == "");
    REQUIRE(answer.content == test::text_of(events));
    const auto failure = test::failure_of(events);
    REQUIRE(failure.has_value() == !answer.error.is_null());
    if (!failure) continue;
    ++failures;
    REQUIRE(answer.error["message"] == failure->message);
    REQUIRE(answer.finish_reason.empty());
  }
  CHECK(failures > 100);
}
