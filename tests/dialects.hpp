// What the tests of the dialects share: a request at a glance, scripts of events, and independent
// readers of each vendor's streams. Nothing here uses the product's own translators.
#pragma once

#include "tests/support.hpp"

namespace test {

// ---- requests ----------------------------------------------------------------------------------

inline std::string outline(const claude_openai::media_part& media) {
  const bool image = media.kind == claude_openai::media_part::media_kind::image;
  std::string all = image ? "image(" : "document(";
  all += media.url.empty() ? media.media_type + "," + media.data : "url " + media.url;
  return all + (media.title.empty() ? "" : "," + media.title) + ")";
}

inline std::string outline(const claude_openai::content_part& part) {
  using namespace claude_openai;
  return std::visit(
      overloaded{
          [](const text_part& said) { return "<" + said.text + ">"; },
          [](const media_part& media) { return outline(media); },
          [](const thinking_part& thought) {
            return "thought(" + thought.text + "," + thought.signature + "," + thought.redacted +
                   ")";
          },
          [](const tool_call_part& call) {
            return "call(" + call.id + "," + call.name + "," + call.input.dump() + ")";
          },
          [](const tool_result_part& result) {
            std::string all = (result.is_error ? "failure(" : "result(") + result.call_id;
            for (const auto& piece : result.content) {
              const auto* said = std::get_if<text_part>(&piece);
              all += said ? " <" + said->text + ">" : " " + outline(std::get<media_part>(piece));
            }
            return all + ")";
          },
          [](const api_block_part& kept) { return "api(" + kept.block.dump() + ")"; },
      },
      part);
}

/// `{system} user: <a> <b> assistant: <c>`, so that a whole request reads at a glance.
inline std::string outline(const claude_openai::turn_request& request) {
  std::string all = "{" + request.system + "}";
  for (const auto& said : request.messages) {
    all += said.author == claude_openai::role::user ? " user:" : " assistant:";
    for (const auto& part : said.parts) all += " " + outline(part);
  }
  return all;
}

// ---- scripts of events -------------------------------------------------------------------------

using events = std::vector<claude_openai::event>;

inline claude_openai::token_usage some_usage() {
  claude_openai::token_usage usage;
  usage.input = 11;
  usage.cache_read = 200;
  usage.cache_write = 3000;
  usage.cache_write_5m = 1000;
  usage.cache_write_1h = 2000;
  usage.output = 70;
  usage.thinking = 5;
  return usage;
}

/// The events of a turn whose blocks are these. Builds what a decoder would tell.
class script {
 public:
  explicit script(const std::string& model = "claude-x") {
    claude_openai::token_usage usage;
    usage.input = 11;
    usage.output = 1;
    told_.emplace_back(claude_openai::turn_started{model, usage});
  }

  script& block(claude_openai::block_kind kind, const std::vector<std::string>& deltas,
                const std::string& signature = "") {
    return add(claude_openai::block_started{blocks_, kind, {}, {}}, deltas, signature);
  }
  script& text(const std::vector<std::string>& deltas) {
    return block(claude_openai::block_kind::text, deltas);
  }
  script& thinking(const std::vector<std::string>& deltas, const std::string& signature) {
    return block(claude_openai::block_kind::thinking, deltas, signature);
  }
  script& call(const std::string& id, const std::string& name,
               const std::vector<std::string>& deltas) {
    return add({blocks_, claude_openai::block_kind::tool_call, id, name}, deltas, "");
  }

  events stop(claude_openai::stop_reason reason = claude_openai::stop_reason::end_turn,
              const std::string& sequence = "") {
    auto all = told_;
    all.emplace_back(claude_openai::turn_stopped{reason, sequence, some_usage()});
    return all;
  }
  events fail(claude_openai::api_error error) {
    auto all = told_;
    all.emplace_back(claude_openai::turn_failed{std::move(error)});
    return all;
  }
  /// As it stands, without an end.
  const events& so_far() const { return told_; }

 private:
  script& add(const claude_openai::block_started& begun, const std::vector<std::string>& deltas,
              const std::string& signature) {
    told_.emplace_back(begun);
    for (const auto& more : deltas) {
      told_.emplace_back(claude_openai::block_delta{blocks_, more});
    }
    told_.emplace_back(claude_openai::block_stopped{blocks_++, signature});
    return *this;
  }

