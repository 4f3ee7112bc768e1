// [22] engine: what it makes of requests and answers before any process is asked. Its turns are
// tested in tests/protocol.
#include <chrono>
#include <string>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;

namespace {

message says(role author, std::vector<content_part> parts) { return {author, std::move(parts)}; }

tool_result_part result_of(std::vector<std::variant<text_part, media_part>> content) {
  return {"1", std::move(content), false};
}

turn_request ending_with(std::vector<content_part> parts) {
  turn_request request;
  request.messages = {says(role::user, {text_part{"q"}}),
                      says(role::assistant, {tool_call_part{"1", "look", json::object()}}),
                      says(role::user, std::move(parts))};
  return request;
}

turn_result::block block_of(block_kind kind, const std::string& text) {
  return {kind, text, kind == block_kind::tool_call ? "t1" : "", "look", {}};
}

message reply_to(const std::vector<turn_result::block>& blocks) {
  turn_result result;
  result.blocks = blocks;
  return make_reply(result);
}

}  // namespace

TEST_CASE("engine: what comes back of an answer is its text, then its calls; no thought") {
  const auto said =
      reply_to({block_of(block_kind::thinking, "hm"), block_of(block_kind::text, "Let me "),
                block_of(block_kind::tool_call, R"({"b":1})"),
                block_of(block_kind::activity, "Bash"), block_of(block_kind::text, "look.")});
  CHECK(said.author == role::assistant);
  REQUIRE(said.parts.size() == 2);
  CHECK(std::get<text_part>(said.parts[0]).text == "Let me look.");
  const auto& call = std::get<tool_call_part>(said.parts[1]);
  CHECK(call.id == "t1");
  CHECK(call.name == "look");
  CHECK(dump(call.input) == R"({"b":1})");
  CHECK(reply_to({}).parts.empty());
  CHECK(reply_to({block_of(block_kind::tool_call, "{\"cut")}).parts.empty());
}

TEST_CASE("engine: a search comes back as the API has sealed it, one without a result not at all") {
  auto cited = block_of(block_kind::text, "It is so.");
  cited.citations = json::parse(R"([{"encrypted_index":"i"}])");
  const turn_result::block search{block_kind::search, R"({"query":"q"})", "s", "web_search", {}};
  const std::string found = R"({"type":"web_search_tool_result","tool_use_id":"s","content":[]})";
  const auto whole =
      reply_to({block_of(block_kind::text, "I look."), search, block_of(block_kind::found, found),
                cited, block_of(block_kind::text, "Well.")});
  json parts = json::array();
  for (const auto& part : whole.parts) parts.push_back(render_part(part));
  CHECK(parts == json::parse(R"([{"type":"text","text":"I look."},
      {"type":"server_tool_use","id":"s","name":"web_search","input":{"query":"q"}},)" +
                             found + R"(,
      {"type":"text","text":"It is so.","citations":[{"encrypted_index":"i"}]},
      {"type":"text","text":"Well."}])"));
  CHECK(reply_to({search}).parts.empty());
  CHECK(reply_to({block_of(block_kind::text, "I look."), search}).parts.size() == 1);

  std::vector<message> history = {says(role::user, {text_part{"q"}}), whole};
  drop_searches(history);
  REQUIRE(history[1].parts.size() == 3);
  CHECK(std::get<text_part>(history[1].parts[1]).text == "It is so.");
}

TEST_CASE("engine: results alone go to the process that waits for them") {
  const media_part image{media_part::media_kind::image, "image/png", "AAAA", {}, {}};
  CHECK(answers_calls(ending_with({result_of({})})));
  CHECK(answers_calls(ending_with({result_of({text_part{"a"}, image})})));
  CHECK(answers_calls(ending_with({result_of({}), result_of({text_part{"b"}})})));
}

TEST_CASE("engine: what a waiting process cannot take, another is told from the start") {
  using kind = media_part::media_kind;
  CHECK_FALSE(answers_calls(ending_with({text_part{"q"}})));
  CHECK_FALSE(answers_calls(ending_with({result_of({}), text_part{"and?"}})));
  CHECK_FALSE(answers_calls(ending_with({result_of({media_part{kind::image, {}, {}, "u", {}}})})));
  CHECK_FALSE(answers_calls(
      ending_with({result_of({media_part{kind::document, "application/pdf", "A", {}, {}}})})));
}

TEST_CASE("engine: a failure goes to a waiting process as far as the CLI passes it on whole") {
  const auto fits = [](std::vector<std::variant<text_part, media_part>> content) {
    return answers_calls(ending_with({tool_result_part{"1", std::move(content), true}}));
  };
  CHECK(fits({text_part{std::string(9'999, 'x')}}));
  CHECK_FALSE(fits({text_part{std::string(6'000, 'x')}, text_part{std::string(6'000, 'x')}}));
  CHECK_FALSE(fits({media_part{media_part::media_kind::image, "image/png", "AAAA", {}, {}}}));
}

TEST_CASE("engine: calls of the past need their tools, which may not be called again") {
  auto request = ending_with({result_of({})});
  request.messages[1].parts.emplace_back(tool_call_part{"2", "see", json::object()});
  request.messages[1].parts.emplace_back(tool_call_part{"3", "look", json::object()});
  define_called_tools(request);
  REQUIRE(request.tools.size() == 2);
  CHECK(request.tools[0].name == "look");
  CHECK(request.tools[1].name == "see");
  CHECK(request.choice.kind == tool_choice::how::none);
}

TEST_CASE("engine: a client's own tools and a past without calls are left as they are") {
  auto with_tools = ending_with({result_of({})});
  with_tools.tools.push_back({"other", {}, json::object()});
  define_called_tools(with_tools);
  CHECK(with_tools.tools.size() == 1);
  CHECK(with_tools.choice.kind == tool_choice::how::automatic);
  turn_request without_calls;
  without_calls.messages = {says(role::user, {text_part{"q"}})};
  define_called_tools(without_calls);
  CHECK(without_calls.tools.empty());
  CHECK(without_calls.choice.kind == tool_choice::how::automatic);
}

TEST_CASE("engine: calls that nest too deeply are none of the history") {
  const auto deep = std::string(100'000, '[') + std::string(100'000, ']');
  CHECK(reply_to({block_of(block_kind::tool_call, "{\"a\":" + deep + "}")}).parts.empty());
}

TEST_CASE("engine: to define the called tools takes time by their number, not by its square") {
  turn_request request;
  request.messages = {says(role::assistant, {})};
  for (int i = 0; i < 100'000; ++i) {
    const auto name = "a_tool_with_a_name_that_is_long_enough_" + std::to_string(i);
    request.messages[0].parts.emplace_back(tool_call_part{"1", name, json::object()});
  }
  const auto begun = std::chrono::steady_clock::now();
  define_called_tools(request);
  CHECK(request.tools.size() == 100'000);
  // The square takes minutes here, also on a fast machine.
  CHECK(std::chrono::steady_clock::now() - begun < std::chrono::seconds(10));
}
