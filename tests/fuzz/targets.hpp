// What is fuzzed: everything that reads bytes of strangers, or writes them on. A target is given any
// bytes and says what is wrong with what came of them; nothing is wrong with an error that is told.
//
// `fuzz.cpp` drives them with libFuzzer, the units with the inputs in tests/fuzz/corpus/TARGET.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/support.hpp"

namespace fuzz {

using namespace claude_openai;

/// Takes choices from the front of an input, so that the rest stays readable.
class choices {
 public:
  explicit choices(std::string_view bytes) : bytes_(bytes) {}

  std::size_t below(std::size_t limit) {
    if (bytes_.empty()) return 0;
    const auto choice = static_cast<unsigned char>(bytes_.front());
    bytes_.remove_prefix(1);
    return choice % limit;
  }

  std::string text(std::size_t most) {
    const auto size = std::min(below(most + 1), bytes_.size());
    const auto said = std::string(bytes_.substr(0, size));
    bytes_.remove_prefix(size);
    return said;
  }

  bool empty() const { return bytes_.empty(); }
  std::string_view rest() const { return bytes_; }

 private:
  std::string_view bytes_;
};

inline bool is_json_line(std::string_view line) {
  return !line.empty() && line.find('\n') == line.size() - 1 &&
         json::accept(line.begin(), line.end());
}

/// A request is told to the CLI in whole lines of JSON, or refused by a message in UTF-8.
inline std::string parse_with(const dialect_functions& dialect, std::string_view bytes) {
  try {
    auto parsed = dialect.parse(parse_body(bytes), {"id", 1, "req_1", {}});
    const bool loads = dialect.name == "ollama" && parsed.turns.empty();
    if (loads) return json::accept(parsed.reply->render({})) ? "" : "a load that is no JSON";
    if (parsed.turns.empty() || !parsed.reply) return "a request without a turn or a writer";
    auto& turn = parsed.turns.front();
    apply_model_limits(turn, traits_of(turn.model.empty() ? "sonnet" : turn.model, {}));
    match_tool_calls(turn.messages);
    define_called_tools(turn);
    const auto trace = make_trace(turn);
    const bool whole = trace.ends.size() == turn.messages.size();
    if (!whole || trace.ends.back() != trace.words.size()) return "a wrong trace";
    const auto shape = make_answer_shape(turn);
    if (!is_json_line(encode_initialize("i", turn))) return "initialize is no line of JSON";
    if (!is_json_line(encode_settings("s", turn, shape.names))) return "settings are no line";
    std::size_t number = 0;
    for (const auto& said : turn.messages) {
      const bool last = ++number == turn.messages.size();
      if (!is_json_line(encode_message(said, shape.names, {last, "u", number, "m"}))) {
        return "a message is no line of JSON";
      }
    }
  } catch (const api_error& error) {
    for (const auto& told : {dialect.render_error(error, "req_1")}) {
      if (!json::accept(told)) return "an error that is no JSON";
    }
    if (error.message.empty() || http_status(error.kind) / 100 != 4) return "an odd refusal";
  }
  return {};
}

/// Lines of a CLI, cut anywhere: the events keep the grammar, whatever the lines say.
inline std::string decode(std::string_view bytes) {
  choices input(bytes);
  answer_shape shape;
  shape.structured = input.below(4) == 0;
  shape.streamed = input.below(2) == 0;
  shape.agent = input.below(3) == 0;
  shape.shows_activity = input.below(2) == 0;
  const auto piece = 1 + input.below(64);
  turn_decoder decoder(0, shape);
  line_splitter lines;
  std::vector<event> told;
  for (auto rest = input.rest(); !rest.empty();) {
    const auto size = std::min(piece, rest.size());
    lines.feed(rest.substr(0, size));
    rest.remove_prefix(size);
    while (const auto line = lines.next()) {
      const json parsed = json::parse(*line, nullptr, false);
      if (parsed.is_object()) decoder.decode(parsed, told);
    }
  }
  decoder.fail(api_error(error_kind::bad_gateway, "claude ended"), told);
  return test::grammar_problem(told);
}

/// A turn that keeps the grammar, made of the input's choices.
inline std::vector<event> make_turn(choices& input) {
  std::vector<event> told{turn_started{input.text(8), {}}};
  bool calls = false;
  for (std::size_t index = 0; !input.empty() && index < 20; ++index) {
    constexpr std::array<block_kind, 5> kinds = {block_kind::text, block_kind::thinking,
                                                 block_kind::redacted_thinking,
                                                 block_kind::tool_call, block_kind::activity};
    const auto kind = kinds.at(input.below(kinds.size()));
    block_started begun{index, kind, {}, {}};
    if (kind == block_kind::tool_call) {
      begun.id = "id" + std::to_string(index);
      begun.name = "n" + input.text(8);
      calls = true;
    }
    told.emplace_back(begun);
    for (auto pieces = 1 + input.below(4); pieces > 0; --pieces) {
      told.emplace_back(block_delta{index, "x" + input.text(12)});
    }
    told.emplace_back(
        block_stopped{index, kind == block_kind::thinking ? input.text(4) : std::string()});
    if (input.below(12) == 0) {
      told.emplace_back(turn_failed{api_error(error_kind::upstream_failed, input.text(8))});
      return told;
    }
  }
  auto reason = static_cast<stop_reason>(input.below(6));
  if (reason == stop_reason::tool_use && !calls) reason = stop_reason::end_turn;
  told.emplace_back(turn_stopped{reason, input.text(4), {}});
  return told;
}

/// Every `data:` of a stream is one line of JSON, or the end mark.
inline std::string check_stream(std::string_view stream) {
  while (!stream.empty()) {
    const auto end = stream.find("\n\n");
    if (end == std::string_view::npos) return "a stream that ends within an event";
    for (const auto& line : text::split(stream.substr(0, end), '\n')) {
      if (line.compare(0, 6, "data: ") != 0) continue;
      const auto data = line.substr(6);
      if (data != "[DONE]" && !json::accept(data)) return "an event that is no JSON: " + data;
    }
    stream.remove_prefix(end + 2);
  }
  return {};
}

/// Every line of a stream of Ollama's is JSON.
inline std::string check_lines(const std::string& stream) {
  if (stream.empty() || stream.back() != '\n') return "a stream that ends within a line";
  for (const auto& line : text::split(stream.substr(0, stream.size() - 1), '\n')) {
    if (!json::accept(line)) return "a line that is no JSON: " + line;
  }
  return {};
}

/// Any turn is written as a stream and as one body, in all dialects.
inline std::string write(std::string_view bytes) {
  choices input(bytes);
  const std::array<std::pair<const dialect_functions*, const char*>, 6> dialects = {{
      {&openai_chat::dialect, R"({"messages":[{"role":"user","content":"x"}],"stream":true,
                                  "stream_options":{"include_usage":true}})"},
      {&anthropic_messages::dialect,
       R"({"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":9,"stream":true})"},
      {&openai_responses::dialect, R"({"input":"x","stream":true})"},
      {&openai_completions::dialect, R"({"prompt":"x","stream":true})"},
      {&ollama::chat_dialect, R"({"messages":[{"role":"user","content":"x"}]})"},
      {&ollama::generate_dialect, R"({"prompt":"x"})"},
  }};
  const auto turn = make_turn(input);
  if (auto fault = test::grammar_problem(turn); !fault.empty()) return "bad test: " + fault;
  for (const auto& [dialect, body] : dialects) {
    const auto parsed = dialect->parse(parse_body(body), {"id", 1, "req_1", {}});
    std::string stream;
    collector whole;
    for (const auto& what : turn) parsed.reply->write(0, what, stream);
    const bool lines = parsed.reply->stream_type() == std::string_view("application/x-ndjson");
    auto fault = lines ? check_lines(stream) : check_stream(stream);
    if (!fault.empty()) return fault;
    try {
      for (const auto& what : turn) whole.add(what);
      if (!json::accept(parsed.reply->render({whole.result()}))) return "a body that is no JSON";
    } catch (const api_error&) {  // the turn failed
    }
  }
  return {};
}

