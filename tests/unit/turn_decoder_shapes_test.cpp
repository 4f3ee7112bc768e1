// cli_protocol: the lines of turns with tools, with a schema, and of agents, decoded to events.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/cli_lines.hpp"

using namespace cli_lines;
using strings = std::vector<std::string>;

namespace {

/// A client with the tools `look` and `get weather`.
turn_request with_tools() {
  turn_request request;
  request.stream = true;
  request.tools.push_back({"look", "", json::object()});
  request.tools.push_back({"get weather", "", json::object()});
  return request;
}

answer_shape tools_shape() { return make_answer_shape(with_tools()); }

answer_shape agent_shape(bool shows_activity = false, turn_request request = with_tools()) {
  request.agent.emplace();
  request.agent->show_activity = shows_activity;
  return make_answer_shape(request);
}

answer_shape schema_shape(bool streamed, turn_request request = {}) {
  request.schema = json::object();
  request.schema_field = "the.schema";
  request.stream = streamed;
  return make_answer_shape(request);
}

std::vector<json> text_lines(int index, const std::string& text) {
  return {text_start(index), text_delta(text, index), block_stop(index)};
}

/// A whole streamed message of these blocks.
std::vector<json> message_of(const std::string& id, const std::vector<json>& blocks,
                             const std::string& reason) {
  return std::vector<json>{message_start(id)} + blocks +
         std::vector<json>{message_delta("\"" + reason + "\""), message_stop()};
}

std::vector<json> one_call(const std::string& message, const std::string& id = "t1") {
  return message_of(message, call_lines(0, id, "look", {"{\"a\"", ":1}"}), "tool_use");
}

/// `name(id)` of each call that was told.
strings calls_told(const decoded& all) {
  strings calls;
  for (const auto& what : all.told) {
    const auto* begun = std::get_if<block_started>(&what);
    if (begun == nullptr || begun->kind != block_kind::tool_call) continue;
    calls.push_back(begun->name + "(" + begun->id + ")");
  }
  return calls;
}

}  // namespace

// ---- tools --------------------------------------------------------------------------------------

TEST_CASE("decoder tools: a call is told as it comes and ends the turn with its message") {
  const auto lines = one_call("m1");
  const auto all = decode(lines, tools_shape());
  CHECK(all.finished);
  CHECK_FALSE(all.cut);
  CHECK(calls_told(all) == strings{"look(t1)"});
  CHECK(all.calls == strings{"t1"});
  CHECK(deltas_of(all.told) == strings{"{\"a\"", ":1}"});
  CHECK(all.end().reason == stop_reason::tool_use);
  CHECK(all.end().usage.output == 7);
  const auto before_its_end = std::vector<json>(lines.begin(), lines.end() - 2);
  CHECK_FALSE(decode(before_its_end, tools_shape()).finished);
}

TEST_CASE("decoder tools: names come back as the client gave them") {
  const auto all = decode(message_of("m1", call_lines(0, "t1", "get_weather", {"{}"}), "tool_use"),
                          tools_shape());
  CHECK(calls_told(all) == strings{"get weather(t1)"});
  const auto prefixed =
      message_of("m1", call_lines(0, "t1", "mcp__client__get_weather", {"{}"}), "tool_use");
  CHECK(calls_told(decode(prefixed, agent_shape())) == strings{"get weather(t1)"});
}

TEST_CASE("decoder tools: several calls come together, after thinking and text") {
  const auto lines = message_of(
      "m1",
      std::vector<json>{thinking_start(0), thinking_delta("hm", 0), block_stop(0)} +
          text_lines(1, "Let me look.") + call_lines(2, "t1", "look", {"{\"a\":1}"}) +
          std::vector<json>{tools_call("t1")} + call_lines(3, "t2", "get_weather", {"{\"b\":2}"}) +
          std::vector<json>{tools_call("t2")},
      "tool_use");
  auto shape = tools_shape();
  shape.shows_thinking = false;  // the grammar of what is told is checked by `decode`
  CHECK(test::said_in(block_kind::thinking, decode(lines, shape).told).empty());
  shape.shows_thinking = true;
  const auto all = decode(lines, shape);
  CHECK(all.finished);
  CHECK(all.text() == "Let me look.");
  CHECK(test::said_in(block_kind::thinking, all.told) == "hm");
  CHECK(calls_told(all) == strings{"look(t1)", "get weather(t2)"});
  CHECK(all.arguments() == "{\"a\":1}{\"b\":2}");
  CHECK(all.calls == strings{"t1", "t2"});
}

TEST_CASE("decoder: a text's citations come with its end, once, also of an attempt that broke") {
  const auto cited = [](const std::string& message) {
    const auto citation = delta(0, R"({"type":"citations_delta","citation":{"a":1}})");
    return std::vector<json>{message_start(message), text_start(0), text_delta("Green.", 0),
                             citation};
  };
  const auto end =
      std::vector<json>{block_stop(0), message_delta("\"end_turn\""), message_stop(), result()};
  for (const auto& lines : {cited("m1") + end, cited("m1") + cited("m2") + end}) {
    const auto all = decode(lines, tools_shape());
    CHECK(all.text() == "Green.");
    std::string citations;
    for (const auto& what : all.told) {
      const auto* stopped = std::get_if<block_stopped>(&what);
      if (stopped != nullptr) citations += dump(stopped->citations);
    }
    CHECK(citations == R"([{"a":1}])");
  }
}

