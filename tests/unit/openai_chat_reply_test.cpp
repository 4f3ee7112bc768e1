// [09] openai_chat: answers, from events to bytes, streamed and whole.
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;
using openai_chat::chat_reply;

namespace {

constexpr std::int64_t created = 1'795'370'974;

std::string stream_of(const std::vector<event>& events, bool include_usage) {
  chat_reply writer({"abc", created}, include_usage);
  std::string out;
  for (const auto& what : events) writer.write(what, out);
  return out;
}

std::string whole_of(const std::vector<event>& events) {
  const chat_reply writer({"abc", created}, false);
  collector answer;
  for (const auto& what : events) answer.add(what);
  return writer.render(answer.result());
}

token_usage some_usage() {
  token_usage usage;
  usage.input = 100;
  usage.cache_read = 30;
  usage.cache_write = 12;
  usage.cache_write_5m = 2;
  usage.cache_write_1h = 10;
  usage.output = 20;
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
    R"("cache_read_input_tokens":30,"cache_creation_input_tokens":12,)"
    R"("cache_creation":{"ephemeral_5m_input_tokens":2,"ephemeral_1h_input_tokens":10}})";

}  // namespace

TEST_CASE("chat stream: the exact bytes of an answer") {
  const auto expected = first_chunk + chunk(R"({"content":"Hel"})", "null") +
                        chunk(R"({"content":"lo \"you\"\n"})", "null") + chunk("{}", R"("stop")");
  CHECK(stream_of(hello(), false) == expected + "data: [DONE]\n\n");
  CHECK(stream_of(hello(), true) == expected + "data: " + head + R"("choices":[],"usage":)" +
                                        usage_json + "}\n\ndata: [DONE]\n\n");
}

TEST_CASE("chat whole: the exact bytes of an answer") {
  CHECK(whole_of(hello()) ==
        R"({"id":"chatcmpl-abc","object":"chat.completion","created":1795370974,)"
        R"("model":"model-1","system_fingerprint":null,"choices":[{"index":0,)"
        R"("message":{"role":"assistant","content":"Hello \"you\"\n","refusal":null,)"
        R"("annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":)" +
            usage_json + "}");
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
      {stop_reason::end_turn, "stop"},
      {stop_reason::stop_sequence, "stop"},
      {stop_reason::max_tokens, "length"},
      {stop_reason::tool_use, "tool_calls"},
      {stop_reason::refusal, "content_filter"}};
  for (const auto& each : words) {
    const auto& reason = each.first;
    const auto& word = each.second;
    CAPTURE(word);
    CHECK(openai_chat::finish_reason(reason) == word);
    CHECK(test::read_chat_stream(stream_of(hello(reason), false)).finish_reason == word);
    CHECK(json::parse(whole_of(hello(reason)))["choices"][0]["finish_reason"] == word);
  }
}

TEST_CASE("chat stream: each event is written at once, and nothing is written twice") {
  chat_reply writer({"abc", created}, true);
  const auto events = hello();
  const std::vector<std::size_t> frames = {1, 0, 1, 1, 0, 3};
  for (std::size_t i = 0; i < events.size(); ++i) {
    std::string out;
    writer.write(events[i], out);
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
  chat_reply writer({"abc", created}, false);
  std::string out = "before";
  writer.write(turn_started{"model-1", {}}, out);
  writer.write_keep_alive(out);
  CHECK(out == "before" + first_chunk + ": keep-alive\n\n");
}

TEST_CASE("chat stream: a keep-alive is a comment, also before the first event") {
  chat_reply writer({"abc", created}, false);
  std::string out;
  writer.write_keep_alive(out);
  for (const auto& what : hello()) writer.write(what, out);
  const auto answer = test::read_chat_stream(out);
  CHECK(answer.problem.empty());
  CHECK(answer.comments == 1);
}

TEST_CASE("chat: thinking and tool calls are in no content, streamed or whole") {
  const std::vector<event> events = {turn_started{"m", {}},
                                     block_started{0, block_kind::thinking, {}, {}},
                                     block_delta{0, "secret thought"},
                                     block_stopped{0, "sig"},
                                     block_started{1, block_kind::text, {}, {}},
                                     block_delta{1, "Hello"},
                                     block_stopped{1, {}},
                                     block_started{2, block_kind::tool_call, "t", "look"},
                                     block_delta{2, "{\"secret\":1}"},
                                     block_stopped{2, {}},
                                     block_started{3, block_kind::text, {}, {}},
                                     block_delta{3, " you"},
                                     block_stopped{3, {}},
                                     turn_stopped{}};
  const auto streamed = stream_of(events, true);
  CHECK(streamed.find("secret") == std::string::npos);
  CHECK(test::read_chat_stream(streamed).content == "Hello you");
  const auto whole = whole_of(events);
  CHECK(whole.find("secret") == std::string::npos);
  CHECK(json::parse(whole)["choices"][0]["message"]["content"] == "Hello you");
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
    for (const auto& what : hello()) parsed.reply->write(what, out);
    return out;
  };
  CHECK(reply_to("") == stream_of(hello(), false));
  CHECK(reply_to(R"(,"stream_options":null)") == stream_of(hello(), false));
  CHECK(reply_to(R"(,"stream_options":{})") == stream_of(hello(), false));
  CHECK(reply_to(R"(,"stream_options":{"include_usage":null})") == stream_of(hello(), false));
  CHECK(reply_to(R"(,"stream_options":{"include_usage":false})") == stream_of(hello(), false));
  CHECK(reply_to(R"(,"stream_options":{"include_usage":true})") == stream_of(hello(), true));
  CHECK(openai_chat::dialect.render_error(api_error(error_kind::internal, "x")) ==
        openai_chat::render_error(api_error(error_kind::internal, "x")));
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
                                         block_kind::tool_call};
  const std::vector<stop_reason> reasons = {stop_reason::end_turn, stop_reason::max_tokens,
                                            stop_reason::stop_sequence, stop_reason::tool_use,
                                            stop_reason::refusal};
  std::vector<event> events = {turn_started{"model-" + std::to_string(random.below(9)), {}}};
  const std::size_t blocks = random.below(5);
  for (std::size_t i = 0; i < blocks; ++i) {
    events.emplace_back(block_started{i, random.pick(kinds), "id", "name"});
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
    events.emplace_back(turn_stopped{random.pick(reasons), "END", random_usage(random)});
  }
  return events;
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
    REQUIRE(answer.content == choice["message"]["content"]);
    REQUIRE(answer.content == test::text_of(events));
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
