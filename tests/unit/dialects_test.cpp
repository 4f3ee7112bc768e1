// The five dialects tell one and the same turn, streamed and not. The turns are random;
// the streams are read by this test's own readers, which follow each vendor's rules.
#include <array>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/dialects.hpp"

using namespace claude_openai;
using strings = std::vector<std::string>;
using tree = test::json;  // compares without regard to the order of members

namespace {

// ---- random turns ------------------------------------------------------------------------------

/// A tool with plain text for its input; the others take JSON.
constexpr const char* custom_tool = "patch";

class turn_maker {
 public:
  explicit turn_maker(test::generator& random) : random_(random) {}

  /// A valid turn. One in five fails somewhere.
  test::events make() {
    told_.clear();
    calls_ = 0;
    told_.emplace_back(turn_started{"claude-" + std::to_string(random_.below(3)), usage()});
    std::get<turn_started>(told_[0]).usage.cost_usd.reset();  // known at the end alone
    const auto blocks = random_.below(6);
    for (std::size_t i = 0; i < blocks; ++i) add_block(i);
    if (random_.chance(20)) {
      told_.resize(random_.below(told_.size() + 1));
      told_.emplace_back(turn_failed{failure()});
      return told_;
    }
    constexpr std::array<stop_reason, 6> reasons = {
        stop_reason::end_turn,      stop_reason::max_tokens, stop_reason::refusal,
        stop_reason::stop_sequence, stop_reason::turn_limit, stop_reason::tool_use};
    const auto reason = reasons.at(random_.below(calls_ > 0 ? 6 : 5));
    const bool by_sequence = reason == stop_reason::stop_sequence;
    told_.emplace_back(turn_stopped{reason, by_sequence ? words() : std::string(), usage()});
    return told_;
  }

 private:
  std::string words() { return "w" + random_.words(6); }