TEST_CASE("decoder tools: a call without arguments has the empty object for them") {
  const std::vector<std::vector<json>> calls = {call_lines(0, "t1", "look", {}),
                                                {tool_start(0, "t1", "look"), block_stop(0)}};
  for (const auto& call : calls) {
    CHECK(decode(message_of("m1", call, "tool_use"), tools_shape()).arguments() == "{}");
  }
  const auto whole =
      decode({assistant("m1", tool_block("t1", "look", "{}")), tools_call("t1")}, tools_shape());
  CHECK(whole.arguments() == "{}");
}

TEST_CASE("decoder tools: a request for a tool does not end a message that is streamed") {
  const auto first = std::vector<json>{message_start("m1")} + call_lines(0, "t1", "look", {"{}"});
  CHECK_FALSE(decode(first + std::vector<json>{tools_call("t1")}, tools_shape()).finished);
}

TEST_CASE("decoder tools: a message that was not streamed ends with the first request for a tool") {
  const std::vector<json> message = {assistant("m1", R"([{"type":"text","text":"Let me look."}])"),
                                     assistant("m1", tool_block("t1", "look", R"({"a":1})")),
                                     assistant("m1", tool_block("t2", "look", R"({"a":2})"))};
  CHECK_FALSE(decode(message, tools_shape()).finished);
  const auto all = decode(message + std::vector<json>{tools_call("t1")}, tools_shape());
  CHECK(all.finished);
  CHECK_FALSE(all.cut);
  CHECK(all.text() == "Let me look.");
  CHECK(all.arguments() == R"({"a":1}{"a":2})");
  CHECK(all.calls == strings{"t1", "t2"});
  CHECK(all.end().reason == stop_reason::tool_use);
  CHECK(all.end().usage.output == 7);
}

TEST_CASE("decoder tools: other requests of the process mean nothing") {
  const auto listing = line(R"({"type":"control_request","request_id":"r","request":
      {"subtype":"mcp_message","message":{"method":"tools/list","id":1}}})");
  const auto all = decode(std::vector<json>{listing} + hello() + std::vector<json>{result()});
  CHECK(all.text() == "Hello");
  CHECK(all.end().reason == stop_reason::end_turn);
}

TEST_CASE("decoder tools: a tool that nobody has is told, and the process must not live on") {
  const auto all = decode(
      message_of("m1", call_lines(0, "t1", "look", {"{}"}) + call_lines(1, "t2", "dream", {"{}"}),
                 "tool_use"),
      tools_shape());
  CHECK(all.finished);
  CHECK(all.cut);  // it would itself tell the model that there is no such tool
  CHECK(calls_told(all) == strings{"look(t1)", "dream(t2)"});
}

TEST_CASE("decoder tools: the answer to the results is a turn of its own") {
  const auto all = decode(std::vector<json>{tool_result("t1", "sunny"), requesting()} + hello() +
                              std::vector<json>{result()},
                          tools_shape());
  CHECK(all.text() == "Hello");
  CHECK(all.calls.empty());
  CHECK(all.end().usage.output == 7);
  CHECK(all.end().usage.cost_usd == 0.5);
}

TEST_CASE("decoder tools: a call that was cut short ends the turn, and its process") {
  for (const std::string reason : {"max_tokens", "refusal"}) {
    CAPTURE(reason);
    const auto all =
        decode(message_of("m1", call_lines(0, "t1", "look", {"{\"a"}), reason), tools_shape());
    CHECK(all.finished);
    CHECK(all.cut);
    CHECK(all.arguments() == "{\"a");
    CHECK(all.end().reason != stop_reason::tool_use);
  }
}

TEST_CASE("decoder tools: whatever a message with calls stopped for, nobody waits for ever") {
  // A stop sequence may stand within the arguments. The process parks the call all the same.
  for (const std::string reason : {"stop_sequence", "end_turn", "pause_turn"}) {
    CAPTURE(reason);
    const auto all =
        decode(message_of("m1", call_lines(0, "t1", "look", {"{}"}), reason), tools_shape());
    CHECK(all.finished);
  }
}

// ---- tools, and a connection that broke ---------------------------------------------------------

namespace {

/// A call of which the beginning was told when the connection broke.
std::vector<json> broken_call(const std::string& piece) {
  return {message_start("m1"), tool_start(0, "t1", "look"), json_delta(0, ""),
          json_delta(0, piece)};
}

}  // namespace

TEST_CASE("decoder tools: of a call that is made again only what is new is told") {
  const auto all = decode(broken_call("{\"a\"") + one_call("m2", "t1"), tools_shape());
  CHECK(all.finished);
  CHECK(calls_told(all) == strings{"look(t1)"});
  CHECK(deltas_of(all.told) == strings{"{\"a\"", ":1}"});
  CHECK(all.end().usage.output == 7);
}