  events told_;
  std::size_t blocks_ = 0;
};

inline std::string written(claude_openai::reply& writer, const events& all) {
  std::string bytes;
  for (const auto& what : all) writer.write(0, what, bytes);
  return bytes;
}

/// The body for a client that does not stream.
inline json rendered(const claude_openai::reply& writer, const events& all) {
  claude_openai::collector gathered;
  for (const auto& what : all) gathered.add(what);
  return json::parse(writer.render({gathered.result()}));
}

// ---- named events ------------------------------------------------------------------------------

/// One event of a stream that names its events.
struct named_event {
  std::string name;
  json data;
};

/// The events of a stream of `event:` and `data:` lines, comments left out. `problem` tells the
/// first frame that is no such event.
inline std::vector<named_event> named_events(std::string_view bytes, std::string& problem) {
  std::vector<named_event> all;
  while (!bytes.empty() && problem.empty()) {
    const auto end = bytes.find("\n\n");
    if (end == std::string_view::npos) problem = "a frame without an end";
    const auto frame = bytes.substr(0, end);
    bytes.remove_prefix(end == std::string_view::npos ? bytes.size() : end + 2);
    if (frame.substr(0, 1) == ":") continue;
    const auto line_end = frame.find('\n');
    const bool two_lines = frame.substr(0, 7) == "event: " && line_end != std::string_view::npos &&
                           frame.substr(line_end + 1, 6) == "data: " &&
                           frame.find('\n', line_end + 1) == std::string_view::npos &&
                           frame.find('\r') == std::string_view::npos;
    if (!two_lines) problem = "a frame that is not an event and its data: " + std::string(frame);
    if (!problem.empty()) break;
    named_event one{std::string(frame.substr(7, line_end - 7)),
                    json::parse(frame.substr(line_end + 7), nullptr, false)};
    if (!one.data.is_object() || one.data.value("type", "") != one.name) {
      problem = "an event whose data has another type: " + std::string(frame);
    }
    all.push_back(std::move(one));
  }
  return all;
}

/// The events' names, with spaces.
inline std::string names_of(const std::vector<named_event>& all) {
  std::string names;
  for (const auto& one : all) names += (names.empty() ? "" : " ") + one.name;
  return names;
}

// ---- messages streams --------------------------------------------------------------------------

/// Gathers the events of the Messages API into the message, as Anthropic's SDKs do, and checks what
/// the strictest client checks. `error` is set when the stream ends with one.
class messages_stream_reader {
 public:
  std::string problem;
  json message;
  json error;
  std::size_t pings = 0;

  explicit messages_stream_reader(std::string_view bytes) {
    for (const auto& one : named_events(bytes, problem)) read(one);
    expect(ended_ || !error.is_null(), "no message_stop");
  }

 private:
  void expect(bool holds, const std::string& rule) {
    if (!holds && problem.empty()) problem = rule;
  }

  void read(const named_event& one) {
    expect(!ended_ && error.is_null(), "an event after the end");
    if (!problem.empty()) return;
    const auto& data = one.data;
    if (one.name == "ping") {
      ++pings;
    } else if (one.name == "error") {
      error = data;
    } else if (one.name == "message_start") {
      expect(message.is_null(), "a second message_start");
      message = data.value("message", json());
      expect(message.is_object() && message.value("content", json()) == json::array(),
             "a message that does not begin empty");
      expect(message.contains("stop_reason") && message["stop_reason"].is_null(),
             "a stop_reason before the end");
      expect(message.contains("usage"), "no usage at the start");
    } else {
      expect(message.is_object(), one.name + " before message_start");
      if (problem.empty()) read_further(one.name, data);
    }
  }

  void read_further(const std::string& name, const json& data) {
    auto& content = message["content"];
    expect(!stopped_ || name == "message_stop", name + " after message_delta");
    if (!problem.empty()) return;
    if (name == "content_block_start") {
      expect(!open_, "a block within a block");
      expect(data.value("index", 999U) == content.size(), "block indexes are not dense");
      expect(data.contains("content_block"), "a block without its beginning");
      if (problem.empty()) content.push_back(data["content_block"]);
      open_ = true;
      signed_ = false;
      partial_.clear();
    } else if (name == "content_block_delta" || name == "content_block_stop") {
      expect(open_, name + " without a block");
      expect(data.value("index", 999U) + 1 == content.size(), name + " of another block");
      if (!problem.empty()) return;
      if (name == "content_block_delta") return read_delta(data.value("delta", json()));
      open_ = false;
      if (content.back()["type"] != "tool_use" || partial_.empty()) return;
      content.back()["input"] = json::parse(partial_, nullptr, false);
    } else if (name == "message_delta") {
      expect(!open_, "message_delta within a block");
      expect(data.contains("delta") && data.contains("usage"), "a message_delta without its parts");
      message.update(data.value("delta", json::object()));
      message["usage"].update(data.value("usage", json::object()));
      stopped_ = true;
    } else {
      expect(name == "message_stop", "an event of no known name: " + name);
      expect(stopped_, "message_stop without message_delta");
      ended_ = true;
    }
  }

