// What unit and golden tests share: seeded randomness, the grammar of events, and an independent
// reader of chat streams. Nothing here uses the product's own translators.
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "claude-openai.hpp"

namespace test {

using nlohmann::json;

// ---- randomness --------------------------------------------------------------------------------

/// What every random test starts from; TEST_SEED=N tries another.
inline std::uint64_t seed() {
  const char* chosen = std::getenv("TEST_SEED");
  return chosen != nullptr ? std::strtoull(chosen, nullptr, 10) : 20261122;
}

/// A source of random choices that are the same with every compiler and library.
class generator {
 public:
  /// `salt` keeps the tests' choices apart.
  explicit generator(std::uint64_t salt) : engine_(seed() * 1'000'003 + salt) {}

  std::size_t below(std::size_t limit) { return static_cast<std::size_t>(engine_() % limit); }
  std::size_t between(std::size_t low, std::size_t high) { return low + below(high - low + 1); }
  bool chance(std::size_t percent) { return below(100) < percent; }

  template <class Choices>
  auto pick(const Choices& choices) {
    return choices[below(std::size(choices))];
  }

  /// Well-formed UTF-8 of all lengths, with what JSON has to escape.
  std::string words(std::size_t most) {
    static const std::vector<std::string> pieces = {"a",
                                                    " ",
                                                    "Hello",
                                                    "\n",
                                                    "\"",
                                                    "\\",
                                                    "/",
                                                    "\x01",
                                                    "\x7f",
                                                    "\r\n",
                                                    "data: ",
                                                    "\n\n",
                                                    "é",
                                                    "€",
                                                    "世界",
                                                    "\xE2\x80\xA8",
                                                    "👩‍👧",
                                                    "[DONE]",
                                                    "{\"error\":1}",
                                                    "\xF4\x8F\xBF\xBF",
                                                    ":"};
    std::string text;
    for (std::size_t left = below(most + 1); left > 0; --left) text += pick(pieces);
    return text;
  }

  /// Any bytes at all, more often such as mean something in UTF-8.
  std::string bytes(std::size_t most) {
    static const std::vector<int> telling = {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F,
                                             0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0,
                                             0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF};
    std::string text;
    for (std::size_t left = below(most + 1); left > 0; --left) {
      const int byte = chance(80) ? pick(telling) : static_cast<int>(below(256));
      text += static_cast<char>(byte);
    }
    return text;
  }

 private:
  std::mt19937_64 engine_;
};

// ---- events ------------------------------------------------------------------------------------

/// Checks event by event that the grammar of events holds; `problem` tells the first breach.
///
///   turn  := turn_started block* ( turn_stopped | turn_failed )   turn_failed may come at any time
///   block := block_started(i) block_delta(i)* block_stopped(i)     i = 0, 1, 2…, never interleaved
///            | attempt_broken(i)                                   goes back to i, also in a block
///
/// Of the kinds of blocks: only a tool call has an id and a name; its arguments are never empty; who
/// stops for a tool has called one.
class grammar_checker {
 public:
  void add(const claude_openai::event& what) {
    using namespace claude_openai;
    expect(!ended_, "an event after the end of the turn");
    std::visit(overloaded{[&](const turn_started&) {
                            expect(!started_, "a second turn_started");
                            started_ = true;
                          },
                          [&](const block_started& e) { start_block(e); },
                          [&](const block_delta& e) { add_delta(e); },
                          [&](const block_stopped& e) { stop_block(e); },
                          [&](const attempt_broken& e) { go_back(e); },
                          [&](const turn_stopped& e) { stop_turn(e); }, [](const turn_failed&) {}},
               what);
    ended_ = ends_turn(what);
  }

  std::string problem() const { return problem_.empty() && !ended_ ? unfinished : problem_; }

  static constexpr const char* unfinished = "the turn has no end";

 private:
  void expect(bool holds, const char* rule) {
    if (!holds && problem_.empty()) problem_ = rule;
  }

  void start_block(const claude_openai::block_started& begun) {
    expect(started_, "a block before turn_started");
    expect(!open_, "a block within a block");
    expect(begun.index == blocks_, "block indexes are not dense");
    const bool call = begun.kind == claude_openai::block_kind::tool_call;
    expect(call || (begun.id.empty() && begun.name.empty()), "a name of no tool call");
    open_ = true;
    empty_call_ = call;
    calls_ += call ? 1 : 0;
    ++blocks_;
  }

  void add_delta(const claude_openai::block_delta& delta) {
    expect(open_, "a delta outside of a block");
    expect(delta.index + 1 == blocks_, "a delta of another block than the open one");
    expect(!delta.text.empty(), "an empty delta");
    empty_call_ = false;
  }

  void stop_block(const claude_openai::block_stopped& closed) {
    expect(open_, "block_stopped without an open block");
    expect(closed.index + 1 == blocks_, "another block than the open one is stopped");
    expect(!empty_call_, "a tool call without arguments");
    open_ = false;
  }

  /// Calls end a turn, so that those of a broken attempt are all there are.
  void go_back(const claude_openai::attempt_broken& broken) {
    expect(broken.index <= blocks_, "goes back to a block that is still to come");
    blocks_ = broken.index;
    calls_ = 0;
    open_ = empty_call_ = false;
  }