TEST_CASE("decoder tools: a call that is made again under another id is known by the first one") {
  // The API gives new ids to a call that is made again; the client's results bear the old ones.
  const auto streamed = decode(broken_call("{\"a\"") + one_call("m2", "t2"), tools_shape());
  CHECK(streamed.finished);
  CHECK(calls_told(streamed) == strings{"look(t1)"});
  CHECK(streamed.calls == strings{"t1"});
  const auto whole =
      decode(broken_call("{\"a\"") +
                 std::vector<json>{assistant("m2", tool_block("t2", "look", R"({"a":1})")),
                                   tools_call("t2")},
             tools_shape());
  CHECK(whole.finished);
  CHECK(whole.arguments() == R"({"a":1})");
  CHECK(whole.calls == strings{"t1"});
  // So the process's own name of the call leads to the one that the client knows.
  turn_decoder decoder(0, tools_shape());
  std::vector<event> ignored;
  for (const auto& line : broken_call("{\"a\"") + one_call("m2", "t2")) {
    decoder.decode(line, ignored);
  }
  CHECK(decoder.client_call_id("t2") == "t1");
  CHECK(decoder.client_call_id("t3") == "t3");
}

TEST_CASE("decoder tools: another tool in place of the one that was told is a failure") {
  const auto other =
      message_of("m2", call_lines(0, "t2", "get_weather", {"{\"a\"", ":1}"}), "tool_use");
  const auto all = decode(broken_call("{\"a\"") + other, tools_shape());
  REQUIRE(all.finished);
  REQUIRE(test::failure_of(all.told));
  CHECK(all.failure().kind == error_kind::bad_gateway);
}

TEST_CASE("decoder tools: other arguments, or words, in place of what was told are a failure") {
  const std::vector<std::vector<json>> others = {
      message_of("m2", call_lines(0, "t1", "look", {"{\"b\":1}"}), "tool_use"),
      message_of("m2", call_lines(0, "t1", "look", {"{"}), "tool_use"),
      message_of("m2", text_lines(0, "Never mind."), "end_turn"),
      message_of("m2", text_lines(0, "Let me look.") + call_lines(1, "t1", "look", {"{\"a\":1}"}),
                 "tool_use"),
      {assistant("m2", tool_block("t1", "look", R"({"b":1})")), tools_call("t1")}};
  for (std::size_t i = 0; i < others.size(); ++i) {
    CAPTURE(i);
    const auto all = decode(broken_call("{\"a\"") + others[i], tools_shape());
    REQUIRE(all.finished);
    REQUIRE(test::failure_of(all.told));
    CHECK(all.failure().kind == error_kind::bad_gateway);
  }
}

// ---- structured answers -------------------------------------------------------------------------

namespace {

std::vector<json> structured_message(const std::string& id, const std::string& call,
                                     const strings& pieces) {
  return message_of(id, call_lines(0, call, "StructuredOutput", pieces), "tool_use");
}

json structured_result(const std::string& value) {
  return result(R"(,"structured_output":)" + value);
}

std::vector<json> accepted(const std::string& call = "s1") {
  return {tool_result(call, "Structured output provided successfully")};
}

std::vector<json> rejected(const std::string& call = "s1") {
  return {tool_result(call, "Output does not match required schema", true), requesting()};
}

const strings half_and_half = {"{\"a\"", ":1}"};

}  // namespace

TEST_CASE("decoder schema: a streamed answer is told as text while it comes") {
  const auto all = decode(structured_message("m1", "s1", half_and_half) + accepted() +
                              std::vector<json>{structured_result(R"({"a":1})")},
                          schema_shape(true));
  CHECK(deltas_of(all.told) == half_and_half);
  CHECK(all.text() == "{\"a\":1}");
  CHECK(all.calls.empty());
  CHECK(all.end().reason == stop_reason::end_turn);
  CHECK(all.end().usage.cost_usd == 0.5);
  CHECK_FALSE(all.cut);
}

TEST_CASE("decoder schema: who does not stream is told what the CLI has accepted, once") {
  const auto answer = structured_message("m1", "s1", half_and_half) + accepted();
  CHECK(deltas_of(decode(answer, schema_shape(false)).told).empty());
  const auto all =
      decode(answer + std::vector<json>{structured_result(R"({"a":1})")}, schema_shape(false));
  CHECK(deltas_of(all.told) == strings{R"({"a":1})"});
  CHECK(all.end().reason == stop_reason::end_turn);
}

TEST_CASE("decoder schema: words beside the answer are not told, before it or in another message") {
  const auto text_first = message_of(
      "m1", text_lines(0, "Sure!") + call_lines(1, "s1", "StructuredOutput", {"{\"a\":1}"}),
      "tool_use");
  const auto text_alone = message_of("m0", text_lines(0, "Sure!"), "end_turn") +
                          std::vector<json>{requesting()} +
                          structured_message("m1", "s1", half_and_half);
  for (const bool streamed : {false, true}) {
    for (const auto& lines : {text_first, text_alone}) {
      const auto all =
          decode(lines + accepted() + std::vector<json>{structured_result(R"({"a":1})")},
                 schema_shape(streamed));
      CHECK(all.text() == "{\"a\":1}");
      CHECK(all.end().reason == stop_reason::end_turn);
      CHECK_FALSE(all.cut);
    }
  }
}