  void read_delta(const json& delta) {
    auto& block = message["content"].back();
    const auto type = delta.value("type", "");
    const auto of = [&](const char* kind, const char* member) {
      expect(block["type"] == kind, type + " in a block of another type");
      expect(!signed_, type + " after the signature");
      expect(delta.contains(member) && delta[member].is_string(), type + " without its text");
      return problem.empty() ? delta[member].get<std::string>() : std::string();
    };
    if (type == "text_delta") {
      append(block["text"], of("text", "text"));
    } else if (type == "thinking_delta") {
      append(block["thinking"], of("thinking", "thinking"));
    } else if (type == "signature_delta") {
      block["signature"] = of("thinking", "signature");
      signed_ = true;
    } else if (type == "input_json_delta") {
      partial_ += of("tool_use", "partial_json");
    } else {
      expect(false, "a delta of no known type: " + type);
    }
  }

  static void append(json& text, const std::string& more) { text.get_ref<std::string&>() += more; }

  bool open_ = false;
  bool signed_ = false;  ///< the open block
  bool stopped_ = false;
  bool ended_ = false;
  std::string partial_;  ///< JSON of the open tool call
};

// ---- responses streams -------------------------------------------------------------------------

/// Gathers the events of the Responses API item by item, as OpenAI's SDKs do, and checks that what
/// is told at the end of each part is what came before. `response` is the last event's.
class responses_stream_reader {
 public:
  std::string problem;
  json response;
  std::string ending;  ///< the last event's name

  explicit responses_stream_reader(std::string_view bytes) {
    std::int64_t next = 0;
    for (const auto& one : named_events(bytes, problem)) {
      expect(ending.empty(), "an event after the end");
      expect(one.data.value("sequence_number", std::int64_t{-1}) == next++,
             "a gap in the sequence numbers at " + one.name);
      if (problem.empty()) read(one.name, one.data);
    }
    expect(!ending.empty(), "no end");
  }

 private:
  void expect(bool holds, const std::string& rule) {
    if (!holds && problem.empty()) problem = rule;
  }

  void read(const std::string& name, const json& data) {
    const bool ends =
        name == "response.completed" || name == "response.incomplete" || name == "response.failed";
    if (ends) return read_end(name, data);
    if (name == "response.created" || name == "response.in_progress") {
      const bool first = name == "response.created";
      expect(created_.is_null() == first, name + " at the wrong place");
      if (first) created_ = data.value("response", json());
      if (!problem.empty()) return;
      expect(created_.is_object() && created_ == data["response"], "not the response created");
      expect(created_.value("status", "") == "in_progress", "another status than in_progress");
      expect(created_.value("output", json()) == json::array(), "output from the start");
      expect(first || (!in_progress_ && items_.empty()), "in_progress at the wrong place");
      in_progress_ = !first;
      return;
    }
    expect(in_progress_, name + " before response.in_progress");
    if (name == "response.output_item.added") return add_item(data);
    expect(open_, name + " outside of an item");
    expect(data.value("output_index", 999U) + 1 == items_.size(), name + " of another item");
    if (!problem.empty()) return;
    if (name == "response.output_item.done") return end_item(data);
    expect(data.value("item_id", "") == items_.back()["id"], name + " with another item's id");
    if (problem.empty()) read_part(name, data);
  }

  void read_end(const std::string& name, const json& data) {
    ending = name;
    response = data.value("response", json());
    expect(response.is_object(), "an end without the response");
    expect(in_progress_ || name == "response.failed", "an end before the beginning");
    expect(!open_ || name == "response.failed", "an end within an item");
    expect(!cut_ || name == "response.incomplete", "an incomplete item of a whole response");
    if (!problem.empty()) return;
    if (open_) items_.erase(items_.size() - 1);  // it never became one
    expect(response["output"] == items_, "the last output is not what the events told");
    expect(response.value("status", "") != "in_progress", "in_progress at the end");
    if (!created_.is_object()) return;
    for (const auto& [member, value] : created_.items()) {
      const bool changes = member == "status" || member == "output" || member == "usage" ||
                           member == "error" || member == "incomplete_details";
      expect(changes || response.value(member, json()) == value, member + " has changed");
    }
  }

