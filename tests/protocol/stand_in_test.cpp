// The stand-in speaks as the real CLI does: every kind of line has the members that the recordings
// of 2.1.330 in tests/golden have, of the same JSON types, and the kinds come in the same order.
#include "support.hpp"

using namespace protocol_test;

namespace {

/// What a line is, as a decoder tells lines apart.
std::string kind_of(const json& line) {
  auto kind = line.value("type", "?");
  if (line.contains("subtype") && kind == "system") kind += "/" + line.value("subtype", "?");
  if (line.contains("event")) kind += "/" + line["event"].value("type", "?");
  if (line.contains("request")) {
    const auto& request = line["request"];
    kind += "/" + request["message"].value("method", "?");
  }
  return kind;
}

/// Members whose names or values are data: the API's, the caller's or the machine's.
bool is_data(const std::string& path) {
  static const std::set<std::string> names{".modelUsage",
                                           ".model_usage_since_last_result",
                                           ".event.usage",
                                           ".event.message.usage",
                                           ".message.usage",
                                           ".request.message.params.arguments",
                                           ".message.content[].input",
                                           ".errors",
                                           ".event.delta.stop_reason",
                                           ".event.delta.stop_sequence",
                                           ".stop_reason",
                                           ".result",
                                           ".message.stop_reason",
                                           ".error_status",
                                           ".api_error_status",
                                           ".num_turns"};
  return names.count(path) != 0;
}

/// `.event.delta.text:string`, for every member at any depth.
void add_shape(const json& value, const std::string& path, std::set<std::string>& shape) {
  if (is_data(path)) {
    shape.insert(path);
  } else if (value.is_object()) {
    for (const auto& [name, member] : value.items()) add_shape(member, path + "." + name, shape);
  } else if (value.is_array()) {
    shape.insert(path + "[]");
    for (const auto& member : value) {
      if (member.is_object()) add_shape(member, path + "[]", shape);
    }
  } else {
    shape.insert(path + ":" + (value.is_number() ? "number" : value.type_name()));
  }
}

using shapes = std::map<std::string, std::set<std::string>>;

shapes shapes_of(const std::vector<json>& lines) {
  shapes found;
  for (const auto& line : lines) add_shape(line, "", found[kind_of(line)]);
  return found;
}

/// The kinds in their order, with runs of one kind as one.
std::string order_of(const std::vector<json>& lines) {
  std::string order, last;
  for (const auto& line : lines) {
    const auto kind = kind_of(line);
    if (kind != last) order += kind + "\n";
    last = kind;
  }
  return order;
}

std::vector<json> parse_lines(std::istream& source) {
  std::vector<json> lines;
  for (std::string line; std::getline(source, line);) {
    lines.push_back(json::parse(line, nullptr, false));
    REQUIRE_FALSE(lines.back().is_discarded());
  }
  return lines;
}

std::filesystem::path golden_folder() {
  auto folder = std::filesystem::path(__FILE__).parent_path().parent_path() / "golden";
  if (!std::filesystem::exists(folder)) folder = "tests/golden";
  return folder;
}

std::vector<json> recorded(const std::string& scenario) {
  std::ifstream file(golden_folder() / (scenario + ".2.1.330.jsonl"));
  REQUIRE_MESSAGE(file, "no recording of " << scenario);
  return parse_lines(file);
}

json request_line(const char* id, const json& request) {
  return {{"type", "control_request"}, {"request_id", id}, {"request", request}};
}

json user_line(const std::string& text) {
  return {{"type", "user"},
          {"message", {{"role", "user"}, {"content", text}}},
          {"parent_tool_use_id", nullptr},
          {"session_id", ""}};
}

json with_uuid(json line, const std::string& uuid) {
  line["uuid"] = uuid;
  return line;
}

/// Runs one session of the stand-in, without the proxy's code.
class session {
 public:
  explicit session(const stand_in& program, const char* mode = "--bare") {
    int down[2], up[2];
    REQUIRE(::pipe2(down, O_CLOEXEC) == 0);
    REQUIRE(::pipe2(up, O_CLOEXEC) == 0);
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    const auto path = program.path();
    if (pid_ == 0) {
      ::dup2(down[0], STDIN_FILENO);
      ::dup2(up[1], STDOUT_FILENO);
      ::setenv("ANTHROPIC_API_KEY", "sk-ant-not-a-key", 1);
      ::execl(path.c_str(), path.c_str(), "-p", "--model=m", mode, static_cast<char*>(nullptr));
      ::_exit(127);
    }
    ::close(down[0]);
    ::close(up[1]);
    stdin_ = down[1];
    stdout_ = up[0];
  }
  session(const session&) = delete;
  session& operator=(const session&) = delete;
  ~session() {
    ::close(stdin_);
    ::close(stdout_);
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  void write(const json& line) const {
    const auto bytes = line.dump() + "\n";
    REQUIRE(::write(stdin_, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  }

  /// Lines up to and including the first of that kind.
  std::vector<json> read_to(const std::string& kind) {
    std::vector<json> lines;
    const auto deadline = steady::now() + 30s;
    while (lines.empty() || kind_of(lines.back()) != kind) {
      const auto end = buffer_.find('\n');
      if (end != std::string::npos) {
        lines.push_back(json::parse(buffer_.substr(0, end)));
        buffer_.erase(0, end + 1);
        continue;
      }
      pollfd readable{stdout_, POLLIN, 0};
      ::poll(&readable, 1, 100);
      REQUIRE_MESSAGE(steady::now() < deadline, "no " << kind);
      char bytes[65536];
      const auto count = (readable.revents != 0) ? ::read(stdout_, bytes, sizeof bytes) : 0;
      REQUIRE_FALSE((readable.revents != 0 && count <= 0));
      buffer_.append(bytes, static_cast<std::size_t>(count));
    }
    return lines;
  }

 private:
  pid_t pid_;
  int stdin_, stdout_;
  std::string buffer_;
};

/// What it answers to a request that takes this message back.
json rewind(session& talk, const std::string& uuid) {
  talk.write(
      request_line("r", {{"subtype", "rewind_conversation"}, {"target_message_uuid", uuid}}));
  return talk.read_to("control_response").back()["response"];
}

/// The texts that it holds, by an answer to `[[echo]]`.
std::string held_by(session& talk) {
  talk.write(with_uuid(user_line(told("echo")), "echo"));
  const auto echo = json::parse(talk.read_to("result").back().value("result", "{}"));
  std::string held;
  for (const auto& said : echo["history"]) {
    held += said["content"].get<std::string>() + "|";
  }
  return held;
}

std::vector<json> one_turn(const std::string& wish) {
  const stand_in program;
  session talk(program, wish == "not_logged_in" ? "--verbose" : "--bare");
  talk.write(request_line("1", {{"subtype", "initialize"}}));
  talk.read_to("control_response");
  talk.write(user_line(told(wish)));
  return talk.read_to("result");
}

std::string listed(const std::set<std::string>& names) {
  std::string list;
  for (const auto& name : names) list += "\n    " + name;
  return list;
}

void check_same_shapes(const std::vector<json>& real, const std::vector<json>& played) {
  const auto expected = shapes_of(real), got = shapes_of(played);
  for (const auto& each : expected) {
    INFO("kind of line: " << each.first);
    const auto& shape = each.second;
    const auto found = got.find(each.first);
    REQUIRE_MESSAGE(found != got.end(), "the stand-in never says this");
    std::set<std::string> missing, extra;
    std::set_difference(shape.begin(), shape.end(), found->second.begin(), found->second.end(),
                        std::inserter(missing, missing.end()));
    std::set_difference(found->second.begin(), found->second.end(), shape.begin(), shape.end(),
                        std::inserter(extra, extra.end()));
    CHECK_MESSAGE(missing.empty(), "the stand-in leaves out:" << listed(missing));
    CHECK_MESSAGE(extra.empty(), "the real one does not say:" << listed(extra));
  }
  CHECK(order_of(real) == order_of(played));
}

}  // namespace

TEST_CASE("stand-in: what it says in a turn has the recorded shape") {
  const std::vector<std::pair<std::string, std::string>> scenarios{
      {"plain", "text n=4"},
      {"thinking", "thinking n=3"},
      {"stop_sequence", "stop_sequence"},
      {"max_tokens", "max_tokens"},
      {"refusal", "refusal"},
      {"error_400", "api_error status=400"},
      {"error_401", "api_error status=401 retries=2"},
      {"error_404", "api_error status=404"},
      {"error_429", "api_error status=429 retries=2"},
      {"error_500", "api_error status=500 retries=2"},
      {"error_529", "api_error status=529 retries=2"},
      {"drop_same", "retry_midstream how=same"},
      {"drop_other", "retry_midstream how=different"},
      {"error_event", "api_error status=529 after=2"},
      {"error_event_recovered", "retry_midstream how=assistant_only"},
      {"not_logged_in", "not_logged_in"},
  };
  for (const auto& each : scenarios) {
    SUBCASE(each.first.c_str()) { check_same_shapes(recorded(each.first), one_turn(each.second)); }
  }
}

TEST_CASE("stand-in: history is acknowledged as recorded") {
  const stand_in program;
  session talk(program);
  std::vector<json> played;
  const auto take = [&](std::vector<json> lines) {
    played.insert(played.end(), lines.begin(), lines.end());
  };
  for (const auto* text : {"one", "two"}) {
    auto past = user_line(text);
    past["shouldQuery"] = false;
    talk.write(past);
    take(talk.read_to("result"));
    talk.write({{"type", "assistant"},
                {"message",
                 {{"role", "assistant"}, {"content", {{{"type", "text"}, {"text", "well"}}}}}}});
  }
  talk.write(user_line("live"));
  take(talk.read_to("result"));
  check_same_shapes(recorded("replay"), played);
}

TEST_CASE("stand-in: an interrupted turn ends as recorded") {
  const stand_in program;
  session talk(program);
  talk.write(user_line(told("hang after=2")));
  auto played = talk.read_to("stream_event/content_block_delta");
  talk.write(request_line("2", {{"subtype", "interrupt"}}));
  const auto rest = talk.read_to("result");
  played.insert(played.end(), rest.begin(), rest.end());
  check_same_shapes(recorded("interrupted"), played);
}

TEST_CASE("stand-in: the client's tools are called as recorded") {
  const stand_in program;
  session talk(program);
  const auto answer = [&](const json& request, const json& result) {
    const auto& message = request["request"]["message"];
    const json reply{{"jsonrpc", "2.0"}, {"id", message.value("id", 0)}, {"result", result}};
    talk.write({{"type", "control_response"},
                {"response",
                 {{"subtype", "success"},
                  {"request_id", request["request_id"]},
                  {"response", {{"mcp_response", reply}}}}}});
  };
  talk.write(request_line("1", {{"subtype", "initialize"}, {"sdkMcpServers", {"client"}}}));
  const auto opening = talk.read_to("control_response");
  REQUIRE(kind_of(opening.front()) == "control_request/initialize");
  answer(opening.front(), json::object());
  auto played = talk.read_to("control_request/tools/list");
  answer(played.back(), {{"tools", json::array()}});
  talk.write(user_line(told("tool names=a,b")));
  std::vector<json> calls;
  while (calls.size() < 2) {
    const auto lines = talk.read_to("control_request/tools/call");
    calls.push_back(lines.back());
    played.insert(played.end(), lines.begin(), lines.end());
  }
  for (const auto& call : calls) {
    answer(call, {{"content", {{{"type", "text"}, {"text", "sunny"}}}}});
  }
  const auto rest = talk.read_to("result");
  played.insert(played.end(), rest.begin(), rest.end());
  check_same_shapes(recorded("tool_parallel"), played);
}

TEST_CASE("stand-in: `initialize` is answered with the recorded members") {
  const stand_in program;
  session talk(program);
  talk.write(request_line("1", {{"subtype", "initialize"}}));
  const auto played = talk.read_to("control_response");
  std::ifstream file(golden_folder() / "initialize.2.1.330.json");
  check_same_shapes({json::parse(file)}, played);
}

TEST_CASE("stand-in: other control requests are answered as the protocol tells") {
  const stand_in program;
  session talk(program);
  const auto ask = [&](const json& request) {
    talk.write(request_line("7", request));
    return talk.read_to("control_response").back()["response"];
  };
  CHECK(ask({{"subtype", "apply_flag_settings"}, {"settings", json::object()}}) ==
        json{{"subtype", "success"}, {"request_id", "7"}});
  CHECK(ask({{"subtype", "set_max_thinking_tokens"}, {"max_thinking_tokens", 0}})["subtype"] ==
        "success");
  CHECK(ask({{"subtype", "set_permission_mode"}, {"mode", "plan"}})["response"]["mode"] == "plan");
  CHECK(ask({{"subtype", "interrupt"}})["response"]["still_queued"].empty());
  CHECK(ask({{"subtype", "no_such"}})["error_code"] == "unsupported_request");
}

TEST_CASE(
    "stand-in: the user's last message is taken back with all after it, then the one before") {
  const stand_in program;
  session talk(program);
  auto past = with_uuid(user_line("past"), "00000001-0000-4000-8000-aaaa");
  past["shouldQuery"] = false;
  talk.write(past);
  talk.read_to("result");
  talk.write({{"type", "assistant"}, {"message", {{"role", "assistant"}, {"content", "well"}}}});
  talk.write(with_uuid(user_line(told("text n=1")), "00000002-0000-4000-8000-aaaa"));
  talk.read_to("result");
  CHECK(rewind(talk, "00000001-0000-4000-8000-aaaa")["response"] ==
        json{{"rewound", false}, {"reason", "stale_target"}});
  CHECK(rewind(talk, "no such")["response"]["reason"] == "stale_target");
  const auto middle = rewind(talk, "00000002-0000-4000-8000-bbbb")["response"];  // 24 characters
  CHECK(middle["rewound"] == true);
  CHECK(middle["prefillText"] == told("text n=1"));
  CHECK(middle["precedingAssistantUuid"].is_string());
  CHECK(rewind(talk, "00000002-0000-4000-8000-aaaa")["response"]["rewound"] == false);
  const auto start = rewind(talk, "00000001-0000-4000-8000-aaaa")["response"];
  CHECK(start["rewound"] == true);
  CHECK(start["precedingAssistantUuid"].is_null());
  CHECK(held_by(talk) == "[[echo]]|");
}

TEST_CASE("stand-in: an interrupted message is taken back, but none while its turn runs") {
  const stand_in program;
  session talk(program);
  talk.write(with_uuid(user_line(told("hang after=2")), "a"));
  talk.read_to("stream_event/content_block_delta");
  CHECK(rewind(talk, "a")["response"]["reason"] == "commands_queued");
  talk.write(request_line("2", {{"subtype", "interrupt"}}));
  talk.read_to("result");
  CHECK(rewind(talk, "a")["response"]["rewound"] == true);
  CHECK(held_by(talk) == "[[echo]]|");
}

TEST_CASE("stand-in: results of tools are taken back only with the message before their call") {
  const stand_in program;
  session talk(program);
  const json result{{"type", "tool_result"}, {"tool_use_id", "c"}, {"content", "sunny"}};
  auto question = with_uuid(user_line("weather?"), "q"), answer = with_uuid(user_line(""), "r");
  answer["message"]["content"] = json::array({result});
  for (auto* line : {&question, &answer}) {
    (*line)["shouldQuery"] = false;
    talk.write(*line);
    talk.read_to("result");
  }
  CHECK(rewind(talk, "r")["response"]["reason"] == "target_splits_tool_call");
  CHECK(rewind(talk, "q")["response"]["rewound"] == true);
  CHECK(held_by(talk) == "[[echo]]|");
}

TEST_CASE("stand-in: where it is told so, messages are taken back as older versions do, or not") {
  const auto first_answer = [](const char* configuration) {
    const stand_in program(configuration);
    session talk(program);
    talk.write(with_uuid(user_line(told("text")), "a"));
    talk.read_to("result");
    return rewind(talk, "a");
  };
  CHECK(first_answer("no_rewind_to_start")["response"] ==
        json{{"rewound", false}, {"error", "no preceding assistant"}});
  CHECK(first_answer("unsupported_rewind")["error"] ==
        "Unsupported control request subtype: rewind_conversation");
  CHECK(first_answer("refuses_rewind")["response"]["rewound"] == false);
  CHECK(first_answer("refuses_rewind after=1")["response"]["rewound"] == true);
  const stand_in program("talks_in_rewind");
  session talk(program);
  talk.write(with_uuid(user_line(told("text")), "a"));
  talk.read_to("result");
  talk.write(request_line("r", {{"subtype", "rewind_conversation"}, {"target_message_uuid", "a"}}));
  CHECK(talk.read_to("stream_event/message_start").size() == 1);
}