TEST_CASE("decoder schema: an answer that was rejected is made again, for who does not stream") {
  const auto lines = structured_message("m1", "s1", {"{\"b\":1}"}) + rejected() +
                     structured_message("m2", "s2", half_and_half) + accepted("s2") +
                     std::vector<json>{structured_result(R"({"a":1})")};
  const auto all = decode(lines, schema_shape(false));
  CHECK(deltas_of(all.told) == strings{R"({"a":1})"});
  CHECK(all.end().usage.output == 14);
  const auto streamed = decode(lines, schema_shape(true));
  REQUIRE(streamed.finished);
  CHECK(streamed.text() == "{\"b\":1}");  // cannot be taken back
  CHECK(streamed.failure().kind == error_kind::bad_gateway);
  CHECK(streamed.cut);
}

TEST_CASE("decoder schema: where an old CLI asks again after a good answer, the answer is over") {
  const auto answer = structured_message("m1", "s1", half_and_half) + accepted();
  for (const bool streamed : {false, true}) {
    for (const auto& more : {requesting(), message_start("m2")}) {
      const auto all = decode(answer + std::vector<json>{more}, schema_shape(streamed));
      REQUIRE(all.finished);
      CHECK(all.cut);
      CHECK(all.text() == "{\"a\":1}");
      CHECK(all.end().reason == stop_reason::end_turn);
      CHECK(all.end().usage.output == 7);
    }
  }
}

TEST_CASE("decoder schema: a schema that the CLI dropped is the client's fault, and named") {
  for (const std::string tools : {"[]", R"(["look"])", "null", "7"}) {
    CAPTURE(tools);
    const auto all = decode({init(tools)}, schema_shape(true));
    REQUIRE(all.finished);
    CHECK(all.cut);
    CHECK(all.failure().kind == error_kind::invalid_request);
    CHECK(all.failure().param == "the.schema");
  }
  CHECK_FALSE(decode({init(R"(["StructuredOutput"])")}, schema_shape(true)).finished);
  CHECK_FALSE(decode({init("[]")}, tools_shape()).finished);
}

TEST_CASE("decoder schema: an object without members comes without a byte, and is an answer") {
  for (const bool streamed : {false, true}) {
    const auto all = decode(structured_message("m1", "s1", {}) + accepted() +
                                std::vector<json>{structured_result("{}")},
                            schema_shape(streamed));
    REQUIRE(all.finished);
    CHECK_FALSE(all.cut);
    CHECK(deltas_of(all.told) == strings{"{}"});
    CHECK(all.end().reason == stop_reason::end_turn);
  }
}

TEST_CASE("decoder schema: an answer in words alone is a failure") {
  for (const bool streamed : {false, true}) {
    const auto all = decode(hello() + std::vector<json>{result()}, schema_shape(streamed));
    CHECK(all.failure().kind == error_kind::bad_gateway);
    CHECK(all.text().empty());
    CHECK(all.failure().retry_is_futile);
    CHECK(all.failure().message.find("its last answer: Hello") != std::string::npos);
  }
}

TEST_CASE("decoder schema: an answer that never came right is a failure in the CLI's words") {
  const auto gave_up = line(R"({"type":"result","subtype":"error_max_structured_output_retries",
      "is_error":true,"errors":["Failed to provide valid structured output after 5 attempts"]})");
  for (const bool streamed : {false, true}) {
    const auto all =
        decode(structured_message("m1", "s1", {"{}"}) + rejected() + std::vector<json>{gave_up},
               schema_shape(streamed));
    CHECK(all.failure().message.find("after 5 attempts; its last answer: {}") != std::string::npos);
    CHECK(all.failure().retry_is_futile);
  }
}

TEST_CASE("decoder schema: the client's tools may be called before the answer") {
  for (const bool streamed : {false, true}) {
    const auto shape = schema_shape(streamed, with_tools());
    const auto all = decode(one_call("m1"), shape);
    CHECK(all.calls == strings{"t1"});
    CHECK(all.end().reason == stop_reason::tool_use);
    const auto answer = decode(std::vector<json>{tool_result("t1", "sunny")} +
                                   structured_message("m2", "s1", half_and_half) + accepted() +
                                   std::vector<json>{structured_result(R"({"a":1})")},
                               shape);
    CHECK(answer.text() == "{\"a\":1}");
    CHECK(answer.end().reason == stop_reason::end_turn);
  }
}

TEST_CASE("decoder schema: an answer that was cut short says so, and is over") {
  for (const bool streamed : {false, true}) {
    const auto all =
        decode(message_of("m1", call_lines(0, "s1", "StructuredOutput", {"{\"a"}), "max_tokens"),
               schema_shape(streamed));
    REQUIRE(all.finished);
    CHECK(all.cut);
    CHECK(all.end().reason == stop_reason::max_tokens);
  }
}