/// The head that is taken says where the request ends, and chunks do not depend on how they are cut.
inline std::string read_head(std::string_view bytes) {
  choices input(bytes);
  const auto piece = 1 + input.below(32);
  try {
    const auto head = http_head::parse(input.rest());
    if (head.chunked && head.content_length) return "two lengths";
    if (head.target.empty() || head.method.empty()) return "an empty request line";
    for (const auto& [name, value] : head.fields) {
      if (value.find_first_of(std::string_view("\r\n\0", 3)) != value.npos || name.empty()) {
        return "a field with a line end";
      }
    }
  } catch (const api_error&) {
  }
  const auto decode = [&](std::size_t step) {
    std::string body;
    chunk_decoder chunks;
    try {
      for (auto rest = input.rest(); !rest.empty() && !chunks.done();) {
        const auto used = chunks.feed(rest.substr(0, std::min(step, rest.size())), body);
        rest.remove_prefix(used);
      }
    } catch (const api_error&) {
      return std::string("refused");
    }
    return (chunks.done() ? "whole " : "open ") + body;
  };
  return decode(piece) == decode(bytes.size() + 1) ? "" : "chunks depend on how they are cut";
}

/// What decides who comes in, and what is masked.
inline std::string guard_door(std::string_view bytes) {
  choices input(bytes);
  options settings;
  if (input.below(2) == 0) settings.api_keys = {"key-one", "key-two"};
  if (input.below(3) == 0) settings.cors_origins = {"https://app.example.com"};
  credentials shown{input.text(24), input.text(24), input.text(24), input.text(12),
                    input.below(2) == 0};
  bool in = false;
  try {
    check_access(shown, settings, true);
    in = true;
  } catch (const api_error& error) {
    if (!json::accept(openai_chat::render_error(error))) return "a refusal that is no JSON";
  }
  const auto key = presented_key(shown);
  if (in && !settings.api_keys.empty() && key != "key-one" && key != "key-two") return "no key";
  client_address(shown.host, shown.origin, {shown.api_key, "10.0.0.0/8"});
  redact(input.rest());
  return {};
}

struct target {
  const char* name;
  std::string (*run)(std::string_view bytes);
};

constexpr std::array<target, 10> targets = {{
    {"chat", [](std::string_view bytes) { return parse_with(openai_chat::dialect, bytes); }},
    {"messages",
     [](std::string_view bytes) { return parse_with(anthropic_messages::dialect, bytes); }},
    {"responses",
     [](std::string_view bytes) { return parse_with(openai_responses::dialect, bytes); }},
    {"completions",
     [](std::string_view bytes) { return parse_with(openai_completions::dialect, bytes); }},
    {"ollama", [](std::string_view bytes) { return parse_with(ollama::chat_dialect, bytes); }},
    {"generate",
     [](std::string_view bytes) { return parse_with(ollama::generate_dialect, bytes); }},
    {"decoder", decode},
    {"writers", write},
    {"http_head", read_head},
    {"guard", guard_door},
}};

}  // namespace fuzz