  void add_item(const json& data) {
    expect(!open_, "an item within an item");
    expect(!cut_, "an item after one that was cut");
    expect(data.value("output_index", 999U) == items_.size(), "the items' indexes are not dense");
    expect(data.contains("item") && !data["item"].value("id", "").empty(), "an item without an id");
    if (!problem.empty()) return;
    items_.push_back(data["item"]);
    const auto status = data["item"].value("status", "in_progress");
    expect(status == "in_progress", "an item that is not in progress from the start");
    open_ = true;
    text_.reset();
    if (data["item"].contains("call_id")) text_.emplace();
    whole_ = false;
  }

  /// The item as it was told by pieces, but for what is told at its end only.
  void end_item(const json& data) {
    const auto& item = data["item"];
    auto& known = items_.back();
    const auto type = known.value("type", "");
    const auto status = item.value("status", "completed");
    cut_ = status == "incomplete";
    if (cut_ && !whole_ && type != "message" && text_) {  // a call, whose end is told of none
      if (type == "function_call") known["arguments"] = *text_;
      text_.reset();
    }
    expect(!text_, "an item that ends within a part");
    expect(cut_ || status == "completed", "a done item that is not completed");
    if (known.contains("status")) known["status"] = status;
    if (item.contains("encrypted_content")) known["encrypted_content"] = item["encrypted_content"];
    const bool same = known == item;
    expect(same, "a done item that is not what its events told: " + known.dump() + item.dump());
    open_ = false;
  }

  /// A part is added, grows, and is told once more when it is done.
  void read_part(const std::string& name, const json& data) {
    auto& item = items_.back();
    const auto type = item.value("type", "");
    const auto grow = [&] {
      expect(text_.has_value(), name + " outside of a part");
      expect(data.contains("delta") && data["delta"].is_string(), name + " without a delta");
      expect(!whole_, name + " after the part's end");
      if (problem.empty()) *text_ += data["delta"].get<std::string>();
    };
    const auto whole = [&](const char* member) {
      const bool same = text_ && data.contains(member) && data[member] == *text_;
      expect(same && !whole_, name + " is not what the deltas told");
      whole_ = true;
    };
    if (type == "message") {
      expect(data.value("content_index", 999U) == 0, "another part than the first");
      if (name == "response.content_part.added") return begin_part(item["content"], data);
      if (name == "response.output_text.delta") return grow();
      if (name == "response.output_text.done") return whole("text");
      expect(name == "response.content_part.done", name + " in a message");
      end_part(item["content"], data);
    } else if (type == "reasoning") {
      expect(data.value("summary_index", 999U) == 0, "another part than the first");
      if (name == "response.reasoning_summary_part.added") return begin_part(item["summary"], data);
      if (name == "response.reasoning_summary_text.delta") return grow();
      if (name == "response.reasoning_summary_text.done") return whole("text");
      expect(name == "response.reasoning_summary_part.done", name + " in a thought");
      end_part(item["summary"], data);
      const bool empty = problem.empty() && item["summary"].back()["text"] == "";
      if (empty) item["summary"] = json::array();
    } else {
      const bool custom = type == "custom_tool_call";
      const std::string stem =
          custom ? "response.custom_tool_call_input" : "response.function_call_arguments";
      const char* member = custom ? "input" : "arguments";
      if (name == stem + ".delta") return grow();
      expect(name == stem + ".done", name + " in a call");
      whole(member);
      if (!problem.empty()) return;
      item[member] = *text_;
      text_.reset();
    }
  }

  void begin_part(json& parts, const json& data) {
    expect(!text_ && parts == json::array(), "a part within a part");
    expect(data.contains("part") && data["part"].value("text", "x").empty(),
           "a part that does not begin empty");
    if (!problem.empty()) return;
    parts.push_back(data["part"]);
    text_.emplace();
    whole_ = false;
  }

  void end_part(json& parts, const json& data) {
    expect(text_ && whole_ && !parts.empty(), "the end of no part");
    if (!problem.empty()) return;
    parts.back()["text"] = *text_;
    expect(data.value("part", json()) == parts.back(), "a done part that is not what came before");
    text_.reset();
  }

  json created_;
  json items_ = json::array();
  bool in_progress_ = false;
  bool open_ = false;
  bool cut_ = false;                 ///< the last item was
  std::optional<std::string> text_;  ///< of the open part
  bool whole_ = false;               ///< it was told whole
};

// ---- completions streams -----------------------------------------------------------------------

/// Gathers the chunks of the legacy completions API into the whole object.
class completions_stream_reader {
 public:
  std::string problem;
  json whole;
  json error;