TEST_CASE("decoder schema: a stream that broke goes on with the same answer") {
  const std::vector<json> broken = {message_start("m1"), tool_start(0, "s1", "StructuredOutput"),
                                    json_delta(0, "{\"a\"")};
  const auto rest = accepted("s2") + std::vector<json>{structured_result(R"({"a":1})")};
  const auto again =
      decode(broken + structured_message("m2", "s2", half_and_half) + rest, schema_shape(true));
  CHECK(again.text() == "{\"a\":1}");
  CHECK(again.end().reason == stop_reason::end_turn);
  const auto whole = decode(
      broken +
          std::vector<json>{assistant("m2", tool_block("s2", "StructuredOutput", R"({"a":1})"))} +
          rest,
      schema_shape(true));
  CHECK(whole.text() == "{\"a\":1}");
}

TEST_CASE("decoder schema: two answers in one message are not told as one") {
  const auto twice = message_of("m1",
                                call_lines(0, "s1", "StructuredOutput", {"{\"a\":1}"}) +
                                    call_lines(1, "s2", "StructuredOutput", {"{\"a\":2}"}),
                                "tool_use");
  const auto all =
      decode(twice + std::vector<json>{structured_result(R"({"a":2})")}, schema_shape(true));
  const bool whole = json::accept(all.text());
  CHECK((whole || test::failure_of(all.told)));
}

// ---- agents -------------------------------------------------------------------------------------

namespace {

std::vector<json> bash_message(const std::string& id, const std::string& words) {
  return message_of(
      id, text_lines(0, words) + call_lines(1, "b" + id, "Bash", {"{\"command\"", ":\"ls\"}"}),
      "tool_use");
}

/// Words, a tool, its result, words again.
std::vector<json> agent_lines() {
  return bash_message("m1", "Let me look.") +
         std::vector<json>{tool_result("bm1", "a.txt\nb.txt"), requesting()} +
         message_of("m2", text_lines(0, "Two files."), "end_turn") + std::vector<json>{result()};
}

json limit_result(const std::string& subtype, const std::string& errors) {
  return line(R"({"type":"result","is_error":true,"total_cost_usd":0.5,"subtype":")" + subtype +
              "\"" + errors + "}");
}

}  // namespace

TEST_CASE("decoder agent: its tools are its own affair; the words of every message are told") {
  const auto all = decode(agent_lines(), agent_shape());
  CHECK(all.text() == "Let me look.\n\nTwo files.");
  CHECK(all.activity().empty());
  CHECK(all.calls.empty());
  CHECK(all.end().reason == stop_reason::end_turn);
  CHECK(all.end().usage.input == 22);
  CHECK(all.end().usage.output == 14);
  CHECK_FALSE(all.cut);
}

TEST_CASE("decoder agent: who wants to see it is told each tool, its input and its result") {
  const auto all = decode(agent_lines(), agent_shape(true));
  CHECK(all.text() == "Let me look.\n\nTwo files.");
  CHECK(all.activity() == "Bash {\"command\":\"ls\"}\na.txt\nb.txt\n");
  // In the order in which it happened.
  std::string kinds;
  for (const auto& what : all.told) {
    const auto* begun = std::get_if<block_started>(&what);
    if (begun != nullptr) kinds += begun->kind == block_kind::text ? "t" : "a";
  }
  CHECK(kinds == "taat");
}

TEST_CASE("decoder agent: results are told as text, in whatever form they come") {
  auto blocks = tool_result("bm1", "");
  blocks["message"]["content"][0]["content"] = json::parse(
      R"([{"type":"text","text":"one "},{"type":"image"},{"type":"text","text":"two"}])");
  const auto all =
      decode(bash_message("m1", "x") + std::vector<json>{blocks} +
                 message_of("m2", text_lines(0, "y"), "end_turn") + std::vector<json>{result()},
             agent_shape(true));
  CHECK(all.activity() == "Bash {\"command\":\"ls\"}\none two\n");
}

TEST_CASE("decoder agent: several tools in one message, and a result after the last word") {
  const auto lines =
      message_of("m1", call_lines(0, "b1", "Bash", {"{}"}) + call_lines(1, "r1", "Read", {}),
                 "tool_use") +
      std::vector<json>{tool_result("b1", "one"), tool_result("r1", "two", true)};
  CHECK(decode(lines, agent_shape(true)).activity() == "Bash {}\nRead \n");
  const auto all = decode(lines + std::vector<json>{result()}, agent_shape(true));
  CHECK(all.activity() == "Bash {}\nRead \none\ntwo\n");
  CHECK(all.end().reason == stop_reason::end_turn);
}

TEST_CASE("decoder agent: what its helpers say is not told") {
  auto inner = hello();
  for (auto& one : inner) one["parent_tool_use_id"] = "bm1";
  auto inner_result = tool_result("x", "inner");
  inner_result["parent_tool_use_id"] = "bm1";
  auto lines = agent_lines();
  lines.insert(lines.begin() + 9, inner.begin(), inner.end());
  lines.insert(lines.begin() + 9, inner_result);
  const auto all = decode(lines, agent_shape(true));
  CHECK(all.text() == "Let me look.\n\nTwo files.");
  CHECK(all.activity() == "Bash {\"command\":\"ls\"}\na.txt\nb.txt\n");
}

