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

/// What breaks the grammar of events; empty when nothing does.
///
///   turn  := turn_started block* ( turn_stopped | turn_failed )   turn_failed may come at any time
///   block := block_started(i) block_delta(i)* block_stopped(i)     i = 0, 1, 2…, never interleaved
inline std::string grammar_problem(const std::vector<claude_openai::event>& events) {
  using namespace claude_openai;
  bool started = false;
  bool open = false;
  bool ended = false;
  std::size_t blocks = 0;
  std::string problem;
  const auto expect = [&](bool holds, const char* what) {
    if (!holds && problem.empty()) problem = what;
  };
  for (const auto& what : events) {
    expect(!ended, "an event after the end of the turn");
    if (std::holds_alternative<turn_started>(what)) {
      expect(!started, "a second turn_started");
      started = true;
    } else if (const auto* begun = std::get_if<block_started>(&what)) {
      expect(started, "a block before turn_started");
      expect(!open, "a block within a block");
      expect(begun->index == blocks, "block indexes are not dense");
      open = true;
      ++blocks;
    } else if (const auto* delta = std::get_if<block_delta>(&what)) {
      expect(open, "a delta outside of a block");
      expect(delta->index + 1 == blocks, "a delta of another block than the open one");
      expect(!delta->text.empty(), "an empty delta");
    } else if (const auto* closed = std::get_if<block_stopped>(&what)) {
      expect(open, "block_stopped without an open block");
      expect(closed->index + 1 == blocks, "another block than the open one is stopped");
      open = false;
    } else if (std::holds_alternative<turn_stopped>(what)) {
      expect(started, "turn_stopped before turn_started");
      expect(!open, "turn_stopped within a block");
    }
    ended = ends_turn(what);
    if (!problem.empty()) return problem;
  }
  expect(ended, "the turn has no end");
  return problem;
}

inline std::string text_of(const std::vector<claude_openai::event>& events) {
  std::string text;
  auto kind = claude_openai::block_kind::text;
  for (const auto& what : events) {
    if (const auto* begun = std::get_if<claude_openai::block_started>(&what)) kind = begun->kind;
    const auto* delta = std::get_if<claude_openai::block_delta>(&what);
    if (delta != nullptr && kind == claude_openai::block_kind::text) text += delta->text;
  }
  return text;
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

/// What a client gathers from a stream of `chat.completion.chunk` objects.
struct chat_answer {
  std::string problem;  ///< the first rule that the stream breaks; empty when it breaks none
  std::string id;
  std::string model;
  std::int64_t created = 0;
  std::string role;
  std::string content;
  std::string finish_reason;
  json usage;
  json error;
  std::size_t comments = 0;
};

/// Reads a chat stream as the SDKs do, and checks what the strictest of them check.
class chat_stream_reader {
 public:
  chat_answer read(std::string_view bytes) {
    while (!bytes.empty() && got_.problem.empty()) {
      const auto end = bytes.find("\n\n");
      expect(end != std::string_view::npos, "a frame without an end");
      if (end == std::string_view::npos) break;
      read_frame(bytes.substr(0, end));
      bytes.remove_prefix(end + 2);
    }
    expect(done_, "no [DONE]");
    expect(!got_.finish_reason.empty() || !got_.error.is_null(), "no finish_reason");
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
    const bool first = chunks_++ == 0;
    if (first) {
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
    read_choice(chunk["choices"][0], first);
  }

  void read_usage(const json& chunk) {
    expect(!got_.finish_reason.empty(), "usage before the finish_reason");
    expect(got_.usage.is_null(), "a second usage");
    expect(chunk.contains("usage") && chunk["usage"].is_object(), "no choice and no usage");
    if (got_.problem.empty()) got_.usage = chunk["usage"];
  }

  void read_choice(const json& choice, bool first) {
    expect(choice.value("index", -1) == 0, "no index in a choice");
    expect(choice.contains("delta") && choice["delta"].is_object(), "no delta in a choice");
    expect(choice.contains("logprobs") && choice["logprobs"].is_null(), "no logprobs in a choice");
    expect(choice.contains("finish_reason"), "no finish_reason in a choice");
    expect(got_.finish_reason.empty(), "a choice after the finish_reason");
    if (!got_.problem.empty()) return;
    const auto& delta = choice["delta"];
    expect(delta.contains("role") == first, "the role is in the first chunk and in no other");
    if (first) {
      got_.role = delta.value("role", "");
      expect(delta.size() == 2 && delta.contains("content"), "the first delta is role and content");
    }
    if (!choice["finish_reason"].is_null()) {
      expect(delta.empty(), "the last delta is not empty");
      got_.finish_reason = choice["finish_reason"].get<std::string>();
      return;
    }
    expect(delta.contains("content") && delta["content"].is_string(), "a delta without content");
    if (got_.problem.empty()) got_.content += delta["content"].get<std::string>();
  }

  chat_answer got_;
  std::size_t chunks_ = 0;
  bool done_ = false;
};

inline chat_answer read_chat_stream(std::string_view bytes) {
  return chat_stream_reader().read(bytes);
}

}  // namespace test