  explicit completions_stream_reader(std::string_view bytes) {
    bool done = false;
    while (!bytes.empty() && problem.empty()) {
      const auto end = bytes.find("\n\n");
      expect(end != std::string_view::npos, "a frame without an end");
      if (!problem.empty()) break;
      const auto frame = bytes.substr(0, end);
      bytes.remove_prefix(end + 2);
      expect(!done, "a frame after [DONE]");
      if (frame.substr(0, 1) == ":") continue;
      expect(frame.substr(0, 6) == "data: ", "a frame that is neither data nor a comment");
      expect(frame.find('\n') == std::string_view::npos, "a frame of several lines");
      done = frame.substr(6) == "[DONE]";
      if (!done && problem.empty()) read(json::parse(frame.substr(6), nullptr, false));
    }
    expect(done, "no [DONE]");
  }

 private:
  void expect(bool holds, const char* rule) {
    if (!holds && problem.empty()) problem = rule;
  }

  void read(const json& chunk) {
    expect(chunk.is_object(), "data that is not a JSON object");
    expect(error.is_null(), "data after an error");
    if (!problem.empty()) return;
    if (chunk.contains("error")) {
      error = chunk["error"];
      return;
    }
    if (whole.is_null()) {
      whole = chunk;
      whole["choices"] = json::array();
      whole.erase("usage");
    }
    for (const char* member : {"id", "object", "created", "model"}) {
      expect(chunk.contains(member) && chunk[member] == whole[member], "a chunk of another answer");
    }
    expect(chunk.contains("choices") && chunk["choices"].is_array(), "no choices");
    if (!problem.empty()) return;
    if (chunk["choices"].empty()) {
      expect(chunk.contains("usage") && !whole.contains("usage"), "no choice and no usage");
      whole["usage"] = chunk.value("usage", json());
      return;
    }
    expect(chunk.value("usage", json()).is_null(), "usage beside a choice");
    for (const auto& choice : chunk["choices"]) read_choice(choice);
  }

  void read_choice(const json& choice) {
    const auto index = choice.value("index", std::size_t{999});
    expect(index < 32, "no index in a choice");
    expect(choice.contains("text") && choice["text"].is_string(), "a choice without text");
    expect(choice.contains("finish_reason"), "a choice without finish_reason");
    expect(!whole.contains("usage"), "a choice after the usage");
    if (!problem.empty()) return;
    auto& choices = whole["choices"];
    while (choices.size() <= index) {
      choices.push_back({{"text", ""},
                         {"index", choices.size()},
                         {"logprobs", nullptr},
                         {"finish_reason", nullptr}});
    }
    auto& own = choices[index];
    expect(own["finish_reason"].is_null(), "a choice that goes on after its end");
    own["text"].get_ref<std::string&>() += choice["text"].get<std::string>();
    own["finish_reason"] = choice["finish_reason"];
  }
};

// ---- Ollama's streams --------------------------------------------------------------------------

/// Gathers the lines of `/api/chat` into the whole object, as Ollama's clients do.
class ollama_stream_reader {
 public:
  std::string problem;
  json whole = {{"message", {{"role", "assistant"}, {"content", ""}}}, {"done", false}};
  json error;

  explicit ollama_stream_reader(std::string_view bytes) {
    while (!bytes.empty() && problem.empty()) {
      const auto end = bytes.find('\n');
      expect(end != std::string_view::npos, "a line without an end");
      if (problem.empty()) read(json::parse(bytes.substr(0, end), nullptr, false));
      bytes.remove_prefix(std::min(end, bytes.size() - 1) + 1);
    }
    expect(whole["done"] == true || !error.is_null(), "no end");
  }

 private:
  void expect(bool holds, const char* rule) {
    if (!holds && problem.empty()) problem = rule;
  }

  void read(const json& line) {
    expect(line.is_object(), "a line that is no JSON object");
    expect(whole["done"] == false && error.is_null(), "a line after the end");
    if (!problem.empty()) return;
    if (line.contains("error")) {
      error = line["error"];
      return;
    }
    const auto message = line.value("message", json::object());
    expect(message.value("role", "") == "assistant" && message.contains("content"), "no message");
    if (!problem.empty()) return;
    for (const auto& [name, value] : line.items()) {
      if (name != "message") whole[name] = value;
    }
    auto& said = whole["message"];
    for (const char* name : {"content", "thinking"}) {
      if (message.contains(name)) {
        said[name] = said.value(name, "") + message[name].get<std::string>();
      }
    }
    for (const auto& call : message.value("tool_calls", json::array())) {
      expect(call["function"]["index"] == said["tool_calls"].size(), "a call out of its place");
      said["tool_calls"].push_back(call);
    }
  }
};

}  // namespace test