TEST_CASE(
    "decoder agent: out of turns or money, what it has said stands, and why it says no more") {
  for (const std::string subtype : {"error_max_turns", "error_max_budget_usd"}) {
    const auto all =
        decode(bash_message("m1", "Let me look.") +
                   std::vector<json>{tool_result("bm1", "a.txt"),
                                     limit_result(subtype, R"(,"errors":["Reached the limit"])")},
               agent_shape());
    CHECK(all.text() == "Let me look.\n\n[Reached the limit]");
    CHECK(all.end().reason == stop_reason::turn_limit);
    CHECK(all.end().usage.output == 7);
    CHECK(all.end().usage.cost_usd == 0.5);
    CHECK(all.cut);
  }
  const auto silent = decode(message_of("m1", call_lines(0, "b1", "Bash", {"{}"}), "tool_use") +
                                 std::vector<json>{limit_result("error_max_turns", "")},
                             agent_shape());
  CHECK(silent.text() == "[error_max_turns]");
}

TEST_CASE("decoder agent: a limit within a message keeps what came of it") {
  const auto all = decode({message_start("m1"), text_start(), text_delta("Half"),
                           limit_result("error_max_budget_usd", R"(,"errors":["no money"])")},
                          agent_shape());
  CHECK(all.text() == "Half\n\n[no money]");
  CHECK(all.end().usage.input == 11);
}

TEST_CASE("decoder agent: an answer by a schema is never followed by words") {
  auto shape = agent_shape();
  shape.structured = true;
  const auto limit = limit_result("error_max_turns", R"(,"errors":["Reached the limit"])");
  const auto lines = bash_message("m1", "Let me look.") + std::vector<json>{limit};
  for (const bool streamed : {false, true}) {
    shape.streamed = streamed;
    const auto all = decode(lines, shape);
    REQUIRE(all.finished);
    CHECK(all.text().empty());
  }
}

TEST_CASE("decoder agent: an answer that goes on after its limit is one text without a seam") {
  const auto all =
      decode(hello(R"("max_tokens")") + message_of("m2", text_lines(0, " there"), "end_turn") +
                 std::vector<json>{result()},
             agent_shape());
  CHECK(all.text() == "Hello there");
  CHECK_FALSE(all.cut);
  CHECK(all.end().reason == stop_reason::end_turn);
}

TEST_CASE("decoder agent: a message without a word is not the end of its work, a refusal is") {
  const auto empty = message_of("m1", {}, "end_turn") +
                     message_of("m2", text_lines(0, "Done."), "end_turn") +
                     std::vector<json>{result()};
  CHECK(decode(empty, agent_shape()).text() == "Done.");
  const auto refused = decode(hello(R"("refusal")"), agent_shape());
  CHECK(refused.finished);
  CHECK(refused.cut);
  CHECK(refused.end().reason == stop_reason::refusal);
}

TEST_CASE("decoder agent: a call of the client's ends the turn, its own tools run meanwhile") {
  const auto all = decode(message_of("m1",
                                     call_lines(0, "b1", "Bash", {"{}"}) +
                                         call_lines(1, "t1", "mcp__client__look", {"{}"}),
                                     "tool_use"),
                          agent_shape());
  CHECK(all.finished);
  CHECK_FALSE(all.cut);
  CHECK(all.calls == strings{"t1"});
  CHECK(calls_told(all) == strings{"look(t1)"});
}

TEST_CASE("decoder agent: a tool of the client's name without its server's prefix is the agent's") {
  const auto all =
      decode(message_of("m1", call_lines(0, "b1", "look", {"{}"}), "tool_use"), agent_shape());
  CHECK_FALSE(all.finished);
  CHECK(all.calls.empty());
}

TEST_CASE("decoder agent: what the client's own tools have answered is not told to the client") {
  // The turn that goes on with them begins with the results of all tools of the message before.
  auto shape = agent_shape(true);
  shape.answered = {"t1"};
  const auto all = decode(
      std::vector<json>{tool_result("b1", "bash says"), tool_result("t1", "the client says")} +
          message_of("m2", text_lines(0, "Done."), "end_turn") + std::vector<json>{result()},
      shape);
  CHECK(all.text() == "Done.");
  CHECK(all.activity().find("the client says") == std::string::npos);
}

TEST_CASE("decoder agent: what happened before the words is told before them") {
  const auto all =
      decode(std::vector<json>{tool_result("b1", "bash says")} +
                 message_of("m2", text_lines(0, "Done."), "end_turn") + std::vector<json>{result()},
             agent_shape(true));
  const auto deltas = deltas_of(all.told);
  REQUIRE(deltas.size() == 2);
  CHECK(deltas[0] == "bash says\n");
}

TEST_CASE("decoder agent: that an answer was accepted is not shown") {
  auto shape = agent_shape(true);
  shape.structured = true;
  shape.streamed = true;
  const auto all = decode(structured_message("m1", "s1", half_and_half) + accepted() +
                              std::vector<json>{structured_result(R"({"a":1})")},
                          shape);
  CHECK(all.text() == "{\"a\":1}");
  CHECK(all.activity().empty());
}

TEST_CASE("decoder agent: a later message that broke is matched with its own blocks") {
  const auto all = decode(
      bash_message("m1", "Let me look.") + std::vector<json>{tool_result("bm1", "x")} +
          std::vector<json>{message_start("m2"), text_start(), text_delta("Two f")} +
          message_of("m3", text_lines(0, "Two files."), "end_turn") + std::vector<json>{result()},
      agent_shape());
  CHECK(all.text() == "Let me look.\n\nTwo files.");
  CHECK(all.end().usage.output == 14);
}