  void stop_turn(const claude_openai::turn_stopped& stopped) {
    expect(started_, "turn_stopped before turn_started");
    expect(!open_, "turn_stopped within a block");
    const bool for_tools = stopped.reason == claude_openai::stop_reason::tool_use;
    expect(!for_tools || calls_ > 0, "a stop for a tool without a tool call");
  }

  bool started_ = false;
  bool open_ = false;
  bool ended_ = false;
  bool empty_call_ = false;
  std::size_t blocks_ = 0;
  std::size_t calls_ = 0;
  std::string problem_;
};

/// What breaks the grammar of events; empty when nothing does.
inline std::string grammar_problem(const std::vector<claude_openai::event>& events) {
  grammar_checker checker;
  for (const auto& what : events) checker.add(what);
  return checker.problem();
}

/// All that was said in blocks of one kind.
inline std::string said_in(claude_openai::block_kind wanted,
                           const std::vector<claude_openai::event>& events) {
  std::string text;
  bool open = false;
  for (const auto& what : events) {
    if (const auto* begun = std::get_if<claude_openai::block_started>(&what)) {
      open = begun->kind == wanted;
    }
    const auto* delta = std::get_if<claude_openai::block_delta>(&what);
    if (delta != nullptr && open) text += delta->text;
  }
  return text;
}

inline std::string text_of(const std::vector<claude_openai::event>& events) {
  return said_in(claude_openai::block_kind::text, events);
}

inline std::optional<claude_openai::api_error> failure_of(
    const std::vector<claude_openai::event>& events) {
  for (const auto& what : events) {
    if (const auto* failed = std::get_if<claude_openai::turn_failed>(&what)) return failed->error;
  }
  return std::nullopt;
}

inline std::optional<claude_openai::turn_stopped> end_of(
    const std::vector<claude_openai::event>& events) {
  for (const auto& what : events) {
    if (const auto* end = std::get_if<claude_openai::turn_stopped>(&what)) return *end;
  }
  return std::nullopt;
}

// ---- errors ------------------------------------------------------------------------------------

/// The `api_error` that the action throws; fails the test when it throws none.
template <class Action>
claude_openai::api_error error_of(const Action& action) {
  try {
    action();
  } catch (const claude_openai::api_error& error) {
    return error;
  } catch (const std::exception& other) {
    FAIL_CHECK("not an api_error: " << other.what());
  }
  FAIL_CHECK("no error was thrown");
  return {claude_openai::error_kind::internal, "none"};
}

// ---- chat streams ------------------------------------------------------------------------------

struct chat_call {
  std::string id;
  std::string name;
  std::string arguments;
};

/// One choice as a client gathers it.
struct chat_choice {
  std::string role;
  std::string content;
  std::string reasoning;
  std::string finish_reason;
  std::vector<chat_call> calls;   ///< `tool_calls`
  std::vector<chat_call> legacy;  ///< `function_call`: none or one, without an id
};

/// What a client gathers from a stream of `chat.completion.chunk` objects. Its own members are the
/// first choice's.
struct chat_answer : chat_choice {
  std::string problem;  ///< the first rule that the stream breaks; empty when it breaks none
  std::string id;
  std::string model;
  std::int64_t created = 0;
  std::vector<chat_choice> choices;
  json usage;
  json error;
  std::size_t comments = 0;
};

/// Reads a chat stream as the SDKs do, and checks what the strictest of them check.
class chat_stream_reader {
 public:
  explicit chat_stream_reader(std::size_t choices) { got_.choices.resize(choices); }

  chat_answer read(std::string_view bytes) {
    while (!bytes.empty() && got_.problem.empty()) {
      const auto end = bytes.find("\n\n");
      expect(end != std::string_view::npos, "a frame without an end");
      if (end == std::string_view::npos) break;
      read_frame(bytes.substr(0, end));
      bytes.remove_prefix(end + 2);
    }
    expect(done_, "no [DONE]");
    for (const auto& choice : got_.choices) {
      expect(!choice.finish_reason.empty() || !got_.error.is_null(), "no finish_reason");
    }
    static_cast<chat_choice&>(got_) = got_.choices.front();
    return got_;
  }

 private:
  void expect(bool holds, const char* rule) {
    if (!holds && got_.problem.empty()) got_.problem = rule;
  }

  void read_frame(std::string_view frame) {
    expect(frame.find('\n') == std::string_view::npos, "a frame of several lines");
    expect(frame.find('\r') == std::string_view::npos, "a carriage return in a frame");
    expect(!done_, "a frame after [DONE]");
    if (frame.substr(0, 1) == ":") {
      ++got_.comments;
      return;
    }
    expect(frame.substr(0, 6) == "data: ", "a frame that is neither data nor a comment");
    if (!got_.problem.empty()) return;
    const auto payload = frame.substr(6);
    if (payload == "[DONE]") {
      done_ = true;
      return;
    }
    const auto object = json::parse(payload, nullptr, false);
    expect(object.is_object(), "data that is not a JSON object");
    expect(got_.error.is_null(), "data after an error");
    if (!got_.problem.empty()) return;
    if (object.contains("error")) {
      got_.error = object["error"];
      return;
    }
    read_chunk(object);
  }