  token_usage usage() {
    token_usage made;
    const auto count = [&] { return static_cast<std::int64_t>(random_.below(100'000)); };
    made.input = count();
    made.cache_read = count();
    made.cache_write_5m = count();
    made.cache_write_1h = count();
    made.cache_write = made.cache_write_5m + made.cache_write_1h;
    made.output = count();
    made.thinking = static_cast<std::int64_t>(random_.below(100));
    if (random_.chance(50)) made.cost_usd = 0.25 * static_cast<double>(random_.below(8));
    return made;
  }

  api_error failure() {
    constexpr std::array<error_kind, 5> kinds = {error_kind::overloaded, error_kind::bad_gateway,
                                                 error_kind::rate_limited, error_kind::timed_out,
                                                 error_kind::invalid_request};
    return api_error(random_.pick(kinds), words());
  }

  strings pieces() {
    strings all(random_.below(4));
    for (auto& one : all) one = words();
    return all;
  }

  /// The text in pieces, cut between characters.
  strings cut(std::string_view text) {
    strings all(1);
    while (!text.empty()) {
      if (!all.back().empty() && random_.chance(20)) all.emplace_back();
      const auto length = text::utf8_sequence_length(text);
      all.back() += text.substr(0, length);
      text.remove_prefix(length);
    }
    return all;
  }

  tree arguments(bool custom) {
    if (custom) return {{"input", words()}};
    tree made = tree::object();
    for (auto left = random_.below(4); left > 0; --left) {
      const auto name = random_.words(2) + std::to_string(left);
      if (random_.chance(50)) made[name] = random_.words(6);
      if (random_.chance(20)) made[name] = {1.5, nullptr, true, {{"deep", random_.words(3)}}};
    }
    return made;
  }

  void add_block(std::size_t index) {
    constexpr std::array<block_kind, 7> kinds = {block_kind::text,
                                                 block_kind::text,
                                                 block_kind::thinking,
                                                 block_kind::activity,
                                                 block_kind::tool_call,
                                                 block_kind::tool_call,
                                                 block_kind::redacted_thinking};
    const auto kind = random_.pick(kinds);
    block_started begun{index, kind, {}, {}};
    auto deltas = pieces();
    std::string signature;
    if (kind == block_kind::redacted_thinking) deltas = {words()};  // it comes whole
    if (kind == block_kind::thinking && random_.chance(70)) signature = words();
    if (kind == block_kind::tool_call) {
      const bool custom = random_.chance(30);
      begun.id = "call_" + std::to_string(++calls_);
      begun.name = custom ? custom_tool : "look";
      deltas = cut(arguments(custom).dump());
    }
    told_.emplace_back(begun);
    for (const auto& more : deltas) told_.emplace_back(block_delta{index, more});
    told_.emplace_back(block_stopped{index, signature});
  }

  test::generator& random_;
  test::events told_;
  std::size_t calls_ = 0;
};

// ---- what a turn says --------------------------------------------------------------------------

/// What a client takes from a turn, in whatever dialect; with `tree`s, so that a difference is
/// printed. What a dialect does not tell is left out before two of them are compared.
tree expected_of(const test::events& told) {
  tree said{{"text", ""}, {"thinking", ""}, {"calls", tree::array()}, {"sealed", tree::array()}};
  auto kind = block_kind::text;
  std::string json_text;
  const auto append = [&](const char* member, const std::string& more) {
    said[member].get_ref<std::string&>() += more;
  };
  for (const auto& what : told) {
    std::visit(
        overloaded{
            [&](const turn_started& e) { said["model"] = e.model; },
            [&](const block_started& e) {
              kind = e.kind;
              json_text.clear();
              if (kind == block_kind::tool_call) {
                said["calls"].push_back({{"id", e.id}, {"name", e.name}});
              }
            },
            [&](const block_delta& e) {
              if (kind == block_kind::text) append("text", e.text);
              const bool shown = kind == block_kind::thinking || kind == block_kind::activity;
              if (shown) append("thinking", e.text);
              json_text += e.text;
            },
            [&](const block_stopped& e) {
              if (kind == block_kind::redacted_thinking) said["sealed"].push_back(json_text);
              if (!e.signature.empty()) said["sealed"].push_back(e.signature);
              if (kind != block_kind::tool_call) return;
              said["calls"].back()["arguments"] = tree::parse(json_text);
            },
            [](const attempt_broken&) {},  // of answers that are not streamed
            [&](const turn_stopped& e) {
              said["ending"] = test::json(openai_chat::finish_reason(e.reason));
              const auto& usage = e.usage;
              said["usage"] = {{"prompt", usage.input + usage.cache_read + usage.cache_write},
                               {"output", usage.output},
                               {"cached", usage.cache_read},
                               {"written", usage.cache_write},
                               {"thinking", usage.thinking}};
              if (usage.cost_usd) said["usage"]["cost"] = *usage.cost_usd;
            },
            [&](const turn_failed& e) { said["error"] = e.error.message; },
        },
        what);
  }
  return said;
}

tree openai_usage(const tree& usage, const char* prompt, const char* output) {
  const auto details = [&](const char* name) { return usage.at(std::string(name) + "_details"); };
  tree told{{"prompt", usage.at(prompt)},
            {"output", usage.at(output)},
            {"cached", details(prompt).at("cached_tokens")},
            {"written", details(prompt).at("cache_write_tokens")},
            {"thinking", details(output).at("reasoning_tokens")}};
  if (usage.contains("cost")) told["cost"] = usage["cost"];
  CHECK(usage.at("total_tokens") ==
        usage.at(prompt).get<std::int64_t>() + usage.at(output).get<std::int64_t>());
  return told;
}

tree chat_usage(const tree& usage) {
  return openai_usage(usage, "prompt_tokens", "completion_tokens");
}

/// One choice of a whole chat completion.
tree said_in_chat(const tree& whole, std::size_t index = 0) {
  const auto& choice = whole.at("choices").at(index);
  const auto& message = choice.at("message");
  tree calls = tree::array();
  for (const auto& call : message.value("tool_calls", tree::array())) {
    const auto& function = call.at("function");
    calls.push_back({{"id", call.at("id")},
                     {"name", function.at("name")},
                     {"arguments", tree::parse(function.at("arguments").get<std::string>())}});
  }
  return {{"model", whole.at("model")},
          {"text", message.at("content").is_null() ? tree("") : message.at("content")},
          {"thinking", message.value("reasoning_content", "")},
          {"calls", calls},
          {"ending", choice.at("finish_reason")},
          {"usage", chat_usage(whole.at("usage"))}};
}

/// The same of a choice that was gathered from a stream.
tree said_in_chat(const test::chat_answer& got, std::size_t index = 0) {
  const auto& choice = got.choices.at(index);
  tree said{{"model", got.model},
            {"text", choice.content},
            {"thinking", choice.reasoning},
            {"calls", tree::array()}};
  const bool failed = !got.error.is_null();
  for (const auto& call : choice.calls) {
    auto input = tree::parse(call.arguments, nullptr, false);
    said["calls"].push_back({{"id", call.id}, {"name", call.name}, {"arguments", input}});
  }
  if (failed) said["error"] = got.error.at("message");
  if (!choice.finish_reason.empty()) said["ending"] = choice.finish_reason;
  if (!got.usage.is_null()) said["usage"] = chat_usage(got.usage);
  return said;
}

tree said_in_message(const tree& message) {
  tree said{{"model", message.at("model")},
            {"text", ""},
            {"thinking", ""},
            {"calls", tree::array()},
            {"sealed", tree::array()}};
  for (const auto& block : message.at("content")) {
    const auto& type = block.at("type");
    if (type == "text") said["text"] = said["text"].get<std::string>() + block.value("text", "");
    if (type == "thinking") {
      said["thinking"] = said["thinking"].get<std::string>() + block.value("thinking", "");
      if (block.at("signature") != "") said["sealed"].push_back(block["signature"]);
    }
    if (type == "redacted_thinking") said["sealed"].push_back(block.at("data"));
    if (type != "tool_use") continue;
    said["calls"].push_back(
        {{"id", block.at("id")}, {"name", block.at("name")}, {"arguments", block.at("input")}});
  }
  const auto& usage = message.at("usage");
  const auto count = [&](const char* name) { return usage.at(name).get<std::int64_t>(); };
  const auto cached = count("cache_read_input_tokens");
  const auto written = count("cache_creation_input_tokens");
  const auto& split = usage.at("cache_creation");
  CHECK(split.at("ephemeral_5m_input_tokens").get<std::int64_t>() +
            split.at("ephemeral_1h_input_tokens").get<std::int64_t>() ==
        written);
  if (message.at("stop_reason").is_null()) return said;
  const std::map<std::string, std::string> endings = {{"end_turn", "stop"},
                                                      {"stop_sequence", "stop"},
                                                      {"max_tokens", "length"},
                                                      {"tool_use", "tool_calls"},
                                                      {"refusal", "content_filter"}};
  said["ending"] = endings.at(message["stop_reason"]);
  said["usage"] = {{"prompt", count("input_tokens") + cached + written},
                   {"output", count("output_tokens")},
                   {"cached", cached},
                   {"written", written}};
  if (usage.contains("cost")) said["usage"]["cost"] = usage["cost"];
  return said;
}

tree said_in_response(const tree& response) {
  tree said{{"model", response.at("model")},
            {"text", ""},
            {"thinking", ""},
            {"calls", tree::array()},
            {"sealed", tree::array()}};
  for (const auto& item : response.at("output")) {
    const auto& type = item.at("type");
    if (type == "message") {
      said["text"] =
          said["text"].get<std::string>() + item.at("content").at(0).at("text").get<std::string>();
    } else if (type == "reasoning") {
      for (const auto& part : item.at("summary")) {
        said["thinking"] = said["thinking"].get<std::string>() + part.value("text", "");
      }
      if (!item.contains("encrypted_content")) continue;
      const auto opened =
          tree::parse(text::from_base64(item["encrypted_content"].get<std::string>()));
      const bool redacted = opened.at("redacted") != "";
      said["sealed"].push_back(opened.at(redacted ? "redacted" : "signature"));
    } else {
      const bool custom = type == "custom_tool_call";
      const auto input = custom ? tree{{"input", item.at("input")}}
                                : tree::parse(item.at("arguments").get<std::string>());
      said["calls"].push_back(
          {{"id", item.at("call_id")}, {"name", item.at("name")}, {"arguments", input}});
    }
  }
  if (!response.at("error").is_null()) {
    said["error"] = response["error"].at("message");
    return said;
  }
  said["ending"] = "stop";
  const auto& details = response.at("incomplete_details");
  const bool incomplete = response.at("status") == "incomplete";
  CHECK(details.is_null() == !incomplete);
  if (incomplete) {
    said["ending"] = details.at("reason") == "max_output_tokens" ? "length" : "content_filter";
  }
  said["usage"] = openai_usage(response.at("usage"), "input_tokens", "output_tokens");
  return said;
}

tree said_in_completion(const tree& whole, std::size_t index = 0) {
  const auto& choice = whole.at("choices").at(index);
  tree said{{"model", whole.at("model")}, {"text", choice.at("text")}};
  if (!choice.at("finish_reason").is_null()) said["ending"] = choice["finish_reason"];
  if (whole.contains("usage")) said["usage"] = chat_usage(whole["usage"]);
  return said;
}

tree said_in_ollama(const tree& whole) {
  const auto& message = whole.at("message");
  tree calls = tree::array();
  for (const auto& call : message.value("tool_calls", tree::array())) {
    const auto& function = call.at("function");
    calls.push_back({{"id", call.at("id")},
                     {"name", function.at("name")},
                     {"arguments", function.at("arguments")}});
  }
  tree usage{{"prompt", whole.at("prompt_eval_count")}, {"output", whole.at("eval_count")}};
  if (whole.contains("cost")) usage["cost"] = whole["cost"];
  return {{"model", whole.at("model")},
          {"text", message.at("content")},
          {"thinking", message.value("thinking", "")},
          {"calls", calls},
          {"ending", whole.at("done_reason")},
          {"usage", usage}};
}

tree without(tree said, const strings& members) {
  for (const auto& member : members) said.erase(member);
  return said;
}

/// Without the count of thinking tokens, which the Messages API does not tell.
tree as_message(tree said) {
  if (said.contains("usage")) said["usage"].erase("thinking");
  return said;
}

/// A response that was completed does not tell whether it was by a tool call.
tree as_response(tree said) {
  if (said.value("ending", "") == "tool_calls") said["ending"] = "stop";
  return said;
}

/// Ollama counts what goes in and out, and tells calls beside the text.
tree as_ollama(tree said) {
  for (const char* name : {"cached", "written", "thinking"}) said["usage"].erase(name);
  return as_response(std::move(said));
}

// ---- writing and reading -----------------------------------------------------------------------

using parser = parsed_request (*)(const claude_openai::json&, const reply_context&);

std::unique_ptr<reply> make_writer(parser parse, const std::string& body) {
  return parse(parse_body(body), {"ID", 1700000000, "req_1"}).reply;
}

const std::string messages = R"("messages":[{"role":"user","content":"a"}])";
const std::string with_usage = R"("stream_options":{"include_usage":true},)";

std::unique_ptr<reply> chat_writer(std::size_t n = 1) {
  return make_writer(openai_chat::parse,
                     "{" + with_usage + R"("n":)" + std::to_string(n) + "," + messages + "}");
}
std::unique_ptr<reply> messages_writer() {
  return make_writer(anthropic_messages::parse, R"({"model":"m","max_tokens":9,)" + messages + "}");
}
std::unique_ptr<reply> responses_writer() {
  return make_writer(openai_responses::parse,
                     R"({"input":"a","reasoning":{"summary":"auto"},
                         "include":["reasoning.encrypted_content"],
                         "tools":[{"type":"custom","name":"patch"}]})");
}
std::unique_ptr<reply> completions_writer(std::size_t n = 1) {
  return make_writer(openai_completions::parse,
                     "{" + with_usage + R"("prompt":"a","n":)" + std::to_string(n) + "}");
}

std::unique_ptr<reply> ollama_writer() {
  return make_writer(ollama::parse_chat, "{" + messages + "}");
}

/// The turn's bytes for a client that streams, with silences in between.
std::string streamed(reply& writer, const test::events& told, test::generator& random) {
  std::string bytes;
  for (const auto& what : told) {
    if (random.chance(10)) writer.write_keep_alive(bytes);
    writer.write(0, what, bytes);
  }
  return bytes;
}

tree whole(const reply& writer, const test::events& told) { return test::rendered(writer, told); }

/// Calls the check with many random turns. A failure tells the seed and the round that show it.
void for_random_turns(std::uint64_t salt, std::size_t rounds,
                      const std::function<void(const test::events&, test::generator&)>& check) {
  test::generator random(salt);
  turn_maker maker(random);
  for (std::size_t round = 0; round < rounds; ++round) {
    INFO("TEST_SEED=", test::seed(), " round ", round);
    const auto told = maker.make();
    const auto problem = test::grammar_problem(told);
    REQUIRE_MESSAGE(problem.empty(), problem);
    check(told, random);
  }
}

bool fails(const test::events& told) { return test::failure_of(told).has_value(); }

}  // namespace

TEST_CASE("dialects: the five say the same of a turn, streamed and whole") {
  for_random_turns(101, 250, [](const test::events& told, test::generator& random) {
    if (fails(told)) return;
    const auto expected = expected_of(told);

    const auto chat = test::read_chat_stream(streamed(*chat_writer(), told, random));
    REQUIRE_MESSAGE(chat.problem.empty(), chat.problem);
    CHECK(said_in_chat(chat) == without(expected, {"sealed"}));
    CHECK(said_in_chat(whole(*chat_writer(), told)) == said_in_chat(chat));

    const test::messages_stream_reader message(streamed(*messages_writer(), told, random));
    REQUIRE_MESSAGE(message.problem.empty(), message.problem);
    CHECK(said_in_message(message.message) == as_message(expected));
    CHECK(whole(*messages_writer(), told) == message.message);

    const test::responses_stream_reader response(streamed(*responses_writer(), told, random));
    REQUIRE_MESSAGE(response.problem.empty(), response.problem);
    CHECK(said_in_response(response.response) == as_response(expected));
    CHECK(whole(*responses_writer(), told) == response.response);

    const test::completions_stream_reader text(streamed(*completions_writer(), told, random));
    REQUIRE_MESSAGE(text.problem.empty(), text.problem);
    CHECK(said_in_completion(text.whole) == without(expected, {"sealed", "thinking", "calls"}));
    CHECK(whole(*completions_writer(), told) == text.whole);

    const test::ollama_stream_reader lines(streamed(*ollama_writer(), told, random));
    REQUIRE_MESSAGE(lines.problem.empty(), lines.problem);
    CHECK(said_in_ollama(lines.whole) == as_ollama(without(expected, {"sealed"})));
    CHECK(whole(*ollama_writer(), told) == lines.whole);
  });
}

TEST_CASE("dialects: the five say the same of a turn that fails, and what came before") {
  for_random_turns(102, 500, [](const test::events& told, test::generator& random) {
    if (!fails(told)) return;
    const auto failure = *test::failure_of(told);
    const auto text = test::text_of(told);

    const auto chat = test::read_chat_stream(streamed(*chat_writer(), told, random));
    REQUIRE_MESSAGE(chat.problem.empty(), chat.problem);
    CHECK(chat.content == text);
    CHECK(chat.error["message"] == failure.message);

    const test::messages_stream_reader message(streamed(*messages_writer(), told, random));
    REQUIRE_MESSAGE(message.problem.empty(), message.problem);
    CHECK(message.error["error"]["message"] == failure.message);
    const bool begun = told.size() > 1;
    REQUIRE(message.message.is_object() == begun);
    if (begun) CHECK(said_in_message(message.message)["text"] == text);

    const test::responses_stream_reader response(streamed(*responses_writer(), told, random));
    REQUIRE_MESSAGE(response.problem.empty(), response.problem);
    CHECK(response.ending == "response.failed");
    const auto said = said_in_response(response.response);
    CHECK(said["error"] == failure.message);
    CHECK(text.find(said["text"].get<std::string>()) == 0);  // all but the part that was cut

    const test::completions_stream_reader completion(streamed(*completions_writer(), told, random));
    REQUIRE_MESSAGE(completion.problem.empty(), completion.problem);
    CHECK(completion.error == chat.error);
    CHECK((completion.whole.is_null() ? tree("") : completion.whole["choices"][0]["text"]) == text);

    const test::ollama_stream_reader lines(streamed(*ollama_writer(), told, random));
    REQUIRE_MESSAGE(lines.problem.empty(), lines.problem);
    CHECK(lines.error == failure.message);
    CHECK(lines.whole["message"]["content"] == text);

    const auto thrown = test::error_of([&] { whole(*chat_writer(), told); });
    CHECK(thrown.message == failure.message);
    CHECK(thrown.kind == failure.kind);
  });
}

TEST_CASE("dialects: choices that are told one among another come out each by itself") {
  test::generator random(103);
  turn_maker maker(random);
  for (std::size_t round = 0; round < 60; ++round) {
    INFO("TEST_SEED=", test::seed(), " round ", round);
    const auto n = random.between(2, 4);
    std::vector<test::events> turns;
    std::vector<turn_result> results;
    while (turns.size() < n) {
      auto told = maker.make();
      if (fails(told)) continue;
      std::get<turn_started>(told.front()).model = "claude-x";
      collector gathered;
      for (const auto& what : told) gathered.add(what);
      results.push_back(gathered.result());
      turns.push_back(std::move(told));
    }
    const auto chat = chat_writer(n);
    const auto completions = completions_writer(n);
    std::string chat_bytes;
    std::string completion_bytes;
    std::vector<std::size_t> next(n, 0);
    for (auto left = n; left > 0;) {
      const auto choice = random.below(n);
      if (next[choice] == turns[choice].size()) continue;
      const auto& what = turns[choice][next[choice]++];
      chat->write(choice, what, chat_bytes);
      completions->write(choice, what, completion_bytes);
      left -= ends_turn(what) ? 1 : 0;
    }
    const auto got = test::read_chat_stream(chat_bytes, n);
    REQUIRE_MESSAGE(got.problem.empty(), got.problem);
    const test::completions_stream_reader text(completion_bytes);
    REQUIRE_MESSAGE(text.problem.empty(), text.problem);
    const auto whole_chat = tree::parse(chat->render(results));
    token_usage sum;
    for (std::size_t i = 0; i < n; ++i) {
      const auto expected = without(expected_of(turns[i]), {"sealed", "usage"});
      CHECK(without(said_in_chat(got, i), {"usage"}) == expected);
      CHECK(said_in_chat(whole_chat, i) == said_in_chat(got, i));
      CHECK(without(said_in_completion(text.whole, i), {"usage"}) ==
            without(expected, {"thinking", "calls"}));
      add_usage(sum, results[i].usage);
    }
    CHECK(got.usage["prompt_tokens"] == sum.prompt());
    CHECK(got.usage["completion_tokens"] == sum.output);
    CHECK(tree::parse(completions->render(results)) == text.whole);
  }
}

// ---- the readers themselves --------------------------------------------------------------------

namespace {

/// The frames of a stream, each with its end.
strings frames_of(std::string_view bytes) {
  strings frames;
  while (!bytes.empty()) {
    const auto end = bytes.find("\n\n") + 2;
    frames.emplace_back(bytes.substr(0, end));
    bytes.remove_prefix(end);
  }
  return frames;
}

/// The frames as one stream, the numbers of their places put right.
std::string joined(const strings& frames) {
  std::string bytes;
  std::size_t next = 0;
  for (auto frame : frames) {
    const std::string mark = R"("sequence_number":)";
    const auto at = frame.rfind(mark);
    if (at != std::string::npos) {
      const auto digits = at + mark.size();
      frame.replace(digits, frame.find('}', digits) - digits, std::to_string(next++));
    }
    bytes += frame;
  }
  return bytes;
}

/// What a reader makes of a stream; empty when the stream breaks a rule.
using reading = std::function<std::string(const std::string& bytes)>;

/// A stream that lacks a frame, or has one twice, must break a rule or say something else. Not so of
/// JSON: none at all is an empty object, and a member may be told twice.
void check_notices(const strings& frames, const reading& read) {
  const auto right = read(joined(frames));
  REQUIRE_FALSE(right.empty());
  const auto holds = [](const std::string& frame, const char* text) {
    return frame.find(text) != std::string::npos;
  };
  for (std::size_t i = 0; i < frames.size(); ++i) {
    CAPTURE(frames[i]);
    auto lacking = frames;
    lacking.erase(lacking.begin() + static_cast<std::ptrdiff_t>(i));
    if (!holds(frames[i], R"("partial_json":"{}")")) CHECK(read(joined(lacking)) != right);
    auto twice = frames;
    twice.insert(twice.begin() + static_cast<std::ptrdiff_t>(i), frames[i]);
    if (!holds(frames[i], R"("partial_json")")) CHECK(read(joined(twice)) != right);
  }
}

}  // namespace

TEST_CASE("dialects: the stream readers of these tests notice what is missing and what is twice") {
  test::generator random(104);
  turn_maker maker(random);
  for (std::size_t round = 0; round < 12; ++round) {
    INFO("TEST_SEED=", test::seed(), " round ", round);
    const auto told = maker.make();
    if (fails(told)) continue;
    check_notices(frames_of(test::written(*messages_writer(), told)), [](const auto& bytes) {
      const test::messages_stream_reader got(bytes);
      return got.problem.empty() ? got.message.dump() : "";
    });
    check_notices(frames_of(test::written(*responses_writer(), told)), [](const auto& bytes) {
      const test::responses_stream_reader got(bytes);
      return got.problem.empty() ? got.response.dump() : "";
    });
    check_notices(frames_of(test::written(*completions_writer(), told)), [](const auto& bytes) {
      const test::completions_stream_reader got(bytes);
      return got.problem.empty() ? got.whole.dump() : "";
    });
  }
}