// ---- thinking tokens ----------------------------------------------------------------------------

namespace {

std::vector<json> thoughtful(const std::string& usage) {
  return {message_start("m1"),
          thinking_start(),
          thinking_tokens(3),
          thinking_delta("hm"),
          thinking_tokens(4),
          block_stop(),
          text_start(1),
          text_delta("Hello", 1),
          block_stop(1),
          message_delta(R"("end_turn")", usage),
          result()};
}

}  // namespace

TEST_CASE("decoder: thinking tokens are the API's count, or the CLI's estimate without one") {
  CHECK(decode(thoughtful(R"({"output_tokens":9})")).end().usage.thinking == 7);
  const auto told = R"({"output_tokens":9,"output_tokens_details":{"thinking_tokens":5}})";
  CHECK(decode(thoughtful(told)).end().usage.thinking == 5);
  CHECK(decode(hello() + std::vector<json>{result()}).end().usage.thinking == 0);
}

TEST_CASE("decoder: thinking of a broken attempt is not counted") {
  const std::vector<json> broken = {message_start("m0"), thinking_start(), thinking_tokens(3),
                                    thinking_delta("hm")};
  const auto all = decode(broken + thoughtful(R"({"output_tokens":9})"));
  CHECK(all.end().usage.thinking == 7);
}

// ---- what was not shown goes with the attempt that broke ---------------------------------------

TEST_CASE("decoder: thoughts that a client is not shown may differ in the next attempt, streamed") {
  const std::vector<json> broken = {message_start("m0"), thinking_start(0),
                                    thinking_delta("hm", 0)};
  const std::vector<json> other = {message_start("m1"),
                                   thinking_start(0),
                                   thinking_delta("ah", 0),
                                   block_stop(0),
                                   text_start(1),
                                   text_delta("Hello", 1),
                                   block_stop(1),
                                   message_delta(R"("end_turn")"),
                                   result()};
  auto shape = streamed_shape();
  shape.shows_thinking = false;
  const auto all = decode(broken + other, shape);
  CHECK_FALSE(test::failure_of(all.told));
  CHECK(test::text_of(all.told) == "Hello");
  CHECK(all.end().reason == stop_reason::end_turn);
  shape.shows_thinking = true;
  CHECK(test::failure_of(decode(broken + other, shape).told));
}

TEST_CASE("decoder: what a stop text held back goes with the attempt that broke") {
  answer_shape shape;
  shape.cut_at = {"\n\n"};
  const std::vector<json> broken = {message_start("m0"), text_start(), text_delta("One\n")};
  const std::vector<json> next = {message_start("m1"),
                                  text_start(),
                                  text_delta("\nHello."),
                                  block_stop(),
                                  message_delta(R"("end_turn")"),
                                  result()};
  collector gathered;
  for (const auto& what : decode(broken + next, shape).told) gathered.add(what);
  REQUIRE(gathered.result().blocks.size() == 1);
  CHECK(gathered.result().blocks[0].text == "\nHello.");
}

// ---- whatever the lines say, for whatever client -----------------------------------------------