  void read_chunk(const json& chunk) {
    if (chunks_++ == 0) {
      got_.id = chunk.value("id", "");
      got_.model = chunk.value("model", "");
      got_.created = chunk.value("created", std::int64_t{0});
    }
    expect(chunk.value("object", "") == "chat.completion.chunk", "another object than a chunk");
    expect(chunk.value("id", "") == got_.id, "the id changed");
    expect(chunk.value("model", "") == got_.model, "the model changed");
    expect(chunk.value("created", std::int64_t{0}) == got_.created, "created changed");
    expect(chunk.contains("choices") && chunk["choices"].is_array(), "no choices");
    if (!got_.problem.empty()) return;
    if (chunk["choices"].empty()) return read_usage(chunk);
    expect(!chunk.contains("usage") || chunk["usage"].is_null(), "usage beside a choice");
    expect(chunk["choices"].size() == 1, "more than one choice");
    read_choice(chunk["choices"][0]);
  }

  void read_usage(const json& chunk) {
    for (const auto& choice : got_.choices) {
      expect(!choice.finish_reason.empty(), "usage before the finish_reason");
    }
    expect(got_.usage.is_null(), "a second usage");
    expect(chunk.contains("usage") && chunk["usage"].is_object(), "no choice and no usage");
    if (got_.problem.empty()) got_.usage = chunk["usage"];
  }

  void read_choice(const json& choice) {
    const auto index = choice.value("index", std::size_t{99});
    expect(index < got_.choices.size(), "no index in a choice, or one too many");
    expect(choice.contains("delta") && choice["delta"].is_object(), "no delta in a choice");
    expect(choice.contains("logprobs") && choice["logprobs"].is_null(), "no logprobs in a choice");
    expect(choice.contains("finish_reason"), "no finish_reason in a choice");
    if (!got_.problem.empty()) return;
    auto& own = got_.choices[index];
    expect(own.finish_reason.empty(), "a choice after the finish_reason");
    const auto& delta = choice["delta"];
    const bool first = own.role.empty();
    expect(delta.contains("role") == first, "the role is in the first chunk and in no other");
    if (!choice["finish_reason"].is_null()) {
      expect(delta.empty(), "the last delta is not empty");
      own.finish_reason = choice["finish_reason"].get<std::string>();
    } else if (first) {
      own.role = delta.value("role", "");
      expect(delta.size() == 2 && delta.value("content", "x").empty(),
             "the first delta is role and empty content");
    } else {
      read_delta(delta, own);
    }
  }

  void read_delta(const json& delta, chat_choice& own) {
    expect(delta.size() == 1, "a delta of several things, or of nothing");
    if (!got_.problem.empty()) return;
    const auto& name = delta.begin().key();
    const auto& more = delta.begin().value();
    if (name == "content" || name == "reasoning_content") {
      expect(more.is_string() && more != "", "a delta without text");
      if (got_.problem.empty()) (name == "content" ? own.content : own.reasoning) += more;
    } else if (name == "tool_calls") {
      expect(more.is_array() && more.size() == 1, "more than one tool call in a delta");
      if (got_.problem.empty()) read_call(more[0], own);
    } else if (name == "function_call") {
      expect(own.calls.empty(), "calls of both kinds");
      read_function(more, own.legacy);
    } else {
      expect(false, "a delta of a kind that no client knows");
    }
  }

  void read_call(const json& call, chat_choice& own) {
    const auto index = call.value("index", std::size_t{999});
    const bool begins = call.contains("id");
    expect(own.legacy.empty(), "calls of both kinds");
    expect(index + (begins ? 0 : 1) == own.calls.size(), "the calls' indexes are not dense");
    const auto* type = call.contains("custom") ? "custom" : "function";
    expect(begins == (call.value("type", "") == type), "type is told with the id, once");
    if (!got_.problem.empty()) return;
    auto called = call.value(type, json());
    if (called.contains("input")) called["arguments"] = called["input"];
    called.erase("input");
    read_function(called, own.calls);
    if (begins && got_.problem.empty()) own.calls.back().id = call["id"].get<std::string>();
  }

  /// A name begins a call; arguments are always there.
  void read_function(const json& function, std::vector<chat_call>& calls) {
    expect(function.is_object() && function.contains("arguments"), "a call without arguments");
    if (!got_.problem.empty()) return;
    const auto more = function["arguments"].get<std::string>();
    if (function.contains("name")) {
      expect(more.empty(), "arguments beside the name");
      calls.push_back({"", function["name"].get<std::string>(), ""});
    } else {
      expect(!calls.empty() && !more.empty(), "arguments of no call, or none");
      if (!calls.empty()) calls.back().arguments += more;
    }
  }

  chat_answer got_;
  std::size_t chunks_ = 0;
  bool done_ = false;
};

inline chat_answer read_chat_stream(std::string_view bytes, std::size_t choices = 1) {
  return chat_stream_reader(choices).read(bytes);
}

}  // namespace test