namespace {

/// Every kind of answer: tools or none, a schema or none, an agent or none, streamed, shown.
answer_shape random_shape(test::generator& random) {
  turn_request request;
  if (random.chance(60)) request = with_tools();
  if (random.chance(40)) request.schema = json::object();
  request.stream = random.chance(50);
  if (random.chance(50)) request.agent.emplace();
  if (request.agent) request.agent->show_activity = random.chance(50);
  request.shows_thinking = random.chance(50);
  if (random.chance(20)) request.sampling.cut_at = {"o"};
  return make_answer_shape(request);
}

/// Turns that each make sense, to be spoilt.
const std::vector<std::vector<json>>& sensible_turns() {
  static const std::vector<std::vector<json>> turns = {
      hello() + std::vector<json>{result()},
      hello(R"("max_tokens")") + hello() + std::vector<json>{result()},
      one_call("m1") + std::vector<json>{tools_call("t1"), tool_result("t1", "sunny")} + hello() +
          std::vector<json>{result()},
      message_of("m1",
                 call_lines(0, "t1", "mcp__client__look", {"{}"}) +
                     std::vector<json>{tools_call("t1")} + call_lines(1, "t2", "get_weather", {}) +
                     std::vector<json>{tools_call("t2")},
                 "tool_use"),
      std::vector<json>{assistant("m1", tool_block("t1", "look", "{}")), tools_call("t1")},
      broken_call("{\"a\"") + std::vector<json>{api_retry("5", "null")} + one_call("m2", "t2"),
      structured_message("m1", "s1", {"{\"b\"", ":1}"}) + rejected() +
          structured_message("m2", "s2", half_and_half) + accepted("s2") +
          std::vector<json>{structured_result(R"({"a":1})")},
      structured_message("m1", "s1", half_and_half) + accepted() + std::vector<json>{requesting()} +
          hello() + std::vector<json>{result()},
      agent_lines(),
      bash_message("m1", "x") +
          std::vector<json>{tool_result("bm1", "y", true),
                            limit_result("error_max_turns", R"(,"errors":["over"])")},
      thoughtful(R"({"output_tokens":9})"),
      std::vector<json>{init(R"(["StructuredOutput"])"), requesting(), init("[]")},
      std::vector<json>{failed_result("429", "API Error: Request rejected (429)")}};
  return turns;
}

/// One member somewhere in the line becomes something else, or nothing.
void spoil(json& spoilt, test::generator& random) {
  std::vector<std::string> places;
  const auto flat = spoilt.flatten();
  for (const auto& [place, value] : flat.items()) places.push_back(place);
  if (places.empty() || places[0].empty()) return;
  auto place = random.pick(places);
  if (random.chance(30)) place = place.substr(0, place.rfind('/'));  // the whole around it
  if (place.empty()) return;
  const json::json_pointer at(place);
  static const std::vector<json> values = {nullptr,
                                           0,
                                           -1,
                                           1,
                                           1e300,
                                           true,
                                           "",
                                           "text",
                                           "tool_use",
                                           json::array(),
                                           json::object(),
                                           json::array({nullptr}),
                                           json::array({json::object()})};
  if (random.chance(50)) {
    spoilt[at] = random.pick(values);
  } else if (spoilt[at.parent_pointer()].is_object()) {
    spoilt[at.parent_pointer()].erase(at.back());
  }
}

/// Lines of one turn or two, some of them lost, doubled, moved or spoilt.
std::vector<json> random_lines(test::generator& random) {
  auto lines = random.pick(sensible_turns());
  if (random.chance(30)) {
    lines.resize(random.below(lines.size() + 1));
    lines = lines + random.pick(sensible_turns());
  }
  for (std::size_t n = random.below(5); n > 0 && !lines.empty(); --n) {
    const auto at = static_cast<std::ptrdiff_t>(random.below(lines.size()));
    const auto other = static_cast<std::ptrdiff_t>(random.below(lines.size()));
    switch (random.below(6)) {
      case 0: lines.erase(lines.begin() + at); break;
      case 1: lines.insert(lines.begin() + at, json(lines[static_cast<std::size_t>(other)])); break;
      case 2: std::iter_swap(lines.begin() + at, lines.begin() + other); break;
      case 3: lines.resize(static_cast<std::size_t>(at)); break;
      case 4: spoil(lines[static_cast<std::size_t>(at)], random); break;
      default: std::rotate(lines.begin(), lines.begin() + at, lines.end()); break;
    }
  }
  return lines;
}

/// What no client may see, whatever the process has said; empty when all is well.
std::string problem_of(const decoded& all, const answer_shape& shape) {
  const auto grammar = test::grammar_problem(all.told);
  if (!grammar.empty()) return grammar;
  strings ids;
  for (const auto& what : all.told) {
    const auto* begun = std::get_if<block_started>(&what);
    if (std::holds_alternative<attempt_broken>(what)) ids.clear();
    if (begun == nullptr) continue;
    if (begun->kind == block_kind::tool_call) ids.push_back(begun->id);
    if (begun->kind == block_kind::activity && !shape.shows_activity) return "activity is shown";
  }
  if (ids != all.calls) return "other calls are told than are waited for";
  const auto stopped = test::end_of(all.told);
  const bool waits = stopped && stopped->reason == stop_reason::tool_use;
  if (waits && ids.empty()) return "it waits for nothing";
  const bool whole = stopped && stopped->reason == stop_reason::end_turn;
  const bool by_schema = shape.structured && !shape.streamed && whole;
  if (by_schema && !json::accept(all.text())) return "not the JSON that was asked for";
  return {};
}

}  // namespace

TEST_CASE("decoder: lines lost, doubled, moved and spoilt keep the grammar, in every shape") {
  CAPTURE(test::seed());
  test::generator random(24);
  std::size_t stopped = 0;
  std::size_t failed = 0;
  for (int i = 0; i < 30'000; ++i) {
    const auto shape = random_shape(random);
    const auto lines = random_lines(random);
    turn_decoder decoder(0, shape);
    decoded all;
    std::string said;
    for (const auto& one : lines) said += dump(one) + "\n";
    CAPTURE(said);
    for (const auto& one : lines) REQUIRE_NOTHROW(decoder.decode(one, all.told));
    if (!decoder.finished()) decoder.fail(api_error(error_kind::bad_gateway, "gone"), all.told);
    all.calls = decoder.calls();
    const auto kind = std::string(shape.structured ? "schema " : "") +
                      (shape.streamed ? "streamed " : "") + (shape.agent ? "agent" : "");
    CAPTURE(kind);
    REQUIRE(problem_of(all, shape) == "");
    test::end_of(all.told) ? ++stopped : ++failed;
  }
  CHECK(stopped > 5'000);
  CHECK(failed > 5'000);
}

TEST_CASE("decoder: turns that make sense end as they should in the shape they are for") {
  CHECK(decode(sensible_turns()[2], tools_shape()).end().reason == stop_reason::tool_use);
  CHECK(decode(sensible_turns()[6], schema_shape(false)).text() == R"({"a":1})");
  CHECK(decode(sensible_turns()[8], agent_shape()).end().reason == stop_reason::end_turn);
}
